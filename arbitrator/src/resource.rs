//! What the API shows, for server and client alike. Times are milliseconds since the Unix epoch; money is in decimal strings of micro-units.

use std::collections::BTreeSet;

use contracts::contract::State;
use contracts::contract::text::Party;
use contracts::envelope::{Envelope, Key};
use contracts::evidence::Verdict;
use contracts::evidence::judge::Standing;
use contracts::ids::{ContractId, GroupId, NodeId, OwnerId, StatementId};
use contracts::ledger::{Movement, Transfer};
use contracts::money::{Amount, Currency};
use contracts::time::WallTime;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::store::{ContractRow, EventBody, EvidenceRow, NodeRow, TransferRow, VerdictRow};

/// A page of a list; `next` is the `after` of the page behind it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Page<T> {
    pub items: Vec<T>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<u64>,
}

/// Who this arbitrator is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ArbitratorView {
    #[schema(value_type = String)]
    pub node: NodeId,
    #[schema(value_type = String)]
    pub owner: OwnerId,
    #[schema(value_type = Vec<String>)]
    pub operators: BTreeSet<Key>,
    /// Its own node record, for those who dial the witness.
    #[schema(value_type = Object)]
    pub record: Envelope,
}

/// A contract to be put in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Submission {
    /// The contract's text with the signatures of both nodes.
    #[schema(value_type = Object)]
    pub contract: Envelope,
    /// Node records of parties and witnesses that are not registered yet; at most eight.
    #[serde(default)]
    #[schema(value_type = Vec<Object>)]
    pub node_records: Vec<Envelope>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodeView {
    #[schema(value_type = String)]
    pub node: NodeId,
    #[schema(value_type = String)]
    pub owner: OwnerId,
    pub name: String,
    #[schema(value_type = Object)]
    pub record: Envelope,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ContractView {
    /// Position in lists.
    pub seq: u64,
    #[schema(value_type = String)]
    pub id: ContractId,
    /// As in the table of contract states.
    #[schema(value_type = Object)]
    pub state: State,
    pub in_force: bool,
    #[schema(value_type = Object)]
    pub customer: Party,
    #[schema(value_type = Object)]
    pub provider: Party,
    #[schema(value_type = Vec<String>)]
    pub witnesses: Vec<NodeId>,
    #[schema(value_type = String)]
    pub group: GroupId,
    #[schema(value_type = u64)]
    pub valid_until: WallTime,
    /// What the rules remember: days, served time, missed proofs.
    #[schema(value_type = Object)]
    pub standing: Standing,
    /// With three signatures.
    #[schema(value_type = Object)]
    pub envelope: Envelope,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EvidenceView {
    pub seq: u64,
    #[schema(value_type = String)]
    pub id: StatementId,
    #[schema(value_type = String)]
    pub contract: ContractId,
    #[schema(value_type = String)]
    pub author: Key,
    #[schema(value_type = u64)]
    pub received_at: WallTime,
    #[schema(value_type = Object)]
    pub envelope: Envelope,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VerdictView {
    #[schema(value_type = String)]
    pub id: StatementId,
    #[schema(value_type = Object)]
    pub verdict: Verdict,
    /// Signed by the arbitrator.
    #[schema(value_type = Object)]
    pub envelope: Envelope,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AccountView {
    #[schema(value_type = String)]
    pub owner: OwnerId,
    #[schema(value_type = String)]
    pub currency: Currency,
    #[schema(value_type = String)]
    pub available: Amount,
    #[schema(value_type = String)]
    pub reserved: Amount,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TransferView {
    pub seq: u64,
    #[schema(value_type = Object)]
    pub transfer: Transfer,
    /// What it moved, set aside or freed.
    #[schema(value_type = Object)]
    pub movement: Movement,
    #[schema(value_type = u64)]
    pub made_at: WallTime,
}

/// An order of credit as it was taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct OrderView {
    #[schema(value_type = String)]
    pub id: StatementId,
    /// The owner's account after it (or as it stands, if the order was taken before).
    pub account: AccountView,
}

/// A provider's score with the evidence that it rests on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ReputationView {
    #[schema(value_type = String)]
    pub owner: OwnerId,
    /// 500 for somebody of whom nothing is known.
    pub score_permille: u16,
    pub verdicts: u32,
    pub counterparties: u32,
    pub positive_millionths: u64,
    pub negative_millionths: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EventView {
    pub seq: u64,
    #[schema(value_type = u64)]
    pub at: WallTime,
    #[serde(flatten)]
    #[schema(value_type = Object)]
    pub body: EventBody,
}

pub use contracts::write_ahead::{RecordsView, RecordsWrite, SealedRecord as Sealed};

/// An RFC 9457 problem document, see `docs/problems.md`.
#[derive(Debug, Serialize, ToSchema)]
pub struct ProblemSchema {
    #[serde(rename = "type")]
    pub kind: String,
    pub title: String,
    pub status: u16,
    pub detail: Option<String>,
    pub field: Option<String>,
}

impl From<NodeRow> for NodeView {
    fn from(row: NodeRow) -> Self {
        Self { node: row.record.node, owner: row.record.owner, name: row.record.name, record: row.envelope }
    }
}

impl From<ContractRow> for ContractView {
    fn from(row: ContractRow) -> Self {
        Self {
            seq: row.seq,
            id: row.id,
            state: row.standing.state,
            in_force: row.standing.state.is_in_force(),
            customer: row.contract.customer,
            provider: row.contract.provider,
            witnesses: row.contract.witnesses,
            group: row.contract.group,
            valid_until: row.contract.valid_until,
            standing: row.standing,
            envelope: row.envelope,
        }
    }
}

impl From<EvidenceRow> for EvidenceView {
    fn from(row: EvidenceRow) -> Self {
        let EvidenceRow { seq, id, contract, author, received_at, envelope } = row;
        Self { seq, id, contract, author, received_at, envelope }
    }
}

impl From<VerdictRow> for VerdictView {
    fn from(row: VerdictRow) -> Self {
        Self { id: row.envelope.id(), verdict: row.verdict, envelope: row.envelope }
    }
}

impl From<TransferRow> for TransferView {
    fn from(row: TransferRow) -> Self {
        let TransferRow { seq, transfer, movement, made_at } = row;
        Self { seq, transfer, movement, made_at }
    }
}

impl From<contracts::reputation::Reputation> for ReputationView {
    fn from(it: contracts::reputation::Reputation) -> Self {
        Self {
            owner: it.owner,
            score_permille: it.score_permille,
            verdicts: it.verdicts,
            counterparties: it.counterparties,
            positive_millionths: it.positive_millionths,
            negative_millionths: it.negative_millionths,
        }
    }
}
