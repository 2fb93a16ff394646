//! The owner of the UDP socket: it feeds the bridge, sends what may be sent, and hands on the rest in bounded batches.
//!
//! The lease is checked directly before a downlink is handed to the kernel, without an await in between. If the consumer does not take its
//! outputs, `PUSH_DATA` is dropped and counted until it does; memory stays bounded.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use contracts::ids::{Epoch, GroupId};
use contracts::time::{BootTime, Millis};
use kit::clock::Clock;
use tokio::sync::mpsc;

pub use self::handle::BridgeHandle;
use self::handle::Command;
pub use self::named_taps::{NamedTap, keep_taps};
pub use self::socket::{Socket, bind};
use crate::bridge::Bridge;
use crate::bridge::io::{Accept, Input, Now, Output, Transmit};
use crate::gwmp::{self, DATAGRAM_BYTES_MAX};
use crate::stats::{ServerStats, Stats};

mod handle;
mod named_taps;
mod socket;

/// The port of packet forwarders.
pub const PORT: u16 = 1_700;

/// Batches of outputs that wait for the consumer.
const OUTPUT_BATCHES_MAX: usize = 64;
/// Commands that wait for the bridge.
const COMMANDS_MAX: usize = 1_024;
/// Outputs that wait for room; beyond, no command is taken.
const BACKLOG_OUTPUTS_MAX: usize = 24_576;
/// With so many of them `PUSH_DATA` is no longer looked at: a second of heavy load, while the disk of the consumer stands still.
const LAGGING_OUTPUTS: usize = 16_384;
/// Datagrams or commands handled before the other side gets its turn.
const BURST: usize = 64;
/// Longest sleep without anything due.
const IDLE: Millis = Millis::from_secs(1);
/// What is due was done before the wait; if a deadline stays in the past all the same, that costs a turn per millisecond and not a core.
const TURN_MIN: Millis = Millis(1);

/// Bad packets are logged so often.
const REPORT_EVERY: Millis = Millis::from_secs(10);

/// Says whether this node's lease on a group holds in an epoch, now.
pub type Lease = Arc<dyn Fn(GroupId, Epoch) -> bool + Send + Sync>;

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

/// Runs a bridge on a socket. Outputs other than datagrams come in batches from the receiver, in order.
///
/// Must be called within a tokio runtime.
#[must_use]
pub fn spawn<S: Socket>(socket: S, bridge: Bridge, clock: Clock, lease: Lease) -> (BridgeHandle, mpsc::Receiver<Vec<Output>>) {
    start(socket, bridge, clock, lease, true)
}

/// As [`spawn`], but the socket is not looked at before [`BridgeHandle::listen`]: what gateways send meanwhile waits in the kernel. A bridge
/// that listened before it knows its sessions would throw their frames away, and forwarders repeat nothing.
#[must_use]
pub fn spawn_waiting<S: Socket>(
    socket: S,
    bridge: Bridge,
    clock: Clock,
    lease: Lease,
) -> (BridgeHandle, mpsc::Receiver<Vec<Output>>) {
    start(socket, bridge, clock, lease, false)
}

fn start<S: Socket>(
    socket: S,
    bridge: Bridge,
    clock: Clock,
    lease: Lease,
    listens: bool,
) -> (BridgeHandle, mpsc::Receiver<Vec<Output>>) {
    let (commands, command_queue) = mpsc::channel(COMMANDS_MAX);
    let (outputs, output_queue) = mpsc::channel(OUTPUT_BATCHES_MAX);
    let address = socket.local_addr().ok();
    let server = Server {
        socket,
        listens,
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
    /// Whether datagrams are taken.
    listens: bool,
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
        let mut due = self.bridge.next_due();
        loop {
            let sleep = self.until(due);
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
                readable = self.socket.readable(), if self.listens => {
                    self.stats.receive_failed += u64::from(readable.is_err());
                    None
                }
                () = tokio::time::sleep(sleep), if !has_backlog => None,
            };
            if let Some(command) = command {
                self.command(command);
            }
            self.drain_commands();
            if self.listens {
                self.drain_socket();
            }
            due = self.tick_if_due();
            self.report_faults();
            self.hand_on();
        }
        tracing::debug!(address = ?self.socket.local_addr().ok(), "bridge stopped");
    }

    fn now(&self) -> Now {
        Now { boot: self.clock.boot(), wall: self.clock.wall() }
    }

    fn until(&self, due: Option<BootTime>) -> Duration {
        let now = self.clock.boot();
        due.map_or(IDLE, |due| due.since(now).clamp(TURN_MIN, IDLE)).to_duration()
    }

    /// Under a steady stream of datagrams the timer never gets its turn. Says what is due next.
    fn tick_if_due(&mut self) -> Option<BootTime> {
        let due = self.bridge.next_due();
        let is_due = self.backlog.is_empty() && due.is_some_and(|due| due <= self.clock.boot());
        if !is_due {
            return due;
        }
        self.apply(Input::Tick);
        self.bridge.next_due()
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
            let from = fault.from.map(tracing::field::display);
            tracing::warn!(
                reason = fault.reason.name(),
                count = fault.count,
                last.from = from,
                last.gateway = gateway,
                "dropped"
            );
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
            Command::Listen => self.listens = true,
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
            Command::RadioSigns { group, reply } => {
                let _gone = reply.send(self.bridge.radio_signs(group, self.clock.boot()));
            }
            Command::TakeMargins { group, max, reply } => {
                let _gone = reply.send(self.bridge.take_margins(group, max));
            }
            Command::Devices { cursor, max, reply } => {
                let _gone = reply.send(self.bridge.devices(cursor, max, self.now()));
            }
            Command::Coverage { group, reply } => {
                let _gone = reply.send(self.bridge.coverage(group));
            }
            Command::Gaps { min, max, reply } => {
                let _gone = reply.send(self.bridge.gaps(min, max));
            }
            Command::DutyCycle { reply } => {
                let _gone = reply.send(self.bridge.duty_cycle(self.clock.boot()));
            }
            Command::AirTime { reply } => {
                let _gone = reply.send(self.bridge.air_time(self.clock.boot()));
            }
            Command::Routes { reply } => {
                let _gone = reply.send(self.bridge.routes(self.now()));
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
                Output::Transmit(Transmit { group, epoch, to, bytes, .. })
                | Output::Accept(Accept { group, epoch, to, bytes, .. }) => {
                    self.transmit_if_leased(group, epoch, &bytes, to);
                }
                kept @ (Output::Uplink(_)
                | Output::Keep(_)
                | Output::Await { .. }
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
                | Output::RecordsMissing { .. }
                | Output::LinkRecordWanted { .. }
                | Output::Refused { .. }) => self.backlog.push(kept),
            }
        }
        self.out = out;
    }

    /// No await between the check and the send.
    fn transmit_if_leased(&mut self, group: GroupId, epoch: Epoch, bytes: &[u8], to: SocketAddr) {
        if (self.lease)(group, epoch) {
            self.transmit(bytes, to);
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
