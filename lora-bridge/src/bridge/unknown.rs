//! Frames of devices that join, of a session that is not known here: it began at another node, and its record is under way or has to be
//! fetched. They wait, and are heard once the session is known.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use contracts::ids::{DevAddr, GroupId};
use contracts::time::{BootTime, Millis};

use super::Bridge;
use super::hearing::Hearing;
use super::io::{Now, Output};
use crate::mac::uplink::{self, Error};

/// Addresses whose frames may wait.
const ADDRESSES_MAX: usize = 1_024;
/// Frames of one of them that may wait; the oldest goes first.
const FRAMES_MAX: usize = 16;
/// So long a frame waits at the most.
const WAIT_MAX: Millis = Millis::from_secs(600);
/// Who has the record is asked for it so often.
const ASK_EVERY: Millis = Millis::from_secs(5);

/// Frames of one address.
#[derive(Debug)]
struct Waiting {
    group: GroupId,
    frames: VecDeque<(Bytes, Hearing)>,
}

/// All that wait for a session.
#[derive(Debug, Default)]
pub(super) struct Unknown {
    /// Addresses of devices that join.
    addresses: BTreeMap<DevAddr, GroupId>,
    waiting: BTreeMap<DevAddr, Waiting>,
    asked: BTreeMap<GroupId, BootTime>,
}

impl Unknown {
    /// A device that joins is given this address.
    pub(super) fn note_address(&mut self, address: DevAddr, group: GroupId) {
        self.addresses.insert(address, group);
    }

    pub(super) fn forget(&mut self, group: GroupId) {
        self.addresses.retain(|_, of| *of != group);
        self.waiting.retain(|_, waiting| waiting.group != group);
        self.asked.remove(&group);
    }
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
        let waiting = self.unknown.waiting.entry(address).or_insert_with(|| Waiting { group, frames: VecDeque::new() });
        if waiting.frames.len() >= FRAMES_MAX {
            waiting.frames.pop_front();
            self.stats.drop(error);
        }
        waiting.frames.push_back((Bytes::copy_from_slice(phy), hearing));
        let is_due = !is_serving && self.unknown.asked.get(&group).is_none_or(|asked| now.boot.since(*asked) >= ASK_EVERY);
        if is_due {
            self.unknown.asked.insert(group, now.boot);
            out.push(Output::RecordsMissing { group });
        }
        true
    }

    /// A device has a session that was not known: what waited may be of it.
    pub(super) fn hear_awaited(&mut self, address: DevAddr, now: Now, out: &mut Vec<Output>) {
        let Some(waiting) = self.unknown.waiting.remove(&address) else { return };
        for (phy, hearing) in waiting.frames {
            self.hear(&phy, hearing, now, out);
        }
    }

    /// Gives up what waited too long.
    pub(super) fn sweep_awaited(&mut self, now: Now) {
        let stats = &mut self.stats;
        self.unknown.waiting.retain(|_, waiting| {
            let before = waiting.frames.len();
            waiting.frames.retain(|(_, hearing)| now.boot.since(hearing.heard()) < WAIT_MAX);
            (waiting.frames.len()..before).for_each(|_| stats.drop(Error::IntegrityCode));
            !waiting.frames.is_empty()
        });
    }
}
