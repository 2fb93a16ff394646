//! The arbitrator from the store to real sockets. One program, laid out like the layers.
#![expect(clippy::unwrap_used, reason = "a test that cannot unwrap has failed")]

mod case;
mod common;
mod crash;
mod http;
mod kill;
mod run;
mod store;
mod witness;
