//! One container while this process knows it.

use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::process::Signal;
use tokio::sync::watch;

use super::KILL_MS_MAX;
use super::bundle::Record;
use super::process::Watched;
use crate::{ContainerState, ContainerStatus, Error};

#[derive(Debug)]
pub(super) struct Container {
    pub record: Record,
    /// `None` for one that ended before this process saw it.
    process: Option<Watched>,
    state: watch::Sender<ContainerState>,
}

impl Container {
    pub(super) fn new(record: Record, process: Option<Watched>, state: ContainerState) -> Self {
        Self { record, process, state: watch::Sender::new(state) }
    }

    fn state(&self) -> ContainerState {
        *self.state.borrow()
    }

    pub(super) fn status(&self) -> ContainerStatus {
        let state = self.state();
        let pid = match state {
            ContainerState::Created | ContainerState::Running => self.process.as_ref().map(|process| process.pid),
            ContainerState::Exited { .. } => None,
        };
        let spec = &self.record.spec;
        ContainerStatus { name: spec.name.clone(), state, pid, image: spec.image, labels: spec.labels.clone() }
    }

    /// Called once, when the process has ended. Whoever hears the announcement sees the new state.
    pub(super) fn end(&self, code: Option<i32>, announce: impl FnOnce()) {
        self.state.send_modify(|state| {
            *state = ContainerState::Exited { code };
            announce();
        });
    }

    /// Lets the waiting process go. `libcontainer`'s own way changes the working directory of the whole process; here the socket is
    /// reached by a path that is absolute, and short whatever the directory is called. The state is held meanwhile (some ten
    /// microseconds): of several callers one starts it, and an end is announced after the start.
    pub(super) fn start(&self, directory: &Path, announce: impl FnOnce()) -> Result<(), Error> {
        let mut outcome = Ok(());
        self.state.send_if_modified(|state| {
            let refused = Error::NotCreated { name: self.record.spec.name.clone(), state: *state };
            outcome = match *state {
                ContainerState::Running | ContainerState::Exited { .. } => Err(refused),
                ContainerState::Created => match let_go(directory) {
                    Ok(()) => {
                        *state = ContainerState::Running;
                        announce();
                        Ok(())
                    }
                    // nobody waits there: it has just ended, or was let go before this process took it over
                    Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Err(refused),
                    Err(error) => Err(Error::io("start", directory)(error)),
                },
            };
            outcome.is_ok()
        });
        outcome
    }

    pub(super) async fn stop(&self, grace: Duration) -> Result<ContainerState, Error> {
        let (ContainerState::Running, Some(process)) = (self.state(), &self.process) else { return Ok(self.state()) };
        process.signal(Signal::TERM).map_err(Error::io("stop", self.record.spec.name.as_str()))?;
        if tokio::time::timeout(grace, self.ended()).await.is_err() {
            self.kill().await?;
        }
        Ok(self.state())
    }

    /// Ends the process whatever it does, and waits until it is gone.
    pub(super) async fn kill(&self) -> Result<(), Error> {
        let Some(process) = &self.process else { return Ok(()) };
        let name = &self.record.spec.name;
        process.signal(Signal::KILL).map_err(Error::io("kill", name.as_str()))?;
        let ended = tokio::time::timeout(Duration::from_millis(KILL_MS_MAX), self.ended()).await;
        ended.map(|_| ()).map_err(|_| Error::Timeout { operation: "killing", name: name.clone(), limit_ms: KILL_MS_MAX })
    }

    /// Resolves when it has ended.
    pub(super) async fn ended(&self) -> Option<i32> {
        let mut states = self.state.subscribe();
        loop {
            if let ContainerState::Exited { code } = *states.borrow_and_update() {
                return code;
            }
            // the sender lives in `self`
            if states.changed().await.is_err() {
                return None;
            }
        }
    }
}

fn let_go(directory: &Path) -> io::Result<()> {
    let handle = rustix::fs::openat(CWD, directory, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let mut stream = UnixStream::connect(format!("/proc/self/fd/{}/notify.sock", handle.as_raw_fd()))?;
    // the container reads to the end: closing is what starts it
    stream.write_all(b"start container")
}
