use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use super::*;

fn currency() -> Currency {
    Currency::new("EUR").expect("a currency")
}

fn owner(n: u8) -> Holder {
    Holder::Owner(OwnerId::from_bytes([n; 32]))
}

fn micros(n: u64) -> Amount {
    Amount::from_micros(n).expect("small")
}

fn id(n: u64) -> TransferId {
    TransferId::derive(StatementId::from_bytes([0; 32]), &n.to_string())
}

fn movement(debit: Holder, credit: Holder, amount: u64) -> Movement {
    Movement { debit, credit, currency: currency(), amount: micros(amount) }
}

fn transfer(n: u64, operation: Operation) -> Transfer {
    Transfer { id: id(n), operation, because: StatementId::from_bytes([1; 32]) }
}

fn immediate(n: u64, debit: Holder, credit: Holder, amount: u64) -> Transfer {
    transfer(n, Operation::Immediate { movement: movement(debit, credit, amount) })
}

fn pending(n: u64, debit: Holder, credit: Holder, amount: u64, expires_at: Option<WallTime>) -> Transfer {
    transfer(n, Operation::Pending { movement: movement(debit, credit, amount), expires_at })
}

const NOW: WallTime = WallTime(1_000);

fn funded(amount: u64) -> Ledger {
    let mut ledger = Ledger::default();
    apply(&mut ledger, &immediate(0, Holder::External, owner(1), amount), NOW).expect("deposit");
    ledger
}

fn balances(ledger: &Ledger, n: u8) -> (u64, u64) {
    let account = ledger.account(owner(n), &currency());
    (account.available().micros(), account.reserved().micros())
}

#[test]
fn pending_money_is_set_aside_and_resolved_once() {
    let resolve: [(Operation, (u64, u64), u64); 4] = [
        (Operation::Post { pending: id(1), amount: None }, (40, 0), 60),
        (Operation::Post { pending: id(1), amount: Some(micros(25)) }, (75, 0), 25),
        (Operation::Void { pending: id(1) }, (100, 0), 0),
        (Operation::Post { pending: id(1), amount: Some(micros(0)) }, (100, 0), 0),
    ];
    for (operation, payer, payee) in resolve {
        let mut ledger = funded(100);
        apply(&mut ledger, &pending(1, owner(1), owner(2), 60, None), NOW).expect("pending");
        assert_eq!(balances(&ledger, 1), (40, 60));
        apply(&mut ledger, &transfer(2, operation.clone()), NOW).expect("resolved");
        assert_eq!((balances(&ledger, 1), balances(&ledger, 2)), (payer, (payee, 0)), "{operation:?}");
        for again in [Operation::Post { pending: id(1), amount: None }, Operation::Void { pending: id(1) }] {
            assert!(matches!(apply(&mut ledger, &transfer(3, again), NOW), Err(Rejected::NotOpen { .. })));
        }
        assert_eq!(ledger.sum_micros(&currency()), 0);
    }
}

#[test]
fn what_must_not_happen_is_refused_and_changes_nothing() {
    let mut ledger = funded(100);
    apply(&mut ledger, &pending(1, owner(1), owner(2), 60, Some(WallTime(2_000))), NOW).expect("pending");
    let before = ledger.clone();
    let later = WallTime(2_000);
    let refused: [(Transfer, WallTime); 9] = [
        (immediate(9, owner(1), owner(2), 41), NOW),
        (immediate(9, owner(2), owner(1), 1), NOW),
        (immediate(9, owner(1), owner(1), 1), NOW),
        (immediate(0, Holder::External, owner(1), 101), NOW),
        (immediate(9, Holder::External, owner(1), SUPPLY_MICROS_MAX - 99), NOW),
        (transfer(9, Operation::Post { pending: id(1), amount: Some(micros(61)) }), NOW),
        (transfer(9, Operation::Post { pending: id(1), amount: None }), later),
        (transfer(9, Operation::Expire { pending: id(1) }), NOW),
        (transfer(9, Operation::Void { pending: id(7) }), NOW),
    ];
    for (transfer, now) in refused {
        assert!(apply(&mut ledger, &transfer, now).is_err(), "{transfer:?}");
        assert_eq!(ledger, before, "{transfer:?}");
    }
    apply(&mut ledger, &transfer(9, Operation::Expire { pending: id(1) }), later).expect("its time has come");
    assert_eq!(balances(&ledger, 1), (100, 0));
}

#[test]
fn the_same_transfer_happens_once_and_a_batch_happens_whole_or_not_at_all() {
    let mut ledger = funded(100);
    assert_eq!(apply(&mut ledger, &immediate(0, Holder::External, owner(1), 100), NOW), Ok(Applied::Before));
    let before = ledger.clone();
    let batch = [pending(1, owner(1), owner(2), 70, None), pending(2, owner(1), owner(3), 70, None)];
    assert!(matches!(apply_all(&mut ledger, &batch, NOW), Err(Rejected::Insufficient { .. })));
    assert_eq!(ledger, before);
    let long = vec![immediate(5, owner(1), owner(2), 1); BATCH_TRANSFERS_MAX + 1];
    assert_eq!(apply_all(&mut ledger, &long, NOW), Err(Rejected::BatchTooLong));
    assert_eq!(balances(&ledger, 1), (100, 0));
}

#[test]
fn transfers_read_back_from_json() {
    for transfer in [
        pending(1, owner(1), Holder::External, 7, Some(NOW)),
        transfer(2, Operation::Post { pending: id(1), amount: Some(micros(3)) }),
    ] {
        let json = serde_json::to_string(&transfer).expect("json");
        assert_eq!(serde_json::from_str::<Transfer>(&json).expect("reads back"), transfer, "{json}");
    }
}

/// Knows the truth another way: from the list of everything that was accepted, it works out each balance anew.
#[derive(Default)]
struct Checker {
    accepted: Vec<Transfer>,
}

impl Checker {
    fn balance(&self, who: Holder) -> (i128, i128) {
        let (mut posted, mut reserved) = (0, 0);
        for line in &self.accepted {
            let (movement, moved) = match &line.operation {
                Operation::Immediate { movement } => (movement, i128::from(movement.amount.micros())),
                Operation::Pending { movement, .. } => {
                    let end = self.accepted.iter().find_map(|other| match &other.operation {
                        Operation::Post { pending, amount } if *pending == line.id => {
                            Some(amount.unwrap_or(movement.amount).micros())
                        }
                        Operation::Void { pending } | Operation::Expire { pending } if *pending == line.id => Some(0),
                        _ => None,
                    });
                    if end.is_none() && movement.debit == who {
                        reserved += i128::from(movement.amount.micros());
                    }
                    (movement, i128::from(end.unwrap_or(0)))
                }
                Operation::Post { .. } | Operation::Void { .. } | Operation::Expire { .. } => continue,
            };
            posted += if movement.credit == who { moved } else { 0 } - if movement.debit == who { moved } else { 0 };
        }
        (posted, reserved)
    }
}

fn random_transfer(random: &mut ChaCha8Rng) -> Transfer {
    let holder = |random: &mut ChaCha8Rng| match random.random_range(0..5) {
        0 => Holder::External,
        n => owner(u8::try_from(n).expect("small")),
    };
    let amount =
        if random.random_range(0..10) == 0 { random.random_range(0..SUPPLY_MICROS_MAX) } else { random.random_range(0..500) };
    let movement = movement(holder(random), holder(random), amount);
    let pending = id(random.random_range(0..60));
    let operation = match random.random_range(0..6) {
        0 | 1 => Operation::Immediate { movement },
        2 | 3 => Operation::Pending {
            movement,
            expires_at: (random.random_range(0..2) == 0).then(|| WallTime(random.random_range(0..200))),
        },
        4 => Operation::Post { pending, amount: (random.random_range(0..2) == 0).then(|| micros(random.random_range(0..500))) },
        _ if random.random_range(0..2) == 0 => Operation::Void { pending },
        _ => Operation::Expire { pending },
    };
    transfer(random.random_range(0..60), operation)
}

#[test]
fn money_is_conserved_through_random_sequences() {
    let mut accepted = 0;
    for seed in 0..300 {
        let (mut random, mut ledger, mut checker) = (ChaCha8Rng::seed_from_u64(seed), Ledger::default(), Checker::default());
        for step in 0..150 {
            let transfer = random_transfer(&mut random);
            match apply(&mut ledger, &transfer, WallTime(step)) {
                Ok(Applied::Now) => checker.accepted.push(transfer),
                Ok(Applied::Before) | Err(_) => {}
            }
            assert_eq!(ledger.sum_micros(&currency()), 0, "seed {seed} step {step}");
        }
        accepted += checker.accepted.len();
        for who in [Holder::External, owner(1), owner(2), owner(3), owner(4)] {
            let account = ledger.account(who, &currency());
            let known = (i128::from(account.posted_micros()), i128::from(account.reserved().micros()));
            assert_eq!(known, checker.balance(who), "seed {seed} {who:?}");
            assert!(who == Holder::External || known.0 >= known.1, "seed {seed}: {who:?} spent more than it has");
        }
    }
    assert!(accepted > 3_000, "the sequences must do something: {accepted}");
}
