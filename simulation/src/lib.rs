//! The whole product on one thread and in virtual time: real nodes, bridges, custody drivers, reading logs, device services and the real
//! arbitrator, between simulated motes, over a network, disks and clocks that fail as a script says.
//!
//! What is simulated is only what a machine gives: time ([`clock`]), randomness, the network ([`network`], [`udp`]), disks, containers ([`engine`]).
//! Nothing depends on another thread, on the wall clock or on the machine's randomness: equal scripts give equal logs, each in a process of its own.
//!
//! # Layout
//! | module | what it holds |
//! |---|---|
//! | [`script`] | scenarios as data: TOML files, and what must come of them |
//! | [`generate`] | a random scenario for every seed |
//! | [`world`] | machines, network and motes of one run, and its end |
//! | [`machine`] | a machine: clock, disks, and the process that runs on it |
//! | [`check`] | what must hold at every instant, and the judgement at the end |
//! | `arbitrator_store` | the arbitrator's store on its machine's disk |
//! | `books` | what the insurer said that it heard, judged: signed accounts, asked of both parties |
//! | `evidence` | what members signed about custody, judged: the statements on the edges' disks |
//! | [`shrink`] | the shortest script that still fails |
//! | `market` | marketplace and arbitrator behind the nodes' own clients, the owners' policies, contracts and money judged |
//! | `entropy` | the randomness of the operating system, by seed |
//! | [`clock`], [`network`], [`udp`], [`engine`] | the simulated machine parts |
//!
//! # What is deliberately absent
//! HTTP itself (requests of the nodes' clients call the routers of marketplace and arbitrator), QUIC itself (messages are lost, late, doubled and
//! reordered as datagrams; requests are repeated like streams), the file system below the database, several threads.

mod arbitrator_store;
mod books;
pub mod check;
pub mod clock;
pub mod engine;
mod entropy;
mod evidence;
pub mod generate;
pub mod machine;
mod market;
pub mod network;
mod nodes;
mod parties;
pub mod script;
pub mod shrink;
pub mod udp;
pub mod votes;
pub mod world;

pub use script::Script;
pub use world::{Outcome, run};
