use super::*;
use crate::ids::{NodeId, OwnerId};
use crate::ledger::{self, Ledger};
use crate::money::Currency;
use crate::test_contract::{contract, money};
use crate::time::WallTime;

const NOW: WallTime = WallTime(5);
const ID: ContractId = ContractId::from_bytes([3; 32]);

fn funded(contract: &Contract, units: u32) -> Ledger {
    let mut ledger = Ledger::default();
    for (n, owner) in [contract.customer.owner, contract.provider.owner].into_iter().enumerate() {
        let movement = Movement {
            debit: Holder::External,
            credit: Holder::Owner(owner),
            currency: contract.money.currency.clone(),
            amount: Amount::from_units(units),
        };
        let id = TransferId::derive(ID.into(), &format!("deposit {n}"));
        ledger::apply(&mut ledger, &Transfer { id, operation: Operation::Immediate { movement }, because: ID.into() }, NOW)
            .expect("deposit");
    }
    ledger
}

fn available(ledger: &Ledger, owner: OwnerId, currency: &Currency) -> u64 {
    let account = ledger.account(Holder::Owner(owner), currency);
    assert!(account.reserved().is_zero(), "nothing stays held");
    account.available().micros()
}

/// Balances of customer and provider in micro-units after reserve and settle, both with 1,000 units before.
fn after(contract: &Contract, outcome: Outcome, served: Millis, standby_days: u32) -> (u64, u64) {
    let mut ledger = funded(contract, 1_000);
    ledger::apply_all(&mut ledger, &reserve(ID, contract), NOW).expect("funds");
    ledger::apply_all(&mut ledger, &settle(ID, contract, outcome, served, standby_days), NOW).expect("settles");
    let currency = &contract.money.currency;
    assert_eq!(ledger.sum_micros(currency), 0);
    (available(&ledger, contract.customer.owner, currency), available(&ledger, contract.provider.owner, currency))
}

#[test]
fn every_outcome_pays_as_the_table_says() {
    let contract = contract(); // 1 a day for 30 days, 2 hours included, 0.5 per hour beyond, at most 10 of them; stakes 30 and 40
    let table = [
        (Outcome::Expired, 0, 30, 970_000_000, 1_030_000_000),
        (Outcome::Honoured, 3, 30, 969_500_000, 1_030_500_000),
        (Outcome::Honoured, 2, 30, 970_000_000, 1_030_000_000),
        (Outcome::Honoured, 5_000, 30, 965_000_000, 1_035_000_000),
        (Outcome::Breached, 3, 30, 1_040_000_000, 960_000_000),
        (Outcome::Cancelled, 0, 0, 1_000_000_000, 1_000_000_000),
        (Outcome::Cancelled, 0, 7, 993_000_000, 1_007_000_000),
        (Outcome::Cancelled, 9, 99, 970_000_000, 1_030_000_000),
    ];
    for (outcome, hours, days, customer, provider) in table {
        assert_eq!(after(&contract, outcome, Millis(hours * HOUR.0), days), (customer, provider), "{outcome:?} {hours} {days}");
    }
    let almost = Millis(4 * HOUR.0 - 1);
    assert_eq!(after(&contract, Outcome::Honoured, almost, 30).1, 1_030_500_000, "an hour that is not whole is not paid");
}

#[test]
fn in_equals_out_for_every_outcome_and_any_terms() {
    let mut seed = 7_u64;
    let mut next = |below: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % below
    };
    for round in 0..2_000 {
        let mut contract = contract();
        contract.money = money(
            next(5_000_000),
            u32::try_from(1 + next(60)).expect("small"),
            next(4),
            next(3_000_000),
            next(50),
            next(400),
            next(400),
        );
        let outcome = [Outcome::Expired, Outcome::Honoured, Outcome::Breached, Outcome::Cancelled]
            [usize::try_from(next(4)).expect("small")];
        let (customer, provider) = after(&contract, outcome, Millis(next(100 * HOUR.0)), u32::try_from(next(90)).expect("small"));
        assert_eq!(customer + provider, 2_000_000_000, "round {round}: {outcome:?} {:?}", contract.money);
    }
}

#[test]
fn between_nodes_of_one_owner_nothing_moves() {
    let mut contract = contract();
    contract.provider.owner = contract.customer.owner;
    contract.witnesses = (5..8).map(|n| NodeId::from_bytes([n; 32])).collect();
    assert!(reserve(ID, &contract).is_empty() && settle(ID, &contract, Outcome::Breached, Millis::ZERO, 1).is_empty());
}
