//! The machine of one member for one group: its state, what it is told, what it does.

use serde::{Deserialize, Serialize};

use super::candidacy::Campaign;
use super::config::{Config, MemberIndex, MemberSet};
use super::lease::Lease;
use super::message::{EPOCH_MAX, Message};
use super::rules::Mark;
use crate::ids::Epoch;
use crate::time::{BootTime, Millis};

/// The holder of `voted_epoch` gave it up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Released {
    /// Whom it is released to; nobody at the end of a contract.
    pub successor: Option<MemberIndex>,
}

/// What must survive a restart. Never promises: they are on no disk, hence the abstention (S3).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Durable {
    /// The highest epoch this member voted in; 0 before the first vote.
    pub voted_epoch: Epoch,
    /// Whom it voted for there; `None` before the first vote, and where a restored disk does not know.
    pub voted_for: Option<MemberIndex>,
    pub released: Option<Released>,
    /// Whom a certificate of `voted_epoch` showed elected, where this member's own vote there was another's or is unknown. It is no
    /// vote: it says for whom promises are kept (S12).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub elected: Option<MemberIndex>,
    /// On a disk that was lost, or is a copy of unknown age: said by whoever put it back, for [`Disk::Restored`]. What a machine
    /// persists never has it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub restored: bool,
}

impl Durable {
    /// A vote for `candidate` in `epoch`.
    #[must_use]
    pub const fn vote(epoch: Epoch, candidate: MemberIndex) -> Self {
        Self { voted_epoch: epoch, voted_for: Some(candidate), released: None, elected: None, restored: false }
    }

    /// What was on a disk that was lost or put back from a copy.
    #[must_use]
    pub const fn into_restored(self) -> Self {
        Self { restored: true, ..self }
    }

    /// Whom this member's promises in `voted_epoch` are for: the certified winner, else whom it voted for.
    #[must_use]
    pub fn holder(&self) -> Option<MemberIndex> {
        self.elected.or(self.voted_for)
    }
}

/// What a process finds when it starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Disk {
    /// The disk that the last process of this member synced; `Durable::default()` for a new group.
    Kept(Durable),
    /// A disk that was lost (`Durable::default()`) or is a copy of unknown age. It stays that until the first [`Effect::Persist`] is
    /// synced: a process that ends before starts as restored again.
    Restored(Durable),
}

impl From<Durable> for Disk {
    fn from(durable: Durable) -> Self {
        if durable.restored { Self::Restored(Durable { restored: false, ..durable }) } else { Self::Kept(durable) }
    }
}

/// Whether this member wants custody; the driver's self-check and readiness proof decide.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Readiness {
    /// Never asks or claims. Does not end a custody: that takes a release.
    #[default]
    Unready,
    /// Takes custody when it is released to it, or when nobody came after its own.
    SuccessorOnly,
    /// Takes custody whenever the rules let it.
    Ready,
}

/// What a machine is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Event {
    /// The time named by [`Machine::next_wake`] has come.
    Tick,
    /// A message whose sender and, where it carries them, signature and certificate the driver has verified.
    Received { from: MemberIndex, message: Message },
    /// Who may be voted for at present: candidates that proved their readiness.
    Eligible(MemberSet),
    /// This member's own wish.
    Ready(Readiness),
    /// Stop holding and hand over. A member that does not hold drops it.
    Release { successor: Option<MemberIndex> },
    /// The holder of `epoch` should have given custody back by now: its renewals are refused from here on.
    HandBackOverdue { epoch: Epoch },
    /// The process ends: fenced at once, deaf from here on.
    Stop,
}

/// What the driver carries out, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Effect {
    /// Sync this record before any later effect.
    Persist(Durable),
    Send {
        to: MemberIndex,
        message: Message,
    },
    /// This member holds `epoch`; the grants of `grants` (itself among them) are the certificate.
    Elected {
        epoch: Epoch,
        grants: MemberSet,
    },
    /// The lease ran out without a majority; the epoch is over here.
    Fenced {
        epoch: Epoch,
    },
    /// This member stopped holding by command; comes before the releases that tell others.
    Released {
        epoch: Epoch,
        successor: Option<MemberIndex>,
    },
    /// A vote for, or certificate of, the higher epoch `by` ended this member's custody of `epoch`.
    Superseded {
        epoch: Epoch,
        by: Epoch,
    },
    /// Nothing came of the event; to be counted.
    Dropped(DropReason),
}

/// Why an event came to nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DropReason {
    /// The sender is not in the member list, or is this member.
    Stranger,
    /// The sender may only vote.
    NotACandidate,
    /// An epoch above [`EPOCH_MAX`].
    EpochTooLarge,
    /// An answer to nothing that is still open.
    Stale,
    /// A release of another epoch, or not by the one voted for (S11), or told before.
    NotReleasable,
    /// A command to release what is not held.
    NotHolding,
    /// This member has to hear the others first.
    Recovering,
    Stopped,
}

/// A promise not to vote for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Promise {
    pub(super) to: MemberIndex,
    pub(super) until: BootTime,
}

/// Telling that an epoch was released, until a higher one is seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Releasing {
    pub(super) epoch: Epoch,
    pub(super) successor: Option<MemberIndex>,
    pub(super) send_at: BootTime,
}

/// Learning what a restored disk does not know.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Recovery {
    pub(super) seq: u64,
    pub(super) heard: MemberSet,
    pub(super) highest: Epoch,
    pub(super) send_at: BootTime,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Role {
    Recovering(Recovery),
    Follower,
    Asking(Campaign),
    Claiming(Lease),
    Holding(Lease),
    Stopped,
}

/// The role of a machine, for people and tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RoleName {
    Recovering,
    Follower,
    Asking,
    Claiming,
    Holding,
    Stopped,
}

/// A machine at one instant, for dashboards and logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    pub role: RoleName,
    pub durable: Durable,
    /// The epoch held now, and for how long if no answer comes.
    pub holds: Option<Epoch>,
    pub hold_left: Millis,
    /// Whom this member may not be voted away from, and for how long.
    pub promised_to: Option<MemberIndex>,
    pub promise_left: Millis,
    pub abstain_left: Millis,
}

/// One member's part in the custody of one group. Equal machines behave alike.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Machine {
    pub(super) config: Config,
    pub(super) durable: Durable,
    pub(super) role: Role,
    pub(super) promise: Option<Promise>,
    /// Restarted: votes for nobody but `voted_for` until then (S3).
    pub(super) abstain_until: Option<BootTime>,
    /// Released: nobody but the successor is granted until then (L5).
    pub(super) exclusive_until: Option<BootTime>,
    /// Lost a duel: asks and claims nothing until then (L3).
    pub(super) silent_until: Option<BootTime>,
    /// A claim failed: the next try comes then.
    pub(super) retry_at: Option<BootTime>,
    pub(super) releasing: Option<Releasing>,
    pub(super) overdue: Option<Epoch>,
    pub(super) eligible: MemberSet,
    pub(super) readiness: Readiness,
    /// The highest epoch that any answer named.
    pub(super) highest_named: Epoch,
    pub(super) first_seq: u64,
    /// Of the last request since the last vote. Together with the epoch voted in it is never used twice.
    pub(super) seq: u64,
}

impl Machine {
    /// A process starts. `eligible`: see [`Event::Eligible`]. `seq`: where request numbers start; it need not be new after a
    /// restart with the disk kept, but must be (take random bits) with a restored one.
    /// Nothing happens before the first [`Event::Tick`], which is due at once.
    ///
    /// # Panics
    /// If `config` is invalid: it comes from a contract, which is checked where it is read ([`Config::validate`]).
    #[must_use]
    pub fn start(config: Config, disk: Disk, eligible: MemberSet, now: BootTime, seq: u64) -> Self {
        assert_eq!(config.validate(), Ok(()), "the member list of a contract in force is valid");
        let (durable, role) = match disk {
            Disk::Kept(durable) => (durable, Role::Follower),
            Disk::Restored(durable) => {
                let recovery = Recovery { seq, heard: MemberSet::EMPTY, highest: Epoch(0), send_at: now };
                (durable, Role::Recovering(recovery))
            }
        };
        let mut machine = Self {
            config,
            durable,
            role,
            promise: None,
            abstain_until: config.rules.has(Mark::S3).then(|| now + config.timing.abstain),
            exclusive_until: None,
            silent_until: None,
            retry_at: None,
            releasing: None,
            overdue: None,
            eligible,
            readiness: Readiness::Unready,
            highest_named: durable.voted_epoch,
            first_seq: seq,
            seq,
        };
        machine.name_first_holder();
        machine
    }

    /// What `event` leads to. `now` never runs backwards within a process. `entropy`: any 64 bits, new at each call; they make the random delay
    /// after a failed claim (L3).
    pub fn apply(&mut self, event: Event, now: BootTime, entropy: u64) -> Vec<Effect> {
        let mut effects = Vec::new();
        if self.role == Role::Stopped {
            return vec![Effect::Dropped(DropReason::Stopped)];
        }
        self.expire(now, entropy, &mut effects);
        match event {
            Event::Tick => {}
            Event::Received { from, message } => self.receive(from, message, now, entropy, &mut effects),
            Event::Eligible(members) => self.eligible = members,
            Event::Ready(readiness) => self.readiness = readiness,
            Event::Release { successor } => self.release(successor, now, &mut effects),
            Event::HandBackOverdue { epoch } => self.overdue = Some(epoch),
            Event::Stop => self.stop(&mut effects),
        }
        self.pursue(now, &mut effects);
        if !self.config.rules.has(Mark::S2) {
            effects.sort_by_key(|effect| matches!(effect, Effect::Persist(_)));
        }
        effects
    }

    /// The epoch this member holds at `now`. **Ask directly before each act** (downlink, join, session change, counter reservation), with no await
    /// between; it needs no tick to become `None`.
    #[must_use]
    pub fn holds(&self, now: BootTime) -> Option<Epoch> {
        match &self.role {
            Role::Holding(lease) => self.lease_until(lease).filter(|until| now < *until).map(|_| lease.epoch),
            Role::Recovering(_) | Role::Follower | Role::Asking(_) | Role::Claiming(_) | Role::Stopped => None,
        }
    }

    /// When the next [`Event::Tick`] is due if nothing else happens; `None` if only a message can change anything.
    #[must_use]
    pub fn next_wake(&self, now: BootTime) -> Option<BootTime> {
        let role = match &self.role {
            Role::Recovering(recovery) => Some(recovery.send_at),
            Role::Follower => match self.may_ask(now) {
                Ok(()) => Some(now),
                Err(later) => later,
            },
            Role::Asking(campaign) => campaign.next_ask(&self.config),
            Role::Claiming(claim) => Some(self.next_claim(claim, now)),
            Role::Holding(lease) => {
                let next = self.next_renewal(lease);
                Some(self.lease_until(lease).filter(|until| *until > now).map_or(next, |until| until.min(next)))
            }
            Role::Stopped => return None,
        };
        let releasing = self.releasing.map(|releasing| releasing.send_at);
        role.into_iter().chain(releasing).min()
    }

    /// What is or must be on disk.
    #[must_use]
    pub const fn durable(&self) -> Durable {
        self.durable
    }

    #[must_use]
    pub const fn config(&self) -> &Config {
        &self.config
    }

    #[must_use]
    pub const fn role(&self) -> RoleName {
        match self.role {
            Role::Recovering(_) => RoleName::Recovering,
            Role::Follower => RoleName::Follower,
            Role::Asking(_) => RoleName::Asking,
            Role::Claiming(_) => RoleName::Claiming,
            Role::Holding(_) => RoleName::Holding,
            Role::Stopped => RoleName::Stopped,
        }
    }

    #[must_use]
    pub fn view(&self, now: BootTime) -> View {
        let hold_until = match &self.role {
            Role::Holding(lease) => self.lease_until(lease),
            Role::Recovering(_) | Role::Follower | Role::Asking(_) | Role::Claiming(_) | Role::Stopped => None,
        };
        let promise = self.promise.filter(|promise| promise.until > now);
        let left = |until: Option<BootTime>| until.map_or(Millis::ZERO, |until| until.since(now));
        View {
            role: self.role(),
            durable: self.durable,
            holds: self.holds(now),
            hold_left: left(hold_until),
            promised_to: promise.map(|promise| promise.to),
            promise_left: left(promise.map(|promise| promise.until)),
            abstain_left: left(self.abstain_until),
        }
    }

    /// Where nobody was ever voted for, the contract says who may be first. Nowhere else (S10).
    pub(super) fn name_first_holder(&mut self) {
        let never_voted = self.durable.voted_epoch == Epoch(0) && self.durable.voted_for.is_none();
        let recovering = matches!(self.role, Role::Recovering(_));
        if (never_voted && !recovering) || !self.config.rules.has(Mark::S10) {
            self.durable.voted_for = Some(self.config.first_holder);
        }
    }

    /// Lets run out what has run out at `now`.
    fn expire(&mut self, now: BootTime, entropy: u64, effects: &mut Vec<Effect>) {
        self.promise = self.promise.filter(|promise| promise.until > now);
        for until in [&mut self.abstain_until, &mut self.exclusive_until, &mut self.silent_until, &mut self.retry_at] {
            *until = until.filter(|until| *until > now);
        }
        let (hold, rules) = (self.hold(), self.config.rules);
        if let Role::Claiming(lease) | Role::Holding(lease) = &mut self.role {
            lease.forget(now, hold);
        }
        match &self.role {
            Role::Holding(lease) if rules.has(Mark::L1) && self.lease_until(lease).is_none() => {
                effects.push(Effect::Fenced { epoch: lease.epoch });
                self.role = Role::Follower;
            }
            Role::Claiming(claim) if rules.has(Mark::S7) && claim.since + hold <= now => self.fail_claim(now, entropy),
            Role::Holding(_) | Role::Claiming(_) => {}
            Role::Recovering(_) | Role::Follower | Role::Asking(_) | Role::Stopped => {}
        }
    }

    fn receive(&mut self, from: MemberIndex, message: Message, now: BootTime, entropy: u64, effects: &mut Vec<Effect>) {
        if !self.config.is_member(from) || from == self.config.me {
            return effects.push(Effect::Dropped(DropReason::Stranger));
        }
        if message.epoch() > EPOCH_MAX {
            return effects.push(Effect::Dropped(DropReason::EpochTooLarge));
        }
        if self.releasing.is_some_and(|releasing| message.epoch() > releasing.epoch) {
            self.releasing = None;
        }
        match message {
            Message::Renew { .. } | Message::Ask { .. } | Message::Claim { .. } | Message::Release { .. }
                if !self.config.candidates.contains(from) =>
            {
                effects.push(Effect::Dropped(DropReason::NotACandidate));
            }
            Message::Renew { epoch, seq, certified } => self.answer_renew(from, epoch, seq, certified, now, effects),
            Message::Ask { seq, .. } => self.answer_ask(from, seq, now, effects),
            Message::Claim { epoch, seq } => self.answer_claim(from, epoch, seq, now, effects),
            Message::Release { epoch, successor } => self.accept_release(from, epoch, successor, now, effects),
            Message::Query { seq } => self.answer_query(from, seq, effects),
            Message::Renewed { epoch, seq } => self.count_renewed(from, epoch, seq, now, effects),
            Message::RenewRefused { epoch, refusal, .. } => self.note_renew_refused(from, epoch, refusal, effects),
            Message::AskYes { seq, voted_epoch } => self.count_yes(from, seq, voted_epoch, now, effects),
            Message::AskNo { seq, refusal } => self.note_no(from, seq, refusal, now, effects),
            Message::Grant { epoch, seq } => self.count_grant(from, epoch, seq, now, effects),
            Message::ClaimRefused { epoch, refusal, .. } => self.note_claim_refused(from, epoch, refusal, now, entropy, effects),
            Message::QueryAnswer { seq, voted_epoch } => self.count_query_answer(from, seq, voted_epoch, now, effects),
        }
    }

    fn stop(&mut self, effects: &mut Vec<Effect>) {
        if let Role::Holding(lease) = &self.role {
            effects.push(Effect::Fenced { epoch: lease.epoch });
        }
        self.role = Role::Stopped;
        self.releasing = None;
    }

    /// How long promises count for this member (S8).
    pub(super) const fn hold(&self) -> Millis {
        if self.config.rules.has(Mark::S8) { self.config.timing.hold } else { self.config.timing.ttl }
    }

    /// Has the record synced before whatever is sent from here on; a record that nothing was sent after need not be synced itself.
    pub(super) fn persist(&self, effects: &mut Vec<Effect>) {
        let last_sent = effects.iter().rposition(|effect| matches!(effect, Effect::Send { .. }));
        let obsolete = effects.iter().rposition(|effect| matches!(effect, Effect::Persist(_)));
        if let Some(obsolete) = obsolete.filter(|obsolete| last_sent < Some(*obsolete)) {
            effects.remove(obsolete);
        }
        effects.push(Effect::Persist(self.durable));
    }

    pub(super) fn broadcast(&self, message: Message, effects: &mut Vec<Effect>) {
        effects.extend(self.config.others().map(|to| Effect::Send { to, message }));
    }
}
