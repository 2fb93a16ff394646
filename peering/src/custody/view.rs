//! What the rest of a node sees and says of custody.

use std::sync::Arc;

use bytes::Bytes;
use contracts::custody::Readiness;
use contracts::envelope::Envelope;
use contracts::ids::{Epoch, GroupId, NodeId};
use contracts::time::{BootTime, Millis};

use super::certificate::Certificate;

/// A group as a contract in force describes it, and where this node stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupConfig {
    pub group: GroupId,
    /// All members in the contract's order: customer, provider, witnesses. This node is one of them.
    pub members: Vec<NodeId>,
    /// Who may hold: customer and provider.
    pub candidates: Vec<NodeId>,
    /// The candidates that may be voted for at present: the customer, and the provider once it proved its readiness.
    pub eligible: Vec<NodeId>,
    /// Whom the contract names for the first custody of a group that never had one.
    pub first_holder: NodeId,
    pub ttl: Millis,
    /// This node's own wish at the start.
    pub readiness: Readiness,
}

/// This node's part in a group.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Role {
    /// It holds; see [`super::Hold`] for the check before each act.
    Holder { epoch: Epoch },
    /// It held `epoch`, which ran out without a majority, and no later epoch is known here: no downlinks, joins, session changes.
    Fenced { epoch: Epoch },
    /// It does not hold. `holder`: whom it last voted for, unless that one released.
    Follower { epoch: Epoch, holder: Option<NodeId> },
    /// Its disk was lost; it asks the others what they know.
    #[default]
    Recovering,
    /// It takes no part any more: removed, or stopped by an alarm.
    Stopped,
}

/// A release that was accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReceivedRelease {
    pub epoch: Epoch,
    pub from: NodeId,
    pub successor: Option<NodeId>,
    /// The exact counters and log position of the one that stopped; opaque here.
    pub handover: Bytes,
    /// The signed statement, as evidence.
    pub statement: Envelope,
}

/// How custody was gained, by this node's own clock: what a report of the takeover says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gained {
    pub epoch: Epoch,
    /// When it last promised another member not to vote for somebody else; none since it started.
    pub last_promise_at: Option<BootTime>,
    /// When it first asked for custody after that; a successor of a release claims without asking.
    pub asked_at: Option<BootTime>,
    /// When the grants were a majority.
    pub certified_at: BootTime,
}

/// A signed statement about custody, verified, of this node or of another member. Evidence, to be kept by whoever wants to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stated {
    pub group: GroupId,
    pub by: NodeId,
    pub envelope: Envelope,
}

/// Why a group is stopped; it starts again, as a restarted member, once its disk can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Alarm {
    /// A vote could not be synced to disk.
    VoteNotPersisted(std::io::ErrorKind),
}

/// Everything that watchers of a group see; it changes as a whole.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CustodyView {
    pub role: Role,
    pub voted_epoch: Epoch,
    /// Whom this member stands by in `voted_epoch`: whom it voted for, or whom a certificate of that epoch showed elected.
    pub voted_for: Option<NodeId>,
    /// The newest one known: this node's own as holder, else one that a holder showed.
    pub certificate: Option<Arc<Certificate>>,
    /// How this node gained its last custody.
    pub gained: Option<Gained>,
    /// While this node holds: the newest write-ahead records of each other member that voted for it, opaque here.
    pub records: Vec<(NodeId, Bytes)>,
    /// The last release that was accepted from another member.
    pub released: Option<Arc<ReceivedRelease>>,
    /// Members that do not answer pings.
    pub missing: Vec<NodeId>,
    pub alarm: Option<Alarm>,
}
