//! `/orchestrator/service_customer/…`: own images, and the contracts that insure them.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use kit::problem::Problem;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{ContractView, ImageStatus, ImageView, Images, Known, is_over, note, take_report, view_contract, view_images};
use crate::api::input::Body;
use crate::api::{App, ProblemSchema, incoming, not_configured};

/// Own images: of the service in the configuration, of contracts that are not over, and those that were taken in.
pub(super) async fn images(app: &App) -> Result<Vec<ImageView>, Problem> {
    let core = app.core();
    let mut images = Images::new();
    for service in core.own_service.iter().flat_map(|own| &own.blueprint.services) {
        note(&mut images, service, None);
    }
    let own = |a: &crate::agreements::Agreement| a.contract.customer.node == core.me() && !is_over(a.state);
    for agreement in core.agreements.list().into_iter().filter(own) {
        for service in &agreement.contract.blueprint.services {
            note(&mut images, service, Some(&agreement));
        }
    }
    let kept = app.reports.kept().await;
    for (name, import) in kept.imports {
        images.entry((import.image_id, import.cid)).or_insert(Known { name, ..Known::default() });
    }
    view_images(&core.content, images, &kept.states, ImageStatus::Stored, Some(ImageStatus::Committed)).await
}

/// Own images. `STORED`: complete in the content store; `COMMITTED`: named by a contract in force.
#[utoipa::path(get, path = "/orchestrator/service_customer/image/status", tag = "source", responses((status = 200, body = Vec<ImageView>)))]
pub(in crate::api) async fn list_images(State(app): State<Arc<App>>) -> Result<Json<Vec<ImageView>>, Problem> {
    images(&app).await.map(Json)
}

/// What is said of an own image.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schema(as = CustomerImageReport)]
pub(in crate::api) struct Report {
    image_id: String,
    image_hash: String,
    /// `STORED` or `COMMITTED`.
    status: ImageStatus,
}

/// Notes the state of an own image if it is true.
#[utoipa::path(post, path = "/orchestrator/service_customer/image/status", tag = "source", request_body = Report, responses(
    (status = 200, body = ImageView),
    (status = "4XX", body = ProblemSchema, content_type = "application/problem+json", description = "404: no such image; 409: not true")
))]
pub(in crate::api) async fn report_image(
    State(app): State<Arc<App>>,
    Body(report): Body<Report>,
) -> Result<Json<ImageView>, Problem> {
    match report.status {
        ImageStatus::Stored | ImageStatus::Committed => {}
        ImageStatus::Downloaded | ImageStatus::Ready2download => return Err(Problem::invalid("status", "STORED or COMMITTED")),
    }
    let view = images(&app).await?.into_iter().find(|view| view.image_id == report.image_id);
    let view = view.ok_or_else(|| Problem::not_found("this node has no own image of this id").field("imageId"))?;
    take_report(&app, view, Some(&report.image_hash), report.status).await.map(Json)
}

/// Contracts in which this edge is the customer, one entry for each service.
#[utoipa::path(get, path = "/orchestrator/service_customer/contract/testing", tag = "source", responses((status = 200, body = Vec<ContractView>)))]
pub(in crate::api) async fn list_contracts(State(app): State<Arc<App>>) -> Json<Vec<ContractView>> {
    let core = app.core();
    let own = core.agreements.list().into_iter().filter(|a| a.contract.customer.node == core.me());
    Json(own.flat_map(|a| view_contract(&a, core.me())).collect())
}

/// A wish for insurance.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(in crate::api) struct Wish {
    /// Name of the service in this node's configuration.
    image_name: String,
    /// A file in the directory `incoming` below the state directory: the service's image.
    file_name: String,
    /// Days, as the owner's policy says.
    duration: u32,
}

/// What became of a wish.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(in crate::api) struct WishView {
    image_id: String,
    image_hash: String,
    /// `STORED`, or `COMMITTED` if a contract in force names the image.
    status: ImageStatus,
    /// Contracts of the service that are not over; empty while the market agent still looks for an insurer.
    contracts: Vec<ContractView>,
}

/// Stores the image; the market agent then looks for an insurer by itself, as the owner's policy says. 200 with a contract, 202 without one yet.
#[utoipa::path(post, path = "/orchestrator/service_customer/contract/testing", tag = "source", request_body = Wish, responses(
    (status = 200, body = WishView), (status = 202, body = WishView),
    (status = "4XX", body = ProblemSchema, content_type = "application/problem+json"),
    (status = 501, body = ProblemSchema, content_type = "application/problem+json", description = "No such service, policy or market"),
    (status = 507, body = ProblemSchema, content_type = "application/problem+json", description = "The content store is full")
))]
pub(in crate::api) async fn ask_for_contract(
    State(app): State<Arc<App>>,
    Body(wish): Body<Wish>,
) -> Result<(StatusCode, Json<WishView>), Problem> {
    let core = app.core();
    let rules = core.policy.as_ref().and_then(|policy| policy.customer.as_ref());
    let rules = rules.ok_or_else(|| not_configured("the owner's policy buys no insurance (section `customer`)"))?;
    if core.config.marketplace.is_none() || core.config.arbitrator.is_none() {
        return Err(not_configured("contracts need a marketplace and an arbitrator"));
    }
    let own = core.own_service.iter().flat_map(|own| &own.blueprint.services).find(|service| service.name == wish.image_name);
    let own = own.ok_or_else(|| not_configured("only the service in the node's configuration is insured").field("imageName"))?;
    if wish.duration != rules.days {
        return Err(Problem::invalid("duration", format_args!("the owner's policy says {} days", rules.days)));
    }
    let import = incoming::import(&app, &wish.image_name, &wish.file_name, Some(&own.image_id)).await?;
    if import.cid != own.image {
        let why = format_args!("the service's image file has the content id {}: the same image, packed differently", own.image);
        return Err(Problem::conflict(why).field("fileName"));
    }
    let of_service = |a: &crate::agreements::Agreement| {
        a.contract.customer.node == core.me()
            && !is_over(a.state)
            && a.contract.blueprint.services.iter().any(|s| s.image == own.image)
    };
    let agreements: Vec<_> = core.agreements.list().into_iter().filter(of_service).collect();
    let in_force = agreements.iter().any(|a| a.state.is_in_force());
    let status = if in_force { ImageStatus::Committed } else { ImageStatus::Stored };
    let code = if in_force { StatusCode::OK } else { StatusCode::ACCEPTED };
    let contracts = agreements.iter().flat_map(|a| view_contract(a, core.me())).collect();
    Ok((code, Json(WishView { image_id: import.image_id, image_hash: import.cid, status, contracts })))
}
