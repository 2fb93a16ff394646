//! Docker Swarm under the same faults as Antirio: three engines in three network namespaces, a service of one replica, its image
//! present on all.
//!
//! The manager does not serve: a manager alone that is cut off has no quorum, and nothing would be started anywhere. An outage is
//! counted from the fault to the moment in which another container of the service runs; what the workload needs after that to serve is
//! not counted.

mod engine;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use self::engine::{Engine, Litter};

const SERVICE: &str = "workload";
/// Of both: long enough for anything that Swarm does by itself.
const OUTAGE_MAX: Duration = Duration::from_secs(180);
/// From healing to three nodes that are ready and one container that runs.
const SETTLE_MAX: Duration = Duration::from_secs(180);
/// Undisturbed for so long before the next fault.
const QUIET: Duration = Duration::from_secs(3);
/// Between two looks at the engines.
const LOOK: Duration = Duration::from_millis(5);

/// What happens to the node that serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    LinkCut,
    EngineKilled,
    WorkloadKilled,
}

impl Fault {
    const ALL: [Self; 3] = [Self::LinkCut, Self::EngineKilled, Self::WorkloadKilled];

    const fn name(self) -> &'static str {
        match self {
            Self::LinkCut => "link_cut",
            Self::EngineKilled => "engine_killed",
            Self::WorkloadKilled => "workload_killed",
        }
    }
}

/// One kind of fault, run after run.
#[derive(Debug)]
struct Kind {
    fault: Fault,
    /// Milliseconds, as they came.
    outages: Vec<u128>,
    /// Runs in which the old container still ran on its node when the new one did.
    two_at_once: u32,
}

/// What was found.
#[derive(Debug)]
pub struct Measured(Vec<Kind>);

impl Measured {
    /// `{"link_cut": {"p50": .., "p99": .., "max": .., "two_at_once": .., "ms": [..]}, ..}`
    pub fn json(&self) -> String {
        let mut text = String::from("{");
        for (place, Kind { fault, outages, two_at_once }) in self.0.iter().enumerate() {
            let mut sorted = outages.clone();
            sorted.sort_unstable();
            let at = |percent: usize| sorted.get((sorted.len() * percent).div_ceil(100).max(1) - 1).copied().unwrap_or_default();
            let comma = if place == 0 { "" } else { ", " };
            let (p50, p99, max) = (at(50), at(99), sorted.last().copied().unwrap_or_default());
            let written = write!(
                text,
                "{comma}\"{}\": {{\"p50\": {p50}, \"p99\": {p99}, \"max\": {max}, \"two_at_once\": {two_at_once}, \"ms\": {outages:?}}}",
                fault.name()
            );
            debug_assert!(written.is_ok(), "text takes everything");
        }
        text + "}"
    }
}

/// Why this machine cannot do it, if so.
pub fn missing() -> Option<String> {
    if !crate::packages::is_root() {
        return Some("network namespaces and dockerd need root".to_owned());
    }
    let lacks = |program: &&str| !Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success());
    ["dockerd", "docker", "nsenter"].iter().find(|program| lacks(program)).map(|program| format!("{program} is not installed"))
}

/// Runs every fault `runs` times. Whatever it started is gone afterwards, also if the one that started us ends first: then our
/// standard input does.
pub fn measure(image: &Path, runs: u32) -> Result<Measured, String> {
    let litter = Arc::new(Mutex::new(Litter::new()?));
    let watched = Arc::clone(&litter);
    std::thread::spawn(move || {
        let mut line = String::new();
        while std::io::stdin().read_line(&mut line).is_ok_and(|bytes| bytes > 0) {
            line.clear();
        }
        watched.lock().unwrap_or_else(PoisonError::into_inner).clear();
        std::process::exit(130);
    });
    let measured = Swarm::start(&litter, image).and_then(|mut swarm| swarm.all(runs));
    litter.lock().unwrap_or_else(PoisonError::into_inner).clear();
    measured
}

struct Swarm {
    engines: Vec<Engine>,
}

impl Swarm {
    fn start(litter: &Arc<Mutex<Litter>>, image: &Path) -> Result<Self, String> {
        let engines = (1..=3).map(|number| Engine::start(litter, number)).collect::<Result<Vec<_>, _>>()?;
        let [manager, workers @ ..] = engines.as_slice() else { return Err("three engines".to_owned()) };
        manager.docker(&["swarm", "init", "--advertise-addr", &manager.address])?;
        let token = manager.docker(&["swarm", "join-token", "--quiet", "worker"])?;
        for worker in workers {
            let at = format!("{}:2377", manager.address);
            worker.docker(&["swarm", "join", "--token", token.trim(), "--advertise-addr", &worker.address, &at])?;
        }
        let image = image.to_str().ok_or("the image's path is not text")?;
        let mut name = String::new();
        for engine in &engines {
            let loaded = engine.docker(&["load", "--quiet", "--input", image])?;
            name = loaded.trim().rsplit("Loaded image: ").next().unwrap_or_default().to_owned();
        }
        // No network but the host's, and no registry: the image is on every node.
        let service = ["service", "create", "--name", SERVICE, "--replicas", "1", "--network", "host", "--no-resolve-image"];
        let rest = ["--detach", "--constraint", "node.role==worker", &name];
        manager.docker(&[&service[..], &rest[..]].concat())?;
        println!("Docker Swarm: {} engines, service of one replica of {name}", engines.len());
        Ok(Self { engines })
    }

    fn all(&mut self, runs: u32) -> Result<Measured, String> {
        let mut measured = Vec::new();
        for fault in Fault::ALL {
            let mut kind = Kind { fault, outages: Vec::new(), two_at_once: 0 };
            for run in 1..=runs {
                let (outage, is_second) = self.once(fault)?;
                println!("swarm {} {run}/{runs}: {} ms", fault.name(), outage.as_millis());
                kind.outages.push(outage.as_millis());
                kind.two_at_once += u32::from(is_second);
            }
            measured.push(kind);
        }
        Ok(Measured(measured))
    }

    /// The outage, and whether the old container ran on when the new one did.
    fn once(&mut self, fault: Fault) -> Result<(Duration, bool), String> {
        let (serving, container) = self.settle()?;
        let begun = Instant::now();
        match fault {
            Fault::LinkCut => self.engines[serving].set_link(false)?,
            Fault::EngineKilled => self.engines[serving].kill()?,
            Fault::WorkloadKilled => self.engines[serving].kill_container(&container)?,
        }
        let outage = loop {
            // A node that is cut off or whose engine is dead does not count: nobody is served by what runs there.
            let reached = |place: usize| place != serving || fault == Fault::WorkloadKilled;
            let others = self.engines.iter().enumerate().filter(|(place, _)| reached(*place));
            if others.flat_map(|(_, engine)| engine.running()).any(|id| id != container) {
                break begun.elapsed();
            }
            if begun.elapsed() > OUTAGE_MAX {
                return Err(format!("{}: no other container in {} s", fault.name(), OUTAGE_MAX.as_secs()));
            }
            std::thread::park_timeout(LOOK);
        };
        let is_second = self.engines[serving].running().contains(&container);
        match fault {
            Fault::LinkCut => self.engines[serving].set_link(true)?,
            Fault::EngineKilled => self.engines[serving].restart()?,
            Fault::WorkloadKilled => {}
        }
        Ok((outage, is_second))
    }

    /// Waits until three nodes are ready and exactly one container runs, and stays; gives its engine and its id.
    fn settle(&self) -> Result<(usize, String), String> {
        let begun = Instant::now();
        let mut since: Option<(Instant, Vec<(usize, String)>)> = None;
        loop {
            let running: Vec<(usize, String)> = self
                .engines
                .iter()
                .enumerate()
                .flat_map(|(place, engine)| engine.running().into_iter().map(move |id| (place, id)))
                .collect();
            match &since {
                Some((still, known)) if *known == running && running.len() == 1 => {
                    let ready = self.engines[0].docker(&["node", "ls", "--format", "{{.Status}}"]).unwrap_or_default();
                    let all_ready = ready.lines().filter(|line| *line == "Ready").count() == self.engines.len();
                    if all_ready && still.elapsed() >= QUIET {
                        return Ok(running[0].clone());
                    }
                }
                Some(_) | None => since = Some((Instant::now(), running)),
            }
            if begun.elapsed() > SETTLE_MAX {
                return Err(format!("the swarm did not settle in {} s", SETTLE_MAX.as_secs()));
            }
            std::thread::park_timeout(Duration::from_millis(200));
        }
    }
}

/// Where the comparison keeps its files.
pub fn directory() -> PathBuf {
    std::env::temp_dir().join(format!("antirio-swarm-{}", std::process::id()))
}
