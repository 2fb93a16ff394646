//! Readings: from the uplink that the bridge verified to the value that the customer's cloud acknowledged.
//!
//! - [`log`] — the node's own log; commits in batches of a few milliseconds
//! - [`north`] — ships readings to the customer's cloud with a signed proof, settles them
//! - [`unclaimed`] — what no service takes
//! - [`inbox`] — the cloud's side: takes batches, keeps every reading once
//! - [`pace`] — how often a step takes what has gathered

pub mod inbox;
pub mod log;
pub mod north;
pub mod pace;
pub mod unclaimed;

use contracts::account::{FrameDigest, Heard};
use contracts::digits;
use contracts::ids::{DevAddr, DevEui, Epoch, EventId, GroupId, SessionId};
use contracts::time::WallTime;
use lora_bridge::mac::session::Joined;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// How an uplink came to the tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Heard and served in order.
    Live,
    /// Its counter is below the newest one: delivered, never answered.
    Late,
    /// From the buffer of a node that took over.
    Replayed,
}

impl Kind {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Late => "late",
            Self::Replayed => "replayed",
        }
    }

    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Live, Self::Late, Self::Replayed].into_iter().find(|kind| kind.as_str() == text)
    }
}

/// A frame whose integrity code was verified, still encrypted under the application key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Uplink {
    pub event: EventId,
    pub group: GroupId,
    pub device: DevEui,
    pub dev_addr: DevAddr,
    pub session: SessionId,
    /// The join that the session comes from; absent for one by personalisation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub joined: Option<Joined>,
    /// 32-bit counter.
    pub f_cnt: u32,
    pub f_port: Option<u8>,
    pub confirmed: bool,
    /// FRMPayload, hexadecimal.
    pub frm_payload: String,
    /// PHYPayload, hexadecimal.
    pub phy: String,
    pub heard_at: WallTime,
    pub kind: Kind,
    /// Custody under which it was heard.
    pub epoch: Epoch,
    /// For this node's tenant; otherwise it is kept for another node.
    pub deliver: bool,
    /// The gateway that heard it best.
    pub rx: Reception,
    /// The other gateways whose copies came in time.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub others: Vec<Reception>,
}

impl Uplink {
    #[must_use]
    pub const fn name(&self) -> Name {
        Name { group: self.group, device: self.device, session: self.session, f_cnt: self.f_cnt }
    }

    /// As an account names it.
    #[must_use]
    pub fn heard(&self) -> Heard {
        let phy = digits::bytes(&self.phy).unwrap_or_default();
        Heard {
            device: self.device,
            session: self.session,
            f_cnt: self.f_cnt,
            frame: FrameDigest::of(&phy),
            heard_at: self.heard_at,
            snr_tenth_db: self.rx.snr_tenth_db,
        }
    }
}

/// How a gateway heard a frame.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reception {
    /// EUI of the gateway, hexadecimal.
    pub gateway: String,
    /// The gateway's own microsecond counter.
    pub tmst: u32,
    pub frequency_hz: u32,
    /// `SF7BW125` …
    pub data_rate: String,
    pub rssi_dbm: i16,
    /// Tenths of a decibel.
    pub snr_tenth_db: i16,
}

/// An uplink with its place in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredUplink {
    pub seq: u64,
    pub uplink: Uplink,
}

/// What a tenant made of an uplink.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decoded {
    pub event: EventId,
    /// A JSON object as text.
    pub decoded: String,
}

/// A decoded value on its way to the customer's cloud.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reading {
    pub event: EventId,
    pub group: GroupId,
    pub device: DevEui,
    pub session: SessionId,
    pub f_cnt: u32,
    pub heard_at: WallTime,
    pub kind: Kind,
    pub epoch: Epoch,
    /// What the tenant decoded, byte for byte: a JSON object.
    pub decoded: Box<RawValue>,
}

/// One uplink by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name {
    pub group: GroupId,
    pub device: DevEui,
    pub session: SessionId,
    pub f_cnt: u32,
}

impl Name {
    #[must_use]
    pub fn event(&self) -> EventId {
        EventId::new(self.device, self.session, self.f_cnt)
    }
}

impl Reading {
    #[must_use]
    pub const fn name(&self) -> Name {
        Name { group: self.group, device: self.device, session: self.session, f_cnt: self.f_cnt }
    }
}

impl PartialEq for Reading {
    fn eq(&self, other: &Self) -> bool {
        self.event == other.event && self.decoded.get() == other.decoded.get()
    }
}
