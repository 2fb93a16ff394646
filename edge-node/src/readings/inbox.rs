//! The cloud's side: checks batches and writes them, many in one transaction, and the next while the disk works for the last.

use std::sync::Arc;

use contracts::digits;
use contracts::ids::{GroupId, NodeId};
use contracts::proof::{self, BATCH_READINGS_MAX, BatchProof};
use kit::clock::Clock;
use kit::problem::Problem;
use tokio::sync::{mpsc, oneshot, watch};

use super::Reading;
use super::north::{Accepted, Batch, write_leaf};
use crate::store::{self, InboxBatch, Received, Store};

/// Batches that wait for the writer; beyond it senders wait.
const QUEUE_MAX: usize = 256;
/// Batches in one transaction.
const TRANSACTION_BATCHES_MAX: usize = 64;
/// A decoded reading is at most this long.
pub const DECODED_BYTES_MAX: usize = 16 << 10;

/// Transactions that wait for the disk; beyond it the writer waits.
const UNSYNCED_MAX: usize = 16;

type Done = oneshot::Sender<Result<u64, Problem>>;

struct Arrival {
    batch: InboxBatch,
    done: Done,
}

/// A handle to the inbox; cheap to clone.
#[derive(Debug, Clone)]
pub struct Inbox {
    arrivals: mpsc::Sender<Arrival>,
    store: Store,
    clock: Clock,
    changed: Arc<watch::Sender<u64>>,
}

impl Inbox {
    /// Starts the tasks that write and sync; they end when every handle is gone.
    #[must_use]
    pub fn start(store: Store, clock: Clock) -> Self {
        let (arrivals, waiting) = mpsc::channel(QUEUE_MAX);
        let changed = Arc::new(watch::Sender::new(0));
        let (inserted, unsynced) = mpsc::channel(UNSYNCED_MAX);
        kit::task::spawn(write_all(store.clone(), waiting, inserted));
        kit::task::spawn(sync_all(store.clone(), unsynced, Arc::clone(&changed)));
        Self { arrivals, store, clock, changed }
    }

    /// Takes a batch from `from`, whose right to deliver for `allowed` groups the caller checked. When this returns it is on disk.
    ///
    /// # Errors
    /// A problem that names what is wrong with the batch, or that the database failed.
    pub async fn accept(&self, from: NodeId, allowed: impl Fn(GroupId) -> bool, batch: Batch) -> Result<Accepted, Problem> {
        let (proof, proof_id) = check(from, allowed, &batch)?;
        debug_assert_eq!(proof.node, from);
        let arrival = InboxBatch { from, received_at: self.clock.wall(), proof_id, proof: batch.proof, readings: batch.readings };
        let (done, answer) = oneshot::channel();
        self.arrivals.send(Arrival { batch: arrival, done }).await.map_err(|_| Problem::unavailable("the inbox has stopped"))?;
        let new = answer.await.map_err(|_| Problem::unavailable("the inbox has stopped"))??;
        Ok(Accepted { new })
    }

    /// Readings behind the cursor.
    ///
    /// # Errors
    /// The database failed.
    pub async fn list(&self, after: u64, limit: u32) -> store::Result<Vec<Received>> {
        self.store.list_received(after, None, limit).await
    }

    /// Rises with every transaction.
    #[must_use]
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}

fn check(
    from: NodeId,
    allowed: impl Fn(GroupId) -> bool,
    batch: &Batch,
) -> Result<(BatchProof, contracts::ids::StatementId), Problem> {
    let verified = batch.proof.verify_signed_by::<BatchProof>(&[from.into()])?;
    let proof = verified.statement;
    if proof.node != from || !allowed(proof.group) {
        return Err(Problem::forbidden("no contract lets this node deliver readings of this group"));
    }
    if batch.readings.len() != proof.readings as usize || batch.readings.len() > BATCH_READINGS_MAX as usize {
        return Err(Problem::invalid("readings", "not as many as the proof says"));
    }
    if batch.readings.iter().any(|r| r.group != proof.group || r.decoded.get().len() > DECODED_BYTES_MAX) {
        return Err(Problem::invalid("readings", "a reading is of another group or too long"));
    }
    if digits::text(&root(&batch.readings).map_err(|e| Problem::invalid("readings", e))?) != proof.root {
        return Err(Problem::invalid("proof", "the signed root is not the root of these readings"));
    }
    Ok((proof, verified.id))
}

/// The signed root is over what [`write_leaf`] writes of each.
fn root(readings: &[Reading]) -> serde_json::Result<proof::Hash> {
    let mut items = proof::Items::default();
    let mut bytes = Vec::new();
    for reading in readings {
        bytes.clear();
        write_leaf(reading, &mut bytes)?;
        items.push(&bytes);
    }
    Ok(items.root())
}

/// Whom to tell, and how many of his readings were new.
type Inserted = Vec<(Done, u64)>;

async fn write_all(store: Store, mut waiting: mpsc::Receiver<Arrival>, inserted: mpsc::Sender<Inserted>) {
    let mut arrivals = Vec::new();
    while waiting.recv_many(&mut arrivals, TRANSACTION_BATCHES_MAX).await > 0 {
        let (batches, done): (Vec<_>, Vec<_>) = arrivals.drain(..).map(|a| (a.batch, a.done)).unzip();
        match store.insert_batches(&batches).await {
            Ok(counts) => {
                if inserted.send(done.into_iter().zip(counts).collect()).await.is_err() {
                    return;
                }
            }
            Err(error) => fail(&error, done),
        }
    }
}

/// Everything that was inserted until a sync begins is on the disk after it.
async fn sync_all(store: Store, mut unsynced: mpsc::Receiver<Inserted>, changed: Arc<watch::Sender<u64>>) {
    let mut batches = Vec::new();
    while unsynced.recv_many(&mut batches, UNSYNCED_MAX).await > 0 {
        let all = batches.drain(..).flatten();
        match store.sync().await {
            Ok(()) => {
                for (done, new) in all {
                    let _gone = done.send(Ok(new));
                }
                changed.send_modify(|count| *count += 1);
            }
            Err(error) => fail(&error, all.map(|(done, _)| done)),
        }
    }
}

fn fail(error: &store::Error, all: impl IntoIterator<Item = Done>) {
    tracing::error!(error = error as &dyn std::error::Error, "the inbox cannot write");
    for done in all {
        let _gone = done.send(Err(Problem::internal()));
    }
}
