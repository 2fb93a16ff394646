//! The witness's votes in the arbitrator's store, durable before they leave.

use std::io;
use std::sync::Arc;

use contracts::custody::Durable;
use contracts::ids::GroupId;
use kit::clock::Clock;
use peering::custody::VoteStore;
use tokio::runtime::Handle;

use crate::store::Store;

/// Called by the driver off the runtime's threads.
#[derive(Debug)]
pub(super) struct StoredVotes {
    store: Arc<dyn Store>,
    clock: Clock,
    runtime: Handle,
}

impl StoredVotes {
    pub(super) fn new(store: Arc<dyn Store>, clock: Clock) -> Self {
        Self { store, clock, runtime: Handle::current() }
    }
}

impl VoteStore for StoredVotes {
    fn persist(&self, batch: &[(GroupId, Durable)]) -> io::Result<()> {
        self.runtime.block_on(self.store.persist_votes(batch, self.clock.wall())).map_err(io::Error::other)
    }

    fn load(&self, group: GroupId) -> io::Result<Option<Durable>> {
        self.runtime.block_on(self.store.votes(group)).map_err(io::Error::other)
    }
}
