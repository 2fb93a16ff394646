//! Frames heard for others: what a standby node keeps, offers to the node that serves, and replays when it takes over.
//!
//! Bounded in frames, bytes and age. At the bound frames that the other node has served go first, then the oldest; what goes unserved is
//! counted as lost.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bytes::Bytes;
use contracts::ids::{EventId, GroupId};
use contracts::time::{BootTime, Millis, WallTime};

use crate::bridge::io::Reception;
use crate::gwmp::GatewayEui;
use crate::gwmp::rxpk::RxMeta;
use crate::mac::downlink::Wants;
use crate::mac::session::{Joined, Mark};

/// Limits of the buffer, over all groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    pub frames_max: usize,
    /// Bytes of memory, bookkeeping included ([`FRAME_OVERHEAD_BYTES`] per frame).
    pub bytes_max: usize,
    pub age_max: Millis,
}

impl Default for Limits {
    fn default() -> Self {
        Self { frames_max: 65_536, bytes_max: 32 * 1024 * 1024, age_max: Millis::from_secs(24 * 3_600) }
    }
}

/// What a buffered frame costs beside its own bytes, estimated from the sizes of its entries in four maps.
pub const FRAME_OVERHEAD_BYTES: usize = 400;

/// One uplink, with its newest transmission.
#[derive(Debug, Clone)]
pub(crate) struct Held {
    pub group: GroupId,
    pub mark: Mark,
    /// The join that its session comes from.
    pub joined: Option<Joined>,
    pub event: EventId,
    pub phy: Bytes,
    pub wants: Wants,
    pub gateway: GatewayEui,
    pub rx: RxMeta,
    pub heard_at: WallTime,
    pub heard: BootTime,
    /// The other gateways that heard its newest transmission.
    pub others: Vec<Reception>,
    /// The node that serves owes the answer: it served the newest transmission.
    pub is_answered: bool,
    /// Offered by a peer: it knows the frame, and its gateway is not ours.
    pub is_offered: bool,
}

#[derive(Debug)]
struct Entry {
    held: Held,
    is_served: bool,
    /// Handed to the owner, not yet on disk.
    is_in_flight: bool,
    offer: Option<Offer>,
}

#[derive(Debug, Clone, Copy)]
struct Offer {
    due: BootTime,
    attempts: u8,
}

/// Counted by the buffer itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Thrown away though no other node is known to have them.
    pub lost: u64,
    /// Thrown away after the other node served them.
    pub evicted_served: u64,
}

/// Frames by age, found by event.
#[derive(Debug)]
pub(crate) struct Buffer {
    limits: Limits,
    entries: BTreeMap<u64, Entry>,
    by_event: HashMap<EventId, u64>,
    served: BTreeSet<u64>,
    offers: BTreeSet<(BootTime, u64)>,
    next: u64,
    bytes: usize,
    /// Gone for good, and not to the owner as uplinks: no copy of them is needed any more.
    forgotten: Vec<EventId>,
    pub counts: Counts,
}

/// Backoff between offers of the same frame: 250 ms, doubled up to 30 s.
fn offer_backoff(attempts: u8) -> Millis {
    Millis((250_u64 << attempts.min(7)).min(30_000))
}

fn cost(held: &Held) -> usize {
    held.phy.len() + FRAME_OVERHEAD_BYTES + held.others.len() * size_of::<Reception>()
}

impl Buffer {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            entries: BTreeMap::new(),
            by_event: HashMap::new(),
            served: BTreeSet::new(),
            offers: BTreeSet::new(),
            next: 0,
            bytes: 0,
            forgotten: Vec::new(),
            counts: Counts::default(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Changes a frame, if it is here.
    pub(crate) fn update<R>(&mut self, event: &EventId, change: impl FnOnce(&mut Held) -> R) -> Option<R> {
        let held = &mut self.entries.get_mut(self.by_event.get(event)?)?.held;
        self.bytes -= cost(held);
        let result = change(held);
        self.bytes += cost(held);
        Some(result)
    }

    pub(crate) fn contains(&self, event: &EventId) -> bool {
        self.by_event.contains_key(event)
    }

    /// Keeps a frame; `offer_at` is when the node that serves should have named it. `false`: there is no room at all.
    pub(crate) fn insert(&mut self, held: Held, is_served: bool, offer_at: Option<BootTime>) -> bool {
        let bytes = cost(&held);
        while self.len() >= self.limits.frames_max || (self.bytes + bytes > self.limits.bytes_max && self.len() > 0) {
            self.evict();
        }
        if self.limits.frames_max == 0 || bytes > self.limits.bytes_max {
            self.counts.lost += 1;
            return false;
        }
        let key = self.next;
        self.next += 1;
        self.bytes += bytes;
        self.by_event.insert(held.event, key);
        if is_served {
            self.served.insert(key);
        }
        let offer = offer_at.filter(|_| !is_served).map(|due| Offer { due, attempts: 0 });
        if let Some(offer) = offer {
            self.offers.insert((offer.due, key));
        }
        self.entries.insert(key, Entry { held, is_served, is_in_flight: false, offer });
        true
    }

    fn evict(&mut self) {
        let oldest = self.served.first().or_else(|| self.entries.first_key_value().map(|(key, _)| key)).copied();
        if let Some(key) = oldest {
            self.lose(key);
        }
    }

    fn lose(&mut self, key: u64) {
        let taken = self.take(key);
        self.forgotten.extend(taken.as_ref().map(|entry| entry.held.event));
        match taken {
            Some(entry) if entry.is_served => self.counts.evicted_served += 1,
            Some(entry) if entry.is_in_flight => {}
            Some(_) => self.counts.lost += 1,
            None => {}
        }
    }

    fn take(&mut self, key: u64) -> Option<Entry> {
        let entry = self.entries.remove(&key)?;
        self.bytes -= cost(&entry.held);
        self.by_event.remove(&entry.held.event);
        self.served.remove(&key);
        if let Some(offer) = entry.offer {
            self.offers.remove(&(offer.due, key));
        }
        Some(entry)
    }

    /// The node that serves has it on disk: no more offers, first to go at the bound.
    pub(crate) fn note_served(&mut self, event: &EventId) {
        let Some((key, entry)) = self.by_event.get(event).and_then(|key| self.entries.get_mut(key).map(|entry| (*key, entry)))
        else {
            return;
        };
        entry.is_served = true;
        entry.held.is_answered = true;
        if let Some(offer) = entry.offer.take() {
            self.offers.remove(&(offer.due, key));
        }
        self.served.insert(key);
    }

    /// It is on the owner's disk as an uplink.
    pub(crate) fn remove(&mut self, event: &EventId) -> bool {
        let key = self.by_event.get(event).copied();
        key.and_then(|key| self.take(key)).is_some()
    }

    /// Nobody needs it any more.
    pub(crate) fn discard(&mut self, event: &EventId) {
        if self.remove(event) {
            self.forgotten.push(*event);
        }
    }

    /// What was thrown away since the last call.
    pub(crate) fn take_forgotten(&mut self) -> Vec<EventId> {
        std::mem::take(&mut self.forgotten)
    }

    /// Names all frames of a group, e.g. to look them up in states that came from the other node.
    pub(crate) fn marks(&self, group: GroupId) -> Vec<Mark> {
        self.entries.values().filter(|entry| entry.held.group == group).map(|entry| entry.held.mark).collect()
    }

    pub(crate) fn remove_group(&mut self, group: GroupId) {
        let keys: Vec<u64> = self.entries.iter().filter(|(_, entry)| entry.held.group == group).map(|(key, _)| *key).collect();
        for key in keys {
            let taken = self.take(key);
            self.forgotten.extend(taken.map(|entry| entry.held.event));
        }
    }

    /// The next offer that is due; its successor is scheduled.
    pub(crate) fn pop_offer(&mut self, now: BootTime) -> Option<&Held> {
        let (due, key) = *self.offers.first().filter(|(due, _)| *due <= now)?;
        self.offers.remove(&(due, key));
        let entry = self.entries.get_mut(&key)?;
        let attempts = entry.offer.map_or(0, |offer| offer.attempts);
        let next = Offer { due: now + offer_backoff(attempts), attempts: attempts.saturating_add(1) };
        entry.offer = Some(next);
        self.offers.insert((next.due, key));
        Some(&entry.held)
    }

    pub(crate) fn next_offer(&self) -> Option<BootTime> {
        self.offers.first().map(|(due, _)| *due)
    }

    /// Custody of a group changed: a standby node offers what is unserved, a node that serves offers nothing.
    pub(crate) fn set_offering(&mut self, group: GroupId, from: Option<BootTime>) {
        for (key, entry) in self.entries.iter_mut().filter(|(_, entry)| entry.held.group == group) {
            if let Some(offer) = entry.offer.take() {
                self.offers.remove(&(offer.due, *key));
            }
            if let Some(due) = from.filter(|_| !entry.is_served && !entry.held.is_offered) {
                entry.offer = Some(Offer { due, attempts: 0 });
                self.offers.insert((due, *key));
            }
        }
    }

    /// The first frame of `group` at or behind `cursor` that is not on its way already; it is now. Also where to go on.
    pub(crate) fn next_replay(&mut self, group: GroupId, cursor: u64) -> Option<(u64, Held)> {
        let (key, entry) =
            self.entries.range_mut(cursor..).find(|(_, entry)| entry.held.group == group && !entry.is_in_flight)?;
        entry.is_in_flight = true;
        Some((*key + 1, entry.held.clone()))
    }

    /// Marks a frame as on its way to the owner by another route than the replay.
    pub(crate) fn set_in_flight(&mut self, event: &EventId) -> bool {
        let entry = self.by_event.get(event).and_then(|key| self.entries.get_mut(key));
        entry.map(|entry| entry.is_in_flight = true).is_some()
    }

    /// The owner could not store it: it waits again. Where the replay must begin anew.
    pub(crate) fn give_back(&mut self, event: &EventId) -> Option<(GroupId, u64)> {
        let key = *self.by_event.get(event)?;
        let entry = self.entries.get_mut(&key)?;
        entry.is_in_flight = false;
        Some((entry.held.group, key))
    }

    /// Throws away what is older than the limit.
    pub(crate) fn sweep(&mut self, now: BootTime) {
        while let Some((key, entry)) = self.entries.first_key_value() {
            if now.since(entry.held.heard) <= self.limits.age_max {
                return;
            }
            let key = *key;
            self.lose(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use contracts::ids::{DevEui, SessionId};

    use super::*;
    use crate::gwmp::data_rate::DataRate;

    const GROUP: GroupId = GroupId::from_bytes([1; 16]);

    fn held(f_cnt: u32, heard: u64) -> Held {
        let mark = Mark { device: DevEui::from_u64(1), session: SessionId::from_bytes([2; 8]), f_cnt };
        Held {
            group: GROUP,
            mark,
            joined: None,
            event: mark.event(),
            phy: Bytes::from(vec![0; 20]),
            wants: Wants::default(),
            gateway: GatewayEui(1),
            rx: RxMeta { tmst: None, frequency_hz: None, data_rate: DataRate::Other, rssi_dbm: None, snr_decibel_tenths: None },
            heard_at: WallTime(heard),
            heard: BootTime(heard),
            others: Vec::new(),
            is_answered: false,
            is_offered: false,
        }
    }

    fn buffer(frames_max: usize) -> Buffer {
        Buffer::new(Limits { frames_max, bytes_max: 1_000_000, age_max: Millis(10_000) })
    }

    #[test]
    fn at_the_bound_served_frames_go_first_then_the_oldest() {
        let mut buffer = buffer(3);
        for f_cnt in 0..3 {
            buffer.insert(held(f_cnt, 0), false, None);
        }
        buffer.note_served(&held(1, 0).event);
        buffer.insert(held(3, 0), false, None);
        assert_eq!(buffer.counts, Counts { lost: 0, evicted_served: 1 });
        buffer.insert(held(4, 0), false, None);
        assert_eq!(buffer.counts, Counts { lost: 1, evicted_served: 1 });
        let left: Vec<u32> = buffer.entries.values().map(|entry| entry.held.mark.f_cnt).collect();
        assert_eq!(left, [2, 3, 4]);
        buffer.sweep(BootTime(10_001));
        assert_eq!((buffer.len(), buffer.bytes(), buffer.counts.lost), (0, 0, 4));
        let mut tiny = Buffer::new(Limits { frames_max: 9, bytes_max: 2 * (20 + FRAME_OVERHEAD_BYTES), age_max: Millis(1) });
        for f_cnt in 0..3 {
            tiny.insert(held(f_cnt, 0), false, None);
        }
        assert_eq!((tiny.len(), tiny.counts.lost), (2, 1), "bounded in bytes too");
    }

    #[test]
    fn offers_are_repeated_with_backoff_until_served() {
        let mut buffer = buffer(10);
        buffer.insert(held(0, 0), false, Some(BootTime(60)));
        let mut times = Vec::new();
        for now in 0..3_000 {
            while buffer.pop_offer(BootTime(now)).is_some() {
                times.push(now);
            }
        }
        assert_eq!(times, [60, 310, 810, 1_810]);
        buffer.note_served(&held(0, 0).event);
        assert!(buffer.pop_offer(BootTime(1_000_000)).is_none());
        assert_eq!(buffer.next_offer(), None);
    }

    #[test]
    fn replay_goes_in_order_and_again_after_a_failure() {
        let mut buffer = buffer(10);
        for f_cnt in 0..4 {
            buffer.insert(held(f_cnt, 0), false, None);
        }
        let mut cursor = 0;
        let mut order = Vec::new();
        while let Some((next, frame)) = buffer.next_replay(GROUP, cursor) {
            cursor = next;
            order.push(frame.mark.f_cnt);
        }
        assert_eq!(order, [0, 1, 2, 3]);
        assert!(buffer.remove(&held(0, 0).event));
        assert_eq!(buffer.give_back(&held(2, 0).event), Some((GROUP, 2)));
        assert_eq!(buffer.next_replay(GROUP, 0).map(|(_, frame)| frame.mark.f_cnt), Some(2));
        assert!(buffer.next_replay(GROUP, 0).is_none());
    }
}
