//! The actor that owns the machines of all groups of a node and carries out what they decide, in order: disk, then messages.
//!
//! One turn of its loop takes whatever waits (commands, messages, time), lets the machines decide, then syncs the votes of all groups
//! in one write, and only then sends, packed so that all groups between two nodes share datagrams. It never waits for a peer.
//!
//! - [`receiving`] — from datagrams to events of machines
//! - [`sending`] — from what the machines want said to datagrams

mod receiving;
mod sending;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use contracts::custody::{Config, Durable, Effect, Event, Machine, MemberIndex, MemberSet, Message, Readiness};
use contracts::ids::{Epoch, GroupId, NodeId};
use contracts::time::{BootTime, Millis};
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::agenda::Agenda;
use super::group::{Attachment, Group, drop_reasons};
use super::hold::Hold;
use super::members::{Members, Ttls};
use super::statement::BootId;
use super::view::{Alarm, GroupConfig};
use super::wire::ATTACHMENT_BYTES_MAX;
use super::{Error, Setup, Shared};
use crate::transport::Datagram;

/// Where peers send messages that are too long for a datagram.
pub(super) const MESSAGES_PATH: &str = "/custody/messages";
/// Datagrams taken in one turn.
const DATAGRAMS_PER_TURN_MAX: usize = 64;
/// The loop looks around at least so often: at peers that went missing, and at a clock that was suspended.
const LOOK_AROUND_MS_MAX: Millis = Millis(250);
/// While much is said it looks at its peers no more often than this: there may be a thousand.
const LOOK_AROUND_MS_MIN: Millis = Millis(50);

/// What the handle asks of the actor.
#[derive(Debug)]
pub(super) enum Command {
    Add(Box<GroupConfig>, oneshot::Sender<Result<Hold, Error>>),
    Remove(GroupId, oneshot::Sender<Result<(), Error>>),
    Tell(GroupId, Told, oneshot::Sender<Result<(), Error>>),
    Release { group: GroupId, successor: Option<NodeId>, handover: Bytes, reply: oneshot::Sender<Result<Epoch, Error>> },
    Stop(oneshot::Sender<()>),
}

/// What a group's machine is told by the node.
#[derive(Debug)]
pub(super) enum Told {
    Ready(Readiness),
    Eligible(Vec<NodeId>),
    HandBackOverdue(Epoch),
}

/// A release whose outcome is told after the disk has it.
type Released = (GroupId, oneshot::Sender<Result<Epoch, Error>>, Result<Epoch, Error>);

/// How a renewal or its answer is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// With the whole id of its group.
    Whole,
    /// In a block, with the short name of its group.
    Short,
}

/// A message that leaves at the end of the turn.
struct Outgoing {
    group: GroupId,
    to: MemberIndex,
    message: Message,
    /// When the machine decided it; it leaves after the disk.
    decided: BootTime,
    form: Form,
}

pub(super) struct Driver {
    setup: Setup,
    shared: Arc<Shared>,
    boot: BootId,
    groups: BTreeMap<GroupId, Group>,
    agenda: Agenda,
    members: Members,
    missing: Vec<NodeId>,
    looked_around_at: BootTime,
    /// Of all groups: a member abstains for the longest after its start.
    ttls: Ttls,
    /// Where the request numbers of all groups start, so that they stay close together and are short in blocks.
    first_seq: u64,
    streams_out: Arc<Semaphore>,
    // What one turn leaves to be done at its end, in this order.
    persists: BTreeMap<GroupId, Durable>,
    sends: Vec<Outgoing>,
    touched: BTreeSet<GroupId>,
    released: Vec<Released>,
    /// Whose signs of life cannot be checked, and a group shared with it.
    anchors_wanted: BTreeMap<NodeId, GroupId>,
    /// Groups that were stopped because a vote could not be synced, and when they are tried again.
    stopped: BTreeMap<GroupId, BootTime>,
}

/// What the actor listens to.
pub(super) struct Inputs {
    pub(super) commands: mpsc::Receiver<Command>,
    pub(super) datagrams: mpsc::Receiver<Datagram>,
    pub(super) long_messages: mpsc::Receiver<Datagram>,
}

impl Driver {
    pub(super) fn new(setup: Setup, shared: Arc<Shared>) -> Self {
        let first_seq = fresh_seq(&setup);
        Self {
            setup,
            shared,
            boot: BootId::of_this_machine(),
            groups: BTreeMap::new(),
            agenda: Agenda::default(),
            members: Members::default(),
            missing: Vec::new(),
            looked_around_at: BootTime(0),
            ttls: Ttls::default(),
            first_seq,
            streams_out: Arc::new(Semaphore::new(sending::STREAMS_OUT_MAX)),
            persists: BTreeMap::new(),
            sends: Vec::new(),
            touched: BTreeSet::new(),
            released: Vec::new(),
            anchors_wanted: BTreeMap::new(),
            stopped: BTreeMap::new(),
        }
    }

    pub(super) async fn run(mut self, mut inputs: Inputs) {
        let mut batch = Vec::with_capacity(DATAGRAMS_PER_TURN_MAX);
        let stopped = loop {
            let wait = self.next_wake().since(self.now()).to_duration();
            tokio::select! {
                biased;
                command = inputs.commands.recv() => match command {
                    Some(Command::Stop(reply)) => break Some(reply),
                    Some(command) => self.command(command).await,
                    None => break None,
                },
                Some(message) = inputs.long_messages.recv() => self.receive(&message),
                taken = inputs.datagrams.recv_many(&mut batch, DATAGRAMS_PER_TURN_MAX) => {
                    if taken == 0 {
                        // The transport is gone; what is held runs out by itself.
                        break None;
                    }
                    for datagram in batch.drain(..) {
                        self.receive(&datagram);
                    }
                }
                () = tokio::time::sleep(wait) => {}
            }
            self.look_around();
            self.restart_stopped().await;
            self.tick();
            self.flush().await;
        };
        let now = self.now();
        for group in self.groups.values_mut() {
            group.stop(None, now);
            group.publish(now, &self.missing);
        }
        self.members.let_all_cool(&*self.setup.transport);
        if let Some(reply) = stopped {
            let _ = reply.send(());
        }
    }

    fn now(&self) -> BootTime {
        self.setup.clock.boot()
    }

    fn next_wake(&self) -> BootTime {
        let now = self.now();
        // At least a millisecond, so that a machine that always wants to be woken cannot spin.
        self.agenda.next().unwrap_or(now + LOOK_AROUND_MS_MAX).clamp(now + Millis(1), now + LOOK_AROUND_MS_MAX)
    }

    /// Which members went missing or came back.
    fn look_around(&mut self) {
        let now = self.now();
        if now < self.looked_around_at + LOOK_AROUND_MS_MIN {
            return;
        }
        self.looked_around_at = now;
        let missing = self.members.missing();
        if missing == self.missing {
            return;
        }
        let before: BTreeSet<_> = std::mem::replace(&mut self.missing, missing).into_iter().collect();
        let after: BTreeSet<_> = self.missing.iter().copied().collect();
        for node in before.symmetric_difference(&after) {
            self.touched.extend(self.members.groups_with(*node));
        }
    }

    fn tick(&mut self) {
        let now = self.now();
        if self.agenda.next().is_none_or(|at| at > now) {
            return;
        }
        for group in self.agenda.due(now) {
            self.apply(group, Event::Tick, Attachment::None);
        }
    }

    /// Gives one event to one machine and keeps what follows for the end of the turn.
    fn apply(&mut self, id: GroupId, event: Event, attachment: Attachment) -> Vec<Effect> {
        let now = self.now();
        let Some(group) = self.groups.get_mut(&id) else { return Vec::new() };
        let effects = group.apply(event, attachment, now, (self.setup.entropy)());
        self.agenda.set(id, group.due(now));
        self.touched.insert(id);
        for effect in &effects {
            match effect {
                Effect::Persist(durable) => {
                    self.persists.insert(id, *durable);
                }
                Effect::Send { to, message } => {
                    self.sends.push(Outgoing { group: id, to: *to, message: *message, decided: now, form: Form::Whole });
                }
                Effect::Elected { epoch, .. } => tracing::info!(group = %id, %epoch, "custody gained"),
                Effect::Fenced { epoch } => tracing::warn!(group = %id, %epoch, "custody ran out without a majority"),
                Effect::Released { epoch, .. } => tracing::info!(group = %id, %epoch, "custody released"),
                Effect::Superseded { epoch, by } => tracing::info!(group = %id, %epoch, %by, "custody superseded"),
                Effect::Dropped(_) => {}
            }
        }
        for _ in drop_reasons(&effects) {
            self.shared.counters.machine_dropped.add_one();
        }
        effects
    }

    async fn command(&mut self, command: Command) {
        match command {
            Command::Add(config, reply) => {
                let added = self.add(*config).await;
                let _ = reply.send(added);
            }
            Command::Remove(group, reply) => {
                let _ = reply.send(self.remove(group));
            }
            Command::Tell(group, told, reply) => {
                let _ = reply.send(self.tell(group, told));
            }
            Command::Release { group, successor, handover, reply } => match self.release(group, successor, handover) {
                Ok(epoch) => self.released.push((group, reply, Ok(epoch))),
                Err(error) => {
                    let _ = reply.send(Err(error));
                }
            },
            // Taken by the loop itself.
            Command::Stop(_) => {}
        }
    }

    async fn add(&mut self, group: GroupConfig) -> Result<Hold, Error> {
        let id = group.group;
        if self.groups.contains_key(&id) {
            return Err(Error::AlreadyThere(id));
        }
        let machine = self.start_machine(&group, self.first_seq).await?;
        let hold = Hold::new(self.setup.clock.clone());
        let readiness = group.readiness;
        let group = Group::new(group, machine, hold.clone(), self.setup.statements.clone());
        self.shared.enter(id, hold.clone(), group.view.subscribe());
        self.ttls.put(group.config.ttl);
        self.members.enter(&group.config, &*self.setup.transport, &self.shared, self.now());
        self.groups.insert(id, group);
        self.apply(id, Event::Ready(readiness), Attachment::None);
        Ok(hold)
    }

    /// The machine of a member that has just started, over what its disk holds.
    async fn start_machine(&self, group: &GroupConfig, first_seq: u64) -> Result<Machine, Error> {
        let mut config = machine_config(group, self.setup.transport.me())?;
        config.timing.abstain = self.ttls.longest().max(Some(group.ttl)).unwrap_or(group.ttl);
        let eligible = member_set(group, &group.eligible)?;
        let loaded = self.setup.votes.load(group.group).await;
        let durable = loaded.map_err(|source| Error::Load { group: group.group, source })?.unwrap_or_default();
        let seq = if durable.restored { fresh_seq(&self.setup) } else { first_seq };
        Ok(Machine::start(config, durable.into(), eligible, self.now(), seq))
    }

    /// A group that could not write its vote is as a member that died; once the disk can be read it starts again as one.
    async fn restart_stopped(&mut self) {
        let now = self.now();
        let due: Vec<_> = self.stopped.iter().filter(|(_, at)| **at <= now).map(|(id, _)| *id).collect();
        for id in due {
            let Some(config) = self.groups.get(&id).map(|group| group.config.clone()) else {
                self.stopped.remove(&id);
                continue;
            };
            match self.start_machine(&config, fresh_seq(&self.setup)).await {
                Ok(machine) => {
                    self.stopped.remove(&id);
                    if let Some(group) = self.groups.get_mut(&id) {
                        group.restart(machine);
                    }
                    tracing::info!(group = %id, "custody starts again after a vote that could not be synced");
                    self.apply(id, Event::Ready(config.readiness), Attachment::None);
                }
                Err(error) => {
                    tracing::warn!(group = %id, error = &error as &dyn std::error::Error, "custody cannot start again yet");
                    self.stopped.insert(id, now + config.ttl);
                }
            }
        }
    }

    fn remove(&mut self, id: GroupId) -> Result<(), Error> {
        let mut group = self.groups.remove(&id).ok_or(Error::UnknownGroup(id))?;
        let now = self.now();
        group.stop(None, now);
        group.publish(now, &self.missing);
        self.agenda.set(id, None);
        self.ttls.take(group.config.ttl);
        self.shared.leave(id);
        self.members.leave(&group.config, &*self.setup.transport, &self.shared);
        Ok(())
    }

    fn tell(&mut self, id: GroupId, told: Told) -> Result<(), Error> {
        let group = self.groups.get_mut(&id).ok_or(Error::UnknownGroup(id))?;
        let event = match told {
            Told::Ready(readiness) => {
                group.config.readiness = readiness;
                Event::Ready(readiness)
            }
            Told::Eligible(nodes) => {
                let eligible = member_set(&group.config, &nodes)?;
                group.config.eligible = nodes;
                Event::Eligible(eligible)
            }
            Told::HandBackOverdue(epoch) => Event::HandBackOverdue { epoch },
        };
        self.apply(id, event, Attachment::None);
        Ok(())
    }

    fn release(&mut self, id: GroupId, successor: Option<NodeId>, handover: Bytes) -> Result<Epoch, Error> {
        let group = self.groups.get_mut(&id).ok_or(Error::UnknownGroup(id))?;
        if handover.len() > ATTACHMENT_BYTES_MAX {
            return Err(Error::TooLong { bytes: handover.len() });
        }
        let named = |node| group.member(node).ok_or(Error::NotAMember { group: id, node });
        let successor = successor.map(named).transpose()?;
        if group.machine.holds(self.setup.clock.boot()).is_none() {
            return Err(Error::NotHolding(id));
        }
        group.set_handover(handover);
        let effects = self.apply(id, Event::Release { successor }, Attachment::None);
        let epoch = effects.iter().find_map(|effect| match effect {
            Effect::Released { epoch, .. } => Some(*epoch),
            Effect::Persist(_)
            | Effect::Send { .. }
            | Effect::Elected { .. }
            | Effect::Fenced { .. }
            | Effect::Superseded { .. }
            | Effect::Dropped(_) => None,
        });
        epoch.ok_or(Error::NotHolding(id))
    }

    /// The end of a turn: disk, then messages, then what the rest of the node sees.
    async fn flush(&mut self) {
        if !self.persists.is_empty() {
            self.persist().await;
        }
        self.send();
        let now = self.now();
        for id in std::mem::take(&mut self.touched) {
            if let Some(group) = self.groups.get_mut(&id) {
                group.publish(now, &self.missing);
            }
        }
        for (group, reply, outcome) in std::mem::take(&mut self.released) {
            let stopped = self.groups.get(&group).is_none_or(|group| group.alarm.is_some());
            let _ = reply.send(if stopped { Err(Error::Stopped) } else { outcome });
        }
    }

    async fn persist(&mut self) {
        let batch: Vec<_> = std::mem::take(&mut self.persists).into_iter().collect();
        let groups: BTreeSet<_> = batch.iter().map(|(group, _)| *group).collect();
        let Err(error) = self.setup.votes.persist(&batch).await else { return };
        // What is on disk now is unknown, so nothing that follows from it may leave: not now, not later.
        tracing::error!(%error, groups = groups.len(), "votes could not be synced to disk: custody of these groups stops here");
        self.shared.counters.persist_failed.add_one();
        self.sends.retain(|outgoing| !groups.contains(&outgoing.group));
        let now = self.now();
        for id in groups {
            if let Some(group) = self.groups.get_mut(&id) {
                group.stop(Some(Alarm::VoteNotPersisted(error.kind())), now);
                self.stopped.insert(id, now + group.config.ttl);
                self.agenda.set(id, None);
            }
        }
    }
}

/// Random, far below the largest number that is taken, so that it cannot run out, and no longer on the wire than it must be to be another after
/// a restart.
fn fresh_seq(setup: &Setup) -> u64 {
    (setup.entropy)() >> 30
}

fn member_set(group: &GroupConfig, nodes: &[NodeId]) -> Result<MemberSet, Error> {
    nodes.iter().map(|node| member_index(group, *node)).collect()
}

fn member_index(group: &GroupConfig, node: NodeId) -> Result<MemberIndex, Error> {
    let place = group.members.iter().position(|member| *member == node);
    let place = place.and_then(|place| u8::try_from(place).ok());
    place.map(MemberIndex).ok_or(Error::NotAMember { group: group.group, node })
}

fn machine_config(group: &GroupConfig, me: NodeId) -> Result<Config, Error> {
    let distinct: BTreeSet<_> = group.members.iter().collect();
    if distinct.len() != group.members.len() {
        return Err(Error::MemberTwice(group.group));
    }
    let members = u8::try_from(group.members.len()).unwrap_or(u8::MAX);
    let candidates = member_set(group, &group.candidates)?;
    let (me, first) = (member_index(group, me)?, member_index(group, group.first_holder)?);
    Ok(Config::new(me, members, candidates, first, group.ttl)?)
}
