//! Offers, demands and their withdrawals.

use contracts::envelope::{Envelope, Key, Statement, Verified};
use contracts::ids::{NodeId, OwnerId, StatementId};
use contracts::listing::{Demand, Offer, VALIDITY_MAX, Withdrawal};
use contracts::time::WallTime;

use super::{Error, Put, Service, page};
use crate::resource::{Listing, ListingKind, ListingState, Page};
use crate::store::{ListingFilter, Window};

/// What offers and demands have in common.
struct Facts {
    id: StatementId,
    kind: ListingKind,
    node: NodeId,
    owner: OwnerId,
    valid_from: WallTime,
    valid_until: WallTime,
}

impl From<Verified<Offer>> for Facts {
    fn from(Verified { id, statement: s, .. }: Verified<Offer>) -> Self {
        Self { id, kind: ListingKind::Offer, node: s.node, owner: s.owner, valid_from: s.valid_from, valid_until: s.valid_until }
    }
}

impl From<Verified<Demand>> for Facts {
    fn from(Verified { id, statement: s, .. }: Verified<Demand>) -> Self {
        Self { id, kind: ListingKind::Demand, node: s.node, owner: s.owner, valid_from: s.valid_from, valid_until: s.valid_until }
    }
}

/// Verifies a statement that the node named in it must have signed.
fn verify<T: Statement>(envelope: &Envelope, node: impl Fn(&T) -> NodeId) -> Result<Verified<T>, Error> {
    let verified = envelope.verify::<T>()?;
    let key = Key::from(node(&verified.statement));
    if verified.signers.contains(&key) { Ok(verified) } else { Err(contracts::envelope::Error::Missing { key }.into()) }
}

impl Service {
    /// Lists an offer or a demand, signed by its registered node. The same id again is answered with the listing as it is.
    ///
    /// # Errors
    /// [`Error::Statement`], [`Error::UnknownNode`], [`Error::OwnerMismatch`], [`Error::Expired`], [`Error::Withdrawn`],
    /// [`Error::TooFarAhead`], [`Error::TooMany`].
    pub async fn create_listing(&self, kind: ListingKind, envelope: Envelope) -> Result<Put<Listing>, Error> {
        let facts: Facts = match kind {
            ListingKind::Offer => verify(&envelope, |s: &Offer| s.node)?.into(),
            ListingKind::Demand => verify(&envelope, |s: &Demand| s.node)?.into(),
        };
        let _one_at_a_time = self.writes.lock().await;
        let now = self.clock.wall();
        match self.store.get_listing(facts.id).await? {
            Some(known) if known.state == ListingState::Withdrawn => return Err(Error::Withdrawn),
            _ if facts.valid_until <= now => return Err(Error::Expired(facts.valid_until.0)),
            Some(known) => return Ok(Put { value: known, created: false }),
            None => {}
        }
        self.check_lister(facts.node, facts.owner).await?;
        if facts.valid_from.since(now) > VALIDITY_MAX {
            return Err(Error::TooFarAhead { field: "valid_from", days: VALIDITY_MAX.0 / 86_400_000 });
        }
        let Facts { id, kind, node, owner, valid_from, valid_until } = facts;
        let state = ListingState::Open;
        let value = Listing {
            id,
            kind,
            node,
            owner,
            state,
            listed_at: now,
            valid_from,
            valid_until,
            statement: envelope,
            withdrawal: None,
        };
        self.store.create_listing(&value).await?;
        self.metrics.count_statement(kind.as_str());
        self.changed.notify_one();
        self.announce().await?;
        Ok(Put { value, created: true })
    }

    /// The node is registered with this owner and has room for one more listing.
    async fn check_lister(&self, node: NodeId, owner: OwnerId) -> Result<(), Error> {
        let record = self.store.get_node(node).await?.ok_or(Error::UnknownNode(node))?;
        if record.owner != owner {
            return Err(Error::OwnerMismatch);
        }
        let counts = self.store.count_listings(node, owner).await?;
        let limits = [
            (counts.of_node, self.limits.listings_per_node_max, "open listings of one node"),
            (counts.of_owner, self.limits.listings_per_owner_max, "open listings of one owner"),
            (counts.all, self.limits.listings_max, "open listings"),
        ];
        match limits.into_iter().find(|(count, max, _)| count >= max) {
            Some((_, max, what)) => Err(Error::TooMany { what, max }),
            None => Ok(()),
        }
    }

    /// Takes a listing back for ever and releases its held matches. Again, or after it expired, it changes nothing.
    ///
    /// # Errors
    /// [`Error::Statement`], [`Error::NotFound`], [`Error::NotYours`].
    pub async fn withdraw_listing(&self, envelope: Envelope) -> Result<Listing, Error> {
        let withdrawal = verify(&envelope, |s: &Withdrawal| s.node)?.statement;
        let _one_at_a_time = self.writes.lock().await;
        let id = withdrawal.listing;
        let known = self.store.get_listing(id).await?.ok_or_else(|| Error::NotFound(format!("nothing was listed as {id}")))?;
        if known.node != withdrawal.node {
            return Err(Error::NotYours);
        }
        if known.state != ListingState::Open {
            return Ok(known);
        }
        self.store.withdraw_listing(id, &envelope, self.clock.wall()).await?;
        self.metrics.count_statement("withdrawal");
        self.changed.notify_one();
        self.announce().await?;
        Ok(Listing { state: ListingState::Withdrawn, withdrawal: Some(envelope), ..known })
    }

    /// # Errors
    /// [`Error::NotFound`], also if it is of the other kind.
    pub async fn get_listing(&self, kind: ListingKind, id: StatementId) -> Result<Listing, Error> {
        let known = self.store.get_listing(id).await?.filter(|l| l.kind == kind);
        known.ok_or_else(|| Error::NotFound(format!("no {kind} {id} is known")))
    }

    /// # Errors
    /// [`Error::Store`].
    pub async fn list_listings(&self, filter: ListingFilter, window: Window) -> Result<Page<Listing>, Error> {
        Ok(page(self.store.list_listings(filter, window).await?, window.limit))
    }
}
