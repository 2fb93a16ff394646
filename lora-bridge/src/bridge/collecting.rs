//! Copies of one transmission by several gateways become one uplink with everybody's metadata.
//!
//! There is no fixed wait: an uplink waits only while a gateway is missing that heard its device lately, and at most
//! [`super::Config::copies_wait`]. With one gateway it goes at once.

use std::collections::{HashMap, VecDeque};

use contracts::time::BootTime;

use super::io::{Output, RECEPTIONS_MAX, Reception, Uplink};
use crate::gwmp::GatewayEui;
use crate::gwmp::rxpk::RxMeta;
use crate::mac::registry::SlotIndex;
use crate::mac::session::Mark;

/// Above this, SNR says nothing more about a link and the signal's strength decides. Tenths of a dB.
const SNR_SATURATED: i16 = 70;

/// Whether one reception is the better way back than another.
pub(super) fn is_better(one: &RxMeta, other: &RxMeta) -> bool {
    let rank = |rx: &RxMeta| (rx.snr_decibel_tenths.map(|snr| snr.min(SNR_SATURATED)), rx.rssi_dbm);
    rank(one) > rank(other)
}

/// An uplink that waits for copies.
#[derive(Debug)]
struct Waiting {
    uplink: Uplink,
    missing: Vec<GatewayEui>,
}

/// Uplinks that wait for copies, at most one per session; bounded by [`super::Config::in_flight_max`].
#[derive(Debug, Default)]
pub(super) struct Collecting {
    waiting: HashMap<SlotIndex, Waiting>,
    /// In order, for all wait equally long. May name uplinks that have gone on.
    due: VecDeque<(BootTime, SlotIndex, Mark)>,
}

impl Collecting {
    /// An uplink and the gateways that it waits for until `due`.
    pub(super) fn wait(
        &mut self,
        slot: SlotIndex,
        uplink: Uplink,
        missing: Vec<GatewayEui>,
        due: BootTime,
        out: &mut Vec<Output>,
    ) {
        self.give(slot, out);
        self.due.push_back((due, slot, uplink.mark()));
        self.waiting.insert(slot, Waiting { uplink, missing });
    }

    /// One more gateway heard it. False if that uplink does not wait.
    pub(super) fn add(&mut self, slot: SlotIndex, mark: Mark, copy: Reception, out: &mut Vec<Output>) -> bool {
        let Some(waiting) = self.waiting.get_mut(&slot).filter(|waiting| waiting.uplink.mark() == mark) else { return false };
        waiting.missing.retain(|gateway| *gateway != copy.gateway);
        waiting.uplink.add(copy);
        if waiting.missing.is_empty() {
            self.give(slot, out);
        }
        true
    }

    /// Whatever waits of a session goes on now.
    pub(super) fn give(&mut self, slot: SlotIndex, out: &mut Vec<Output>) {
        if let Some(waiting) = self.waiting.remove(&slot) {
            out.push(Output::Uplink(waiting.uplink));
        }
        while let Some((_, slot, mark)) = self.due.front()
            && self.waiting.get(slot).is_none_or(|waiting| waiting.uplink.mark() != *mark)
        {
            self.due.pop_front();
        }
    }

    /// Whatever waited long enough goes on now.
    pub(super) fn give_due(&mut self, now: BootTime, out: &mut Vec<Output>) {
        while let Some((_, slot, _)) = self.due.front().filter(|(due, _, _)| *due <= now) {
            self.give(*slot, out);
        }
    }

    pub(super) fn next_due(&self) -> Option<BootTime> {
        self.due.front().map(|(due, _, _)| *due)
    }
}

/// Whether a copy names a gateway that is not named yet, and there is room for it.
pub(super) fn is_further(copy: &Reception, best: GatewayEui, others: &[Reception]) -> bool {
    let is_named = best == copy.gateway || others.iter().any(|other| other.gateway == copy.gateway);
    !is_named && others.len() + 1 < RECEPTIONS_MAX
}

impl Uplink {
    /// Adds a copy's metadata; the best reception stands in front.
    fn add(&mut self, copy: Reception) {
        if !is_further(&copy, self.gateway, &self.others) {
            return;
        }
        if is_better(&copy.rx, &self.rx) {
            self.others.push(Reception { gateway: self.gateway, rx: self.rx });
            (self.gateway, self.rx) = (copy.gateway, copy.rx);
        } else {
            self.others.push(copy);
        }
    }
}
