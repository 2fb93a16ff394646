//! LoRa data rates at 125 kHz and their time on air (Semtech AN1200.13; `SX1276` data sheet 4.1.1.7).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A spreading factor, 7 to 12, always with 125 kHz of bandwidth and coding rate 4/5 (EU868 DR5 down to DR0).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SpreadingFactor(u8);

/// Why a text is no data rate that the motes use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not SF7BW125 to SF12BW125")]
pub struct UnknownDataRate(pub String);

impl SpreadingFactor {
    /// The fastest rate, DR5.
    pub const SF7: Self = Self(7);
    /// DR3, second window of The Things Network.
    pub const SF9: Self = Self(9);
    /// The slowest rate, DR0; second window of EU868.
    pub const SF12: Self = Self(12);

    /// From the bare number.
    ///
    /// # Errors
    /// [`UnknownDataRate`] outside 7 to 12.
    pub fn new(value: u8) -> Result<Self, UnknownDataRate> {
        if (7..=12).contains(&value) { Ok(Self(value)) } else { Err(UnknownDataRate(value.to_string())) }
    }

    /// The EU868 data rate 0 (SF12) to 5 (SF7); nothing for those that motes do not use.
    #[must_use]
    pub fn from_data_rate(data_rate: u8) -> Option<Self> {
        (data_rate <= 5).then(|| Self(12 - data_rate))
    }

    /// The EU868 data rate, 0 to 5.
    #[must_use]
    pub fn to_data_rate(self) -> u8 {
        12 - self.0
    }

    /// One data rate lower, at most down to SF12 (LMIC's `lowerDR`).
    #[must_use]
    pub fn lower_data_rate(self) -> Self {
        Self(self.0.saturating_add(1).min(12))
    }

    /// Duration of one symbol in microseconds: 2^SF / 125 kHz.
    #[must_use]
    pub fn symbol_us(self) -> u64 {
        (1 << self.0) * 8
    }

    /// Time on air in microseconds of `bytes` of physical payload: preamble of 8 symbols, explicit header, 4/5.
    /// Uplinks carry a CRC, downlinks do not.
    #[must_use]
    pub fn airtime_us(self, bytes: usize, crc: bool) -> u64 {
        let sf = u64::from(self.0);
        let low_rate = if self.0 >= 11 { 2 } else { 0 };
        let bits = 8 * (bytes as u64) + 28 + if crc { 16 } else { 0 };
        let payload_symbols = 8 + bits.saturating_sub(4 * sf).div_ceil(4 * (sf - low_rate)) * 5;
        // The preamble ends with 4.25 symbols of sync word: 12.25 symbols are 49 quarters.
        self.symbol_us() * (payload_symbols * 4 + 49) / 4
    }
}

impl fmt::Display for SpreadingFactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SF{}BW125", self.0)
    }
}

impl FromStr for SpreadingFactor {
    type Err = UnknownDataRate;

    fn from_str(text: &str) -> Result<Self, UnknownDataRate> {
        text.strip_prefix("SF")
            .and_then(|rest| rest.strip_suffix("BW125"))
            .and_then(|digits| digits.parse::<u8>().ok())
            .and_then(|value| Self::new(value).ok())
            .ok_or_else(|| UnknownDataRate(text.chars().take(32).collect()))
    }
}

impl TryFrom<String> for SpreadingFactor {
    type Error = UnknownDataRate;

    fn try_from(text: String) -> Result<Self, UnknownDataRate> {
        text.parse()
    }
}

impl From<SpreadingFactor> for String {
    fn from(value: SpreadingFactor) -> Self {
        value.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn airtime_matches_published_values() {
        // (spreading factor, bytes, microseconds) from Semtech's calculator, uplinks with CRC.
        for (sf, bytes, expected_us) in [
            (7, 23, 61_696),
            (9, 23, 205_824),
            (10, 23, 370_688),
            (12, 23, 1_482_752),
            (7, 13, 46_336),
            (12, 13, 1_155_072),
            (7, 64, 118_016),
        ] {
            let factor = SpreadingFactor::new(sf).expect("a valid factor");
            assert_eq!(factor.airtime_us(bytes, true), expected_us, "SF{sf}, {bytes} bytes");
        }
    }

    #[test]
    fn text_forms() {
        for sf in 7..=12 {
            let factor = SpreadingFactor::new(sf).expect("a valid factor");
            assert_eq!(factor.to_string().parse(), Ok(factor));
        }
        for bad in ["SF6BW125", "SF13BW125", "SF7BW250", "50000", "", "SFBW125", "SF7", "SF+7BW125x"] {
            assert!(bad.parse::<SpreadingFactor>().is_err(), "{bad}");
        }
        assert_eq!(SpreadingFactor::SF12.lower_data_rate(), SpreadingFactor::SF12);
        for data_rate in 0..=5 {
            assert_eq!(SpreadingFactor::from_data_rate(data_rate).map(SpreadingFactor::to_data_rate), Some(data_rate));
        }
        assert_eq!(SpreadingFactor::from_data_rate(6), None);
        assert!(SpreadingFactor::new(6).is_err());
    }
}
