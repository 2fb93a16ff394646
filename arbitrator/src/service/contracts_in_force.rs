//! Putting contracts in force: validate, hold the money, countersign. All or nothing.

use std::collections::BTreeMap;

use contracts::contract::Contract;
use contracts::envelope::{Envelope, Key};
use contracts::evidence::judge::Standing;
use contracts::ids::{ContractId, NodeId, OwnerId};
use contracts::ledger;
use contracts::node_record::NodeRecord;
use contracts::settlement;

use super::{EARLY_MAX, Error, NODE_RECORDS_MAX, Result, Service};
use crate::metrics::Metrics;
use crate::store::{Changes, ContractChange, ContractFilter, ContractRow, EventBody, LedgerChange, NodeRow, ROWS_MAX};

impl Service {
    /// Puts a contract in force; the bool is false if it is or was already (then nothing changes, whatever it has become).
    ///
    /// # Errors
    /// The first thing that is wrong; then nothing is stored and no money is held.
    pub async fn create_contract(&self, mut envelope: Envelope, records: Vec<Envelope>) -> Result<(ContractRow, bool)> {
        let verified = envelope.verify::<Contract>()?;
        let (id, contract) = (ContractId::from(verified.id), verified.statement);
        check_signers(&contract, &verified.signers, self.me())?;
        let _guard = self.write.lock().await;
        if let Some(known) = self.store.contract(id).await? {
            return Ok((known, false));
        }
        let now = self.now();
        if contract.arbitrator != self.me() {
            return Err(Error::OtherArbitrator(contract.arbitrator));
        }
        if contract.valid_until <= now {
            return Err(Error::Expired(contract.valid_until));
        }
        if contract.valid_from > now + EARLY_MAX {
            return Err(Error::NotYetValid(contract.valid_from));
        }
        let nodes = self.attached(records).await?;
        self.check_owners(&contract, &nodes).await?;
        self.check_group(&contract).await?;
        let reserve = settlement::reserve(id, &contract);
        let (mut ledger, version) = self.store.ledger(&reserve).await?;
        let applied = ledger::apply_all(&mut ledger, &reserve, now).map_err(Error::Money)?;
        envelope.cosign(&self.keypair);
        let (standing, _effects) = Standing::enter(now); // "prepare" is the provider's; it follows our events
        self.commit(Changes {
            at: now,
            nodes,
            contract: Some(ContractChange::Enter { id, contract: Box::new(contract), envelope, standing: Box::new(standing) }),
            ledger: Some(LedgerChange::of(&ledger, version, &reserve, &applied)),
            events: vec![EventBody::ContractInForce { contract: id }],
            ..Changes::default()
        })
        .await?;
        Metrics::count(&self.metrics.statements, "contract");
        tracing::info!(contract = %id, "contract in force");
        let row = self.store.contract(id).await?.ok_or(Error::NotFound("contract"))?;
        Ok((row, true))
    }

    /// The attached records that are new, verified.
    async fn attached(&self, records: Vec<Envelope>) -> Result<Vec<NodeRow>> {
        if records.len() > NODE_RECORDS_MAX {
            let invalid = contracts::envelope::Invalid { field: "node_records", reason: "at most eight" };
            return Err(Error::Statement(invalid.into()));
        }
        let mut rows: BTreeMap<NodeId, NodeRow> = BTreeMap::new();
        for envelope in records {
            let record = NodeRecord::verify(&envelope)?.statement;
            let row = NodeRow { record, envelope };
            let newest = rows.get(&row.record.node).is_none_or(|known| known.record.record_epoch < row.record.record_epoch);
            match self.is_news(&row).await {
                Ok(true) if newest => {
                    rows.insert(row.record.node, row);
                }
                // An older one than ours is no fault of the contract.
                Ok(_) | Err(Error::StaleRecord { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(rows.into_values().collect())
    }

    async fn owner_of(&self, node: NodeId, attached: &[NodeRow]) -> Result<OwnerId> {
        if node == self.me() {
            return Ok(self.keypair.owner_id());
        }
        if let Some(row) = attached.iter().find(|row| row.record.node == node) {
            return Ok(row.record.owner);
        }
        let row = self.store.node(node).await?.ok_or(Error::UnknownNode(node))?;
        Ok(row.record.owner)
    }

    /// Owners are as the records say, and none has a majority of the members.
    async fn check_owners(&self, contract: &Contract, attached: &[NodeRow]) -> Result<()> {
        for party in [contract.customer, contract.provider] {
            if self.owner_of(party.node, attached).await? != party.owner {
                return Err(Error::OwnerMismatch { node: party.node });
            }
        }
        let members = contract.members();
        let mut by_owner: BTreeMap<OwnerId, usize> = BTreeMap::new();
        for node in &members {
            *by_owner.entry(self.owner_of(*node, attached).await?).or_default() += 1;
        }
        if by_owner.values().any(|count| 2 * count > members.len()) { Err(Error::OneOwnerMajority) } else { Ok(()) }
    }

    /// Custody belongs to a group: a device is in one group, and a group has one member list at a time, across contracts.
    async fn check_group(&self, contract: &Contract) -> Result<()> {
        let devices: Vec<_> = contract.devices.iter().copied().collect();
        let filter =
            ContractFilter { group: Some(contract.group), in_force: Some(true), limit: ROWS_MAX, ..ContractFilter::default() };
        let others = self.store.covering(&devices).await?.into_iter().chain(self.store.contracts(filter).await?);
        for other in others {
            if other.contract.group != contract.group || other.contract.members() != contract.members() {
                return Err(Error::GroupTaken(other.id));
            }
        }
        Ok(())
    }
}

/// Both nodes signed, and nobody who has no part in it.
fn check_signers(contract: &Contract, signers: &[Key], me: NodeId) -> Result<()> {
    let parties = [contract.customer.node, contract.provider.node].map(Key::from);
    for key in parties {
        if !signers.contains(&key) {
            return Err(Error::Statement(contracts::envelope::Error::Missing { key }));
        }
    }
    match signers.iter().find(|key| !parties.contains(key) && **key != Key::from(me)) {
        Some(stranger) => Err(Error::Stranger(*stranger)),
        None => Ok(()),
    }
}
