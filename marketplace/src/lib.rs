//! The marketplace: nodes register, providers list offers, customers list demands, clearing matches them N:M and introduces the parties.
//! It never holds money or anybody's keys; everything it is told is a signed statement that it can show again.
//!
//! # Layout
//! - [`resource`] — what the API shows: nodes, listings, matches, events, statistics
//! - [`book`] (pure) — who could insure whom; [`clearing`] (pure) — the assignment of greatest surplus
//! - [`http`] -> [`service`] -> [`store`] — the server, one verb one name through the layers
//! - [`server`] — [`run`]: connections, rounds, drain; [`config`] — its configuration; [`metrics`] — what it counts
//! - [`reputation`] — where scores come from
//! - [`client`] — the typed client

pub mod book;
pub mod clearing;
pub mod client;
pub mod config;
pub mod http;
pub mod metrics;
pub mod reputation;
pub mod resource;
pub mod server;
pub mod service;
pub mod store;

pub use config::Config;
pub use server::{run, run_with};
