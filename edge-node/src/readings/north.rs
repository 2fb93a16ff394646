//! The north side: ships readings to the customer's cloud, each batch under a signed Merkle root, and settles what the cloud acknowledged.
//!
//! On a node without a cloud readings end in its own log: they are settled as soon as they are in it.
//!
//! Two batches are on their way at a time, so that one is made while the cloud's disk works for the other; while they are, the next one
//! gathers. A cloud that is away is asked again with growing pauses; nothing is dropped.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use contracts::envelope::{Envelope, Keypair};
use contracts::ids::{GroupId, NodeId};
use contracts::proof::{self, BatchProof};
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use kit::clock::Clock;
use serde::{Deserialize, Serialize};

use super::log::Log;
use super::pace::Pace;
use super::{Name, Reading};
use crate::edge2edge::client::{Client, Error};

/// Readings in one batch at most.
pub const BATCH_MAX: u32 = 1_024;
/// Their decoded values in one batch, bytes; a cloud takes requests of 8 MiB.
const BATCH_BYTES_MAX: usize = 4 << 20;
/// Batches on their way; beyond it readings gather.
const FLIGHTS_MAX: usize = 2;
/// Pages after which the log is looked at from its beginning again: a place may have been given away twice, if what had it was forgotten.
const PAGES_MAX: u32 = 256;
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
    let mut pace = Pace::default();
    loop {
        changed.borrow_and_update();
        match ship(&log, &client, &destinations, &keypair, &clock, &mut pace).await {
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

/// One pass over everything unsettled, and what is published meanwhile; groups whose cloud is unknown or away do not hold up the others.
async fn ship(
    log: &Log,
    client: &Client,
    destinations: &Destinations,
    keypair: &Keypair,
    clock: &Clock,
    pace: &mut Pace,
) -> Result<Shipped, Failure> {
    let mut changed = log.readings_changed();
    let (mut after, mut pages) = (0, 0);
    let mut is_at_end = false;
    let mut shipped = Shipped::Nothing;
    let mut failure = None;
    let mut flights = FuturesUnordered::new();
    loop {
        let may_take = !is_at_end && failure.is_none() && flights.len() < FLIGHTS_MAX && pages < PAGES_MAX;
        if flights.is_empty() && !may_take {
            break;
        }
        tokio::select! {
            biased;
            Some(landed) = flights.next(), if !flights.is_empty() => match landed {
                Ok(()) => shipped = Shipped::Some,
                Err(error) => failure = Some(error),
            },
            () = pace.turn(), if may_take => {
                changed.borrow_and_update();
                let page = first_bytes(log.store().list_unsettled(after, BATCH_MAX).await?);
                pages += 1;
                let Some((last, _)) = page.last() else {
                    is_at_end = true;
                    pace.found_nothing();
                    continue;
                };
                after = *last;
                for (group, readings) in by_group(page) {
                    if let Some(destination) = destinations.get(group) {
                        flights.push(async move {
                            let names = match destination {
                                Destination::Cloud(cloud) => ship_batch(client, cloud, group, readings, keypair, clock).await?,
                                Destination::Here => readings.iter().map(Reading::name).collect(),
                            };
                            Ok::<(), Failure>(log.settle(names).await?)
                        });
                    }
                }
            }
            _ = changed.changed(), if is_at_end => is_at_end = false,
        }
    }
    failure.map_or(Ok(shipped), Err)
}

fn by_group(page: Vec<(u64, Reading)>) -> BTreeMap<GroupId, Vec<Reading>> {
    let mut groups: BTreeMap<GroupId, Vec<Reading>> = BTreeMap::new();
    for (_, reading) in page {
        groups.entry(reading.group).or_default().push(reading);
    }
    groups
}

/// As many as fit into a batch, at least one.
fn first_bytes(mut page: Vec<(u64, Reading)>) -> Vec<(u64, Reading)> {
    let mut bytes = 0;
    let fits = page.iter().take_while(|(_, reading)| {
        bytes += reading.decoded.get().len();
        bytes <= BATCH_BYTES_MAX
    });
    page.truncate(fits.count().max(1));
    page
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
