//! Identifiers: every one is a newtype, in text with a prefix that names its kind (`node_…`, `contract_…`).
//!
//! Keys are 32-byte ed25519 verifying keys; statement ids are SHA-256 digests of the DSSE pre-authentication encoding
//! (see [`crate::envelope`]); event ids are UUIDv5 (RFC 9562) so that two nodes that hear the same frame name it alike.

use std::fmt;
use std::str::FromStr;

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use uuid::Uuid;

use crate::digits;

/// Why a text is not an identifier of the wanted kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("an id of this kind starts with `{expected}`")]
    Prefix { expected: &'static str },
    #[error("an id of this kind has {expected} hexadecimal digits after its prefix")]
    Digits { expected: usize },
}

/// Reads exactly `N` bytes of lower- or upper-case hexadecimal.
fn bytes_from_hex<const N: usize>(digits: &str) -> Result<[u8; N], Error> {
    let mut bytes = [0; N];
    if digits::read(digits, &mut bytes) { Ok(bytes) } else { Err(Error::Digits { expected: 2 * N }) }
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal, $bytes:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; $bytes]);

        impl $name {
            /// What the text form starts with.
            pub const PREFIX: &'static str = $prefix;

            #[must_use]
            pub const fn from_bytes(bytes: [u8; $bytes]) -> Self {
                Self(bytes)
            }

            #[must_use]
            pub const fn as_bytes(&self) -> &[u8; $bytes] {
                &self.0
            }

            /// The first eight hexadecimal digits, for people; never for comparing.
            #[must_use]
            pub fn short(&self) -> String {
                digits::text(&self.0[..4.min($bytes)])
            }

            /// What `with` makes of the text form.
            fn text<T>(&self, with: impl FnOnce(&str) -> T) -> T {
                let mut text = [0; $prefix.len() + 2 * $bytes];
                let (prefix, digits) = text.split_at_mut($prefix.len());
                prefix.copy_from_slice($prefix.as_bytes());
                digits::write(&self.0, digits);
                with(str::from_utf8(&text).expect("prefix and digits are ASCII"))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.text(|text| f.write_str(text))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = Error;

            fn from_str(text: &str) -> Result<Self, Error> {
                let digits = text.strip_prefix($prefix).ok_or(Error::Prefix { expected: $prefix })?;
                Ok(Self(bytes_from_hex(digits)?))
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                self.text(|text| serializer.serialize_str(text))
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Text;

                impl Visitor<'_> for Text {
                    type Value = $name;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str("an id as text")
                    }

                    fn visit_str<E: de::Error>(self, text: &str) -> Result<$name, E> {
                        text.parse().map_err(E::custom)
                    }
                }

                deserializer.deserialize_str(Text)
            }
        }
    };
}

id!(
    /// A running agent: its ed25519 verifying key, which is also its network address.
    NodeId, "node_", 32
);
id!(
    /// A stakeholder that owns nodes and accounts: an ed25519 verifying key.
    OwnerId, "owner_", 32
);
id!(
    /// Any signed statement: SHA-256 of the DSSE pre-authentication encoding of type and payload.
    StatementId, "statement_", 32
);
id!(
    /// A contract: the statement id of its text, the same whoever co-signs it.
    ContractId, "contract_", 32
);
id!(
    /// A group of devices that is in one custody.
    GroupId, "group_", 16
);
id!(
    /// LoRaWAN DevEUI, most significant byte first.
    DevEui, "", 8
);
id!(
    /// LoRaWAN DevAddr, most significant byte first (on air it is little-endian).
    DevAddr, "", 4
);
id!(
    /// A session of a device: fingerprint of DevAddr, network key and reset ordinal.
    SessionId, "", 8
);

impl From<StatementId> for ContractId {
    fn from(id: StatementId) -> Self {
        Self(*id.as_bytes())
    }
}

impl From<ContractId> for StatementId {
    fn from(id: ContractId) -> Self {
        Self(*id.as_bytes())
    }
}

impl DevEui {
    #[must_use]
    pub const fn from_u64(value: u64) -> Self {
        Self(value.to_be_bytes())
    }

    #[must_use]
    pub const fn to_u64(self) -> u64 {
        u64::from_be_bytes(self.0)
    }
}

impl DevAddr {
    #[must_use]
    pub const fn from_u32(value: u32) -> Self {
        Self(value.to_be_bytes())
    }

    #[must_use]
    pub const fn to_u32(self) -> u32 {
        u32::from_be_bytes(self.0)
    }
}

/// The number of a custody; it rises with every change of holder and never falls, across contracts too.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub u64);

impl Epoch {
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// An uplink, named alike by every node that hears it: UUIDv5 of device, session and 32-bit counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EventId(Uuid);

/// The UUIDv5 name space of event ids (a random UUID fixed for ever).
const EVENT_NAMESPACE: Uuid = Uuid::from_u128(0x6f1c_3a52_8f0e_4d7b_9a64_1b5f_02c7_e9d3);

impl EventId {
    /// Name = DevEUI (8 bytes) | session (8 bytes) | 32-bit uplink counter, big-endian.
    #[must_use]
    pub fn new(device: DevEui, session: SessionId, f_cnt: u32) -> Self {
        let mut name = [0; 20];
        name[..8].copy_from_slice(device.as_bytes());
        name[8..16].copy_from_slice(session.as_bytes());
        name[16..].copy_from_slice(&f_cnt.to_be_bytes());
        Self(Uuid::new_v5(&EVENT_NAMESPACE, &name))
    }

    #[must_use]
    pub const fn as_uuid(&self) -> &Uuid {
        &self.0
    }

    #[must_use]
    pub const fn from_uuid(uuid: Uuid) -> Self {
        Self(uuid)
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_form_names_the_kind_and_reads_back() {
        let id = NodeId::from_bytes([0xab; 32]);
        let text = id.to_string();
        assert!(text.starts_with("node_abab"));
        assert_eq!(text.parse(), Ok(id));
        assert_eq!(text.parse::<OwnerId>(), Err(Error::Prefix { expected: "owner_" }));
        assert_eq!(text[..60].parse::<NodeId>(), Err(Error::Digits { expected: 64 }));
        assert_eq!("node_zz".parse::<NodeId>(), Err(Error::Digits { expected: 64 }));
    }

    #[test]
    fn event_ids_depend_on_every_part_of_the_name() {
        let event = |device, session, f_cnt| EventId::new(DevEui::from_u64(device), SessionId::from_bytes([session; 8]), f_cnt);
        let all = [event(1, 1, 1), event(2, 1, 1), event(1, 2, 1), event(1, 1, 2), event(1, 1, 0x1_0001)];
        for (i, a) in all.iter().enumerate() {
            for b in &all[i + 1..] {
                assert_ne!(a, b);
            }
        }
        assert_eq!(event(7, 7, 7), event(7, 7, 7));
    }
}
