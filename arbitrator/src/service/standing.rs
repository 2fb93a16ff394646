//! Moving contracts: every change of a standing, with what follows from it, is one commit. [`contracts::contract::life::apply`] is the only
//! way a contract's state moves, through [`judge::advance`] and [`judge::take`].

use contracts::contract::life::Effect;
use contracts::envelope::Envelope;
use contracts::evidence::judge::{self, Standing};
use contracts::evidence::{Evidence, Input, WitnessReport};
use contracts::ids::GroupId;
use contracts::ledger;
use contracts::settlement;
use contracts::time::WallTime;

use super::{Error, Result, Service};
use crate::metrics::Metrics;
use crate::store::{
    Changes, ContractChange, ContractFilter, ContractRow, EventBody, EvidenceRow, GrantRow, LedgerChange, ROWS_MAX, VerdictRow,
};

/// Grants that become evidence at a time: each is a commit, and new votes wait for the same writer. The rest has time until the next tick.
const REPORTS_MAX: u32 = 64;

impl Service {
    /// Writes a new standing and carries out its effects in the same commit. `changes` brings the evidence that led to it.
    pub(super) async fn stand(
        &self,
        row: &ContractRow,
        step: (Standing, Vec<Effect>),
        mut changes: Changes,
    ) -> Result<ContractRow> {
        let (standing, effects) = step;
        let due_at = standing.due_at(&row.contract);
        if standing.state != row.standing.state {
            changes.events.push(EventBody::ContractChanged { contract: row.id, status: standing.state });
        }
        for effect in effects {
            match effect {
                // The witness follows the state; provider and members follow the events.
                Effect::Submit | Effect::Prepare | Effect::Arm | Effect::Disarm => {}
                Effect::Settle { outcome } => {
                    let ended_at = standing.ended.map_or(changes.at, |ended| ended.at);
                    let transfers =
                        settlement::settle(row.id, &row.contract, outcome, standing.served, standing.standby_days(ended_at));
                    let (mut ledger, version) = self.store.ledger(&transfers).await?;
                    let applied = ledger::apply_all(&mut ledger, &transfers, changes.at).map_err(Error::Money)?;
                    changes.ledger = Some(LedgerChange::of(&ledger, version, &transfers, &applied));
                    changes.verdict = self.verdict(row, &standing, changes.evidence.as_ref()).await?;
                }
            }
        }
        let given = changes.verdict.as_ref().map(|verdict| (verdict.envelope.id(), verdict.verdict.outcome));
        if let Some((verdict, outcome)) = given {
            changes.events.push(EventBody::VerdictGiven { contract: row.id, verdict });
            Metrics::count(&self.metrics.verdicts, &format!("{outcome:?}").to_lowercase());
            tracing::info!(contract = %row.id, ?outcome, "verdict given, money settled");
        }
        changes.contract =
            Some(ContractChange::Stand { id: row.id, version: row.version, standing: Box::new(standing.clone()), due_at });
        self.commit(changes).await?;
        Ok(ContractRow { standing, version: row.version + 1, ..row.clone() })
    }

    async fn verdict(&self, row: &ContractRow, standing: &Standing, last: Option<&EvidenceRow>) -> Result<Option<VerdictRow>> {
        let mut inputs = self.store.inputs(row.id).await?;
        inputs.extend(last.map(|row| Input { statement: row.id, received_at: row.received_at }));
        let verdict = judge::verdict(row.id, &row.contract, standing, inputs);
        Ok(verdict.map(|verdict| VerdictRow { envelope: Envelope::sign(&verdict, &self.keypair), verdict }))
    }

    /// Lets time pass for one contract.
    pub(super) async fn advance(&self, row: ContractRow, now: WallTime) -> Result<ContractRow> {
        let step = judge::advance(&row.contract, &row.standing, now);
        if step.0 == row.standing {
            return Ok(row);
        }
        self.stand(&row, step, Changes { at: now, ..Changes::default() }).await
    }

    /// What is due: ends of terms, unanswered challenges, closed disputes, and reports of what our own witness granted. Call it now and then.
    ///
    /// # Errors
    /// The store failed; what was not done is done next time.
    pub async fn tick(&self) -> Result<()> {
        self.catch_up().await?;
        let now = self.now();
        let filter = ContractFilter { due: Some(now), limit: ROWS_MAX, ..ContractFilter::default() };
        for row in self.store.contracts(filter).await? {
            let _guard = self.write.lock().await;
            let Some(row) = self.store.contract(row.id).await? else { continue };
            let id = row.id;
            if let Err(error) = self.advance(row, now).await {
                // One contract must not stop the others.
                tracing::error!(contract = %id, error = &error as &dyn std::error::Error, "a contract could not be moved on");
            }
        }
        if !self.store.unreported_grants(None, 1).await?.is_empty() {
            let _guard = self.write.lock().await;
            Box::pin(self.report_grants(None, now)).await?;
        }
        Ok(())
    }

    /// Makes evidence of what our own witness granted, before anybody else's evidence on the group is weighed.
    pub(super) async fn report_grants(&self, group: Option<GroupId>, now: WallTime) -> Result<()> {
        let limit = if group.is_some() { ROWS_MAX } else { REPORTS_MAX };
        for grant in self.store.unreported_grants(group, limit).await? {
            let filter =
                ContractFilter { group: Some(grant.group), in_force: Some(true), limit: ROWS_MAX, ..ContractFilter::default() };
            for row in self.store.contracts(filter).await? {
                self.report_grant(&row, grant, now).await?;
            }
            // Last: if we die on the way, the grant is reported again, and the contracts that know of it already learn nothing new.
            self.commit(Changes { at: now, reported: Some((grant.group, grant.epoch)), ..Changes::default() }).await?;
        }
        Ok(())
    }

    async fn report_grant(&self, row: &ContractRow, grant: GrantRow, now: WallTime) -> Result<()> {
        let row = &self.advance(row.clone(), now).await?;
        let Some(granted_to) = row.contract.members().get(usize::from(grant.voted_for.0)).copied() else { return Ok(()) };
        let granted_at = grant.granted_at.max(row.standing.in_force_since);
        let report =
            WitnessReport { contract: row.id, group: grant.group, node: self.me(), epoch: grant.epoch, granted_to, granted_at };
        let envelope = Envelope::sign(&report, &self.keypair);
        let evidence = Evidence::read(&envelope)?;
        if self.store.statement(evidence.id).await?.is_some() {
            return Ok(());
        }
        match self.take(row, &evidence, envelope, now).await {
            Ok(_) => {}
            Err(Error::Store(error)) => return Err(error.into()),
            // Over, or too much of it: the vote stays in the witness's own table.
            Err(error) => tracing::debug!(contract = %row.id, %error, "a grant was not added to the evidence"),
        }
        Ok(())
    }
}
