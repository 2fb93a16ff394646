//! What members sign about custody: asks, refusals, grants, releases. Evidence, and the stuff of certificates.
//!
//! Payloads are JSON in DSSE envelopes ([`contracts::envelope`]). The signer is the member that speaks.

use contracts::custody::{EPOCH_MAX, MemberIndex, Message, Refusal};
use contracts::envelope::{Invalid, Statement};
use contracts::ids::{Epoch, GroupId, NodeId};
use contracts::time::Millis;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::life::Shown;

/// Largest number of a request; later ones would not survive every JSON reader.
pub const SEQ_MAX: u64 = EPOCH_MAX.0;

/// Payload of an anchor within a refusal.
const ANCHOR_BYTES_MAX: usize = 1_024;

/// The speaking member's own clock, so that two of its statements can be put in order by anybody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemberClock {
    pub boot: BootId,
    /// Milliseconds since that boot.
    pub ms: u64,
}

/// Names one boot of a member's machine: 32 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BootId(pub [u8; 16]);

impl BootId {
    /// The kernel's name of this boot (`/proc/sys/kernel/random/boot_id`, random(4)); zero where there is none.
    #[must_use]
    pub fn of_this_machine() -> Self {
        let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
        let mut bytes = [0; 16];
        if hex::decode_to_slice(digits, &mut bytes).is_err() {
            bytes = [0; 16];
        }
        Self(bytes)
    }
}

impl Serialize for BootId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex::encode(self.0))
    }
}

impl<'de> Deserialize<'de> for BootId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut bytes = [0; 16];
        hex::decode_to_slice(String::deserialize(deserializer)?, &mut bytes)
            .map_err(|_| serde::de::Error::custom("a boot id has 32 hexadecimal digits"))?;
        Ok(Self(bytes))
    }
}

/// SHA-256 and length of bytes that travel beside a statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Digest {
    pub sha256: [u8; 32],
    pub bytes: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct DigestText {
    sha256: String,
    bytes: u64,
}

impl Digest {
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self { sha256: Sha256::digest(bytes).into(), bytes: bytes.len() as u64 }
    }
}

impl Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        DigestText { sha256: hex::encode(self.sha256), bytes: self.bytes }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = DigestText::deserialize(deserializer)?;
        let mut sha256 = [0; 32];
        hex::decode_to_slice(text.sha256, &mut sha256)
            .map_err(|_| serde::de::Error::custom("a SHA-256 has 64 hexadecimal digits"))?;
        Ok(Self { sha256, bytes: text.bytes })
    }
}

/// "Would you vote for me now?" The highest epoch in which the asker voted is `epoch`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ask {
    pub group: GroupId,
    pub epoch: Epoch,
    pub seq: u64,
    pub clock: MemberClock,
}

/// To what a member says no.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Refused {
    Ask,
    Claim,
    Renewal,
}

/// For whose sake a member refuses, and the newest that it heard of that node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Promised {
    pub to: NodeId,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub life: Option<Shown>,
}

/// "No, not now."
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RefusalStatement {
    pub group: GroupId,
    pub to: Refused,
    pub candidate: NodeId,
    /// The epoch that was claimed or renewed; 0 for an ask.
    pub epoch: Epoch,
    pub seq: u64,
    pub voted_epoch: Epoch,
    /// Milliseconds.
    pub retry_after: Millis,
    /// Where a promise to another is the reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub promised: Option<Promised>,
    pub clock: MemberClock,
}

/// A vote for `candidate` in `epoch`, and a promise for one ttl.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grant {
    pub group: GroupId,
    pub epoch: Epoch,
    pub candidate: NodeId,
    /// The claim that it answers.
    pub seq: u64,
    /// The write-ahead records that travel with it.
    pub records: Digest,
    /// When it was decided, from which on the promise counts; it leaves later, after the disk.
    pub clock: MemberClock,
}

/// "I held `epoch` and have stopped."
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Release {
    pub group: GroupId,
    pub epoch: Epoch,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub successor: Option<MemberIndex>,
    /// The exact counters and log position that travel with it.
    pub handover: Digest,
    pub clock: MemberClock,
}

fn numbers_fit(epochs: &[Epoch], numbers: &[u64]) -> Result<(), Invalid> {
    Invalid::unless(epochs.iter().all(|epoch| *epoch <= EPOCH_MAX), "epoch", "an epoch is at most 2^53 - 1")?;
    Invalid::unless(numbers.iter().all(|number| *number <= SEQ_MAX), "seq", "a number is at most 2^53 - 1")
}

impl Statement for Ask {
    const TYPE: &'static str = "application/vnd.antirio.custody-ask.v1+json";

    fn validate(&self) -> Result<(), Invalid> {
        numbers_fit(&[self.epoch], &[self.seq, self.clock.ms])
    }
}

impl Statement for RefusalStatement {
    const TYPE: &'static str = "application/vnd.antirio.custody-refusal.v1+json";

    fn validate(&self) -> Result<(), Invalid> {
        numbers_fit(&[self.epoch, self.voted_epoch], &[self.seq, self.retry_after.0, self.clock.ms])?;
        let anchor = self.promised.as_ref().and_then(|promised| promised.life.as_ref()).map(|life| &life.anchor);
        let is_small = anchor.is_none_or(|anchor| anchor.payload.len() <= ANCHOR_BYTES_MAX && anchor.signatures.len() == 1);
        Invalid::unless(is_small, "promised", "one small signed anchor")
    }
}

impl Statement for Grant {
    const TYPE: &'static str = "application/vnd.antirio.custody-grant.v1+json";

    fn validate(&self) -> Result<(), Invalid> {
        numbers_fit(&[self.epoch], &[self.seq, self.records.bytes, self.clock.ms])
    }
}

impl Statement for Release {
    const TYPE: &'static str = "application/vnd.antirio.custody-release.v1+json";

    fn validate(&self) -> Result<(), Invalid> {
        numbers_fit(&[self.epoch], &[self.handover.bytes, self.clock.ms])
    }
}

impl RefusalStatement {
    /// The message that the statement stands for.
    #[must_use]
    pub fn message(&self) -> Message {
        let refusal = Refusal { voted_epoch: self.voted_epoch, retry_after: self.retry_after };
        match self.to {
            Refused::Ask => Message::AskNo { seq: self.seq, refusal },
            Refused::Claim => Message::ClaimRefused { epoch: self.epoch, seq: self.seq, refusal },
            Refused::Renewal => Message::RenewRefused { epoch: self.epoch, seq: self.seq, refusal },
        }
    }
}
