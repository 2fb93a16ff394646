//! LoRaWAN 1.0.x data frames from the mote's side: uplinks are built by the `lorawan` crate, downlinks are taken apart here.

use lorawan::creator::DataPayloadCreator;
use lorawan::keys::{AES128, AppSKey, NewSKey};
use lorawan::parser::{EncryptedDataPayload, FCtrl};

use crate::fleet::{DevAddr, Device, Key};

/// FPort of all uplinks.
pub const F_PORT: u8 = 1;
/// Largest LoRa packet.
pub const FRAME_BYTES_MAX: usize = 255;
/// `MHDR`, `FHDR` without options, `MIC`.
const FRAME_BYTES_MIN: usize = 12;
const M_TYPE_UNCONFIRMED_DOWN: u8 = 3;
const M_TYPE_CONFIRMED_DOWN: u8 = 5;
const F_CTRL_ACK: u8 = 0x20;
const F_CTRL_OPTIONS_LENGTH: u8 = 0x0f;

/// Why bytes are no downlink.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Shorter than the smallest or longer than the largest frame.
    #[error("{0} bytes are no data frame")]
    Length(usize),
    /// Join accept, an uplink, proprietary, or another major version.
    #[error("MHDR {0:#04x} is no data downlink")]
    NotDownlink(u8),
    /// The options do not fit into the frame.
    #[error("options of {0} bytes do not fit")]
    Options(usize),
}

/// What a mote measured: the payload of one uplink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// The mote's own number of this reading; it counts readings, not frames, and does not start at 0.
    pub number: u32,
    /// Temperature in tenths of a degree Celsius.
    pub decicelsius: i16,
}

impl Reading {
    /// Cayenne LPP: channel 1 generic sensor (type 100, u32), channel 2 temperature (type 103, i16 in 0.1 degree); big-endian.
    #[must_use]
    pub fn to_cayenne_lpp(self) -> [u8; 10] {
        let number = self.number.to_be_bytes();
        let temperature = self.decicelsius.to_be_bytes();
        [1, 100, number[0], number[1], number[2], number[3], 2, 103, temperature[0], temperature[1]]
    }
}

/// Builds the physical payload of one uplink, 23 bytes.
///
/// # Panics
/// Never: the payload has a fixed length far below the limit.
#[must_use]
pub fn build_uplink(device: &Device, f_cnt: u32, confirmed: bool, acknowledge: bool, reading: Reading) -> Vec<u8> {
    let address = device.dev_addr.0.to_le_bytes();
    let mut creator = DataPayloadCreator::new();
    creator
        .set_uplink(true)
        .set_confirmed(confirmed)
        .set_f_port(F_PORT)
        .set_dev_addr(&address)
        .set_fctrl(&FCtrl::new(if acknowledge { F_CTRL_ACK } else { 0 }, true))
        .set_fcnt(f_cnt);
    let bytes = creator
        .build(&reading.to_cayenne_lpp(), &[], &NewSKey::from(device.nwk_s_key.0), &AppSKey::from(device.app_s_key.0))
        .expect("ten bytes of payload without MAC commands fit into a frame");
    bytes.to_vec()
}

/// The fields of a downlink that lie open on the air.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DownlinkHeader {
    /// Address it is for.
    pub dev_addr: DevAddr,
    /// Lower half of the downlink counter.
    pub f_cnt_low: u16,
    /// Acknowledges the last confirmed uplink.
    pub ack: bool,
    /// Asks for an acknowledgement itself.
    pub confirmed: bool,
}

/// Reads the header of a data downlink.
///
/// # Errors
/// [`Error`] for anything else; no input panics.
pub fn parse_downlink(bytes: &[u8]) -> Result<DownlinkHeader, Error> {
    if bytes.len() < FRAME_BYTES_MIN || bytes.len() > FRAME_BYTES_MAX {
        return Err(Error::Length(bytes.len()));
    }
    let m_type = bytes[0] >> 5;
    if (m_type != M_TYPE_UNCONFIRMED_DOWN && m_type != M_TYPE_CONFIRMED_DOWN) || bytes[0] & 0x03 != 0 {
        return Err(Error::NotDownlink(bytes[0]));
    }
    let options = usize::from(bytes[5] & F_CTRL_OPTIONS_LENGTH);
    if FRAME_BYTES_MIN + options > bytes.len() {
        return Err(Error::Options(options));
    }
    Ok(DownlinkHeader {
        dev_addr: DevAddr(u32::from_le_bytes([bytes[1], bytes[2], bytes[3], bytes[4]])),
        f_cnt_low: u16::from_le_bytes([bytes[6], bytes[7]]),
        ack: bytes[5] & F_CTRL_ACK != 0,
        confirmed: m_type == M_TYPE_CONFIRMED_DOWN,
    })
}

/// Whether the MIC of a downlink is right under the full 32-bit counter. False for what [`parse_downlink`] refuses.
#[must_use]
pub fn is_downlink_authentic(bytes: &[u8], nwk_s_key: &Key, f_cnt: u32) -> bool {
    // The crate is only shown what passed our own length checks: its parser can panic on hostile input.
    parse_downlink(bytes).is_ok()
        && EncryptedDataPayload::new(bytes).is_ok_and(|frame| frame.validate_mic(&AES128(nwk_s_key.0), f_cnt))
}

/// Builds a downlink as a server would: for tests of motes, radio and gateways.
///
/// # Panics
/// Never: without payload and MAC commands nothing can be too long.
#[must_use]
pub fn build_downlink(device: &Device, f_cnt: u32, ack: bool, confirmed: bool) -> Vec<u8> {
    let address = device.dev_addr.0.to_le_bytes();
    let mut creator = DataPayloadCreator::new();
    creator
        .set_uplink(false)
        .set_confirmed(confirmed)
        .set_dev_addr(&address)
        .set_fctrl(&FCtrl::new(if ack { F_CTRL_ACK } else { 0 }, false))
        .set_fcnt(f_cnt);
    let bytes = creator
        .build(&[], &[], &NewSKey::from(device.nwk_s_key.0), &AppSKey::from(device.app_s_key.0))
        .expect("an empty downlink fits into a frame");
    bytes.to_vec()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fleet::Fleet;

    fn device() -> Device {
        Fleet::new(1, 1).expect("one mote").devices()[0].clone()
    }

    #[test]
    fn uplink_has_the_bytes_of_the_specification() {
        let device = device();
        let reading = Reading { number: 0x0102_0304, decicelsius: -5 };
        let bytes = build_uplink(&device, 0x0001_fffe, true, false, reading);
        assert_eq!(bytes.len(), 23);
        assert_eq!(bytes[0], 0x80);
        assert_eq!(bytes[1..5], device.dev_addr.0.to_le_bytes());
        assert_eq!(bytes[5..9], [0, 0xfe, 0xff, F_PORT]);
        let plain = EncryptedDataPayload::new(bytes.clone())
            .expect("a frame")
            .decrypt_if_mic_ok(&AES128(device.nwk_s_key.0), &AES128(device.app_s_key.0), 0x0001_fffe)
            .expect("a valid MIC under the 32-bit counter");
        assert_eq!(plain.to_inner()[9..19], [1, 100, 1, 2, 3, 4, 2, 103, 0xff, 0xfb]);
        assert_eq!(build_uplink(&device, 1, false, true, reading)[0], 0x40);
        assert_eq!(build_uplink(&device, 1, false, true, reading)[5], F_CTRL_ACK);
    }

    #[test]
    fn downlink_is_read_and_authenticated() {
        let device = device();
        let bytes = build_downlink(&device, 0x0001_0005, true, false);
        let header = parse_downlink(&bytes).expect("a downlink");
        assert_eq!(header, DownlinkHeader { dev_addr: device.dev_addr, f_cnt_low: 5, ack: true, confirmed: false });
        assert!(is_downlink_authentic(&bytes, &device.nwk_s_key, 0x0001_0005));
        assert!(!is_downlink_authentic(&bytes, &device.nwk_s_key, 5));
        assert!(parse_downlink(&build_downlink(&device, 5, false, true)).expect("a downlink").confirmed);
        assert_eq!(
            parse_downlink(&build_uplink(&device, 1, true, false, Reading { number: 1, decicelsius: 1 })),
            Err(Error::NotDownlink(0x80))
        );
        assert_eq!(parse_downlink(&[]), Err(Error::Length(0)));
        assert_eq!(parse_downlink(&[0x60, 0, 0, 0, 0, 0x0f, 0, 0, 0, 0, 0, 0]), Err(Error::Options(15)));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), f_cnt in any::<u32>()) {
            let _ = is_downlink_authentic(&bytes, &Key([7; 16]), f_cnt);
        }
    }
}
