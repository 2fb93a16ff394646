//! Contracts at the arbitrator: brought there, followed, ended.

use std::sync::Arc;
use std::time::Duration;

use ::arbitrator::Client;
use ::arbitrator::resource::{ContractView, Submission};
use ::arbitrator::store::EventBody;
use contracts::contract::{Contract, Outcome, State};
use contracts::envelope::{Envelope, Key};
use contracts::evidence::Verdict;
use contracts::ids::{ContractId, NodeId, StatementId};

use super::{Error, Inner};
use crate::agreements::Agreement;
use crate::timeline::Event;

/// Without events the arbitrator is asked so often.
const INTERVAL: Duration = Duration::from_secs(5);
/// First and longest pause while it is away.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// Pages of contracts read at most.
const PAGES_MAX: usize = 50;

/// Registers and follows for ever.
pub(super) async fn follow(inner: Arc<Inner>, client: Client) {
    let mut pause = PAUSE.0;
    loop {
        if let Err(error) = follow_once(&inner, &client, &mut pause).await {
            tracing::info!(error = error.chain(), pause_ms = pause.as_millis(), "the arbitrator is asked again");
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE.1);
    }
}

/// Until the stream ends or something fails.
async fn follow_once(inner: &Inner, client: &Client, pause: &mut Duration) -> Result<(), Error> {
    inner.check_arbitrator(client).await?;
    match client.register_node(inner.core.me(), &inner.core.record).await.map_err(Error::from) {
        Ok(_) => {}
        Err(error) if error.problem() == Some("stale-record") => {
            inner.alarm("the arbitrator has a newer record of this node".to_owned())
        }
        Err(error) => return Err(error),
    }
    let mut events = client.follow_events(None).await?;
    loop {
        inner.refresh_contracts(client).await?;
        *pause = PAUSE.0;
        let deadline = tokio::time::Instant::now() + INTERVAL;
        while let Ok(event) = tokio::time::timeout_at(deadline, events.next()).await {
            let contract = match event?.body {
                EventBody::ContractInForce { contract } | EventBody::ContractChanged { contract, .. } => contract,
                EventBody::NodeRegistered { node } => {
                    inner.meet_newcomer(node).await?;
                    continue;
                }
                EventBody::EvidenceReceived { .. } | EventBody::VerdictGiven { .. } | EventBody::OrderTaken { .. } => continue,
            };
            if inner.core.agreements.get(contract).is_some() {
                inner.take_view(&client.get_contract(contract).await?).await?;
            }
        }
    }
}

impl Inner {
    pub(super) fn trusts(&self, arbitrator: NodeId) -> bool {
        match &self.core.policy {
            Some(policy) => policy.arbitrator == arbitrator,
            None => self.core.config.arbitrator.as_ref().is_some_and(|configured| configured.node == arbitrator),
        }
    }

    /// Behind the configured address is the configured arbitrator.
    async fn check_arbitrator(&self, client: &Client) -> Result<(), Error> {
        let configured = self.core.config.arbitrator.as_ref().ok_or(Error::NotYet("no arbitrator is configured"))?;
        let says = client.describe_arbitrator().await?.node;
        if says == configured.node {
            return Ok(());
        }
        self.alarm(format!("the arbitrator at {} says that it is {says}, not {}", configured.url, configured.node));
        Err(Error::NotYet("another arbitrator answers"))
    }

    /// Brings a contract that both signed to the arbitrator.
    pub(super) async fn submit(&self, id: ContractId) -> Result<(), Error> {
        let agreement = self.agreement(id)?;
        let arbitrator = agreement.contract.arbitrator;
        let own_record = |envelope: &Envelope| {
            contracts::node_record::NodeRecord::verify(envelope).is_ok_and(|record| record.statement.node == arbitrator)
        };
        let mut node_records = self.records_of(&agreement.contract, true)?;
        node_records.retain(|record| !own_record(record));
        let submission = Submission { contract: (*agreement.envelope).clone(), node_records };
        match self.arbitrator()?.create_contract(&submission).await.map_err(Error::from) {
            Ok(view) => self.take_view(&view).await,
            Err(error) if error.is_transient() => Err(error),
            Err(error) => {
                self.cancel(&agreement, &format!("the arbitrator refuses: {}", error.chain())).await?;
                Err(error)
            }
        }
    }

    /// Asks for the contracts in force of this node and for those that are not among them any more.
    async fn refresh_contracts(&self, client: &Client) -> Result<(), Error> {
        let mut after = 0;
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..PAGES_MAX {
            let page = client.list_contracts_in_force(self.core.me(), after).await?;
            for view in &page.items {
                seen.insert(view.id);
                self.take_view(view).await?;
            }
            match page.next {
                Some(next) => after = next,
                None => break,
            }
        }
        for agreement in self.core.agreements.list() {
            if seen.contains(&agreement.id) || matches!(agreement.state, State::Ended { .. } | State::Proposed) {
                continue;
            }
            match client.get_contract(agreement.id).await {
                Ok(view) => self.take_view(&view).await?,
                // Signed by both, and not submitted yet.
                Err(error) if error.problem() == Some("not-found") => {}
                Err(error) => return Err(error.into()),
            }
        }
        let accounts = client.list_accounts(self.core.owner).await?;
        self.memory().accounts = accounts;
        Ok(())
    }

    /// Takes over what the arbitrator says of a contract; it is the authority on its state.
    pub(super) async fn take_view(&self, view: &ContractView) -> Result<(), Error> {
        let me = self.core.me();
        let known = match self.core.agreements.get(view.id) {
            Some(known) => known,
            None if !view.in_force => return Ok(()),
            None => {
                // In force without our knowing: our disk was lost, or the other party was faster than its own word to us.
                let contract = view.envelope.verify::<Contract>()?.statement;
                if contract.customer.node != me && contract.provider.node != me {
                    return Ok(());
                }
                self.take_in_force(&view.envelope).await?;
                self.agreement(view.id)?
            }
        };
        if view.in_force && !known.state.is_in_force() {
            self.take_in_force(&view.envelope).await?;
        }
        if view.state == known.state {
            return Ok(());
        }
        if let State::Ended { outcome } = view.state {
            return self.settle(&known, outcome).await;
        }
        self.core.agreements.set_state(view.id, view.state).await?;
        Ok(())
    }

    /// A contract with the signatures of both parties and the arbitrator: known from now on, at least in preparation.
    pub(super) async fn take_in_force(&self, envelope: &Envelope) -> Result<(), Error> {
        let verified = envelope.verify::<Contract>()?;
        let contract = &verified.statement;
        for key in [contract.customer.node, contract.provider.node, contract.arbitrator].map(Key::from) {
            if !verified.signers.contains(&key) {
                return Err(contracts::envelope::Error::Missing { key }.into());
            }
        }
        let id = ContractId::from(verified.id);
        let was_known = self.core.agreements.get(id).map(|known| known.state);
        let agreement = self.core.agreements.insert(envelope, State::Preparing).await?;
        match agreement.state {
            State::Proposed | State::Agreed => {
                self.core.agreements.set_state(id, State::Preparing).await?;
            }
            State::Preparing
            | State::Standby { .. }
            | State::TakenOver { .. }
            | State::HandingBack { .. }
            | State::Disputed { .. }
            | State::Ended { .. } => {}
        }
        if was_known.is_none_or(|state| matches!(state, State::Proposed | State::Agreed)) {
            if contract.customer.node == self.core.me() {
                self.memory().refusals.end();
            }
            self.core.timeline.push(Event::InForce { contract: id });
        }
        Ok(())
    }

    /// The end of a contract: the verdict, and what it did to the money.
    async fn settle(&self, known: &Agreement, outcome: Outcome) -> Result<(), Error> {
        let client = self.arbitrator()?;
        let verdict = match client.get_verdict(known.id).await {
            Ok(view) => Some(check_verdict(known, &view.envelope)?),
            Err(error) if error.problem() == Some("not-found") => None,
            Err(error) => return Err(error.into()),
        };
        self.core.agreements.set_state(known.id, State::Ended { outcome }).await?;
        let accounts = client.list_accounts(self.core.owner).await?;
        self.memory().accounts = accounts;
        if let (true, Some(matched)) = (known.contract.customer.node == self.core.me(), known.contract.matched_by) {
            self.unpin(&matched.to_string()).await?;
        }
        let outcome = serde_json::to_value(outcome).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default();
        self.core.timeline.push(Event::Settled { contract: known.id, outcome, verdict });
        self.ask_marketplace.notify_one();
        Ok(())
    }
}

/// The id of a verdict that the contract's arbitrator signed about this contract.
fn check_verdict(known: &Agreement, envelope: &Envelope) -> Result<StatementId, Error> {
    let verdict = envelope.verify_signed_by::<Verdict>(&[Key::from(known.contract.arbitrator)])?;
    if verdict.statement.contract == known.id {
        Ok(verdict.id)
    } else {
        Err(Error::Final("the verdict is about another contract".to_owned()))
    }
}
