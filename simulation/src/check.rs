//! What must hold at every instant, told apart from the code that is to keep it.
//!
//! [`Checker::look`] is called at every message, downlink and step. It asks each running node for the lease that its bridge would check
//! (as the bridge does, against that machine's own clock), and nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use contracts::ids::{Epoch, GroupId};
use edge_node::node::Running;
use tokio::time::Instant;

use crate::machine::Machine;

/// Lines of the log at most; what comes later is counted only.
const LOG_LINES_MAX: usize = 100_000;
/// Violations that are told apart.
const VIOLATIONS_MAX: usize = 20;

/// The eye of a run; clones are the same.
#[derive(Debug, Clone)]
pub struct Checker(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    start: Instant,
    group: GroupId,
    /// Between two contracts the customer serves without a lease.
    serves_alone: bool,
    running: BTreeMap<Machine, Arc<Running>>,
    holder: Option<(Machine, Epoch)>,
    /// Who held which epoch.
    elected: BTreeMap<Epoch, Machine>,
    gained: Vec<(u64, Machine, Epoch)>,
    /// Epochs that were gained by a release, without a question: who held before had stopped.
    released: BTreeSet<Epoch>,
    downlinks: u64,
    looks: u64,
    violations: Vec<String>,
    log: Vec<String>,
    log_lines: u64,
}

impl Checker {
    #[must_use]
    pub fn new(start: Instant, group: GroupId, serves_alone: bool) -> Self {
        Self(Arc::new(Mutex::new(State {
            start,
            group,
            serves_alone,
            running: BTreeMap::new(),
            holder: None,
            elected: BTreeMap::new(),
            gained: Vec::new(),
            released: BTreeSet::new(),
            downlinks: 0,
            looks: 0,
            violations: Vec::new(),
            log: Vec::new(),
            log_lines: 0,
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A node is up on a machine, or none is any more.
    pub fn set_running(&self, machine: Machine, running: Option<Arc<Running>>) {
        let mut state = self.state();
        match running {
            Some(running) => state.running.insert(machine, running),
            None => state.running.remove(&machine),
        };
    }

    /// Looks who holds at this instant.
    pub fn look(&self) {
        self.state().look();
    }

    /// A downlink leaves a machine: it holds, and nobody else does.
    pub fn note_downlink(&self, machine: Machine) {
        let mut state = self.state();
        state.look();
        state.downlinks += 1;
        let is_alone = state.serves_alone && state.holder.is_none() && machine == Machine::Rio;
        if !is_alone && state.holder.is_none_or(|(holder, _)| holder != machine) {
            let holder = state.holder;
            state.violate(format!("{} transmits while {holder:?} holds", machine.name()));
        }
    }

    /// Who holds now, as far as was seen at the last look.
    #[must_use]
    pub fn holder(&self) -> Option<(Machine, Epoch)> {
        let mut state = self.state();
        state.look();
        state.holder
    }

    /// Something that must not be.
    pub fn violate(&self, what: String) {
        self.state().violate(what);
    }

    /// A line of the log.
    pub fn log(&self, what: impl AsRef<str>) {
        self.state().log(what.as_ref());
    }

    /// Milliseconds since the start.
    #[must_use]
    pub fn now_ms(&self) -> u64 {
        self.state().now_ms()
    }

    /// When custody was gained, by whom, in which epoch.
    #[must_use]
    pub fn gained(&self) -> Vec<(u64, Machine, Epoch)> {
        self.state().gained.clone()
    }

    /// When custody was gained by a vote, not by the release of the holder before, in milliseconds since the start.
    #[must_use]
    pub fn elected_ms(&self) -> Vec<u64> {
        let state = self.state();
        state.gained.iter().filter(|(.., epoch)| !state.released.contains(epoch)).map(|(at_ms, ..)| *at_ms).collect()
    }

    #[must_use]
    pub fn downlinks(&self) -> u64 {
        self.state().downlinks
    }

    #[must_use]
    pub fn looks(&self) -> u64 {
        self.state().looks
    }

    /// The log and the violations.
    #[must_use]
    pub fn finish(&self) -> (Vec<String>, Vec<String>) {
        let mut state = self.state();
        state.running.clear();
        (std::mem::take(&mut state.log), std::mem::take(&mut state.violations))
    }
}

impl State {
    fn now_ms(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn log(&mut self, what: &str) {
        self.log_lines += 1;
        if self.log.len() < LOG_LINES_MAX {
            self.log.push(format!("{:>8} {what}", self.now_ms()));
        }
    }

    fn violate(&mut self, what: String) {
        self.log(&format!("VIOLATION {what}"));
        if self.violations.len() < VIOLATIONS_MAX && !self.violations.contains(&what) {
            self.violations.push(what);
        }
    }

    fn look(&mut self) {
        self.looks += 1;
        let group = self.group;
        let epoch = |running: &Running| running.custody.hold(group).and_then(|hold| hold.epoch());
        let mut holders = self.running.iter().filter_map(|(machine, running)| Some((*machine, epoch(running)?)));
        let (first, second) = (holders.next(), holders.next());
        drop(holders);
        if let (Some(first), Some(second)) = (first, second) {
            self.violate(format!("two holders: {first:?} and {second:?}"));
        }
        if first == self.holder {
            return;
        }
        self.holder = first;
        match first {
            Some((machine, epoch)) => self.note_election(machine, epoch),
            None => self.log("nobody holds"),
        }
    }

    fn note_election(&mut self, machine: Machine, epoch: Epoch) {
        self.log(&format!("{} holds epoch {epoch}", machine.name()));
        let known = *self.elected.entry(epoch).or_insert(machine);
        if known != machine {
            self.violate(format!("epoch {epoch} was held by {} and by {}", known.name(), machine.name()));
        }
        if self.elected.keys().next_back().is_some_and(|highest| *highest > epoch) {
            self.violate(format!("epoch {epoch} is held after a higher one"));
        }
        if self.gained.last().is_none_or(|(_, last, of)| (*last, *of) != (machine, epoch)) {
            let now_ms = self.now_ms();
            self.gained.push((now_ms, machine, epoch));
            if self.was_released(machine, epoch) {
                self.released.insert(epoch);
            }
        }
    }

    /// Whether a holder claimed its epoch without asking for it. Lease and view of a node change together.
    fn was_released(&self, machine: Machine, epoch: Epoch) -> bool {
        let view = self.running.get(&machine).and_then(|running| running.custody.subscribe(self.group));
        let gained = view.and_then(|view| view.borrow().gained).filter(|gained| gained.epoch == epoch);
        gained.is_some_and(|gained| gained.asked_at.is_none())
    }
}
