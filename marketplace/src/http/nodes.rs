//! `/v1/nodes`

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use contracts::ids::OwnerId;
use contracts::node_record::Role;
use kit::input::{Id, Params};
use kit::problem::Refusal;
use serde::Deserialize;
use utoipa::IntoParams;

use super::App;
use super::input::{Signed, window};
use crate::resource::{EnvelopeSchema, Node, Page, ProblemSchema};
use crate::service::Put;
use crate::store::NodeFilter;

/// 201 for what is new, 200 for what was known.
pub(super) fn put<T>(put: Put<T>) -> (StatusCode, Json<T>) {
    (if put.created { StatusCode::CREATED } else { StatusCode::OK }, Json(put.value))
}

/// Register a node or replace its record; signed by node and owner.
#[utoipa::path(put, path = "/v1/nodes/{id}", tag = "nodes", params(("id" = String, Path, description = "node_…")), request_body = EnvelopeSchema, responses(
    (status = 201, body = Node), (status = 200, body = Node, description = "Known already"),
    (status = "4XX", body = ProblemSchema, content_type = "application/problem+json")
))]
pub(super) async fn register_node(
    State(app): State<Arc<App>>,
    Id(id): Id<contracts::ids::NodeId>,
    Signed(envelope): Signed,
) -> Result<(StatusCode, Json<Node>), Refusal> {
    let service = Arc::clone(&app.service);
    Ok(put(app.changes.run(async move { service.register_node(id, envelope).await }).await?))
}

/// A node's record.
#[utoipa::path(get, path = "/v1/nodes/{id}", tag = "nodes", params(("id" = String, Path, description = "node_…")), responses(
    (status = 200, body = Node), (status = "4XX", body = ProblemSchema, content_type = "application/problem+json")
))]
pub(super) async fn get_node(State(app): State<Arc<App>>, Id(id): Id<contracts::ids::NodeId>) -> Result<Json<Node>, Refusal> {
    Ok(Json(app.service.get_node(id).await?))
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct NodeParams {
    #[param(value_type = Option<String>)]
    owner: Option<OwnerId>,
    /// `edge`, `cloud`, `arbitrator` or `marketplace`
    #[param(value_type = Option<String>)]
    role: Option<Role>,
    /// The `next` of the page before.
    cursor: Option<String>,
    /// 1 to 200 items, 50 if absent.
    limit: Option<u32>,
}

/// Registered nodes, oldest first.
#[utoipa::path(get, path = "/v1/nodes", tag = "nodes", params(NodeParams), responses(
    (status = 200, body = Page<Node>), (status = "4XX", body = ProblemSchema, content_type = "application/problem+json")
))]
pub(super) async fn list_nodes(
    State(app): State<Arc<App>>,
    Params(params): Params<NodeParams>,
) -> Result<Json<Page<Node>>, Refusal> {
    let window = window(params.cursor.as_deref(), params.limit)?;
    Ok(Json(app.service.list_nodes(NodeFilter { owner: params.owner, role: params.role }, window).await?))
}
