//! The owner's policy: a TOML file. Nothing is listed, agreed or signed outside of it.

use std::collections::BTreeSet;

use contracts::contract::Terms;
use contracts::ids::NodeId;
use contracts::money::{Amount, Currency};
use contracts::resources::Resources;
use contracts::time::Millis;
use serde::{Deserialize, Serialize};

use super::negotiation::{Concession, Limits, Side};
use super::profile::{Link, Profile};

/// What the owner allows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    pub currency: Currency,
    /// Witnesses that this owner trusts to vote.
    pub witnesses: BTreeSet<NodeId>,
    /// The arbitrator that this owner trusts with stakes.
    pub arbitrator: NodeId,
    /// The kind of link between this node and the others; decides the profile where none is named.
    #[serde(default)]
    pub link: Link,
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
    /// The shortest lease that it takes part in: short ones cost traffic and are lost by every stall. A customer that asks for less is
    /// offered this.
    #[serde(default)]
    pub ttl_min: Millis,
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
    /// `lan` (ttl 1 s, deadline 3 s) or `wan` (10 s, 20 s), for what `terms` leaves out. By default what suits `link`.
    #[serde(default)]
    pub profile: Option<Profile>,
    /// The longest lease that a provider may talk this node into; by default that of `terms`.
    #[serde(default)]
    pub ttl_max: Option<Millis>,
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
        let policy = Self::with_profile(toml::from_str(text)?)?;
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
            let longest = customer.ttl_max.unwrap_or(customer.terms.ttl);
            unless(customer.terms.ttl <= longest, "customer.ttl_max", "at least terms.ttl")?;
            unless(
                longest.0.saturating_mul(3) / 2 <= customer.terms.deadline.0,
                "customer.terms.deadline",
                "at least one and a half ttl",
            )?;
            unless(customer.margin_permille <= 10_000, "customer.margin_permille", "at most 10,000")?;
        }
        Ok(policy)
    }

    /// Fills in what the terms leave to the profile.
    fn with_profile(mut table: toml::Table) -> Result<Self, Error> {
        let link = table.get("link").cloned().map(Link::deserialize).transpose()?.unwrap_or_default();
        if let Some(customer) = table.get_mut("customer").and_then(toml::Value::as_table_mut) {
            let named = customer.get("profile").cloned().map(Profile::deserialize).transpose()?;
            let profile = named.unwrap_or(Profile::of(link));
            if let Some(terms) = customer.get_mut("terms").and_then(toml::Value::as_table_mut) {
                if named.is_some() && terms.contains_key("ttl") {
                    return Err(Error::Field { field: "customer.profile", reason: "either a profile or customer.terms.ttl" });
                }
                for (name, length) in [("ttl", profile.ttl()), ("deadline", profile.deadline())] {
                    let length = i64::try_from(length.0).unwrap_or(i64::MAX);
                    terms.entry(name).or_insert(toml::Value::Integer(length));
                }
            }
        }
        Ok(table.try_into()?)
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
            ttl_limit: rules.ttl_min,
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
            ttl_limit: rules.ttl_max.unwrap_or(rules.terms.ttl),
            days_max: rules.days,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = include_str!("../../tests/common/policy.toml");

    fn terms(change: impl Fn(String) -> String) -> Result<(Millis, Millis), Error> {
        let policy = Policy::parse(&change(TEXT.to_owned()))?;
        let terms = policy.customer.expect("it buys").terms;
        Ok((terms.ttl, terms.deadline))
    }

    fn without_lengths(text: &str) -> String {
        text.replace("ttl = 1000\ndeadline = 2000\n", "")
    }

    #[test]
    fn a_profile_gives_the_lengths_that_the_terms_leave_out() {
        let named = |name: &str, text: &str| {
            without_lengths(text).replace("margin_permille = 500", &format!("margin_permille = 500\nprofile = {name:?}"))
        };
        let cellular = |text: &str| format!("link = \"cellular\"\n{text}");
        let (lan, wan) = ((Millis(1_000), Millis(3_000)), (Millis(10_000), Millis(20_000)));
        assert_eq!(terms(|text| text).expect("valid"), (Millis(1_000), Millis(2_000)), "what the owner says counts");
        assert_eq!(terms(|text| without_lengths(&text)).expect("valid"), lan);
        assert_eq!(terms(|text| cellular(&without_lengths(&text))).expect("valid"), wan, "the default on cellular links");
        assert_eq!(terms(|text| named("wan", &text)).expect("valid"), wan);
        assert_eq!(terms(|text| cellular(&named("lan", &text))).expect("valid"), lan);
        for wrong in ["dsl", "LAN", ""] {
            assert!(matches!(terms(|text| named(wrong, &text)), Err(Error::Toml(_))), "{wrong}");
        }
    }

    #[test]
    fn a_profile_and_lengths_contradict_one_another() {
        let both = |text: String| text.replace("margin_permille = 500", "margin_permille = 500\nprofile = \"wan\"");
        assert!(matches!(terms(both), Err(Error::Field { field: "customer.profile", .. })));
        let max = |text: String| text.replace("margin_permille = 500", "margin_permille = 500\nttl_max = 999");
        assert!(matches!(terms(max), Err(Error::Field { field: "customer.ttl_max", .. })));
        let long = |text: String| text.replace("margin_permille = 500", "margin_permille = 500\nttl_max = 1500");
        assert!(
            matches!(terms(long), Err(Error::Field { field: "customer.terms.deadline", .. })),
            "the deadline must fit the longest"
        );
    }
}
