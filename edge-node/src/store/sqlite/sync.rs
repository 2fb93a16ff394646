//! When what was committed is on the disk: one `fdatasync` of the write-ahead log for all that was committed before it.
//!
//! SQLite commits without syncing (`synchronous = NORMAL`; it syncs before and after it copies its log into the database), so that the next
//! transaction is written while the disk works for the last one. Whoever promises something waits for [`Syncs::wait`].

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

use super::{Error, Result};

/// Which commits are on the disk.
#[derive(Debug)]
pub(super) struct Syncs {
    log: PathBuf,
    /// Writes that were begun; what they commit can be seen.
    begun: AtomicU64,
    /// Of these, those that came to an end.
    ended: AtomicU64,
    /// Of these, those that are on the disk.
    synced: AtomicU64,
    /// The highest place in the reading log that was committed, and that is on the disk.
    place_ended: AtomicU64,
    place_synced: AtomicU64,
    /// Syncs that were begun, and the last of them that succeeded.
    turns_begun: AtomicU64,
    turn_done: AtomicU64,
    /// One at a time: who waits for his turn most likely finds that the one before covers him or that his covers many.
    turn: tokio::sync::Mutex<()>,
    /// A sync failed. The kernel then counts what it could not write as written, so a later success proves nothing: only a new process, which
    /// reads the log anew, knows what is there.
    has_failed: AtomicBool,
}

/// A write that may commit; it ends when this is dropped.
#[derive(Debug)]
pub(super) struct Write<'a>(&'a Syncs);

impl Drop for Write<'_> {
    fn drop(&mut self) {
        self.0.ended.fetch_add(1, SeqCst);
    }
}

impl Write<'_> {
    /// What this write adds to the reading log ends here.
    pub(super) fn reach(&self, place: u64) {
        self.0.place_ended.fetch_max(place, SeqCst);
    }
}

impl Syncs {
    /// For the database at `path`. What is in its log may not be on the disk yet.
    pub(super) fn new(path: &Path) -> Self {
        let mut log = path.as_os_str().to_owned();
        log.push("-wal");
        Self {
            log: log.into(),
            begun: AtomicU64::new(0),
            ended: AtomicU64::new(0),
            synced: AtomicU64::new(0),
            place_ended: AtomicU64::new(0),
            place_synced: AtomicU64::new(0),
            turns_begun: AtomicU64::new(0),
            turn_done: AtomicU64::new(0),
            turn: tokio::sync::Mutex::new(()),
            has_failed: AtomicBool::new(false),
        }
    }

    /// To be called before the transaction begins, and dropped after it ended.
    ///
    /// # Errors
    /// A sync failed before.
    pub(super) fn write(&self) -> Result<Write<'_>> {
        if self.has_failed.load(SeqCst) {
            return Err(Error::NotSynced);
        }
        self.begun.fetch_add(1, SeqCst);
        Ok(Write(self))
    }

    /// The highest place of the reading log that is on the disk.
    pub(super) fn place(&self) -> u64 {
        self.place_synced.load(SeqCst)
    }

    /// Waits until everything that could be seen when this was called is on the disk.
    ///
    /// # Errors
    /// This sync or one before failed.
    pub(super) async fn wait(&self) -> Result<()> {
        // In this order: whatever is begun after the first look was not seen by the caller.
        let begun = self.begun.load(SeqCst);
        if self.synced.load(SeqCst) >= begun {
            return Ok(());
        }
        let before = self.turns_begun.load(SeqCst);
        let _turn = self.turn.lock().await;
        if self.turn_done.load(SeqCst) > before || self.synced.load(SeqCst) >= begun {
            return Ok(());
        }
        self.sync().await
    }

    /// Only with the turn.
    async fn sync(&self) -> Result<()> {
        if self.has_failed.load(SeqCst) {
            return Err(Error::NotSynced);
        }
        let turn = self.turns_begun.fetch_add(1, SeqCst) + 1;
        let (ended, place) = (self.ended.load(SeqCst), self.place_ended.load(SeqCst));
        let log = self.log.clone();
        let synced = kit::task::blocking(move || sync(&log)).await.map_err(io::Error::other).flatten();
        if let Err(error) = synced {
            self.has_failed.store(true, SeqCst);
            tracing::error!(%error, "what was written is perhaps not on the disk; nothing more is written until this node is started anew");
            return Err(Error::NotSynced);
        }
        self.place_synced.fetch_max(place, SeqCst);
        self.synced.fetch_max(ended, SeqCst);
        self.turn_done.store(turn, SeqCst);
        Ok(())
    }
}

/// By its name: SQLite makes the log anew after its last connection closed it, and only after the database itself was synced. Opening and
/// closing it touches no lock of SQLite's, those are on other files.
fn sync(log: &Path) -> io::Result<()> {
    match std::fs::File::open(log) {
        Ok(file) => file.sync_data(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_sync_covers_all_that_ended_before_it_and_nothing_else() {
        let directory = tempfile::tempdir().expect("a directory");
        std::fs::write(directory.path().join("node.db-wal"), b"log").expect("written");
        let syncs = Syncs::new(&directory.path().join("node.db"));
        let turns = || syncs.turns_begun.load(SeqCst);
        syncs.wait().await.expect("nothing to do");
        assert_eq!(turns(), 0);

        let (first, second) = (syncs.write().expect("writable"), syncs.write().expect("writable"));
        first.reach(7);
        drop(first);
        syncs.wait().await.expect("synced");
        assert_eq!((turns(), syncs.place(), syncs.synced.load(SeqCst)), (1, 7, 1));
        // The second may have committed what a reader sees.
        syncs.wait().await.expect("synced");
        assert_eq!(turns(), 2);
        second.reach(9);
        assert_eq!(syncs.place(), 7, "committed, not synced");
        drop(second);
        let (a, b, c) = tokio::join!(syncs.wait(), syncs.wait(), syncs.wait());
        assert!(a.is_ok() && b.is_ok() && c.is_ok());
        assert_eq!((turns(), syncs.place()), (3, 9), "one for all three");
        syncs.wait().await.expect("nothing to do");
        assert_eq!(turns(), 3);
    }

    #[tokio::test]
    async fn after_a_failed_sync_nothing_is_believed() {
        let directory = tempfile::tempdir().expect("a directory");
        // A file where a directory should be: the log cannot be opened, and it is not that it is not there.
        let path = directory.path().join("no-directory").join("node.db");
        std::fs::write(directory.path().join("no-directory"), b"a file").expect("written");
        let syncs = Syncs::new(&path);
        drop(syncs.write().expect("writable"));
        assert!(matches!(syncs.wait().await, Err(Error::NotSynced)));
        std::fs::remove_file(directory.path().join("no-directory")).expect("removed");
        assert!(matches!(syncs.wait().await, Err(Error::NotSynced)), "for good");
        assert!(matches!(syncs.write(), Err(Error::NotSynced)));
    }
}
