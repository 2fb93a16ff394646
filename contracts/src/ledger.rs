//! Money between accounts: double entry in two phases (the model of TigerBeetle).
//!
//! A transfer is immutable and has an id made by whoever asks for it: asked twice it happens once, the same id with other content is an
//! error. Money moves at once ([`Operation::Immediate`]) or is first set aside ([`Operation::Pending`]) and later posted in whole or in
//! part, voided or expired. Deposits come from one external account per currency, whose balance is minus all the money there is: the sum
//! over all accounts is zero, always.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::ids::{OwnerId, StatementId};
use crate::money::{AMOUNT_MICROS_MAX, Amount, Currency};
use crate::time::WallTime;

/// At most this many transfers in one batch.
pub const BATCH_TRANSFERS_MAX: usize = 64;
/// All the money of one currency together is at most this many micro-units, so that no balance can overflow.
pub const SUPPLY_MICROS_MAX: u64 = AMOUNT_MICROS_MAX;

/// The UUIDv5 name space of derived transfer ids (a random UUID fixed for ever).
const TRANSFER_NAMESPACE: Uuid = Uuid::from_u128(0xb0a4_5f1e_77c2_4c39_8d1e_2f90_66ab_c4d5);

/// Names a transfer; made by whoever asks for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TransferId(Uuid);

impl TransferId {
    /// The same for the same statement and purpose on anybody's machine.
    #[must_use]
    pub fn derive(because: StatementId, purpose: &str) -> Self {
        let name = [because.as_bytes().as_slice(), purpose.as_bytes()].concat();
        Self(Uuid::new_v5(&TRANSFER_NAMESPACE, &name))
    }

    #[must_use]
    pub const fn from_uuid(uuid: Uuid) -> Self {
        Self(uuid)
    }

    #[must_use]
    pub const fn as_uuid(&self) -> &Uuid {
        &self.0
    }
}

impl fmt::Display for TransferId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// Who has an account.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "holder", content = "id", rename_all = "snake_case")]
pub enum Holder {
    /// Where deposits come from and withdrawals go: the world outside of this ledger.
    External,
    Owner(OwnerId),
}

/// One account: a holder has one per currency.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct AccountId {
    pub holder: Holder,
    pub currency: Currency,
}

/// What stands on an account, in micro-units.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Account {
    /// Credits minus debits that happened; negative only for [`Holder::External`].
    posted: i64,
    /// Debits set aside by open pending transfers.
    reserved: u64,
}

impl Account {
    /// An account as it was stored; `None` if no ledger can have produced the numbers.
    #[must_use]
    pub fn from_stored(posted: i64, reserved: u64) -> Option<Self> {
        (posted.unsigned_abs() <= SUPPLY_MICROS_MAX && reserved <= SUPPLY_MICROS_MAX).then_some(Self { posted, reserved })
    }

    #[must_use]
    pub const fn posted_micros(self) -> i64 {
        self.posted
    }

    /// Set aside for open pending transfers.
    #[must_use]
    pub fn reserved(self) -> Amount {
        bounded(self.reserved)
    }

    /// What can be spent; zero for the external account.
    #[must_use]
    pub fn available(self) -> Amount {
        bounded(u64::try_from(self.posted).unwrap_or(0).saturating_sub(self.reserved))
    }
}

/// # Panics
/// If the ledger's own bound on all money was broken.
fn bounded(micros: u64) -> Amount {
    Amount::from_micros(micros).expect("balances stay below the supply")
}

/// From whom to whom.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Movement {
    pub debit: Holder,
    pub credit: Holder,
    pub currency: Currency,
    pub amount: Amount,
}

impl Movement {
    fn debit_account(&self) -> AccountId {
        AccountId { holder: self.debit, currency: self.currency.clone() }
    }

    fn credit_account(&self) -> AccountId {
        AccountId { holder: self.credit, currency: self.currency.clone() }
    }
}

/// What a transfer does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "operation", rename_all = "snake_case")]
pub enum Operation {
    /// Moves money at once.
    Immediate { movement: Movement },
    /// Sets money aside on the debit account until it is posted, voided or expired.
    Pending {
        movement: Movement,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        expires_at: Option<WallTime>,
    },
    /// Moves what is pending, in whole or in part; the rest is free again.
    Post {
        pending: TransferId,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        amount: Option<Amount>,
    },
    /// Frees what is pending.
    Void { pending: TransferId },
    /// Frees what is pending because its time has passed.
    Expire { pending: TransferId },
}

/// An immutable line of the ledger.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transfer {
    pub id: TransferId,
    #[serde(flatten)]
    pub operation: Operation,
    /// The statement that is the reason: an order of credit, a contract, a verdict.
    pub because: StatementId,
}

/// What became of a pending transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "phase", rename_all = "snake_case")]
pub enum Phase {
    Open,
    Posted { amount: Amount },
    Voided,
    Expired,
}

/// A pending transfer and what became of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pending {
    pub movement: Movement,
    pub expires_at: Option<WallTime>,
    pub phase: Phase,
}

/// How a transfer was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applied {
    /// Money moved or was set aside or freed.
    Now,
    /// The very same transfer was taken before; nothing moved.
    Before,
}

/// Why a transfer is refused. Nothing moved.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    #[error("transfer id {0} was used with other content")]
    IdTaken(TransferId),
    #[error("debit and credit are one account")]
    SameAccount,
    #[error("{holder:?} has {available} {currency:?} available, {wanted} are wanted")]
    Insufficient { holder: Holder, currency: Currency, available: Amount, wanted: Amount },
    #[error("there would be more money of one currency than this ledger keeps")]
    SupplyExceeded,
    #[error("there is no pending transfer {0}")]
    UnknownPending(TransferId),
    #[error("pending transfer {pending} is not open: {phase:?}")]
    NotOpen { pending: TransferId, phase: Phase },
    #[error("{wanted} is more than the {pending} that are pending")]
    MoreThanPending { pending: Amount, wanted: Amount },
    #[error("the pending transfer expired at {at:?}")]
    PendingExpired { at: WallTime },
    #[error("the pending transfer does not expire before {at:?}")]
    NotYetExpired { at: Option<WallTime> },
    #[error("a batch has at most {BATCH_TRANSFERS_MAX} transfers")]
    BatchTooLong,
}

/// Accounts and transfers. Holds all of them, or just those that the next transfers touch (with those named by id or as pending).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ledger {
    pub accounts: BTreeMap<AccountId, Account>,
    pub transfers: BTreeMap<TransferId, Transfer>,
    pub pendings: BTreeMap<TransferId, Pending>,
}

impl Ledger {
    #[must_use]
    pub fn account(&self, holder: Holder, currency: &Currency) -> Account {
        self.accounts.get(&AccountId { holder, currency: currency.clone() }).copied().unwrap_or_default()
    }

    /// Sum of all balances of a currency: zero if all its accounts are here.
    #[must_use]
    pub fn sum_micros(&self, currency: &Currency) -> i128 {
        self.accounts.iter().filter(|(id, _)| id.currency == *currency).map(|(_, account)| i128::from(account.posted)).sum()
    }

    fn account_mut(&mut self, id: AccountId) -> &mut Account {
        self.accounts.entry(id).or_default()
    }

    /// Whether `movement` can be debited now.
    fn check_funds(&self, movement: &Movement) -> Result<(), Rejected> {
        if movement.debit == movement.credit {
            return Err(Rejected::SameAccount);
        }
        let account = self.account(movement.debit, &movement.currency);
        let wanted = movement.amount;
        match movement.debit {
            Holder::External => {
                let promised = account.posted.unsigned_abs() + account.reserved + wanted.micros();
                if promised > SUPPLY_MICROS_MAX { Err(Rejected::SupplyExceeded) } else { Ok(()) }
            }
            Holder::Owner(_) if account.available() >= wanted => Ok(()),
            Holder::Owner(_) => Err(Rejected::Insufficient {
                holder: movement.debit,
                currency: movement.currency.clone(),
                available: account.available(),
                wanted,
            }),
        }
    }

    fn move_money(&mut self, movement: &Movement, amount: Amount) {
        let micros = i64::try_from(amount.micros()).expect("amounts are below 2^53");
        self.account_mut(movement.debit_account()).posted -= micros;
        self.account_mut(movement.credit_account()).posted += micros;
    }

    /// The pending transfer, if it can be resolved.
    fn open(&self, id: TransferId) -> Result<Pending, Rejected> {
        let pending = self.pendings.get(&id).ok_or(Rejected::UnknownPending(id))?;
        match pending.phase {
            Phase::Open => Ok(pending.clone()),
            phase @ (Phase::Posted { .. } | Phase::Voided | Phase::Expired) => Err(Rejected::NotOpen { pending: id, phase }),
        }
    }

    /// Ends a pending transfer: what was set aside is free again.
    fn resolve(&mut self, id: TransferId, pending: &Pending, phase: Phase) {
        self.account_mut(pending.movement.debit_account()).reserved -= pending.movement.amount.micros();
        self.pendings.insert(id, Pending { phase, ..pending.clone() });
    }

    fn post(&mut self, id: TransferId, amount: Option<Amount>, now: WallTime) -> Result<(), Rejected> {
        let pending = self.open(id)?;
        if let Some(at) = pending.expires_at.filter(|at| *at <= now) {
            return Err(Rejected::PendingExpired { at });
        }
        let amount = amount.unwrap_or(pending.movement.amount);
        if amount > pending.movement.amount {
            return Err(Rejected::MoreThanPending { pending: pending.movement.amount, wanted: amount });
        }
        self.resolve(id, &pending, Phase::Posted { amount });
        self.move_money(&pending.movement, amount);
        Ok(())
    }
}

/// Takes one transfer.
///
/// # Errors
/// [`Rejected`]; then the ledger is as it was.
pub fn apply(ledger: &mut Ledger, transfer: &Transfer, now: WallTime) -> Result<Applied, Rejected> {
    if let Some(known) = ledger.transfers.get(&transfer.id) {
        return if known == transfer { Ok(Applied::Before) } else { Err(Rejected::IdTaken(transfer.id)) };
    }
    match &transfer.operation {
        Operation::Immediate { movement } => {
            ledger.check_funds(movement)?;
            ledger.move_money(movement, movement.amount);
        }
        Operation::Pending { movement, expires_at } => {
            ledger.check_funds(movement)?;
            ledger.account_mut(movement.debit_account()).reserved += movement.amount.micros();
            let pending = Pending { movement: movement.clone(), expires_at: *expires_at, phase: Phase::Open };
            ledger.pendings.insert(transfer.id, pending);
        }
        Operation::Post { pending, amount } => ledger.post(*pending, *amount, now)?,
        Operation::Void { pending } => {
            let open = ledger.open(*pending)?;
            ledger.resolve(*pending, &open, Phase::Voided);
        }
        Operation::Expire { pending } => {
            let open = ledger.open(*pending)?;
            if open.expires_at.is_none_or(|at| at > now) {
                return Err(Rejected::NotYetExpired { at: open.expires_at });
            }
            ledger.resolve(*pending, &open, Phase::Expired);
        }
    }
    ledger.transfers.insert(transfer.id, transfer.clone());
    Ok(Applied::Now)
}

/// Takes all transfers in order, or none.
///
/// # Errors
/// The first [`Rejected`]; then the ledger is as it was.
pub fn apply_all(ledger: &mut Ledger, transfers: &[Transfer], now: WallTime) -> Result<Vec<Applied>, Rejected> {
    if transfers.len() > BATCH_TRANSFERS_MAX {
        return Err(Rejected::BatchTooLong);
    }
    let mut next = ledger.clone();
    let applied = transfers.iter().map(|transfer| apply(&mut next, transfer, now)).collect::<Result<Vec<_>, _>>()?;
    *ledger = next;
    Ok(applied)
}

#[cfg(test)]
#[path = "ledger_tests.rs"]
mod tests;
