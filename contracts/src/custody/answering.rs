//! The voter's side: what a member answers to renewals, asks, claims, releases and queries.

use super::config::MemberIndex;
use super::machine::{DropReason, Durable, Effect, Machine, Promise, Readiness, Released, Role};
use super::message::{Message, Refusal};
use super::rules::Mark;
use crate::ids::Epoch;
use crate::time::{BootTime, Millis};

impl Machine {
    /// Whether this member would vote for `candidate` in a higher epoch at `now`; if not, from when on it may.
    pub(super) fn free_to_vote(&self, candidate: MemberIndex, now: BootTime) -> Result<(), BootTime> {
        let rules = self.config.rules;
        match self.durable.released {
            Some(released) if released.successor == Some(candidate) => return Ok(()),
            Some(released) if released.successor.is_some() && !rules.has(Mark::L5) => return Err(now + self.config.timing.ttl),
            None if self.durable.holder() == Some(candidate) && !self.is_overdue(self.durable.voted_epoch) => return Ok(()),
            Some(_) | None => {}
        }
        let withheld = |promise: &Promise| promise.to != self.config.me || rules.has(Mark::S9);
        let promised_until = self.promise.filter(withheld).map(|promise| promise.until);
        match promised_until.max(self.abstain_until).max(self.exclusive_until) {
            Some(until) if until > now => Err(until),
            Some(_) | None => Ok(()),
        }
    }

    /// As [`Self::free_to_vote`] for another member, with how long it should wait.
    fn would_grant(&self, candidate: MemberIndex, now: BootTime) -> Result<(), Millis> {
        if matches!(self.role, Role::Recovering(_)) || !self.eligible.contains(candidate) {
            return Err(self.config.timing.renew);
        }
        self.free_to_vote(candidate, now).map_err(|until| until.since(now))
    }

    fn refusal(&self, retry_after: Millis) -> Refusal {
        Refusal { voted_epoch: self.durable.voted_epoch, retry_after }
    }

    fn is_overdue(&self, epoch: Epoch) -> bool {
        self.overdue == Some(epoch)
    }

    pub(super) fn answer_ask(&self, from: MemberIndex, seq: u64, now: BootTime, effects: &mut Vec<Effect>) {
        let message = match self.would_grant(from, now) {
            Ok(()) => Message::AskYes { seq, voted_epoch: self.durable.voted_epoch },
            Err(retry_after) => Message::AskNo { seq, refusal: self.refusal(retry_after) },
        };
        effects.push(Effect::Send { to: from, message });
    }

    pub(super) fn answer_claim(&mut self, from: MemberIndex, epoch: Epoch, seq: u64, now: BootTime, effects: &mut Vec<Effect>) {
        let verdict = if self.is_bound_to(from, epoch) {
            // A repeated claim: the same vote, promised anew.
            self.promise_to(from, now);
            Ok(())
        } else if epoch <= self.durable.voted_epoch {
            Err(Millis::ZERO)
        } else {
            self.would_grant(from, now).map(|()| self.vote(from, epoch, now, effects))
        };
        let message = match verdict {
            Ok(()) => Message::Grant { epoch, seq },
            Err(retry_after) => {
                let duel = matches!(self.role, Role::Claiming(_)) && self.config.me > from;
                if duel && self.config.rules.has(Mark::L3) {
                    self.silent_until = Some(now + self.config.timing.ttl);
                }
                Message::ClaimRefused { epoch, seq, refusal: self.refusal(retry_after) }
            }
        };
        effects.push(Effect::Send { to: from, message });
    }

    pub(super) fn answer_renew(
        &mut self,
        from: MemberIndex,
        epoch: Epoch,
        seq: u64,
        certified: bool,
        now: BootTime,
        effects: &mut Vec<Effect>,
    ) {
        let recovering = matches!(self.role, Role::Recovering(_));
        let rules = self.config.rules;
        let promised = if recovering || self.is_overdue(epoch) {
            false
        } else if certified && epoch > self.durable.voted_epoch {
            self.vote(from, epoch, now, effects);
            // Unlike a vote (S5) this is a renewal: it binds in any case.
            self.promise_to(from, now);
            true
        } else if certified && epoch == self.durable.voted_epoch && self.lost_to(from) {
            self.stand_by(from, effects);
            self.promise_to(from, now);
            true
        } else {
            let sender_only = self.durable.holder() == Some(from) || !rules.has(Mark::S6);
            let voted = epoch == self.durable.voted_epoch && sender_only && self.durable.released.is_none();
            let lower = epoch < self.durable.voted_epoch && !rules.has(Mark::S4);
            if voted {
                self.promise_to(from, now);
            }
            voted || lower
        };
        let message = if promised {
            Message::Renewed { epoch, seq }
        } else {
            Message::RenewRefused { epoch, seq, refusal: self.refusal(self.config.timing.renew) }
        };
        effects.push(Effect::Send { to: from, message });
    }

    /// Whether a certificate of `voted_epoch` for `winner` is news: this member's vote there was another's, or is unknown. Whom it voted for
    /// can have no majority any more, since nobody votes twice in an epoch.
    fn lost_to(&self, winner: MemberIndex) -> bool {
        let Durable { voted_for, released, elected, .. } = self.durable;
        let unknown = voted_for.is_none();
        let is_news = elected.is_none() && released.is_none() && voted_for != Some(winner);
        // Both elected in one epoch: somebody lies. Who holds goes on; the evidence is in the certificates.
        is_news && (unknown || self.config.rules.has(Mark::L6)) && !matches!(self.role, Role::Holding(_))
    }

    /// Keeps promises for the certified winner of the epoch in which it voted for another. No second vote: nothing is granted.
    fn stand_by(&mut self, winner: MemberIndex, effects: &mut Vec<Effect>) {
        self.durable.elected = Some(winner);
        if self.config.rules.has(Mark::S12) {
            self.persist(effects);
        }
        match &self.role {
            Role::Asking(_) | Role::Claiming(_) => self.role = Role::Follower,
            Role::Recovering(_) | Role::Follower | Role::Holding(_) | Role::Stopped => {}
        }
    }

    /// The holder stopped. Told twice, the first time counts: otherwise its repetitions would keep others away for ever (L5).
    pub(super) fn accept_release(
        &mut self,
        from: MemberIndex,
        epoch: Epoch,
        successor: Option<MemberIndex>,
        now: BootTime,
        effects: &mut Vec<Effect>,
    ) {
        if matches!(self.role, Role::Recovering(_)) {
            return effects.push(Effect::Dropped(DropReason::Recovering));
        }
        let valid = self.durable.holder() == Some(from) && self.durable.voted_epoch == epoch;
        let applies = valid || !self.config.rules.has(Mark::S11);
        if self.durable.released.is_some() || !applies {
            return effects.push(Effect::Dropped(DropReason::NotReleasable));
        }
        self.mark_released(successor, now, effects);
        if successor == Some(self.config.me) && self.readiness != Readiness::Unready && self.silent_until.is_none() {
            self.claim(now, effects);
        }
    }

    pub(super) fn mark_released(&mut self, successor: Option<MemberIndex>, now: BootTime, effects: &mut Vec<Effect>) {
        self.durable.released = Some(Released { successor });
        self.promise = None;
        self.exclusive_until = Some(now + self.config.timing.ttl);
        self.persist(effects);
    }

    pub(super) fn answer_query(&self, from: MemberIndex, seq: u64, effects: &mut Vec<Effect>) {
        if matches!(self.role, Role::Recovering(_)) {
            return effects.push(Effect::Dropped(DropReason::Recovering));
        }
        let message = Message::QueryAnswer { seq, voted_epoch: self.durable.voted_epoch };
        effects.push(Effect::Send { to: from, message });
    }

    pub(super) fn count_query_answer(
        &mut self,
        from: MemberIndex,
        seq: u64,
        voted_epoch: Epoch,
        now: BootTime,
        effects: &mut Vec<Effect>,
    ) {
        let Role::Recovering(recovery) = &mut self.role else {
            return effects.push(Effect::Dropped(DropReason::Stale));
        };
        if recovery.seq != seq {
            return effects.push(Effect::Dropped(DropReason::Stale));
        }
        recovery.heard.insert(from);
        recovery.highest = recovery.highest.max(voted_epoch);
        let (heard, highest) = (recovery.heard, recovery.highest);
        let config = &self.config;
        let candidates_heard = config.others().all(|member| heard.contains(member) || !config.candidates.contains(member));
        // A candidate's own lost candidacies are known to those who granted them: one of each majority must be among the heard.
        let intersecting = usize::from(config.members) - config.majority() + 1;
        if !candidates_heard || (config.candidates.contains(config.me) && heard.len() < intersecting) {
            return;
        }
        // Even of an epoch that the copy knows it may lack who was elected or released: only the number is believed.
        self.durable = Durable { voted_epoch: highest.max(self.durable.voted_epoch), ..Durable::default() };
        self.role = Role::Follower;
        self.name_first_holder();
        self.highest_named = self.highest_named.max(self.durable.voted_epoch);
        self.abstain_until = self.config.rules.has(Mark::S3).then(|| now + self.config.timing.abstain);
        self.persist(effects);
    }

    /// Votes: syncs it, promises, and ends whatever was held or tried in lower epochs.
    pub(super) fn vote(&mut self, candidate: MemberIndex, epoch: Epoch, now: BootTime, effects: &mut Vec<Effect>) {
        assert!(epoch > self.durable.voted_epoch, "votes only go upwards");
        self.durable = Durable::vote(epoch, candidate);
        self.persist(effects);
        self.seq = self.first_seq;
        self.exclusive_until = None;
        self.promise = None;
        if self.config.rules.has(Mark::S5) {
            self.promise_to(candidate, now);
        }
        if self.releasing.is_some_and(|releasing| releasing.epoch < epoch) {
            self.releasing = None;
        }
        if !self.config.rules.has(Mark::S4) {
            return;
        }
        match &self.role {
            Role::Holding(lease) => {
                effects.push(Effect::Superseded { epoch: lease.epoch, by: epoch });
                self.role = Role::Follower;
            }
            Role::Asking(_) | Role::Claiming(_) => self.role = Role::Follower,
            Role::Recovering(_) | Role::Follower | Role::Stopped => {}
        }
    }

    fn is_bound_to(&self, candidate: MemberIndex, epoch: Epoch) -> bool {
        self.durable.voted_epoch == epoch
            && self.durable.voted_for == Some(candidate)
            && self.durable.elected.is_none()
            && self.durable.released.is_none()
            && !self.is_overdue(epoch)
            && !matches!(self.role, Role::Recovering(_))
    }

    pub(super) fn promise_to(&mut self, member: MemberIndex, now: BootTime) {
        self.promise = Some(Promise { to: member, until: now + self.config.timing.ttl });
    }
}
