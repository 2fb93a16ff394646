//! The key under which a device's payloads are, and where it comes from.

use aes::{
    Aes128,
    cipher::{BlockEncrypt as _, KeyInit as _},
};
use tenant::{Joined, Key};

/// In front of the nonces when the application session key is derived (LoRaWAN 1.0.x, 6.2.5).
const APP_S_KEY: u8 = 0x02;
/// What the key for payloads at rest is derived from: no block that LoRaWAN encrypts begins so (theirs begin with 01, 02, 49 or a MHDR).
const AT_REST: [u8; 16] = *b"antirio at rest\0";

/// What a device's payloads are encrypted with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Secret {
    /// The application session key: the device is personalised.
    Session(Key),
    /// The root key: it joins over the air, and each join gives a session key.
    Root(Key),
}

/// Why there is no key for a payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The node names a join.
    #[error("the session comes from a join, and the configuration has a session key for this device")]
    Personalised,
    /// The node names none.
    #[error("the join that the session comes from is not known")]
    UnknownJoin,
}

impl Secret {
    /// The key of a session: of the join that it comes from, or of personalisation.
    ///
    /// # Errors
    /// The session is not of the kind that the device has.
    pub fn app_s_key(&self, joined: Option<Joined>) -> Result<Key, Error> {
        match (self, joined) {
            (Secret::Session(key), None) => Ok(*key),
            (Secret::Root(root), Some(joined)) => Ok(derive(root, joined)),
            (Secret::Session(_), Some(_)) => Err(Error::Personalised),
            (Secret::Root(_), None) => Err(Error::UnknownJoin),
        }
    }

    /// The key for payloads that the node keeps until they are sent: the same in every session.
    #[must_use]
    pub fn at_rest(&self) -> Key {
        let (Secret::Session(key) | Secret::Root(key)) = self;
        encrypt(key, AT_REST)
    }
}

/// `AppSKey = AES(AppKey, 02 | join_nonce | net_id | dev_nonce | 00...)`, numbers least significant byte first (LoRaWAN 1.0.x, 6.2.5).
fn derive(root: &Key, joined: Joined) -> Key {
    let mut block = [0; 16];
    block[0] = APP_S_KEY;
    block[1..4].copy_from_slice(&joined.join_nonce.to_le_bytes()[..3]);
    block[4..7].copy_from_slice(&joined.net_id.to_le_bytes()[..3]);
    block[7..9].copy_from_slice(&joined.dev_nonce.to_le_bytes());
    encrypt(root, block)
}

fn encrypt(key: &Key, block: [u8; 16]) -> Key {
    let mut block = block.into();
    Aes128::new(&key.0.into()).encrypt_block(&mut block);
    Key(block.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> Key {
        text.parse().expect("a key")
    }

    /// Made with `printf <block> | xxd -r -p | openssl enc -aes-128-ecb -nopad -K <root key> | xxd -p`.
    #[test]
    fn keys_are_those_that_another_implementation_derives() {
        let table = [
            (
                "000102030405060708090a0b0c0d0e0f",
                Joined { join_nonce: 0x01_0203, net_id: 0, dev_nonce: 0xbeef },
                // Block 02030201000000efbe00000000000000.
                "2f48aaf6ecf2c19c82f0189d3951bdfe",
            ),
            (
                "2b7e151628aed2a6abf7158809cf4f3c",
                Joined { join_nonce: 0xff_ffff, net_id: 0x12_3456, dev_nonce: 1 },
                // Block 02ffffff563412010000000000000000.
                "b22e10d7269b3d19a31d74f3e09495f8",
            ),
        ];
        for (root, joined, expected) in table {
            assert_eq!(Secret::Root(key(root)).app_s_key(Some(joined)), Ok(key(expected)));
        }
        let root = Secret::Root(key("000102030405060708090a0b0c0d0e0f"));
        assert_eq!(root.at_rest(), key("3202ec84bc8594d0710289cb52275a48"));
    }

    #[test]
    fn a_session_of_the_other_kind_has_no_key() {
        let joined = Joined { join_nonce: 1, net_id: 0, dev_nonce: 1 };
        assert_eq!(Secret::Session(Key([1; 16])).app_s_key(None), Ok(Key([1; 16])));
        assert_eq!(Secret::Session(Key([1; 16])).app_s_key(Some(joined)), Err(Error::Personalised));
        assert_eq!(Secret::Root(Key([1; 16])).app_s_key(None), Err(Error::UnknownJoin));
    }
}
