//! One suite for both databases: what each operation does, and that SQLite and memory cannot be told apart. Then the faults of the memory.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use contracts::account::{Account, Receipt};
use contracts::contract::State;
use contracts::envelope::{Envelope, Keypair};
use contracts::ids::{ContractId, DevAddr, DevEui, Epoch, GroupId, NodeId, OwnerId, SessionId, StatementId};
use contracts::node_record::{NodeRecord, Role, SealingKey};
use contracts::proof::BatchProof;
use contracts::time::WallTime;
use contracts::write_ahead::Bound;
use edge_node::readings::{Decoded, Kind, Name, Reading, Reception, StoredUplink, Uplink};
use edge_node::store::{AccountRow, AgreementRow, Change, Error, FailPoint, InboxBatch, MemoryDisk, Store, Unaccounted};
use futures_util::poll;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

/// Random histories, and operations in one of them at most.
const HISTORIES: (u32, usize) = (40, 24);
const KEYS_MAX: u32 = 2;

const fn group(n: u8) -> GroupId {
    GroupId::from_bytes([n; 16])
}

fn name(group_number: u8, device: u8, f_cnt: u32) -> Name {
    let session = SessionId::from_bytes([device / 2; 8]);
    Name { group: group(group_number), device: DevEui::from_u64(device.into()), session, f_cnt }
}

fn uplink(name: Name) -> Uplink {
    Uplink {
        event: name.event(),
        group: name.group,
        device: name.device,
        dev_addr: DevAddr::from_u32(1),
        session: name.session,
        f_cnt: name.f_cnt,
        f_port: Some(1),
        confirmed: false,
        frm_payload: "00".to_owned(),
        phy: "40".to_owned(),
        heard_at: WallTime(1_000),
        kind: Kind::Live,
        epoch: Epoch(1),
        deliver: true,
        rx: Reception {
            gateway: "µ".to_owned(),
            tmst: 0,
            frequency_hz: 868_100_000,
            data_rate: "SF7BW125".to_owned(),
            rssi_dbm: -80,
            snr_tenth_db: 70,
        },
        joined: None,
        others: Vec::new(),
    }
}

fn decoded(name: Name, value: &str) -> Decoded {
    Decoded { event: name.event(), decoded: value.to_owned() }
}

fn envelope(n: u8) -> Envelope {
    let keypair = Keypair::from_secret(&[n; 32]);
    let (node, root) = (keypair.node_id(), String::new());
    Envelope::sign(&BatchProof { node, group: group(1), readings: 1, root, made_at: WallTime(1) }, &keypair)
}

fn node_record(n: u8, record_epoch: u64) -> NodeRecord {
    NodeRecord {
        node: NodeId::from_bytes([n; 32]),
        owner: OwnerId::from_bytes([1; 32]),
        name: "rio".to_owned(),
        role: Role::Edge,
        addresses: Vec::new(),
        sealing_key: SealingKey([9; 32]),
        position: None,
        record_epoch,
    }
}

fn agreement(n: u8, state: State, version: u64) -> AgreementRow {
    AgreementRow { contract: ContractId::from_bytes([n; 32]), envelope: envelope(n), state, version, wiped: n == 2 }
}

fn reading(name: Name, heard_at: u64) -> Reading {
    Reading {
        event: name.event(),
        group: name.group,
        device: name.device,
        session: name.session,
        f_cnt: name.f_cnt,
        heard_at: WallTime(heard_at),
        kind: Kind::Late,
        epoch: Epoch(heard_at),
        decoded: serde_json::value::RawValue::from_string(format!("{{\"v\": {heard_at}}}")).unwrap(),
    }
}

fn inbox_batch(from: u8, readings: Vec<Reading>) -> InboxBatch {
    let proof_id = StatementId::from_bytes([from; 32]);
    InboxBatch {
        from: NodeId::from_bytes([from; 32]),
        received_at: WallTime(5_000 + u64::from(from)),
        proof_id,
        proof: envelope(from),
        readings,
    }
}

/// The same node on both.
struct Pair {
    sqlite: Store,
    memory: Store,
    disk: MemoryDisk,
    directory: tempfile::TempDir,
}

impl Pair {
    async fn new() -> Self {
        let (directory, disk) = (tempfile::tempdir().unwrap(), MemoryDisk::new());
        let sqlite = Store::open(&directory.path().join("node.db")).await.unwrap();
        Self { sqlite, memory: Store::memory(disk.clone()), disk, directory }
    }

    async fn restart(&mut self) {
        self.sqlite.close().await;
        self.sqlite = Store::open(&self.directory.path().join("node.db")).await.unwrap();
        self.memory = Store::memory(self.disk.clone());
    }

    fn both(&self) -> [&Store; 2] {
        [&self.sqlite, &self.memory]
    }
}

#[derive(Debug, Clone)]
enum Op {
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

fn receipt(of: u8, at: u64, names: &[Name]) -> Envelope {
    let store = Keypair::from_secret(&[4; 32]);
    let events = names.iter().map(Name::event).collect();
    Envelope::sign(&Receipt { store: store.node_id(), group: group(of), events, at: WallTime(at) }, &store)
}

fn account(of: u8, node: u8, number: u64, at: u64, said: &Unaccounted) -> AccountRow {
    let keypair = Keypair::from_secret(&[node; 32]);
    let account = Account {
        group: group(of),
        node: keypair.node_id(),
        number,
        previous: (number > 1).then(|| StatementId::from_bytes([9; 32])),
        at: WallTime(at),
        heard: said.heard.clone(),
        dropped: said.dropped.clone(),
    };
    let envelope = Envelope::sign(&account, &keypair);
    let Account { group, node, number, at: made_at, .. } = account;
    AccountRow { id: envelope.id(), group, node, number, made_at, envelope }
}

/// The next account of node 1 over what it has not said, as a node does it.
async fn write_account(store: &Store, of: u8, at: u64) -> String {
    let said = store.list_unaccounted(group(of), 3).await.unwrap();
    let node = Keypair::from_secret(&[1; 32]).node_id();
    let number = store.last_account(group(of), node).await.unwrap().map_or(1, |last| last.number + 1);
    format!("{:?}", store.put_own_account(&account(of, 1, number, at, &said), &said).await)
}

/// Does it and says what came of it.
async fn apply(store: &Store, op: &Op) -> String {
    match op {
        Op::Commit(changes) => format!("{:?}", store.commit(changes).await),
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
async fn read_all(store: &Store) -> Vec<String> {
    let mut all = vec![
        format!("ping {:?}", store.ping().await),
        format!("waiting {:?}", store.count_waiting().await),
        format!("agreements {:?}", store.list_agreements().await),
        format!("records {:?}", store.list_records().await),
        format!("received {:?}", store.count_received().await),
    ];
    for (after, limit) in [(0, 100), (2, 2), (0, 0), (u64::MAX, 1)] {
        all.push(format!("unsettled {after} {limit} {:?}", store.list_unsettled(after, limit).await));
        for device in [None, Some(DevEui::from_u64(1)), Some(DevEui::from_u64(2))] {
            all.push(format!("inbox {after} {limit} {device:?} {:?}", store.list_received(after, device, limit).await));
        }
        for of in [group(1), group(2)] {
            all.push(format!("undecoded {of} {after} {limit} {:?}", store.list_undecoded(of, after, limit).await));
            all.push(format!("kept {of} {after} {limit} {:?}", store.list_kept(of, after, limit).await));
            all.push(format!("unreceipted {of} {after} {limit} {:?}", store.list_unreceipted(of, after, limit).await));
            all.push(format!("open {of} {after} {limit} {:?}", store.list_open(of, after, limit).await));
        }
    }
    for of in [group(1), group(2)] {
        all.push(format!("marks {of} {:?}", store.list_marks(of).await));
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

async fn commit(store: &Store, change: Change) -> u64 {
    store.commit(&[change]).await.unwrap()[0]
}

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
        let published = store.list_unsettled(0, 10).await.unwrap();
        let (place, reading) = &published[0];
        assert_eq!((*place, reading.kind, reading.epoch, reading.decoded.get()), (1, Kind::Replayed, Epoch(2), "{}"));
        assert_eq!(reading.heard_at, WallTime(1_000), "when it was first heard");
    }
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
        let (served, settled) = store.list_marks(group(1)).await.unwrap();
        assert_eq!(served.iter().map(|m| m.f_cnt).collect::<Vec<_>>(), [0, 1, 3], "only what is buffered is forgotten");
        assert_eq!(settled.iter().map(|m| m.f_cnt).collect::<Vec<_>>(), [0, 3], "the highest that was pruned stays known");
        assert_eq!(store.last_open(group(1)).await.unwrap(), 2);
        assert!(store.has_open(group(1), 2).await.unwrap() && !store.has_open(group(1), 1).await.unwrap());
        assert_eq!(store.prune_uplinks(WallTime(1_004)).await.unwrap(), 1);
        let (served, _) = store.list_marks(group(1)).await.unwrap();
        assert_eq!(served.iter().map(|m| m.f_cnt).collect::<Vec<_>>(), [3, 1], "one mark per session");
        store.wipe_uplinks(group(1)).await.unwrap();
        assert_eq!(store.list_open(group(1), 0, 10).await.unwrap().len(), 1, "what the cloud does not have is never wiped");
        assert_eq!(store.list_marks(group(1)).await.unwrap().0.len(), 1, "what was pruned is");
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
        for (point, kept) in [(FailPoint::Before(n as u64), n - 1), (FailPoint::After(n as u64), n)] {
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
            assert_eq!((deaths.load(Ordering::Relaxed), disk.writes()), (1, kept as u64), "{point:?}");
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
