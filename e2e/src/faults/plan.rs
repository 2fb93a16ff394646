//! Which faults strike when: everything that chance decides, from one seed.

use clap::ValueEnum as _;

pub use motes::seed::Sequence as Dice;

use super::kind::Kind;

/// Messages of a takeover and a hand-back after which a fault may strike: who says them, and what.
pub const MESSAGES: [(&str, &str); 8] = [
    ("patras", "custody_gained"),
    ("patras", "taken_over"),
    ("patras", "replay_settled"),
    ("patras", "customer_returned"),
    ("rio", "level"),
    ("patras", "released"),
    ("rio", "custody_gained"),
    ("rio", "handed_back"),
];

/// When a fault strikes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// Rio serves; so many milliseconds later.
    Steady { delay_ms: u64 },
    /// In a handover, so many milliseconds after this message ([`MESSAGES`]).
    After { message: usize, delay_ms: u64 },
}

impl std::fmt::Display for Moment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Steady { delay_ms } => write!(f, "steady +{delay_ms} ms"),
            Self::After { message, delay_ms } => {
                let (who, what) = MESSAGES[message % MESSAGES.len()];
                write!(f, "{who} {what} +{delay_ms} ms")
            }
        }
    }
}

/// One fault to come.
#[derive(Debug, Clone)]
pub struct Planned {
    pub kind: Kind,
    pub moment: Moment,
    /// For what chance decides within the fault.
    pub dice: Dice,
}

/// `count` faults of these kinds, each as often as any other (give or take one), in random order; the n-th is the same however many follow.
pub fn plan(seed: u64, count: usize, kinds: &[Kind], ttl_ms: u64) -> Vec<Planned> {
    let mut planned = Vec::with_capacity(count);
    let mut dice = Dice::new(seed);
    let mut hand: Vec<Kind> = Vec::new();
    while planned.len() < count {
        if hand.is_empty() {
            if kinds.is_empty() {
                break;
            }
            hand = kinds.to_vec();
        }
        let drawn = dice.below(hand.len() as u64);
        let kind = hand.swap_remove(usize::try_from(drawn).unwrap_or(0));
        let in_handover = dice.below(3) < kind.thirds_in_handover() && kind.script().in_handover;
        let moment = if in_handover {
            let message = usize::try_from(dice.below(MESSAGES.len() as u64)).unwrap_or(0);
            // Half of them strike at once, when the next message is on its way.
            let delay_ms = if dice.below(2) == 0 { dice.below(5) } else { dice.below(300) };
            Moment::After { message, delay_ms }
        } else {
            Moment::Steady { delay_ms: dice.below(ttl_ms) }
        };
        planned.push(Planned { kind, moment, dice: Dice::new(dice.draw()) });
    }
    planned
}

/// Every kind, or those named.
pub fn kinds(only: &[Kind]) -> Vec<Kind> {
    if only.is_empty() { Kind::value_variants().to_vec() } else { only.to_vec() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn plans_of_equal_seeds_are_equal_and_prefixes_of_longer_ones() {
        let all = kinds(&[]);
        let text = |seed, count| format!("{:?}", plan(seed, count, &all, 1_000));
        assert_eq!(text(7, 50), text(7, 50));
        assert_ne!(text(7, 50), text(8, 50));
        let (short, long) = (plan(7, 20, &all, 1_000), plan(7, 90, &all, 1_000));
        assert_eq!(format!("{short:?}"), format!("{:?}", &long[..20]));
    }

    #[test]
    fn every_kind_has_its_turn() {
        let all = kinds(&[]);
        let mut counts: BTreeMap<Kind, usize> = BTreeMap::new();
        for planned in plan(1, all.len() * 3, &all, 1_000) {
            *counts.entry(planned.kind).or_default() += 1;
        }
        assert!(all.iter().all(|kind| counts.get(kind) == Some(&3)), "{counts:?}");
    }
}
