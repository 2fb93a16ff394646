//! Who told two stories, and who hides frames that it heard, recomputed from signed statements by anybody: no clock, no network, no trust in
//! whoever shows them.
//!
//! Only what the accused signed itself convicts it. Its excuses (receipts of the customer's store, frames that it still has, what it said to
//! have given up) must be among the statements: whoever judges hears the accused first.

use std::collections::{BTreeMap, BTreeSet};

use super::{Account, FrameDigest, Heard, Receipt, ShownFrames};
use crate::envelope::{Envelope, Key, Statement};
use crate::ids::{DevEui, EventId, GroupId, NodeId, StatementId};
use crate::time::{Millis, WallTime};

/// Statements looked at; what follows them is left out.
pub const STATEMENTS_MAX: usize = 100_000;

/// What the contract says of the group that is judged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Terms {
    pub group: GroupId,
    /// Who may have kept accounts: the parties.
    pub members: Vec<NodeId>,
    /// The customer's store: only its receipts count.
    pub store: NodeId,
    /// A frame in an account that is younger need not be anywhere yet.
    pub patience: Millis,
}

/// What was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Offence {
    /// Two accounts of one number, or one that does not follow the one before it: a story for each listener.
    TwoAccounts,
    /// It said that it heard frames; the customer's store has no receipt for them, and it shows them to nobody.
    HeardNotServed,
}

/// A node, what it did, and what proves it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Conviction {
    pub node: NodeId,
    pub offence: Offence,
    /// Of the account that convicts.
    pub number: u64,
    /// The account, and the one that contradicts it.
    pub proof: Vec<StatementId>,
    /// The frames that are nowhere; none for two accounts.
    pub missing: Vec<EventId>,
}

/// One account, read and verified.
struct Kept {
    id: StatementId,
    account: Account,
}

/// What is proven by `statements` at the time of judgement, each offence of a node and account once. What does not verify, is of another group,
/// or is not signed by exactly the one who speaks proves nothing and is passed over. Pure; equal statements give equal convictions.
#[must_use]
pub fn convict(terms: &Terms, statements: &[Envelope], at: WallTime) -> Vec<Conviction> {
    let statements = &statements[..statements.len().min(STATEMENTS_MAX)];
    let accounts = accounts(terms, statements);
    let mut convictions = two_accounts(&accounts);
    convictions.extend(not_served(terms, &accounts, statements, at));
    convictions.sort();
    convictions
}

/// The accounts of each node, by number; each once.
fn accounts(terms: &Terms, statements: &[Envelope]) -> BTreeMap<(NodeId, u64), Vec<Kept>> {
    let mut accounts: BTreeMap<(NodeId, u64), Vec<Kept>> = BTreeMap::new();
    for envelope in statements {
        let Some((id, account)) = read::<Account>(envelope, |account| account.node) else { continue };
        if account.group != terms.group || !terms.members.contains(&account.node) {
            continue;
        }
        let same = accounts.entry((account.node, account.number)).or_default();
        if same.iter().all(|kept| kept.id != id) {
            same.push(Kept { id, account });
        }
    }
    accounts
}

/// A statement that only its speaker signed.
fn read<T: Statement>(envelope: &Envelope, speaker: impl Fn(&T) -> NodeId) -> Option<(StatementId, T)> {
    if envelope.payload_type != T::TYPE {
        return None;
    }
    let verified = envelope.verify::<T>().ok()?;
    let is_own = verified.signers[..] == [Key::from(speaker(&verified.statement))];
    is_own.then_some((verified.id, verified.statement))
}

fn two_accounts(accounts: &BTreeMap<(NodeId, u64), Vec<Kept>>) -> Vec<Conviction> {
    let mut convictions = Vec::new();
    for ((node, number), same) in accounts {
        let before = number.checked_sub(1).and_then(|before| accounts.get(&(*node, before)));
        let twice = match &same[..] {
            [one, other, ..] => Some((one.id, other.id)),
            [one] => before
                .and_then(|before| before.first())
                .filter(|before| one.account.previous != Some(before.id))
                .map(|before| (before.id, one.id)),
            [] => None,
        };
        if let Some((one, other)) = twice {
            convictions.push(Conviction {
                node: *node,
                offence: Offence::TwoAccounts,
                number: *number,
                proof: vec![one, other],
                missing: Vec::new(),
            });
        }
    }
    convictions
}

fn not_served(
    terms: &Terms,
    accounts: &BTreeMap<(NodeId, u64), Vec<Kept>>,
    statements: &[Envelope],
    at: WallTime,
) -> Vec<Conviction> {
    let is_due = |kept: &Kept| kept.account.at + terms.patience <= at;
    if !accounts.values().flatten().any(is_due) {
        return Vec::new();
    }
    let received = received(terms, statements);
    let shown = shown(terms, statements);
    let mut given_up: BTreeSet<(NodeId, EventId)> = BTreeSet::new();
    for kept in accounts.values().flatten() {
        given_up.extend(kept.account.dropped.iter().map(|event| (kept.account.node, *event)));
    }
    let mut convictions = Vec::new();
    for kept in accounts.values().flatten().filter(|kept| is_due(kept)) {
        let node = kept.account.node;
        let is_missing = |heard: &&Heard| {
            let event = heard.event();
            !received.contains(&event) && !shown.contains(&heard.frame) && !given_up.contains(&(node, event))
        };
        let missing: Vec<EventId> = kept.account.heard.iter().filter(is_missing).map(Heard::event).collect();
        if !missing.is_empty() {
            let (number, proof) = (kept.account.number, vec![kept.id]);
            convictions.push(Conviction { node, offence: Offence::HeardNotServed, number, proof, missing });
        }
    }
    convictions
}

/// What the customer's store has, by its own word.
fn received(terms: &Terms, statements: &[Envelope]) -> BTreeSet<EventId> {
    let receipts = statements.iter().filter_map(|envelope| read::<Receipt>(envelope, |receipt| receipt.store));
    let ours = receipts.filter(|(_, receipt)| receipt.store == terms.store && receipt.group == terms.group);
    ours.flat_map(|(_, receipt)| receipt.events).collect()
}

/// Frames that somebody still has.
fn shown(terms: &Terms, statements: &[Envelope]) -> BTreeSet<FrameDigest> {
    let shown = statements.iter().filter_map(|envelope| read::<ShownFrames>(envelope, |shown| shown.node));
    let ours = shown.filter(|(_, shown)| shown.group == terms.group);
    ours.flat_map(|(_, shown)| shown.frames)
        .filter_map(|frame| hex::decode(frame).ok())
        .map(|phy| FrameDigest::of(&phy))
        .collect()
}

/// How many of a device's frames an insurer heard.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Coverage {
    /// Frames that the customer has and that count.
    pub frames: u64,
    /// Those to whose very bytes the insurer had committed.
    pub committed: u64,
}

/// Frames of the customer beside the accounts of its insurer, by device. A commitment counts for the frame with that digest only: a made-up one
/// covers nothing.
#[must_use]
pub fn coverage<'a>(
    frames: impl IntoIterator<Item = (DevEui, EventId, FrameDigest)>,
    accounts: impl IntoIterator<Item = &'a Account>,
) -> BTreeMap<DevEui, Coverage> {
    let committed: BTreeSet<(EventId, FrameDigest)> =
        accounts.into_iter().flat_map(|account| &account.heard).map(|heard| (heard.event(), heard.frame)).collect();
    let mut devices: BTreeMap<DevEui, Coverage> = BTreeMap::new();
    for (device, event, digest) in frames {
        let coverage = devices.entry(device).or_default();
        coverage.frames += 1;
        coverage.committed += u64::from(committed.contains(&(event, digest)));
    }
    devices
}

#[cfg(test)]
#[path = "audit_tests.rs"]
mod tests;
