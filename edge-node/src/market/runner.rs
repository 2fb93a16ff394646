//! Does what the planner says: each step in a task of its own, one at a time of each, again with growing pauses after a failure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use contracts::contract::{Outcome, State};
use contracts::envelope::Key;
use contracts::ids::GroupId;
use contracts::time::{Millis, WallTime};
use tokio::task::{Id, JoinSet};
use tokio::time::Instant;

use super::plan::{self, Deal, Part, Situation, Step};
use super::{Error, Failing, Inner, lock, patience};
use crate::agreements::Agreement;

/// The planner looks at everything at least so often.
const INTERVAL: Duration = Duration::from_secs(1);
/// First and longest pause after a failure.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));
/// Pause after a refusal that will not pass by itself.
const PAUSE_FINAL: Duration = Duration::from_secs(30);
/// A provider brings a contract to the arbitrator itself if the customer has not after so long.
const PATIENCE: Millis = Millis(10_000);

/// When a step that failed may be tried again.
#[derive(Debug, Clone, Copy)]
struct Retry {
    times: u32,
    not_before: Instant,
}

/// Runs for ever.
pub(super) async fn run(inner: Arc<Inner>) {
    let mut agreements = inner.core.agreements.changed();
    let mut tasks: JoinSet<(Step, Result<(), Error>)> = JoinSet::new();
    let mut running: BTreeMap<Step, Id> = BTreeMap::new();
    let mut retries: BTreeMap<Step, Retry> = BTreeMap::new();
    loop {
        agreements.borrow_and_update();
        let steps = plan::steps(&inner.situation());
        retries.retain(|step, _| steps.contains(step));
        inner.memory().failures.retain(|step, _| steps.contains(step));
        let now = Instant::now();
        for step in &steps {
            if !running.contains_key(step) && retries.get(step).is_none_or(|retry| retry.not_before <= now) {
                let (inner, step) = (Arc::clone(&inner), *step);
                running.insert(
                    step,
                    tasks.spawn(kit::task::belong(async move { (step, Box::pin(inner.perform(step)).await) })).id(),
                );
            }
        }
        inner.memory().looks += 1;
        let next_retry = retries.iter().filter(|(step, _)| !running.contains_key(step)).map(|(_, retry)| retry.not_before).min();
        let wake_at = next_retry.unwrap_or(now + INTERVAL).clamp(now, now + INTERVAL);
        tokio::select! {
            biased;
            Some(done) = tasks.join_next() => match done {
                Ok((step, outcome)) => {
                    running.remove(&step);
                    inner.note(step, outcome, &mut retries);
                }
                Err(error) => {
                    tracing::error!(%error, "a step of the market agent broke off");
                    running.retain(|_, id| *id != error.id());
                }
            },
            () = inner.wake.notified() => {}
            changed = agreements.changed() => if changed.is_err() { return },
            () = tokio::time::sleep_until(wake_at) => {}
        }
    }
}

impl Inner {
    fn note(&self, step: Step, outcome: Result<(), Error>, retries: &mut BTreeMap<Step, Retry>) {
        let error = match outcome {
            Ok(()) => {
                retries.remove(&step);
                self.memory().failures.remove(&step);
                return;
            }
            Err(error) => error,
        };
        let times = retries.get(&step).map_or(0, |retry| retry.times) + 1;
        let pause =
            if error.is_transient() { (PAUSE.0 * 2_u32.saturating_pow(times.min(16) - 1)).min(PAUSE.1) } else { PAUSE_FINAL };
        retries.insert(step, Retry { times, not_before: Instant::now() + pause });
        let last = error.chain();
        tracing::info!(?step, times, pause_ms = pause.as_millis(), error = last, "a step is tried again");
        if let (Step::Meet(matched), false) = (step, error.is_transient()) {
            self.memory().given_up.insert(matched);
            self.pause_after_refusal();
            self.alarm(format!("no contract under match {matched}: {last}"));
        }
        self.memory().failures.insert(step, Failing { times, last });
    }

    async fn perform(&self, step: Step) -> Result<(), Error> {
        match step {
            Step::Withdraw(listing) => self.withdraw(listing).await,
            Step::List(kind) => self.list(kind).await,
            Step::Admit(matched) => self.admit(matched).await,
            Step::Meet(matched) => self.meet(matched).await,
            Step::Sign(contract) => self.sign(contract).await,
            Step::Submit(contract) => self.submit(contract).await,
            Step::Confirm { pair, contract } => self.confirm(pair, contract).await,
            Step::Announce { contract, to } => self.announce(contract, to).await,
            Step::Prepare(contract) => self.prepare(contract).await,
        }
    }

    async fn confirm(&self, pair: contracts::ids::StatementId, contract: contracts::ids::ContractId) -> Result<(), Error> {
        let agreement = self.agreement(contract)?;
        self.marketplace()?.confirm(pair, &agreement.envelope).await?;
        self.refresh_view().await
    }

    /// Everything that the planner looks at, from memory.
    fn situation(&self) -> Situation {
        let now = self.now();
        let view = lock(&self.view).clone();
        // The times and numbers of these two do not matter: they are compared without.
        let (offer, demand) = if view.known { (self.wanted_offer(now, 0), self.wanted_demand(now, 0)) } else { (None, None) };
        let buys_for = demand.as_ref().and(self.core.own_service.as_ref()).map(|own| own.group);
        let agreements = self.core.agreements.list();
        let after_bad = buys_for.and_then(|group| self.resume_at(group, &agreements));
        let buys_from = after_bad.max(self.memory().refusals.resume_at(now));
        let known: BTreeSet<_> = view.matches.iter().map(|m| m.id).collect();
        let deals = agreements.iter().filter_map(|agreement| self.deal(agreement)).collect();
        let mut memory = self.memory();
        memory.admitted.retain(|id| known.contains(id));
        if view.known {
            memory.given_up.retain(|id| known.contains(id));
            memory.tries.retain(|id, _| known.contains(id));
        }
        let is_open = |id| agreements.iter().any(|a| a.id == id && !matches!(a.state, State::Ended { .. }));
        memory.announced.retain(|(id, _)| is_open(*id));
        memory.challenges.retain(|id, _| is_open(*id));
        memory.preparing_since.retain(|id, _| is_open(*id));
        Situation {
            now,
            sells: offer.is_some(),
            buys_for,
            buys_from,
            listings: if view.known { self.listed(&view, offer.as_ref(), demand.as_ref()) } else { Vec::new() },
            pairs: self.pairs(&view),
            deals,
            given_up: memory.given_up.clone(),
            admitted: memory.admitted.clone(),
            announced: memory.announced.clone(),
        }
    }

    fn deal(&self, agreement: &Agreement) -> Option<Deal> {
        let (me, contract) = (self.core.me(), &agreement.contract);
        let part = match (contract.customer.node == me, contract.provider.node == me, contract.readings_to == me) {
            (true, ..) => Part::Customer,
            (_, true, _) => Part::Provider,
            (.., true) => Part::Receiver,
            (false, false, false) => return None,
        };
        let mut memory = self.memory();
        let overdue = if agreement.state == State::Agreed {
            self.now().since(*memory.agreed_since.entry(agreement.id).or_insert(self.now())) > PATIENCE
        } else {
            memory.agreed_since.remove(&agreement.id);
            false
        };
        Some(Deal {
            id: agreement.id,
            part,
            state: agreement.state,
            group: contract.group,
            matched_by: contract.matched_by,
            provider: contract.provider.node,
            receiver: contract.readings_to,
            overdue,
            winding_up: matches!(agreement.state, State::Ended { .. }) && !agreement.wiped,
        })
    }

    /// When insurance may be looked for again, see [`patience`].
    fn resume_at(&self, group: GroupId, agreements: &[Agreement]) -> Option<WallTime> {
        let me = self.core.me();
        let was_in_force = |a: &&Agreement| a.envelope.signatures.iter().any(|by| by.key == Key::from(a.contract.arbitrator));
        let mut ended: Vec<(WallTime, Agreement, Outcome)> = agreements
            .iter()
            .filter(|a| a.contract.customer.node == me && a.contract.group == group)
            .filter(was_in_force)
            .filter_map(|a| {
                if let State::Ended { outcome } = a.state { Some((a.contract.valid_from, a.clone(), outcome)) } else { None }
            })
            .collect();
        ended.sort_by_key(|(from, agreement, _)| (*from, agreement.id));
        let is_bad = |outcome: Outcome| match outcome {
            Outcome::Breached | Outcome::Cancelled => true,
            Outcome::Honoured | Outcome::Expired => false,
        };
        let good = ended.iter().rposition(|(_, _, outcome)| !is_bad(*outcome)).map_or(0, |at| at + 1);
        let bad = ended.get(good..)?;
        let (_, last, _) = bad.last()?;
        // After a restart it is not known when it ended: the pause begins anew.
        let ended_at = *self.memory().failed_since.entry(last.id).or_insert_with(|| self.now());
        let starts: Vec<WallTime> = bad.iter().map(|(from, ..)| *from).collect();
        let resume = patience::resume_at(&starts, ended_at)?;
        if starts.len() > 1 && resume > self.now() {
            let pause_s = resume.since(ended_at).0 / 1_000;
            self.alarm(format!(
                "{} contracts in a row went wrong, {} last: no other is looked for within {pause_s} s",
                starts.len(),
                last.id
            ));
        }
        Some(resume)
    }
}
