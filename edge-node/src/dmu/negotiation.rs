//! Alternating offers between customer and provider (Rubinstein 1982) with time-dependent concession (Faratin, Sierra, Jennings 1998).
//!
//! Pure: a strategy is a function of round and limits. The customer opens; each side answers with acceptance, a counter-proposal or
//! refusal; rounds are bounded. Price is conceded along a curve, the other issues are taken if they are within the side's limits.

use contracts::money::Amount;
use contracts::time::Millis;
use serde::{Deserialize, Serialize};

/// How a side concedes over the rounds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Concession {
    /// Holds out and gives way at the end: (t/T)^3.
    Boulware,
    /// Gives way evenly: t/T.
    #[default]
    Linear,
    /// Gives way at once: 1 - (1 - t/T)^3.
    Conceder,
    /// Never gives way.
    Fixed,
}

/// What may be traded (the `issues`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Proposal {
    pub price_per_day: Amount,
    pub provider_stake: Amount,
    pub deadline: Millis,
    pub ttl: Millis,
    pub days: u32,
}

/// Which side somebody is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    Customer,
    Provider,
}

/// A side's limits, from its policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    pub side: Side,
    pub concession: Concession,
    pub rounds_max: u32,
    /// The price it opens with, and the worst that it takes.
    pub price_open: Amount,
    pub price_limit: Amount,
    /// Customer: least stake of the provider. Provider: most.
    pub stake_limit: Amount,
    /// Customer: longest deadline. Provider: shortest.
    pub deadline_limit: Millis,
    /// Customer: longest lease. Provider: shortest; it offers that to who asks for less.
    pub ttl_limit: Millis,
    pub days_max: u32,
}

/// An answer to a proposal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum Answer {
    Accept { proposal: Proposal },
    Counter { proposal: Proposal },
    Refuse { reason: String },
}

/// Share of the way from the opening price to the limit, in millionths.
fn conceded(concession: Concession, round: u32, rounds_max: u32) -> u64 {
    const ONE: u64 = 1_000_000;
    let last = u64::from(rounds_max.saturating_sub(1)).max(1);
    let t = (u64::from(round) * ONE / last).min(ONE);
    let cube = |x: u64| x * x / ONE * x / ONE;
    match concession {
        Concession::Boulware => cube(t),
        Concession::Linear => t,
        Concession::Conceder => ONE - cube(ONE - t),
        Concession::Fixed => 0,
    }
}

impl Limits {
    /// The price that this side proposes in a round (from 0).
    #[must_use]
    pub fn price(&self, round: u32) -> Amount {
        let share = conceded(self.concession, round, self.rounds_max);
        let part =
            |from: Amount, to: Amount| to.checked_sub(from).and_then(|gap| gap.scaled_down(share, 1_000_000)).unwrap_or_default();
        match self.side {
            Side::Customer => self.price_open.checked_add(part(self.price_open, self.price_limit)).unwrap_or(self.price_limit),
            Side::Provider => self.price_open.checked_sub(part(self.price_limit, self.price_open)).unwrap_or(self.price_limit),
        }
    }

    /// Why a proposal is outside this side's limits, price apart.
    #[must_use]
    pub fn objection(&self, proposal: &Proposal) -> Option<&'static str> {
        let (stake_ok, deadline_ok) = match self.side {
            Side::Customer => (proposal.provider_stake >= self.stake_limit, proposal.deadline <= self.deadline_limit),
            Side::Provider => (proposal.provider_stake <= self.stake_limit, proposal.deadline >= self.deadline_limit),
        };
        if self.side == Side::Customer && proposal.ttl > self.ttl_limit {
            return Some("ttl is outside the limits");
        }
        match (stake_ok, deadline_ok, proposal.days <= self.days_max) {
            (true, true, true) => None,
            (false, ..) => Some("provider_stake is outside the limits"),
            (_, false, _) => Some("deadline is outside the limits"),
            (.., false) => Some("days is outside the limits"),
        }
    }

    fn at_least_as_good(&self, offered: Amount, own: Amount) -> bool {
        match self.side {
            Side::Customer => offered <= own,
            Side::Provider => offered >= own,
        }
    }

    /// Answers a proposal of the other side in a round: takes it if its price is at least as good as what this side would propose now.
    #[must_use]
    pub fn answer(&self, round: u32, proposal: &Proposal) -> Answer {
        if let Some(reason) = self.objection(proposal) {
            return Answer::Refuse { reason: reason.to_owned() };
        }
        if round >= self.rounds_max {
            return Answer::Refuse { reason: "no agreement within the agreed rounds".to_owned() };
        }
        let own = self.price(round);
        let ttl = match self.side {
            Side::Customer => proposal.ttl,
            Side::Provider => proposal.ttl.max(self.ttl_limit),
        };
        if ttl.0.saturating_mul(3) / 2 > proposal.deadline.0 {
            return Answer::Refuse { reason: "no lease within the limits fits the deadline".to_owned() };
        }
        if ttl != proposal.ttl {
            let price_per_day = if self.at_least_as_good(proposal.price_per_day, own) { proposal.price_per_day } else { own };
            return Answer::Counter { proposal: Proposal { price_per_day, ttl, ..*proposal } };
        }
        if self.at_least_as_good(proposal.price_per_day, own) {
            Answer::Accept { proposal: *proposal }
        } else {
            Answer::Counter { proposal: Proposal { price_per_day: own, ..*proposal } }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(side: Side, concession: Concession, open: u32, limit: u32) -> Limits {
        let (stake_limit, deadline_limit) = match side {
            Side::Customer => (Amount::from_units(10), Millis(5_000)),
            Side::Provider => (Amount::from_units(50), Millis(1_500)),
        };
        Limits {
            side,
            concession,
            rounds_max: 10,
            price_open: Amount::from_units(open),
            price_limit: Amount::from_units(limit),
            stake_limit,
            deadline_limit,
            ttl_limit: if side == Side::Customer { Millis(3_000) } else { Millis(500) },
            days_max: 30,
        }
    }

    fn negotiate(customer: Limits, provider: Limits) -> Option<Amount> {
        let mut proposal = Proposal {
            price_per_day: customer.price(0),
            provider_stake: Amount::from_units(20),
            deadline: Millis(2_000),
            ttl: Millis(1_000),
            days: 30,
        };
        for round in 0..20 {
            match provider.answer(round, &proposal) {
                Answer::Accept { proposal } => return Some(proposal.price_per_day),
                Answer::Counter { proposal: counter } => match customer.answer(round, &counter) {
                    Answer::Accept { proposal } => return Some(proposal.price_per_day),
                    Answer::Counter { proposal: next } => {
                        proposal = Proposal { price_per_day: customer.price(round + 1), ..next }
                    }
                    Answer::Refuse { .. } => return None,
                },
                Answer::Refuse { .. } => return None,
            }
        }
        None
    }

    #[test]
    fn every_pair_of_strategies_with_a_common_price_agrees_within_both_limits() {
        use Concession::{Boulware, Conceder, Fixed, Linear};
        for ours in [Boulware, Linear, Conceder] {
            for theirs in [Boulware, Linear, Conceder, Fixed] {
                let provider = limits(Side::Provider, theirs, 8, if theirs == Fixed { 8 } else { 5 });
                let price = negotiate(limits(Side::Customer, ours, 3, 9), provider);
                let price = price.unwrap_or_else(|| panic!("{ours:?} and {theirs:?} find no price"));
                assert!((Amount::from_units(5)..=Amount::from_units(9)).contains(&price), "{ours:?} {theirs:?}: {price}");
            }
        }
    }

    #[test]
    fn the_length_of_the_lease_is_traded_within_both_limits() {
        let customer = limits(Side::Customer, Concession::Linear, 3, 9);
        let provider = |ttl_limit| Limits { ttl_limit, ..limits(Side::Provider, Concession::Linear, 5, 2) };
        let asked = Proposal {
            price_per_day: Amount::from_units(6),
            provider_stake: Amount::from_units(20),
            deadline: Millis(4_500),
            ttl: Millis(1_000),
            days: 30,
        };
        assert_eq!(provider(Millis(1_000)).answer(0, &asked), Answer::Accept { proposal: asked });
        let longer = Proposal { ttl: Millis(3_000), ..asked };
        assert_eq!(provider(Millis(3_000)).answer(0, &asked), Answer::Counter { proposal: longer }, "at the customer's price");
        assert_eq!(customer.objection(&longer), None);
        assert_eq!(customer.objection(&Proposal { ttl: Millis(3_001), ..asked }), Some("ttl is outside the limits"));
        let too_long = provider(Millis(3_001)).answer(0, &asked);
        assert!(matches!(too_long, Answer::Refuse { .. }), "no such lease keeps the deadline: {too_long:?}");
    }

    #[test]
    fn nobody_goes_beyond_the_limit() {
        let price =
            negotiate(limits(Side::Customer, Concession::Conceder, 1, 4), limits(Side::Provider, Concession::Conceder, 9, 5));
        assert_eq!(price, None);
        let provider = limits(Side::Provider, Concession::Linear, 9, 5);
        let bad = |deadline, days| Proposal {
            price_per_day: Amount::from_units(99),
            provider_stake: Amount::from_units(20),
            deadline,
            ttl: Millis(1_000),
            days,
        };
        assert!(matches!(provider.answer(0, &bad(Millis(1_000), 30)), Answer::Refuse { .. }));
        assert!(matches!(provider.answer(0, &bad(Millis(2_000), 31)), Answer::Refuse { .. }));
        assert!(matches!(provider.answer(0, &bad(Millis(2_000), 30)), Answer::Accept { .. }));
    }
}
