//! Encryption of FRMPayload (LoRaWAN 1.0.3, section 4.3.3.1): the payload XOR AES(key, A_1) | AES(key, A_2) | ...
//! with A_i = 01 | 00 00 00 00 | direction | DevAddr | FCnt | 00 | i, numbers little-endian.

use aes::{
    Aes128,
    cipher::{BlockEncrypt as _, KeyInit as _},
};
use tenant::{DevAddr, Key};

/// Which way a frame goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the device.
    Up = 0,
    /// To the device.
    Down = 1,
}

/// Encrypts or decrypts (it is the same) a payload of at most 255 blocks of 16 bytes; what is beyond stays as it is. `f_cnt` is the
/// whole 32-bit counter, not the 16 bits on air. Not for FPort 0: that payload is under the network key.
pub fn apply_key_stream(key: &Key, direction: Direction, dev_addr: DevAddr, f_cnt: u32, payload: &mut [u8]) {
    let cipher = Aes128::new(&key.0.into());
    let mut template = [0; 16];
    template[0] = 1;
    template[5] = direction as u8;
    let [most, second, third, least] = dev_addr.0;
    template[6..10].copy_from_slice(&[least, third, second, most]);
    template[10..14].copy_from_slice(&f_cnt.to_le_bytes());
    for (index, chunk) in (1..=u8::MAX).zip(payload.chunks_mut(16)) {
        template[15] = index;
        let mut block = template.into();
        cipher.encrypt_block(&mut block);
        for (byte, stream) in chunk.iter_mut().zip(block) {
            *byte ^= stream;
        }
    }
}
