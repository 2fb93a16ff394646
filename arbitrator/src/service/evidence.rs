//! Evidence: signed statements that move a contract or just count.

use contracts::contract::Contract;
use contracts::envelope::Envelope;
use contracts::evidence::judge;
use contracts::evidence::{EVIDENCE_PER_AUTHOR_MAX, Evidence, Item};
use contracts::ids::ContractId;
use contracts::time::WallTime;

use super::{Error, Result, Service};
use crate::custody_report::certificate_of;
use crate::metrics::Metrics;
use crate::store::{Changes, ContractRow, EventBody, EvidenceRow};

impl Service {
    /// Adds evidence, a cancellation or a dispute; the same statement again changes nothing. Gives the contract as it stands then.
    ///
    /// # Errors
    /// Why it does not count; then nothing is stored.
    pub async fn add_evidence(&self, id: ContractId, envelope: Envelope) -> Result<ContractRow> {
        let evidence = Evidence::read(&envelope)?;
        if evidence.item.contract() != id {
            return Err(Error::PathMismatch { field: "contract" });
        }
        let _guard = self.write.lock().await;
        let row = self.store.contract(id).await?.ok_or(Error::NotFound("contract"))?;
        if self.store.statement(evidence.id).await?.is_some() {
            return Ok(row);
        }
        let now = self.now();
        Box::pin(self.report_grants(Some(row.contract.group), now)).await?;
        let row = self.store.contract(id).await?.ok_or(Error::NotFound("contract"))?;
        let row = self.advance(row, now).await?;
        check_certificate(&row.contract, &evidence.item)?;
        self.take(&row, &evidence, envelope, now).await
    }

    /// One statement by the rules, in one commit.
    pub(super) async fn take(
        &self,
        row: &ContractRow,
        evidence: &Evidence,
        envelope: Envelope,
        now: WallTime,
    ) -> Result<ContractRow> {
        let author = *evidence.signers.first().ok_or(Error::NotFound("signature"))?;
        let count = self.store.evidence_count(row.id, author).await?;
        if usize::try_from(count).is_ok_and(|count| count >= EVIDENCE_PER_AUTHOR_MAX) {
            return Err(Error::TooMuchEvidence(EVIDENCE_PER_AUTHOR_MAX));
        }
        let step = judge::take(row.id, &row.contract, &row.standing, evidence, now)?;
        let kind = kind(&envelope).to_owned();
        Metrics::count(&self.metrics.statements, &kind);
        let received = EventBody::EvidenceReceived { contract: row.id, statement: evidence.id, kind };
        let stored = EvidenceRow { seq: 0, id: evidence.id, contract: row.id, author, received_at: now, envelope };
        let changes = Changes { at: now, evidence: Some(stored), events: vec![received], ..Changes::default() };
        self.stand(row, step, changes).await
    }
}

/// `takeover-report` of `application/vnd.antirio.takeover-report.v1+json`.
fn kind(envelope: &Envelope) -> &str {
    let kind = envelope.payload_type.strip_prefix("application/vnd.antirio.").unwrap_or(&envelope.payload_type);
    kind.split('.').next().unwrap_or(kind)
}

/// Reports of custody carry the grants of a majority of the group's members.
fn check_certificate(contract: &Contract, item: &Item) -> Result<()> {
    let refuse = |why: &dyn std::fmt::Display| Error::Certificate(why.to_string());
    match certificate_of(item, contract).map_err(|error| refuse(&error))? {
        None => Ok(()),
        Some(proven) if proven.holder == proven.reporter => Ok(()),
        Some(proven) => Err(refuse(&format_args!("it elects {}", proven.holder))),
    }
}
