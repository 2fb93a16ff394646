//! Peers in one process: requests call the other node's router directly, datagrams go through queues, faults come on demand.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use axum::Router;
use axum::body::Body;
use axum::http::{Request, Response, StatusCode};
use axum::response::IntoResponse;
use bytes::Bytes;
use contracts::ids::NodeId;
use contracts::time::Millis;
use kit::clock::Clock;
use kit::task::Process;
use tokio::sync::{mpsc, watch};
use tokio_util::task::AbortOnDropHandle;
use tower::ServiceExt;

use crate::limits::{DATAGRAM_BYTES_MAX, DATAGRAMS_QUEUED_MAX};
use crate::transport::{Counters, Counts, Datagram, DatagramDropped, Error, PeerIdentity, PeerState, Transport};
use crate::warm::UNANSWERED_PINGS_MAX;

/// What travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Datagram,
    /// A request or a response: over a stream, which repeats what is lost.
    Stream,
    Ping,
}

/// A message on its way from one node to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message {
    pub from: NodeId,
    pub to: NodeId,
    pub kind: Kind,
    /// Length of a datagram; 0 where it is not known.
    pub bytes: usize,
}

/// What becomes of one message on a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Passage {
    Delivered,
    Lost,
    /// Lost, and the one that waits for it learns so after this time.
    LostAfter(Millis),
    Delayed(Millis),
    /// A datagram that arrives twice; others arrive at the first time.
    Doubled(Millis, Millis),
}

/// Decides the passage of each message; called once per datagram, request, response and ping.
pub type Faults = Arc<dyn Fn(&Message) -> Passage + Send + Sync>;

/// The medium; clones are the same one.
#[derive(Clone)]
pub struct Network(Arc<Medium>);

struct Medium {
    clock: Clock,
    faults: Mutex<Faults>,
    nodes: Mutex<BTreeMap<NodeId, Arc<Node>>>,
}

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Network").field("nodes", &lock(&self.0.nodes).len()).finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Node {
    router: Mutex<Option<Router>>,
    incoming: mpsc::Sender<Datagram>,
    counters: Counters,
    /// What serves requests here, if it is a simulated process: they end with it.
    process: Option<Process>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Network {
    /// A network without faults.
    #[must_use]
    pub fn new(clock: Clock) -> Self {
        Self(Arc::new(Medium { clock, faults: Mutex::new(Arc::new(|_| Passage::Delivered)), nodes: Mutex::default() }))
    }

    /// From now on `faults` decides.
    pub fn set_faults(&self, faults: Faults) {
        *lock(&self.0.faults) = faults;
    }

    /// A node comes (or comes back, as a new process: its queue and router are new ones).
    #[must_use]
    pub fn join(&self, me: NodeId) -> InProcess {
        let (incoming, taken) = mpsc::channel(DATAGRAMS_QUEUED_MAX);
        let node =
            Arc::new(Node { router: Mutex::default(), incoming, counters: Counters::default(), process: Process::current() });
        lock(&self.0.nodes).insert(me, Arc::clone(&node));
        InProcess(Arc::new(Joined { me, network: self.clone(), node, taken: Mutex::new(Some(taken)), peers: Mutex::default() }))
    }

    /// A node goes without a word; what is sent to it is lost.
    pub fn leave(&self, node: NodeId) {
        let left = lock(&self.0.nodes).remove(&node);
        // What serves there holds the transport, which holds the node.
        if let Some(left) = left {
            lock(&left.router).take();
        }
    }

    fn node(&self, id: NodeId) -> Option<Arc<Node>> {
        lock(&self.0.nodes).get(&id).cloned()
    }

    fn passage(&self, message: &Message) -> Passage {
        let faults = Arc::clone(&lock(&self.0.faults));
        faults(message)
    }

    /// Waits out the delay of one message; false if it is lost.
    pub async fn pass(&self, from: NodeId, to: NodeId, kind: Kind) -> bool {
        match self.passage(&Message { from, to, kind, bytes: 0 }) {
            Passage::Delivered => true,
            Passage::Lost => false,
            Passage::LostAfter(wait) => {
                tokio::time::sleep(wait.to_duration()).await;
                false
            }
            Passage::Delayed(delay) | Passage::Doubled(delay, _) => {
                tokio::time::sleep(delay.to_duration()).await;
                true
            }
        }
    }
}

/// One node's transport on a [`Network`].
#[derive(Debug, Clone)]
pub struct InProcess(Arc<Joined>);

struct Joined {
    me: NodeId,
    network: Network,
    node: Arc<Node>,
    taken: Mutex<Option<mpsc::Receiver<Datagram>>>,
    peers: Mutex<BTreeMap<NodeId, Kept>>,
}

impl fmt::Debug for Joined {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Joined").field("me", &self.me).finish_non_exhaustive()
    }
}

#[derive(Default)]
struct Kept {
    state: watch::Sender<PeerState>,
    pings: Option<tokio::task::AbortHandle>,
}

impl Drop for Kept {
    fn drop(&mut self) {
        if let Some(pings) = &self.pings {
            pings.abort();
        }
    }
}

/// Pings that do not pass both ways go unanswered; two of them raise the alarm.
async fn ping(network: Network, me: NodeId, peer: NodeId, every: Millis, state: watch::Sender<PeerState>) {
    let mut unanswered = 0;
    loop {
        let answered =
            network.node(peer).is_some() && network.pass(me, peer, Kind::Ping).await && network.pass(peer, me, Kind::Ping).await;
        unanswered = if answered { 0 } else { unanswered + 1 };
        let now = network.0.clock.boot();
        state.send_if_modified(|state| {
            let before = *state;
            if answered {
                state.connected_since.get_or_insert(now);
                state.missing = false;
            } else if unanswered >= UNANSWERED_PINGS_MAX {
                state.connected_since = None;
                state.missing = true;
            }
            let changed = *state != before;
            if answered {
                state.last_heard = Some(now);
            }
            changed
        });
        tokio::time::sleep(every.max(Millis(1)).to_duration()).await;
    }
}

#[async_trait]
impl Transport for InProcess {
    fn me(&self) -> NodeId {
        self.0.me
    }

    fn serve(&self, router: Router) {
        *lock(&self.0.node.router) = Some(router);
    }

    async fn request(&self, to: NodeId, mut request: Request<Body>) -> Result<Response<Body>, Error> {
        let (me, network) = (self.0.me, &self.0.network);
        if to == me {
            return Err(Error::Myself(to));
        }
        self.0.node.counters.requests_sent.add_one();
        let lost = || Error::Lost { peer: to, source: "the message was lost".into() };
        if !network.pass(me, to, Kind::Stream).await {
            return Err(lost());
        }
        let node = network.node(to).ok_or(Error::UnknownAddress(to))?;
        node.counters.requests_served.add_one();
        request.extensions_mut().insert(PeerIdentity(me));
        let router = lock(&node.router).clone();
        let response = match (router, &node.process) {
            // A server gives up the request of a client that hangs up.
            (Some(router), Some(process)) => {
                AbortOnDropHandle::new(process.run(router.oneshot(request))).await.map_err(|_| lost())?
            }
            (Some(router), None) => router.oneshot(request).await,
            (None, _) => Ok(StatusCode::SERVICE_UNAVAILABLE.into_response()),
        };
        let response = response.unwrap_or_else(|never| match never {});
        if network.pass(to, me, Kind::Stream).await { Ok(response) } else { Err(lost()) }
    }

    fn datagram(&self, to: NodeId, bytes: Bytes) -> Result<(), DatagramDropped> {
        let counters = &self.0.node.counters;
        if bytes.len() > DATAGRAM_BYTES_MAX {
            counters.dropped_too_long.add_one();
            return Err(DatagramDropped::TooLong);
        }
        if self.0.network.node(to).is_none() {
            counters.dropped_not_connected.add_one();
            return Err(DatagramDropped::NotConnected);
        }
        counters.datagrams_sent.add_one();
        let (network, datagram) = (self.0.network.clone(), Datagram { from: self.0.me, bytes });
        let message = Message { from: datagram.from, to, kind: Kind::Datagram, bytes: datagram.bytes.len() };
        match network.passage(&message) {
            Passage::Lost | Passage::LostAfter(_) => {}
            Passage::Delivered => deliver(&network, to, datagram),
            Passage::Delayed(delay) => deliver_later(network, to, datagram, delay),
            Passage::Doubled(first, second) => {
                deliver_later(network.clone(), to, datagram.clone(), first);
                deliver_later(network, to, datagram, second);
            }
        }
        Ok(())
    }

    fn datagram_bytes_max(&self, to: NodeId) -> Option<usize> {
        self.0.network.node(to).map(|_| DATAGRAM_BYTES_MAX)
    }

    fn take_datagrams(&self) -> Option<mpsc::Receiver<Datagram>> {
        lock(&self.0.taken).take()
    }

    fn keep_warm(&self, peer: NodeId, every: Millis) {
        let mut peers = lock(&self.0.peers);
        let kept = peers.entry(peer).or_default();
        let pings = ping(self.0.network.clone(), self.0.me, peer, every, kept.state.clone());
        if let Some(old) = kept.pings.replace(kit::task::spawn(pings).abort_handle()) {
            old.abort();
        }
    }

    fn let_cool(&self, peer: NodeId) {
        if let Some(kept) = lock(&self.0.peers).get_mut(&peer) {
            if let Some(pings) = kept.pings.take() {
                pings.abort();
            }
            kept.state.send_if_modified(|state| std::mem::take(&mut state.missing));
        }
    }

    fn peer(&self, peer: NodeId) -> watch::Receiver<PeerState> {
        lock(&self.0.peers).entry(peer).or_default().state.subscribe()
    }

    fn counts(&self) -> Counts {
        self.0.node.counters.snapshot()
    }
}

/// What is under way arrives even if its sender dies meanwhile.
fn deliver_later(network: Network, to: NodeId, datagram: Datagram, delay: Millis) {
    tokio::spawn(async move {
        tokio::time::sleep(delay.to_duration()).await;
        deliver(&network, to, datagram);
    });
}

fn deliver(network: &Network, to: NodeId, datagram: Datagram) {
    let Some(node) = network.node(to) else { return };
    if node.incoming.try_send(datagram).is_ok() {
        node.counters.datagrams_received.add_one();
    } else {
        node.counters.dropped_queue_full.add_one();
    }
}
