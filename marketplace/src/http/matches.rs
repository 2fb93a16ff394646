//! `/v1/matches`

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use contracts::ids::{NodeId, StatementId};
use kit::input::{Id, Params};
use kit::problem::Refusal;
use serde::Deserialize;
use utoipa::IntoParams;

use super::App;
use super::input::{Signed, window};
use crate::resource::{EnvelopeSchema, Match, MatchState, Page, ProblemSchema};
use crate::store::MatchFilter;

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct MatchParams {
    /// On either side.
    #[param(value_type = Option<String>)]
    node: Option<NodeId>,
    /// The offer or the demand.
    #[param(value_type = Option<String>)]
    listing: Option<StatementId>,
    #[param(inline)]
    state: Option<MatchState>,
    /// The `next` of the page before.
    cursor: Option<String>,
    /// 1 to 200 items, 50 if absent.
    limit: Option<u32>,
}

/// Matches, oldest first, with the node records of both parties.
#[utoipa::path(get, path = "/v1/matches", tag = "matches", params(MatchParams), responses(
    (status = 200, body = Page<Match>), (status = "4XX", body = ProblemSchema, content_type = "application/problem+json")
))]
pub(super) async fn list_matches(
    State(app): State<Arc<App>>,
    Params(params): Params<MatchParams>,
) -> Result<Json<Page<Match>>, Refusal> {
    let window = window(params.cursor.as_deref(), params.limit)?;
    let filter = MatchFilter { node: params.node, listing: params.listing, state: params.state };
    Ok(Json(app.service.list_matches(filter, window).await?))
}

/// A match with the node records of both parties.
#[utoipa::path(get, path = "/v1/matches/{id}", tag = "matches", params(("id" = String, Path, description = "statement_…")), responses(
    (status = 200, body = Match), (status = "4XX", body = ProblemSchema, content_type = "application/problem+json")
))]
pub(super) async fn get_match(State(app): State<Arc<App>>, Id(id): Id<StatementId>) -> Result<Json<Match>, Refusal> {
    Ok(Json(app.service.get_match(id).await?))
}

/// Confirm a held match by the contract that names it, signed by both parties: its capacity stays in use until the contract ends.
#[utoipa::path(put, path = "/v1/matches/{id}/contract", tag = "matches", params(("id" = String, Path, description = "statement_…")), request_body = EnvelopeSchema, responses(
    (status = 200, body = Match), (status = "4XX", body = ProblemSchema, content_type = "application/problem+json")
))]
pub(super) async fn confirm_match(
    State(app): State<Arc<App>>,
    Id(id): Id<StatementId>,
    Signed(envelope): Signed,
) -> Result<Json<Match>, Refusal> {
    let service = Arc::clone(&app.service);
    Ok(Json(app.changes.run(async move { service.confirm_match(id, &envelope).await }).await?))
}
