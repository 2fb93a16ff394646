//! The life of a contract: one transition table, state and event to state and effects. Anybody who has the events computes the same state.

use serde::{Deserialize, Serialize};

use crate::ids::Epoch;

/// Where a contract stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case", deny_unknown_fields)]
pub enum State {
    /// One party has signed.
    Proposed,
    /// Both parties have signed the same bytes.
    Agreed,
    /// In force: stakes are held; the provider fetches and prepares.
    Preparing,
    /// In force: the provider is ready, the customer serves.
    Standby {
        activations: u32,
    },
    /// In force: the provider holds custody.
    TakenOver {
        epoch: Epoch,
        activations: u32,
    },
    /// In force: the provider released, the customer is about to hold.
    HandingBack {
        epoch: Epoch,
        activations: u32,
    },
    /// Evidence is collected before the outcome is decided.
    Disputed {
        activations: u32,
    },
    Ended {
        outcome: Outcome,
    },
}

/// How a contract ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The term ran out without a takeover.
    Expired,
    /// Taken back before it was armed, or by both parties.
    Cancelled,
    /// The provider took over as promised.
    Honoured,
    /// The provider did not.
    Breached,
}

/// What happened to a contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case", deny_unknown_fields)]
pub enum Event {
    /// The other party signed too.
    Agreed,
    /// The arbitrator found it right and holds the stakes.
    Validated,
    /// The arbitrator found it wrong, or a stake could not be held.
    Refused,
    /// The provider proved that it is ready.
    Prepared,
    /// The provider presented a custody certificate.
    TakenOver { epoch: Epoch },
    /// The provider released custody to the customer.
    Released { epoch: Epoch },
    /// The customer presented the certificate of the next epoch. `last`: the agreed number of activations is reached.
    HandedBack { epoch: Epoch, last: bool },
    /// `valid_until` has passed.
    TermEnded,
    /// Both parties signed a cancellation (before it is armed, one is enough).
    Cancelled,
    /// The rules found a breach by the provider.
    BreachFound,
    /// A party disputes within its window.
    Disputed,
    /// The dispute was decided.
    DisputeDecided { outcome: Outcome },
}

/// What must be done after a transition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "effect", rename_all = "snake_case")]
pub enum Effect {
    /// Send the text with both signatures to the arbitrator.
    Submit,
    /// Fetch images and configuration, create the containers.
    Prepare,
    /// Members begin to vote for the provider.
    Arm,
    /// Members no longer vote for the provider; it wipes keys after the grace.
    Disarm,
    /// Move stakes and payment according to the outcome.
    Settle { outcome: Outcome },
}

/// An event that has no place in a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a contract in state {state:?} does not take {event:?}")]
pub struct Rejected {
    pub state: State,
    pub event: Event,
}

fn ended(outcome: Outcome) -> (State, Vec<Effect>) {
    (State::Ended { outcome }, vec![Effect::Disarm, Effect::Settle { outcome }])
}

/// A term that ends after takeovers was honoured; without any it just expired.
const fn outcome_of_term(activations: u32) -> Outcome {
    if activations > 0 { Outcome::Honoured } else { Outcome::Expired }
}

/// The transition table.
///
/// # Errors
/// [`Rejected`] if the event has no place in the state, or carries an epoch that does not follow.
pub fn apply(state: State, event: Event) -> Result<(State, Vec<Effect>), Rejected> {
    use {Effect as Do, Event as E, State as S};
    let rejected = Err(Rejected { state, event });
    let next = match state {
        S::Proposed => match event {
            E::Agreed => (S::Agreed, vec![Do::Submit]),
            E::Cancelled | E::Refused | E::TermEnded => (S::Ended { outcome: Outcome::Cancelled }, vec![]),
            _ => return rejected,
        },
        S::Agreed => match event {
            E::Validated => (S::Preparing, vec![Do::Prepare]),
            E::Cancelled | E::Refused | E::TermEnded => (S::Ended { outcome: Outcome::Cancelled }, vec![]),
            _ => return rejected,
        },
        S::Preparing => match event {
            E::Prepared => (S::Standby { activations: 0 }, vec![Do::Arm]),
            E::Cancelled => ended(Outcome::Cancelled),
            E::TermEnded | E::BreachFound => ended(Outcome::Breached), // paid for a readiness that never came
            E::Disputed => (S::Disputed { activations: 0 }, vec![]),
            _ => return rejected,
        },
        S::Standby { activations } => match event {
            E::TakenOver { epoch } => (S::TakenOver { epoch, activations: activations.saturating_add(1) }, vec![]),
            E::TermEnded => ended(outcome_of_term(activations)),
            E::Cancelled => ended(Outcome::Cancelled),
            E::BreachFound => ended(Outcome::Breached),
            E::Disputed => (S::Disputed { activations }, vec![]),
            _ => return rejected,
        },
        S::TakenOver { epoch, activations } => match event {
            E::Released { epoch: released } if released == epoch => (S::HandingBack { epoch, activations }, vec![]),
            // The customer may come back without a release that anybody saw, e.g. if the provider died; the higher epoch says so.
            E::HandedBack { epoch: next, last } if next > epoch => handed_back(activations, last),
            // The provider lost its majority and won the next epoch itself: the same activation goes on.
            E::TakenOver { epoch: next } if next > epoch => (S::TakenOver { epoch: next, activations }, vec![]),
            E::TermEnded => ended(outcome_of_term(activations)),
            E::BreachFound => ended(Outcome::Breached),
            E::Disputed => (S::Disputed { activations }, vec![]),
            _ => return rejected,
        },
        S::HandingBack { epoch, activations } => match event {
            E::HandedBack { epoch: next, last } if next > epoch => handed_back(activations, last),
            // The customer did not claim in time and the provider took custody again: the same activation goes on.
            E::TakenOver { epoch: next } if next > epoch => (S::TakenOver { epoch: next, activations }, vec![]),
            E::TermEnded => ended(outcome_of_term(activations)),
            E::BreachFound => ended(Outcome::Breached),
            E::Disputed => (S::Disputed { activations }, vec![]),
            _ => return rejected,
        },
        S::Disputed { .. } => match event {
            E::DisputeDecided { outcome } => ended(outcome),
            _ => return rejected,
        },
        S::Ended { .. } => return rejected,
    };
    Ok(next)
}

fn handed_back(activations: u32, last: bool) -> (State, Vec<Effect>) {
    if last { ended(Outcome::Honoured) } else { (State::Standby { activations }, vec![]) }
}

impl State {
    /// Stakes are held and members vote.
    #[must_use]
    pub const fn is_in_force(self) -> bool {
        match self {
            Self::Preparing
            | Self::Standby { .. }
            | Self::TakenOver { .. }
            | Self::HandingBack { .. }
            | Self::Disputed { .. } => true,
            Self::Proposed | Self::Agreed | Self::Ended { .. } => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATES: [State; 8] = [
        State::Proposed,
        State::Agreed,
        State::Preparing,
        State::Standby { activations: 0 },
        State::TakenOver { epoch: Epoch(2), activations: 1 },
        State::HandingBack { epoch: Epoch(2), activations: 1 },
        State::Disputed { activations: 1 },
        State::Ended { outcome: Outcome::Honoured },
    ];
    const EVENTS: [Event; 13] = [
        Event::Agreed,
        Event::Validated,
        Event::Refused,
        Event::Prepared,
        Event::TakenOver { epoch: Epoch(3) },
        Event::Released { epoch: Epoch(2) },
        Event::HandedBack { epoch: Epoch(3), last: true },
        Event::HandedBack { epoch: Epoch(3), last: false },
        Event::TermEnded,
        Event::Cancelled,
        Event::BreachFound,
        Event::Disputed,
        Event::DisputeDecided { outcome: Outcome::Breached },
    ];

    fn table() -> String {
        let mut page = String::from(
            "# Contract states\n\nRendered from the transition table in `contracts/src/contract/life.rs`; a pair that is not listed is rejected.\n\n| state | event | next state | effects |\n|---|---|---|---|\n",
        );
        for state in STATES {
            for event in EVENTS {
                if let Ok((next, effects)) = apply(state, event) {
                    let effects: Vec<String> = effects.iter().map(|e| format!("{e:?}")).collect();
                    page.push_str(&format!("| {state:?} | {event:?} | {next:?} | {} |\n", effects.join(", ")));
                }
            }
        }
        page
    }

    /// The golden page; `UPDATE_GOLDEN=1` writes it anew.
    #[test]
    fn the_page_in_the_docs_is_the_table() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/contract-states.md");
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(path, table()).expect("docs folder");
        }
        assert_eq!(std::fs::read_to_string(path).expect("golden page"), table());
    }

    #[test]
    fn money_moves_exactly_once_and_only_after_stakes_were_held() {
        for state in STATES {
            for event in EVENTS {
                if let Ok((next, effects)) = apply(state, event) {
                    let settles = effects.iter().filter(|e| matches!(e, Effect::Settle { .. })).count();
                    let leaves_force = state.is_in_force() && !next.is_in_force();
                    assert_eq!(settles, usize::from(leaves_force), "{state:?} {event:?}");
                }
            }
        }
    }

    #[test]
    fn epochs_must_follow() {
        let taken = State::TakenOver { epoch: Epoch(4), activations: 1 };
        assert!(apply(taken, Event::Released { epoch: Epoch(3) }).is_err());
        assert!(apply(taken, Event::HandedBack { epoch: Epoch(4), last: false }).is_err());
        assert!(apply(taken, Event::HandedBack { epoch: Epoch(5), last: false }).is_ok());
    }
}
