//! What comes in: JSON bodies, ids in paths, query strings, places in lists.

use std::str::FromStr;

use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::request::Parts;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use kit::problem::Problem;
use serde::de::DeserializeOwned;

use super::BODY_BYTES_MAX;

/// A JSON body.
pub(super) struct Body<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let content_type = request.headers().get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
        if content_type.split(';').next().is_none_or(|essence| !essence.trim().eq_ignore_ascii_case("application/json")) {
            let status = StatusCode::UNSUPPORTED_MEDIA_TYPE;
            let problem = Problem::new(status, "unsupported-media-type", "the body must be application/json");
            return Err(problem.field("Content-Type"));
        }
        let body = Bytes::from_request(request, state).await.map_err(|rejection| match rejection.status() {
            StatusCode::PAYLOAD_TOO_LARGE => Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", "the body is too large")
                .detail(format_args!("at most {BODY_BYTES_MAX} bytes are taken")),
            _ => rejection.into(),
        })?;
        serde_json::from_slice(&body).map(Self).map_err(|error| {
            let problem = Problem::new(StatusCode::BAD_REQUEST, "malformed-body", "the body is not what this path takes");
            problem.detail(error)
        })
    }
}

/// The id in a path such as `/v1/contracts/{id}`.
pub(super) struct Id<T>(pub(super) T);

impl<T: FromStr<Err: std::fmt::Display>, S: Send + Sync> FromRequestParts<S> for Id<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let Path(text) = Path::<String>::from_request_parts(parts, state).await?;
        text.parse().map(Self).map_err(|error| Problem::invalid("id", error))
    }
}

/// A query string; its rejection is a problem.
pub(super) struct Params<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Params<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let Query(params) = Query::from_request_parts(parts, state).await?;
        Ok(Self(params))
    }
}

/// How many items a page may have.
///
/// # Errors
/// A problem that names the field.
pub(super) fn page(limit: Option<u32>, default: u32, max: u32) -> Result<u32, Problem> {
    let limit = limit.unwrap_or(default);
    if (1..=max).contains(&limit) { Ok(limit) } else { Err(Problem::invalid("limit", format_args!("1 to {max}"))) }
}

/// The header `Link: <…>; rel="next"` (RFC 8288) of a page behind which there may be more; the target is made of safe characters only.
pub(super) fn next_link(target: Option<String>) -> [Option<(HeaderName, HeaderValue)>; 1] {
    [target.and_then(|target| HeaderValue::try_from(format!("<{target}>; rel=\"next\"")).ok()).map(|link| (header::LINK, link))]
}

/// An optional field of a query or body in its own type.
///
/// # Errors
/// A problem that names the field.
pub(super) fn parse_field<T: FromStr<Err: std::fmt::Display>>(field: &str, text: Option<&str>) -> Result<Option<T>, Problem> {
    text.map(str::parse).transpose().map_err(|error| Problem::invalid(field, error))
}
