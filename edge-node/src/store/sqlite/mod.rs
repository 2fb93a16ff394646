//! The database in SQLite. One connection writes, two read (WAL), one copies the log into the database.
//!
//! SQLite itself does not sync what it commits, [`sync`] does: every write is on the disk when it returns, but for those of which the trait
//! says otherwise, and every read waits until what it saw is on the disk, so that nobody acts on what a power cut takes back. Reads on the
//! way of each reading do not wait: they see only what is on the disk, or do not care.

mod accounts;
mod agreements;
mod connections;
mod inbox;
mod records;
mod reserved;
mod sync;
mod tenant_state;
mod texts;
mod undecoded;
mod uplinks;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use contracts::account::Heard;
use contracts::envelope::Envelope;
use contracts::ids::{DevEui, EventId, GroupId, NodeId, StatementId};
use contracts::node_record::NodeRecord;
use contracts::time::WallTime;
use contracts::write_ahead::{Bound, Reserved};
use lora_bridge::mac::session::Mark;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use uuid::Uuid;

use self::connections::Connections;
use self::sync::{Syncs, Write};
use self::undecoded::Undecoded;
use super::{AccountRow, AgreementRow, Backend, Change, Error, InboxBatch, Received, Result, Unaccounted, Waiting};
use crate::readings::{Reading, StoredUplink};

/// SQLite's result code for "the disk is full".
const SQLITE_FULL: &str = "13";
/// Rows of an answer that its thread reads ahead: a page, so that it is not waited for row by row.
const ROWS_WAITING: usize = 512;

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        match &error {
            sqlx::Error::Database(database) if database.code().as_deref() == Some(SQLITE_FULL) => Self::Full,
            _ => Self::Database(error.into()),
        }
    }
}

impl From<sqlx::migrate::MigrateError> for Error {
    fn from(error: sqlx::migrate::MigrateError) -> Self {
        Self::Migration(error.into())
    }
}

/// Pages of the log that the writer itself copies into the database at the next commit (64 MiB). It comes to that only under heavy load, when
/// the copying beside it ([`Sqlite::note_pages`]) never catches up.
const LOG_PAGES_MAX: &str = "16384";
/// Pages after which the log is copied into the database beside the writer, and the pause between two such copies. Without heavy load the log
/// so stays below the 4,062 pages whose index SQLite takes at its start: to make the index larger on a full disk ends in
/// `SQLITE_IOERR_SHMSIZE` or SIGBUS.
const PAGES_TO_COPY: u64 = 1_000;
const COPY_PAUSE: Duration = Duration::from_secs(1);
/// About how many pages a small write changes; each row more changes about one.
const PAGES_OF_A_WRITE: usize = 8;
/// Page caches, KiB (negative by SQLite's rule). Ids are in no order, so that each new row is in another page of their index.
const WRITER_CACHE: &str = "-4096";
const READER_CACHE: &str = "-1024";
#[derive(Debug)]
pub(super) struct Sqlite {
    writer: Connections,
    reader: Connections,
    copier: Arc<Connections>,
    syncs: Syncs,
    undecoded: Undecoded,
    /// About how many pages were written since the log was last copied.
    pages: AtomicU64,
    is_copying: Arc<AtomicBool>,
}

impl Sqlite {
    pub(super) async fn open(path: &Path) -> Result<Self> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Normal)
            .pragma("wal_autocheckpoint", LOG_PAGES_MAX)
            .foreign_keys(true)
            .pragma("cache_size", READER_CACHE)
            // What is deleted is overwritten: keys of others, sealed or not, must not stay in free pages.
            .pragma("secure_delete", "ON")
            // What a statement of many rows may have to undo is kept in memory, not in a file.
            .pragma("temp_store", "MEMORY")
            .row_buffer_size(ROWS_WAITING)
            .busy_timeout(Duration::from_secs(5));
        let writer = Connections::new(options.clone().pragma("cache_size", WRITER_CACHE), 1);
        sqlx::migrate!("./migrations").run(&mut *writer.acquire().await?).await?;
        let copier = Arc::new(Connections::new(options.clone(), 1));
        let reader = Connections::new(options.read_only(true), 2);
        let (pages, is_copying) = (AtomicU64::new(0), Arc::default());
        let (syncs, undecoded) = (Syncs::new(path), Undecoded::default());
        let store = Self { writer, reader, copier, syncs, undecoded, pages, is_copying };
        // What a process left that was killed may not be on the disk yet.
        let place = uplinks::last_place(&store).await?;
        store
            .write(async |write| {
                write.reach(place);
                Ok(())
            })
            .await?;
        // SQLite makes its log when the database is opened, and syncs the directory only when it syncs the log itself.
        let database = path.to_owned();
        let synced = kit::task::blocking(move || kit::file::sync_entry(&database)).await.map_err(std::io::Error::other).flatten();
        if let Err(error) = synced {
            tracing::error!(%error, "the directory of the database cannot be synced");
            return Err(Error::NotSynced);
        }
        Ok(store)
    }

    /// A write that is on the disk when this returns.
    async fn write<T>(&self, work: impl AsyncFnOnce(&Write<'_>) -> Result<T>) -> Result<T> {
        let value = self.commit_only(0, work).await?;
        self.syncs.wait().await?;
        Ok(value)
    }

    /// A write that others can see when this returns, on the disk with the next sync.
    async fn commit_only<T>(&self, rows: usize, work: impl AsyncFnOnce(&Write<'_>) -> Result<T>) -> Result<T> {
        let write = self.syncs.write()?;
        let value = work(&write).await?;
        self.note_pages(PAGES_OF_A_WRITE + rows);
        Ok(value)
    }

    /// A read of what is on the disk.
    async fn read<T>(&self, rows: impl Future<Output = Result<T>>) -> Result<T> {
        let rows = rows.await?;
        self.syncs.wait().await?;
        Ok(rows)
    }

    /// Has the log copied into the database after [`PAGES_TO_COPY`], beside the writer, who would stand still for it.
    fn note_pages(&self, pages: usize) {
        let pages = self.pages.fetch_add(pages as u64, Ordering::Relaxed) + pages as u64;
        if pages < PAGES_TO_COPY || self.is_copying.swap(true, Ordering::SeqCst) {
            return;
        }
        self.pages.store(0, Ordering::Relaxed);
        let (copier, is_copying) = (self.copier.clone(), Arc::clone(&self.is_copying));
        kit::task::spawn(async move {
            if let Err(error) = copy_log(&copier).await {
                tracing::debug!(%error, "the log was not copied into the database; the writer does it");
            }
            tokio::time::sleep(COPY_PAUSE).await;
            is_copying.store(false, Ordering::SeqCst);
        });
    }
}

/// As much of it as no reader needs; it waits for nobody.
async fn copy_log(copier: &Connections) -> Result<()> {
    sqlx::query("PRAGMA wal_checkpoint(PASSIVE)").execute(&mut *copier.acquire().await?).await?;
    Ok(())
}

#[async_trait]
impl Backend for Sqlite {
    async fn ping(&self) -> Result<()> {
        for connections in [&self.writer, &self.reader] {
            let _one: i64 = sqlx::query_scalar("SELECT 1").fetch_one(&mut *connections.acquire().await?).await?;
        }
        Ok(())
    }

    async fn try_write(&self) -> Result<()> {
        self.write(async |_| {
            // The first page is written though the number stays.
            sqlx::query("PRAGMA user_version = 0").execute(&mut *self.writer.acquire().await?).await?;
            Ok(())
        })
        .await
    }

    async fn close(&self) {
        self.reader.close().await;
        self.copier.close().await;
        self.writer.close().await;
    }

    async fn commit(&self, changes: &[Change]) -> Result<Vec<u64>> {
        let rows = changes.iter().map(Change::rows).sum();
        self.commit_only(rows, async |write| uplinks::commit(self, write, changes).await).await
    }

    async fn sync(&self) -> Result<()> {
        self.syncs.wait().await
    }

    async fn prune_uplinks(&self, before: WallTime) -> Result<u64> {
        self.write(async |_| uplinks::prune(self, before).await).await
    }

    async fn wipe_uplinks(&self, group: GroupId) -> Result<()> {
        self.write(async |_| uplinks::wipe(self, group).await).await
    }

    async fn list_undecoded(&self, group: GroupId, after: u64, limit: u32) -> Result<Vec<StoredUplink>> {
        uplinks::list_undecoded(self, group, after, limit).await
    }

    async fn list_kept(&self, group: GroupId, after: u64, limit: u32) -> Result<Vec<StoredUplink>> {
        self.read(uplinks::list_kept(self, group, after, limit)).await
    }

    async fn list_delivered(&self, group: GroupId, after: u64, limit: u32) -> Result<Vec<StoredUplink>> {
        uplinks::list_delivered(self, group, after, limit).await
    }

    async fn list_delivered_since(&self, group: GroupId, since: WallTime, after: u64, limit: u32) -> Result<Vec<StoredUplink>> {
        self.read(uplinks::list_delivered_since(self, group, since, after, limit)).await
    }

    async fn list_open(&self, group: GroupId, after: u64, limit: u32) -> Result<Vec<(StoredUplink, Option<String>)>> {
        self.read(uplinks::list_open(self, group, after, limit)).await
    }

    async fn list_unsettled(&self, group: GroupId, after: u64, limit: u32) -> Result<Vec<(u64, Reading)>> {
        uplinks::list_unsettled(self, group, after, limit).await
    }

    async fn list_marks(&self, group: GroupId, after: u64, limit: u32) -> Result<Vec<(u64, Mark, bool)>> {
        self.read(uplinks::list_marks(self, group, after, limit)).await
    }

    async fn list_pruned(&self, group: GroupId) -> Result<Vec<Mark>> {
        self.read(uplinks::list_pruned(self, group)).await
    }

    async fn last_open(&self, group: GroupId) -> Result<u64> {
        self.read(uplinks::last_open(self, group)).await
    }

    async fn has_open(&self, group: GroupId, upto: u64) -> Result<bool> {
        self.read(uplinks::has_open(self, group, upto)).await
    }

    async fn count_waiting(&self) -> Result<BTreeMap<GroupId, Waiting>> {
        uplinks::count_waiting(self).await
    }

    async fn traffic_bytes(&self, group: GroupId, since: WallTime) -> Result<u64> {
        uplinks::traffic_bytes(self, group, since).await
    }

    async fn list_unreceipted(&self, group: GroupId, after: u64, limit: u32) -> Result<Vec<(u64, Heard)>> {
        self.read(accounts::list_unreceipted(self, group, after, limit)).await
    }

    async fn list_unreceipted_uplinks(&self, group: GroupId, limit: u32) -> Result<Vec<StoredUplink>> {
        self.read(accounts::list_unreceipted_uplinks(self, group, limit)).await
    }

    async fn put_receipt(&self, group: GroupId, made_at: WallTime, envelope: &Envelope, events: &[EventId]) -> Result<()> {
        self.write(async |_| accounts::put_receipt(self, group, made_at, envelope, events).await).await
    }

    async fn list_receipts(&self, group: GroupId, since: WallTime, limit: u32) -> Result<Vec<Envelope>> {
        self.read(accounts::list_receipts(self, group, since, limit)).await
    }

    async fn list_unaccounted(&self, group: GroupId, limit: u32) -> Result<Unaccounted> {
        self.read(accounts::list_unaccounted(self, group, limit)).await
    }

    async fn put_own_account(&self, row: &AccountRow, said: &Unaccounted) -> Result<()> {
        self.write(async |_| accounts::put_own(self, row, said).await).await
    }

    async fn put_account(&self, row: &AccountRow, accounts_max: u32) -> Result<bool> {
        self.write(async |_| accounts::put(self, row, accounts_max).await).await
    }

    async fn last_account(&self, group: GroupId, node: NodeId) -> Result<Option<AccountRow>> {
        self.read(accounts::last(self, group, node)).await
    }

    async fn list_accounts(&self, group: GroupId, since: WallTime, limit: u32) -> Result<Vec<AccountRow>> {
        self.read(accounts::list(self, group, since, limit)).await
    }

    async fn list_untold_accounts(&self, group: GroupId, limit: u32) -> Result<Vec<AccountRow>> {
        self.read(accounts::list_untold(self, group, limit)).await
    }

    async fn set_account_told(&self, id: StatementId) -> Result<()> {
        self.write(async |_| accounts::set_told(self, id).await).await
    }

    async fn prune_accounts(&self, before: WallTime) -> Result<()> {
        self.write(async |_| accounts::prune(self, before).await).await
    }

    async fn find_received(&self, group: GroupId, events: &[EventId]) -> Result<Vec<EventId>> {
        self.read(inbox::find(self, group, events)).await
    }

    async fn insert_batches(&self, batches: &[InboxBatch]) -> Result<Vec<u64>> {
        let rows = batches.iter().map(|batch| batch.readings.len()).sum();
        self.commit_only(rows, async |_| inbox::insert_all(self, batches).await).await
    }

    async fn list_received(&self, after: u64, device: Option<DevEui>, limit: u32) -> Result<Vec<Received>> {
        self.read(inbox::list(self, after, device, limit)).await
    }

    async fn count_received(&self) -> Result<u64> {
        self.read(inbox::count(self)).await
    }

    async fn put_agreement(&self, row: &AgreementRow) -> Result<bool> {
        self.write(async |_| agreements::put(self, row).await).await
    }

    async fn list_agreements(&self) -> Result<Vec<AgreementRow>> {
        self.read(agreements::list(self)).await
    }

    async fn put_record(&self, record: &NodeRecord, envelope: &Envelope) -> Result<()> {
        self.write(async |_| records::put(self, record, envelope).await).await
    }

    async fn list_records(&self) -> Result<Vec<Envelope>> {
        self.read(records::list(self)).await
    }

    async fn raise_reserved(&self, group: GroupId, bounds: &[Bound]) -> Result<()> {
        self.write(async |_| reserved::raise(self, group, bounds).await).await
    }

    async fn list_reserved(&self, group: GroupId) -> Result<Reserved> {
        self.read(reserved::list(self, group)).await
    }

    async fn get_tenant_value(&self, group: GroupId, key: &str) -> Result<Option<Vec<u8>>> {
        self.read(tenant_state::get(self, group, key)).await
    }

    async fn put_tenant_value(&self, group: GroupId, key: &str, value: &[u8], keys_max: u32) -> Result<bool> {
        self.write(async |_| tenant_state::put(self, group, key, value, keys_max).await).await
    }

    async fn wipe_tenant(&self, group: GroupId) -> Result<()> {
        self.write(async |_| tenant_state::wipe(self, group).await).await
    }
}

/// Rows that one statement takes. A statement is handed to a thread and back, which costs more than its work on a row; few sizes, so that each
/// is prepared once.
const ROWS: [usize; 5] = [256, 64, 16, 4, 1];

/// Rows in parts of [`ROWS`], in order.
fn chunks<T>(rows: &[T]) -> impl Iterator<Item = &[T]> {
    let mut rest = rows;
    std::iter::from_fn(move || {
        let size = ROWS.into_iter().find(|size| *size <= rest.len())?;
        let (chunk, others) = rest.split_at(size);
        rest = others;
        Some(chunk)
    })
}

/// An event from a column.
fn event(table: &'static str, column: Vec<u8>) -> Result<EventId> {
    Ok(EventId::from_uuid(Uuid::from_bytes(bytes(table, column)?)))
}

/// An id of `N` bytes from a column.
fn bytes<const N: usize>(table: &'static str, column: Vec<u8>) -> Result<[u8; N]> {
    column
        .try_into()
        .map_err(|v: Vec<u8>| Error::Row { table, reason: format!("an id of {} bytes where {N} are wanted", v.len()) })
}

/// An unsigned number from a column.
fn unsigned<T: TryFrom<i64>>(table: &'static str, column: i64) -> Result<T> {
    T::try_from(column).map_err(|_| Error::Row { table, reason: format!("{column} is out of range") })
}

/// An unsigned number for a column; numbers beyond 2^63 are cut (none of ours gets there).
fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_cut_into_few_sizes_and_stay_in_order() {
        for count in [0, 1, 3, 4, 63, 64, 65, 150, 255, 256, 1_000] {
            let rows: Vec<usize> = (0..count).collect();
            let cut: Vec<&[usize]> = chunks(&rows).collect();
            assert_eq!(cut.concat(), rows);
            assert!(cut.iter().all(|chunk| ROWS.contains(&chunk.len())) && cut.len() <= count / 256 + 12, "{count}");
        }
    }

    /// The other side of [`super::super::MemoryDisk::set_full`]: what a database that may not grow says, and what it still holds.
    #[tokio::test]
    async fn a_full_disk_refuses_whole_writes_and_the_rest_stays() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = Sqlite::open(&directory.path().join("node.db")).await.expect("a database");
        let group = GroupId::from_bytes([7; 16]);
        assert!(store.put_tenant_value(group, "before", b"kept", 10).await.expect("there is room"));
        let pages: i64 = sqlx::query_scalar("PRAGMA page_count")
            .fetch_one(&mut *store.writer.acquire().await.expect("the writer"))
            .await
            .expect("a number");
        let limit = sqlx::AssertSqlSafe(format!("PRAGMA max_page_count = {}", pages + 4));
        sqlx::query(limit).execute(&mut *store.writer.acquire().await.expect("the writer")).await.expect("a limit");
        let refused = store.put_tenant_value(group, "big", &vec![1; 1 << 20], 10).await;
        assert!(matches!(refused, Err(Error::Full)), "{refused:?}");
        assert_eq!(store.get_tenant_value(group, "before").await.expect("a value").as_deref(), Some(b"kept".as_slice()));
        assert_eq!(store.get_tenant_value(group, "big").await.expect("no failure"), None);
        sqlx::query("PRAGMA max_page_count = 4294967294")
            .execute(&mut *store.writer.acquire().await.expect("the writer"))
            .await
            .expect("no limit");
        assert!(store.put_tenant_value(group, "big", &vec![1; 1 << 20], 10).await.expect("there is room again"));
    }

    /// What was reported as written after the disk was full must be there for others, and after a restart.
    #[tokio::test]
    async fn a_write_after_several_that_found_no_room_is_a_write() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("node.db");
        let store = Sqlite::open(&path).await.expect("a database");
        let group = GroupId::from_bytes([7; 16]);
        let pages: i64 = sqlx::query_scalar("PRAGMA page_count")
            .fetch_one(&mut *store.writer.acquire().await.expect("the writer"))
            .await
            .expect("a number");
        let limit = format!("PRAGMA max_page_count = {}", pages + 4);
        for _ in 0..3 {
            sqlx::query(sqlx::AssertSqlSafe(limit.clone()))
                .execute(&mut *store.writer.acquire().await.expect("the writer"))
                .await
                .expect("a limit");
            let refused = store.put_tenant_value(group, "big", &vec![1; 1 << 20], 10).await;
            assert!(matches!(refused, Err(Error::Full)), "{refused:?}");
        }
        sqlx::query("PRAGMA max_page_count = 4294967294")
            .execute(&mut *store.writer.acquire().await.expect("the writer"))
            .await
            .expect("no limit");
        assert!(store.put_tenant_value(group, "small", b"kept", 10).await.expect("there is room again"));
        // The reader is another connection: it sees only what is committed.
        assert_eq!(store.get_tenant_value(group, "small").await.expect("a value").as_deref(), Some(b"kept".as_slice()));
        store.close().await;
        let again = Sqlite::open(&path).await.expect("a database");
        assert_eq!(again.get_tenant_value(group, "small").await.expect("a value").as_deref(), Some(b"kept".as_slice()));
    }
}
