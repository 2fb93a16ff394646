//! The calls that have no safe wrapper.

#![expect(
    unsafe_code,
    reason = "unshare(2), signal(2) and registering a descriptor have no safe wrapper; each says why it is sound"
)]

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::thread::UnshareFlags;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Lets the runtime watch a descriptor for being readable.
pub(super) fn watch(descriptor: Arc<OwnedFd>) -> io::Result<AsyncFd<Arc<OwnedFd>>> {
    // SAFETY: the registration owns a share of the descriptor, which stays open and the same until the last share is dropped
    unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) }.map_err(Into::into)
}

/// Gives this process mounts of its own. For the single-threaded helper process.
pub(super) fn unshare_mounts() -> io::Result<()> {
    // SAFETY: the call is unsafe for the file-descriptor flag only, which is not used
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }.map_err(Into::into)
}

/// Signal dispositions that a program expects at its start, but for one: a write beyond the log's limit shall fail, not kill.
/// For the single-threaded helper process.
pub(super) fn reset_signals() {
    // SAFETY: no handler is installed, only the two constant dispositions
    unsafe {
        // what is ignored stays ignored through execve: SIGPIPE by Rust's runtime, others perhaps by whatever started the node
        for signal in 1..libc::SIGRTMIN() {
            libc::signal(signal, libc::SIG_DFL);
        }
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
    }
}
