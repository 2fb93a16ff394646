//! The contracts that this node is a party of or receives readings under, each with its state.
//!
//! A contract's state moves by the one transition table of [`contracts::contract::life`] and is on disk before anybody sees it.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use contracts::contract::{Contract, Event, State, life};
use contracts::envelope::Envelope;
use contracts::ids::{ContractId, GroupId};
use tokio::sync::{Mutex, watch};

use crate::store::{self, AgreementRow, Store};

/// Why a contract does not move.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Envelope(#[from] contracts::envelope::Error),
    #[error(transparent)]
    Rejected(#[from] life::Rejected),
    #[error("this node knows no contract {0}")]
    Unknown(ContractId),
    #[error("the contract cannot be stored")]
    Store(#[from] store::Error),
}

/// One contract as this node knows it.
#[derive(Debug, Clone)]
pub struct Agreement {
    pub id: ContractId,
    pub contract: Arc<Contract>,
    pub envelope: Arc<Envelope>,
    pub state: State,
    pub wiped: bool,
    version: u64,
}

/// A handle; cheap to clone.
#[derive(Debug, Clone)]
pub struct Agreements(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    store: Store,
    known: RwLock<BTreeMap<ContractId, Agreement>>,
    /// One writer at a time.
    writing: Mutex<()>,
    changed: watch::Sender<u64>,
}

impl Agreements {
    /// Loads what is on disk.
    ///
    /// # Errors
    /// The database failed or holds what does not verify.
    pub async fn open(store: Store) -> Result<Self, Error> {
        let mut known = BTreeMap::new();
        for row in store.list_agreements().await? {
            let verified = row.envelope.verify::<Contract>()?;
            let agreement = Agreement {
                id: row.contract,
                contract: Arc::new(verified.statement),
                envelope: Arc::new(row.envelope),
                state: row.state,
                wiped: row.wiped,
                version: row.version,
            };
            known.insert(row.contract, agreement);
        }
        Ok(Self(Arc::new(Inner { store, known: RwLock::new(known), writing: Mutex::default(), changed: watch::Sender::new(0) })))
    }

    /// Adds a contract whose signatures the caller checked, in a state that the caller knows; one that is known keeps its state but takes the
    /// envelope with more signatures.
    ///
    /// # Errors
    /// It does not verify, or cannot be stored.
    pub async fn insert(&self, envelope: &Envelope, state: State) -> Result<Agreement, Error> {
        let verified = envelope.verify::<Contract>()?;
        let id = ContractId::from(verified.id);
        let _only_one = self.0.writing.lock().await;
        let agreement = match self.get(id) {
            Some(known) if known.envelope.signatures.len() >= envelope.signatures.len() => return Ok(known),
            Some(known) => Agreement { envelope: Arc::new(envelope.clone()), ..known },
            None => Agreement {
                id,
                contract: Arc::new(verified.statement),
                envelope: Arc::new(envelope.clone()),
                state,
                wiped: false,
                version: 0,
            },
        };
        self.write(agreement).await
    }

    /// Moves a contract by an event. An event that has no place in its state is an error and changes nothing.
    ///
    /// # Errors
    /// The contract is unknown, the event has no place, or the change cannot be stored.
    pub async fn advance(&self, id: ContractId, event: Event) -> Result<Agreement, Error> {
        let _only_one = self.0.writing.lock().await;
        let known = self.get(id).ok_or(Error::Unknown(id))?;
        let (state, _effects) = life::apply(known.state, event)?;
        self.write(Agreement { state, ..known }).await
    }

    /// Takes over the state that the arbitrator says; it is the authority. What ended stays so: an answer that was under way may be older.
    ///
    /// # Errors
    /// The contract is unknown, or the change cannot be stored.
    pub async fn set_state(&self, id: ContractId, state: State) -> Result<Agreement, Error> {
        let _only_one = self.0.writing.lock().await;
        let known = self.get(id).ok_or(Error::Unknown(id))?;
        if known.state == state || matches!(known.state, State::Ended { .. }) {
            Ok(known)
        } else {
            self.write(Agreement { state, ..known }).await
        }
    }

    /// Notes that keys and content of an ended contract are gone.
    ///
    /// # Errors
    /// The contract is unknown, or the change cannot be stored.
    pub async fn set_wiped(&self, id: ContractId) -> Result<Agreement, Error> {
        let _only_one = self.0.writing.lock().await;
        let known = self.get(id).ok_or(Error::Unknown(id))?;
        self.write(Agreement { wiped: true, ..known }).await
    }

    #[must_use]
    pub fn get(&self, id: ContractId) -> Option<Agreement> {
        self.0.known.read().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }

    /// All contracts, by id.
    #[must_use]
    pub fn list(&self) -> Vec<Agreement> {
        self.0.known.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// The contract in force for a group, if there is one.
    #[must_use]
    pub fn in_force(&self, group: GroupId) -> Option<Agreement> {
        self.list().into_iter().find(|a| a.contract.group == group && a.state.is_in_force())
    }

    /// The contract for a group under which either party may still have custody: in force, or ended and not wound up here yet.
    #[must_use]
    pub fn binding(&self, group: GroupId) -> Option<Agreement> {
        let winds_up = |a: &Agreement| a.contract.group == group && matches!(a.state, State::Ended { .. }) && !a.wiped;
        self.in_force(group).or_else(|| self.list().into_iter().find(winds_up))
    }

    /// Rises with every change.
    #[must_use]
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.0.changed.subscribe()
    }

    /// The caller holds `writing`.
    async fn write(&self, mut agreement: Agreement) -> Result<Agreement, Error> {
        let row = AgreementRow {
            contract: agreement.id,
            envelope: (*agreement.envelope).clone(),
            state: agreement.state,
            version: agreement.version,
            wiped: agreement.wiped,
        };
        let written = self.0.store.put_agreement(&row).await?;
        assert!(written, "only this task writes contracts, so the version on disk is the one in memory");
        agreement.version += 1;
        self.0.known.write().unwrap_or_else(PoisonError::into_inner).insert(agreement.id, agreement.clone());
        self.0.changed.send_modify(|count| *count += 1);
        Ok(agreement)
    }
}
