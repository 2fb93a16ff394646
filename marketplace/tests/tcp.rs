//! The running server over TCP with the typed client: a whole trade, many at once, a kill, a drain.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::{Party, contract};
use contracts::envelope::{Envelope, Keypair};
use kit::clock::Clock;
use marketplace::client::{Client, Error};
use marketplace::config::{SecretKey, StoreConfig};
use marketplace::resource::{EventKind, ListingKind, ListingState, MatchState};
use marketplace::{Config, run};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

const PATIENCE: Duration = Duration::from_secs(15);

struct Server {
    client: Client,
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    task: tokio::task::JoinHandle<Result<(), marketplace::server::Error>>,
}

async fn start(store: StoreConfig) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let config = Config { round_ms: 20, ..Config::new(store, [0x42; 32]) };
    let task = tokio::spawn(run(config, listener, async move { drop(stopped.await) }));
    Server { client: Client::new(&format!("http://{address}")).unwrap(), address, stop, task }
}

#[tokio::test]
async fn a_trade_from_record_to_contract() {
    let server = start(StoreConfig::Memory).await;
    let (client, rio, patras) = (&server.client, Party::new(1), Party::new(2));
    let now = Clock::system().wall();
    for party in [&rio, &patras] {
        let node = client.register(party.id(), &party.signed_record(1)).await.unwrap();
        assert_eq!(client.node(party.id()).await.unwrap(), node);
    }
    assert_eq!(client.nodes().await.unwrap().len(), 2);
    let mut events = client.events(Some(rio.id()), Some(0)).await.unwrap();
    let demand = client.demand(&Envelope::sign(&rio.demand(1, now), &rio.node)).await.unwrap();
    let waiting = {
        let (client, rio, id) = (client.clone(), rio.id(), demand.id);
        tokio::spawn(async move { client.wait_for_match(rio, id, PATIENCE).await })
    };
    let offer = client.offer(&Envelope::sign(&patras.offer(1, now), &patras.node)).await.unwrap();
    let found = waiting.await.unwrap().unwrap();
    let introduction = found.introduction(client.marketplace().await.unwrap().id).unwrap();
    assert_eq!((introduction.provider.node, introduction.terms.offer), (patras.id(), offer.id));
    let text = contract(&rio, &patras, Some(found.id), now);
    assert_eq!(client.confirm(found.id, &text).await.unwrap().state, MatchState::Confirmed);
    assert_eq!(
        client.matches_of(patras.id(), Some(MatchState::Confirmed)).await.unwrap(),
        [client.get_match(found.id).await.unwrap()]
    );
    let withdrawn = client.withdraw(&patras.withdrawal(offer.id)).await.unwrap();
    assert_eq!(
        (withdrawn.state, client.listing(ListingKind::Offer, offer.id).await.unwrap()),
        (ListingState::Withdrawn, withdrawn.clone())
    );
    assert!(client.listings(ListingKind::Offer, Some(patras.id()), Some(ListingState::Open)).await.unwrap().is_empty());
    let mut kinds = Vec::new();
    while kinds.len() < 3 {
        kinds.push(tokio::time::timeout(PATIENCE, events.next()).await.unwrap().unwrap().unwrap().kind);
    }
    assert_eq!(kinds, [EventKind::Listed, EventKind::Matched, EventKind::Confirmed]);

    // Refusals come as problems, and waiting for what cannot come ends.
    let Err(Error::Problem(problem)) = client.offer(&Envelope::sign(&patras.offer(2, now), &rio.node)).await else {
        panic!("forged")
    };
    assert_eq!(problem.name(), "bad-signature");
    let unmatched = client.demand(&Envelope::sign(&rio.demand(2, now), &rio.node)).await.unwrap();
    let waited = client.wait_for_match(rio.id(), unmatched.id, Duration::from_millis(200)).await;
    assert!(matches!(waited, Err(Error::TimedOut(_))), "{waited:?}");

    // The drain ends the stream that is open and the idle connections, and refuses new ones.
    server.stop.send(()).unwrap();
    tokio::time::timeout(PATIENCE, server.task).await.unwrap().unwrap().unwrap();
    while tokio::time::timeout(PATIENCE, events.next()).await.unwrap().unwrap().is_some() {}
    assert!(TcpStream::connect(server.address).await.is_err());
    assert!(matches!(server.client.marketplace().await, Err(Error::Transport(_))));
}

/// Many parties at once: every demand that fits is served, and no offer is given more than it has.
#[tokio::test]
async fn many_parties_at_once() {
    let server = start(StoreConfig::Memory).await;
    let now = Clock::system().wall();
    let parties: Vec<Party> = (1..=40).map(Party::new).collect();
    let mut tasks = tokio::task::JoinSet::new();
    for (n, party) in parties.iter().cloned().enumerate() {
        let client = server.client.clone();
        tasks.spawn(async move {
            client.register(party.id(), &party.signed_record(1)).await.unwrap();
            if n % 2 == 0 {
                client.offer(&Envelope::sign(&party.offer(1, now), &party.node)).await.unwrap();
                return;
            }
            let demand = client.demand(&Envelope::sign(&party.demand(1, now), &party.node)).await.unwrap();
            client.wait_for_match(party.id(), demand.id, PATIENCE).await.unwrap();
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    let held = server.client.statistics(None).await.unwrap().totals.matches_held;
    assert_eq!(held, 20);
    for party in parties.iter().step_by(2) {
        assert_eq!(server.client.matches_of(party.id(), None).await.unwrap().len(), 1, "150 of 200 slots are one demand");
    }
    server.stop.send(()).unwrap();
    server.task.await.unwrap().unwrap();
}

/// Runs a marketplace if the environment says where; started by the test below as a process of its own. Else there is nothing to do.
#[tokio::test]
async fn marketplace_process() {
    let Some(directory) = std::env::var_os("MARKETPLACE_TEST_DIRECTORY") else { return };
    let directory = Path::new(&directory);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let config = Config { round_ms: 20, ..Config::new(StoreConfig::Sqlite(directory.join("book.sqlite")), [0x42; 32]) };
    kit::file::replace(&directory.join("address"), address.to_string().as_bytes(), 0o600).unwrap();
    run(config, listener, std::future::pending()).await.unwrap();
}

/// Ends its process however the test ends.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill(); // SIGKILL
        let _ = self.0.wait();
    }
}

async fn start_process(directory: &Path) -> (Process, Client) {
    let _ = std::fs::remove_file(directory.join("address"));
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "marketplace_process"])
        .env("MARKETPLACE_TEST_DIRECTORY", directory)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let process = Process(child);
    let up = async {
        loop {
            if let Ok(address) = std::fs::read_to_string(directory.join("address")) {
                let client = Client::new(&format!("http://{address}")).unwrap();
                if client.marketplace().await.is_ok() {
                    return client;
                }
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let client = tokio::time::timeout(PATIENCE, up).await.expect("the marketplace starts");
    (process, client)
}

#[tokio::test]
async fn what_was_answered_survives_sigkill() {
    let directory = tempfile::tempdir().unwrap();
    let (rio, patras) = (Party::new(1), Party::new(2));
    let now = Clock::system().wall();
    let (process, client) = start_process(directory.path()).await;
    for party in [&rio, &patras] {
        client.register(party.id(), &party.signed_record(1)).await.unwrap();
    }
    let offer = client.offer(&Envelope::sign(&patras.offer(1, now), &patras.node)).await.unwrap();
    let demand = client.demand(&Envelope::sign(&rio.demand(1, now), &rio.node)).await.unwrap();
    let found = client.wait_for_match(rio.id(), demand.id, PATIENCE).await.unwrap();
    let withdrawn = client.offer(&Envelope::sign(&patras.offer(2, now), &patras.node)).await.unwrap();
    client.withdraw(&patras.withdrawal(withdrawn.id)).await.unwrap();
    let last_event = client.marketplace().await.unwrap().last_event;
    drop(process);

    let (_process, client) = start_process(directory.path()).await;
    assert_eq!(client.get_match(found.id).await.unwrap(), found);
    assert_eq!(client.listing(ListingKind::Offer, offer.id).await.unwrap(), offer);
    assert_eq!(client.marketplace().await.unwrap().last_event, last_event);
    let Err(Error::Problem(problem)) = client.offer(&withdrawn.statement).await else { panic!("replayed") };
    assert_eq!(problem.name(), "withdrawn-statement");
    let third = Party::new(3);
    client.register(third.id(), &third.signed_record(1)).await.unwrap();
    client.offer(&Envelope::sign(&third.offer(1, now), &third.node)).await.unwrap();
    let again = client.demand(&Envelope::sign(&rio.demand(2, now), &rio.node)).await.unwrap();
    let next = client.wait_for_match(rio.id(), again.id, PATIENCE).await.unwrap();
    assert_eq!(next.provider, third.id(), "the other offer's capacity is still held");
    assert!(next.round > found.round);
}

/// `cargo test --release -p marketplace --test tcp -- --ignored --nocapture`
#[tokio::test]
#[ignore = "a measurement, not a check"]
async fn how_fast_listings_are_taken() {
    let directory = tempfile::tempdir().unwrap();
    let (process, client) = start_process(directory.path()).await;
    let rss = |process: &Process| {
        let status = std::fs::read_to_string(format!("/proc/{}/status", process.0.id())).unwrap();
        status.lines().find(|l| l.starts_with("VmRSS")).unwrap().to_owned()
    };
    println!("idle {}", rss(&process));
    let now = Clock::system().wall();
    let parties: Vec<Party> = (1..=20).map(Party::new).collect();
    for party in &parties {
        client.register(party.id(), &party.signed_record(1)).await.unwrap();
    }
    let started = std::time::Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for party in parties {
        let client = client.clone();
        tasks.spawn(async move {
            for nonce in 0..40 {
                client.offer(&Envelope::sign(&party.offer(nonce, now), &party.node)).await.unwrap();
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    println!("800 offers in {} ms, 20 at once; {}", started.elapsed().as_millis(), rss(&process));
}

#[test]
fn the_configuration_is_strict_and_hides_its_secret() {
    let text = "bind = \"127.0.0.1:1\"\nstore = \"memory\"\nsecret_key = { hex = \"4242424242424242424242424242424242424242424242424242424242424242\" }\n[limits]\nnodes_max = 3\n";
    let config: Config = toml::from_str(text).unwrap();
    config.validate().unwrap();
    assert_eq!((config.store.clone(), config.limits.nodes_max, config.round_ms), (StoreConfig::Memory, 3, 1_000));
    assert_eq!(config.secret_key.load().unwrap().key(), Keypair::from_secret(&[0x42; 32]).key());
    assert!(!format!("{config:?}{}", toml::to_string(&config).unwrap()).contains("4242"));
    assert!(toml::from_str::<Config>(&format!("colour = \"red\"\n{text}")).is_err());
    assert!(toml::from_str::<Config>(&text.replace("nodes_max", "noodles_max")).is_err());
    assert!(Config { round_ms: 0, ..config }.validate().is_err());
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("key");
    for (content, good) in [(vec![0x42; 32], true), ([b'4', b'2'].repeat(32), true), (b"short".to_vec(), false)] {
        std::fs::write(&path, content).unwrap();
        assert_eq!(SecretKey::File(path.clone()).load().is_ok(), good);
    }
    assert!(SecretKey::File(directory.path().join("absent")).load().is_err());
}
