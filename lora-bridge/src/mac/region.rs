//! Regions as data: channels, data rates, sub-bands, limits. A region is a table; EU868 is complete, others are further tables.

use serde::{Deserialize, Serialize};

use crate::gwmp::data_rate::DataRate;

/// A part of the spectrum with a common limit on the share of time for which a transmitter may be on air.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SubBand {
    /// First frequency in Hz.
    pub from_hz: u32,
    /// First frequency above it in Hz.
    pub to_hz: u32,
    /// Share of an hour in tenths of a percent; 1,000 is no limit.
    pub duty_per_mille: u16,
    /// Highest radiated power in dBm, of an isotropic antenna.
    pub eirp_dbm_max: i8,
}

/// A dipole has 2.15 dB more than an isotropic antenna: so much lower is the same limit as effective radiated power, in which packet
/// forwarders are told it.
const DIPOLE_DB: i8 = 2;

impl SubBand {
    /// Highest effective radiated power in dBm.
    #[must_use]
    pub const fn erp_dbm_max(&self) -> i8 {
        self.eirp_dbm_max.saturating_sub(DIPOLE_DB)
    }

    /// What may be spent of an hour, in microseconds.
    #[must_use]
    pub const fn budget_micros(&self) -> u64 {
        3_600_000 * self.duty_per_mille as u64
    }
}

/// How a join-accept names further channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CfListKind {
    /// Up to five frequencies behind the default channels.
    Frequencies,
    /// Masks over channels that are all known beforehand.
    Masks,
}

/// How the channel of RX1 follows from the uplink's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rx1Channel {
    /// The uplink's own frequency.
    SameAsUplink,
    /// Downlink channel `n % count` for uplink channel `n`, from `from_hz` upwards by `step_hz`.
    Modulo { count: u16, from_hz: u32, step_hz: u32 },
}

/// A region's parameters (RP002-1.0.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    pub name: &'static str,
    /// Data rates by index.
    pub data_rates: &'static [DataRate],
    /// Largest MACPayload by data rate index, in bytes.
    pub mac_payload_bytes_max: &'static [u16],
    /// Channels that every device knows, in Hz.
    pub default_channels_hz: &'static [u32],
    /// Channels that devices learn from the join-accept, in Hz.
    pub further_channels_hz: &'static [u32],
    pub cf_list: CfListKind,
    pub rx1_channel: Rx1Channel,
    pub rx2_hz: u32,
    pub rx2_data_rate: u8,
    pub rx1_data_rate_offset_max: u8,
    /// Fastest rate for ADR.
    pub adr_data_rate_max: u8,
    /// TXPower 0..=this; each step takes 2 dB.
    pub tx_power_max: u8,
    pub sub_bands: &'static [SubBand],
    /// Between the named sub-bands.
    pub elsewhere: SubBand,
}

const fn lora(spreading_factor: u8, bandwidth_khz: u16) -> DataRate {
    DataRate::Lora { spreading_factor, bandwidth_khz }
}

const fn band(from_hz: u32, to_hz: u32, duty_per_mille: u16, eirp_dbm_max: i8) -> SubBand {
    SubBand { from_hz, to_hz, duty_per_mille, eirp_dbm_max }
}

/// Europe, 863-870 MHz (RP002-1.0.3, 2.4; ETSI EN 300 220-2 for the sub-bands).
pub static EU868: Region = Region {
    name: "EU868",
    data_rates: &[
        lora(12, 125),
        lora(11, 125),
        lora(10, 125),
        lora(9, 125),
        lora(8, 125),
        lora(7, 125),
        lora(7, 250),
        DataRate::Fsk { bits_per_second: 50_000 },
    ],
    mac_payload_bytes_max: &[59, 59, 59, 123, 250, 250, 250, 250],
    default_channels_hz: &[868_100_000, 868_300_000, 868_500_000],
    further_channels_hz: &[867_100_000, 867_300_000, 867_500_000, 867_700_000, 867_900_000],
    cf_list: CfListKind::Frequencies,
    rx1_channel: Rx1Channel::SameAsUplink,
    rx2_hz: 869_525_000,
    rx2_data_rate: 0,
    rx1_data_rate_offset_max: 5,
    adr_data_rate_max: 5,
    tx_power_max: 7,
    sub_bands: &[
        band(865_000_000, 868_600_001, 10, 16),
        band(868_700_000, 869_200_001, 1, 16),
        band(869_400_000, 869_650_001, 100, 29),
        band(869_700_000, 870_000_001, 10, 16),
    ],
    elsewhere: band(0, u32::MAX, 1, 16),
};

impl Region {
    /// Index of a data rate.
    #[must_use]
    pub fn index_of(&self, rate: DataRate) -> Option<u8> {
        self.data_rates.iter().position(|known| *known == rate).and_then(|index| u8::try_from(index).ok())
    }

    #[must_use]
    pub fn data_rate(&self, index: u8) -> Option<DataRate> {
        self.data_rates.get(usize::from(index)).copied()
    }

    /// Largest MACPayload (FHDR, port, payload) at a data rate, in bytes; that of the slowest for a rate that is none of the region's.
    #[must_use]
    pub fn mac_payload_bytes_max(&self, rate: DataRate) -> usize {
        let index = self.index_of(rate).map_or(0, usize::from);
        self.mac_payload_bytes_max.get(index).map_or(0, |bytes| usize::from(*bytes))
    }

    /// Index and limit of the sub-band of a frequency; the last index stands for everything between the named ones.
    #[must_use]
    pub fn sub_band(&self, frequency_hz: u32) -> (usize, SubBand) {
        let is_in = |band: &SubBand| (band.from_hz..band.to_hz).contains(&frequency_hz);
        let named = self.sub_bands.iter().position(is_in);
        named.map_or((self.sub_bands.len(), self.elsewhere), |index| (index, self.sub_bands[index]))
    }
}

/// Regions by name, as they stand in configurations.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum RegionName {
    #[default]
    #[serde(rename = "EU868")]
    Eu868,
}

impl RegionName {
    #[must_use]
    pub const fn region(self) -> &'static Region {
        match self {
            Self::Eu868 => &EU868,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sub_bands_by_table() {
        for (hz, duty) in [
            (867_100_000, 10),
            (868_100_000, 10),
            (868_600_000, 10),
            (868_650_000, 1),
            (868_800_000, 1),
            (869_525_000, 100),
            (869_650_000, 100),
            (869_680_000, 1),
            (869_850_000, 10),
            (863_500_000, 1),
        ] {
            assert_eq!(EU868.sub_band(hz).1.duty_per_mille, duty, "{hz} Hz");
            assert_eq!(EU868.sub_band(hz).1.erp_dbm_max(), if duty == 100 { 27 } else { 14 }, "{hz} Hz");
        }
    }

    #[test]
    fn the_tables_fit_one_another() {
        assert_eq!(EU868.data_rates.len(), EU868.mac_payload_bytes_max.len());
        for index in 0..8 {
            assert_eq!(EU868.data_rate(index), DataRate::eu868(index));
        }
        assert_eq!(EU868.mac_payload_bytes_max(lora(9, 125)), 123);
        assert_eq!(EU868.index_of(lora(7, 250)), Some(6));
    }
}
