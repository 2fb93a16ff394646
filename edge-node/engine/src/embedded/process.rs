//! Processes that this one did not start itself: watched by descriptor, signalled without races, reaped.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, WaitIdStatus, WaitOptions};

use super::helper::{CREATE, HELPER_ARGUMENT};

/// Makes this process the parent of containers whose helper has ended, so that it sees their exit codes.
pub(super) fn become_subreaper() -> io::Result<()> {
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).map_err(Into::into)
}

/// One process, whoever gets its number later.
#[derive(Debug, Clone)]
pub(super) struct Watched {
    pub pid: i32,
    handle: Arc<OwnedFd>,
}

impl Watched {
    pub(super) fn open(pid: i32) -> io::Result<Self> {
        let number = Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidInput)?;
        let handle = Arc::new(rustix::process::pidfd_open(number, PidfdFlags::empty())?);
        Ok(Self { pid, handle })
    }

    /// Sends a signal; a process that has ended is no error.
    pub(super) fn signal(&self, signal: Signal) -> io::Result<()> {
        match rustix::process::pidfd_send_signal(&*self.handle, signal) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Resolves when the process has ended, reaps it and gives its exit code (128 + signal for a killed one); `None` for a process
    /// that is not a child of this one.
    pub(super) async fn ended(&self) -> io::Result<Option<i32>> {
        let readable = super::sys::watch(self.handle.clone())?;
        readable.readable().await?.retain_ready();
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        match rustix::process::waitid(WaitId::PidFd(self.handle.as_fd()), options) {
            Ok(status) => Ok(status.as_ref().and_then(exit_code)),
            Err(Errno::CHILD) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }
}

fn exit_code(status: &WaitIdStatus) -> Option<i32> {
    status.exit_status().or_else(|| status.terminating_signal().map(|signal| signal + 128))
}

/// Reaps a process that was killed. `true`: nothing of it is left that is this process's to reap. The child of a process that is being
/// killed too (one of `killed`) becomes a child of this process a moment later.
pub(super) fn reap(pid: i32, killed: &BTreeSet<i32>) -> bool {
    let Some(number) = Pid::from_raw(pid) else { return true };
    match rustix::process::waitid(WaitId::Pid(number), WaitIdOptions::EXITED | WaitIdOptions::NOHANG) {
        Ok(status) => status.is_some(),
        Err(_) => Stat::read(pid).is_none_or(|stat| !killed.contains(&stat.parent) && !stat.is_ours()),
    }
}

/// The first fields of `/proc/PID/stat` (proc(5)).
struct Stat {
    name: String,
    state: String,
    parent: i32,
}

impl Stat {
    fn read(pid: i32) -> Option<Self> {
        let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // `pid (name) state parent ...`; the name may hold anything
        let (name, rest) = text.split_once('(')?.1.rsplit_once(") ")?;
        let mut fields = rest.split(' ');
        Some(Self { name: name.to_owned(), state: fields.next()?.to_owned(), parent: fields.next()?.parse().ok()? })
    }

    fn is_ours(&self) -> bool {
        u32::try_from(self.parent).is_ok_and(|parent| parent == std::process::id())
    }
}

fn all_processes() -> impl Iterator<Item = i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().filter_map(Result::ok);
    entries.filter_map(|entry| entry.file_name().to_str().and_then(|name| name.parse().ok()))
}

/// Reaps containers that ended by themselves while they were being made: nobody learned their number. They still carry the name that
/// `libcontainer` gives to a process before the tenant's program replaces it. `known` are those that somebody watches.
pub(super) fn reap_unborn(known: &BTreeSet<i32>) {
    for pid in all_processes().filter(|pid| !known.contains(pid)) {
        let unborn = |stat: &Stat| stat.state == "Z" && stat.is_ours() && stat.name.starts_with(UNBORN);
        if Stat::read(pid).as_ref().is_some_and(unborn) {
            reap(pid, known);
        }
    }
}

/// How `libcontainer` 0.7 calls its processes.
const UNBORN: &str = "youki:[";

/// Kills what a dead helper left in its process group and reaps it. `true`: the group is empty.
pub(super) fn end_group(group: i32) -> bool {
    let Some(group) = Pid::from_raw(group) else { return true };
    loop {
        match rustix::process::waitpgid(group, WaitOptions::NOHANG) {
            // one reaped, perhaps there are more
            Ok(Some(_)) => {}
            // children are left, so the number is still theirs
            Ok(None) => {
                let _ = rustix::process::kill_process_group(group, Signal::KILL);
                return false;
            }
            Err(_) => return true,
        }
    }
}

/// Is this a helper of the bundle, or a container that it made and that waits for its start? Both carry the helper's command line
/// until the tenant's program replaces it.
pub(super) fn waits(pid: i32, bundle: &Path) -> bool {
    let Ok(line) = fs::read(format!("/proc/{pid}/cmdline")) else { return false };
    let mut words = line.split(|byte| *byte == 0).skip(1);
    words.next() == Some(HELPER_ARGUMENT.as_bytes())
        && words.next() == Some(CREATE.as_bytes())
        && words.next() == Some(bundle.as_os_str().as_bytes())
}

/// All processes for which [`waits`] holds. Finds also those that are in no control group yet.
pub(super) fn waiting(bundle: &Path) -> BTreeSet<i32> {
    // a process of this container can pose as its helper: it is killed either way
    all_processes().filter(|pid| waits(*pid, bundle)).collect()
}

/// Sends SIGKILL.
pub(super) fn kill(pid: i32) {
    if let Some(pid) = Pid::from_raw(pid) {
        // gone meanwhile is what we want
        let _ = rustix::process::kill_process(pid, Signal::KILL);
    }
}
