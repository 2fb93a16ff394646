//! A virtual gateway: hears what the radio gives it and speaks GWMP v2 over UDP as Semtech's packet forwarder does.
//!
//! Uplinks are fetched every 10 ms and pushed once, up to eight in a datagram, from one socket; `PULL_DATA` goes out every 5 s, at
//! once at the start, from another; nothing is repeated. A gateway lives on when its server is killed: its datagrams go nowhere.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::net::UdpSocket;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use crate::fleet::Eui64;
use crate::gwmp::{self, DATAGRAM_BYTES_MAX, PACKETS_PER_DATAGRAM_MAX, ServerDatagram, Stat, Token, TxRequest, When};
use crate::jit::{Packet, Queue, Rejected};
use crate::ledger::{GatewayRecord, Ledger};
use crate::radio::{Reception, Transmission};
use crate::seed::{Seed, Topic, low_u16, low_u32};

/// Interval of the forwarder's look into the concentrator (`FETCH_SLEEP_MS`).
const FETCH_US: u64 = 10_000;
/// Interval of `PULL_DATA` (`DEFAULT_KEEPALIVE`).
pub const KEEPALIVE_US: u64 = 5_000_000;
/// Interval of `stat` reports (`DEFAULT_STAT`).
const STAT_US: u64 = 30_000_000;
/// Receptions that may wait between radio and gateway.
const RECEPTIONS_WAITING_MAX: usize = 1_024;
/// Tokens whose answer is still counted.
const TOKENS_KEPT_MAX: usize = 64;
/// An immediate downlink starts this long after its request (`jitqueue.c`: twice `TX_JIT_DELAY`).
const IMMEDIATE_US: u32 = 60_000;

/// A datagram socket of a gateway: UDP, or a simulated network.
pub trait Socket: Send + Sync + 'static {
    /// Takes the next datagram; a longer one than `buffer` is cut.
    fn recv_from(&self, buffer: &mut [u8]) -> impl Future<Output = io::Result<(usize, SocketAddr)>> + Send;

    /// Sends one.
    fn send_to(&self, bytes: &[u8], to: SocketAddr) -> impl Future<Output = io::Result<usize>> + Send;
}

/// Where gateways get their sockets from.
pub trait Sockets: Sync {
    /// What it gives.
    type Socket: Socket;

    /// A socket from which `server` can be reached.
    fn bind(&self, server: SocketAddr) -> impl Future<Output = io::Result<Self::Socket>> + Send;
}

impl Socket for UdpSocket {
    fn recv_from(&self, buffer: &mut [u8]) -> impl Future<Output = io::Result<(usize, SocketAddr)>> + Send {
        self.recv_from(buffer)
    }

    fn send_to(&self, bytes: &[u8], to: SocketAddr) -> impl Future<Output = io::Result<usize>> + Send {
        self.send_to(bytes, to)
    }
}

/// This machine's UDP.
#[derive(Clone, Copy, Debug)]
pub struct Udp;

impl Sockets for Udp {
    type Socket = UdpSocket;

    async fn bind(&self, server: SocketAddr) -> io::Result<UdpSocket> {
        UdpSocket::bind(local_address(server)).await
    }
}

/// Why a gateway stopped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A socket failed.
    #[error("gateway {gateway}: socket")]
    Socket {
        /// Which gateway.
        gateway: Eui64,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The ledger failed.
    #[error("gateway ledger")]
    Ledger(#[from] crate::ledger::Error),
}

/// The one clock of a run: wall time at the start, carried on by a clock that never jumps.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    wall_us: u64,
    origin: Instant,
}

impl Clock {
    /// Starts at this wall time in microseconds since 1970.
    #[must_use]
    pub fn new(wall_us: u64) -> Self {
        Self { wall_us, origin: Instant::now() }
    }

    /// Wall time in microseconds.
    #[must_use]
    pub fn now_us(&self) -> u64 {
        self.wall_us + u64::try_from(self.origin.elapsed().as_micros()).unwrap_or(u64::MAX - self.wall_us)
    }

    /// When to wake up for this wall time.
    #[must_use]
    pub fn instant_at(&self, at_us: u64) -> Instant {
        self.origin + Duration::from_micros(at_us.saturating_sub(self.wall_us))
    }
}

/// Totals of one gateway.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Uplinks taken from the radio.
    pub uplinks_heard: u64,
    /// Of these, sent to the server.
    pub uplinks_pushed: u64,
    /// Of these, dropped because the gateway was cut off or the socket refused.
    pub uplinks_blocked: u64,
    /// `PUSH_DATA` with uplinks sent.
    pub push_sent: u64,
    /// Of these, answered by `PUSH_ACK`.
    pub push_acknowledged: u64,
    /// `PULL_DATA` sent.
    pub pull_sent: u64,
    /// Of these, answered by `PULL_ACK`.
    pub pull_acknowledged: u64,
    /// `stat` reports sent.
    pub stat_sent: u64,
    /// `PULL_RESP` received.
    pub requests: u64,
    /// Of these, queued.
    pub queued: u64,
    /// Of these, refused with a `TX_ACK` error.
    pub rejected: u64,
    /// Packets handed to the radio.
    pub transmitted: u64,
    /// Datagrams of no known form.
    pub malformed: u64,
    /// Datagrams that came from elsewhere than the server.
    pub foreign: u64,
}

/// What a gateway is made of.
#[derive(Clone, Debug)]
pub struct Config {
    /// Index in the world.
    pub index: usize,
    /// Identifier.
    pub eui: Eui64,
    /// Its server.
    pub server: SocketAddr,
    /// Decides the start of its counter and its tokens.
    pub seed: Seed,
    /// Time.
    pub clock: Clock,
}

/// A running gateway.
#[derive(Debug)]
pub struct Gateway {
    eui: Eui64,
    hear: mpsc::Sender<Reception>,
    server: watch::Sender<Option<SocketAddr>>,
    counts: Arc<Mutex<Counts>>,
    task: JoinHandle<Result<(), Error>>,
}

impl Gateway {
    /// Binds two sockets and starts; downlinks go to `transmissions` 30 ms before they start.
    ///
    /// # Errors
    /// [`Error::Socket`].
    pub async fn start(
        config: Config,
        sockets: &impl Sockets,
        transmissions: mpsc::Sender<Transmission>,
        ledger: Ledger,
    ) -> Result<Self, Error> {
        let to_error = |source| Error::Socket { gateway: config.eui, source };
        let up = sockets.bind(config.server).await.map_err(to_error)?;
        let down = sockets.bind(config.server).await.map_err(to_error)?;
        let (hear, receptions) = mpsc::channel(RECEPTIONS_WAITING_MAX);
        let (server, server_changes) = watch::channel(Some(config.server));
        let counts = Arc::new(Mutex::new(Counts::default()));
        let now_us = config.clock.now_us();
        let forwarder = Forwarder {
            eui: config.eui,
            index: config.index,
            seed: config.seed,
            clock: config.clock,
            counter_offset: config.seed.draw(Topic::GatewayCounter, &[config.eui.0]) >> 32,
            up,
            down,
            server: Some(config.server),
            pending: VecDeque::new(),
            queue: Queue::default(),
            tokens_used: 0,
            push_tokens: VecDeque::new(),
            pull_tokens: VecDeque::new(),
            keepalive_us: now_us,
            stat_us: now_us + STAT_US,
            stat_base: Counts::default(),
            counts: Arc::clone(&counts),
            transmissions,
            ledger,
        };
        let eui = config.eui;
        let task = tokio::spawn(forwarder.run(receptions, server_changes));
        Ok(Self { eui, hear, server, counts, task })
    }

    /// Identifier.
    #[must_use]
    pub fn eui(&self) -> Eui64 {
        self.eui
    }

    /// Gives the gateway an uplink. False if the gateway has stopped.
    pub async fn hear(&self, reception: Reception) -> bool {
        self.hear.send(reception).await.is_ok()
    }

    /// Another server from now on; without one the gateway is cut off.
    pub fn set_server(&self, server: Option<SocketAddr>) {
        self.server.send_replace(server);
    }

    /// Totals so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        *self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shared totals, for who outlives the gateway.
    #[must_use]
    pub fn shared_counts(&self) -> Arc<Mutex<Counts>> {
        Arc::clone(&self.counts)
    }

    /// Pushes what is waiting and stops.
    ///
    /// # Errors
    /// What stopped the gateway before.
    pub async fn stop(self) -> Result<(), Error> {
        drop(self.hear);
        match self.task.await {
            Ok(result) => result,
            Err(join) if join.is_panic() => std::panic::resume_unwind(join.into_panic()),
            Err(_) => Ok(()),
        }
    }
}

/// Loopback stays on loopback.
fn local_address(server: SocketAddr) -> SocketAddr {
    let ip = match (server.ip(), server.ip().is_loopback()) {
        (IpAddr::V4(_), true) => IpAddr::V4(Ipv4Addr::LOCALHOST),
        (IpAddr::V4(_), false) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        (IpAddr::V6(_), true) => IpAddr::V6(Ipv6Addr::LOCALHOST),
        (IpAddr::V6(_), false) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    SocketAddr::new(ip, 0)
}

struct Forwarder<S> {
    eui: Eui64,
    index: usize,
    seed: Seed,
    clock: Clock,
    counter_offset: u64,
    up: S,
    down: S,
    server: Option<SocketAddr>,
    pending: VecDeque<Reception>,
    queue: Queue,
    tokens_used: u64,
    push_tokens: VecDeque<Token>,
    pull_tokens: VecDeque<Token>,
    keepalive_us: u64,
    stat_us: u64,
    stat_base: Counts,
    counts: Arc<Mutex<Counts>>,
    transmissions: mpsc::Sender<Transmission>,
    ledger: Ledger,
}

impl<S: Socket> Forwarder<S> {
    async fn run(
        mut self,
        mut receptions: mpsc::Receiver<Reception>,
        mut server_changes: watch::Receiver<Option<SocketAddr>>,
    ) -> Result<(), Error> {
        let mut up_buffer = vec![0; DATAGRAM_BYTES_MAX];
        let mut down_buffer = vec![0; DATAGRAM_BYTES_MAX];
        let mut fetch_us = u64::MAX;
        loop {
            self.work_due(&mut fetch_us).await;
            let wake = self.clock.instant_at(self.next_us(fetch_us));
            tokio::select! {
                biased;
                Ok(()) = server_changes.changed() => {
                    self.server = *server_changes.borrow_and_update();
                    self.keepalive_us = self.clock.now_us();
                    let record = GatewayRecord::Server { gateway: self.eui, at_us: self.keepalive_us, server: self.server };
                    self.ledger.record_gateway(&record)?;
                }
                received = self.down.recv_from(&mut down_buffer) => {
                    let (length, from) = received.map_err(|source| Error::Socket { gateway: self.eui, source })?;
                    self.take_datagram(&down_buffer[..length], from).await?;
                }
                received = self.up.recv_from(&mut up_buffer) => {
                    let (length, from) = received.map_err(|source| Error::Socket { gateway: self.eui, source })?;
                    self.take_datagram(&up_buffer[..length], from).await?;
                }
                reception = receptions.recv() => match reception {
                    Some(reception) => {
                        self.count(|counts| counts.uplinks_heard += 1);
                        self.pending.push_back(reception);
                        fetch_us = fetch_us.min((self.clock.now_us() / FETCH_US + 1) * FETCH_US);
                    }
                    None => break,
                },
                () = sleep_until(wake) => {}
            }
        }
        self.push_pending().await;
        let counts = *self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        self.ledger.record_gateway(&GatewayRecord::Totals { gateway: self.eui, at_us: self.clock.now_us(), counts })?;
        Ok(())
    }

    fn next_us(&self, fetch_us: u64) -> u64 {
        [self.keepalive_us, self.stat_us, fetch_us, self.queue.next_us().unwrap_or(u64::MAX)]
            .into_iter()
            .min()
            .unwrap_or(fetch_us)
    }

    async fn work_due(&mut self, fetch_us: &mut u64) {
        let now_us = self.clock.now_us();
        while let Some((start_us, packet)) = self.queue.pop_due(now_us) {
            self.hand_over(start_us, packet).await;
        }
        if now_us >= *fetch_us {
            *fetch_us = u64::MAX;
            self.push_pending().await;
        }
        if now_us >= self.keepalive_us {
            self.keepalive_us = now_us + KEEPALIVE_US;
            self.pull().await;
        }
        if now_us >= self.stat_us {
            self.stat_us = now_us + STAT_US;
            self.report(now_us).await;
        }
    }

    fn count(&self, change: impl FnOnce(&mut Counts)) {
        change(&mut self.counts.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn counter(&self, at_us: u64) -> u32 {
        low_u32(at_us + self.counter_offset)
    }

    fn new_token(&mut self) -> Token {
        self.tokens_used += 1;
        low_u16(low_u32(self.seed.draw(Topic::Token, &[self.eui.0, self.tokens_used]))).to_be_bytes()
    }

    async fn hand_over(&mut self, start_us: u64, packet: Packet) {
        let Packet { bytes, data_rate, frequency_hz, inverted } = packet;
        let transmission = Transmission { gateway: self.index, bytes, start_us, data_rate, frequency_hz, inverted };
        if self.transmissions.send(transmission).await.is_ok() {
            self.count(|counts| counts.transmitted += 1);
        }
    }

    async fn push_pending(&mut self) {
        while !self.pending.is_empty() {
            let taken = self.pending.len().min(PACKETS_PER_DATAGRAM_MAX);
            let offset = self.counter_offset;
            let batch: Vec<(u32, Reception)> =
                self.pending.drain(..taken).map(|reception| (low_u32(reception.end_us + offset), reception)).collect();
            let token = self.new_token();
            let uplinks = batch.len() as u64;
            if self.send_up(&gwmp::push_data(token, self.eui, &batch, None)).await {
                remember(&mut self.push_tokens, token);
                self.count(|counts| {
                    counts.uplinks_pushed += uplinks;
                    counts.push_sent += 1;
                });
            } else {
                self.count(|counts| counts.uplinks_blocked += uplinks);
            }
        }
    }

    async fn pull(&mut self) {
        let token = self.new_token();
        if self.send_down(&gwmp::pull_data(token, self.eui)).await {
            remember(&mut self.pull_tokens, token);
            self.count(|counts| counts.pull_sent += 1);
        }
    }

    async fn report(&mut self, now_us: u64) {
        let counts = *self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let base = std::mem::replace(&mut self.stat_base, counts);
        let stat = Stat {
            at_us: now_us,
            received: counts.uplinks_heard - base.uplinks_heard,
            pushed: counts.push_sent - base.push_sent,
            acknowledged: counts.push_acknowledged - base.push_acknowledged,
            requested: counts.requests - base.requests,
            transmitted: counts.transmitted - base.transmitted,
        };
        let token = self.new_token();
        if self.send_up(&gwmp::push_data(token, self.eui, &[], Some(stat))).await {
            self.count(|counts| counts.stat_sent += 1);
        }
    }

    async fn send_up(&self, datagram: &[u8]) -> bool {
        match self.server {
            Some(server) => self.up.send_to(datagram, server).await.is_ok(),
            None => false,
        }
    }

    async fn send_down(&self, datagram: &[u8]) -> bool {
        match self.server {
            Some(server) => self.down.send_to(datagram, server).await.is_ok(),
            None => false,
        }
    }

    async fn take_datagram(&mut self, datagram: &[u8], from: SocketAddr) -> Result<(), Error> {
        if self.server != Some(from) {
            self.count(|counts| counts.foreign += 1);
            return Ok(());
        }
        match gwmp::parse(datagram) {
            Ok(ServerDatagram::PushAck(token)) => {
                let known = forget(&mut self.push_tokens, token);
                self.count(|counts| counts.push_acknowledged += u64::from(known));
                Ok(())
            }
            Ok(ServerDatagram::PullAck(token)) => {
                let known = forget(&mut self.pull_tokens, token);
                self.count(|counts| counts.pull_acknowledged += u64::from(known));
                Ok(())
            }
            Ok(ServerDatagram::PullResp(token, request)) => self.take_request(token, request).await,
            Err(malformed) => {
                self.count(|counts| counts.malformed += 1);
                let record =
                    GatewayRecord::Malformed { gateway: self.eui, at_us: self.clock.now_us(), reason: malformed.to_string() };
                Ok(self.ledger.record_gateway(&record)?)
            }
        }
    }

    async fn take_request(&mut self, token: Token, request: TxRequest) -> Result<(), Error> {
        let now_us = self.clock.now_us();
        let counter = self.counter(now_us);
        let tmst = match request.when {
            When::Counter(tmst) => tmst,
            When::Immediately => counter.wrapping_add(IMMEDIATE_US),
        };
        let data = hex::encode(&request.packet.bytes);
        let error = self.queue.enqueue(request.packet, tmst, counter, now_us).err();
        self.send_down(&gwmp::tx_ack(token, self.eui, error)).await;
        self.count(|counts| {
            counts.requests += 1;
            counts.queued += u64::from(error.is_none());
            counts.rejected += u64::from(error.is_some());
        });
        match error {
            Some(error) => Ok(self.record_rejection(error, tmst, counter, data, now_us)?),
            None => {
                let lead_us = tmst.wrapping_sub(counter);
                Ok(self.ledger.record_gateway(&GatewayRecord::Queued { gateway: self.eui, at_us: now_us, lead_us })?)
            }
        }
    }

    fn record_rejection(
        &self,
        error: Rejected,
        tmst: u32,
        counter: u32,
        bytes: String,
        at_us: u64,
    ) -> Result<(), crate::ledger::Error> {
        let error = error.to_string();
        self.ledger.record_gateway(&GatewayRecord::Rejected { gateway: self.eui, at_us, error, tmst, counter, bytes })
    }
}

fn remember(tokens: &mut VecDeque<Token>, token: Token) {
    if tokens.len() >= TOKENS_KEPT_MAX {
        tokens.pop_front();
    }
    tokens.push_back(token);
}

fn forget(tokens: &mut VecDeque<Token>, token: Token) -> bool {
    tokens.iter().position(|known| *known == token).and_then(|index| tokens.remove(index)).is_some()
}
