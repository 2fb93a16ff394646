//! The marketplace itself: who it is, statistics, health, metrics, its description.

use std::fmt::Write as _;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use kit::input::Params;
use kit::problem::{Problem, Refusal};

use super::App;
use super::input::{PAGE_MAX, PageParams, window};
use crate::resource::{Marketplace, ProblemSchema, Statistics};
use crate::store::Window;

/// Rows in one CSV export at most; older ones are read by cursor as JSON.
const CSV_ROWS_MAX: usize = 10_000;

/// Whose key signs the matches, and how far it is.
#[utoipa::path(get, path = "/v1/marketplace", tag = "marketplace", responses((status = 200, body = Marketplace)))]
pub(super) async fn describe_marketplace(State(app): State<Arc<App>>) -> Result<Json<Marketplace>, Refusal> {
    Ok(Json(app.service.describe().await?))
}

/// Totals now, and what the clearing rounds did, oldest first.
#[utoipa::path(get, path = "/v1/statistics", tag = "marketplace", params(PageParams), responses(
    (status = 200, body = Statistics), (status = "4XX", body = ProblemSchema, content_type = "application/problem+json")
))]
pub(super) async fn export_statistics(
    State(app): State<Arc<App>>,
    Params(params): Params<PageParams>,
) -> Result<Json<Statistics>, Refusal> {
    let window = window(params.cursor.as_deref(), params.limit)?;
    Ok(Json(app.service.export_statistics(window).await?))
}

/// The clearing rounds as CSV (RFC 4180), oldest first, at most 10,000 of them after `cursor`.
#[utoipa::path(get, path = "/v1/statistics.csv", tag = "marketplace", params(PageParams), responses(
    (status = 200, body = String, content_type = "text/csv"), (status = "4XX", body = ProblemSchema, content_type = "application/problem+json")
))]
pub(super) async fn export_statistics_csv(
    State(app): State<Arc<App>>,
    Params(params): Params<PageParams>,
) -> Result<impl IntoResponse, Refusal> {
    let mut after = window(params.cursor.as_deref(), params.limit)?.after;
    let mut csv =
        String::from("round,currency,at_ms,offers,demands,edges,matched,volume_micros,surplus_micros,bound_micros,exact\r\n");
    let mut rows = 0;
    while rows < CSV_ROWS_MAX {
        let page = app.service.export_statistics(Window { after, limit: PAGE_MAX }).await?;
        rows += page.rounds.len();
        for r in &page.rounds {
            let (currency, at) = (r.currency.as_str(), r.at.0);
            let line = format_args!(
                "{},{currency},{at},{},{},{},{},{},{},{},{}\r\n",
                r.round, r.offers, r.demands, r.edges, r.matched, r.volume.0, r.surplus.0, r.bound.0, r.exact
            );
            csv.write_fmt(line).map_err(|std::fmt::Error| Problem::internal())?;
        }
        match page.next.and_then(|cursor| cursor.parse().ok()) {
            Some(next) => after = next,
            None => break,
        }
    }
    Ok(([(header::CONTENT_TYPE, "text/csv; charset=utf-8; header=present")], csv))
}

/// The process lives.
#[utoipa::path(get, path = "/healthz", tag = "operations", responses((status = 200, body = String)))]
pub(super) async fn check_health() -> &'static str {
    "ok\n"
}

/// Requests can be served: the store answers and the process is not draining.
#[utoipa::path(get, path = "/readyz", tag = "operations", responses(
    (status = 200, body = String), (status = 503, body = ProblemSchema, content_type = "application/problem+json")
))]
pub(super) async fn check_readiness(State(app): State<Arc<App>>) -> Result<&'static str, Refusal> {
    if *app.stopping.borrow() {
        return Err(Problem::unavailable("the process is draining").into());
    }
    match app.service.ready().await {
        Ok(()) => Ok("ok\n"),
        Err(error) => {
            tracing::warn!(error = &error as &dyn std::error::Error, "not ready");
            Err(Problem::unavailable("the store does not answer").into())
        }
    }
}

/// Counters in the OpenMetrics text format.
#[utoipa::path(get, path = "/metrics", tag = "operations", responses(
    (status = 200, body = String, content_type = "application/openmetrics-text")
))]
pub(super) async fn read_metrics(State(app): State<Arc<App>>) -> impl IntoResponse {
    let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, content_type)], app.service.metrics.encode())
}

/// This document.
#[utoipa::path(get, path = "/openapi.json", tag = "operations", responses((status = 200, body = serde_json::Value, content_type = "application/json")))]
pub(super) async fn read_openapi() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], super::openapi())
}
