//! The insured node's guard: serves while it holds custody, follows while the provider does, and comes back.

use std::sync::atomic::{AtomicBool, Ordering};

use contracts::contract::{Contract, State};
use contracts::envelope::Envelope;
use contracts::evidence::HandbackReport;
use contracts::ids::{Epoch, GroupId};
use lora_bridge::bridge::io::Mode;
use lora_bridge::mac::adr::AdrMode;
use peering::custody::{CustodyView, Role};
use tokio::sync::watch;

use super::reservations::{self, Members, Writer};
use super::{Error, Parts, Won, begin_serving, ended, join, leave, presence, progress, restore, returning, self_check};
use super::{margins, records};
use crate::agreements::Agreement;
use crate::lora;
use crate::tenants;
use crate::timeline::Event;

/// What the guard remembers between two views of custody.
#[derive(Debug, Default)]
struct Memory {
    /// The epoch in which this node serves.
    serving: Option<Epoch>,
    /// The provider held custody since this node last did.
    provider_held: bool,
    /// The epoch for which the arbitrator was told that custody is back.
    reported: Option<Epoch>,
}

/// Runs until the contract has ended and the devices are served without a lease again.
pub(super) async fn run(parts: &Parts, agreement: &Agreement) -> Result<(), Error> {
    let contract = &agreement.contract;
    let group = contract.group;
    let service = parts.core.own_service.as_ref().filter(|s| s.group == group).ok_or(Error::Lacking("service of this group"))?;
    // A process that starts after the end of a contract may find custody at the provider.
    if agreement.state.is_in_force() || !parts.leases.is_alone(group) {
        let sessions = tenants::http::sessions(&service.registration);
        let ends = parts.links.open(group, &sessions);
        parts.links.set_mirror(group, contract.terms.mirror);
        let (members, members_taken) = watch::channel(Members::default());
        let (serves, serves_taken) = watch::channel(false);
        let mut side_tasks = tokio::task::JoinSet::new();
        let writer = Writer::new(parts, group, members_taken);
        side_tasks.spawn(kit::task::belong(reservations::run(writer.clone(), ends.reserve)));
        side_tasks.spawn(kit::task::belong(records::run(writer, ends.records)));
        let follow = records::follow(parts.clone(), group, contract.members(), ends.missing);
        side_tasks.spawn(kit::task::belong(follow));
        side_tasks.spawn(kit::task::belong(progress::run(
            parts.clone(),
            group,
            contract.provider.node,
            ends.outgoing,
            serves_taken.clone(),
        )));
        side_tasks.spawn(kit::task::belong(margins::run(parts.clone(), group, contract.provider.node, serves_taken)));
        let presence = presence::run(parts.custody.clone(), parts.core.timeline.clone(), group);
        side_tasks.spawn(kit::task::belong(presence));
        let (is_fit, is_fit_taken) = watch::channel(*parts.core.log.writable().borrow());
        side_tasks.spawn(kit::task::belong(self_check::run(parts.clone(), group, contract.provider.node, is_fit)));
        restore(parts, group, &service.registration).await?;
        lora::standby::restore(&parts.core.store, &parts.bridge, group).await?;
        let is_served = serves.subscribe();
        let guard = Guard { parts, agreement, members, serves, is_fit: is_fit_taken, provider_holds: AtomicBool::new(false) };
        let mut memory = Memory {
            provider_held: matches!(agreement.state, State::TakenOver { .. } | State::HandingBack { .. }),
            ..Memory::default()
        };
        tokio::select! {
            biased;
            is_back = until_over(parts, agreement, is_served) => if !is_back? {
                leave(parts, group).await?;
                // What this node promised last.
                tokio::time::sleep(contract.terms.ttl.to_duration()).await;
            },
            stopped = guard.follow_custody(&mut memory) => stopped?,
        }
        if let Some(epoch) = memory.serving {
            // It serves on, without a lease.
            parts.core.timeline.push(Event::CustodyLost { group, epoch });
        }
    }
    serve_alone(parts, group).await?;
    parts.core.agreements.set_wiped(agreement.id).await?;
    Ok(())
}

/// Waits until the contract has ended and this node serves in an epoch of its own: above the downlink counters that came with the votes, which
/// the provider may have used. The provider serves for the grace and gives custody back meanwhile; if it does not, nobody promises it anything
/// more, and this node takes custody. False if it could not: then neither provider nor witness was to be reached.
async fn until_over(parts: &Parts, agreement: &Agreement, mut is_served: watch::Receiver<bool>) -> Result<bool, Error> {
    let terms = &agreement.contract.terms;
    let group = agreement.contract.group;
    ended(parts, agreement.id).await;
    if parts.leases.is_alone(group) {
        return Ok(true);
    }
    let grace = terms.grace + terms.ttl * 2;
    if tokio::time::timeout(grace.to_duration(), is_served.wait_for(|is_served| *is_served)).await.is_ok() {
        return Ok(true);
    }
    returning::refuse_renewals(parts, &agreement.contract).await;
    if let Err(error) = parts.custody.set_eligible(group, vec![parts.core.me()]).await {
        tracing::debug!(%group, %error, "nobody asks for votes here now");
    }
    let is_back = is_served.wait_for(|is_served| *is_served);
    let is_back = tokio::time::timeout(terms.take_back().to_duration(), is_back).await.is_ok();
    if !is_back {
        let what = format!("{group} is served without the downlink counters of its insurer: neither it nor a witness answers");
        parts.core.timeline.push(Event::Alarm { what });
    }
    Ok(is_back)
}

/// The contract is over: nobody else may serve these devices, so no lease is needed.
async fn serve_alone(parts: &Parts, group: GroupId) -> Result<(), Error> {
    let epoch = parts.custody.subscribe(group).map_or(Epoch(0), |view| view.borrow().voted_epoch);
    leave(parts, group).await?;
    let Some(service) = &parts.core.own_service else { return Ok(()) };
    alone(parts, group, epoch, &service.registration).await
}

/// Serves without a contract: counters are reserved on this disk only.
pub(crate) async fn alone(parts: &Parts, group: GroupId, epoch: Epoch, registration: &tenant::Registration) -> Result<(), Error> {
    let mut ends = parts.links.open(group, &tenants::http::sessions(registration));
    let (members, members_taken) = watch::channel(Members::default());
    kit::task::spawn(async move {
        // Nobody is told, but the queue must not fill up.
        let _members = members;
        while ends.outgoing.recv().await.is_some() {}
    });
    let writer = Writer::new(parts, group, members_taken);
    kit::task::spawn(reservations::run(writer.clone(), ends.reserve));
    kit::task::spawn(records::run(writer, ends.records));
    restore(parts, group, registration).await?;
    lora::standby::restore(&parts.core.store, &parts.bridge, group).await?;
    parts.leases.set_alone(group);
    parts.links.set_epoch(group, epoch);
    parts.bridge.custody(group, Mode::Serving { epoch, foreign_lease_end: None }).await?;
    // Nobody else's gateways have to hear them.
    parts.bridge.set_adr(group, super::adr(parts, AdrMode::Alone)).await?;
    Ok(())
}

struct Guard<'a> {
    parts: &'a Parts,
    agreement: &'a Agreement,
    members: watch::Sender<Members>,
    serves: watch::Sender<bool>,
    /// The self-check lets this node ask for custody.
    is_fit: watch::Receiver<bool>,
    /// The provider answered as the holder since this node last held.
    provider_holds: AtomicBool,
}

impl Guard<'_> {
    fn contract(&self) -> &Contract {
        &self.agreement.contract
    }

    async fn follow_custody(&self, memory: &mut Memory) -> Result<(), Error> {
        let failed = self.follow_custody_until_failure(memory).await;
        // The next run knows nothing of this one: it must find a node that does not serve.
        if let Some(epoch) = memory.serving {
            self.stop_serving(epoch, Mode::Following, memory).await?;
        }
        failed
    }

    async fn follow_custody_until_failure(&self, memory: &mut Memory) -> Result<(), Error> {
        let group = self.contract().group;
        let is_first = never_voted(self.parts, group).await;
        // What this node's gateways hear says nothing about the insurer's.
        self.parts.bridge.set_adr(group, super::adr(self.parts, AdrMode::Insured)).await?;
        let hold = join(self.parts, self.agreement).await?;
        let mut view = self.parts.custody.subscribe(group).ok_or(peering::custody::Error::UnknownGroup(group))?;
        let mut agreements = self.parts.core.agreements.changed();
        if is_first {
            // Nobody was ever voted for, and only this node may be the first: it serves on until it holds.
            self.parts.core.timeline.push(Event::Armed { contract: self.agreement.id, group });
        } else {
            self.parts.leases.set_held(group, hold.clone());
            self.parts.bridge.custody(group, Mode::Following).await?;
        }
        loop {
            let now = view.borrow_and_update().clone();
            agreements.borrow_and_update();
            match now.role {
                Role::Holder { epoch } => self.hold(epoch, &now, memory, &hold).await?,
                Role::Fenced { epoch } => self.stop_serving(epoch, Mode::Fenced, memory).await?,
                Role::Follower { holder, epoch } => {
                    memory.provider_held |= holder == Some(self.contract().provider.node);
                    if !(is_first && memory.serving.is_none() && holder.is_none()) {
                        self.stop_serving(epoch, Mode::Following, memory).await?;
                    }
                }
                Role::Recovering => {}
                // The driver starts it again once the disk takes votes.
                Role::Stopped => self.stop_serving(now.voted_epoch, Mode::Following, memory).await?,
            }
            self.report_handback(&now, memory);
            let provider = self.contract().provider.node;
            // Who lost a vote in a higher epoch stands by nobody, and the provider may hold all the same: it is asked.
            let may_follow = matches!(now.role, Role::Follower { holder, .. } if holder.is_none_or(|holder| holder == provider));
            tokio::select! {
                biased;
                changed = view.changed() => changed.map_err(|_| peering::custody::Error::UnknownGroup(group))?,
                // An error means that the node ends.
                Ok(()) = agreements.changed(), if memory.serving.is_some() => {}
                () = returning::catch_up(self.parts, self.contract(), &self.provider_holds, self.is_fit.clone()), if may_follow => {}
            }
        }
    }

    async fn hold(
        &self,
        epoch: Epoch,
        view: &CustodyView,
        memory: &mut Memory,
        hold: &peering::custody::Hold,
    ) -> Result<(), Error> {
        if memory.serving == Some(epoch) {
            return Ok(());
        }
        memory.provider_held |= self.provider_holds.swap(false, Ordering::Relaxed);
        let group = self.contract().group;
        let others = self.contract().members().into_iter().filter(|m| *m != self.parts.core.me()).collect();
        self.members.send_replace(Members { others, epoch: Some(epoch) });
        begin_serving(self.parts, self.contract(), epoch, view, memory.provider_held).await?;
        self.parts.leases.set_held(group, hold.clone());
        self.serves.send_replace(true);
        memory.serving = Some(epoch);
        self.parts.core.timeline.push(Won::of(&self.parts.core.clock, view).event(group, epoch, view));
        if std::mem::take(&mut memory.provider_held) {
            self.parts.core.timeline.push(Event::HandedBack { group, epoch });
            self.post_handback(epoch, view, memory);
        }
        Ok(())
    }

    /// By the arbitrator's word the provider serves in an epoch before ours: it was not told that custody is back, or this node did not know
    /// that it had been away (it was frozen, cut off or dead meanwhile).
    fn report_handback(&self, view: &CustodyView, memory: &mut Memory) {
        let Some(epoch) = memory.serving.filter(|epoch| memory.reported != Some(*epoch)) else { return };
        let told = match self.parts.core.agreements.get(self.agreement.id).map(|agreement| agreement.state) {
            Some(State::TakenOver { epoch: theirs, .. } | State::HandingBack { epoch: theirs, .. }) => theirs,
            Some(
                State::Proposed
                | State::Agreed
                | State::Preparing
                | State::Standby { .. }
                | State::Disputed { .. }
                | State::Ended { .. },
            )
            | None => return,
        };
        if told < epoch {
            self.post_handback(epoch, view, memory);
        }
    }

    fn post_handback(&self, epoch: Epoch, view: &CustodyView, memory: &mut Memory) {
        memory.reported = Some(epoch);
        let report = HandbackReport {
            contract: self.agreement.id,
            group: self.contract().group,
            node: self.parts.core.me(),
            epoch,
            certificate: view.certificate.as_ref().map(|c| c.to_bytes()).unwrap_or_default(),
            held_at: Won::of(&self.parts.core.clock, view).certified_at,
        };
        crate::market::evidence::post(&self.parts.core, Envelope::sign(&report, &self.parts.core.identity.keypair));
    }

    async fn stop_serving(&self, epoch: Epoch, mode: Mode, memory: &mut Memory) -> Result<(), Error> {
        let group = self.contract().group;
        self.parts.bridge.custody(group, mode).await?;
        self.serves.send_replace(false);
        if let Some(served) = memory.serving.take() {
            self.parts.core.timeline.push(Event::CustodyLost { group, epoch: served });
            tracing::info!(%group, %served, now = %epoch, "custody is no longer here");
        }
        Ok(())
    }
}

/// Whether this node never took part in custody of the group.
pub(crate) async fn never_voted(parts: &Parts, group: GroupId) -> bool {
    parts.votes.load(group).await.is_ok_and(|vote| vote.is_none_or(|v| v.voted_epoch == Epoch(0) && !v.restored))
}
