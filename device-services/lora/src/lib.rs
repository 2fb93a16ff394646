//! The LoRa device service: turns a customer's uplinks into readings.
//!
//! It runs in a container without a network. Over the node's socket it reads its configuration, registers its devices, follows the
//! stream of uplinks, decrypts and decodes each and hands in exactly one reading for each. It keeps nothing: after any interruption it
//! starts again without a cursor, and the node gives it what has no reading yet.
//!
//! # Layout
//! `config` the customer's devices | `decrypt` LoRaWAN payload encryption | `codec` payload formats | `reading` an uplink becomes a
//! reading (pure) | `service` the loop around it

pub mod codec;
pub mod config;
pub mod decrypt;
pub mod reading;
pub mod service;
