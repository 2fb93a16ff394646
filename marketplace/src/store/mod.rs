//! What the marketplace remembers. Each verb is one transaction; whoever decides (the service) calls them one after the other.

use std::fmt::Debug;

use async_trait::async_trait;
use contracts::envelope::Envelope;
use contracts::ids::{ContractId, NodeId, OwnerId, StatementId};
use contracts::listing::{Demand, Offer};
use contracts::node_record::Role;
use contracts::time::WallTime;

use crate::book::{Book, Claim};
use crate::resource::{Event, Listing, ListingKind, ListingState, Match, MatchState, Node, Round, Totals};

#[doc(hidden)]
pub mod faulty;
mod memory;
mod sqlite;

pub use memory::Memory;
pub use sqlite::Sqlite;

/// This many events and this many statistics rows are kept; older ones go.
pub const HISTORY_ROWS_MAX: u64 = 100_000;

/// Why the store failed. None of these is the caller's doing.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the database failed")]
    Sql(#[from] sqlx::Error),
    #[error("the database cannot be brought to the present schema")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    #[error("the database holds something that this program never writes: {what}")]
    Corrupt { what: String },
}

impl Error {
    pub(crate) fn corrupt(what: impl std::fmt::Display) -> Self {
        Self::Corrupt { what: what.to_string() }
    }
}

/// A page: what comes after `after` (a cursor; 0 for the start), at most `limit` items.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    pub after: u64,
    pub limit: u32,
}

/// Items with the sequence number that is each one's cursor.
pub type Rows<T> = Vec<(u64, T)>;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NodeFilter {
    pub owner: Option<OwnerId>,
    pub role: Option<Role>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListingFilter {
    pub kind: ListingKind,
    pub node: Option<NodeId>,
    pub owner: Option<OwnerId>,
    pub state: Option<ListingState>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MatchFilter {
    /// On either side.
    pub node: Option<NodeId>,
    /// The offer or the demand.
    pub listing: Option<StatementId>,
    pub state: Option<MatchState>,
}

/// How much is listed or registered, for limits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    pub of_node: u64,
    pub of_owner: u64,
    pub all: u64,
}

#[async_trait]
pub trait Store: Debug + Send + Sync + 'static {
    /// Whether it answers.
    async fn ping(&self) -> Result<(), Error>;

    /// Inserts the node or replaces its record.
    async fn register_node(&self, node: &Node) -> Result<(), Error>;
    async fn get_node(&self, id: NodeId) -> Result<Option<Node>, Error>;
    async fn list_nodes(&self, filter: NodeFilter, window: Window) -> Result<Rows<Node>, Error>;
    /// Registered nodes of the owner and of all.
    async fn count_nodes(&self, owner: OwnerId) -> Result<Counts, Error>;

    /// Inserts an open listing, with its event. Its id must be new and its node registered.
    async fn create_listing(&self, listing: &Listing) -> Result<(), Error>;
    async fn get_listing(&self, id: StatementId) -> Result<Option<Listing>, Error>;
    async fn list_listings(&self, filter: ListingFilter, window: Window) -> Result<Rows<Listing>, Error>;
    /// Open listings of the node, of the owner and of all.
    async fn count_listings(&self, node: NodeId, owner: OwnerId) -> Result<Counts, Error>;
    /// Withdraws an open listing and releases its held matches, with events; nothing if it is not open.
    async fn withdraw_listing(&self, id: StatementId, withdrawal: &Envelope, now: WallTime) -> Result<(), Error>;

    /// Inserts the matches of a round whose listings are still open and whose demand has no other; returns the ids of those inserted.
    async fn create_matches(&self, matches: &[Match], rounds: &[Round], now: WallTime) -> Result<Vec<StatementId>, Error>;
    /// With the node records as they are now.
    async fn get_match(&self, id: StatementId) -> Result<Option<Match>, Error>;
    async fn list_matches(&self, filter: MatchFilter, window: Window) -> Result<Rows<Match>, Error>;
    /// Confirms a held match, with its event; nothing if it is not held.
    async fn confirm_match(&self, id: StatementId, contract: ContractId, until: WallTime, now: WallTime) -> Result<(), Error>;

    /// Ends what is over at `now`: listings, holds, contracts; with events. Returns how many.
    async fn expire(&self, now: WallTime) -> Result<u64, Error>;
    /// Forgets listings (and their matches) that ended before `before`, and history beyond [`HISTORY_ROWS_MAX`].
    async fn purge(&self, before: WallTime) -> Result<(), Error>;
    /// What clearing looks at.
    async fn read_book(&self, now: WallTime) -> Result<Book, Error>;

    /// Events after a number, of a node (on either side) if one is named.
    async fn list_events(&self, node: Option<NodeId>, window: Window) -> Result<Vec<Event>, Error>;
    /// First and last event that is kept; zeros if there was none.
    async fn event_range(&self) -> Result<(u64, u64), Error>;

    async fn list_rounds(&self, window: Window) -> Result<Rows<Round>, Error>;
    /// The last round with a row; zero before the first.
    async fn last_round(&self) -> Result<u64, Error>;
    async fn read_totals(&self) -> Result<Totals, Error>;
    /// Flushes and closes.
    async fn close(&self);
}

/// Builds the book from what a store holds; the statements were verified when they came.
fn build_book(
    open: Vec<(StatementId, ListingKind, Envelope)>,
    claims: Vec<(StatementId, Envelope)>,
    proposals: Vec<((StatementId, StatementId), u64)>,
    opens_at: Option<WallTime>,
) -> Result<Book, Error> {
    let mut book = Book { opens_at, proposals: proposals.into_iter().collect(), ..Book::default() };
    for (id, kind, envelope) in open {
        match kind {
            ListingKind::Offer => drop(book.offers.insert(id, read::<Offer>(&envelope)?)),
            ListingKind::Demand => drop(book.demands.insert(id, read::<Demand>(&envelope)?)),
        }
    }
    for (offer, envelope) in claims {
        book.claims.push(Claim { offer, needs: read::<Demand>(&envelope)?.needs });
    }
    Ok(book)
}

fn read<T: serde::de::DeserializeOwned>(envelope: &Envelope) -> Result<T, Error> {
    serde_json::from_slice(&envelope.payload).map_err(Error::corrupt)
}
