//! What the arbitrator does with statements: validate, decide (in [`contracts`], purely), write in one transaction, tell those who follow.
//!
//! One writer at a time: every decision loads, applies and commits under one lock, and the store refuses what was computed on old rows.

mod contracts_in_force;
mod evidence;
mod money;
mod nodes;
mod reads;
mod standing;

pub use reads::Subject;

use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError};

use contracts::envelope::{self, Envelope, Key, Keypair};
use contracts::evidence::judge;
use contracts::ids::{ContractId, NodeId};
use contracts::ledger;
use contracts::time::{Millis, WallTime};
use kit::clock::Clock;
use tokio::sync::{Mutex, watch};

use crate::metrics::Metrics;
use crate::store::{self, Changes, ContractChange, RecordsError, Store};

/// A contract may be submitted this long before its term begins.
pub const EARLY_MAX: Millis = Millis(300_000);
/// Node records attached to one submission.
pub const NODE_RECORDS_MAX: usize = 8;
/// Verdicts on which a score rests: the newest.
pub const REPUTATION_VERDICTS_MAX: u32 = 1_000;

/// Why something is refused; each has a stable problem type in [`crate::http`].
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Statement(#[from] envelope::Error),
    #[error("there is no such {0}")]
    NotFound(&'static str),
    #[error("{field} of path and statement differ")]
    PathMismatch { field: &'static str },
    #[error("no record of {0} is registered or attached")]
    UnknownNode(NodeId),
    #[error("by its record {node} belongs to another owner")]
    OwnerMismatch { node: NodeId },
    #[error("a record with epoch {known} is registered")]
    StaleRecord { known: u64 },
    #[error("the record names another owner; a node changes hands by a new key")]
    OwnerChange,
    #[error("as many nodes are registered as are taken")]
    TooManyNodes,
    #[error("the statement is for {0}")]
    OtherArbitrator(NodeId),
    #[error("it was valid until {0:?}")]
    Expired(WallTime),
    #[error("its term begins at {0:?}, too far ahead")]
    NotYetValid(WallTime),
    #[error("{0} has no part in the contract")]
    Stranger(Key),
    #[error("one owner would have a majority of the members")]
    OneOwnerMajority,
    #[error("{0} is in force for one of its devices or its group, with other members or another group")]
    GroupTaken(ContractId),
    #[error("money cannot be held")]
    Money(#[source] ledger::Rejected),
    #[error("{0} is not an operator of this arbitrator")]
    NotAnOperator(Key),
    #[error(transparent)]
    Refused(#[from] judge::Refused),
    #[error("the custody certificate proves nothing: {0}")]
    Certificate(String),
    #[error("one author adds at most {0} statements to a contract")]
    TooMuchEvidence(usize),
    #[error("{0} is not a member of the group, or the group has no contract in force")]
    NotAMember(NodeId),
    #[error(transparent)]
    Records(RecordsError),
    #[error("the store failed")]
    Store(#[from] store::Error),
}

impl From<RecordsError> for Error {
    fn from(error: RecordsError) -> Self {
        match error {
            RecordsError::Store(store) => Self::Store(store),
            refused @ (RecordsError::NotTheHolder { .. } | RecordsError::Full) => Self::Records(refused),
        }
    }
}

pub type Result<T> = std::result::Result<T, Error>;

/// What a service is made of.
#[derive(Debug)]
pub struct Parts {
    pub store: Arc<dyn Store>,
    pub keypair: Keypair,
    /// This arbitrator's own node record, signed.
    pub record: Envelope,
    pub operators: BTreeSet<Key>,
    pub clock: Clock,
    pub nodes_max: u64,
}

/// Contracts and records of nodes that were written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changed {
    pub contracts: BTreeSet<ContractId>,
    pub nodes: BTreeSet<NodeId>,
}

#[derive(Debug)]
pub struct Service {
    pub(crate) store: Arc<dyn Store>,
    keypair: Keypair,
    record: Envelope,
    operators: BTreeSet<Key>,
    clock: Clock,
    nodes_max: u64,
    write: Mutex<()>,
    last_event: watch::Sender<u64>,
    /// Counts changes of contracts in force; the witness looks at them.
    contracts_changed: watch::Sender<u64>,
    /// What they were since the witness last looked.
    changed: std::sync::Mutex<Changed>,
    pub metrics: Metrics,
}

impl Service {
    /// # Errors
    /// The store cannot be read.
    pub async fn new(parts: Parts) -> Result<Self> {
        let last = parts.store.last_event().await?;
        Ok(Self {
            store: parts.store,
            keypair: parts.keypair,
            record: parts.record,
            operators: parts.operators,
            clock: parts.clock,
            nodes_max: parts.nodes_max,
            write: Mutex::new(()),
            last_event: watch::Sender::new(last),
            contracts_changed: watch::Sender::new(0),
            changed: std::sync::Mutex::default(),
            metrics: Metrics::default(),
        })
    }

    #[must_use]
    pub fn me(&self) -> NodeId {
        self.keypair.node_id()
    }

    #[must_use]
    pub fn now(&self) -> WallTime {
        self.clock.wall()
    }

    /// The number of the newest event, and of each that follows.
    #[must_use]
    pub fn watch_events(&self) -> watch::Receiver<u64> {
        self.last_event.subscribe()
    }

    /// Changes with every change of the contracts in force.
    #[must_use]
    pub fn watch_contracts(&self) -> watch::Receiver<u64> {
        self.contracts_changed.subscribe()
    }

    /// What changed since the last call: for the one that follows, so that it need not read all contracts for each change.
    #[must_use]
    pub fn take_changed(&self) -> Changed {
        std::mem::take(&mut self.changed.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Tells those who follow of what is stored; of changes, too, that were written though their writer heard an error.
    async fn catch_up(&self) -> Result<()> {
        let last = self.store.last_event().await?;
        self.last_event.send_if_modified(|told| std::mem::replace(told, last.max(*told)) < last);
        Ok(())
    }

    /// Writes all of it or nothing, then tells those who follow; also of what may have been written though the store says that it failed.
    async fn commit(&self, changes: Changes) -> Result<()> {
        let contract = changes.contract.as_ref().map(|change| match change {
            ContractChange::Enter { id, .. } | ContractChange::Stand { id, .. } => *id,
        });
        let nodes: Vec<NodeId> = changes.nodes.iter().map(|row| row.record.node).collect();
        let written = self.store.commit(changes).await;
        if contract.is_some() || !nodes.is_empty() {
            let mut changed = self.changed.lock().unwrap_or_else(PoisonError::into_inner);
            changed.contracts.extend(contract);
            changed.nodes.extend(nodes);
            drop(changed);
            self.contracts_changed.send_modify(|n| *n += 1);
        }
        written?;
        self.catch_up().await
    }
}
