//! What two parties of a contract tell each other while it is in force.

use contracts::envelope::{Envelope, Invalid, Statement};
use contracts::ids::{DevEui, Epoch, EventId, GroupId, NodeId};
use contracts::time::Millis;
use lora_bridge::bridge::io::OfferedFrame;
use lora_bridge::mac::adr::Margin;
use lora_bridge::mac::session::{Mark, SessionState};
use serde::{Deserialize, Serialize};

use crate::readings::Uplink;

/// Marks in one message at most.
pub const MARKS_MAX: usize = 8_192;
/// Frames in one message at most.
pub const FRAMES_MAX: usize = 512;
/// Devices in one [`Margins`] at most.
pub const MARGINS_MAX: usize = 1_024;
/// Session states in one page at most.
pub const STATES_MAX: usize = 256;
/// Open uplinks in one page at most.
pub const OPEN_MAX: u32 = 512;

/// The node that serves tells the other what is on its disk, and what the customer's cloud acknowledged.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Progress {
    pub served: Vec<Mark>,
    pub settled: Vec<Mark>,
}

/// Frames that the node that serves seems to lack.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Frames {
    pub frames: Vec<OfferedFrame>,
}

/// How the node in standby hears devices.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Margins {
    pub margins: Vec<Margin>,
}

/// A page of session states; also pushed after a gap in the progress.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sessions {
    pub states: Vec<SessionState>,
    /// Where to go on; absent at the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<u32>,
}

/// A page of uplinks that the customer's cloud has not acknowledged, from the provider's log.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OpenUplinks {
    pub uplinks: Vec<OpenUplink>,
    /// Place in the provider's log up to which this page reaches.
    pub upto: u64,
    /// There is more behind it.
    pub more: bool,
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OpenUplink {
    pub uplink: Uplink,
    /// What the provider's tenant made of it, a JSON object as text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decoded: Option<String>,
}

/// "All that you had not settled up to `upto` is on my disk." Signed by the customer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Level {
    pub group: GroupId,
    pub node: NodeId,
    /// The provider's epoch that this is about.
    pub epoch: Epoch,
    /// Place in the provider's log.
    pub upto: u64,
}

impl Statement for Level {
    const TYPE: &'static str = "application/vnd.antirio.level.v1+json";

    fn validate(&self) -> Result<(), Invalid> {
        Ok(())
    }
}

/// How [`Level`] is sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LevelReport {
    pub level: Envelope,
}

/// The provider's answer to [`Level`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum LevelAnswer {
    /// The quiet time is not over, or the customer was not told yet what this node served.
    Wait { quiet: Millis },
    /// There is something new in the log.
    Behind,
    /// Custody is released: claim it.
    Released { epoch: Epoch },
    /// This node does not hold custody.
    NotHolding,
}

/// What goes with a release: the exact next downlink counter of each device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Handover {
    pub counters: Vec<(DevEui, u32)>,
}

/// Which of these readings does the store have?
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReceiptWanted {
    pub events: Vec<EventId>,
}

/// Its signed [`contracts::account::Receipt`] for those that it has; absent if it has none of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReceiptAnswer {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receipt: Option<Envelope>,
}

/// How a signed [`contracts::account::Account`] is sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccountReport {
    pub account: Envelope,
}
