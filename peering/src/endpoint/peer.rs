//! One admitted peer: its connections, newest last, what it may ask of us, and whether it is kept warm.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{BufMut, Bytes, BytesMut};
use contracts::ids::NodeId;
use contracts::time::BootTime;
use iroh::endpoint::{Connection, VarInt};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::limits::{CONNECTIONS_PER_PEER_MAX, Limits};
use crate::rate::TokenBucket;
use crate::transport::PeerState;
use crate::warm::{self, ConnectionNumber, Warm};

/// First byte of every datagram.
const KIND_PING: u8 = 0;
const KIND_PONG: u8 = 1;
const KIND_APPLICATION: u8 = 2;

/// Close codes that a peer sees.
pub(super) const CLOSED_ENDING: VarInt = VarInt::from_u32(0);
pub(super) const CLOSED_NOT_ADMITTED: VarInt = VarInt::from_u32(1);
pub(super) const CLOSED_UNUSED: VarInt = VarInt::from_u32(2);

/// A received datagram by kind.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Frame {
    Ping(u64),
    Pong(u64),
    Application(Bytes),
}

impl Frame {
    /// None if it is malformed.
    pub(super) fn read(mut bytes: Bytes) -> Option<Self> {
        let kind = *bytes.first()?;
        let rest = bytes.split_off(1);
        let sequence = || Some(u64::from_be_bytes(rest.as_ref().try_into().ok()?));
        match kind {
            KIND_PING => sequence().map(Self::Ping),
            KIND_PONG => sequence().map(Self::Pong),
            KIND_APPLICATION => Some(Self::Application(rest)),
            _ => None,
        }
    }

    pub(super) fn write(&self) -> Bytes {
        let (kind, rest): (_, &[u8]) = match self {
            Self::Ping(sequence) => (KIND_PING, &sequence.to_be_bytes()),
            Self::Pong(sequence) => (KIND_PONG, &sequence.to_be_bytes()),
            Self::Application(bytes) => (KIND_APPLICATION, bytes),
        };
        let mut frame = BytesMut::with_capacity(1 + rest.len());
        frame.put_u8(kind);
        frame.put_slice(rest);
        frame.freeze()
    }
}

/// One QUIC connection with the peer.
pub(super) struct Link {
    pub(super) number: ConnectionNumber,
    pub(super) connection: Connection,
    /// Whether this side dialled it.
    dialled: bool,
    /// A later one of the same dialler stands; this one ends when its streams have.
    superseded: AtomicBool,
    since: BootTime,
    heard_at_ms: AtomicU64,
    /// Held by every stream in use, of either side.
    pub(super) in_use: Arc<()>,
}

impl Link {
    pub(super) fn is_open(&self) -> bool {
        self.connection.close_reason().is_none()
    }

    /// Since it stands; the handshake alone does not count.
    fn was_heard_on(&self) -> bool {
        self.heard_at_ms.load(Ordering::Relaxed) > self.since.0
    }

    fn is_in_use(&self) -> bool {
        Arc::strong_count(&self.in_use) > 1
    }
}

struct WarmState {
    machine: Warm,
    pinged: Option<(u64, Instant)>,
}

pub(super) struct Peer {
    pub(super) id: NodeId,
    links: Mutex<Vec<Arc<Link>>>,
    state: watch::Sender<PeerState>,
    requests: Mutex<TokenBucket>,
    datagrams: Mutex<TokenBucket>,
    warm: Mutex<Option<WarmState>>,
    /// Wakes the task that waits for the machine's next time.
    pub(super) warm_changed: Notify,
    /// One dial at a time.
    pub(super) dial: tokio::sync::Mutex<()>,
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peer").field("id", &self.id).field("state", &*self.state.borrow()).finish_non_exhaustive()
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Peer {
    pub(super) fn new(id: NodeId, limits: &Limits, now: BootTime) -> Self {
        Self {
            id,
            links: Mutex::default(),
            state: watch::Sender::default(),
            requests: Mutex::new(TokenBucket::new(limits.requests_per_second_max, now)),
            datagrams: Mutex::new(TokenBucket::new(limits.datagrams_per_second_max, now)),
            warm: Mutex::default(),
            warm_changed: Notify::new(),
            dial: tokio::sync::Mutex::default(),
        }
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<PeerState> {
        self.state.subscribe()
    }

    pub(super) fn take_request(&self, now: BootTime) -> bool {
        lock(&self.requests).take(now)
    }

    pub(super) fn take_datagram(&self, now: BootTime) -> bool {
        lock(&self.datagrams).take(now)
    }

    /// The newest open connection.
    pub(super) fn newest(&self) -> Option<Arc<Link>> {
        lock(&self.links).iter().rev().find(|link| link.is_open()).cloned()
    }

    /// The newest open connection, unless pings on it go unanswered.
    pub(super) fn answering(&self) -> Option<Arc<Link>> {
        let suspect = lock(&self.warm).as_ref().is_some_and(|warm| !warm.machine.is_answering());
        if suspect { None } else { self.newest() }
    }

    /// Makes `connection` the newest one.
    pub(super) fn add(&self, number: ConnectionNumber, connection: Connection, dialled: bool, now: BootTime) -> Arc<Link> {
        let link = Arc::new(Link {
            number,
            connection,
            dialled,
            superseded: AtomicBool::new(false),
            since: now,
            heard_at_ms: AtomicU64::new(now.0),
            in_use: Arc::default(),
        });
        {
            let mut links = lock(&self.links);
            for older in links.iter().filter(|older| dialled && older.dialled) {
                older.superseded.store(true, Ordering::Relaxed);
            }
            links.push(Arc::clone(&link));
            if links.len() > CONNECTIONS_PER_PEER_MAX {
                links.remove(0).connection.close(CLOSED_UNUSED, b"too many connections");
            }
        }
        self.state.send_modify(|state| {
            state.connected_since = Some(now);
            state.last_heard = Some(now);
        });
        link
    }

    /// Forgets an ended connection; gives the newest of those that remain.
    pub(super) fn remove(&self, number: ConnectionNumber) -> Option<ConnectionNumber> {
        let remaining = {
            let mut links = lock(&self.links);
            links.retain(|link| link.number != number);
            links.iter().rev().find(|link| link.is_open()).map(|link| link.number)
        };
        if remaining.is_none() {
            self.state.send_modify(|state| state.connected_since = None);
        }
        remaining
    }

    /// The peer said something; watchers are not woken for that alone.
    pub(super) fn heard(&self, link: &Link, now: BootTime) {
        link.heard_at_ms.store(now.0, Ordering::Relaxed);
        self.state.send_if_modified(|state| {
            state.last_heard = Some(now);
            false
        });
    }

    /// Whether nobody needs `link` any more: superseded by a later one, or silent for `unused_ms_max` and not kept warm.
    ///
    /// When both sides dialled at once two connections stand, and each side may send on another one, which costs twice the
    /// keep-alives and acknowledgements that have nothing to ride on. The side that `decides` ends all but its newest, once that one
    /// is heard on.
    pub(super) fn is_unused(&self, link: &Link, now: BootTime, unused_ms_max: u64, decides: bool) -> bool {
        let silent = now.since(BootTime(link.heard_at_ms.load(Ordering::Relaxed))).0 >= unused_ms_max;
        let newest = self.newest();
        let is_newest = newest.as_ref().is_some_and(|newest| newest.number == link.number);
        let is_second = decides && !is_newest && newest.is_some_and(|newest| newest.was_heard_on());
        let kept = is_newest && lock(&self.warm).is_some();
        !link.is_in_use() && !kept && (silent || is_second || link.superseded.load(Ordering::Relaxed))
    }

    /// Starts keeping the peer warm; true if it was not kept so before.
    pub(super) fn keep_warm(&self, every: contracts::time::Millis, now: BootTime) -> bool {
        let newest = self.newest().map(|link| link.number);
        let mut warm = lock(&self.warm);
        let is_new = warm.is_none();
        let state = warm.get_or_insert_with(|| WarmState { machine: Warm::new(every, newest, now), pinged: None });
        if !is_new {
            state.machine.apply(warm::Event::IntervalSet(every), now);
        }
        drop(warm);
        self.warm_changed.notify_one();
        is_new
    }

    pub(super) fn let_cool(&self) {
        *lock(&self.warm) = None;
        self.state.send_if_modified(|state| std::mem::take(&mut state.missing));
        self.warm_changed.notify_one();
    }

    /// When the warm machine wants to be called; none if the peer is not kept warm.
    pub(super) fn wake_at(&self) -> Option<BootTime> {
        lock(&self.warm).as_ref().map(|warm| warm.machine.wake_at())
    }

    /// Feeds the warm machine, pings and raises the alarm; true if the peer is to be dialled.
    pub(super) fn warm(&self, event: warm::Event, now: BootTime) -> bool {
        let mut warm = lock(&self.warm);
        let Some(state) = warm.as_mut() else { return false };
        let mut dial = false;
        for effect in state.machine.apply(event, now) {
            match effect {
                warm::Effect::Dial => dial = true,
                warm::Effect::Ping { connection, sequence } => {
                    state.pinged = Some((sequence, Instant::now()));
                    self.ping(connection, sequence);
                }
                warm::Effect::MissingChanged(missing) => self.state.send_modify(|state| state.missing = missing),
            }
        }
        drop(warm);
        self.warm_changed.notify_one();
        dial
    }

    fn ping(&self, connection: ConnectionNumber, sequence: u64) {
        let link = lock(&self.links).iter().find(|link| link.number == connection).cloned();
        if let Some(link) = link {
            // Whether it left does not matter: what counts is the answer.
            let _ = link.connection.send_datagram(Frame::Ping(sequence).write());
        }
    }

    /// A pong came on `link`.
    pub(super) fn pong(&self, link: &Link, sequence: u64, now: BootTime) {
        let pinged = lock(&self.warm).as_ref().and_then(|warm| warm.pinged);
        if let Some((expected, at)) = pinged
            && expected == sequence
        {
            let round_trip_us = u64::try_from(at.elapsed().as_micros()).unwrap_or(u64::MAX);
            self.state.send_if_modified(|state| {
                state.round_trip_us = Some(round_trip_us);
                false
            });
        }
        self.warm(warm::Event::Answered(link.number), now);
    }

    /// Closes everything at once.
    pub(super) fn close(&self) {
        for link in lock(&self.links).drain(..) {
            link.connection.close(CLOSED_ENDING, b"ending");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_read_back_and_garbage_does_not() {
        for frame in [
            Frame::Ping(7),
            Frame::Pong(u64::MAX),
            Frame::Application(Bytes::from_static(b"x")),
            Frame::Application(Bytes::new()),
        ] {
            assert_eq!(Frame::read(frame.write()), Some(frame));
        }
        for garbage in [&b""[..], &[0], &[0, 1, 2], &[1; 10], &[3], &[255; 40]] {
            assert_eq!(Frame::read(Bytes::from_static(garbage)), None, "{garbage:?}");
        }
    }
}
