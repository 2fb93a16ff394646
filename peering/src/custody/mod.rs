//! Custody over a transport: drives the pure machines of `contracts::custody` for all groups of a node.
//!
//! Used by edge nodes, which may hold, and by the arbitrator, which only votes. [`start`] gives a [`CustodyHandle`] and the routes
//! that peers send long messages to.
//!
//! # Layout
//! - [`statement`], [`certificate`] — what is signed, and the proof of an election (pure)
//! - [`audit`] — who broke the rules, recomputed from signed statements (pure)
//! - [`view`] — how a group is described, and what the node sees of it
//! - [`hold`] — the check before each act
//! - [`votes`] — votes on disk
//! - `wire`, `group`, `driver` — bytes, one group, the actor; its `agenda` of when, its `members` of whom

mod agenda;
pub mod audit;
pub mod certificate;
mod driver;
mod group;
#[cfg(test)]
mod group_tests;
pub mod hold;
pub mod life;
mod members;
pub mod statement;
pub mod view;
pub mod votes;
pub mod wire;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::{Extension, Router, routing};
use bytes::Bytes;
use contracts::custody::Readiness;
use contracts::envelope::Keypair;
use contracts::ids::{Epoch, GroupId, NodeId};
use kit::clock::Clock;
use kit::problem::Problem;
use serde::Serialize;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

pub use self::certificate::Certificate;
pub use self::hold::Hold;
pub use self::view::{Alarm, CustodyView, Gained, GroupConfig, ReceivedRelease, Role, Stated};
pub use self::votes::{FileVotes, VoteStore};

use self::driver::{Command, Driver, Inputs, MESSAGES_PATH, Told};
use self::wire::MESSAGE_BYTES_MAX;
use crate::transport::{Counter, Datagram, PeerIdentity, Transport};

/// Commands that wait for the actor.
const COMMANDS_QUEUED_MAX: usize = 256;
/// Long messages of all peers that are being read or wait for the actor.
const LONG_MESSAGES_MAX: usize = 8;

/// Why a command was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0} is already driven here")]
    AlreadyThere(GroupId),
    #[error("{0} is not driven here")]
    UnknownGroup(GroupId),
    #[error("{node} is not a member of {group}")]
    NotAMember { group: GroupId, node: NodeId },
    #[error("a node is listed twice among the members of {0}")]
    MemberTwice(GroupId),
    #[error("the group cannot be")]
    Config(#[from] contracts::custody::Error),
    #[error("the votes of {group} cannot be read")]
    Load { group: GroupId, source: io::Error },
    #[error("{0} is not held here")]
    NotHolding(GroupId),
    #[error("{bytes} bytes are too many to send with a message")]
    TooLong { bytes: usize },
    #[error("custody is stopped")]
    Stopped,
    #[error("the transport's datagrams were already taken")]
    DatagramsTaken,
}

/// Gives the newest write-ahead records of a group, which go with each vote; opaque here, at most
/// [`wire::ATTACHMENT_BYTES_MAX`] bytes. Called by the actor: it must answer from memory.
pub type RecordSource = Arc<dyn Fn(GroupId) -> Bytes + Send + Sync>;

/// Gets every signed statement about custody that this node makes or verifies, repetitions too: material for evidence.
/// Called by the actor: it must only take note.
pub type StatementSink = Arc<dyn Fn(Stated) + Send + Sync>;

/// Gives 64 fresh random bits.
pub type Entropy = Arc<dyn Fn() -> u64 + Send + Sync>;

/// What the driver works with.
#[derive(Clone)]
pub struct Setup {
    pub transport: Arc<dyn Transport>,
    /// Signs this node's statements; the transport's key.
    pub keypair: Keypair,
    pub clock: Clock,
    pub votes: Arc<dyn VoteStore>,
    pub records: RecordSource,
    pub statements: Option<StatementSink>,
    pub entropy: Entropy,
}

impl Setup {
    /// With the operating system's randomness, no records and nobody who keeps statements.
    #[must_use]
    pub fn new(transport: Arc<dyn Transport>, keypair: Keypair, clock: Clock, votes: Arc<dyn VoteStore>) -> Self {
        let records: RecordSource = Arc::new(|_| Bytes::new());
        Self { transport, keypair, clock, votes, records, statements: None, entropy: os_entropy() }
    }
}

/// The operating system's randomness.
#[must_use]
pub fn os_entropy() -> Entropy {
    // Without randomness two candidates may duel longer; nothing becomes unsafe.
    Arc::new(|| getrandom::u64().unwrap_or_default())
}

impl fmt::Debug for Setup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Setup").field("transport", &self.transport).field("votes", &self.votes).finish_non_exhaustive()
    }
}

/// What was counted since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Readable messages for one group each.
    pub received: u64,
    pub dropped_malformed: u64,
    pub dropped_strangers: u64,
    pub dropped_unknown_group: u64,
    /// A signature, certificate or attachment that does not verify.
    pub dropped_forged: u64,
    /// Claims and renewals without a fresh sign of life.
    pub dropped_unproven: u64,
    pub dropped_rate: u64,
    pub dropped_busy: u64,
    /// The machine made nothing of them: late, repeated, out of turn.
    pub dropped_by_machine: u64,
    pub datagrams_sent: u64,
    pub streams_sent: u64,
    /// Nowhere to send to, too long, or too many at a time; the protocol repeats what matters.
    pub sends_dropped: u64,
    pub persist_failed: u64,
}

#[derive(Debug, Default)]
struct Counters {
    received: Counter,
    malformed: Counter,
    strangers: Counter,
    unknown_group: Counter,
    forged: Counter,
    unproven: Counter,
    rate: Counter,
    busy: Counter,
    machine_dropped: Counter,
    datagrams_sent: Counter,
    streams_sent: Counter,
    sends_dropped: Counter,
    persist_failed: Counter,
}

#[derive(Debug)]
struct Entry {
    hold: Hold,
    view: watch::Receiver<CustodyView>,
}

/// What actor, handle and routes share.
#[derive(Debug, Default)]
struct Shared {
    groups: RwLock<BTreeMap<GroupId, Entry>>,
    /// All members of all groups, this node left out.
    members: RwLock<BTreeSet<NodeId>>,
    counters: Counters,
}

fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn enter(&self, group: GroupId, hold: Hold, view: watch::Receiver<CustodyView>) {
        write(&self.groups).insert(group, Entry { hold, view });
    }

    fn leave(&self, group: GroupId) {
        write(&self.groups).remove(&group);
    }

    fn add_member(&self, member: NodeId) {
        write(&self.members).insert(member);
    }

    fn remove_member(&self, member: NodeId) {
        write(&self.members).remove(&member);
    }
}

/// Starts the actor on the current tokio runtime. The routes are to be served to peers, beside others.
///
/// The actor ends with [`CustodyHandle::stop`], or when the last handle is dropped; then nothing is held.
///
/// # Errors
/// [`Error::DatagramsTaken`] if somebody else receives the transport's datagrams.
pub fn start(setup: Setup) -> Result<(CustodyHandle, Router), Error> {
    let datagrams = setup.transport.take_datagrams().ok_or(Error::DatagramsTaken)?;
    let shared = Arc::new(Shared::default());
    let (commands, commands_taken) = mpsc::channel(COMMANDS_QUEUED_MAX);
    let (long_messages, long_messages_taken) = mpsc::channel(LONG_MESSAGES_MAX);
    let routes = Routes { shared: Arc::clone(&shared), long_messages, places: Arc::new(Semaphore::new(LONG_MESSAGES_MAX)) };
    let inputs = Inputs { commands: commands_taken, datagrams, long_messages: long_messages_taken };
    kit::task::spawn(Driver::new(setup, Arc::clone(&shared)).run(inputs));
    Ok((CustodyHandle { commands, shared }, routes.router()))
}

/// The rest of the node's way to custody; clones are the same.
#[derive(Debug, Clone)]
pub struct CustodyHandle {
    commands: mpsc::Sender<Command>,
    shared: Arc<Shared>,
}

impl CustodyHandle {
    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.map_err(|_| Error::Stopped)?;
        answer.await.map_err(|_| Error::Stopped)
    }

    /// Takes part in a group from now on; for one ttl as a member that restarted.
    ///
    /// # Errors
    /// The group is not valid, this node is not in it, it is already driven, or its votes cannot be read.
    pub async fn add_group(&self, config: GroupConfig) -> Result<Hold, Error> {
        self.ask(|reply| Command::Add(Box::new(config), reply)).await?
    }

    /// Takes part no more; what is held ends at once, without release.
    ///
    /// # Errors
    /// The group is not driven here.
    pub async fn remove_group(&self, group: GroupId) -> Result<(), Error> {
        self.ask(|reply| Command::Remove(group, reply)).await?
    }

    async fn tell(&self, group: GroupId, told: Told) -> Result<(), Error> {
        self.ask(|reply| Command::Tell(group, told, reply)).await?
    }

    /// Whether this node wants custody: [`Readiness::Ready`] or [`Readiness::Unready`]. Does not end a custody: that takes a release.
    ///
    /// # Errors
    /// The group is not driven here.
    pub async fn set_ready(&self, group: GroupId, ready: bool) -> Result<(), Error> {
        self.set_readiness(group, if ready { Readiness::Ready } else { Readiness::Unready }).await
    }

    /// As [`Self::set_ready`], with the shade between.
    ///
    /// # Errors
    /// The group is not driven here.
    pub async fn set_readiness(&self, group: GroupId, readiness: Readiness) -> Result<(), Error> {
        self.tell(group, Told::Ready(readiness)).await
    }

    /// Which candidates this member may vote for: those that proved their readiness.
    ///
    /// # Errors
    /// The group is not driven here, or a node is not a member.
    pub async fn set_eligible(&self, group: GroupId, nodes: Vec<NodeId>) -> Result<(), Error> {
        self.tell(group, Told::Eligible(nodes)).await
    }

    /// The holder of `epoch` should have given custody back by now: its renewals are refused from here on.
    ///
    /// # Errors
    /// The group is not driven here.
    pub async fn set_hand_back_overdue(&self, group: GroupId, epoch: Epoch) -> Result<(), Error> {
        self.tell(group, Told::HandBackOverdue(epoch)).await
    }

    /// Gives up custody, in favour of `successor` if there is one; ends when this node's disk has it. The caller has stopped acting
    /// already: `handover` carries its exact counters and is sent as it is, at most [`wire::ATTACHMENT_BYTES_MAX`] bytes. Gives the epoch released.
    ///
    /// # Errors
    /// Nothing is held, the successor is no member, or the handover is too long.
    pub async fn release(&self, group: GroupId, successor: Option<NodeId>, handover: Bytes) -> Result<Epoch, Error> {
        self.ask(|reply| Command::Release { group, successor, handover, reply }).await?
    }

    /// The group's view now and with every change; none if it is not driven here. It ends when the group is removed.
    #[must_use]
    pub fn subscribe(&self, group: GroupId) -> Option<watch::Receiver<CustodyView>> {
        read(&self.shared.groups).get(&group).map(|entry| entry.view.clone())
    }

    /// The lock-free check of one group, to be kept by whoever acts.
    #[must_use]
    pub fn hold(&self, group: GroupId) -> Option<Hold> {
        read(&self.shared.groups).get(&group).map(|entry| entry.hold.clone())
    }

    /// Whether this node holds `epoch` of `group` at this moment; no await, exact to the millisecond.
    #[must_use]
    pub fn holds(&self, group: GroupId, epoch: Epoch) -> bool {
        read(&self.shared.groups).get(&group).is_some_and(|entry| entry.hold.holds(epoch))
    }

    #[must_use]
    pub fn counts(&self) -> Counts {
        let counters = &self.shared.counters;
        Counts {
            received: counters.received.get(),
            dropped_malformed: counters.malformed.get(),
            dropped_strangers: counters.strangers.get(),
            dropped_unknown_group: counters.unknown_group.get(),
            dropped_forged: counters.forged.get(),
            dropped_unproven: counters.unproven.get(),
            dropped_rate: counters.rate.get(),
            dropped_busy: counters.busy.get(),
            dropped_by_machine: counters.machine_dropped.get(),
            datagrams_sent: counters.datagrams_sent.get(),
            streams_sent: counters.streams_sent.get(),
            sends_dropped: counters.sends_dropped.get(),
            persist_failed: counters.persist_failed.get(),
        }
    }

    /// Stops the actor without a release: everything held ends now.
    pub async fn stop(&self) {
        let _ = self.ask(Command::Stop).await;
    }
}

/// The routes for messages that are too long for a datagram.
#[derive(Debug, Clone)]
struct Routes {
    shared: Arc<Shared>,
    long_messages: mpsc::Sender<Datagram>,
    places: Arc<Semaphore>,
}

impl Routes {
    fn router(self) -> Router {
        Router::new()
            .route(MESSAGES_PATH, routing::post(receive_messages))
            .layer(DefaultBodyLimit::max(MESSAGE_BYTES_MAX))
            .with_state(self)
    }
}

/// Members only, and only so many at a time: bodies are held in memory.
async fn receive_messages(
    State(routes): State<Routes>,
    Extension(PeerIdentity(from)): Extension<PeerIdentity>,
    body: axum::body::Body,
) -> Result<StatusCode, Problem> {
    let counters = &routes.shared.counters;
    if !read(&routes.shared.members).contains(&from) {
        counters.strangers.add_one();
        return Err(Problem::forbidden("only members of a group that is driven here may send custody messages"));
    }
    let busy = || {
        counters.busy.add_one();
        Problem::unavailable("too many custody messages at a time")
    };
    let _place = routes.places.try_acquire().map_err(|_| busy())?;
    let bytes = axum::body::to_bytes(body, MESSAGE_BYTES_MAX).await.map_err(|_| {
        counters.malformed.add_one();
        Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", "the messages are too long or were cut short")
    })?;
    routes.long_messages.try_send(Datagram { from, bytes }).map_err(|_| busy())?;
    Ok(StatusCode::ACCEPTED)
}
