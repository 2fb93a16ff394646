//! LoRaWAN 1.0.x data frames from the mote's side, with the `lorawan` crate's primitives; its own builder is the measure of ours.

use lorawan::creator::DataPayloadCreator;
use lorawan::keys::{AES128, AppSKey, NewSKey};
use lorawan::parser::{EncryptedDataPayload, FCtrl};

use crate::crypto::{apply_keystream, data_block, integrity_code};
use crate::fleet::{DevAddr, Device, Key};
use crate::seed::low_u16;

/// FPort of all uplinks.
pub const F_PORT: u8 = 1;
/// Largest LoRa packet.
pub const FRAME_BYTES_MAX: usize = 255;
/// `MHDR`, `FHDR` without options, `MIC`.
const FRAME_BYTES_MIN: usize = 12;
const M_TYPE_UNCONFIRMED_DOWN: u8 = 3;
const M_TYPE_CONFIRMED_DOWN: u8 = 5;
const F_CTRL_ADR: u8 = 0x80;
const F_CTRL_ADR_ACK_REQUEST: u8 = 0x40;
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

/// Address and keys that hold from one join to the next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// 0 for a personalised mote; else which of its joins began it, from 1.
    pub ordinal: u32,
    /// Address.
    pub dev_addr: DevAddr,
    /// Integrity codes and MAC commands.
    pub nwk_s_key: Key,
    /// Payloads.
    pub app_s_key: Key,
}

/// The header of an uplink.
#[derive(Clone, Copy, Debug)]
pub struct Header<'a> {
    /// Full counter.
    pub f_cnt: u32,
    /// Asks for an acknowledgement.
    pub confirmed: bool,
    /// Acknowledges the last downlink.
    pub acknowledge: bool,
    /// The server may set the data rate.
    pub adr: bool,
    /// `ADRACKReq`.
    pub asks_for_downlink: bool,
    /// MAC commands, up to 15 bytes.
    pub options: &'a [u8],
}

/// Builds the physical payload of one uplink, 23 bytes and the options.
#[must_use]
pub fn build_data(session: &Session, header: &Header<'_>, reading: Reading) -> Vec<u8> {
    let flag = |is: bool, bit: u8| if is { bit } else { 0 };
    let options = &header.options[..header.options.len().min(usize::from(F_CTRL_OPTIONS_LENGTH))];
    let control = flag(header.adr, F_CTRL_ADR)
        | flag(header.asks_for_downlink, F_CTRL_ADR_ACK_REQUEST)
        | flag(header.acknowledge, F_CTRL_ACK)
        | u8::try_from(options.len()).unwrap_or(F_CTRL_OPTIONS_LENGTH);
    let dev_addr = session.dev_addr.0;
    let mut payload = reading.to_cayenne_lpp();
    apply_keystream(&session.app_s_key, false, dev_addr, header.f_cnt, &mut payload);
    let mut bytes = vec![if header.confirmed { 0x80 } else { 0x40 }];
    bytes.extend_from_slice(&dev_addr.to_le_bytes());
    bytes.push(control);
    bytes.extend_from_slice(&low_u16(header.f_cnt).to_le_bytes());
    bytes.extend_from_slice(options);
    bytes.push(F_PORT);
    bytes.extend_from_slice(&payload);
    seal(&mut bytes, &session.nwk_s_key, false, dev_addr, header.f_cnt);
    bytes
}

/// Appends the integrity code.
fn seal(bytes: &mut Vec<u8>, nwk_s_key: &Key, is_downlink: bool, dev_addr: u32, f_cnt: u32) {
    let length = u8::try_from(bytes.len()).unwrap_or(u8::MAX);
    let code = integrity_code(nwk_s_key, &[&data_block(0x49, is_downlink, dev_addr, f_cnt, length), bytes]);
    bytes.extend_from_slice(&code);
}

/// Builds an uplink of a personalised mote with the crate's own builder, 23 bytes: for tests.
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

/// A downlink with its contents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Downlink {
    /// Full counter.
    pub f_cnt: u32,
    /// Acknowledges the last confirmed uplink.
    pub ack: bool,
    /// Asks for an acknowledgement itself.
    pub confirmed: bool,
    /// Port of a payload for the application; nothing without one.
    pub f_port: Option<u8>,
    /// That payload, in the clear.
    pub payload: Vec<u8>,
    /// MAC commands, from the options or from port 0.
    pub commands: Vec<u8>,
}

/// Decrypts a downlink that [`parse_downlink`] took and that is authentic under this counter.
#[must_use]
pub fn open_downlink(bytes: &[u8], session: &Session, f_cnt: u32) -> Downlink {
    let control = bytes.get(5).copied().unwrap_or(0);
    let options_end = 8 + usize::from(control & F_CTRL_OPTIONS_LENGTH);
    let body = bytes.get(options_end..bytes.len().saturating_sub(4)).unwrap_or_default();
    let mut commands = bytes.get(8..options_end).unwrap_or_default().to_vec();
    let (mut f_port, mut payload) = (None, Vec::new());
    if let Some((port, cipher)) = body.split_first() {
        let key = if *port == 0 { &session.nwk_s_key } else { &session.app_s_key };
        payload = cipher.to_vec();
        apply_keystream(key, true, session.dev_addr.0, f_cnt, &mut payload);
        if *port == 0 {
            commands = std::mem::take(&mut payload);
        } else {
            f_port = Some(*port);
        }
    }
    let is_confirmed = bytes.first().is_some_and(|first| first >> 5 == M_TYPE_CONFIRMED_DOWN);
    Downlink { f_cnt, ack: control & F_CTRL_ACK != 0, confirmed: is_confirmed, f_port, payload, commands }
}

/// Builds a downlink with commands or a payload as a server would: for tests.
#[must_use]
pub fn build_downlink_with(session: &Session, downlink: &Downlink) -> Vec<u8> {
    let is_on_port_0 = downlink.commands.len() > usize::from(F_CTRL_OPTIONS_LENGTH);
    let options: &[u8] = if is_on_port_0 { &[] } else { &downlink.commands };
    let control = if downlink.ack { F_CTRL_ACK } else { 0 } | u8::try_from(options.len()).unwrap_or(0);
    let dev_addr = session.dev_addr.0;
    let mut bytes = vec![if downlink.confirmed { 0xa0 } else { 0x60 }];
    bytes.extend_from_slice(&dev_addr.to_le_bytes());
    bytes.push(control);
    bytes.extend_from_slice(&low_u16(downlink.f_cnt).to_le_bytes());
    bytes.extend_from_slice(options);
    let content =
        if is_on_port_0 { Some((0, &downlink.commands)) } else { downlink.f_port.map(|port| (port, &downlink.payload)) };
    if let Some((port, content)) = content {
        let mut cipher = content.clone();
        let key = if port == 0 { &session.nwk_s_key } else { &session.app_s_key };
        apply_keystream(key, true, dev_addr, downlink.f_cnt, &mut cipher);
        bytes.push(port);
        bytes.extend_from_slice(&cipher);
    }
    seal(&mut bytes, &session.nwk_s_key, true, dev_addr, downlink.f_cnt);
    bytes
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

    fn session(device: &Device) -> Session {
        Session { ordinal: 0, dev_addr: device.dev_addr, nwk_s_key: device.nwk_s_key, app_s_key: device.app_s_key }
    }

    #[test]
    fn our_frames_are_those_of_the_crate() {
        let device = device();
        let reading = Reading { number: 77, decicelsius: 230 };
        for (f_cnt, confirmed, acknowledge) in
            [(0, false, false), (0x0001_fffe, true, false), (9, false, true), (u32::MAX, true, true)]
        {
            let header = Header { f_cnt, confirmed, acknowledge, adr: false, asks_for_downlink: false, options: &[] };
            let theirs = build_uplink(&device, f_cnt, confirmed, acknowledge, reading);
            assert_eq!(build_data(&session(&device), &header, reading), theirs);
        }
        let header =
            Header { f_cnt: 5, confirmed: false, acknowledge: false, adr: true, asks_for_downlink: true, options: &[0x03, 0x07] };
        let bytes = build_data(&session(&device), &header, reading);
        assert_eq!((bytes[5], &bytes[8..10]), (0xc2, &[0x03, 0x07][..]));
        let plain = EncryptedDataPayload::new(bytes)
            .expect("a frame")
            .decrypt_if_mic_ok(&AES128(device.nwk_s_key.0), &AES128(device.app_s_key.0), 5)
            .expect("the crate accepts it");
        assert_eq!(plain.to_inner()[11..21], reading.to_cayenne_lpp());
    }

    #[test]
    fn downlinks_are_opened() {
        let device = device();
        let plain = Downlink { f_cnt: 0x0001_0002, ack: true, confirmed: false, f_port: None, payload: vec![], commands: vec![] };
        for downlink in [
            plain.clone(),
            Downlink { f_port: Some(7), payload: (0..40).collect(), commands: vec![0x06], confirmed: true, ..plain.clone() },
            Downlink { commands: vec![0x06; 20], ack: false, ..plain },
        ] {
            let bytes = build_downlink_with(&session(&device), &downlink);
            assert!(is_downlink_authentic(&bytes, &device.nwk_s_key, downlink.f_cnt));
            assert_eq!(open_downlink(&bytes, &session(&device), downlink.f_cnt), downlink);
        }
        assert_eq!(build_downlink(&device, 4, true, false), {
            let downlink = Downlink { f_cnt: 4, ack: true, confirmed: false, f_port: None, payload: vec![], commands: vec![] };
            build_downlink_with(&session(&device), &downlink)
        });
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
            let session = Session { ordinal: 0, dev_addr: DevAddr(1), nwk_s_key: Key([7; 16]), app_s_key: Key([8; 16]) };
            let _ = open_downlink(&bytes, &session, f_cnt);
        }
    }
}
