//! The HTTP side: routes, what every request goes through, errors as problem documents. A handler reads, calls the service, shows.

mod events;
mod handlers;
mod input;
mod problem;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse as _, Response};
use kit::problem::{Name, Problem};
use kit::routes;
use kit::work::Uninterrupted;
use tokio::sync::{Semaphore, watch};
use utoipa::OpenApi as _;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::config::Limits;
use crate::metrics::Metrics;
use crate::service::Service;

pub(crate) use input::Body;

/// A body is at most this long: a contract of the largest payload in base64 with signatures and node records.
pub const BODY_BYTES_MAX: usize = 1_600_000;
/// A request, its body included, is answered within this time.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);

/// Changes at a time; more wait. They are made one after the other anyway.
pub const CHANGES_MAX: usize = 64;

/// What handlers share.
#[derive(Debug)]
pub struct App {
    pub service: Arc<Service>,
    in_flight: Semaphore,
    /// Changes run to their end, whether or not the client waits for the answer.
    changes: Uninterrupted,
    streams: Arc<Semaphore>,
    /// Set when the process drains: streams end.
    stopping: watch::Receiver<bool>,
}

impl App {
    #[must_use]
    pub fn new(service: Arc<Service>, limits: Limits, stopping: watch::Receiver<bool>) -> Arc<Self> {
        let places = |n: u32| Semaphore::new(usize::try_from(n).unwrap_or(Semaphore::MAX_PERMITS).min(Semaphore::MAX_PERMITS));
        let (in_flight, streams) = (places(limits.requests_in_flight_max), Arc::new(places(limits.event_streams_max)));
        Arc::new(Self { service, in_flight, changes: Uninterrupted::new(CHANGES_MAX), streams, stopping })
    }
}

#[derive(utoipa::OpenApi)]
#[openapi(info(
    title = "Antirio arbitrator",
    description = "Signed statements in; contracts in force, money held and settled, verdicts out. Writes are idempotent by statement id; errors are RFC 9457 problem documents."
))]
struct Document;

/// All routes on one screen.
fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(handlers::describe_arbitrator))
        .routes(routes!(handlers::register_node, handlers::get_node))
        .routes(routes!(handlers::create_contract, handlers::list_contracts))
        .routes(routes!(handlers::get_contract))
        .routes(routes!(handlers::add_evidence, handlers::list_evidence))
        .routes(routes!(handlers::get_verdict))
        .routes(routes!(handlers::take_order))
        .routes(routes!(handlers::list_accounts))
        .routes(routes!(handlers::list_transfers))
        .routes(routes!(handlers::get_reputation))
        .routes(routes!(events::stream_events))
        .routes(routes!(handlers::check_health))
        .routes(routes!(handlers::check_readiness))
        .routes(routes!(handlers::read_metrics))
        .routes(routes!(handlers::read_openapi))
}

/// The OpenAPI 3.1 document, pretty JSON with a newline at its end.
#[must_use]
pub fn openapi() -> String {
    let (_, document) = routes().split_for_parts();
    routes::document(&document)
}

/// The server as a service, without its connections.
pub fn router(app: Arc<App>) -> Router {
    let (router, _) = routes().split_for_parts();
    routes::with_fallbacks(router, "no such path; /openapi.json lists them all")
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(from_fn_with_state(Arc::clone(&app), guard))
        .with_state(app)
}

/// Limits number and time of requests, counts.
async fn guard(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let response = match app.in_flight.try_acquire() {
        Err(_) => Problem::unavailable("too many requests at a time").into_response(),
        Ok(_place) => routes::within(REQUEST_TIMEOUT, next, request).await,
    };
    app.service.metrics.requests.inc();
    if let Some(name) = response.extensions().get::<Name>() {
        Metrics::count(&app.service.metrics.problems, &name.0);
    }
    response
}
