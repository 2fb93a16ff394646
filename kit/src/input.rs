//! What comes in: JSON bodies, ids in paths, query strings, places in lists and streams. What cannot be read is refused with a problem.

use std::str::FromStr;

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::JsonRejection;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use serde::de::DeserializeOwned;

use crate::problem::{Problem, Refusal};

/// The id in a path such as `/v1/nodes/{id}`.
#[derive(Debug)]
pub struct Id<T>(pub T);

impl<T: FromStr<Err: std::fmt::Display>, S: Send + Sync> FromRequestParts<S> for Id<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        let Path(text) = Path::<String>::from_request_parts(parts, state).await?;
        text.parse().map(Self).map_err(|error| Problem::invalid("id", error).into())
    }
}

/// A query string.
#[derive(Debug)]
pub struct Params<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Params<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        let Query(params) = Query::from_request_parts(parts, state).await?;
        Ok(Self(params))
    }
}

/// A body of many entries: as [`axum::Json`], which notes with every field where it is, in case it has to be named; here only a body that is
/// refused is read in this way.
#[derive(Debug)]
pub struct Bulk<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Bulk<T> {
    type Rejection = JsonRejection;

    async fn from_request(request: Request, state: &S) -> Result<Self, JsonRejection> {
        let is_json = request.headers().get(header::CONTENT_TYPE).is_some_and(|value| value == "application/json");
        if !is_json {
            return Json::from_request(request, state).await.map(|Json(value)| Self(value));
        }
        let body = Bytes::from_request(request, state).await?;
        serde_json::from_slice(&body).or_else(|_| Json::from_bytes(&body).map(|Json(value)| value)).map(Self)
    }
}

/// A body that is JSON of form `T`. Its length is limited by the router's layer; `bytes_max` is what the problem then says. `wanted` names
/// the form in the problem of a body that is of another.
///
/// # Errors
/// It is no JSON, too long, or of another form.
pub async fn json<T: DeserializeOwned, S: Send + Sync>(
    request: Request,
    state: &S,
    bytes_max: usize,
    wanted: &str,
) -> Result<T, Problem> {
    let content_type = request.headers().get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    if content_type.split(';').next().is_none_or(|essence| !essence.trim().eq_ignore_ascii_case("application/json")) {
        let status = StatusCode::UNSUPPORTED_MEDIA_TYPE;
        let problem = Problem::new(status, "unsupported-media-type", "the body must be application/json");
        return Err(problem.field("Content-Type"));
    }
    let body = Bytes::from_request(request, state).await.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", "the body is too large")
            .detail(format_args!("at most {bytes_max} bytes are taken")),
        _ => rejection.into(),
    })?;
    serde_json::from_slice(&body).map_err(|error| Problem::new(StatusCode::BAD_REQUEST, "malformed-body", wanted).detail(error))
}

/// How many items a page may have.
///
/// # Errors
/// A problem that names the field.
pub fn page(limit: Option<u32>, default: u32, max: u32) -> Result<u32, Problem> {
    let limit = limit.unwrap_or(default);
    if (1..=max).contains(&limit) { Ok(limit) } else { Err(Problem::invalid("limit", format_args!("1 to {max}"))) }
}

/// The last event that a follower of server-sent events has seen: by the header `Last-Event-ID`, or else by its query.
///
/// # Errors
/// The header is no number.
pub fn last_event(headers: &HeaderMap, after: Option<u64>) -> Result<Option<u64>, Problem> {
    let Some(value) = headers.get("last-event-id") else { return Ok(after) };
    let seen = value.to_str().ok().and_then(|text| text.parse::<u64>().ok());
    seen.map(Some).ok_or_else(|| Problem::invalid("Last-Event-ID", "not an event's number"))
}
