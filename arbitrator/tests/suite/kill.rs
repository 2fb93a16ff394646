//! A real process over a real file, under load, killed at random moments: what it had answered is true after it starts again.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arbitrator::Client;
use arbitrator::config::{Config, StoreConfig};
use arbitrator::resource::{ContractView, Submission};
use contracts::contract::Contract;
use contracts::envelope::Envelope;
use contracts::evidence::Cancellation;
use contracts::ids::{ContractId, DevEui, GroupId};
use contracts::money::Amount;
use contracts::time::WallTime;
use kit::clock::Clock;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::common::*;

const PATIENCE: Duration = Duration::from_secs(30);
const KILLS: u64 = 10;
const DIRECTORY: &str = "ARBITRATOR_TEST_DIRECTORY";

/// Runs an arbitrator if the environment says where; started by the test below as a process of its own. Else there is nothing to do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn arbitrator_process() {
    let Some(directory) = std::env::var_os(DIRECTORY) else { return };
    let directory = Path::new(&directory);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut config = Config::new(StoreConfig::Sqlite(directory.join("arbitrator.sqlite")), key(ARBITRATOR).secret());
    config.peering_bind = "127.0.0.1:0".parse().unwrap();
    config.operators = [key(OPERATOR).key()].into();
    config.tick_ms = 20;
    kit::file::replace(&directory.join("address"), address.to_string().as_bytes(), 0o600).unwrap();
    arbitrator::run(config, listener, std::future::pending()).await.unwrap();
}

/// Ends its process however the test ends.
struct Process(Child);

impl Process {
    fn kill(&mut self) {
        let _ = self.0.kill(); // SIGKILL
        let _ = self.0.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

async fn start(directory: &Path) -> (Process, Client) {
    let _ = std::fs::remove_file(directory.join("address"));
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "kill::arbitrator_process"])
        .env(DIRECTORY, directory)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let process = Process(child);
    let up = async {
        loop {
            if let Ok(address) = std::fs::read_to_string(directory.join("address")) {
                let client = Client::new(&format!("http://{address}")).unwrap();
                if client.describe_arbitrator().await.is_ok() {
                    return client;
                }
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let client = tokio::time::timeout(PATIENCE, up).await.expect("the arbitrator starts");
    (process, client)
}

/// What one worker asks for; each may be asked again.
#[derive(Debug, Clone)]
enum Ask {
    Deposit(Envelope),
    Contract(Box<Submission>),
    Evidence(ContractId, Envelope),
}

impl Ask {
    async fn send(&self, client: &Client) -> Result<Option<ContractView>, arbitrator::client::Error> {
        match self {
            Self::Deposit(order) => client.take_order(order).await.map(|_| None),
            Self::Contract(submission) => client.create_contract(submission).await.map(Some),
            Self::Evidence(id, envelope) => client.add_evidence(*id, envelope).await.map(Some),
        }
    }
}

/// The life of the `n`-th contract: money for it, in force, ready, for every second one an end by both parties.
fn asks(n: u64, now: WallTime) -> Vec<Ask> {
    let mut contract: Contract = contract(now);
    contract.nonce = n;
    contract.group = GroupId::from_bytes([
        u8::try_from(n % 256).unwrap(),
        u8::try_from(n / 256).unwrap(),
        1,
        1,
        1,
        1,
        1,
        1,
        1,
        1,
        1,
        1,
        1,
        1,
        1,
        1,
    ]);
    contract.devices = [DevEui::from_u64(n)].into();
    let id = ContractId::from(signed(&contract).id());
    let node_records = vec![record(CUSTOMER, CUSTOMER_OWNER, 1, loopback()), record(PROVIDER, PROVIDER_OWNER, 1, loopback())];
    let mut cancellation = statement(&Cancellation { contract: id, reason: n.to_string() }, CUSTOMER);
    cancellation.cosign(&key(PROVIDER));
    let mut asks = vec![
        Ask::Deposit(deposit(CUSTOMER_OWNER, 70, 2 * n, now + DAY)),
        Ask::Deposit(deposit(PROVIDER_OWNER, 40, 2 * n + 1, now + DAY)),
        Ask::Contract(Box::new(Submission { contract: signed(&contract), node_records })),
        Ask::Evidence(id, ready(id)),
    ];
    if n.is_multiple_of(2) {
        asks.push(Ask::Evidence(id, cancellation));
    }
    asks
}

/// What was acknowledged, by contract: how many of its asks.
type Acknowledged = Arc<Mutex<BTreeMap<u64, usize>>>;

/// Takes up contracts one after the other until the connection breaks.
async fn load(client: Client, next: Arc<AtomicU64>, acknowledged: Acknowledged, now: WallTime) {
    loop {
        let n = next.fetch_add(1, Ordering::SeqCst);
        acknowledged.lock().unwrap().insert(n, 0);
        for ask in asks(n, now) {
            match ask.send(&client).await {
                Ok(_) => *acknowledged.lock().unwrap().get_mut(&n).unwrap() += 1,
                Err(error) if error.is_transient() => return, // killed
                Err(error) => panic!("contract {n}: {error:?}"),
            }
        }
    }
}

/// After a restart: repeat what was acknowledged (it is known), then finish what was interrupted, then count the money.
async fn check(client: &Client, acknowledged: &Acknowledged, now: WallTime, kill: u64) {
    let known = acknowledged.lock().unwrap().clone();
    for (n, count) in known {
        for (at, ask) in asks(n, now).into_iter().enumerate() {
            let before = client.list_transfers(None, 0).await.unwrap().items.len();
            let answer = ask
                .send(client)
                .await
                .unwrap_or_else(|error| panic!("kill {kill}, contract {n}, ask {at} of {count}: {error:?}"));
            if at < count && before < 200 {
                let after = client.list_transfers(None, 0).await.unwrap().items.len();
                assert_eq!(after, before, "kill {kill}, contract {n}: what was acknowledged moves no money when it is repeated");
            }
            if let Some(view) = answer {
                let ended = !view.in_force;
                assert!(!ended || client.get_verdict(view.id).await.is_ok(), "kill {kill}: {n} ended without a verdict");
            }
        }
        acknowledged.lock().unwrap().insert(n, asks(n, now).len());
    }
    let contracts = u64::try_from(acknowledged.lock().unwrap().len()).unwrap();
    check_money(client, contracts, kill).await;
}

/// 70 and 40 units came in for each contract; what is set aside is what contracts in force hold; nothing else is anywhere.
async fn check_money(client: &Client, contracts: u64, kill: u64) {
    let (mut in_force, mut after) = (0_u64, 0);
    loop {
        let page = client.list_contracts_in_force(node(PROVIDER), after).await.unwrap();
        in_force += page.items.len() as u64;
        match page.next {
            Some(next) => after = next,
            None => break,
        }
    }
    let (mut total, mut reserved) = (Amount::ZERO, Amount::ZERO);
    for of in [CUSTOMER_OWNER, PROVIDER_OWNER] {
        for account in client.list_accounts(owner(of)).await.unwrap() {
            total = total.checked_add(account.available).and_then(|sum| sum.checked_add(account.reserved)).unwrap();
            reserved = reserved.checked_add(account.reserved).unwrap();
        }
    }
    assert_eq!(total.micros(), contracts * 110_000_000, "kill {kill}: money was made or lost");
    assert_eq!(reserved.micros(), in_force * 110_000_000, "kill {kill}: {in_force} contracts in force");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_survives_sigkill_under_load() {
    let seed = 0x5eed_u64;
    println!("seed {seed:#x}");
    let mut state = seed;
    let mut random = |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    let directory = tempfile::tempdir().unwrap();
    let now = Clock::system().wall();
    let (next, acknowledged) = (Arc::new(AtomicU64::new(0)), Acknowledged::default());
    let (mut process, mut client) = start(directory.path()).await;
    let mut interrupted = 0;
    for kill in 1..=KILLS {
        let mut workers = JoinSet::new();
        let begun = next.load(Ordering::SeqCst);
        for _ in 0..4 {
            workers.spawn(load(client.clone(), Arc::clone(&next), Arc::clone(&acknowledged), now));
        }
        // Not before the load is on, then at any moment.
        while next.load(Ordering::SeqCst) < begun + 5 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        tokio::time::sleep(Duration::from_micros(random(60_000))).await;
        process.kill();
        while let Some(done) = workers.join_next().await {
            done.unwrap();
        }
        interrupted += acknowledged.lock().unwrap().iter().filter(|(n, count)| **count < asks(**n, now).len()).count();
        (process, client) = start(directory.path()).await;
        check(&client, &acknowledged, now, kill).await;
    }
    let contracts = acknowledged.lock().unwrap().len();
    println!("{KILLS} kills, {contracts} contracts, {interrupted} interrupted");
    assert!(interrupted > 0, "the kills hit something");
}
