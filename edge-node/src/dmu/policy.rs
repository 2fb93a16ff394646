//! The owner's policy: a TOML file. Nothing is listed, agreed or signed outside of it.

use std::collections::BTreeSet;

use contracts::contract::Terms;
use contracts::ids::NodeId;
use contracts::money::{Amount, Currency};
use contracts::resources::Resources;
use contracts::time::Millis;
use serde::{Deserialize, Serialize};

use super::negotiation::{Concession, Limits, Side};

/// What the owner allows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    pub currency: Currency,
    /// Witnesses that this owner trusts to vote.
    pub witnesses: BTreeSet<NodeId>,
    /// The arbitrator that this owner trusts with stakes.
    pub arbitrator: NodeId,
    /// Rounds of one negotiation.
    #[serde(default = "default_rounds")]
    pub rounds_max: u32,
    /// How fast this node concedes.
    #[serde(default)]
    pub concession: Concession,
    /// What this node sells; without it, nothing.
    #[serde(default)]
    pub provider: Option<Provider>,
    /// What this node buys; without it, nothing.
    #[serde(default)]
    pub customer: Option<Customer>,
}

const fn default_rounds() -> u32 {
    10
}

/// Insurance for others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Provider {
    /// What this machine has in all for itself and others.
    pub capacity: Resources,
    /// Kept back of the capacity, in thousandths.
    pub reserve_permille: u32,
    pub radio_range_m: u32,
    pub capabilities: BTreeSet<String>,
    /// What it asks for at first, and the least that it takes, per day.
    pub ask_per_day: Amount,
    pub ask_per_day_min: Amount,
    pub served_hour_cost: Amount,
    pub stake_max: Amount,
    /// The shortest deadline that it promises.
    pub deadline_min: Millis,
    pub days_max: u32,
    pub handback_quiet_max: Millis,
    /// Most hours of serving that a premium may include.
    #[serde(default = "default_included_hours_max")]
    pub included_hours_max: u32,
    /// Most bytes of frames that it buffers for one contract.
    #[serde(default = "default_buffer_bytes_max")]
    pub buffer_bytes_max: u64,
}

const fn default_included_hours_max() -> u32 {
    100
}

const fn default_buffer_bytes_max() -> u64 {
    256 << 20
}

/// Insurance by others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Customer {
    /// What it bids at first, and the most that it gives, per day.
    pub bid_per_day: Amount,
    pub bid_per_day_max: Amount,
    pub served_hour_cost_max: Amount,
    pub included_hours: u32,
    pub served_hours_max: u32,
    pub stake_max: Amount,
    /// The least that the provider must put at stake.
    pub provider_stake_min: Amount,
    pub reputation_min_permille: u16,
    pub days: u32,
    /// Added to the measured use of the services, in thousandths.
    pub margin_permille: u32,
    /// How custody is kept and given back.
    pub terms: Terms,
}

/// Why a policy is refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the policy is no valid TOML of its form: {0}")]
    Toml(#[from] toml::de::Error),
    #[error("{field}: {reason}")]
    Field { field: &'static str, reason: &'static str },
}

impl Policy {
    /// Reads the text of a policy file.
    ///
    /// # Errors
    /// Unknown or missing fields, or limits that contradict each other.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let policy: Self = toml::from_str(text)?;
        let unless = |holds: bool, field, reason| if holds { Ok(()) } else { Err(Error::Field { field, reason }) };
        unless((1..=100).contains(&policy.rounds_max), "rounds_max", "1 to 100")?;
        unless(!policy.witnesses.is_empty(), "witnesses", "at least one")?;
        if let Some(provider) = &policy.provider {
            unless(provider.ask_per_day_min <= provider.ask_per_day, "provider.ask_per_day_min", "at most ask_per_day")?;
            unless(provider.reserve_permille <= 1_000, "provider.reserve_permille", "at most 1,000")?;
            unless(provider.capacity.is_valid(), "provider.capacity", "a number is too large or an interface is named twice")?;
        }
        if let Some(customer) = &policy.customer {
            unless(customer.bid_per_day <= customer.bid_per_day_max, "customer.bid_per_day_max", "at least bid_per_day")?;
            unless((1..=3_650).contains(&customer.days), "customer.days", "1 to 3,650")?;
            unless(customer.margin_permille <= 10_000, "customer.margin_permille", "at most 10,000")?;
        }
        Ok(policy)
    }

    /// The limits of this node as a provider; none if it sells nothing.
    #[must_use]
    pub fn provider_limits(&self) -> Option<Limits> {
        let rules = self.provider.as_ref()?;
        Some(Limits {
            side: Side::Provider,
            concession: self.concession,
            rounds_max: self.rounds_max,
            price_open: rules.ask_per_day,
            price_limit: rules.ask_per_day_min,
            stake_limit: rules.stake_max,
            deadline_limit: rules.deadline_min,
            days_max: rules.days_max,
        })
    }

    /// The limits of this node as a customer; none if it buys nothing.
    #[must_use]
    pub fn customer_limits(&self) -> Option<Limits> {
        let rules = self.customer.as_ref()?;
        Some(Limits {
            side: Side::Customer,
            concession: self.concession,
            rounds_max: self.rounds_max,
            price_open: rules.bid_per_day,
            price_limit: rules.bid_per_day_max,
            stake_limit: rules.provider_stake_min,
            deadline_limit: rules.terms.deadline,
            days_max: rules.days,
        })
    }
}
