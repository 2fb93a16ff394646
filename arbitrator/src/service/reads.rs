//! Reads.

use std::time::Duration;

use contracts::envelope::Key;
use contracts::ids::{ContractId, NodeId, OwnerId};
use contracts::reputation::{self, Reputation};

use super::{Error, REPUTATION_VERDICTS_MAX, Result, Service};
use crate::resource::ArbitratorView;
use crate::store::{ContractFilter, ContractRow, EventRow, EvidenceRow, TransferRow, VerdictRow};

/// A store that does not answer for so long is not ready.
const READY_TIMEOUT: Duration = Duration::from_secs(2);

/// Of whom a score is wanted.
#[derive(Debug, Clone, Copy)]
pub enum Subject {
    Owner(OwnerId),
    /// Its owner's score.
    Node(NodeId),
}

impl Service {
    #[must_use]
    pub fn describe(&self) -> ArbitratorView {
        ArbitratorView {
            node: self.me(),
            owner: self.keypair.owner_id(),
            operators: self.operators.iter().copied().collect::<std::collections::BTreeSet<Key>>(),
            record: self.record.clone(),
        }
    }

    /// # Errors
    /// [`Error::NotFound`].
    pub async fn get_contract(&self, id: ContractId) -> Result<ContractRow> {
        self.store.contract(id).await?.ok_or(Error::NotFound("contract"))
    }

    /// # Errors
    /// The store failed.
    pub async fn list_contracts(&self, filter: ContractFilter) -> Result<Vec<ContractRow>> {
        Ok(self.store.contracts(filter).await?)
    }

    /// # Errors
    /// [`Error::NotFound`].
    pub async fn list_evidence(&self, id: ContractId, after: u64, limit: u32) -> Result<Vec<EvidenceRow>> {
        self.get_contract(id).await?;
        Ok(self.store.evidence(id, after, limit).await?)
    }

    /// # Errors
    /// [`Error::NotFound`] as long as the contract is in force.
    pub async fn get_verdict(&self, id: ContractId) -> Result<VerdictRow> {
        self.store.verdict(id).await?.ok_or(Error::NotFound("verdict"))
    }

    /// # Errors
    /// The store failed.
    pub async fn list_transfers(&self, owner: Option<OwnerId>, after: u64, limit: u32) -> Result<Vec<TransferRow>> {
        Ok(self.store.transfers(owner, after, limit).await?)
    }

    /// # Errors
    /// The store failed.
    pub async fn list_events(&self, after: u64, limit: u32) -> Result<Vec<EventRow>> {
        Ok(self.store.events(after, limit).await?)
    }

    /// The score of an owner as a provider, from its newest verdicts.
    ///
    /// # Errors
    /// [`Error::UnknownNode`] for a node that is not registered.
    pub async fn get_reputation(&self, of: Subject) -> Result<Reputation> {
        let owner = match of {
            Subject::Owner(owner) => owner,
            Subject::Node(node) => self.store.node(node).await?.ok_or(Error::NotFound("node"))?.record.owner,
        };
        let rows = self.store.verdicts_about(owner, REPUTATION_VERDICTS_MAX).await?;
        let verdicts: Vec<_> = rows.into_iter().map(|row| row.verdict).collect();
        Ok(reputation::compute(owner, &verdicts, self.now()))
    }

    /// Whether the store answers and the ledger balances.
    ///
    /// # Errors
    /// What is wrong, for people.
    pub async fn check_readiness(&self) -> std::result::Result<(), String> {
        let sums =
            tokio::time::timeout(READY_TIMEOUT, self.store.sums()).await.map_err(|_| "the store does not answer".to_owned())?;
        let sums = sums.map_err(|error| error.to_string())?;
        match sums.into_iter().find(|(_, sum)| *sum != 0) {
            Some((currency, sum)) => Err(format!("the ledger of {currency} is off by {sum} micro-units")),
            None => Ok(()),
        }
    }
}
