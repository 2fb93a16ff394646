//! The witness with real QUIC endpoints: three members, one dies, the grant brings what it wrote ahead.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arbitrator::Client;
use arbitrator::config::{Config, StoreConfig};
use arbitrator::resource::{RecordsView, Submission};
use arbitrator::store::Memory;
use arbitrator::store::faulty::FaultyStore;
use arbitrator::witness::{self, Admitted};
use axum::body::Body;
use axum::http::{Method, Request, StatusCode, header};
use contracts::contract::Contract;
use contracts::evidence::{Cancellation, Evidence, Item};
use contracts::ids::{DevEui, Epoch, GroupId, NodeId, SessionId};
use contracts::node_record::NodeRecord;
use contracts::write_ahead::{Bound, Reserved};
use kit::clock::Clock;
use kit::fault::Fault;
use kit::problem::Problem;
use peering::custody::{self, CustodyHandle, CustodyView, FileVotes, Role, Setup};
use peering::{AddressBook, Endpoint, Transport, endpoint};
use serde_json::{Value, json};
use sqlx::{ConnectOptions as _, Connection as _};

use super::common::*;
use super::run;

const PATIENCE: Duration = Duration::from_secs(15);

/// An edge node, as far as custody goes.
struct Member {
    endpoint: Endpoint,
    custody: CustodyHandle,
    _votes: tempfile::TempDir,
}

async fn member(n: u8, addresses: &AddressBook) -> Member {
    let friends: BTreeSet<NodeId> = [CUSTOMER, PROVIDER, ARBITRATOR].map(node).into();
    let admit: endpoint::Admit = Arc::new(move |node| friends.contains(&node));
    let clock = Clock::system();
    let config = endpoint::Config::new(key(n).secret(), "127.0.0.1:0".parse().unwrap(), admit, clock.clone());
    let endpoint = Endpoint::bind(endpoint::Config { addresses: addresses.clone(), ..config }).await.unwrap();
    addresses.set(node(n), endpoint.local_address());
    let directory = tempfile::tempdir().unwrap();
    let votes = Arc::new(FileVotes::open(directory.path().join("votes.json")).unwrap());
    let transport: Arc<dyn Transport> = Arc::new(endpoint.clone());
    let (custody, routes) = custody::start(Setup::new(Arc::clone(&transport), key(n), clock, votes)).unwrap();
    transport.serve(routes);
    Member { endpoint, custody, _votes: directory }
}

impl Member {
    fn address(&self) -> SocketAddr {
        self.endpoint.local_address().unwrap()
    }

    async fn until(&self, group: GroupId, what: &str, wanted: impl FnMut(&CustodyView) -> bool) -> CustodyView {
        let mut view = self.custody.subscribe(group).unwrap();
        let found = tokio::time::timeout(PATIENCE, view.wait_for(wanted)).await;
        found.unwrap_or_else(|_| panic!("{what}: not in time")).unwrap().clone()
    }

    /// Asks the witness over QUIC.
    async fn ask(
        &self,
        method: Method,
        group: GroupId,
        body: Option<&Value>,
    ) -> Result<Option<RecordsView>, (StatusCode, String)> {
        self.ask_at(method, format!("/peer/v1/groups/{group}/records"), body).await
    }

    async fn ask_at(
        &self,
        method: Method,
        path: String,
        body: Option<&Value>,
    ) -> Result<Option<RecordsView>, (StatusCode, String)> {
        let request = Request::builder().method(method).uri(path);
        let body = body.map(|body| Body::from(body.to_string())).unwrap_or_default();
        let request = request.header(header::CONTENT_TYPE, "application/json").body(body).unwrap();
        let response = self.endpoint.request(node(ARBITRATOR), request).await.unwrap();
        let status = response.status();
        let bytes = axum::body::to_bytes(response.into_body(), 8 << 20).await.unwrap();
        if status.is_success() {
            return Ok(serde_json::from_slice(&bytes).ok());
        }
        let problem: Problem = serde_json::from_slice(&bytes).unwrap();
        Err((status, problem.name().to_owned()))
    }
}

fn write(epoch: u64, seq: u64, device: u64, upto: u32) -> Value {
    let bound = Bound { device: DevEui::from_u64(device), session: SessionId::from_bytes([8; 8]), upto };
    json!({ "epoch": epoch, "seq": seq, "bounds": [bound] })
}

async fn find_arbitrator(client: &Client, addresses: &AddressBook) {
    let about = client.describe_arbitrator().await.unwrap();
    addresses.set(about.node, NodeRecord::verify(&about.record).unwrap().statement.addresses);
}

/// A contract in force and armed, its three members up, the customer in custody.
async fn insured(client: &Client, addresses: &AddressBook) -> (Member, Member, Contract, u64) {
    let (rio, patras) = (member(CUSTOMER, addresses).await, member(PROVIDER, addresses).await);
    find_arbitrator(client, addresses).await;
    let now = Clock::system().wall();
    for (to, nonce) in [(CUSTOMER_OWNER, 1), (PROVIDER_OWNER, 2)] {
        client.take_order(&deposit(to, 100, nonce, now + DAY)).await.unwrap();
    }
    let mut contract = contract(now);
    contract.terms.ttl = contracts::time::Millis(2_000); // room for a loaded machine
    let records = [(CUSTOMER, CUSTOMER_OWNER, &rio), (PROVIDER, PROVIDER_OWNER, &patras)];
    let submission = Submission {
        contract: signed(&contract),
        node_records: records.map(|(n, owner, member)| record(n, owner, 1, vec![member.address()])).into(),
    };
    let id = client.create_contract(&submission).await.unwrap().id;
    client.add_evidence(id, &ready(id)).await.unwrap();
    let both = vec![node(CUSTOMER), node(PROVIDER)];
    rio.custody.add_group(group_config(&contract, both.clone())).await.unwrap();
    let holds = |view: &CustodyView| matches!(view.role, Role::Holder { .. });
    let Role::Holder { epoch } = rio.until(contract.group, "rio holds", holds).await.role else { panic!("just seen") };
    patras.custody.add_group(group_config(&contract, both)).await.unwrap();
    (rio, patras, contract, epoch.0)
}

/// The witness makes evidence of its grants, and the takeover is accepted with the real certificate. Gives the provider's epoch.
async fn check_evidence(client: &Client, contract: &Contract, view: &CustodyView, dead: u64) -> Epoch {
    let (group, id) = (contract.group, contracts::ids::ContractId::from(signed(contract).id()));
    let Role::Holder { epoch: taken } = view.role else { panic!("just seen") };
    let certificate = view.certificate.as_ref().expect("its certificate").to_bytes();
    let now = Clock::system().wall();
    let report = contracts::evidence::TakeoverReport {
        contract: id,
        group,
        node: node(PROVIDER),
        epoch: taken,
        certificate,
        last_promise_at: now,
        asked_at: now,
        certified_at: now,
        serving_at: now,
    };
    let accepted = client.add_evidence(id, &statement(&report, PROVIDER)).await.unwrap();
    assert_eq!(accepted.standing.served_epoch, Some(taken));
    assert_eq!(accepted.standing.granted.map(|granted| (granted.epoch, granted.to)), Some((taken, node(PROVIDER))));
    let evidence = client.list_evidence(id, 0).await.unwrap().items;
    let granted = |view: &arbitrator::resource::EvidenceView| match Evidence::read(&view.envelope).unwrap().item {
        Item::Witness(report) => Some((report.epoch, report.granted_to)),
        _ => None,
    };
    let granted: Vec<_> = evidence.iter().filter_map(granted).collect();
    assert!(granted.contains(&(Epoch(dead), node(CUSTOMER))) && granted.contains(&(taken, node(PROVIDER))), "{granted:?}");
    taken
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_holder_dies_the_grant_brings_what_it_wrote_ahead() {
    let directory = tempfile::tempdir().unwrap();
    let store = StoreConfig::Sqlite(directory.path().join("arbitrator.sqlite"));
    let arbitrator = run::start(store.clone()).await;
    let client = arbitrator.client.clone();
    let (rio, patras, contract, epoch) = insured(&client, &AddressBook::new()).await;
    let group = contract.group;

    // Only the holder of the present epoch writes, and only for devices of the contract.
    let refused = |status: u16, name: &str| Err((StatusCode::from_u16(status).unwrap(), name.to_owned()));
    assert_eq!(patras.ask(Method::PUT, group, Some(&write(epoch, 1, 1, 16))).await, refused(409, "not-the-holder"));
    assert_eq!(rio.ask(Method::PUT, group, Some(&write(epoch + 1, 1, 1, 16))).await, refused(409, "not-the-holder"));
    assert_eq!(rio.ask(Method::PUT, group, Some(&write(epoch, 1, 99, 16))).await, refused(400, "invalid-input"));
    let elsewhere = GroupId::from_bytes([9; 16]);
    assert_eq!(rio.ask(Method::PUT, elsewhere, Some(&write(epoch, 1, 1, 16))).await, refused(403, "not-a-member"));
    assert_eq!(rio.ask(Method::GET, elsewhere, None).await, refused(403, "not-a-member"));
    for (seq, device, upto) in [(1, 1, 16), (2, 2, 16), (3, 1, 32)] {
        rio.ask(Method::PUT, group, Some(&write(epoch, seq, device, upto))).await.unwrap();
    }
    let mut sealed = write(epoch, 4, 2, 48);
    sealed["sealed"] = json!([{ "device": DevEui::from_u64(2), "blob": "c0ffee" }]);
    rio.ask(Method::PUT, group, Some(&sealed)).await.unwrap();
    let kept = patras.ask(Method::GET, group, None).await.unwrap().unwrap();
    assert_eq!((kept.bounds.iter().map(|b| b.upto).collect::<Vec<_>>(), kept.sealed[0].blob.as_str()), (vec![32, 48], "c0ffee"));
    let behind = |after: &str| patras.ask_at(Method::GET, format!("/peer/v1/groups/{group}/records?after={after}"), None);
    assert_eq!(
        behind(&DevEui::from_u64(1).to_string()).await.unwrap().unwrap(),
        RecordsView { bounds: kept.bounds[1..].into(), ..kept }
    );
    assert_eq!(behind(&DevEui::from_u64(2).to_string()).await.unwrap().unwrap(), RecordsView::default());
    assert_eq!(behind("nobody").await, refused(400, "malformed-query"));

    // Rio dies: no good-bye, no release.
    rio.custody.stop().await;
    rio.endpoint.close().await;
    let dead = epoch;
    let holds = move |view: &CustodyView| matches!(view.role, Role::Holder { epoch } if epoch.0 > dead);
    let view = patras.until(group, "patras takes over", holds).await;
    let (from, bytes) = view.records.iter().find(|(from, _)| *from == node(ARBITRATOR)).expect("the witness's records").clone();
    assert_eq!(from, node(ARBITRATOR));
    let reserved = Reserved::from_bytes(&bytes).unwrap();
    let upto = |device| reserved.upto(DevEui::from_u64(device), SessionId::from_bytes([8; 8]));
    assert_eq!((upto(1), upto(2)), (Some(32), Some(48)));

    let taken = check_evidence(&client, &contract, &view, dead).await;

    // After a restart the witness has its votes and records, and goes on with the same holder.
    arbitrator.stop().await;
    let arbitrator = run::start(store).await;
    let about = arbitrator.client.describe_arbitrator().await.unwrap();
    let address = NodeRecord::verify(&about.record).unwrap().statement.addresses;
    patras.endpoint.addresses().set(about.node, address);
    let holds = move |view: &CustodyView| matches!(view.role, Role::Holder { epoch } if epoch >= taken);
    let Role::Holder { epoch } = patras.until(group, "patras holds on or again", holds).await.role else { panic!("just seen") };
    let again = tokio::time::timeout(PATIENCE, async {
        loop {
            // The holder may win a later epoch meanwhile; it writes in the one that it holds.
            let now = patras.custody.hold(group).and_then(|hold| hold.epoch()).unwrap_or(epoch);
            match patras.ask(Method::PUT, group, Some(&write(now.0, 1, 1, 64))).await {
                Ok(_) => break,
                Err((StatusCode::CONFLICT, _)) => tokio::time::sleep(Duration::from_millis(20)).await,
                Err(other) => panic!("{other:?}"),
            }
        }
    });
    again.await.expect("the restarted witness takes records again");
    let kept = patras.ask(Method::GET, group, None).await.unwrap().unwrap();
    assert_eq!(kept.bounds.iter().map(|b| b.upto).collect::<Vec<_>>(), [64, 48]);
    patras.custody.stop().await;
    patras.endpoint.close().await;
    arbitrator.stop().await;
}

/// The contract ended while the provider served; it never hears of that, and goes on. After the grace nothing is promised to it any more, and the
/// customer's own custody brings it what the provider had reserved; also if the witness starts anew meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_the_grace_the_customer_gets_custody_and_the_counters_of_a_provider_that_does_not_answer() {
    let directory = tempfile::tempdir().unwrap();
    let store = StoreConfig::Sqlite(directory.path().join("arbitrator.sqlite"));
    let arbitrator = run::start(store.clone()).await;
    let (client, addresses) = (arbitrator.client.clone(), AddressBook::new());
    let (rio, patras, contract, first) = insured(&client, &addresses).await;
    let group = contract.group;
    rio.custody.remove_group(group).await.unwrap();
    let holds = move |view: &CustodyView| matches!(view.role, Role::Holder { epoch } if epoch.0 > first);
    let Role::Holder { epoch: taken } = patras.until(group, "patras takes over", holds).await.role else { panic!("just seen") };
    patras.ask(Method::PUT, group, Some(&write(taken.0, 1, 1, 80))).await.unwrap();
    let id = contracts::ids::ContractId::from(signed(&contract).id());
    let mut cancellation = statement(&Cancellation { contract: id, reason: "sold".to_owned() }, CUSTOMER);
    cancellation.cosign(&key(PROVIDER));
    client.add_evidence(id, &cancellation).await.unwrap();
    arbitrator.stop().await;
    let arbitrator = run::start(store).await;
    find_arbitrator(&arbitrator.client, &addresses).await;

    let both = vec![node(CUSTOMER), node(PROVIDER)];
    rio.custody.add_group(group_config(&contract, both)).await.unwrap();
    // It knows that the provider should have given custody back: it promises it nothing, and votes for nobody else.
    rio.custody.set_hand_back_overdue(group, taken).await.unwrap();
    rio.custody.set_eligible(group, vec![node(CUSTOMER)]).await.unwrap();
    let holds = move |view: &CustodyView| matches!(view.role, Role::Holder { epoch } if epoch > taken);
    let view = rio.until(group, "rio takes custody back", holds).await;
    let (_, bytes) = view.records.iter().find(|(from, _)| *from == node(ARBITRATOR)).expect("the witness's records").clone();
    let reserved = Reserved::from_bytes(&bytes).unwrap();
    assert_eq!(reserved.upto(DevEui::from_u64(1), SessionId::from_bytes([8; 8])), Some(80));
    let lost = |view: &CustodyView| !matches!(view.role, Role::Holder { .. });
    patras.until(group, "patras holds no longer", lost).await;
    for member in [rio, patras] {
        member.custody.stop().await;
        member.endpoint.close().await;
    }
    arbitrator.stop().await;
}

/// Its database is put back from a copy that knows nothing of the provider's epoch. Believed, it would let the customer win that epoch again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_witness_whose_disk_was_put_back_votes_in_no_epoch_twice() {
    let directory = tempfile::tempdir().unwrap();
    let [path, copy] = ["arbitrator.sqlite", "copy.sqlite"].map(|name| directory.path().join(name));
    let arbitrator = run::start(StoreConfig::Sqlite(path.clone())).await;
    let addresses = AddressBook::new();
    let (rio, patras, contract, first) = insured(&arbitrator.client, &addresses).await;
    let group = contract.group;
    let mut backup = sqlx::sqlite::SqliteConnectOptions::new().filename(&path).connect().await.unwrap();
    sqlx::query("VACUUM INTO ?").bind(copy.to_str()).execute(&mut backup).await.unwrap();
    backup.close().await.unwrap();
    rio.custody.remove_group(group).await.unwrap();
    let holds = move |view: &CustodyView| matches!(view.role, Role::Holder { epoch } if epoch.0 > first);
    let Role::Holder { epoch: taken } = patras.until(group, "patras takes over", holds).await.role else { panic!("just seen") };
    patras.custody.remove_group(group).await.unwrap();
    arbitrator.stop().await;

    let restored = Config { is_restored: true, ..Config::new(StoreConfig::Sqlite(copy), key(ARBITRATOR).secret()) };
    let arbitrator = run::start_with(restored).await;
    find_arbitrator(&arbitrator.client, &addresses).await;
    let both = vec![node(CUSTOMER), node(PROVIDER)];
    rio.custody.add_group(group_config(&contract, both.clone())).await.unwrap();
    // It asks, alone with the witness, often enough to be granted custody by whoever would grant it.
    let sent = || {
        let counts = rio.custody.counts();
        counts.streams_sent + counts.datagrams_sent
    };
    let sent_before = sent();
    let asks = async {
        while sent() < sent_before + 40 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, asks).await.expect("it asks");
    patras.custody.add_group(group_config(&contract, both)).await.unwrap();
    let elected = |view: &CustodyView| match view.role {
        Role::Holder { epoch } | Role::Follower { holder: Some(_), epoch } => (epoch.0 > first).then_some(epoch),
        Role::Follower { holder: None, .. } | Role::Fenced { .. } | Role::Recovering | Role::Stopped => None,
    };
    let view = rio.until(group, "somebody holds again", |view| elected(view).is_some()).await;
    assert!(elected(&view) > Some(taken), "epoch {taken} was the provider's");
    for member in [rio, patras] {
        member.custody.stop().await;
        member.endpoint.close().await;
    }
    arbitrator.stop().await;
}

/// A vote that cannot be stored is not given, and the group stands still; with room on the disk again the witness votes as after a restart.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_witness_whose_disk_was_full_votes_again() {
    let store = FaultyStore::new(Arc::new(Memory::default()));
    let points = Arc::clone(&store.points);
    let clock = Clock::system();
    let bench = bench_at(Arc::new(store), clock.clone()).await;
    let (id, contract) = bench.in_force().await;
    bench.evidence(id, &ready(id)).await.unwrap();

    let addresses = AddressBook::new();
    let admitted = Admitted::default();
    let admit: endpoint::Admit = Arc::new({
        let admitted = admitted.clone();
        move |node| admitted.contains(node)
    });
    let config = endpoint::Config::new(key(ARBITRATOR).secret(), "127.0.0.1:0".parse().unwrap(), admit, clock.clone());
    let endpoint = Endpoint::bind(endpoint::Config { addresses: addresses.clone(), ..config }).await.unwrap();
    addresses.set(node(ARBITRATOR), endpoint.local_address());
    let rio = member(CUSTOMER, &addresses).await;
    let newer = record(CUSTOMER, CUSTOMER_OWNER, 2, vec![rio.address()]);
    bench.put::<Value>("PUT", &format!("/v1/nodes/{}", node(CUSTOMER)), &newer).await.unwrap();
    // The next write is the witness's first vote: nothing else writes here, and nobody votes with it but rio.
    points.plan(points.writes() + 1, Fault::Refuse);
    let transport = Arc::new(endpoint.clone());
    let witness = witness::start(
        Arc::clone(&bench.service),
        transport,
        key(ARBITRATOR),
        clock,
        admitted,
        addresses.clone(),
        custody::os_entropy(),
    );
    let witness = witness.await.unwrap();
    let (stop, stopping) = tokio::sync::watch::channel(false);
    let running = tokio::spawn(Arc::clone(&witness).run(Duration::from_millis(20), stopping));
    rio.custody.add_group(group_config(&contract, vec![node(CUSTOMER), node(PROVIDER)])).await.unwrap();
    let view = rio.until(contract.group, "rio holds", |view| matches!(view.role, Role::Holder { .. })).await;
    assert_eq!(witness.custody().counts().persist_failed, 1, "the disk was full once");
    let Role::Holder { epoch } = view.role else { panic!("just seen") };
    let voted = bench.store.votes(contract.group).await.unwrap().unwrap();
    assert!(voted.voted_epoch >= epoch, "what was promised is stored: {voted:?}");
    rio.custody.stop().await;
    rio.endpoint.close().await;
    stop.send(true).unwrap();
    running.await.unwrap();
    endpoint.close().await;
}
