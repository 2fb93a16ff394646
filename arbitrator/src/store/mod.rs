//! What must survive: nodes, contracts, evidence, money, verdicts, events; votes and write-ahead records of the witness.
//!
//! Everything that belongs together is written by one [`Changes`], whole or not at all; versions refuse what was computed on old rows.
//! Two stores, one suite of tests: [`Memory`] and [`Sqlite`].

#[doc(hidden)]
pub mod faulty;
mod memory;
mod sqlite;

use async_trait::async_trait;
use contracts::contract::{Contract, State};
use contracts::custody::{Durable, MemberIndex};
use contracts::envelope::{Envelope, Key};
use contracts::evidence::judge::Standing;
use contracts::evidence::{Input, Verdict};
use contracts::ids::{ContractId, DevEui, Epoch, GroupId, NodeId, OwnerId, StatementId};
use contracts::ledger::{Account, AccountId, Applied, Ledger, Movement, Operation, Pending, Phase, Transfer, TransferId};
use contracts::node_record::NodeRecord;
use contracts::time::WallTime;
use contracts::write_ahead::{Bound, Reservation};
use serde::{Deserialize, Serialize};

pub use memory::Memory;
pub use sqlite::Sqlite;

/// Rows in one answer.
pub const ROWS_MAX: u32 = 1_000;
/// Sealed records kept of one group together.
pub const SEALED_BYTES_MAX: usize = 4 << 20;

/// Why the store did not do it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Somebody else wrote meanwhile; nothing was written. Load and compute anew.
    #[error("computed on rows that have changed since")]
    Changed,
    #[error("the database failed")]
    Sql(#[from] sqlx::Error),
    #[error("the schema cannot be brought up to date")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    #[error("a stored row cannot be read: {0}")]
    Corrupt(String),
    #[error("the database file is used by another process")]
    InUse,
    #[error("the lock beside the database file cannot be taken")]
    Lock(#[from] std::io::Error),
}

impl Error {
    fn corrupt(why: impl std::fmt::Display) -> Self {
        Self::Corrupt(why.to_string())
    }
}

pub type Result<T> = std::result::Result<T, Error>;

/// A registered node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeRow {
    pub record: NodeRecord,
    pub envelope: Envelope,
}

/// A contract that is or was in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContractRow {
    /// Order of coming into force.
    pub seq: u64,
    pub id: ContractId,
    pub contract: Contract,
    /// With three signatures.
    pub envelope: Envelope,
    pub standing: Standing,
    /// Rises with every change of the standing.
    pub version: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EvidenceRow {
    pub seq: u64,
    pub id: StatementId,
    pub contract: ContractId,
    /// Its first signer.
    pub author: Key,
    pub received_at: WallTime,
    pub envelope: Envelope,
}

/// A transfer with what it moved, set aside or freed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TransferRow {
    pub seq: u64,
    pub transfer: Transfer,
    pub movement: Movement,
    pub made_at: WallTime,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerdictRow {
    pub verdict: Verdict,
    pub envelope: Envelope,
}

/// What happened, for those who follow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum EventBody {
    NodeRegistered { node: NodeId },
    ContractInForce { contract: ContractId },
    ContractChanged { contract: ContractId, status: State },
    EvidenceReceived { contract: ContractId, statement: StatementId, kind: String },
    VerdictGiven { contract: ContractId, verdict: StatementId },
    OrderTaken { owner: OwnerId, order: StatementId },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventRow {
    pub seq: u64,
    pub at: WallTime,
    pub body: EventBody,
}

/// A vote of this arbitrator's witness that no report has named yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GrantRow {
    pub group: GroupId,
    pub epoch: Epoch,
    pub voted_for: MemberIndex,
    pub granted_at: WallTime,
}

/// What becomes of a contract.
#[derive(Debug, Clone)]
pub enum ContractChange {
    Enter {
        id: ContractId,
        contract: Box<Contract>,
        envelope: Envelope,
        standing: Box<Standing>,
    },
    /// `version`: that of the row on which the new standing was computed.
    Stand {
        id: ContractId,
        version: u64,
        standing: Box<Standing>,
        due_at: Option<WallTime>,
    },
}

/// The part of the ledger that changed.
#[derive(Debug, Clone)]
pub struct LedgerChange {
    /// That of the ledger on which it was computed.
    pub version: u64,
    pub accounts: Vec<(AccountId, Account)>,
    pub transfers: Vec<(Transfer, Movement)>,
    pub pendings: Vec<(TransferId, Pending)>,
}

impl LedgerChange {
    /// What `transfers` did: `ledger` is as it was after them.
    #[must_use]
    pub fn of(ledger: &Ledger, version: u64, transfers: &[Transfer], applied: &[Applied]) -> Self {
        let now = transfers.iter().zip(applied).filter(|(_, applied)| **applied == Applied::Now).map(|(transfer, _)| transfer);
        let mut change = Self {
            version,
            accounts: ledger.accounts.iter().map(|(id, account)| (id.clone(), *account)).collect(),
            transfers: Vec::new(),
            pendings: Vec::new(),
        };
        for transfer in now {
            let (movement, pending) = match &transfer.operation {
                Operation::Immediate { movement } => (Some(movement.clone()), None),
                Operation::Pending { movement, .. } => (Some(movement.clone()), Some(transfer.id)),
                Operation::Post { pending, .. } | Operation::Void { pending } | Operation::Expire { pending } => {
                    (ledger.pendings.get(pending).map(moved), Some(*pending))
                }
            };
            change.transfers.extend(movement.map(|movement| (transfer.clone(), movement)));
            let pending = pending.and_then(|id| Some((id, ledger.pendings.get(&id)?.clone())));
            change.pendings.retain(|(id, _)| pending.as_ref().is_none_or(|(new, _)| id != new));
            change.pendings.extend(pending);
        }
        change
    }
}

/// What a resolved pending transfer moved; if it was freed, what was freed.
fn moved(pending: &Pending) -> Movement {
    let amount = match pending.phase {
        Phase::Posted { amount } => amount,
        Phase::Open | Phase::Voided | Phase::Expired => pending.movement.amount,
    };
    Movement { amount, ..pending.movement.clone() }
}

/// Accounts, ids and pendings that `transfers` touch.
fn touched(transfers: &[Transfer]) -> (Vec<TransferId>, Vec<AccountId>) {
    let (mut ids, mut accounts) = (Vec::new(), Vec::new());
    for transfer in transfers {
        ids.push(transfer.id);
        match &transfer.operation {
            Operation::Immediate { movement } | Operation::Pending { movement, .. } => accounts.extend(both(movement)),
            Operation::Post { pending, .. } | Operation::Void { pending } | Operation::Expire { pending } => ids.push(*pending),
        }
    }
    (ids, accounts)
}

fn both(movement: &Movement) -> [AccountId; 2] {
    [movement.debit, movement.credit].map(|holder| AccountId { holder, currency: movement.currency.clone() })
}

/// Everything that one decision writes, whole or not at all.
#[derive(Debug, Clone, Default)]
pub struct Changes {
    pub at: WallTime,
    pub nodes: Vec<NodeRow>,
    pub contract: Option<ContractChange>,
    pub evidence: Option<EvidenceRow>,
    pub order: Option<(StatementId, Envelope)>,
    pub ledger: Option<LedgerChange>,
    pub verdict: Option<VerdictRow>,
    /// Grants of the witness that evidence names now.
    pub reported: Option<(GroupId, Epoch)>,
    pub events: Vec<EventBody>,
}

/// Which contracts are wanted.
#[derive(Debug, Clone, Copy, Default)]
pub struct ContractFilter {
    /// A party or a witness.
    pub member: Option<NodeId>,
    pub group: Option<GroupId>,
    pub in_force: Option<bool>,
    /// Over since this time or later.
    pub ended_since: Option<WallTime>,
    /// Time rules that are due at this time.
    pub due: Option<WallTime>,
    /// Only rows behind this one.
    pub after: u64,
    pub limit: u32,
}

/// The newest sealed record of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedRow {
    pub device: DevEui,
    pub epoch: Epoch,
    pub seq: u64,
    pub blob: Vec<u8>,
}

/// What a holder writes ahead, and what is kept of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Records {
    pub bounds: Vec<Bound>,
    pub sealed: Vec<SealedRow>,
}

/// Why a write-ahead record was not stored.
#[derive(Debug, thiserror::Error)]
pub enum RecordsError {
    /// The sender is not the one voted for in the record's epoch.
    #[error("this witness voted in epoch {voted_epoch}, and the record is not by the holder of it")]
    NotTheHolder { voted_epoch: Epoch },
    #[error("the group has as many records as are kept; nothing of this one was stored")]
    Full,
    #[error(transparent)]
    Store(#[from] Error),
}

/// Where everything is kept.
#[async_trait]
pub trait Store: std::fmt::Debug + Send + Sync + 'static {
    async fn node(&self, id: NodeId) -> Result<Option<NodeRow>>;
    async fn node_count(&self) -> Result<u64>;
    async fn contract(&self, id: ContractId) -> Result<Option<ContractRow>>;
    /// In the order of `seq`.
    async fn contracts(&self, filter: ContractFilter) -> Result<Vec<ContractRow>>;
    /// Contracts in force that cover one of the devices.
    async fn covering(&self, devices: &[DevEui]) -> Result<Vec<ContractRow>>;
    async fn statement(&self, id: StatementId) -> Result<Option<EvidenceRow>>;
    async fn evidence(&self, contract: ContractId, after: u64, limit: u32) -> Result<Vec<EvidenceRow>>;
    /// Ids and times of all evidence of a contract, in order.
    async fn inputs(&self, contract: ContractId) -> Result<Vec<Input>>;
    async fn evidence_count(&self, contract: ContractId, author: Key) -> Result<u64>;
    /// What `transfers` touch, and the ledger's version.
    async fn ledger(&self, transfers: &[Transfer]) -> Result<(Ledger, u64)>;
    async fn accounts(&self, owner: OwnerId) -> Result<Vec<(AccountId, Account)>>;
    /// Sum of all balances of each currency, in micro-units: zero, always.
    async fn sums(&self) -> Result<Vec<(String, i64)>>;
    async fn transfers(&self, owner: Option<OwnerId>, after: u64, limit: u32) -> Result<Vec<TransferRow>>;
    async fn order(&self, id: StatementId) -> Result<Option<Envelope>>;
    async fn verdict(&self, contract: ContractId) -> Result<Option<VerdictRow>>;
    /// The newest verdicts about an owner's nodes as providers.
    async fn verdicts_about(&self, owner: OwnerId, limit: u32) -> Result<Vec<VerdictRow>>;
    async fn events(&self, after: u64, limit: u32) -> Result<Vec<EventRow>>;
    async fn last_event(&self) -> Result<u64>;
    /// Writes all of it or nothing; durable when it returns.
    async fn commit(&self, changes: Changes) -> Result<()>;

    /// Stores votes of the witness; durable when it returns.
    async fn persist_votes(&self, batch: &[(GroupId, Durable)], at: WallTime) -> Result<()>;
    async fn votes(&self, group: GroupId) -> Result<Option<Durable>>;
    /// The first of them by group and epoch.
    async fn unreported_grants(&self, group: Option<GroupId>, limit: u32) -> Result<Vec<GrantRow>>;
    /// Keeps a reservation and sealed records by `holder`, all or nothing; refused unless that member is voted for in that epoch. Durable when it
    /// returns.
    async fn put_records(
        &self,
        group: GroupId,
        holder: MemberIndex,
        reservation: &Reservation,
        sealed: &[(DevEui, Vec<u8>)],
    ) -> std::result::Result<(), RecordsError>;
    async fn records(&self, group: GroupId) -> Result<Records>;
}
