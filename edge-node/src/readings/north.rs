//! The north side: ships readings to the customer's cloud, each batch under a signed Merkle root, and settles what the cloud acknowledged.
//!
//! On a node without a cloud readings end in its own log: they are settled as soon as they are in it.
//!
//! One batch per cloud is on its way at a time; while it is, the next one gathers. A cloud that is away is asked again with growing
//! pauses; nothing is dropped.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use contracts::envelope::{Envelope, Keypair};
use contracts::ids::{GroupId, NodeId};
use contracts::proof::{self, BatchProof};
use kit::clock::Clock;
use serde::{Deserialize, Serialize};

use super::log::Log;
use super::{Name, Reading};
use crate::edge2edge::client::{Client, Error};

/// Readings in one batch at most.
pub const BATCH_MAX: u32 = 512;
/// First and longest pause after a cloud did not take a batch.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

/// A batch as it is sent.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Batch {
    /// A signed [`BatchProof`] over `readings`, in their order.
    pub proof: Envelope,
    pub readings: Vec<Reading>,
}

/// What the cloud answers: everything in the batch is on its disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    /// Readings that the cloud did not have before.
    pub new: u64,
}

/// Where readings end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Destination {
    /// The store of the customer's cloud.
    Cloud(NodeId),
    /// This node's own log.
    Here,
}

/// Where the readings of each group go.
#[derive(Debug, Clone, Default)]
pub struct Destinations(Arc<RwLock<BTreeMap<GroupId, Destination>>>);

impl Destinations {
    pub fn set(&self, group: GroupId, destination: Destination) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).insert(group, destination);
    }

    pub fn remove(&self, group: GroupId) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).remove(&group);
    }

    #[must_use]
    pub fn get(&self, group: GroupId) -> Option<Destination> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(&group).copied()
    }
}

/// The bytes of a reading over which the proof is made.
///
/// # Errors
/// Never for readings that came out of JSON.
pub fn leaf(reading: &Reading) -> serde_json::Result<Vec<u8>> {
    serde_json::to_vec(reading)
}

/// Ships for ever.
pub async fn run(log: Log, client: Client, destinations: Destinations, keypair: Keypair, clock: Clock) {
    let mut changed = log.readings_changed();
    let mut pause = PAUSE.0;
    loop {
        changed.borrow_and_update();
        match ship(&log, &client, &destinations, &keypair, &clock).await {
            Ok(Shipped::Nothing) => {
                pause = PAUSE.0;
                // Also looks again after the longest pause: a destination may have appeared meanwhile.
                let _signal_or_pause = tokio::time::timeout(PAUSE.1, changed.changed()).await;
            }
            Ok(Shipped::Some) => pause = PAUSE.0,
            Err(error) => {
                tracing::warn!(error = %error, pause_ms = pause.as_millis(), "the cloud did not take the readings; they are kept");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PAUSE.1);
            }
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shipped {
    Nothing,
    Some,
}

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("the reading log: {0}")]
    Store(#[from] crate::store::Error),
    #[error("the reading log: {0}")]
    Log(#[from] super::log::Error),
    #[error("{0}")]
    Peer(#[from] Error),
    #[error("a reading is no JSON: {0}")]
    Json(#[from] serde_json::Error),
}

/// One pass over everything unsettled; groups whose cloud is unknown or away do not hold up the others.
async fn ship(
    log: &Log,
    client: &Client,
    destinations: &Destinations,
    keypair: &Keypair,
    clock: &Clock,
) -> Result<Shipped, Failure> {
    let mut after = 0;
    let mut shipped = Shipped::Nothing;
    let mut failure = None;
    loop {
        let page = log.store().list_unsettled(after, BATCH_MAX).await?;
        let Some((last, _)) = page.last() else { break };
        after = *last;
        let full = page.len() == BATCH_MAX as usize;
        let mut by_group: BTreeMap<GroupId, Vec<Reading>> = BTreeMap::new();
        for (_, reading) in page {
            by_group.entry(reading.group).or_default().push(reading);
        }
        for (group, readings) in by_group {
            let shipping = match destinations.get(group) {
                Some(Destination::Cloud(cloud)) => ship_batch(client, cloud, group, readings, keypair, clock).await,
                Some(Destination::Here) => Ok(readings.iter().map(Reading::name).collect()),
                None => continue,
            };
            match shipping {
                Ok(names) => {
                    log.settle(names).await?;
                    shipped = Shipped::Some;
                }
                Err(error) => failure = Some(error),
            }
        }
        if !full || failure.is_some() {
            break;
        }
    }
    failure.map_or(Ok(shipped), Err)
}

async fn ship_batch(
    client: &Client,
    cloud: NodeId,
    group: GroupId,
    readings: Vec<Reading>,
    keypair: &Keypair,
    clock: &Clock,
) -> Result<Vec<Name>, Failure> {
    let leaves = readings.iter().map(leaf).collect::<Result<Vec<_>, _>>()?;
    let proof = BatchProof {
        node: keypair.node_id(),
        group,
        readings: u32::try_from(readings.len()).unwrap_or(u32::MAX),
        root: hex::encode(proof::root(&leaves)),
        made_at: clock.wall(),
    };
    let names = readings.iter().map(Reading::name).collect();
    let batch = Batch { proof: Envelope::sign(&proof, keypair), readings };
    let _accepted: Accepted = client.post(cloud, "/peer/v1/readings", &batch).await?;
    Ok(names)
}
