//! The same containers on an engine that speaks the Docker Engine API (1.41 or newer) over a Unix socket: Docker, Podman, balenaEngine.
//!
//! A created container is stopped here, and starting one takes some hundred milliseconds. Containers are told from foreign ones by a
//! label *and* a name that begins with the node's prefix. Nothing is ever pulled.

mod convert;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bollard::Docker;
use bollard::errors::Error as ApiError;
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, EventsOptionsBuilder, ImportImageOptionsBuilder, InspectContainerOptions,
    KillContainerOptionsBuilder, ListContainersOptionsBuilder, LogsOptionsBuilder, RemoveContainerOptionsBuilder,
    RemoveImageOptions, StartContainerOptions, StatsOptionsBuilder, TagImageOptionsBuilder, WaitContainerOptions,
};
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, TryStreamExt};
use tokio::sync::broadcast;
use tokio_stream::wrappers::BroadcastStream;
use tokio_stream::wrappers::errors::BroadcastStreamRecvError;
use tokio_util::io::ReaderStream;
use tokio_util::task::AbortOnDropHandle;

use crate::image::{ImageId, ImageLimits};
use crate::spec::{ContainerName, ContainerSpec, NodePrefix};
use crate::{
    Capabilities, ContainerState, ContainerStatus, Engine, Error, Event, ImageSource, Kind, LimitSupport, Recovery, Stats,
};

/// Where Docker listens by default.
pub const DEFAULT_SOCKET: &str = "/var/run/docker.sock";
/// Longest time for one answer.
const ANSWER_S_MAX: u64 = 60;
/// Longest time for loading an image.
const LOAD_S_MAX: u64 = 600;
/// Events that a slow reader may be behind before it misses some.
const EVENTS_MAX: usize = 1024;
/// Between two tries to hear the engine's events.
const EVENTS_RETRY: Duration = Duration::from_secs(1);

/// How to reach the engine, and which of its containers are this node's.
#[derive(Debug, Clone)]
pub struct DockerConfig {
    /// Begins the names of this node's containers.
    pub prefix: NodePrefix,
    /// The engine's Unix socket.
    pub socket: PathBuf,
    /// Where image tars from readers are spooled.
    pub scratch_dir: PathBuf,
    /// Bounds of loaded images.
    pub image_limits: ImageLimits,
}

/// The engine; cheap to clone.
#[derive(Debug, Clone)]
pub struct DockerEngine {
    api: Docker,
    config: DockerConfig,
    events: broadcast::Sender<Event>,
    /// Ends with the last clone.
    _hearing: Arc<AbortOnDropHandle<()>>,
}

impl DockerEngine {
    /// Connects and agrees on a version of the API.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when nothing answers at the socket.
    pub async fn connect(config: DockerConfig) -> Result<Self, Error> {
        let unavailable = |error: &dyn std::fmt::Display| {
            let missing = vec![format!("no engine answers at {}: {error}", config.socket.display())];
            Error::Unavailable { kind: Kind::Docker, missing }
        };
        let socket = config.socket.to_str().ok_or_else(|| unavailable(&"the path is not UTF-8"))?;
        let api =
            Docker::connect_with_unix(socket, ANSWER_S_MAX, bollard::API_DEFAULT_VERSION).map_err(|error| unavailable(&error))?;
        let api = api.negotiate_version().await.map_err(|error| unavailable(&error))?;
        let (events, _) = broadcast::channel(EVENTS_MAX);
        let hearing = tokio::spawn(hear(api.clone(), config.prefix.clone(), events.clone()));
        Ok(Self { api, config, events, _hearing: Arc::new(AbortOnDropHandle::new(hearing)) })
    }

    fn full_name(&self, name: &ContainerName) -> String {
        convert::full_name(&self.config.prefix, name)
    }

    /// The status of a container of this node; foreign ones do not exist.
    async fn inspect(&self, name: &ContainerName) -> Result<Option<ContainerStatus>, Error> {
        match self.api.inspect_container(&self.full_name(name), None::<InspectContainerOptions>).await {
            Ok(found) => Ok(convert::status(&self.config.prefix, &found)),
            Err(error) if has_code(&error, 404) => Ok(None),
            Err(error) => Err(Error::docker("inspect a container")(error)),
        }
    }

    async fn known(&self, name: &ContainerName) -> Result<ContainerStatus, Error> {
        self.inspect(name).await?.ok_or_else(|| Error::UnknownContainer(name.clone()))
    }

    /// A name by which the engine knows the image: its id, or (where the engine's ids are manifests) the tag that loading gave it.
    async fn reference(&self, image: &ImageId) -> Result<Option<String>, Error> {
        for reference in [image.to_string(), convert::tag(image)] {
            match self.api.inspect_image(&reference).await {
                Ok(_) => return Ok(Some(reference)),
                Err(error) if has_code(&error, 404) => {}
                Err(error) => return Err(Error::docker("inspect an image")(error)),
            }
        }
        Ok(None)
    }

    async fn load_file(&self, path: PathBuf, expected: Option<ImageId>) -> Result<ImageId, Error> {
        let limits = self.config.image_limits;
        let checked = path.clone();
        let inspected = tokio::task::spawn_blocking(move || crate::image::inspect(&checked, limits));
        let (image, _) = inspected.await??;
        if let Some(expected) = expected.filter(|expected| *expected != image) {
            return Err(crate::image::Error::NotExpected { expected, actual: image }.into());
        }
        if self.reference(&image).await?.is_none() {
            let file = tokio::fs::File::open(&path).await.map_err(Error::io("open", &path))?;
            let api = self.api.clone().with_timeout(Duration::from_secs(LOAD_S_MAX));
            let options = ImportImageOptionsBuilder::default().quiet(true).build();
            let said: Vec<_> = api
                .import_image_stream(options, ReaderStream::new(file), None)
                .try_collect()
                .await
                .map_err(Error::docker("load an image"))?;
            if self.reference(&image).await?.is_none() {
                let loaded = said.iter().filter_map(|line| line.stream.as_deref()).find_map(convert::loaded_image);
                let loaded = loaded.ok_or(Error::UnknownImage(image))?;
                self.tag(loaded, &image).await?;
            }
        }
        self.tag(&image.to_string(), &image).await.or_else(|error| match error {
            // the tag is there already, on an engine whose ids are manifests
            Error::Docker { source, .. } if has_code(&source, 404) => Ok(()),
            error => Err(error),
        })?;
        self.reference(&image).await?.map(|_| image).ok_or(Error::UnknownImage(image))
    }

    /// An image without a name is swept away by the engine's own clean-up.
    async fn tag(&self, reference: &str, image: &ImageId) -> Result<(), Error> {
        let options = TagImageOptionsBuilder::default().repo(crate::image::REPOSITORY).tag(&image.hex()).build();
        self.api.tag_image(reference, Some(options)).await.map_err(Error::docker("tag an image"))
    }

    async fn signal(&self, name: &ContainerName, signal: &str) -> Result<(), Error> {
        let options = KillContainerOptionsBuilder::default().signal(signal).build();
        match self.api.kill_container(&self.full_name(name), Some(options)).await {
            Ok(()) => Ok(()),
            // not running any more, or not there any more
            Err(error) if has_code(&error, 409) || has_code(&error, 404) => Ok(()),
            Err(error) => Err(Error::docker("signal a container")(error)),
        }
    }
}

fn has_code(error: &ApiError, code: u16) -> bool {
    matches!(error, ApiError::DockerResponseServerError { status_code, .. } if *status_code == code)
}

/// Passes the engine's events on, for ever.
async fn hear(api: Docker, prefix: NodePrefix, events: broadcast::Sender<Event>) {
    let filters = HashMap::from([
        ("type".to_owned(), vec!["container".to_owned()]),
        ("label".to_owned(), vec![format!("{}={prefix}", convert::NODE_LABEL)]),
    ]);
    loop {
        let mut stream = api.events(Some(EventsOptionsBuilder::default().filters(&filters).build()));
        while let Some(message) = stream.next().await {
            let Ok(message) = message else { break };
            if let Some(event) = convert::event(&prefix, &message) {
                // nobody listening is fine
                let _ = events.send(event);
            }
        }
        tokio::time::sleep(EVENTS_RETRY).await;
        let _ = events.send(Event::Missed { count: 0 });
    }
}

#[async_trait]
impl Engine for DockerEngine {
    fn kind(&self) -> Kind {
        Kind::Docker
    }

    async fn probe(&self) -> Result<Capabilities, Error> {
        let version = self.api.version().await.map_err(Error::docker("tell its version"))?;
        let info = self.api.info().await.map_err(Error::docker("tell what it can do"))?;
        let limits = LimitSupport {
            memory: info.memory_limit.unwrap_or(false),
            cpu: info.cpu_cfs_quota.unwrap_or(false),
            pids: info.pids_limit.unwrap_or(false),
        };
        let text = |part: Option<String>| part.unwrap_or_else(|| "unknown".to_owned());
        Ok(Capabilities {
            kind: Kind::Docker,
            version: format!("{} (API {})", text(version.version), text(version.api_version)),
            missing: vec![],
            warnings: info.warnings.unwrap_or_default(),
            limits,
            bridge: true,
            fast_start: false,
        })
    }

    async fn recover(&self) -> Result<Recovery, Error> {
        // the engine makes containers whole or not at all
        let adopted = self.list().await?.into_iter().map(|status| status.name).collect();
        Ok(Recovery { adopted, removed: vec![] })
    }

    async fn load_image(&self, source: ImageSource, expected: Option<&ImageId>) -> Result<ImageId, Error> {
        match source {
            ImageSource::Path(path) => self.load_file(path, expected.copied()).await,
            ImageSource::Reader(reader) => {
                let directory = &self.config.scratch_dir;
                tokio::fs::create_dir_all(directory).await.map_err(Error::io("make", directory))?;
                let path = crate::image::scratch_file(directory);
                crate::image::spool(reader, &path, self.config.image_limits.tar_bytes_max).await?;
                let loaded = self.load_file(path.clone(), expected.copied()).await;
                // a rest is of no harm
                let _ = tokio::fs::remove_file(path).await;
                loaded
            }
        }
    }

    async fn has_image(&self, image: &ImageId) -> Result<bool, Error> {
        Ok(self.reference(image).await?.is_some())
    }

    async fn remove_image(&self, image: &ImageId) -> Result<bool, Error> {
        // only the tag that loading gave it: an image that somebody else has named stays his
        let tag = convert::tag(image);
        match self.api.remove_image(&tag, None::<RemoveImageOptions>, None).await {
            Ok(_) => Ok(true),
            Err(error) if has_code(&error, 404) => Ok(false),
            Err(error) if has_code(&error, 409) => Err(Error::ImageInUse { image: *image, container: error.to_string() }),
            Err(error) => Err(Error::docker("remove an image")(error)),
        }
    }

    async fn create(&self, spec: &ContainerSpec) -> Result<(), Error> {
        spec.validate()?;
        let reference = self.reference(&spec.image).await?.ok_or(Error::UnknownImage(spec.image))?;
        let options = CreateContainerOptionsBuilder::default().name(&self.full_name(&spec.name)).build();
        let body = convert::body(&self.config.prefix, spec, reference);
        match self.api.create_container(Some(options), body).await {
            Ok(_) => Ok(()),
            Err(error) if has_code(&error, 409) => Err(Error::Exists(spec.name.clone())),
            Err(error) => Err(Error::docker("create a container")(error)),
        }
    }

    async fn start(&self, name: &ContainerName) -> Result<(), Error> {
        // the engine itself would start one that has ended once more
        let state = self.known(name).await?.state;
        if state != ContainerState::Created {
            return Err(Error::NotCreated { name: name.clone(), state });
        }
        let started = self.api.start_container(&self.full_name(name), None::<StartContainerOptions>).await;
        started.map_err(Error::docker("start a container"))
    }

    async fn stop(&self, name: &ContainerName, grace: Duration) -> Result<ContainerState, Error> {
        let state = self.known(name).await?.state;
        if state != ContainerState::Running {
            return Ok(state);
        }
        self.signal(name, "SIGTERM").await?;
        if let Ok(ended) = tokio::time::timeout(grace, self.wait(name)).await {
            ended?;
        } else {
            self.signal(name, "SIGKILL").await?;
            let ended = tokio::time::timeout(Duration::from_secs(ANSWER_S_MAX), self.wait(name)).await;
            let late = |_| Error::Timeout { operation: "killing", name: name.clone(), limit_ms: ANSWER_S_MAX * 1000 };
            ended.map_err(late)??;
        }
        Ok(self.known(name).await?.state)
    }

    async fn remove(&self, name: &ContainerName) -> Result<bool, Error> {
        if self.inspect(name).await?.is_none() {
            return Ok(false);
        }
        let options = RemoveContainerOptionsBuilder::default().force(true).v(true).build();
        match self.api.remove_container(&self.full_name(name), Some(options)).await {
            Ok(()) => Ok(true),
            Err(error) if has_code(&error, 404) => Ok(false),
            Err(error) if has_code(&error, 409) => Err(Error::Busy(name.clone())),
            Err(error) => Err(Error::docker("remove a container")(error)),
        }
    }

    async fn list(&self) -> Result<Vec<ContainerStatus>, Error> {
        let filters = HashMap::from([("label".to_owned(), vec![format!("{}={}", convert::NODE_LABEL, self.config.prefix)])]);
        let options = ListContainersOptionsBuilder::default().all(true).filters(&filters).build();
        let listed = self.api.list_containers(Some(options)).await.map_err(Error::docker("list containers"))?;
        let mut found = Vec::new();
        for name in listed.iter().flat_map(|container| container.names.iter().flatten()) {
            let Some(name) = convert::short_name(&self.config.prefix, name) else { continue };
            // removed meanwhile is fine
            found.extend(self.inspect(&name).await?);
        }
        found.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(found)
    }

    async fn stats(&self, name: &ContainerName) -> Result<Stats, Error> {
        self.known(name).await?;
        let options = StatsOptionsBuilder::default().stream(false).one_shot(true).build();
        let mut stream = Box::pin(self.api.stats(&self.full_name(name), Some(options)));
        let answer = stream.try_next().await.map_err(Error::docker("tell what a container uses"))?;
        Ok(answer.map(|stats| convert::stats(&stats)).unwrap_or_default())
    }

    async fn wait(&self, name: &ContainerName) -> Result<Option<i32>, Error> {
        loop {
            if let ContainerState::Exited { code } = self.known(name).await?.state {
                return Ok(code);
            }
            let mut stream = Box::pin(self.api.wait_container(&self.full_name(name), None::<WaitContainerOptions>));
            match stream.next().await {
                // a code other than 0 comes as an error; the state tells it either way
                Some(Ok(_) | Err(ApiError::DockerContainerWaitError { .. } | ApiError::RequestTimeoutError)) => {}
                Some(Err(error)) if has_code(&error, 404) => return Err(Error::UnknownContainer(name.clone())),
                Some(Err(error)) => return Err(Error::docker("wait for a container")(error)),
                // an engine that answers nothing is not asked in a tight circle
                None => tokio::time::sleep(EVENTS_RETRY).await,
            }
            // a container that was only created ends a wait at once
            if self.known(name).await?.state == ContainerState::Created {
                tokio::time::sleep(CREATED_POLL).await;
            }
        }
    }

    async fn logs(&self, name: &ContainerName, bytes_max: usize) -> Result<Vec<u8>, Error> {
        self.known(name).await?;
        let options = LogsOptionsBuilder::default().stdout(true).stderr(true).build();
        let mut stream = Box::pin(self.api.logs(&self.full_name(name), Some(options)));
        let mut tail = Vec::new();
        while let Some(part) = stream.try_next().await.map_err(Error::docker("read a log"))? {
            tail.extend(part.into_bytes());
            if tail.len() > bytes_max.saturating_mul(2) {
                tail = tail.split_off(tail.len() - bytes_max);
            }
        }
        Ok(tail.split_off(tail.len().saturating_sub(bytes_max)))
    }

    fn events(&self) -> BoxStream<'static, Event> {
        let received = BroadcastStream::new(self.events.subscribe());
        received
            .map(|event| match event {
                Ok(event) => event,
                Err(BroadcastStreamRecvError::Lagged(count)) => Event::Missed { count },
            })
            .boxed()
    }
}

/// How often a created container is looked at while somebody waits for its end.
const CREATED_POLL: Duration = Duration::from_millis(200);
