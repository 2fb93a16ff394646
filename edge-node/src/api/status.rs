//! How it stands with the node, its bridge and its market agent.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use contracts::ids::{ContractId, Epoch, GroupId, NodeId};
use kit::problem::Problem;
use lora_bridge::bridge::DutyCycle;
use lora_bridge::bridge::adapting::Coverage;
use lora_bridge::gwmp::gateways::GatewayStatus;
use peering::custody::Role;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::input::{Params, page};
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

/// Devices in one page at most.
pub const RADIO_MAX: u32 = 1_000;

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct RadioQuery {
    /// Where to go on, from the `next` of the page before; the beginning if absent.
    #[serde(default)]
    cursor: u32,
    /// 1 to 1,000; 1,000 if absent.
    limit: Option<u32>,
}

/// How devices are heard here and by the other party, where they listen, what they told of themselves. `next` is the cursor of the next page.
#[utoipa::path(get, path = "/v1/bridge/radio", tag = "node", params(RadioQuery), responses(
    (status = 200, body = serde_json::Value),
    (status = "4XX", body = ProblemSchema, content_type = "application/problem+json"),
    (status = 503, body = ProblemSchema, content_type = "application/problem+json", description = "The bridge has stopped")
))]
pub(super) async fn list_radio(
    State(app): State<Arc<App>>,
    Params(query): Params<RadioQuery>,
) -> Result<Json<serde_json::Value>, Problem> {
    let limit = page(query.limit, RADIO_MAX, RADIO_MAX)?;
    let parts = bridge_parts(&app)?;
    let max = usize::try_from(limit).unwrap_or(usize::MAX);
    let (devices, next) = parts.bridge.devices(query.cursor, max).await.map_err(|_| bridge_stopped())?;
    Ok(Json(serde_json::json!({ "devices": devices, "next": next })))
}

/// Time on air of each sub-band of each gateway within the last hour, in microseconds.
#[utoipa::path(get, path = "/v1/bridge/duty-cycle", tag = "node", responses(
    (status = 200, body = serde_json::Value),
    (status = "4XX", body = ProblemSchema, content_type = "application/problem+json"),
    (status = 503, body = ProblemSchema, content_type = "application/problem+json", description = "The bridge has stopped")
))]
pub(super) async fn get_duty_cycle(State(app): State<Arc<App>>) -> Result<Json<Vec<DutyCycle>>, Problem> {
    bridge_parts(&app)?.bridge.duty_cycle().await.map(Json).map_err(|_| bridge_stopped())
}

/// How many devices of each contract the other party hears well enough to serve them.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct GroupCoverage {
    #[schema(value_type = String)]
    pub group: GroupId,
    #[schema(value_type = String)]
    pub contract: ContractId,
    pub devices: u64,
    pub covered: u64,
    pub not_covered: u64,
}

/// Devices of each contract in force that the other party hears well enough to serve, as it told, and those that it does not: what to expect of
/// a takeover now. What it proved to have heard is at `/v1/accounts/{id}`.
#[utoipa::path(get, path = "/v1/insurance/coverage", tag = "node", responses(
    (status = 200, body = Vec<GroupCoverage>),
    (status = "4XX", body = ProblemSchema, content_type = "application/problem+json"),
    (status = 503, body = ProblemSchema, content_type = "application/problem+json", description = "The bridge has stopped")
))]
pub(super) async fn get_coverage(State(app): State<Arc<App>>) -> Result<Json<Vec<GroupCoverage>>, Problem> {
    let parts = bridge_parts(&app)?;
    let mut rows = Vec::new();
    for agreement in app.core().agreements.list().into_iter().filter(|agreement| agreement.state.is_in_force()) {
        let group = agreement.contract.group;
        let Coverage { devices, covered, not_covered } = parts.bridge.coverage(group).await.map_err(|_| bridge_stopped())?;
        rows.push(GroupCoverage { group, contract: agreement.id, devices, covered, not_covered });
    }
    Ok(Json(rows))
}

fn bridge_parts(app: &App) -> Result<&crate::insurance::Parts, Problem> {
    app.context.parts.as_ref().ok_or_else(|| Problem::not_found("this node has no LoRa bridge"))
}

fn bridge_stopped() -> Problem {
    Problem::unavailable("the bridge has stopped")
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
