//! What is written to the databases, and the same node on both.

use contracts::account::{Account, Receipt};
use contracts::contract::State;
use contracts::envelope::{Envelope, Keypair};
use contracts::ids::{ContractId, DevEui, Epoch, GroupId, NodeId, OwnerId, SessionId, StatementId};
use contracts::node_record::{NodeRecord, Role, SealingKey};
use contracts::proof::BatchProof;
use contracts::time::WallTime;
use edge_node::readings::{Decoded, Kind, Name, Reading, Reception, Uplink};
use edge_node::store::{AccountRow, AgreementRow, Change, InboxBatch, MemoryDisk, Store, Unaccounted};

use crate::uplinks;

/// Keys of one tenant at most.
pub const KEYS_MAX: u32 = 2;

pub const fn group(n: u8) -> GroupId {
    GroupId::from_bytes([n; 16])
}

pub fn name(group_number: u8, device: u8, f_cnt: u32) -> Name {
    let session = SessionId::from_bytes([device / 2; 8]);
    Name { group: group(group_number), device: DevEui::from_u64(device.into()), session, f_cnt }
}

pub fn uplink(name: Name) -> Uplink {
    let rx = Reception { gateway: "µ".to_owned(), ..uplinks::reception() };
    Uplink { rx, ..uplinks::uplink(name.group, name.device, name.session, name.f_cnt) }
}

pub fn decoded(name: Name, value: &str) -> Decoded {
    Decoded { event: name.event(), decoded: value.to_owned() }
}

pub fn envelope(n: u8) -> Envelope {
    let keypair = Keypair::from_secret(&[n; 32]);
    let (node, root) = (keypair.node_id(), String::new());
    Envelope::sign(&BatchProof { node, group: group(1), readings: 1, root, made_at: WallTime(1) }, &keypair)
}

pub fn node_record(n: u8, record_epoch: u64) -> NodeRecord {
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

pub fn agreement(n: u8, state: State, version: u64) -> AgreementRow {
    AgreementRow { contract: ContractId::from_bytes([n; 32]), envelope: envelope(n), state, version, wiped: n == 2 }
}

pub fn reading(name: Name, heard_at: u64) -> Reading {
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

pub fn inbox_batch(from: u8, readings: Vec<Reading>) -> InboxBatch {
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
pub struct Pair {
    pub sqlite: Store,
    pub memory: Store,
    pub disk: MemoryDisk,
    directory: tempfile::TempDir,
}

impl Pair {
    pub async fn new() -> Self {
        let (directory, disk) = (tempfile::tempdir().unwrap(), MemoryDisk::new());
        let sqlite = Store::open(&directory.path().join("node.db")).await.unwrap();
        Self { sqlite, memory: Store::memory(disk.clone()), disk, directory }
    }

    pub async fn restart(&mut self) {
        self.sqlite.close().await;
        self.sqlite = Store::open(&self.directory.path().join("node.db")).await.unwrap();
        self.memory = Store::memory(self.disk.clone());
    }

    pub fn both(&self) -> [&Store; 2] {
        [&self.sqlite, &self.memory]
    }
}
pub fn receipt(of: u8, at: u64, names: &[Name]) -> Envelope {
    let store = Keypair::from_secret(&[4; 32]);
    let events = names.iter().map(Name::event).collect();
    Envelope::sign(&Receipt { store: store.node_id(), group: group(of), events, at: WallTime(at) }, &store)
}

pub fn account(of: u8, node: u8, number: u64, at: u64, said: &Unaccounted) -> AccountRow {
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

/// One change; how many readings it published.
pub async fn commit(store: &Store, change: Change) -> u64 {
    let counts = store.commit(&[change]).await.unwrap();
    store.sync().await.unwrap();
    counts[0]
}
