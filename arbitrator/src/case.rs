//! The case file of a contract: all that its verdict rests on. Anybody recomputes the verdict from it, without a network and without trust in
//! the arbitrator, and sees which member broke the rules of custody.

use contracts::account::audit as books;
use contracts::contract::Contract;
use contracts::envelope::{self, Envelope, Key};
use contracts::evidence::judge::{self, Received, Refused};
use contracts::evidence::{Evidence, Item, Verdict};
use contracts::ids::{ContractId, StatementId};
use contracts::time::{Millis, WallTime};
use peering::custody::audit::{self, Conviction, Offence, Terms};
use peering::custody::certificate;
use peering::custody::statement::Grant;
use serde::{Deserialize, Serialize};

use crate::custody_report::certificate_of;

/// Statements beside the evidence that are looked at.
pub const STATEMENTS_MAX: usize = 10_000;

/// What an insurer said that it heard must be with the customer's store, or shown, within this time. Whoever judges hears the accused first.
pub const SERVED_WITHIN: Millis = Millis::from_secs(3_600);

/// Everything about one contract, as it travels in a file (JSON).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// Signed by both parties and the arbitrator.
    pub contract: Envelope,
    pub in_force_since: WallTime,
    /// In the order in which the arbitrator received it.
    pub evidence: Vec<Exhibit>,
    /// Signed by the arbitrator; none while the contract is in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<Envelope>,
    /// Statements that members kept (grants, releases; accounts, receipts, shown frames), in any order; whoever accuses adds them, and the
    /// accused its excuses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub statements: Vec<Envelope>,
}

/// One statement of the evidence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exhibit {
    pub received_at: WallTime,
    pub envelope: Envelope,
}

/// What anybody finds who recomputes a case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Review {
    pub contract: ContractId,
    /// As the rules say; none if the contract had not ended at the given time.
    pub recomputed: Option<Verdict>,
    /// As the arbitrator signed it.
    pub signed: Option<Verdict>,
    /// Members that broke a rule of custody, with the statements that prove it, by id.
    pub convictions: Vec<(Conviction, [StatementId; 2])>,
    /// Parties that told two stories of what they heard, or hide it.
    pub books: Vec<books::Conviction>,
}

impl Review {
    /// The arbitrator signed what follows from the evidence.
    #[must_use]
    pub fn agrees(&self) -> bool {
        self.recomputed == self.signed
    }
}

/// Why a case cannot be reviewed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the contract does not verify")]
    Contract(#[source] envelope::Error),
    #[error("evidence {index} does not verify")]
    Evidence { index: usize, source: envelope::Error },
    #[error("the certificate in evidence {index} proves nothing")]
    Certificate { index: usize, source: certificate::Error },
    #[error("the arbitrator counted statement {id}, which does not count: {refused}")]
    Refused { id: StatementId, refused: Refused },
    #[error("the verdict does not verify")]
    Verdict(#[source] envelope::Error),
    #[error("{found} statements, at most {STATEMENTS_MAX} are looked at")]
    TooMany { found: usize },
}

/// Recomputes the case at `now` (which matters only while there is no verdict, and for frames that may still be on their way). Pure.
///
/// # Errors
/// The first thing in the file that does not hold.
pub fn review(case: &Case, now: WallTime) -> Result<Review, Error> {
    if case.statements.len() > STATEMENTS_MAX {
        return Err(Error::TooMany { found: case.statements.len() });
    }
    let verified = case.contract.verify::<Contract>().map_err(Error::Contract)?;
    let (id, contract) = (ContractId::from(verified.id), verified.statement);
    let signers = [contract.customer.node, contract.provider.node, contract.arbitrator].map(Key::from);
    case.contract.verify_signed_by::<Contract>(&signers).map_err(Error::Contract)?;

    let mut statements = case.statements.clone();
    let mut received: Vec<Received> = Vec::with_capacity(case.evidence.len());
    for (index, exhibit) in case.evidence.iter().enumerate() {
        let evidence = Evidence::read(&exhibit.envelope).map_err(|source| Error::Evidence { index, source })?;
        let proven = certificate_of(&evidence.item, &contract).map_err(|source| Error::Certificate { index, source })?;
        statements.extend(proven.into_iter().flat_map(|proven| proven.certificate.grants));
        received.push((evidence, exhibit.received_at));
    }

    let signed = match &case.verdict {
        Some(verdict) => {
            let verified = verdict.verify_signed_by::<Verdict>(&[contract.arbitrator.into()]).map_err(Error::Verdict)?;
            Some(verified.statement)
        }
        None => None,
    };
    let at = signed.as_ref().map_or(now, |verdict| verdict.judged_at);
    let recomputed = judge::judge(id, &contract, case.in_force_since, &received, at)
        .map_err(|(id, refused)| Error::Refused { id, refused })?;

    let terms = Terms { group: contract.group, members: contract.members(), ttl: contract.terms.ttl };
    let convictions = audit::convict(&terms, &statements)
        .into_iter()
        .filter(|conviction| !is_excused(conviction, &statements, &received))
        .map(|conviction| (conviction, conviction.proof.map(|place| statements[place].id())))
        .collect();
    let terms = books::Terms {
        group: contract.group,
        members: vec![contract.customer.node, contract.provider.node],
        store: contract.readings_to,
        patience: SERVED_WITHIN,
    };
    let books = books::convict(&terms, &statements, now);
    Ok(Review { contract: id, recomputed, signed, convictions, books })
}

/// Whether the holder to whom the broken promise was given reported, signed, that it had released that epoch: the release itself goes between
/// members and need not be in the file.
fn is_excused(conviction: &Conviction, statements: &[Envelope], evidence: &[Received]) -> bool {
    match conviction.offence {
        Offence::BrokenPromise | Offence::EarlyClaim => {}
        Offence::TwoVotes | Offence::VoteBackwards | Offence::TwoReleases | Offence::PromisedToSilence => return false,
    }
    let Ok(promise) = statements[conviction.proof[0]].verify::<Grant>() else { return false };
    let promise = promise.statement;
    evidence.iter().any(|(evidence, _)| match &evidence.item {
        Item::Release(report) => report.node == promise.candidate && report.epoch == promise.epoch,
        Item::Takeover(_)
        | Item::Handback(_)
        | Item::Challenge(_)
        | Item::Answer(_)
        | Item::Delivery(_)
        | Item::Witness(_)
        | Item::Cancellation(_)
        | Item::Dispute(_) => false,
    })
}
