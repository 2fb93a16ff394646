//! Where what the bridge says of a group goes: progress and offers to the other party, reservations to the members.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use contracts::ids::{DevAddr, DevEui, Epoch, GroupId, SessionId};
use lora_bridge::bridge::io::{OfferedFrame, Reset};
use lora_bridge::mac::session::{Mark, Session, SessionState};
use tokio::sync::{mpsc, oneshot, watch};

use super::downlinks::Downlinks;
use crate::insurance::records::Wanted;

/// What waits for a group's sender at most; beyond it progress is sent as whole session states, and offers are made again by the bridge.
const WAITING_MAX: usize = 4_096;

/// Something for the other party or the members.
#[derive(Debug)]
pub enum Outgoing {
    Served(Vec<Mark>),
    Settled(Vec<Mark>),
    Offer(OfferedFrame),
    State(Box<SessionState>),
    /// Says when everything before it has been told.
    Flush(oneshot::Sender<()>),
}

/// Something to be written ahead.
#[derive(Debug)]
pub enum Wish {
    /// Downlink counters below the given ones.
    Counters(Vec<(DevEui, u32)>),
    /// A device began its counters anew.
    Reset(Reset),
}

/// The ends of a group's link that its guard takes.
#[derive(Debug)]
pub struct LinkEnds {
    pub outgoing: mpsc::Receiver<Outgoing>,
    pub reserve: mpsc::UnboundedReceiver<Wish>,
    /// Bounded by the bridge: one join of a device at a time.
    pub records: mpsc::UnboundedReceiver<Wanted>,
    /// Changes when records of joins are missing here.
    pub missing: watch::Receiver<u64>,
    /// Frames given out by the replay of a takeover that ended.
    pub replayed: watch::Receiver<Option<u64>>,
}

#[derive(Debug)]
struct Link {
    epoch: Epoch,
    devices: BTreeMap<DevEui, (DevAddr, SessionId)>,
    records: mpsc::UnboundedSender<Wanted>,
    missing: watch::Sender<u64>,
    outgoing: mpsc::Sender<Outgoing>,
    /// Bounded by the bridge: it asks again only for what was not granted.
    reserve: mpsc::UnboundedSender<Wish>,
    replayed: watch::Sender<Option<u64>>,
    /// Every frame goes to the other party as it is heard.
    mirrors: bool,
    /// Something could not be queued: whole states are due.
    overflowed: bool,
    /// This node is the insurer: it answers for what it hears.
    is_insurer: bool,
}

/// All groups' links; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Links {
    groups: Arc<RwLock<BTreeMap<GroupId, Link>>>,
    downlinks: Downlinks,
}

impl Links {
    /// What tenants are told about their downlinks.
    #[must_use]
    pub const fn downlinks(&self) -> &Downlinks {
        &self.downlinks
    }

    /// Opens the link of a group; an earlier one of the same group is closed.
    #[must_use]
    pub fn open(&self, group: GroupId, sessions: &[Session]) -> LinkEnds {
        let (outgoing, outgoing_taken) = mpsc::channel(WAITING_MAX);
        let (reserve, reserve_taken) = mpsc::unbounded_channel();
        let (records, records_taken) = mpsc::unbounded_channel();
        let (replayed, missing) = (watch::Sender::new(None), watch::Sender::new(0));
        let ends = LinkEnds {
            outgoing: outgoing_taken,
            reserve: reserve_taken,
            records: records_taken,
            missing: missing.subscribe(),
            replayed: replayed.subscribe(),
        };
        let devices = sessions.iter().map(|s| (s.device, (s.dev_addr, s.id()))).collect();
        let mut links = self.groups.write().unwrap_or_else(PoisonError::into_inner);
        let epoch = links.get(&group).map_or(Epoch(0), |known| known.epoch);
        let (mirrors, overflowed, is_insurer) = (false, false, false);
        let link = Link { epoch, devices, records, missing, outgoing, reserve, replayed, mirrors, overflowed, is_insurer };
        links.insert(group, link);
        ends
    }

    /// The contract's `mirror` clause.
    pub fn set_mirror(&self, group: GroupId, mirrors: bool) {
        if let Some(link) = self.groups.write().unwrap_or_else(PoisonError::into_inner).get_mut(&group) {
            link.mirrors = mirrors;
        }
    }

    pub(super) fn mirrors(&self, group: GroupId) -> bool {
        self.groups.read().unwrap_or_else(PoisonError::into_inner).get(&group).is_some_and(|link| link.mirrors)
    }

    pub fn close(&self, group: GroupId) {
        self.groups.write().unwrap_or_else(PoisonError::into_inner).remove(&group);
    }

    /// This node answers for what it hears of the group, until the link is opened anew.
    pub fn set_insurer(&self, group: GroupId) {
        if let Some(link) = self.groups.write().unwrap_or_else(PoisonError::into_inner).get_mut(&group) {
            link.is_insurer = true;
        }
    }

    pub(super) fn is_insurer(&self, group: GroupId) -> bool {
        self.groups.read().unwrap_or_else(PoisonError::into_inner).get(&group).is_some_and(|link| link.is_insurer)
    }

    pub fn set_epoch(&self, group: GroupId, epoch: Epoch) {
        if let Some(link) = self.groups.write().unwrap_or_else(PoisonError::into_inner).get_mut(&group) {
            link.epoch = epoch;
        }
    }

    /// The session of a device.
    #[must_use]
    pub fn session(&self, group: GroupId, device: DevEui) -> Option<SessionId> {
        let links = self.groups.read().unwrap_or_else(PoisonError::into_inner);
        links.get(&group).and_then(|link| link.devices.get(&device)).map(|(_, session)| *session)
    }

    /// A device has a new session.
    pub fn set_joined_session(&self, group: GroupId, device: DevEui, dev_addr: DevAddr, session: SessionId) {
        let mut links = self.groups.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(link) = links.get_mut(&group) {
            link.devices.insert(device, (dev_addr, session));
        }
    }

    pub(super) fn records_missing(&self, group: GroupId) {
        let links = self.groups.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(link) = links.get(&group) {
            link.missing.send_modify(|count| *count += 1);
        }
    }

    pub(super) fn record(&self, group: GroupId, wanted: Wanted) {
        let links = self.groups.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(link) = links.get(&group) {
            let _closed = link.records.send(wanted);
        }
    }

    pub(super) fn epoch(&self, group: GroupId) -> Epoch {
        self.groups.read().unwrap_or_else(PoisonError::into_inner).get(&group).map_or(Epoch(0), |link| link.epoch)
    }

    /// The address of a device, if its session is known.
    pub(crate) fn dev_addr(&self, group: GroupId, device: DevEui) -> Option<DevAddr> {
        let links = self.groups.read().unwrap_or_else(PoisonError::into_inner);
        links.get(&group).and_then(|link| link.devices.get(&device)).map(|(address, _)| *address)
    }

    /// Whether something was dropped since the last call.
    #[must_use]
    pub fn take_overflow(&self, group: GroupId) -> bool {
        let mut links = self.groups.write().unwrap_or_else(PoisonError::into_inner);
        links.get_mut(&group).is_some_and(|link| std::mem::take(&mut link.overflowed))
    }

    fn send(&self, group: GroupId, outgoing: Outgoing) {
        let mut links = self.groups.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(link) = links.get_mut(&group)
            && link.outgoing.try_send(outgoing).is_err()
        {
            link.overflowed = true;
        }
    }

    pub(super) fn served(&self, group: GroupId, marks: Vec<Mark>) {
        self.send(group, Outgoing::Served(marks));
    }

    pub fn settled(&self, group: GroupId, marks: Vec<Mark>) {
        self.send(group, Outgoing::Settled(marks));
    }

    /// Returns when the other party was told everything that was said before; false if it could not be told.
    pub async fn flush(&self, group: GroupId) -> bool {
        let (told, wait) = oneshot::channel();
        self.send(group, Outgoing::Flush(told));
        wait.await.is_ok()
    }

    pub(super) fn offer(&self, group: GroupId, frame: OfferedFrame) {
        self.send(group, Outgoing::Offer(frame));
    }

    pub(super) fn state(&self, group: GroupId, state: Box<SessionState>) {
        self.send(group, Outgoing::State(state));
    }

    pub(super) fn reserve(&self, group: GroupId, wish: Wish) {
        let links = self.groups.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(link) = links.get(&group) {
            let _closed = link.reserve.send(wish);
        }
    }

    /// The device's session is another one from now on.
    pub(super) fn set_session(&self, group: GroupId, device: DevEui, session: SessionId) {
        let mut links = self.groups.write().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, known)) = links.get_mut(&group).and_then(|link| link.devices.get_mut(&device)) {
            *known = session;
        }
    }

    pub(super) fn replayed(&self, group: GroupId, frames: u64) {
        let links = self.groups.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(link) = links.get(&group) {
            link.replayed.send_replace(Some(frames));
        }
    }
}
