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
    /// A group whose service is no container, and its directory.
    beside: Option<(GroupId, PathBuf)>,
}

impl UnixDoors {
    #[must_use]
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self { directory: directory.into(), beside: None }
    }

    /// The service of one group runs beside the node, as the same user: its socket is in `directory`, whatever the group's name is.
    #[must_use]
    pub fn with_beside(self, group: GroupId, directory: PathBuf) -> Self {
        Self { beside: Some((group, directory)), ..self }
    }

    /// The directory of a group.
    #[must_use]
    pub fn of(&self, group: GroupId) -> PathBuf {
        match &self.beside {
            Some((beside, directory)) if *beside == group => directory.clone(),
            Some(_) | None => self.directory.join(group.to_string()),
        }
    }

    /// Makes the directory of a group. A container's user may look its socket up but not list or change the directory; everybody else is
    /// kept out, since who connects is given the configuration: by the directory above, which a container does not see.
    fn make(&self, group: GroupId) -> io::Result<PathBuf> {
        let directory = self.of(group);
        let is_beside = self.beside.as_ref().is_some_and(|(beside, _)| *beside == group);
        std::fs::create_dir_all(&directory)?;
        let (closed, open) = if is_beside { (&directory, None) } else { (&self.directory, Some(&directory)) };
        std::fs::set_permissions(closed, std::fs::Permissions::from_mode(0o700))?;
        if let Some(open) = open {
            std::fs::set_permissions(open, std::fs::Permissions::from_mode(0o711))?;
        }
        Ok(directory)
    }
}

impl Doors for UnixDoors {
    fn open(&self, group: GroupId) -> io::Result<Door> {
        let directory = self.make(group)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn other_users_cannot_reach_a_socket() {
        let state = tempfile::tempdir().expect("a directory");
        let (contained, beside) = (GroupId::from_bytes([1; 16]), GroupId::from_bytes([2; 16]));
        let (tenants, service) = (state.path().join("tenants"), state.path().join("service"));
        let doors = UnixDoors::new(tenants.clone()).with_beside(beside, service.clone());
        let mode = |path: &std::path::Path| std::fs::metadata(path).expect("there").permissions().mode() & 0o777;
        let _open = [doors.open(contained).expect("opened"), doors.open(beside).expect("opened")];
        assert_eq!((mode(&tenants), mode(&doors.of(contained)), mode(&service)), (0o700, 0o711, 0o700));
        assert!(doors.of(contained).join(SOCKET_NAME).exists() && service.join(SOCKET_NAME).exists());
    }
}
