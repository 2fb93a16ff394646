//! The reading log: one task writes, whatever waits goes into one transaction (group commit); another waits until it is on the disk, while
//! the first writes the next.
//!
//! Nothing is *served* before it is in here; nothing is forgotten before the customer's cloud acknowledged it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use contracts::ids::{EventId, GroupId};
use tokio::sync::{mpsc, oneshot, watch};

use super::{Decoded, Name, Uplink};
use crate::store::{Change, Store};

/// At most this many commands wait for the writer; beyond it callers wait.
const QUEUE_MAX: usize = 1_024;
/// At most this many commands share one transaction.
const BATCH_COMMANDS_MAX: usize = 256;
/// Transactions that wait for the disk; beyond it the writer waits.
const UNSYNCED_MAX: usize = 16;

/// Between two tries of a disk that failed, and how many in a row must succeed before it is believed again.
const PROBE_INTERVAL: std::time::Duration = std::time::Duration::from_millis(500);
const PROBES: u32 = 3;

/// Why something is not in the log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("the reading log has stopped")]
    Stopped,
    #[error("the reading log cannot write; see the node's log")]
    Failed,
}

struct Command {
    change: Change,
    done: oneshot::Sender<Result<u64, Error>>,
}

/// A change that was committed, and its count.
struct Committed {
    command: Command,
    count: u64,
}

impl Committed {
    fn finish(self, signals: &Signals) {
        announce(signals, &self.command.change);
        let _gone = self.command.done.send(Ok(self.count));
    }
}

/// A handle to the log; cheap to clone.
#[derive(Debug, Clone)]
pub struct Log {
    commands: mpsc::Sender<Command>,
    store: Store,
    signals: Signals,
    given_up: Arc<AtomicU64>,
}

/// Counters that rise when there is something new to look for.
#[derive(Debug, Clone)]
struct Signals {
    /// Uplinks wait for the tenant.
    uplinks: ByGroup,
    /// Readings wait for the cloud.
    readings: ByGroup,
    /// Uplinks were settled.
    settled: tokio::sync::broadcast::Sender<Arc<Vec<Name>>>,
    /// Whether the disk takes what is written.
    writable: watch::Sender<bool>,
}

/// A counter for each group.
#[derive(Debug, Clone, Default)]
struct ByGroup(Arc<Mutex<BTreeMap<GroupId, watch::Sender<u64>>>>);

impl ByGroup {
    fn rise(&self, group: GroupId) {
        self.of(group).send_modify(|count| *count += 1);
    }

    fn of(&self, group: GroupId) -> watch::Sender<u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(group).or_default().clone()
    }
}

impl Log {
    /// Starts the tasks that write and sync; they end when every handle is gone.
    #[must_use]
    pub fn start(store: Store) -> Self {
        let (commands, waiting) = mpsc::channel(QUEUE_MAX);
        let signals = Signals {
            uplinks: ByGroup::default(),
            readings: ByGroup::default(),
            settled: tokio::sync::broadcast::Sender::new(1_024),
            writable: watch::Sender::new(true),
        };
        let (committed, unsynced) = mpsc::channel(UNSYNCED_MAX);
        kit::task::spawn(write_all(store.clone(), waiting, signals.clone(), committed));
        kit::task::spawn(sync_all(store.clone(), unsynced, signals.clone()));
        Self { commands, store, signals, given_up: Arc::default() }
    }

    #[must_use]
    pub const fn store(&self) -> &Store {
        &self.store
    }

    /// Writes uplinks; when this returns they are on disk.
    ///
    /// # Errors
    /// [`Error`]; then none of them may be served or acknowledged.
    pub async fn append(&self, uplinks: Vec<Uplink>) -> Result<(), Error> {
        self.send(Change::Append(uplinks)).await.map(|_| ())
    }

    /// Writes uplinks that this node, as an insurer, answers for; when this returns they are on disk.
    ///
    /// # Errors
    /// [`Error`]; then none of them may be served or acknowledged.
    pub async fn hear(&self, uplinks: Vec<Uplink>) -> Result<(), Error> {
        self.send(Change::Hear(uplinks)).await.map(|_| ())
    }

    /// Writes what the tenant of `group` decoded; returns how many were new. It is read from now on, and survives the end of this process; what
    /// a power cut takes is decoded again.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn publish(&self, group: GroupId, readings: Vec<Decoded>) -> Result<u64, Error> {
        self.send(Change::Publish(group, readings)).await
    }

    /// Marks readings as acknowledged by the customer's cloud; what a power cut takes is shipped again.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn settle(&self, names: Vec<Name>) -> Result<(), Error> {
        self.send(Change::Settle(names)).await.map(|_| ())
    }

    /// As [`Log::settle`], for uplinks that nobody took in time ([`super::unclaimed`]).
    ///
    /// # Errors
    /// [`Error`].
    pub async fn give_up(&self, names: Vec<Name>) -> Result<(), Error> {
        let count = names.len() as u64;
        self.settle(names).await?;
        self.given_up.fetch_add(count, Ordering::Relaxed);
        Ok(())
    }

    /// How many were given up since the log was started.
    #[must_use]
    pub fn given_up(&self) -> u64 {
        self.given_up.load(Ordering::Relaxed)
    }

    /// Drops what was buffered of these events.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn forget(&self, events: Vec<EventId>) -> Result<(), Error> {
        self.send(Change::Forget(events)).await.map(|_| ())
    }

    /// Takes over what another node heard and made.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn import(&self, open: Vec<(Uplink, Option<String>)>) -> Result<(), Error> {
        self.send(Change::Import(open)).await.map(|_| ())
    }

    /// Rises whenever uplinks of `group` may wait for its tenant.
    #[must_use]
    pub fn uplinks_changed(&self, group: GroupId) -> watch::Receiver<u64> {
        self.signals.uplinks.of(group).subscribe()
    }

    /// Rises whenever readings of `group` may wait for the cloud.
    #[must_use]
    pub fn readings_changed(&self, group: GroupId) -> watch::Receiver<u64> {
        self.signals.readings.of(group).subscribe()
    }

    /// Uplinks as they are settled.
    #[must_use]
    pub fn settled(&self) -> tokio::sync::broadcast::Receiver<Arc<Vec<Name>>> {
        self.signals.settled.subscribe()
    }

    /// Whether the disk takes what is written; a disk that failed is believed again after [`PROBES`] writes in a row.
    #[must_use]
    pub fn writable(&self) -> watch::Receiver<bool> {
        self.signals.writable.subscribe()
    }

    async fn send(&self, change: Change) -> Result<u64, Error> {
        let (done, answer) = oneshot::channel();
        self.commands.send(Command { change, done }).await.map_err(|_| Error::Stopped)?;
        answer.await.map_err(|_| Error::Stopped)?
    }
}

async fn write_all(
    store: Store,
    mut waiting: mpsc::Receiver<Command>,
    signals: Signals,
    committed: mpsc::Sender<Vec<Committed>>,
) {
    let mut commands = Vec::new();
    // In a row, of batches as of probes.
    let mut successes = 0_u32;
    let mut was_writable = true;
    loop {
        let is_writable = *signals.writable.borrow();
        if was_writable && !is_writable {
            successes = 0;
        }
        was_writable = is_writable;
        tokio::select! {
            biased;
            taken = waiting.recv_many(&mut commands, BATCH_COMMANDS_MAX) => {
                if taken == 0 {
                    return;
                }
                let batch = write_batch(&store, &mut commands, &signals).await;
                successes = if batch.is_some() { successes.saturating_add(1) } else { 0 };
                if let Some(batch) = batch.filter(|batch| !batch.is_empty()) && committed.send(batch).await.is_err() {
                    return;
                }
            }
            () = tokio::time::sleep(PROBE_INTERVAL), if !is_writable => {
                successes = if store.try_write().await.is_ok() { successes + 1 } else { 0 };
            }
        }
        if !is_writable && successes >= PROBES {
            signals.writable.send_replace(true);
        }
    }
}

/// One transaction. Gives what is to be synced before it counts; the rest is done. `None`: the disk did not take it.
async fn write_batch(store: &Store, commands: &mut Vec<Command>, signals: &Signals) -> Option<Vec<Committed>> {
    let (changes, done): (Vec<_>, Vec<_>) = commands.drain(..).map(|c| (c.change, c.done)).unzip();
    match store.commit(&changes).await {
        Ok(counts) => {
            let commands = changes.into_iter().zip(done).map(|(change, done)| Command { change, done });
            let all = commands.zip(counts).map(|(command, count)| Committed { command, count });
            let (unsynced, finished): (Vec<_>, Vec<_>) = all.partition(|committed| committed.command.change.must_be_synced());
            finished.into_iter().for_each(|committed| committed.finish(signals));
            Some(unsynced)
        }
        Err(error) => {
            fail(&error, done, signals);
            None
        }
    }
}

/// Everything that was committed until a sync begins is on the disk after it.
async fn sync_all(store: Store, mut unsynced: mpsc::Receiver<Vec<Committed>>, signals: Signals) {
    let mut batches = Vec::new();
    while unsynced.recv_many(&mut batches, UNSYNCED_MAX).await > 0 {
        let all = batches.drain(..).flatten();
        match store.sync().await {
            Ok(()) => all.for_each(|committed| committed.finish(&signals)),
            Err(error) => fail(&error, all.map(|committed| committed.command.done).collect(), &signals),
        }
    }
}

fn fail(error: &crate::store::Error, done: Vec<oneshot::Sender<Result<u64, Error>>>, signals: &Signals) {
    tracing::error!(error = error as &dyn std::error::Error, commands = done.len(), "the reading log cannot write");
    signals.writable.send_if_modified(|writable| std::mem::replace(writable, false));
    for done in done {
        let _gone = done.send(Err(Error::Failed));
    }
}

fn announce(signals: &Signals, change: &Change) {
    match change {
        Change::Append(list) | Change::Hear(list) => {
            list.iter().filter(|uplink| uplink.deliver).for_each(|uplink| signals.uplinks.rise(uplink.group));
        }
        Change::Publish(group, _) => signals.readings.rise(*group),
        Change::Forget(_) => {}
        Change::Settle(names) => {
            let _nobody = signals.settled.send(Arc::new(names.clone()));
        }
        Change::Import(list) => {
            for (uplink, _) in list {
                signals.uplinks.rise(uplink.group);
                signals.readings.rise(uplink.group);
            }
        }
    }
}
