//! The directory of nodes: verified records, newest of each node, on disk and in the address book of the transport.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use contracts::envelope::{self, Envelope};
use contracts::ids::{NodeId, OwnerId};
use contracts::node_record::NodeRecord;
use peering::AddressBook;

use crate::store::{self, Store};

/// Why a record is not taken.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("a node record is refused")]
    Envelope(#[from] envelope::Error),
    #[error("a node record cannot be stored")]
    Store(#[from] store::Error),
}

/// A handle; cheap to clone.
#[derive(Debug, Clone)]
pub struct Directory(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    store: Store,
    addresses: AddressBook,
    known: RwLock<BTreeMap<NodeId, (NodeRecord, Envelope)>>,
}

impl Directory {
    /// Loads what is on disk; records that do not verify any more are left out.
    ///
    /// # Errors
    /// The database failed.
    pub async fn open(store: Store, addresses: AddressBook) -> Result<Self, Error> {
        let directory = Self(Arc::new(Inner { store: store.clone(), addresses, known: RwLock::default() }));
        for envelope in store.list_records().await? {
            if let Ok(verified) = NodeRecord::verify(&envelope) {
                directory.remember(verified.statement, envelope);
            }
        }
        Ok(directory)
    }

    /// Takes a record; an older one than the known changes nothing.
    ///
    /// # Errors
    /// It does not verify, or cannot be stored.
    pub async fn put(&self, envelope: &Envelope) -> Result<NodeRecord, Error> {
        let record = NodeRecord::verify(envelope)?.statement;
        if let Some(known) = self.get(record.node).filter(|known| known.record_epoch >= record.record_epoch) {
            return Ok(known);
        }
        self.0.store.put_record(&record, envelope).await?;
        self.remember(record.clone(), envelope.clone());
        Ok(record)
    }

    fn remember(&self, record: NodeRecord, envelope: Envelope) {
        self.0.addresses.set(record.node, record.addresses.clone());
        self.0.known.write().unwrap_or_else(PoisonError::into_inner).insert(record.node, (record, envelope));
    }

    #[must_use]
    pub fn get(&self, node: NodeId) -> Option<NodeRecord> {
        self.0.known.read().unwrap_or_else(PoisonError::into_inner).get(&node).map(|(record, _)| record.clone())
    }

    /// The signed form, to hand on.
    #[must_use]
    pub fn envelope(&self, node: NodeId) -> Option<Envelope> {
        self.0.known.read().unwrap_or_else(PoisonError::into_inner).get(&node).map(|(_, envelope)| envelope.clone())
    }

    #[must_use]
    pub fn owner(&self, node: NodeId) -> Option<OwnerId> {
        self.get(node).map(|record| record.owner)
    }

    /// Whether a peer may talk to this node at all: only those whose signed record is known.
    #[must_use]
    pub fn admits(&self, node: NodeId) -> bool {
        self.0.known.read().unwrap_or_else(PoisonError::into_inner).contains_key(&node)
    }
}
