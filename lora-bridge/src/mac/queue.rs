//! Downlinks that wait for their device: bounded, by priority, each sent under a counter for which its tenant encrypted it.
//!
//! | state | event | next |
//! |---|---|---|
//! | waiting | handed to a gateway | on air |
//! | on air | the gateway took it | unconfirmed: done, *sent*; confirmed: awaits, *sent* |
//! | on air | the gateway refused it | waiting |
//! | on air | the gateway says nothing | confirmed: awaits; at least once: waiting; else done, *failed unknown* |
//! | on air, awaits | a newer uplink acknowledges | done, *acked* |
//! | awaits | a newer uplink does not | waiting, after [`ATTEMPTS_MAX`] done, *failed not_acknowledged* |
//! | waiting | its turn, and too long for both windows | done, *failed too_long* |
//! | any but on air | its time is over | done, *expired* |
//! | on air, awaits | custody ends without a word from the device | at least once: waiting; else done, *failed unknown* |

use std::collections::VecDeque;

use bytes::Bytes;
use contracts::ids::{DevEui, SessionId};
use contracts::time::WallTime;
use serde::{Deserialize, Serialize};

use super::adr::Used;
use super::session::Joined;

/// Downlinks that wait for one device.
pub const ITEMS_MAX: usize = 16;
/// Ids of finished downlinks that are remembered per device, so that the same id again is the same downlink.
pub const DONE_MAX: usize = 16;
/// A confirmed downlink is sent at most so often.
pub const ATTEMPTS_MAX: u8 = 8;
/// Counters of one question for encryption, and how few may be left before the next one.
pub const RUN: u8 = 8;
const RUN_LOW: u32 = 3;
/// Longest id in bytes.
pub const ID_BYTES_MAX: usize = 64;
/// Longest payload in bytes.
pub const PAYLOAD_BYTES_MAX: usize = 242;

/// What a node failure does to a downlink that may have been sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Delivery {
    /// Rather lost than sent twice.
    #[default]
    AtMostOnce,
    /// Rather sent twice than lost: it is part of the session's state, and goes to the other node.
    AtLeastOnce,
}

/// A downlink as its tenant queued it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Downlink {
    /// Chosen by the tenant, unique for its device.
    pub id: String,
    pub f_port: u8,
    /// In a form that only the tenant reads.
    #[serde(with = "crate::bridge::io::base64_bytes")]
    pub payload: Bytes,
    pub confirmed: bool,
    pub delivery: Delivery,
    /// Higher goes first.
    pub priority: u8,
    pub expires_at: WallTime,
}

/// Why a downlink is not queued.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("the device is not registered here")]
    Unknown,
    #[error("{ITEMS_MAX} downlinks wait for the device")]
    Full,
    #[error("as many downlinks wait as the bridge may hold")]
    BridgeFull,
    #[error("the id is empty or too long, the port is not in 1..=223, or the payload is longer than {PAYLOAD_BYTES_MAX} bytes")]
    Form,
    #[error("its time is over")]
    Expired,
}

/// What became of a downlink.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// A gateway took it; final for an unconfirmed one.
    Sent {
        f_cnt: u32,
        gateway: crate::gwmp::GatewayEui,
    },
    /// The device acknowledged it.
    Acked {
        f_cnt: u32,
    },
    Expired,
    Failed(Failure),
}

/// Why a downlink was given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// It may have been sent, and nobody knows.
    Unknown,
    NotAcknowledged,
    /// It fitted neither receive window at the data rate that the device used when it was its turn.
    TooLong,
}

impl Failure {
    /// The word for tenants.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::NotAcknowledged => "not_acknowledged",
            Self::TooLong => "too_long",
        }
    }
}

/// A question to the tenant: to encrypt a payload for a run of counters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    pub id: String,
    pub f_port: u8,
    pub payload: Bytes,
    pub session: SessionId,
    pub joined: Option<Joined>,
    pub f_cnt_first: u32,
    pub count: u8,
}

/// The tenant's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encrypted {
    pub device: DevEui,
    pub id: String,
    pub session: SessionId,
    pub f_cnt_first: u32,
    pub payloads: Vec<Bytes>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Waiting,
    OnAir { f_cnt: u32, answered: u32 },
    Awaits { f_cnt: u32, answered: u32 },
}

#[derive(Debug, Clone)]
struct Item {
    downlink: Downlink,
    seq: u64,
    state: State,
    attempts: u8,
}

/// A payload for each counter of a run.
#[derive(Debug, Clone)]
struct Run {
    id: String,
    session: SessionId,
    first: u32,
    payloads: Vec<Bytes>,
}

/// What can be sent now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ready {
    pub f_port: u8,
    pub payload: Bytes,
    pub confirmed: bool,
    /// More waits behind it.
    pub more: bool,
}

/// Something that happened to a downlink, by its id.
pub(crate) type Report = (String, Outcome);

/// The downlinks of one device.
#[derive(Debug, Clone, Default)]
pub(crate) struct Queue {
    /// In the order in which they go.
    items: Vec<Item>,
    done: VecDeque<String>,
    run: Option<Run>,
    /// The newest question: id, session, first counter.
    asked: Option<(String, SessionId, u32)>,
    next_seq: u64,
}

impl Downlink {
    pub(crate) fn is_well_formed(&self) -> bool {
        (1..=ID_BYTES_MAX).contains(&self.id.len()) && (1..=223).contains(&self.f_port) && self.payload.len() <= PAYLOAD_BYTES_MAX
    }
}

impl Queue {
    pub(crate) fn len(&self) -> usize {
        self.items.len()
    }

    /// Nothing waits and nothing needs to be remembered.
    pub(crate) fn is_empty(&self) -> bool {
        self.items.is_empty() && self.done.is_empty()
    }

    /// Whether a downlink waits that may be sent with the next answer.
    pub(crate) fn is_waiting(&self) -> bool {
        self.items.first().is_some_and(|item| item.state == State::Waiting)
    }

    fn knows(&self, id: &str) -> bool {
        self.items.iter().any(|item| item.downlink.id == id) || self.done.iter().any(|done| done == id)
    }

    /// Queues a downlink; one with a known id is passed over (`Ok(false)`).
    pub(crate) fn push(&mut self, downlink: Downlink, now: WallTime) -> Result<bool, Refused> {
        if !downlink.is_well_formed() {
            return Err(Refused::Form);
        }
        if self.knows(&downlink.id) {
            return Ok(false);
        }
        if downlink.expires_at <= now {
            return Err(Refused::Expired);
        }
        if self.items.len() >= ITEMS_MAX {
            return Err(Refused::Full);
        }
        let item = Item { downlink, seq: self.next_seq, state: State::Waiting, attempts: 0 };
        self.next_seq += 1;
        self.insert(item);
        Ok(true)
    }

    /// Behind everything of the same priority, and behind what was sent already and is not known to be received.
    fn insert(&mut self, item: Item) {
        let place = self.items.iter().position(|other| {
            other.state == State::Waiting
                && (other.downlink.priority, std::cmp::Reverse(other.seq)) < (item.downlink.priority, std::cmp::Reverse(item.seq))
        });
        self.items.insert(place.unwrap_or(self.items.len()), item);
    }

    fn finish(&mut self, index: usize) -> Downlink {
        let downlink = self.items.remove(index).downlink;
        self.note_done(downlink.id.clone());
        downlink
    }

    fn note_done(&mut self, id: String) {
        if self.done.iter().any(|done| *done == id) {
            return;
        }
        if self.done.len() >= DONE_MAX {
            self.done.pop_front();
        }
        if self.run.as_ref().is_some_and(|run| run.id == id) {
            self.run = None;
        }
        self.done.push_back(id);
    }

    /// What goes under this counter, if it is encrypted for it.
    pub(crate) fn ready(&self, session: SessionId, f_cnt: u32) -> Option<Ready> {
        let item = self.items.first().filter(|item| item.state == State::Waiting)?;
        let run = self.run.as_ref().filter(|run| run.id == item.downlink.id && run.session == session)?;
        let payload = run.payloads.get(usize::try_from(f_cnt.checked_sub(run.first)?).ok()?)?;
        Some(Ready {
            f_port: item.downlink.f_port,
            payload: payload.clone(),
            confirmed: item.downlink.confirmed,
            more: self.items.len() > 1,
        })
    }

    /// The question to ask, once: the head is not encrypted for the counters that come next.
    pub(crate) fn question(&mut self, session: SessionId, joined: Option<Joined>, f_cnt_next: u32) -> Option<Question> {
        let item = self.items.first().filter(|item| item.state == State::Waiting)?;
        let is_covered = |id: &str, of: SessionId, first: u32, count: u32| {
            id == item.downlink.id && of == session && first <= f_cnt_next && f_cnt_next + RUN_LOW <= first.saturating_add(count)
        };
        let run = self.run.as_ref();
        if run.is_some_and(|run| is_covered(&run.id, run.session, run.first, u32::try_from(run.payloads.len()).unwrap_or(0))) {
            return None;
        }
        let asked = self.asked.as_ref();
        if asked.is_some_and(|(id, of, first)| is_covered(id, *of, *first, u32::from(RUN))) {
            return None;
        }
        self.asked = Some((item.downlink.id.clone(), session, f_cnt_next));
        Some(Question {
            id: item.downlink.id.clone(),
            f_port: item.downlink.f_port,
            payload: item.downlink.payload.clone(),
            session,
            joined,
            f_cnt_first: f_cnt_next,
            count: RUN,
        })
    }

    /// Takes the answer to a question; one that nobody asked is passed over.
    pub(crate) fn encrypted(&mut self, answer: Encrypted) -> bool {
        let is_asked = self
            .asked
            .as_ref()
            .is_some_and(|(id, session, first)| (id, session, first) == (&answer.id, &answer.session, &answer.f_cnt_first));
        let is_fit = answer.payloads.len() <= usize::from(RUN) && answer.payloads.iter().all(|p| p.len() <= PAYLOAD_BYTES_MAX);
        if !is_asked || !is_fit {
            return false;
        }
        self.run = Some(Run { id: answer.id, session: answer.session, first: answer.f_cnt_first, payloads: answer.payloads });
        true
    }

    /// The head was handed to a gateway as the answer to uplink `answered`.
    pub(crate) fn note_on_air(&mut self, f_cnt: u32, answered: u32) {
        if let Some(item) = self.items.first_mut() {
            item.state = State::OnAir { f_cnt, answered };
            item.attempts = item.attempts.saturating_add(1);
        }
    }

    fn on_air(&self, f_cnt: u32) -> Option<usize> {
        self.items.iter().position(|item| matches!(item.state, State::OnAir { f_cnt: of, .. } if of == f_cnt))
    }

    /// The gateway took the downlink with this counter.
    pub(crate) fn note_taken(&mut self, f_cnt: u32, gateway: crate::gwmp::GatewayEui) -> Option<Report> {
        let index = self.on_air(f_cnt)?;
        let State::OnAir { answered, .. } = self.items[index].state else { return None };
        let outcome = Outcome::Sent { f_cnt, gateway };
        if self.items[index].downlink.confirmed {
            self.items[index].state = State::Awaits { f_cnt, answered };
            return Some((self.items[index].downlink.id.clone(), outcome));
        }
        Some((self.finish(index).id, outcome))
    }

    /// The gateway refused it: it was not sent.
    pub(crate) fn note_refused(&mut self, f_cnt: u32) {
        if let Some(index) = self.on_air(f_cnt) {
            self.items[index].state = State::Waiting;
            self.items[index].attempts = self.items[index].attempts.saturating_sub(1);
        }
    }

    /// The gateway says nothing.
    pub(crate) fn note_silence(&mut self, f_cnt: u32) -> Option<Report> {
        let index = self.on_air(f_cnt)?;
        let State::OnAir { answered, .. } = self.items[index].state else { return None };
        match (self.items[index].downlink.confirmed, self.items[index].downlink.delivery) {
            (true, _) => self.items[index].state = State::Awaits { f_cnt, answered },
            (false, Delivery::AtLeastOnce) => self.items[index].state = State::Waiting,
            (false, Delivery::AtMostOnce) => return Some((self.finish(index).id, Outcome::Failed(Failure::Unknown))),
        }
        None
    }

    /// A new uplink of the device, with or without its acknowledgement.
    pub(crate) fn note_uplink(&mut self, uplink: u32, is_ack: bool) -> Option<Report> {
        let index = self.items.iter().position(|item| item.state != State::Waiting)?;
        match self.items[index].state {
            State::OnAir { f_cnt, answered } | State::Awaits { f_cnt, answered }
                if is_ack && uplink > answered && self.items[index].downlink.confirmed =>
            {
                Some((self.finish(index).id, Outcome::Acked { f_cnt }))
            }
            State::Awaits { answered, .. } if uplink > answered => {
                if self.items[index].attempts >= ATTEMPTS_MAX {
                    return Some((self.finish(index).id, Outcome::Failed(Failure::NotAcknowledged)));
                }
                self.items[index].state = State::Waiting;
                None
            }
            State::Waiting | State::OnAir { .. } | State::Awaits { .. } => None,
        }
    }

    /// The head waits and cannot be sent.
    pub(crate) fn give_up(&mut self, failure: Failure) -> Option<Report> {
        self.is_waiting().then(|| (self.finish(0).id, Outcome::Failed(failure)))
    }

    /// When the first of those that are not on air becomes worthless.
    pub(crate) fn next_expiry(&self) -> Option<WallTime> {
        let idle = self.items.iter().filter(|item| !matches!(item.state, State::OnAir { .. }));
        idle.map(|item| item.downlink.expires_at).min()
    }

    /// What became worthless.
    pub(crate) fn expire(&mut self, now: WallTime) -> Vec<Report> {
        let mut reports = Vec::new();
        while let Some(index) =
            self.items.iter().position(|item| item.downlink.expires_at <= now && !matches!(item.state, State::OnAir { .. }))
        {
            reports.push((self.finish(index).id, Outcome::Expired));
        }
        reports
    }

    /// Custody ends: what may have been sent is another's to send again, or nobody's.
    pub(crate) fn stop(&mut self) -> Vec<Report> {
        let mut reports = Vec::new();
        while let Some(index) =
            self.items.iter().position(|item| item.state != State::Waiting && item.downlink.delivery == Delivery::AtMostOnce)
        {
            reports.push((self.finish(index).id, Outcome::Failed(Failure::Unknown)));
        }
        self.items.iter_mut().for_each(|item| item.state = State::Waiting);
        (self.run, self.asked) = (None, None);
        reports
    }

    /// A new session: what was encrypted for the old one is worthless, and nothing of it was received for certain.
    pub(crate) fn restart(&mut self) {
        (self.run, self.asked) = (None, None);
        self.items
            .iter_mut()
            .filter(|item| item.downlink.delivery == Delivery::AtLeastOnce || item.downlink.confirmed)
            .for_each(|item| item.state = State::Waiting);
    }

    /// The part that goes to the other node: what is owed at least once, and what is done.
    pub(crate) fn shared(&self) -> QueueState {
        let open = self.items.iter().map(|item| &item.downlink).filter(|d| d.delivery == Delivery::AtLeastOnce);
        QueueState { open: open.cloned().collect(), done: self.done.iter().cloned().collect(), used: None }
    }

    /// Union of what is open, less what is done anywhere. Gives how many items were added, less those removed.
    pub(crate) fn merge(&mut self, other: &QueueState) {
        for id in other.done.iter().take(DONE_MAX) {
            if let Some(index) = self.items.iter().position(|item| item.downlink.id == *id) {
                self.items.remove(index);
            }
            self.note_done(id.clone());
        }
        for downlink in other.open.iter().take(ITEMS_MAX) {
            // What is expired here is expired there; the clock of the node that serves decides.
            if downlink.is_well_formed() && !self.knows(&downlink.id) && self.items.len() < ITEMS_MAX {
                let item = Item { downlink: downlink.clone(), seq: self.next_seq, state: State::Waiting, attempts: 0 };
                self.next_seq += 1;
                self.insert(item);
            }
        }
    }
}

/// What nodes tell one another of a device's downlinks and of what came of them, and store.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QueueState {
    /// To be delivered at least once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub open: Vec<Downlink>,
    /// Ids of those that are finished.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub done: Vec<String>,
    /// Transmit power and number of transmissions that the device took.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used: Option<Used>,
}

impl QueueState {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        !self.has_downlinks() && self.used.is_none()
    }

    pub(crate) fn has_downlinks(&self) -> bool {
        !self.open.is_empty() || !self.done.is_empty()
    }
}
