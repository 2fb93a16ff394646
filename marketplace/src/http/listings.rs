//! `/v1/offers`, `/v1/demands`, `/v1/withdrawals`

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use contracts::ids::{NodeId, OwnerId, StatementId};
use kit::input::{Id, Params};
use kit::problem::Refusal;
use serde::Deserialize;
use utoipa::IntoParams;

use super::App;
use super::input::{Signed, window};
use super::nodes::put;
use crate::resource::{EnvelopeSchema, Listing, ListingKind, ListingState, Page, ProblemSchema};
use crate::store::ListingFilter;

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ListingParams {
    #[param(value_type = Option<String>)]
    node: Option<NodeId>,
    #[param(value_type = Option<String>)]
    owner: Option<OwnerId>,
    #[param(inline)]
    state: Option<ListingState>,
    /// The `next` of the page before.
    cursor: Option<String>,
    /// 1 to 200 items, 50 if absent.
    limit: Option<u32>,
}

async fn list(app: &App, kind: ListingKind, params: ListingParams) -> Result<Json<Page<Listing>>, Refusal> {
    let window = window(params.cursor.as_deref(), params.limit)?;
    let filter = ListingFilter { kind, node: params.node, owner: params.owner, state: params.state };
    Ok(Json(app.service.list_listings(filter, window).await?))
}

/// List an offer; signed by its node.
#[utoipa::path(post, path = "/v1/offers", tag = "listings", request_body = EnvelopeSchema, responses(
    (status = 201, body = Listing), (status = 200, body = Listing, description = "Listed already"),
    (status = "4XX", body = ProblemSchema, content_type = "application/problem+json")
))]
pub(super) async fn create_offer(
    State(app): State<Arc<App>>,
    Signed(envelope): Signed,
) -> Result<(StatusCode, Json<Listing>), Refusal> {
    let service = Arc::clone(&app.service);
    Ok(put(app.changes.run(async move { service.create_listing(ListingKind::Offer, envelope).await }).await?))
}

/// List a demand; signed by its node.
#[utoipa::path(post, path = "/v1/demands", tag = "listings", request_body = EnvelopeSchema, responses(
    (status = 201, body = Listing), (status = 200, body = Listing, description = "Listed already"),
    (status = "4XX", body = ProblemSchema, content_type = "application/problem+json")
))]
pub(super) async fn create_demand(
    State(app): State<Arc<App>>,
    Signed(envelope): Signed,
) -> Result<(StatusCode, Json<Listing>), Refusal> {
    let service = Arc::clone(&app.service);
    Ok(put(app.changes.run(async move { service.create_listing(ListingKind::Demand, envelope).await }).await?))
}

/// Take an offer or a demand back for ever; signed by the node that listed it.
#[utoipa::path(post, path = "/v1/withdrawals", tag = "listings", request_body = EnvelopeSchema, responses(
    (status = 200, body = Listing, description = "The listing, withdrawn (or expired before)"),
    (status = "4XX", body = ProblemSchema, content_type = "application/problem+json")
))]
pub(super) async fn withdraw_listing(State(app): State<Arc<App>>, Signed(envelope): Signed) -> Result<Json<Listing>, Refusal> {
    let service = Arc::clone(&app.service);
    Ok(Json(app.changes.run(async move { service.withdraw_listing(envelope).await }).await?))
}

/// An offer.
#[utoipa::path(get, path = "/v1/offers/{id}", tag = "listings", params(("id" = String, Path, description = "statement_…")), responses(
    (status = 200, body = Listing), (status = "4XX", body = ProblemSchema, content_type = "application/problem+json")
))]
pub(super) async fn get_offer(State(app): State<Arc<App>>, Id(id): Id<StatementId>) -> Result<Json<Listing>, Refusal> {
    Ok(Json(app.service.get_listing(ListingKind::Offer, id).await?))
}

/// A demand.
#[utoipa::path(get, path = "/v1/demands/{id}", tag = "listings", params(("id" = String, Path, description = "statement_…")), responses(
    (status = 200, body = Listing), (status = "4XX", body = ProblemSchema, content_type = "application/problem+json")
))]
pub(super) async fn get_demand(State(app): State<Arc<App>>, Id(id): Id<StatementId>) -> Result<Json<Listing>, Refusal> {
    Ok(Json(app.service.get_listing(ListingKind::Demand, id).await?))
}

/// Offers, oldest first.
#[utoipa::path(get, path = "/v1/offers", tag = "listings", params(ListingParams), responses(
    (status = 200, body = Page<Listing>), (status = "4XX", body = ProblemSchema, content_type = "application/problem+json")
))]
pub(super) async fn list_offers(
    State(app): State<Arc<App>>,
    Params(params): Params<ListingParams>,
) -> Result<Json<Page<Listing>>, Refusal> {
    list(&app, ListingKind::Offer, params).await
}

/// Demands, oldest first.
#[utoipa::path(get, path = "/v1/demands", tag = "listings", params(ListingParams), responses(
    (status = 200, body = Page<Listing>), (status = "4XX", body = ProblemSchema, content_type = "application/problem+json")
))]
pub(super) async fn list_demands(
    State(app): State<Arc<App>>,
    Params(params): Params<ListingParams>,
) -> Result<Json<Page<Listing>>, Refusal> {
    list(&app, ListingKind::Demand, params).await
}
