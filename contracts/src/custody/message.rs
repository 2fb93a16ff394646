//! What members of a group tell each other.

use serde::{Deserialize, Serialize};

use super::config::MemberIndex;
use crate::ids::Epoch;
use crate::time::Millis;

/// Largest epoch that is believed: the largest integer that every JSON reader keeps (RFC 8259, section 6).
pub const EPOCH_MAX: Epoch = Epoch((1 << 53) - 1);

/// What a refusal says besides no.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Refusal {
    /// The highest epoch in which the refusing member voted (L4).
    pub voted_epoch: Epoch,
    /// After how long, by the refusing member's clock, the answer may be another. Zero: never for this very request.
    pub retry_after: Millis,
}

/// A message between two members about one group. Sender, receiver and group are the driver's envelope; the driver signs asks,
/// refusals, grants and releases, and packs all groups between two nodes into one datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Message {
    /// "I hold `epoch`; promise again."
    Renew {
        epoch: Epoch,
        seq: u64,
        /// Going out: attach the custody certificate of `epoch`. Coming in: **a valid certificate was attached**; the driver
        /// clears it unless it has verified grants of a majority to the sender for this epoch.
        certified: bool,
    },
    /// "Promised for ttl from receipt of request `seq`."
    Renewed { epoch: Epoch, seq: u64 },
    /// Not promised.
    RenewRefused { epoch: Epoch, seq: u64, refusal: Refusal },
    /// "Would you vote for me now?" Changes nothing at the receiver. `epoch`: the highest the asker voted in.
    Ask { epoch: Epoch, seq: u64 },
    /// "I would"; names the epoch that a claim must be above.
    AskYes { seq: u64, voted_epoch: Epoch },
    /// "I would not."
    AskNo { seq: u64, refusal: Refusal },
    /// "I voted for myself in `epoch`; vote for me."
    Claim { epoch: Epoch, seq: u64 },
    /// A vote, and a promise for ttl from receipt of the claim. The driver attaches the newest write-ahead records.
    Grant { epoch: Epoch, seq: u64 },
    /// No vote.
    ClaimRefused { epoch: Epoch, seq: u64, refusal: Refusal },
    /// "I held `epoch` and have stopped." The driver attaches next counters and log position.
    Release { epoch: Epoch, successor: Option<MemberIndex> },
    /// "My disk was lost or restored; what is the highest epoch you voted in?"
    Query { seq: u64 },
    /// The answer to [`Message::Query`].
    QueryAnswer { seq: u64, voted_epoch: Epoch },
}

impl Message {
    /// The highest epoch that the message names.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        match *self {
            Self::Renew { epoch, .. }
            | Self::Renewed { epoch, .. }
            | Self::Ask { epoch, .. }
            | Self::Claim { epoch, .. }
            | Self::Grant { epoch, .. }
            | Self::Release { epoch, .. } => epoch,
            Self::RenewRefused { epoch, refusal, .. } | Self::ClaimRefused { epoch, refusal, .. } => {
                epoch.max(refusal.voted_epoch)
            }
            Self::AskYes { voted_epoch, .. } | Self::QueryAnswer { voted_epoch, .. } => voted_epoch,
            Self::AskNo { refusal, .. } => refusal.voted_epoch,
            Self::Query { .. } => Epoch(0),
        }
    }
}
