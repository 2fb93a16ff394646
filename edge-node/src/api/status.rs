//! How it stands with the node, its bridge and its market agent.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use contracts::ids::{ContractId, Epoch, GroupId, NodeId};
use kit::problem::Problem;
use lora_bridge::gwmp::gateways::GatewayStatus;
use peering::custody::Role;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{App, ProblemSchema, not_configured};
use crate::market;

/// How it stands with the node.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Status {
    #[schema(value_type = String)]
    pub node: NodeId,
    pub name: String,
    pub engine: Option<String>,
    pub groups: Vec<GroupStatus>,
}

/// A group of devices that this node has to do with.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct GroupStatus {
    #[schema(value_type = String)]
    pub group: GroupId,
    #[schema(value_type = String)]
    pub contract: ContractId,
    /// `holder`, `fenced`, `follower`, `recovering`, `stopped`.
    pub role: String,
    #[schema(value_type = u64)]
    pub epoch: Epoch,
    #[schema(value_type = Option<String>)]
    pub holder: Option<NodeId>,
    /// Members that do not answer.
    #[schema(value_type = Vec<String>)]
    pub missing: Vec<NodeId>,
}

/// A role in one word.
pub(super) const fn role_name(role: Role) -> &'static str {
    match role {
        Role::Holder { .. } => "holder",
        Role::Fenced { .. } => "fenced",
        Role::Follower { .. } => "follower",
        Role::Recovering => "recovering",
        Role::Stopped => "stopped",
    }
}

/// The node and the groups of devices in whose custody it takes part.
#[utoipa::path(get, path = "/v1/status", tag = "node", responses((status = 200, body = Status)))]
pub(super) async fn get_status(State(app): State<Arc<App>>) -> Json<Status> {
    let core = app.core();
    let group = |agreement: crate::agreements::Agreement| {
        let group = agreement.contract.group;
        let view = app.context.custody.subscribe(group)?.borrow().clone();
        let role = role_name(view.role).to_owned();
        let (epoch, holder, missing) = (view.voted_epoch, view.voted_for, view.missing);
        Some(GroupStatus { group, contract: agreement.id, role, epoch, holder, missing })
    };
    Json(Status {
        node: core.me(),
        name: core.config.name.clone(),
        engine: core.orchestrator.as_ref().map(|o| o.engine().kind().to_string()),
        groups: core.agreements.list().into_iter().filter_map(group).collect(),
    })
}

/// Counters and sizes of the LoRa bridge; every drop has a reason.
#[utoipa::path(get, path = "/v1/bridge", tag = "node", responses(
    (status = 200, body = serde_json::Value),
    (status = "4XX", body = ProblemSchema, content_type = "application/problem+json"),
    (status = 503, body = ProblemSchema, content_type = "application/problem+json", description = "The bridge has stopped")
))]
pub(super) async fn get_bridge(State(app): State<Arc<App>>) -> Result<Json<lora_bridge::stats::Stats>, Problem> {
    let parts = app.context.parts.as_ref().ok_or_else(|| Problem::not_found("this node has no LoRa bridge"))?;
    parts.bridge.stats().await.map(Json).map_err(|_| Problem::unavailable("the bridge has stopped"))
}

/// The gateways that the LoRa bridge knows: where downlinks go, what they said of themselves, how they fare.
#[utoipa::path(get, path = "/v1/bridge/gateways", tag = "node", responses(
    (status = 200, body = serde_json::Value),
    (status = "4XX", body = ProblemSchema, content_type = "application/problem+json"),
    (status = 503, body = ProblemSchema, content_type = "application/problem+json", description = "The bridge has stopped")
))]
pub(super) async fn get_gateways(State(app): State<Arc<App>>) -> Result<Json<Vec<GatewayStatus>>, Problem> {
    let parts = app.context.parts.as_ref().ok_or_else(|| Problem::not_found("this node has no LoRa bridge"))?;
    parts.bridge.gateways().await.map(Json).map_err(|_| Problem::unavailable("the bridge has stopped"))
}

/// What the market agent lists, negotiates and waits for.
#[utoipa::path(get, path = "/v1/market", tag = "node", responses(
    (status = 200, body = serde_json::Value),
    (status = 501, body = ProblemSchema, content_type = "application/problem+json", description = "No market agent")
))]
pub(super) async fn get_market(State(app): State<Arc<App>>) -> Result<Json<market::Status>, Problem> {
    let agent = app.agent.as_ref().ok_or_else(|| not_configured("this node runs no market agent"))?;
    Ok(Json(agent.status()))
}
