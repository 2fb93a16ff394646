//! Containers without a kernel: a container is a process of the simulation that runs the real LoRa device service, and its socket a pipe.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use contracts::ids::GroupId;
use edge_node::tenants::doors::{Connection, Door, Doors};
use engine::image::ImageId;
use engine::spec::{ContainerName, ContainerSpec};
use engine::{
    Capabilities, ContainerState, ContainerStatus, Engine, Error, Event, ImageSource, Kind, LimitSupport, Recovery, Stats,
};
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use kit::task::Process;
use tokio::sync::{broadcast, mpsc};

/// From [`Engine::start`] to the service's first instruction.
const START: Duration = Duration::from_millis(2);
/// Bytes under way on a tenant's connection.
const PIPE_BYTES: usize = 64 << 10;
/// Events that a slow reader may miss.
const EVENTS_MAX: usize = 256;

/// The doors of one node process, and the containers that know them; clones are the same ones.
#[derive(Debug, Clone, Default)]
pub struct Street(Arc<Mutex<BTreeMap<PathBuf, mpsc::UnboundedSender<Connection>>>>);

impl Street {
    fn open_doors(&self) -> MutexGuard<'_, BTreeMap<PathBuf, mpsc::UnboundedSender<Connection>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn connect(&self, directory: &Path) -> io::Result<Box<dyn tenant::Duplex>> {
        let (near, far) = tokio::io::duplex(PIPE_BYTES);
        let door = self.open_doors().get(directory).cloned().ok_or(io::ErrorKind::NotFound)?;
        door.send(Box::new(far)).map_err(|_| io::ErrorKind::ConnectionRefused)?;
        Ok(Box::new(near))
    }
}

impl Doors for Street {
    fn open(&self, group: GroupId) -> io::Result<Door> {
        let directory = PathBuf::from("/run/tenants").join(group.to_string());
        let (knock, mut knocks) = mpsc::unbounded_channel();
        self.open_doors().insert(directory.clone(), knock);
        let connections = futures_util::stream::poll_fn(move |context| knocks.poll_recv(context)).map(Ok).boxed();
        Ok(Door { directory, connections })
    }

    fn remove(&self, group: GroupId) -> io::Result<()> {
        self.open_doors().remove(&PathBuf::from("/run/tenants").join(group.to_string()));
        Ok(())
    }
}

#[derive(Debug)]
struct Container {
    spec: ContainerSpec,
    state: ContainerState,
    process: Process,
}

/// Whether containers of a machine end at once, and cannot be started; clones are the same one.
#[derive(Debug, Clone, Default)]
pub struct Breakage(Arc<AtomicBool>);

impl Breakage {
    pub fn set(&self, is_broken: bool) {
        self.0.store(is_broken, Ordering::Relaxed);
    }

    fn is_broken(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// The engine of one node process; its containers end with it.
pub struct Simulated {
    street: Street,
    breakage: Breakage,
    containers: Mutex<BTreeMap<ContainerName, Container>>,
    events: broadcast::Sender<Event>,
}

impl fmt::Debug for Simulated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Simulated").finish_non_exhaustive()
    }
}

impl Simulated {
    #[must_use]
    pub fn new(street: Street, breakage: Breakage) -> Self {
        Self { street, breakage, containers: Mutex::default(), events: broadcast::Sender::new(EVENTS_MAX) }
    }

    fn containers(&self) -> MutexGuard<'_, BTreeMap<ContainerName, Container>> {
        self.containers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, event: Event) {
        // Nobody may listen.
        let _ = self.events.send(event);
    }
}

impl Drop for Simulated {
    fn drop(&mut self) {
        for container in self.containers().values() {
            container.process.kill();
        }
    }
}

#[async_trait]
impl Engine for Simulated {
    fn kind(&self) -> Kind {
        Kind::Embedded
    }

    async fn probe(&self) -> Result<Capabilities, Error> {
        Ok(Capabilities {
            kind: Kind::Embedded,
            version: "simulated".to_owned(),
            missing: Vec::new(),
            warnings: Vec::new(),
            limits: LimitSupport::default(),
            bridge: false,
            fast_start: true,
        })
    }

    async fn recover(&self) -> Result<Recovery, Error> {
        Ok(Recovery::default())
    }

    async fn load_image(&self, _source: ImageSource, expected: Option<&ImageId>) -> Result<ImageId, Error> {
        expected.cloned().ok_or_else(|| Error::Unavailable { kind: Kind::Embedded, missing: vec!["image names".to_owned()] })
    }

    async fn has_image(&self, _image: &ImageId) -> Result<bool, Error> {
        Ok(true)
    }

    async fn remove_image(&self, _image: &ImageId) -> Result<bool, Error> {
        Ok(true)
    }

    async fn create(&self, spec: &ContainerSpec) -> Result<(), Error> {
        let container = Container { spec: spec.clone(), state: ContainerState::Created, process: Process::default() };
        if self.containers().insert(spec.name.clone(), container).is_some() {
            return Err(Error::Exists(spec.name.clone()));
        }
        self.tell(Event::Created { name: spec.name.clone() });
        Ok(())
    }

    async fn start(&self, name: &ContainerName) -> Result<(), Error> {
        tokio::time::sleep(START).await;
        if self.breakage.is_broken() {
            return Err(Error::Unavailable { kind: Kind::Embedded, missing: vec!["containers that run".to_owned()] });
        }
        {
            let mut containers = self.containers();
            let container = containers.get_mut(name).ok_or_else(|| Error::UnknownContainer(name.clone()))?;
            if container.state != ContainerState::Created {
                return Err(Error::NotCreated { name: name.clone(), state: container.state });
            }
            container.state = ContainerState::Running;
            let (street, directory) = (self.street.clone(), container.spec.mounts.first().map(|mount| mount.source.clone()));
            container.process.run(async move {
                let directory = directory.unwrap_or_default();
                let client = tenant::Client::over(Arc::new(move || {
                    let connected = street.connect(&directory);
                    Box::pin(async move { connected })
                }));
                lora_device_service::service::run(&client, &|_line: &str| {}).await
            });
        }
        self.tell(Event::Started { name: name.clone() });
        Ok(())
    }

    async fn stop(&self, name: &ContainerName, _grace: Duration) -> Result<ContainerState, Error> {
        let mut containers = self.containers();
        let container = containers.get_mut(name).ok_or_else(|| Error::UnknownContainer(name.clone()))?;
        if container.state == ContainerState::Running {
            container.process.kill();
            container.state = ContainerState::Exited { code: Some(0) };
        }
        Ok(container.state)
    }

    async fn remove(&self, name: &ContainerName) -> Result<bool, Error> {
        let removed = self.containers().remove(name);
        if let Some(container) = &removed {
            container.process.kill();
            self.tell(Event::Removed { name: name.clone() });
        }
        Ok(removed.is_some())
    }

    async fn list(&self) -> Result<Vec<ContainerStatus>, Error> {
        let mut containers = self.containers();
        for container in containers.values_mut().filter(|_| self.breakage.is_broken()) {
            container.process.kill();
            container.state = ContainerState::Exited { code: Some(1) };
        }
        let status = |(name, container): (&ContainerName, &Container)| ContainerStatus {
            name: name.clone(),
            state: container.state,
            pid: None,
            image: container.spec.image,
            labels: container.spec.labels.clone(),
        };
        Ok(containers.iter().map(status).collect())
    }

    async fn stats(&self, _name: &ContainerName) -> Result<Stats, Error> {
        Ok(Stats::default())
    }

    async fn wait(&self, _name: &ContainerName) -> Result<Option<i32>, Error> {
        // The service ends only with its container.
        std::future::pending().await
    }

    async fn logs(&self, _name: &ContainerName, _bytes_max: usize) -> Result<Vec<u8>, Error> {
        Ok(Vec::new())
    }

    fn events(&self) -> BoxStream<'static, Event> {
        let events = self.events.subscribe();
        futures_util::stream::unfold(events, |mut events| async move {
            match events.recv().await {
                Ok(event) => Some((event, events)),
                Err(broadcast::error::RecvError::Lagged(count)) => Some((Event::Missed { count }, events)),
                Err(broadcast::error::RecvError::Closed) => None,
            }
        })
        .boxed()
    }
}
