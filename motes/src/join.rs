//! Joining over the air as a mote sees it (pure): LoRaWAN 1.0.3 and 1.0.4, chapter 6.2.

use lorawan::creator::JoinRequestCreator;
use lorawan::keys::AppKey;

use crate::crypto::{encrypt, integrity_code};
use crate::fleet::{DevAddr, Eui64, Key, Otaa};

/// End of the join request to the first window (`JOIN_ACCEPT_DELAY1`).
pub const ACCEPT_DELAY1_US: u64 = 5_000_000;
/// Bytes of an accept without and with a list of frequencies.
const ACCEPT_BYTES: [usize; 2] = [17, 33];
const M_TYPE_JOIN_ACCEPT: u8 = 1;
/// Unit of frequencies in lists and commands.
const FREQUENCY_STEP_HZ: u32 = 100;
/// Frequencies in a `CFList` of type 0.
const LISTED_MAX: usize = 5;

/// What an accept says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accept {
    /// The server's number of this join; 24 bits.
    pub join_nonce: u32,
    /// Address of the new session.
    pub dev_addr: DevAddr,
    /// Keys of the new session.
    pub nwk_s_key: Key,
    /// Keys of the new session.
    pub app_s_key: Key,
    /// Steps by which RX1 is slower than the uplink.
    pub rx1_data_rate_offset: u8,
    /// Data rate of RX2.
    pub rx2_data_rate: u8,
    /// Seconds from the end of an uplink to RX1 (0 means 1).
    pub rx1_delay_s: u8,
    /// Frequencies of the channels 3 to 7, in hertz; 0 for an unused one.
    pub channels_hz: Vec<u32>,
}

/// The 23 bytes of a join request.
#[must_use]
pub fn request(dev_eui: Eui64, otaa: &Otaa, dev_nonce: u16) -> Vec<u8> {
    let (join_eui, dev_eui, nonce) = (otaa.join_eui.0.to_le_bytes(), dev_eui.0.to_le_bytes(), dev_nonce.to_le_bytes());
    let mut creator = JoinRequestCreator::new();
    creator.set_app_eui(&join_eui).set_dev_eui(&dev_eui).set_dev_nonce(&nonce);
    creator.build(&AppKey::from(otaa.app_key.0)).to_vec()
}

/// Whether bytes on air may be an accept; whose, only a key tells.
#[must_use]
pub fn is_accept(bytes: &[u8]) -> bool {
    ACCEPT_BYTES.contains(&bytes.len()) && bytes[0] >> 5 == M_TYPE_JOIN_ACCEPT
}

/// Reads an accept for this request; nothing if it is none, or made with another key.
#[must_use]
pub fn read_accept(app_key: &Key, dev_nonce: u16, bytes: &[u8]) -> Option<Accept> {
    if !is_accept(bytes) {
        return None;
    }
    let mut plain = bytes.to_vec();
    for block in plain[1..].chunks_exact_mut(16) {
        let clear = encrypt(app_key, <[u8; 16]>::try_from(&*block).ok()?);
        block.copy_from_slice(&clear);
    }
    let (body, code) = plain.split_at(plain.len() - 4);
    if integrity_code(app_key, &[body]) != *code {
        return None;
    }
    let key = |kind: u8| {
        let mut block = [0; 16];
        block[0] = kind;
        block[1..7].copy_from_slice(&body[1..7]);
        block[7..9].copy_from_slice(&dev_nonce.to_le_bytes());
        Key(encrypt(app_key, block))
    };
    let is_listed = body.len() > 28 && body[28] == 0;
    let channels_hz =
        if is_listed { body[13..28].chunks_exact(3).take(LISTED_MAX).map(frequency_hz).collect() } else { Vec::new() };
    Some(Accept {
        join_nonce: u32::from_le_bytes([body[1], body[2], body[3], 0]),
        dev_addr: DevAddr(u32::from_le_bytes([body[7], body[8], body[9], body[10]])),
        nwk_s_key: key(1),
        app_s_key: key(2),
        rx1_data_rate_offset: body[11] >> 4 & 0x07,
        rx2_data_rate: body[11] & 0x0f,
        rx1_delay_s: body[12] & 0x0f,
        channels_hz,
    })
}

/// Three bytes, least significant first, in steps of 100 Hz.
#[must_use]
pub fn frequency_hz(bytes: &[u8]) -> u32 {
    match bytes {
        [low, middle, high] => u32::from_le_bytes([*low, *middle, *high, 0]) * FREQUENCY_STEP_HZ,
        _ => 0,
    }
}

/// Builds an accept as a server would: for tests of motes and radio.
#[must_use]
pub fn build_accept(
    app_key: &Key,
    join_nonce: u32,
    dev_addr: DevAddr,
    settings: u8,
    delay_s: u8,
    channels_hz: &[u32],
) -> Vec<u8> {
    let mut plain = vec![M_TYPE_JOIN_ACCEPT << 5];
    plain.extend_from_slice(&join_nonce.to_le_bytes()[..3]);
    plain.extend_from_slice(&[0; 3]);
    plain.extend_from_slice(&dev_addr.0.to_le_bytes());
    plain.extend_from_slice(&[settings, delay_s]);
    if !channels_hz.is_empty() {
        for slot in 0..LISTED_MAX {
            let steps = channels_hz.get(slot).copied().unwrap_or(0) / FREQUENCY_STEP_HZ;
            plain.extend_from_slice(&steps.to_le_bytes()[..3]);
        }
        plain.push(0);
    }
    let code = integrity_code(app_key, &[&plain]);
    plain.extend_from_slice(&code);
    let mut bytes = vec![plain[0]];
    for block in plain[1..].chunks_exact(16) {
        bytes.extend_from_slice(&crate::crypto::decrypt(app_key, block.try_into().unwrap_or([0; 16])));
    }
    bytes
}

#[cfg(test)]
mod tests {
    use lorawan::parser::{DecryptedJoinAcceptPayload, DevNonce};
    use proptest::prelude::*;

    use super::*;
    use crate::fleet::{Fleet, JoinRules};

    #[test]
    fn accept_is_read_as_the_crate_reads_it() {
        let otaa = Fleet::with_otaa(1, 1, 1_000_000).expect("one mote").devices()[0].otaa.clone().expect("it joins");
        assert_eq!(otaa.rules, JoinRules::V1_0_4);
        for channels_hz in [&[][..], &[867_100_000, 867_300_000, 867_500_000]] {
            let bytes = build_accept(&otaa.app_key, 0x0001_0203, DevAddr(0x0102_0304), 0x23, 3, channels_hz);
            let accept = read_accept(&otaa.app_key, 0xbeef, &bytes).expect("our accept");
            let theirs = DecryptedJoinAcceptPayload::new(bytes.clone(), &AppKey::from(otaa.app_key.0)).expect("an accept");
            assert!(theirs.validate_mic(&AppKey::from(otaa.app_key.0)));
            let nonce = 0xbeef_u16.to_le_bytes();
            let nonce = DevNonce::new(&nonce[..]).expect("two bytes");
            let app_key = AppKey::from(otaa.app_key.0);
            assert_eq!(theirs.derive_newskey(&nonce, &app_key).inner().0, accept.nwk_s_key.0);
            assert_eq!(theirs.derive_appskey(&nonce, &app_key).inner().0, accept.app_s_key.0);
            assert_eq!((accept.join_nonce, accept.dev_addr), (0x0001_0203, DevAddr(0x0102_0304)));
            assert_eq!((accept.rx1_data_rate_offset, accept.rx2_data_rate, accept.rx1_delay_s), (2, 3, 3));
            assert_eq!(accept.channels_hz.len(), if channels_hz.is_empty() { 0 } else { 5 });
            assert!(accept.channels_hz.starts_with(channels_hz));
            assert_eq!(read_accept(&Key([1; 16]), 0xbeef, &bytes), None, "another key");
        }
    }

    #[test]
    fn request_has_the_bytes_of_the_specification() {
        let fleet = Fleet::with_otaa(1, 1, 1_000_000).expect("one mote");
        let device = &fleet.devices()[0];
        let otaa = device.otaa.as_ref().expect("it joins");
        let bytes = request(device.dev_eui, otaa, 0x0102);
        assert_eq!((bytes.len(), bytes[0]), (23, 0));
        assert_eq!(bytes[1..9], otaa.join_eui.0.to_le_bytes());
        assert_eq!(bytes[9..17], device.dev_eui.0.to_le_bytes());
        assert_eq!(bytes[17..19], [2, 1]);
        assert_eq!(bytes[19..], integrity_code(&otaa.app_key, &[&bytes[..19]]));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64), nonce in any::<u16>()) {
            let _ = read_accept(&Key([7; 16]), nonce, &bytes);
        }
    }
}
