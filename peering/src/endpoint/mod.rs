//! The real transport: QUIC by `iroh`, dialled and admitted by key.
//!
//! No relay, no DNS, no discovery: addresses come from the [`AddressBook`]. Both sides prove their keys in the TLS handshake.

mod http;
mod peer;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use async_trait::async_trait;
use axum::Router;
use axum::body::Body;
use axum::http::{Request, Response};
use bytes::Bytes;
use contracts::ids::NodeId;
use contracts::time::{BootTime, Millis};
use iroh::endpoint::{Connection, Incoming, QuicTransportConfig, VarInt, presets};
use iroh::{EndpointAddr, EndpointId, SecretKey};
use kit::clock::Clock;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use self::peer::{CLOSED_ENDING, CLOSED_NOT_ADMITTED, CLOSED_UNUSED, Frame, Link, Peer, lock};
use crate::address_book::AddressBook;
use crate::limits::{
    ALPN, CONNECTION_WINDOW_BYTES, DATAGRAM_BUFFER_BYTES_MAX, DATAGRAMS_QUEUED_MAX, HANDSHAKES_MAX, Limits, PEERS_MAX,
    STREAM_WINDOW_BYTES, STREAMS_PER_CONNECTION_MAX, UNUSED_CONNECTION_MS_MAX,
};
use crate::transport::{Counters, Counts, Datagram, DatagramDropped, Error, PeerState, Transport};
use crate::warm;

/// Whether a key may connect with us.
pub type Admit = Arc<dyn Fn(NodeId) -> bool + Send + Sync>;

/// How an [`Endpoint`] is set up.
#[derive(Clone)]
pub struct Config {
    /// The node's ed25519 secret key (RFC 8032 seed).
    pub secret_key: [u8; 32],
    /// The UDP address to listen on and send from; port 0 takes a free one.
    pub bind: SocketAddr,
    pub addresses: AddressBook,
    /// Asked once per incoming connection, after the peer proved its key.
    pub admit: Admit,
    pub clock: Clock,
    pub limits: Limits,
    /// A dial that takes longer has failed.
    pub dial_timeout: Millis,
    /// A connection on which QUIC hears nothing for so long is dead; it asks every third of it. At most 15 s.
    pub idle_timeout: Millis,
    /// A request whose body or answer does not move for so long has failed.
    pub stall_timeout: Millis,
}

impl Config {
    /// The defaults: dial 3 s, idle 10 s, stall 30 s, everybody's key is refused until `admit` says otherwise.
    #[must_use]
    pub fn new(secret_key: [u8; 32], bind: SocketAddr, admit: Admit, clock: Clock) -> Self {
        Self {
            secret_key,
            bind,
            addresses: AddressBook::new(),
            admit,
            clock,
            limits: Limits::default(),
            dial_timeout: Millis(3_000),
            idle_timeout: Millis(10_000),
            stall_timeout: Millis(30_000),
        }
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config").field("bind", &self.bind).field("limits", &self.limits).finish_non_exhaustive()
    }
}

/// Why an endpoint could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error("{address} cannot be listened on")]
    Bind { address: SocketAddr, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("the idle timeout {0} is not between 1 ms and 15 s")]
    IdleTimeout(Millis),
}

/// A QUIC endpoint; clones are the same endpoint. When the last clone is dropped it closes in the background.
#[derive(Debug, Clone)]
pub struct Endpoint {
    shared: Arc<Shared>,
    _closes: Arc<DropGuard>,
}

struct Shared {
    me: NodeId,
    iroh: iroh::Endpoint,
    addresses: AddressBook,
    admit: Admit,
    clock: Clock,
    limits: Limits,
    dial_timeout: Millis,
    stall_timeout: Millis,
    router: RwLock<Option<Router>>,
    peers: Mutex<BTreeMap<NodeId, Arc<Peer>>>,
    connections: AtomicU64,
    incoming: mpsc::Sender<Datagram>,
    taken: Mutex<Option<mpsc::Receiver<Datagram>>>,
    counters: Counters,
    closing: CancellationToken,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("me", &self.me).finish_non_exhaustive()
    }
}

impl Endpoint {
    /// Binds the socket and starts to accept.
    ///
    /// # Errors
    /// The address is in use or not this machine's, or a timeout is out of range.
    pub async fn bind(config: Config) -> Result<Self, BindError> {
        let cannot = |source: Box<dyn std::error::Error + Send + Sync>| BindError::Bind { address: config.bind, source };
        let secret_key = SecretKey::from_bytes(&config.secret_key);
        let iroh = iroh::Endpoint::builder(presets::Minimal)
            .secret_key(secret_key)
            .alpns(vec![ALPN.to_vec()])
            .transport_config(quic_config(config.idle_timeout)?)
            .clear_ip_transports()
            .clear_relay_transports()
            .bind_addr(config.bind)
            .map_err(|error| cannot(error.into()))?
            .bind()
            .await
            .map_err(|error| cannot(error.into()))?;
        let (incoming, taken) = mpsc::channel(DATAGRAMS_QUEUED_MAX);
        let closing = CancellationToken::new();
        let shared = Arc::new(Shared {
            me: NodeId::from_bytes(*iroh.id().as_bytes()),
            iroh,
            addresses: config.addresses,
            admit: config.admit,
            clock: config.clock,
            limits: config.limits,
            dial_timeout: config.dial_timeout,
            stall_timeout: config.stall_timeout,
            router: RwLock::default(),
            peers: Mutex::default(),
            connections: AtomicU64::new(0),
            incoming,
            taken: Mutex::new(Some(taken)),
            counters: Counters::default(),
            closing: closing.clone(),
        });
        tokio::spawn(accept(Arc::clone(&shared)));
        Ok(Self { shared, _closes: Arc::new(closing.drop_guard()) })
    }

    /// The address that was bound, with the port that was taken.
    #[must_use]
    pub fn local_address(&self) -> Option<SocketAddr> {
        self.shared.iroh.bound_sockets().first().copied()
    }

    /// Where dials look for addresses.
    #[must_use]
    pub fn addresses(&self) -> &AddressBook {
        &self.shared.addresses
    }

    /// Tells all peers good-bye and waits until they know or should know.
    pub async fn close(&self) {
        self.shared.closing.cancel();
        self.shared.iroh.close().await;
    }
}

fn quic_config(idle_timeout: Millis) -> Result<QuicTransportConfig, BindError> {
    const IDLE_TIMEOUT_MAX: Millis = Millis(15_000);
    if idle_timeout == Millis::ZERO || idle_timeout > IDLE_TIMEOUT_MAX {
        return Err(BindError::IdleTimeout(idle_timeout));
    }
    let idle = idle_timeout.to_duration();
    let idle_on_wire = idle.try_into().map_err(|_| BindError::IdleTimeout(idle_timeout))?;
    Ok(QuicTransportConfig::builder()
        .max_idle_timeout(Some(idle_on_wire))
        .default_path_max_idle_timeout(idle)
        .keep_alive_interval(idle / 3)
        .default_path_keep_alive_interval(idle / 3)
        .max_concurrent_bidi_streams(VarInt::from_u32(STREAMS_PER_CONNECTION_MAX))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW_BYTES))
        .send_window(u64::from(CONNECTION_WINDOW_BYTES))
        .datagram_receive_buffer_size(Some(DATAGRAM_BUFFER_BYTES_MAX))
        .datagram_send_buffer_size(DATAGRAM_BUFFER_BYTES_MAX)
        .build())
}

/// Takes incoming connections until the endpoint closes.
async fn accept(shared: Arc<Shared>) {
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    loop {
        let incoming = tokio::select! {
            biased;
            () = shared.closing.cancelled() => break,
            incoming = shared.iroh.accept() => incoming,
        };
        let Some(incoming) = incoming else { break };
        let Ok(permit) = Arc::clone(&handshakes).try_acquire_owned() else {
            shared.counters.connections_refused.add_one();
            incoming.refuse();
            continue;
        };
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            shared.admit_incoming(incoming).await;
            drop(permit);
        });
    }
    for peer in lock(&shared.peers).values() {
        peer.close();
    }
    shared.iroh.close().await;
}

impl Shared {
    fn now(&self) -> BootTime {
        self.clock.boot()
    }

    async fn admit_incoming(self: &Arc<Self>, incoming: Incoming) {
        let handshake = tokio::time::timeout(self.dial_timeout.to_duration(), incoming).await;
        let Ok(Ok(connection)) = handshake else {
            self.counters.connections_refused.add_one();
            return;
        };
        let id = NodeId::from_bytes(*connection.remote_id().as_bytes());
        let peer = if (self.admit)(id) { self.remembered(id).ok() } else { None };
        if let Some(peer) = peer {
            self.start(&peer, connection, false);
        } else {
            self.counters.connections_refused.add_one();
            tracing::info!(peer = %id.short(), "a peer that is not admitted was turned away");
            connection.close(CLOSED_NOT_ADMITTED, b"not admitted");
        }
    }

    fn known(&self, id: NodeId) -> Option<Arc<Peer>> {
        lock(&self.peers).get(&id).cloned()
    }

    /// The peer's entry, made if there is room. Entries of peers without connection that nobody watches or keeps warm make room.
    fn remembered(&self, id: NodeId) -> Result<Arc<Peer>, Error> {
        let mut peers = lock(&self.peers);
        if let Some(peer) = peers.get(&id) {
            return Ok(Arc::clone(peer));
        }
        if peers.len() >= PEERS_MAX {
            peers.retain(|_, peer| Arc::strong_count(peer) > 1 || peer.wake_at().is_some() || peer.newest().is_some());
        }
        if peers.len() >= PEERS_MAX {
            return Err(Error::TooManyPeers(id));
        }
        let peer = Arc::new(Peer::new(id, &self.limits, self.now()));
        peers.insert(id, Arc::clone(&peer));
        Ok(peer)
    }

    /// Makes `connection` the newest of `peer` and runs it.
    fn start(self: &Arc<Self>, peer: &Arc<Peer>, connection: Connection, dialled: bool) -> Arc<Link> {
        let number = self.connections.fetch_add(1, Ordering::Relaxed);
        let link = peer.add(number, connection, dialled, self.now());
        tokio::spawn(Arc::clone(self).run(Arc::clone(peer), Arc::clone(&link)));
        self.feed_warm(peer, warm::Event::Connected(number));
        link
    }

    async fn run(self: Arc<Self>, peer: Arc<Peer>, link: Arc<Link>) {
        let gate: Arc<dyn http::Gate> = Arc::new(PeerGate { shared: Arc::clone(&self), peer: Arc::clone(&peer) });
        let sweep_every = UNUSED_CONNECTION_MS_MAX.scaled(1, 4).to_duration();
        let mut sweep_at = Instant::now() + sweep_every;
        loop {
            tokio::select! {
                biased;
                () = self.closing.cancelled() => {
                    link.connection.close(CLOSED_ENDING, b"ending");
                    break;
                }
                () = tokio::time::sleep_until(sweep_at) => {
                    sweep_at = Instant::now() + sweep_every;
                    if peer.is_unused(&link, self.now(), UNUSED_CONNECTION_MS_MAX.0, self.me < peer.id) {
                        link.connection.close(CLOSED_UNUSED, b"unused");
                        break;
                    }
                }
                datagram = link.connection.read_datagram() => match datagram {
                    Ok(bytes) => {
                        self.received(&peer, &link, bytes);
                        tokio::task::coop::consume_budget().await;
                    }
                    Err(_) => break,
                },
                stream = link.connection.accept_bi() => match stream {
                    Ok((send, recv)) => {
                        peer.heard(&link, self.now());
                        let in_use = Arc::clone(&link.in_use);
                        let served = http::serve(Arc::clone(&gate), peer.id, send, recv);
                        tokio::spawn(async move {
                            served.await;
                            drop(in_use);
                        });
                    }
                    Err(_) => break,
                },
            }
        }
        let remaining = peer.remove(link.number);
        self.feed_warm(&peer, warm::Event::Remaining(remaining));
    }

    fn received(&self, peer: &Peer, link: &Link, bytes: Bytes) {
        let now = self.now();
        if !peer.take_datagram(now) {
            self.counters.dropped_rate.add_one();
            return;
        }
        self.counters.datagrams_received.add_one();
        peer.heard(link, now);
        match Frame::read(bytes) {
            Some(Frame::Ping(sequence)) => {
                // Answered on the connection that asked: the question is whether this one works.
                let _ = link.connection.send_datagram(Frame::Pong(sequence).write());
            }
            Some(Frame::Pong(sequence)) => peer.pong(link, sequence, now),
            Some(Frame::Application(bytes)) => {
                if self.incoming.try_send(Datagram { from: peer.id, bytes }).is_err() {
                    self.counters.dropped_queue_full.add_one();
                }
            }
            None => self.counters.dropped_malformed.add_one(),
        }
    }

    fn feed_warm(self: &Arc<Self>, peer: &Arc<Peer>, event: warm::Event) {
        if peer.warm(event, self.now()) {
            let (shared, peer) = (Arc::clone(self), Arc::clone(peer));
            tokio::spawn(async move {
                if let Err(error) = shared.dial(&peer).await {
                    tracing::debug!(peer = %peer.id.short(), %error, "a peer kept warm could not be dialled");
                    peer.warm(warm::Event::DialFailed, shared.now());
                }
            });
        }
    }

    /// Sets up a new connection with `peer` beside those that stand.
    async fn dial(self: &Arc<Self>, peer: &Arc<Peer>) -> Result<Arc<Link>, Error> {
        let dialled = tokio::select! {
            biased;
            () = self.closing.cancelled() => Err(Error::Closed),
            dialled = self.connect(peer.id) => dialled,
        };
        match dialled {
            Ok(connection) => Ok(self.start(peer, connection, true)),
            Err(error) => {
                self.counters.dials_failed.add_one();
                Err(error)
            }
        }
    }

    async fn connect(&self, peer: NodeId) -> Result<Connection, Error> {
        if peer == self.me {
            return Err(Error::Myself(peer));
        }
        let id = EndpointId::from_bytes(peer.as_bytes()).map_err(|_| Error::NotAKey(peer))?;
        let addresses = self.addresses.get(peer);
        if addresses.is_empty() {
            return Err(Error::UnknownAddress(peer));
        }
        let address = addresses.into_iter().fold(EndpointAddr::new(id), EndpointAddr::with_ip_addr);
        let connect = Box::pin(self.iroh.connect(address, ALPN));
        match tokio::time::timeout(self.dial_timeout.to_duration(), connect).await {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(error)) => Err(Error::Dial { peer, source: error.into() }),
            Err(_) => Err(Error::DialTimeout { peer, timeout: self.dial_timeout }),
        }
    }

    /// A connection to ask on: the newest that answers, else a new one; callers that come together share the dial.
    async fn link(self: &Arc<Self>, peer: &Arc<Peer>) -> Result<Arc<Link>, Error> {
        if let Some(link) = peer.answering() {
            return Ok(link);
        }
        let _one_at_a_time = peer.dial.lock().await;
        if let Some(link) = peer.answering() {
            return Ok(link);
        }
        self.dial(peer).await
    }
}

struct PeerGate {
    shared: Arc<Shared>,
    peer: Arc<Peer>,
}

impl http::Gate for PeerGate {
    fn admit_request(&self) -> bool {
        let admitted = self.peer.take_request(self.shared.now());
        let counter = if admitted { &self.shared.counters.requests_served } else { &self.shared.counters.requests_refused_rate };
        counter.add_one();
        admitted
    }

    fn router(&self) -> Option<Router> {
        self.shared.router.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn request_body_bytes_max(&self) -> usize {
        self.shared.limits.request_body_bytes_max
    }
}

/// Waits for the times that the peer's warm machine asks for, until it is let cool or the endpoint closes.
async fn keep_time(shared: Arc<Shared>, peer: Arc<Peer>) {
    while let Some(wake_at) = peer.wake_at() {
        let wait = wake_at.since(shared.now()).to_duration();
        tokio::select! {
            biased;
            () = shared.closing.cancelled() => return,
            () = tokio::time::sleep(wait) => shared.feed_warm(&peer, warm::Event::TimePassed),
            () = peer.warm_changed.notified() => {}
        }
    }
}

#[async_trait]
impl Transport for Endpoint {
    fn me(&self) -> NodeId {
        self.shared.me
    }

    fn serve(&self, router: Router) {
        *self.shared.router.write().unwrap_or_else(PoisonError::into_inner) = Some(router);
    }

    async fn request(&self, to: NodeId, request: Request<Body>) -> Result<Response<Body>, Error> {
        let shared = &self.shared;
        let peer = shared.remembered(to)?;
        let link = shared.link(&peer).await?;
        shared.counters.requests_sent.add_one();
        let in_use = Arc::clone(&link.in_use);
        let asked = Box::pin(http::request(&link.connection, to, request, shared.stall_timeout, in_use)).await;
        if asked.is_ok() {
            peer.heard(&link, shared.now());
        }
        asked
    }

    fn datagram(&self, to: NodeId, bytes: Bytes) -> Result<(), DatagramDropped> {
        let counters = &self.shared.counters;
        let Some(link) = self.shared.known(to).and_then(|peer| peer.newest()) else {
            counters.dropped_not_connected.add_one();
            return Err(DatagramDropped::NotConnected);
        };
        match link.connection.send_datagram(Frame::Application(bytes).write()) {
            Ok(()) => {
                counters.datagrams_sent.add_one();
                Ok(())
            }
            Err(iroh::endpoint::SendDatagramError::TooLarge) => {
                counters.dropped_too_long.add_one();
                Err(DatagramDropped::TooLong)
            }
            Err(_) => {
                counters.dropped_not_connected.add_one();
                Err(DatagramDropped::NotConnected)
            }
        }
    }

    fn datagram_bytes_max(&self, to: NodeId) -> Option<usize> {
        let link = self.shared.known(to)?.newest()?;
        link.connection.max_datagram_size().map(|bytes| bytes.saturating_sub(1))
    }

    fn take_datagrams(&self) -> Option<mpsc::Receiver<Datagram>> {
        lock(&self.shared.taken).take()
    }

    fn keep_warm(&self, peer: NodeId, every: Millis) {
        match self.shared.remembered(peer) {
            Ok(peer) => {
                if peer.keep_warm(every, self.shared.now()) {
                    tokio::spawn(keep_time(Arc::clone(&self.shared), peer));
                }
            }
            Err(error) => tracing::error!(peer = %peer.short(), %error, "a peer cannot be kept warm"),
        }
    }

    fn let_cool(&self, peer: NodeId) {
        if let Some(peer) = self.shared.known(peer) {
            peer.let_cool();
        }
    }

    fn peer(&self, peer: NodeId) -> watch::Receiver<PeerState> {
        // Without room for it the peer is one that was never heard: its sender is gone, its state stays as it is.
        self.shared.remembered(peer).map_or_else(|_| watch::Sender::default().subscribe(), |peer| peer.subscribe())
    }

    fn counts(&self) -> Counts {
        self.shared.counters.snapshot()
    }
}
