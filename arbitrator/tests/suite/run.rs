//! The whole process: real sockets, SQLite, restart.

use std::sync::Arc;
use std::time::Duration;

use arbitrator::Client;
use arbitrator::config::{Config, StoreConfig};
use arbitrator::resource::Submission;
use arbitrator::store::{EventBody, Sqlite};
use contracts::ids::ContractId;
use contracts::time::Millis;
use kit::clock::Clock;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::common::*;

pub struct Running {
    pub client: Client,
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<(), arbitrator::server::Error>>,
}

pub async fn start(store: StoreConfig) -> Running {
    start_with(Config::new(store, key(ARBITRATOR).secret())).await
}

pub async fn start_with(mut config: Config) -> Running {
    config.peering_bind = "127.0.0.1:0".parse().unwrap();
    config.operators = [key(OPERATOR).key()].into();
    config.tick_ms = 20;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = Client::new(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
    let (stop, stopped) = oneshot::channel();
    let task = tokio::spawn(arbitrator::run(config, listener, async {
        let _ = stopped.await;
    }));
    Running { client, stop, task }
}

impl Running {
    pub async fn stop(self) {
        self.stop.send(()).unwrap();
        tokio::time::timeout(Duration::from_secs(15), self.task).await.expect("drains").unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_process_is_followed_stopped_and_started_again() {
    let directory = tempfile::tempdir().unwrap();
    let store = StoreConfig::Sqlite(directory.path().join("arbitrator.sqlite"));
    let running = start(store.clone()).await;
    let client = running.client.clone();
    let mut events = client.follow_events(Some(0)).await.unwrap();
    let now = Clock::system().wall();
    for (to, nonce) in [(CUSTOMER_OWNER, 1), (PROVIDER_OWNER, 2)] {
        client.take_order(&deposit(to, 100, nonce, now + DAY)).await.unwrap();
    }
    let mut contract = contract(now);
    contract.valid_until = now + Millis(4_000);
    let submission = Submission {
        contract: signed(&contract),
        node_records: vec![record(CUSTOMER, CUSTOMER_OWNER, 1, loopback()), record(PROVIDER, PROVIDER_OWNER, 1, loopback())],
    };
    let id = client.create_contract(&submission).await.unwrap().id;
    client.add_evidence(id, &ready(id)).await.unwrap();
    let mut seen = Vec::new();
    while !seen.iter().any(|body| matches!(body, EventBody::ContractChanged { .. })) {
        seen.push(tokio::time::timeout(Duration::from_secs(5), events.next()).await.expect("in time").unwrap().body);
    }
    assert!(seen.contains(&EventBody::ContractInForce { contract: id }));
    assert_eq!(client.list_contracts_in_force(node(PROVIDER), 0).await.unwrap().items.len(), 1);
    let problem = client.get_verdict(id).await.unwrap_err();
    assert_eq!((problem.problem(), problem.is_transient()), (Some("not-found"), false));
    let before = client.list_accounts(owner(CUSTOMER_OWNER)).await.unwrap();
    running.stop().await;
    assert!(client.describe_arbitrator().await.unwrap_err().is_transient());

    let running = start(store).await;
    let client = running.client.clone();
    assert_eq!(client.list_accounts(owner(CUSTOMER_OWNER)).await.unwrap(), before);
    let mut events = client.follow_events(Some(0)).await.unwrap();
    let first = tokio::time::timeout(Duration::from_secs(5), events.next()).await.expect("in time").unwrap();
    assert_eq!(first.seq, 1, "events of the time before the restart are still there");
    // The term ends by the running process's own clock.
    let verdict = tokio::time::timeout(Duration::from_secs(10), async {
        loop {
            if let EventBody::VerdictGiven { verdict, .. } = events.next().await.unwrap().body {
                return verdict;
            }
        }
    });
    assert_eq!(verdict.await.expect("in time"), client.get_verdict(id).await.unwrap().id);
    assert_eq!(client.get_owner_reputation(owner(PROVIDER_OWNER)).await.unwrap().verdicts, 1);
    assert_eq!(client.list_transfers(Some(owner(CUSTOMER_OWNER)), 0).await.unwrap().items.len(), 7);
    assert_eq!(client.describe_arbitrator().await.unwrap().node, node(ARBITRATOR));
    running.stop().await;
}

#[tokio::test]
async fn a_restart_from_the_file_keeps_everything() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("arbitrator.sqlite");
    let clock = Clock::manual();
    let (id, contract, before) = {
        let bench = bench_at(Arc::new(Sqlite::open(&path).await.unwrap()), clock.clone()).await;
        let (id, contract) = bench.in_force().await;
        bench.evidence(id, &ready(id)).await.unwrap();
        let before: serde_json::Value = bench.get(&format!("/v1/contracts/{id}")).await;
        (id, contract, before)
    };
    let bench = bench_at(Arc::new(Sqlite::open(&path).await.unwrap()), clock.clone()).await;
    assert_eq!(bench.get::<serde_json::Value>(&format!("/v1/contracts/{id}")).await, before);
    let at = bench.now();
    clock.advance(Millis(5_000));
    bench.evidence(id, &takeover(id, &contract, 2, at, Millis(500))).await.unwrap();
    bench.evidence(id, &handback(id, &contract, 3, bench.now())).await.unwrap();
    assert_eq!(bench.state(id).await["outcome"], "honoured");
    assert_eq!((bench.balance(CUSTOMER_OWNER).await, bench.balance(PROVIDER_OWNER).await), ((70, 0), (130, 0)));
    bench.assert_balanced().await;
    assert_eq!(ContractId::from(signed(&contract).id()), id);
}
