//! What an insurer answers for: every frame that it heard is with the customer's store, or still here, or was given up and said to be.
//!
//! Three statements keep the books. With an [`Account`] the insurer commits to what it heard, before anybody told it of those frames. With a
//! [`Receipt`] the customer's store says what it has. With [`ShownFrames`] somebody shows frames that are not with the store yet. Each holds
//! its lists whole, so that a file of statements is all that a judge needs; [`audit`] is the judge.

pub mod audit;

use std::collections::BTreeSet;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD as BASE64;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256};

use crate::envelope::{Invalid, Statement};
use crate::ids::{DevEui, EventId, GroupId, NodeId, SessionId, StatementId};
use crate::time::WallTime;

/// Frames in one account, and events in one receipt, at most.
pub const ENTRIES_MAX: usize = 4_096;
/// Frames that one statement shows at most.
pub const SHOWN_MAX: usize = 1_024;
/// A PHYPayload is at most this long (LoRaWAN L2 1.0.4, section 4: 255 bytes on air).
pub const PHY_BYTES_MAX: usize = 255;
/// Numbers of accounts stay what every JSON reader can hold.
pub const NUMBER_MAX: u64 = (1 << 53) - 1;

/// Length of a [`Heard`] in bytes.
pub const HEARD_BYTES: usize = 38;

/// The first eight bytes of the SHA-256 of a PHYPayload: says which frame was heard without giving it away. Whoever did not hear the frame does
/// not know its payload nor its integrity code, and cannot make it up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FrameDigest(pub [u8; 8]);

impl FrameDigest {
    #[must_use]
    pub fn of(phy: &[u8]) -> Self {
        let mut short = [0; 8];
        short.copy_from_slice(&Sha256::digest(phy)[..8]);
        Self(short)
    }
}

/// One frame as it was heard. In text base64 (51 characters) of 38 bytes, big-endian: device 8, session 8, counter 4, digest 8, wall time in
/// milliseconds 8, tenths of a decibel of signal over noise 2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Heard {
    pub device: DevEui,
    pub session: SessionId,
    /// 32-bit counter.
    pub f_cnt: u32,
    pub frame: FrameDigest,
    pub heard_at: WallTime,
    pub snr_tenth_db: i16,
}

impl Heard {
    #[must_use]
    pub fn event(&self) -> EventId {
        EventId::new(self.device, self.session, self.f_cnt)
    }

    /// As it is stored and sent.
    #[must_use]
    pub fn to_bytes(self) -> [u8; HEARD_BYTES] {
        let mut bytes = [0; HEARD_BYTES];
        bytes[..8].copy_from_slice(self.device.as_bytes());
        bytes[8..16].copy_from_slice(self.session.as_bytes());
        bytes[16..20].copy_from_slice(&self.f_cnt.to_be_bytes());
        bytes[20..28].copy_from_slice(&self.frame.0);
        bytes[28..36].copy_from_slice(&self.heard_at.0.to_be_bytes());
        bytes[36..].copy_from_slice(&self.snr_tenth_db.to_be_bytes());
        bytes
    }

    /// What [`Self::to_bytes`] wrote.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; HEARD_BYTES]) -> Self {
        fn part<const N: usize>(bytes: &[u8], from: usize) -> [u8; N] {
            let mut part = [0; N];
            part.copy_from_slice(&bytes[from..from + N]);
            part
        }
        Self {
            device: DevEui::from_bytes(part(bytes, 0)),
            session: SessionId::from_bytes(part(bytes, 8)),
            f_cnt: u32::from_be_bytes(part(bytes, 16)),
            frame: FrameDigest(part(bytes, 20)),
            heard_at: WallTime(u64::from_be_bytes(part(bytes, 28))),
            snr_tenth_db: i16::from_be_bytes(part(bytes, 36)),
        }
    }
}

impl Serialize for Heard {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&BASE64.encode(self.to_bytes()))
    }
}

impl<'de> Deserialize<'de> for Heard {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let wrong = || serde::de::Error::custom("a heard frame is 38 bytes in base64");
        let bytes = BASE64.decode(String::deserialize(deserializer)?).map_err(|_| wrong())?;
        Ok(Self::from_bytes(bytes.as_slice().try_into().map_err(|_| wrong())?))
    }
}

/// What the insurer heard and gave up since its last account. Signed by it; what it names was on its disk before it was signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Account {
    pub group: GroupId,
    pub node: NodeId,
    /// From 1, without gaps.
    pub number: u64,
    /// The account before this one; absent in the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<StatementId>,
    pub at: WallTime,
    pub heard: Vec<Heard>,
    /// Frames of earlier accounts, or of this one, that it no longer has, and for which it has no receipt: thrown away at the bounds of its
    /// buffer, or when the contract was wound up.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dropped: Vec<EventId>,
}

/// "These readings are on my disk." Signed by the customer's store; whoever has a copy of a frame asks for it before the copy goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Receipt {
    pub store: NodeId,
    pub group: GroupId,
    pub events: Vec<EventId>,
    pub at: WallTime,
}

/// Frames that are on somebody's disk and not with the customer's store: PHYPayloads, hexadecimal. Anybody may sign it, for a frame is proven by
/// its digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShownFrames {
    pub group: GroupId,
    pub node: NodeId,
    pub frames: Vec<String>,
}

impl Statement for Account {
    const TYPE: &'static str = "application/vnd.antirio.account.v1+json";

    fn validate(&self) -> Result<(), Invalid> {
        Invalid::unless((1..=NUMBER_MAX).contains(&self.number), "number", "1 to 2^53 - 1")?;
        Invalid::unless((self.number == 1) == self.previous.is_none(), "previous", "all accounts but the first name one")?;
        Invalid::unless(self.heard.len() <= ENTRIES_MAX, "heard", "at most 4,096 frames")?;
        Invalid::unless(self.dropped.len() <= ENTRIES_MAX, "dropped", "at most 4,096 events")?;
        let events: BTreeSet<EventId> = self.heard.iter().map(Heard::event).collect();
        Invalid::unless(events.len() == self.heard.len(), "heard", "a frame is named twice")
    }
}

impl Statement for Receipt {
    const TYPE: &'static str = "application/vnd.antirio.receipt.v1+json";

    fn validate(&self) -> Result<(), Invalid> {
        Invalid::unless((1..=ENTRIES_MAX).contains(&self.events.len()), "events", "1 to 4,096")
    }
}

impl Statement for ShownFrames {
    const TYPE: &'static str = "application/vnd.antirio.shown-frames.v1+json";

    fn validate(&self) -> Result<(), Invalid> {
        Invalid::unless((1..=SHOWN_MAX).contains(&self.frames.len()), "frames", "1 to 1,024")?;
        let fits = |frame: &String| frame.len() <= 2 * PHY_BYTES_MAX && hex::decode(frame).is_ok();
        Invalid::unless(self.frames.iter().all(fits), "frames", "at most 255 bytes in hexadecimal")
    }
}
