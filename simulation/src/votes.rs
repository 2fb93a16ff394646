//! A member's votes on a disk that survives its process, and the history of them that a checker knows.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use contracts::custody::{Durable, MemberIndex};
use contracts::ids::{Epoch, GroupId};
use peering::custody::VoteStore;

use crate::machine::Disk;
use crate::script::Written;

/// Votes on one machine's disk; clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Votes(Arc<Mutex<Content>>);

#[derive(Debug, Default)]
struct Content {
    disk: Disk,
    votes: BTreeMap<GroupId, Durable>,
    /// Every vote that was ever written, by epoch.
    history: BTreeMap<(GroupId, Epoch), MemberIndex>,
    contradictions: Vec<String>,
}

impl Votes {
    #[must_use]
    pub fn on(disk: Disk) -> Self {
        Self(Arc::new(Mutex::new(Content { disk, ..Content::default() })))
    }

    fn content(&self) -> MutexGuard<'_, Content> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// These are on the disk now, wherever else they are kept.
    pub fn note(&self, batch: &[(GroupId, Durable)]) {
        let mut content = self.content();
        for (group, vote) in batch {
            content.note(*group, *vote);
            content.votes.insert(*group, *vote);
        }
    }

    /// Votes that went down, or for two in one epoch; each told once.
    #[must_use]
    pub fn take_contradictions(&self) -> Vec<String> {
        std::mem::take(&mut self.content().contradictions)
    }
}

impl Content {
    fn note(&mut self, group: GroupId, vote: Durable) {
        if let Some(before) = self.votes.get(&group)
            && vote.voted_epoch < before.voted_epoch
        {
            self.contradictions.push(format!("voted in epoch {} after epoch {}", vote.voted_epoch, before.voted_epoch));
        }
        // Epoch 0 is before the first vote.
        let Some(voted_for) = vote.voted_for.filter(|_| vote.voted_epoch > Epoch(0)) else { return };
        let first = *self.history.entry((group, vote.voted_epoch)).or_insert(voted_for);
        if first != voted_for {
            self.contradictions.push(format!("voted in epoch {} for {first} and for {voted_for}", vote.voted_epoch));
        }
    }
}

#[async_trait]
impl VoteStore for Votes {
    async fn persist(&self, batch: &[(GroupId, Durable)]) -> io::Result<()> {
        let disk = self.content().disk.open();
        let full = || io::Error::from(io::ErrorKind::StorageFull);
        let apply = async {
            self.note(batch);
            Ok(())
        };
        disk.write(Written::Votes, full, apply).await
    }

    async fn load(&self, group: GroupId) -> io::Result<Option<Durable>> {
        Ok(self.content().votes.get(&group).copied())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_votes_in_one_epoch_and_votes_that_go_down_are_contradictions() {
        let group = GroupId::from_bytes([7; 16]);
        let vote =
            |epoch, member| Durable { voted_epoch: Epoch(epoch), voted_for: Some(MemberIndex(member)), ..Durable::default() };
        for (second, contradictions) in [(vote(3, 0), 0), (vote(4, 1), 0), (vote(3, 1), 1), (vote(2, 0), 1)] {
            let votes = Votes::default();
            votes.note(&[(group, vote(3, 0))]);
            votes.note(&[(group, second)]);
            assert_eq!(votes.take_contradictions().len(), contradictions, "{second:?}");
            assert!(votes.take_contradictions().is_empty());
        }
    }
}
