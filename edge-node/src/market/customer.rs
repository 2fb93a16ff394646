//! The customer's steps: negotiate under a match, write and sign the text, get the provider's signature, challenge its readiness.

use std::sync::Arc;

use contracts::contract::{Contract, State};
use contracts::envelope::{Envelope, Key};
use contracts::evidence::{ANSWER_MAX, ReadinessAnswer, ReadinessChallenge};
use contracts::ids::{ContractId, NodeId, StatementId};
use contracts::listing::Offer;
use contracts::time::Millis;
use kit::problem::Problem;
use marketplace::resource::{Introduction, ListingKind, Match};

use super::text::{self, Facts};
use super::{Error, Inner, listings, lock};
use crate::agreements::Agreement;
use crate::arbitrator::EdgeArbitrator;
use crate::dmu::negotiation::{Answer, Limits, Proposal};
use crate::dmu::policy::{Customer, Policy};
use crate::edge2edge::negotiation::{self, Opening, Text};
use crate::migration::{self, SealedConfiguration};
use crate::readiness;
use crate::timeline::Event;

/// A match gets so many attempts before it is given up.
const TRIES_MAX: u32 = 3;
/// The provider has so long to answer a challenge, and the time below for each byte: far less than a download over a radio or cellular link,
/// more than a slow flash card needs.
const ANSWER_BASE: Millis = Millis(5_000);
const ANSWER_BYTES_PER_MS: u64 = 10_000;

impl Inner {
    pub(super) fn policy(&self) -> Result<&Policy, Error> {
        self.core.policy.as_ref().ok_or(Error::NotYet("this node has no policy"))
    }

    fn customer_rules(&self) -> Result<(&Policy, &Customer), Error> {
        let policy = self.policy()?;
        let rules = policy.customer.as_ref().ok_or(Error::NotYet("this node buys no insurance"))?;
        Ok((policy, rules))
    }

    pub(super) fn edge_arbitrator(&self) -> Result<EdgeArbitrator, Error> {
        Ok(EdgeArbitrator::new(self.core.identity.keypair.clone(), self.policy()?.clone()))
    }

    /// Checks a match by the marketplace's pinned key and lets its other side talk to this node.
    pub(super) async fn admit(&self, id: StatementId) -> Result<(), Error> {
        let matched = self.find_match(id).ok_or(Error::NotYet("the match is gone"))?;
        let introduction = self.introduce(&matched)?;
        let other =
            if introduction.terms.customer == self.core.me() { &matched.provider_record } else { &matched.customer_record };
        self.core.directory.put(other).await?;
        self.memory().admitted.insert(id);
        self.core.timeline.push(Event::Matched { id });
        Ok(())
    }

    fn introduce(&self, matched: &Match) -> Result<Introduction, Error> {
        let marketplace = (*self.pinned.borrow()).ok_or(Error::NotYet("the marketplace is not known yet"))?;
        Ok(matched.introduction(marketplace)?)
    }

    /// Negotiates under a match; an agreement becomes a signed text.
    pub(super) async fn meet(&self, id: StatementId) -> Result<(), Error> {
        let matched = self.find_match(id).ok_or(Error::NotYet("the match is gone"))?;
        let introduction = self.introduce(&matched)?;
        let (policy, rules) = self.customer_rules()?;
        if introduction.terms.customer != self.core.me() {
            return Err(Error::Final("the match names another customer".to_owned()));
        }
        let demand = lock(&self.view)
            .demands
            .iter()
            .find(|(demand, _)| *demand == introduction.terms.demand)
            .map(|(_, demand)| demand.clone());
        let demand = demand.ok_or(Error::NotYet("the demand is not listed any more"))?;
        let own = self.core.own_service.as_ref().ok_or(Error::NotYet("there is no service to insure"))?;
        let readings_to = self.core.config.cloud.ok_or(Error::NotYet("no cloud is configured"))?;
        let offer = self.fetch_offer(&introduction).await?;
        let limits = policy.customer_limits().ok_or(Error::NotYet("this node buys no insurance"))?;
        let opening = text::opening(&limits, rules, &offer, introduction.terms.price_per_day);
        let (round, agreed) = self.negotiate(&matched, &introduction, &limits, opening).await?;
        self.core.timeline.push(Event::Negotiated { round, price_per_day_micros: agreed.price_per_day.micros().to_string() });
        let configuration = self.store_configuration(&introduction).await?;
        let (now, nonce) = (self.now(), listings::nonce()?);
        let facts = Facts {
            introduction: &introduction,
            offer: &offer,
            demand: &demand,
            policy,
            rules,
            own,
            agreed: &agreed,
            configuration: &configuration,
            readings_to,
            now,
            nonce,
        };
        let contract = text::write(&facts).ok_or_else(|| Error::Final("no witness that both sides accept".to_owned()))?;
        let envelope = self.edge_arbitrator()?.sign(&contract, &agreed, now)?;
        let agreement = self.core.agreements.insert(&envelope, State::Proposed).await?;
        self.core.timeline.push(Event::Signed { contract: agreement.id });
        Ok(())
    }

    /// The offer of the match as its provider signed it.
    async fn fetch_offer(&self, introduction: &Introduction) -> Result<Offer, Error> {
        let listing = self.marketplace()?.listing(ListingKind::Offer, introduction.terms.offer).await?;
        let offer = listing.statement.verify_signed_by::<Offer>(&[Key::from(introduction.terms.provider)])?;
        let is_it = offer.id == introduction.terms.offer && offer.statement.node == introduction.terms.provider;
        if is_it {
            Ok(offer.statement)
        } else {
            Err(Error::Final("the marketplace shows another offer than the matched one".to_owned()))
        }
    }

    /// Rounds until both sides say the same; price and length of the lease are traded, nothing else.
    async fn negotiate(
        &self,
        matched: &Match,
        introduction: &Introduction,
        limits: &Limits,
        opening: Proposal,
    ) -> Result<(u32, Proposal), Error> {
        let mut proposal = opening;
        // One round more than there are counter-proposals: to take the last one.
        for round in 0..=limits.rounds_max {
            if introduction.terms.held_until <= self.now() {
                return Err(Error::Final("the match ran out during the negotiation".to_owned()));
            }
            let opening = Opening { matched: matched.statement.clone(), round, proposal };
            let same_else =
                |other: &Proposal| Proposal { price_per_day: proposal.price_per_day, ttl: proposal.ttl, ..*other } == proposal;
            match negotiation::propose(&self.core.client, introduction.provider.node, &opening).await? {
                Answer::Accept { proposal: taken } if taken == proposal => return Ok((round, proposal)),
                Answer::Counter { proposal: counter } if same_else(&counter) => match limits.answer(round, &counter) {
                    Answer::Accept { .. } => proposal = counter,
                    Answer::Counter { .. } => {
                        (proposal.price_per_day, proposal.ttl) = (limits.price(round + 1), counter.ttl);
                    }
                    Answer::Refuse { reason } => return Err(Error::Final(reason)),
                },
                Answer::Refuse { reason } => return Err(Error::Final(format!("the provider refuses: {reason}"))),
                Answer::Accept { .. } | Answer::Counter { .. } => {
                    return Err(Error::Final("the provider changes what is not traded".to_owned()));
                }
            }
        }
        Err(Error::Final("no agreement within the agreed rounds".to_owned()))
    }

    /// Seals the configuration to both nodes and stores it under the name of the match.
    async fn store_configuration(&self, introduction: &Introduction) -> Result<SealedConfiguration, Error> {
        let core = &self.core;
        let own = core.own_service.as_ref().ok_or(Error::NotYet("there is no service to insure"))?;
        let label = introduction.id.to_string();
        // What an earlier attempt sealed is in nobody's contract.
        self.unpin(&label).await?;
        let recipients = [core.identity.unsealing.public(), introduction.provider.sealing_key];
        let sealed = migration::store_configuration(&core.content, &own.configuration, &recipients, &label).await?;
        for cid in [&sealed.network, &sealed.application] {
            let bytes = core.content.total_bytes(cid).await?;
            core.timeline.push(Event::ContentStored { cid: cid.to_string(), bytes });
        }
        Ok(sealed)
    }

    pub(super) async fn unpin(&self, label: &str) -> Result<(), Error> {
        for pin in self.core.content.pins().into_iter().filter(|pin| pin.label == label) {
            self.core.content.unpin(&pin.cid, &pin.label).await?;
        }
        Ok(())
    }

    /// Gets the provider's signature under a text that this node wrote.
    pub(super) async fn sign(&self, id: ContractId) -> Result<(), Error> {
        let agreement = self.agreement(id)?;
        let contract = &agreement.contract;
        let text = Text { contract: (*agreement.envelope).clone(), node_records: self.records_of(contract, false)? };
        let envelope =
            match negotiation::ask_signature(&self.core.client, contract.provider.node, &text).await.map_err(Error::from) {
                Ok(envelope) => envelope,
                Err(error) if error.is_transient() && contract.valid_until > self.now() && !self.is_hold_over(contract) => {
                    return Err(error);
                }
                Err(error) => {
                    self.cancel(&agreement, &format!("the provider does not sign: {}", error.chain())).await?;
                    return Err(error);
                }
            };
        let signed =
            envelope.verify_signed_by::<Contract>(&[Key::from(contract.customer.node), Key::from(contract.provider.node)])?;
        if ContractId::from(signed.id) != id {
            return Err(Error::Final("the provider signed another text".to_owned()));
        }
        self.core.agreements.insert(&envelope, State::Agreed).await?;
        self.core.agreements.advance(id, contracts::contract::Event::Agreed).await?;
        Ok(())
    }

    /// The match of a contract that is not signed by both is not held any more, so the provider need not answer.
    fn is_hold_over(&self, contract: &Contract) -> bool {
        let view = lock(&self.view);
        view.known && contract.matched_by.is_some_and(|id| view.matches.iter().all(|m| m.id != id || m.until <= self.now()))
    }

    pub(super) fn agreement(&self, id: ContractId) -> Result<Agreement, Error> {
        self.core.agreements.get(id).ok_or(Error::NotYet("this node does not know the contract"))
    }

    /// Ends a contract that never came into force: nothing was prepared, so there is nothing to wind up either.
    pub(super) async fn cancel(&self, agreement: &Agreement, why: &str) -> Result<(), Error> {
        tracing::warn!(contract = %agreement.id, why, "a contract does not come into force");
        self.core.agreements.set_wiped(agreement.id).await?;
        self.core.agreements.advance(agreement.id, contracts::contract::Event::Refused).await?;
        if let Some(matched) = agreement.contract.matched_by {
            if agreement.contract.customer.node == self.core.me() {
                self.unpin(&matched.to_string()).await?;
                self.pause_after_refusal();
            }
            self.count_try(matched);
        }
        self.core.timeline.push(Event::Alarm { what: format!("{} does not come into force: {why}", agreement.id) });
        Ok(())
    }

    /// No other contract is looked for within a pause.
    pub(super) fn pause_after_refusal(&self) {
        let pause = self.memory().refusals.note(self.now(), getrandom::u64().unwrap_or_default());
        tracing::info!(pause_ms = pause.0, "no other contract is looked for meanwhile");
    }

    pub(super) fn count_try(&self, matched: StatementId) {
        let mut memory = self.memory();
        let tries = memory.tries.entry(matched).or_default();
        *tries += 1;
        if *tries >= TRIES_MAX {
            memory.given_up.insert(matched);
        }
    }

    /// The records of a contract's nodes that another may lack; of its parties too if `parties`.
    pub(super) fn records_of(&self, contract: &Contract, parties: bool) -> Result<Vec<Envelope>, Error> {
        let mut nodes: Vec<NodeId> = contract.witnesses.clone();
        nodes.push(contract.readings_to);
        if parties {
            nodes.extend([contract.customer.node, contract.provider.node]);
        }
        let record = |node: NodeId| {
            if node == self.core.me() { Some(self.core.record.clone()) } else { self.core.directory.envelope(node) }
        };
        nodes
            .into_iter()
            .map(record)
            .collect::<Option<_>>()
            .ok_or(Error::NotYet("the record of the cloud or a witness is not known yet"))
    }

    /// Tells a node of a contract in force.
    pub(super) async fn announce(&self, id: ContractId, to: NodeId) -> Result<(), Error> {
        let agreement = self.agreement(id)?;
        let text = Text { contract: (*agreement.envelope).clone(), node_records: self.records_of(&agreement.contract, true)? };
        negotiation::announce(&self.core.client, to, &text).await?;
        self.memory().announced.insert((id, to));
        Ok(())
    }
}

/// The contract between this node as customer and `provider`, in a state in which readiness is asked for.
fn insured_by(inner: &Inner, provider: NodeId, id: ContractId) -> Result<Agreement, Problem> {
    let agreement = inner.core.agreements.get(id).ok_or_else(|| Problem::not_found("this node does not know the contract"))?;
    if (agreement.contract.customer.node, agreement.contract.provider.node) != (inner.core.me(), provider) {
        return Err(Problem::forbidden("this contract is not between this node as customer and you as provider"));
    }
    match agreement.state {
        State::Preparing | State::Standby { .. } => Ok(agreement),
        State::Proposed | State::Agreed => Err(Problem::unavailable("the contract is not in force here yet")),
        State::TakenOver { .. } | State::HandingBack { .. } | State::Disputed { .. } | State::Ended { .. } => {
            Err(Problem::conflict("readiness is not asked for in this state"))
        }
    }
}

/// Gives a challenge to a provider that says it is ready; the same one until its time is over. The arbitrator is told first, so that the time
/// counts.
pub(super) async fn give_challenge(inner: &Arc<Inner>, provider: NodeId, id: ContractId) -> Result<Envelope, Problem> {
    let agreement = insured_by(inner, provider, id)?;
    let keypair = &inner.core.identity.keypair;
    let now = inner.now();
    let open = inner.memory().challenges.get(&id).filter(|open| open.answer_by > now).cloned();
    if let Some(open) = open {
        return Ok(Envelope::sign(&open, keypair));
    }
    let failed = |error: Error| {
        tracing::warn!(error = error.chain(), "no challenge can be given");
        Problem::unavailable("no challenge can be given now")
    };
    let mut bytes = 0;
    for cid in readiness::content_of(&agreement.contract).map_err(Error::from).map_err(failed)? {
        bytes += inner.core.content.total_bytes(&cid).await.map_err(Error::from).map_err(failed)?;
    }
    let mut nonce = [0; 32];
    getrandom::fill(&mut nonce).map_err(|_| Problem::internal())?;
    let within = Millis((ANSWER_BASE.0 + bytes / ANSWER_BYTES_PER_MS).min(ANSWER_MAX.0));
    let challenge = ReadinessChallenge {
        contract: id,
        node: inner.core.me(),
        challenge: hex::encode(nonce),
        issued_at: now,
        answer_by: now + within,
    };
    let envelope = Envelope::sign(&challenge, keypair);
    match inner.arbitrator().map_err(failed)?.add_evidence(id, &envelope).await.map_err(Error::from) {
        Ok(_) => {}
        // One from before a restart is open; it ends by itself, and this one is between the two of us.
        Err(error) if error.problem() == Some("wrong-state") => {
            tracing::info!(contract = %id, "an earlier challenge is still open")
        }
        Err(error) => return Err(failed(error)),
    }
    inner.memory().challenges.insert(id, challenge);
    Ok(envelope)
}

/// Compares a provider's answer with what this node's own copy gives, and signs it too if it is the same.
pub(super) async fn check_answer(inner: &Arc<Inner>, provider: NodeId, mut envelope: Envelope) -> Result<Envelope, Problem> {
    let answer = envelope.verify_signed_by::<ReadinessAnswer>(&[Key::from(provider)])?.statement;
    let agreement = insured_by(inner, provider, answer.contract)?;
    let open = inner
        .memory()
        .challenges
        .get(&answer.contract)
        .cloned()
        .ok_or_else(|| Problem::conflict("no challenge waits for an answer"))?;
    if open.challenge != answer.challenge {
        return Err(Problem::conflict("this is not the challenge that waits for an answer").field("challenge"));
    }
    if open.answer_by < inner.now() {
        inner.memory().challenges.remove(&answer.contract);
        return Err(Problem::conflict("the answer came too late; ask for another challenge").field("challenge"));
    }
    let expected =
        readiness::answer(&inner.core.content, agreement.id, &agreement.contract, &open.challenge).await.map_err(|error| {
            tracing::error!(error = &error as &dyn std::error::Error, "the own copy of insured content cannot be read");
            Problem::unavailable("the customer cannot read its own copy now")
        })?;
    if expected != answer {
        inner.alarm(format!("{provider} answered a readiness challenge of {} wrongly", agreement.id));
        return Err(Problem::forbidden("this is not what the content gives").field("keyed_hash"));
    }
    envelope.cosign(&inner.core.identity.keypair);
    Ok(envelope)
}
