//! The database in memory, for tests and simulations: no threads, no clock but tokio's, no order that depends on chance.
//!
//! What is in a [`MemoryDisk`] outlives the process; [`Memory`] is what one process has open on it.

mod accounts;
mod log;
mod tables;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use contracts::account::Heard;
use contracts::envelope::Envelope;
use contracts::ids::{DevEui, EventId, GroupId, NodeId, StatementId};
use contracts::node_record::NodeRecord;
use contracts::time::WallTime;
use contracts::write_ahead::{Bound, Reserved};
use lora_bridge::mac::session::Mark;

use self::tables::Tables;
use super::{AccountRow, AgreementRow, Backend, Change, Error, InboxBatch, Received, Result, Unaccounted, Waiting};
use crate::readings::{Reading, StoredUplink};

/// Where a process dies. Writes are counted from 1 over the whole life of the disk, as [`MemoryDisk::writes`] does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum FailPoint {
    /// The write that would be the n-th is not on the disk.
    Before(u64),
    /// The n-th write is on the disk, and nobody was told.
    After(u64),
}

/// What kills the process at a fail point.
pub type Hook = Arc<dyn Fn() + Send + Sync>;

/// A handle to what survives the crash of a process, and to its faults; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct MemoryDisk(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    tables: Tables,
    writes: u64,
    latency: Duration,
    full: bool,
    crash: Option<(FailPoint, Hook)>,
    /// Rises with every crash; what was opened before it is dead.
    life: u64,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let crash = self.crash.as_ref().map(|(point, _)| point);
        let Self { writes, latency, full, life, .. } = self;
        f.debug_struct("MemoryDisk")
            .field("writes", writes)
            .field("latency", latency)
            .field("full", full)
            .field("crash", &crash)
            .field("life", life)
            .finish_non_exhaustive()
    }
}

impl MemoryDisk {
    /// An empty disk without faults.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// From now on every write takes so long before it is on the disk (whole milliseconds of tokio's clock). One that is dropped meanwhile
    /// has written nothing. Writes that wait at the same time do not wait for each other.
    pub fn set_latency(&self, latency: Duration) {
        self.inner().latency = latency;
    }

    /// While it is full every write fails with [`Error::Full`] and changes nothing.
    pub fn set_full(&self, full: bool) {
        self.inner().full = full;
    }

    /// Writes that were completed since the disk was made.
    #[must_use]
    pub fn writes(&self) -> u64 {
        self.inner().writes
    }

    /// At `point` the process dies: like [`MemoryDisk::crash`], and then `hook` is called, once, from the task that writes. A point that has
    /// already passed never comes. Replaces a point that was set before.
    pub fn crash_at(&self, point: FailPoint, hook: Hook) {
        self.inner().crash = Some((point, hook));
    }

    /// Takes the fail point back.
    pub fn cancel_crash(&self) {
        self.inner().crash = None;
    }

    /// Whatever has this disk open is dead: its writes that are on their way do not arrive, and nothing that it asks for ever returns. As with
    /// the power, readings and settlements that nothing synced came after are lost.
    pub fn crash(&self) {
        self.inner().die();
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How far a write came.
enum Outcome<T> {
    Done(T),
    Failed(Error),
    Crashed(Hook),
    Dead,
}

impl Inner {
    fn write<T>(&mut self, life: u64, is_synced: bool, apply: impl FnOnce(&mut Tables) -> T) -> Outcome<T> {
        if self.life != life {
            return Outcome::Dead;
        }
        if self.full {
            return Outcome::Failed(Error::Full);
        }
        if let Some(hook) = self.die_at(FailPoint::Before(self.writes + 1)) {
            return Outcome::Crashed(hook);
        }
        let value = apply(&mut self.tables);
        if is_synced {
            self.tables.log.sync();
        }
        self.writes += 1;
        self.die_at(FailPoint::After(self.writes)).map_or(Outcome::Done(value), Outcome::Crashed)
    }

    fn die_at(&mut self, here: FailPoint) -> Option<Hook> {
        let (_, hook) = self.crash.take_if(|(point, _)| *point == here)?;
        self.die();
        Some(hook)
    }

    fn die(&mut self) {
        self.life += 1;
        self.tables.log.lose_unsynced();
    }
}

/// What one process has open.
#[derive(Debug)]
pub(super) struct Memory {
    disk: MemoryDisk,
    life: u64,
    closed: AtomicBool,
}

impl Memory {
    pub(super) fn start(disk: MemoryDisk) -> Self {
        let life = disk.inner().life;
        Self { disk, life, closed: AtomicBool::new(false) }
    }

    /// Fails if it is closed; never returns if the process is dead. Gives the time that a write takes.
    async fn enter(&self) -> Result<Duration> {
        if self.closed.load(Ordering::Relaxed) {
            return Err(Error::Closed);
        }
        let latency = {
            let inner = self.disk.inner();
            (inner.life == self.life).then_some(inner.latency)
        };
        match latency {
            Some(latency) => Ok(latency),
            None => std::future::pending().await,
        }
    }

    async fn read<T>(&self, find: impl FnOnce(&Tables) -> T + Send) -> Result<T> {
        self.enter().await?;
        Ok(find(&self.disk.inner().tables))
    }

    async fn write<T: Send>(&self, apply: impl FnOnce(&mut Tables) -> T + Send) -> Result<T> {
        self.apply(true, apply).await
    }

    async fn apply<T: Send>(&self, is_synced: bool, apply: impl FnOnce(&mut Tables) -> T + Send) -> Result<T> {
        let latency = self.enter().await?;
        if !latency.is_zero() {
            tokio::time::sleep(latency).await;
        }
        let outcome = self.disk.inner().write(self.life, is_synced, apply);
        match outcome {
            Outcome::Done(value) => Ok(value),
            Outcome::Failed(error) => Err(error),
            Outcome::Crashed(hook) => {
                hook();
                std::future::pending().await
            }
            Outcome::Dead => std::future::pending().await,
        }
    }
}

#[async_trait]
impl Backend for Memory {
    async fn ping(&self) -> Result<()> {
        self.read(|_| ()).await
    }

    async fn try_write(&self) -> Result<()> {
        self.write(|_| ()).await
    }

    async fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
        let mut inner = self.disk.inner();
        if inner.life == self.life {
            inner.tables.log.sync();
        }
    }

    /// What must be synced is on the disk with its write: dying between the two is as dying before or after both, since nobody was told.
    async fn commit(&self, changes: &[Change]) -> Result<Vec<u64>> {
        let is_synced = changes.iter().any(Change::must_be_synced);
        self.apply(is_synced, |tables| changes.iter().map(|change| tables.apply(change)).collect()).await
    }

    async fn sync(&self) -> Result<()> {
        self.enter().await?;
        self.disk.inner().tables.log.sync();
        Ok(())
    }

    async fn prune_uplinks(&self, before: WallTime) -> Result<u64> {
        self.write(|tables| tables.prune_uplinks(before)).await
    }

    async fn wipe_uplinks(&self, group: GroupId) -> Result<()> {
        self.write(|tables| tables.wipe_uplinks(group)).await
    }

    async fn list_undecoded(&self, group: GroupId, after: u64, limit: u32) -> Result<Vec<StoredUplink>> {
        self.read(|tables| tables.log.list_undecoded(group, after, limit)).await
    }

    async fn list_kept(&self, group: GroupId, after: u64, limit: u32) -> Result<Vec<StoredUplink>> {
        self.read(|tables| tables.log.list_kept(group, after, limit)).await
    }

    async fn list_delivered(&self, group: GroupId, after: u64, limit: u32) -> Result<Vec<StoredUplink>> {
        self.read(|tables| tables.log.list_delivered(group, WallTime(0), after, limit)).await
    }

    async fn list_delivered_since(&self, group: GroupId, since: WallTime, after: u64, limit: u32) -> Result<Vec<StoredUplink>> {
        self.read(|tables| tables.log.list_delivered(group, since, after, limit)).await
    }

    async fn list_open(&self, group: GroupId, after: u64, limit: u32) -> Result<Vec<(StoredUplink, Option<String>)>> {
        self.read(|tables| tables.log.list_open(group, after, limit)).await
    }

    async fn list_unsettled(&self, group: GroupId, after: u64, limit: u32) -> Result<Vec<(u64, Reading)>> {
        self.read(|tables| tables.log.list_unsettled(group, after, limit)).await?
    }

    async fn list_marks(&self, group: GroupId, after: u64, limit: u32) -> Result<Vec<(u64, Mark, bool)>> {
        self.read(|tables| tables.log.list_marks(group, after, limit)).await
    }

    async fn list_pruned(&self, group: GroupId) -> Result<Vec<Mark>> {
        self.read(|tables| tables.log.list_pruned(group)).await
    }

    async fn last_open(&self, group: GroupId) -> Result<u64> {
        self.read(|tables| tables.log.last_open(group)).await
    }

    async fn has_open(&self, group: GroupId, upto: u64) -> Result<bool> {
        self.read(|tables| tables.log.has_open(group, upto)).await
    }

    async fn count_waiting(&self) -> Result<BTreeMap<GroupId, Waiting>> {
        self.read(|tables| tables.log.count_waiting()).await
    }

    async fn traffic_bytes(&self, group: GroupId, since: WallTime) -> Result<u64> {
        self.read(|tables| tables.log.traffic_bytes(group, since)).await
    }

    async fn list_unreceipted(&self, group: GroupId, after: u64, limit: u32) -> Result<Vec<(u64, Heard)>> {
        self.read(|tables| tables.accounts.list_unreceipted(group, after, limit)).await
    }

    async fn list_unreceipted_uplinks(&self, group: GroupId, limit: u32) -> Result<Vec<StoredUplink>> {
        self.read(|tables| tables.list_unreceipted_uplinks(group, limit)).await
    }

    async fn put_receipt(&self, group: GroupId, made_at: WallTime, envelope: &Envelope, events: &[EventId]) -> Result<()> {
        self.write(|tables| tables.put_receipt(group, made_at, envelope, events)).await
    }

    async fn list_receipts(&self, group: GroupId, since: WallTime, limit: u32) -> Result<Vec<Envelope>> {
        self.read(|tables| tables.accounts.list_receipts(group, since, limit)).await
    }

    async fn list_unaccounted(&self, group: GroupId, limit: u32) -> Result<Unaccounted> {
        self.read(|tables| tables.accounts.list_unaccounted(group, limit)).await
    }

    async fn put_own_account(&self, row: &AccountRow, said: &Unaccounted) -> Result<()> {
        self.write(|tables| tables.accounts.put_own(row, said)).await
    }

    async fn put_account(&self, row: &AccountRow, accounts_max: u32) -> Result<bool> {
        self.write(|tables| tables.accounts.put(row, accounts_max)).await
    }

    async fn last_account(&self, group: GroupId, node: NodeId) -> Result<Option<AccountRow>> {
        self.read(|tables| tables.accounts.last(group, node)).await
    }

    async fn list_accounts(&self, group: GroupId, since: WallTime, limit: u32) -> Result<Vec<AccountRow>> {
        self.read(|tables| tables.accounts.list(group, since, limit)).await
    }

    async fn list_untold_accounts(&self, group: GroupId, limit: u32) -> Result<Vec<AccountRow>> {
        self.read(|tables| tables.accounts.list_untold(group, limit)).await
    }

    async fn set_account_told(&self, id: StatementId) -> Result<()> {
        self.write(|tables| tables.accounts.set_told(id)).await
    }

    async fn prune_accounts(&self, before: WallTime) -> Result<()> {
        self.write(|tables| tables.prune_accounts(before)).await
    }

    async fn find_received(&self, group: GroupId, events: &[EventId]) -> Result<Vec<EventId>> {
        self.read(|tables| tables.inbox.find(group, events)).await
    }

    async fn insert_batches(&self, batches: &[InboxBatch]) -> Result<Vec<u64>> {
        self.write(|tables| batches.iter().map(|batch| tables.inbox.insert(batch)).collect()).await
    }

    async fn list_received(&self, after: u64, device: Option<DevEui>, limit: u32) -> Result<Vec<Received>> {
        self.read(|tables| tables.inbox.list(after, device, limit)).await
    }

    async fn count_received(&self) -> Result<u64> {
        self.read(|tables| tables.inbox.count()).await
    }

    async fn put_agreement(&self, row: &AgreementRow) -> Result<bool> {
        self.write(|tables| tables.put_agreement(row)).await
    }

    async fn list_agreements(&self) -> Result<Vec<AgreementRow>> {
        self.read(|tables| tables.agreements.values().cloned().collect()).await
    }

    async fn put_record(&self, record: &NodeRecord, envelope: &Envelope) -> Result<()> {
        self.write(|tables| tables.put_record(record, envelope)).await
    }

    async fn list_records(&self) -> Result<Vec<Envelope>> {
        self.read(|tables| tables.records.values().map(|(_, envelope)| envelope.clone()).collect()).await
    }

    async fn raise_reserved(&self, group: GroupId, bounds: &[Bound]) -> Result<()> {
        if bounds.is_empty() {
            return Ok(());
        }
        self.write(|tables| tables.raise_reserved(group, bounds)).await
    }

    async fn list_reserved(&self, group: GroupId) -> Result<Reserved> {
        self.read(|tables| tables.list_reserved(group)).await
    }

    async fn get_tenant_value(&self, group: GroupId, key: &str) -> Result<Option<Vec<u8>>> {
        self.read(|tables| tables.tenant_state.get(&group).and_then(|values| values.get(key)).cloned()).await
    }

    async fn put_tenant_value(&self, group: GroupId, key: &str, value: &[u8], keys_max: u32) -> Result<bool> {
        self.write(|tables| tables.put_tenant_value(group, key, value, keys_max)).await
    }

    async fn wipe_tenant(&self, group: GroupId) -> Result<()> {
        self.write(|tables| drop(tables.tenant_state.remove(&group))).await
    }
}

/// At most `limit` of them.
fn page<T>(rows: impl Iterator<Item = T>, limit: u32) -> impl Iterator<Item = T> {
    rows.take(usize::try_from(limit).unwrap_or(usize::MAX))
}

/// A number as it comes out of a database column: those beyond 2^63 are cut (none of ours gets there).
fn cut(value: u64) -> u64 {
    value.min(i64::MAX.unsigned_abs())
}
