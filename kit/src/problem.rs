//! HTTP errors as RFC 9457 problem documents: a stable type, what is wrong, which field.

use std::fmt;

use axum::Json;
use axum::extract::rejection::{BytesRejection, JsonRejection, PathRejection, QueryRejection};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};

/// What problem types start with; the page of each is `docs/problems.md#<name>`.
pub const TYPE_PREFIX: &str = "urn:antirio:problem:";

/// A problem document. Carries what the caller may know; causes are logged where they are handled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// `urn:antirio:problem:<name>`, stable.
    #[serde(rename = "type")]
    pub kind: String,
    pub title: String,
    pub status: u16,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// The field of the input that is wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
}

impl Problem {
    #[must_use]
    pub fn new(status: StatusCode, name: &str, title: &str) -> Self {
        Self { kind: format!("{TYPE_PREFIX}{name}"), title: title.to_owned(), status: status.as_u16(), detail: None, field: None }
    }

    /// Adds what is wrong in this case; a detail is cut at 500 characters.
    #[must_use]
    pub fn detail(mut self, detail: impl fmt::Display) -> Self {
        self.detail = Some(detail.to_string().chars().take(500).collect());
        self
    }

    #[must_use]
    pub fn field(mut self, field: impl Into<String>) -> Self {
        self.field = Some(field.into());
        self
    }

    /// The name behind [`TYPE_PREFIX`].
    #[must_use]
    pub fn name(&self) -> &str {
        self.kind.strip_prefix(TYPE_PREFIX).unwrap_or(&self.kind)
    }

    #[must_use]
    pub fn not_found(detail: impl fmt::Display) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not-found", "there is no such thing").detail(detail)
    }

    #[must_use]
    pub fn invalid(field: &str, detail: impl fmt::Display) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid-input", "a field of the input is wrong").field(field).detail(detail)
    }

    #[must_use]
    pub fn conflict(detail: impl fmt::Display) -> Self {
        Self::new(StatusCode::CONFLICT, "conflict", "this does not fit the present state").detail(detail)
    }

    #[must_use]
    pub fn forbidden(detail: impl fmt::Display) -> Self {
        Self::new(StatusCode::FORBIDDEN, "forbidden", "the caller may not do this").detail(detail)
    }

    /// Something broke on our side; say why in the log, not here.
    #[must_use]
    pub fn internal() -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "the server failed; the cause is in its log")
    }

    #[must_use]
    pub fn unavailable(detail: impl fmt::Display) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", "this cannot be done right now").detail(detail)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.title, self.name())?;
        if let Some(field) = &self.field {
            write!(f, ", field {field}")?;
        }
        self.detail.as_ref().map_or(Ok(()), |detail| write!(f, ": {detail}"))
    }
}

impl std::error::Error for Problem {}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, Json(self)).into_response();
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        response
    }
}

/// What handlers fail with: a problem that leaves its name beside the response, see [`Name`].
#[derive(Debug)]
pub struct Refusal(Problem);

/// The name of the problem that a response carries, for metrics.
#[derive(Debug, Clone)]
pub struct Name(pub String);

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let name = Name(self.0.name().to_owned());
        let mut response = self.0.into_response();
        response.extensions_mut().insert(name);
        response
    }
}

impl<T: Into<Problem>> From<T> for Refusal {
    fn from(problem: T) -> Self {
        Self(problem.into())
    }
}

impl From<contracts::envelope::Error> for Problem {
    fn from(error: contracts::envelope::Error) -> Self {
        use contracts::envelope::Error as E;
        let name = match &error {
            E::Type { .. } => "unknown-statement-type",
            E::TooLong { .. } => "too-large",
            E::SignatureCount { .. } | E::Key { .. } | E::Signature { .. } | E::SignedTwice { .. } | E::Missing { .. } => {
                "bad-signature"
            }
            E::Payload { .. } => "malformed-statement",
            E::Invalid(invalid) => return Self::invalid(invalid.field, invalid.reason),
        };
        Self::new(StatusCode::BAD_REQUEST, name, "the statement is refused").detail(error)
    }
}

macro_rules! rejection {
    ($($rejection:ty => $name:literal),* $(,)?) => {$(
        impl From<$rejection> for Problem {
            fn from(rejection: $rejection) -> Self {
                Self::new(rejection.status(), $name, "the request cannot be read").detail(rejection.body_text())
            }
        }
    )*};
}

rejection! {
    JsonRejection => "malformed-body",
    BytesRejection => "malformed-body",
    PathRejection => "malformed-path",
    QueryRejection => "malformed-query",
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_problem_is_json_with_its_status_and_content_type() {
        let response = Problem::invalid("devices", "none given").into_response();
        assert_eq!(response.status(), StatusCode::BAD_REQUEST);
        assert_eq!(response.headers()[header::CONTENT_TYPE], "application/problem+json");
        let body = axum::body::to_bytes(response.into_body(), 10_000).await.expect("small body");
        let read: Problem = serde_json::from_slice(&body).expect("a problem");
        assert_eq!((read.name(), read.field.as_deref()), ("invalid-input", Some("devices")));
    }
}
