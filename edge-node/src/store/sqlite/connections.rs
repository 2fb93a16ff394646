//! Connections with the database, each used by one at a time.
//!
//! Each is a thread of SQLite's, and a change of thread costs more than most statements do. A pool of `sqlx` asks a connection whether it
//! lives before and after each use, three changes of thread where one has to be; this does not: a connection on which a transaction did not
//! come to its end is thrown away; a statement alone commits or rolls back by itself.

use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, PoisonError};

use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions as _, Connection as _, SqliteConnection};
use tokio::sync::{Semaphore, SemaphorePermit};

use super::{Error, Result};

/// At most so many connections of one kind.
#[derive(Debug)]
pub(super) struct Connections {
    options: SqliteConnectOptions,
    count: u32,
    places: Semaphore,
    /// Those that nobody uses.
    idle: Mutex<Vec<SqliteConnection>>,
}

impl Connections {
    /// Opens each when it is needed.
    pub(super) const fn new(options: SqliteConnectOptions, count: u32) -> Self {
        Self { options, count, places: Semaphore::const_new(count as usize), idle: Mutex::new(Vec::new()) }
    }

    /// Waits for its turn.
    ///
    /// # Errors
    /// The database is closed or cannot be opened.
    pub(super) async fn acquire(&self) -> Result<Held<'_>> {
        let place = self.places.acquire().await.map_err(|_| Error::Closed)?;
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let connection = match idle {
            Some(connection) => connection,
            None => self.options.connect().await?,
        };
        Ok(Held { connections: self, connection: Some(connection), is_in_transaction: false, _place: place })
    }

    /// The same, in a transaction, of which nothing stays without [`Held::commit`].
    ///
    /// # Errors
    /// The database is closed or cannot be opened.
    pub(super) async fn begin(&self) -> Result<Held<'_>> {
        let mut held = self.acquire().await?;
        // Before: whoever is not there any more when it has begun leaves a transaction.
        held.is_in_transaction = true;
        sqlx::query("BEGIN").execute(&mut *held).await?;
        Ok(held)
    }

    /// Waits until nobody uses one, and closes them.
    pub(super) async fn close(&self) {
        let all = self.places.acquire_many(self.count).await;
        self.places.close();
        drop(all);
        let idle = std::mem::take(&mut *self.idle.lock().unwrap_or_else(PoisonError::into_inner));
        for connection in idle {
            if let Err(error) = connection.close().await {
                tracing::debug!(%error, "a connection with the database did not close");
            }
        }
    }
}

/// A connection in use; dropped, the next one may use it.
#[derive(Debug)]
pub(super) struct Held<'a> {
    connections: &'a Connections,
    /// Absent only once this is dropped.
    connection: Option<SqliteConnection>,
    is_in_transaction: bool,
    _place: SemaphorePermit<'a>,
}

impl Held<'_> {
    /// Ends the transaction; others see it from now on.
    ///
    /// # Errors
    /// It is not, or perhaps not, committed.
    pub(super) async fn commit(mut self) -> Result<()> {
        sqlx::query("COMMIT").execute(&mut *self).await?;
        self.is_in_transaction = false;
        Ok(())
    }
}

impl Deref for Held<'_> {
    type Target = SqliteConnection;

    fn deref(&self) -> &SqliteConnection {
        self.connection.as_ref().unwrap_or_else(|| unreachable!("taken only by drop"))
    }
}

impl DerefMut for Held<'_> {
    fn deref_mut(&mut self) -> &mut SqliteConnection {
        self.connection.as_mut().unwrap_or_else(|| unreachable!("taken only by drop"))
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        // To close it rolls back what was not committed. A transaction that failed on a full disk may be half rolled back already, and the
        // next one must not begin in it.
        let connection = self.connection.take().filter(|_| !self.is_in_transaction);
        self.connections.idle.lock().unwrap_or_else(PoisonError::into_inner).extend(connection);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_dropped_in_a_transaction_leaves_nothing_to_the_next() {
        let directory = tempfile::tempdir().expect("a directory");
        // With its log a write waits for the dropped one to be rolled back; without, it would be refused after a read.
        let options = SqliteConnectOptions::new()
            .filename(directory.path().join("a.db"))
            .create_if_missing(true)
            .journal_mode(sqlx::sqlite::SqliteJournalMode::Wal);
        let connections = Connections::new(options, 1);
        let mut held = connections.acquire().await.expect("a connection");
        sqlx::query("CREATE TABLE a (b)").execute(&mut *held).await.expect("a table");
        drop(held);
        let insert = async |held: &mut Held<'_>| sqlx::query("INSERT INTO a VALUES (1)").execute(&mut **held).await.is_ok();
        let count =
            async |held: &mut Held<'_>| sqlx::query_scalar::<_, i64>("SELECT count(*) FROM a").fetch_one(&mut **held).await;
        let mut dropped = connections.begin().await.expect("a transaction");
        assert!(insert(&mut dropped).await);
        drop(dropped);
        let mut next = connections.begin().await.expect("another one, on a new connection");
        assert_eq!(count(&mut next).await.expect("a number"), 0);
        assert!(insert(&mut next).await);
        next.commit().await.expect("committed");
        // The same connection again.
        assert_eq!(connections.idle.lock().unwrap_or_else(PoisonError::into_inner).len(), 1);
        let mut last = connections.acquire().await.expect("a connection");
        assert_eq!(count(&mut last).await.expect("a number"), 1);
        drop(last);
        connections.close().await;
        assert!(matches!(connections.acquire().await, Err(Error::Closed)));
    }
}
