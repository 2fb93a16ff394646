//! LoRaWAN 1.0.x at the network's side: sessions, uplinks verified, downlinks built. Class A, activation by personalisation and over the air.
//!
//! # Layout
//! - [`served`] — the window of the last 1,024 uplink counters of a session
//! - [`session`] — what is registered, what moves between nodes
//! - `integrity` — the integrity code of uplinks
//! - [`registry`] — all sessions of a bridge, by device and by address
//! - [`uplink`] — header, 32-bit counter
//! - `trials` — which session a frame belongs to, at bounded cost
//! - [`downlink`] — counters written ahead, receive windows, the frame
//! - `adr` — adaptive data rate
//! - [`join`] — activation over the air
//! - [`link`] — receive windows and channels that the network changes
//! - [`queue`] — downlinks of tenants that wait for their device
//! - [`region`] — channels, data rates and limits as tables
//! - [`duty_cycle`] — time on air, and what is left of it per gateway and sub-band

pub mod adr;
pub mod downlink;
pub mod duty_cycle;
mod integrity;
pub mod join;
pub mod link;
pub mod queue;
pub mod region;
pub mod registry;
pub mod served;
pub mod session;
pub(crate) mod trials;
pub mod uplink;
