//! The rules that turn evidence into where a contract stands and how it ends.
//!
//! [`take`] adds one statement, [`advance`] lets time pass; both move the contract only through [`life::apply`]. [`judge`] folds the whole
//! evidence from the start, so that a verdict can be recomputed by whoever has the statements that it lists.

use serde::{Deserialize, Serialize};

use super::{
    Evidence, Input, Item, ReadinessAnswer, ReadinessChallenge, Rule, TakeoverReport, Verdict, WitnessReport, ask_deadline,
};
use crate::contract::life::{self, Effect, Event, Outcome, State};
use crate::contract::text::Contract;
use crate::ids::{ContractId, Epoch, NodeId, StatementId};
use crate::time::{Millis, WallTime};

/// So many unanswered challenges one after another end the contract.
pub const MISSED_PROOFS_MAX: u32 = 3;
/// How long both parties may add evidence after a dispute was raised.
pub const DISPUTE_WINDOW: Millis = Millis::from_secs(86_400);
/// How far a node's clock may be ahead of the arbitrator's.
pub const CLOCK_AHEAD_MAX: Millis = Millis(5_000);

const DAY: Millis = Millis::from_secs(86_400);

/// Where a contract in force stands: the state of its life and what the rules have to remember.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Standing {
    pub state: State,
    pub in_force_since: WallTime,
    /// Since when the provider is ready.
    pub standby_since: Option<WallTime>,
    pub activations: u32,
    /// When the open activation began to serve.
    pub serving_since: Option<WallTime>,
    /// How long closed activations served.
    pub served: Millis,
    /// The challenge that waits for an answer, and until when.
    pub open_challenge: Option<OpenChallenge>,
    /// Challenges in a row that stayed without an answer.
    pub missed_proofs: u32,
    pub provider_answer: Option<Answer>,
    pub expected_answer: Option<Answer>,
    /// The highest grant that a witness reported, whoever got it.
    pub granted: Option<Granted>,
    /// The last grant to the provider after which nobody else was granted custody before the deadline: it has to serve.
    pub owed: Option<Granted>,
    /// The highest epoch of which the provider showed service.
    pub served_epoch: Option<Epoch>,
    /// A hand-back that was reported before its takeover: reports come from different nodes, in any order.
    pub early_handback: Option<EarlyHandback>,
    pub dispute: Option<Disputed>,
    pub ended: Option<Ended>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenChallenge {
    pub challenge: String,
    pub answer_by: WallTime,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    pub challenge: String,
    pub blocks: u64,
    pub keyed_hash: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Granted {
    pub epoch: Epoch,
    pub to: NodeId,
    pub at: WallTime,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct EarlyHandback {
    pub epoch: Epoch,
    pub held_at: WallTime,
    /// It ended an activation; it is kept for reports from before it that are still on their way.
    #[serde(default)]
    pub is_applied: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disputed {
    pub by: NodeId,
    pub at: WallTime,
    /// A rule that evidence added within the window found broken.
    pub found: Option<Rule>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    pub outcome: Outcome,
    pub rule: Rule,
    pub at: WallTime,
}

/// Why a statement does not count. Nothing changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("the statement belongs to another contract or group")]
    OtherContract,
    #[error("{needed} must sign this, and nobody who has no part in the contract")]
    Signer { needed: &'static str },
    #[error(transparent)]
    State(#[from] life::Rejected),
    #[error("{field} is later than the arbitrator's clock allows")]
    Future { field: &'static str },
    #[error("{field} is before the time that it follows")]
    TooEarly { field: &'static str },
    #[error("epoch {epoch} was granted to {to} by a witness")]
    Contradicted { epoch: Epoch, to: NodeId },
    #[error("a challenge waits for its answer")]
    ChallengeOpen,
    #[error("challenges are taken before and during standby only")]
    NoChallengeNow,
}

type Step = (Standing, Vec<Effect>);

impl Standing {
    /// The arbitrator found everything right and holds the stakes: in force.
    ///
    /// # Panics
    /// Never: the table takes `Validated` in `Agreed`.
    #[must_use]
    pub fn enter(now: WallTime) -> Step {
        let (state, effects) = life::apply(State::Agreed, Event::Validated).expect("the table takes it");
        let standing = Self {
            state,
            in_force_since: now,
            standby_since: None,
            activations: 0,
            serving_since: None,
            served: Millis::ZERO,
            open_challenge: None,
            missed_proofs: 0,
            provider_answer: None,
            expected_answer: None,
            granted: None,
            owed: None,
            served_epoch: None,
            early_handback: None,
            dispute: None,
            ended: None,
        };
        (standing, effects)
    }

    /// Days started on which the provider was ready.
    #[must_use]
    pub fn standby_days(&self, until: WallTime) -> u32 {
        let days = self.standby_since.map_or(0, |since| until.since(since).0 / DAY.0 + 1);
        u32::try_from(days).unwrap_or(u32::MAX)
    }

    /// When [`advance`] may have something to do next; none once it ended.
    #[must_use]
    pub fn due_at(&self, contract: &Contract) -> Option<WallTime> {
        match (self.state.is_in_force(), self.state) {
            (false, _) => None,
            (true, State::Disputed { .. }) => self.dispute.map(|dispute| dispute.at + DISPUTE_WINDOW),
            (true, _) => self.open_challenge.as_ref().map(|open| open.answer_by).into_iter().chain([contract.valid_until]).min(),
        }
    }

    fn end_activation(&mut self, at: WallTime) {
        if let Some(since) = self.serving_since.take() {
            self.served = self.served + at.since(since);
        }
    }

    /// One event of its life; `rule` is what decides if it ends.
    fn event(&mut self, event: Event, rule: Rule, now: WallTime) -> Result<Vec<Effect>, life::Rejected> {
        let (state, effects) = life::apply(self.state, event)?;
        self.state = state;
        match state {
            State::Standby { activations } => {
                self.activations = activations;
                self.standby_since.get_or_insert(now);
            }
            State::TakenOver { activations, .. } | State::HandingBack { activations, .. } => self.activations = activations,
            State::Ended { outcome } => {
                self.end_activation(now);
                self.open_challenge = None;
                self.ended = Some(Ended { outcome, rule, at: now });
            }
            State::Proposed | State::Agreed | State::Preparing | State::Disputed { .. } => {}
        }
        Ok(effects)
    }

    fn term_rule(&self) -> Rule {
        match (self.standby_since, self.activations) {
            (None, _) => Rule::NeverReady,
            (Some(_), 0) => Rule::TermWaited,
            (Some(_), _) => Rule::TermServed,
        }
    }
}

/// Lets time pass up to `now`: unanswered challenges, the end of a dispute's window, the end of the term.
#[must_use]
pub fn advance(contract: &Contract, standing: &Standing, now: WallTime) -> Step {
    let mut next = standing.clone();
    if !next.state.is_in_force() {
        return (next, Vec::new());
    }
    let disputed = matches!(next.state, State::Disputed { .. });
    if let Some(dispute) = next.dispute.filter(|dispute| disputed && dispute.at + DISPUTE_WINDOW <= now) {
        let (outcome, rule) = decide(contract, &next, dispute);
        let effects = next.event(Event::DisputeDecided { outcome }, rule, now).expect("the table takes it");
        return (next, effects);
    }
    if disputed {
        return (next, Vec::new());
    }
    if next.open_challenge.as_ref().is_some_and(|open| open.answer_by <= now.min(contract.valid_until)) {
        next.open_challenge = None;
        next.missed_proofs += 1;
        if next.missed_proofs >= MISSED_PROOFS_MAX {
            let effects = next.event(Event::BreachFound, Rule::MissedProofs, now).expect("the table takes it");
            return (next, effects);
        }
    }
    if contract.valid_until <= now {
        let rule = next.term_rule();
        let effects = next.event(Event::TermEnded, rule, now).expect("the table takes it");
        return (next, effects);
    }
    (next, Vec::new())
}

/// What a dispute comes to when its window closes. Whoever disputes without ground gains nothing by it.
fn decide(contract: &Contract, standing: &Standing, dispute: Disputed) -> (Outcome, Rule) {
    let granted_not_served =
        standing.owed.is_some_and(|granted| standing.served_epoch.is_none_or(|served| served < granted.epoch));
    match dispute.found {
        Some(rule) => (Outcome::Breached, rule),
        None if granted_not_served => (Outcome::Breached, Rule::GrantedNotServed),
        None if dispute.by == contract.provider.node || standing.standby_since.is_none() => {
            (Outcome::Cancelled, Rule::DisputeUnfounded)
        }
        None if standing.activations > 0 => (Outcome::Honoured, Rule::DisputeUnfounded),
        None => (Outcome::Expired, Rule::DisputeUnfounded),
    }
}

/// Adds one statement, received at `now`; call [`advance`] for the same time first.
///
/// # Errors
/// [`Refused`] says why it does not count.
pub fn take(
    id: ContractId,
    contract: &Contract,
    standing: &Standing,
    evidence: &Evidence,
    now: WallTime,
) -> Result<Step, Refused> {
    let item = &evidence.item;
    if item.contract() != id || item.group().is_some_and(|group| group != contract.group) {
        return Err(Refused::OtherContract);
    }
    let members = contract.members();
    let needed = "a member of the contract's group";
    if !evidence.signers.iter().all(|key| members.iter().any(|member| *key == (*member).into())) {
        return Err(Refused::Signer { needed });
    }
    let mut next = standing.clone();
    if !next.state.is_in_force() {
        return Err(life::Rejected { state: next.state, event: Event::Disputed }.into());
    }
    let effects = match item {
        Item::Takeover(report) => taken_over(contract, &mut next, report, now)?,
        Item::Release(report) => {
            signed_by(report.node, contract.provider.node, "the provider")?;
            let at = within(next.serving_since, report.released_at, "released_at", now)?;
            let effects = next.event(Event::Released { epoch: report.epoch }, Rule::TermServed, now)?;
            next.end_activation(at);
            effects
        }
        Item::Handback(report) => {
            signed_by(report.node, contract.customer.node, "the customer")?;
            let at = within(next.serving_since, report.held_at, "held_at", now)?;
            if matches!(next.state, State::Standby { .. }) && next.served_epoch.is_none_or(|served| served < report.epoch) {
                next.early_handback = Some(EarlyHandback { epoch: report.epoch, held_at: at, is_applied: false });
                Vec::new()
            } else {
                let effects = handed_back(contract, &mut next, report.epoch, at, now)?;
                // Reports of what was before may still be on their way.
                next.early_handback = Some(EarlyHandback { epoch: report.epoch, held_at: at, is_applied: true });
                effects
            }
        }
        Item::Challenge(challenge) => challenged(contract, &mut next, challenge, now)?,
        Item::Answer(answer) => answered(contract, &mut next, evidence, answer, now)?,
        Item::Delivery(report) => {
            party(contract, report.node)?;
            within(None, report.until, "until", now)?;
            Vec::new()
        }
        Item::Witness(report) => witnessed(contract, &mut next, report, now)?,
        Item::Cancellation(_) => {
            let signed = [contract.customer.node, contract.provider.node].map(|node| evidence.is_signed_by(node));
            if !(signed == [true, true] || signed != [false, false] && next.state == State::Preparing) {
                return Err(Refused::Signer { needed: "one party before the provider is ready, both after," });
            }
            next.event(Event::Cancelled, Rule::CancelledByParties, now)?
        }
        Item::Dispute(dispute) => {
            party(contract, dispute.node)?;
            let effects = next.event(Event::Disputed, Rule::DisputeUnfounded, now)?;
            next.end_activation(now);
            next.dispute = Some(Disputed { by: dispute.node, at: now, found: None });
            effects
        }
    };
    Ok((next, effects))
}

fn party(contract: &Contract, node: NodeId) -> Result<(), Refused> {
    let parties = [contract.customer.node, contract.provider.node];
    if parties.contains(&node) { Ok(()) } else { Err(Refused::Signer { needed: "a party" }) }
}

fn signed_by(node: NodeId, wanted: NodeId, needed: &'static str) -> Result<(), Refused> {
    if node == wanted { Ok(()) } else { Err(Refused::Signer { needed }) }
}

/// A time that a node states: not before `from`, not ahead of the arbitrator's clock by more than is allowed; given back at most `now`.
fn within(from: Option<WallTime>, at: WallTime, field: &'static str, now: WallTime) -> Result<WallTime, Refused> {
    if at > now + CLOCK_AHEAD_MAX {
        return Err(Refused::Future { field });
    }
    if from.is_some_and(|from| at + CLOCK_AHEAD_MAX < from) {
        return Err(Refused::TooEarly { field });
    }
    Ok(at.min(now))
}

/// Which rule the provider's own report breaks. Nobody owes anything under a contract before it was armed: its provider may have custody
/// from an earlier contract for the same group.
fn broken(contract: &Contract, armed_at: WallTime, report: &TakeoverReport) -> Option<Rule> {
    if report.asked_at.since(report.last_promise_at.max(armed_at)) > ask_deadline(&contract.terms) {
        return Some(Rule::AskedLate);
    }
    (report.serving_at.since(report.certified_at.max(armed_at)) > contract.terms.deadline).then_some(Rule::ServedLate)
}

fn taken_over(contract: &Contract, next: &mut Standing, report: &TakeoverReport, now: WallTime) -> Result<Vec<Effect>, Refused> {
    signed_by(report.node, contract.provider.node, "the provider")?;
    let serving_at = within(Some(next.in_force_since), report.serving_at, "serving_at", now)?;
    if let Some(granted) = next.granted.filter(|granted| granted.epoch == report.epoch && granted.to != report.node) {
        return Err(Refused::Contradicted { epoch: granted.epoch, to: granted.to });
    }
    let found = broken(contract, next.standby_since.unwrap_or(next.in_force_since), report);
    if let (State::Disputed { .. }, Some(dispute)) = (next.state, next.dispute.as_mut()) {
        dispute.found = dispute.found.or(found);
        next.served_epoch = next.served_epoch.max(Some(report.epoch));
        return Ok(Vec::new());
    }
    let early = next.early_handback.filter(|early| early.epoch > report.epoch);
    if early.is_some_and(|early| early.is_applied) {
        // A report that was long on its way: what it began is over, and counted with the takeover that was told first.
        next.served_epoch = next.served_epoch.max(Some(report.epoch));
        return Ok(found.map(|rule| next.event(Event::BreachFound, rule, now)).transpose()?.unwrap_or_default());
    }
    let resumed = matches!(next.state, State::TakenOver { .. });
    let mut effects = next.event(Event::TakenOver { epoch: report.epoch }, Rule::TermServed, now)?;
    next.served_epoch = next.served_epoch.max(Some(report.epoch));
    if !resumed {
        next.serving_since = Some(serving_at);
    }
    next.open_challenge = None;
    next.early_handback = early.map(|early| EarlyHandback { is_applied: true, ..early });
    match (found, early) {
        (Some(rule), _) => effects.extend(next.event(Event::BreachFound, rule, now)?),
        (None, Some(early)) => effects.extend(handed_back(contract, next, early.epoch, early.held_at, now)?),
        (None, None) => {}
    }
    Ok(effects)
}

fn handed_back(
    contract: &Contract,
    next: &mut Standing,
    epoch: Epoch,
    at: WallTime,
    now: WallTime,
) -> Result<Vec<Effect>, life::Rejected> {
    let last = next.activations >= contract.terms.activations_max;
    next.end_activation(at);
    next.event(Event::HandedBack { epoch, last }, Rule::ActivationsServed, now)
}

fn witnessed(contract: &Contract, next: &mut Standing, report: &WitnessReport, now: WallTime) -> Result<Vec<Effect>, Refused> {
    if !contract.witnesses.contains(&report.node) {
        return Err(Refused::Signer { needed: "a witness" });
    }
    let at = within(None, report.granted_at, "granted_at", now)?;
    let granted = Granted { epoch: report.epoch, to: report.granted_to, at };
    if next.granted.is_some_and(|known| known.epoch >= granted.epoch) {
        return Ok(Vec::new());
    }
    next.granted = Some(granted);
    if granted.to == contract.provider.node {
        next.owed = Some(granted);
    } else {
        next.owed = next.owed.filter(|owed| owed.at + contract.terms.deadline < at);
    }
    Ok(Vec::new())
}

fn challenged(
    contract: &Contract,
    next: &mut Standing,
    challenge: &ReadinessChallenge,
    now: WallTime,
) -> Result<Vec<Effect>, Refused> {
    signed_by(challenge.node, contract.customer.node, "the customer")?;
    if !matches!(next.state, State::Preparing | State::Standby { .. }) {
        return Err(Refused::NoChallengeNow);
    }
    if next.open_challenge.is_some() {
        return Err(Refused::ChallengeOpen);
    }
    within(None, challenge.issued_at, "issued_at", now)?;
    if challenge.answer_by < now + super::ANSWER_MIN {
        return Err(Refused::TooEarly { field: "answer_by" });
    }
    next.open_challenge = Some(OpenChallenge { challenge: challenge.challenge.clone(), answer_by: challenge.answer_by });
    Ok(Vec::new())
}

/// The provider's answer in time clears the challenge. An answer that the customer expected or co-signed proves readiness. One that
/// differs from the customer's proves nothing and breaks nothing: the arbitrator has no blocks and cannot tell who is wrong.
fn answered(
    contract: &Contract,
    next: &mut Standing,
    evidence: &Evidence,
    it: &ReadinessAnswer,
    now: WallTime,
) -> Result<Vec<Effect>, Refused> {
    let (by_customer, by_provider) =
        (evidence.is_signed_by(contract.customer.node), evidence.is_signed_by(contract.provider.node));
    if !by_customer && !by_provider {
        return Err(Refused::Signer { needed: "a party" });
    }
    let answer = Answer { challenge: it.challenge.clone(), blocks: it.blocks, keyed_hash: it.keyed_hash.clone() };
    if by_provider && next.open_challenge.as_ref().is_some_and(|open| open.challenge == it.challenge) {
        next.open_challenge = None;
        next.missed_proofs = 0;
    }
    if by_customer {
        next.expected_answer = Some(answer.clone());
    }
    if by_provider {
        next.provider_answer = Some(answer);
    }
    let proven = next.provider_answer.is_some() && next.provider_answer == next.expected_answer;
    if proven && next.state == State::Preparing {
        Ok(next.event(Event::Prepared, Rule::TermWaited, now)?)
    } else {
        Ok(Vec::new())
    }
}

/// Evidence with the time at which the arbitrator received it.
pub type Received = (Evidence, WallTime);

/// Where the contract stands at `now`, folded from the start.
///
/// # Errors
/// The id of the first statement that does not count, and why.
pub fn replay(
    id: ContractId,
    contract: &Contract,
    in_force_since: WallTime,
    evidence: &[Received],
    now: WallTime,
) -> Result<Standing, (StatementId, Refused)> {
    let (mut standing, _) = Standing::enter(in_force_since);
    for (statement, received_at) in evidence {
        (standing, _) = advance(contract, &standing, *received_at);
        (standing, _) = take(id, contract, &standing, statement, *received_at).map_err(|refused| (statement.id, refused))?;
    }
    Ok(advance(contract, &standing, now).0)
}

/// The verdict on a contract; none while it is in force.
///
/// # Errors
/// As [`replay`].
pub fn judge(
    id: ContractId,
    contract: &Contract,
    in_force_since: WallTime,
    evidence: &[Received],
    now: WallTime,
) -> Result<Option<Verdict>, (StatementId, Refused)> {
    let standing = replay(id, contract, in_force_since, evidence, now)?;
    let inputs =
        evidence.iter().map(|(statement, received_at)| Input { statement: statement.id, received_at: *received_at }).collect();
    Ok(verdict(id, contract, &standing, inputs))
}

/// The verdict that follows from where the contract stands; none while it is in force.
#[must_use]
pub fn verdict(id: ContractId, contract: &Contract, standing: &Standing, inputs: Vec<Input>) -> Option<Verdict> {
    let ended = standing.ended?;
    Some(Verdict {
        contract: id,
        arbitrator: contract.arbitrator,
        customer: contract.customer,
        provider: contract.provider,
        outcome: ended.outcome,
        rule: ended.rule,
        inputs,
        in_force_since: standing.in_force_since,
        judged_at: ended.at,
        activations: standing.activations,
        served: standing.served,
        standby_days: standing.standby_days(ended.at).min(contract.money.days),
        currency: contract.money.currency.clone(),
        provider_stake: contract.money.provider_stake,
    })
}

#[cfg(test)]
#[path = "judge_tests.rs"]
mod tests;
