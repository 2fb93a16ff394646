//! What the marketplace does: checks statements against the book, writes, clears. Writes are made one at a time.

use std::sync::Arc;

use contracts::envelope::{self, Keypair};
use contracts::ids::NodeId;
use contracts::time::Millis;
use kit::clock::Clock;
use tokio::sync::{Mutex, Notify, watch};

use crate::config::Limits;
use crate::metrics::Metrics;
use crate::reputation::Reputation;
use crate::resource::Marketplace;
use crate::store::{self, Rows, Store};

mod events;
mod listings;
mod matches;
mod nodes;
mod rounds;

pub use rounds::{Cleared, RETENTION};

/// The state and the tools of the service; shared by all requests.
#[derive(Debug)]
pub struct Service {
    store: Arc<dyn Store>,
    keypair: Keypair,
    clock: Clock,
    reputation: Arc<dyn Reputation>,
    limits: Limits,
    hold: Millis,
    pub metrics: Metrics,
    /// Deciding and writing are one step.
    writes: Mutex<()>,
    /// Something changed that clearing should look at.
    changed: Notify,
    /// The number of the last event, for streams to wait on.
    last_event: watch::Sender<u64>,
}

/// A resource after a write: new, or as it was because the statement is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Put<T> {
    pub value: T,
    pub created: bool,
}

/// Why a request is refused or failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Statement(#[from] envelope::Error),
    #[error("{0}")]
    NotFound(String),
    #[error("node {0} is not registered")]
    UnknownNode(NodeId),
    #[error("the statement names another owner than the node's record")]
    OwnerMismatch,
    #[error("the path names {path}, the statement {statement}")]
    PathMismatch { path: String, statement: String },
    #[error("a record with epoch {known} is registered; a new one needs a higher epoch")]
    StaleRecord { known: u64 },
    #[error("the node has open listings of its present owner; withdraw them before it changes hands")]
    OwnerChange,
    #[error("its validity ended at {0}")]
    Expired(u64),
    #[error("{field} is more than {days} days ahead")]
    TooFarAhead { field: &'static str, days: u64 },
    #[error("it was withdrawn and cannot be listed again")]
    Withdrawn,
    #[error("{what}: at most {max}")]
    TooMany { what: &'static str, max: u64 },
    #[error("the listing belongs to another node")]
    NotYours,
    #[error("the match is {0} and cannot be confirmed")]
    MatchOver(crate::resource::MatchState),
    #[error("another contract confirmed this match")]
    OtherContract,
    #[error("the contract's {0} is not the match's")]
    ContractMismatch(&'static str),
    #[error("events up to {first} are not kept; read the lists and start from the newest event")]
    EventsGone { first: u64 },
    #[error("the store failed")]
    Store(#[from] store::Error),
}

/// What a service is made of.
#[derive(Debug)]
pub struct Parts {
    pub store: Arc<dyn Store>,
    pub keypair: Keypair,
    pub clock: Clock,
    pub reputation: Arc<dyn Reputation>,
    pub limits: Limits,
    pub hold: Millis,
}

impl Service {
    /// # Errors
    /// If the store cannot be read.
    pub async fn new(parts: Parts) -> Result<Self, Error> {
        let (_, last) = parts.store.event_range().await?;
        let Parts { store, keypair, clock, reputation, limits, hold } = parts;
        Ok(Self {
            store,
            keypair,
            clock,
            reputation,
            limits,
            hold,
            metrics: Metrics::default(),
            writes: Mutex::new(()),
            changed: Notify::new(),
            last_event: watch::Sender::new(last),
        })
    }

    /// Whether requests can be served.
    ///
    /// # Errors
    /// [`Error::Store`] if the store does not answer.
    pub async fn ready(&self) -> Result<(), Error> {
        Ok(self.store.ping().await?)
    }

    /// # Errors
    /// [`Error::Store`].
    pub async fn describe(&self) -> Result<Marketplace, Error> {
        let (_, last_event) = self.store.event_range().await?;
        Ok(Marketplace { id: self.keypair.node_id(), now: self.clock.wall(), round: self.store.last_round().await?, last_event })
    }

    #[must_use]
    pub const fn clock(&self) -> &Clock {
        &self.clock
    }

    #[must_use]
    pub const fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Wakes the event streams after a write. Returns whether there was news.
    async fn announce(&self) -> Result<bool, Error> {
        let (_, last) = self.store.event_range().await?;
        Ok(self.last_event.send_if_modified(|told| std::mem::replace(told, last.max(*told)) < last))
    }

    /// Flushes and closes the store.
    pub async fn close(&self) {
        self.store.close().await;
    }
}

/// A page of rows as a page of the API: the cursor of the next one if the page is full.
fn page<T>(rows: Rows<T>, limit: u32) -> crate::resource::Page<T> {
    let full = rows.len() as u64 >= u64::from(limit);
    let next = rows.last().filter(|_| full).map(|(seq, _)| seq.to_string());
    crate::resource::Page { items: rows.into_iter().map(|(_, item)| item).collect(), next }
}
