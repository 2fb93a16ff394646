//! What this node lists: from policy, measured use and promises to the text of an offer or a demand. Pure but for [`sign`].

use std::collections::BTreeSet;

use contracts::envelope::{Envelope, Keypair, Statement};
use contracts::geo::Position;
use contracts::ids::{NodeId, OwnerId};
use contracts::listing::{Demand, Offer};
use contracts::resources::Resources;
use contracts::time::WallTime;

use super::plan::VALIDITY;
use crate::dmu::estimate::{self, Estimate, Usage};
use crate::dmu::policy::{Customer, Policy, Provider};

/// An offer is replaced when a figure is off by more than this share of the capacity.
const OFFER_PERMILLE: u64 = 100;
/// A demand is replaced when a figure is off by more than this share of itself.
const DEMAND_PERMILLE: u64 = 500;

/// Who lists.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lister<'a> {
    pub(super) node: NodeId,
    pub(super) owner: OwnerId,
    pub(super) position: Position,
    pub(super) policy: &'a Policy,
}

/// What stays there how long: the owner's word, at most the longest contract that it takes.
const fn uptime_s(rules: &Provider) -> u64 {
    let longest = rules.days_max as u64 * 86_400;
    if rules.capacity.uptime_s < longest { rules.capacity.uptime_s } else { longest }
}

/// What can be promised to others now; `None` if nothing can.
pub(super) fn free(rules: &Provider, own: &Resources, promised: &[Resources]) -> Option<Resources> {
    let has_radio = |kind: &str, region: &str| {
        rules.capacity.interfaces.iter().any(|i| (i.kind.as_str(), i.region.as_str()) == (kind, region))
    };
    // A radio that the owner does not offer is not shared, so its use takes nothing away.
    let interfaces = own.interfaces.iter().filter(|i| has_radio(&i.kind, &i.region)).cloned().collect();
    let own = Resources { interfaces, ..own.clone() };
    let free = estimate::free(&rules.capacity, &own, promised, rules.reserve_permille)?;
    (free.cpu_millis > 0 && free.memory_bytes > 0).then(|| Resources { uptime_s: uptime_s(rules), ..free })
}

/// What the running service takes of this machine: CPU at the 99th percentile, memory at its peak, no margin.
pub(super) fn own_use(usage: &Usage, capabilities: &BTreeSet<String>) -> Resources {
    Resources {
        cpu_millis: usage.cpu_millis,
        memory_bytes: usage.memory_peak_bytes,
        storage_bytes: usage.image_bytes,
        bandwidth_bps: usage.traffic_bps,
        interfaces: estimate::radio(capabilities).map(|radio| estimate::slots(radio, usage.devices)).into_iter().collect(),
        ..Resources::default()
    }
}

/// An offer of what is free.
pub(super) fn offer(by: &Lister<'_>, rules: &Provider, free: Resources, valid_from: WallTime, nonce: u64) -> Offer {
    Offer {
        node: by.node,
        owner: by.owner,
        nonce,
        free,
        capabilities: rules.capabilities.clone(),
        position: by.position,
        radio_range_m: rules.radio_range_m,
        currency: by.policy.currency.clone(),
        ask_per_day: rules.ask_per_day_min,
        served_hour_cost: rules.served_hour_cost,
        deadline: rules.deadline_min,
        stake_max: rules.stake_max,
        witnesses: by.policy.witnesses.clone(),
        valid_from,
        valid_until: valid_from + VALIDITY,
    }
}

/// What is needed of a provider, with reasons.
pub(super) fn needs(rules: &Customer, usage: &Usage, capabilities: &BTreeSet<String>) -> Estimate {
    estimate::needs(usage, rules.margin_permille, rules.days, estimate::radio(capabilities), rules.terms.ttl)
}

/// A demand for insurance of devices around this node's position.
pub(super) fn demand(
    by: &Lister<'_>,
    rules: &Customer,
    needs: Resources,
    capabilities: &BTreeSet<String>,
    valid_from: WallTime,
    nonce: u64,
) -> Demand {
    Demand {
        node: by.node,
        owner: by.owner,
        nonce,
        needs,
        capabilities: capabilities.clone(),
        devices: vec![by.position],
        currency: by.policy.currency.clone(),
        bid_per_day: rules.bid_per_day_max,
        served_hour_cost_max: rules.served_hour_cost_max,
        deadline_max: rules.terms.deadline,
        stake_min: rules.provider_stake_min,
        reputation_min_permille: rules.reputation_min_permille,
        witnesses: by.policy.witnesses.clone(),
        days: rules.days,
        valid_from,
        valid_until: valid_from + VALIDITY,
    }
}

/// Whether a listed offer, of which `claimed` is in use by matches, still says what `now` says.
pub(super) fn offer_fits(listed: &Offer, claimed: &[Resources], now: &Offer, capacity: &Resources) -> bool {
    let mut left = Some(listed.free.clone());
    for claim in claimed {
        left = left.and_then(|left| left.minus(&Resources { uptime_s: 0, ..claim.clone() }));
    }
    let Some(left) = left else { return false };
    let same_terms = Offer {
        free: now.free.clone(),
        nonce: now.nonce,
        valid_from: now.valid_from,
        valid_until: now.valid_until,
        ..listed.clone()
    } == *now;
    same_terms && !estimate::differs(&left, &now.free, capacity, OFFER_PERMILLE)
}

/// Whether a listed demand still says what `now` says.
pub(super) fn demand_fits(listed: &Demand, now: &Demand) -> bool {
    let same_terms = Demand {
        needs: now.needs.clone(),
        nonce: now.nonce,
        valid_from: now.valid_from,
        valid_until: now.valid_until,
        ..listed.clone()
    } == *now;
    same_terms && !estimate::differs(&listed.needs, &now.needs, &listed.needs, DEMAND_PERMILLE)
}

/// A random number that every JSON reader keeps exactly.
pub(super) fn nonce() -> Result<u64, super::Error> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).map_err(|_| super::Error::NotYet("the machine has no randomness to give"))?;
    Ok(u64::from_le_bytes(bytes) >> 11)
}

/// Signs after the same checks that the marketplace will make.
pub(super) fn sign<T: Statement>(statement: &T, keypair: &Keypair) -> Result<Envelope, super::Error> {
    statement.validate().map_err(|invalid| super::Error::Final(format!("{} is not valid: {invalid}", T::TYPE)))?;
    Ok(Envelope::sign(statement, keypair))
}
