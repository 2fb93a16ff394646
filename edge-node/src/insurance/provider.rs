//! The insurer's guard: keeps the containers prepared and the frames buffered, takes over when it gains custody, and gives back.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use contracts::contract::Contract;
use contracts::envelope::Envelope;
use contracts::evidence::{ReleaseReport, TakeoverReport};
use contracts::ids::{Epoch, GroupId, NodeId};
use contracts::time::{BootTime, Millis, WallTime};
use lora_bridge::bridge::io::Mode;
use lora_bridge::mac::adr::AdrMode;
use peering::custody::{CustodyView, Role};
use tokio::sync::watch;

use super::accounts;
use super::hysteresis::{self, Takeovers};
use super::reservations::{self, Members, Writer};
use super::{Error, Parts, Shared, Won, begin_serving, ended, is_told, join, leave, presence, progress, restore, self_check};
use super::{margins, records};
use crate::agreements::Agreement;
use crate::edge2edge::messages::{Handover, LevelAnswer};
use crate::lora;
use crate::migration::{self, PURPOSE_APPLICATION, PURPOSE_NETWORK};
use crate::orchestrator::plan::Desired;
use crate::readings::north::Destination;
use crate::tenants::{self, Tenant, TenantSocket};
use crate::timeline::Event;

/// The tenant has so long to connect after it was started before an alarm is raised.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// After custody went, the tenant has so long to decode what was heard before.
const DRAIN_MAX: Duration = Duration::from_secs(10);
/// Between two attempts to learn what the customer's devices joined and where they listen.
const FETCH_PAUSE: Duration = Duration::from_secs(5);
/// So long after its quiet time custody is not given back while the customer cannot be told what was served here.
const UNTOLD_MAX: Millis = Millis::from_secs(10);
/// A customer that was silent for so long has to be quiet anew.
const VISIT_GAP_MS_MAX: u64 = 3_000;

/// Since when the customers of groups are back, and when they last asked; how often this node took over. Shared with the HTTP handlers.
#[derive(Debug, Clone, Default)]
pub struct Visits(Arc<Shared<BTreeMap<GroupId, Visit>>>, Arc<Shared<BTreeMap<GroupId, Takeovers>>>);

#[derive(Debug, Clone, Copy)]
struct Visit {
    first: BootTime,
    last: BootTime,
}

impl Visits {
    /// Notes that the customer asked; returns since when it is back without a longer silence, and whether this is the first time.
    fn note(&self, group: GroupId, now: BootTime) -> (BootTime, bool) {
        self.0.with(|visits| {
            let fresh = Visit { first: now, last: now };
            let visit = visits.entry(group).or_insert(fresh);
            let is_new = visit.last == visit.first && visit.first == now;
            if now.since(visit.last).0 > VISIT_GAP_MS_MAX {
                *visit = fresh;
            }
            visit.last = now;
            (visit.first, is_new)
        })
    }

    fn note_takeover(&self, group: GroupId, now: BootTime) {
        self.1.with(|takeovers| takeovers.entry(group).or_default().note(now));
    }

    fn takeovers(&self, group: GroupId) -> Takeovers {
        self.1.with(|takeovers| takeovers.get(&group).cloned().unwrap_or_default())
    }

    /// What an earlier process noted, unless this one knows it already.
    fn restore_takeovers(&self, group: GroupId, kept: Takeovers) {
        self.1.with(|takeovers| {
            takeovers.entry(group).or_insert(kept);
        });
    }

    fn quiet(&self, group: GroupId, agreed: Millis, now: BootTime) -> Millis {
        self.1.with(|takeovers| takeovers.get(&group).map_or(agreed, |takeovers| takeovers.quiet(agreed, now)))
    }

    fn forget(&self, group: GroupId) {
        self.0.with(|visits| visits.remove(&group));
    }
}

/// Runs until the contract has ended and its keys are wiped.
pub(super) async fn run(parts: &Parts, agreement: &Agreement) -> Result<(), Error> {
    let contract = &agreement.contract;
    if agreement.state.is_in_force() {
        let registration = open_network(parts, contract).await?;
        let ends = parts.links.open(contract.group, &tenants::http::sessions(&registration));
        parts.links.set_insurer(contract.group);
        let (members, members_taken) = watch::channel(Members::default());
        let (serves, serves_taken) = watch::channel(false);
        let mut side_tasks = tokio::task::JoinSet::new();
        let writer = Writer::new(parts, contract.group, members_taken);
        side_tasks.spawn(kit::task::belong(reservations::run(writer.clone(), ends.reserve)));
        side_tasks.spawn(kit::task::belong(records::run(writer, ends.records)));
        let follow = records::follow(parts.clone(), contract.group, contract.members(), ends.missing);
        side_tasks.spawn(kit::task::belong(follow));
        side_tasks.spawn(kit::task::belong(progress::run(
            parts.clone(),
            contract.group,
            contract.customer.node,
            ends.outgoing,
            serves_taken.clone(),
        )));
        side_tasks.spawn(kit::task::belong(margins::run(parts.clone(), contract.group, contract.customer.node, serves_taken)));
        side_tasks.spawn(kit::task::belong(ask_for_states(parts.clone(), contract.group, contract.customer.node)));
        side_tasks.spawn(kit::task::belong(accounts::run(parts.clone(), contract.clone())));
        let presence = presence::run(parts.custody.clone(), parts.core.timeline.clone(), contract.group);
        side_tasks.spawn(kit::task::belong(presence));
        let is_fit = watch::Sender::new(true);
        side_tasks.spawn(kit::task::belong(self_check::run(parts.clone(), contract.group, contract.customer.node, is_fit)));
        restore(parts, contract.group, &registration).await?;
        parts.bridge.set_adr(contract.group, super::adr(parts, AdrMode::Insured)).await?;
        lora::standby::restore(&parts.core.store, &parts.bridge, contract.group).await?;
        let (boot, wall) = (parts.core.clock.boot(), parts.core.clock.wall());
        let takeovers = hysteresis::restore(&parts.core.store, contract.group, boot, wall).await?;
        parts.visits.restore_takeovers(contract.group, takeovers);
        let socket = prepare(parts, agreement).await?;
        let guard = Guard { parts, agreement, socket, members, serves, replayed: ends.replayed };
        let mut serving = None;
        tokio::select! {
            biased;
            () = ended(parts, agreement.id) => {}
            stopped = guard.follow_custody(&mut serving) => stopped?,
        }
        guard.wind_up(serving).await?;
    }
    wipe(parts, agreement).await
}

/// Makes the devices that this node insured when it ended known to the bridge, before gateways are listened to. What fails here is tried again
/// by the contract's guard.
pub(crate) async fn restore_insured(parts: &Parts) {
    let is_insured = |agreement: &Agreement| {
        let is_provider = agreement.contract.provider.node == parts.core.me();
        is_provider && !agreement.wiped && agreement.state.is_in_force() && super::is_armed_or_ended(agreement.state)
    };
    for agreement in parts.core.agreements.list().into_iter().filter(is_insured) {
        if let Err(error) = restore_devices(parts, &agreement.contract).await {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(contract = %agreement.id, error, "frames of insured devices are not heard before the guard runs");
        }
    }
}

async fn restore_devices(parts: &Parts, contract: &Contract) -> Result<(), Error> {
    let registration = open_network(parts, contract).await?;
    // Where its frames belong; the guard's link comes in the place of this one.
    drop(parts.links.open(contract.group, &tenants::http::sessions(&registration)));
    restore(parts, contract.group, &registration).await
}

async fn open_network(parts: &Parts, contract: &Contract) -> Result<tenant::Registration, Error> {
    let form = |e: String| Error::Migration(migration::Error::Form(e));
    let cid = storage::parse_cid(&contract.network_configuration).map_err(migration::Error::from)?;
    let json = migration::open_sealed(&parts.core.content, &cid, &parts.core.identity.unsealing, PURPOSE_NETWORK).await?;
    let registration: tenant::Registration = serde_json::from_slice(&json).map_err(|e| form(e.to_string()))?;
    registration.check().map_err(|e| form(e.to_string()))?;
    let foreign = tenants::http::devices(&registration).find(|device| !contract.devices.contains(device));
    match foreign {
        Some(foreign) => Err(form(format!("device {foreign} is not in the contract"))),
        None => Ok(registration),
    }
}

/// Nobody waits for them: a customer that is away must not keep this node from taking part in custody.
async fn ask_for_states(parts: Parts, group: GroupId, customer: NodeId) {
    if let Err(error) = progress::pull_states(&parts, group, customer).await {
        tracing::info!(error = &error as &dyn std::error::Error, "the customer's session states will come with its progress");
    }
    while let Err(error) = records::pull(&parts, group, customer).await {
        tracing::info!(
            error = &error as &dyn std::error::Error,
            "joins and receive windows of the customer's devices are not known yet"
        );
        tokio::time::sleep(FETCH_PAUSE).await;
    }
}

/// Socket and containers (created, waiting).
async fn prepare(parts: &Parts, agreement: &Agreement) -> Result<TenantSocket, Error> {
    let contract = &agreement.contract;
    let group = contract.group;
    let orchestrator = parts.core.orchestrator.as_ref().ok_or(Error::Lacking("container engine"))?;
    let outside = crate::node::outside(&parts.core.config.tenants);
    let tenant = Tenant::new(group, parts.core.log.clone(), Some(parts.bridge.clone()), contract.devices.clone())
        .with_links(parts.links.clone())
        .with_outside(outside);
    let socket = TenantSocket::open(tenant, parts.doors.as_ref())?;
    let started = parts.core.clock.boot();
    orchestrator.deploy(group, &contract.blueprint, socket.directory().to_owned(), Desired::Prepared).await?;
    parts.core.timeline.push(Event::Prepared { contract: agreement.id, create_ms: parts.core.clock.boot().since(started).0 });
    parts.core.destinations.set(group, Destination::Cloud(contract.readings_to));
    Ok(socket)
}

struct Guard<'a> {
    parts: &'a Parts,
    agreement: &'a Agreement,
    socket: TenantSocket,
    members: watch::Sender<Members>,
    serves: watch::Sender<bool>,
    replayed: watch::Receiver<Option<u64>>,
}

impl Guard<'_> {
    fn contract(&self) -> &Contract {
        &self.agreement.contract
    }

    async fn follow_custody(&self, serving: &mut Option<Epoch>) -> Result<(), Error> {
        let failed = self.follow_custody_until_failure(serving).await;
        // The next run knows nothing of this one: it must find a node that does not serve.
        if let Some(epoch) = serving.take() {
            let group = self.contract().group;
            self.parts.bridge.custody(group, Mode::Standby).await?;
            self.serves.send_replace(false);
            self.parts.core.timeline.push(Event::CustodyLost { group, epoch });
        }
        failed
    }

    async fn follow_custody_until_failure(&self, serving: &mut Option<Epoch>) -> Result<(), Error> {
        let group = self.contract().group;
        let hold = join(self.parts, self.agreement).await?;
        self.parts.leases.set_held(group, hold);
        self.parts.core.timeline.push(Event::Armed { contract: self.agreement.id, group });
        let mut view = self.parts.custody.subscribe(group).ok_or(peering::custody::Error::UnknownGroup(group))?;
        let mut uplinks = self.parts.core.log.uplinks_changed(group);
        loop {
            let now = view.borrow_and_update().clone();
            match now.role {
                Role::Holder { epoch } if *serving != Some(epoch) => {
                    let is_renewed = serving.replace(epoch).is_some();
                    self.take_over(epoch, &now, is_renewed).await?;
                }
                Role::Holder { .. } | Role::Recovering => {}
                // A group that stopped is started again by the driver once the disk takes votes.
                Role::Fenced { .. } | Role::Follower { .. } | Role::Stopped => {
                    if let Some(epoch) = serving.take() {
                        self.stand_by(epoch).await?;
                    } else if self.has_undecoded().await? {
                        let changed = tokio::select! {
                            biased;
                            changed = view.changed() => Some(changed),
                            decoded = self.decode_rest() => decoded.map(|()| None)?,
                        };
                        self.put_services_to_rest().await?;
                        if let Some(changed) = changed {
                            changed.map_err(|_| peering::custody::Error::UnknownGroup(group))?;
                            continue;
                        }
                    }
                }
            }
            tokio::select! {
                biased;
                changed = view.changed() => changed.map_err(|_| peering::custody::Error::UnknownGroup(group))?,
                // What the bridge heard just before custody went may reach the disk only after the containers were put to rest.
                Ok(()) = uplinks.changed(), if serving.is_none() => {}
            }
        }
    }

    /// Certificate in hand: containers and bridge at the same time; live frames are not held back behind the replay.
    async fn take_over(&self, epoch: Epoch, view: &CustodyView, is_renewed: bool) -> Result<(), Error> {
        let (parts, group) = (self.parts, self.contract().group);
        let won = Won::of(&parts.core.clock, view);
        parts.core.timeline.push(won.event(group, epoch, view));
        parts.visits.forget(group);
        if !is_renewed {
            parts.visits.note_takeover(group, parts.core.clock.boot());
        }
        let others = self.contract().members().into_iter().filter(|m| *m != parts.core.me()).collect();
        self.members.send_replace(Members { others, epoch: Some(epoch) });
        self.socket.tenant.set_epoch(epoch);
        let mut replayed = self.replayed.clone();
        // Here and not in the task: the bridge may have replayed all before the task first runs.
        replayed.mark_unchanged();
        kit::task::spawn(watch_replay(parts.clone(), group, epoch, replayed));
        let start = self.start_services();
        let serve = begin_serving(parts, self.contract(), epoch, view, !is_renewed);
        let (started, served) = tokio::join!(start, serve);
        served?;
        self.serves.send_replace(true);
        let start_us = started?;
        let serving_at = parts.core.clock.wall();
        parts.core.timeline.push(Event::TakenOver { group, epoch, start_us });
        self.report_takeover(epoch, view, won, serving_at);
        let (store, clock) = (&parts.core.store, &parts.core.clock);
        if let Err(error) = hysteresis::keep(store, group, &parts.visits.takeovers(group), clock.boot(), clock.wall()).await {
            tracing::warn!(%group, error = &error as &dyn std::error::Error, "the history of takeovers was not stored");
        }
        Ok(())
    }

    /// Lets the prepared containers go, with their configuration, and waits for the tenant's first word. Microseconds that it took.
    async fn start_services(&self) -> Result<u64, Error> {
        let (parts, contract) = (self.parts, self.contract());
        let orchestrator = parts.core.orchestrator.as_ref().ok_or(Error::Lacking("container engine"))?;
        let mut connected = self.socket.tenant.connected();
        connected.borrow_and_update();
        let begun = parts.core.clock.boot_micros();
        let cid = storage::parse_cid(&contract.application_configuration).map_err(migration::Error::from)?;
        let configuration =
            migration::open_sealed(&parts.core.content, &cid, &parts.core.identity.unsealing, PURPOSE_APPLICATION).await?;
        self.socket.tenant.set_configuration(Some(Bytes::from(configuration)));
        orchestrator.run(contract.group).await?;
        if tokio::time::timeout(CONNECT_MAX, connected.changed()).await.is_err() {
            parts.core.timeline.push(Event::Alarm { what: format!("the tenant of {} did not connect", contract.group) });
        }
        Ok(parts.core.clock.boot_micros() - begun)
    }

    fn report_takeover(&self, epoch: Epoch, view: &CustodyView, won: Won, serving_at: WallTime) {
        // After a release nobody asks, and a process that just started promised nothing: the claim itself is then the earliest sign.
        let asked_at = won.asked_at.unwrap_or(won.certified_at);
        let report = TakeoverReport {
            contract: self.agreement.id,
            group: self.contract().group,
            node: self.parts.core.me(),
            epoch,
            certificate: view.certificate.as_ref().map(|c| c.to_bytes()).unwrap_or_default(),
            last_promise_at: won.last_promise_at.unwrap_or(asked_at),
            asked_at,
            certified_at: won.certified_at,
            serving_at,
        };
        crate::market::evidence::post(&self.parts.core, Envelope::sign(&report, &self.parts.core.identity.keypair));
    }

    /// Custody went: nothing new is answered, what was heard is still decoded, then the containers are prepared anew.
    async fn stand_by(&self, epoch: Epoch) -> Result<(), Error> {
        let (parts, group) = (self.parts, self.contract().group);
        parts.bridge.custody(group, Mode::Standby).await?;
        self.serves.send_replace(false);
        parts.core.timeline.push(Event::CustodyLost { group, epoch });
        parts.visits.forget(group);
        self.drain().await?;
        self.put_services_to_rest().await
    }

    async fn put_services_to_rest(&self) -> Result<(), Error> {
        self.socket.tenant.set_configuration(None);
        if let Some(orchestrator) = &self.parts.core.orchestrator {
            orchestrator.stand_by(self.contract().group).await?;
        }
        Ok(())
    }

    /// What was heard while this node served and not decoded before its process ended: nobody else has it.
    async fn has_undecoded(&self) -> Result<bool, Error> {
        Ok(!self.parts.core.store.list_undecoded(self.contract().group, 0, 1).await?.is_empty())
    }

    async fn decode_rest(&self) -> Result<(), Error> {
        let _microseconds = self.start_services().await?;
        self.drain().await
    }

    /// Waits until the tenant has decoded everything that is for it, within a bound.
    async fn drain(&self) -> Result<(), Error> {
        let (parts, group) = (self.parts, self.contract().group);
        let mut readings = parts.core.log.readings_changed(group);
        let drained = async {
            loop {
                readings.borrow_and_update();
                if parts.core.store.list_undecoded(group, 0, 1).await?.is_empty() {
                    return Ok::<(), crate::store::Error>(());
                }
                if readings.changed().await.is_err() {
                    return Ok(());
                }
            }
        };
        tokio::time::timeout(DRAIN_MAX, drained).await.unwrap_or(Ok(()))?;
        Ok(())
    }

    /// The contract ended. For the grace, whoever is served is served on, and what is heard is offered on: a next contract may follow. Then
    /// custody is released to nobody.
    async fn wind_up(&self, serving: Option<Epoch>) -> Result<(), Error> {
        let (parts, group) = (self.parts, self.contract().group);
        let grace = self.contract().terms.grace.to_duration();
        let mut end = std::pin::pin!(tokio::time::timeout(grace, succeeded(parts, self.agreement)));
        let is_succeeded = tokio::select! {
            biased;
            end = &mut end => end.is_ok(),
            epoch = self.lost(serving) => {
                parts.core.timeline.push(Event::CustodyLost { group, epoch });
                end.await.is_ok()
            }
        };
        if is_succeeded {
            return self.drain().await;
        }
        if parts.custody.hold(group).and_then(|h| h.epoch()).is_some() {
            let counters = parts.bridge.release(group, Mode::Standby).await?;
            let handover = serde_json::to_vec(&Handover { counters }).unwrap_or_default();
            match parts.custody.release(group, None, handover.into()).await {
                Ok(epoch) => parts.core.timeline.push(Event::Released { group, epoch }),
                Err(peering::custody::Error::NotHolding(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.drain().await
    }

    /// Waits for the end of the custody in which this node served; for ever if it did not.
    async fn lost(&self, serving: Option<Epoch>) -> Epoch {
        let view = self.parts.custody.subscribe(self.contract().group);
        let (Some(epoch), Some(mut view)) = (serving, view) else { return std::future::pending().await };
        let _gone_or_stopped = view.wait_for(|view| !matches!(view.role, Role::Holder { .. })).await;
        epoch
    }
}

/// Waits until another contract for the same group is armed here.
async fn succeeded(parts: &Parts, agreement: &Agreement) {
    let mut changed = parts.core.agreements.changed();
    while !has_successor(parts, agreement) {
        if changed.changed().await.is_err() {
            return;
        }
    }
}

fn has_successor(parts: &Parts, agreement: &Agreement) -> bool {
    let successor = parts.core.agreements.in_force(agreement.contract.group);
    successor.is_some_and(|next| next.id != agreement.id && super::is_armed_or_ended(next.state))
}

/// Foreign keys, sessions, frames and content go; readings that the customer's cloud did not take yet stay until it does.
async fn wipe(parts: &Parts, agreement: &Agreement) -> Result<(), Error> {
    if !has_successor(parts, agreement) {
        wipe_group(parts, agreement).await?;
    }
    for pin in parts.core.content.pins().into_iter().filter(|pin| pin.label == agreement.id.to_string()) {
        parts.core.content.unpin(&pin.cid, &pin.label).await.map_err(migration::Error::from)?;
    }
    // While something is being fetched nothing is removed: tried again, for sealed keys are among it.
    parts.core.content.collect_garbage().await.map_err(migration::Error::from)?;
    parts.core.agreements.set_wiped(agreement.id).await?;
    parts.core.timeline.push(Event::Wiped { contract: agreement.id });
    Ok(())
}

/// What belongs to the group, whichever contract it was under.
async fn wipe_group(parts: &Parts, agreement: &Agreement) -> Result<(), Error> {
    let (contract, group) = (&agreement.contract, agreement.contract.group);
    accounts::collect_receipts(parts, contract).await;
    leave(parts, group).await?;
    parts.leases.remove(group);
    parts.bridge.remove(group).await?;
    parts.links.close(group);
    parts.links.downlinks().remove(group);
    if let Some(orchestrator) = &parts.core.orchestrator {
        orchestrator.remove(group).await?;
        let others = parts.core.agreements.list();
        let in_use = |image: &str| {
            others
                .iter()
                .any(|a| a.id != agreement.id && !a.wiped && a.contract.blueprint.services.iter().any(|s| s.image_id == image))
        };
        for service in contract.blueprint.services.iter().filter(|s| !in_use(&s.image_id)) {
            if let Ok(image) = service.image_id.parse() {
                let _absent_or_in_use = orchestrator.engine().remove_image(&image).await;
            }
        }
    }
    parts.core.store.wipe_tenant(group).await?;
    parts.core.store.wipe_uplinks(group).await?;
    accounts::close(parts, contract).await?;
    parts.doors.remove(group)?;
    Ok(())
}

/// Says when everything that had been buffered at the takeover is with the customer's cloud.
async fn watch_replay(parts: Parts, group: GroupId, epoch: Epoch, mut replayed: watch::Receiver<Option<u64>>) {
    let begun = parts.core.clock.boot();
    let mut settled = parts.core.log.settled();
    let frames = match replayed.changed().await {
        Ok(()) => replayed.borrow().unwrap_or(0),
        Err(_) => return,
    };
    let Ok(upto) = parts.core.store.last_open(group).await else { return };
    while parts.core.store.has_open(group, upto).await.unwrap_or(false) {
        match settled.recv().await {
            Ok(_) | Err(tokio::sync::broadcast::error::RecvError::Lagged(_)) => {}
            Err(tokio::sync::broadcast::error::RecvError::Closed) => return,
        }
    }
    parts.core.timeline.push(Event::ReplaySettled { group, epoch, frames, elapsed_ms: parts.core.clock.boot().since(begun).0 });
}

/// The customer asked for open uplinks: it is back.
pub(crate) fn note_visit(parts: &Parts, group: GroupId) {
    let (_, is_first) = parts.visits.note(group, parts.core.clock.boot());
    if is_first {
        parts.core.timeline.push(Event::CustomerReturned { group });
    }
}

/// The customer says that it is level up to a place in this node's log: if nothing is behind that place and the quiet time is over, this node
/// stops and releases custody to it.
pub(crate) async fn answer_level(parts: &Parts, agreement: &Agreement, epoch: Epoch, upto: u64) -> Result<LevelAnswer, Error> {
    let (contract, group) = (&agreement.contract, agreement.contract.group);
    let Some(held) = parts.custody.hold(group).and_then(|hold| hold.epoch()) else { return Ok(LevelAnswer::NotHolding) };
    // The customer may have voted in a higher epoch, and lost there; one that knows only a lower one is not level.
    if held > epoch {
        return Ok(LevelAnswer::NotHolding);
    }
    let now = parts.core.clock.boot();
    let (since, _) = parts.visits.note(group, now);
    let quiet = now.since(since);
    let due = parts.visits.quiet(group, contract.terms.handback_quiet, now);
    if quiet < due {
        return Ok(LevelAnswer::Wait { quiet: Millis(due.0 - quiet.0) });
    }
    if parts.core.store.last_open(group).await? > upto {
        return Ok(LevelAnswer::Behind);
    }
    if quiet < due + UNTOLD_MAX && !is_told(parts, group).await {
        return Ok(LevelAnswer::Wait { quiet: Millis(0) });
    }
    // The customer may hang up at any moment; a bridge that stopped while custody is held would serve nobody.
    let (parts, agreement) = (parts.clone(), agreement.clone());
    kit::work::to_its_end(async move { give_back(&parts, &agreement).await }).await
}

async fn give_back(parts: &Parts, agreement: &Agreement) -> Result<LevelAnswer, Error> {
    let (contract, group) = (&agreement.contract, agreement.contract.group);
    let counters = parts.bridge.release(group, Mode::Standby).await?;
    if !is_told(parts, group).await {
        tracing::warn!(%group, "custody is given back before all progress was told");
    }
    let handover = serde_json::to_vec(&Handover { counters }).unwrap_or_default();
    let released = parts.custody.release(group, Some(contract.customer.node), handover.into()).await?;
    parts.core.timeline.push(Event::Released { group, epoch: released });
    let report = ReleaseReport {
        contract: agreement.id,
        group,
        node: parts.core.me(),
        epoch: released,
        released_at: parts.core.clock.wall(),
    };
    crate::market::evidence::post(&parts.core, Envelope::sign(&report, &parts.core.identity.keypair));
    Ok(LevelAnswer::Released { epoch: released })
}
