//! A machine: clocks and disks that survive, and the process that runs on it while it does.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use contracts::ids::NodeId;
use edge_node::node::Running;
use edge_node::store::{FailPoint, Hook, MemoryDisk};
use kit::task::Process;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::clock::MachineClock;
use crate::engine::Breakage;
use crate::script::{Crash, Written};
use crate::votes::Votes;

/// The machines of a scenario.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Machine {
    /// The insured edge.
    Rio,
    /// The insurer's edge.
    Patras,
    Arbitrator,
    /// The customer's cloud node.
    Cloud,
}

impl Machine {
    pub const ALL: [Self; 4] = [Self::Rio, Self::Patras, Self::Arbitrator, Self::Cloud];
    /// Those that vote.
    pub const MEMBERS: [Self; 3] = [Self::Rio, Self::Patras, Self::Arbitrator];
    /// Those that can hold, each with a gateway.
    pub const EDGES: [Self; 2] = [Self::Rio, Self::Patras];

    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rio => "rio",
            Self::Patras => "patras",
            Self::Arbitrator => "arbitrator",
            Self::Cloud => "cloud",
        }
    }

    /// The number from which its keys are made.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Rio => 1,
            Self::Patras => 2,
            Self::Arbitrator => 3,
            Self::Cloud => 4,
        }
    }

    /// Where its gateway sends to.
    #[must_use]
    pub fn gateway_address(self) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, self.number()], 1_700))
    }
}

/// How a machine's disk behaves now; clones are the same disk.
#[derive(Debug, Clone, Default)]
pub struct Disk(Arc<Mutex<DiskState>>);

#[derive(Debug, Default)]
struct DiskState {
    latency: Duration,
    is_full: bool,
    /// A node's database, which counts its own writes.
    store: MemoryDisk,
    /// The arbitrator's database.
    database: Writes,
    votes: Writes,
    /// Rises when a process dies at a write: what it had open is dead.
    life: u64,
}

/// Writes, and the one at which the process dies.
#[derive(Debug, Default)]
struct Writes {
    done: u64,
    crash: Option<(FailPoint, Arc<Notify>)>,
}

impl DiskState {
    const fn writes_of(&mut self, of: Written) -> &mut Writes {
        match of {
            Written::Database => &mut self.database,
            Written::Votes => &mut self.votes,
        }
    }
}

impl Disk {
    fn state(&self) -> MutexGuard<'_, DiskState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a node's database is made on.
    #[must_use]
    pub fn database(&self) -> MemoryDisk {
        self.state().store.clone()
    }

    /// What one process writes on.
    #[must_use]
    pub fn open(&self) -> OpenDisk {
        let life = self.state().life;
        OpenDisk { disk: self.clone(), life }
    }

    /// Each write takes so long; a process that dies meanwhile has written nothing.
    pub fn set_latency(&self, latency: Duration) {
        let mut state = self.state();
        state.latency = latency;
        state.store.set_latency(latency);
    }

    /// While a disk is full, writes fail.
    pub fn set_full(&self, is_full: bool) {
        let mut state = self.state();
        state.is_full = is_full;
        state.store.set_full(is_full);
    }

    #[must_use]
    pub fn is_full(&self) -> bool {
        self.state().is_full
    }

    /// Writes of the database and of votes so far.
    #[must_use]
    pub fn writes(&self) -> (u64, u64) {
        let state = self.state();
        (state.store.writes() + state.database.done, state.votes.done)
    }

    /// The process dies at the write that `crash` counts from now on; `died` is told, and the write never returns.
    pub fn crash_at(&self, crash: &Crash, died: Arc<Notify>) {
        let (database, votes) = self.writes();
        let done = match crash.of {
            Written::Database => database,
            Written::Votes => votes,
        };
        let number = done + crash.write;
        let point = if crash.after { FailPoint::After(number) } else { FailPoint::Before(number) };
        match (crash.machine, crash.of) {
            (Machine::Rio | Machine::Patras | Machine::Cloud, Written::Database) => {
                let hook: Hook = Arc::new(move || died.notify_one());
                self.database().crash_at(point, hook);
            }
            (Machine::Arbitrator, Written::Database) | (_, Written::Votes) => {
                self.state().writes_of(crash.of).crash = Some((point, died));
            }
        }
    }
}

/// A disk as one process has it open.
#[derive(Debug, Clone)]
pub struct OpenDisk {
    disk: Disk,
    life: u64,
}

impl OpenDisk {
    /// Never returns if the process died at a write.
    pub async fn enter(&self) {
        if self.disk.state().life != self.life {
            std::future::pending::<()>().await;
        }
    }

    /// Writes durably: `apply` is what takes effect, at once; what it refuses is no write. `full` is what a caller hears of a full disk.
    ///
    /// # Errors
    /// The disk is full; those of `apply`.
    pub async fn write<T, E>(
        &self,
        of: Written,
        full: impl FnOnce() -> E + Send,
        apply: impl Future<Output = Result<T, E>> + Send,
    ) -> Result<T, E> {
        self.enter().await;
        let latency = self.disk.state().latency;
        if latency > Duration::ZERO {
            tokio::time::sleep(latency).await;
            self.enter().await;
        }
        if self.disk.is_full() {
            return Err(full());
        }
        let number = self.disk.state().writes_of(of).done + 1;
        self.die_at(of, FailPoint::Before(number)).await;
        let written = apply.await?;
        self.disk.state().writes_of(of).done = number;
        self.die_at(of, FailPoint::After(number)).await;
        Ok(written)
    }

    /// Never returns if the process is to die here.
    async fn die_at(&self, of: Written, here: FailPoint) {
        let died = {
            let mut state = self.disk.state();
            let died = state.writes_of(of).crash.take_if(|(point, _)| *point == here);
            state.life += u64::from(died.is_some());
            died
        };
        if let Some((_, died)) = died {
            died.notify_one();
            std::future::pending::<()>().await;
        }
    }
}

/// When a process could hear its gateway: from, to, in milliseconds of the simulation.
pub type Life = (u64, Option<u64>);

/// What stays of a machine, whatever happens to its processes.
#[derive(Debug)]
pub struct Hardware {
    pub machine: Machine,
    pub node: NodeId,
    pub clock: MachineClock,
    pub disk: Disk,
    pub votes: Votes,
    pub breakage: Breakage,
    /// Content by id; a directory in memory.
    pub content: tempfile::TempDir,
    /// The process that runs, if one does.
    pub process: Option<Process>,
    /// Its parts, for who looks on; set by the process when it is up.
    pub running: Arc<Mutex<Option<Arc<Running>>>>,
    pub lives: Vec<Life>,
    /// No process ever runs here again.
    pub is_destroyed: bool,
    /// Its gateway is silent.
    pub is_unplugged: bool,
    /// Nothing is owed of what it hears: contracts come and go.
    pub owes_nothing: bool,
}

impl Hardware {
    /// The node that runs here, if it is up.
    #[must_use]
    pub fn node_running(&self) -> Option<Arc<Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Its frames are owed from now on, unless its disk takes nothing or its gateway is silent.
    pub fn begin_life(&mut self, now_ms: u64) {
        if !self.disk.is_full()
            && !self.is_destroyed
            && !self.is_unplugged
            && !self.owes_nothing
            && self.lives.last().is_none_or(|(_, to)| to.is_some())
        {
            self.lives.push((now_ms, None));
        }
    }

    /// Its frames are not owed from now on.
    pub fn end_life(&mut self, now_ms: u64) {
        if let Some((_, to @ None)) = self.lives.last_mut() {
            *to = Some(now_ms);
        }
    }

    /// What it heard after this time is nowhere any more.
    pub fn forget_since(&mut self, ms: u64) {
        self.lives.retain(|(from, _)| *from < ms);
        for (_, to) in &mut self.lives {
            *to = Some(to.unwrap_or(ms).min(ms));
        }
    }
}

/// All machines by name.
pub type Machines = BTreeMap<Machine, Hardware>;
