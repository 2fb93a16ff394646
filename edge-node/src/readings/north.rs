//! The north side: ships readings to the customer's cloud, each batch under a signed Merkle root, and settles what the cloud acknowledged.
//!
//! On a node without a cloud readings end in its own log: they are settled as soon as they are in it.
//!
//! Each group's readings go their own way, so that a cloud that is away holds up nobody else's. Two batches of a group are on their way at a
//! time, so that one is made while the cloud's disk works for the other; while they are, the next one gathers. A cloud that is away is asked
//! again with growing pauses; nothing is dropped.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use contracts::digits;
use contracts::envelope::{Envelope, Keypair};
use contracts::ids::{GroupId, NodeId};
use contracts::proof::{self, BatchProof};
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use kit::clock::Clock;
use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};
use tokio::sync::watch;

use super::log::Log;
use super::pace::Pace;
use super::{Name, Reading};
use crate::edge2edge::client::{Client, Error};

/// Readings in one batch at most.
pub const BATCH_MAX: u32 = 1_024;
/// Their decoded values in one batch, bytes; a cloud takes requests of 8 MiB.
const BATCH_BYTES_MAX: usize = 4 << 20;
/// Batches of a group on their way; beyond it readings gather.
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

/// A [`Batch`] whose readings were written before, each once for the proof and for the batch.
#[derive(Debug, Serialize)]
struct WrittenBatch {
    proof: Envelope,
    /// Each as [`leaf`] writes it.
    readings: Vec<Box<RawValue>>,
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
pub struct Destinations(watch::Sender<BTreeMap<GroupId, Destination>>);

impl Destinations {
    pub fn set(&self, group: GroupId, destination: Destination) {
        self.0.send_if_modified(|all| all.insert(group, destination) != Some(destination));
    }

    #[must_use]
    pub fn get(&self, group: GroupId) -> Option<Destination> {
        self.0.borrow().get(&group).copied()
    }
}

/// The bytes of a reading over which the proof is made.
///
/// # Errors
/// Never for readings that came out of JSON.
pub fn leaf(reading: &Reading) -> serde_json::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    write_leaf(reading, &mut bytes)?;
    Ok(bytes)
}

/// The same, behind what `bytes` holds.
pub(super) fn write_leaf(reading: &Reading, bytes: &mut Vec<u8>) -> serde_json::Result<()> {
    serde_json::to_writer(bytes, reading)
}

/// Ships for ever.
pub async fn run(log: Log, client: Client, destinations: Destinations, keypair: Keypair, clock: Clock) {
    let north = North { log: &log, client: &client, destinations: &destinations, keypair: &keypair, clock: &clock };
    let mut changed = destinations.0.subscribe();
    let mut known = BTreeSet::new();
    let mut ways = FuturesUnordered::new();
    loop {
        let groups: Vec<_> = changed.borrow_and_update().keys().copied().collect();
        ways.extend(groups.into_iter().filter(|group| known.insert(*group)).map(|group| north.ship_all(group)));
        tokio::select! {
            biased;
            _ = changed.changed() => {}
            Some(()) = ways.next() => {}
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

/// What every group's way needs.
#[derive(Debug, Clone, Copy)]
struct North<'a> {
    log: &'a Log,
    client: &'a Client,
    destinations: &'a Destinations,
    keypair: &'a Keypair,
    clock: &'a Clock,
}

impl North<'_> {
    /// Ships a group's readings for ever.
    async fn ship_all(self, group: GroupId) {
        let mut changed = self.log.readings_changed(group);
        let mut pause = PAUSE.0;
        let mut pace = Pace::default();
        loop {
            changed.borrow_and_update();
            match self.ship(group, &mut changed, &mut pace).await {
                Ok(Shipped::Nothing) => {
                    pause = PAUSE.0;
                    // Also looks again after the longest pause: a destination may have changed meanwhile.
                    let _signal_or_pause = tokio::time::timeout(PAUSE.1, changed.changed()).await;
                }
                Ok(Shipped::Some) => pause = PAUSE.0,
                Err(error) => {
                    tracing::warn!(%group, error = %error, pause_ms = pause.as_millis(), "readings were not taken; they are kept");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(PAUSE.1);
                }
            }
        }
    }

    /// One pass over everything of a group that is unsettled, and what is published meanwhile.
    async fn ship(self, group: GroupId, changed: &mut watch::Receiver<u64>, pace: &mut Pace) -> Result<Shipped, Failure> {
        let Some(destination) = self.destinations.get(group) else { return Ok(Shipped::Nothing) };
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
                    let page = first_bytes(self.log.store().list_unsettled(group, after, BATCH_MAX).await?);
                    pages += 1;
                    let Some((last, _)) = page.last() else {
                        is_at_end = true;
                        pace.found_nothing();
                        continue;
                    };
                    after = *last;
                    flights.push(self.deliver(destination, group, page.into_iter().map(|(_, reading)| reading).collect()));
                }
                _ = changed.changed(), if is_at_end => is_at_end = false,
            }
        }
        failure.map_or(Ok(shipped), Err)
    }

    /// Brings readings to where they end, and settles them.
    async fn deliver(self, destination: Destination, group: GroupId, readings: Vec<Reading>) -> Result<(), Failure> {
        let names = match destination {
            Destination::Cloud(cloud) => ship_batch(self.client, cloud, group, readings, self.keypair, self.clock).await?,
            Destination::Here => readings.iter().map(Reading::name).collect(),
        };
        Ok(self.log.settle(names).await?)
    }
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
    let leaves = readings.iter().map(to_raw_value).collect::<Result<Vec<_>, _>>()?;
    let mut items = proof::Items::default();
    leaves.iter().for_each(|leaf| items.push(leaf.get().as_bytes()));
    let proof = BatchProof {
        node: keypair.node_id(),
        group,
        readings: u32::try_from(readings.len()).unwrap_or(u32::MAX),
        root: digits::text(&items.root()),
        made_at: clock.wall(),
    };
    let names = readings.iter().map(Reading::name).collect();
    let batch = WrittenBatch { proof: Envelope::sign(&proof, keypair), readings: leaves };
    let _accepted: Accepted = client.post(cloud, "/peer/v1/readings", &batch).await?;
    Ok(names)
}
