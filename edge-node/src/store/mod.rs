//! The node's database: what must survive a crash of the process.
//!
//! One trait, [`Backend`], with two implementations and one suite of tests for both: SQLite in the node's state directory
//! ([`Store::open`]) and memory ([`Store::memory`]), in which a simulated process dies and comes back over the same [`MemoryDisk`].
//! Static SQL lives in `sqlite/` and nowhere else.

mod memory;
mod sqlite;

use std::collections::BTreeMap;
use std::ops::Deref;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use contracts::account::Heard;
use contracts::contract::State;
use contracts::envelope::Envelope;
use contracts::ids::{ContractId, DevEui, EventId, GroupId, NodeId, StatementId};
use contracts::node_record::NodeRecord;
use contracts::time::WallTime;
use contracts::write_ahead::{Bound, Reserved};
use lora_bridge::mac::session::Mark;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::readings::{Decoded, Name, Reading, StoredUplink, Uplink};

pub use memory::{FailPoint, Hook, MemoryDisk};

/// What can go wrong with the database.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the node's database failed")]
    Database(#[source] Box<sqlx::Error>),
    #[error("the disk with the node's database is full")]
    Full,
    #[error("the node's database is closed")]
    Closed,
    #[error("the disk did not keep what was written; the node must be started anew")]
    NotSynced,
    #[error("the node's database cannot be brought up to date")]
    Migration(#[source] Box<sqlx::migrate::MigrateError>),
    #[error("a row of table {table} cannot be read: {reason}")]
    Row { table: &'static str, reason: String },
}

pub type Result<T> = std::result::Result<T, Error>;

/// One change of the reading log; any number of them are written together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Adds uplinks; an event that is there already stays as it is, except that a buffered one becomes deliverable, at the end of the log.
    Append(Vec<Uplink>),
    /// The same, of an insurer: it has to answer for them from now on.
    Hear(Vec<Uplink>),
    /// Writes what the tenant of a group decoded; the first answer for a deliverable event of that group stays.
    Publish(GroupId, Vec<Decoded>),
    /// Marks events as acknowledged by the customer's cloud.
    Settle(Vec<Name>),
    /// Drops buffered events; deliverable ones stay. What there is no receipt for is given up.
    Forget(Vec<EventId>),
    /// Takes over what another node heard (hand-back), and what it decoded as if our own tenant had published it.
    Import(Vec<(Uplink, Option<String>)>),
}

impl Change {
    /// Whether something is promised for it. What was decoded can be decoded again, and what was settled is known to the cloud, which keeps
    /// each reading once: if they are lost with the power, they are made again.
    #[must_use]
    pub const fn must_be_synced(&self) -> bool {
        match self {
            Self::Append(_) | Self::Hear(_) | Self::Forget(_) | Self::Import(_) => true,
            Self::Publish(..) | Self::Settle(_) => false,
        }
    }

    /// How much it is.
    const fn rows(&self) -> usize {
        match self {
            Self::Append(list) | Self::Hear(list) => list.len(),
            Self::Publish(_, list) => list.len(),
            Self::Settle(list) => list.len(),
            Self::Forget(list) => list.len(),
            Self::Import(list) => list.len(),
        }
    }
}

/// What waits in the reading log of a group.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Waiting {
    /// Uplinks that the tenant has not decoded.
    pub undecoded: u64,
    /// Readings that the customer's cloud has not acknowledged.
    pub unsettled: u64,
}

/// A batch of readings on its way into the inbox.
#[derive(Debug, Clone)]
pub struct InboxBatch {
    pub from: NodeId,
    pub received_at: WallTime,
    pub proof_id: StatementId,
    pub proof: Envelope,
    pub readings: Vec<Reading>,
}

/// A reading as the cloud has it.
#[derive(Debug, Clone, PartialEq)]
pub struct Received {
    pub seq: u64,
    pub reading: Reading,
    /// The node that brought it first.
    pub delivered_by: NodeId,
    pub received_at: WallTime,
}

/// What an insurer has not yet said in an account.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unaccounted {
    pub heard: Vec<Heard>,
    /// Given up.
    pub dropped: Vec<EventId>,
}

/// A signed account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccountRow {
    pub id: StatementId,
    pub group: GroupId,
    pub node: NodeId,
    pub number: u64,
    /// As the account says.
    pub made_at: WallTime,
    pub envelope: Envelope,
}

/// A contract that this node is a party of, or receives readings under.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgreementRow {
    pub contract: ContractId,
    pub envelope: Envelope,
    pub state: State,
    /// Rises with every change.
    pub version: u64,
    /// Keys and content are gone.
    pub wiped: bool,
}

/// A handle to the database; cheap to clone. All reads and writes are those of [`Backend`].
#[derive(Debug, Clone)]
pub struct Store(Arc<dyn Backend>);

impl Store {
    /// Opens or creates the SQLite database and brings its schema up to date.
    ///
    /// # Errors
    /// The file cannot be opened, is no database, or was written by a newer version.
    pub async fn open(path: &Path) -> Result<Self> {
        Ok(Self(Arc::new(sqlite::Sqlite::open(path).await?)))
    }

    /// The database of a process that has just started over `disk`: everything that its predecessors wrote is there.
    #[must_use]
    pub fn memory(disk: MemoryDisk) -> Self {
        Self(Arc::new(memory::Memory::start(disk)))
    }

    /// A value of the node's own, beside those that the tenant of a group keeps: JSON, under a key that begins with a dot, as no tenant's does.
    /// What the inner error says cannot be read.
    ///
    /// # Errors
    /// The database failed.
    pub async fn get_own<T: DeserializeOwned>(&self, group: GroupId, key: &str) -> Result<Option<serde_json::Result<T>>> {
        Ok(self.get_tenant_value(group, key).await?.map(|bytes| serde_json::from_slice(&bytes)))
    }

    /// Writes it, whatever else is kept there.
    ///
    /// # Errors
    /// The database failed.
    pub async fn put_own<T: Serialize + Sync>(&self, group: GroupId, key: &str, value: &T) -> Result<()> {
        debug_assert!(key.starts_with('.'), "{key}");
        let bytes = serde_json::to_vec(value).map_err(|e| Error::Row { table: "tenant_state", reason: e.to_string() })?;
        self.put_tenant_value(group, key, &bytes, u32::MAX).await?;
        Ok(())
    }
}

impl Deref for Store {
    type Target = dyn Backend;

    fn deref(&self) -> &Self::Target {
        &*self.0
    }
}

/// Where everything is kept. Every write is whole or not at all, and synced when it returns, but for [`Backend::commit`] and
/// [`Backend::insert_batches`]; a write that is synced has all before it on the disk, too. Reads show what is synced, but for what waits
/// ([`Backend::list_unsettled`], [`Backend::count_waiting`]). All of them fail if the database does; reads also if a row is unreadable.
#[async_trait]
pub trait Backend: std::fmt::Debug + Send + Sync + 'static {
    /// Whether it answers, for writing and for reading.
    async fn ping(&self) -> Result<()>;
    /// Ends it; what was written stays. Everything asked of it later fails.
    async fn close(&self);
    /// Writes something that changes nothing, to see whether the disk takes it.
    async fn try_write(&self) -> Result<()>;

    // The reading log: an uplink's way from verified frame to settled reading, one row per event.

    /// Writes changes in their order, all or none; per change how many readings were published by it. They are on the disk after
    /// [`Backend::sync`]; who promises something for them ([`Change::must_be_synced`]) waits for it.
    async fn commit(&self, changes: &[Change]) -> Result<Vec<u64>>;
    /// When this returns, all that was written before is on the disk, whoever wrote it.
    async fn sync(&self) -> Result<()>;
    /// Drops settled rows that were heard before `before`, but for those that an insurer has no receipt for; the highest counter of each session
    /// stays a mark. Returns how many went.
    async fn prune_uplinks(&self, before: WallTime) -> Result<u64>;
    /// Forgets the settled and the buffered uplinks of a group: the contract ended and its grace is over.
    async fn wipe_uplinks(&self, group: GroupId) -> Result<()>;
    /// Uplinks that the tenant of `group` still has to decode, behind the cursor, in order.
    async fn list_undecoded(&self, group: GroupId, after: u64, limit: u32) -> Result<Vec<StoredUplink>>;
    /// What is buffered for a group, behind the cursor, in order.
    async fn list_kept(&self, group: GroupId, after: u64, limit: u32) -> Result<Vec<StoredUplink>>;
    /// Uplinks for the tenant of `group`, decoded or not, behind the cursor, in order; settled ones until they are pruned.
    async fn list_delivered(&self, group: GroupId, after: u64, limit: u32) -> Result<Vec<StoredUplink>>;
    /// Those of them that were heard at `since` or later.
    async fn list_delivered_since(&self, group: GroupId, since: WallTime, after: u64, limit: u32) -> Result<Vec<StoredUplink>>;
    /// All deliverable uplinks of a group that the customer's cloud has not acknowledged, with their reading if there is one, in order.
    async fn list_open(&self, group: GroupId, after: u64, limit: u32) -> Result<Vec<(StoredUplink, Option<String>)>>;
    /// Readings of a group that are not settled, in the order in which they were published, each with its cursor.
    async fn list_unsettled(&self, group: GroupId, after: u64, limit: u32) -> Result<Vec<(u64, Reading)>>;
    /// Deliverable uplinks of a group by name, behind the cursor, in order, each with its cursor and whether it is settled.
    async fn list_marks(&self, group: GroupId, after: u64, limit: u32) -> Result<Vec<(u64, Mark, bool)>>;
    /// The highest counter of each session of a group that was pruned, by device and session.
    async fn list_pruned(&self, group: GroupId) -> Result<Vec<Mark>>;
    /// The highest place in the log that holds something for the customer's cloud that is not settled; 0 if all is.
    async fn last_open(&self, group: GroupId) -> Result<u64>;
    /// Whether anything for the customer's cloud is not settled up to a place in the log.
    async fn has_open(&self, group: GroupId, upto: u64) -> Result<bool>;
    /// What waits, by group; groups for which nothing waits are absent.
    async fn count_waiting(&self) -> Result<BTreeMap<GroupId, Waiting>>;
    /// Length of a group's uplinks and readings heard since a time, as they are in the log.
    async fn traffic_bytes(&self, group: GroupId, since: WallTime) -> Result<u64>;

    // What an insurer heard and answers for.

    /// What it has neither a receipt for nor given up, behind the cursor, in order, each with its cursor.
    async fn list_unreceipted(&self, group: GroupId, after: u64, limit: u32) -> Result<Vec<(u64, Heard)>>;
    /// The uplinks of those that are on this disk, from the oldest.
    async fn list_unreceipted_uplinks(&self, group: GroupId, limit: u32) -> Result<Vec<StoredUplink>>;
    /// Keeps a verified receipt of the customer's store for `events`; copies buffered for another node go.
    async fn put_receipt(&self, group: GroupId, made_at: WallTime, envelope: &Envelope, events: &[EventId]) -> Result<()>;
    /// Receipts that were made at `since` or later, in the order in which they came.
    async fn list_receipts(&self, group: GroupId, since: WallTime, limit: u32) -> Result<Vec<Envelope>>;
    /// What no account says yet, from the oldest, at most `limit` of each.
    async fn list_unaccounted(&self, group: GroupId, limit: u32) -> Result<Unaccounted>;
    /// Keeps this node's own next account, which says `said`.
    async fn put_own_account(&self, row: &AccountRow, said: &Unaccounted) -> Result<()>;
    /// Keeps a verified account of another node; the same again changes nothing. `false`: there are `accounts_max` of that node already.
    async fn put_account(&self, row: &AccountRow, accounts_max: u32) -> Result<bool>;
    /// The newest account of a node.
    async fn last_account(&self, group: GroupId, node: NodeId) -> Result<Option<AccountRow>>;
    /// Accounts of all nodes that were made at `since` or later, in the order in which they came.
    async fn list_accounts(&self, group: GroupId, since: WallTime, limit: u32) -> Result<Vec<AccountRow>>;
    /// Own accounts that the other party does not have, in order.
    async fn list_untold_accounts(&self, group: GroupId, limit: u32) -> Result<Vec<AccountRow>>;
    /// The other party has it.
    async fn set_account_told(&self, id: StatementId) -> Result<()>;
    /// Forgets accounts and receipts made before `before`, and what was heard before it and does not wait for
    /// the store any more; the newest account of each node stays.
    async fn prune_accounts(&self, before: WallTime) -> Result<()>;

    // What a cloud node received: every reading once, by event id.

    /// Writes whole batches, all or none; returns for each how many of its readings were new. They are on the disk after [`Backend::sync`].
    async fn insert_batches(&self, batches: &[InboxBatch]) -> Result<Vec<u64>>;
    /// Readings behind the cursor in the order of arrival, of one device or of all.
    async fn list_received(&self, after: u64, device: Option<DevEui>, limit: u32) -> Result<Vec<Received>>;
    /// Those of `events` that are here, of that group, in the given order.
    async fn find_received(&self, group: GroupId, events: &[EventId]) -> Result<Vec<EventId>>;
    /// How many readings were received so far; none is ever forgotten.
    async fn count_received(&self) -> Result<u64>;

    // Contracts, each with its state.

    /// Writes a contract with its state; compare-and-set on the version, which then rises by one. `false`: somebody else was faster.
    async fn put_agreement(&self, row: &AgreementRow) -> Result<bool>;
    /// All contracts, by id.
    async fn list_agreements(&self) -> Result<Vec<AgreementRow>>;

    // Signed node records, the newest of each node.

    /// Keeps a verified record unless a newer one is there.
    async fn put_record(&self, record: &NodeRecord, envelope: &Envelope) -> Result<()>;
    /// All records as they were received, by node.
    async fn list_records(&self) -> Result<Vec<Envelope>>;

    // Downlink counters that are reserved, per session; bounds only rise.

    async fn raise_reserved(&self, group: GroupId, bounds: &[Bound]) -> Result<()>;
    /// Everything that is known to be reserved in a group.
    async fn list_reserved(&self, group: GroupId) -> Result<Reserved>;

    // Small values that tenants keep with their node.

    async fn get_tenant_value(&self, group: GroupId, key: &str) -> Result<Option<Vec<u8>>>;
    /// Writes a value unless the tenant would then have more than `keys_max` keys; says whether it was written. Keys that begin with a dot are
    /// the node's own and do not count.
    async fn put_tenant_value(&self, group: GroupId, key: &str, value: &[u8], keys_max: u32) -> Result<bool>;
    /// Forgets everything that the tenant of a group kept.
    async fn wipe_tenant(&self, group: GroupId) -> Result<()>;
}
