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

    /// Called once, when the process has ended.
    pub(super) fn end(&self, code: Option<i32>) {
        self.state.send_replace(ContainerState::Exited { code });
    }

    /// Lets the waiting process go. `libcontainer`'s own way changes the working directory of the whole process; here the socket is
    /// reached by a path that is absolute, and short whatever the directory is called.
    pub(super) fn start(&self, directory: &Path) -> Result<(), Error> {
        let refused = |state| Error::NotCreated { name: self.record.spec.name.clone(), state };
        // at most one caller gets past this
        let mut before = ContainerState::Running;
        self.state.send_if_modified(|state| {
            before = *state;
            let starts = before == ContainerState::Created;
            if starts {
                *state = ContainerState::Running;
            }
            starts
        });
        if before != ContainerState::Created {
            return Err(refused(before));
        }
        match let_go(directory) {
            Ok(()) => Ok(()),
            // nobody waits there: it ended, or it was let go before this process took it over
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Err(refused(self.state())),
            Err(error) => {
                self.state.send_if_modified(|state| {
                    let running = *state == ContainerState::Running;
                    if running {
                        *state = ContainerState::Created;
                    }
                    running
                });
                Err(Error::io("start", directory)(error))
            }
        }
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
