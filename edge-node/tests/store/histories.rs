//! Random histories of operations, on both databases.

use contracts::contract::State;
use contracts::envelope::Keypair;
use contracts::ids::{DevEui, Epoch};
use contracts::time::WallTime;
use contracts::write_ahead::Bound;
use edge_node::readings::{Kind, Name, Uplink};
use edge_node::store::{AgreementRow, Change, InboxBatch, Store, Unaccounted};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use crate::fixtures::{
    KEYS_MAX, Pair, account, agreement, decoded, envelope, group, inbox_batch, name, node_record, reading, receipt, uplink,
};

/// Random histories, and operations in one of them at most.
const HISTORIES: (u32, usize) = (40, 24);

#[derive(Debug, Clone)]
pub enum Op {
    Commit(Vec<Change>),
    Prune(u64),
    WipeUplinks(u8),
    Insert(Vec<InboxBatch>),
    Receive(u8, u64, Vec<Name>),
    WriteAccount(u8, u64),
    TakeAccount(u8, u8, u64),
    Told(u8),
    PruneAccounts(u64),
    PutAgreement(AgreementRow),
    PutRecord(u8, u64),
    Raise(u8, Vec<Bound>),
    PutValue(u8, &'static str, Vec<u8>),
    WipeTenant(u8),
    Restart,
}
/// The next account of node 1 over what it has not said, as a node does it.
pub async fn write_account(store: &Store, of: u8, at: u64) -> String {
    let said = store.list_unaccounted(group(of), 3).await.unwrap();
    let node = Keypair::from_secret(&[1; 32]).node_id();
    let number = store.last_account(group(of), node).await.unwrap().map_or(1, |last| last.number + 1);
    format!("{:?}", store.put_own_account(&account(of, 1, number, at, &said), &said).await)
}

/// Does it and says what came of it.
pub async fn apply(store: &Store, op: &Op) -> String {
    match op {
        Op::Commit(changes) => {
            let counts = store.commit(changes).await;
            store.sync().await.unwrap();
            format!("{counts:?}")
        }
        Op::Prune(before) => format!("{:?}", store.prune_uplinks(WallTime(*before)).await),
        Op::WipeUplinks(of) => format!("{:?}", store.wipe_uplinks(group(*of)).await),
        Op::Receive(of, at, names) => {
            let events: Vec<_> = names.iter().map(Name::event).collect();
            let receipt = receipt(*of, *at, names);
            format!("{:?}", store.put_receipt(group(*of), WallTime(*at), &receipt, &events).await)
        }
        Op::WriteAccount(of, at) => write_account(store, *of, *at).await,
        Op::TakeAccount(of, node, number) => {
            let row = account(*of, *node, *number, 1_000 + *number, &Unaccounted::default());
            format!("{:?}", store.put_account(&row, 3).await)
        }
        Op::Told(of) => match store.list_untold_accounts(group(*of), 1).await.unwrap().first() {
            Some(row) => format!("{:?}", store.set_account_told(row.id).await),
            None => String::new(),
        },
        Op::PruneAccounts(before) => format!("{:?}", store.prune_accounts(WallTime(*before)).await),
        Op::Insert(batches) => format!("{:?}", store.insert_batches(batches).await),
        Op::PutAgreement(row) => format!("{:?}", store.put_agreement(row).await),
        Op::PutRecord(n, epoch) => {
            let signer = u8::try_from(*epoch % 3).unwrap() + 1;
            format!("{:?}", store.put_record(&node_record(*n, *epoch), &envelope(signer)).await)
        }
        Op::Raise(of, bounds) => format!("{:?}", store.raise_reserved(group(*of), bounds).await),
        Op::PutValue(of, key, value) => format!("{:?}", store.put_tenant_value(group(*of), key, value, KEYS_MAX).await),
        Op::WipeTenant(of) => format!("{:?}", store.wipe_tenant(group(*of)).await),
        Op::Restart => String::new(),
    }
}

/// Everything that can be read, by every method.
pub async fn read_all(store: &Store) -> Vec<String> {
    let mut all = vec![
        format!("ping {:?}", store.ping().await),
        format!("waiting {:?}", store.count_waiting().await),
        format!("agreements {:?}", store.list_agreements().await),
        format!("records {:?}", store.list_records().await),
        format!("received {:?}", store.count_received().await),
    ];
    for (after, limit) in [(0, 100), (2, 2), (0, 0), (u64::MAX, 1)] {
        for device in [None, Some(DevEui::from_u64(1)), Some(DevEui::from_u64(2))] {
            all.push(format!("inbox {after} {limit} {device:?} {:?}", store.list_received(after, device, limit).await));
        }
        for of in [group(1), group(2)] {
            all.push(format!("unsettled {of} {after} {limit} {:?}", store.list_unsettled(of, after, limit).await));
            all.push(format!("undecoded {of} {after} {limit} {:?}", store.list_undecoded(of, after, limit).await));
            all.push(format!("kept {of} {after} {limit} {:?}", store.list_kept(of, after, limit).await));
            all.push(format!("unreceipted {of} {after} {limit} {:?}", store.list_unreceipted(of, after, limit).await));
            all.push(format!("open {of} {after} {limit} {:?}", store.list_open(of, after, limit).await));
        }
    }
    for of in [group(1), group(2)] {
        all.push(format!("marks {of} {:?} {:?}", store.list_marks(of, 0, 100).await, store.list_marks(of, 1, 2).await));
        all.push(format!("pruned {of} {:?}", store.list_pruned(of).await));
        all.push(format!("delivered since {of} {:?}", store.list_delivered_since(of, WallTime(1_002), 1, 3).await));
        all.push(format!("last open {of} {:?}", store.last_open(of).await));
        all.push(format!("reserved {of} {:?}", store.list_reserved(of).await));
        let every_name = (1..=3).flat_map(|device| (0..4).map(move |f_cnt| name(1, device, f_cnt).event())).collect::<Vec<_>>();
        all.push(format!("found {of} {:?}", store.find_received(of, &every_name).await));
        for (since, limit) in [(0, 100), (1_002, 2), (u64::MAX, 1)] {
            all.push(format!("accounts {of} {since} {limit} {:?}", store.list_accounts(of, WallTime(since), limit).await));
            all.push(format!("receipts {of} {since} {limit} {:?}", store.list_receipts(of, WallTime(since), limit).await));
            all.push(format!("untold {of} {limit} {:?}", store.list_untold_accounts(of, limit).await));
            all.push(format!("unaccounted {of} {limit} {:?}", store.list_unaccounted(of, limit).await));
            all.push(format!("shown {of} {limit} {:?}", store.list_unreceipted_uplinks(of, limit).await));
        }
        for node in [1, 2] {
            let node = Keypair::from_secret(&[node; 32]).node_id();
            all.push(format!("last account {of} {:?}", store.last_account(of, node).await));
        }
        for upto in [0, 3, u64::MAX] {
            all.push(format!("has open {of} {upto} {:?}", store.has_open(of, upto).await));
        }
        for since in [0, 1_002, u64::MAX] {
            all.push(format!("traffic {of} {since} {:?}", store.traffic_bytes(of, WallTime(since)).await));
        }
        for key in ["a", "b", "ü", ""] {
            all.push(format!("value {of} {key} {:?}", store.get_tenant_value(of, key).await));
        }
    }
    all
}

fn any_name() -> impl Strategy<Value = Name> {
    (1..=2_u8, 1..=3_u8, 0..4_u32).prop_map(|(of, device, f_cnt)| name(of, device, f_cnt))
}

fn any_uplink() -> impl Strategy<Value = Uplink> {
    let kind = prop_oneof![Just(Kind::Live), Just(Kind::Late), Just(Kind::Replayed)];
    let heard_at = prop_oneof![9 => 1_000..1_005_u64, 1 => Just(u64::MAX)];
    (any_name(), kind, heard_at, 1..3_u64, any::<bool>()).prop_map(|(name, kind, heard_at, epoch, deliver)| Uplink {
        kind,
        heard_at: WallTime(heard_at),
        epoch: Epoch(if heard_at == u64::MAX { heard_at } else { epoch }),
        deliver,
        ..uplink(name)
    })
}

/// What tenants send; the last ones cannot be read back.
fn any_value() -> impl Strategy<Value = &'static str> {
    prop_oneof![9 => Just("{\"v\": 1}"), 9 => Just(" {\"t\":\"µ°\"} "), 1 => Just("[1, 2"), 1 => Just("a\0b")]
}

fn any_change() -> impl Strategy<Value = Change> {
    let answer = (any_name(), any_value()).prop_map(|(name, value)| decoded(name, value));
    let import = (any_uplink(), proptest::option::of(any_value().prop_map(str::to_owned)));
    prop_oneof![
        2 => proptest::collection::vec(any_uplink(), 0..4).prop_map(Change::Append),
        2 => proptest::collection::vec(any_uplink(), 0..4).prop_map(Change::Hear),
        3 => (1..=2_u8, proptest::collection::vec(answer, 0..4)).prop_map(|(of, answers)| Change::Publish(group(of), answers)),
        2 => proptest::collection::vec(any_name(), 0..3).prop_map(Change::Settle),
        1 => proptest::collection::vec(any_name(), 0..3).prop_map(|names| Change::Forget(names.iter().map(Name::event).collect())),
        1 => proptest::collection::vec(import, 0..3).prop_map(Change::Import),
    ]
}

fn any_op() -> impl Strategy<Value = Op> {
    let readings = (any_name(), prop_oneof![4 => 1..9_u64, 1 => Just(u64::MAX)]).prop_map(|(name, at)| reading(name, at));
    let batch = (1..4_u8, proptest::collection::vec(readings, 0..4)).prop_map(|(from, readings)| inbox_batch(from, readings));
    let state = prop_oneof![Just(State::Proposed), Just(State::TakenOver { epoch: Epoch(4), activations: 1 })];
    let row = (1..4_u8, state, 0..3_u64).prop_map(|(n, state, version)| agreement(n, state, version));
    let bound = (any_name(), prop_oneof![0..99_u32, Just(u32::MAX)]);
    let bound = bound.prop_map(|(name, upto)| Bound { device: name.device, session: name.session, upto });
    let key = prop_oneof![Just("a"), Just("b"), Just("ü"), Just("")];
    let value = proptest::collection::vec(any::<u8>(), 0..4);
    prop_oneof![
        12 => proptest::collection::vec(any_change(), 0..4).prop_map(Op::Commit),
        2 => prop_oneof![1_000..1_006_u64, Just(u64::MAX)].prop_map(Op::Prune),
        1 => (1..=2_u8).prop_map(Op::WipeUplinks),
        4 => proptest::collection::vec(batch, 0..3).prop_map(Op::Insert),
        3 => row.prop_map(Op::PutAgreement),
        2 => (1..4_u8, prop_oneof![0..5_u64, Just(u64::MAX)]).prop_map(|(n, epoch)| Op::PutRecord(n, epoch)),
        2 => (1..=2_u8, proptest::collection::vec(bound, 0..5)).prop_map(|(of, bounds)| Op::Raise(of, bounds)),
        3 => (1..=2_u8, key, value).prop_map(|(of, key, value)| Op::PutValue(of, key, value)),
        2 => prop_oneof![(1..=2_u8).prop_map(Op::WipeTenant), Just(Op::Restart)],
        6 => any_account_op(),
    ]
}

fn any_account_op() -> impl Strategy<Value = Op> {
    let names = proptest::collection::vec(any_name(), 1..4);
    prop_oneof![
        3 => (1..=2_u8, 1_000..1_004_u64, names).prop_map(|(of, at, names)| Op::Receive(of, at, names)),
        3 => (1..=2_u8, 1_000..1_004_u64).prop_map(|(of, at)| Op::WriteAccount(of, at)),
        2 => (1..=2_u8, 1..=2_u8, 1..5_u64).prop_map(|(of, node, number)| Op::TakeAccount(of, node, number)),
        1 => (1..=2_u8).prop_map(Op::Told),
        1 => (1_000..1_004_u64).prop_map(Op::PruneAccounts),
    ]
}

async fn compare(ops: &[Op]) -> Result<(), TestCaseError> {
    let mut pair = Pair::new().await;
    for (at, op) in ops.iter().enumerate() {
        let [sqlite, memory] = [apply(&pair.sqlite, op).await, apply(&pair.memory, op).await];
        prop_assert_eq!(sqlite, memory, "SQLite and memory answer differently to operation {}: {:?}", at, op);
        if matches!(op, Op::Restart) {
            pair.restart().await;
        }
        for (sqlite, memory) in read_all(&pair.sqlite).await.iter().zip(read_all(&pair.memory).await) {
            prop_assert_eq!(sqlite, &memory, "SQLite and memory differ after operation {}: {:?}", at, op);
        }
    }
    pair.sqlite.close().await;
    Ok(())
}

#[test]
fn random_histories_leave_the_same_in_both() {
    let seed: u64 = std::env::var("STORE_SEED").ok().map_or(1, |seed| seed.parse().expect("STORE_SEED is a number"));
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let config = Config { cases: HISTORIES.0, failure_persistence: None, max_shrink_iters: 300, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let histories = proptest::collection::vec(any_op(), 1..HISTORIES.1);
    if let Err(error) = runner.run(&histories, |ops| runtime.block_on(compare(&ops))) {
        panic!("replay with STORE_SEED={seed}\n{error}");
    }
}
