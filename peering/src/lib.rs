//! How nodes and the arbitrator reach one another: REST over QUIC streams, lease datagrams, custody by majority.
//!
//! A node's ed25519 key is its address. Peers speak HTTP with an axum `Router` behind it, so that the same router is called over QUIC,
//! in one process by tests, and by a simulator.
//!
//! # Layout
//! - [`transport`] — the [`Transport`] trait: requests, datagrams, connections kept warm, what was counted
//! - [`endpoint`] — [`Endpoint`], the real one: `iroh` (QUIC), mutual authentication by key
//! - [`in_process`] — [`InProcess`], routers called directly, with faults on demand
//! - [`address_book`] — where keys are reached
//! - [`warm`] — when to ping, dial anew and raise the alarm (pure)
//! - [`custody`] — drives `contracts::custody` over a transport: votes on disk, signatures, certificates, who holds
//! - [`limits`], [`rate`] — bounds on everything a peer can send

pub mod address_book;
pub mod custody;
pub mod endpoint;
pub mod in_process;
pub mod limits;
pub mod rate;
pub mod transport;
pub mod warm;

pub use address_book::AddressBook;
pub use endpoint::Endpoint;
pub use in_process::InProcess;
pub use transport::{Datagram, PeerIdentity, PeerState, Transport};
