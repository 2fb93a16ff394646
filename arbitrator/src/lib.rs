//! The arbitrator: puts contracts in force, holds stakes and payment, collects evidence, gives the verdict, pays; votes on custody as a witness.
//!
//! # Layout
//! - [`resource`] — what the API shows
//! - [`http`] -> [`service`] -> [`store`] — the server, one verb one name through the layers; what decides is pure and lives in [`contracts`]
//! - [`witness`] — votes on custody, write-ahead records of holders
//! - [`server`] — [`run`]: store, endpoint, time rules, connections, drain; [`config`] — its configuration; [`metrics`] — what it counts
//! - [`client`] — the typed client
//! - [`case`] — a contract's evidence in one file, and the verdict recomputed from it
//!
//! # What it never does
//! It never changes a contract's state but through [`contracts::contract::life::apply`], never moves money but through [`contracts::ledger`],
//! and both in the same transaction as the statement that is the reason.

pub mod case;
pub mod client;
pub mod config;
mod custody_report;
pub mod http;
pub mod metrics;
pub mod resource;
pub mod server;
pub mod service;
pub mod store;
pub mod witness;

pub use client::Client;
pub use config::Config;
pub use server::{run, run_with};
