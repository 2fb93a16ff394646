//! Events and statistics.

use contracts::ids::NodeId;
use tokio::sync::watch;

use super::{Error, Service, page};
use crate::resource::{Event, Statistics};
use crate::store::Window;

/// Events are read from the store in pages of this many.
pub const EVENTS_PAGE: u32 = 256;

impl Service {
    /// Where a stream starts that saw `last_seen`, or nothing yet: the newest event then.
    ///
    /// # Errors
    /// [`Error::EventsGone`] if events after `last_seen` are not kept any more.
    pub async fn resume_events(&self, last_seen: Option<u64>) -> Result<u64, Error> {
        let (first, last) = self.store.event_range().await?;
        match last_seen {
            None => Ok(last),
            Some(seen) if seen + 1 < first => Err(Error::EventsGone { first: first - 1 }),
            Some(seen) => Ok(seen.min(last)),
        }
    }

    /// # Errors
    /// [`Error::Store`].
    pub async fn list_events(&self, node: Option<NodeId>, after: u64) -> Result<Vec<Event>, Error> {
        Ok(self.store.list_events(node, Window { after, limit: EVENTS_PAGE }).await?)
    }

    /// Changes with every event.
    #[must_use]
    pub fn watch_events(&self) -> watch::Receiver<u64> {
        self.last_event.subscribe()
    }

    /// # Errors
    /// [`Error::Store`].
    pub async fn export_statistics(&self, window: Window) -> Result<Statistics, Error> {
        let rounds = page(self.store.list_rounds(window).await?, window.limit);
        Ok(Statistics { totals: self.store.read_totals().await?, rounds: rounds.items, next: rounds.next })
    }
}
