//! The arbitrator as a witness: it votes on the custody of the groups of contracts in force that name it, and keeps holders' write-ahead records.
//!
//! A reconciler makes the groups that are driven equal to those of the contracts in force: all at the start and where something failed
//! before, else those whose contracts changed. Votes are on disk before they leave; after a restart each group abstains for one ttl (both
//! are the driver's rules).

mod records;
mod votes;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use axum::Router;
use bytes::Bytes;
use contracts::contract::State;
use contracts::custody::Readiness;
use contracts::envelope::Keypair;
use contracts::ids::{DevEui, GroupId, NodeId};
use contracts::time::{BootTime, Millis, WallTime};
use contracts::write_ahead::{Bound, Reserved};
use kit::clock::Clock;
use kit::work::Uninterrupted;
use peering::custody::{self, CustodyHandle, Entropy, GroupConfig, RecordSource, Setup};
use peering::{AddressBook, Transport};
use tokio::sync::watch;

use crate::service::{self, Changed, Service};
use crate::store::{ContractFilter, ContractRow, ROWS_MAX};

/// A contract that ended longer ago is not looked at by a witness that starts anew.
const ENDED_MAX: Millis = Millis::from_secs(7 * 86_400);
/// Writes of records at a time; more wait.
pub const WRITES_MAX: usize = 64;

/// Why the witness does not do it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("custody cannot be driven")]
    Custody(#[from] custody::Error),
    #[error("the contracts cannot be read")]
    Service(#[from] service::Error),
    #[error("the store failed")]
    Store(#[from] crate::store::Error),
}

/// Who may connect: the members of the groups of contracts in force, with the number of these groups. Shared with the endpoint.
#[derive(Debug, Clone, Default)]
pub struct Admitted(Arc<RwLock<BTreeMap<NodeId, usize>>>);

impl Admitted {
    #[must_use]
    pub fn contains(&self, node: NodeId) -> bool {
        self.0.read().unwrap_or_else(PoisonError::into_inner).contains_key(&node)
    }

    fn enter(&self, members: &[NodeId]) {
        let mut groups = self.0.write().unwrap_or_else(PoisonError::into_inner);
        for member in members {
            *groups.entry(*member).or_default() += 1;
        }
    }

    fn leave(&self, members: &[NodeId]) {
        let mut groups = self.0.write().unwrap_or_else(PoisonError::into_inner);
        for member in members {
            if let Some(count) = groups.get_mut(member) {
                *count = count.saturating_sub(1);
                if *count == 0 {
                    groups.remove(member);
                }
            }
        }
    }
}

/// A group as it is driven.
#[derive(Debug, Clone)]
struct Driven {
    config: GroupConfig,
    devices: BTreeSet<DevEui>,
    grace: Millis,
    take_back: Millis,
    /// None while a contract is in force.
    ending: Option<Ending>,
}

/// No contract in force any more: driven without the provider, so that the customer can take custody back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    /// The provider may go on serving until then.
    Grace { until: BootTime },
    /// It gave nothing back: nothing is promised to it any more, and the customer may take custody until then.
    TakeBack { until: BootTime },
}

impl Ending {
    const fn until(self) -> BootTime {
        match self {
            Self::Grace { until } | Self::TakeBack { until } => until,
        }
    }
}

/// The running witness.
#[derive(Debug)]
pub struct Witness {
    service: Arc<Service>,
    custody: CustodyHandle,
    admitted: Admitted,
    addresses: AddressBook,
    clock: Clock,
    driven: Mutex<BTreeMap<GroupId, Driven>>,
    reserved: ReservedMirror,
    /// Writes of records run to their end, whether or not the holder waits for the answer.
    writes: Uninterrupted,
}

/// What is reserved in each group, in memory for the grants.
#[derive(Debug, Clone, Default)]
struct ReservedMirror {
    groups: Arc<Mutex<BTreeMap<GroupId, Announced>>>,
    writes: Arc<AtomicU64>,
}

/// Never behind the disk: a grant that leaves while the disk is written names what is being written too.
#[derive(Debug, Default)]
struct Announced {
    stored: Reserved,
    /// Being written, in the order in which it came; forgotten if the disk refuses it.
    writing: BTreeMap<u64, Vec<Bound>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ReservedMirror {
    fn bytes(&self, group: GroupId) -> Bytes {
        let groups = lock(&self.groups);
        let Some(Announced { stored, writing }) = groups.get(&group) else { return Bytes::new() };
        if writing.is_empty() {
            return stored.to_bytes().into();
        }
        let mut all = stored.clone();
        for bounds in writing.values() {
            // What there is no room for, the disk refuses too.
            all.raise_all(bounds);
        }
        all.to_bytes().into()
    }

    /// From now on writes are noted; comes before the disk is read, so that none falls between.
    fn open(&self, group: GroupId) {
        lock(&self.groups).entry(group).or_default();
    }

    fn merge(&self, group: GroupId, stored: &Reserved) {
        lock(&self.groups).entry(group).or_default().stored.merge(stored);
    }

    /// Goes with grants until the write with this number ends.
    fn announce(&self, group: GroupId, bounds: &[Bound]) -> u64 {
        let number = self.writes.fetch_add(1, Ordering::Relaxed);
        if let Some(announced) = lock(&self.groups).get_mut(&group) {
            announced.writing.insert(number, bounds.to_vec());
        }
        number
    }

    fn end(&self, group: GroupId, number: u64, bounds: &[Bound], is_stored: bool) {
        let mut groups = lock(&self.groups);
        let Some(Announced { stored, writing }) = groups.get_mut(&group) else { return };
        writing.remove(&number);
        if is_stored {
            stored.raise_all(bounds);
        }
    }

    fn remove(&self, group: GroupId) {
        lock(&self.groups).remove(&group);
    }
}

/// Starts to vote. `transport` serves the routes of this witness from now on.
///
/// # Errors
/// Custody cannot be driven, or the contracts in force cannot be read.
pub async fn start(
    service: Arc<Service>,
    transport: Arc<dyn Transport>,
    keypair: Keypair,
    clock: Clock,
    admitted: Admitted,
    addresses: AddressBook,
    entropy: Entropy,
) -> Result<Arc<Witness>, Error> {
    let votes = Arc::new(votes::StoredVotes::new(Arc::clone(&service.store), clock.clone()));
    let reserved = ReservedMirror::default();
    let mirror = reserved.clone();
    let records: RecordSource = Arc::new(move |group| mirror.bytes(group));
    let setup = Setup { records, entropy, ..Setup::new(Arc::clone(&transport), keypair, clock.clone(), votes) };
    let (custody, routes) = custody::start(setup)?;
    let driven = Mutex::default();
    let writes = Uninterrupted::new(WRITES_MAX);
    let witness = Arc::new(Witness { service, custody, admitted, addresses, clock, driven, reserved, writes });
    witness.reconcile().await?;
    witness.resume_endings().await?;
    transport.serve(router(routes, &witness));
    Ok(witness)
}

/// All that members may ask of the witness.
fn router(custody: Router, witness: &Arc<Witness>) -> Router {
    custody.merge(records::router(Arc::clone(witness)))
}

impl Witness {
    #[must_use]
    pub fn custody(&self) -> &CustodyHandle {
        &self.custody
    }

    /// Follows the contracts in force until `stopping`.
    pub async fn run(self: Arc<Self>, every: Duration, mut stopping: watch::Receiver<bool>) {
        let mut changes = self.service.watch_contracts();
        let mut is_behind = false;
        loop {
            tokio::select! {
                biased;
                _ = stopping.wait_for(|stop| *stop) => break,
                _ = changes.changed() => {}
                () = tokio::time::sleep(every) => {}
            }
            let changed = self.service.take_changed();
            let followed = if is_behind { self.reconcile().await } else { self.follow(changed).await };
            is_behind = followed.is_err();
            if let Err(error) = followed {
                tracing::error!(error = &error as &dyn std::error::Error, "the witness could not follow the contracts in force");
            }
        }
        self.custody.stop().await;
    }

    /// Makes the groups that are driven equal to those of all contracts in force.
    ///
    /// # Errors
    /// What could not be done is done next time.
    pub async fn reconcile(&self) -> Result<(), Error> {
        let me = self.service.me();
        let filter = ContractFilter { member: Some(me), in_force: Some(true), limit: ROWS_MAX, ..ContractFilter::default() };
        let wanted = self.wanted(filter).await?;
        let driven: Vec<GroupId> = lock(&self.driven).keys().copied().collect();
        let groups: BTreeSet<GroupId> = wanted.keys().copied().chain(driven).collect();
        self.make_equal(wanted, groups).await
    }

    /// Goes on with the groups whose contract was over before this process began, as long as their customers may need a vote, and the counters that
    /// a provider reserved, to take custody back.
    async fn resume_endings(&self) -> Result<(), Error> {
        let (me, now, wall) = (self.service.me(), self.clock.boot(), self.clock.wall());
        let ended_since = Some(wall - ENDED_MAX);
        let filter = ContractFilter { member: Some(me), ended_since, limit: ROWS_MAX, ..ContractFilter::default() };
        let mut endings = BTreeMap::new();
        self.for_each_witnessed(filter, |row| {
            let ended = row.standing.ended.as_ref().map_or(wall, |ended| ended.at);
            keep_newest(&mut endings, row.contract.group, ended, driven(row));
        })
        .await?;
        endings.retain(|id, _| !lock(&self.driven).contains_key(id));
        for (id, (ended, mut driven)) in endings {
            let age = wall.since(ended);
            if age > driven.grace + driven.take_back {
                continue;
            }
            driven.ending = Some(Ending::Grace { until: now + Millis(driven.grace.0.saturating_sub(age.0)) });
            self.learn_addresses(&driven.config.members.iter().copied().collect()).await?;
            self.drive(id, &driven.config).await?;
            lock(&self.driven).insert(id, driven);
        }
        Ok(())
    }

    /// The same for the groups of contracts that changed, and for what is over by now.
    async fn follow(&self, changed: Changed) -> Result<(), Error> {
        let now = self.clock.boot();
        let over = |driven: &Driven| driven.ending.is_some_and(|ending| ending.until() <= now);
        // Groups stop only when a vote cannot be stored; as long as that never happened nobody has to look.
        let stop = self.custody.counts().persist_failed > 0;
        let mut groups: BTreeSet<GroupId> = lock(&self.driven)
            .iter()
            .filter(|(id, driven)| over(driven) || stop && self.has_stopped(**id))
            .map(|(id, _)| *id)
            .collect();
        for contract in changed.contracts {
            groups.extend(self.service.store.contract(contract).await?.map(|row| row.contract.group));
        }
        let mut wanted = BTreeMap::new();
        for group in &groups {
            let filter =
                ContractFilter { group: Some(*group), in_force: Some(true), limit: ROWS_MAX, ..ContractFilter::default() };
            wanted.append(&mut self.wanted(filter).await?);
        }
        let members = changed.nodes.into_iter().filter(|node| self.admitted.contains(*node)).collect();
        self.learn_addresses(&members).await?;
        if groups.is_empty() { Ok(()) } else { self.make_equal(wanted, groups).await }
    }

    /// Makes `groups` equal to what is `wanted` of them: driven as it is there, retired where it is not.
    async fn make_equal(&self, wanted: BTreeMap<GroupId, Driven>, groups: BTreeSet<GroupId>) -> Result<(), Error> {
        let members: BTreeSet<NodeId> = wanted.values().flat_map(|group| group.config.members.clone()).collect();
        self.learn_addresses(&members).await?;
        for id in groups {
            let known = lock(&self.driven).get(&id).cloned();
            match (wanted.get(&id), known) {
                (Some(group), Some(driven))
                    if driven.config.members == group.config.members
                        && driven.config.ttl == group.config.ttl
                        && !self.has_stopped(id) =>
                {
                    if driven.config.eligible != group.config.eligible {
                        self.custody.set_eligible(id, group.config.eligible.clone()).await?;
                    }
                    lock(&self.driven).insert(id, group.clone());
                }
                (Some(group), known) => {
                    // Another member list than that of a contract that ended: a new group under the old epochs. Or its votes could
                    // not be written: it begins again as after a restart, from what is on disk and silent for one ttl.
                    if let Some(driven) = known {
                        self.leave(id, &driven.config.members).await?;
                    }
                    self.drive(id, &group.config).await?;
                    lock(&self.driven).insert(id, group.clone());
                }
                (None, Some(driven)) => self.retire(id, driven).await?,
                (None, None) => {}
            }
        }
        let count = i64::try_from(lock(&self.driven).len()).unwrap_or(i64::MAX);
        self.service.metrics.groups_witnessed.set(count);
        Ok(())
    }

    /// The groups of the contracts that `filter` finds in which this node is a witness.
    async fn wanted(&self, filter: ContractFilter) -> Result<BTreeMap<GroupId, Driven>, Error> {
        let mut wanted: BTreeMap<GroupId, Driven> = BTreeMap::new();
        self.for_each_witnessed(filter, |row| {
            let group = wanted.entry(row.contract.group).or_insert_with(|| driven(row));
            // Contracts over one group have the same members; the provider is eligible once one of them is armed.
            group.devices.extend(&row.contract.devices);
            if is_armed(row) && !group.config.eligible.contains(&row.contract.provider.node) {
                group.config.eligible.push(row.contract.provider.node);
            }
        })
        .await?;
        Ok(wanted)
    }

    /// Shows the contracts that `filter` finds in which this node is a witness, page by page.
    async fn for_each_witnessed(&self, mut filter: ContractFilter, mut show: impl FnMut(&ContractRow)) -> Result<(), Error> {
        let me = self.service.me();
        loop {
            let rows = self.service.list_contracts(filter).await?;
            rows.iter().filter(|row| row.contract.witnesses.contains(&me)).for_each(&mut show);
            match rows.last() {
                Some(last) if rows.len() >= ROWS_MAX as usize => filter.after = last.seq,
                _ => return Ok(()),
            }
        }
    }

    /// Whether the driver gave the group up, because a vote could not be stored.
    fn has_stopped(&self, id: GroupId) -> bool {
        self.custody.subscribe(id).is_some_and(|view| view.borrow().alarm.is_some())
    }

    async fn learn_addresses(&self, members: &BTreeSet<NodeId>) -> Result<(), Error> {
        for member in members {
            if let Some(row) = self.service.store.node(*member).await? {
                self.addresses.set(*member, row.record.addresses.clone());
            }
        }
        Ok(())
    }

    async fn drive(&self, id: GroupId, config: &GroupConfig) -> Result<(), Error> {
        self.reserved.open(id);
        let mut reserved = Reserved::default();
        reserved.raise_all(&self.service.store.records(id).await?.bounds);
        // Merged: a group that is driven anew may be written to meanwhile.
        self.reserved.merge(id, &reserved);
        self.custody.add_group(config.clone()).await?;
        self.admitted.enter(&config.members);
        tracing::info!(group = %id, "voting as a witness");
        Ok(())
    }

    async fn leave(&self, id: GroupId, members: &[NodeId]) -> Result<(), Error> {
        self.custody.remove_group(id).await?;
        self.admitted.leave(members);
        lock(&self.driven).remove(&id);
        Ok(())
    }

    /// The contract ended: no votes for the provider any more, after the grace no promises either. When the customer has custody, or had time enough to
    /// take it, the group is left.
    async fn retire(&self, id: GroupId, mut driven: Driven) -> Result<(), Error> {
        let now = self.clock.boot();
        match driven.ending {
            None => {
                driven.config.eligible.truncate(1);
                self.custody.set_eligible(id, driven.config.eligible.clone()).await?;
                driven.ending = Some(Ending::Grace { until: now + driven.grace });
                lock(&self.driven).insert(id, driven);
            }
            Some(ending) if ending.until() > now => {}
            Some(Ending::Grace { .. }) if !self.has_customer(id, &driven) => {
                let epoch = self.custody.subscribe(id).map(|view| view.borrow().voted_epoch);
                if let Some(epoch) = epoch {
                    tracing::info!(group = %id, %epoch, "the grace is over: the provider is promised nothing more");
                    self.custody.set_hand_back_overdue(id, epoch).await?;
                }
                driven.ending = Some(Ending::TakeBack { until: now + driven.take_back });
                lock(&self.driven).insert(id, driven);
            }
            Some(Ending::Grace { .. } | Ending::TakeBack { .. }) => {
                self.leave(id, &driven.config.members).await?;
                self.reserved.remove(id);
                tracing::info!(group = %id, "no longer a witness");
            }
        }
        Ok(())
    }

    fn has_customer(&self, id: GroupId, driven: &Driven) -> bool {
        self.custody.subscribe(id).is_some_and(|view| view.borrow().voted_for == Some(driven.config.first_holder))
    }
}

/// The provider has proved its readiness.
fn is_armed(row: &ContractRow) -> bool {
    match row.standing.state {
        State::Standby { .. } | State::TakenOver { .. } | State::HandingBack { .. } => true,
        State::Disputed { .. } => row.standing.standby_since.is_some(),
        State::Proposed | State::Agreed | State::Preparing | State::Ended { .. } => false,
    }
}

/// Of a group's endings the newest counts.
fn keep_newest<T>(endings: &mut BTreeMap<GroupId, (WallTime, T)>, group: GroupId, at: WallTime, ending: T) {
    if endings.get(&group).is_none_or(|(known, _)| *known < at) {
        endings.insert(group, (at, ending));
    }
}

fn driven(row: &ContractRow) -> Driven {
    let contract = &row.contract;
    let config = GroupConfig {
        group: contract.group,
        members: contract.members(),
        candidates: vec![contract.customer.node, contract.provider.node],
        eligible: vec![contract.customer.node],
        first_holder: contract.customer.node,
        ttl: contract.terms.ttl,
        readiness: Readiness::Unready,
    };
    Driven {
        config,
        devices: contract.devices.clone(),
        grace: contract.terms.grace,
        take_back: contract.terms.take_back(),
        ending: None,
    }
}

#[cfg(test)]
mod tests {
    use contracts::ids::SessionId;
    use contracts::write_ahead::JOINS;

    use super::*;

    #[test]
    fn of_a_groups_endings_the_newest_counts_however_they_are_listed() {
        let [one, other] = [1, 2].map(|n| GroupId::from_bytes([n; 16]));
        for order in [[1, 2, 3], [3, 2, 1], [2, 3, 1]] {
            let mut endings = BTreeMap::new();
            keep_newest(&mut endings, other, WallTime(9), 9);
            for at in order {
                keep_newest(&mut endings, one, WallTime(at), at);
            }
            assert_eq!((endings[&one].1, endings[&other].1), (3, 9), "{order:?}");
        }
    }

    #[test]
    fn what_the_disk_refuses_goes_with_no_later_grant_and_a_write_under_way_goes_with_all() {
        let (group, device) = (GroupId::from_bytes([1; 16]), DevEui::from_u64(1));
        let [old, new] = [1, 2].map(|n| SessionId::from_bytes([n; 8]));
        let write = |version, session| [(JOINS, version), (session, 16)].map(|(session, upto)| Bound { device, session, upto });
        let mirror = ReservedMirror::default();
        let granted = || Reserved::from_bytes(&mirror.bytes(group)).expect("what a grant carries");
        let known = || (granted().joins(device), granted().upto(device, old), granted().upto(device, new));
        let note = |bounds: &[Bound], is_stored| mirror.end(group, mirror.announce(group, bounds), bounds, is_stored);
        mirror.open(group);
        note(&write(10, old), true);
        let refused = write(20, new);
        let number = mirror.announce(group, &refused);
        assert_eq!(known(), (20, None, Some(16)));
        note(&[Bound { device, session: old, upto: 32 }], true);
        mirror.end(group, number, &refused, false);
        assert_eq!(known(), (10, Some(32), None));
        // The group ends while a write is under way, and begins anew before the write is on disk.
        let number = mirror.announce(group, &write(30, new));
        mirror.remove(group);
        assert!(mirror.bytes(group).is_empty());
        mirror.open(group);
        mirror.end(group, number, &write(30, new), true);
        assert_eq!(known(), (30, None, Some(16)));
    }
}
