//! The owner of the UDP socket: it feeds the bridge, sends what may be sent, and hands on the rest in bounded batches.
//!
//! The lease is checked directly before a downlink is handed to the kernel, without an await in between. If the consumer does not take its
//! outputs, `PUSH_DATA` is dropped and counted until it does; memory stays bounded.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use contracts::ids::{DevEui, Epoch, EventId, GroupId, SessionId};
use contracts::time::{BootTime, Millis};
use kit::clock::Clock;
use tokio::net::UdpSocket;
use tokio::sync::{mpsc, oneshot};

use crate::bridge::Bridge;
use crate::bridge::io::{Accept, Input, KeptFrame, Mode, Now, OfferedFrame, Output, Transmit};
use crate::gwmp::gateways::GatewayStatus;
use crate::gwmp::taps::Tap;
use crate::gwmp::{self, DATAGRAM_BYTES_MAX, GatewayEui};
use crate::mac::downlink::CounterSource;
use crate::mac::join::{DeviceRecord, JoiningDevice};
use crate::mac::queue::{Downlink, Encrypted, QueueState, Refused};
use crate::mac::session::{Mark, Session, SessionState};
use crate::stats::{ServerStats, Stats};

/// The port of packet forwarders.
pub const PORT: u16 = 1_700;

/// Batches of outputs that wait for the consumer.
const OUTPUT_BATCHES_MAX: usize = 64;
/// Commands that wait for the bridge.
const COMMANDS_MAX: usize = 1_024;
/// Outputs that wait for room; beyond, no command is taken.
const BACKLOG_OUTPUTS_MAX: usize = 8_192;
/// With so many of them `PUSH_DATA` is no longer looked at.
const LAGGING_OUTPUTS: usize = 4_096;
/// Datagrams or commands handled before the other side gets its turn.
const BURST: usize = 64;
/// Longest sleep without anything due.
const IDLE: Millis = Millis::from_secs(1);

/// Names of taps are resolved so often.
const TAPS_RESOLVED_EVERY: Millis = Millis::from_secs(60);

/// Bad packets are logged so often.
const REPORT_EVERY: Millis = Millis::from_secs(10);

/// Says whether this node's lease on a group holds in an epoch, now.
pub type Lease = Arc<dyn Fn(GroupId, Epoch) -> bool + Send + Sync>;

/// The packet forwarders' socket: UDP, or a simulated network.
pub trait Socket: fmt::Debug + Send + Sync + 'static {
    /// Where gateways reach it.
    ///
    /// # Errors
    /// The socket is not bound.
    fn local_addr(&self) -> io::Result<SocketAddr>;

    /// Resolves when a datagram may be there.
    fn readable(&self) -> impl Future<Output = io::Result<()>> + Send;

    /// Takes a datagram; longer ones than `buffer` are cut.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] if none is there; others do not end the socket.
    fn try_recv_from(&self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)>;

    /// Sends without waiting.
    ///
    /// # Errors
    /// It could not be sent now, and will not be sent later.
    fn try_send_to(&self, bytes: &[u8], to: SocketAddr) -> io::Result<usize>;
}

impl Socket for UdpSocket {
    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.local_addr()
    }

    fn readable(&self) -> impl Future<Output = io::Result<()>> + Send {
        self.readable()
    }

    fn try_recv_from(&self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        self.try_recv_from(buffer)
    }

    fn try_send_to(&self, bytes: &[u8], to: SocketAddr) -> io::Result<usize> {
        self.try_send_to(bytes, to)
    }
}

/// Why the bridge's socket does not serve.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("UDP {address} is in use by another process: stop it, or give the bridge another address")]
    AddressInUse { address: SocketAddr },
    #[error("UDP {address} cannot be bound")]
    Bind { address: SocketAddr, source: io::Error },
    #[error("the bridge has stopped")]
    Stopped,
}

/// Binds the packet forwarders' socket.
///
/// # Errors
/// [`Error::AddressInUse`] or [`Error::Bind`].
pub async fn bind(address: SocketAddr) -> Result<UdpSocket, Error> {
    UdpSocket::bind(address).await.map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => Error::AddressInUse { address },
        _ => Error::Bind { address, source },
    })
}

#[derive(Debug)]
enum Command {
    Apply { input: Input<'static>, applied: Option<oneshot::Sender<()>> },
    Release { group: GroupId, mode: Mode, reply: oneshot::Sender<Vec<(DevEui, u32)>> },
    Export { group: GroupId, cursor: u32, max: usize, reply: oneshot::Sender<(Vec<SessionState>, Option<u32>)> },
    Stats { reply: oneshot::Sender<Stats> },
    Gateways { reply: oneshot::Sender<Vec<GatewayStatus>> },
    Queue { group: GroupId, device: DevEui, downlink: Downlink, reply: oneshot::Sender<Result<(), Refused>> },
}

/// The way to a running bridge. When the last one is dropped, the bridge stops.
///
/// Inputs are applied in the order of the calls of one task. Take outputs in another task, or at least never wait here while not taking them.
#[derive(Debug, Clone)]
pub struct BridgeHandle {
    commands: mpsc::Sender<Command>,
    address: Option<SocketAddr>,
}

impl BridgeHandle {
    /// Where gateways reach the bridge.
    #[must_use]
    pub const fn address(&self) -> Option<SocketAddr> {
        self.address
    }

    /// Queues an input and returns when there is room for it.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub async fn send(&self, input: Input<'static>) -> Result<(), Error> {
        self.commands.send(Command::Apply { input, applied: None }).await.map_err(|_| Error::Stopped)
    }

    /// Queues an input and returns when it has been applied, and with it all that was queued before.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub async fn apply(&self, input: Input<'static>) -> Result<(), Error> {
        self.ask(|reply| Command::Apply { input, applied: Some(reply) }).await
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.map_err(|_| Error::Stopped)?;
        answer.await.map_err(|_| Error::Stopped)
    }

    /// [`Input::Register`], applied.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub async fn register(&self, group: GroupId, sessions: Vec<Session>) -> Result<(), Error> {
        self.apply(Input::Register { group, sessions }).await
    }

    /// [`Input::Remove`], applied.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub async fn remove(&self, group: GroupId) -> Result<(), Error> {
        self.apply(Input::Remove { group }).await
    }

    /// [`Input::Custody`], applied: after it returns, nothing is sent that the new mode forbids.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub async fn custody(&self, group: GroupId, mode: Mode) -> Result<(), Error> {
        self.apply(Input::Custody { group, mode }).await
    }

    /// Ends custody and returns the exact next downlink counters, in one step.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub async fn release(&self, group: GroupId, mode: Mode) -> Result<Vec<(DevEui, u32)>, Error> {
        self.ask(|reply| Command::Release { group, mode, reply }).await
    }

    /// [`Input::Committed`], queued.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub async fn committed(&self, events: Vec<EventId>) -> Result<(), Error> {
        self.send(Input::Committed { events }).await
    }

    /// [`Input::CommitFailed`], queued.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub async fn commit_failed(&self, events: Vec<EventId>) -> Result<(), Error> {
        self.send(Input::CommitFailed { events }).await
    }

    /// [`Input::Reserved`], queued.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub async fn reserved(&self, entries: Vec<(DevEui, u32)>) -> Result<(), Error> {
        self.send(Input::Reserved { entries }).await
    }

    /// [`Input::Reset`], queued.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub async fn reset(&self, entries: Vec<(DevEui, u32)>) -> Result<(), Error> {
        self.send(Input::Reset { entries }).await
    }

    /// [`Input::WrittenAhead`], applied.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub async fn written_ahead(&self, sessions: Vec<(DevEui, SessionId)>) -> Result<(), Error> {
        self.apply(Input::WrittenAhead { sessions }).await
    }

    /// [`Input::CountersFrom`], applied.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub async fn counters_from(&self, entries: Vec<(DevEui, u32)>, source: CounterSource) -> Result<(), Error> {
        self.apply(Input::CountersFrom { entries, source }).await
    }

    /// [`Input::PeerProgress`], queued.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub async fn peer_progress(&self, served: Vec<Mark>, settled: Vec<Mark>) -> Result<(), Error> {
        self.send(Input::PeerProgress { served, settled }).await
    }

    /// [`Input::Settled`], queued.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub async fn settled(&self, marks: Vec<Mark>) -> Result<(), Error> {
        self.send(Input::Settled { marks }).await
    }

    /// [`Input::Offered`], queued.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub async fn offered(&self, frame: OfferedFrame) -> Result<(), Error> {
        self.send(Input::Offered { frame }).await
    }

    /// [`Bridge::queue_downlink`], applied.
    ///
    /// # Errors
    /// [`Error::Stopped`]; within, why it was not queued.
    pub async fn queue_downlink(&self, group: GroupId, device: DevEui, downlink: Downlink) -> Result<Result<(), Refused>, Error> {
        self.ask(|reply| Command::Queue { group, device, downlink, reply }).await
    }

    /// [`Input::Adr`], applied.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub async fn set_adr(&self, group: GroupId, is_on: bool) -> Result<(), Error> {
        self.apply(Input::Adr { group, is_on }).await
    }

    /// [`Input::RegisterJoining`], applied.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub async fn register_joining(&self, group: GroupId, devices: Vec<JoiningDevice>) -> Result<(), Error> {
        self.apply(Input::RegisterJoining { group, devices }).await
    }

    /// [`Input::Recorded`], applied.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub async fn recorded(&self, record: Box<DeviceRecord>) -> Result<(), Error> {
        self.apply(Input::Recorded { record }).await
    }

    /// [`Input::Records`], applied.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub async fn records(&self, records: Vec<DeviceRecord>) -> Result<(), Error> {
        self.apply(Input::Records { records }).await
    }

    /// [`Input::RestoreQueues`], applied.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub async fn restore_queues(&self, queues: Vec<(DevEui, QueueState)>) -> Result<(), Error> {
        self.apply(Input::RestoreQueues { queues }).await
    }

    /// [`Input::Encrypted`], applied.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub async fn encrypted(&self, answer: Encrypted) -> Result<(), Error> {
        self.apply(Input::Encrypted { answer }).await
    }

    /// [`Input::Import`], applied.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub async fn import(&self, states: Vec<SessionState>) -> Result<(), Error> {
        self.apply(Input::Import { states }).await
    }

    /// [`Input::Kept`], applied.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub async fn kept(&self, group: GroupId, frames: Vec<KeptFrame>) -> Result<(), Error> {
        self.apply(Input::Kept { group, frames }).await
    }

    /// A page of session states, see [`Bridge::export`].
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub async fn export(&self, group: GroupId, cursor: u32, max: usize) -> Result<(Vec<SessionState>, Option<u32>), Error> {
        self.ask(|reply| Command::Export { group, cursor, max, reply }).await
    }

    /// Counters and sizes.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub async fn stats(&self) -> Result<Stats, Error> {
        self.ask(|reply| Command::Stats { reply }).await
    }

    /// The gateways of now, by EUI.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub async fn gateways(&self) -> Result<Vec<GatewayStatus>, Error> {
        self.ask(|reply| Command::Gateways { reply }).await
    }
}

/// A tap as an operator writes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedTap {
    /// `host:port` of the other server.
    pub server: String,
    /// Whose uplinks; all if empty.
    pub gateways: Vec<GatewayEui>,
}

/// Keeps the taps in line with what their names mean, until the bridge stops. A name that cannot be resolved is tried again.
pub fn keep_taps(bridge: &BridgeHandle, taps: Vec<NamedTap>) -> impl Future<Output = ()> + Send + 'static {
    // The bridge stops with its last handle; this must not be it.
    let (commands, address) = (bridge.commands.downgrade(), bridge.address);
    async move {
        let mut known = Vec::new();
        while commands.strong_count() > 0 {
            let resolved = resolve(&taps, address).await;
            if resolved != known {
                known.clone_from(&resolved);
                let Some(commands) = commands.upgrade() else { return };
                let bridge = BridgeHandle { commands, address };
                if bridge.apply(Input::Taps { taps: resolved }).await.is_err() {
                    return;
                }
            }
            tokio::time::sleep(TAPS_RESOLVED_EVERY.to_duration()).await;
        }
    }
}

async fn resolve(taps: &[NamedTap], own: Option<SocketAddr>) -> Vec<Tap> {
    let is_reachable = |address: &SocketAddr| own.is_none_or(|own| own.is_ipv4() == address.is_ipv4());
    let mut resolved = Vec::new();
    for tap in taps {
        match tokio::net::lookup_host(&tap.server).await.map(|mut addresses| addresses.find(is_reachable)) {
            Ok(Some(to)) => resolved.push(Tap { to, gateways: tap.gateways.clone() }),
            Ok(None) => tracing::warn!(server = tap.server, "a tap has no address of this bridge's family"),
            Err(error) => tracing::warn!(server = tap.server, %error, "the name of a tap cannot be resolved"),
        }
    }
    resolved
}

/// Runs a bridge on a socket. Outputs other than datagrams come in batches from the receiver, in order.
///
/// Must be called within a tokio runtime.
#[must_use]
pub fn spawn<S: Socket>(socket: S, bridge: Bridge, clock: Clock, lease: Lease) -> (BridgeHandle, mpsc::Receiver<Vec<Output>>) {
    let (commands, command_queue) = mpsc::channel(COMMANDS_MAX);
    let (outputs, output_queue) = mpsc::channel(OUTPUT_BATCHES_MAX);
    let address = socket.local_addr().ok();
    let server = Server {
        socket,
        bridge,
        clock,
        lease,
        commands: command_queue,
        outputs,
        backlog: Vec::new(),
        out: Vec::new(),
        buffer: vec![0; DATAGRAM_BYTES_MAX + 1],
        reported: BootTime(0),
        stats: ServerStats::default(),
    };
    kit::task::spawn(server.run());
    (BridgeHandle { commands, address }, output_queue)
}

struct Server<S> {
    socket: S,
    bridge: Bridge,
    clock: Clock,
    lease: Lease,
    commands: mpsc::Receiver<Command>,
    outputs: mpsc::Sender<Vec<Output>>,
    /// Outputs for the consumer that found no room yet.
    backlog: Vec<Output>,
    /// Scratch space.
    out: Vec<Output>,
    buffer: Vec<u8>,
    /// When bad packets were last logged.
    reported: BootTime,
    stats: ServerStats,
}

impl<S: Socket> fmt::Debug for Server<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("socket", &self.socket).field("stats", &self.stats).finish_non_exhaustive()
    }
}

impl<S: Socket> Server<S> {
    async fn run(mut self) {
        loop {
            let sleep = self.until_due();
            let has_backlog = !self.backlog.is_empty();
            let command = tokio::select! {
                biased;
                permit = self.outputs.reserve(), if has_backlog => {
                    let Ok(permit) = permit else { break };
                    permit.send(std::mem::take(&mut self.backlog));
                    None
                }
                command = self.commands.recv(), if self.backlog.len() < BACKLOG_OUTPUTS_MAX => {
                    let Some(command) = command else { break };
                    Some(command)
                }
                readable = self.socket.readable() => {
                    self.stats.receive_failed += u64::from(readable.is_err());
                    None
                }
                () = tokio::time::sleep(sleep), if !has_backlog => None,
            };
            if let Some(command) = command {
                self.command(command);
            }
            self.drain_commands();
            self.drain_socket();
            self.tick_if_due();
            self.report_faults();
            self.hand_on();
        }
        tracing::debug!(address = ?self.socket.local_addr().ok(), "bridge stopped");
    }

    fn now(&self) -> Now {
        Now { boot: self.clock.boot(), wall: self.clock.wall() }
    }

    fn until_due(&self) -> Duration {
        let now = self.clock.boot();
        self.bridge.next_due().map_or(IDLE, |due| due.since(now).min(IDLE)).to_duration()
    }

    /// Under a steady stream of datagrams the timer never gets its turn.
    fn tick_if_due(&mut self) {
        if self.backlog.is_empty() && self.bridge.next_due().is_some_and(|due| due <= self.clock.boot()) {
            self.apply(Input::Tick);
        }
    }

    /// At most one line per reason and [`REPORT_EVERY`], whatever gateways send.
    fn report_faults(&mut self) {
        let now = self.clock.boot();
        if now.since(self.reported) < REPORT_EVERY {
            return;
        }
        self.reported = now;
        for fault in self.bridge.take_faults() {
            let gateway = fault.gateway.map(tracing::field::display);
            tracing::warn!(reason = fault.reason.name(), count = fault.count, last.from = %fault.from, last.gateway = gateway, "bad packets");
        }
    }

    fn drain_commands(&mut self) {
        for _ in 0..BURST {
            if self.backlog.len() >= BACKLOG_OUTPUTS_MAX {
                return;
            }
            match self.commands.try_recv() {
                Ok(command) => self.command(command),
                Err(_) => return,
            }
        }
    }

    fn command(&mut self, command: Command) {
        // Whoever asked may have gone away meanwhile; that is its business.
        match command {
            Command::Apply { input, applied } => {
                self.apply(input);
                if let Some(applied) = applied {
                    let _gone = applied.send(());
                }
            }
            Command::Release { group, mode, reply } => {
                self.apply(Input::Custody { group, mode });
                let _gone = reply.send(self.bridge.exact_counters(group));
            }
            Command::Export { group, cursor, max, reply } => {
                let _gone = reply.send(self.bridge.export(group, cursor, max));
            }
            Command::Queue { group, device, downlink, reply } => {
                let now = self.now();
                let mut out = std::mem::take(&mut self.out);
                let queued = self.bridge.queue_downlink(group, device, downlink, now, &mut out);
                self.out = out;
                self.dispatch();
                let _gone = reply.send(queued);
            }
            Command::Stats { reply } => {
                let _gone = reply.send(Stats { server: self.stats, ..self.bridge.stats() });
            }
            Command::Gateways { reply } => {
                let _gone = reply.send(self.bridge.gateways(self.clock.boot()));
            }
        }
    }

    fn drain_socket(&mut self) {
        let mut buffer = std::mem::take(&mut self.buffer);
        for _ in 0..BURST {
            match self.socket.try_recv_from(&mut buffer) {
                Ok((len, from)) => self.datagram(from, &buffer[..len]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // A gateway that went away is reported here, for an earlier acknowledgement.
                Err(_) => self.stats.receive_failed += 1,
            }
        }
        self.buffer = buffer;
    }

    fn datagram(&mut self, from: SocketAddr, bytes: &[u8]) {
        if gwmp::is_push_data(bytes) && self.backlog.len() >= LAGGING_OUTPUTS {
            self.hand_on();
            if self.backlog.len() >= LAGGING_OUTPUTS {
                self.stats.consumer_lagging += 1;
                return;
            }
        }
        self.apply(Input::Datagram { from, bytes });
    }

    fn apply(&mut self, input: Input<'_>) {
        let mut out = std::mem::take(&mut self.out);
        let now = self.now();
        self.bridge.apply(input, now, &mut out);
        self.out = out;
        self.dispatch();
    }

    /// Sends what is to be sent, and keeps the rest for the consumer.
    fn dispatch(&mut self) {
        let mut out = std::mem::take(&mut self.out);
        for output in out.drain(..) {
            match output {
                Output::Send { to, bytes } => self.transmit(&bytes, to),
                Output::Transmit(downlink) => self.downlink(&downlink),
                Output::Accept(accept) => self.accept(&accept),
                kept @ (Output::Uplink(_)
                | Output::Keep(_)
                | Output::Forget { .. }
                | Output::OfferDue(_)
                | Output::OfferKnown { .. }
                | Output::ReserveWanted { .. }
                | Output::ResetWanted(_)
                | Output::SessionChanged { .. }
                | Output::Replayed { .. }
                | Output::EncryptWanted { .. }
                | Output::Downlink { .. }
                | Output::StateDue { .. }
                | Output::RecordWanted { .. }
                | Output::Refused { .. }) => self.backlog.push(kept),
            }
        }
        self.out = out;
    }

    /// No await between the check and the send.
    fn downlink(&mut self, downlink: &Transmit) {
        if (self.lease)(downlink.group, downlink.epoch) {
            self.transmit(&downlink.bytes, downlink.to);
        } else {
            self.stats.lease_withheld += 1;
        }
    }

    fn accept(&mut self, accept: &Accept) {
        if (self.lease)(accept.group, accept.epoch) {
            self.transmit(&accept.bytes, accept.to);
        } else {
            self.stats.lease_withheld += 1;
        }
    }

    fn transmit(&mut self, bytes: &[u8], to: SocketAddr) {
        if self.socket.try_send_to(bytes, to).is_err() {
            self.stats.send_failed += 1;
        }
    }

    /// Gives the backlog to the consumer if there is room.
    fn hand_on(&mut self) {
        if !self.backlog.is_empty()
            && let Ok(permit) = self.outputs.try_reserve()
        {
            permit.send(std::mem::take(&mut self.backlog));
        }
    }
}
