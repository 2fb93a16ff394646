//! The book of a claim or custody: what was sent when, and from when each member's promise counts.

use super::config::{MemberIndex, MemberSet};
use crate::ids::Epoch;
use crate::time::{BootTime, Millis};

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Lease {
    pub(super) epoch: Epoch,
    /// First sending of the claim.
    pub(super) since: BootTime,
    /// Who voted for this epoch: the certificate once they are a majority.
    pub(super) granted: MemberSet,
    /// Who voted in this epoch or above it for somebody else, so that no repetition helps.
    pub(super) refused: MemberSet,
    /// Whose refusals named a lower epoch: they need the certificate.
    pub(super) behind: MemberSet,
    /// Requests that may still be answered, oldest first. Never longer than `hold / retry`, since older ones are forgotten.
    sent: Vec<(u64, BootTime)>,
    /// From when each member's promise counts, by place in the member list.
    promised_from: Vec<Option<BootTime>>,
}

impl Lease {
    /// A claim of `epoch` that `me` votes for at `now`.
    pub(super) fn claim(epoch: Epoch, me: MemberIndex, members: u8, now: BootTime) -> Self {
        let mut lease = Self {
            epoch,
            since: now,
            granted: [me].into_iter().collect(),
            refused: MemberSet::EMPTY,
            behind: MemberSet::EMPTY,
            sent: Vec::new(),
            promised_from: vec![None; usize::from(members)],
        };
        lease.count(me, now);
        lease
    }

    pub(super) fn record_sending(&mut self, seq: u64, now: BootTime) {
        self.sent.push((seq, now));
    }

    /// When the request `seq` was sent, if that is not too long ago to matter.
    pub(super) fn sent_at(&self, seq: u64) -> Option<BootTime> {
        self.sent.iter().find(|(sent, _)| *sent == seq).map(|(_, at)| *at)
    }

    pub(super) fn last_sent_at(&self) -> Option<BootTime> {
        self.sent.last().map(|(_, at)| *at)
    }

    /// The promise of `member` counts from `from` on, unless a later one is known.
    pub(super) fn count(&mut self, member: MemberIndex, from: BootTime) {
        if let Some(known) = self.promised_from.get_mut(usize::from(member.0)) {
            *known = (*known).max(Some(from));
        }
    }

    /// The latest instant from which promises of a majority count.
    pub(super) fn majority_from(&self, majority: usize) -> Option<BootTime> {
        let mut counted: Vec<BootTime> = self.promised_from.iter().flatten().copied().collect();
        counted.sort_unstable_by(|a, b| b.cmp(a));
        counted.get(majority - 1).copied()
    }

    /// Drops what no longer matters at `now`, so that equal futures are equal values.
    pub(super) fn forget(&mut self, now: BootTime, hold: Millis) {
        let newest = self.sent.last().copied();
        self.sent.retain(|entry| entry.1 + hold > now || Some(*entry) == newest);
        for from in &mut self.promised_from {
            *from = from.filter(|from| *from + hold > now);
        }
    }
}
