//! `/orchestrator/service_provider/…`: images and contracts of others that this edge insures.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use contracts::ids::NodeId;
use kit::problem::Problem;
use serde::Deserialize;
use utoipa::ToSchema;

use super::{ContractView, ImageStatus, ImageView, Images, is_over, note, take_report, view_contract, view_images};
use crate::api::input::Body;
use crate::api::{App, ProblemSchema};

/// Images of contracts in which this edge provides and that are not wiped.
async fn images(app: &App) -> Result<Vec<ImageView>, Problem> {
    let core = app.core();
    let mut images = Images::new();
    for agreement in core.agreements.list().into_iter().filter(|a| a.contract.provider.node == core.me() && !a.wiped) {
        for service in &agreement.contract.blueprint.services {
            note(&mut images, service, Some(&agreement));
        }
    }
    let states = app.reports.kept().await.states;
    view_images(&core.content, images, &states, ImageStatus::Downloaded, None).await
}

/// Third parties' images. `DOWNLOADED`: all of it is here.
#[utoipa::path(get, path = "/orchestrator/service_provider/image/status", tag = "source", responses((status = 200, body = Vec<ImageView>)))]
pub(in crate::api) async fn list_images(State(app): State<Arc<App>>) -> Result<Json<Vec<ImageView>>, Problem> {
    images(&app).await.map(Json)
}

/// What is said of a third party's image.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schema(as = ProviderImageReport)]
pub(in crate::api) struct Report {
    image_id: String,
    /// `DOWNLOADED`.
    status: ImageStatus,
}

/// Notes the state of a third party's image if it is true.
#[utoipa::path(post, path = "/orchestrator/service_provider/image/status", tag = "source", request_body = Report, responses(
    (status = 200, body = ImageView),
    (status = "4XX", body = ProblemSchema, content_type = "application/problem+json", description = "404: no such image; 409: not true")
))]
pub(in crate::api) async fn report_image(
    State(app): State<Arc<App>>,
    Body(report): Body<Report>,
) -> Result<Json<ImageView>, Problem> {
    match report.status {
        ImageStatus::Downloaded => {}
        ImageStatus::Stored | ImageStatus::Committed | ImageStatus::Ready2download => {
            return Err(Problem::invalid("status", "DOWNLOADED"));
        }
    }
    let view = images(&app).await?.into_iter().find(|view| view.image_id == report.image_id);
    let view = view.ok_or_else(|| Problem::not_found("no contract here names an image of this id").field("imageId"))?;
    take_report(&app, view, None, report.status).await.map(Json)
}

/// Contracts in which this edge provides, one entry for each service.
#[utoipa::path(get, path = "/orchestrator/service_provider/contract", tag = "source", responses((status = 200, body = Vec<ContractView>)))]
pub(in crate::api) async fn list_contracts(State(app): State<Arc<App>>) -> Json<Vec<ContractView>> {
    let core = app.core();
    let ours = core.agreements.list().into_iter().filter(|a| a.contract.provider.node == core.me());
    Json(ours.flat_map(|a| view_contract(&a, core.me())).collect())
}

/// A contract as the customer's edge tells it.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(in crate::api) struct Told {
    /// The customer's edge, `node_…`.
    edge_id: String,
    image_name: String,
    /// Content id of the image.
    image_hash: String,
    /// Fields of the configuration; each one given has to be the contract's.
    #[serde(default)]
    #[schema(value_type = Object)]
    config: serde_json::Map<String, serde_json::Value>,
}

/// Finds the signed contract that is told of. A contract that both nodes have not signed is not made here.
#[utoipa::path(post, path = "/orchestrator/service_provider/contract", tag = "source", request_body = Told, responses(
    (status = 200, body = ContractView),
    (status = "4XX", body = ProblemSchema, content_type = "application/problem+json",
        description = "409 contract-not-signed: there is no such contract with two signatures")
))]
pub(in crate::api) async fn acknowledge_contract(
    State(app): State<Arc<App>>,
    Body(told): Body<Told>,
) -> Result<Json<ContractView>, Problem> {
    let core = app.core();
    let edge: NodeId = told.edge_id.parse().map_err(|e| Problem::invalid("edgeId", e))?;
    storage::parse_cid(&told.image_hash).map_err(|e| Problem::invalid("imageHash", e))?;
    let ours = |a: &crate::agreements::Agreement| {
        a.contract.provider.node == core.me()
            && a.contract.customer.node == edge
            && a.envelope.signatures.len() >= 2
            && !is_over(a.state)
    };
    let views = core.agreements.list().into_iter().filter(ours).flat_map(|a| view_contract(&a, core.me()));
    let view = views.into_iter().find(|view| view.image_hash == told.image_hash && view.image_name == told.image_name);
    let view = view.ok_or_else(|| {
        Problem::new(StatusCode::CONFLICT, "contract-not-signed", "there is no such contract with the signatures of both nodes")
            .detail("contracts are made in the market, where both nodes sign the same text")
    })?;
    let config = serde_json::to_value(&view.config).unwrap_or_default();
    match told.config.iter().find(|(name, value)| config.get(name) != Some(value)) {
        Some((name, _)) => Err(Problem::conflict("the signed contract says something else").field(format!("config.{name}"))),
        None => Ok(Json(view)),
    }
}
