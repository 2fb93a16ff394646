//! The only door to other nodes: REST over authenticated streams.
//!
//! - [`client`] — typed requests to peers
//! - [`negotiation`] — from a match to a contract in standby
//! - [`http`] — the routes for peers; [`messages`] — what goes over them

pub mod client;
pub mod http;
pub mod messages;
pub mod negotiation;
