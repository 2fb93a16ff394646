//! Frames of devices that join, of a session that is not known here: it began at another node, and its record is under way or has to be
//! fetched. They wait, in memory and on this node's disk, and are heard once the session is known.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use contracts::account::FrameDigest;
use contracts::ids::{DevAddr, DevEui, EventId, GroupId, SessionId};
use contracts::time::{BootTime, Millis};

use super::Bridge;
use super::hearing::{Hearer, Hearing};
use super::io::{Now, OfferedFrame, Output};
use crate::mac::uplink::{self, Error};

/// Addresses whose frames may wait.
const ADDRESSES_MAX: usize = 1_024;
/// Frames of one of them that may wait; the oldest goes first.
const FRAMES_MAX: usize = 16;
/// Receptions of one of them that are kept, by as many gateways.
const COPIES_MAX: usize = 4;
/// So long a frame waits at the most: the other members may be out of reach for hours.
const WAIT_MAX: Millis = Millis::from_secs(24 * 3_600);
/// While this node serves it knows all sessions, and what waits is most likely a neighbour's: of an address one frame is stored so often. The
/// others are when custody ends.
const STORE_EVERY: Millis = Millis::from_secs(60);
/// Who has the record is asked for it so often.
const ASK_EVERY: Millis = Millis::from_secs(5);

/// A frame and how it was heard, with its name.
#[derive(Debug, Clone)]
struct Frame {
    phy: Bytes,
    name: EventId,
    hearing: Hearing,
}

impl Frame {
    /// To the disk.
    fn await_output(&self, group: GroupId, dev_addr: DevAddr) -> Output {
        let Hearing { gateway, rx, heard_at, .. } = self.hearing;
        let frame = OfferedFrame { phy: self.phy.clone(), gateway, rx, heard_at };
        Output::Await { group, event: self.name, dev_addr, frame }
    }
}

/// Frames of one address, each as often as it was heard.
#[derive(Debug)]
struct Waiting {
    group: GroupId,
    frames: VecDeque<Frame>,
    /// When a frame was last given to the disk.
    stored: Option<BootTime>,
}

impl Waiting {
    fn has(&self, name: EventId) -> bool {
        self.copies(name) > 0
    }

    fn copies(&self, name: EventId) -> usize {
        self.frames.iter().filter(|frame| frame.name == name).count()
    }

    /// Takes the oldest frame out, with its copies, if there are as many as may be.
    fn make_room(&mut self) -> Option<EventId> {
        let names: BTreeSet<_> = self.frames.iter().map(|frame| frame.name).collect();
        let oldest = self.frames.front()?.name;
        (names.len() >= FRAMES_MAX).then(|| {
            self.frames.retain(|frame| frame.name != oldest);
            oldest
        })
    }
}

/// All that wait for a session.
#[derive(Debug, Default)]
pub(super) struct Unknown {
    /// Addresses of devices that join.
    addresses: BTreeMap<DevAddr, GroupId>,
    waiting: BTreeMap<DevAddr, Waiting>,
    asked: BTreeMap<GroupId, BootTime>,
    /// Verified at last, and on their way to the disk as what they are.
    in_flight: BTreeMap<EventId, Frame>,
    /// The disk did not take those, or there was no room; they are heard once more.
    failed: Vec<Frame>,
    /// Names that nobody needs any more.
    forgotten: Vec<EventId>,
    /// Names of those that are in memory only.
    unstored: BTreeSet<EventId>,
}

impl Unknown {
    /// A device that joins is given this address.
    pub(super) fn note_address(&mut self, address: DevAddr, group: GroupId) {
        self.addresses.insert(address, group);
    }

    pub(super) fn forget(&mut self, group: GroupId) {
        self.addresses.retain(|_, of| *of != group);
        let waiting: Vec<_> = self.waiting.extract_if(.., |_, waiting| waiting.group == group).collect();
        for (_, waiting) in waiting {
            let mut names = BTreeSet::new();
            waiting.frames.iter().filter(|frame| names.insert(frame.name)).for_each(|frame| self.forget_name(frame.name));
        }
        self.asked.remove(&group);
    }

    pub(super) fn take_forgotten(&mut self) -> Vec<EventId> {
        std::mem::take(&mut self.forgotten)
    }

    /// What is in memory only need not be forgotten by the disk.
    fn forget_name(&mut self, name: EventId) {
        if !self.unstored.remove(&name) {
            self.forgotten.push(name);
        }
    }

    /// Whether it waits, or is on its way to the disk.
    fn knows(&self, address: DevAddr, name: EventId) -> bool {
        self.in_flight.contains_key(&name) || self.waiting.get(&address).is_some_and(|waiting| waiting.has(name))
    }

    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.waiting.values().map(|waiting| waiting.frames.len()).sum::<usize>() + self.failed.len()
    }

    pub(super) fn has_failed(&self) -> bool {
        !self.failed.is_empty()
    }

    pub(super) fn note_in_flight(&mut self, phy: &[u8], hearing: Hearing) {
        if let Some(name) = hearing.awaited {
            self.in_flight.insert(name, Frame { phy: Bytes::copy_from_slice(phy), name, hearing });
        }
    }

    pub(super) fn note_committed(&mut self, name: Option<EventId>) {
        if let Some(landed) = name.and_then(|name| self.in_flight.remove(&name)) {
            self.forget_name(landed.name);
        }
    }

    pub(super) fn note_failed(&mut self, name: Option<EventId>) {
        self.failed.extend(name.and_then(|name| self.in_flight.remove(&name)));
    }
}

/// The name of a frame whose device and counter are not known for certain: the same bytes have the same name.
fn name(phy: &[u8], address: DevAddr) -> EventId {
    let device = DevEui::from_u64(u64::from(address.to_u32()));
    EventId::new(device, SessionId::from_bytes(FrameDigest::of(phy).0), 0)
}

impl Bridge {
    /// Keeps a frame that no session verifies, if it may be of one that is not known here. Whoever serves knows all of them and asks nobody; but
    /// a process that stood still does not know yet that it serves no more. False: it is to be dropped.
    pub(super) fn await_session(&mut self, phy: &[u8], error: Error, hearing: Hearing, now: Now, out: &mut Vec<Output>) -> bool {
        let may_be_unknown = match error {
            Error::UnknownAddress | Error::IntegrityCode | Error::OldCounter | Error::CounterGap => true,
            Error::Malformed | Error::Downlink | Error::Join | Error::Proprietary | Error::TrialsExhausted => false,
        };
        let Some(address) = uplink::header(phy).ok().filter(|_| may_be_unknown).map(|header| header.dev_addr) else {
            return false;
        };
        let Some(group) = self.unknown.addresses.get(&address).copied() else { return false };
        let is_serving = self.groups.get(&group).is_some_and(|group| group.mode.epoch().is_some());
        let has_room = self.unknown.waiting.contains_key(&address) || self.unknown.waiting.len() < ADDRESSES_MAX;
        if !has_room {
            return false;
        }
        let name = name(phy, address);
        let waiting =
            self.unknown.waiting.entry(address).or_insert_with(|| Waiting { group, frames: VecDeque::new(), stored: None });
        let (copies, mut pushed_out) = (waiting.copies(name), false);
        if copies >= COPIES_MAX {
            return true;
        }
        if copies == 0
            && let Some(oldest) = waiting.make_room()
        {
            if !self.unknown.unstored.remove(&oldest) {
                self.unknown.forgotten.push(oldest);
            }
            pushed_out = true;
        }
        let is_new = hearing.awaited.is_none() && copies == 0;
        let frame = Frame { phy: Bytes::copy_from_slice(phy), name, hearing: Hearing { awaited: Some(name), ..hearing } };
        if is_new && is_serving && waiting.stored.is_some_and(|at| now.boot.since(at) < STORE_EVERY) {
            self.unknown.unstored.insert(name);
        } else if is_new {
            waiting.stored = Some(now.boot);
            out.push(frame.await_output(group, address));
        }
        waiting.frames.push_back(frame);
        if pushed_out {
            self.frame_fault(error, hearing.gateway);
        }
        let is_due = !is_serving && self.unknown.asked.get(&group).is_none_or(|asked| now.boot.since(*asked) >= ASK_EVERY);
        if is_due {
            self.unknown.asked.insert(group, now.boot);
            out.push(Output::RecordsMissing { group });
        }
        true
    }

    /// Custody ends, and with it the certainty that every session is known: what is in memory only goes to the disk.
    pub(super) fn store_awaited(&mut self, group: GroupId, now: Now, out: &mut Vec<Output>) {
        for (address, waiting) in self.unknown.waiting.iter_mut().filter(|(_, waiting)| waiting.group == group) {
            for frame in &waiting.frames {
                if self.unknown.unstored.remove(&frame.name) {
                    waiting.stored = Some(now.boot);
                    out.push(frame.await_output(group, *address));
                }
            }
        }
    }

    /// A device has a session that was not known: what waited may be of it.
    pub(super) fn hear_awaited(&mut self, address: DevAddr, now: Now, out: &mut Vec<Output>) {
        let Some(waiting) = self.unknown.waiting.remove(&address) else { return };
        waiting.frames.into_iter().for_each(|frame| self.hear_once_more(address, &frame, now, out));
    }

    /// What an earlier process stored: it may be verified by now, or waits on.
    pub(super) fn restore_awaited(&mut self, frames: &[OfferedFrame], now: Now, out: &mut Vec<Output>) {
        for frame in frames {
            let Ok(address) = uplink::header(&frame.phy).map(|header| header.dev_addr) else { continue };
            let name = name(&frame.phy, address);
            if self.unknown.knows(address, name) {
                continue;
            }
            let hearing = Hearing { awaited: Some(name), ..Hearing::of(frame, Hearer::Earlier, now) };
            self.hear_once_more(address, &Frame { phy: frame.phy.clone(), name, hearing }, now, out);
        }
    }

    fn hear_once_more(&mut self, address: DevAddr, frame: &Frame, now: Now, out: &mut Vec<Output>) {
        if self.in_flight.len() >= self.config.in_flight_max {
            return self.unknown.failed.push(frame.clone());
        }
        self.hear(&frame.phy, frame.hearing, now, out);
        if !self.unknown.knows(address, frame.name) {
            self.unknown.forget_name(frame.name);
        }
    }

    /// Hears again what the disk did not take, and gives up what waited too long.
    pub(super) fn sweep_awaited(&mut self, now: Now, out: &mut Vec<Output>) {
        for frame in std::mem::take(&mut self.unknown.failed) {
            let Ok(header) = uplink::header(&frame.phy) else { continue };
            self.hear_once_more(header.dev_addr, &frame, now, out);
        }
        let (stats, forgotten, unstored) = (&mut self.stats, &mut self.unknown.forgotten, &mut self.unknown.unstored);
        self.unknown.waiting.retain(|_, waiting| {
            while let Some(old) = waiting.frames.pop_front_if(|old| now.boot.since(old.hearing.heard) >= WAIT_MAX) {
                stats.drop(Error::IntegrityCode);
                if !waiting.has(old.name) && !unstored.remove(&old.name) {
                    forgotten.push(old.name);
                }
            }
            !waiting.frames.is_empty()
        });
    }
}
