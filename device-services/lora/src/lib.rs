//! The LoRa device service: turns a customer's uplinks into readings.
//!
//! It runs in a container without a network. Over the node's socket it reads its configuration, registers its devices, follows the
//! stream of uplinks, decrypts and decodes each and hands in exactly one reading for each. It keeps nothing: after any interruption it
//! starts again without a cursor, and the node gives it what has no reading yet.
//!
//! What goes on from there in other forms (ChirpStack's events, EdgeX) starts after that and is fed from the node's log by a cursor of its
//! own: a broker that is away holds up nothing, and misses nothing that the node still has.
//!
//! # Layout
//! `config` the customer's devices | `keys` of sessions | `decrypt` LoRaWAN payload encryption | `encryption` downlinks for the counters
//! that the node names | `codec` payload formats | `reading` an uplink becomes a
//! reading (pure) | `service` the loop around it | `outside` connections through the node or direct | `mqtt` a broker's client |
//! `sinks` readings in the forms of others

pub mod codec;
pub mod config;
pub mod decrypt;
mod encryption;
pub mod keys;
pub mod mqtt;
pub mod outside;
pub mod reading;
pub mod service;
pub mod sinks;
