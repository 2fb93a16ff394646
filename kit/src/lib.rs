//! Plumbing that more than one crate uses, and nothing else.
//!
//! # Layout
//! - [`clock`] — wall time and boot time, injected
//! - [`problem`] — RFC 9457 problem documents, the only form of an HTTP error
//! - [`telemetry`] — logging set-up of a process
//! - [`file`] — durable files: write, sync, rename
//! - [`task`] — tasks that belong to a process, real or simulated
//! - [`work`] — changes that run to their end once they have begun
//! - [`fault`] and [`small_disk`] — fail points at durable writes, and disks that fill up, for tests and simulation

pub mod clock;
#[doc(hidden)]
pub mod fault;
pub mod file;
pub mod problem;
#[doc(hidden)]
pub mod small_disk;
pub mod task;
pub mod telemetry;
pub mod wire;
pub mod work;
