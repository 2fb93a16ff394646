//! The faults of the memory: processes that die at a write, slow disks, full ones.

use contracts::contract::State;
use contracts::write_ahead::Bound;
use edge_node::readings::{Name, Uplink};
use edge_node::store::{Change, FailPoint, MemoryDisk, Store};
use futures_util::poll;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::fixtures::{KEYS_MAX, agreement, commit, decoded, group, inbox_batch, name, reading, uplink};
use crate::histories::{Op, apply, read_all};

/// Writes of every kind, in an order in which each leaves its mark.
fn script() -> Vec<Op> {
    let (first, second) = (name(1, 1, 0), name(1, 1, 1));
    let Name { device, session, .. } = first;
    vec![
        Op::Commit(vec![
            Change::Append(vec![uplink(first), uplink(second)]),
            Change::Publish(group(1), vec![decoded(first, "{}")]),
        ]),
        Op::Insert(vec![inbox_batch(1, vec![reading(first, 1)]), inbox_batch(2, vec![reading(second, 2)])]),
        Op::PutAgreement(agreement(1, State::Proposed, 0)),
        Op::PutRecord(7, 5),
        Op::Raise(1, vec![Bound { device, session, upto: 16 }]),
        Op::PutValue(1, "a", vec![1]),
        Op::WipeTenant(1),
        Op::Commit(vec![Change::Settle(vec![first]), Change::Publish(group(1), vec![decoded(second, "{}")])]),
        Op::Prune(9_999),
        Op::Commit(vec![Change::Settle(vec![second])]),
        Op::WipeUplinks(1),
    ]
}

#[tokio::test]
async fn a_process_that_dies_at_a_write_leaves_all_of_it_or_nothing_and_never_writes_again() {
    let script = script();
    let healthy = MemoryDisk::new();
    let mut states = vec![read_all(&Store::memory(healthy.clone())).await];
    for op in &script {
        apply(&Store::memory(healthy.clone()), op).await;
        states.push(read_all(&Store::memory(healthy.clone())).await);
    }
    assert_eq!(healthy.writes(), script.len() as u64);
    assert!(states.windows(2).all(|pair| pair[0] != pair[1]), "every write can be seen");
    for n in 1..=script.len() {
        // Readings and settlements alone are not on the disk before the next sync.
        let is_synced = match &script[n - 1] {
            Op::Commit(changes) => changes.iter().any(Change::must_be_synced),
            _ => true,
        };
        let points = [(FailPoint::Before(n as u64), n - 1, n - 1), (FailPoint::After(n as u64), n, n - usize::from(!is_synced))];
        for (point, written, kept) in points {
            let (disk, deaths) = (MemoryDisk::new(), Arc::new(AtomicU64::new(0)));
            let store = Store::memory(disk.clone());
            let counter = Arc::clone(&deaths);
            disk.crash_at(
                point,
                Arc::new(move || {
                    counter.fetch_add(1, Ordering::Relaxed);
                }),
            );
            for op in &script[..n - 1] {
                apply(&store, op).await;
            }
            assert!(poll!(std::pin::pin!(apply(&store, &script[n - 1]))).is_pending(), "{point:?}: nobody is told");
            assert_eq!((deaths.load(Ordering::Relaxed), disk.writes()), (1, written as u64), "{point:?}");
            assert!(poll!(std::pin::pin!(apply(&store, &script[0]))).is_pending(), "{point:?}: a dead process writes nothing");
            assert!(poll!(std::pin::pin!(store.ping())).is_pending(), "{point:?}: a dead process reads nothing");
            let again = Store::memory(disk.clone());
            assert_eq!(read_all(&again).await, states[kept], "{point:?}");
            for op in &script[kept..] {
                apply(&again, op).await;
            }
            assert_eq!(&read_all(&again).await, states.last().unwrap(), "{point:?}: the next process goes on");
            assert_eq!(deaths.load(Ordering::Relaxed), 1, "{point:?}: once");
        }
    }
}

#[tokio::test]
async fn a_write_takes_its_time_and_is_nothing_if_it_is_dropped_or_the_process_dies_meanwhile() {
    let disk = MemoryDisk::new();
    let store = Store::memory(disk.clone());
    disk.set_latency(Duration::from_secs(3_600));
    assert!(poll!(std::pin::pin!(store.put_tenant_value(group(1), "a", b"1", KEYS_MAX))).is_pending());
    assert_eq!((disk.writes(), store.get_tenant_value(group(1), "a").await.unwrap()), (0, None), "dropped: nothing is written");

    disk.set_latency(Duration::from_millis(20));
    let started = tokio::time::Instant::now();
    assert!(store.put_tenant_value(group(1), "a", b"1", KEYS_MAX).await.unwrap());
    assert!(started.elapsed() >= Duration::from_millis(20));
    assert_eq!(disk.writes(), 1);

    let mut dying = std::pin::pin!(store.put_tenant_value(group(1), "b", b"2", KEYS_MAX));
    assert!(poll!(dying.as_mut()).is_pending());
    disk.crash();
    let outlived = tokio::time::timeout(Duration::from_millis(60), dying).await;
    assert!(outlived.is_err(), "it never returns");
    let again = Store::memory(disk.clone());
    assert_eq!((disk.writes(), again.get_tenant_value(group(1), "b").await.unwrap()), (1, None));
}

#[tokio::test]
async fn a_power_cut_takes_what_was_decoded_and_settled_since_the_last_sync_and_nothing_else() {
    let disk = MemoryDisk::new();
    let store = Store::memory(disk.clone());
    let names = [name(1, 1, 0), name(1, 1, 1), name(1, 1, 2)];
    let publish = |n: usize| Change::Publish(group(1), vec![decoded(names[n], "{}")]);
    store.commit(&[Change::Append(vec![uplink(names[0])])]).await.unwrap();
    store.commit(&[publish(0)]).await.unwrap();
    // With this the disk has all that was before it.
    store.commit(&[Change::Append(names[1..].iter().copied().map(uplink).collect())]).await.unwrap();
    store.commit(&[publish(1), Change::Settle(vec![names[0]])]).await.unwrap();
    let unsettled = async |store: &Store| -> Vec<u32> {
        store.list_unsettled(group(1), 0, 10).await.unwrap().into_iter().map(|(_, reading)| reading.f_cnt).collect()
    };
    assert_eq!(unsettled(&store).await, [1]);
    disk.crash();
    let again = Store::memory(disk.clone());
    assert_eq!(unsettled(&again).await, [0], "settled again later, decoded again later");
    let waiting: Vec<u32> =
        again.list_undecoded(group(1), 0, 10).await.unwrap().into_iter().map(|stored| stored.uplink.f_cnt).collect();
    assert_eq!(waiting, [1, 2]);
    again.commit(&[publish(1), Change::Settle(vec![names[0]])]).await.unwrap();
    again.sync().await.unwrap();
    disk.crash();
    assert_eq!(unsettled(&Store::memory(disk)).await, [1]);
}

#[tokio::test]
async fn a_tenant_sees_only_uplinks_that_are_on_the_disk() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(&directory.path().join("node.db")).await.unwrap();
    let numbers = async |all: bool| -> Vec<u32> {
        let page = if all { store.list_delivered(group(1), 0, 10).await } else { store.list_undecoded(group(1), 0, 10).await };
        page.unwrap().into_iter().map(|stored| stored.uplink.f_cnt).collect()
    };
    store.commit(&[Change::Append(vec![uplink(name(1, 1, 0))])]).await.unwrap();
    assert_eq!((numbers(false).await, numbers(true).await), (vec![], vec![]), "committed, not synced");
    store.sync().await.unwrap();
    assert_eq!((numbers(false).await, numbers(true).await), (vec![0], vec![0]));
    let buffered = Uplink { deliver: false, ..uplink(name(1, 1, 1)) };
    commit(&store, Change::Append(vec![buffered])).await;
    store.commit(&[Change::Append(vec![uplink(name(1, 1, 1))])]).await.unwrap();
    assert_eq!(numbers(false).await, [0]);
    // Whoever acts on what he reads waits for the disk.
    assert_eq!(store.last_open(group(1)).await.unwrap(), 3);
    assert_eq!(numbers(false).await, [0, 1]);
}

#[tokio::test]
async fn a_full_disk_refuses_writes_whole_and_still_reads() {
    let disk = MemoryDisk::new();
    let store = Store::memory(disk.clone());
    let changes = [Change::Append(vec![uplink(name(1, 1, 0))]), Change::Append(vec![uplink(name(1, 1, 1))])];
    store.commit(&changes[..1]).await.unwrap();
    disk.set_full(true);
    let before = read_all(&store).await;
    for op in &script() {
        assert!(apply(&store, op).await.contains("Err(Full)"), "{op:?}");
    }
    assert_eq!((read_all(&store).await, disk.writes()), (before, 1));
    disk.set_full(false);
    store.commit(&changes).await.unwrap();
    assert_eq!(store.list_undecoded(group(1), 0, 10).await.unwrap().len(), 2);
}

#[tokio::test]
async fn a_fail_point_can_be_taken_back() {
    let disk = MemoryDisk::new();
    let store = Store::memory(disk.clone());
    disk.crash_at(FailPoint::Before(1), Arc::new(|| panic!("it was taken back")));
    disk.cancel_crash();
    store.wipe_tenant(group(1)).await.unwrap();
    assert_eq!(disk.writes(), 1);
}
