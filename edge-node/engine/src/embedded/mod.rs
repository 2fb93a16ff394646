//! Containers without a daemon: `libcontainer` makes them, this process watches them.
//!
//! A created container is a live process that waits, with every namespace, mount, limit and filter in place; [`Engine::start`] writes
//! one line to its socket. It survives this process: [`Engine::recover`] takes it over by its control group.
//!
//! What guards the node from a tenant: namespaces of its own (pid, net, ipc, uts, mount, cgroup), user 65534, no capability, no new
//! privileges, the system-call filters of `seccomp`, a read-only root, limits of memory, CPU, processes, open files and log.
//! What does not: there is no user namespace, so a kernel bug is met by an unprivileged user of the host, not by a mapped one. The
//! paths for cgroup version 2 are small and share everything with version 1 but file names.

mod bundle;
mod cgroups;
mod container;
mod helper;
mod probe;
mod process;
mod seccomp;
mod sys;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use tokio::sync::broadcast;
use tokio_stream::wrappers::BroadcastStream;
use tokio_stream::wrappers::errors::BroadcastStreamRecvError;

use crate::image::{ImageId, ImageLimits, Store};
use crate::spec::{ContainerName, ContainerSpec, NodePrefix};
use crate::{Capabilities, ContainerState, ContainerStatus, Engine, Error, Event, ImageSource, Kind, Recovery, Stats};

pub use bundle::LOG_BYTES_MAX;
use bundle::{Paths, Record};
use cgroups::Cgroups;
use container::Container;
pub use helper::{HELPER_ARGUMENT, helper_main};
use process::Watched;

/// Longest time that creating a container may take.
pub const CREATE_MS_MAX: u64 = 30_000;
/// Longest time from SIGKILL to the end of a container.
pub const KILL_MS_MAX: u64 = 10_000;
/// Events that a slow reader may be behind before it misses some.
const EVENTS_MAX: usize = 1024;
/// How often logs are looked at.
const LOG_PERIOD: Duration = Duration::from_secs(5);
/// How often a condition that the kernel does not announce is looked at.
const POLL: Duration = Duration::from_millis(2);

/// Where the engine keeps things, and what it is.
#[derive(Debug, Clone)]
pub struct EmbeddedConfig {
    /// Begins the control groups of this node's containers.
    pub prefix: NodePrefix,
    /// Bundles and state of live containers: on a tmpfs best, such as `/run/antirio/rio`.
    pub state_dir: PathBuf,
    /// Unpacked images: on a disk, such as `/var/lib/antirio/rio/images`.
    pub image_dir: PathBuf,
    /// The program whose `main` calls [`helper_main`]; this one by default.
    pub helper: PathBuf,
    /// Bounds of loaded images.
    pub image_limits: ImageLimits,
}

impl EmbeddedConfig {
    /// With this program as the helper and the default bounds.
    #[must_use]
    pub fn new(prefix: NodePrefix, state_dir: impl Into<PathBuf>, image_dir: impl Into<PathBuf>) -> Self {
        let (state_dir, image_dir) = (state_dir.into(), image_dir.into());
        Self { prefix, state_dir, image_dir, helper: "/proc/self/exe".into(), image_limits: ImageLimits::default() }
    }
}

/// The engine; cheap to clone.
#[derive(Debug, Clone)]
pub struct EmbeddedEngine {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    paths: Paths,
    helper: PathBuf,
    cgroups: Cgroups,
    store: Store,
    /// Shared while a container is created, exclusive while an image is removed.
    images: tokio::sync::RwLock<()>,
    slots: Mutex<BTreeMap<ContainerName, Slot>>,
    events: broadcast::Sender<Event>,
    /// Held while this engine lives: one process per state directory.
    _lock: fs::File,
}

/// What a name stands for.
#[derive(Debug, Clone)]
enum Slot {
    /// Being created or removed.
    Busy,
    Live(Arc<Container>),
}

/// What this machine can do, without opening an engine.
#[must_use]
pub fn capabilities(prefix: &NodePrefix) -> Capabilities {
    probe::probe(Cgroups::find(prefix).as_ref())
}

impl EmbeddedEngine {
    /// Checks the machine, opens the directories and makes this process the reaper of its containers. Call [`Engine::recover`] next.
    ///
    /// # Errors
    /// [`Error::Unavailable`] says what the machine lacks; [`Error::Locked`] that another process has these directories.
    pub fn open(config: EmbeddedConfig) -> Result<Self, Error> {
        let cgroups = Cgroups::find(&config.prefix);
        let capabilities = probe::probe(cgroups.as_ref());
        let (Some(cgroups), true) = (cgroups, capabilities.usable()) else {
            return Err(Error::Unavailable { kind: Kind::Embedded, missing: capabilities.missing });
        };
        let paths = Paths { state: absolute(&config.state_dir)? };
        for directory in [paths.state.clone(), paths.bundles(), paths.containers()] {
            let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory);
            made.map_err(Error::io("make", directory))?;
        }
        let lock = lock(&paths.state)?;
        let store = Store::open(&absolute(&config.image_dir)?, config.image_limits)?;
        process::become_subreaper().map_err(Error::io("become the reaper for", &paths.state))?;
        let (events, _) = broadcast::channel(EVENTS_MAX);
        let slots = Mutex::default();
        let inner = Arc::new(Inner {
            paths,
            helper: config.helper,
            cgroups,
            store,
            images: tokio::sync::RwLock::default(),
            slots,
            events,
            _lock: lock,
        });
        tokio::spawn(keep_logs_short(Arc::downgrade(&inner)));
        Ok(Self { inner })
    }
}

/// The overlay's options separate paths by these characters.
fn absolute(path: &Path) -> Result<PathBuf, Error> {
    let path = std::path::absolute(path).map_err(Error::io("resolve", path))?;
    let plain = path.to_str().is_some_and(|text| !text.contains([':', ',', '\\']));
    if plain { Ok(path) } else { Err(Error::io("use", path)(io::Error::from(io::ErrorKind::InvalidFilename))) }
}

fn lock(state: &Path) -> Result<fs::File, Error> {
    let path = state.join("lock");
    let file = fs::OpenOptions::new().write(true).create(true).truncate(false).open(&path).map_err(Error::io("open", &path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(Error::Locked(state.to_owned())),
        Err(fs::TryLockError::Error(error)) => Err(Error::io("lock", path)(error)),
    }
}

async fn keep_logs_short(engine: std::sync::Weak<Inner>) {
    let mut ticks = tokio::time::interval(LOG_PERIOD);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(engine) = engine.upgrade() else { return };
        let bundles: Vec<_> = engine.live().iter().map(|container| engine.paths.bundle(&container.record.spec.name)).collect();
        drop(engine);
        let rotated = tokio::task::spawn_blocking(move || {
            for bundle in bundles {
                // the container may be gone by now; its log is bounded in any case
                let _ = bundle.rotate_log();
            }
        });
        if rotated.await.is_err() {
            return;
        }
    }
}

impl Inner {
    fn slots(&self) -> MutexGuard<'_, BTreeMap<ContainerName, Slot>> {
        // every change of the map is one operation: it is whole even if a holder panicked
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn live(&self) -> Vec<Arc<Container>> {
        let slots = self.slots();
        let containers = slots.values().filter_map(|slot| match slot {
            Slot::Live(container) => Some(container.clone()),
            Slot::Busy => None,
        });
        containers.collect()
    }

    fn container(&self, name: &ContainerName) -> Result<Arc<Container>, Error> {
        match self.slots().get(name) {
            Some(Slot::Live(container)) => Ok(container.clone()),
            Some(Slot::Busy) => Err(Error::Busy(name.clone())),
            None => Err(Error::UnknownContainer(name.clone())),
        }
    }

    fn send(&self, event: Event) {
        // nobody listening is fine
        let _ = self.events.send(event);
    }

    /// Makes the container a member and watches it to its end.
    fn admit(self: &Arc<Self>, record: Record, process: Option<Watched>, state: ContainerState) {
        let name = record.spec.name.clone();
        let container = Arc::new(Container::new(record, process.clone(), state));
        self.slots().insert(name.clone(), Slot::Live(container.clone()));
        let Some(process) = process else { return };
        let events = self.events.clone();
        tokio::spawn(async move {
            let code = match process.ended().await {
                Ok(code) => code,
                Err(error) => {
                    tracing::error!(container.name = %name, %error, "cannot watch a container: it is killed");
                    process::kill(process.pid);
                    None
                }
            };
            container.end(code, || {
                // nobody listening is fine
                let _ = events.send(Event::Exited { name, code });
            });
        });
    }

    async fn create(self: Arc<Self>, spec: ContainerSpec) -> Result<(), Error> {
        let name = spec.name.clone();
        let images = self.images.read().await;
        let outcome = self.clone().create_process(spec).await;
        match outcome {
            Ok((record, process)) => {
                // told first: it may end at once
                self.send(Event::Created { name });
                self.admit(record, Some(process), ContainerState::Created);
                drop(images);
                Ok(())
            }
            Err(error) => {
                if let Err(rest) = self.clean(&name, false).await {
                    tracing::warn!(container.name = %name, error = %rest, "a container that was not created left something behind");
                }
                self.slots().remove(&name);
                Err(error)
            }
        }
    }

    async fn create_process(self: Arc<Self>, spec: ContainerSpec) -> Result<(Record, Watched), Error> {
        let name = spec.name.clone();
        let engine = self.clone();
        let (spec, directory) =
            tokio::task::spawn_blocking(move || engine.prepare(&spec).map(|directory| (spec, directory))).await??;
        self.run_helper(&name, &directory).await?;
        let detail = || Error::Helper { name: name.clone(), detail: "the container ended before it was started".to_owned() };
        let pid = self.paths.recorded_pid(&name).ok_or_else(detail)?;
        // not reaped yet, so the number cannot be anybody else's
        let process = Watched::open(pid).map_err(|_| detail())?;
        let record = Record { spec };
        self.paths.bundle(&name).write_record(&record)?;
        Ok((record, process))
    }

    /// Writes the bundle and gives its directory.
    fn prepare(&self, spec: &ContainerSpec) -> Result<PathBuf, Error> {
        let image = self.store.config(&spec.image)?.ok_or(Error::UnknownImage(spec.image))?;
        for mount in &spec.mounts {
            if !mount.source.is_dir() {
                return Err(Error::io("mount", &mount.source)(io::Error::from(io::ErrorKind::NotADirectory)));
            }
        }
        // nothing of an earlier container of this name may shine through
        self.paths.remove(&spec.name)?;
        let bundle = self.paths.bundle(&spec.name);
        let runtime = bundle::runtime(spec, &image, &self.cgroups, &bundle)?;
        let containers = self.paths.containers();
        let request = bundle::Request { name: spec.name.clone(), containers, lower: self.store.rootfs(&spec.image) };
        bundle.write(&request, &runtime)?;
        Ok(bundle.directory)
    }

    async fn run_helper(&self, name: &ContainerName, directory: &Path) -> Result<(), Error> {
        let bundle = self.paths.bundle(name);
        let log = fs::File::create(bundle.helper_log()).map_err(Error::io("create", bundle.helper_log()))?;
        let mut helper = tokio::process::Command::new(&self.helper)
            .args([HELPER_ARGUMENT, helper::CREATE])
            .arg(directory)
            // the container inherits it, and others can read it there
            .env_clear()
            .current_dir("/")
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::null())
            .stderr(log)
            .process_group(0)
            .spawn()
            .map_err(Error::io("execute", &self.helper))?;
        let group = helper.id().and_then(|id| i32::try_from(id).ok());
        let Ok(ended) = tokio::time::timeout(Duration::from_millis(CREATE_MS_MAX), helper.wait()).await else {
            self.end_helper(helper, group).await;
            return Err(Error::Timeout { operation: "creation", name: name.clone(), limit_ms: CREATE_MS_MAX });
        };
        let status = ended.map_err(Error::io("wait for", &self.helper))?;
        if status.success() {
            return Ok(());
        }
        self.end_helper(helper, group).await;
        let said = fs::read(bundle.helper_log()).unwrap_or_default();
        let said = String::from_utf8_lossy(said.get(..said.len().min(HELPER_LOG_BYTES_MAX)).unwrap_or_default()).into_owned();
        let detail = if said.is_empty() { format!("the helper process ended with {status}") } else { said };
        Err(Error::Helper { name: name.clone(), detail })
    }

    /// Ends a helper and those of its children that are in no control group yet.
    async fn end_helper(&self, mut helper: tokio::process::Child, group: Option<i32>) {
        let _ = helper.start_kill();
        let _ = helper.wait().await;
        let deadline = tokio::time::Instant::now() + Duration::from_millis(KILL_MS_MAX);
        while !group.is_none_or(process::end_group) && tokio::time::Instant::now() < deadline {
            tokio::time::sleep(POLL).await;
        }
    }

    /// Kills what is left of a container and removes every trace; safe to repeat. One that is not `whole` may have processes that are
    /// in no control group yet: all processes of the machine are looked at.
    async fn clean(&self, name: &ContainerName, whole: bool) -> Result<(), Error> {
        let bundle = self.paths.bundle(name).directory;
        let deadline = tokio::time::Instant::now() + Duration::from_millis(KILL_MS_MAX);
        let (mut killed, mut left) = (BTreeSet::new(), BTreeSet::new());
        loop {
            let mut found = self.cgroups.kill(name);
            if !whole {
                found.extend(process::waiting(&bundle));
            }
            found.iter().for_each(|pid| process::kill(*pid));
            killed.extend(&found);
            left.extend(&found);
            left.retain(|pid| !process::reap(*pid, &killed));
            if left.is_empty() && found.is_empty() {
                match self.cgroups.remove(name) {
                    Ok(()) => break,
                    Err(error) if error.kind() != io::ErrorKind::ResourceBusy => {
                        return Err(Error::io("remove the control groups of", bundle)(error));
                    }
                    Err(_) => {}
                }
            }
            if tokio::time::Instant::now() > deadline {
                return Err(Error::Timeout { operation: "removal", name: name.clone(), limit_ms: KILL_MS_MAX });
            }
            tokio::time::sleep(POLL).await;
        }
        if !whole {
            process::reap_unborn(&self.live().iter().filter_map(|container| container.status().pid).collect());
        }
        self.paths.remove(name)
    }

    async fn remove(self: Arc<Self>, name: ContainerName, container: Arc<Container>) -> Result<bool, Error> {
        let outcome = match container.kill().await {
            Ok(()) => self.clean(&name, true).await,
            Err(error) => Err(error),
        };
        match outcome {
            Ok(()) => {
                self.slots().remove(&name);
                self.send(Event::Removed { name });
                Ok(true)
            }
            Err(error) => {
                // still there: it can be tried again
                self.slots().insert(name, Slot::Live(container));
                Err(error)
            }
        }
    }

    async fn recover(self: Arc<Self>) -> Result<Recovery, Error> {
        let mut names = self.cgroups.names();
        for directory in [self.paths.bundles(), self.paths.containers()] {
            for entry in fs::read_dir(&directory).map_err(Error::io("list", &directory))? {
                let entry = entry.map_err(Error::io("list", &directory))?;
                names.extend(entry.file_name().to_str().and_then(|name| name.parse().ok()));
            }
        }
        let mut recovery = Recovery::default();
        for name in names {
            if !self.reserve(&name) {
                continue;
            }
            let bundle = self.paths.bundle(&name);
            let Some(record) = bundle.record().filter(|record| record.spec.name == name) else {
                let cleaned = self.clean(&name, false).await;
                self.slots().remove(&name);
                cleaned?;
                recovery.removed.push(name);
                continue;
            };
            let (process, state) = self.find(&name, &bundle.directory);
            tracing::info!(container.name = %name, container.state = ?state, "took over a container");
            self.admit(record, process, state);
            recovery.adopted.push(name);
        }
        Ok(recovery)
    }

    /// The process of a whole container; its number counts only while it is in the container's control group.
    fn find(&self, name: &ContainerName, bundle: &Path) -> (Option<Watched>, ContainerState) {
        let process = self.paths.recorded_pid(name).and_then(|pid| Watched::open(pid).ok());
        // opened first, then checked: a number that was given anew meanwhile is not in the group
        match process.filter(|process| self.cgroups.pids(name).contains(&process.pid)) {
            Some(process) if process::waits(process.pid, bundle) => (Some(process), ContainerState::Created),
            Some(process) => (Some(process), ContainerState::Running),
            None => (None, ContainerState::Exited { code: None }),
        }
    }

    fn reserve(&self, name: &ContainerName) -> bool {
        let mut slots = self.slots();
        let free = !slots.contains_key(name);
        if free {
            slots.insert(name.clone(), Slot::Busy);
        }
        free
    }

    /// Files that are needed while they are read.
    async fn load(self: Arc<Self>, source: ImageSource, expected: Option<ImageId>) -> Result<ImageId, Error> {
        let (path, spooled) = match source {
            ImageSource::Path(path) => (path, false),
            ImageSource::Reader(reader) => {
                let path = self.store.scratch();
                crate::image::spool(reader, &path, self.store.limits().tar_bytes_max).await?;
                (path, true)
            }
        };
        let loaded = tokio::task::spawn_blocking(move || {
            let loaded = self.store.load(&path, expected.as_ref());
            if spooled {
                // a rest is removed when the store is opened
                let _ = fs::remove_file(&path);
            }
            loaded
        });
        Ok(loaded.await??)
    }
}

/// Most of what a helper says that goes into an error.
const HELPER_LOG_BYTES_MAX: usize = 2048;

#[async_trait]
impl Engine for EmbeddedEngine {
    fn kind(&self) -> Kind {
        Kind::Embedded
    }

    async fn probe(&self) -> Result<Capabilities, Error> {
        Ok(probe::probe(Some(&self.inner.cgroups)))
    }

    async fn recover(&self) -> Result<Recovery, Error> {
        tokio::spawn(self.inner.clone().recover()).await?
    }

    async fn load_image(&self, source: ImageSource, expected: Option<&ImageId>) -> Result<ImageId, Error> {
        tokio::spawn(self.inner.clone().load(source, expected.copied())).await?
    }

    async fn has_image(&self, image: &ImageId) -> Result<bool, Error> {
        Ok(self.inner.store.has(image))
    }

    async fn remove_image(&self, image: &ImageId) -> Result<bool, Error> {
        let _images = self.inner.images.write().await;
        if let Some(user) = self.inner.live().iter().find(|container| container.record.spec.image == *image) {
            return Err(Error::ImageInUse { image: *image, container: user.record.spec.name.to_string() });
        }
        let (inner, image) = (self.inner.clone(), *image);
        Ok(tokio::task::spawn_blocking(move || inner.store.remove(&image)).await??)
    }

    async fn create(&self, spec: &ContainerSpec) -> Result<(), Error> {
        spec.validate()?;
        if spec.network != crate::Network::None {
            return Err(Error::BridgeUnsupported(spec.name.clone()));
        }
        if !self.inner.reserve(&spec.name) {
            return Err(self.inner.container(&spec.name).err().unwrap_or(Error::Exists(spec.name.clone())));
        }
        // a task of its own: it ends even if the caller gives up
        tokio::spawn(self.inner.clone().create(spec.clone())).await?
    }

    async fn start(&self, name: &ContainerName) -> Result<(), Error> {
        let container = self.inner.container(name)?;
        container.start(&self.inner.paths.container(name), || self.inner.send(Event::Started { name: name.clone() }))
    }

    async fn stop(&self, name: &ContainerName, grace: Duration) -> Result<ContainerState, Error> {
        self.inner.container(name)?.stop(grace).await
    }

    async fn remove(&self, name: &ContainerName) -> Result<bool, Error> {
        let container = {
            let mut slots = self.inner.slots();
            match slots.get(name) {
                None => return Ok(false),
                Some(Slot::Busy) => return Err(Error::Busy(name.clone())),
                Some(Slot::Live(container)) => {
                    let container = container.clone();
                    slots.insert(name.clone(), Slot::Busy);
                    container
                }
            }
        };
        tokio::spawn(self.inner.clone().remove(name.clone(), container)).await?
    }

    async fn list(&self) -> Result<Vec<ContainerStatus>, Error> {
        Ok(self.inner.live().iter().map(|container| container.status()).collect())
    }

    async fn stats(&self, name: &ContainerName) -> Result<Stats, Error> {
        self.inner.container(name)?;
        Ok(self.inner.cgroups.stats(name))
    }

    async fn wait(&self, name: &ContainerName) -> Result<Option<i32>, Error> {
        Ok(self.inner.container(name)?.ended().await)
    }

    async fn logs(&self, name: &ContainerName, bytes_max: usize) -> Result<Vec<u8>, Error> {
        self.inner.container(name)?;
        let bundle = self.inner.paths.bundle(name);
        tokio::task::spawn_blocking(move || bundle.tail(bytes_max).map_err(Error::io("read", bundle.log()))).await?
    }

    fn events(&self) -> BoxStream<'static, Event> {
        let received = BroadcastStream::new(self.inner.events.subscribe());
        received
            .map(|event| match event {
                Ok(event) => event,
                Err(BroadcastStreamRecvError::Lagged(count)) => Event::Missed { count },
            })
            .boxed()
    }
}
