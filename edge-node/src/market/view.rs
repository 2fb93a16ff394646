//! What the marketplace shows of this node: its open listings and its matches; kept fresh by events, looked at now and then anyway.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use contracts::ids::StatementId;
use contracts::listing::{Demand, Offer, Withdrawal};
use contracts::resources::Resources;
use contracts::time::WallTime;
use marketplace::client::Client;
use marketplace::resource::{ListingKind, ListingState, Match, MatchState};

use super::listings::{self, Lister};
use super::plan::{Listed, Pair, Part};
use super::{Error, Inner, lock};
use crate::timeline::Event;

/// Without events the marketplace is asked so often.
const INTERVAL: Duration = Duration::from_secs(5);
/// First and longest pause while it is away.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// The marketplace's view of this node.
#[derive(Debug, Clone, Default)]
pub(super) struct View {
    /// It was read at least once.
    pub(super) known: bool,
    pub(super) offers: Vec<(StatementId, Offer)>,
    pub(super) demands: Vec<(StatementId, Demand)>,
    /// Held and confirmed.
    pub(super) matches: Vec<Match>,
}

/// Registers and follows for ever.
pub(super) async fn follow(inner: Arc<Inner>, client: Client) {
    let mut pause = PAUSE.0;
    loop {
        match follow_once(&inner, &client, &mut pause).await {
            Ok(()) => {}
            Err(error) => tracing::info!(error = error.chain(), pause_ms = pause.as_millis(), "the marketplace is asked again"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE.1);
    }
}

/// Until the stream ends or something fails.
async fn follow_once(inner: &Inner, client: &Client, pause: &mut Duration) -> Result<(), Error> {
    inner.pin_marketplace(client).await?;
    inner.register(client).await?;
    let mut events = client.events(Some(inner.core.me()), None).await?;
    loop {
        if !inner.registered.load(Ordering::Relaxed) {
            inner.register(client).await?;
        }
        inner.refresh_view().await?;
        *pause = PAUSE.0;
        tokio::select! {
            biased;
            event = events.next() => if event?.is_none() { return Ok(()) },
            () = inner.ask_marketplace.notified() => {}
            () = tokio::time::sleep(INTERVAL) => {}
        }
    }
}

impl Inner {
    async fn register(&self, client: &Client) -> Result<(), Error> {
        match client.register(self.core.me(), &self.core.record).await.map_err(Error::from) {
            Ok(_) => {}
            // A newer record of ours is there, from a copy of this node or a clock that was ahead: good enough to be found, but worth a word.
            Err(error) if error.problem() == Some("stale-record") => {
                self.alarm("the marketplace has a newer record of this node".to_owned())
            }
            Err(error) => return Err(error),
        }
        self.registered.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Reads listings and matches anew.
    pub(super) async fn refresh_view(&self) -> Result<(), Error> {
        let (client, me) = (self.marketplace()?, self.core.me());
        let mut view = View { known: true, ..View::default() };
        for listing in client.listings(ListingKind::Offer, Some(me), Some(ListingState::Open)).await? {
            let offer = listing.statement.verify::<Offer>()?;
            view.offers.push((offer.id, offer.statement));
        }
        for listing in client.listings(ListingKind::Demand, Some(me), Some(ListingState::Open)).await? {
            let demand = listing.statement.verify::<Demand>()?;
            view.demands.push((demand.id, demand.statement));
        }
        for state in [MatchState::Held, MatchState::Confirmed] {
            view.matches.extend(client.matches_of(me, Some(state)).await?);
        }
        *lock(&self.view) = view;
        self.wake.notify_one();
        Ok(())
    }

    pub(super) fn find_match(&self, id: StatementId) -> Option<Match> {
        lock(&self.view).matches.iter().find(|m| m.id == id).cloned()
    }

    pub(super) fn pairs(&self, view: &View) -> Vec<Pair> {
        let part = |m: &Match| if m.customer == self.core.me() { Part::Customer } else { Part::Provider };
        let pair = |m: &Match| Pair { id: m.id, offer: m.offer, demand: m.demand, part: part(m), state: m.state, until: m.until };
        view.matches.iter().map(pair).collect()
    }

    fn lister(&self) -> Option<Lister<'_>> {
        let policy = self.core.policy.as_ref()?;
        let Some(position) = self.core.config.position else {
            self.alarm("a node without a position lists nothing: set `position` in its configuration".to_owned());
            return None;
        };
        Some(Lister { node: self.core.me(), owner: self.core.owner, position, policy })
    }

    /// What is promised in contracts that are signed by both.
    pub(super) fn promised(&self) -> Vec<Resources> {
        let me = self.core.me();
        let counts = |state: contracts::contract::State| state == contracts::contract::State::Agreed || state.is_in_force();
        let agreements = self.core.agreements.list().into_iter().filter(|a| a.contract.provider.node == me && counts(a.state));
        agreements.map(|a| a.contract.blueprint.needs.clone()).collect()
    }

    /// The offer that this node would make now.
    pub(super) fn wanted_offer(&self, valid_from: WallTime, nonce: u64) -> Option<Offer> {
        let rules = self.core.policy.as_ref()?.provider.as_ref()?;
        let by = self.lister()?;
        let free = listings::free(rules, &self.own_use(), &self.promised())?;
        Some(listings::offer(&by, rules, free, valid_from, nonce))
    }

    /// The demand that this node would make now, insured or not.
    pub(super) fn wanted_demand(&self, valid_from: WallTime, nonce: u64) -> Option<Demand> {
        let rules = self.core.policy.as_ref()?.customer.as_ref()?;
        let own = self.core.own_service.as_ref().filter(|_| lock(&self.used).running)?;
        if self.core.config.cloud.is_none() {
            self.alarm("a node without a cloud is not insured: an insurer has to know where readings go".to_owned());
            return None;
        }
        let by = self.lister()?;
        let needs = self.estimate()?.needs;
        Some(listings::demand(&by, rules, needs, &own.blueprint.capabilities, valid_from, nonce))
    }

    /// What matches use of an offer by the contracts that came of them.
    fn claimed(&self, view: &View, offer: StatementId) -> Vec<Resources> {
        let agreements = self.core.agreements.list();
        let of_offer = view.matches.iter().filter(|m| m.offer == offer);
        let contracts = of_offer.filter_map(|m| agreements.iter().find(|a| a.contract.matched_by == Some(m.id)));
        contracts.map(|a| a.contract.blueprint.needs.clone()).collect()
    }

    pub(super) fn listed(&self, view: &View, offer: Option<&Offer>, demand: Option<&Demand>) -> Vec<Listed> {
        let capacity =
            self.core.policy.as_ref().and_then(|p| p.provider.as_ref()).map(|p| p.capacity.clone()).unwrap_or_default();
        let offers = view.offers.iter().map(|(id, listed)| Listed {
            id: *id,
            kind: ListingKind::Offer,
            valid_from: listed.valid_from,
            valid_until: listed.valid_until,
            fits: offer.is_some_and(|now| listings::offer_fits(listed, &self.claimed(view, *id), now, &capacity)),
        });
        let demands = view.demands.iter().map(|(id, listed)| Listed {
            id: *id,
            kind: ListingKind::Demand,
            valid_from: listed.valid_from,
            valid_until: listed.valid_until,
            fits: demand.is_some_and(|now| listings::demand_fits(listed, now)),
        });
        offers.chain(demands).collect()
    }

    /// Lists an offer or a demand, from now or from the end of the present one.
    pub(super) async fn list(&self, kind: ListingKind) -> Result<(), Error> {
        let client = self.marketplace()?;
        let (now, nonce) = (self.now(), listings::nonce()?);
        let view = lock(&self.view).clone();
        let keypair = &self.core.identity.keypair;
        let after = |ends: Option<WallTime>| ends.filter(|end| *end > now).unwrap_or(now);
        let listed = match kind {
            ListingKind::Offer => {
                let from = after(view.offers.iter().map(|(_, offer)| offer.valid_until).max());
                let Some(offer) = self.wanted_offer(from, nonce) else { return Ok(()) };
                client.offer(&listings::sign(&offer, keypair)?).await
            }
            ListingKind::Demand => {
                let from = after(view.demands.iter().map(|(_, demand)| demand.valid_until).max());
                let Some(demand) = self.wanted_demand(from, nonce) else { return Ok(()) };
                client.demand(&listings::sign(&demand, keypair)?).await
            }
        };
        let listed = listed.map_err(Error::from).inspect_err(|error| self.note_refusal(error))?;
        self.core.timeline.push(Event::Listed { kind: kind.to_string(), id: listed.id });
        self.refresh_view().await
    }

    /// Takes a listing back.
    pub(super) async fn withdraw(&self, listing: StatementId) -> Result<(), Error> {
        let withdrawal = Withdrawal { node: self.core.me(), listing };
        let envelope = listings::sign(&withdrawal, &self.core.identity.keypair)?;
        self.marketplace()?.withdraw(&envelope).await.map_err(Error::from).inspect_err(|error| self.note_refusal(error))?;
        self.refresh_view().await
    }

    /// A marketplace that lost its registry gets our record anew.
    fn note_refusal(&self, error: &Error) {
        if error.problem() == Some("node-not-registered") {
            self.registered.store(false, Ordering::Relaxed);
            self.ask_marketplace.notify_one();
        }
    }
}
