//! Who could insure whom: the feasibility graph over open offers and demands. Pure.

use std::collections::{BTreeMap, BTreeSet};

use contracts::ids::{NodeId, StatementId};
use contracts::listing::{Demand, Offer};
use contracts::money::Amount;
use contracts::resources::Resources;
use contracts::time::WallTime;

use crate::clearing::{Edge, Instance};
use crate::reputation::NEUTRAL_PERMILLE;

/// A pair whose holds ran out this often is not proposed again: its parties do not come together. A new listing is a new pair.
pub const PROPOSALS_PER_PAIR_MAX: u64 = 3;
/// No radio reaches further north or south than this (100 km, in 10^-7 degrees, rounded up).
const REACH_LATITUDE_E7: i32 = 9_000_000;

/// Everything that clearing looks at, as of one moment. Order does not matter.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Book {
    /// Open and valid.
    pub offers: BTreeMap<StatementId, Offer>,
    /// Open, valid and without an active match.
    pub demands: BTreeMap<StatementId, Demand>,
    /// What active matches use of offers.
    pub claims: Vec<Claim>,
    /// How often a pair was proposed before.
    pub proposals: BTreeMap<(StatementId, StatementId), u64>,
    /// When the next listing becomes valid by itself.
    pub opens_at: Option<WallTime>,
}

/// Capacity of an offer in use by an active match.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    pub offer: StatementId,
    pub needs: Resources,
}

/// Why an offer cannot serve a demand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Obstacle {
    SameOwner,
    Currency,
    Price,
    ServedHourCost,
    Deadline,
    Stake,
    Reputation,
    Validity,
    Capabilities,
    Witness,
    Resources,
    Range,
}

/// The first thing that keeps `offer`, of which `left` is free, from serving `demand`; cheap checks first.
#[must_use]
pub fn obstacle(offer: &Offer, left: &Resources, demand: &Demand, score_permille: u16, now: WallTime) -> Option<Obstacle> {
    let valid = |from, until| from <= now && now < until;
    let is_witness = |node: &&NodeId| **node != offer.node && **node != demand.node;
    let checks: [(&dyn Fn() -> bool, Obstacle); 12] = [
        (&|| offer.owner != demand.owner && offer.node != demand.node, Obstacle::SameOwner),
        (&|| offer.currency == demand.currency, Obstacle::Currency),
        (&|| offer.ask_per_day <= demand.bid_per_day, Obstacle::Price),
        (&|| offer.served_hour_cost <= demand.served_hour_cost_max, Obstacle::ServedHourCost),
        (&|| offer.deadline <= demand.deadline_max, Obstacle::Deadline),
        (&|| offer.stake_max >= demand.stake_min, Obstacle::Stake),
        (&|| score_permille >= demand.reputation_min_permille, Obstacle::Reputation),
        (&|| valid(offer.valid_from, offer.valid_until) && valid(demand.valid_from, demand.valid_until), Obstacle::Validity),
        (&|| demand.capabilities.is_subset(&offer.capabilities), Obstacle::Capabilities),
        (&|| offer.witnesses.intersection(&demand.witnesses).any(|node| is_witness(&node)), Obstacle::Witness),
        (&|| left.covers(&demand.needs), Obstacle::Resources),
        (&|| demand.devices.iter().all(|device| offer.position.distance_m(*device) <= offer.radio_range_m), Obstacle::Range),
    ];
    checks.iter().find(|(holds, _)| !holds()).map(|(_, obstacle)| *obstacle)
}

/// Half of ask and bid together, rounded down: in favour of the payer.
#[must_use]
pub fn price(ask: Amount, bid: Amount) -> Amount {
    let micros = (ask.micros() + bid.micros()) / 2;
    Amount::from_micros(micros).unwrap_or(ask) // the mean of two amounts is an amount
}

/// The graph in numbers, and what the numbers mean. Index order is id order, so ties by index are ties by id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Graph {
    pub offers: Vec<StatementId>,
    pub demands: Vec<StatementId>,
    pub instance: Instance,
}

impl Book {
    /// The nodes whose scores matter.
    #[must_use]
    pub fn providers(&self) -> BTreeSet<NodeId> {
        self.offers.values().map(|o| o.node).collect()
    }

    /// What each offer has left after the claims; an offer that was promised more than it has (it cannot be) has nothing.
    #[must_use]
    pub fn left(&self) -> BTreeMap<StatementId, Resources> {
        let mut left: BTreeMap<_, _> = self.offers.iter().map(|(id, o)| (*id, o.free.clone())).collect();
        for claim in &self.claims {
            if let Some(free) = left.get_mut(&claim.offer) {
                *free = free.minus(&claim.needs).unwrap_or_default();
            }
        }
        left
    }

    /// All feasible pairs.
    #[must_use]
    pub fn graph(&self, scores: &BTreeMap<NodeId, u16>, now: WallTime) -> Graph {
        let left = self.left();
        let offers: Vec<_> = self.offers.keys().copied().collect();
        let demands: Vec<_> = self.demands.keys().copied().collect();
        let mut by_latitude: Vec<(i32, usize)> =
            self.offers.values().enumerate().map(|(n, offer)| (offer.position.latitude_e7, n)).collect();
        by_latitude.sort_unstable();
        let mut edges = Vec::new();
        for (want, (demand_id, demand)) in self.demands.iter().enumerate() {
            let Some(north) = demand.devices.first().map(|d| d.latitude_e7) else { continue };
            let first = by_latitude.partition_point(|(latitude, _)| *latitude < north.saturating_sub(REACH_LATITUDE_E7));
            for &(_, supply) in
                by_latitude[first..].iter().take_while(|(latitude, _)| *latitude <= north.saturating_add(REACH_LATITUDE_E7))
            {
                let offer_id = offers[supply];
                let offer = &self.offers[&offer_id];
                let score = scores.get(&offer.node).copied().unwrap_or(NEUTRAL_PERMILLE);
                let tired = self.proposals.get(&(offer_id, *demand_id)).is_some_and(|n| *n >= PROPOSALS_PER_PAIR_MAX);
                if !tired && obstacle(offer, &left[&offer_id], demand, score, now).is_none() {
                    edges.push(Edge { supply, want, gain: demand.bid_per_day.micros() - offer.ask_per_day.micros() });
                }
            }
        }
        edges.sort_unstable();
        let instance = Instance {
            supplies: left.into_values().collect(),
            wants: self.demands.values().map(|d| d.needs.clone()).collect(),
            edges,
        };
        Graph { offers, demands, instance }
    }
}
