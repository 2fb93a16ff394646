//! Processes on machines: a node or the arbitrator, started, killed, shut down.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use contracts::ids::NodeId;
use contracts::node_record::Role;
use edge_node::config::{self, Config};
use edge_node::identity::Identity;
use edge_node::node::{self, Host, Running};
use edge_node::orchestrator::Orchestrator;
use edge_node::store::{Received, Store};
use kit::task::Process;
use motes::audit::Delivered;
use peering::custody::Entropy;
use peering::{AddressBook, Transport};
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use storage::BlockStore;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::clock::MachineClock;
use crate::engine::{Breakage, Simulated, Street};
use crate::machine::{Disk, Hardware, Machine};
use crate::votes::Votes;
use crate::world::World;
use crate::{market, parties, udp};

const CONTENT_BYTES_MAX: u64 = 64 << 20;
/// The arbitrator looks so often at what is due.
const ARBITRATOR_TICK: Duration = Duration::from_secs(5);
/// Tasks of a killed process are gone after so many turns of the scheduler.
const TURNS_TO_DIE: u32 = 64;
/// Between two looks at a node that starts.
const POLL: Duration = Duration::from_millis(5);
/// Rows of the cloud's store read at a time.
const PAGE: u32 = 10_000;

impl Hardware {
    pub(crate) fn new(machine: Machine, start: Instant) -> Self {
        let disk = Disk::default();
        let memory = std::path::Path::new("/dev/shm");
        let content = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
        Self {
            machine,
            node: parties::keypair(machine.number()).node_id(),
            clock: MachineClock::new(start, 0),
            votes: Votes::on(disk.clone()),
            disk,
            breakage: Breakage::default(),
            content: content.expect("a directory for content"),
            process: None,
            running: Arc::default(),
            lives: Vec::new(),
            is_destroyed: false,
            is_unplugged: false,
            owes_nothing: false,
        }
    }
}

/// A node's state directory, below its machine's directory.
pub(crate) const STATE: &str = "state";

/// What a process takes along from the world.
struct Parts {
    machine: Machine,
    hardware: (MachineClock, Disk, Votes, std::path::PathBuf),
    breakage: Breakage,
    running: Arc<Mutex<Option<Arc<Running>>>>,
    world: crate::check::Checker,
    deal: parties::Deal,
    network: peering::in_process::Network,
    entropy: Entropy,
    cloud: NodeId,
    arbitrator: NodeId,
    script: crate::script::Script,
}

impl World {
    /// Starts a process, if none runs.
    pub(crate) async fn start_machine(&mut self, machine: Machine) {
        if self.machines[&machine].process.is_some() || self.machines[&machine].is_destroyed {
            return;
        }
        // What a killed process still had open must be closed.
        for _ in 0..TURNS_TO_DIE {
            tokio::task::yield_now().await;
        }
        let process = Process::default();
        match machine {
            Machine::Arbitrator => self.start_arbitrator(&process),
            Machine::Rio | Machine::Patras | Machine::Cloud => self.start_node(machine, &process),
        }
        let hardware = self.machines.get_mut(&machine).expect("all machines are there");
        hardware.process = Some(process);
        if machine != Machine::Arbitrator {
            self.wait_until_up(machine).await;
        }
    }

    /// Different for every process of a machine, equal in equal runs.
    fn entropy(&self, machine: Machine) -> Entropy {
        let seed = self.script.seed ^ (u64::from(machine.number()) << 56) ^ self.now_ms().rotate_left(24);
        let rng = Mutex::new(ChaCha8Rng::seed_from_u64(seed));
        Arc::new(move || rng.lock().unwrap_or_else(PoisonError::into_inner).random())
    }

    fn start_node(&self, machine: Machine, process: &Process) {
        let hardware = &self.machines[&machine];
        let socket = Machine::EDGES.contains(&machine).then(|| {
            let checker = self.checker.clone();
            let tap: udp::Tap = Arc::new(move |bytes: &[u8]| {
                // PULL_RESP of GWMP: a downlink.
                if bytes.get(3) == Some(&3) {
                    checker.note_downlink(machine);
                }
            });
            self.udp.open(machine.gateway_address(), Some(tap))
        });
        let parts = Parts {
            machine,
            hardware: (hardware.clock.clone(), hardware.disk.clone(), hardware.votes.clone(), hardware.content.path().to_owned()),
            breakage: hardware.breakage.clone(),
            running: Arc::clone(&hardware.running),
            world: self.checker.clone(),
            deal: self.deal.clone(),
            network: self.network.clone(),
            entropy: self.entropy(machine),
            cloud: self.node_id(Machine::Cloud),
            arbitrator: self.node_id(Machine::Arbitrator),
            script: self.script.clone(),
        };
        process.run(async move {
            let (checker, machine, slot) = (parts.world.clone(), parts.machine, Arc::clone(&parts.running));
            match Box::pin(run_node(parts, socket)).await {
                Ok(running) => {
                    let running = Arc::new(running);
                    *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&running));
                    checker.set_running(machine, Some(running));
                    std::future::pending::<()>().await;
                }
                Err(error) => checker.log(format!("{} does not start: {error}", machine.name())),
            }
        });
    }

    fn start_arbitrator(&self, process: &Process) {
        let parts = parties::arbitrator_parts(&self.arbitrator_store, &self.machines);
        let (network, node) = (self.network.clone(), self.node_id(Machine::Arbitrator));
        let (clock, entropy, checker) = (parts.clock.clone(), self.entropy(Machine::Arbitrator), self.checker.clone());
        let has_market = self.script.market;
        process.run(async move {
            let keypair = parts.keypair.clone();
            let started = async {
                let service = Arc::new(arbitrator::service::Service::new(parts).await.map_err(|error| error.to_string())?);
                let transport: Arc<dyn Transport> = Arc::new(network.join(node));
                let (admitted, addresses) = (arbitrator::witness::Admitted::default(), AddressBook::new());
                let witness =
                    arbitrator::witness::start(Arc::clone(&service), transport, keypair, clock, admitted, addresses, entropy);
                Ok::<_, String>((service, witness.await.map_err(|error| error.to_string())?))
            };
            match started.await {
                Ok((service, witness)) => {
                    let (_stop, stopping) = watch::channel(false);
                    if has_market {
                        let limits = arbitrator::config::Limits::default();
                        let app = arbitrator::http::App::new(Arc::clone(&service), limits, stopping.clone());
                        network.join(market::arbitrator_http_id()).serve(arbitrator::http::router(app));
                    }
                    kit::task::spawn(witness.run(ARBITRATOR_TICK, stopping.clone()));
                    service.run_ticks(ARBITRATOR_TICK, stopping).await;
                }
                Err(error) => checker.violate(format!("the arbitrator does not start: {error}")),
            }
        });
    }

    /// Waits until the node is up and its edge's sessions are registered, then its frames are owed.
    async fn wait_until_up(&mut self, machine: Machine) {
        const BOUND: Duration = Duration::from_secs(60);
        let deadline = Instant::now() + BOUND;
        // Those that join have a session once they joined.
        let fleet = crate::world::fleet(&self.script);
        let motes = fleet.devices().iter().filter(|device| device.otaa.is_none()).count();
        loop {
            if let Some(running) = self.machines[&machine].node_running() {
                let Some(parts) = &running.parts else { return };
                // Without a contract an insurer knows nothing of anybody's devices.
                let need_not_know = self.machines[&machine].owes_nothing;
                if need_not_know || parts.bridge.stats().await.is_ok_and(|stats| stats.sessions >= motes) {
                    break;
                }
            }
            if Instant::now() >= deadline {
                return self.checker.violate(format!("{} is not up after {BOUND:?}", machine.name()));
            }
            tokio::select! {
                biased;
                () = self.died.notified() => {
                    // At a write of its start: whoever lets time pass starts the next one.
                    self.died.notify_one();
                    return;
                }
                () = tokio::time::sleep(POLL) => {}
            }
        }
        let now_ms = self.now_ms();
        if let Some(hardware) = self.machines.get_mut(&machine) {
            hardware.begin_life(now_ms + 1);
        }
        self.checker.log(format!("{} is up", machine.name()));
    }

    /// Ends a process without a word.
    pub(crate) fn kill_machine(&mut self, machine: Machine) {
        let end_ms = self.safe_until_ms(machine);
        self.frozen_since_ms.remove(&machine);
        let node = self.node_id(machine);
        let Some(hardware) = self.machines.get_mut(&machine) else { return };
        if let Some(process) = hardware.process.take() {
            process.kill();
            hardware.forget_since(end_ms);
            *hardware.running.lock().unwrap_or_else(PoisonError::into_inner) = None;
            self.checker.set_running(machine, None);
            self.network.leave(node);
            if machine == Machine::Arbitrator {
                self.network.leave(market::arbitrator_http_id());
            }
        }
    }

    /// Asks a node to end, as a service manager does, and kills what is left.
    pub(crate) async fn shut_down_machine(&mut self, machine: Machine) {
        let running = self.machines[&machine].node_running();
        let is_frozen = self.frozen_since_ms.contains_key(&machine);
        if let (Some(running), Some(process), false) = (running, self.machines[&machine].process.clone(), is_frozen) {
            let ended = process.run(async move { running.shut_down().await });
            // Killed meanwhile, or ended.
            let _ended_or_killed = tokio::time::timeout(Duration::from_secs(10), ended).await;
        }
        self.kill_machine(machine);
    }
}

fn config(parts: &Parts, state_directory: std::path::PathBuf) -> Config {
    let machine = parts.machine;
    let any = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
    let url = |name: &str| format!("http://{name}.invalid");
    let has_market = parts.script.market;
    let central = config::Arbitrator { node: parts.arbitrator, url: url("arbitrator") };
    Config {
        name: machine.name().to_owned(),
        role: parties::role(machine),
        is_restored: false,
        state_directory,
        owner_key_file: None,
        position: has_market.then_some(market::POSITION),
        peering: Some(config::Peering { bind: any, announce: Vec::new() }),
        api: config::Api { bind: any },
        marketplace: has_market.then(|| config::Url { url: url("marketplace") }),
        arbitrator: has_market.then_some(central),
        cloud: (parties::role(machine) == Role::Edge).then_some(parts.cloud),
        lora: Machine::EDGES.contains(&machine).then(|| config::Lora {
            bind: machine.gateway_address(),
            taps: Vec::new(),
            adr: false,
            power_dbm_max: 27,
        }),
        engine: config::Engine::default(),
        policy_file: None,
        service: None,
        tenants: config::Outside::default(),
        readings: config::Readings::default(),
    }
}

async fn run_node(parts: Parts, socket: Option<udp::Socket>) -> Result<Running, node::Error> {
    let machine = parts.machine;
    let config = config(&parts, parts.hardware.3.join(STATE));
    let (clock, disk, votes, content) = parts.hardware;
    let keypair = parties::keypair(machine.number());
    let transport: Arc<dyn Transport> = Arc::new(parts.network.join(keypair.node_id()));
    let services =
        if parts.script.market { market::services(&transport, &parts.network) } else { edge_node::market::Services::default() };
    let street = Street::default();
    let is_edge = Machine::EDGES.contains(&machine);
    let orchestrator =
        is_edge.then(|| Orchestrator::start(Arc::new(Simulated::new(street.clone(), parts.breakage)), clock.clock()));
    let host = Host {
        config,
        clock: clock.clock(),
        identity: Identity { keypair, unsealing: parties::unsealing(machine) },
        record: parties::record(machine),
        policy: market::policy(&parts.script, machine),
        store: Store::memory(disk.database()),
        votes: Arc::new(votes),
        content: BlockStore::open(content, CONTENT_BYTES_MAX).await?,
        orchestrator,
        own_service: (machine == Machine::Rio).then(|| parts.deal.service.clone()),
        doors: Arc::new(street),
        transport,
        addresses: AddressBook::new(),
        entropy: parts.entropy,
        services,
    };
    node::assemble(host, socket).await
}

/// Everything that the customer's store has.
pub(crate) async fn list_received(cloud: &Running) -> Vec<Received> {
    let mut all: Vec<Received> = Vec::new();
    let Some(inbox) = &cloud.inbox else { return all };
    loop {
        let after = all.last().map_or(0, |received| received.seq);
        match inbox.list(after, PAGE).await {
            Ok(page) if page.is_empty() => return all,
            Ok(page) => all.extend(page),
            Err(_) => return all,
        }
    }
}

/// A row of the customer's store as the audit wants it.
pub(crate) fn delivered(received: &Received, name: &impl Fn(NodeId) -> String) -> Delivered {
    let reading = &received.reading;
    let decoded: serde_json::Value = serde_json::from_str(reading.decoded.get()).unwrap_or_default();
    Delivered {
        device: motes::fleet::Eui64(u64::from_be_bytes(*reading.device.as_bytes())),
        session: reading.session.to_string(),
        f_cnt: reading.f_cnt,
        reading: decoded["generic_1"].as_u64().and_then(|number| u32::try_from(number).ok()),
        decicelsius: motes::audit::decicelsius(&decoded["temperature_2"]),
        heard_at_ms: reading.heard_at.0,
        received_at_ms: received.received_at.0,
        delivered_by: name(received.delivered_by),
        event_id: reading.event.to_string(),
    }
}
