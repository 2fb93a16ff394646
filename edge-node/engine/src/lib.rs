//! Runs the prepared containers of an edge node.
//!
//! A standby node keeps its tenants' containers *created*: everything that can be slow (unpacking, mounts, limits, checks)
//! is done long before custody moves, and [`Engine::start`] only lets a finished container go.
//!
//! # Layout
//! | module | what it holds |
//! |---|---|
//! | [`spec`] | what is to run: names, limits, mounts; validated values, no I/O |
//! | [`contract`](Engine) | the [`Engine`] trait, states, events, errors |
//! | [`image`] | image tars: pack (deterministic), read (hostile input), store (verified and unpacked) |
//! | [`embedded`] | containers without a daemon: `libcontainer`, namespaces, cgroups, seccomp |
//! | [`docker`] | the same trait over the Docker Engine API (Docker, Podman, balenaEngine) |
//! | [`select`] | which of the two this machine can use |
//!
//! # What is deliberately absent
//! No network for tenants by default, no registry, no build, no exec into a container, no restart policy: the caller's reconciler
//! decides what runs, this crate does it and says what it sees.

pub mod docker;
pub mod embedded;
pub mod image;
pub mod select;
pub mod spec;

mod contract;

pub use contract::{
    Capabilities, ContainerState, ContainerStatus, Engine, Error, Event, ImageSource, Kind, LimitSupport, Recovery, Stats,
};
pub use image::ImageId;
pub use select::{Config, Selected, Selection, select};
pub use spec::{ContainerName, ContainerSpec, Limits, Mount, Network, NodePrefix};
