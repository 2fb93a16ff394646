//! The orchestrator: brings the containers of every deployment to what is desired, again and again until it fits.
//!
//! - [`health`] — whether containers keep running (pure)
//! - [`plan`] — desired and observed in, steps out (pure)
//!
//! The reconciler takes no input but the desired state; it runs on every signal, on every engine event and on a timer. Starting a prepared
//! deployment takes the fast path: only `start`, nothing that creates, fetches or unpacks.

pub mod health;
pub mod plan;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use contracts::blueprint::{Blueprint, Service};
use contracts::ids::GroupId;
use engine::{ContainerName, ContainerSpec, ContainerState, Engine, ImageId, Limits, Mount, Network};
use futures_util::StreamExt as _;
use kit::clock::Clock;
use tokio::sync::{Mutex as AsyncMutex, watch};

use health::Health;
use plan::{Desired, Observed, Step};

/// Label that ties a container to its deployment.
pub const LABEL_GROUP: &str = "antirio.group";
/// The reconciler looks at everything at least so often.
const INTERVAL: Duration = Duration::from_secs(5);
/// A tenant has so long to end by itself.
const GRACE: Duration = Duration::from_millis(500);

/// Why a deployment is not what is desired.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the engine failed")]
    Engine(#[from] engine::Error),
    #[error("a container's specification is refused")]
    Spec(#[from] engine::spec::Error),
    #[error("the blueprint is refused")]
    Blueprint(#[from] contracts::envelope::Invalid),
    #[error("no such deployment: {0}")]
    Unknown(GroupId),
}

/// Services of one group of devices with the directory of their tenant socket.
#[derive(Debug, Clone)]
struct Deployment {
    specs: Vec<ContainerSpec>,
    desired: Desired,
    health: Health,
}

/// A handle; cheap to clone.
#[derive(Debug, Clone)]
pub struct Orchestrator {
    engine: Arc<dyn Engine>,
    clock: Clock,
    deployments: Arc<Mutex<BTreeMap<GroupId, Deployment>>>,
    /// One pass at a time, so that a step is never done twice.
    pass: Arc<AsyncMutex<()>>,
    wake: Arc<watch::Sender<u64>>,
}

/// The container's name: unique per group and service, stable over restarts.
fn container_name(group: GroupId, service: &Service) -> Result<ContainerName, Error> {
    Ok(format!("{}-{}", group.short(), service.name).parse()?)
}

fn specification(group: GroupId, service: &Service, socket_directory: PathBuf) -> Result<ContainerSpec, Error> {
    let clamp = |value: u64, max: u64| u32::try_from(value.min(max)).unwrap_or(u32::MAX);
    let image: ImageId = service.image_id.parse().map_err(engine::Error::Image)?;
    Ok(ContainerSpec {
        name: container_name(group, service)?,
        image,
        command: (!service.command.is_empty()).then(|| service.command.clone()),
        env: service.environment.clone(),
        mounts: vec![Mount { source: socket_directory, target: PathBuf::from(engine::spec::SOCKET_DIRECTORY), read_only: true }],
        limits: Limits {
            memory_bytes: service.memory_bytes_max.max(engine::spec::MEMORY_BYTES_MIN),
            cpu_millis: clamp(service.cpu_millis_max, u64::from(engine::spec::CPU_MILLIS_MAX)).max(engine::spec::CPU_MILLIS_MIN),
            pids: clamp(service.pids_max, u64::from(engine::spec::PIDS_MAX)).max(engine::spec::PIDS_MIN),
        },
        labels: BTreeMap::from([(LABEL_GROUP.to_owned(), group.to_string())]),
        network: Network::None,
    })
}

impl Orchestrator {
    /// Starts the reconciler over an engine whose containers of an earlier process have been recovered.
    #[must_use]
    pub fn start(engine: Arc<dyn Engine>, clock: Clock) -> Self {
        let wake = Arc::new(watch::Sender::new(0));
        let orchestrator = Self { engine, clock, deployments: Arc::default(), pass: Arc::default(), wake };
        kit::task::spawn(orchestrator.clone().reconcile_for_ever());
        orchestrator
    }

    #[must_use]
    pub fn engine(&self) -> &Arc<dyn Engine> {
        &self.engine
    }

    /// Puts a deployment under care, prepared or running, and brings it there.
    ///
    /// # Errors
    /// The blueprint or engine refuses; the reconciler goes on trying what the engine refused.
    pub async fn deploy(
        &self,
        group: GroupId,
        blueprint: &Blueprint,
        socket_directory: PathBuf,
        desired: Desired,
    ) -> Result<(), Error> {
        let services = blueprint.start_order()?;
        let specs = services.into_iter().map(|s| specification(group, s, socket_directory.clone())).collect::<Result<_, _>>()?;
        self.lock().insert(group, Deployment { specs, desired, health: Health::default() });
        self.reconcile().await
    }

    /// Starts what is prepared. Returns when the engine let the containers go.
    ///
    /// # Errors
    /// The deployment is unknown, or the engine failed; the reconciler goes on trying.
    pub async fn run(&self, group: GroupId) -> Result<(), Error> {
        self.set_desired(group, Desired::Running)?;
        let specs = self.lock().get(&group).map(|d| d.specs.clone()).ok_or(Error::Unknown(group))?;
        {
            // The fast path does not wait for a pass that is under way: starting is not repeated by it, because it sees the result.
            for spec in &specs {
                match self.engine.start(&spec.name).await {
                    Ok(()) => {}
                    // Runs already, or has to be created first: the reconciler's work.
                    Err(engine::Error::NotCreated { .. } | engine::Error::UnknownContainer(_)) => return self.reconcile().await,
                    Err(error) => {
                        self.wake.send_modify(|count| *count += 1);
                        return Err(error.into());
                    }
                }
            }
        }
        Ok(())
    }

    /// Ends what runs and prepares it anew.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub async fn stand_by(&self, group: GroupId) -> Result<(), Error> {
        self.set_desired(group, Desired::Prepared)?;
        self.reconcile().await
    }

    /// Removes a deployment's containers and forgets it.
    ///
    /// # Errors
    /// The engine failed; the reconciler goes on trying.
    pub async fn remove(&self, group: GroupId) -> Result<(), Error> {
        self.lock().remove(&group);
        self.reconcile().await
    }

    /// The node ends: a tenant without its node is of no use, so all containers of this node go.
    ///
    /// # Errors
    /// The engine failed; what is left is found by the next process of this node.
    pub async fn shut_down(&self) -> Result<(), Error> {
        self.lock().clear();
        self.reconcile().await
    }

    fn set_desired(&self, group: GroupId, desired: Desired) -> Result<(), Error> {
        self.lock().get_mut(&group).map(|d| d.desired = desired).ok_or(Error::Unknown(group))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<GroupId, Deployment>> {
        self.deployments.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn reconcile_for_ever(self) {
        let mut events = self.engine.events();
        let mut wake = self.wake.subscribe();
        loop {
            tokio::select! {
                biased;
                event = events.next() => match event {
                    Some(engine::Event::Exited { .. } | engine::Event::Missed { .. }) => {}
                    Some(engine::Event::Created { .. } | engine::Event::Started { .. } | engine::Event::Removed { .. }) => continue,
                    None => return,
                },
                woken = wake.changed() => if woken.is_err() { return },
                () = tokio::time::sleep(INTERVAL) => {}
            }
            if let Err(error) = self.reconcile().await {
                tracing::warn!(error = &error as &dyn std::error::Error, "the containers are not yet what is desired");
            }
        }
    }

    /// One pass over all deployments.
    async fn reconcile(&self) -> Result<(), Error> {
        let _only_one = self.pass.lock().await;
        let desired: BTreeMap<String, (ContainerSpec, Desired)> = {
            let deployments = self.lock();
            let all =
                deployments.values().flat_map(|d| d.specs.iter().map(|s| (s.name.as_str().to_owned(), (s.clone(), d.desired))));
            all.collect()
        };
        let wanted = desired.iter().map(|(name, (_, desired))| (name.clone(), *desired)).collect();
        let observed = self.engine.list().await?.into_iter().map(|c| (c.name.as_str().to_owned(), observed(c.state))).collect();
        self.note_health(&observed);
        let order: Vec<String> = self.lock().values().flat_map(|d| d.specs.iter().map(|s| s.name.as_str().to_owned())).collect();
        let mut first_error = None;
        for step in plan::steps(&wanted, &observed, &order) {
            if let Err(error) = self.perform(&step, &desired).await {
                tracing::warn!(?step, error = &error as &dyn std::error::Error, "a container step failed");
                first_error.get_or_insert(error);
            }
        }
        first_error.map_or(Ok(()), Err)
    }

    fn note_health(&self, observed: &BTreeMap<String, Observed>) {
        let now = self.clock.boot();
        for deployment in self.lock().values_mut().filter(|deployment| deployment.desired == Desired::Running) {
            if deployment.specs.iter().any(|spec| observed.get(spec.name.as_str()) != Some(&Observed::Running)) {
                deployment.health.note_end(now);
            }
        }
    }

    /// The containers of a group end again and again, or cannot be started. A group without containers does not fail.
    #[must_use]
    pub fn is_failing(&self, group: GroupId) -> bool {
        self.lock().get(&group).is_some_and(|deployment| deployment.health.is_failing(self.clock.boot()))
    }

    async fn perform(&self, step: &Step, desired: &BTreeMap<String, (ContainerSpec, Desired)>) -> Result<(), Error> {
        match step {
            Step::Remove(name) => {
                let name = name.parse()?;
                self.engine.stop(&name, GRACE).await?;
                self.engine.remove(&name).await?;
            }
            Step::Create(name) => {
                if let Some((spec, _)) = desired.get(name) {
                    self.engine.create(spec).await?;
                }
            }
            Step::Start(name) => match self.engine.start(&name.parse()?).await {
                // The fast path was faster.
                Ok(()) | Err(engine::Error::NotCreated { state: ContainerState::Running, .. }) => {}
                Err(error) => return Err(error.into()),
            },
        }
        Ok(())
    }

    /// What the services of a group use now, together.
    ///
    /// # Errors
    /// The deployment is unknown, or the engine failed.
    pub async fn usage(&self, group: GroupId) -> Result<engine::Stats, Error> {
        let names: BTreeSet<ContainerName> =
            self.lock().get(&group).map(|d| d.specs.iter().map(|s| s.name.clone()).collect()).ok_or(Error::Unknown(group))?;
        let mut sum = engine::Stats::default();
        for name in names {
            let stats = self.engine.stats(&name).await?;
            let add = |a: Option<u64>, b: Option<u64>| a.or(b).map(|_| a.unwrap_or(0) + b.unwrap_or(0));
            sum.memory_bytes = add(sum.memory_bytes, stats.memory_bytes);
            sum.cpu_ns = add(sum.cpu_ns, stats.cpu_ns);
            sum.pids = add(sum.pids, stats.pids);
        }
        Ok(sum)
    }
}

const fn observed(state: ContainerState) -> Observed {
    match state {
        ContainerState::Created => Observed::Created,
        ContainerState::Running => Observed::Running,
        ContainerState::Exited { .. } => Observed::Exited,
    }
}
