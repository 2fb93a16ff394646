//! Beta reputation with forgetting (A. Jøsang, R. Ismail: *The Beta Reputation System*, 2002), computed from verdicts in integers, so that
//! anybody who has the verdicts computes the same score.
//!
//! A provider's score is (r + 1) / (r + s + 2): r is what speaks for it, s what speaks against. A verdict weighs by its stake-days (much at
//! stake for long says more, with diminishing returns), fades with age, and all verdicts with one counterparty together weigh no more
//! than [`COUNTERPARTY_WEIGHT_MAX`]: a thousand small contracts with a friend are one friend. A contract with oneself weighs nothing.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::contract::Outcome;
use crate::evidence::Verdict;
use crate::ids::OwnerId;
use crate::time::WallTime;

/// One, in the fixed point of weights (millionths).
pub const ONE: u64 = 1_000_000;
/// What remains of a weight after one day: half after 180 days.
pub const KEPT_PER_DAY: u64 = 996_157;
/// Older verdicts weigh nothing.
pub const AGE_DAYS_MAX: u64 = 3_650;
/// All verdicts with one counterparty weigh at most three of the heaviest.
pub const COUNTERPARTY_WEIGHT_MAX: u64 = 3 * ONE;
/// Stake-days (micro-units times days) at which a verdict weighs one half: ten units for one day.
pub const STAKE_DAYS_HALF: u128 = 10_000_000;

const DAY_MS: u64 = 86_400_000;

/// A provider's public score; it comes with the evidence that it rests on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reputation {
    pub owner: OwnerId,
    /// 500 for somebody of whom nothing is known.
    pub score_permille: u16,
    /// Verdicts that weigh something.
    pub verdicts: u32,
    /// Different owners on the other side of them.
    pub counterparties: u32,
    /// Weight that speaks for and against, in millionths of a verdict.
    pub positive_millionths: u64,
    pub negative_millionths: u64,
}

/// What remains of a weight after so many days.
fn kept(days: u64) -> u64 {
    if days > AGE_DAYS_MAX {
        return 0;
    }
    (0..days).fold(ONE, |weight, _| weight * KEPT_PER_DAY / ONE)
}

/// What a verdict says of its provider: weight for and against. Cancelled contracts say nothing.
fn weigh(verdict: &Verdict, now: WallTime) -> (u64, u64) {
    let days = u128::from(verdict.judged_at.since(verdict.in_force_since).0 / DAY_MS + 1);
    let stake_days = u128::from(verdict.provider_stake.micros()) * days;
    let weight = u64::try_from(u128::from(ONE) * stake_days / (stake_days + STAKE_DAYS_HALF)).unwrap_or(ONE);
    let weight = weight * kept(now.since(verdict.judged_at).0 / DAY_MS) / ONE;
    match verdict.outcome {
        Outcome::Honoured | Outcome::Expired => (weight, 0),
        Outcome::Breached => (0, weight),
        Outcome::Cancelled => (0, 0),
    }
}

/// The score of `owner` as a provider at `now`. Verdicts about others are left out; each verdict is to be given once.
#[must_use]
pub fn compute(owner: OwnerId, verdicts: &[Verdict], now: WallTime) -> Reputation {
    let mut by_counterparty: BTreeMap<OwnerId, (u64, u64)> = BTreeMap::new();
    let mut counted = 0;
    for verdict in verdicts.iter().filter(|v| v.provider.owner == owner && v.customer.owner != owner) {
        let (positive, negative) = weigh(verdict, now);
        if positive + negative > 0 {
            let sum = by_counterparty.entry(verdict.customer.owner).or_default();
            *sum = (sum.0.saturating_add(positive), sum.1.saturating_add(negative));
            counted += 1;
        }
    }
    let (mut r, mut s) = (0, 0);
    for (positive, negative) in by_counterparty.values() {
        let sum = positive.saturating_add(*negative);
        let scale = |part: u64| {
            let capped = u128::from(part) * u128::from(sum.min(COUNTERPARTY_WEIGHT_MAX)) / u128::from(sum.max(1));
            u64::try_from(capped).unwrap_or(COUNTERPARTY_WEIGHT_MAX)
        };
        r += scale(*positive);
        s += scale(*negative);
    }
    let score = 1_000 * u128::from(r + ONE) / u128::from(r + s + 2 * ONE);
    Reputation {
        owner,
        score_permille: u16::try_from(score).unwrap_or(1_000),
        verdicts: counted,
        counterparties: u32::try_from(by_counterparty.len()).unwrap_or(u32::MAX),
        positive_millionths: r,
        negative_millionths: s,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::text::Party;
    use crate::evidence::Rule;
    use crate::ids::{ContractId, NodeId};
    use crate::money::{Amount, Currency};
    use crate::time::Millis;

    const ME: OwnerId = OwnerId::from_bytes([1; 32]);
    const NOW: WallTime = WallTime(10_000 * DAY_MS);

    fn verdict(customer: u8, outcome: Outcome, stake_units: u32, days_ago: u64) -> Verdict {
        let party = |owner| Party { node: NodeId::from_bytes([9; 32]), owner };
        let judged_at = NOW - Millis(days_ago * DAY_MS);
        Verdict {
            contract: ContractId::from_bytes([0; 32]),
            arbitrator: NodeId::from_bytes([7; 32]),
            customer: party(OwnerId::from_bytes([customer; 32])),
            provider: party(ME),
            outcome,
            rule: Rule::TermServed,
            inputs: vec![],
            in_force_since: judged_at - Millis(10 * DAY_MS),
            judged_at,
            activations: 1,
            served: Millis(1),
            standby_days: 10,
            currency: Currency::new("EUR").expect("currency"),
            provider_stake: Amount::from_units(stake_units),
        }
    }

    fn score(verdicts: &[Verdict]) -> u16 {
        compute(ME, verdicts, NOW).score_permille
    }

    #[test]
    fn nothing_known_is_one_half_and_deeds_move_it() {
        assert_eq!(score(&[]), 500);
        let good = verdict(2, Outcome::Honoured, 100, 0);
        let bad = verdict(2, Outcome::Breached, 100, 0);
        assert!(score(std::slice::from_ref(&good)) > 600 && score(std::slice::from_ref(&bad)) < 400);
        assert_eq!(score(&[good, bad]), 500);
        assert_eq!(score(&[verdict(2, Outcome::Cancelled, 100, 0)]), 500);
    }

    #[test]
    fn distinct_counterparties_count_more_than_many_contracts_with_one() {
        let one_friend: Vec<_> = (0..200).map(|_| verdict(2, Outcome::Honoured, 1_000, 0)).collect();
        let strangers: Vec<_> = (2..12).map(|customer| verdict(customer, Outcome::Honoured, 1_000, 0)).collect();
        assert!(score(&one_friend) <= 800 && score(&strangers) > 900, "{} {}", score(&one_friend), score(&strangers));
        let wash: Vec<_> = (0..50).map(|_| verdict(1, Outcome::Honoured, 1_000, 0)).collect();
        assert_eq!(compute(ME, &wash, NOW), compute(ME, &[], NOW));
    }

    #[test]
    fn old_and_small_verdicts_weigh_less() {
        let of = |stake, age| compute(ME, &[verdict(2, Outcome::Honoured, stake, age)], NOW).positive_millionths;
        assert!(of(100, 0) > 2 * of(100, 200) && of(100, 200) > 0 && of(100, 4_000) == 0);
        assert!(of(100, 0) > of(1, 0) && of(0, 0) == 0);
        assert!((490_000..=510_000).contains(&(of(1_000, 180) * ONE / of(1_000, 0))), "half after 180 days");
    }
}
