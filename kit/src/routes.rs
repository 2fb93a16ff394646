//! What every HTTP interface here does the same way, whatever its routes are.

use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::http::{Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use serde::Serialize;

use crate::problem::Problem;

/// Problems for paths and methods that no route takes; `hint` says which paths there are.
pub fn with_fallbacks<S: Clone + Send + Sync + 'static>(router: Router<S>, hint: &'static str) -> Router<S> {
    router.fallback(move || async move { Problem::not_found(hint) }).method_not_allowed_fallback(|| async {
        Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", "this path does not take this method")
    })
}

/// The answer, or a problem if it takes longer than `limit`.
pub async fn within(limit: Duration, next: Next, request: Request) -> Response {
    tokio::time::timeout(limit, next.run(request)).await.unwrap_or_else(|_| {
        let problem = Problem::new(StatusCode::REQUEST_TIMEOUT, "request-timeout", "the request took too long");
        problem.detail(format_args!("a request and its body have {} s", limit.as_secs())).into_response()
    })
}

/// The method as a metric label: callers cannot invent labels.
#[must_use]
pub fn known_method(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "PUT" => "PUT",
        "POST" => "POST",
        _ => "other",
    }
}

/// An interface description as pretty JSON with a newline at its end.
#[must_use]
pub fn document(description: &impl Serialize) -> String {
    let mut text = serde_json::to_string_pretty(description).unwrap_or_default(); // plain data always serialises
    text.push('\n');
    text
}
