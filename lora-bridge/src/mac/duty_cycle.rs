//! Time on air, and how much of an hour each sub-band of a gateway has spent.
//!
//! The limit is exact for every span of an hour, not for the average: time is kept in minutes, and 61 of them cover any hour.
//!
//! The owner stores an [`AirTime`] every [`STORE_EVERY`] and gives it back when it begins anew. What may have been sent since the last one
//! was stored, at most [`LOST_MAX`], is then counted in every sub-band of every gateway: who crashes again and again sends less, not more.

use std::collections::BTreeMap;

use contracts::time::{BootTime, Millis};
use serde::{Deserialize, Serialize};

use super::region::Region;
use crate::gwmp::GatewayEui;
use crate::gwmp::data_rate::DataRate;

const MINUTE_MS: u64 = 60_000;
/// Minutes that are counted against the limit: any hour touches at most 61, and a downlink is booked up to 16 s before it is on air.
const MINUTES: usize = 62;

/// The owner stores what was spent so often, if it changed.
pub const STORE_EVERY: Millis = Millis::from_secs(2);
/// Time on air that may be missing from what was stored last: the interval and the time that it takes to store.
pub const LOST_MAX: Millis = Millis::from_secs(3);

/// Preamble symbols of LoRaWAN.
const PREAMBLE: u64 = 8;

/// Time on air of a frame of `bytes` bytes in microseconds, explicit header, coding rate 4/5 (Semtech SX1276 data sheet, 4.1.1.7).
/// Downlinks carry no CRC (`ncrc`). A rate that is neither LoRa nor FSK counts as the slowest.
#[must_use]
pub fn time_on_air_micros(rate: DataRate, bytes: usize, has_crc: bool) -> u64 {
    let bytes = bytes as u64;
    let (factor, bandwidth_khz) = match rate {
        DataRate::Lora { spreading_factor, bandwidth_khz } if bandwidth_khz > 0 => (u64::from(spreading_factor), bandwidth_khz),
        // Preamble 5, sync word 3, length 1, CRC 2.
        DataRate::Fsk { bits_per_second } if bits_per_second > 0 => {
            return (bytes + 11) * 8 * 1_000_000 / u64::from(bits_per_second);
        }
        DataRate::Lora { .. } | DataRate::Fsk { .. } | DataRate::Other => (12, 125),
    };
    let symbol_micros = (1_u64 << factor) * 1_000 / u64::from(bandwidth_khz);
    // Low data rate optimisation where a symbol lasts longer than 16 ms.
    let low_rate = u64::from(symbol_micros > 16_000);
    let bits = (8 * bytes + 28 + 16 * u64::from(has_crc)).saturating_sub(4 * factor);
    let payload_symbols = 8 + bits.div_ceil(4 * (factor - 2 * low_rate)) * 5;
    // Preamble and 4.25 symbols.
    (PREAMBLE * 4 + 17) * symbol_micros / 4 + payload_symbols * symbol_micros
}

/// Minutes of one sub-band of one gateway.
#[derive(Debug, Clone)]
struct Spent {
    /// Number of the newest minute.
    minute: u64,
    micros: [u32; MINUTES],
}

impl Spent {
    const fn new(minute: u64) -> Self {
        Self { minute, micros: [0; MINUTES] }
    }

    fn place(minute: u64) -> usize {
        usize::try_from(minute % MINUTES as u64).unwrap_or(0)
    }

    fn advance(&mut self, minute: u64) {
        let from = minute.saturating_sub(MINUTES as u64 - 1).max(self.minute + 1);
        for passed in from..=minute {
            self.micros[Self::place(passed)] = 0;
        }
        self.minute = self.minute.max(minute);
    }

    fn add(&mut self, minute: u64, micros: u32) {
        self.advance(minute);
        if minute + MINUTES as u64 > self.minute {
            let kept = &mut self.micros[Self::place(minute)];
            *kept = kept.saturating_add(micros);
        }
    }

    fn at(&self, minute: u64) -> u64 {
        let mut spent = self.clone();
        spent.advance(minute);
        spent.total()
    }

    /// Minutes with time on air, oldest first.
    fn minutes(&self) -> Vec<(u64, u32)> {
        let first = self.minute.saturating_sub(MINUTES as u64 - 1);
        (first..=self.minute).map(|minute| (minute, self.micros[Self::place(minute)])).filter(|(_, micros)| *micros > 0).collect()
    }

    fn total(&self) -> u64 {
        self.micros.iter().map(|micros| u64::from(*micros)).sum()
    }
}

/// Transmissions that were counted and can be given back if the gateway refused them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Booking {
    band: usize,
    minute: u64,
    micros: u32,
}

/// What was spent, for the disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AirTime {
    /// On the clock of the machine's boot.
    pub at: BootTime,
    /// Rises with every transmission.
    pub changes: u64,
    /// Number of a minute since boot, and microseconds in it; counted in every sub-band of every gateway.
    pub everywhere: Vec<(u64, u32)>,
    pub spent: Vec<SpentThere>,
}

/// Minutes of one sub-band of one gateway.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SpentThere {
    pub gateway: GatewayEui,
    /// Index in the region's table.
    pub band: usize,
    pub minutes: Vec<(u64, u32)>,
}

impl AirTime {
    /// So much time has passed at least. After a restart of the machine its clock is another one, and it was off for some time.
    fn passed(&self, now: BootTime) -> u64 {
        now.0.checked_sub(self.at.0).unwrap_or(now.0)
    }

    /// The minute of now's clock in which what was spent in one of the stored clock may have been spent at the latest.
    fn minute_now(&self, minute: u64, now: BootTime) -> u64 {
        let latest = ((minute.saturating_add(1)).saturating_mul(MINUTE_MS)).min(self.at.0);
        let age = self.at.0 - latest + self.passed(now);
        now.0.saturating_sub(age) / MINUTE_MS
    }
}

/// All gateways' sub-bands. A gateway that never transmitted costs nothing; as many are kept as pull, the map of gateways has a bound.
#[derive(Debug)]
pub(crate) struct Ledger {
    region: &'static Region,
    gateways: BTreeMap<GatewayEui, BTreeMap<usize, Spent>>,
    /// What may have been spent anywhere before this process began.
    everywhere: Spent,
    changes: u64,
    max: usize,
}

impl Ledger {
    pub(crate) const fn new(region: &'static Region, max: usize) -> Self {
        Self { region, gateways: BTreeMap::new(), everywhere: Spent::new(0), changes: 0, max }
    }

    /// What is left of the hour for a frequency, in microseconds.
    pub(crate) fn left_micros(&self, gateway: GatewayEui, frequency_hz: u32, now: BootTime) -> u64 {
        let (band, _) = self.region.sub_band(frequency_hz);
        let minute = now.0 / MINUTE_MS;
        let spent = self.gateways.get(&gateway).and_then(|bands| bands.get(&band)).map_or(0, |spent| spent.at(minute));
        self.budget_micros(frequency_hz).saturating_sub(spent + self.everywhere.at(minute))
    }

    /// The whole hour's share of a frequency, in microseconds.
    pub(crate) fn budget_micros(&self, frequency_hz: u32) -> u64 {
        self.region.sub_band(frequency_hz).1.budget_micros()
    }

    /// Counts a transmission if the sub-band has room for it.
    pub(crate) fn book(&mut self, gateway: GatewayEui, frequency_hz: u32, micros: u64, now: BootTime) -> Option<Booking> {
        if self.left_micros(gateway, frequency_hz, now) < micros {
            return None;
        }
        let (band, _) = self.region.sub_band(frequency_hz);
        let minute = now.0 / MINUTE_MS;
        let micros = u32::try_from(micros).ok()?;
        if !self.gateways.contains_key(&gateway) && self.gateways.len() >= self.max {
            self.sweep(minute);
            if self.gateways.len() >= self.max {
                return None;
            }
        }
        let spent = self.gateways.entry(gateway).or_default().entry(band).or_insert_with(|| Spent::new(minute));
        spent.add(minute, micros);
        self.changes += 1;
        Some(Booking { band, minute, micros })
    }

    /// The gateway did not transmit it.
    pub(crate) fn give_back(&mut self, gateway: GatewayEui, booking: Booking) {
        let spent = self.gateways.get_mut(&gateway).and_then(|bands| bands.get_mut(&booking.band));
        if let Some(spent) = spent.filter(|spent| spent.minute < booking.minute + MINUTES as u64) {
            let kept = &mut spent.micros[Spent::place(booking.minute)];
            *kept = kept.saturating_sub(booking.micros);
        }
    }

    /// For the disk.
    pub(crate) fn air_time(&self, now: BootTime) -> AirTime {
        let there = |(gateway, bands): (&GatewayEui, &BTreeMap<usize, Spent>)| {
            let gateway = *gateway;
            let rows = bands.iter().map(move |(band, spent)| SpentThere { gateway, band: *band, minutes: spent.minutes() });
            rows.filter(|row| !row.minutes.is_empty()).collect::<Vec<_>>()
        };
        let spent = self.gateways.iter().flat_map(there).collect();
        AirTime { at: now, changes: self.changes, everywhere: self.everywhere.minutes(), spent }
    }

    /// From the disk, at the beginning: what may be missing is counted everywhere.
    pub(crate) fn restore(&mut self, stored: &AirTime, now: BootTime) {
        for row in stored.spent.iter().take(self.max * (self.region.sub_bands.len() + 1)) {
            let bands = self.gateways.entry(row.gateway).or_default();
            let spent = bands.entry(row.band).or_insert_with(|| Spent::new(now.0 / MINUTE_MS));
            for (minute, micros) in row.minutes.iter().take(MINUTES) {
                spent.add(stored.minute_now(*minute, now), *micros);
            }
        }
        self.everywhere.advance(now.0 / MINUTE_MS);
        for (minute, micros) in stored.everywhere.iter().take(MINUTES) {
            self.everywhere.add(stored.minute_now(*minute, now), *micros);
        }
        let lost_micros = stored.passed(now).min(LOST_MAX.0) * 1_000;
        self.everywhere.add(now.0 / MINUTE_MS, u32::try_from(lost_micros).unwrap_or(u32::MAX));
    }

    /// Gateways that sent nothing for an hour.
    fn sweep(&mut self, minute: u64) {
        self.gateways.retain(|_, bands| {
            bands.retain(|_, spent| spent.minute + MINUTES as u64 > minute);
            !bands.is_empty()
        });
    }

    /// What each sub-band of each gateway has spent of its hour, in microseconds, by sub-band index.
    pub(crate) fn spent(&self, now: BootTime) -> impl Iterator<Item = (GatewayEui, usize, u64)> + '_ {
        self.gateways.iter().flat_map(move |(gateway, bands)| {
            bands.iter().map(move |(band, spent)| {
                let minute = now.0 / MINUTE_MS;
                (*gateway, *band, spent.at(minute) + self.everywhere.at(minute))
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng};

    use super::*;
    use crate::mac::region::EU868;

    const GATEWAY: GatewayEui = GatewayEui(1);

    fn lora(spreading_factor: u8) -> DataRate {
        DataRate::Lora { spreading_factor, bandwidth_khz: 125 }
    }

    #[test]
    fn time_on_air_as_published() {
        // Semtech's calculator, coding rate 4/5, explicit header, CRC, in tenths of a millisecond.
        for (factor, bytes, tenths) in
            [(7, 23, 617), (9, 23, 2_058), (10, 23, 3_707), (12, 23, 14_828), (7, 64, 1_180), (12, 64, 27_935)]
        {
            let micros = time_on_air_micros(lora(factor), bytes, true);
            assert_eq!((micros + 50) / 100, tenths, "SF{factor}, {bytes} bytes: {micros} us");
        }
        // An acknowledgement: 873 an hour at 1 % on SF7, 363 an hour at 10 % on SF12.
        assert_eq!(36_000_000 / time_on_air_micros(lora(7), 12, false), 873);
        assert_eq!(360_000_000 / time_on_air_micros(lora(12), 12, false), 363);
        assert_eq!(time_on_air_micros(DataRate::Fsk { bits_per_second: 50_000 }, 12, false), 3_680);
    }

    #[test]
    fn no_hour_has_more_than_its_share() {
        for seed in 0..20_u64 {
            let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
            let mut ledger = Ledger::new(&EU868, 4);
            let mut sent: Vec<(u64, u64)> = Vec::new();
            let mut now = rng.random_range(0..10_000_000_u64);
            let mut refused = 0;
            for _ in 0..3_000 {
                now += rng.random_range(0..40_000);
                let micros = time_on_air_micros(lora(rng.random_range(7..13)), rng.random_range(12..64), false);
                match ledger.book(GATEWAY, 868_100_000, micros, BootTime(now)) {
                    Some(booking) if rng.random_bool(0.1) => ledger.give_back(GATEWAY, booking),
                    // A gateway keeps it in its queue until its window, 16 s at most.
                    Some(_) => sent.push((now + rng.random_range(0..=16_000), micros)),
                    None => refused += 1,
                }
            }
            for (end, _) in &sent {
                let is_in_hour = |at: u64| at <= *end && at + 3_600_000 > *end;
                let hour: u64 = sent.iter().filter(|(at, _)| is_in_hour(*at)).map(|(_, micros)| micros).sum();
                assert!(hour <= 36_000_000, "seed {seed}: {hour} us in an hour");
            }
            assert!(refused > 100 && sent.len() > 300, "seed {seed}: {refused} refused, {} sent", sent.len());
            // Another sub-band and another gateway have their own.
            assert_eq!(ledger.left_micros(GATEWAY, 869_525_000, BootTime(now)), 360_000_000);
            assert_eq!(ledger.left_micros(GatewayEui(2), 868_100_000, BootTime(now)), 36_000_000);
            assert_eq!(ledger.left_micros(GATEWAY, 868_100_000, BootTime(now + 3_780_000)), 36_000_000);
        }
    }

    /// A process that lives for moments only, sends what it may, and begins anew with what it stored last, on machines that restart too.
    #[test]
    fn no_hour_has_more_than_its_share_whoever_crashes() {
        for seed in 0..20_u64 {
            let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
            let mut sent: Vec<(u64, u64)> = Vec::new();
            let (mut now, mut boot_at) = (5_000_000_u64, 0);
            let mut stored: Option<AirTime> = None;
            let mut lives = 0;
            while lives < 400 {
                let mut ledger = Ledger::new(&EU868, 4);
                if let Some(stored) = &stored {
                    ledger.restore(stored, BootTime(now - boot_at));
                }
                stored = Some(ledger.air_time(BootTime(now - boot_at)));
                lives += 1;
                let end = now + rng.random_range(0..20_000);
                let mut stored_at = now;
                while now < end {
                    now += rng.random_range(50..1_500);
                    let micros = time_on_air_micros(lora(rng.random_range(7..13)), 20, false);
                    // Nothing is sent while it is on air.
                    if ledger.book(GATEWAY, 868_100_000, micros, BootTime(now - boot_at)).is_some() {
                        sent.push((now, micros));
                        now += micros / 1_000 + 1;
                    }
                    if now - stored_at >= STORE_EVERY.0 {
                        stored = Some(ledger.air_time(BootTime(now - boot_at)));
                        stored_at = now;
                    }
                    let hour: u64 = sent.iter().filter(|(at, _)| *at + 3_600_000 > now).map(|(_, micros)| micros).sum();
                    assert!(hour <= 36_000_000, "seed {seed}: {hour} us in an hour, life {lives}");
                }
                now += rng.random_range(0..60_000);
                if rng.random_bool(0.1) {
                    boot_at = now;
                    now += 10_000;
                }
            }
            let micros: u64 = sent.iter().map(|(_, micros)| micros).sum();
            assert!(micros > 10_000_000, "seed {seed}: {micros} us in all");
        }
    }

    #[test]
    fn what_was_stored_counts_as_long_as_it_would_have() {
        let mut ledger = Ledger::new(&EU868, 4);
        ledger.book(GATEWAY, 868_100_000, 20_000_000, BootTime(600_000)).expect("room");
        let stored = ledger.air_time(BootTime(601_000));
        let json = serde_json::to_string(&stored).expect("JSON");
        let mut again = Ledger::new(&EU868, 4);
        again.restore(&serde_json::from_str(&json).expect("its own JSON"), BootTime(661_000));
        let left = |ledger: &Ledger, hz, at| ledger.left_micros(GATEWAY, hz, BootTime(at));
        assert_eq!(left(&again, 868_100_000, 661_000), 13_000_000);
        assert_eq!(left(&again, 869_525_000, 661_000), 357_000_000, "three seconds everywhere");
        assert_eq!(again.left_micros(GatewayEui(9), 868_100_000, BootTime(661_000)), 33_000_000);
        assert_eq!(left(&again, 868_100_000, 601_000 + 62 * 60_000 + 60_000), 36_000_000);
    }

    #[test]
    fn gateways_are_bounded_and_forgotten_after_an_hour() {
        let mut ledger = Ledger::new(&EU868, 2);
        let now = BootTime(0);
        assert!(ledger.book(GatewayEui(1), 868_100_000, 1_000, now).is_some());
        assert!(ledger.book(GatewayEui(2), 868_100_000, 1_000, now).is_some());
        assert!(ledger.book(GatewayEui(3), 868_100_000, 1_000, now).is_none());
        assert!(ledger.book(GatewayEui(3), 868_100_000, 1_000, BootTime(4_000_000)).is_some());
        assert_eq!(ledger.spent(BootTime(4_000_000)).count(), 1);
    }
}
