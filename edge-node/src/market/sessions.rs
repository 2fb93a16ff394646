//! The provider's side of negotiations: one session per match, in memory, bounded in number, rounds and time. Pure.

use std::collections::BTreeMap;

use contracts::ids::{NodeId, StatementId};
use contracts::time::WallTime;

use crate::dmu::negotiation::{Answer, Limits, Proposal};

/// Negotiations at a time; beyond that the one that ends first makes room.
pub const SESSIONS_MAX: usize = 256;
/// A customer that lost its state may start a negotiation anew so often.
pub const RESTARTS_MAX: u32 = 8;

/// Why a proposal is not answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("the match is over")]
    Over,
    #[error("another node negotiates under this match")]
    OtherCustomer,
    #[error("round {wanted} is next")]
    Round { wanted: u32 },
    #[error("this negotiation was started too often")]
    TooManyRestarts,
    #[error("nothing was agreed under this match")]
    NothingAgreed,
}

#[derive(Debug, Clone)]
struct Session {
    customer: NodeId,
    held_until: WallTime,
    restarts: u32,
    next_round: u32,
    last: Option<(u32, Proposal, Answer)>,
    agreed: Option<Proposal>,
}

/// What came of a proposal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    pub answer: Answer,
    /// This very proposal closed the negotiation.
    pub just_agreed: bool,
}

/// All negotiations of a provider.
#[derive(Debug, Default)]
pub struct Sessions(BTreeMap<StatementId, Session>);

impl Sessions {
    fn drop_ended(&mut self, now: WallTime) {
        self.0.retain(|_, session| session.held_until > now);
        while self.0.len() >= SESSIONS_MAX {
            let first = self.0.iter().min_by_key(|(id, session)| (session.held_until, **id)).map(|(id, _)| *id);
            match first {
                Some(id) => self.0.remove(&id),
                None => return,
            };
        }
    }

    /// Answers a proposal. The same round with the same proposal gets the same answer; what this side proposed itself is always taken.
    ///
    /// # Errors
    /// [`Refusal`]; nothing changed.
    pub fn answer(
        &mut self,
        limits: &Limits,
        (matched, customer, held_until): (StatementId, NodeId, WallTime),
        (round, proposal): (u32, &Proposal),
        now: WallTime,
    ) -> Result<Outcome, Refusal> {
        if held_until <= now {
            return Err(Refusal::Over);
        }
        if !self.0.contains_key(&matched) {
            self.drop_ended(now);
        }
        let fresh = Session { customer, held_until, restarts: 0, next_round: 0, last: None, agreed: None };
        let session = self.0.entry(matched).or_insert(fresh);
        if session.customer != customer {
            return Err(Refusal::OtherCustomer);
        }
        if let Some((_, _, answer)) = session.last.as_ref().filter(|(r, p, _)| (*r, p) == (round, proposal)) {
            return Ok(Outcome { answer: answer.clone(), just_agreed: false });
        }
        if round == 0 && session.next_round > 0 {
            if session.restarts == RESTARTS_MAX {
                return Err(Refusal::TooManyRestarts);
            }
            let restarts = session.restarts + 1;
            *session = Session { customer, held_until, restarts, next_round: 0, last: None, agreed: None };
        }
        if round != session.next_round {
            return Err(Refusal::Round { wanted: session.next_round });
        }
        let own_words = session.last.as_ref().is_some_and(|(_, _, answer)| *answer == Answer::Counter { proposal: *proposal });
        let answer = if own_words { Answer::Accept { proposal: *proposal } } else { limits.answer(round, proposal) };
        session.agreed = match &answer {
            Answer::Accept { proposal } => Some(*proposal),
            Answer::Counter { .. } | Answer::Refuse { .. } => None,
        };
        session.next_round = round.saturating_add(1);
        session.last = Some((round, *proposal, answer.clone()));
        Ok(Outcome { answer, just_agreed: session.agreed.is_some() })
    }

    /// What was agreed with `customer` under a match.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn agreed(&self, matched: StatementId, customer: NodeId, now: WallTime) -> Result<Proposal, Refusal> {
        let session = self.0.get(&matched).filter(|session| session.held_until > now).ok_or(Refusal::NothingAgreed)?;
        if session.customer == customer { session.agreed.ok_or(Refusal::NothingAgreed) } else { Err(Refusal::OtherCustomer) }
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use contracts::money::Amount;
    use contracts::time::Millis;

    use super::*;
    use crate::dmu::negotiation::{Concession, Side};

    const NOW: WallTime = WallTime(1_000);
    const MATCH: StatementId = StatementId::from_bytes([1; 32]);
    const CUSTOMER: NodeId = NodeId::from_bytes([2; 32]);
    const STRANGER: NodeId = NodeId::from_bytes([3; 32]);
    const HELD: (StatementId, NodeId, WallTime) = (MATCH, CUSTOMER, WallTime(60_000));

    fn limits() -> Limits {
        Limits {
            side: Side::Provider,
            concession: Concession::Linear,
            rounds_max: 3,
            price_open: Amount::from_units(9),
            price_limit: Amount::from_units(5),
            stake_limit: Amount::from_units(50),
            ttl_limit: Millis::ZERO,
            deadline_limit: Millis(1_500),
            days_max: 30,
        }
    }

    fn proposal(price: u32) -> Proposal {
        Proposal {
            price_per_day: Amount::from_units(price),
            provider_stake: Amount::from_units(20),
            deadline: Millis(2_000),
            ttl: Millis(1_000),
            days: 30,
        }
    }

    #[test]
    fn rounds_go_up_by_one_repeats_get_the_same_answer_and_own_words_are_taken() {
        let (mut sessions, limits) = (Sessions::default(), limits());
        let first = sessions.answer(&limits, HELD, (0, &proposal(3)), NOW).expect("answered");
        assert_eq!(first.answer, Answer::Counter { proposal: proposal(9) });
        assert_eq!(sessions.answer(&limits, HELD, (0, &proposal(3)), NOW), Ok(first));
        assert_eq!(
            sessions.answer(&limits, HELD, (2, &proposal(4)), NOW),
            Err(Refusal::Round { wanted: 1 }),
            "no jump to the last round"
        );
        assert_eq!(sessions.agreed(MATCH, CUSTOMER, NOW), Err(Refusal::NothingAgreed));
        assert!(matches!(
            sessions.answer(&limits, HELD, (1, &proposal(4)), NOW),
            Ok(Outcome { answer: Answer::Counter { .. }, .. })
        ));
        let Ok(Outcome { answer: Answer::Counter { proposal: offered }, .. }) =
            sessions.answer(&limits, HELD, (2, &proposal(4)), NOW)
        else {
            panic!("a counter-proposal in the last round");
        };
        let taken = sessions.answer(&limits, HELD, (3, &offered), NOW).expect("answered");
        assert_eq!(
            taken,
            Outcome { answer: Answer::Accept { proposal: offered }, just_agreed: true },
            "beyond the last round its own words still hold"
        );
        assert_eq!(sessions.agreed(MATCH, CUSTOMER, NOW), Ok(offered));
        assert!(!sessions.answer(&limits, HELD, (3, &offered), NOW).expect("answered").just_agreed);
    }

    #[test]
    fn strangers_ended_matches_and_endless_restarts_are_refused() {
        let (mut sessions, limits) = (Sessions::default(), limits());
        sessions.answer(&limits, HELD, (0, &proposal(9)), NOW).expect("accepted at once");
        assert_eq!(sessions.answer(&limits, (MATCH, STRANGER, HELD.2), (0, &proposal(9)), NOW), Err(Refusal::OtherCustomer));
        assert_eq!(sessions.agreed(MATCH, STRANGER, NOW), Err(Refusal::OtherCustomer));
        assert_eq!(sessions.answer(&limits, HELD, (1, &proposal(9)), HELD.2), Err(Refusal::Over));
        assert_eq!(sessions.agreed(MATCH, CUSTOMER, HELD.2), Err(Refusal::NothingAgreed));
        let mut restarts = 0;
        let refused = loop {
            restarts += 1;
            let price = 1 + restarts % 2;
            if let Err(refusal) = sessions.answer(&limits, HELD, (0, &proposal(price)), NOW) {
                break refusal;
            }
        };
        assert_eq!((restarts, refused), (RESTARTS_MAX + 1, Refusal::TooManyRestarts));
    }

    #[test]
    fn there_are_never_more_than_the_bound() {
        let (mut sessions, limits) = (Sessions::default(), limits());
        for n in 0..=SESSIONS_MAX {
            let id = StatementId::from_bytes(
                [u8::try_from(n % 256).expect("a byte"), u8::try_from(n / 256).expect("a byte")]
                    .repeat(16)
                    .try_into()
                    .expect("32"),
            );
            let held_until = NOW + Millis(1 + n as u64);
            sessions.answer(&limits, (id, CUSTOMER, held_until), (0, &proposal(9)), NOW).expect("answered");
        }
        assert_eq!(sessions.len(), SESSIONS_MAX);
    }
}
