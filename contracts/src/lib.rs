//! What the parties of an insurance sign and send to one another, and the pure state machines over it.
//!
//! No I/O, no clock, no randomness: time comes in as a parameter, entropy as bytes (only the sealing of secrets draws its own). Everything
//! that decides is a function from state and event to state and effects, so that it can be simulated, model-checked and recomputed by anybody.
//!
//! # Layout
//! - [`ids`], [`time`], [`money`], [`geo`], [`resources`] — the words
//! - [`envelope`] — how statements are signed and named; [`sealed`] — how secrets are
//! - [`node_record`], [`blueprint`], [`listing`], [`contract`] — the statements
//! - [`custody`] — who may serve a group of devices now: votes, leases, epochs
//! - [`account`] — what an insurer heard, what the customer's store has, and who hides frames
//! - [`evidence`] — what counts in a contract, and the rules of the verdict; [`reputation`] — what verdicts add up to
//! - [`ledger`] — money in two phases; [`settlement`] — who gets what
//! - [`write_ahead`] — what a holder stores with other members before it acts
//! - [`proof`] — Merkle roots over batches of readings
//! - [`digits`] — bytes as hexadecimal digits

pub mod account;
pub mod blueprint;
pub mod contract;
pub mod custody;
pub mod digits;
pub mod envelope;
pub mod evidence;
pub mod geo;
pub mod ids;
pub mod ledger;
pub mod listing;
pub mod money;
pub mod node_record;
pub mod proof;
pub mod reputation;
pub mod resources;
pub mod sealed;
pub mod settlement;
pub mod time;
pub mod write_ahead;

#[cfg(test)]
pub(crate) mod test_contract;
