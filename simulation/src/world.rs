//! One run: machines and motes are set up, faults happen, all is mended, and the ledgers are compared with the customer's store.

mod judgement;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use contracts::ids::{GroupId, NodeId};
use contracts::time::Millis;
use motes::audit::Report;
use motes::fleet::{Eui64, Fleet};
use motes::ledger::Ledger;
use motes::world::{GatewayConfig, Ground};
use motes::{World as Radio, WorldConfig};
use peering::in_process::Network;
use serde::Serialize;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::check::Checker;
use crate::clock::WALL_START;
use crate::machine::{Hardware, Machine, Machines};
use crate::network::Links;
use crate::script::{Fault, Script};
use crate::udp::Udp;
use crate::{entropy, market, parties};

/// The first custody must stand within this time.
const FIRST_CUSTODY: Duration = Duration::from_secs(30);
/// The first contract must come of the market, and custody of it, within this time.
const FIRST_CONTRACT: Duration = Duration::from_secs(180);
/// After all is mended, everything must be where it belongs within this time.
pub(crate) const SETTLE: Duration = Duration::from_secs(180);
/// Confirmed uplinks under way at the end are given so long.
const RADIO_DRAIN: Duration = Duration::from_secs(10);
/// A service manager starts a process that died again after this time.
const RESTART_AFTER: Duration = Duration::from_millis(300);
/// Between two looks at something that has no signal.
pub(crate) const POLL: Duration = Duration::from_millis(20);
/// What waited for a machine that is back is on its disk after this time.
const SAFE_AFTER_MS: u64 = 3_000;
/// Somebody holds again so many ttl after the last fault.
const RECOVERY_TTLS: u64 = 5;

/// What came of a run.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Outcome {
    pub name: String,
    pub seed: u64,
    pub violations: Vec<String>,
    pub virtual_ms: u64,
    /// Machines times virtual time.
    pub node_ms: u64,
    pub faults: u64,
    /// How often the insurer gained custody.
    pub takeovers: u64,
    /// From the first step to the insurer's custody.
    pub takeover_ms: Option<u64>,
    pub readings_owed: u64,
    pub readings_delivered: u64,
    pub lost: u64,
    pub doubled: u64,
    pub counters_reused: u64,
    pub downlinks: u64,
    /// Between members, as datagrams: bytes and number.
    pub datagrams: (u64, u64),
    /// How often somebody looked for two holders.
    pub looks: u64,
    /// Durable writes from when the radio began until all was settled, of the database and of votes.
    pub writes: BTreeMap<Machine, (u64, u64)>,
    #[serde(skip)]
    pub log: Vec<String>,
    /// The time of a core that it took.
    pub elapsed_us: u64,
}

/// Runs a scenario to its end. Equal scripts give equal outcomes, the time that it took apart.
///
/// # Panics
/// The runtime cannot be made.
#[must_use]
pub fn run(script: &Script) -> Outcome {
    entropy::with_seed(script.seed, || {
        let begun = core_time_us();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        let mut outcome = runtime.expect("a runtime without threads needs nothing").block_on(async {
            let world = Box::pin(World::set_up(script)).await;
            Box::pin(world.play()).await
        });
        outcome.elapsed_us = core_time_us().saturating_sub(begun);
        outcome
    })
}

/// Microseconds that this thread had a core (proc(5), schedstat); 0 where the kernel does not tell.
fn core_time_us() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    text.split(' ').next().and_then(|ns| ns.parse::<u64>().ok()).unwrap_or(0) / 1_000
}

/// Everything of one run.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) script: Script,
    pub(crate) start: Instant,
    pub(crate) machines: Machines,
    pub(crate) network: Network,
    pub(crate) links: Links,
    pub(crate) udp: Udp,
    pub(crate) checker: Checker,
    pub(crate) deal: parties::Deal,
    pub(crate) arbitrator_store: Arc<arbitrator::store::Memory>,
    pub(crate) marketplace_store: Arc<marketplace::store::Memory>,
    pub(crate) marketplace: Option<kit::task::Process>,
    radio: Option<Radio>,
    ledger: Ledger,
    pub(crate) frozen_since_ms: BTreeMap<Machine, u64>,
    /// Since when machines had been frozen, and when they were thawed last.
    thawed_ms: BTreeMap<Machine, (u64, u64)>,
    /// A process died at its fail point.
    pub(crate) died: Arc<Notify>,
    /// Writes of database and votes when the radio began.
    writes_before: BTreeMap<Machine, (u64, u64)>,
    /// And when all was mended and settled: who dies later is not started again.
    writes_settled: BTreeMap<Machine, (u64, u64)>,
    first_step_ms: Option<u64>,
}

const fn percent(percent: u32) -> u32 {
    percent * (crate::network::PPM / 100)
}

/// The motes of a scenario, which must be in order.
pub(crate) fn fleet(script: &Script) -> Fleet {
    Fleet::with_otaa(script.seed, script.motes, percent(script.joining_percent)).expect("the script was checked")
}

impl World {
    async fn set_up(script: &Script) -> Self {
        let start = Instant::now();
        let fleet = fleet(script);
        let mut machines: Machines = Machine::ALL.into_iter().map(|machine| (machine, Hardware::new(machine, start))).collect();
        let mut deal = parties::Deal::make(script, &machines, &fleet).await;
        if script.market {
            parties::store_image(&mut deal, &machines).await;
            machines.get_mut(&Machine::Patras).expect("all machines are there").owes_nothing = true;
        }
        let checker = Checker::new(start, deal.contract.group, script.market);
        let links = Links::new(script.seed, script.link);
        // Both services are on the arbitrator's machine.
        let central = machines[&Machine::Arbitrator].node;
        links.set_aliases([market::marketplace_id(), market::arbitrator_http_id()].map(|id| (id, central)).into());
        let network = Network::new(machines[&Machine::Arbitrator].clock.clock());
        let looking = checker.clone();
        network.set_faults(links.faults(move || looking.look()));
        let arbitrator_store = Arc::new(arbitrator::store::Memory::default());
        parties::sign_and_fund(&deal, &machines, &arbitrator_store, script.market).await;
        Self {
            script: script.clone(),
            start,
            machines,
            network,
            links,
            udp: Udp::default(),
            checker,
            deal,
            arbitrator_store,
            marketplace_store: Arc::default(),
            marketplace: None,
            radio: None,
            ledger: Ledger::in_memory(),
            frozen_since_ms: BTreeMap::new(),
            thawed_ms: BTreeMap::new(),
            died: Arc::default(),
            writes_before: BTreeMap::new(),
            writes_settled: BTreeMap::new(),
            first_step_ms: None,
        }
    }

    pub(crate) fn now_ms(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    pub(crate) fn node_id(&self, machine: Machine) -> NodeId {
        self.machines[&machine].node
    }

    pub(crate) fn group(&self) -> GroupId {
        self.deal.contract.group
    }

    async fn play(mut self) -> Outcome {
        self.open_marketplace();
        for machine in Machine::ALL {
            self.start_machine(machine).await;
        }
        let bound = if self.script.market { FIRST_CONTRACT } else { FIRST_CUSTODY };
        let custody_is_settled = self.wait(bound, |world| world.is_settled()).await;
        if !custody_is_settled {
            self.checker.violate("the first custody does not stand".to_owned());
            self.log_market();
            return self.finish(None);
        }
        self.start_radio().await;
        self.arm_crash();
        self.writes_before = self.count_writes();
        let begin = Instant::now();
        for step in self.script.steps.clone() {
            self.pass_until(begin + Duration::from_millis(step.at_ms)).await;
            self.first_step_ms.get_or_insert(self.now_ms());
            self.carry_out(&step.fault).await;
        }
        self.pass_until(begin + Duration::from_millis(self.script.length_ms)).await;
        self.check_expectations();
        self.check_coverage().await;
        self.mend_everything().await;
        let report = self.settle().await;
        self.finish(report)
    }

    fn count_writes(&self) -> BTreeMap<Machine, (u64, u64)> {
        Machine::ALL.map(|machine| (machine, self.machines[&machine].disk.writes())).into()
    }

    fn arm_crash(&self) {
        if let Some(crash) = &self.script.crash {
            self.machines[&crash.machine].disk.crash_at(crash, Arc::clone(&self.died));
        }
    }

    /// Lets time pass; a process that dies at its fail point is followed by another one.
    async fn pass_until(&mut self, deadline: Instant) {
        loop {
            let died = tokio::select! {
                biased;
                () = self.died.notified() => true,
                () = tokio::time::sleep_until(deadline) => false,
            };
            let (true, Some(crash)) = (died, self.script.crash) else { return };
            self.checker.log(format!("{} dies at a write", crash.machine.name()));
            self.kill_machine(crash.machine);
            tokio::time::sleep(RESTART_AFTER).await;
            self.start_machine(crash.machine).await;
        }
    }

    /// Waits, looking now and then; false after `bound`.
    async fn wait(&mut self, bound: Duration, mut condition: impl FnMut(&mut Self) -> bool) -> bool {
        let deadline = Instant::now() + bound;
        while !condition(self) {
            if Instant::now() >= deadline {
                return false;
            }
            self.pass_until(Instant::now() + POLL).await;
        }
        true
    }

    /// The customer holds (the insurer if the customer is gone for good), and both take part.
    fn is_settled(&self) -> bool {
        let takes_part = |machine| {
            let hardware = &self.machines[machine];
            let is_up = hardware.owes_nothing && hardware.node_running().is_some();
            is_up || hardware.lives.last().is_some_and(|(_, to)| to.is_none())
        };
        if self.script.market && !self.is_insured() {
            return false;
        }
        let edges: Vec<Machine> = self.edges().collect();
        edges.iter().all(takes_part) && self.checker.holder().map(|(holder, _)| holder) == edges.first().copied()
    }

    /// Edges that are not gone for good; the customer first.
    fn edges(&self) -> impl Iterator<Item = Machine> {
        Machine::EDGES.into_iter().filter(|machine| !self.machines[machine].is_destroyed)
    }

    async fn start_radio(&mut self) {
        let script = &self.script;
        if script.uplinks_per_1000_s == 0 {
            return;
        }
        let mut config = WorldConfig::new(script.seed, std::path::PathBuf::new());
        config.motes = script.motes;
        config.rate_milli = script.uplinks_per_1000_s;
        config.confirmed_ppm = percent(script.confirmed_percent);
        config.otaa_ppm = percent(script.joining_percent);
        config.depth.rejoin_us = u64::from(script.rejoin_s) * 1_000_000;
        config.uplink_loss_ppm = percent(script.radio_loss_percent);
        config.downlink_loss_ppm = percent(script.radio_loss_percent);
        let gateway = |machine: Machine| GatewayConfig { eui: gateway_eui(machine), server: machine.gateway_address() };
        let ground =
            Ground { sockets: self.udp.clone(), ledger: self.ledger.clone(), wall_us: (WALL_START.0 + self.now_ms()) * 1_000 };
        match Radio::start_on(ground, config, &Machine::EDGES.map(gateway)).await {
            Ok(radio) => self.radio = Some(radio),
            Err(error) => self.checker.violate(format!("the radio does not start: {error}")),
        }
    }

    async fn carry_out(&mut self, fault: &Fault) {
        self.checker.log(format!("{fault:?}"));
        match fault {
            Fault::Kill(machine) => self.kill_machine(*machine),
            Fault::Destroy(machine) => self.destroy(*machine),
            Fault::CloseMarketplace => self.close_marketplace(),
            Fault::OpenMarketplace => self.open_marketplace(),
            Fault::Start(machine) => self.start_machine(*machine).await,
            Fault::ShutDown(machine) => self.shut_down_machine(*machine).await,
            Fault::Freeze(machine) => self.freeze(*machine),
            Fault::Thaw(machine) => self.thaw(*machine),
            Fault::Cut(one, other) => {
                self.links.cut(self.node_id(*one), self.node_id(*other));
                self.links.cut(self.node_id(*other), self.node_id(*one));
            }
            Fault::CutOneWay(from, to) => self.links.cut(self.node_id(*from), self.node_id(*to)),
            Fault::Isolate(machine) => self.isolate(*machine, true),
            Fault::Deafen(machine) => self.isolate(*machine, false),
            Fault::MendLinks => {
                self.links.mend();
                self.links.set_usual(self.script.link);
            }
            Fault::Links(link) => self.links.set_usual(*link),
            Fault::SlowDisk(machine, ms) => self.machines[machine].disk.set_latency(Duration::from_millis(*ms)),
            Fault::FillDisk(machine) => {
                let now_ms = self.frozen_since_ms.get(machine).copied().unwrap_or_else(|| self.now_ms());
                if let Some(hardware) = self.machines.get_mut(machine) {
                    hardware.disk.set_full(true);
                    hardware.end_life(now_ms);
                }
            }
            Fault::EmptyDisk(machine) => self.empty_disk(*machine),
            Fault::Unplug(machine) => self.set_gateway(*machine, false).await,
            Fault::PlugIn(machine) => self.set_gateway(*machine, true).await,
            Fault::BreakContainers(machine) => self.machines[machine].breakage.set(true),
            Fault::MendContainers(machine) => self.machines[machine].breakage.set(false),
            Fault::Drift(machine, percent) => self.machines[machine].clock.set_drift(i64::from(*percent) * 10_000),
            Fault::SetClock(machine, ms) => self.machines[machine].clock.step_wall(*ms),
        }
        self.checker.look();
    }

    async fn set_gateway(&mut self, machine: Machine, is_plugged: bool) {
        let Some(radio) = self.radio.as_ref().filter(|_| Machine::EDGES.contains(&machine)) else { return };
        // A radio that has stopped is found by the end of the run.
        let _stopped = radio.set_server(gateway_eui(machine), is_plugged.then(|| machine.gateway_address())).await;
        let now_ms = self.now_ms();
        let Some(hardware) = self.machines.get_mut(&machine) else { return };
        hardware.is_unplugged = !is_plugged;
        match (is_plugged, hardware.node_running()) {
            (true, Some(_)) => hardware.begin_life(now_ms),
            (true, None) => {}
            (false, _) => hardware.end_life(now_ms),
        }
    }

    /// The machine is gone for good, and what only its disk had.
    fn destroy(&mut self, machine: Machine) {
        self.kill_machine(machine);
        if let Some(hardware) = self.machines.get_mut(&machine) {
            hardware.is_destroyed = true;
            hardware.lives.clear();
        }
    }

    fn isolate(&self, machine: Machine, both_ways: bool) {
        for other in Machine::ALL.into_iter().filter(|other| *other != machine) {
            self.links.cut(self.node_id(other), self.node_id(machine));
            if both_ways {
                self.links.cut(self.node_id(machine), self.node_id(other));
            }
        }
    }

    fn freeze(&mut self, machine: Machine) {
        let now_ms = self.now_ms();
        if let Some(process) = &self.machines[&machine].process {
            process.freeze();
            self.frozen_since_ms.entry(machine).or_insert(now_ms);
        }
    }

    fn thaw(&mut self, machine: Machine) {
        if let Some(process) = &self.machines[&machine].process {
            process.thaw();
        }
        if let Some(since_ms) = self.frozen_since_ms.remove(&machine) {
            self.thawed_ms.insert(machine, (since_ms, self.now_ms()));
        }
    }

    fn empty_disk(&mut self, machine: Machine) {
        let now_ms = self.now_ms();
        if let Some(hardware) = self.machines.get_mut(&machine) {
            hardware.disk.set_full(false);
            if hardware.node_running().is_some() {
                hardware.begin_life(now_ms);
            }
        }
    }

    /// Until when what a machine heard is surely on a disk, if its process ends now: what a frozen one has not read is gone with it.
    pub(crate) fn safe_until_ms(&self, machine: Machine) -> u64 {
        // Nor has one that was thawed a moment ago written what it found.
        let unwritten = self.thawed_ms.get(&machine).filter(|(_, at_ms)| self.now_ms() < at_ms + SAFE_AFTER_MS);
        let frozen = self.frozen_since_ms.get(&machine).copied().or(unwritten.map(|(since_ms, _)| *since_ms));
        frozen.unwrap_or_else(|| self.now_ms())
    }

    fn check_expectations(&self) {
        let expect = &self.script.expect;
        let by_insurer: Vec<_> =
            self.checker.gained().into_iter().filter(|(_, machine, _)| *machine == Machine::Patras).collect();
        if let Some(takeovers) = expect.takeovers
            && by_insurer.len() as u64 != takeovers
        {
            self.checker.violate(format!("{} takeovers instead of {takeovers}", by_insurer.len()));
        }
        if expect.undisturbed && self.checker.gained().len() != 1 {
            self.checker.violate(format!("custody moved: {:?}", self.checker.gained()));
        }
        if let Some(bound) = expect.takeover_ms_max {
            match self.takeover_ms() {
                Some(took) if took <= bound => {}
                took => self.checker.violate(format!("the takeover took {took:?} ms instead of {bound}")),
            }
        }
    }

    fn takeover_ms(&self) -> Option<u64> {
        let first_step_ms = self.first_step_ms?;
        let gained = self.checker.gained();
        let (at_ms, ..) = gained.iter().find(|(at_ms, machine, _)| *machine == Machine::Patras && *at_ms >= first_step_ms)?;
        Some(at_ms - first_step_ms)
    }

    async fn mend_everything(&mut self) {
        self.checker.log("all is mended");
        self.links.mend();
        self.links.set_usual(self.script.link);
        for machine in Machine::ALL {
            self.machines[&machine].disk.set_latency(Duration::ZERO);
            self.machines[&machine].breakage.set(false);
            self.empty_disk(machine);
            self.thaw(machine);
            self.start_machine(machine).await;
            self.set_gateway(machine, true).await;
        }
        self.open_marketplace();
        let bound = Duration::from_millis(RECOVERY_TTLS * self.script.ttl_ms);
        // Without a contract in force nobody needs a lease.
        let somebody_serves = |world: &mut Self| world.checker.holder().is_some() || (world.script.market && !world.is_insured());
        if !self.wait(bound, somebody_serves).await {
            self.checker.violate(format!("nobody holds {RECOVERY_TTLS} ttl after the last fault"));
        }
    }

    /// Until the customer serves again and its store has everything.
    async fn settle(&mut self) -> Option<Report> {
        if !self.wait(SETTLE, |world| world.is_settled()).await {
            self.checker.violate("the customer does not take custody back".to_owned());
            self.log_custody();
            self.log_market();
        }
        self.writes_settled = self.count_writes();
        let radio = self.radio.take()?;
        if let Err(error) = radio.drain(RADIO_DRAIN).await {
            self.checker.violate(format!("the radio stopped: {error}"));
        }
        if let Err(error) = radio.shutdown().await {
            self.checker.violate(format!("the radio failed: {error}"));
        }
        let deadline = Instant::now() + SETTLE;
        loop {
            let (is_open, is_awaited) = (self.has_open_readings().await, self.has_awaited_frames().await);
            if !is_open && !is_awaited {
                break;
            }
            if Instant::now() >= deadline {
                // A frame of a session that is over for this node waits on until its hours are past. Was its reading delivered? The audit knows.
                if is_open {
                    self.checker.violate("readings stay open".to_owned());
                }
                self.log_open_readings().await;
                break;
            }
            tokio::time::sleep(POLL).await;
        }
        if self.script.market {
            self.settle_market().await;
        }
        self.check_books().await;
        Some(self.audit().await)
    }
}

/// The identifier of an edge's gateway.
fn gateway_eui(machine: Machine) -> Eui64 {
    Eui64(0xaa55_5a00_0000_0100 + u64::from(machine.number()))
}

/// The lease of a scenario.
pub(crate) fn ttl(script: &Script) -> Millis {
    Millis(script.ttl_ms)
}
