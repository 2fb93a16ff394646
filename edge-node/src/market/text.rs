//! The text of a contract: from a match, an agreed proposal and stored content to what both nodes sign. Pure.

use std::collections::BTreeSet;

use contracts::contract::{Contract, Money, Party, Terms};
use contracts::ids::{DevEui, NodeId};
use contracts::listing::{Demand, Offer};
use contracts::money::Amount;
use contracts::time::{Millis, WallTime};
use marketplace::resource::Introduction;

use crate::core::OwnService;
use crate::dmu::negotiation::{Limits, Proposal};
use crate::dmu::policy::{Customer, Policy};
use crate::migration::SealedConfiguration;

/// Everything that the text says.
#[derive(Debug, Clone, Copy)]
pub(super) struct Facts<'a> {
    pub(super) introduction: &'a Introduction,
    pub(super) offer: &'a Offer,
    pub(super) demand: &'a Demand,
    pub(super) policy: &'a Policy,
    pub(super) rules: &'a Customer,
    pub(super) own: &'a OwnService,
    pub(super) agreed: &'a Proposal,
    pub(super) configuration: &'a SealedConfiguration,
    pub(super) readings_to: NodeId,
    pub(super) now: WallTime,
    pub(super) nonce: u64,
}

/// The proposal with which a customer opens: its first price, the stake of the source's rule (what is paid in all) within both sides' limits.
pub(super) fn opening(limits: &Limits, rules: &Customer, offer: &Offer, matched_price: Amount) -> Proposal {
    let payment = matched_price.scaled_down(u64::from(rules.days), 1).unwrap_or(offer.stake_max);
    Proposal {
        price_per_day: limits.price(0),
        provider_stake: payment.min(offer.stake_max).max(rules.provider_stake_min),
        deadline: rules.terms.deadline,
        ttl: rules.terms.ttl,
        days: rules.days,
    }
}

/// One witness that both sides accept and that is no party, the arbitrator if it may be. With the two parties that makes three members.
pub(super) fn witness(offer: &Offer, policy: &Policy, parties: [NodeId; 2]) -> Option<NodeId> {
    let mut both = offer.witnesses.intersection(&policy.witnesses).copied().filter(|node| !parties.contains(node));
    if offer.witnesses.contains(&policy.arbitrator)
        && policy.witnesses.contains(&policy.arbitrator)
        && !parties.contains(&policy.arbitrator)
    {
        Some(policy.arbitrator)
    } else {
        both.next()
    }
}

/// Writes the text; `None` if there is no common witness.
pub(super) fn write(facts: &Facts<'_>) -> Option<Contract> {
    let Facts { introduction, offer, demand, policy, rules, own, agreed, configuration, readings_to, now, nonce } = *facts;
    let party = |record: &contracts::node_record::NodeRecord| Party { node: record.node, owner: record.owner };
    let (customer, provider) = (party(&introduction.customer), party(&introduction.provider));
    let devices: BTreeSet<DevEui> = crate::tenants::http::devices(&own.registration).collect();
    let mut blueprint = own.blueprint.clone();
    blueprint.needs = demand.needs.clone();
    let premium = agreed.price_per_day.scaled_down(u64::from(agreed.days), 1)?;
    Some(Contract {
        customer,
        provider,
        witnesses: vec![witness(offer, policy, [customer.node, provider.node])?],
        arbitrator: policy.arbitrator,
        readings_to,
        group: own.group,
        devices,
        blueprint,
        network_configuration: configuration.network.to_string(),
        application_configuration: configuration.application.to_string(),
        terms: Terms { ttl: agreed.ttl, deadline: agreed.deadline, ..rules.terms.clone() },
        money: Money {
            currency: policy.currency.clone(),
            premium_per_day: agreed.price_per_day,
            days: agreed.days,
            included_hours: rules.included_hours,
            served_hour_cost: offer.served_hour_cost,
            served_hours_max: rules.served_hours_max,
            customer_stake: premium.min(rules.stake_max),
            provider_stake: agreed.provider_stake,
        },
        matched_by: Some(introduction.id),
        nonce,
        valid_from: now,
        valid_until: now + Millis::from_secs(u64::from(agreed.days) * 86_400),
    })
}
