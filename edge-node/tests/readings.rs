//! The reading log and the cloud's inbox on a real database: what is durable, what is refused, what is kept once.
#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "common/uplinks.rs"]
mod uplinks;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use contracts::envelope::{Envelope, Keypair};
use contracts::ids::{DevEui, Epoch, EventId, GroupId, NodeId, SessionId};
use contracts::proof::{self, BatchProof};
use contracts::time::{Millis, WallTime};
use edge_node::edge2edge::client::Client;
use edge_node::readings::inbox::Inbox;
use edge_node::readings::log::Log;
use edge_node::readings::north::{self, Batch, Destination, Destinations, leaf};
use edge_node::readings::unclaimed::{Limits, give_up};
use edge_node::readings::{Decoded, Kind, Reading, Uplink};
use edge_node::store::{MemoryDisk, Store};
use kit::clock::Clock;
use peering::in_process::Network;

const GROUP: GroupId = GroupId::from_bytes([7; 16]);
const SESSION: SessionId = SessionId::from_bytes([1; 8]);

fn device(n: u64) -> DevEui {
    DevEui::from_u64(n)
}

fn event(n: u64, f_cnt: u32) -> EventId {
    EventId::new(device(n), SESSION, f_cnt)
}

fn uplink(n: u64, f_cnt: u32) -> Uplink {
    Uplink { heard_at: WallTime(1_000 + u64::from(f_cnt)), ..uplinks::uplink(GROUP, device(n), SESSION, f_cnt) }
}

fn decoded(n: u64, f_cnt: u32) -> Decoded {
    Decoded { event: event(n, f_cnt), decoded: format!("{{\"generic_1\":{f_cnt}}}") }
}

async fn store(directory: &tempfile::TempDir) -> Store {
    Store::open(&directory.path().join("node.db")).await.unwrap()
}

async fn unsettled(store: &Store) -> Vec<u32> {
    store.list_unsettled(GROUP, 0, 100).await.unwrap().into_iter().map(|(_, r)| r.f_cnt).collect()
}

#[tokio::test]
async fn an_uplink_goes_from_frame_to_settled_once_whatever_is_repeated() {
    let directory = tempfile::tempdir().unwrap();
    let log = Log::start(store(&directory).await);
    log.append(vec![uplink(1, 0), uplink(1, 1), uplink(1, 0)]).await.unwrap();
    log.append(vec![uplink(1, 1)]).await.unwrap();
    let waiting = log.store().list_undecoded(GROUP, 0, 100).await.unwrap();
    assert_eq!(waiting.iter().map(|u| u.uplink.f_cnt).collect::<Vec<_>>(), [0, 1]);
    assert_eq!(log.publish(GROUP, vec![decoded(1, 1), decoded(1, 0), decoded(1, 1)]).await.unwrap(), 2);
    assert_eq!(log.publish(GROUP, vec![decoded(1, 0)]).await.unwrap(), 0, "the first answer for an event stays");
    assert_eq!(unsettled(log.store()).await, [1, 0], "in the order in which they were published");
    let names: Vec<_> = log.store().list_unsettled(GROUP, 0, 1).await.unwrap().iter().map(|(_, r)| r.name()).collect();
    log.settle(names).await.unwrap();
    assert_eq!(unsettled(log.store()).await, [0]);
    assert_eq!(log.store().last_open(GROUP).await.unwrap(), waiting[0].seq);
}

#[tokio::test]
async fn a_tenant_of_another_group_decodes_nothing_here() {
    let directory = tempfile::tempdir().unwrap();
    let log = Log::start(store(&directory).await);
    log.append(vec![uplink(1, 0)]).await.unwrap();
    let stranger = GroupId::from_bytes([8; 16]);
    assert_eq!(log.publish(stranger, vec![decoded(1, 0)]).await.unwrap(), 0);
    assert_eq!(log.store().list_undecoded(GROUP, 0, 10).await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_frame_kept_for_another_node_becomes_deliverable_and_never_the_other_way() {
    let directory = tempfile::tempdir().unwrap();
    let log = Log::start(store(&directory).await);
    let buffered = Uplink { deliver: false, ..uplink(1, 0) };
    log.append(vec![buffered.clone()]).await.unwrap();
    assert!(log.store().list_undecoded(GROUP, 0, 10).await.unwrap().is_empty());
    log.append(vec![Uplink { kind: Kind::Replayed, ..uplink(1, 0) }, buffered]).await.unwrap();
    let waiting = log.store().list_undecoded(GROUP, 0, 10).await.unwrap();
    assert_eq!(waiting.iter().map(|u| u.uplink.kind).collect::<Vec<_>>(), [Kind::Replayed]);
}

#[tokio::test]
async fn what_was_committed_is_there_after_a_restart_and_tells_the_bridge_what_was_served() {
    let directory = tempfile::tempdir().unwrap();
    let log = Log::start(store(&directory).await);
    log.append((0..5).map(|f| uplink(1, f)).collect()).await.unwrap();
    log.publish(GROUP, vec![decoded(1, 2)]).await.unwrap();
    log.store().close().await;
    drop(log);
    let again = store(&directory).await;
    let marks = again.list_marks(GROUP, 0, 10).await.unwrap();
    assert_eq!(
        marks.iter().map(|(_, mark, settled)| (mark.f_cnt, *settled)).collect::<Vec<_>>(),
        [0, 1, 2, 3, 4].map(|n| (n, false))
    );
    assert_eq!(unsettled(&again).await, [2]);
}

#[tokio::test]
async fn open_uplinks_move_to_the_other_node_with_their_readings() {
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let provider = Log::start(store(&here).await);
    provider.append(vec![uplink(1, 0), uplink(1, 1), uplink(2, 0)]).await.unwrap();
    provider.publish(GROUP, vec![decoded(1, 0)]).await.unwrap();
    let open = provider.store().list_open(GROUP, 0, 10).await.unwrap();
    let customer = Log::start(store(&there).await);
    customer.append(vec![uplink(1, 1)]).await.unwrap();
    customer.import(open.into_iter().map(|(stored, decoded)| (stored.uplink, decoded)).collect()).await.unwrap();
    assert_eq!(unsettled(customer.store()).await, [0], "the reading came with its uplink");
    assert_eq!(customer.store().list_undecoded(GROUP, 0, 10).await.unwrap().len(), 2, "the rest is decoded here");
}

fn batch(keypair: &Keypair, group: GroupId, counters: &[u32]) -> Batch {
    let readings: Vec<Reading> = counters
        .iter()
        .map(|f_cnt| Reading {
            event: event(1, *f_cnt),
            group,
            device: device(1),
            session: SESSION,
            f_cnt: *f_cnt,
            heard_at: WallTime(5),
            kind: Kind::Live,
            epoch: Epoch(1),
            decoded: serde_json::value::RawValue::from_string(format!("{{\"generic_1\": {f_cnt}}}")).unwrap(),
        })
        .collect();
    let leaves: Vec<_> = readings.iter().map(|r| leaf(r).unwrap()).collect();
    let proof = BatchProof {
        node: keypair.node_id(),
        group,
        readings: u32::try_from(readings.len()).unwrap(),
        root: hex::encode(proof::root(&leaves)),
        made_at: WallTime(6),
    };
    Batch { proof: Envelope::sign(&proof, keypair), readings }
}

/// As it arrives: through JSON, byte for byte.
fn over_the_wire(batch: &Batch) -> Batch {
    serde_json::from_slice(&serde_json::to_vec(batch).unwrap()).unwrap()
}

#[tokio::test]
async fn the_cloud_keeps_every_reading_once_whoever_brings_it_and_however_often() {
    let directory = tempfile::tempdir().unwrap();
    let inbox = Inbox::start(store(&directory).await, Clock::manual());
    let (rio, patras) = (Keypair::from_secret(&[1; 32]), Keypair::from_secret(&[2; 32]));
    let take = |keypair: Keypair, counters: Vec<u32>| {
        let inbox = inbox.clone();
        async move {
            inbox.accept(keypair.node_id(), |g| g == GROUP, over_the_wire(&batch(&keypair, GROUP, &counters))).await.unwrap().new
        }
    };
    assert_eq!(take(rio.clone(), vec![0, 1]).await, 2);
    assert_eq!(take(rio.clone(), vec![0, 1]).await, 0);
    assert_eq!(take(patras.clone(), vec![1, 2]).await, 1);
    let kept = inbox.list(0, 10).await.unwrap();
    assert_eq!(
        kept.iter().map(|r| (r.reading.f_cnt, r.delivered_by)).collect::<Vec<_>>(),
        [(0, rio.node_id()), (1, rio.node_id()), (2, patras.node_id())]
    );
}

#[tokio::test]
async fn the_cloud_refuses_what_is_forged_changed_or_of_another_group() {
    let directory = tempfile::tempdir().unwrap();
    let inbox = Inbox::start(store(&directory).await, Clock::manual());
    let (rio, stranger) = (Keypair::from_secret(&[1; 32]), Keypair::from_secret(&[9; 32]));
    let of_rio = batch(&rio, GROUP, &[0, 1]);
    let changed = {
        let mut changed = over_the_wire(&of_rio);
        changed.readings[1].decoded = serde_json::value::RawValue::from_string("{\"generic_1\": 99}".to_owned()).unwrap();
        changed
    };
    let shorter = {
        let mut shorter = over_the_wire(&of_rio);
        shorter.readings.pop();
        shorter
    };
    let cases = [
        ("by another node", stranger.node_id(), over_the_wire(&of_rio), "bad-signature"),
        ("a value was changed", rio.node_id(), changed, "invalid-input"),
        ("one is missing", rio.node_id(), shorter, "invalid-input"),
        ("another group", rio.node_id(), batch(&rio, GroupId::from_bytes([8; 16]), &[0]), "forbidden"),
    ];
    for (what, from, batch, problem) in cases {
        let refused = inbox.accept(from, |g| g == GROUP, batch).await.expect_err(what);
        assert_eq!(refused.name(), problem, "{what}");
    }
    assert!(inbox.list(0, 10).await.unwrap().is_empty());
}

const HERE: GroupId = GroupId::from_bytes([1; 16]);
const OWED: GroupId = GroupId::from_bytes([2; 16]);
const HOUR: u64 = 3_600_000;
const LIMITS: Limits = Limits { keep: Millis(HOUR), wait: Millis(10 * HOUR), max: 2_000 };

/// One device in each group.
fn unclaimed_uplink(group: GroupId, f_cnt: u32, heard_at: WallTime) -> Uplink {
    Uplink { heard_at, ..uplinks::uplink(group, device(u64::from(group.as_bytes()[0])), SESSION, f_cnt) }
}

async fn undecoded(store: &Store, group: GroupId) -> Vec<u32> {
    let waiting = store.list_undecoded(group, 0, 100_000).await.unwrap();
    waiting.iter().map(|stored| stored.uplink.f_cnt).collect()
}

async fn give_up_by_and_by(store: Store) {
    let clock = Clock::manual();
    clock.advance(Millis(100 * HOUR));
    let now = clock.wall();
    let log = Log::start(store.clone());
    let destinations = Destinations::default();
    destinations.set(HERE, Destination::Here);
    destinations.set(OWED, Destination::Cloud(NodeId::from_bytes([3; 32])));
    // Five of 11 hours ago, 3,000 of two hours ago, 500 of now.
    let heard_at = |n: u32| match n {
        0..5 => now - Millis(11 * HOUR),
        5..3_005 => now - Millis(2 * HOUR),
        _ => now,
    };
    for group in [HERE, OWED] {
        log.append((0..3_505).map(|n| unclaimed_uplink(group, n, heard_at(n))).collect()).await.unwrap();
    }
    let limits = Limits { max: 10_000, ..LIMITS };
    assert_eq!(give_up(&log, &destinations, &clock, limits).await.unwrap(), 5, "too old");
    store.prune_uplinks(now - LIMITS.keep).await.unwrap();
    assert_eq!(undecoded(&store, HERE).await, (5..3_505).collect::<Vec<_>>());
    assert_eq!(give_up(&log, &destinations, &clock, LIMITS).await.unwrap(), 1_500, "too many");
    store.prune_uplinks(now - LIMITS.keep).await.unwrap();
    assert_eq!(undecoded(&store, HERE).await, (1_505..3_505).collect::<Vec<_>>(), "the oldest went");
    assert_eq!(give_up(&log, &destinations, &clock, LIMITS).await.unwrap(), 0);
    let few = Limits { max: 1, ..LIMITS };
    assert_eq!(give_up(&log, &destinations, &clock, few).await.unwrap(), 1_500);
    store.prune_uplinks(now - LIMITS.keep).await.unwrap();
    assert_eq!(undecoded(&store, HERE).await, (3_005..3_505).collect::<Vec<_>>(), "what is kept anyway stays");
    assert_eq!(log.given_up(), 3_005);
    assert_eq!(undecoded(&store, OWED).await.len(), 3_505, "what is owed to a cloud is never given up");
    let newest: BTreeMap<DevEui, u32> =
        store.list_pruned(HERE).await.unwrap().into_iter().map(|mark| (mark.device, mark.f_cnt)).collect();
    assert_eq!(newest, BTreeMap::from([(DevEui::from_u64(1), 3_004)]), "its counters go on");
}

#[tokio::test]
async fn what_nobody_takes_goes_by_age_and_by_number_oldest_first() {
    give_up_by_and_by(Store::memory(MemoryDisk::default())).await;
    let directory = tempfile::tempdir().unwrap();
    give_up_by_and_by(Store::open(&directory.path().join("node.db")).await.unwrap()).await;
}

#[tokio::test]
async fn a_cloud_that_is_away_holds_up_no_other_groups_readings() {
    let log = Log::start(Store::memory(MemoryDisk::default()));
    let (clock, keypair) = (Clock::system(), Keypair::from_secret(&[1; 32]));
    let destinations = Destinations::default();
    destinations.set(OWED, Destination::Cloud(NodeId::from_bytes([3; 32])));
    // Many batches in front of one reading.
    for (group, count) in [(OWED, 5_000), (HERE, 1)] {
        let uplinks: Vec<_> = (0..count).map(|n| unclaimed_uplink(group, n, WallTime(1))).collect();
        let readings = uplinks.iter().map(|uplink| Decoded { event: uplink.event, decoded: "{}".to_owned() }).collect();
        log.append(uplinks).await.unwrap();
        log.publish(group, readings).await.unwrap();
    }
    let mut settled = log.settled();
    let client = Client::new(Arc::new(Network::new(clock.clone()).join(keypair.node_id())));
    tokio::spawn(north::run(log.clone(), client, destinations.clone(), keypair, clock));
    // Known only when the first has failed already, or not.
    destinations.set(HERE, Destination::Here);
    let names = tokio::time::timeout(Duration::from_secs(10), settled.recv()).await.expect("in time").unwrap();
    assert_eq!(names.iter().map(|name| name.event()).collect::<Vec<_>>(), [unclaimed_uplink(HERE, 0, WallTime(1)).event]);
    assert_eq!(log.store().list_unsettled(OWED, 0, 10_000).await.unwrap().len(), 5_000, "kept");
}
