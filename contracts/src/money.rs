//! Money: integers of a micro-unit (10^-6 of the currency), in JSON as decimal strings. Never a float, never negative.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The largest amount that one statement may name: far above any insurance, far below overflow of a sum over all accounts.
pub const AMOUNT_MICROS_MAX: u64 = 1 << 53;

/// An amount in micro-units.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Amount(u64);

/// Why a text or a number is not an amount.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("an amount is a decimal string of micro-units without sign, spaces or leading zeros")]
    Text,
    #[error("an amount is at most {AMOUNT_MICROS_MAX} micro-units")]
    TooLarge,
}

impl Amount {
    pub const ZERO: Self = Self(0);

    /// # Errors
    /// [`Error::TooLarge`] above [`AMOUNT_MICROS_MAX`].
    pub const fn from_micros(micros: u64) -> Result<Self, Error> {
        if micros > AMOUNT_MICROS_MAX { Err(Error::TooLarge) } else { Ok(Self(micros)) }
    }

    /// Whole units of the currency, for constants.
    ///
    /// # Panics
    /// If the amount is too large: a mistake in the program.
    #[must_use]
    pub const fn from_units(units: u32) -> Self {
        Self(units as u64 * 1_000_000)
    }

    #[must_use]
    pub const fn micros(self) -> u64 {
        self.0
    }

    #[must_use]
    pub const fn is_zero(self) -> bool {
        self.0 == 0
    }

    #[must_use]
    pub fn checked_add(self, other: Self) -> Option<Self> {
        self.0.checked_add(other.0).and_then(|sum| Self::from_micros(sum).ok())
    }

    #[must_use]
    pub fn checked_sub(self, other: Self) -> Option<Self> {
        self.0.checked_sub(other.0).map(Self)
    }

    /// `self * numerator / denominator` computed in 128 bit and rounded **down** (in favour of the payer); `None` if the denominator is zero or the result too large.
    #[must_use]
    pub fn scaled_down(self, numerator: u64, denominator: u64) -> Option<Self> {
        let product = u128::from(self.0) * u128::from(numerator);
        let quotient = product.checked_div(u128::from(denominator))?;
        u64::try_from(quotient).ok().and_then(|micros| Self::from_micros(micros).ok())
    }
}

impl fmt::Display for Amount {
    /// Units with six decimals, for people: `12.500000`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:06}", self.0 / 1_000_000, self.0 % 1_000_000)
    }
}

impl Serialize for Amount {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Amount {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        parse(&text).map_err(serde::de::Error::custom)
    }
}

fn parse(text: &str) -> Result<Amount, Error> {
    let canonical = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    if !canonical {
        return Err(Error::Text);
    }
    let micros = text.parse().map_err(|_| Error::TooLarge)?;
    Amount::from_micros(micros)
}

/// An ISO 4217 code or another name of three to eight capital letters.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Currency(String);

impl Currency {
    /// `None` if the text is not three to eight capital letters.
    #[must_use]
    pub fn new(code: &str) -> Option<Self> {
        let valid = (3..=8).contains(&code.len()) && code.bytes().all(|b| b.is_ascii_uppercase());
        valid.then(|| Self(code.to_owned()))
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl<'de> Deserialize<'de> for Currency {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let code = String::deserialize(deserializer)?;
        Self::new(&code).ok_or_else(|| serde::de::Error::custom("a currency is three to eight capital letters"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_canonical_decimal_strings() {
        let read = |json: &str| serde_json::from_str::<Amount>(json).ok().map(Amount::micros);
        assert_eq!(read("\"0\""), Some(0));
        assert_eq!(read("\"9007199254740992\""), Some(AMOUNT_MICROS_MAX));
        for bad in [
            "\"9007199254740993\"",
            "\"01\"",
            "\"-1\"",
            "\"+1\"",
            "\"1.0\"",
            "\" 1\"",
            "\"\"",
            "12",
            "1e3",
            "\"18446744073709551616\"",
        ] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }

    #[test]
    fn products_are_rounded_down_in_128_bit() {
        let price = Amount::from_units(1_000_000);
        assert_eq!(price.scaled_down(1, 3).map(Amount::micros), Some(333_333_333_333));
        assert_eq!(price.scaled_down(u64::MAX, 1), None);
        assert_eq!(price.scaled_down(1, 0), None);
    }
}
