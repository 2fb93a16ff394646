//! One group at this node: its machine, and what travels with the machine's messages: signatures, records, certificates, handovers.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use contracts::custody::{self, DropReason, Effect, Event, Machine, MemberIndex, Message, RoleName};
use contracts::envelope::{Envelope, Keypair, Statement, Verified};
use contracts::ids::{Epoch, GroupId, NodeId};
use contracts::time::BootTime;
use tokio::sync::watch;

use super::StatementSink;
use super::agenda::Due;
use super::certificate::{self, Certificate};
use super::hold::Hold;
use super::life;
use super::statement::{Ask, BootId, Digest, Grant, MemberClock, Promised, RefusalStatement, Refused, Release};
use super::view::{Alarm, CustodyView, Gained, GroupConfig, ReceivedRelease, Role, Stated};
use super::wire::{Blob, Said, Signed};

/// What every group of a node signs and stamps with.
pub(super) struct Signer<'a> {
    pub(super) keypair: &'a Keypair,
    pub(super) boot: BootId,
    pub(super) now: BootTime,
    pub(super) statements: Option<&'a StatementSink>,
    /// The newest sign of life that was heard of another member.
    pub(super) heard: &'a dyn Fn(NodeId) -> Option<life::Shown>,
}

impl Signer<'_> {
    fn sign<T: Statement>(&self, group: GroupId, statement: &T) -> Signed {
        let envelope = Envelope::sign(statement, self.keypair);
        if let Some(statements) = self.statements {
            statements(Stated { group, by: self.keypair.node_id(), envelope: envelope.clone() });
        }
        Signed::new(envelope)
    }

    fn clock(&self) -> MemberClock {
        MemberClock { boot: self.boot, ms: self.now.0 }
    }
}

/// Why a message was not given to the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Forged;

/// What came beside a verified message.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) enum Attachment {
    #[default]
    None,
    Grant {
        epoch: Epoch,
        envelope: Envelope,
        records: Bytes,
    },
    Certificate(Certificate),
    Release(ReceivedRelease),
}

struct GrantKept {
    envelope: Envelope,
    records: Bytes,
}

pub(super) struct Group {
    pub(super) id: GroupId,
    pub(super) config: GroupConfig,
    pub(super) machine: Machine,
    pub(super) hold: Hold,
    pub(super) view: watch::Sender<CustodyView>,
    /// Grants of the newest claim, this node's own vote among them.
    claimed: Epoch,
    grants: BTreeMap<MemberIndex, GrantKept>,
    certificate: Option<Arc<Certificate>>,
    last_promise_at: Option<BootTime>,
    asked_at: Option<BootTime>,
    gained: Option<Gained>,
    fenced: Option<Epoch>,
    received_release: Option<Arc<ReceivedRelease>>,
    /// What goes with this node's own releases, and its signed form once it was sent.
    handover: Bytes,
    sent_release: Option<(Epoch, Signed)>,
    pub(super) alarm: Option<Alarm>,
    statements: Option<StatementSink>,
}

impl Group {
    pub(super) fn new(config: GroupConfig, machine: Machine, hold: Hold, statements: Option<StatementSink>) -> Self {
        let view = watch::Sender::new(CustodyView::default());
        let mut group = Self {
            id: config.group,
            config,
            machine,
            hold,
            view,
            claimed: Epoch(0),
            grants: BTreeMap::new(),
            certificate: None,
            last_promise_at: None,
            asked_at: None,
            gained: None,
            fenced: None,
            received_release: None,
            handover: Bytes::new(),
            sent_release: None,
            alarm: None,
            statements,
        };
        group.publish(BootTime(0), &[]);
        group
    }

    pub(super) fn member(&self, node: NodeId) -> Option<MemberIndex> {
        let place = self.config.members.iter().position(|member| *member == node)?;
        u8::try_from(place).ok().map(MemberIndex)
    }

    pub(super) fn node(&self, member: MemberIndex) -> Option<NodeId> {
        self.config.members.get(usize::from(member.0)).copied()
    }

    /// When the machine wants to be woken. A renewal may wait for ttl/8 while half a ttl of the hold is left.
    pub(super) fn due(&self, now: BootTime) -> Option<Due> {
        let at = self.machine.next_wake(now)?;
        let has_time = self.machine.role() == RoleName::Holding && self.machine.view(now).hold_left * 2 >= self.config.ttl;
        let latest = if has_time { at + self.config.ttl.scaled(1, 8) } else { at };
        Some(Due { at, latest })
    }

    /// Whether the last renewals were answered in time, so that the next may take the short form.
    pub(super) fn is_well_held(&self, now: BootTime) -> bool {
        self.machine.view(now).hold_left * 3 >= self.config.ttl
    }

    fn me(&self) -> Option<NodeId> {
        self.node(self.machine.config().me)
    }

    /// Checks signatures and attachments of what `from` said.
    pub(super) fn open(&self, from: NodeId, said: Said) -> Result<(Message, Attachment), Forged> {
        let bare = |message| Ok((message, Attachment::None));
        match said {
            Said::Renew { epoch, seq, certificate: None } => bare(Message::Renew { epoch, seq, certified: false }),
            Said::Renew { epoch, seq, certificate: Some(json) } => {
                let certificate = Certificate::from_bytes(&json.0).map_err(|_| Forged)?;
                let holder = certificate::verify(&certificate, &self.config.members, self.id, epoch).map_err(|_| Forged)?;
                if holder != from {
                    return Err(Forged);
                }
                Ok((Message::Renew { epoch, seq, certified: true }, Attachment::Certificate(certificate)))
            }
            Said::Renewed { epoch, seq } => bare(Message::Renewed { epoch, seq }),
            Said::Ask(signed) => {
                let (ask, _) = self.verify::<Ask>(signed, from)?;
                self.same_group(ask.group)?;
                bare(Message::Ask { epoch: ask.epoch, seq: ask.seq })
            }
            Said::AskYes { seq, voted_epoch } => bare(Message::AskYes { seq, voted_epoch }),
            Said::Claim { epoch, seq } => bare(Message::Claim { epoch, seq }),
            Said::Grant { signed, records: Blob(records) } => {
                let (grant, envelope) = self.verify::<Grant>(signed, from)?;
                self.same_group(grant.group)?;
                if Some(grant.candidate) != self.me() || grant.records != Digest::of(&records) {
                    return Err(Forged);
                }
                let message = Message::Grant { epoch: grant.epoch, seq: grant.seq };
                Ok((message, Attachment::Grant { epoch: grant.epoch, envelope, records }))
            }
            Said::Refusal(signed) => {
                let (refusal, _) = self.verify::<RefusalStatement>(signed, from)?;
                self.same_group(refusal.group)?;
                if Some(refusal.candidate) == self.me() { bare(refusal.message()) } else { Err(Forged) }
            }
            Said::Release { signed, handover: Blob(handover) } => {
                let (release, statement) = self.verify::<Release>(signed, from)?;
                self.same_group(release.group)?;
                if release.handover != Digest::of(&handover) {
                    return Err(Forged);
                }
                let successor = release.successor.and_then(|member| self.node(member));
                let received = ReceivedRelease { epoch: release.epoch, from, successor, handover, statement };
                let message = Message::Release { epoch: release.epoch, successor: release.successor };
                Ok((message, Attachment::Release(received)))
            }
            Said::Query { seq } => bare(Message::Query { seq }),
            Said::QueryAnswer { seq, voted_epoch } => bare(Message::QueryAnswer { seq, voted_epoch }),
            // Of two nodes, not of a group: the driver takes them.
            Said::Anchor(_) | Said::AnchorWanted => Err(Forged),
        }
    }

    /// For whose sake `candidate` is refused, if it is a promise: with what shows that this member had reason to make it.
    fn promised_to_another(&self, candidate: MemberIndex, signer: &Signer<'_>) -> Option<Promised> {
        let to = self.machine.view(signer.now).promised_to?;
        let another = to != candidate && to != self.machine.config().me;
        let to = self.node(to).filter(|_| another)?;
        Some(Promised { to, life: (signer.heard)(to) })
    }

    fn verify<T: Statement>(&self, signed: Signed, from: NodeId) -> Result<(T, Envelope), Forged> {
        let envelope = signed.envelope::<T>(from);
        let Verified { statement, .. } = envelope.verify::<T>().map_err(|_| Forged)?;
        if let Some(statements) = &self.statements {
            statements(Stated { group: self.id, by: from, envelope: envelope.clone() });
        }
        Ok((statement, envelope))
    }

    fn same_group(&self, group: GroupId) -> Result<(), Forged> {
        if group == self.id { Ok(()) } else { Err(Forged) }
    }

    /// Feeds the machine and takes note of what came beside. A hold that ended is withdrawn here and now; one that began or goes on
    /// is published by [`Group::publish`], after the disk.
    pub(super) fn apply(&mut self, event: Event, attachment: Attachment, now: BootTime, entropy: u64) -> Vec<Effect> {
        let effects = self.machine.apply(event, now, entropy);
        if self.machine.holds(now) != self.hold.epoch() {
            self.hold.publish(None);
        }
        let dropped = effects.iter().any(|effect| matches!(effect, Effect::Dropped(_)));
        match (event, attachment) {
            (Event::Received { from, .. }, Attachment::Grant { epoch, envelope, records }) if epoch == self.claimed => {
                self.grants.insert(from, GrantKept { envelope, records });
                self.renew_certificate();
            }
            (_, Attachment::Certificate(certificate)) if !dropped => {
                let newer = self.certificate.as_ref().is_none_or(|known| known.epoch < certificate.epoch);
                if newer && certificate.epoch == self.machine.durable().voted_epoch {
                    self.certificate = Some(Arc::new(certificate));
                }
            }
            (_, Attachment::Release(received)) if !dropped => self.received_release = Some(Arc::new(received)),
            (_, Attachment::None | Attachment::Grant { .. } | Attachment::Certificate(_) | Attachment::Release(_)) => {}
        }
        for effect in &effects {
            match effect {
                Effect::Elected { epoch, .. } => {
                    self.elected(*epoch);
                    let (last_promise_at, asked_at) = (self.last_promise_at, self.asked_at);
                    self.gained = Some(Gained { epoch: *epoch, last_promise_at, asked_at, certified_at: now });
                }
                Effect::Send { message: Message::Renewed { .. } | Message::Grant { .. }, .. } => {
                    (self.last_promise_at, self.asked_at) = (Some(now), None);
                }
                Effect::Send { message: Message::Ask { .. }, .. } => {
                    self.asked_at.get_or_insert(now);
                }
                Effect::Fenced { epoch } => self.fenced = Some(*epoch),
                Effect::Released { .. } | Effect::Superseded { .. } => {
                    (self.fenced, self.asked_at) = (None, None);
                }
                Effect::Persist(_) | Effect::Send { .. } | Effect::Dropped(_) => {}
            }
        }
        effects
    }

    fn elected(&mut self, epoch: Epoch) {
        self.fenced = None;
        let Some(holder) = self.me() else { return };
        let grants = self.grants.values().map(|kept| kept.envelope.clone()).collect();
        self.certificate = Some(Arc::new(Certificate { group: self.id, epoch, holder, grants }));
    }

    /// Votes that come after the election are evidence too, and may bring newer records.
    fn renew_certificate(&mut self) {
        let claimed = self.claimed;
        if let (Some(certificate), Some(me)) = (&self.certificate, self.me())
            && certificate.epoch == claimed
            && certificate.holder == me
        {
            self.elected(claimed);
        }
    }

    /// Before [`Event::Release`]: what the releases will carry.
    pub(super) fn set_handover(&mut self, handover: Bytes) {
        self.handover = handover;
        self.sent_release = None;
    }

    /// What is sent for `message`, which the machine decided at `decided`: signs what counts, attaches what belongs to it. None if there is nothing that could be sent.
    pub(super) fn say(
        &mut self,
        to: MemberIndex,
        message: Message,
        decided: BootTime,
        signer: &Signer<'_>,
        records: &dyn Fn(GroupId) -> Bytes,
    ) -> Option<Said> {
        let refuse = |group: &Self, refused, epoch, seq, refusal: custody::Refusal| {
            let statement = RefusalStatement {
                group: group.id,
                to: refused,
                candidate: group.node(to)?,
                epoch,
                seq,
                voted_epoch: refusal.voted_epoch,
                retry_after: refusal.retry_after,
                promised: group.promised_to_another(to, signer),
                clock: signer.clock(),
            };
            Some(Said::Refusal(signer.sign(group.id, &statement)))
        };
        match message {
            Message::Renew { epoch, seq, certified } => {
                let certificate = if certified { self.certificate_json(epoch) } else { None };
                Some(Said::Renew { epoch, seq, certificate })
            }
            Message::Renewed { epoch, seq } => Some(Said::Renewed { epoch, seq }),
            Message::RenewRefused { epoch, seq, refusal } => refuse(self, Refused::Renewal, epoch, seq, refusal),
            Message::Ask { epoch, seq } => {
                let statement = Ask { group: self.id, epoch, seq, clock: signer.clock() };
                Some(Said::Ask(signer.sign(self.id, &statement)))
            }
            Message::AskYes { seq, voted_epoch } => Some(Said::AskYes { seq, voted_epoch }),
            Message::AskNo { seq, refusal } => refuse(self, Refused::Ask, Epoch(0), seq, refusal),
            Message::Claim { epoch, seq } => {
                self.vote_for_myself(epoch, seq, decided, signer, records);
                Some(Said::Claim { epoch, seq })
            }
            Message::Grant { epoch, seq } => {
                let records = records(self.id);
                let candidate = self.node(to)?;
                let signed = self.sign_grant(candidate, epoch, seq, &records, decided, signer);
                Some(Said::Grant { signed, records: Blob(records) })
            }
            Message::ClaimRefused { epoch, seq, refusal } => refuse(self, Refused::Claim, epoch, seq, refusal),
            Message::Release { epoch, successor } => Some(self.say_release(epoch, successor, signer)),
            Message::Query { seq } => Some(Said::Query { seq }),
            Message::QueryAnswer { seq, voted_epoch } => Some(Said::QueryAnswer { seq, voted_epoch }),
        }
    }

    /// A vote's promise runs from its decision, however long the disk takes before it leaves: that is the time to which it is held.
    fn sign_grant(
        &self,
        candidate: NodeId,
        epoch: Epoch,
        seq: u64,
        records: &Bytes,
        decided: BootTime,
        signer: &Signer<'_>,
    ) -> Signed {
        let records = Digest::of(records);
        let clock = MemberClock { boot: signer.boot, ms: decided.0 };
        let statement = Grant { group: self.id, epoch, candidate, seq, records, clock };
        signer.sign(self.id, &statement)
    }

    /// A candidacy is a vote for oneself; it is signed once, when the claim is first sent.
    fn vote_for_myself(
        &mut self,
        epoch: Epoch,
        seq: u64,
        decided: BootTime,
        signer: &Signer<'_>,
        records: &dyn Fn(GroupId) -> Bytes,
    ) {
        let Some(me) = self.me() else { return };
        if self.claimed == epoch && !self.grants.is_empty() {
            return;
        }
        let records = records(self.id);
        let envelope = self.sign_grant(me, epoch, seq, &records, decided, signer).envelope::<Grant>(me);
        self.claimed = epoch;
        self.grants = [(self.machine.config().me, GrantKept { envelope, records })].into();
    }

    /// The same bytes each time they are repeated: two different releases of one epoch would be a contradiction.
    fn say_release(&mut self, epoch: Epoch, successor: Option<MemberIndex>, signer: &Signer<'_>) -> Said {
        let signed = match &self.sent_release {
            Some((sent, signed)) if *sent == epoch => signed.clone(),
            Some(_) | None => {
                let handover = Digest::of(&self.handover);
                let statement = Release { group: self.id, epoch, successor, handover, clock: signer.clock() };
                signer.sign(self.id, &statement)
            }
        };
        self.sent_release = Some((epoch, signed.clone()));
        Said::Release { signed, handover: Blob(self.handover.clone()) }
    }

    fn certificate_json(&self, epoch: Epoch) -> Option<Blob> {
        let certificate = self.certificate.as_ref().filter(|certificate| certificate.epoch == epoch)?;
        Some(Blob(certificate.to_bytes().into()))
    }

    fn role(&self, now: BootTime) -> Role {
        let durable = self.machine.durable();
        let me = self.machine.config().me;
        let voted_for = durable.holder().and_then(|member| self.node(member));
        match (self.machine.holds(now), self.machine.role()) {
            (Some(epoch), _) => Role::Holder { epoch },
            (None, RoleName::Recovering) => Role::Recovering,
            (None, RoleName::Stopped) => Role::Stopped,
            (None, RoleName::Follower | RoleName::Asking | RoleName::Claiming | RoleName::Holding) => match self.fenced {
                Some(epoch) if durable.voted_epoch == epoch && durable.voted_for == Some(me) => Role::Fenced { epoch },
                Some(_) | None => {
                    // Who lost a vote may know the winner by its certificate.
                    let epoch = durable.voted_epoch;
                    let certified = self.certificate.as_ref().filter(|certificate| certificate.epoch == epoch);
                    let holder = certified.map(|certificate| certificate.holder).or(voted_for);
                    let serving = holder.filter(|_| durable.released.is_none() && epoch > Epoch(0));
                    Role::Follower { epoch, holder: serving.filter(|holder| Some(*holder) != self.me()) }
                }
            },
        }
    }

    /// Shows hold and view to the rest of the node; only after the disk has what they follow from. `missing` is in order.
    pub(super) fn publish(&mut self, now: BootTime, missing: &[NodeId]) {
        let held = self.machine.holds(now).filter(|_| self.alarm.is_none());
        self.hold.publish(held.map(|epoch| (epoch, now + self.machine.view(now).hold_left)));
        let role = self.role(now);
        let records = match role {
            Role::Holder { epoch } if epoch == self.claimed => {
                let others = self.grants.iter().filter(|(member, _)| **member != self.machine.config().me);
                others.filter_map(|(member, kept)| Some((self.node(*member)?, kept.records.clone()))).collect()
            }
            Role::Holder { .. } | Role::Follower { .. } | Role::Fenced { .. } | Role::Recovering | Role::Stopped => Vec::new(),
        };
        let durable = self.machine.durable();
        let view = CustodyView {
            role,
            voted_epoch: durable.voted_epoch,
            voted_for: durable.holder().and_then(|member| self.node(member)),
            certificate: self.certificate.clone(),
            gained: self.gained,
            records,
            released: self.received_release.clone(),
            missing: self.config.members.iter().filter(|member| missing.binary_search(member).is_ok()).copied().collect(),
            alarm: self.alarm,
        };
        self.view.send_if_modified(|shown| {
            let changed = *shown != view;
            if changed {
                *shown = view;
            }
            changed
        });
    }

    /// Fail-stop: nothing is held, promised or said any more.
    pub(super) fn stop(&mut self, alarm: Option<Alarm>, now: BootTime) {
        self.hold.publish(None);
        self.machine.apply(Event::Stop, now, 0);
        self.alarm = alarm.or(self.alarm);
    }

    /// After [`Self::stop`]: a new machine over the same disk, which knows nothing of what its predecessor held or was promised.
    pub(super) fn restart(&mut self, machine: Machine) {
        self.machine = machine;
        self.alarm = None;
        self.fenced = None;
        self.claimed = Epoch(0);
        self.grants.clear();
        (self.last_promise_at, self.asked_at) = (None, None);
    }
}

/// Whether the machine made nothing of an event, and why.
pub(super) fn drop_reasons(effects: &[Effect]) -> impl Iterator<Item = DropReason> + '_ {
    effects.iter().filter_map(|effect| match effect {
        Effect::Dropped(reason) => Some(*reason),
        Effect::Persist(_)
        | Effect::Send { .. }
        | Effect::Elected { .. }
        | Effect::Fenced { .. }
        | Effect::Released { .. }
        | Effect::Superseded { .. } => None,
    })
}
