//! The node's database: SQLite in its state directory. Static SQL lives below this folder and nowhere else.
//!
//! - [`uplinks`] — the reading log from frame to settled reading
//! - [`inbox`] — what a cloud node received
//! - [`tenant_state`], [`records`], [`reserved`], [`agreements`] — small tables
//!
//! One connection writes, two read (WAL). Every write that others rely on is synced before it returns (`synchronous = FULL`).

pub mod agreements;
pub mod inbox;
pub mod records;
pub mod reserved;
pub mod tenant_state;
pub mod uplinks;

use std::path::Path;

use sqlx::SqlitePool;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};

/// What can go wrong with the database.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the node's database failed")]
    Database(#[from] sqlx::Error),
    #[error("the node's database cannot be brought up to date")]
    Migration(#[from] sqlx::migrate::MigrateError),
    #[error("a row of table {table} cannot be read: {reason}")]
    Row { table: &'static str, reason: String },
}

pub type Result<T> = std::result::Result<T, Error>;

/// Handles to the database; cheap to clone.
#[derive(Debug, Clone)]
pub struct Store {
    pub(crate) writer: SqlitePool,
    pub(crate) reader: SqlitePool,
}

impl Store {
    /// Opens or creates the database and brings its schema up to date.
    ///
    /// # Errors
    /// The file cannot be opened, is no database, or was written by a newer version.
    pub async fn open(path: &Path) -> Result<Self> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .pragma("cache_size", "-1024")
            .busy_timeout(std::time::Duration::from_secs(5));
        let writer = SqlitePoolOptions::new().max_connections(1).connect_with(options.clone()).await?;
        sqlx::migrate!("./migrations").run(&writer).await?;
        let reader = SqlitePoolOptions::new().max_connections(2).connect_with(options.read_only(true)).await?;
        Ok(Self { writer, reader })
    }

    /// Closes all connections; what was committed stays.
    pub async fn close(&self) {
        self.reader.close().await;
        self.writer.close().await;
    }
}

/// An id of `N` bytes from a column.
pub(crate) fn bytes<const N: usize>(table: &'static str, column: Vec<u8>) -> Result<[u8; N]> {
    column
        .try_into()
        .map_err(|v: Vec<u8>| Error::Row { table, reason: format!("an id of {} bytes where {N} are wanted", v.len()) })
}

/// An unsigned number from a column.
pub(crate) fn unsigned<T: TryFrom<i64>>(table: &'static str, column: i64) -> Result<T> {
    T::try_from(column).map_err(|_| Error::Row { table, reason: format!("{column} is out of range") })
}

/// An unsigned number for a column; numbers beyond 2^63 are cut (none of ours gets there).
pub(crate) fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
