//! The candidate's and holder's side: asking, claiming, holding, releasing.

use super::config::{Config, MemberIndex, MemberSet};
use super::lease::Lease;
use super::machine::{DropReason, Effect, Machine, Readiness, Releasing, Role};
use super::message::{EPOCH_MAX, Message, Refusal};
use super::rules::Mark;
use crate::ids::Epoch;
use crate::time::{BootTime, Millis};

/// Asking around before a claim.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Campaign {
    seq: u64,
    /// A yes is believed until `renew` after this.
    since: BootTime,
    yes: MemberSet,
    /// When each member is asked (again), by place in the member list.
    ask_at: Vec<BootTime>,
}

impl Campaign {
    fn start(seq: u64, members: u8, now: BootTime) -> Self {
        Self { seq, since: now, yes: MemberSet::EMPTY, ask_at: vec![now; usize::from(members)] }
    }

    fn ask_at(&self, member: MemberIndex) -> Option<BootTime> {
        self.ask_at.get(usize::from(member.0)).copied()
    }

    fn ask_again_at(&mut self, member: MemberIndex, at: BootTime) {
        if let Some(ask_at) = self.ask_at.get_mut(usize::from(member.0)) {
            *ask_at = at;
        }
    }

    pub(super) fn next_ask(&self, config: &Config) -> Option<BootTime> {
        config.others().filter(|member| !self.yes.contains(*member)).filter_map(|member| self.ask_at(member)).min()
    }
}

impl Machine {
    /// Whether this member may ask for custody at `now`; if not, from when on, as far as time alone can tell.
    pub(super) fn may_ask(&self, now: BootTime) -> Result<(), Option<BootTime>> {
        let me = self.config.me;
        let own = match self.durable.released {
            Some(released) => released.successor == Some(me),
            None => self.durable.holder() == Some(me),
        };
        let wants = match self.readiness {
            Readiness::Unready => false,
            Readiness::SuccessorOnly => own,
            Readiness::Ready => true,
        };
        if !wants || !self.config.candidates.contains(me) {
            return Err(None);
        }
        match self.free_to_vote(me, now).err().max(self.silent_until).max(self.retry_at) {
            Some(later) if later > now => Err(Some(later)),
            Some(_) | None => Ok(()),
        }
    }

    /// Sends what is due at `now`.
    pub(super) fn pursue(&mut self, now: BootTime, effects: &mut Vec<Effect>) {
        match &self.role {
            Role::Recovering(recovery) if recovery.send_at <= now => self.query(now, effects),
            Role::Follower | Role::Asking(_) => self.ask_if_allowed(now, effects),
            Role::Claiming(claim) if self.next_claim(claim, now) <= now => self.send_claim(now, effects),
            Role::Holding(lease) if self.next_renewal(lease) <= now => self.renew(now, effects),
            Role::Recovering(_) | Role::Claiming(_) | Role::Holding(_) | Role::Stopped => {}
        }
        let Some(releasing) = self.releasing.filter(|releasing| releasing.send_at <= now) else { return };
        let Releasing { epoch, successor, .. } = releasing;
        self.broadcast(Message::Release { epoch, successor }, effects);
        let exclusive = self.exclusive_until.is_some();
        let again = if exclusive { self.config.timing.retry } else { self.config.timing.renew };
        self.releasing = Some(Releasing { send_at: now + again, ..releasing });
    }

    fn query(&mut self, now: BootTime, effects: &mut Vec<Effect>) {
        let Role::Recovering(recovery) = &mut self.role else { return };
        recovery.send_at = now + self.config.timing.retry;
        let (seq, heard) = (recovery.seq, recovery.heard);
        let missing = self.config.others().filter(|member| !heard.contains(*member));
        effects.extend(missing.map(|to| Effect::Send { to, message: Message::Query { seq } }));
    }

    fn ask_if_allowed(&mut self, now: BootTime, effects: &mut Vec<Effect>) {
        if self.may_ask(now).is_err() {
            self.role = Role::Follower;
            return;
        }
        if !self.config.rules.has(Mark::L2) {
            return self.claim(now, effects);
        }
        let campaign = match &mut self.role {
            Role::Asking(campaign) => campaign,
            Role::Follower => {
                self.seq += 1;
                self.role = Role::Asking(Campaign::start(self.seq, self.config.members, now));
                return self.send_asks(now, effects);
            }
            Role::Recovering(_) | Role::Claiming(_) | Role::Holding(_) | Role::Stopped => return,
        };
        let due = campaign.next_ask(&self.config).is_some_and(|at| at <= now);
        if due && campaign.since + self.config.timing.renew <= now {
            // Old answers are worth nothing: a new round, in which those who said no are still left alone until they named.
            self.seq += 1;
            for member in campaign.yes.iter() {
                campaign.ask_again_at(member, now);
            }
            (campaign.seq, campaign.since, campaign.yes) = (self.seq, now, MemberSet::EMPTY);
        }
        self.send_asks(now, effects);
    }

    fn send_asks(&mut self, now: BootTime, effects: &mut Vec<Effect>) {
        let Role::Asking(campaign) = &mut self.role else { return };
        let message = Message::Ask { epoch: self.durable.voted_epoch, seq: campaign.seq };
        for to in self.config.others() {
            if !campaign.yes.contains(to) && campaign.ask_at(to).is_some_and(|at| at <= now) {
                campaign.ask_again_at(to, now + self.config.timing.retry);
                effects.push(Effect::Send { to, message });
            }
        }
    }

    pub(super) fn count_yes(
        &mut self,
        from: MemberIndex,
        seq: u64,
        voted_epoch: Epoch,
        now: BootTime,
        effects: &mut Vec<Effect>,
    ) {
        self.highest_named = self.highest_named.max(voted_epoch);
        let Role::Asking(campaign) = &mut self.role else {
            return effects.push(Effect::Dropped(DropReason::Stale));
        };
        if campaign.seq != seq {
            return effects.push(Effect::Dropped(DropReason::Stale));
        }
        campaign.yes.insert(from);
        // Its own yes is what let it ask; see `may_ask`.
        if campaign.yes.len() + 1 >= self.config.majority() && self.may_ask(now).is_ok() {
            self.claim(now, effects);
        }
    }

    pub(super) fn note_no(&mut self, from: MemberIndex, seq: u64, refusal: Refusal, now: BootTime, effects: &mut Vec<Effect>) {
        if self.config.rules.has(Mark::L4) {
            self.highest_named = self.highest_named.max(refusal.voted_epoch);
        }
        match &mut self.role {
            Role::Asking(campaign) if campaign.seq == seq => {
                campaign.yes.remove(from);
                let wait = refusal.retry_after.clamp(Millis(1), self.config.timing.ttl);
                campaign.ask_again_at(from, now + wait);
            }
            Role::Recovering(_) | Role::Follower | Role::Asking(_) | Role::Claiming(_) | Role::Holding(_) | Role::Stopped => {
                effects.push(Effect::Dropped(DropReason::Stale));
            }
        }
    }

    /// Votes for itself in 1 + the highest epoch that it knows of, and tells.
    pub(super) fn claim(&mut self, now: BootTime, effects: &mut Vec<Effect>) {
        let epoch = self.durable.voted_epoch.max(self.highest_named).next();
        if epoch > EPOCH_MAX {
            self.retry_at = Some(now + self.config.timing.ttl);
            return effects.push(Effect::Dropped(DropReason::EpochTooLarge));
        }
        let me = self.config.me;
        self.vote(me, epoch, now, effects);
        self.role = Role::Claiming(Lease::claim(epoch, me, self.config.members, now));
        self.send_claim(now, effects);
    }

    /// When the claim is repeated, or dead.
    pub(super) fn next_claim(&self, claim: &Lease, now: BootTime) -> BootTime {
        let again_at = claim.last_sent_at().map_or(claim.since, |at| at + self.config.timing.retry);
        let dead_at = if self.config.rules.has(Mark::S7) { claim.since + self.hold() } else { again_at };
        match self.silent_until {
            Some(until) if until > now => dead_at.min(until.max(again_at)),
            Some(_) | None => dead_at.min(again_at),
        }
    }

    fn send_claim(&mut self, now: BootTime, effects: &mut Vec<Effect>) {
        let Role::Claiming(claim) = &mut self.role else { return };
        self.seq += 1;
        claim.record_sending(self.seq, now);
        let message = Message::Claim { epoch: claim.epoch, seq: self.seq };
        let answered = claim.granted.union(claim.refused);
        let open = self.config.others().filter(|member| !answered.contains(*member));
        effects.extend(open.map(|to| Effect::Send { to, message }));
    }

    pub(super) fn count_grant(&mut self, from: MemberIndex, epoch: Epoch, seq: u64, now: BootTime, effects: &mut Vec<Effect>) {
        let rules = self.config.rules;
        let lease = match &mut self.role {
            Role::Claiming(lease) | Role::Holding(lease) if lease.epoch == epoch => lease,
            Role::Recovering(_) | Role::Follower | Role::Asking(_) | Role::Claiming(_) | Role::Holding(_) | Role::Stopped => {
                return effects.push(Effect::Dropped(DropReason::Stale));
            }
        };
        let from_when = if rules.has(Mark::S7) { lease.sent_at(seq) } else { Some(now) };
        let Some(from_when) = from_when else {
            return effects.push(Effect::Dropped(DropReason::Stale));
        };
        lease.granted.insert(from);
        lease.count(from, from_when);
        let grants = lease.granted;
        if !rules.has(Mark::S7) {
            lease.count(self.config.me, now);
        }
        let elected = lease.majority_from(self.config.majority()).is_some();
        if !elected || matches!(self.role, Role::Holding(_)) {
            return;
        }
        if let Role::Claiming(lease) = std::mem::replace(&mut self.role, Role::Follower) {
            self.role = Role::Holding(lease);
        }
        self.retry_at = None;
        self.silent_until = None;
        effects.push(Effect::Elected { epoch, grants });
        // At once, so that those who did not vote learn of it.
        self.renew(now, effects);
    }

    pub(super) fn note_claim_refused(
        &mut self,
        from: MemberIndex,
        epoch: Epoch,
        refusal: Refusal,
        now: BootTime,
        entropy: u64,
        effects: &mut Vec<Effect>,
    ) {
        if self.config.rules.has(Mark::L4) {
            self.highest_named = self.highest_named.max(refusal.voted_epoch);
        }
        match &mut self.role {
            Role::Claiming(claim) if claim.epoch == epoch => {
                if refusal.voted_epoch >= epoch && !claim.granted.contains(from) {
                    claim.refused.insert(from);
                }
                if usize::from(self.config.members) - claim.refused.len() < self.config.majority() {
                    self.fail_claim(now, entropy);
                }
            }
            Role::Recovering(_) | Role::Follower | Role::Asking(_) | Role::Claiming(_) | Role::Holding(_) | Role::Stopped => {
                effects.push(Effect::Dropped(DropReason::Stale));
            }
        }
    }

    /// The claim is dead: late grants find no claim. The next try comes after a random delay (L3).
    pub(super) fn fail_claim(&mut self, now: BootTime, entropy: u64) {
        self.role = Role::Follower;
        if self.config.rules.has(Mark::L3) {
            self.retry_at = Some(now + Millis(entropy % (self.config.timing.delay_max.0 + 1)));
        }
    }

    pub(super) fn lease_until(&self, lease: &Lease) -> Option<BootTime> {
        lease.majority_from(self.config.majority()).map(|from| from + self.hold())
    }

    /// `renew` after the request that a majority answered, but never sooner than `retry` after the last.
    pub(super) fn next_renewal(&self, lease: &Lease) -> BootTime {
        let timing = &self.config.timing;
        let answered = lease.majority_from(self.config.majority()).map(|from| from + timing.renew);
        let paced = lease.last_sent_at().map(|at| at + timing.retry);
        answered.max(paced).unwrap_or(lease.since)
    }

    fn renew(&mut self, now: BootTime, effects: &mut Vec<Effect>) {
        let me = self.config.me;
        let Role::Holding(lease) = &mut self.role else { return };
        self.seq += 1;
        lease.record_sending(self.seq, now);
        lease.count(me, now);
        let (epoch, seq, behind) = (lease.epoch, self.seq, lease.behind);
        if self.durable.voted_for == Some(me) && self.durable.voted_epoch == epoch {
            self.promise_to(me, now);
        }
        effects.extend(self.config.others().map(|to| {
            let certified = behind.contains(to);
            Effect::Send { to, message: Message::Renew { epoch, seq, certified } }
        }));
    }

    pub(super) fn count_renewed(&mut self, from: MemberIndex, epoch: Epoch, seq: u64, now: BootTime, effects: &mut Vec<Effect>) {
        let rules = self.config.rules;
        match &mut self.role {
            Role::Holding(lease) if lease.epoch == epoch => {
                let from_when = if rules.has(Mark::S1) { lease.sent_at(seq) } else { lease.last_sent_at() };
                match from_when.filter(|at| *at <= now) {
                    Some(at) => {
                        lease.count(from, at);
                        lease.behind.remove(from);
                    }
                    None => effects.push(Effect::Dropped(DropReason::Stale)),
                }
            }
            Role::Recovering(_) | Role::Follower | Role::Asking(_) | Role::Claiming(_) | Role::Holding(_) | Role::Stopped => {
                effects.push(Effect::Dropped(DropReason::Stale));
            }
        }
    }

    pub(super) fn note_renew_refused(&mut self, from: MemberIndex, epoch: Epoch, refusal: Refusal, effects: &mut Vec<Effect>) {
        if !self.config.rules.has(Mark::L4) {
            return;
        }
        self.highest_named = self.highest_named.max(refusal.voted_epoch);
        match &mut self.role {
            Role::Holding(lease) if lease.epoch == epoch && refusal.voted_epoch <= epoch => lease.behind.insert(from),
            Role::Holding(lease) if lease.epoch == epoch => lease.behind.remove(from),
            Role::Recovering(_) | Role::Follower | Role::Asking(_) | Role::Claiming(_) | Role::Holding(_) | Role::Stopped => {
                effects.push(Effect::Dropped(DropReason::Stale));
            }
        }
    }

    /// Stops holding, then says so until a higher epoch is seen.
    pub(super) fn release(&mut self, successor: Option<MemberIndex>, now: BootTime, effects: &mut Vec<Effect>) {
        let epoch = match (self.holds(now), &self.role) {
            (Some(epoch), Role::Holding(_)) => epoch,
            (
                _,
                Role::Recovering(_) | Role::Follower | Role::Asking(_) | Role::Claiming(_) | Role::Holding(_) | Role::Stopped,
            ) => return effects.push(Effect::Dropped(DropReason::NotHolding)),
        };
        self.role = Role::Follower;
        effects.push(Effect::Released { epoch, successor });
        self.mark_released(successor, now, effects);
        self.releasing = Some(Releasing { epoch, successor, send_at: now });
    }
}
