//! Ten thousand contracts of a thousand nodes against one witness: its CPU time and memory; prints JSON.
//!
//! `cargo run --release -p arbitrator --example witness_load -- [--contracts N] [--nodes N] [--ttl-ms N] [--seconds N] [--core N] [--database FILE] [--json FILE]`
//!
//! The witness is the whole arbitrator in a process of its own, on one core: SQLite, HTTP, QUIC. Its contracts were put in force by the real
//! service. A second process is all customers: each has its own key, QUIC endpoint and custody driver; the providers are absent, so every
//! lease hangs on the witness's answers, and each is asked for every ttl/4.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arbitrator::config::{Config, StoreConfig};
use arbitrator::service::{Parts, Service};
use arbitrator::store::Sqlite;
use contracts::blueprint::{Activation, Blueprint, Service as Image};
use contracts::contract::{Contract, Money, Party, Terms};
use contracts::custody::{Durable, Readiness};
use contracts::envelope::{Envelope, Keypair};
use contracts::evidence::Deposit;
use contracts::ids::{DevEui, GroupId};
use contracts::money::{Amount, Currency};
use contracts::node_record::{NodeRecord, Role, SealingKey};
use contracts::resources::Resources;
use contracts::time::{Millis, WallTime};
use kit::clock::Clock;
use peering::custody::{self, CustodyHandle, GroupConfig, Hold, Setup, VoteStore};
use peering::{AddressBook, Endpoint, Transport, endpoint};
use serde_json::{Value, json};

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Kernel clock ticks a second in proc_pid_stat(5), for programs: always 100 on Linux.
const TICKS_PER_SECOND: f64 = 100.0;
/// A customer that has not got its leases by then is left to itself, and the next one comes.
const FIRST_HOLD_MAX: Duration = Duration::from_secs(3);
/// All customers hold within this time, or the run has failed.
const SETTLE_MAX: Duration = Duration::from_secs(240);

#[derive(Debug, Clone)]
struct Load {
    contracts: u32,
    nodes: u32,
    ttl_ms: u64,
    seconds: u64,
    core: u32,
    witness: SocketAddr,
    /// Kept, and used again as it is if it is there: putting ten thousand contracts in force takes a minute.
    database: Option<PathBuf>,
    json: Option<String>,
}

impl Load {
    fn parse(arguments: &[String]) -> Result<Self, Failure> {
        let mut load = Self {
            contracts: 10_000,
            nodes: 1_000,
            ttl_ms: 1_000,
            seconds: 60,
            core: 1,
            witness: SocketAddr::from((Ipv4Addr::LOCALHOST, 7_399)),
            database: None,
            json: None,
        };
        for pair in arguments.chunks(2) {
            let [name, value] = pair else { return Err("every option has a value".into()) };
            match name.as_str() {
                "--contracts" => load.contracts = value.parse()?,
                "--nodes" => load.nodes = value.parse()?,
                "--ttl-ms" => load.ttl_ms = value.parse()?,
                "--seconds" => load.seconds = value.parse()?,
                "--core" => load.core = value.parse()?,
                "--database" => load.database = Some(value.into()),
                "--json" => load.json = Some(value.clone()),
                _ => return Err(format!("{name} is not an option").into()),
            }
        }
        if load.nodes < 2 || load.contracts < load.nodes || u32::from(u16::MAX) < load.nodes {
            return Err("2 to 65,535 nodes, each with a contract".into());
        }
        Ok(load)
    }

    fn arguments(&self) -> Vec<String> {
        let pairs = [
            ("--contracts", self.contracts.to_string()),
            ("--nodes", self.nodes.to_string()),
            ("--ttl-ms", self.ttl_ms.to_string()),
            ("--core", self.core.to_string()),
        ];
        pairs.into_iter().flat_map(|(name, value)| [name.to_owned(), value]).collect()
    }
}

/// Node `n`, which is its own owner; 0 is the arbitrator, `u32::MAX` the operator.
fn key(n: u32) -> Keypair {
    let mut secret = [0x5a; 32];
    secret[..4].copy_from_slice(&n.to_be_bytes());
    Keypair::from_secret(&secret)
}

const ARBITRATOR: u32 = 0;
const OPERATOR: u32 = u32::MAX;

/// Customer and provider of a contract, from 1.
fn parties(contract: u32, load: &Load) -> (u32, u32) {
    let customer = contract % load.nodes;
    (customer + 1, (customer + load.nodes / 2) % load.nodes + 1)
}

fn group(contract: u32) -> GroupId {
    let mut bytes = [0x11; 16];
    // As scattered as real ones are.
    bytes[..4].copy_from_slice(&contract.wrapping_mul(0x9e37_79b9).to_be_bytes());
    bytes[12..].copy_from_slice(&contract.wrapping_mul(0x85eb_ca6b).to_be_bytes());
    GroupId::from_bytes(bytes)
}

fn contract(number: u32, load: &Load, now: WallTime) -> Contract {
    let cid = "bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy".to_owned();
    let image = Image {
        name: "lora".to_owned(),
        image: cid.clone(),
        image_id: format!("sha256:{}", "0".repeat(64)),
        command: vec![],
        environment: BTreeMap::new(),
        depends_on: vec![],
        memory_bytes_max: 1 << 20,
        cpu_millis_max: 100,
        pids_max: 4,
    };
    let (customer, provider) = parties(number, load);
    let party = |n: u32| Party { node: key(n).node_id(), owner: key(n).owner_id() };
    Contract {
        customer: party(customer),
        provider: party(provider),
        witnesses: vec![key(ARBITRATOR).node_id()],
        arbitrator: key(ARBITRATOR).node_id(),
        readings_to: key(customer).node_id(),
        group: group(number),
        devices: (0..20).map(|device| DevEui::from_u64(u64::from(number) * 20 + device + 1)).collect(),
        blueprint: Blueprint {
            services: vec![image],
            needs: Resources::default(),
            capabilities: BTreeSet::new(),
            activation: Activation::Offline,
        },
        network_configuration: cid.clone(),
        application_configuration: cid,
        terms: Terms {
            ttl: Millis(load.ttl_ms),
            deadline: Millis(load.ttl_ms * 3),
            handback_quiet: Millis(2_000),
            handback_deadline: Millis(60_000),
            grace: Millis(1_000),
            counter_block: 16,
            buffer_frames_max: 1_000,
            buffer_bytes_max: 1_000_000,
            buffer_hours_max: 24,
            mirror: false,
            activations_max: 1,
        },
        money: Money {
            currency: Currency::new("EUR").unwrap_or_else(|| unreachable!("three capital letters")),
            premium_per_day: Amount::from_units(1),
            days: 30,
            included_hours: 2,
            served_hour_cost: Amount::from_units(1),
            served_hours_max: 10,
            customer_stake: Amount::from_units(30),
            provider_stake: Amount::from_units(40),
        },
        matched_by: None,
        nonce: u64::from(number) + 1,
        valid_from: now,
        valid_until: now + Millis::from_secs(86_400 * 30),
    }
}

fn node_record(n: u32) -> Envelope {
    let record = NodeRecord {
        node: key(n).node_id(),
        owner: key(n).owner_id(),
        name: format!("node-{n}"),
        role: Role::Edge,
        addresses: vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 9))],
        sealing_key: SealingKey([7; 32]),
        position: None,
        record_epoch: 1,
    };
    Envelope::sign(&record, &key(n))
}

/// Puts all contracts in force, as the HTTP server would; gives milliseconds per contract.
async fn put_in_force(load: &Load, database: &Path) -> Result<f64, Failure> {
    let clock = Clock::system();
    let keypair = key(ARBITRATOR);
    let parts = Parts {
        store: Arc::new(Sqlite::open(database).await?),
        record: node_record(ARBITRATOR),
        keypair,
        operators: [key(OPERATOR).key()].into(),
        clock: clock.clone(),
        nodes_max: 100_000,
    };
    let service = Service::new(parts).await?;
    let now = clock.wall();
    for n in 1..=load.nodes {
        let deposit = Deposit {
            arbitrator: key(ARBITRATOR).node_id(),
            operator: key(OPERATOR).key(),
            owner: key(n).owner_id(),
            currency: Currency::new("EUR").ok_or("a currency")?,
            amount: Amount::from_units(1_000_000),
            nonce: u64::from(n),
            valid_until: now + Millis::from_secs(3_600),
        };
        service.take_order(Envelope::sign(&deposit, &key(OPERATOR))).await?;
        service.register_node(key(n).node_id(), node_record(n)).await?;
    }
    let begun = Instant::now();
    for number in 0..load.contracts {
        let contract = contract(number, load, now);
        let (customer, provider) = parties(number, load);
        let mut envelope = Envelope::sign(&contract, &key(customer));
        envelope.cosign(&key(provider));
        service.create_contract(envelope, Vec::new()).await?;
    }
    Ok(begun.elapsed().as_secs_f64() * 1_000.0 / f64::from(load.contracts))
}

/// The witness: the arbitrator as it is, until its standard input ends.
async fn witness(load: &Load, database: &Path) -> Result<(), Failure> {
    let mut config = Config::new(StoreConfig::Sqlite(database.to_owned()), key(ARBITRATOR).secret());
    config.peering_bind = load.witness;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    arbitrator::run(config, listener, input_ended()).await?;
    Ok(())
}

async fn input_ended() {
    let ended = tokio::task::spawn_blocking(|| {
        let mut line = String::new();
        while std::io::stdin().read_line(&mut line).is_ok_and(|bytes| bytes > 0) {
            line.clear();
        }
    });
    let _ = ended.await;
}

/// Customers' votes, in memory: their disks are not what is measured.
#[derive(Debug, Default)]
struct NoDisk;

#[async_trait::async_trait]
impl VoteStore for NoDisk {
    async fn persist(&self, _: &[(GroupId, Durable)]) -> std::io::Result<()> {
        Ok(())
    }

    async fn load(&self, _: GroupId) -> std::io::Result<Option<Durable>> {
        Ok(None)
    }
}

struct Customer {
    _endpoint: Endpoint,
    custody: CustodyHandle,
    holds: Vec<Hold>,
}

async fn customer(n: u32, load: &Load) -> Result<Customer, Failure> {
    let (clock, addresses) = (Clock::system(), AddressBook::new());
    addresses.set(key(ARBITRATOR).node_id(), [load.witness]);
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let config = endpoint::Config::new(key(n).secret(), any, Arc::new(|_| true), clock.clone());
    let endpoint = Endpoint::bind(endpoint::Config { addresses, ..config }).await?;
    let transport: Arc<dyn Transport> = Arc::new(endpoint.clone());
    let (custody, routes) = custody::start(Setup::new(Arc::clone(&transport), key(n), clock, Arc::new(NoDisk)))?;
    transport.serve(routes);
    let mut holds = Vec::new();
    for number in (0..load.contracts).filter(|number| parties(*number, load).0 == n) {
        let provider = key(parties(number, load).1).node_id();
        let me = key(n).node_id();
        let config = GroupConfig {
            group: group(number),
            members: vec![me, provider, key(ARBITRATOR).node_id()],
            candidates: vec![me, provider],
            eligible: vec![me],
            first_holder: me,
            ttl: Millis(load.ttl_ms),
            readiness: Readiness::Ready,
        };
        holds.push(custody.add_group(config).await?);
    }
    Ok(Customer { _endpoint: endpoint, custody, holds })
}

/// All customers; says every second how many groups are held and how many answers came.
async fn crowd(load: &Load) -> Result<(), Failure> {
    let mut customers: Vec<Customer> = Vec::new();
    for n in 1..=load.nodes {
        let next = customer(n, load).await?;
        // One after the other, as contracts begin: what is measured is the steady state.
        let begun = Instant::now();
        while next.holds.iter().any(|hold| hold.epoch().is_none()) && begun.elapsed() < FIRST_HOLD_MAX {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        customers.push(next);
        if n % 100 == 0 {
            eprintln!("{n} customers");
        }
    }
    let mut ended = Box::pin(input_ended());
    loop {
        tokio::select! {
            biased;
            () = &mut ended => std::process::exit(0),
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
        }
        let held = customers.iter().flat_map(|customer| &customer.holds).filter(|hold| hold.epoch().is_some()).count();
        let received: u64 = customers.iter().map(|customer| customer.custody.counts().received).sum();
        println!("{}", json!({ "held": held, "received": received }));
        std::io::stdout().flush()?;
    }
}

/// CPU seconds and resident kilobytes of a process (proc_pid_stat(5), proc_pid_status(5)).
fn usage(pid: u32) -> Result<(f64, u64), Failure> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |place: usize| fields.get(place).and_then(|text| text.parse::<f64>().ok()).ok_or("no such field");
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).and_then(|rest| rest.split_whitespace().next());
    Ok(((ticks(11)? + ticks(12)?) / TICKS_PER_SECOND, resident.ok_or("no VmRSS")?.parse()?))
}

fn start(part: &str, core: u32, load: &Load, database: &Path) -> Result<Child, Failure> {
    let mut command = Command::new("taskset");
    command.args(["--cpu-list", &core.to_string()]).arg(std::env::current_exe()?).arg(part).arg(database);
    Ok(command.args(load.arguments()).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?)
}

/// Ended when dropped, by its own id.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn measure(load: &Load) -> Result<Value, Failure> {
    let directory = tempfile::tempdir()?;
    let database = load.database.clone().unwrap_or_else(|| directory.path().join("arbitrator.sqlite"));
    let mut per_contract_ms = None;
    if !database.exists() {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        per_contract_ms = Some(runtime.block_on(put_in_force(load, &database))?);
        runtime.shutdown_timeout(Duration::from_secs(5));
        eprintln!("{} contracts in force, {per_contract_ms:.2?} ms each", load.contracts);
    }
    let begun = Instant::now();
    let witness = Running(start("witness", load.core, load, &database)?);
    let crowd_core = u32::from(load.core == 0);
    let mut crowd = Running(start("crowd", crowd_core, load, &database)?);
    let said = crowd.0.stdout.take().ok_or("the customers say something")?;
    let mut lines = BufReader::new(said).lines();
    let mut next = || -> Result<(u64, u64), Failure> {
        let line = lines.next().ok_or("the customers ended")??;
        let value: Value = serde_json::from_str(&line)?;
        Ok((value["held"].as_u64().ok_or("held")?, value["received"].as_u64().ok_or("received")?))
    };
    loop {
        let (held, received) = next()?;
        if held >= u64::from(load.contracts) {
            break;
        }
        eprintln!("{:.0} s: {held} held, {received} answers", begun.elapsed().as_secs_f64());
        if begun.elapsed() > SETTLE_MAX {
            return Err("not all contracts were held in time".into());
        }
    }
    let settled = begun.elapsed();
    eprintln!("all held after {:.1} s", settled.as_secs_f64());
    for _ in 0..5 {
        next()?;
    }
    let (cpu_before, _) = usage(witness.0.id())?;
    let (_, received_before) = next()?;
    let (since, mut least_held, mut received) = (Instant::now(), u64::MAX, 0);
    while since.elapsed() < Duration::from_secs(load.seconds) {
        let (held, so_far) = next()?;
        (least_held, received) = (least_held.min(held), so_far - received_before);
    }
    let elapsed = since.elapsed().as_secs_f64();
    let (cpu, rss_kb) = usage(witness.0.id())?;
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let (rss_mb, per_second) = (rss_kb as f64 / 1_024.0, received as f64 / elapsed);
    Ok(json!({
        "contracts": load.contracts,
        "nodes": load.nodes,
        "ttl_ms": load.ttl_ms,
        "seconds": elapsed,
        "witness_cpu_share_of_one_core": (cpu - cpu_before) / elapsed,
        "witness_rss_mb": rss_mb,
        "answers_per_second": per_second,
        "groups_held_at_least": least_held,
        "put_in_force_ms_each": per_contract_ms,
        "start_to_all_held_s": settled.as_secs_f64(),
    }))
}

fn run() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let build = || tokio::runtime::Builder::new_multi_thread().enable_all().build();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["witness", database, ..] => build()?.block_on(witness(&Load::parse(&arguments[2..])?, Path::new(database))),
        ["crowd", _, ..] => build()?.block_on(crowd(&Load::parse(&arguments[2..])?)),
        _ => {
            let load = Load::parse(&arguments)?;
            let found = serde_json::to_string_pretty(&measure(&load)?)?;
            println!("{found}");
            if let Some(path) = &load.json {
                std::fs::write(path, found)?;
            }
            Ok(())
        }
    }
}

fn main() -> Result<(), Failure> {
    run()
}
