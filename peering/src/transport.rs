//! What every way of reaching peers offers: requests, datagrams, connections kept warm.

use std::fmt;

use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use axum::Router;
use axum::body::Body;
use axum::http::{Request, Response};
use bytes::Bytes;
use contracts::ids::NodeId;
use contracts::time::{BootTime, Millis};
use serde::Serialize;
use tokio::sync::{mpsc, watch};

/// Why a request had no answer. Any HTTP status is an answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no address of {0} is known")]
    UnknownAddress(NodeId),
    #[error("{0} is not a key")]
    NotAKey(NodeId),
    #[error("{0} is this node itself")]
    Myself(NodeId),
    #[error("{peer} did not answer the dial within {timeout}")]
    DialTimeout { peer: NodeId, timeout: Millis },
    #[error("{peer} could not be dialled")]
    Dial { peer: NodeId, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("{peer} made no progress for {timeout}")]
    Stalled { peer: NodeId, timeout: Millis },
    #[error("the connection with {peer} was lost")]
    Lost { peer: NodeId, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("there are too many peers to take {0} too")]
    TooManyPeers(NodeId),
    #[error("this endpoint is closed")]
    Closed,
}

/// Why a datagram did not leave; it was counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DatagramDropped {
    #[error("there is no connection with the peer now")]
    NotConnected,
    #[error("the datagram is longer than the connection carries")]
    TooLong,
}

/// In the extensions of every request served: the key that the peer proved in the handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerIdentity(pub NodeId);

/// A datagram from an admitted peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Datagram {
    pub from: NodeId,
    pub bytes: Bytes,
}

/// How it stands with a peer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct PeerState {
    /// Since when the newest connection stands; none without one.
    pub connected_since: Option<BootTime>,
    /// When the peer was last heard on any connection.
    pub last_heard: Option<BootTime>,
    /// Round trip of the last answered ping, in microseconds.
    pub round_trip_us: Option<u64>,
    /// The alarm: a peer that is to be kept warm left two pings unanswered, or cannot be dialled.
    pub missing: bool,
}

/// What was counted since the start. Every drop is in here.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    pub datagrams_sent: u64,
    pub datagrams_received: u64,
    pub datagrams_dropped_not_connected: u64,
    pub datagrams_dropped_too_long: u64,
    pub datagrams_dropped_rate: u64,
    pub datagrams_dropped_queue_full: u64,
    pub datagrams_dropped_malformed: u64,
    pub requests_sent: u64,
    pub requests_served: u64,
    pub requests_refused_rate: u64,
    pub connections_refused: u64,
    pub dials_failed: u64,
}

/// The live side of [`Counts`].
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) datagrams_sent: Counter,
    pub(crate) datagrams_received: Counter,
    pub(crate) dropped_not_connected: Counter,
    pub(crate) dropped_too_long: Counter,
    pub(crate) dropped_rate: Counter,
    pub(crate) dropped_queue_full: Counter,
    pub(crate) dropped_malformed: Counter,
    pub(crate) requests_sent: Counter,
    pub(crate) requests_served: Counter,
    pub(crate) requests_refused_rate: Counter,
    pub(crate) connections_refused: Counter,
    pub(crate) dials_failed: Counter,
}

impl Counters {
    pub(crate) fn snapshot(&self) -> Counts {
        Counts {
            datagrams_sent: self.datagrams_sent.get(),
            datagrams_received: self.datagrams_received.get(),
            datagrams_dropped_not_connected: self.dropped_not_connected.get(),
            datagrams_dropped_too_long: self.dropped_too_long.get(),
            datagrams_dropped_rate: self.dropped_rate.get(),
            datagrams_dropped_queue_full: self.dropped_queue_full.get(),
            datagrams_dropped_malformed: self.dropped_malformed.get(),
            requests_sent: self.requests_sent.get(),
            requests_served: self.requests_served.get(),
            requests_refused_rate: self.requests_refused_rate.get(),
            connections_refused: self.connections_refused.get(),
            dials_failed: self.dials_failed.get(),
        }
    }
}

/// A number that only rises.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add_one(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn add(&self, number: u64) {
        self.0.fetch_add(number, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A way to peers. Real: [`crate::Endpoint`]; routers called in one process: [`crate::InProcess`].
#[async_trait]
pub trait Transport: fmt::Debug + Send + Sync + 'static {
    /// This node's own key.
    fn me(&self) -> NodeId;

    /// Serves peers' requests with `router` from now on; before the first call they get 503 Service Unavailable.
    fn serve(&self, router: Router);

    /// Asks a peer; dials if there is no connection. Bodies are streamed both ways, never buffered whole.
    ///
    /// # Errors
    /// No way to the peer, the connection lost, or no progress within the dial or idle timeout. Bodies fail on their own while they are read.
    async fn request(&self, to: NodeId, request: Request<Body>) -> Result<Response<Body>, Error>;

    /// Sends without waiting and without any promise of arrival, on the newest connection if there is one.
    ///
    /// # Errors
    /// Dropped at once, and counted.
    fn datagram(&self, to: NodeId, bytes: Bytes) -> Result<(), DatagramDropped>;

    /// How many bytes a datagram to `to` may have now; none without a connection.
    fn datagram_bytes_max(&self, to: NodeId) -> Option<usize>;

    /// The datagrams of all peers. There is one receiver: the second call gives none.
    fn take_datagrams(&self) -> Option<mpsc::Receiver<Datagram>>;

    /// Keeps a connection with `peer`, pinged `every` so often; two unanswered pings, and it is dialled anew beside the old connection.
    /// A later call changes the interval.
    fn keep_warm(&self, peer: NodeId, every: Millis);

    /// Ends [`Transport::keep_warm`]; the connection ends when nobody uses it.
    fn let_cool(&self, peer: NodeId);

    /// How it stands with `peer`, now and with every change.
    fn peer(&self, peer: NodeId) -> watch::Receiver<PeerState>;

    fn counts(&self) -> Counts;
}
