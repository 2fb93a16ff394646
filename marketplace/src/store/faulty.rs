//! A store with fail points: dies, refuses or dawdles at the chosen durable write. For tests and simulation.

use async_trait::async_trait;
use contracts::envelope::Envelope;
use contracts::ids::{ContractId, NodeId, OwnerId, StatementId};
use contracts::time::WallTime;
use kit::fault::Faulty;

use super::{Counts, Error, ListingFilter, MatchFilter, NodeFilter, Rows, Store, Window};
use crate::book::Book;
use crate::resource::{Event, Listing, Match, Node, Round, Totals};

/// `inner` behind fail points; each verb that changes something is one durable write.
pub type FaultyStore = Faulty<dyn Store>;

/// What a caller hears of a full disk, and of a process that is dead.
fn full() -> Error {
    Error::Sql(sqlx::Error::Io(std::io::ErrorKind::StorageFull.into()))
}

#[async_trait]
impl Store for FaultyStore {
    async fn ping(&self) -> Result<(), Error> {
        self.points.read(full, self.inner.ping()).await
    }

    async fn register_node(&self, node: &Node) -> Result<(), Error> {
        self.points.write(full, self.inner.register_node(node)).await
    }

    async fn get_node(&self, id: NodeId) -> Result<Option<Node>, Error> {
        self.points.read(full, self.inner.get_node(id)).await
    }

    async fn list_nodes(&self, filter: NodeFilter, window: Window) -> Result<Rows<Node>, Error> {
        self.points.read(full, self.inner.list_nodes(filter, window)).await
    }

    async fn count_nodes(&self, owner: OwnerId) -> Result<Counts, Error> {
        self.points.read(full, self.inner.count_nodes(owner)).await
    }

    async fn create_listing(&self, listing: &Listing) -> Result<(), Error> {
        self.points.write(full, self.inner.create_listing(listing)).await
    }

    async fn get_listing(&self, id: StatementId) -> Result<Option<Listing>, Error> {
        self.points.read(full, self.inner.get_listing(id)).await
    }

    async fn list_listings(&self, filter: ListingFilter, window: Window) -> Result<Rows<Listing>, Error> {
        self.points.read(full, self.inner.list_listings(filter, window)).await
    }

    async fn count_listings(&self, node: NodeId, owner: OwnerId) -> Result<Counts, Error> {
        self.points.read(full, self.inner.count_listings(node, owner)).await
    }

    async fn withdraw_listing(&self, id: StatementId, withdrawal: &Envelope, now: WallTime) -> Result<(), Error> {
        self.points.write(full, self.inner.withdraw_listing(id, withdrawal, now)).await
    }

    async fn create_matches(&self, matches: &[Match], rounds: &[Round], now: WallTime) -> Result<Vec<StatementId>, Error> {
        self.points.write(full, self.inner.create_matches(matches, rounds, now)).await
    }

    async fn get_match(&self, id: StatementId) -> Result<Option<Match>, Error> {
        self.points.read(full, self.inner.get_match(id)).await
    }

    async fn list_matches(&self, filter: MatchFilter, window: Window) -> Result<Rows<Match>, Error> {
        self.points.read(full, self.inner.list_matches(filter, window)).await
    }

    async fn confirm_match(&self, id: StatementId, contract: ContractId, until: WallTime, now: WallTime) -> Result<(), Error> {
        self.points.write(full, self.inner.confirm_match(id, contract, until, now)).await
    }

    async fn expire(&self, now: WallTime) -> Result<u64, Error> {
        self.points.write(full, self.inner.expire(now)).await
    }

    async fn purge(&self, before: WallTime) -> Result<(), Error> {
        self.points.write(full, self.inner.purge(before)).await
    }

    async fn read_book(&self, now: WallTime) -> Result<Book, Error> {
        self.points.read(full, self.inner.read_book(now)).await
    }

    async fn list_events(&self, node: Option<NodeId>, window: Window) -> Result<Vec<Event>, Error> {
        self.points.read(full, self.inner.list_events(node, window)).await
    }

    async fn event_range(&self) -> Result<(u64, u64), Error> {
        self.points.read(full, self.inner.event_range()).await
    }

    async fn list_rounds(&self, window: Window) -> Result<Rows<Round>, Error> {
        self.points.read(full, self.inner.list_rounds(window)).await
    }

    async fn last_round(&self) -> Result<u64, Error> {
        self.points.read(full, self.inner.last_round()).await
    }

    async fn read_totals(&self) -> Result<Totals, Error> {
        self.points.read(full, self.inner.read_totals()).await
    }

    async fn close(&self) {
        self.inner.close().await;
    }
}
