//! Adaptive data rate: what a device should use, from how it was heard (Semtech's algorithm, as The Things Network and ChirpStack run it).
//!
//! The best signal of the last twenty uplinks, less what the data rate needs, less 10 dB for what changes around the device, is what may be
//! given up: each 3 dB is a faster data rate, then 2 dB less power. The number of transmissions follows from the share of lost uplinks.

use super::region::Region;
use crate::gwmp::data_rate::DataRate;

/// Uplinks that decide.
const UPLINKS: usize = 20;
const MARGIN_DECIBEL_TENTHS: i16 = 100;
const STEP_DECIBEL_TENTHS: i16 = 30;
/// A device that refuses is asked so often.
const REFUSALS_MAX: u8 = 3;

/// What a device uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Setting {
    /// Index in the region's table.
    pub data_rate: u8,
    /// Steps of 2 dB below the region's maximum.
    pub tx_power: u8,
    /// Transmissions of each unconfirmed uplink, 1..=3.
    pub nb_trans: u8,
}

impl Setting {
    /// `LinkADRReq` (LoRaWAN 1.0.3, 5.3); all channels that the device knows stay on (ChMaskCntl 6).
    pub(crate) const fn request(self) -> [u8; 5] {
        [0x03, self.data_rate << 4 | self.tx_power, 0xff, 0x00, 0x60 | self.nb_trans]
    }
}

#[derive(Debug, Clone, Copy)]
struct Heard {
    f_cnt: u32,
    snr_decibel_tenths: i16,
}

/// What is known of a device's radio.
#[derive(Debug, Clone, Default)]
pub(crate) struct Adr {
    /// The newest last; none for a device that does not let the network choose.
    heard: Vec<Heard>,
    tx_power: u8,
    /// One less than the number of transmissions.
    more_trans: u8,
    asked: Option<Setting>,
    refusals: u8,
}

impl Adr {
    /// A new uplink; `snr` in tenths of a decibel.
    pub(crate) fn note(&mut self, is_adr: bool, f_cnt: u32, snr: Option<i16>) {
        let Some(snr_decibel_tenths) = snr.filter(|_| is_adr) else {
            self.heard = Vec::new();
            return;
        };
        if self.heard.len() >= UPLINKS {
            self.heard.remove(0);
        }
        self.heard.push(Heard { f_cnt, snr_decibel_tenths });
    }

    /// What the device should use, if that is something else than it does.
    pub(crate) fn decide(&self, region: &Region, rate: DataRate) -> Option<Setting> {
        if self.heard.len() < UPLINKS || self.refusals >= REFUSALS_MAX {
            return None;
        }
        let data_rate = region.index_of(rate).filter(|index| *index <= region.adr_data_rate_max)?;
        let used = Setting { data_rate, tx_power: self.tx_power, nb_trans: self.more_trans + 1 };
        let best = self.heard.iter().map(|heard| heard.snr_decibel_tenths).max()?;
        let spare = best.saturating_sub(rate.required_snr_decibel_tenths()).saturating_sub(MARGIN_DECIBEL_TENTHS);
        let mut wanted = Setting { nb_trans: self.nb_trans(used.nb_trans), ..used };
        for _ in 0..(spare / STEP_DECIBEL_TENTHS) {
            if wanted.data_rate < region.adr_data_rate_max {
                wanted.data_rate += 1;
            } else if wanted.tx_power < region.tx_power_max {
                wanted.tx_power += 1;
            }
        }
        for _ in 0..(-spare).max(0).div_euclid(STEP_DECIBEL_TENTHS) {
            wanted.tx_power = wanted.tx_power.saturating_sub(1);
        }
        (wanted != used).then_some(wanted)
    }

    /// By the share of lost uplinks and what the device does now.
    fn nb_trans(&self, now: u8) -> u8 {
        let (Some(first), Some(last)) = (self.heard.first(), self.heard.last()) else { return now };
        let sent = u64::from(last.f_cnt.saturating_sub(first.f_cnt)) + 1;
        let lost = sent.saturating_sub(self.heard.len() as u64) * 100 / sent;
        let row = match lost {
            0..5 => [1, 1, 2],
            5..10 => [1, 2, 3],
            10..30 => [2, 3, 3],
            _ => [3, 3, 3],
        };
        row[usize::from(now.clamp(1, 3)) - 1]
    }

    pub(crate) fn note_asked(&mut self, setting: Setting) {
        self.asked = Some(setting);
    }

    /// `LinkADRAns`: three bits, each says that a part is taken; unless all are, nothing is.
    pub(crate) fn answer(&mut self, status: u8) {
        let Some(asked) = self.asked.take() else { return };
        self.heard.clear();
        if status & 0x07 == 0x07 {
            (self.tx_power, self.more_trans, self.refusals) = (asked.tx_power, asked.nb_trans - 1, 0);
        } else {
            self.refusals += 1;
        }
    }

    /// Custody begins: how the device is heard here is not known yet.
    pub(crate) fn clear(&mut self) {
        self.heard.clear();
        self.asked = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mac::region::EU868;

    fn rate(index: u8) -> DataRate {
        EU868.data_rate(index).expect("in the table")
    }

    fn heard(snr: i16, step: u32) -> Adr {
        let mut adr = Adr::default();
        (0..20).for_each(|n| adr.note(true, n * step, Some(snr)));
        adr
    }

    #[test]
    fn the_spare_signal_buys_rate_then_power() {
        for (snr, used, wanted) in [
            // SF12 needs -20 dB: 13 dB to spare at 3 dB are four steps.
            (30, 0, Some((4, 0))),
            (30, 5, Some((5, 0))),
            (90, 0, Some((5, 1))),
            (300, 0, Some((5, 7))),
            (-100, 0, None),
            (-200, 0, None),
        ] {
            let decided = heard(snr, 1).decide(&EU868, rate(used));
            let expected = wanted.filter(|(rate, power)| (*rate, *power) != (used, 0));
            assert_eq!(decided.map(|s| (s.data_rate, s.tx_power)), expected, "SNR {snr}, DR{used}");
        }
        let mut quiet = heard(-90, 1);
        quiet.tx_power = 5;
        assert_eq!(quiet.decide(&EU868, rate(5)).map(|s| s.tx_power), Some(2), "louder again");
    }

    #[test]
    fn too_few_uplinks_or_a_device_that_does_not_want_it() {
        let mut adr = Adr::default();
        (0..19).for_each(|n| adr.note(true, n, Some(100)));
        assert_eq!(adr.decide(&EU868, rate(0)), None);
        adr.note(true, 19, Some(100));
        assert!(adr.decide(&EU868, rate(0)).is_some());
        assert_eq!(adr.decide(&EU868, rate(7)), None, "FSK is not for ADR");
        adr.note(false, 20, Some(100));
        assert_eq!(adr.decide(&EU868, rate(0)), None);
    }

    #[test]
    fn losses_raise_the_number_of_transmissions() {
        assert_eq!(heard(-80, 2).decide(&EU868, rate(0)).map(|s| s.nb_trans), Some(3), "half are lost");
        assert_eq!(heard(-80, 1).decide(&EU868, rate(0)), None);
    }

    #[test]
    fn answers_are_taken_whole_or_not() {
        let mut adr = heard(300, 1);
        let wanted = adr.decide(&EU868, rate(0)).expect("a change");
        assert_eq!(wanted.request(), [0x03, 0x57, 0xff, 0x00, 0x61]);
        adr.answer(7);
        assert!(adr.decide(&EU868, rate(0)).is_some(), "nothing was asked");
        adr.note_asked(wanted);
        adr.answer(7);
        assert_eq!(adr.tx_power, 7);
        for n in 0..3_u32 {
            (0..20).for_each(|m| adr.note(true, 100 * (n + 1) + m, Some(-90)));
            let wanted = adr.decide(&EU868, rate(5)).expect("louder");
            adr.note_asked(wanted);
            adr.answer(3);
        }
        (0..20).for_each(|m| adr.note(true, 900 + m, Some(-90)));
        assert_eq!((adr.tx_power, adr.decide(&EU868, rate(5))), (7, None), "asked three times");
    }
}
