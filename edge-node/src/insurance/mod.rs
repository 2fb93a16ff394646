//! Insurance in force: who serves the devices of a contract, and how custody moves without a reading lost.
//!
//! One guard per contract in force at each party. It watches custody and does, in the order that the handover protocol demands, what follows
//! from it: counters before transmission, disk before progress, stop before release.
//!
//! - [`accounts`] — what an insurer heard and answers for
//! - [`customer`], [`provider`] — the two guards
//! - [`hysteresis`] — how long a customer must be back
//! - [`margins`] — how well the node in standby hears devices, told to the other
//! - [`presence`] — an alarm for a member that does not answer
//! - [`progress`] — what is served and settled, told to the other party
//! - [`reservations`] — downlink counters on the disks of a majority before they are used
//! - [`records`] — results of joins on the disks of a majority before they are told
//! - [`reserved`] — what this node knows to be reserved, for votes
//! - [`returning`] — the customer's way back to level
//! - `self_check` — hands over while it still can
//! - [`statements`] — what members signed about custody, kept as evidence

pub mod accounts;
pub mod customer;
pub mod hysteresis;
pub mod margins;
pub mod presence;
pub mod progress;
pub mod provider;
pub mod records;
pub mod reservations;
pub mod reserved;
pub mod returning;
mod self_check;
pub mod statements;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use contracts::contract::{Contract, State};
use contracts::custody::Readiness;
use contracts::ids::{ContractId, DevEui, Epoch, GroupId, NodeId, StatementId};
use contracts::time::{BootTime, WallTime};
use contracts::write_ahead::{Bound, Reserved, is_session};
use kit::clock::Clock;
use lora_bridge::bridge::io::Mode;
use lora_bridge::mac::adr::AdrMode;
use lora_bridge::mac::downlink::CounterSource;
use lora_bridge::server::BridgeHandle;
use peering::custody::{Certificate, CustodyHandle, CustodyView, GroupConfig, Hold, VoteStore};
use sha2::{Digest as _, Sha256};
use tokio::task::JoinHandle;

use crate::agreements::Agreement;
use crate::core::Core;
use crate::edge2edge::messages::Handover;
use crate::lora::leases::Leases;
use crate::lora::links::Links;
use crate::lora::standby::Standby;
use crate::tenants::{self, doors::Doors};
use crate::timeline::Event;

/// Why a guard cannot do its work now; it tries again.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("custody")]
    Custody(#[from] peering::custody::Error),
    #[error("the bridge")]
    Bridge(#[from] lora_bridge::server::Error),
    #[error("the database")]
    Store(#[from] crate::store::Error),
    #[error("the containers")]
    Orchestrator(#[from] crate::orchestrator::Error),
    #[error("the content")]
    Migration(#[from] crate::migration::Error),
    #[error("the reading log")]
    Log(#[from] crate::readings::log::Error),
    #[error("the peer")]
    Peer(#[from] crate::edge2edge::client::Error),
    #[error("the tenant's socket")]
    Socket(#[from] std::io::Error),
    #[error("a contract")]
    Agreement(#[from] crate::agreements::Error),
    #[error("a statement of a peer")]
    Statement(#[from] contracts::envelope::Error),
    #[error("this node has no {0}, which the contract needs")]
    Lacking(&'static str),
}

/// What guards work with beyond the core.
#[derive(Debug, Clone)]
pub struct Parts {
    pub core: Arc<Core>,
    pub custody: CustodyHandle,
    pub votes: Arc<dyn VoteStore>,
    pub bridge: BridgeHandle,
    pub leases: Leases,
    pub links: Links,
    pub standby: Standby,
    pub reserved: reserved::ReservedByGroup,
    /// Where tenants knock.
    pub doors: Arc<dyn Doors>,
    pub visits: provider::Visits,
}

/// Starts and ends guards as contracts come into force and end. Runs for ever.
pub async fn run(parts: Parts) {
    let mut changed = parts.core.agreements.changed();
    let mut guards: BTreeMap<ContractId, JoinHandle<()>> = BTreeMap::new();
    loop {
        changed.borrow_and_update();
        for agreement in parts.core.agreements.list() {
            let is_guarded = guards.get(&agreement.id).is_some_and(|guard| !guard.is_finished());
            if !is_guarded && needs_guard(&agreement, parts.core.me()) {
                guards.insert(agreement.id, kit::task::spawn(guard(parts.clone(), agreement.id)));
            }
        }
        let _again = tokio::time::timeout(std::time::Duration::from_secs(5), changed.changed()).await;
    }
}

/// A party has work to do from the moment the provider is ready until keys are wiped.
fn needs_guard(agreement: &Agreement, me: NodeId) -> bool {
    let is_party = agreement.contract.customer.node == me || agreement.contract.provider.node == me;
    is_party && !agreement.wiped && is_armed_or_ended(agreement.state)
}

pub(crate) const fn is_armed_or_ended(state: State) -> bool {
    match state {
        State::Standby { .. }
        | State::TakenOver { .. }
        | State::HandingBack { .. }
        | State::Disputed { .. }
        | State::Ended { .. } => true,
        State::Proposed | State::Agreed | State::Preparing => false,
    }
}

/// One guard, tried again until the contract is wound up.
async fn guard(parts: Parts, id: ContractId) {
    let mut pause = std::time::Duration::from_millis(100);
    loop {
        let Some(agreement) = parts.core.agreements.get(id) else { return };
        let is_customer = agreement.contract.customer.node == parts.core.me();
        let ran = if is_customer {
            Box::pin(customer::run(&parts, &agreement)).await
        } else {
            Box::pin(provider::run(&parts, &agreement)).await
        };
        match ran {
            Ok(()) => return,
            Err(error) => {
                tracing::warn!(contract = %id, error = &error as &dyn std::error::Error, "the guard starts anew");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(std::time::Duration::from_secs(5));
            }
        }
    }
}

/// Waits until the contract has ended.
pub(crate) async fn ended(parts: &Parts, id: ContractId) {
    let mut changed = parts.core.agreements.changed();
    loop {
        changed.borrow_and_update();
        match parts.core.agreements.get(id) {
            Some(agreement) if agreement.state.is_in_force() => {}
            Some(_) | None => return,
        }
        if changed.changed().await.is_err() {
            return;
        }
    }
}

/// How far this node manages data rates, if it does.
pub(crate) fn adr(parts: &Parts, mode: AdrMode) -> AdrMode {
    let is_on = parts.core.config.lora.as_ref().is_some_and(|lora| lora.adr);
    if is_on { mode } else { AdrMode::Off }
}

/// The group of a contract as the custody driver wants it.
pub(crate) fn group_config(agreement: &Agreement) -> GroupConfig {
    let contract = &agreement.contract;
    let candidates = vec![contract.customer.node, contract.provider.node];
    GroupConfig {
        group: contract.group,
        members: contract.members(),
        eligible: candidates.clone(),
        candidates,
        first_holder: contract.customer.node,
        ttl: contract.terms.ttl,
        readiness: Readiness::Ready,
    }
}

/// Joins the group, again if an earlier run of this guard already had.
pub(crate) async fn join(parts: &Parts, agreement: &Agreement) -> Result<Hold, Error> {
    // The self-check says it again whenever that changes.
    let readiness = if *parts.core.log.writable().borrow() { Readiness::Ready } else { Readiness::Unready };
    match parts.custody.add_group(GroupConfig { readiness, ..group_config(agreement) }).await {
        Ok(hold) => Ok(hold),
        Err(peering::custody::Error::AlreadyThere(group)) => {
            Ok(parts.custody.hold(group).ok_or(peering::custody::Error::UnknownGroup(group))?)
        }
        Err(error) => Err(error.into()),
    }
}

/// Leaves the group; not being in it is fine.
pub(crate) async fn leave(parts: &Parts, group: GroupId) -> Result<(), Error> {
    match parts.custody.remove_group(group).await {
        Ok(()) | Err(peering::custody::Error::UnknownGroup(_)) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The bounds of the sessions that devices have now. Counters of a device by personalisation go on when it begins anew; a join begins them.
fn of_sessions(parts: &Parts, group: GroupId, known: &Reserved) -> Vec<(DevEui, u32)> {
    let is_current = |bound: &Bound| {
        let is_of_join = known.joins(bound.device) > 0;
        is_session(bound.session) && (!is_of_join || parts.links.session(group, bound.device) == Some(bound.session))
    };
    known.bounds().filter(is_current).map(|bound| (bound.device, bound.upto)).collect()
}

/// Sets the downlink counters of a new custody: exactly where the last holder stopped if it released to us, else above everything that a
/// majority knows to be reserved. Durable before it counts.
pub(crate) async fn take_counters(parts: &Parts, contract: &Contract, epoch: Epoch, view: &CustodyView) -> Result<(), Error> {
    let group = contract.group;
    let mut votes = BTreeMap::new();
    for (member, bytes) in &view.records {
        match Reserved::from_bytes(bytes) {
            Ok(theirs) => {
                votes.insert(*member, theirs);
            }
            Err(error) => tracing::warn!(%member, %error, "a vote came with records that cannot be read"),
        }
    }
    let votes = records::fetch(parts, contract, votes).await?;
    let own = parts.core.store.list_reserved(group).await?;
    let mut known = own.clone();
    votes.values().for_each(|theirs| known.merge(theirs));
    let bounds: Vec<_> = known.bounds().collect();
    let is_news = |bound: &&Bound| own.upto(bound.device, bound.session) != Some(bound.upto);
    let changed: BTreeSet<DevEui> = bounds.iter().filter(is_news).map(|bound| bound.device).collect();
    // All of a device together: what is not named with a newer join is forgotten.
    let news: Vec<_> = bounds.iter().filter(|bound| changed.contains(&bound.device)).copied().collect();
    parts.core.store.raise_reserved(group, &news).await?;
    parts.reserved.merge(group, &known);
    let sessions = bounds.iter().filter(|b| is_session(b.session)).map(|b| (b.device, b.session)).collect();
    parts.bridge.written_ahead(sessions).await?;
    let entries = of_sessions(parts, group, &known);
    let handover = view.released.as_ref().filter(|r| r.epoch.next() == epoch && r.successor == Some(parts.core.me()));
    match handover.and_then(|r| serde_json::from_slice::<Handover>(&r.handover).ok()) {
        Some(exact) => {
            let named: BTreeSet<_> = exact.counters.iter().map(|(device, _)| *device).collect();
            let others = entries.into_iter().filter(|(device, _)| !named.contains(device)).collect();
            parts.bridge.counters_from(others, CounterSource::Reservation).await?;
            parts.bridge.counters_from(exact.counters, CounterSource::Release).await?;
        }
        None => parts.bridge.counters_from(entries, CounterSource::Reservation).await?,
    }
    Ok(())
}

/// Begins to serve: counters first, then transmissions.
pub(crate) async fn begin_serving(
    parts: &Parts,
    contract: &Contract,
    epoch: Epoch,
    view: &CustodyView,
    after_another: bool,
) -> Result<(), Error> {
    take_counters(parts, contract, epoch, view).await?;
    let group = contract.group;
    parts.links.set_epoch(group, epoch);
    let foreign_lease_end = after_another.then(|| parts.core.clock.boot());
    parts.bridge.custody(group, Mode::Serving { epoch, foreign_lease_end }).await?;
    Ok(())
}

/// Uplinks by name that are read and told to the bridge at a time.
const MARKS_PAGE: u32 = 8_192;

/// Puts the bridge's memory of a group in line with the disk after a restart.
pub(crate) async fn restore(parts: &Parts, group: GroupId, registration: &tenant::Registration) -> Result<(), Error> {
    parts.bridge.register(group, tenants::http::sessions(registration)).await?;
    parts.bridge.register_joining(group, tenants::http::joining(&registration.joining)).await?;
    let known = parts.core.store.list_reserved(group).await?;
    records::restore(parts, group, &known).await?;
    restore_downlinks(parts, group).await?;
    // Before the marks: they may be of the life that a record began.
    let lives = known.bounds().filter(|b| is_session(b.session)).map(|b| (b.device, b.session)).collect();
    parts.bridge.written_ahead(lives).await?;
    restore_marks(parts, group).await?;
    parts.bridge.counters_from(of_sessions(parts, group, &known), CounterSource::Reservation).await?;
    parts.reserved.merge(group, &known);
    Ok(())
}

/// Which uplinks are served and settled, page by page: the log may hold a year of them.
async fn restore_marks(parts: &Parts, group: GroupId) -> Result<(), Error> {
    let pruned = parts.core.store.list_pruned(group).await?;
    parts.bridge.peer_progress(pruned.clone(), pruned).await?;
    let mut after = 0;
    loop {
        let page = parts.core.store.list_marks(group, after, MARKS_PAGE).await?;
        let Some((last, _, _)) = page.last() else { return Ok(()) };
        after = *last;
        let settled = page.iter().filter(|(_, _, settled)| *settled).map(|(_, mark, _)| *mark).collect();
        parts.bridge.peer_progress(page.iter().map(|(_, mark, _)| *mark).collect(), settled).await?;
    }
}

/// What was owed at least once when this process last ended.
async fn restore_downlinks(parts: &Parts, group: GroupId) -> Result<(), Error> {
    let Some(bytes) = parts.core.store.get_tenant_value(group, crate::lora::downlinks::STATE_KEY).await? else { return Ok(()) };
    let owed = parts.links.downlinks().restore(group, &bytes);
    parts.bridge.restore_queues(owed.into_iter().collect()).await?;
    Ok(())
}

/// Names a certificate in the timeline: SHA-256 of its bytes.
pub(crate) fn certificate_id(certificate: &Certificate) -> StatementId {
    StatementId::from_bytes(Sha256::digest(certificate.to_bytes()).into())
}

/// How this node came to hold an epoch, in wall time (the driver says it in boot time, which means nothing elsewhere).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Won {
    pub last_promise_at: Option<WallTime>,
    pub asked_at: Option<WallTime>,
    pub certified_at: WallTime,
}

impl Won {
    pub(crate) fn of(clock: &Clock, view: &CustodyView) -> Self {
        let (boot, wall) = (clock.boot(), clock.wall());
        let to_wall = |at: BootTime| wall - boot.since(at);
        view.gained.as_ref().map_or(Self { last_promise_at: None, asked_at: None, certified_at: wall }, |gained| Self {
            last_promise_at: gained.last_promise_at.map(to_wall),
            asked_at: gained.asked_at.map(to_wall),
            certified_at: to_wall(gained.certified_at),
        })
    }

    /// For the timeline.
    pub(crate) fn event(&self, group: GroupId, epoch: Epoch, view: &CustodyView) -> Event {
        let certificate = view.certificate.as_ref().map(|certificate| certificate_id(certificate));
        Event::CustodyGained { group, epoch, certificate, asked_at: self.asked_at }
    }
}

/// A slot that guards share, e.g. with HTTP handlers.
#[derive(Debug, Default)]
pub(crate) struct Shared<T>(Mutex<T>);

impl<T> Shared<T> {
    pub(crate) fn with<R>(&self, act: impl FnOnce(&mut T) -> R) -> R {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Planned end of this node: whatever it holds goes to the other party at once, without waiting for a lease to run out.
pub async fn release_all(parts: &Parts) {
    for agreement in parts.core.agreements.list().into_iter().filter(|a| a.state.is_in_force()) {
        let group = agreement.contract.group;
        if let Err(error) = release_one(parts, group).await {
            tracing::warn!(%group, error = &error as &dyn std::error::Error, "custody was not released");
        }
    }
}

/// Gives custody of one group to the other party of its contract: stop, exact counters, release, in this order, to the end even if nobody waits
/// for it any more: a bridge that stopped while custody is held would serve nobody. The epoch that was released and the successor; `None` if
/// this node does not hold it under a contract in force.
///
/// # Errors
/// The bridge or custody refused; custody then ends with its lease at the latest.
pub async fn release_one(parts: &Parts, group: GroupId) -> Result<Option<(Epoch, NodeId)>, Error> {
    let parts = parts.clone();
    kit::work::to_its_end(async move { release_held(&parts, group).await }).await
}

async fn release_held(parts: &Parts, group: GroupId) -> Result<Option<(Epoch, NodeId)>, Error> {
    let Some(agreement) = parts.core.agreements.in_force(group) else { return Ok(None) };
    if parts.custody.hold(group).and_then(|hold| hold.epoch()).is_none() {
        return Ok(None);
    }
    let successor = other_party(&agreement, parts.core.me());
    let counters = parts.bridge.release(group, Mode::Following).await?;
    if !is_told(parts, group).await {
        tracing::warn!(%group, "custody is released before all progress was told");
    }
    let handover = serde_json::to_vec(&Handover { counters }).unwrap_or_default();
    let epoch = parts.custody.release(group, Some(successor), handover.into()).await?;
    parts.core.timeline.push(Event::Released { group, epoch });
    heard_release(parts, group).await;
    Ok(Some((epoch, successor)))
}

/// Longest wait for the last progress before a release.
const FLUSH_MAX: std::time::Duration = std::time::Duration::from_millis(200);

/// What this node answered, its successor must know before it holds: it would answer it too. False if it could not be told in time.
async fn is_told(parts: &Parts, group: GroupId) -> bool {
    tokio::time::timeout(FLUSH_MAX, parts.links.flush(group)).await.unwrap_or(false)
}

/// The party of a contract that `me` is not.
pub(crate) fn other_party(agreement: &Agreement, me: NodeId) -> NodeId {
    let contract = &agreement.contract;
    if contract.customer.node == me { contract.provider.node } else { contract.customer.node }
}

/// Gives the releases time to arrive: until somebody else holds, within one ttl of the longest profile in use here.
async fn heard_release(parts: &Parts, group: GroupId) {
    const WAIT_MAX: std::time::Duration = std::time::Duration::from_secs(1);
    let Some(mut view) = parts.custody.subscribe(group) else { return };
    let me = parts.core.me();
    let taken = view.wait_for(|v| v.voted_for.is_some_and(|holder| holder != me));
    let _taken_or_not = tokio::time::timeout(WAIT_MAX, taken).await;
}
