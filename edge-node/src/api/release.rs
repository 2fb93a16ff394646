//! `/v1/release`: planned maintenance. Custody of a group goes to the other party at once instead of after a lease has run out.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use contracts::ids::{Epoch, GroupId, NodeId};
use kit::problem::Problem;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::input::Body;
use super::{App, ProblemSchema, failed, not_configured};
use crate::insurance;

/// A reason is at most this long.
pub const REASON_BYTES_MAX: usize = 256;

/// Which group is to be given away, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReleaseOrder {
    #[schema(value_type = String)]
    pub group: GroupId,
    /// For the node's log; 1 to 256 bytes.
    pub reason: String,
}

/// Custody was released.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Released {
    #[schema(value_type = String)]
    pub group: GroupId,
    /// The custody that ended.
    #[schema(value_type = u64)]
    pub epoch: Epoch,
    /// Who may claim the next one.
    #[schema(value_type = String)]
    pub successor: NodeId,
    /// Who holds custody now as far as this node knows; this node itself while the successor's claim is still on its way.
    #[schema(value_type = Option<String>)]
    pub holder: Option<NodeId>,
}

/// Stops serving a group, hands the exact counters over and releases custody to the other party. A customer takes custody back by itself
/// as soon as it is level and the group was quiet for as long as the contract says: stop the node for longer maintenance.
#[utoipa::path(post, path = "/v1/release", tag = "node", request_body = ReleaseOrder, responses(
    (status = 200, body = Released),
    (status = "4XX", body = ProblemSchema, content_type = "application/problem+json",
        description = "404: no such group in custody; 409: not held here, or the other party does not answer"),
    (status = 501, body = ProblemSchema, content_type = "application/problem+json", description = "The node serves no devices")
))]
pub(super) async fn release_group(
    State(app): State<Arc<App>>,
    Body(order): Body<ReleaseOrder>,
) -> Result<Json<Released>, Problem> {
    let group = order.group;
    if order.reason.is_empty() || order.reason.len() > REASON_BYTES_MAX || order.reason.chars().any(char::is_control) {
        return Err(Problem::invalid("reason", format_args!("1 to {REASON_BYTES_MAX} bytes of text")));
    }
    let parts = app.context.parts.as_ref().ok_or_else(|| not_configured("it has no LoRa bridge and serves no devices"))?;
    let unknown = || Problem::not_found(format_args!("this node takes no part in custody of {group}")).field("group");
    let agreement = parts.core.agreements.in_force(group).ok_or_else(unknown)?;
    let view = parts.custody.subscribe(group).ok_or_else(unknown)?.borrow().clone();
    let successor = insurance::other_party(&agreement, parts.core.me());
    if view.missing.contains(&successor) {
        return Err(Problem::conflict(format_args!("{successor} does not answer: nobody would serve these devices")));
    }
    tracing::info!(%group, reason = order.reason, "the operator asks for a release");
    let released = insurance::release_one(parts, group).await;
    let not_held = || Problem::conflict("this node does not hold custody of the group");
    let (epoch, successor) = match released {
        Ok(released) => released.ok_or_else(not_held)?,
        Err(insurance::Error::Custody(peering::custody::Error::UnknownGroup(_))) => return Err(unknown()),
        Err(error) => return Err(failed("release custody", &error)),
    };
    let holder = parts.custody.subscribe(group).and_then(|view| view.borrow().voted_for);
    Ok(Json(Released { group, epoch, successor, holder }))
}
