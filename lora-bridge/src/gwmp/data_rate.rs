//! `datr`: a text such as `SF7BW125` for LoRa, a number of bits per second for FSK.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// How a packet is modulated. In text `SF7BW125`, `FSK50000` or `other`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DataRate {
    /// Spreading factor 5..=12 and bandwidth in kHz.
    Lora { spreading_factor: u8, bandwidth_khz: u16 },
    /// Bits per second.
    Fsk { bits_per_second: u32 },
    /// LR-FHSS and whatever comes: taken as uplink, never used for a downlink.
    Other,
}

/// A text is no data rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a data rate reads like `SF7BW125` or `FSK50000`")]
pub struct NotADataRate;

impl DataRate {
    /// EU868 DR0..DR7 (RP002, 2.4.3); `None` for any other index.
    #[must_use]
    pub const fn eu868(index: u8) -> Option<Self> {
        match index {
            0..=5 => Some(Self::Lora { spreading_factor: 12 - index, bandwidth_khz: 125 }),
            6 => Some(Self::Lora { spreading_factor: 7, bandwidth_khz: 250 }),
            7 => Some(Self::Fsk { bits_per_second: 50_000 }),
            _ => None,
        }
    }

    /// The data rate of RX1: the uplink's, `offset` steps slower, never below DR0 (RP002, 2.4.7). `None` if no downlink can use it.
    #[must_use]
    pub fn slowed(self, offset: u8) -> Option<Self> {
        match self {
            Self::Lora { spreading_factor: 7, bandwidth_khz: 250 } if offset > 0 => {
                Some(Self::Lora { spreading_factor: (6 + offset).min(12), bandwidth_khz: 125 })
            }
            Self::Lora { spreading_factor, bandwidth_khz } => {
                Some(Self::Lora { spreading_factor: spreading_factor.saturating_add(offset).min(12), bandwidth_khz })
            }
            Self::Fsk { bits_per_second } if offset == 0 => Some(Self::Fsk { bits_per_second }),
            Self::Fsk { .. } => Self::eu868(7_u8.saturating_sub(offset)),
            Self::Other => None,
        }
    }

    /// The weakest signal that can be demodulated, in tenths of a dB of SNR (Semtech SX1276 data sheet, table 13).
    #[must_use]
    pub const fn required_snr_decibel_tenths(self) -> i16 {
        match self {
            Self::Lora { spreading_factor: 12, .. } => -200,
            Self::Lora { spreading_factor: 11, .. } => -175,
            Self::Lora { spreading_factor: 10, .. } => -150,
            Self::Lora { spreading_factor: 9, .. } => -125,
            Self::Lora { spreading_factor: 8, .. } => -100,
            Self::Lora { .. } => -75,
            Self::Fsk { .. } | Self::Other => 0,
        }
    }

    /// Reads the LoRa form; anything else is [`Self::Other`].
    pub(crate) fn from_datr(text: &str) -> Self {
        lora(text).unwrap_or(Self::Other)
    }
}

fn lora(text: &str) -> Option<DataRate> {
    let (spreading_factor, bandwidth) = text.strip_prefix("SF")?.split_once("BW")?;
    let (spreading_factor, bandwidth_khz) = (spreading_factor.parse().ok()?, bandwidth.parse().ok()?);
    (5..=12).contains(&spreading_factor).then_some(DataRate::Lora { spreading_factor, bandwidth_khz })
}

impl fmt::Display for DataRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lora { spreading_factor, bandwidth_khz } => write!(f, "SF{spreading_factor}BW{bandwidth_khz}"),
            Self::Fsk { bits_per_second } => write!(f, "FSK{bits_per_second}"),
            Self::Other => f.write_str("other"),
        }
    }
}

impl FromStr for DataRate {
    type Err = NotADataRate;

    fn from_str(text: &str) -> Result<Self, NotADataRate> {
        if text == "other" {
            return Ok(Self::Other);
        }
        match text.strip_prefix("FSK") {
            Some(bits) => bits.parse().map(|bits_per_second| Self::Fsk { bits_per_second }).map_err(|_| NotADataRate),
            None => lora(text).ok_or(NotADataRate),
        }
    }
}

impl Serialize for DataRate {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for DataRate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_tables() {
        for text in ["SF7BW125", "SF12BW500", "FSK50000", "other"] {
            assert_eq!(text.parse::<DataRate>().map(|d| d.to_string()), Ok(text.to_owned()));
        }
        for text in ["", "SF", "SF4BW125", "SF13BW125", "SF7BW", "FSK", "7", "SF7BW99999"] {
            assert_eq!(text.parse::<DataRate>(), Err(NotADataRate), "{text}");
        }
        let dr = |index| DataRate::eu868(index).expect("in the table");
        assert_eq!(dr(0).to_string(), "SF12BW125");
        assert_eq!(DataRate::eu868(8), None);
        for (up, offset, down) in [(5, 0, 5), (5, 2, 3), (1, 5, 0), (6, 1, 5), (6, 0, 6), (7, 0, 7), (7, 2, 5)] {
            assert_eq!(dr(up).slowed(offset), Some(dr(down)), "DR{up} - {offset}");
        }
        assert_eq!(DataRate::Other.slowed(0), None);
    }
}
