//! Adaptive data rate: what a device should use, from how it was heard (Semtech's algorithm, as The Things Network and ChirpStack run it).
//!
//! The best signal of the last twenty uplinks, less what the data rate needs, less 10 dB for what changes around the device, is what may be
//! given up: each 3 dB is a faster data rate, then 2 dB less power. The number of transmissions follows from the share of lost uplinks.
//!
//! A device that is insured must stay in reach of both nodes: the signal is then the worse of both, and a device that the other node does
//! not hear is never made quieter.

use contracts::ids::{DevEui, SessionId};
use contracts::time::WallTime;
use serde::{Deserialize, Serialize};

use super::region::Region;
use crate::gwmp::data_rate::DataRate;

/// Uplinks that decide.
const UPLINKS: usize = 20;
const UPLINKS_U32: u32 = 20;
const MARGIN_DECIBEL_TENTHS: i16 = 100;
const STEP_DECIBEL_TENTHS: i16 = 30;
/// Of the last twenty, so many the other node has to have heard: else its best signal says little.
const HEARD_MIN: u8 = 10;
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

/// How far devices of a group are managed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AdrMode {
    #[default]
    Off,
    /// Nobody else has to hear them.
    Alone,
    /// By the worse of both nodes' signals.
    Insured,
}

/// How one node hears a device: told to the other one of a contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Margin {
    pub device: DevEui,
    pub session: SessionId,
    /// The newest uplink that it heard.
    pub f_cnt: u32,
    /// The best of the last twenty, in tenths of a decibel, whichever of its gateways.
    pub snr_decibel_tenths: i16,
    /// How many of the twenty counters up to the newest it heard, 1..=20.
    pub heard: u8,
    pub heard_at: WallTime,
}

/// What a device took of what it was told: part of its session's state, on disk and at the other node. Its data rate is seen with every uplink.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Used {
    pub session: SessionId,
    /// Of the uplink with the device's answer; what was answered later counts.
    pub f_cnt: u32,
    /// Steps of 2 dB below the region's maximum, 0..=15.
    pub tx_power: u8,
    /// Transmissions of each unconfirmed uplink, 1..=3.
    pub nb_trans: u8,
}

#[derive(Debug, Clone, Copy)]
struct Heard {
    f_cnt: u32,
    snr_decibel_tenths: i16,
}

/// What is known of a device's radio.
#[derive(Debug, Clone, Default)]
pub(crate) struct Adr {
    /// The newest last.
    heard: Vec<Heard>,
    heard_at: WallTime,
    /// The device lets the network choose.
    is_adr: bool,
    /// Heard since this was last told to the other node.
    is_new: bool,
    other: Option<Margin>,
    /// Of some session: it may be stored before the session is known here.
    used: Option<Used>,
    asked: Option<Setting>,
    refusals: u8,
}

impl Adr {
    /// A new uplink; `snr` in tenths of a decibel.
    pub(crate) fn note(&mut self, is_adr: bool, f_cnt: u32, snr: Option<i16>, at: WallTime) {
        self.is_adr = is_adr;
        let Some(snr_decibel_tenths) = snr else { return };
        if self.heard.capacity() == 0 {
            self.heard.reserve_exact(UPLINKS);
        }
        if self.heard.len() >= UPLINKS {
            self.heard.remove(0);
        }
        self.heard.push(Heard { f_cnt, snr_decibel_tenths });
        (self.heard_at, self.is_new) = (at, true);
    }

    /// Another gateway heard the newest uplink too.
    pub(crate) fn note_copy(&mut self, f_cnt: u32, snr: Option<i16>) {
        if let (Some(newest), Some(snr)) = (self.heard.last_mut().filter(|newest| newest.f_cnt == f_cnt), snr) {
            newest.snr_decibel_tenths = newest.snr_decibel_tenths.max(snr);
        }
    }

    /// How this node hears the device.
    pub(crate) fn margin(&self, device: DevEui, session: SessionId) -> Option<Margin> {
        let newest = self.heard.last()?;
        let best = self.heard.iter().map(|heard| heard.snr_decibel_tenths).max()?;
        let lately = self.heard.iter().filter(|heard| newest.f_cnt.saturating_sub(heard.f_cnt) < UPLINKS_U32);
        Some(Margin {
            device,
            session,
            f_cnt: newest.f_cnt,
            snr_decibel_tenths: best,
            heard: u8::try_from(lately.count()).unwrap_or(u8::MAX),
            heard_at: self.heard_at,
        })
    }

    /// The same, once per uplink.
    pub(crate) fn take_news(&mut self, device: DevEui, session: SessionId) -> Option<Margin> {
        std::mem::take(&mut self.is_new).then(|| self.margin(device, session))?
    }

    pub(crate) fn note_other(&mut self, margin: Margin) {
        if self.other.is_none_or(|known| known.session != margin.session || known.f_cnt <= margin.f_cnt) {
            self.other = Some(margin);
        }
    }

    pub(crate) fn other(&self) -> Option<&Margin> {
        self.other.as_ref()
    }

    /// The other node's signal, if it heard the device lately and often enough.
    pub(crate) fn covered(&self, session: SessionId, f_cnt: u32) -> Option<i16> {
        let is_recent = |other: &&Margin| {
            other.session == session && f_cnt.saturating_sub(other.f_cnt) <= UPLINKS_U32 && other.heard >= HEARD_MIN
        };
        self.other.as_ref().filter(is_recent).map(|other| other.snr_decibel_tenths)
    }

    /// What the device uses in its session, if it ever took anything.
    pub(crate) fn used(&self, session: SessionId) -> Option<Used> {
        self.used.filter(|used| used.session == session)
    }

    /// What the disk or the other node says; `session` is the one of now.
    pub(crate) fn merge(&mut self, told: Used, session: SessionId) {
        let is_newer = self
            .used
            .is_none_or(|known| if known.session == told.session { known.f_cnt < told.f_cnt } else { known.session != session });
        if is_newer {
            self.used = Some(Used { tx_power: told.tx_power.min(15), nb_trans: told.nb_trans.clamp(1, 3), ..told });
        }
    }

    /// The device began anew: nothing of its radio is as it was.
    pub(crate) fn restart(&mut self) {
        // What is stored may be of this very session.
        *self = Self { used: self.used, ..Self::default() };
    }

    /// What the device should use, if that is something else than it does.
    pub(crate) fn decide(&self, region: &Region, rate: DataRate, mode: AdrMode, session: SessionId) -> Option<Setting> {
        if !self.is_adr || self.heard.len() < UPLINKS || self.refusals >= REFUSALS_MAX {
            return None;
        }
        let data_rate = region.index_of(rate).filter(|index| *index <= region.adr_data_rate_max)?;
        let (tx_power, nb_trans) = self.used(session).map_or((0, 1), |used| (used.tx_power, used.nb_trans));
        let used = Setting { data_rate, tx_power, nb_trans };
        let own = self.heard.iter().map(|heard| heard.snr_decibel_tenths).max()?;
        let newest = self.heard.last()?.f_cnt;
        let (best, may_be_quieter) = match (mode, self.covered(session, newest)) {
            (AdrMode::Off, _) => return None,
            (AdrMode::Alone, _) => (own, true),
            (AdrMode::Insured, Some(other)) => (own.min(other), true),
            (AdrMode::Insured, None) => (own, false),
        };
        let spare = best.saturating_sub(rate.required_snr_decibel_tenths()).saturating_sub(MARGIN_DECIBEL_TENTHS);
        let spare = if may_be_quieter { spare } else { spare.min(0) };
        let nb_trans = self.nb_trans(used.nb_trans).max(if may_be_quieter { 1 } else { used.nb_trans });
        let mut wanted = Setting { nb_trans, ..used };
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

    /// `LinkADRAns` in uplink `f_cnt`: three bits, each says that a part is taken; unless all are, nothing is. True if the device uses
    /// something else now.
    pub(crate) fn answer(&mut self, status: u8, session: SessionId, f_cnt: u32) -> bool {
        let Some(Setting { tx_power, nb_trans, .. }) = self.asked.take() else { return false };
        self.heard.clear();
        let is_taken = status & 0x07 == 0x07;
        if is_taken {
            (self.used, self.refusals) = (Some(Used { session, f_cnt, tx_power, nb_trans }), 0);
        } else {
            self.refusals += 1;
        }
        is_taken
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

    const SESSION: SessionId = SessionId::from_bytes([1; 8]);

    fn using(tx_power: u8) -> Option<Used> {
        Some(Used { session: SESSION, f_cnt: 20, tx_power, nb_trans: 1 })
    }

    #[test]
    fn of_what_is_told_of_a_device_the_newest_of_its_session_counts() {
        let (later, past) = (SessionId::from_bytes([2; 8]), SessionId::from_bytes([3; 8]));
        let used = |session, f_cnt, tx_power| Used { session, f_cnt, tx_power, nb_trans: 1 };
        let mut adr = Adr::default();
        for (told, expected) in [
            (used(past, 900, 6), None),
            (used(SESSION, 7, 3), Some(3)),
            (used(SESSION, 5, 1), Some(3)),
            (used(SESSION, 7, 2), Some(3)),
            (used(past, 901, 1), Some(3)),
            (used(SESSION, 8, 200), Some(15)),
        ] {
            adr.merge(told, SESSION);
            assert_eq!(adr.used(SESSION).map(|used| used.tx_power), expected, "{told:?}");
        }
        // A restart reads what it stored before it reads which session the device has.
        let mut restarted = Adr::default();
        restarted.merge(used(later, 3, 4), SESSION);
        restarted.restart();
        assert_eq!((restarted.used(SESSION), restarted.used(later)), (None, Some(used(later, 3, 4))));
    }

    /// Heard by the other node in its newest uplinks.
    fn other(f_cnt: u32, snr_decibel_tenths: i16, heard: u8) -> Margin {
        Margin { device: DevEui::from_u64(1), session: SESSION, f_cnt, snr_decibel_tenths, heard, heard_at: WallTime(0) }
    }

    #[test]
    fn under_contract_the_worse_of_both_decides_and_nobody_is_made_quieter_than_the_other_hears() {
        let decide =
            |adr: &Adr, used| adr.decide(&EU868, rate(used), AdrMode::Insured, SESSION).map(|s| (s.data_rate, s.tx_power));
        for (told, expected) in [
            (None, None),
            (Some(other(19, 300, 20)), Some((5, 7))),
            // 13 dB to spare at the other node are four steps; at this one there is much more.
            (Some(other(19, 30, 20)), Some((4, 0))),
            (Some(other(19, -200, 20)), None),
            // It heard too few, or none lately, or of another session.
            (Some(other(19, 300, 9)), None),
            (Some(Margin { session: SessionId::from_bytes([2; 8]), ..other(19, 300, 20) }), None),
        ] {
            let mut adr = heard(300, 1);
            told.into_iter().for_each(|margin| adr.note_other(margin));
            assert_eq!(decide(&adr, 0), expected, "{told:?}");
        }
        let mut late = heard(300, 2);
        late.note_other(other(17, 300, 20));
        assert_eq!(decide(&late, 0), Some((0, 0)), "uplink 38, heard there more than twenty ago: only more transmissions");
        // Louder it may become whoever hears it.
        let mut quiet = heard(-90, 1);
        quiet.used = using(5);
        assert_eq!(decide(&quiet, 5), Some((5, 2)));
        quiet.note_other(other(19, -150, 20));
        assert_eq!(decide(&quiet, 5), Some((5, 0)), "by the worse of both");
    }

    #[test]
    fn margins_are_told_once_per_uplink_with_the_best_of_all_gateways() {
        let mut adr = heard(-50, 2);
        adr.note_copy(38, Some(40));
        adr.note_copy(36, Some(90));
        let device = DevEui::from_u64(1);
        let margin = adr.take_news(device, SESSION).expect("news");
        assert_eq!((margin.f_cnt, margin.snr_decibel_tenths, margin.heard), (38, 40, 10), "every second of the last twenty");
        assert_eq!(adr.take_news(device, SESSION), None);
        assert!(adr.margin(device, SESSION).is_some());
    }

    fn rate(index: u8) -> DataRate {
        EU868.data_rate(index).expect("in the table")
    }

    fn heard(snr: i16, step: u32) -> Adr {
        let mut adr = Adr::default();
        (0..20).for_each(|n| adr.note(true, n * step, Some(snr), WallTime(0)));
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
            let decided = heard(snr, 1).decide(&EU868, rate(used), AdrMode::Alone, SESSION);
            let expected = wanted.filter(|(rate, power)| (*rate, *power) != (used, 0));
            assert_eq!(decided.map(|s| (s.data_rate, s.tx_power)), expected, "SNR {snr}, DR{used}");
        }
        let mut quiet = heard(-90, 1);
        quiet.used = using(5);
        assert_eq!(quiet.decide(&EU868, rate(5), AdrMode::Alone, SESSION).map(|s| s.tx_power), Some(2), "louder again");
    }

    #[test]
    fn too_few_uplinks_or_a_device_that_does_not_want_it() {
        let mut adr = Adr::default();
        (0..19).for_each(|n| adr.note(true, n, Some(100), WallTime(0)));
        assert_eq!(adr.decide(&EU868, rate(0), AdrMode::Alone, SESSION), None);
        adr.note(true, 19, Some(100), WallTime(0));
        assert!(adr.decide(&EU868, rate(0), AdrMode::Alone, SESSION).is_some());
        assert_eq!(adr.decide(&EU868, rate(7), AdrMode::Alone, SESSION), None, "FSK is not for ADR");
        adr.note(false, 20, Some(100), WallTime(0));
        assert_eq!(adr.decide(&EU868, rate(0), AdrMode::Alone, SESSION), None);
    }

    #[test]
    fn losses_raise_the_number_of_transmissions() {
        assert_eq!(heard(-80, 2).decide(&EU868, rate(0), AdrMode::Alone, SESSION).map(|s| s.nb_trans), Some(3), "half are lost");
        assert_eq!(heard(-80, 1).decide(&EU868, rate(0), AdrMode::Alone, SESSION), None);
    }

    #[test]
    fn answers_are_taken_whole_or_not() {
        let mut adr = heard(300, 1);
        let wanted = adr.decide(&EU868, rate(0), AdrMode::Alone, SESSION).expect("a change");
        assert_eq!(wanted.request(), [0x03, 0x57, 0xff, 0x00, 0x61]);
        adr.answer(7, SESSION, 20);
        assert!(adr.decide(&EU868, rate(0), AdrMode::Alone, SESSION).is_some(), "nothing was asked");
        adr.note_asked(wanted);
        adr.answer(7, SESSION, 20);
        assert_eq!(adr.used(SESSION), using(7));
        for n in 0..3_u32 {
            (0..20).for_each(|m| adr.note(true, 100 * (n + 1) + m, Some(-90), WallTime(0)));
            let wanted = adr.decide(&EU868, rate(5), AdrMode::Alone, SESSION).expect("louder");
            adr.note_asked(wanted);
            adr.answer(3, SESSION, 20);
        }
        (0..20).for_each(|m| adr.note(true, 900 + m, Some(-90), WallTime(0)));
        assert_eq!(
            (adr.used(SESSION), adr.decide(&EU868, rate(5), AdrMode::Alone, SESSION)),
            (using(7), None),
            "asked three times"
        );
    }
}
