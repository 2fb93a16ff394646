//! The integrity code of data uplinks, LoRaWAN 1.0.x (1.0.2, 4.4): the first four bytes of AES-CMAC over a block B0 and the frame.
//!
//! On the frame's own bytes and without allocation, because a frame is tried with every session of its address.

use aes::Aes128;
use cmac::{Cmac, Mac};
use contracts::ids::DevAddr;

use super::session::NwkSKey;

/// Bytes of an integrity code.
pub(crate) const MIC_BYTES: usize = 4;

/// Whether the last four bytes of `phy` are the integrity code of an uplink with this 32-bit counter under this key.
pub(crate) fn is_authentic(phy: &[u8], dev_addr: DevAddr, f_cnt: u32, key: &NwkSKey) -> bool {
    let Some((message, mic)) = phy.split_last_chunk::<MIC_BYTES>() else { return false };
    code(message, dev_addr, f_cnt, key).is_some_and(|code| code == *mic)
}

/// The integrity code of an uplink without one; `None` if it is longer than a frame can be.
pub(crate) fn code(message: &[u8], dev_addr: DevAddr, f_cnt: u32, key: &NwkSKey) -> Option<[u8; MIC_BYTES]> {
    let mut b0 = [0; 16];
    b0[0] = 0x49;
    let [most, second, third, least] = *dev_addr.as_bytes();
    b0[6..10].copy_from_slice(&[least, third, second, most]);
    b0[10..14].copy_from_slice(&f_cnt.to_le_bytes());
    b0[15] = u8::try_from(message.len()).ok()?;
    let mut mac = <Cmac<Aes128> as Mac>::new(key.as_bytes().into());
    mac.update(&b0);
    mac.update(message);
    mac.finalize().into_bytes().first_chunk().copied()
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng};

    use super::*;

    /// The same by the library that knows the whole of LoRaWAN.
    fn by_library(phy: &[u8], f_cnt: u32, key: NwkSKey) -> bool {
        let Ok(mut frame) = lrwn::PhyPayload::from_slice(phy) else { return false };
        let lrwn::Payload::MACPayload(payload) = &mut frame.payload else { return false };
        payload.fhdr.f_cnt = f_cnt;
        let key = key.aes();
        frame.validate_uplink_data_mic(lrwn::MACVersion::LoRaWAN1_0, 0, 0, 0, &key, &key).unwrap_or(false)
    }

    #[test]
    fn agrees_with_the_library_on_right_and_wrong_codes() {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(1);
        for case in 0..2_000 {
            let key = NwkSKey::from_bytes(rng.random());
            let dev_addr = DevAddr::from_u32(rng.random());
            let f_cnt: u32 = rng.random();
            let [a, b, c, d] = *dev_addr.as_bytes();
            let mut phy = vec![if rng.random() { 0x40 } else { 0x80 }, d, c, b, a, 0];
            phy.extend_from_slice(&f_cnt.to_le_bytes()[..2]);
            phy.push(rng.random_range(1..=223));
            phy.extend((0..rng.random_range(0..100)).map(|_| rng.random::<u8>()));
            let mic = code(&phy, dev_addr, f_cnt, &key).expect("a code");
            phy.extend_from_slice(&mic);
            assert!(is_authentic(&phy, dev_addr, f_cnt, &key) && by_library(&phy, f_cnt, key), "case {case}");
            assert!(!is_authentic(&phy, dev_addr, f_cnt ^ 0x1_0000, &key), "case {case}: the upper half counts");
            // Not the counter on air: the library takes the one it is told.
            let at = rng.random_range(8..phy.len());
            phy[at] ^= 1 << rng.random_range(0..8);
            assert_eq!(is_authentic(&phy, dev_addr, f_cnt, &key), by_library(&phy, f_cnt, key), "case {case}: byte {at}");
        }
        assert!(!is_authentic(&[1, 2, 3], DevAddr::from_u32(0), 0, &NwkSKey::from_bytes([0; 16])));
        assert_eq!(code(&[0; 256], DevAddr::from_u32(0), 0, &NwkSKey::from_bytes([0; 16])), None);
    }
}
