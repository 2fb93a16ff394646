//! A member's votes on a disk that survives its process, and the history of them that a checker knows.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use contracts::custody::{Durable, MemberIndex};
use contracts::ids::{Epoch, GroupId};
use peering::custody::VoteStore;

use crate::machine::Disk;

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
        let disk = self.content().disk.clone();
        disk.write_votes(|| {
            let mut content = self.content();
            for (group, vote) in batch {
                content.note(*group, *vote);
                content.votes.insert(*group, *vote);
            }
        })
        .await
    }

    async fn load(&self, group: GroupId) -> io::Result<Option<Durable>> {
        Ok(self.content().votes.get(&group).copied())
    }
}
