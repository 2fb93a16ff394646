//! Plumbing that more than one crate uses, and nothing else.
//!
//! # Layout
//! - [`clock`] — wall time and boot time, injected
//! - [`problem`] — RFC 9457 problem documents, the only form of an HTTP error; [`input`] — bodies, paths and query strings whose rejection is one
//! - [`routes`] — what HTTP interfaces answer the same way, whatever their routes are
//! - [`connections`] — HTTP connections of a server, bounded and drained
//! - [`secret_key`] — where a configuration says the secret key is
//! - [`telemetry`] — logging set-up of a process
//! - [`file`] — durable files: write, sync, rename
//! - [`task`] — tasks that belong to a process, real or simulated
//! - [`work`] — changes that run to their end once they have begun
//! - [`fault`] and [`small_disk`] — fail points at durable writes, and disks that fill up, for tests and simulation

pub mod clock;
pub mod connections;
#[doc(hidden)]
pub mod fault;
pub mod file;
pub mod input;
pub mod problem;
pub mod routes;
pub mod secret_key;
#[doc(hidden)]
pub mod small_disk;
pub mod task;
pub mod telemetry;
pub mod wire;
pub mod work;
