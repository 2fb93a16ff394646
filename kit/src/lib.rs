//! Plumbing that more than one crate uses, and nothing else.
//!
//! # Layout
//! - [`clock`] — wall time and boot time, injected
//! - [`problem`] — RFC 9457 problem documents, the only form of an HTTP error
//! - [`telemetry`] — logging set-up of a process
//! - [`file`] — durable files: write, sync, rename
//! - [`task`] — tasks that belong to a process, real or simulated

pub mod clock;
pub mod file;
pub mod problem;
pub mod task;
pub mod telemetry;
