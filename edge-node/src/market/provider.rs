//! The provider's steps: answer proposals, sign what was agreed, fetch and load, prove readiness.

use std::sync::Arc;

use contracts::contract::{Contract, State};
use contracts::envelope::{Envelope, Key};
use contracts::evidence::{Cancellation, ReadinessChallenge};
use contracts::ids::{ContractId, NodeId, StatementId};
use contracts::listing::Match;
use contracts::node_record::NodeRecord;
use contracts::time::Millis;
use kit::problem::Problem;

use super::{Error, Inner, evidence, listings, lock, sessions};
use crate::dmu::negotiation::{Answer, Proposal};
use crate::edge2edge::negotiation::{self, NODE_RECORDS_MAX, Opening, Text};
use crate::migration::source::PeerSource;
use crate::migration::{self, PURPOSE_NETWORK};
use crate::readiness;
use crate::timeline::Event;

/// The term of a contract begins at most this far from now when it is signed.
const START_SKEW: Millis = Millis::from_secs(300);
/// What cannot be made ready in this time is taken back: content that does not fit its contract must not cost the stake.
const PREPARE_MAX: Millis = Millis::from_secs(600);

/// A match by the pinned marketplace in which `customer` is introduced to this node for one of its own offers.
fn introduced(inner: &Inner, customer: NodeId, matched: &Envelope) -> Result<(StatementId, Match), Problem> {
    let marketplace = (*inner.pinned.borrow()).ok_or_else(|| Problem::unavailable("the marketplace is not known here yet"))?;
    let verified = matched.verify_signed_by::<Match>(&[Key::from(marketplace)])?;
    let terms = verified.statement;
    if (terms.marketplace, terms.provider, terms.customer) != (marketplace, inner.core.me(), customer) {
        return Err(Problem::forbidden("the match does not introduce you to this node"));
    }
    if terms.held_until <= inner.now() {
        return Err(Problem::conflict("the match is over").field("matched"));
    }
    let is_ours = lock(&inner.view).offers.iter().any(|(id, _)| *id == terms.offer);
    if is_ours {
        Ok((verified.id, terms))
    } else {
        Err(Problem::conflict("the matched offer is not listed any more").field("matched"))
    }
}

/// Answers a proposal of the customer of a match.
pub(super) fn answer_opening(inner: &Inner, customer: NodeId, opening: &Opening) -> Result<Answer, Problem> {
    let limits = inner.core.policy.as_ref().and_then(crate::dmu::policy::Policy::provider_limits);
    let limits = limits.ok_or_else(|| Problem::forbidden("this node sells no insurance"))?;
    let (id, terms) = introduced(inner, customer, &opening.matched)?;
    let held = (id, customer, terms.held_until);
    let outcome =
        lock(&inner.sessions).answer(&limits, held, (opening.round, &opening.proposal), inner.now()).map_err(refused)?;
    if let (true, Answer::Accept { proposal }) = (outcome.just_agreed, &outcome.answer) {
        let price_per_day_micros = proposal.price_per_day.micros().to_string();
        inner.core.timeline.push(Event::Negotiated { round: opening.round, price_per_day_micros });
    }
    Ok(outcome.answer)
}

fn refused(refusal: sessions::Refusal) -> Problem {
    use sessions::Refusal as R;
    match refusal {
        R::Over | R::Round { .. } | R::TooManyRestarts | R::NothingAgreed => Problem::conflict(refusal),
        R::OtherCustomer => Problem::forbidden(refusal),
    }
}

/// The records that came with a text, verified.
fn read_records(text: &Text) -> Result<Vec<NodeRecord>, Problem> {
    if text.node_records.len() > NODE_RECORDS_MAX {
        return Err(Problem::invalid("node_records", format_args!("at most {NODE_RECORDS_MAX}")));
    }
    text.node_records.iter().map(|envelope| Ok(NodeRecord::verify(envelope)?.statement)).collect()
}

async fn put_records(inner: &Inner, contract: &Contract, text: &Text) -> Result<(), Problem> {
    let mut named = contract.members();
    named.push(contract.readings_to);
    for envelope in &text.node_records {
        // Only those that the contract names: nobody else gets into the directory this way.
        if NodeRecord::verify(envelope).is_ok_and(|record| named.contains(&record.statement.node)) {
            inner.core.directory.put(envelope).await.map_err(|error| failed(&error))?;
        }
    }
    Ok(())
}

fn failed(error: &dyn std::error::Error) -> Problem {
    tracing::error!(error = %error, "a peer's request failed here");
    Problem::internal()
}

/// Signs a text that says what was negotiated and what the owner allows; once per match.
pub(super) async fn sign_text(inner: &Arc<Inner>, customer: NodeId, text: Text) -> Result<Envelope, Problem> {
    let verified = text.contract.verify_signed_by::<Contract>(&[Key::from(customer)])?;
    let (id, contract) = (ContractId::from(verified.id), verified.statement);
    if (contract.customer.node, contract.provider.node) != (customer, inner.core.me())
        || verified.signers != [Key::from(customer)]
    {
        return Err(Problem::forbidden("only its customer brings a text to its provider, signed by the customer alone"));
    }
    let _one_at_a_time = inner.signing.lock().await;
    let earlier = inner
        .core
        .agreements
        .list()
        .into_iter()
        .find(|a| a.contract.matched_by == contract.matched_by && !matches!(a.state, State::Ended { .. }));
    match earlier {
        Some(known) if known.id == id => return Ok((*known.envelope).clone()),
        Some(_) => return Err(Problem::conflict("another text was signed under this match").field("matched_by")),
        None => {}
    }
    let agreed = check_text(inner, customer, &contract, &text).await?;
    let mut envelope = text.contract.clone();
    let edge_arbitrator = inner.edge_arbitrator().map_err(|error| failed(&error))?;
    edge_arbitrator
        .cosign(&mut envelope, &contract, &agreed, inner.now())
        .map_err(|refusal| Problem::forbidden(refusal).field("contract"))?;
    put_records(inner, &contract, &text).await?;
    inner.core.agreements.insert(&envelope, State::Agreed).await.map_err(|error| failed(&error))?;
    inner.core.timeline.push(Event::Signed { contract: id });
    Ok(envelope)
}

/// Everything that must hold beyond the owner's policy. Gives what was agreed.
async fn check_text(inner: &Inner, customer: NodeId, contract: &Contract, text: &Text) -> Result<Proposal, Problem> {
    let matched = contract.matched_by.ok_or_else(|| Problem::invalid("matched_by", "a contract here comes from a match"))?;
    let agreed = lock(&inner.sessions).agreed(matched, customer, inner.now()).map_err(refused)?;
    if inner.find_match(matched).is_none() {
        // Signed now, its capacity would be offered to somebody else at once.
        inner.refresh_view().await.map_err(|_| Problem::unavailable("the marketplace is away"))?;
        inner.find_match(matched).ok_or_else(|| Problem::conflict("the match is over").field("matched_by"))?;
    }
    let core = &inner.core;
    let owners_ok = contract.provider.owner == core.owner && core.directory.owner(customer) == Some(contract.customer.owner);
    let fits = |holds: bool, field: &str, why: &str| if holds { Ok(()) } else { Err(Problem::invalid(field, why)) };
    fits(owners_ok, "owner", "not the owners of the node records")?;
    let now = inner.now();
    let starts_now = contract.valid_from <= now + START_SKEW && now <= contract.valid_from + START_SKEW;
    fits(starts_now, "valid_from", "the term begins now")?;
    readiness::content_of(contract).map_err(|error| Problem::invalid("content", error))?;
    let records = read_records(text)?;
    let knows =
        |node: NodeId| node == core.me() || core.directory.admits(node) || records.iter().any(|record| record.node == node);
    let known = contract.witnesses.iter().chain([&contract.readings_to]).all(|node| knows(*node));
    fits(known, "node_records", "the record of a witness or of the cloud is missing")?;
    let group_is_free = core.agreements.list().iter().all(|a| {
        matches!(a.state, State::Ended { .. })
            || a.contract.group != contract.group && a.contract.devices.is_disjoint(&contract.devices)
    });
    fits(group_is_free, "devices", "this node has a contract for this group or one of its devices")?;
    let rules = core
        .policy
        .as_ref()
        .and_then(|policy| policy.provider.as_ref())
        .ok_or_else(|| Problem::forbidden("this node sells no insurance"))?;
    let free = listings::free(rules, &inner.own_use(), &inner.promised());
    fits(free.is_some_and(|free| free.covers(&contract.blueprint.needs)), "blueprint.needs", "more than is free now")?;
    Ok(agreed)
}

/// Takes a contract in force that a party brings: three signatures, and this node has a part in it.
pub(super) async fn take_contract(inner: &Arc<Inner>, peer: NodeId, text: Text) -> Result<(), Problem> {
    let core = &inner.core;
    let contract = text.contract.verify::<Contract>()?.statement;
    if ![contract.customer.node, contract.provider.node].contains(&peer) {
        return Err(Problem::forbidden("only a party brings a contract"));
    }
    let is_provider = contract.provider.node == core.me();
    let is_receiver = contract.readings_to == core.me() && contract.customer.owner == core.owner;
    if !is_provider && !is_receiver {
        return Err(Problem::forbidden("this node has no part in this contract"));
    }
    if !inner.trusts(contract.arbitrator) {
        return Err(Problem::forbidden("this node does not trust this arbitrator").field("arbitrator"));
    }
    read_records(&text)?;
    put_records(inner, &contract, &text).await?;
    inner.take_in_force(&text.contract).await.map_err(|error| match error {
        Error::Envelope(envelope) => envelope.into(),
        other => failed(&other),
    })
}

impl Inner {
    /// Fetches everything, loads the images, and proves it. The arbitrator then moves the contract to standby.
    pub(super) async fn prepare(&self, id: ContractId) -> Result<(), Error> {
        let since = *self.memory().preparing_since.entry(id).or_insert_with(|| self.now());
        match self.make_ready(id).await {
            Ok(()) => {
                self.memory().preparing_since.remove(&id);
                Ok(())
            }
            Err(error) if self.now().since(since) > PREPARE_MAX => {
                let reason: String = error.chain().chars().take(300).collect();
                let cancellation = Cancellation { contract: id, reason };
                let envelope = Envelope::sign(&cancellation, &self.core.identity.keypair);
                let view = self.arbitrator()?.add_evidence(id, &envelope).await?;
                self.alarm(format!("{id} is taken back: it cannot be made ready"));
                self.take_view(&view).await
            }
            Err(error) => Err(error),
        }
    }

    async fn make_ready(&self, id: ContractId) -> Result<(), Error> {
        let agreement = self.agreement(id)?;
        let contract = &agreement.contract;
        self.fetch_content(id, contract).await?;
        self.load_images(contract).await?;
        self.check_network_configuration(contract).await?;
        let customer = contract.customer.node;
        let challenge = negotiation::ask_challenge(&self.core.client, customer, id).await?;
        let challenge = challenge.verify_signed_by::<ReadinessChallenge>(&[Key::from(customer)])?.statement;
        if challenge.contract != id {
            return Err(Error::NotYet("the customer challenged for another contract"));
        }
        let answer = readiness::answer(&self.core.content, id, contract, &challenge.challenge).await?;
        let envelope = Envelope::sign(&answer, &self.core.identity.keypair);
        let proof = match negotiation::show_answer(&self.core.client, customer, envelope.clone()).await.map_err(Error::from) {
            Ok(proof) => proof,
            Err(error) => {
                // The arbitrator sees at least that the answer came in time.
                evidence::post(&self.core, envelope);
                return Err(error);
            }
        };
        proof.verify_signed_by::<contracts::evidence::ReadinessAnswer>(&[
            Key::from(customer),
            Key::from(contract.provider.node),
        ])?;
        if proof.id() != envelope.id() {
            return Err(Error::NotYet("the customer signed another answer"));
        }
        let view = self.arbitrator()?.add_evidence(id, &proof).await?;
        self.take_view(&view).await
    }

    async fn fetch_content(&self, id: ContractId, contract: &Contract) -> Result<(), Error> {
        let core = &self.core;
        let source = PeerSource::new(core.client.clone(), contract.customer.node);
        let label = id.to_string();
        for cid in readiness::content_of(contract)? {
            if core.content.missing(&cid).await?.is_empty() {
                core.content.pin(&cid, &label).await?;
                continue;
            }
            let started = core.clock.boot();
            let bytes = Box::pin(migration::fetch(&core.content, &source, &cid, &label)).await?;
            let elapsed_ms = core.clock.boot().since(started).0;
            core.timeline.push(Event::ContentFetched { cid: cid.to_string(), bytes, elapsed_ms });
        }
        Ok(())
    }

    async fn load_images(&self, contract: &Contract) -> Result<(), Error> {
        let Some(orchestrator) = &self.core.orchestrator else { return Ok(()) };
        for service in &contract.blueprint.services {
            let cid = storage::parse_cid(&service.image)?;
            let expected = service.image_id.parse().map_err(|error| migration::Error::Engine(engine::Error::Image(error)))?;
            migration::load_image(&self.core.content, orchestrator.engine().as_ref(), &cid, &expected).await?;
        }
        Ok(())
    }

    /// The network part opens with this node's key and is about the devices of the contract. The application part stays sealed.
    async fn check_network_configuration(&self, contract: &Contract) -> Result<(), Error> {
        let cid = storage::parse_cid(&contract.network_configuration)?;
        let json = migration::open_sealed(&self.core.content, &cid, &self.core.identity.unsealing, PURPOSE_NETWORK).await?;
        let form = |reason: String| Error::Migration(migration::Error::Form(reason));
        let registration: tenant::Registration = serde_json::from_slice(&json).map_err(|error| form(error.to_string()))?;
        registration.check().map_err(|error| form(error.to_string()))?;
        let devices = crate::tenants::http::devices(&registration).collect::<std::collections::BTreeSet<_>>();
        if devices == contract.devices { Ok(()) } else { Err(form("its devices are not those of the contract".to_owned())) }
    }
}
