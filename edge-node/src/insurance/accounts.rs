//! What an insurer heard and answers for.
//!
//! A frame that it heard goes from its disk for a receipt of the customer's store and for nothing else, whatever its peer says: forged
//! progress loses nothing. At most once a minute, if something changed, it signs an account of what it heard, keeps it, and tells the customer:
//! what it then neither serves nor shows convicts it (`contracts::account::audit`).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use contracts::account::{Account, ENTRIES_MAX, Heard, Receipt, SHOWN_MAX, ShownFrames};
use contracts::contract::Contract;
use contracts::envelope::Envelope;
use contracts::ids::{EventId, GroupId, NodeId};
use contracts::time::{Millis, WallTime};
use kit::problem::Problem;
use lora_bridge::mac::session::Mark;

use super::{Error, Parts};
use crate::core::Core;
use crate::edge2edge::messages::{AccountReport, ReceiptAnswer, ReceiptWanted};
use crate::store::AccountRow;

/// Accounts are at least so far apart, unless one is full.
pub const ACCOUNT_INTERVAL: Millis = Millis::from_secs(60);
/// Accounts of one node that are kept: a month of one each minute.
pub const ACCOUNTS_MAX: u32 = 50_000;
/// Accounts and receipts are kept so long.
pub const KEEP: Millis = Millis::from_secs(30 * 86_400);
/// Receipts are asked for every so many ttl, and every so many while the store has nothing new.
const ASK_TTLS: (u64, u64) = (4, 32);
/// But never more seldom.
const ASK_INTERVAL_MAX: Duration = Duration::from_secs(30);
/// Events in one request, and accounts told in one go.
const ASK_MAX: u32 = 512;
const TELL_MAX: u32 = 64;
/// Requests in one pass: what is behind that comes with the next pass.
const PASS_MAX: u32 = 8;
/// Nobody waits longer for a store or a peer that may have died.
const ANSWER_MAX: Duration = Duration::from_secs(2);

/// Runs while the contract is guarded here.
pub async fn run(parts: Parts, contract: Arc<Contract>) {
    let ttl = contract.terms.ttl;
    let mut ttls = ASK_TTLS.0;
    let mut cursor = 0;
    loop {
        tokio::time::sleep((ttl * ttls).to_duration().min(ASK_INTERVAL_MAX)).await;
        ttls = match pass(&parts, &contract, &mut cursor).await {
            Ok(0) => (ttls * 2).min(ASK_TTLS.1),
            Ok(_) => ASK_TTLS.0,
            Err(error) => {
                tracing::debug!(group = %contract.group, %error, "no receipts now; the frames are kept");
                (ttls * 2).min(ASK_TTLS.1)
            }
        };
        if let Err(error) = keep_books(&parts, &contract).await {
            tracing::debug!(group = %contract.group, %error, "the account is told later");
        }
    }
}

/// One account if it is time for one; whatever was not told is told.
async fn keep_books(parts: &Parts, contract: &Contract) -> Result<(), Error> {
    let last = parts.core.store.last_account(contract.group, parts.core.me()).await?;
    if last.is_none_or(|last| parts.core.clock.wall().since(last.made_at) >= ACCOUNT_INTERVAL) {
        while write(&parts.core, contract.group).await? == ENTRIES_MAX {}
    }
    tell(parts, contract).await
}

/// Asks the customer's store for receipts of what is open behind the cursor, and lets go what it has; how many that were.
async fn pass(parts: &Parts, contract: &Contract, cursor: &mut u64) -> Result<usize, Error> {
    let mut found = 0;
    for _ in 0..PASS_MAX {
        let open = parts.core.store.list_unreceipted(contract.group, *cursor, ASK_MAX).await?;
        let is_last = open.len() < ASK_MAX as usize;
        let next = if is_last { 0 } else { open.last().map_or(0, |(seq, _)| *seq) };
        if !open.is_empty() {
            let heard: Vec<Heard> = open.into_iter().map(|(_, heard)| heard).collect();
            found += ask(parts, contract, &heard).await?;
        }
        *cursor = next;
        if is_last {
            break;
        }
    }
    Ok(found)
}

async fn ask(parts: &Parts, contract: &Contract, heard: &[Heard]) -> Result<usize, Error> {
    let (group, store) = (contract.group, contract.readings_to);
    let wanted = ReceiptWanted { events: heard.iter().map(Heard::event).collect() };
    let path = format!("/peer/v1/groups/{group}/receipts");
    let answer: ReceiptAnswer = parts.core.client.within(ANSWER_MAX).post(store, &path, &wanted).await?;
    let Some(envelope) = answer.receipt else { return Ok(0) };
    let receipt = envelope.verify_signed_by::<Receipt>(&[store.into()])?.statement;
    if receipt.group != group || receipt.store != store {
        return Ok(0);
    }
    let received: BTreeSet<EventId> = receipt.events.iter().copied().collect();
    let settled: Vec<&Heard> = heard.iter().filter(|heard| received.contains(&heard.event())).collect();
    let events: Vec<EventId> = settled.iter().map(|heard| heard.event()).collect();
    parts.core.store.put_receipt(group, receipt.at, &envelope, &events).await?;
    let mark = |heard: &&Heard| Mark { device: heard.device, session: heard.session, f_cnt: heard.f_cnt };
    parts.bridge.settled(settled.iter().map(mark).collect()).await?;
    Ok(events.len())
}

/// Writes and signs the next account, if there is something to say; how many frames it names. It is on disk when this returns.
///
/// # Errors
/// The database failed.
pub async fn write(core: &Core, group: GroupId) -> Result<usize, crate::store::Error> {
    let node = core.me();
    let said = core.store.list_unaccounted(group, u32::try_from(ENTRIES_MAX).unwrap_or(u32::MAX)).await?;
    if said.heard.is_empty() && said.dropped.is_empty() {
        return Ok(0);
    }
    let last = core.store.last_account(group, node).await?;
    let account = Account {
        group,
        node,
        number: last.as_ref().map_or(1, |last| last.number + 1),
        previous: last.map(|last| last.id),
        at: core.clock.wall(),
        heard: said.heard.clone(),
        dropped: said.dropped.clone(),
    };
    let envelope = Envelope::sign(&account, &core.identity.keypair);
    let row = AccountRow { id: envelope.id(), group, node, number: account.number, made_at: account.at, envelope };
    core.store.put_own_account(&row, &said).await?;
    Ok(said.heard.len())
}

/// Gives the customer what it does not have yet, in order.
///
/// # Errors
/// The database failed, or the customer did not answer.
pub async fn tell(parts: &Parts, contract: &Contract) -> Result<(), Error> {
    let (group, customer) = (contract.group, contract.customer.node);
    for row in parts.core.store.list_untold_accounts(group, TELL_MAX).await? {
        let report = AccountReport { account: row.envelope };
        let path = format!("/peer/v1/groups/{group}/accounts");
        let () = parts.core.client.within(ANSWER_MAX).post(customer, &path, &report).await?;
        parts.core.store.set_account_told(row.id).await?;
    }
    Ok(())
}

/// Asks for receipts at once; best effort, for the store may be away.
pub async fn collect_receipts(parts: &Parts, contract: &Contract) {
    if let Err(error) = pass(parts, contract, &mut 0).await {
        tracing::info!(group = %contract.group, %error, "frames go without a receipt");
    }
}

/// The last account of a contract: what went without a receipt is said to have been given up.
pub(super) async fn close(parts: &Parts, contract: &Contract) -> Result<(), Error> {
    while write(&parts.core, contract.group).await? == ENTRIES_MAX {}
    if let Err(error) = tell(parts, contract).await {
        tracing::info!(group = %contract.group, %error, "the last account was not told; it is kept here");
    }
    Ok(())
}

/// Keeps an account of the insurer. Two of one number are both kept.
///
/// # Errors
/// It does not verify, is of another group or node, or there are too many.
pub async fn take(core: &Core, group: GroupId, peer: NodeId, envelope: Envelope) -> Result<(), Problem> {
    let account = envelope.verify_signed_by::<Account>(&[peer.into()])?.statement;
    if account.group != group || account.node != peer {
        return Err(Problem::forbidden("an account is of the node that signs it"));
    }
    let row = AccountRow { id: envelope.id(), group, node: peer, number: account.number, made_at: account.at, envelope };
    match core.store.put_account(&row, ACCOUNTS_MAX).await {
        Ok(true) => Ok(()),
        Ok(false) => Err(Problem::conflict(format_args!("{ACCOUNTS_MAX} accounts of this node are kept"))),
        Err(error) => {
            tracing::warn!(error = &error as &dyn std::error::Error, "an account was not kept");
            Err(Problem::internal())
        }
    }
}

/// All that this node can say to a judge: accounts (the newest is written now) and receipts made at `since` or later, and frames that it has.
///
/// # Errors
/// The database failed.
pub async fn statements(core: &Core, group: GroupId, since: WallTime, limit: u32) -> Result<Vec<Envelope>, crate::store::Error> {
    write(core, group).await?;
    let mut statements: Vec<Envelope> =
        core.store.list_accounts(group, since, limit).await?.into_iter().map(|row| row.envelope).collect();
    statements.extend(core.store.list_receipts(group, since, limit).await?);
    let open = core.store.list_unreceipted_uplinks(group, limit).await?;
    let node = core.me();
    for part in open.chunks(SHOWN_MAX) {
        let frames = part.iter().map(|stored| stored.uplink.phy.clone()).collect();
        statements.push(Envelope::sign(&ShownFrames { group, node, frames }, &core.identity.keypair));
    }
    Ok(statements)
}
