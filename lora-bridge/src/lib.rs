//! The LoRa bridge: packet forwarders on one side, verified and de-duplicated uplinks on the other.
//!
//! Everything that decides is in [`bridge`], pure: time and bytes come in, bytes and events go out. [`server`] owns the UDP socket and runs it.
//!
//! Rules that shape it:
//! - What was served is a set per session, not a watermark: late frames are delivered, and never answered.
//! - An uplink is acknowledged only after it is on disk, by the node that has custody, with a downlink counter that was written ahead.
//! - A confirmed uplink that is repeated is answered again with a new counter, and delivered once.
//! - Whatever a gateway or a peer sends, a bad packet is counted and dropped alone; every map and queue has a bound.
//!
//! # Layout
//! - [`gwmp`] — the packet forwarders' protocol
//! - [`mac`] — sessions, uplinks, downlinks
//! - [`buffer`] — frames heard for others
//! - [`bridge`] — the state machine over all of it
//! - [`rules`] — one switch per pedantic clause, for checkers
//! - [`stats`] — what is counted
//! - [`server`] — the socket, the clock, the lease

pub mod bridge;
pub mod buffer;
pub mod gwmp;
pub mod mac;
pub mod rules;
pub mod server;
pub mod stats;

pub use bridge::io::{Input, Mode, Now, Offer, OfferedFrame, Output, Reception, Reset, Transmit, Uplink, UplinkKind};
pub use bridge::{Bridge, Config, SKIPPED_ALARM};
pub use gwmp::GatewayEui;
pub use mac::downlink::{CounterSource, Window};
pub use mac::session::{Mark, NwkSKey, ReceiveWindows, Session, SessionState, UplinkRules, session_id};
pub use rules::{Clause, Rules};
pub use stats::{DropReason, MissedReason, Stats};
