//! Who gets what: the transfers that hold the money of a contract when it comes into force, and those that settle it at its end. Pure.
//!
//! | outcome | payment | customer's stake | provider's stake |
//! |---|---|---|---|
//! | honoured, expired | premium + served hours beyond the included ones (whole hours, rounded **down**, capped) to the provider, the rest back | back | back |
//! | breached | all back to the customer | back | to the customer |
//! | cancelled | premium per day for each day *started* in standby (none before) to the provider, the rest back | back | back |
//!
//! Between two nodes of one owner no money is held and none moves.

use crate::contract::text::Contract;
use crate::contract::{Money, Outcome};
use crate::ids::ContractId;
use crate::ledger::{Holder, Movement, Operation, Transfer, TransferId};
use crate::money::Amount;
use crate::time::Millis;

const HOUR: Millis = Millis::from_secs(3_600);

/// The three holds of a contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holds {
    /// Premium and all served hours that can be owed, customer to provider.
    pub payment: TransferId,
    /// Customer's stake; by today's rules it always goes back.
    pub customer_stake: TransferId,
    /// Provider's stake, provider to customer.
    pub provider_stake: TransferId,
}

impl Holds {
    #[must_use]
    pub fn of(contract: ContractId) -> Self {
        let id = |purpose| TransferId::derive(contract.into(), purpose);
        Self { payment: id("hold payment"), customer_stake: id("hold customer stake"), provider_stake: id("hold provider stake") }
    }
}

/// The transfers that set aside both stakes and the most that the customer can owe; to be applied all or none.
///
/// # Panics
/// If the text was not validated: then the payment may be too large.
#[must_use]
pub fn reserve(id: ContractId, contract: &Contract) -> Vec<Transfer> {
    let (customer, provider) = (contract.customer.owner, contract.provider.owner);
    if customer == provider {
        return Vec::new();
    }
    let money = &contract.money;
    let payment = money.payment_max().expect("a validated contract's payment fits");
    let holds = Holds::of(id);
    let hold = |transfer, debit, credit, amount| {
        let movement =
            Movement { debit: Holder::Owner(debit), credit: Holder::Owner(credit), currency: money.currency.clone(), amount };
        Transfer { id: transfer, operation: Operation::Pending { movement, expires_at: None }, because: id.into() }
    };
    vec![
        hold(holds.payment, customer, provider, payment),
        hold(holds.customer_stake, customer, provider, money.customer_stake),
        hold(holds.provider_stake, provider, customer, money.provider_stake),
    ]
}

/// What the provider has earned, at most what was held.
#[must_use]
pub fn earned(money: &Money, outcome: Outcome, served: Millis, standby_days: u32) -> Amount {
    let held = money.payment_max().unwrap_or_default();
    let sum = match outcome {
        Outcome::Honoured | Outcome::Expired => {
            let hours =
                (served.0 / HOUR.0).saturating_sub(u64::from(money.included_hours)).min(u64::from(money.served_hours_max));
            let beyond = money.served_hour_cost.scaled_down(hours, 1);
            money.premium().zip(beyond).and_then(|(premium, beyond)| premium.checked_add(beyond))
        }
        Outcome::Cancelled => money.premium_per_day.scaled_down(u64::from(standby_days.min(money.days)), 1),
        Outcome::Breached => Some(Amount::ZERO),
    };
    sum.unwrap_or(held).min(held)
}

/// The transfers that end a contract: every hold is resolved, once.
#[must_use]
pub fn settle(id: ContractId, contract: &Contract, outcome: Outcome, served: Millis, standby_days: u32) -> Vec<Transfer> {
    if contract.customer.owner == contract.provider.owner {
        return Vec::new();
    }
    let holds = Holds::of(id);
    let step = |purpose, operation| Transfer { id: TransferId::derive(id.into(), purpose), operation, because: id.into() };
    let earned = earned(&contract.money, outcome, served, standby_days);
    let provider_stake = match outcome {
        Outcome::Breached => Operation::Post { pending: holds.provider_stake, amount: None },
        Outcome::Honoured | Outcome::Expired | Outcome::Cancelled => Operation::Void { pending: holds.provider_stake },
    };
    vec![
        step("settle payment", Operation::Post { pending: holds.payment, amount: Some(earned) }),
        step("settle customer stake", Operation::Void { pending: holds.customer_stake }),
        step("settle provider stake", provider_stake),
    ]
}

#[cfg(test)]
#[path = "settlement_tests.rs"]
mod tests;
