//! AES-128 and its CMAC, from the primitives that the `lorawan` crate brings.

use lorawan::default_crypto::DefaultFactory;
use lorawan::keys::{AES128, CryptoFactory, Decrypter, Encrypter, Mac};

use crate::fleet::Key;

/// One block, encrypted.
#[must_use]
pub fn encrypt(key: &Key, block: [u8; 16]) -> [u8; 16] {
    let mut cells = block.into();
    DefaultFactory.new_enc(&AES128(key.0)).encrypt_block(&mut cells);
    cells.into()
}

/// One block, decrypted. A server makes a join accept so, which the mote only ever encrypts (LoRaWAN 1.0.3, 6.2.5).
#[must_use]
pub fn decrypt(key: &Key, block: [u8; 16]) -> [u8; 16] {
    let mut cells = block.into();
    DefaultFactory.new_dec(&AES128(key.0)).decrypt_block(&mut cells);
    cells.into()
}

/// The first four bytes of the CMAC over these parts, in order.
#[must_use]
pub fn integrity_code(key: &Key, parts: &[&[u8]]) -> [u8; 4] {
    let mut mac = DefaultFactory.new_mac(&AES128(key.0));
    for part in parts {
        mac.input(part);
    }
    let code = mac.result();
    [code[0], code[1], code[2], code[3]]
}

/// A counter block of LoRaWAN 1.0.3, 4.3.3 and 4.4: `first` is 1 for encryption and 0x49 for integrity codes.
#[must_use]
pub fn data_block(first: u8, is_downlink: bool, dev_addr: u32, f_cnt: u32, last: u8) -> [u8; 16] {
    let mut block = [0; 16];
    block[0] = first;
    block[5] = u8::from(is_downlink);
    block[6..10].copy_from_slice(&dev_addr.to_le_bytes());
    block[10..14].copy_from_slice(&f_cnt.to_le_bytes());
    block[15] = last;
    block
}

/// Encrypts a payload, or decrypts it: both are the same.
pub fn apply_keystream(key: &Key, is_downlink: bool, dev_addr: u32, f_cnt: u32, payload: &mut [u8]) {
    for (number, chunk) in (1..=u8::MAX).zip(payload.chunks_mut(16)) {
        let stream = encrypt(key, data_block(1, is_downlink, dev_addr, f_cnt, number));
        chunk.iter_mut().zip(stream).for_each(|(byte, mask)| *byte ^= mask);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_vectors() {
        // RFC 4493, section 4: the key and the first two messages; FIPS 197 agrees with its subkey.
        let key = Key([0x2b, 0x7e, 0x15, 0x16, 0x28, 0xae, 0xd2, 0xa6, 0xab, 0xf7, 0x15, 0x88, 0x09, 0xcf, 0x4f, 0x3c]);
        assert_eq!(encrypt(&key, [0; 16])[..4], [0x7d, 0xf7, 0x6b, 0x0c]);
        assert_eq!(decrypt(&key, encrypt(&key, [7; 16])), [7; 16]);
        assert_eq!(integrity_code(&key, &[]), [0xbb, 0x1d, 0x69, 0x29]);
        let message = [0x6b, 0xc1, 0xbe, 0xe2, 0x2e, 0x40, 0x9f, 0x96, 0xe9, 0x3d, 0x7e, 0x11, 0x73, 0x93, 0x17, 0x2a];
        assert_eq!(integrity_code(&key, &[&message[..3], &message[3..]]), [0x07, 0x0a, 0x16, 0xb4]);
    }
}
