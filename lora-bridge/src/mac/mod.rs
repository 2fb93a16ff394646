//! LoRaWAN 1.0.x at the network's side: sessions, uplinks verified, downlinks built. Class A, activation by personalisation.
//!
//! # Layout
//! - [`served`] — the window of the last 1,024 uplink counters of a session
//! - [`session`] — what is registered, what moves between nodes
//! - `integrity` — the integrity code of uplinks
//! - [`registry`] — all sessions of a bridge, by device and by address
//! - [`uplink`] — header, 32-bit counter
//! - `trials` — which session a frame belongs to, at bounded cost
//! - [`downlink`] — counters written ahead, receive windows, the frame

pub mod downlink;
mod integrity;
pub mod registry;
pub mod served;
pub mod session;
pub(crate) mod trials;
pub mod uplink;
