//! Text forms of identifiers, keys and payloads.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A text is not what its field needs. The text itself is not repeated: it may be a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected {expected}")]
pub struct InvalidText {
    expected: &'static str,
}

macro_rules! hex_id {
    ($(#[$doc:meta])* $name:ident, $bytes:literal, $expected:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; $bytes]);

        impl std::str::FromStr for $name {
            type Err = InvalidText;

            fn from_str(text: &str) -> Result<Self, InvalidText> {
                let mut bytes = [0; $bytes];
                hex::decode_to_slice(text, &mut bytes).map_err(|_| InvalidText { expected: $expected })?;
                Ok($name(bytes))
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&hex::encode(self.0))
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserialize_text(deserializer, $expected)
            }
        }
    };
}

macro_rules! plain_text {
    ($name:ident) => {
        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str(&hex::encode(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, formatter)
            }
        }
    };
}

hex_id! {
    /// Identity of a device: most significant byte first, as printed on it. Text: 16 hexadecimal digits.
    DevEui, 8, "a DevEUI of 16 hexadecimal digits"
}
hex_id! {
    /// Address of a device on air: most significant byte first (on air it is the other way round). Text: 8 hexadecimal digits.
    DevAddr, 4, "a DevAddr of 8 hexadecimal digits"
}
hex_id! {
    /// An AES-128 key. Text: 32 hexadecimal digits; never shown by `Debug`.
    Key, 16, "a key of 32 hexadecimal digits"
}
plain_text!(DevEui);
plain_text!(DevAddr);

impl fmt::Debug for Key {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Key(..)")
    }
}

/// Identity of an uplink wherever it is heard: a UUID over device, session and counter. Text: 8-4-4-4-12 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventId(pub [u8; 16]);

const EVENT_ID_TEXT: &str = "an event id of the form 8-4-4-4-12 hexadecimal digits";
const HYPHENS: [usize; 4] = [8, 13, 18, 23];

impl std::str::FromStr for EventId {
    type Err = InvalidText;

    fn from_str(text: &str) -> Result<Self, InvalidText> {
        let invalid = InvalidText { expected: EVENT_ID_TEXT };
        let hyphens_in_place = text.bytes().enumerate().all(|(index, byte)| (byte == b'-') == HYPHENS.contains(&index));
        if text.len() != 36 || !hyphens_in_place {
            return Err(invalid);
        }
        let mut bytes = [0; 16];
        hex::decode_to_slice(text.replace('-', ""), &mut bytes).map_err(|_| invalid)?;
        Ok(EventId(bytes))
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = hex::encode(self.0);
        for index in HYPHENS {
            text.insert(index, '-');
        }
        formatter.write_str(&text)
    }
}

impl fmt::Debug for EventId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

impl Serialize for EventId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for EventId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserialize_text(deserializer, EVENT_ID_TEXT)
    }
}

/// Bytes of a payload, at most [`crate::PAYLOAD_BYTES_MAX`]. Text: hexadecimal digits.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct HexBytes(pub Vec<u8>);

const PAYLOAD_TEXT: &str = "a payload of at most 242 bytes in hexadecimal digits";

impl std::str::FromStr for HexBytes {
    type Err = InvalidText;

    fn from_str(text: &str) -> Result<Self, InvalidText> {
        let invalid = InvalidText { expected: PAYLOAD_TEXT };
        if text.len() > 2 * crate::PAYLOAD_BYTES_MAX {
            return Err(invalid);
        }
        hex::decode(text).map(HexBytes).map_err(|_| invalid)
    }
}

impl fmt::Debug for HexBytes {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&hex::encode(&self.0))
    }
}

impl Serialize for HexBytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex::encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for HexBytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserialize_text(deserializer, PAYLOAD_TEXT)
    }
}

/// Parses a string field without ever repeating its content in an error.
fn deserialize_text<'de, D: Deserializer<'de>, T: std::str::FromStr>(
    deserializer: D,
    expected: &'static str,
) -> Result<T, D::Error> {
    struct Text<T>(&'static str, std::marker::PhantomData<T>);
    impl<T: std::str::FromStr> serde::de::Visitor<'_> for Text<T> {
        type Value = T;

        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str(self.0)
        }

        fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<T, E> {
            text.parse().map_err(|_| E::custom(InvalidText { expected: self.0 }))
        }
    }
    deserializer.deserialize_str(Text(expected, std::marker::PhantomData))
}
