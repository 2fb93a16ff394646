//! Text forms of identifiers, keys and payloads.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A text is not what its field needs. The text itself is not repeated: it may be a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected {expected}")]
pub struct InvalidText {
    expected: &'static str,
}

/// Two digits for each byte into `digits`, which is twice as long.
fn write_digits(bytes: &[u8], digits: &mut [u8]) {
    hex::encode_to_slice(bytes, digits).expect("two digits for each byte");
}

/// What `with` makes of the digits of bytes; those of ids and payloads need no heap.
fn with_digits<T>(bytes: &[u8], with: impl FnOnce(&str) -> T) -> T {
    let mut digits = [0; 2 * crate::PAYLOAD_BYTES_MAX];
    match digits.get_mut(..2 * bytes.len()) {
        Some(digits) => {
            write_digits(bytes, digits);
            with(str::from_utf8(digits).expect("digits are ASCII"))
        }
        None => with(&hex::encode(bytes)),
    }
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
                with_digits(&self.0, |digits| serializer.serialize_str(digits))
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
                with_digits(&self.0, |digits| formatter.write_str(digits))
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
const EVENT_ID_DIGITS: usize = 36;
const HYPHENS: [usize; 4] = [8, 13, 18, 23];
/// Between the hyphens: the digits, and the bytes that they stand for.
const PARTS: [((usize, usize), (usize, usize)); 5] =
    [((0, 8), (0, 4)), ((9, 13), (4, 6)), ((14, 18), (6, 8)), ((19, 23), (8, 10)), ((24, 36), (10, 16))];

impl EventId {
    /// What `with` makes of the text form, which needs no heap.
    fn with_text<T>(&self, with: impl FnOnce(&str) -> T) -> T {
        let mut text = [b'-'; EVENT_ID_DIGITS];
        for ((from, to), (begin, end)) in PARTS {
            write_digits(&self.0[begin..end], &mut text[from..to]);
        }
        with(str::from_utf8(&text).expect("digits and hyphens are ASCII"))
    }
}

impl std::str::FromStr for EventId {
    type Err = InvalidText;

    fn from_str(text: &str) -> Result<Self, InvalidText> {
        let invalid = InvalidText { expected: EVENT_ID_TEXT };
        let text = text.as_bytes();
        if text.len() != EVENT_ID_DIGITS || HYPHENS.iter().any(|hyphen| text[*hyphen] != b'-') {
            return Err(invalid);
        }
        let mut bytes = [0; 16];
        for ((from, to), (begin, end)) in PARTS {
            hex::decode_to_slice(&text[from..to], &mut bytes[begin..end]).map_err(|_| invalid)?;
        }
        Ok(EventId(bytes))
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.with_text(|text| formatter.write_str(text))
    }
}

impl fmt::Debug for EventId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

impl Serialize for EventId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.with_text(|text| serializer.serialize_str(text))
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
        let mut bytes = vec![0; text.len() / 2];
        hex::decode_to_slice(text, &mut bytes).map_err(|_| invalid)?;
        Ok(HexBytes(bytes))
    }
}

impl fmt::Debug for HexBytes {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&hex::encode(&self.0))
    }
}

impl Serialize for HexBytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        with_digits(&self.0, |digits| serializer.serialize_str(digits))
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
