//! Where tenants' sockets are: Unix sockets below a directory, or those of a simulation.

use std::fmt;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use contracts::ids::GroupId;
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;

/// Name of the socket in the tenant's directory.
pub const SOCKET_NAME: &str = "node.sock";

/// A byte stream in both directions.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// A tenant's connection.
pub type Connection = Box<dyn Duplex>;

/// The open door of one group.
pub struct Door {
    /// What is mounted into the group's containers.
    pub directory: PathBuf,
    /// Who knocks; with the stream the door closes.
    pub connections: BoxStream<'static, io::Result<Connection>>,
}

impl fmt::Debug for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Door").field("directory", &self.directory).finish_non_exhaustive()
    }
}

/// Opens doors, one per group.
pub trait Doors: fmt::Debug + Send + Sync {
    /// Opens the door of a group; what an earlier process left in its place is replaced.
    ///
    /// # Errors
    /// The directory or socket cannot be made.
    fn open(&self, group: GroupId) -> io::Result<Door>;

    /// Leaves nothing of a group behind.
    ///
    /// # Errors
    /// The directory cannot be removed.
    fn remove(&self, group: GroupId) -> io::Result<()>;
}

/// One directory per group below `directory`, each with a Unix socket.
#[derive(Debug, Clone)]
pub struct UnixDoors {
    directory: PathBuf,
}

impl UnixDoors {
    #[must_use]
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self { directory: directory.into() }
    }

    /// The directory of a group.
    #[must_use]
    pub fn of(&self, group: GroupId) -> PathBuf {
        self.directory.join(group.to_string())
    }
}

impl Doors for UnixDoors {
    fn open(&self, group: GroupId) -> io::Result<Door> {
        let directory = self.of(group);
        std::fs::create_dir_all(&directory)?;
        // The tenant's user may look the socket up but not list or change the directory; the parent keeps everybody else out.
        std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o711))?;
        let path = directory.join(SOCKET_NAME);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&path)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666))?;
        let connections = UnixListenerStream::new(listener).map(|stream| stream.map(|stream| Box::new(stream) as Connection));
        Ok(Door { directory, connections: connections.boxed() })
    }

    fn remove(&self, group: GroupId) -> io::Result<()> {
        match std::fs::remove_dir_all(self.of(group)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        }
    }
}
