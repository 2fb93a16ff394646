//! Real marketplace and arbitrator on loopback TCP, nodes with real block stores and QUIC endpoints; only the container engine is left out.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use contracts::blueprint::{Activation, Blueprint, Service};
use contracts::contract::{State, Terms};
use contracts::envelope::{Envelope, Keypair};
use contracts::evidence::Deposit;
use contracts::geo::Position;
use contracts::ids::{GroupId, NodeId, OwnerId};
use contracts::money::{Amount, Currency};
use contracts::node_record::{NodeRecord, Role};
use contracts::resources::{Interface, Resources};
use contracts::sealed::UnsealingKey;
use contracts::time::Millis;
use edge_node::agreements::{Agreement, Agreements};
use edge_node::config::{self, Config};
use edge_node::core::{Core, OwnService};
use edge_node::directory::Directory;
use edge_node::dmu::policy::{Customer, Policy, Provider};
use edge_node::edge2edge::{self, client::Client};
use edge_node::identity::{self, Identity};
use edge_node::market::{self, Agent, AgentHandle};
use edge_node::readings::log::Log;
use edge_node::readings::north::Destinations;
use edge_node::store::Store;
use edge_node::timeline::{Event, Timeline};
use kit::clock::Clock;
use peering::{AddressBook, Endpoint, Transport as _, endpoint};
use storage::BlockStore;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

pub const GROUP: GroupId = GroupId::from_bytes([4; 16]);
const RIO: Position = Position { latitude_e7: 383_100_000, longitude_e7: 217_800_000 };
/// No condition of these tests takes longer.
const PATIENCE: Duration = Duration::from_secs(20);
const ARBITRATOR_SECRET: [u8; 32] = [3; 32];
const OPERATOR_SECRET: [u8; 32] = [33; 32];

pub fn arbitrator_id() -> NodeId {
    Keypair::from_secret(&ARBITRATOR_SECRET).node_id()
}

pub fn currency() -> Currency {
    Currency::new("EUR").unwrap()
}

/// A server that can be ended and started again at the same address.
pub struct Server {
    pub address: SocketAddr,
    running: Option<(oneshot::Sender<()>, JoinHandle<()>)>,
}

impl Server {
    async fn reserve() -> (Self, TcpListener) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        (Self { address: listener.local_addr().unwrap(), running: None }, listener)
    }

    /// An address at which nobody answers yet.
    pub async fn absent() -> Self {
        Self::reserve().await.0
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    async fn bind(&self) -> TcpListener {
        TcpListener::bind(self.address).await.unwrap()
    }

    pub async fn stop(&mut self) {
        let (stop, task) = self.running.take().expect("it runs");
        stop.send(()).unwrap();
        task.await.unwrap();
    }

    pub async fn start_marketplace(&mut self) {
        let listener = self.bind().await;
        let mut config = marketplace::Config::new(marketplace::config::StoreConfig::Memory, [42; 32]);
        config.round_ms = 100;
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(async move {
            marketplace::run(config, listener, async move { stopped.await.unwrap_or_default() }).await.unwrap();
        });
        self.running = Some((stop, task));
    }

    pub async fn start_arbitrator(&mut self, directory: &Path) {
        let listener = self.bind().await;
        let store = arbitrator::config::StoreConfig::Sqlite(directory.join("arbitrator.sqlite"));
        let mut config = arbitrator::Config::new(store, ARBITRATOR_SECRET);
        config.peering_bind = "127.0.0.1:0".parse().unwrap();
        config.operators = BTreeSet::from([Keypair::from_secret(&OPERATOR_SECRET).key()]);
        config.tick_ms = 100;
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(async move {
            arbitrator::run(config, listener, async move { stopped.await.unwrap_or_default() }).await.unwrap();
        });
        self.running = Some((stop, task));
        let client = self.arbitrator();
        until("the arbitrator answers", || async { client.describe_arbitrator().await.is_ok() }).await;
    }

    pub fn arbitrator(&self) -> arbitrator::Client {
        arbitrator::Client::new(&self.url()).unwrap()
    }

    pub fn marketplace(&self) -> marketplace::client::Client {
        marketplace::client::Client::new(&self.url()).unwrap()
    }
}

/// Waits for a condition, bounded.
pub async fn until<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let waited = tokio::time::timeout(PATIENCE, async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    assert!(waited.await.is_ok(), "not within {PATIENCE:?}: {what}");
}

pub async fn deposit(client: &arbitrator::Client, owner: OwnerId, units: u32, now: contracts::time::WallTime) {
    let operator = Keypair::from_secret(&OPERATOR_SECRET);
    let order = Deposit {
        arbitrator: arbitrator_id(),
        operator: operator.key(),
        owner,
        currency: currency(),
        amount: Amount::from_units(units),
        nonce: 1,
        valid_until: now + Millis(60_000),
    };
    client.take_order(&Envelope::sign(&order, &operator)).await.unwrap();
}

pub fn terms() -> Terms {
    Terms {
        ttl: Millis(1_000),
        deadline: Millis(3_000),
        handback_quiet: Millis(2_000),
        handback_deadline: Millis(60_000),
        grace: Millis(60_000),
        counter_block: 16,
        buffer_frames_max: 10_000,
        buffer_bytes_max: 1_000_000,
        buffer_hours_max: 24,
        mirror: false,
        activations_max: 10,
    }
}

pub fn capacity() -> Resources {
    Resources {
        cpu_millis: 4_000,
        memory_bytes: 1 << 30,
        storage_bytes: 1 << 32,
        bandwidth_bps: 100_000_000,
        uptime_s: 365 * 86_400,
        battery_wh: None,
        interfaces: vec![Interface { kind: "lora".into(), region: "EU868".into(), slots: 1_000 }],
    }
}

fn policy() -> Policy {
    Policy {
        currency: currency(),
        witnesses: BTreeSet::from([arbitrator_id()]),
        arbitrator: arbitrator_id(),
        link: edge_node::dmu::profile::Link::Wired,
        rounds_max: 6,
        concession: edge_node::dmu::negotiation::Concession::Linear,
        provider: None,
        customer: None,
    }
}

pub fn selling() -> Policy {
    let provider = Provider {
        capacity: capacity(),
        reserve_permille: 100,
        radio_range_m: 10_000,
        capabilities: BTreeSet::from(["lora:EU868".to_owned()]),
        ask_per_day: Amount::from_units(5),
        ask_per_day_min: Amount::from_units(2),
        served_hour_cost: Amount::from_units(1),
        stake_max: Amount::from_units(200),
        deadline_min: Millis(1_500),
        days_max: 30,
        ttl_min: Millis::ZERO,
        handback_quiet_max: Millis(60_000),
        included_hours_max: 24,
        buffer_bytes_max: 10_000_000,
    };
    Policy { provider: Some(provider), ..policy() }
}

pub fn buying() -> Policy {
    let customer = Customer {
        bid_per_day: Amount::from_units(1),
        bid_per_day_max: Amount::from_units(4),
        served_hour_cost_max: Amount::from_units(2),
        included_hours: 10,
        served_hours_max: 20,
        stake_max: Amount::from_units(1_000),
        provider_stake_min: Amount::from_units(10),
        reputation_min_permille: 500,
        days: 30,
        margin_permille: 500,
        profile: None,
        ttl_max: None,
        terms: terms(),
    };
    Policy { customer: Some(customer), ..policy() }
}

/// Who a node is: its key, its owner's, its role.
#[derive(Clone, Copy)]
pub struct Who {
    pub name: &'static str,
    pub role: Role,
    pub node: u8,
    pub owner: u8,
}

pub const CUSTOMER: Who = Who { name: "rio", role: Role::Edge, node: 1, owner: 11 };
pub const PROVIDER: Who = Who { name: "patras", role: Role::Edge, node: 2, owner: 12 };
pub const CLOUD: Who = Who { name: "cloud", role: Role::Cloud, node: 4, owner: 11 };
pub const STRANGER: Who = Who { name: "stranger", role: Role::Edge, node: 5, owner: 15 };

impl Who {
    pub fn keypair(self) -> Keypair {
        Keypair::from_secret(&[self.node; 32])
    }

    pub fn id(self) -> NodeId {
        self.keypair().node_id()
    }

    pub fn owner_id(self) -> OwnerId {
        Keypair::from_secret(&[self.owner; 32]).owner_id()
    }
}

/// What a node is made of beyond who it is.
#[derive(Default)]
pub struct Setup {
    pub policy: Option<Policy>,
    pub insures_itself: bool,
}

pub struct Node {
    pub core: Arc<Core>,
    pub agent: AgentHandle,
    endpoint: Endpoint,
    _directory: tempfile::TempDir,
}

fn config(who: Who, state_directory: PathBuf, marketplace: &Server, arbitrator: &Server) -> Config {
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    Config {
        is_restored: false,
        name: who.name.to_owned(),
        role: who.role,
        state_directory,
        owner_key_file: None,
        position: Some(RIO),
        peering: Some(config::Peering { bind: any, announce: vec![] }),
        api: config::Api { bind: any },
        marketplace: Some(config::Url { url: marketplace.url() }),
        arbitrator: Some(config::Arbitrator { node: arbitrator_id(), url: arbitrator.url() }),
        cloud: (who.role == Role::Edge).then(|| CLOUD.id()),
        lora: None,
        engine: config::Engine::default(),
        policy_file: None,
        service: None,
        tenants: config::Outside::default(),
        readings: config::Readings::default(),
    }
}

async fn own_service(content: &BlockStore) -> OwnService {
    let image: Vec<u8> = (0..1_000_000_u32).flat_map(|n| (n / 7).to_le_bytes()).collect();
    let cid = content.add(image.as_slice(), "image").await.unwrap();
    let device = |n: u8| {
        serde_json::json!({ "dev_eui": format!("{n:016x}"), "dev_addr": format!("{n:08x}"), "nwk_s_key": format!("{n:032x}"),
            "app_s_key": format!("{:032x}", 0xa0 + u32::from(n)), "codec": "cayenne_lpp" })
    };
    let configuration = serde_json::to_vec(&serde_json::json!({ "devices": [device(1), device(2)] })).unwrap();
    let service = Service {
        name: "lora".to_owned(),
        image: cid.to_string(),
        image_id: format!("sha256:{}", "0".repeat(64)),
        command: vec![],
        environment: BTreeMap::new(),
        depends_on: vec![],
        memory_bytes_max: 64 << 20,
        cpu_millis_max: 1_000,
        pids_max: 16,
    };
    OwnService {
        group: GROUP,
        blueprint: Blueprint {
            services: vec![service],
            needs: Resources::default(),
            capabilities: BTreeSet::from(["lora:EU868".to_owned()]),
            activation: Activation::Offline,
        },
        registration: edge_node::migration::network_part(&configuration).unwrap(),
        joining: Vec::new(),
        configuration: configuration.into(),
    }
}

impl Node {
    pub async fn start(who: Who, setup: Setup, marketplace: &Server, arbitrator: &Server) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let clock = Clock::system();
        let keypair = who.keypair();
        let unsealing = UnsealingKey::derive(&keypair.secret());
        let store = Store::open(&directory.path().join("node.db")).await.unwrap();
        let addresses = AddressBook::new();
        let known = Directory::open(store.clone(), addresses.clone()).await.unwrap();
        let admitting = known.clone();
        let admit: endpoint::Admit = Arc::new(move |node| admitting.admits(node));
        let settings = endpoint::Config::new(keypair.secret(), "127.0.0.1:0".parse().unwrap(), admit, clock.clone());
        let endpoint = Endpoint::bind(endpoint::Config { addresses, ..settings }).await.unwrap();
        let record = NodeRecord {
            node: keypair.node_id(),
            owner: who.owner_id(),
            name: who.name.to_owned(),
            role: who.role,
            addresses: vec![endpoint.local_address().unwrap()],
            sealing_key: unsealing.public(),
            position: Some(RIO),
            record_epoch: 1,
        };
        let record =
            identity::write_record(directory.path(), &record, &Keypair::from_secret(&[who.owner; 32]), &keypair).unwrap();
        let content = BlockStore::open(directory.path().join("content"), 1 << 30).await.unwrap();
        let own_service = if setup.insures_itself { Some(own_service(&content).await) } else { None };
        let core = Arc::new(Core {
            config: config(who, directory.path().to_owned(), marketplace, arbitrator),
            identity: Identity { keypair, unsealing },
            owner: who.owner_id(),
            record,
            clock: clock.clone(),
            policy: setup.policy,
            log: Log::start(store.clone()),
            destinations: Destinations::default(),
            content,
            orchestrator: None,
            directory: known,
            agreements: Agreements::open(store.clone()).await.unwrap(),
            client: Client::new(Arc::new(endpoint.clone())),
            timeline: Timeline::new(clock),
            outbox: edge_node::market::evidence::Outbox::default(),
            own_service,
            store,
        });
        let agent = serve(&core, &endpoint);
        Self { core, agent, endpoint, _directory: directory }
    }

    /// The agent's tasks end and start anew, as in a restart; what is on disk stays.
    pub async fn restart_agent(&mut self) {
        self.agent.stop().await;
        self.agent = serve(&self.core, &self.endpoint);
    }

    pub fn events(&self) -> Vec<Event> {
        self.core.timeline.follow(0).0.into_iter().map(|entry| entry.event).collect()
    }

    /// The only contract that is not ended.
    pub fn deal(&self) -> Option<Agreement> {
        self.core.agreements.list().into_iter().find(|a| !matches!(a.state, State::Ended { .. }))
    }

    pub fn state(&self) -> Option<State> {
        self.deal().map(|deal| deal.state)
    }

    pub async fn until_state(&self, wanted: State) {
        let what = format!("{} sees {wanted:?}", self.core.config.name);
        let agent = &self.agent;
        let reached = tokio::time::timeout(PATIENCE, until(&what, || async { self.state() == Some(wanted) })).await;
        assert!(reached.is_ok(), "{what}: {:?} {:#?}", self.state(), agent.status());
    }
}

fn serve(core: &Arc<Core>, endpoint: &Endpoint) -> AgentHandle {
    let agent = Agent::start(Arc::clone(core)).unwrap();
    let context = edge2edge::http::Context { parts: None, core: Arc::clone(core), inbox: None };
    endpoint.serve(edge2edge::http::router(context).merge(market::router(&agent)));
    agent
}
