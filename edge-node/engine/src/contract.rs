//! The [`Engine`] trait and the values that cross it.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncRead;

use crate::image::{self, ImageId};
use crate::spec::{self, ContainerName, ContainerSpec};

/// What runs containers for a node. Object safe; every method may be called concurrently; a dropped future never leaves a container
/// half made (the work goes on to its end).
#[async_trait]
pub trait Engine: Send + Sync + fmt::Debug {
    /// Which adapter this is.
    fn kind(&self) -> Kind;

    /// What this machine and adapter can do, found by looking. Never fails for something that is merely absent.
    async fn probe(&self) -> Result<Capabilities, Error>;

    /// Finds the containers that an earlier process of this node left, takes over those that are whole and removes the rest.
    /// To be called once before anything else; later calls change nothing.
    async fn recover(&self) -> Result<Recovery, Error>;

    /// Verifies and stores an image. Loading one that is there already is cheap and no error.
    ///
    /// # Errors
    /// [`Error::Image`]: not an image, a lying digest, over a limit, unsafe entries, not the `expected` id.
    async fn load_image(&self, source: ImageSource, expected: Option<&ImageId>) -> Result<ImageId, Error>;

    /// Is this image loaded, whole?
    async fn has_image(&self, image: &ImageId) -> Result<bool, Error>;

    /// Removes an image; `false` when there was none.
    ///
    /// # Errors
    /// [`Error::ImageInUse`] while a container of it exists.
    async fn remove_image(&self, image: &ImageId) -> Result<bool, Error>;

    /// Prepares a container up to the point where only [`Engine::start`] is missing.
    ///
    /// # Errors
    /// [`Error::Spec`], [`Error::UnknownImage`], [`Error::Exists`], [`Error::BridgeUnsupported`]. Nothing is left behind on error.
    async fn create(&self, spec: &ContainerSpec) -> Result<(), Error>;

    /// Lets a created container go.
    ///
    /// # Errors
    /// [`Error::NotCreated`] when it runs or has ended: remove it and create it anew.
    async fn start(&self, name: &ContainerName) -> Result<(), Error>;

    /// Ends a running container: SIGTERM, after `grace` SIGKILL. A container that never started or has ended stays as it is.
    /// (A tenant without a SIGTERM handler never sees the signal, being process 1 of its namespace; it costs the whole grace.)
    async fn stop(&self, name: &ContainerName, grace: Duration) -> Result<ContainerState, Error>;

    /// Removes a container in any state, killing it if needed; `false` when there was none.
    async fn remove(&self, name: &ContainerName) -> Result<bool, Error>;

    /// All containers of this node, sorted by name.
    async fn list(&self) -> Result<Vec<ContainerStatus>, Error>;

    /// What a container uses now.
    async fn stats(&self, name: &ContainerName) -> Result<Stats, Error>;

    /// Resolves when a container has ended (at once if it has), with its exit code as in [`ContainerState::Exited`].
    async fn wait(&self, name: &ContainerName) -> Result<Option<i32>, Error>;

    /// The last `bytes_max` bytes that the container wrote to stdout and stderr.
    async fn logs(&self, name: &ContainerName, bytes_max: usize) -> Result<Vec<u8>, Error>;

    /// What happens from now on. A slow reader misses events and is told so by [`Event::Missed`]: then call [`Engine::list`].
    fn events(&self) -> BoxStream<'static, Event>;
}

/// The adapters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// `libcontainer` in this process, no daemon.
    Embedded,
    /// The Docker Engine API over a Unix socket.
    Docker,
}

impl fmt::Display for Kind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Embedded => "embedded",
            Self::Docker => "docker",
        })
    }
}

/// Where an image tar comes from.
pub enum ImageSource {
    /// A file.
    Path(PathBuf),
    /// Anything; spooled to a file first, up to the size limit.
    Reader(Box<dyn AsyncRead + Send + Unpin>),
}

impl fmt::Debug for ImageSource {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => formatter.debug_tuple("Path").field(path).finish(),
            Self::Reader(_) => formatter.write_str("Reader"),
        }
    }
}

/// Where a container is in its life. A state never goes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum ContainerState {
    /// Prepared. Embedded: a live process that waits; Docker: stopped.
    Created,
    /// Started and not ended.
    Running,
    /// Ended, before or after it was started. `code` is the exit code, 128 + signal for a killed one, `None` if nobody saw it end
    /// (this node was down, or the machine restarted).
    Exited {
        /// 0 to 255.
        code: Option<i32>,
    },
}

/// One container as [`Engine::list`] shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerStatus {
    /// Name within this node.
    pub name: ContainerName,
    /// Where it is in its life.
    pub state: ContainerState,
    /// Process id on the host while it lives.
    pub pid: Option<i32>,
    /// Its image.
    pub image: ImageId,
    /// As given in the specification.
    pub labels: BTreeMap<String, String>,
}

/// What a container uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Stats {
    /// Bytes in use now, page cache included; `None` if the kernel does not count them.
    pub memory_bytes: Option<u64>,
    /// CPU time since creation, in nanoseconds.
    pub cpu_ns: Option<u64>,
    /// Processes and threads now.
    pub pids: Option<u64>,
}

/// What an engine saw.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "event")]
pub enum Event {
    /// A container is prepared.
    Created { name: ContainerName },
    /// A container was let go.
    Started { name: ContainerName },
    /// A container ended; `code` as in [`ContainerState::Exited`].
    Exited { name: ContainerName, code: Option<i32> },
    /// A container is gone.
    Removed { name: ContainerName },
    /// The reader was too slow, or the engine could not be heard for a while; `count` events are lost (0: unknown how many).
    Missed { count: u64 },
}

/// Which limits the kernel enforces here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LimitSupport {
    /// Memory is limited.
    pub memory: bool,
    /// CPU is limited.
    pub cpu: bool,
    /// Processes are limited.
    pub pids: bool,
}

/// What [`Engine::probe`] found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// The adapter.
    pub kind: Kind,
    /// Version of the engine behind it.
    pub version: String,
    /// What is missing to run containers at all, as sentences for an operator. Empty: usable.
    pub missing: Vec<String>,
    /// What works less well than it could, as sentences for an operator.
    pub warnings: Vec<String>,
    /// Limits that are enforced.
    pub limits: LimitSupport,
    /// [`crate::Network::Bridge`] is possible.
    pub bridge: bool,
    /// A created container starts within milliseconds.
    pub fast_start: bool,
}

impl Capabilities {
    /// Containers can run.
    #[must_use]
    pub fn usable(&self) -> bool {
        self.missing.is_empty()
    }
}

/// What [`Engine::recover`] did.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Recovery {
    /// Whole containers of an earlier process, in whatever state; now in [`Engine::list`].
    pub adopted: Vec<ContainerName>,
    /// Half-made ones that were removed.
    pub removed: Vec<ContainerName>,
}

/// Why an engine could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The specification breaks a limit.
    #[error("the container's specification is refused")]
    Spec(#[from] spec::Error),
    /// The image is refused.
    #[error("the image is refused")]
    Image(#[from] image::Error),
    /// No container of this node has that name.
    #[error("there is no container {0}")]
    UnknownContainer(ContainerName),
    /// That image is not loaded.
    #[error("the image {0} is not loaded")]
    UnknownImage(ImageId),
    /// The name is taken.
    #[error("a container {0} exists already")]
    Exists(ContainerName),
    /// Another call is creating or removing this container.
    #[error("the container {0} is being created or removed")]
    Busy(ContainerName),
    /// A bridge network was asked of the embedded engine.
    #[error("BridgeUnsupported: the embedded engine gives containers no network; use the Docker engine for {0}")]
    BridgeUnsupported(ContainerName),
    /// Only a created container can be started.
    #[error("the container {name} cannot be started: it is {state:?}")]
    NotCreated { name: ContainerName, state: ContainerState },
    /// An image cannot be removed while a container of it exists.
    #[error("the image {image} is used by the container {container}")]
    ImageInUse { image: ImageId, container: String },
    /// This machine cannot run containers with this adapter.
    #[error("the {kind} engine cannot be used here: {}", missing.join("; "))]
    Unavailable { kind: Kind, missing: Vec<String> },
    /// Another process uses the same state directory.
    #[error("{0} is in use by another process")]
    Locked(PathBuf),
    /// The helper process could not create the container.
    #[error("creating the container {name} failed: {detail}")]
    Helper { name: ContainerName, detail: String },
    /// Something took longer than its limit.
    #[error("{operation} of {name} took longer than {limit_ms} ms")]
    Timeout { operation: &'static str, name: ContainerName, limit_ms: u64 },
    /// A system call or file failed.
    #[error("cannot {operation} {}", path.display())]
    Io { operation: &'static str, path: PathBuf, source: std::io::Error },
    /// The Docker engine answered with an error, or not at all.
    #[error("the Docker engine failed to {operation}")]
    Docker { operation: &'static str, source: Box<bollard::errors::Error> },
    /// A task of the engine itself broke off.
    #[error("a task of the engine ended unexpectedly")]
    Task(#[from] tokio::task::JoinError),
}

impl Error {
    /// For `map_err`: what was tried on which path.
    pub(crate) fn io<E: Into<std::io::Error>>(operation: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(E) -> Self {
        let path = path.into();
        move |source| Self::Io { operation, path, source: source.into() }
    }

    /// For `map_err`: what was asked of Docker.
    pub(crate) fn docker(operation: &'static str) -> impl FnOnce(bollard::errors::Error) -> Self {
        move |source| Self::Docker { operation, source: Box::new(source) }
    }
}
