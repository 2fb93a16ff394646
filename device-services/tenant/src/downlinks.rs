//! Downlinks: payloads for devices, without the application key ever reaching the node.
//!
//! A payload is encrypted under the frame's counter, and only the node knows which counter a frame will have: it acknowledges uplinks in
//! between, and after a takeover it leaves out whatever its predecessor may have used. So a payload goes in two steps:
//!
//! 1. `POST /v1/downlinks` ([`Downlink`]): the payload *at rest*, in a form of the tenant's own (encrypted with a key that does not change
//!    when the device joins again). The node keeps it and does not look at it.
//! 2. When the downlink is next for its device, the node asks with [`DownlinkState::Wanted`]: the payload at rest comes back with a run of
//!    counters. The tenant decrypts it, encrypts it once for every counter of the run, and hands all in (`PUT /v1/downlinks`,
//!    [`Encrypted`]). The node sends the one whose counter is its turn. It asks again when the run is used up.
//!
//! The tenant needs no memory: everything it needs comes with the question, also at the node that took over. The node must not be given
//! two different payloads for one counter of a session; it asks for one downlink of a device at a time.
//!
//! `GET /v1/downlinks?after=N` waits up to [`DOWNLINK_WAIT_MS_MAX`] for events behind cursor `N` and answers [`DownlinkEvents`]. Without
//! `after` it begins with every question that is still open. Events live in the node's memory: after a restart it begins at cursor 1, asks
//! its open questions again, and the states of downlinks before are not repeated.

use serde::{Deserialize, Serialize};

use crate::messages::Refused;
use crate::{DOWNLINK_ID_BYTES_MAX, DevAddr, DevEui, HexBytes};

/// Most events of one answer.
pub const DOWNLINK_EVENTS_MAX: usize = 64;
/// So long a request for events waits for the first one, in milliseconds.
pub const DOWNLINK_WAIT_MS_MAX: u64 = 5_000;
/// Most counters of one question.
pub const COUNTERS_MAX: usize = 16;
/// Largest body of an answer to a question in bytes.
pub const ENCRYPTED_BODY_BYTES_MAX: usize = 16 * 1024;

/// What happens to a downlink if a node fails after it may have been sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Delivery {
    /// Rather lost than sent twice.
    #[default]
    AtMostOnce,
    /// Rather sent twice than lost: it is on the node's disk before it counts as queued, and the other node of a contract was told if it
    /// can be reached within a second.
    AtLeastOnce,
}

/// Body of `POST /v1/downlinks`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Downlink {
    /// Chosen by the tenant, at most [`DOWNLINK_ID_BYTES_MAX`] bytes; the same id again is the same downlink.
    pub id: String,
    /// To which device.
    pub dev_eui: DevEui,
    /// Port, 1..=223.
    pub f_port: u8,
    /// Payload at rest: in the tenant's own form.
    pub payload: HexBytes,
    /// Whether the device has to acknowledge it.
    pub confirmed: bool,
    /// What to do when it is not known whether it was sent.
    #[serde(default)]
    pub delivery: Delivery,
    /// Higher goes first; among equals the older one.
    #[serde(default)]
    pub priority: u8,
    /// When it becomes worthless, in milliseconds since 1970.
    pub expires_at_ms: u64,
}

fn refused(field: &str, reason: &'static str) -> Refused {
    Refused { field: field.to_owned(), reason }
}

fn check_id(id: &str) -> Result<(), Refused> {
    if id.is_empty() || id.len() > DOWNLINK_ID_BYTES_MAX { Err(refused("id", "empty or too long")) } else { Ok(()) }
}

impl Downlink {
    /// Checks limits and ranges.
    ///
    /// # Errors
    /// The first field that is out of range.
    pub fn check(&self) -> Result<(), Refused> {
        check_id(&self.id)?;
        if !(1..=223).contains(&self.f_port) {
            return Err(refused("f_port", "not in 1..=223"));
        }
        Ok(())
    }
}

/// Answer to `POST /v1/downlinks`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Queued {
    /// The downlink's id.
    pub id: String,
}

/// Body of `PUT /v1/downlinks`: a payload as it goes on air, once for every counter of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Encrypted {
    /// The downlink's id.
    pub id: String,
    /// To which device.
    pub dev_eui: DevEui,
    /// Session for which it is encrypted, as it was asked for.
    pub session: String,
    /// Counter of the first payload; the others follow by one.
    pub f_cnt_first: u32,
    /// At most [`COUNTERS_MAX`], all of the same length.
    pub payloads: Vec<HexBytes>,
}

impl Encrypted {
    /// Checks limits.
    ///
    /// # Errors
    /// The first field that is out of range.
    pub fn check(&self) -> Result<(), Refused> {
        check_id(&self.id)?;
        if self.payloads.is_empty() || self.payloads.len() > COUNTERS_MAX {
            return Err(refused("payloads", "none or too many"));
        }
        let len = self.payloads[0].0.len();
        if self.payloads.iter().any(|payload| payload.0.len() != len) {
            return Err(refused("payloads", "not all of the same length"));
        }
        Ok(())
    }
}

/// The join from which a session's keys follow: `AppSKey = AES(AppKey, 02 | join_nonce | net_id | dev_nonce | pad)` (LoRaWAN 1.0.x).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Joined {
    /// Of the network, 24 bits (AppNonce in LoRaWAN 1.0).
    pub join_nonce: u32,
    /// Of the network, 24 bits.
    pub net_id: u32,
    /// Of the device.
    pub dev_nonce: u16,
}

/// Something that happened to a downlink. Unknown fields are ignored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DownlinkEvent {
    /// Position, rising.
    pub cursor: u64,
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
    /// The downlink's id.
    pub id: String,
    /// To which device.
    pub dev_eui: DevEui,
    /// What.
    #[serde(flatten)]
    pub state: DownlinkState,
}

/// What became of a downlink, or what it lacks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum DownlinkState {
    /// To be encrypted for `count` counters from `f_cnt_first` on and handed in.
    Wanted {
        /// Port, 1..=223.
        f_port: u8,
        /// At rest, as it was queued.
        payload: HexBytes,
        /// Address of the session.
        dev_addr: DevAddr,
        /// The session, opaque.
        session: String,
        /// Where the session's keys come from; absent for a session by personalisation.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        joined: Option<Joined>,
        /// The first counter.
        f_cnt_first: u32,
        /// How many counters, at most [`COUNTERS_MAX`].
        count: u8,
    },
    /// A gateway took it. For an unconfirmed downlink this is the end.
    Sent {
        /// Its counter.
        f_cnt: u32,
        /// EUI of the gateway.
        gateway: String,
    },
    /// The device acknowledged it: the end.
    Acked {
        /// The counter under which it was sent last.
        f_cnt: u32,
    },
    /// It became worthless before it was sent or acknowledged: the end.
    Expired,
    /// It was given up: the end.
    Failed {
        /// Why, as a stable word: `unknown` (it may have been sent, and nobody knows), `not_acknowledged`, `too_long` (for the
        /// device's data rate when it was its turn).
        reason: String,
    },
}

/// Answer to `GET /v1/downlinks`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DownlinkEvents {
    /// At most [`DOWNLINK_EVENTS_MAX`]; none if nothing happened in time.
    pub events: Vec<DownlinkEvent>,
}
