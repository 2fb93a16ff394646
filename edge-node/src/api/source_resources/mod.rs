//! The REST resources of the EaaS reference implementation, with its paths and field names.
//!
//! Everything that is read is derived from contracts and the content store. Everything that is posted is checked against them: a report
//! that is not true is refused, and what needs a Filecoin archive says that none is configured. Contracts are made by two signatures in
//! the market and by nothing that is posted here.
//!
//! - `customer` — own images and the contracts that insure them; `provider` — images and contracts of others
//! - `filecoin` — the interface to the storage network: here the node's own content store

pub(super) mod customer;
pub(super) mod filecoin;
pub(super) mod provider;

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use contracts::blueprint::{Activation, Service};
use contracts::contract::{Contract, State as Life};
use contracts::ids::{ContractId, NodeId};
use kit::problem::Problem;
use serde::{Deserialize, Serialize};
use storage::BlockStore;
use utoipa::ToSchema;

use super::reports::Reported;
use super::{App, ProblemSchema, failed, health};
use crate::agreements::Agreement;

/// How far an image is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "UPPERCASE")]
pub(super) enum ImageStatus {
    /// All of it is in the content store.
    Stored,
    /// A contract in force names it.
    Committed,
    /// Of another owner, and all of it is here.
    Downloaded,
    /// Whoever has the right can fetch all of it from here.
    Ready2download,
}

impl ImageStatus {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Stored => "STORED",
            Self::Committed => "COMMITTED",
            Self::Downloaded => "DOWNLOADED",
            Self::Ready2download => "READY2DOWNLOAD",
        }
    }
}

/// An image as the source shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct ImageView {
    /// Digest of the image's configuration, `sha256:…`.
    image_id: String,
    /// Name of the service that it is for.
    image_name: String,
    /// Content id (`CIDv1`) of the image file.
    image_hash: String,
    /// Absent while blocks are missing and no contract in force names it.
    status: Option<ImageStatus>,
    /// Known blocks that are not here.
    missing_blocks: u64,
    /// Contracts that name it.
    #[schema(value_type = Vec<String>)]
    contracts: Vec<ContractId>,
    /// What was reported last, and when (milliseconds since the Unix epoch).
    reported_status: Option<String>,
    reported_at: Option<u64>,
}

/// An image before the content store is asked.
#[derive(Debug, Clone, Default)]
struct Known {
    name: String,
    is_in_force: bool,
    contracts: Vec<ContractId>,
}

/// Images by id and content id.
type Images = BTreeMap<(String, String), Known>;

fn note(images: &mut Images, service: &Service, agreement: Option<&Agreement>) {
    let known = images.entry((service.image_id.clone(), service.image.clone())).or_default();
    known.name.clone_from(&service.name);
    if let Some(agreement) = agreement {
        known.contracts.push(agreement.id);
        known.is_in_force |= agreement.state.is_in_force();
    }
}

/// Looks up what is here of each image; `complete` is the word for all of it, `in_force` the one for a contract in force.
async fn view_images(
    store: &BlockStore,
    images: Images,
    reported: &BTreeMap<String, Reported>,
    complete: ImageStatus,
    in_force: Option<ImageStatus>,
) -> Result<Vec<ImageView>, Problem> {
    let mut views = Vec::with_capacity(images.len());
    for ((image_id, image_hash), known) in images {
        let cid = storage::parse_cid(&image_hash).map_err(|e| failed("read a content id", &e))?;
        let missing_blocks = store.missing(&cid).await.map_err(|e| failed("look for blocks", &e))?.len() as u64;
        let status = in_force.filter(|_| known.is_in_force).or((missing_blocks == 0).then_some(complete));
        let reported = reported.get(&image_id);
        views.push(ImageView {
            image_name: known.name,
            image_hash,
            status,
            missing_blocks,
            contracts: known.contracts,
            reported_status: reported.map(|reported| reported.status.clone()),
            reported_at: reported.map(|reported| reported.at.0),
            image_id,
        });
    }
    Ok(views)
}

/// Checks a reported state against what is true of an image, and notes it.
async fn take_report(app: &App, view: ImageView, hash: Option<&str>, status: ImageStatus) -> Result<ImageView, Problem> {
    if hash.is_some_and(|hash| hash != view.image_hash) {
        return Err(Problem::conflict(format_args!("the image's content id is {}", view.image_hash)).field("imageHash"));
    }
    let is_complete = view.missing_blocks == 0;
    let is_true = match status {
        ImageStatus::Stored | ImageStatus::Downloaded | ImageStatus::Ready2download => is_complete,
        ImageStatus::Committed => view.status == Some(ImageStatus::Committed),
    };
    if !is_true {
        let why = if is_complete { "no contract in force names this image" } else { "the content store does not have all of it" };
        return Err(Problem::conflict(why).field("status"));
    }
    let reported = Reported { status: status.as_str().to_owned(), at: app.core().clock.wall() };
    let (reported_status, reported_at) = (Some(reported.status.clone()), Some(reported.at.0));
    app.reports.add_state(view.image_id.clone(), reported).await.map_err(|e| failed("note a report", &e))?;
    Ok(ImageView { reported_status, reported_at, ..view })
}

/// A service of a contract as the source shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct ContractView {
    #[schema(value_type = String)]
    contract_id: ContractId,
    /// The other edge.
    #[schema(value_type = String)]
    edge_id: NodeId,
    image_name: String,
    /// Content id (`CIDv1`) of the image file.
    image_hash: String,
    config: ConfigView,
    /// Days.
    duration: u32,
    /// `proposed`, `agreed`, `preparing`, `standby`, `taken_over`, `handing_back`, `disputed`, `ended`.
    state: String,
}

/// The configuration file of the source, from the contract.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub(super) struct ConfigView {
    service_customer_id: String,
    #[serde(rename = "serviceName")]
    service_name: String,
    #[serde(rename = "activationEvent")]
    activation_event: String,
    event: EventView,
    depends_on: Vec<String>,
    /// Content ids of the sealed configuration.
    network_configuration: String,
    application_configuration: String,
}

/// When the service starts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub(super) struct EventView {
    /// The lease's length: silence for so long, and a majority may vote for the provider.
    interval: String,
}

fn view_contract(agreement: &Agreement, me: NodeId) -> Vec<ContractView> {
    let contract = &agreement.contract;
    let view = |service: &Service| ContractView {
        contract_id: agreement.id,
        edge_id: if contract.customer.node == me { contract.provider.node } else { contract.customer.node },
        image_name: service.name.clone(),
        image_hash: service.image.clone(),
        config: view_config(contract, service),
        duration: contract.money.days,
        state: super::metrics::state_name(agreement.state).to_owned(),
    };
    contract.blueprint.services.iter().map(view).collect()
}

fn view_config(contract: &Contract, service: &Service) -> ConfigView {
    let activation = match contract.blueprint.activation {
        Activation::Offline => "offline",
    };
    ConfigView {
        service_customer_id: contract.customer.node.to_string(),
        service_name: service.name.clone(),
        activation_event: activation.to_owned(),
        event: EventView { interval: format!("{} ms", contract.terms.ttl.0) },
        depends_on: service.depends_on.clone(),
        network_configuration: contract.network_configuration.clone(),
        application_configuration: contract.application_configuration.clone(),
    }
}

const fn is_over(state: Life) -> bool {
    match state {
        Life::Ended { .. } => true,
        Life::Proposed | Life::Agreed | Life::Preparing => false,
        Life::Standby { .. } | Life::TakenOver { .. } | Life::HandingBack { .. } | Life::Disputed { .. } => false,
    }
}

/// How the orchestrator is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct OrchestratorHealth {
    /// `UP`; anything else is a problem document.
    status: &'static str,
    /// The engine and its version.
    engine: String,
}

/// Whether containers can run.
#[utoipa::path(get, path = "/orchestrator/health", tag = "source", responses(
    (status = 200, body = OrchestratorHealth),
    (status = 501, body = ProblemSchema, content_type = "application/problem+json", description = "This node runs no containers"),
    (status = 503, body = ProblemSchema, content_type = "application/problem+json", description = "The engine cannot be used")
))]
pub(super) async fn check_orchestrator(State(app): State<Arc<App>>) -> Result<Json<OrchestratorHealth>, Problem> {
    let engine = health::check_engine(&app).await.ok_or_else(|| super::not_configured("it runs no containers"))?;
    if engine.ok {
        Ok(Json(OrchestratorHealth { status: "UP", engine: engine.detail }))
    } else {
        Err(Problem::unavailable(engine.detail))
    }
}
