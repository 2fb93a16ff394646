//! The audit (pure): what the motes sent, what the radio carried, what the customer's store has; nothing else is believed.
//!
//! A *frame* is one transmission, a *reading* is one measured value; the attempts for a confirmed uplink are several frames of one
//! reading. A frame is **owed** when a gateway heard it whose node was alive at its end on air and for 50 ms afterwards
//! ([`Limits::loss_margin_ms`]). A frame all of whose living hearers were killed within these 50 ms is not owed, and has a column of its own; so has
//! a frame that only gateways of dead nodes heard. A reading is owed when one of its frames is.

pub mod answers;
mod checks;
mod joins;
mod report;

use serde::{Deserialize, Serialize};

use crate::fleet::Eui64;
use crate::ledger::Ledgers;

pub use checks::audit;
pub use report::{Coverage, Duplicate, ListedReading, Report, Violation, WrongValue};

/// A node, the gateway that sends to it, and when it was alive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeLife {
    /// Name of the node, as in [`Delivered::delivered_by`].
    pub node: String,
    /// Its gateway.
    pub gateway: Eui64,
    /// When its process could receive, in order.
    pub alive: Vec<Alive>,
}

/// An interval of life, wall-clock milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alive {
    /// From when on the node's UDP port was open.
    pub from_ms: u64,
    /// When it was killed (exclusive); nothing if it lived to the end.
    pub to_ms: Option<u64>,
}

/// A reading as the customer's store has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delivered {
    /// Device EUI.
    pub device: Eui64,
    /// The session's name, as the store has it; not interpreted.
    pub session: String,
    /// Full uplink counter.
    pub f_cnt: u32,
    /// The mote's own reading number (LPP channel 1), if it was decoded.
    pub reading: Option<u32>,
    /// Temperature in tenths of a degree (LPP channel 2), if it was decoded.
    pub decicelsius: Option<i32>,
    /// When a gateway heard it, according to the node.
    pub heard_at_ms: u64,
    /// When the store took it.
    pub received_at_ms: u64,
    /// Name of the node that delivered it.
    pub delivered_by: String,
    /// Event id.
    pub event_id: String,
}

/// What happened when, wall-clock milliseconds; nothing for what did not happen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timeline {
    /// The insured node was killed.
    pub kill_ms: Option<u64>,
    /// Name of the node that took over.
    pub taker: Option<String>,
    /// That node had the certificate of its custody.
    pub takeover_certificate_ms: Option<u64>,
    /// Hand-back began: the recovered node was level.
    pub handback_begin_ms: Option<u64>,
    /// Hand-back ended: the recovered node holds again, and what was under way is settled.
    pub handback_end_ms: Option<u64>,
}

/// Bounds that decide what is owed and what is late.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// A node must live this long after a frame for the frame to be owed.
    pub loss_margin_ms: u64,
    /// An owed reading that takes longer is late.
    pub delivery_delay_ms_max: u64,
    /// An owed reading heard during hand-back that takes longer is late.
    pub handback_delay_ms_max: u64,
    /// Frames that ended on air later than this (wall-clock milliseconds) are not owed yet; nothing if the run is over.
    pub judged_until_ms: Option<u64>,
}

impl Default for Limits {
    fn default() -> Self {
        Self { loss_margin_ms: 50, delivery_delay_ms_max: 2_000, handback_delay_ms_max: 100, judged_until_ms: None }
    }
}

/// All that the audit looks at.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// The ledgers of motes, radio and gateways.
    pub ledgers: &'a Ledgers,
    /// One entry per gateway.
    pub nodes: &'a [NodeLife],
    /// The customer's store.
    pub delivered: &'a [Delivered],
    /// Marks of the run.
    pub timeline: &'a Timeline,
    /// Bounds.
    pub limits: Limits,
}

/// A decoded temperature (`"23.5"`, `"-0.4"` or a whole number) in tenths of a degree.
#[must_use]
pub fn decicelsius(value: &serde_json::Value) -> Option<i32> {
    let text = value.as_str().map_or_else(|| value.as_i64().map(|n| n.to_string()), |text| Some(text.to_owned()))?;
    let (whole, tenths) = text.split_once('.').unwrap_or((&text, "0"));
    let negative = whole.starts_with('-');
    let whole: i32 = whole.parse().ok()?;
    let tenths: i32 = tenths.get(..1)?.parse().ok()?;
    Some(whole * 10 + if negative { -tenths } else { tenths })
}

#[cfg(test)]
mod tests;
