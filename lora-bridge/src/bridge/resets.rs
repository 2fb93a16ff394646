//! Devices that keep their counters in memory and begin at 0 again: the holder decides so, the decision is written ahead, and only then
//! their frames are uplinks, of a new session.

use std::collections::BTreeMap;

use bytes::Bytes;
use contracts::ids::{DevEui, GroupId, SessionId};
use contracts::time::{BootTime, Millis};

use super::hearing::Hearing;
use super::io::{Now, Output, Reset};
use super::{Bridge, RESERVE_RETRY};
use crate::mac::registry::SlotIndex;
use crate::stats::DropReason;

/// Devices that may wait for the decision.
const DEVICES_MAX: usize = 1_024;
/// Frames of one of them that may wait.
const FRAMES_MAX: usize = 16;
/// A record may name a session that is so many lives ahead of what this node knows.
const LIVES_AHEAD_MAX: u32 = 64;
/// So long a frame waits for the decision, e.g. for a node that gains custody.
const UNDECIDED_MAX: Millis = Millis::from_secs(600);

/// Frames of a device's new life.
#[derive(Debug)]
struct NewLife {
    group: GroupId,
    reset_ordinal: u32,
    since: BootTime,
    asked: Option<BootTime>,
    frames: Vec<(Bytes, Hearing)>,
}

/// All that wait for a decision.
#[derive(Debug, Default)]
pub(super) struct Resets(BTreeMap<DevEui, NewLife>);

impl Resets {
    pub(super) fn next_due(&self) -> Option<BootTime> {
        self.0.values().map(|life| life.asked.map_or(life.since + UNDECIDED_MAX, |asked| asked + RESERVE_RETRY)).min()
    }
}

impl Bridge {
    /// A frame whose counter says that its device began anew.
    pub(super) fn hear_reset(&mut self, slot: SlotIndex, phy: &[u8], hearing: Hearing, now: Now, out: &mut Vec<Output>) {
        let Some(entry) = self.registry.get(slot) else { return };
        let (device, group, reset_ordinal) = (entry.device, entry.group, entry.reset_ordinal.saturating_add(1));
        if !self.resets.0.contains_key(&device) && self.resets.0.len() >= DEVICES_MAX {
            return self.frame_fault(DropReason::ResetsFull, hearing.gateway);
        }
        let new = || NewLife { group, reset_ordinal, since: now.boot, asked: None, frames: Vec::new() };
        let life = self.resets.0.entry(device).or_insert_with(new);
        if life.frames.len() >= FRAMES_MAX {
            return self.frame_fault(DropReason::ResetsFull, hearing.gateway);
        }
        life.frames.push((Bytes::copy_from_slice(phy), hearing));
        self.ask_resets(now, out);
    }

    /// Asks for the decisions that are this node's to take, once and again.
    pub(super) fn ask_resets(&mut self, now: Now, out: &mut Vec<Output>) {
        for (device, life) in &mut self.resets.0 {
            let is_holder = self.groups.get(&life.group).is_some_and(|group| group.mode.epoch().is_some());
            let is_due = life.asked.is_none_or(|asked| now.boot.since(asked) >= RESERVE_RETRY);
            if is_holder && is_due {
                life.asked = Some(now.boot);
                let Some(entry) = self.registry.slot_of(*device).and_then(|slot| self.registry.get(slot)) else { continue };
                out.push(Output::ResetWanted(Reset {
                    group: life.group,
                    device: *device,
                    reset_ordinal: life.reset_ordinal,
                    session: entry.session_at(life.reset_ordinal),
                    f_cnt_down_reserved: entry.down.reserved.max(entry.down.next),
                }));
            }
        }
    }

    /// Asks again, and gives up what nobody decides.
    pub(super) fn tick_resets(&mut self, now: Now, out: &mut Vec<Output>) {
        let stats = &mut self.stats;
        self.resets.0.retain(|_, life| {
            let is_kept = now.boot.since(life.since) < UNDECIDED_MAX;
            let lost = if is_kept { 0 } else { life.frames.len() };
            (0..lost).for_each(|_| stats.drop(DropReason::ResetUndecided));
            is_kept
        });
        self.ask_resets(now, out);
    }

    /// These devices began anew; that is written ahead.
    pub(super) fn reset(&mut self, entries: &[(DevEui, u32)], now: Now, out: &mut Vec<Output>) {
        for (device, reset_ordinal) in entries {
            let Some((slot, entry)) = self.registry.device_mut(*device) else {
                self.stats.unknown_names += 1;
                continue;
            };
            if entry.reset_ordinal < *reset_ordinal {
                entry.restart(*reset_ordinal);
                self.restarted(slot, now, out);
            }
        }
    }

    /// Sessions that another member wrote ahead: later lives of known devices begin here too.
    pub(super) fn follow(&mut self, sessions: &[(DevEui, SessionId)], now: Now, out: &mut Vec<Output>) {
        for (device, session) in sessions {
            let Some((slot, entry)) = self.registry.device_mut(*device) else {
                self.stats.unknown_names += 1;
                continue;
            };
            if entry.session == *session {
                continue;
            }
            let next = entry.reset_ordinal.saturating_add(1);
            let later = (next..=next.saturating_add(LIVES_AHEAD_MAX)).find(|ordinal| entry.session_at(*ordinal) == *session);
            if let Some(reset_ordinal) = later {
                entry.restart(reset_ordinal);
                self.restarted(slot, now, out);
            }
        }
    }

    /// A session began: what waited of the old one goes on as it is, what waited for the new one is heard.
    pub(super) fn restarted(&mut self, slot: SlotIndex, now: Now, out: &mut Vec<Output>) {
        self.stats.resets += 1;
        self.collecting.give(slot, out);
        self.pending.remove(&slot);
        let region = self.region();
        let Some(entry) = self.registry.get_mut(slot) else { return };
        entry.restart_link(region);
        let device = entry.device;
        out.push(Output::SessionChanged { group: entry.group, device, session: entry.session });
        let Some(life) = self.resets.0.remove(&device) else { return };
        for (phy, hearing) in life.frames {
            self.hear(&phy, hearing, now, out);
        }
    }

    pub(super) fn forget_resets(&mut self, group: GroupId) {
        self.resets.0.retain(|_, life| life.group != group);
    }
}
