//! The witness's votes in the arbitrator's store, durable before they leave.

use std::io;
use std::sync::Arc;

use async_trait::async_trait;
use contracts::custody::Durable;
use contracts::ids::GroupId;
use kit::clock::Clock;
use peering::custody::VoteStore;

use crate::store::Store;

#[derive(Debug)]
pub(super) struct StoredVotes {
    store: Arc<dyn Store>,
    clock: Clock,
}

impl StoredVotes {
    pub(super) const fn new(store: Arc<dyn Store>, clock: Clock) -> Self {
        Self { store, clock }
    }
}

#[async_trait]
impl VoteStore for StoredVotes {
    async fn persist(&self, batch: &[(GroupId, Durable)]) -> io::Result<()> {
        self.store.persist_votes(batch, self.clock.wall()).await.map_err(io::Error::other)
    }

    async fn load(&self, group: GroupId) -> io::Result<Option<Durable>> {
        self.store.votes(group).await.map_err(io::Error::other)
    }
}
