//! `/v1/contracts`: the contracts that this node is a party of, or receives readings under.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{AppendHeaders, IntoResponse};
use contracts::contract::{Contract, State as Life};
use contracts::envelope::Envelope;
use contracts::ids::{ContractId, GroupId, NodeId};
use kit::problem::Problem;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::input::{Id, Params, next_link, page, parse_field};
use super::{App, ProblemSchema};
use crate::agreements::Agreement;

/// Contracts in one page at most, and if the caller does not say.
pub const PAGE_MAX: u32 = 1_000;

/// A contract that this node knows.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct KnownContract {
    #[schema(value_type = String)]
    pub id: ContractId,
    /// `{"state": "standby", …}`, see `docs/contract-states.md`.
    #[schema(value_type = Object)]
    pub state: Life,
    /// The text that both parties signed.
    #[schema(value_type = Object)]
    pub contract: Contract,
}

/// One contract with everything that this node keeps of it.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ContractDetail {
    #[serde(flatten)]
    pub known: KnownContract,
    /// `customer`, `provider`, or `receiver` of its readings.
    pub part: String,
    /// Keys and content are gone.
    pub wiped: bool,
    /// The signed form (DSSE).
    #[schema(value_type = Object)]
    pub envelope: Envelope,
}

fn known(agreement: &Agreement) -> KnownContract {
    KnownContract { id: agreement.id, state: agreement.state, contract: (*agreement.contract).clone() }
}

/// What this node is in a contract.
fn part(contract: &Contract, me: NodeId) -> &'static str {
    if contract.customer.node == me {
        "customer"
    } else if contract.provider.node == me {
        "provider"
    } else {
        "receiver"
    }
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ContractsQuery {
    /// The cursor: `id` of the last contract seen.
    after: Option<String>,
    /// 1 to 1,000; 1,000 if absent.
    limit: Option<u32>,
    /// Only contracts of this group of devices.
    group: Option<String>,
}

/// Contracts by id. A full page has a header `Link` with `rel="next"`.
#[utoipa::path(get, path = "/v1/contracts", tag = "node", params(ContractsQuery), responses(
    (status = 200, body = Vec<KnownContract>, headers(("Link" = Option<String>, description = "The next page, RFC 8288"))),
    (status = "4XX", body = ProblemSchema, content_type = "application/problem+json")
))]
pub(super) async fn list_contracts(
    State(app): State<Arc<App>>,
    Params(query): Params<ContractsQuery>,
) -> Result<impl IntoResponse, Problem> {
    let limit = page(query.limit, PAGE_MAX, PAGE_MAX)? as usize;
    let after: Option<ContractId> = parse_field("after", query.after.as_deref())?;
    let group: Option<GroupId> = parse_field("group", query.group.as_deref())?;
    let wanted = |a: &Agreement| after.is_none_or(|after| a.id > after) && group.is_none_or(|group| a.contract.group == group);
    let mut found = app.core().agreements.list().into_iter().filter(wanted);
    let contracts: Vec<KnownContract> = found.by_ref().take(limit).map(|a| known(&a)).collect();
    let next = contracts.last().filter(|_| found.next().is_some()).map(|last| {
        let group = group.map(|group| format!("&group={group}")).unwrap_or_default();
        format!("/v1/contracts?after={}&limit={limit}{group}", last.id)
    });
    Ok((AppendHeaders(next_link(next).into_iter().flatten().collect::<Vec<_>>()), Json(contracts)))
}

/// One contract: text, state, signatures, this node's part.
#[utoipa::path(get, path = "/v1/contracts/{id}", tag = "node", params(("id" = String, Path, description = "`contract_…`")), responses(
    (status = 200, body = ContractDetail),
    (status = "4XX", body = ProblemSchema, content_type = "application/problem+json")
))]
pub(super) async fn get_contract(State(app): State<Arc<App>>, Id(id): Id<ContractId>) -> Result<Json<ContractDetail>, Problem> {
    let core = app.core();
    let agreement =
        core.agreements.get(id).ok_or_else(|| Problem::not_found(format_args!("this node knows no contract {id}")))?;
    Ok(Json(ContractDetail {
        known: known(&agreement),
        part: part(&agreement.contract, core.me()).to_owned(),
        wiped: agreement.wiped,
        envelope: (*agreement.envelope).clone(),
    }))
}
