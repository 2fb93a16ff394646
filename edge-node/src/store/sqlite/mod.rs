//! The database in SQLite. One connection writes, two read (WAL); every write is synced before it returns (`synchronous = FULL`).

mod accounts;
mod agreements;
mod inbox;
mod records;
mod reserved;
mod tenant_state;
mod uplinks;

use std::collections::BTreeMap;
use std::path::Path;

use async_trait::async_trait;
use contracts::account::Heard;
use contracts::envelope::Envelope;
use contracts::ids::{DevEui, EventId, GroupId, NodeId, StatementId};
use contracts::node_record::NodeRecord;
use contracts::time::WallTime;
use contracts::write_ahead::{Bound, Reserved};
use lora_bridge::mac::session::Mark;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Connection as _, SqlitePool};
use uuid::Uuid;

use super::{AccountRow, AgreementRow, Backend, Change, Error, InboxBatch, Received, Result, Unaccounted, Waiting};
use crate::readings::{Reading, StoredUplink};

/// SQLite's result code for "the disk is full".
const SQLITE_FULL: &str = "13";
/// Rows of an answer that its thread reads ahead: a page, so that it is not waited for row by row.
const ROWS_WAITING: usize = 512;

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        match &error {
            sqlx::Error::PoolClosed => Self::Closed,
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

#[derive(Debug)]
pub(super) struct Sqlite {
    writer: SqlitePool,
    reader: SqlitePool,
}

impl Sqlite {
    pub(super) async fn open(path: &Path) -> Result<Self> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .pragma("cache_size", "-1024")
            // What is deleted is overwritten: keys of others, sealed or not, must not stay in free pages.
            .pragma("secure_delete", "ON")
            .row_buffer_size(ROWS_WAITING)
            .busy_timeout(std::time::Duration::from_secs(5));
        // A transaction that failed on a full disk may be half rolled back, and sqlx then nests the next one in it, which is never
        // committed though it says so. Such a connection is thrown away.
        let writer = SqlitePoolOptions::new().max_connections(1);
        let writer = writer.after_release(|connection, _| Box::pin(async move { Ok(!connection.is_in_transaction()) }));
        let writer = writer.connect_with(options.clone()).await?;
        sqlx::migrate!("./migrations").run(&writer).await?;
        let reader = SqlitePoolOptions::new().max_connections(2).connect_with(options.read_only(true)).await?;
        Ok(Self { writer, reader })
    }
}

#[async_trait]
impl Backend for Sqlite {
    async fn ping(&self) -> Result<()> {
        for pool in [&self.writer, &self.reader] {
            let _one: i64 = sqlx::query_scalar("SELECT 1").fetch_one(pool).await?;
        }
        Ok(())
    }

    async fn try_write(&self) -> Result<()> {
        // The first page is written though the number stays.
        sqlx::query("PRAGMA user_version = 0").execute(&self.writer).await?;
        Ok(())
    }

    async fn close(&self) {
        self.reader.close().await;
        self.writer.close().await;
    }

    async fn commit(&self, changes: &[Change]) -> Result<Vec<u64>> {
        uplinks::commit(self, changes).await
    }

    async fn prune_uplinks(&self, before: WallTime) -> Result<u64> {
        uplinks::prune(self, before).await
    }

    async fn wipe_uplinks(&self, group: GroupId) -> Result<()> {
        uplinks::wipe(self, group).await
    }

    async fn list_undecoded(&self, group: GroupId, after: u64, limit: u32) -> Result<Vec<StoredUplink>> {
        uplinks::list_undecoded(self, group, after, limit).await
    }

    async fn list_kept(&self, group: GroupId, after: u64, limit: u32) -> Result<Vec<StoredUplink>> {
        uplinks::list_kept(self, group, after, limit).await
    }

    async fn list_delivered(&self, group: GroupId, after: u64, limit: u32) -> Result<Vec<StoredUplink>> {
        uplinks::list_delivered(self, group, after, limit).await
    }

    async fn list_delivered_since(&self, group: GroupId, since: WallTime, after: u64, limit: u32) -> Result<Vec<StoredUplink>> {
        uplinks::list_delivered_since(self, group, since, after, limit).await
    }

    async fn list_open(&self, group: GroupId, after: u64, limit: u32) -> Result<Vec<(StoredUplink, Option<String>)>> {
        uplinks::list_open(self, group, after, limit).await
    }

    async fn list_unsettled(&self, after: u64, limit: u32) -> Result<Vec<(u64, Reading)>> {
        uplinks::list_unsettled(self, after, limit).await
    }

    async fn list_marks(&self, group: GroupId, after: u64, limit: u32) -> Result<Vec<(u64, Mark, bool)>> {
        uplinks::list_marks(self, group, after, limit).await
    }

    async fn list_pruned(&self, group: GroupId) -> Result<Vec<Mark>> {
        uplinks::list_pruned(self, group).await
    }

    async fn last_open(&self, group: GroupId) -> Result<u64> {
        uplinks::last_open(self, group).await
    }

    async fn has_open(&self, group: GroupId, upto: u64) -> Result<bool> {
        uplinks::has_open(self, group, upto).await
    }

    async fn count_waiting(&self) -> Result<BTreeMap<GroupId, Waiting>> {
        uplinks::count_waiting(self).await
    }

    async fn traffic_bytes(&self, group: GroupId, since: WallTime) -> Result<u64> {
        uplinks::traffic_bytes(self, group, since).await
    }

    async fn list_unreceipted(&self, group: GroupId, after: u64, limit: u32) -> Result<Vec<(u64, Heard)>> {
        accounts::list_unreceipted(self, group, after, limit).await
    }

    async fn list_unreceipted_uplinks(&self, group: GroupId, limit: u32) -> Result<Vec<StoredUplink>> {
        accounts::list_unreceipted_uplinks(self, group, limit).await
    }

    async fn put_receipt(&self, group: GroupId, made_at: WallTime, envelope: &Envelope, events: &[EventId]) -> Result<()> {
        accounts::put_receipt(self, group, made_at, envelope, events).await
    }

    async fn list_receipts(&self, group: GroupId, since: WallTime, limit: u32) -> Result<Vec<Envelope>> {
        accounts::list_receipts(self, group, since, limit).await
    }

    async fn list_unaccounted(&self, group: GroupId, limit: u32) -> Result<Unaccounted> {
        accounts::list_unaccounted(self, group, limit).await
    }

    async fn put_own_account(&self, row: &AccountRow, said: &Unaccounted) -> Result<()> {
        accounts::put_own(self, row, said).await
    }

    async fn put_account(&self, row: &AccountRow, accounts_max: u32) -> Result<bool> {
        accounts::put(self, row, accounts_max).await
    }

    async fn last_account(&self, group: GroupId, node: NodeId) -> Result<Option<AccountRow>> {
        accounts::last(self, group, node).await
    }

    async fn list_accounts(&self, group: GroupId, since: WallTime, limit: u32) -> Result<Vec<AccountRow>> {
        accounts::list(self, group, since, limit).await
    }

    async fn list_untold_accounts(&self, group: GroupId, limit: u32) -> Result<Vec<AccountRow>> {
        accounts::list_untold(self, group, limit).await
    }

    async fn set_account_told(&self, id: StatementId) -> Result<()> {
        accounts::set_told(self, id).await
    }

    async fn prune_accounts(&self, before: WallTime) -> Result<()> {
        accounts::prune(self, before).await
    }

    async fn find_received(&self, group: GroupId, events: &[EventId]) -> Result<Vec<EventId>> {
        inbox::find(self, group, events).await
    }

    async fn insert_batches(&self, batches: &[InboxBatch]) -> Result<Vec<u64>> {
        inbox::insert_all(self, batches).await
    }

    async fn list_received(&self, after: u64, device: Option<DevEui>, limit: u32) -> Result<Vec<Received>> {
        inbox::list(self, after, device, limit).await
    }

    async fn count_received(&self) -> Result<u64> {
        inbox::count(self).await
    }

    async fn put_agreement(&self, row: &AgreementRow) -> Result<bool> {
        agreements::put(self, row).await
    }

    async fn list_agreements(&self) -> Result<Vec<AgreementRow>> {
        agreements::list(self).await
    }

    async fn put_record(&self, record: &NodeRecord, envelope: &Envelope) -> Result<()> {
        records::put(self, record, envelope).await
    }

    async fn list_records(&self) -> Result<Vec<Envelope>> {
        records::list(self).await
    }

    async fn raise_reserved(&self, group: GroupId, bounds: &[Bound]) -> Result<()> {
        reserved::raise(self, group, bounds).await
    }

    async fn list_reserved(&self, group: GroupId) -> Result<Reserved> {
        reserved::list(self, group).await
    }

    async fn get_tenant_value(&self, group: GroupId, key: &str) -> Result<Option<Vec<u8>>> {
        tenant_state::get(self, group, key).await
    }

    async fn put_tenant_value(&self, group: GroupId, key: &str, value: &[u8], keys_max: u32) -> Result<bool> {
        tenant_state::put(self, group, key, value, keys_max).await
    }

    async fn wipe_tenant(&self, group: GroupId) -> Result<()> {
        tenant_state::wipe(self, group).await
    }
}

/// Rows that one statement takes. A statement is handed to a thread and back, which costs more than its work on a row; few sizes, so that each
/// is prepared once.
const ROWS: [usize; 4] = [64, 16, 4, 1];

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
        for count in [0, 1, 3, 4, 63, 64, 65, 150, 1_000] {
            let rows: Vec<usize> = (0..count).collect();
            let cut: Vec<&[usize]> = chunks(&rows).collect();
            assert_eq!(cut.concat(), rows);
            assert!(cut.iter().all(|chunk| ROWS.contains(&chunk.len())) && cut.len() <= count / 64 + 9, "{count}");
        }
    }

    /// The other side of [`super::super::MemoryDisk::set_full`]: what a database that may not grow says, and what it still holds.
    #[tokio::test]
    async fn a_full_disk_refuses_whole_writes_and_the_rest_stays() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = Sqlite::open(&directory.path().join("node.db")).await.expect("a database");
        let group = GroupId::from_bytes([7; 16]);
        assert!(store.put_tenant_value(group, "before", b"kept", 10).await.expect("there is room"));
        let pages: i64 = sqlx::query_scalar("PRAGMA page_count").fetch_one(&store.writer).await.expect("a number");
        let limit = sqlx::AssertSqlSafe(format!("PRAGMA max_page_count = {}", pages + 4));
        sqlx::query(limit).execute(&store.writer).await.expect("a limit");
        let refused = store.put_tenant_value(group, "big", &vec![1; 1 << 20], 10).await;
        assert!(matches!(refused, Err(Error::Full)), "{refused:?}");
        assert_eq!(store.get_tenant_value(group, "before").await.expect("a value").as_deref(), Some(b"kept".as_slice()));
        assert_eq!(store.get_tenant_value(group, "big").await.expect("no failure"), None);
        sqlx::query("PRAGMA max_page_count = 4294967294").execute(&store.writer).await.expect("no limit");
        assert!(store.put_tenant_value(group, "big", &vec![1; 1 << 20], 10).await.expect("there is room again"));
    }

    /// What was reported as written after the disk was full must be there for others, and after a restart.
    #[tokio::test]
    async fn a_write_after_several_that_found_no_room_is_a_write() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("node.db");
        let store = Sqlite::open(&path).await.expect("a database");
        let group = GroupId::from_bytes([7; 16]);
        let pages: i64 = sqlx::query_scalar("PRAGMA page_count").fetch_one(&store.writer).await.expect("a number");
        let limit = format!("PRAGMA max_page_count = {}", pages + 4);
        for _ in 0..3 {
            sqlx::query(sqlx::AssertSqlSafe(limit.clone())).execute(&store.writer).await.expect("a limit");
            let refused = store.put_tenant_value(group, "big", &vec![1; 1 << 20], 10).await;
            assert!(matches!(refused, Err(Error::Full)), "{refused:?}");
        }
        sqlx::query("PRAGMA max_page_count = 4294967294").execute(&store.writer).await.expect("no limit");
        assert!(store.put_tenant_value(group, "small", b"kept", 10).await.expect("there is room again"));
        // The reader is another connection: it sees only what is committed.
        assert_eq!(store.get_tenant_value(group, "small").await.expect("a value").as_deref(), Some(b"kept".as_slice()));
        store.close().await;
        let again = Sqlite::open(&path).await.expect("a database");
        assert_eq!(again.get_tenant_value(group, "small").await.expect("a value").as_deref(), Some(b"kept".as_slice()));
    }
}
