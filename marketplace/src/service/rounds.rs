//! Clearing rounds: a timer and a signal, then read the book, solve, sign, write.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use contracts::envelope::Envelope;
use contracts::listing;
use contracts::money::Currency;
use contracts::time::{Millis, WallTime};
use tokio::sync::watch;

use super::{Error, Service};
use crate::book::{Book, Graph, price};
use crate::clearing::{self, Edge, Solution};
use crate::resource::{Match, MatchState, Round, Sum};

/// A listing and its matches are forgotten this long after its validity ended; by then no replay of it can be valid.
pub const RETENTION: Millis = Millis::from_secs(30 * 86_400);
/// Without any change the book is still looked at after this many rounds: scores move by themselves.
const QUIET_ROUNDS_MAX: u32 = 60;
/// History is trimmed every this many rounds.
const PURGE_ROUNDS: u32 = 3_600;

/// What a round did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cleared {
    pub matches: usize,
    /// When the next listing becomes valid by itself.
    pub opens_at: Option<WallTime>,
}

impl Service {
    /// Ends what is over. Returns whether something ended.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn expire(&self) -> Result<bool, Error> {
        let _one_at_a_time = self.writes.lock().await;
        let ended = self.store.expire(self.clock.wall()).await?;
        if ended > 0 {
            self.announce().await?;
        }
        Ok(ended > 0)
    }

    /// One clearing round over the book as it is now.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn clear(&self) -> Result<Cleared, Error> {
        let now = self.clock.wall();
        let started = self.clock.boot_micros();
        let book = self.store.read_book(now).await?;
        let scores = self.reputation.scores(&book.providers()).await;
        // Solving may take tens of milliseconds: not on a thread that serves requests.
        let solved = tokio::task::spawn_blocking(move || {
            let graph = book.graph(&scores, now);
            let solutions = clearing::solve(&graph.instance);
            (book, graph, solutions)
        });
        let Ok((book, graph, solutions)) = solved.await else { return Ok(Cleared::default()) }; // the runtime is going down
        let matches = self.commit(&book, &graph, &solutions, now).await?;
        self.metrics.rounds.inc();
        #[expect(clippy::cast_precision_loss, reason = "a duration for people")]
        self.metrics.round_seconds.observe((self.clock.boot_micros() - started) as f64 / 1e6);
        Ok(Cleared { matches, opens_at: book.opens_at })
    }

    async fn commit(&self, book: &Book, graph: &Graph, solutions: &[Solution], now: WallTime) -> Result<usize, Error> {
        if solutions.is_empty() {
            return Ok(0);
        }
        let _one_at_a_time = self.writes.lock().await;
        let round = self.store.last_round().await? + 1;
        let mut proposed = Vec::new();
        for edge in solutions.iter().flat_map(|s| &s.chosen) {
            proposed.extend(self.propose(book, graph, *edge, (round, now)).await?);
        }
        let rounds = statistics(book, graph, solutions, round, now);
        // What was withdrawn or expired since the book was read is left out by the store.
        let created = self.store.create_matches(&proposed, &rounds, now).await?;
        self.metrics.matches.inc_by(created.len() as u64);
        self.announce().await?;
        tracing::info!(round, matches = created.len(), "cleared");
        Ok(created.len())
    }

    async fn propose(
        &self,
        book: &Book,
        graph: &Graph,
        edge: Edge,
        (round, now): (u64, WallTime),
    ) -> Result<Option<Match>, Error> {
        let (offer_id, demand_id) = (graph.offers[edge.supply], graph.demands[edge.want]);
        let (offer, demand) = (&book.offers[&offer_id], &book.demands[&demand_id]);
        let (provider, customer) = (self.store.get_node(offer.node).await?, self.store.get_node(demand.node).await?);
        let (Some(provider), Some(customer)) = (provider, customer) else { return Ok(None) };
        let statement = listing::Match {
            marketplace: self.keypair.node_id(),
            round,
            offer: offer_id,
            demand: demand_id,
            provider: offer.node,
            customer: demand.node,
            currency: offer.currency.clone(),
            price_per_day: price(offer.ask_per_day, demand.bid_per_day),
            matched_at: now,
            held_until: (now + self.hold).min(offer.valid_until).min(demand.valid_until),
        };
        let envelope = Envelope::sign(&statement, &self.keypair);
        Ok(Some(Match {
            id: envelope.id(),
            round,
            offer: offer_id,
            demand: demand_id,
            provider: offer.node,
            customer: demand.node,
            state: MatchState::Held,
            matched_at: now,
            until: statement.held_until,
            contract: None,
            provider_record: provider.record,
            customer_record: customer.record,
            statement: envelope,
        }))
    }

    /// Clears every `interval`, at once when something is listed (but never more often than ten times per interval), until `stopping` is set.
    pub async fn run_rounds(self: Arc<Self>, interval: Duration, mut stopping: watch::Receiver<bool>) {
        let mut quiet_rounds = QUIET_ROUNDS_MAX; // the first round looks
        let mut opens_at: Option<WallTime> = None;
        let mut since_purge = 0;
        loop {
            let signalled = tokio::select! {
                biased;
                _ = stopping.wait_for(|stop| *stop) => return,
                () = self.changed.notified() => true,
                () = tokio::time::sleep(interval) => false,
            };
            let opened = opens_at.is_some_and(|at| at <= self.clock.wall());
            let due = signalled || opened || quiet_rounds >= QUIET_ROUNDS_MAX;
            match self.round(due).await {
                Ok(Some(cleared)) => (quiet_rounds, opens_at) = (0, cleared.opens_at),
                Ok(None) => quiet_rounds += 1,
                Err(error) => {
                    self.metrics.round_failures.inc();
                    quiet_rounds = QUIET_ROUNDS_MAX; // try again
                    tracing::error!(error = &error as &dyn std::error::Error, "a clearing round failed");
                }
            }
            since_purge += 1;
            if since_purge >= PURGE_ROUNDS {
                since_purge = 0;
                if let Err(error) = self.store.purge(self.clock.wall() - RETENTION).await {
                    tracing::error!(error = &error as &dyn std::error::Error, "the history was not trimmed");
                }
            }
            let pause = tokio::time::sleep(interval / 10);
            tokio::select! {
                biased;
                _ = stopping.wait_for(|stop| *stop) => return,
                () = pause => {}
            }
        }
    }

    async fn round(&self, due: bool) -> Result<Option<Cleared>, Error> {
        let freed = self.expire().await?;
        // Written though its writer heard an error, so that nobody was told and nobody signalled.
        let unheard = self.announce().await?;
        if due || freed || unheard { self.clear().await.map(Some) } else { Ok(None) }
    }
}

/// One row per currency; a component has one currency because each of its edges has.
fn statistics(book: &Book, graph: &Graph, solutions: &[Solution], round: u64, at: WallTime) -> Vec<Round> {
    let mut rows: BTreeMap<&Currency, Round> = BTreeMap::new();
    for solution in solutions {
        let offers_of = |edge: &Edge| (&book.offers[&graph.offers[edge.supply]], &book.demands[&graph.demands[edge.want]]);
        let Some((offer, _)) = solution.chosen.first().map(offers_of) else { continue };
        let row = rows.entry(&offer.currency).or_insert_with(|| Round {
            round,
            currency: offer.currency.clone(),
            at,
            offers: 0,
            demands: 0,
            edges: 0,
            matched: 0,
            volume: Sum(0),
            surplus: Sum(0),
            bound: Sum(0),
            exact: true,
        });
        row.offers += solution.supplies as u64;
        row.demands += solution.wants as u64;
        row.edges += solution.edges as u64;
        row.matched += solution.chosen.len() as u64;
        let prices = solution.chosen.iter().map(offers_of).map(|(o, d)| u128::from(price(o.ask_per_day, d.bid_per_day).micros()));
        row.volume.0 += prices.sum::<u128>();
        row.surplus.0 += solution.gain;
        row.bound.0 += solution.bound;
        row.exact &= solution.exact;
    }
    rows.into_values().collect()
}
