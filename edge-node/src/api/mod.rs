//! The operator API of a node: REST on loopback, for its owner, the command line and a dashboard.
//!
//! - `devices` — sessions and counters
//! - `status`, `health` — how it stands; `release` — planned maintenance; `estimate` — what is used, asked for and free
//! - `events`, `readings`, `contracts`, `content`, `accounts` — what happened and what is kept
//! - `source_resources` — the resources of the EaaS reference implementation; `incoming`, `reports` — files and reports behind them
//! - `metrics` — Prometheus; `input` — bodies, ids and query strings
//!
//! Every error is a problem document, see `docs/problems.md`. The API knows no passwords: it listens on loopback, and it answers only to
//! requests that name a loopback host, so that no web page can reach it through a name of its own.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse as _, Response};
use kit::problem::Problem;
use kit::routes;
use peering::custody::CustodyHandle;
use tokio::sync::Semaphore;
use utoipa::{OpenApi as _, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::core::Core;
use crate::insurance::Parts;
use crate::market::AgentHandle;
use crate::readings::inbox::Inbox;

mod accounts;
mod content;
mod contracts;
mod devices;
mod estimate;
mod events;
mod health;
mod incoming;
mod input;
pub mod metrics;
mod readings;
mod release;
mod reports;
mod source_resources;
mod status;

pub use accounts::{AccountsView, DeviceCoverage, KeptAccount};
pub use content::{ContentPage, KeptContent};
pub use contracts::{ContractDetail, KnownContract};
pub use devices::DeviceStatus;
pub use estimate::{EstimateView, OwnUse, Spare};
pub use health::{Check, Readiness};
pub use incoming::DIRECTORY as INCOMING_DIRECTORY;
pub use readings::ReceivedReading;
pub use release::{ReleaseOrder, Released};
pub use status::{GroupStatus, Status};

/// A body is at most this long.
pub const BODY_BYTES_MAX: usize = 64 << 10;
/// Event streams at a time.
pub const EVENT_STREAMS_MAX: usize = 32;
/// Files that are taken in at a time: one, since it keeps a core and the disk busy.
const IMPORTS_MAX: usize = 1;
/// A request is answered within this time; streams only have to begin.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);
/// A request that stores a file may take this long.
const IMPORT_TIMEOUT: Duration = Duration::from_secs(600);
/// A part of the node that is asked whether it works has this time.
const CHECK_TIMEOUT: Duration = Duration::from_secs(2);

/// What the handlers work with.
#[derive(Debug, Clone)]
pub struct Context {
    pub core: Arc<Core>,
    pub parts: Option<Parts>,
    pub inbox: Option<Inbox>,
    pub custody: CustodyHandle,
}

/// What handlers share.
#[derive(Debug)]
struct App {
    context: Context,
    agent: Option<AgentHandle>,
    streams: Arc<Semaphore>,
    imports: Semaphore,
    requests: metrics::Requests,
    reports: reports::Reports,
}

impl App {
    fn core(&self) -> &Arc<Core> {
        &self.context.core
    }
}

#[derive(utoipa::OpenApi)]
#[openapi(info(
    title = "Antirio node, operator API",
    description = "For the owner of a node, on loopback. Errors are RFC 9457 problem documents; lists go by cursor. \
        Paths below /orchestrator and /filecoin_interface are those of the EaaS reference implementation."
))]
struct Document;

/// All routes on one screen.
fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(status::get_status))
        .routes(routes!(status::get_bridge))
        .routes(routes!(status::get_gateways))
        .routes(routes!(devices::list_devices))
        .routes(routes!(status::list_radio))
        .routes(routes!(status::get_duty_cycle))
        .routes(routes!(status::get_coverage))
        .routes(routes!(status::get_market))
        .routes(routes!(events::follow_events))
        .routes(routes!(readings::list_readings))
        .routes(routes!(contracts::list_contracts))
        .routes(routes!(contracts::get_contract))
        .routes(routes!(accounts::list_accounts))
        .routes(routes!(accounts::list_statements))
        .routes(routes!(estimate::get_estimate))
        .routes(routes!(content::list_content))
        .routes(routes!(release::release_group))
        .routes(routes!(source_resources::customer::list_images, source_resources::customer::report_image))
        .routes(routes!(source_resources::customer::list_contracts, source_resources::customer::ask_for_contract))
        .routes(routes!(source_resources::provider::list_images, source_resources::provider::report_image))
        .routes(routes!(source_resources::provider::list_contracts, source_resources::provider::acknowledge_contract))
        .routes(routes!(source_resources::check_orchestrator))
        .routes(routes!(source_resources::filecoin::report_deal))
        .routes(routes!(source_resources::filecoin::get_image, source_resources::filecoin::store_image))
        .routes(routes!(source_resources::filecoin::report_error))
        .routes(routes!(source_resources::filecoin::check_health))
        .routes(routes!(health::check_health))
        .routes(routes!(health::check_readiness))
        .routes(routes!(metrics::read_metrics))
        .routes(routes!(read_openapi))
}

/// The OpenAPI 3.1 document, pretty JSON with a newline at its end.
#[must_use]
pub fn openapi() -> String {
    let (_, document) = routes().split_for_parts();
    routes::document(&document)
}

/// This document.
#[utoipa::path(get, path = "/openapi.json", tag = "operations", responses(
    (status = 200, body = serde_json::Value, content_type = "application/json")
))]
async fn read_openapi() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], openapi()).into_response()
}

/// All routes, without a market agent: `/v1/market` says so, and `/v1/estimate` measures by itself.
pub fn router(context: Context) -> Router {
    build(context, None)
}

/// All routes; the agent says what it lists, negotiates and would ask for.
pub fn router_with_market(context: Context, agent: AgentHandle) -> Router {
    build(context, Some(agent))
}

fn build(context: Context, agent: Option<AgentHandle>) -> Router {
    let reports = reports::Reports::open(&context.core.config.state_directory);
    let app = Arc::new(App {
        context,
        agent,
        streams: Arc::new(Semaphore::new(EVENT_STREAMS_MAX)),
        imports: Semaphore::new(IMPORTS_MAX),
        requests: metrics::Requests::default(),
        reports,
    });
    let (router, _) = routes().split_for_parts();
    routes::with_fallbacks(router, "no such path in the operator API; /openapi.json lists them all")
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(from_fn_with_state(Arc::clone(&app), guard))
        .with_state(app)
}

/// Refuses other hosts' names, limits time, counts.
async fn guard(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let method = routes::known_method(request.method());
    let response = if names_this_machine(&request) {
        let limit = if request.method() == axum::http::Method::POST { IMPORT_TIMEOUT } else { REQUEST_TIMEOUT };
        routes::within(limit, next, request).await
    } else {
        Problem::forbidden("the operator API answers only on loopback, by address or as localhost").field("Host").into_response()
    };
    app.requests.count(method, response.status());
    response
}

/// Whether the request's host is a loopback address or `localhost`; clients that name none are no browsers.
fn names_this_machine(request: &Request) -> bool {
    let Some(host) = request.headers().get(header::HOST) else { return true };
    let Ok(host) = host.to_str() else { return false };
    let name = match host.strip_prefix('[') {
        Some(v6) => v6.split(']').next().unwrap_or_default(),
        None => host.rsplit_once(':').map_or(host, |(name, _port)| name),
    };
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Something broke here: the cause goes to the log.
fn failed(what: &'static str, error: &(dyn std::error::Error + 'static)) -> Problem {
    tracing::error!(error, what, "an operator's request failed");
    Problem::internal()
}

/// What was asked for needs something that this node's configuration does not have.
fn not_configured(detail: impl std::fmt::Display) -> Problem {
    Problem::new(StatusCode::NOT_IMPLEMENTED, "not-configured", "this node is not configured for it").detail(detail)
}

/// RFC 9457 problem document.
#[derive(Debug, serde::Serialize, ToSchema)]
#[schema(as = Problem)]
struct ProblemSchema {
    /// `urn:antirio:problem:<name>`, stable; `docs/problems.md` has a section for each name.
    #[serde(rename = "type")]
    kind: String,
    title: String,
    status: u16,
    detail: Option<String>,
    /// The field of the input that is wrong.
    field: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_hosts_are_answered() {
        let names = |host: &str| {
            names_this_machine(&Request::builder().header("host", host).body(axum::body::Body::empty()).expect("valid"))
        };
        for host in ["127.0.0.1:7101", "127.0.0.1", "localhost", "LOCALHOST:80", "[::1]:7101", "127.8.9.1:1"] {
            assert!(names(host), "{host}");
        }
        for host in ["example.org", "localhost.example.org:7101", "10.0.0.1:7101", "[2001:db8::1]:7101", "", "[", "::"] {
            assert!(!names(host), "{host}");
        }
    }
}
