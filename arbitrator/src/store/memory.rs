//! The store in memory, for tests and simulations.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use contracts::custody::{Durable, MemberIndex};
use contracts::envelope::{Envelope, Key};
use contracts::evidence::Input;
use contracts::ids::{ContractId, DevEui, Epoch, GroupId, NodeId, OwnerId, StatementId};
use contracts::ledger::{Account, AccountId, Holder, Ledger, Transfer};
use contracts::time::WallTime;
use contracts::write_ahead::{Reservation, Reserved};

use super::{
    Changes, ContractChange, ContractFilter, ContractRow, Error, EventRow, EvidenceRow, GrantRow, NodeRow, Records, RecordsError,
    Result, SEALED_BYTES_MAX, SealedRow, Store, TransferRow, VerdictRow, both, touched,
};

#[derive(Debug, Default)]
struct State {
    nodes: BTreeMap<NodeId, NodeRow>,
    /// With the time at which a time rule is due.
    contracts: Vec<(ContractRow, Option<WallTime>)>,
    evidence: Vec<EvidenceRow>,
    orders: BTreeMap<StatementId, Envelope>,
    ledger: Ledger,
    ledger_version: u64,
    transfers: Vec<TransferRow>,
    verdicts: Vec<VerdictRow>,
    events: Vec<EventRow>,
    votes: BTreeMap<GroupId, Durable>,
    grants: BTreeMap<(GroupId, Epoch), (GrantRow, bool)>,
    records: BTreeMap<GroupId, Kept>,
}

#[derive(Debug, Clone, Default)]
struct Kept {
    bounds: Reserved,
    sealed: BTreeMap<DevEui, SealedRow>,
}

#[derive(Debug, Default)]
pub struct Memory(Mutex<State>);

fn next<T>(rows: &[T]) -> u64 {
    rows.len() as u64 + 1
}

fn page<T: Clone>(rows: impl Iterator<Item = T>, limit: u32) -> Vec<T> {
    rows.take(usize::try_from(limit).unwrap_or(usize::MAX)).collect()
}

impl Memory {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn contract_index(&self, id: ContractId) -> Option<usize> {
        self.contracts.iter().position(|(row, _)| row.id == id)
    }

    /// Checks everything that can be refused before anything is written.
    fn check(&self, changes: &Changes) -> Result<()> {
        if changes.ledger.as_ref().is_some_and(|change| change.version != self.ledger_version) {
            return Err(Error::Changed);
        }
        let evidence_known = |row: &EvidenceRow| self.evidence.iter().any(|known| known.id == row.id);
        if changes.evidence.as_ref().is_some_and(evidence_known) {
            return Err(Error::Changed);
        }
        if changes.order.as_ref().is_some_and(|(id, _)| self.orders.contains_key(id)) {
            return Err(Error::Changed);
        }
        let fits = match &changes.contract {
            None => true,
            Some(ContractChange::Enter { id, .. }) => self.contract_index(*id).is_none(),
            Some(ContractChange::Stand { id, version, .. }) => {
                self.contract_index(*id).is_some_and(|at| self.contracts[at].0.version == *version)
            }
        };
        if fits { Ok(()) } else { Err(Error::Changed) }
    }

    fn write(&mut self, changes: Changes) {
        for node in changes.nodes {
            self.nodes.insert(node.record.node, node);
        }
        match changes.contract {
            None => {}
            Some(ContractChange::Enter { id, contract, envelope, standing }) => {
                let due_at = standing.due_at(&contract);
                let seq = next(&self.contracts);
                let (contract, standing) = (*contract, *standing);
                self.contracts.push((ContractRow { seq, id, contract, envelope, standing, version: 1 }, due_at));
            }
            Some(ContractChange::Stand { id, version, standing, due_at }) => {
                if let Some(at) = self.contract_index(id) {
                    let (row, due) = &mut self.contracts[at];
                    (row.standing, row.version, *due) = (*standing, version + 1, due_at);
                }
            }
        }
        if let Some(row) = changes.evidence {
            self.evidence.push(EvidenceRow { seq: next(&self.evidence), ..row });
        }
        self.orders.extend(changes.order);
        if let Some(change) = changes.ledger {
            self.ledger_version += 1;
            self.ledger.accounts.extend(change.accounts);
            self.ledger.pendings.extend(change.pendings);
            for (transfer, movement) in change.transfers {
                self.ledger.transfers.insert(transfer.id, transfer.clone());
                self.transfers.push(TransferRow { seq: next(&self.transfers), transfer, movement, made_at: changes.at });
            }
        }
        self.verdicts.extend(changes.verdict);
        if let Some(grant) = changes.reported.and_then(|key| self.grants.get_mut(&key)) {
            grant.1 = true;
        }
        for body in changes.events {
            self.events.push(EventRow { seq: next(&self.events), at: changes.at, body });
        }
    }
}

#[async_trait]
impl Store for Memory {
    async fn node(&self, id: NodeId) -> Result<Option<NodeRow>> {
        Ok(self.state().nodes.get(&id).cloned())
    }

    async fn node_count(&self) -> Result<u64> {
        Ok(self.state().nodes.len() as u64)
    }

    async fn contract(&self, id: ContractId) -> Result<Option<ContractRow>> {
        let state = self.state();
        Ok(state.contract_index(id).map(|at| state.contracts[at].0.clone()))
    }

    async fn contracts(&self, filter: ContractFilter) -> Result<Vec<ContractRow>> {
        let state = self.state();
        let wanted = state.contracts.iter().filter(|(row, due_at)| {
            row.seq > filter.after
                && filter.member.is_none_or(|node| row.contract.members().contains(&node))
                && filter.group.is_none_or(|group| row.contract.group == group)
                && filter.in_force.is_none_or(|in_force| row.standing.state.is_in_force() == in_force)
                && filter.ended_since.is_none_or(|since| row.standing.ended.as_ref().is_some_and(|ended| ended.at >= since))
                && filter.due.is_none_or(|now| due_at.is_some_and(|due| due <= now))
        });
        Ok(page(wanted.map(|(row, _)| row.clone()), filter.limit))
    }

    async fn covering(&self, devices: &[DevEui]) -> Result<Vec<ContractRow>> {
        let state = self.state();
        let covers =
            |row: &&ContractRow| row.standing.state.is_in_force() && devices.iter().any(|d| row.contract.devices.contains(d));
        Ok(state.contracts.iter().map(|(row, _)| row).filter(covers).cloned().collect())
    }

    async fn statement(&self, id: StatementId) -> Result<Option<EvidenceRow>> {
        Ok(self.state().evidence.iter().find(|row| row.id == id).cloned())
    }

    async fn evidence(&self, contract: ContractId, after: u64, limit: u32) -> Result<Vec<EvidenceRow>> {
        let state = self.state();
        let rows = state.evidence.iter().filter(|row| row.contract == contract && row.seq > after);
        Ok(page(rows.cloned(), limit))
    }

    async fn inputs(&self, contract: ContractId) -> Result<Vec<Input>> {
        let state = self.state();
        let rows = state.evidence.iter().filter(|row| row.contract == contract);
        Ok(rows.map(|row| Input { statement: row.id, received_at: row.received_at }).collect())
    }

    async fn evidence_count(&self, contract: ContractId, author: Key) -> Result<u64> {
        Ok(self.state().evidence.iter().filter(|row| row.contract == contract && row.author == author).count() as u64)
    }

    async fn ledger(&self, transfers: &[Transfer]) -> Result<(Ledger, u64)> {
        let state = self.state();
        let (ids, mut accounts) = touched(transfers);
        let mut part = Ledger::default();
        for id in ids {
            part.transfers.extend(state.ledger.transfers.get(&id).map(|transfer| (id, transfer.clone())));
            if let Some(pending) = state.ledger.pendings.get(&id) {
                accounts.extend(both(&pending.movement));
                part.pendings.insert(id, pending.clone());
            }
        }
        for id in accounts {
            part.accounts.extend(state.ledger.accounts.get(&id).map(|account| (id, *account)));
        }
        Ok((part, state.ledger_version))
    }

    async fn accounts(&self, owner: OwnerId) -> Result<Vec<(AccountId, Account)>> {
        let state = self.state();
        let rows = state.ledger.accounts.iter().filter(|(id, _)| id.holder == Holder::Owner(owner));
        Ok(rows.map(|(id, account)| (id.clone(), *account)).collect())
    }

    async fn sums(&self) -> Result<Vec<(String, i64)>> {
        let mut sums: BTreeMap<String, i64> = BTreeMap::new();
        for (id, account) in &self.state().ledger.accounts {
            *sums.entry(id.currency.as_str().to_owned()).or_default() += account.posted_micros();
        }
        Ok(sums.into_iter().collect())
    }

    async fn transfers(&self, owner: Option<OwnerId>, after: u64, limit: u32) -> Result<Vec<TransferRow>> {
        let state = self.state();
        let rows = state.transfers.iter().filter(|row| {
            let holder = owner.map(Holder::Owner);
            row.seq > after && holder.is_none_or(|holder| row.movement.debit == holder || row.movement.credit == holder)
        });
        Ok(page(rows.cloned(), limit))
    }

    async fn order(&self, id: StatementId) -> Result<Option<Envelope>> {
        Ok(self.state().orders.get(&id).cloned())
    }

    async fn verdict(&self, contract: ContractId) -> Result<Option<VerdictRow>> {
        Ok(self.state().verdicts.iter().find(|row| row.verdict.contract == contract).cloned())
    }

    async fn verdicts_about(&self, owner: OwnerId, limit: u32) -> Result<Vec<VerdictRow>> {
        let state = self.state();
        Ok(page(state.verdicts.iter().rev().filter(|row| row.verdict.provider.owner == owner).cloned(), limit))
    }

    async fn events(&self, after: u64, limit: u32) -> Result<Vec<EventRow>> {
        let state = self.state();
        Ok(page(state.events.iter().filter(|row| row.seq > after).cloned(), limit))
    }

    async fn last_event(&self) -> Result<u64> {
        Ok(self.state().events.len() as u64)
    }

    async fn commit(&self, changes: Changes) -> Result<()> {
        let mut state = self.state();
        state.check(&changes)?;
        state.write(changes);
        Ok(())
    }

    async fn persist_votes(&self, batch: &[(GroupId, Durable)], at: WallTime) -> Result<()> {
        let mut state = self.state();
        for (group, durable) in batch {
            state.votes.insert(*group, *durable);
            if let Some(voted_for) = durable.voted_for.filter(|_| durable.voted_epoch > Epoch(0)) {
                let row = GrantRow { group: *group, epoch: durable.voted_epoch, voted_for, granted_at: at };
                state.grants.entry((*group, durable.voted_epoch)).or_insert((row, false));
            }
        }
        Ok(())
    }

    async fn votes(&self, group: GroupId) -> Result<Option<Durable>> {
        Ok(self.state().votes.get(&group).copied())
    }

    async fn unreported_grants(&self, group: Option<GroupId>, limit: u32) -> Result<Vec<GrantRow>> {
        let state = self.state();
        let rows = state.grants.values().filter(|(row, reported)| !reported && group.is_none_or(|group| row.group == group));
        Ok(rows.map(|(row, _)| *row).take(limit as usize).collect())
    }

    async fn put_records(
        &self,
        group: GroupId,
        holder: MemberIndex,
        reservation: &Reservation,
        sealed: &[(DevEui, Vec<u8>)],
    ) -> std::result::Result<(), RecordsError> {
        let mut state = self.state();
        let voted = state.votes.get(&group).copied().unwrap_or_default();
        if voted.voted_epoch != reservation.epoch || voted.holder() != Some(holder) {
            return Err(RecordsError::NotTheHolder { voted_epoch: voted.voted_epoch });
        }
        let mut kept = state.records.get(&group).cloned().unwrap_or_default();
        let has_room = kept.bounds.raise_all(&reservation.bounds);
        for (device, blob) in sealed {
            let (epoch, seq) = (reservation.epoch, reservation.seq);
            if kept.sealed.get(device).is_none_or(|known| (known.epoch, known.seq) < (epoch, seq)) {
                kept.sealed.insert(*device, SealedRow { device: *device, epoch, seq, blob: blob.clone() });
            }
        }
        let bytes: usize = kept.sealed.values().map(|row| row.blob.len()).sum();
        if !has_room || bytes > SEALED_BYTES_MAX {
            return Err(RecordsError::Full);
        }
        state.records.insert(group, kept);
        Ok(())
    }

    async fn records(&self, group: GroupId) -> Result<Records> {
        let kept = self.state().records.get(&group).cloned().unwrap_or_default();
        Ok(Records { bounds: kept.bounds.bounds().collect(), sealed: kept.sealed.into_values().collect() })
    }
}
