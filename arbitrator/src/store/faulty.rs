//! A store with fail points: dies, refuses or dawdles at the chosen durable write. For tests and simulation.

use async_trait::async_trait;
use contracts::custody::{Durable, MemberIndex};
use contracts::envelope::{Envelope, Key};
use contracts::evidence::Input;
use contracts::ids::{ContractId, DevEui, GroupId, NodeId, OwnerId, StatementId};
use contracts::ledger::{Account, AccountId, Ledger, Transfer};
use contracts::time::WallTime;
use contracts::write_ahead::Reservation;
use kit::fault::Faulty;

use super::{
    Changes, ContractFilter, ContractRow, Error, EventRow, EvidenceRow, GrantRow, NodeRow, Records, RecordsError, Result, Store,
    TransferRow, VerdictRow,
};

/// `inner` behind fail points. Each [`Changes`], each batch of votes and each write of records is one durable write.
pub type FaultyStore = Faulty<dyn Store>;

/// What a caller hears of a full disk, and of a process that is dead.
fn full() -> Error {
    Error::Sql(sqlx::Error::Io(std::io::ErrorKind::StorageFull.into()))
}

#[async_trait]
impl Store for FaultyStore {
    async fn node(&self, id: NodeId) -> Result<Option<NodeRow>> {
        self.points.read(full, self.inner.node(id)).await
    }

    async fn node_count(&self) -> Result<u64> {
        self.points.read(full, self.inner.node_count()).await
    }

    async fn contract(&self, id: ContractId) -> Result<Option<ContractRow>> {
        self.points.read(full, self.inner.contract(id)).await
    }

    async fn contracts(&self, filter: ContractFilter) -> Result<Vec<ContractRow>> {
        self.points.read(full, self.inner.contracts(filter)).await
    }

    async fn covering(&self, devices: &[DevEui]) -> Result<Vec<ContractRow>> {
        self.points.read(full, self.inner.covering(devices)).await
    }

    async fn statement(&self, id: StatementId) -> Result<Option<EvidenceRow>> {
        self.points.read(full, self.inner.statement(id)).await
    }

    async fn evidence(&self, contract: ContractId, after: u64, limit: u32) -> Result<Vec<EvidenceRow>> {
        self.points.read(full, self.inner.evidence(contract, after, limit)).await
    }

    async fn inputs(&self, contract: ContractId) -> Result<Vec<Input>> {
        self.points.read(full, self.inner.inputs(contract)).await
    }

    async fn evidence_count(&self, contract: ContractId, author: Key) -> Result<u64> {
        self.points.read(full, self.inner.evidence_count(contract, author)).await
    }

    async fn ledger(&self, transfers: &[Transfer]) -> Result<(Ledger, u64)> {
        self.points.read(full, self.inner.ledger(transfers)).await
    }

    async fn accounts(&self, owner: OwnerId) -> Result<Vec<(AccountId, Account)>> {
        self.points.read(full, self.inner.accounts(owner)).await
    }

    async fn sums(&self) -> Result<Vec<(String, i64)>> {
        self.points.read(full, self.inner.sums()).await
    }

    async fn transfers(&self, owner: Option<OwnerId>, after: u64, limit: u32) -> Result<Vec<TransferRow>> {
        self.points.read(full, self.inner.transfers(owner, after, limit)).await
    }

    async fn order(&self, id: StatementId) -> Result<Option<Envelope>> {
        self.points.read(full, self.inner.order(id)).await
    }

    async fn verdict(&self, contract: ContractId) -> Result<Option<VerdictRow>> {
        self.points.read(full, self.inner.verdict(contract)).await
    }

    async fn verdicts_about(&self, owner: OwnerId, limit: u32) -> Result<Vec<VerdictRow>> {
        self.points.read(full, self.inner.verdicts_about(owner, limit)).await
    }

    async fn events(&self, after: u64, limit: u32) -> Result<Vec<EventRow>> {
        self.points.read(full, self.inner.events(after, limit)).await
    }

    async fn last_event(&self) -> Result<u64> {
        self.points.read(full, self.inner.last_event()).await
    }

    async fn commit(&self, changes: Changes) -> Result<()> {
        self.points.write(full, self.inner.commit(changes)).await
    }

    async fn persist_votes(&self, batch: &[(GroupId, Durable)], at: WallTime) -> Result<()> {
        self.points.write(full, self.inner.persist_votes(batch, at)).await
    }

    async fn votes(&self, group: GroupId) -> Result<Option<Durable>> {
        self.points.read(full, self.inner.votes(group)).await
    }

    async fn unreported_grants(&self, group: Option<GroupId>, limit: u32) -> Result<Vec<GrantRow>> {
        self.points.read(full, self.inner.unreported_grants(group, limit)).await
    }

    async fn put_records(
        &self,
        group: GroupId,
        holder: MemberIndex,
        reservation: &Reservation,
        sealed: &[(DevEui, Vec<u8>)],
    ) -> std::result::Result<(), RecordsError> {
        self.points.write(|| full().into(), self.inner.put_records(group, holder, reservation, sealed)).await
    }

    async fn records(&self, group: GroupId) -> Result<Records> {
        self.points.read(full, self.inner.records(group)).await
    }
}
