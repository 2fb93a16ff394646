//! Orders of credit: an operator's signed word moves money in from outside or out again.

use contracts::envelope::{Envelope, Key, Statement};
use contracts::evidence::{Deposit, Withdraw};
use contracts::ids::{NodeId, OwnerId, StatementId};
use contracts::ledger::{self, Account, Holder, Movement, Operation, Transfer, TransferId};
use contracts::money::{Amount, Currency};
use contracts::time::WallTime;

use super::{Error, Result, Service};
use crate::metrics::Metrics;
use crate::resource::{AccountView, OrderView};
use crate::store::{Changes, EventBody, LedgerChange};

/// What both orders say.
struct Order {
    arbitrator: NodeId,
    operator: Key,
    owner: OwnerId,
    valid_until: WallTime,
    movement: Movement,
}

fn movement(debit: Holder, credit: Holder, currency: Currency, amount: Amount) -> Movement {
    Movement { debit, credit, currency, amount }
}

fn read(envelope: &Envelope) -> Result<(Order, Vec<Key>)> {
    if envelope.payload_type == Withdraw::TYPE {
        let verified = envelope.verify::<Withdraw>()?;
        let it = verified.statement;
        let movement = movement(Holder::Owner(it.owner), Holder::External, it.currency, it.amount);
        let order =
            Order { arbitrator: it.arbitrator, operator: it.operator, owner: it.owner, valid_until: it.valid_until, movement };
        return Ok((order, verified.signers));
    }
    let verified = envelope.verify::<Deposit>()?;
    let it = verified.statement;
    let movement = movement(Holder::External, Holder::Owner(it.owner), it.currency, it.amount);
    let order =
        Order { arbitrator: it.arbitrator, operator: it.operator, owner: it.owner, valid_until: it.valid_until, movement };
    Ok((order, verified.signers))
}

impl Service {
    /// Takes a [`Deposit`] or [`Withdraw`] once; the same order again moves nothing.
    ///
    /// # Errors
    /// [`Error::NotAnOperator`], [`Error::OtherArbitrator`], [`Error::Expired`], [`Error::Money`], or the statement is bad.
    pub async fn take_order(&self, envelope: Envelope) -> Result<OrderView> {
        let (order, signers) = read(&envelope)?;
        if !self.operators.contains(&order.operator) {
            return Err(Error::NotAnOperator(order.operator));
        }
        if !signers.contains(&order.operator) {
            return Err(Error::Statement(contracts::envelope::Error::Missing { key: order.operator }));
        }
        if order.arbitrator != self.me() {
            return Err(Error::OtherArbitrator(order.arbitrator));
        }
        let _guard = self.write.lock().await;
        let id: StatementId = envelope.id();
        let (holder, currency) = (Holder::Owner(order.owner), order.movement.currency.clone());
        let transfer = Transfer {
            id: TransferId::derive(id, "order"),
            operation: Operation::Immediate { movement: order.movement },
            because: id,
        };
        let (mut ledger, version) = self.store.ledger(std::slice::from_ref(&transfer)).await?;
        if self.store.order(id).await?.is_none() {
            let now = self.now();
            if order.valid_until <= now {
                return Err(Error::Expired(order.valid_until));
            }
            let applied = ledger::apply(&mut ledger, &transfer, now).map_err(Error::Money)?;
            let change = LedgerChange::of(&ledger, version, &[transfer], &[applied]);
            let events = vec![EventBody::OrderTaken { owner: order.owner, order: id }];
            self.commit(Changes { at: now, order: Some((id, envelope)), ledger: Some(change), events, ..Changes::default() })
                .await?;
            Metrics::count(&self.metrics.statements, "order");
        }
        Ok(OrderView { id, account: account_view(order.owner, &currency, ledger.account(holder, &currency)) })
    }

    /// An owner's accounts, one per currency that it ever had.
    ///
    /// # Errors
    /// The store failed.
    pub async fn list_accounts(&self, owner: OwnerId) -> Result<Vec<AccountView>> {
        let rows = self.store.accounts(owner).await?;
        Ok(rows.iter().map(|(id, account)| account_view(owner, &id.currency, *account)).collect())
    }
}

fn account_view(owner: OwnerId, currency: &Currency, account: Account) -> AccountView {
    AccountView { owner, currency: currency.clone(), available: account.available(), reserved: account.reserved() }
}
