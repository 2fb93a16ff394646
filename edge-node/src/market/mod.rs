//! The market agent of a node: from "wants insurance" or "has something to spare" to a contract in standby, and from its end to the money.
//!
//! One planner ([`plan`]) looks at what is listed, matched and agreed and says what is to be done; one runner does it, each step in a task of
//! its own, again with growing pauses until it succeeds. Everything that matters is on disk here, at the marketplace or at the arbitrator, so
//! a restart goes on where it stopped.
//!
//! - [`plan`] — what to do next (pure); [`sessions`] — negotiations of a provider (pure); [`patience`] — pauses after what went wrong (pure)
//! - `listings`, `text` — what is listed and what a contract says (pure)
//! - `registry` — own record at marketplace and arbitrator, records of others; `view` — what the marketplace shows of us
//! - `customer`, `provider` — the two sides' steps; `court` — contracts at the arbitrator
//! - [`evidence`] — signed statements on their way to the arbitrator
//! - `http` — the routes for peers; `runner` — steps as tasks

pub mod error;
pub mod evidence;
pub mod patience;
pub mod plan;
pub mod sessions;

mod court;
mod customer;
mod http;
mod listings;
mod provider;
mod registry;
mod runner;
mod text;
mod usage;
mod view;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ::arbitrator::resource::AccountView;
use axum::Router;
use contracts::evidence::ReadinessChallenge;
use contracts::ids::{ContractId, NodeId, StatementId};
use contracts::time::WallTime;
use serde::Serialize;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

use crate::config::Config;
use crate::core::Core;
use crate::dmu::estimate::Estimate;
use crate::timeline::Event;

pub use error::Error;
use plan::Step;
use sessions::Sessions;
use usage::Use;
use view::View;

/// Starts agents.
#[derive(Debug, Clone, Copy)]
pub struct Agent;

/// The central services that a node talks to; those that are absent rest.
#[derive(Debug, Clone, Default)]
pub struct Services {
    pub marketplace: Option<marketplace::client::Client>,
    pub arbitrator: Option<::arbitrator::Client>,
}

impl Services {
    /// Those that a configuration names, over HTTP.
    ///
    /// # Errors
    /// An address in the configuration is no address.
    pub fn of(config: &Config) -> Result<Self, Error> {
        let marketplace = config.marketplace.as_ref().map(|m| marketplace::client::Client::new(&m.url)).transpose()?;
        let arbitrator = config.arbitrator.as_ref().map(|a| ::arbitrator::Client::new(&a.url)).transpose()?;
        Ok(Self { marketplace, arbitrator })
    }
}

/// A running agent; cheap to clone. It runs until [`AgentHandle::stop`] or the end of the runtime.
#[derive(Debug, Clone)]
pub struct AgentHandle {
    inner: Arc<Inner>,
    stop: Arc<watch::Sender<bool>>,
    stopped: watch::Receiver<bool>,
}

/// What the parts of an agent share.
#[derive(Debug)]
struct Inner {
    core: Arc<Core>,
    marketplace: Option<marketplace::client::Client>,
    arbitrator: Option<::arbitrator::Client>,
    /// The marketplace's key, once it is known.
    pinned: watch::Sender<Option<NodeId>>,
    /// The marketplace has our record.
    registered: AtomicBool,
    view: Mutex<View>,
    used: Mutex<Use>,
    sessions: Mutex<Sessions>,
    /// One signature under a foreign text at a time.
    signing: tokio::sync::Mutex<()>,
    memory: Mutex<Memory>,
    /// Something changed that the planner should look at.
    wake: Notify,
    /// Something changed that the marketplace should be asked about.
    ask_marketplace: Notify,
}

/// What may be forgotten in a restart: it is found or made again.
#[derive(Debug, Default)]
struct Memory {
    given_up: BTreeSet<StatementId>,
    tries: BTreeMap<StatementId, u32>,
    admitted: BTreeSet<StatementId>,
    announced: BTreeSet<(ContractId, NodeId)>,
    /// Since when a contract waits for the arbitrator, as a provider sees it.
    agreed_since: BTreeMap<ContractId, WallTime>,
    /// Since when this node tries to become ready.
    preparing_since: BTreeMap<ContractId, WallTime>,
    /// Of the other party or the arbitrator, this node being the customer.
    refusals: patience::Refusals,
    /// When a contract was first seen to have ended badly.
    failed_since: BTreeMap<ContractId, WallTime>,
    /// Challenges that this node, as a customer, gave and that wait for an answer.
    challenges: BTreeMap<ContractId, ReadinessChallenge>,
    alarms: BTreeSet<String>,
    accounts: Vec<AccountView>,
    failures: BTreeMap<Step, Failing>,
    looks: u64,
}

/// A step that does not succeed yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Failing {
    times: u32,
    last: String,
}

/// How it stands, for the operator.
#[derive(Debug, Clone, Serialize)]
pub struct Status {
    /// The marketplace whose matches count; absent until it was reached once.
    pub marketplace: Option<NodeId>,
    pub registered: bool,
    pub offers: Vec<StatementId>,
    pub demands: Vec<StatementId>,
    /// Matches held or confirmed.
    pub matches: Vec<StatementId>,
    pub negotiations: usize,
    /// What insurance would be asked for, and why.
    pub estimate: Option<Estimate>,
    /// The owner's accounts as the arbitrator showed them last.
    pub accounts: Vec<AccountView>,
    pub evidence_waiting: usize,
    pub evidence_dropped: u64,
    /// Steps that are tried again, with the last reason.
    pub failing: Vec<String>,
    /// How often the planner has looked at everything since the agent started; at least once a second while it is well.
    pub looks: u64,
}

impl Agent {
    /// Starts the agent of a node over HTTP. Without marketplace, arbitrator or policy in the configuration the parts that need them rest.
    ///
    /// # Errors
    /// An address in the configuration is no address.
    pub fn start(core: Arc<Core>) -> Result<AgentHandle, Error> {
        let services = Services::of(&core.config)?;
        Ok(Self::start_with(core, services))
    }

    /// As [`Self::start`], with marketplace and arbitrator wherever they are.
    #[must_use]
    pub fn start_with(core: Arc<Core>, services: Services) -> AgentHandle {
        let Services { marketplace, arbitrator } = services;
        let inner = Arc::new(Inner {
            core,
            marketplace,
            arbitrator,
            pinned: watch::Sender::new(None),
            registered: AtomicBool::new(false),
            view: Mutex::default(),
            used: Mutex::default(),
            sessions: Mutex::default(),
            signing: tokio::sync::Mutex::default(),
            memory: Mutex::default(),
            wake: Notify::new(),
            ask_marketplace: Notify::new(),
        });
        let (stop, mut stopping) = watch::channel(false);
        let (ended, stopped) = watch::channel(false);
        let mut tasks = tasks(&inner);
        kit::task::spawn(async move {
            if stopping.wait_for(|stop| *stop).await.is_ok() {
                tasks.shutdown().await;
            } else {
                // Nobody can stop it any more: it runs as long as the runtime.
                while tasks.join_next().await.is_some() {}
            }
            ended.send_replace(true);
        });
        AgentHandle { inner, stop: Arc::new(stop), stopped }
    }
}

fn tasks(inner: &Arc<Inner>) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    tasks.spawn(kit::task::belong(registry::keep_records(Arc::clone(inner))));
    tasks.spawn(kit::task::belong(usage::measure(Arc::clone(inner))));
    tasks.spawn(kit::task::belong(runner::run(Arc::clone(inner))));
    if let Some(client) = &inner.marketplace {
        tasks.spawn(kit::task::belong(view::follow(Arc::clone(inner), client.clone())));
    }
    if let Some(client) = &inner.arbitrator {
        tasks.spawn(kit::task::belong(court::follow(Arc::clone(inner), client.clone())));
        let (core, client) = (Arc::clone(&inner.core), client.clone());
        tasks.spawn(kit::task::belong(async move { evidence::send_all(&core, client).await }));
    }
    tasks
}

impl AgentHandle {
    /// The routes for peers; to be merged with the others of this node and served over the peering transport.
    pub fn router(&self) -> Router {
        http::router(Arc::clone(&self.inner))
    }

    /// Ends all tasks; steps under way are cut off and found again by the next start.
    pub async fn stop(&self) {
        self.stop.send_replace(true);
        let mut stopped = self.stopped.clone();
        let _ended_or_gone = stopped.wait_for(|ended| *ended).await;
    }

    #[must_use]
    pub fn status(&self) -> Status {
        self.inner.status()
    }
}

/// The routes for peers, see [`AgentHandle::router`].
pub fn router(agent: &AgentHandle) -> Router {
    agent.router()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Inner {
    fn now(&self) -> WallTime {
        self.core.clock.wall()
    }

    fn marketplace(&self) -> Result<&marketplace::client::Client, Error> {
        self.marketplace.as_ref().ok_or(Error::NotYet("no marketplace is configured"))
    }

    fn arbitrator(&self) -> Result<&::arbitrator::Client, Error> {
        self.arbitrator.as_ref().ok_or(Error::NotYet("no arbitrator is configured"))
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        lock(&self.memory)
    }

    /// Tells the operator, once per text.
    fn alarm(&self, what: String) {
        let mut memory = self.memory();
        if memory.alarms.len() < 1_000 && memory.alarms.insert(what.clone()) {
            self.core.timeline.push(Event::Alarm { what });
        }
    }

    fn status(&self) -> Status {
        let view = lock(&self.view).clone();
        let memory = self.memory();
        Status {
            marketplace: *self.pinned.borrow(),
            registered: self.registered.load(std::sync::atomic::Ordering::Relaxed),
            offers: view.offers.iter().map(|(id, _)| *id).collect(),
            demands: view.demands.iter().map(|(id, _)| *id).collect(),
            matches: view.matches.iter().map(|m| m.id).collect(),
            negotiations: lock(&self.sessions).len(),
            estimate: self.estimate(),
            accounts: memory.accounts.clone(),
            evidence_waiting: evidence::count_waiting(&self.core),
            evidence_dropped: self.core.outbox.dropped(),
            failing: memory
                .failures
                .iter()
                .map(|(step, failing)| format!("{step:?}, {} times: {}", failing.times, failing.last))
                .collect(),
            looks: memory.looks,
        }
    }
}
