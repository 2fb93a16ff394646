//! LoRaWAN 1.0.x at the network's side: sessions, uplinks verified, downlinks built. Class A, activation by personalisation.
//!
//! # Layout
//! - [`served`] — the window of the last 1,024 uplink counters of a session
//! - [`session`] — what is registered, what moves between nodes
//! - [`registry`] — all sessions of a bridge, by device and by address
//! - [`uplink`] — header, 32-bit counter, integrity code
//! - [`downlink`] — counters written ahead, receive windows, the frame

pub mod downlink;
pub mod registry;
pub mod served;
pub mod session;
pub mod uplink;
