//! Numbers as forwarders write them: integer, fraction, text, null. What is none of these is absent, and never costs the packet around it.

use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// A number, or nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Number(pub Option<f64>);

impl Number {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the range is checked first")]
    pub(super) fn whole_u32(self) -> Option<u32> {
        let value = self.0?.round();
        (0.0..=f64::from(u32::MAX)).contains(&value).then_some(value as u32)
    }

    #[expect(clippy::cast_possible_truncation, reason = "the range is checked first")]
    pub(super) fn whole_i16(self) -> Option<i16> {
        let value = self.0?.round();
        (f64::from(i16::MIN)..=f64::from(i16::MAX)).contains(&value).then_some(value as i16)
    }

    pub(super) fn times(self, factor: f64) -> Self {
        Self(self.0.map(|value| value * factor))
    }

    pub(super) fn or(self, other: impl FnOnce() -> Self) -> Self {
        if self.0.is_some() { self } else { other() }
    }
}

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        #[expect(clippy::cast_precision_loss, reason = "no field of the protocol has more than 52 bits")]
        impl<'de> Visitor<'de> for Reader {
            type Value = Number;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number")
            }

            fn visit_f64<E>(self, value: f64) -> Result<Number, E> {
                Ok(Number(value.is_finite().then_some(value)))
            }

            fn visit_u64<E>(self, value: u64) -> Result<Number, E> {
                Ok(Number(Some(value as f64)))
            }

            fn visit_i64<E>(self, value: i64) -> Result<Number, E> {
                Ok(Number(Some(value as f64)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Number, E> {
                Ok(Number(text.trim().parse().ok().filter(|value: &f64| value.is_finite())))
            }

            fn visit_unit<E>(self) -> Result<Number, E> {
                Ok(Number(None))
            }

            fn visit_bool<E>(self, _: bool) -> Result<Number, E> {
                Ok(Number(None))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Number, A::Error> {
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Number(None))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Number, A::Error> {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Number(None))
            }
        }
        deserializer.deserialize_any(Reader)
    }
}
