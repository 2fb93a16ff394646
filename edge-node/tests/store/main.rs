//! One suite for both databases: what each operation does, and that SQLite and memory cannot be told apart. Then the faults of the memory.
#![expect(clippy::unwrap_used, reason = "tests")]

mod faults;
mod fixtures;
mod histories;
#[path = "../common/uplinks.rs"]
mod uplinks;

use contracts::contract::State;
use contracts::envelope::Keypair;
use contracts::ids::{DevEui, Epoch, NodeId};
use contracts::time::WallTime;
use contracts::write_ahead::Bound;
use edge_node::readings::{Kind, Name, StoredUplink, Uplink};
use edge_node::store::{Change, Error, Store, Unaccounted};

use fixtures::{
    KEYS_MAX, Pair, account, agreement, commit, decoded, envelope, group, inbox_batch, name, node_record, reading, receipt,
    uplink,
};
use histories::write_account;

#[tokio::test]
async fn a_buffered_uplink_becomes_deliverable_at_the_end_and_repetitions_only_take_numbers() {
    let pair = Pair::new().await;
    for store in pair.both() {
        let (first, second) = (name(1, 1, 0), name(1, 1, 1));
        let buffered = Uplink { deliver: false, ..uplink(first) };
        commit(store, Change::Append(vec![buffered.clone(), buffered.clone()])).await;
        assert_eq!(commit(store, Change::Publish(group(1), vec![decoded(first, "{}")])).await, 0, "not for this node's tenant");
        let replayed = Uplink { kind: Kind::Replayed, epoch: Epoch(2), heard_at: WallTime(9), ..uplink(first) };
        commit(store, Change::Append(vec![replayed.clone(), buffered, uplink(second)])).await;
        let waiting = store.list_undecoded(group(1), 0, 10).await.unwrap();
        assert_eq!(waiting.iter().map(|w| (w.seq, w.uplink.clone())).collect::<Vec<_>>(), [(3, replayed), (5, uplink(second))]);
        assert_eq!(commit(store, Change::Publish(group(1), vec![decoded(first, "{}"), decoded(first, "[]")])).await, 1);
        let published = store.list_unsettled(group(1), 0, 10).await.unwrap();
        let (place, reading) = &published[0];
        assert_eq!((*place, reading.kind, reading.epoch, reading.decoded.get()), (1, Kind::Replayed, Epoch(2), "{}"));
        assert_eq!(reading.heard_at, WallTime(1_000), "when it was first heard");
    }
}

/// Counters of group 1 that were pruned, which are settled.
async fn pruned(store: &Store) -> Vec<(u32, bool)> {
    store.list_pruned(group(1)).await.unwrap().iter().map(|mark| (mark.f_cnt, true)).collect()
}

/// Counters of group 1, and whether they are settled; by pages of one.
async fn marks(store: &Store) -> Vec<(u32, bool)> {
    let (mut marks, mut after) = (Vec::new(), 0);
    while let [(seq, mark, settled)] = store.list_marks(group(1), after, 1).await.unwrap()[..] {
        marks.push((mark.f_cnt, settled));
        after = seq;
    }
    marks
}

#[tokio::test]
async fn settled_rows_go_by_their_age_and_unsettled_ones_stay() {
    let pair = Pair::new().await;
    for store in pair.both() {
        let names: Vec<_> = (0..4).map(|f_cnt| name(1, 1, f_cnt)).collect();
        let at = |n: usize, deliver| Uplink { heard_at: WallTime(1_000 + n as u64), deliver, ..uplink(names[n]) };
        commit(store, Change::Append(vec![at(0, true), at(1, true), at(2, false), at(3, true)])).await;
        let all = vec![decoded(names[3], "{}"), decoded(names[0], "{}")];
        assert_eq!(commit(store, Change::Publish(group(1), all)).await, 2);
        commit(store, Change::Settle(vec![names[0], names[3], name(1, 3, 9)])).await;
        assert_eq!(store.prune_uplinks(WallTime(1_003)).await.unwrap(), 1, "the settled one before that time");
        let kept = |rows: Vec<StoredUplink>| rows.into_iter().map(|row| row.uplink.f_cnt).collect::<Vec<_>>();
        assert_eq!(kept(store.list_kept(group(1), 0, 10).await.unwrap()), [2]);
        commit(store, Change::Forget(vec![names[1].event(), names[2].event(), names[2].event()])).await;
        assert!(store.list_kept(group(1), 0, 10).await.unwrap().is_empty());
        let served = [pruned(store).await, marks(store).await].concat();
        let settled = served.iter().filter(|(_, settled)| *settled).map(|(f_cnt, _)| *f_cnt).collect::<Vec<_>>();
        assert_eq!(served.iter().map(|(f_cnt, _)| *f_cnt).collect::<Vec<_>>(), [0, 1, 3], "only what is buffered is forgotten");
        assert_eq!(settled, [0, 3], "the highest that was pruned stays known");
        assert_eq!(store.last_open(group(1)).await.unwrap(), 2);
        assert!(store.has_open(group(1), 2).await.unwrap() && !store.has_open(group(1), 1).await.unwrap());
        assert_eq!(store.prune_uplinks(WallTime(1_004)).await.unwrap(), 1);
        let served = [pruned(store).await, marks(store).await].concat();
        assert_eq!(served.iter().map(|(f_cnt, _)| *f_cnt).collect::<Vec<_>>(), [3, 1], "one mark per session");
        store.wipe_uplinks(group(1)).await.unwrap();
        assert_eq!(store.list_open(group(1), 0, 10).await.unwrap().len(), 1, "what the cloud does not have is never wiped");
        assert_eq!((pruned(store).await.len(), marks(store).await.len()), (0, 1), "what was pruned is");
    }
}

#[tokio::test]
async fn what_an_insurer_heard_goes_for_a_receipt_only_or_is_given_up_aloud() {
    let mut pair = Pair::new().await;
    for store in pair.both() {
        let names: Vec<_> = (0..4).map(|f_cnt| name(1, 1, f_cnt)).collect();
        let at = |n: usize, deliver| Uplink { deliver, ..uplink(names[n]) };
        commit(store, Change::Hear(vec![at(0, true), at(1, false), at(2, false)])).await;
        // Not of an insurer: nobody answers for it.
        commit(store, Change::Append(vec![at(3, true)])).await;
        let open = |rows: Vec<(u64, contracts::account::Heard)>| rows.iter().map(|(_, heard)| heard.f_cnt).collect::<Vec<_>>();
        assert_eq!(open(store.list_unreceipted(group(1), 0, 10).await.unwrap()), [0, 1, 2]);
        assert_eq!(store.list_unreceipted_uplinks(group(1), 10).await.unwrap().len(), 3);

        commit(store, Change::Publish(group(1), vec![decoded(names[0], "{}")])).await;
        commit(store, Change::Settle(vec![names[0]])).await;
        assert_eq!(store.prune_uplinks(WallTime(2_000)).await.unwrap(), 0, "no receipt yet");
        store
            .put_receipt(group(1), WallTime(7), &receipt(1, 7, &names[..2]), &[names[0].event(), names[1].event()])
            .await
            .unwrap();
        assert_eq!(open(store.list_unreceipted(group(1), 0, 10).await.unwrap()), [2]);
        assert_eq!(store.list_kept(group(1), 0, 10).await.unwrap().len(), 1, "the buffered copy went with its receipt");
        assert_eq!(store.prune_uplinks(WallTime(2_000)).await.unwrap(), 1);

        // Thrown away at the bound: it is to be said.
        commit(store, Change::Forget(vec![names[1].event(), names[2].event()])).await;
        let said = store.list_unaccounted(group(1), 10).await.unwrap();
        assert_eq!((said.heard.len(), said.dropped.as_slice()), (3, &[names[2].event()][..]));
        assert_eq!(write_account(store, 1, 60_000).await, "Ok(())");
        assert_eq!(store.list_unaccounted(group(1), 10).await.unwrap(), Unaccounted::default());
        let [first] = &store.list_untold_accounts(group(1), 10).await.unwrap()[..] else { panic!("one") };
        assert_eq!((first.number, first.made_at), (1, WallTime(60_000)));
        store.set_account_told(first.id).await.unwrap();

        // Heard again after all: it is answered for again.
        commit(store, Change::Hear(vec![at(2, true)])).await;
        assert_eq!(open(store.list_unreceipted(group(1), 0, 10).await.unwrap()), [2]);
        commit(store, Change::Settle(vec![names[2]])).await;
        store.wipe_uplinks(group(1)).await.unwrap();
        let said = store.list_unaccounted(group(1), 10).await.unwrap();
        assert_eq!((said.heard.len(), said.dropped.as_slice()), (0, &[names[2].event()][..]), "wiped without a receipt");

        let other = account(1, 2, 1, 60_000, &Unaccounted::default());
        assert!(store.put_account(&other, 1).await.unwrap() && store.put_account(&other, 1).await.unwrap());
        assert!(!store.put_account(&account(1, 2, 1, 60_001, &Unaccounted::default()), 1).await.unwrap(), "full");
        assert!(store.put_account(&account(1, 2, 1, 60_001, &Unaccounted::default()), 2).await.unwrap(), "two of one number");
        assert!(store.list_untold_accounts(group(1), 10).await.unwrap().is_empty());
        store.prune_accounts(WallTime(100_000)).await.unwrap();
        assert_eq!(store.list_accounts(group(1), WallTime(0), 10).await.unwrap().len(), 2, "the newest of each node stays");
        assert!(store.list_receipts(group(1), WallTime(0), 10).await.unwrap().is_empty());
    }
    pair.restart().await;
    for store in pair.both() {
        let node = Keypair::from_secret(&[1; 32]).node_id();
        assert_eq!(store.last_account(group(1), node).await.unwrap().unwrap().number, 1);
    }
}

#[tokio::test]
async fn the_inbox_counts_readings_once_and_lists_them_by_device() {
    let pair = Pair::new().await;
    for store in pair.both() {
        let batches = [
            inbox_batch(1, vec![reading(name(1, 1, 0), 1), reading(name(1, 2, 0), 2)]),
            inbox_batch(2, vec![reading(name(1, 1, 0), 3), reading(name(1, 1, 1), 4)]),
        ];
        assert_eq!(store.insert_batches(&batches).await.unwrap(), [2, 1]);
        assert_eq!(store.insert_batches(&batches).await.unwrap(), [0, 0]);
        assert_eq!(store.count_received().await.unwrap(), 3);
        let of_device = store.list_received(0, Some(DevEui::from_u64(1)), 10).await.unwrap();
        let found: Vec<_> = of_device.iter().map(|r| (r.seq, r.delivered_by, r.received_at)).collect();
        let node = |n| NodeId::from_bytes([n; 32]);
        assert_eq!(found, [(1, node(1), WallTime(5_001)), (4, node(2), WallTime(5_002))]);
    }
}

#[tokio::test]
async fn small_tables_keep_the_newest_and_refuse_what_is_stale_or_too_much() {
    let pair = Pair::new().await;
    for store in pair.both() {
        assert!(store.put_agreement(&agreement(1, State::Proposed, 0)).await.unwrap());
        assert!(!store.put_agreement(&agreement(1, State::Agreed, 0)).await.unwrap(), "somebody was faster");
        assert!(store.put_agreement(&agreement(1, State::Agreed, 1)).await.unwrap());
        assert_eq!(store.list_agreements().await.unwrap(), [agreement(1, State::Agreed, 2)]);

        for (epoch, signer) in [(5, 1), (4, 2), (5, 3)] {
            store.put_record(&node_record(7, epoch), &envelope(signer)).await.unwrap();
        }
        assert_eq!(store.list_records().await.unwrap(), [envelope(3)], "of two with the same epoch the later one");

        let Name { device, session, .. } = name(1, 1, 0);
        let bound = |upto| Bound { device, session, upto };
        store.raise_reserved(group(1), &[bound(16), bound(48), bound(32)]).await.unwrap();
        store.raise_reserved(group(1), &[bound(8)]).await.unwrap();
        assert_eq!(store.list_reserved(group(1)).await.unwrap().upto(device, session), Some(48));
        assert!(store.list_reserved(group(2)).await.unwrap().is_empty());

        for (key, fits) in [("a", true), ("b", true), ("c", false), ("a", true)] {
            assert_eq!(store.put_tenant_value(group(1), key, key.as_bytes(), KEYS_MAX).await.unwrap(), fits, "{key}");
        }
        assert!(store.put_tenant_value(group(2), "c", b"", KEYS_MAX).await.unwrap(), "each tenant has its own limit");
        store.wipe_tenant(group(1)).await.unwrap();
        assert_eq!(store.get_tenant_value(group(1), "a").await.unwrap(), None);
        assert_eq!(store.get_tenant_value(group(2), "c").await.unwrap().as_deref(), Some(b"".as_slice()));

        store.close().await;
        assert!(matches!(store.ping().await, Err(Error::Closed)));
        assert!(matches!(store.wipe_tenant(group(2)).await, Err(Error::Closed)));
    }
}
