//! The arbitrator's store on its machine's disk: writes take time, fail while it is full, die at fail points, and votes go down in history.

use std::io;
use std::sync::Arc;

use arbitrator::store::{
    Changes, ContractFilter, ContractRow, Error, EventRow, EvidenceRow, GrantRow, Memory, NodeRow, Records, RecordsError, Result,
    Store, TransferRow, VerdictRow,
};
use async_trait::async_trait;
use contracts::custody::{Durable, MemberIndex};
use contracts::envelope::{Envelope, Key};
use contracts::evidence::Input;
use contracts::ids::{ContractId, DevEui, GroupId, NodeId, OwnerId, StatementId};
use contracts::ledger::{Account, AccountId, Ledger, Transfer};
use contracts::time::WallTime;
use contracts::write_ahead::Reservation;

use crate::machine::{Hardware, OpenDisk};
use crate::script::Written;
use crate::votes::Votes;

/// What one process of the arbitrator has open. Each [`Changes`], each batch of votes and each write of records is one durable write.
#[derive(Debug)]
pub(crate) struct ArbitratorStore {
    inner: Arc<Memory>,
    disk: OpenDisk,
    votes: Votes,
}

impl ArbitratorStore {
    /// `content` is what survives the process, on the disk of `hardware`.
    pub(crate) fn open(content: &Arc<Memory>, hardware: &Hardware) -> Self {
        Self { inner: Arc::clone(content), disk: hardware.disk.open(), votes: hardware.votes.clone() }
    }
}

fn full() -> Error {
    Error::Sql(sqlx::Error::Io(io::ErrorKind::StorageFull.into()))
}

#[async_trait]
impl Store for ArbitratorStore {
    async fn node(&self, id: NodeId) -> Result<Option<NodeRow>> {
        self.disk.enter().await;
        self.inner.node(id).await
    }

    async fn node_count(&self) -> Result<u64> {
        self.disk.enter().await;
        self.inner.node_count().await
    }

    async fn contract(&self, id: ContractId) -> Result<Option<ContractRow>> {
        self.disk.enter().await;
        self.inner.contract(id).await
    }

    async fn contracts(&self, filter: ContractFilter) -> Result<Vec<ContractRow>> {
        self.disk.enter().await;
        self.inner.contracts(filter).await
    }

    async fn covering(&self, devices: &[DevEui]) -> Result<Vec<ContractRow>> {
        self.disk.enter().await;
        self.inner.covering(devices).await
    }

    async fn statement(&self, id: StatementId) -> Result<Option<EvidenceRow>> {
        self.disk.enter().await;
        self.inner.statement(id).await
    }

    async fn evidence(&self, contract: ContractId, after: u64, limit: u32) -> Result<Vec<EvidenceRow>> {
        self.disk.enter().await;
        self.inner.evidence(contract, after, limit).await
    }

    async fn inputs(&self, contract: ContractId) -> Result<Vec<Input>> {
        self.disk.enter().await;
        self.inner.inputs(contract).await
    }

    async fn evidence_count(&self, contract: ContractId, author: Key) -> Result<u64> {
        self.disk.enter().await;
        self.inner.evidence_count(contract, author).await
    }

    async fn ledger(&self, transfers: &[Transfer]) -> Result<(Ledger, u64)> {
        self.disk.enter().await;
        self.inner.ledger(transfers).await
    }

    async fn accounts(&self, owner: OwnerId) -> Result<Vec<(AccountId, Account)>> {
        self.disk.enter().await;
        self.inner.accounts(owner).await
    }

    async fn sums(&self) -> Result<Vec<(String, i64)>> {
        self.disk.enter().await;
        self.inner.sums().await
    }

    async fn transfers(&self, owner: Option<OwnerId>, after: u64, limit: u32) -> Result<Vec<TransferRow>> {
        self.disk.enter().await;
        self.inner.transfers(owner, after, limit).await
    }

    async fn order(&self, id: StatementId) -> Result<Option<Envelope>> {
        self.disk.enter().await;
        self.inner.order(id).await
    }

    async fn verdict(&self, contract: ContractId) -> Result<Option<VerdictRow>> {
        self.disk.enter().await;
        self.inner.verdict(contract).await
    }

    async fn verdicts_about(&self, owner: OwnerId, limit: u32) -> Result<Vec<VerdictRow>> {
        self.disk.enter().await;
        self.inner.verdicts_about(owner, limit).await
    }

    async fn events(&self, after: u64, limit: u32) -> Result<Vec<EventRow>> {
        self.disk.enter().await;
        self.inner.events(after, limit).await
    }

    async fn last_event(&self) -> Result<u64> {
        self.disk.enter().await;
        self.inner.last_event().await
    }

    async fn commit(&self, changes: Changes) -> Result<()> {
        self.disk.write(Written::Database, full, self.inner.commit(changes)).await
    }

    async fn persist_votes(&self, batch: &[(GroupId, Durable)], at: WallTime) -> Result<()> {
        let apply = async {
            self.inner.persist_votes(batch, at).await?;
            self.votes.note(batch);
            Ok(())
        };
        self.disk.write(Written::Votes, full, apply).await
    }

    async fn votes(&self, group: GroupId) -> Result<Option<Durable>> {
        self.disk.enter().await;
        self.inner.votes(group).await
    }

    async fn unreported_grants(&self, group: Option<GroupId>, limit: u32) -> Result<Vec<GrantRow>> {
        self.disk.enter().await;
        self.inner.unreported_grants(group, limit).await
    }

    async fn put_records(
        &self,
        group: GroupId,
        holder: MemberIndex,
        reservation: &Reservation,
        sealed: &[(DevEui, Vec<u8>)],
    ) -> std::result::Result<(), RecordsError> {
        let apply = self.inner.put_records(group, holder, reservation, sealed);
        self.disk.write(Written::Database, || full().into(), apply).await
    }

    async fn records(&self, group: GroupId) -> Result<Records> {
        self.disk.enter().await;
        self.inner.records(group).await
    }
}
