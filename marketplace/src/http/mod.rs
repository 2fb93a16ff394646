//! The HTTP side: routes, what every request goes through, and errors as problem documents.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::{ConnectInfo, DefaultBodyLimit, Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse as _, Response};
use kit::problem::{Name, Problem};
use kit::routes;
use kit::work::Uninterrupted;
use tokio::sync::{Semaphore, watch};
use utoipa::OpenApi as _;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::metrics::{NameLabel, RequestLabels};
use crate::service::Service;

mod events;
mod input;
mod limit;
mod listings;
mod matches;
mod nodes;
mod operations;
mod problem;

pub use limit::{Buckets, CLIENTS_MAX};

/// A body is at most this long: an envelope of the largest payload in base64, and its signatures.
pub const BODY_BYTES_MAX: usize = 1_500_000;
/// A request, its body included, is answered within this time.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);

/// Changes at a time; more wait. They are made one after the other anyway.
pub const CHANGES_MAX: usize = 64;

/// What handlers share.
#[derive(Debug)]
pub struct App {
    pub service: Arc<Service>,
    /// Changes run to their end, whether or not the client waits for the answer.
    changes: Uninterrupted,
    buckets: Mutex<Buckets>,
    streams: Arc<Semaphore>,
    /// Set when the process drains: streams end.
    stopping: watch::Receiver<bool>,
}

impl App {
    #[must_use]
    pub fn new(service: Arc<Service>, stopping: watch::Receiver<bool>) -> Arc<Self> {
        let limits = *service.limits();
        let buckets = Mutex::new(Buckets::new(limits.requests_per_second_max, limits.requests_burst_max));
        Arc::new(Self {
            service,
            changes: Uninterrupted::new(CHANGES_MAX),
            buckets,
            streams: Arc::new(Semaphore::new(limits.event_streams_max as usize)),
            stopping,
        })
    }
}

#[derive(utoipa::OpenApi)]
#[openapi(info(
    title = "Antirio marketplace",
    description = "Signed statements in, matches out. Writes are idempotent by statement id; errors are RFC 9457 problem documents; lists go by cursor."
))]
struct Document;

/// All routes on one screen.
fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(operations::describe_marketplace))
        .routes(routes!(nodes::register_node, nodes::get_node))
        .routes(routes!(nodes::list_nodes))
        .routes(routes!(listings::create_offer, listings::list_offers))
        .routes(routes!(listings::get_offer))
        .routes(routes!(listings::create_demand, listings::list_demands))
        .routes(routes!(listings::get_demand))
        .routes(routes!(listings::withdraw_listing))
        .routes(routes!(matches::list_matches))
        .routes(routes!(matches::get_match))
        .routes(routes!(matches::confirm_match))
        .routes(routes!(events::stream_events))
        .routes(routes!(operations::export_statistics))
        .routes(routes!(operations::export_statistics_csv))
        .routes(routes!(operations::check_health))
        .routes(routes!(operations::check_readiness))
        .routes(routes!(operations::read_metrics))
        .routes(routes!(operations::read_openapi))
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

/// Limits rate and time, counts.
async fn guard(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let method = routes::known_method(request.method());
    let client = request.extensions().get::<ConnectInfo<std::net::SocketAddr>>().map(|info| info.0.ip());
    let taken = app.buckets.lock().unwrap_or_else(PoisonError::into_inner).take(client, app.service.clock().boot());
    let response = match taken {
        Err(wait) => {
            let problem = Problem::new(StatusCode::TOO_MANY_REQUESTS, "too-many-requests", "this address asks too often");
            let mut response = problem.detail(format_args!("try again in {wait}")).into_response();
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(wait.0.div_ceil(1_000)));
            response
        }
        Ok(()) => routes::within(REQUEST_TIMEOUT, next, request).await,
    };
    app.service.metrics.requests.get_or_create(&RequestLabels { method, status: response.status().as_u16() }).inc();
    if let Some(problem) = response.extensions().get::<Name>() {
        app.service.metrics.problems.get_or_create(&NameLabel { name: problem.0.clone() }).inc();
    }
    response
}
