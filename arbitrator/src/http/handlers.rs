//! The handlers. Each is a few lines: read, call the service's verb of the same name, show.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use contracts::envelope::Envelope;
use contracts::ids::{ContractId, GroupId, NodeId, OwnerId};
use kit::input::{Id, Params};
use kit::problem::{Problem, Refusal};
use serde::Deserialize;
use utoipa::IntoParams;

use super::App;
use super::input::{Body, window};
use crate::resource::{
    AccountView, ArbitratorView, ContractView, EvidenceView, NodeView, OrderView, Page, ProblemSchema, ReputationView,
    Submission, TransferView, VerdictView,
};
use crate::service::Subject;
use crate::store::ContractFilter;

type Answer<T> = Result<Json<T>, Refusal>;

/// A page of rows, with where the next begins if this one is full.
fn page<R, T: From<R>>(rows: Vec<R>, limit: u32, seq: impl Fn(&R) -> u64) -> Json<Page<T>> {
    let full = usize::try_from(limit).is_ok_and(|limit| rows.len() >= limit);
    let next = rows.last().filter(|_| full).map(seq);
    Json(Page { items: rows.into_iter().map(T::from).collect(), next })
}

/// Who this arbitrator is, who may sign orders, and its node record.
#[utoipa::path(get, path = "/v1/arbitrator", tag = "arbitrator", responses((status = 200, body = ArbitratorView)))]
pub(super) async fn describe_arbitrator(State(app): State<Arc<App>>) -> Json<ArbitratorView> {
    Json(app.service.describe())
}

/// Registers a node record (an envelope signed by node and owner). A newer record replaces an older one.
#[utoipa::path(put, path = "/v1/nodes/{id}", tag = "nodes", params(("id" = String, Path, description = "node_…")), request_body = Object, responses(
    (status = 200, body = NodeView), (status = "4XX", body = ProblemSchema, content_type = "application/problem+json")
))]
pub(super) async fn register_node(
    State(app): State<Arc<App>>,
    Id(id): Id<NodeId>,
    Body(envelope): Body<Envelope>,
) -> Answer<NodeView> {
    let service = Arc::clone(&app.service);
    Ok(Json(app.changes.run(async move { service.register_node(id, envelope).await }).await?.into()))
}

/// The newest record of a node.
#[utoipa::path(get, path = "/v1/nodes/{id}", tag = "nodes", params(("id" = String, Path, description = "node_…")), responses(
    (status = 200, body = NodeView), (status = 404, body = ProblemSchema, content_type = "application/problem+json")
))]
pub(super) async fn get_node(State(app): State<Arc<App>>, Id(id): Id<NodeId>) -> Answer<NodeView> {
    Ok(Json(app.service.get_node(id).await?.into()))
}

/// Puts a contract in force: validates it, holds both stakes and the most that can be owed, countersigns. All or nothing.
/// 201 if it came into force now, 200 if it is known already (whatever became of it).
#[utoipa::path(post, path = "/v1/contracts", tag = "contracts", request_body = Submission, responses(
    (status = 200, body = ContractView), (status = 201, body = ContractView),
    (status = "4XX", body = ProblemSchema, content_type = "application/problem+json")
))]
pub(super) async fn create_contract(
    State(app): State<Arc<App>>,
    Body(submission): Body<Submission>,
) -> Result<impl IntoResponse, Refusal> {
    let service = Arc::clone(&app.service);
    let Submission { contract, node_records } = submission;
    let (row, created) = app.changes.run(async move { service.create_contract(contract, node_records).await }).await?;
    let status = if created { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(ContractView::from(row))))
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ContractParams {
    /// Contracts with this node as a party or witness.
    #[param(value_type = Option<String>)]
    node: Option<NodeId>,
    #[param(value_type = Option<String>)]
    group: Option<GroupId>,
    /// Only those in force, or only those that ended.
    in_force: Option<bool>,
    after: Option<u64>,
    /// 1 to 200; 50 if absent.
    limit: Option<u32>,
}

/// Contracts in the order in which they came into force.
#[utoipa::path(get, path = "/v1/contracts", tag = "contracts", params(ContractParams), responses(
    (status = 200, body = Page<ContractView>), (status = 400, body = ProblemSchema, content_type = "application/problem+json")
))]
pub(super) async fn list_contracts(
    State(app): State<Arc<App>>,
    Params(params): Params<ContractParams>,
) -> Answer<Page<ContractView>> {
    let (after, limit) = window(params.after, params.limit)?;
    let filter = ContractFilter {
        member: params.node,
        group: params.group,
        in_force: params.in_force,
        after,
        limit,
        ..ContractFilter::default()
    };
    Ok(page(app.service.list_contracts(filter).await?, limit, |row| row.seq))
}

/// One contract: its state, what the rules remember, the envelope with three signatures.
#[utoipa::path(get, path = "/v1/contracts/{id}", tag = "contracts", params(("id" = String, Path, description = "contract_…")), responses(
    (status = 200, body = ContractView), (status = 404, body = ProblemSchema, content_type = "application/problem+json")
))]
pub(super) async fn get_contract(State(app): State<Arc<App>>, Id(id): Id<ContractId>) -> Answer<ContractView> {
    Ok(Json(app.service.get_contract(id).await?.into()))
}

/// Adds a signed statement that counts in the contract: takeover, release, hand-back, delivery and witness reports, readiness challenges
/// and answers, cancellations, disputes. Answers with the contract as it stands then; the same statement again changes nothing.
#[utoipa::path(post, path = "/v1/contracts/{id}/evidence", tag = "evidence", params(("id" = String, Path, description = "contract_…")), request_body = Object, responses(
    (status = 200, body = ContractView), (status = "4XX", body = ProblemSchema, content_type = "application/problem+json")
))]
pub(super) async fn add_evidence(
    State(app): State<Arc<App>>,
    Id(id): Id<ContractId>,
    Body(envelope): Body<Envelope>,
) -> Answer<ContractView> {
    let service = Arc::clone(&app.service);
    Ok(Json(app.changes.run(Box::pin(async move { service.add_evidence(id, envelope).await })).await?.into()))
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct PageParams {
    /// The `next` of the page before.
    after: Option<u64>,
    /// 1 to 200; 50 if absent.
    limit: Option<u32>,
}

/// The contract's evidence in the order in which it was received.
#[utoipa::path(get, path = "/v1/contracts/{id}/evidence", tag = "evidence", params(("id" = String, Path, description = "contract_…"), PageParams), responses(
    (status = 200, body = Page<EvidenceView>), (status = "4XX", body = ProblemSchema, content_type = "application/problem+json")
))]
pub(super) async fn list_evidence(
    State(app): State<Arc<App>>,
    Id(id): Id<ContractId>,
    Params(params): Params<PageParams>,
) -> Answer<Page<EvidenceView>> {
    let (after, limit) = window(params.after, params.limit)?;
    Ok(page(app.service.list_evidence(id, after, limit).await?, limit, |row| row.seq))
}

/// The signed verdict of a contract that ended.
#[utoipa::path(get, path = "/v1/contracts/{id}/verdict", tag = "evidence", params(("id" = String, Path, description = "contract_…")), responses(
    (status = 200, body = VerdictView), (status = 404, body = ProblemSchema, content_type = "application/problem+json")
))]
pub(super) async fn get_verdict(State(app): State<Arc<App>>, Id(id): Id<ContractId>) -> Answer<VerdictView> {
    Ok(Json(app.service.get_verdict(id).await?.into()))
}

/// Takes an order of deposit or withdrawal, signed by an operator; the same order again moves nothing.
#[utoipa::path(post, path = "/v1/orders", tag = "money", request_body = Object, responses(
    (status = 200, body = OrderView), (status = "4XX", body = ProblemSchema, content_type = "application/problem+json")
))]
pub(super) async fn take_order(State(app): State<Arc<App>>, Body(envelope): Body<Envelope>) -> Answer<OrderView> {
    let service = Arc::clone(&app.service);
    Ok(Json(app.changes.run(async move { service.take_order(envelope).await }).await?))
}

/// An owner's accounts, one per currency.
#[utoipa::path(get, path = "/v1/accounts/{owner}", tag = "money", params(("owner" = String, Path, description = "owner_…")), responses(
    (status = 200, body = Vec<AccountView>), (status = 400, body = ProblemSchema, content_type = "application/problem+json")
))]
pub(super) async fn list_accounts(State(app): State<Arc<App>>, Id(owner): Id<OwnerId>) -> Answer<Vec<AccountView>> {
    Ok(Json(app.service.list_accounts(owner).await?))
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct TransferParams {
    /// Only transfers that concern this owner.
    #[param(value_type = Option<String>)]
    owner: Option<OwnerId>,
    after: Option<u64>,
    /// 1 to 200; 50 if absent.
    limit: Option<u32>,
}

/// The ledger's transfers in order.
#[utoipa::path(get, path = "/v1/transfers", tag = "money", params(TransferParams), responses(
    (status = 200, body = Page<TransferView>), (status = 400, body = ProblemSchema, content_type = "application/problem+json")
))]
pub(super) async fn list_transfers(
    State(app): State<Arc<App>>,
    Params(params): Params<TransferParams>,
) -> Answer<Page<TransferView>> {
    let (after, limit) = window(params.after, params.limit)?;
    Ok(page(app.service.list_transfers(params.owner, after, limit).await?, limit, |row| row.seq))
}

/// The score of an owner, or of a node's owner, as a provider; computed from verdicts, so anybody can compute it again.
#[utoipa::path(get, path = "/v1/reputation/{subject}", tag = "evidence", params(("subject" = String, Path, description = "owner_… or node_…")), responses(
    (status = 200, body = ReputationView), (status = "4XX", body = ProblemSchema, content_type = "application/problem+json")
))]
pub(super) async fn get_reputation(State(app): State<Arc<App>>, Id(subject): Id<String>) -> Answer<ReputationView> {
    let wrong = |error| Problem::invalid("subject", error);
    let subject = match subject.parse::<OwnerId>() {
        Ok(owner) => Subject::Owner(owner),
        Err(_) => Subject::Node(subject.parse().map_err(wrong)?),
    };
    Ok(Json(app.service.get_reputation(subject).await?.into()))
}

/// The process runs.
#[utoipa::path(get, path = "/healthz", tag = "operations", responses((status = 200, body = String, content_type = "text/plain")))]
pub(super) async fn check_health() -> &'static str {
    "ok\n"
}

/// The store answers and the ledger balances.
#[utoipa::path(get, path = "/readyz", tag = "operations", responses(
    (status = 200, body = String, content_type = "text/plain"), (status = 503, body = ProblemSchema, content_type = "application/problem+json")
))]
pub(super) async fn check_readiness(State(app): State<Arc<App>>) -> Result<&'static str, Refusal> {
    app.service.check_readiness().await.map_err(Problem::unavailable)?;
    Ok("ready\n")
}

/// Prometheus metrics.
#[utoipa::path(get, path = "/metrics", tag = "operations", responses((status = 200, body = String, content_type = "text/plain")))]
pub(super) async fn read_metrics(State(app): State<Arc<App>>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], app.service.metrics.encode())
}

/// This document.
#[utoipa::path(get, path = "/openapi.json", tag = "operations", responses((status = 200, body = Object)))]
pub(super) async fn read_openapi() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], super::openapi())
}
