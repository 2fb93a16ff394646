//! `/healthz` and `/readyz`: does the process live, and does everything behind it work.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use kit::problem::Problem;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{App, CHECK_TIMEOUT, ProblemSchema};

/// What was asked, and what it said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Check {
    /// `database`, `engine`, `bridge`.
    pub name: String,
    pub ok: bool,
    /// What is wrong, or how it is when it is right.
    pub detail: String,
}

/// Everything that this node needs works.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Readiness {
    pub ready: bool,
    pub checks: Vec<Check>,
}

/// The process lives.
#[utoipa::path(get, path = "/healthz", tag = "operations", responses((status = 204)))]
pub(super) async fn check_health() -> StatusCode {
    StatusCode::NO_CONTENT
}

/// The database answers, containers can run (if this node runs any), the bridge lives (if there is one). Else a problem that says what is wrong.
#[utoipa::path(get, path = "/readyz", tag = "operations", responses(
    (status = 200, body = Readiness), (status = 503, body = ProblemSchema, content_type = "application/problem+json")
))]
pub(super) async fn check_readiness(State(app): State<Arc<App>>) -> Result<Json<Readiness>, Problem> {
    let checks = checks(&app).await;
    let wrong: Vec<String> = checks.iter().filter(|c| !c.ok).map(|c| format!("{}: {}", c.name, c.detail)).collect();
    if wrong.is_empty() { Ok(Json(Readiness { ready: true, checks })) } else { Err(Problem::unavailable(wrong.join("; "))) }
}

async fn checks(app: &App) -> Vec<Check> {
    let (database, engine, bridge) = tokio::join!(check_database(app), check_engine(app), check_bridge(app));
    [Some(database), engine, bridge].into_iter().flatten().collect()
}

fn check(name: &str, outcome: Result<Result<String, String>, tokio::time::error::Elapsed>) -> Check {
    let (ok, detail) = match outcome {
        Ok(Ok(detail)) => (true, detail),
        Ok(Err(detail)) => (false, detail),
        Err(_) => (false, format!("no answer within {} s", CHECK_TIMEOUT.as_secs())),
    };
    Check { name: name.to_owned(), ok, detail }
}

async fn check_database(app: &App) -> Check {
    let asked = async {
        match app.core().store.ping().await {
            Ok(()) => Ok("answers".to_owned()),
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "the database does not answer");
                Err("does not answer; the cause is in the node's log".to_owned())
            }
        }
    };
    check("database", tokio::time::timeout(CHECK_TIMEOUT, asked).await)
}

/// The engine, if this node runs containers.
pub(super) async fn check_engine(app: &App) -> Option<Check> {
    let engine = app.core().orchestrator.as_ref()?.engine();
    let asked = async {
        match engine.probe().await {
            Ok(found) if found.usable() => Ok(format!("{} {}", found.kind, found.version)),
            Ok(found) => Err(found.missing.join("; ")),
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "the engine does not answer");
                Err(error.to_string())
            }
        }
    };
    Some(check("engine", tokio::time::timeout(CHECK_TIMEOUT, asked).await))
}

async fn check_bridge(app: &App) -> Option<Check> {
    let bridge = &app.context.parts.as_ref()?.bridge;
    let asked = async { bridge.stats().await.map(|stats| format!("{} gateways", stats.gateways)).map_err(|e| e.to_string()) };
    Some(check("bridge", tokio::time::timeout(CHECK_TIMEOUT, asked).await))
}
