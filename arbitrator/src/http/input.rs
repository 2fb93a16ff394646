//! What comes in: JSON bodies, ids in paths, query strings.

use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use axum::http::{StatusCode, header};
use kit::problem::{Problem, Refusal};
use serde::de::DeserializeOwned;

use super::BODY_BYTES_MAX;

/// Items in a page if the caller does not say.
const PAGE_DEFAULT: u32 = 50;
/// Items in a page at most.
pub const PAGE_MAX: u32 = 200;

/// A JSON body.
pub(crate) struct Body<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, state: &S) -> Result<Self, Refusal> {
        let content_type = request.headers().get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
        if content_type.split(';').next().is_none_or(|essence| !essence.trim().eq_ignore_ascii_case("application/json")) {
            let status = StatusCode::UNSUPPORTED_MEDIA_TYPE;
            return Err(Problem::new(status, "unsupported-media-type", "the body must be application/json")
                .field("Content-Type")
                .into());
        }
        let body = Bytes::from_request(request, state).await.map_err(|rejection| match rejection.status() {
            StatusCode::PAYLOAD_TOO_LARGE => {
                let problem = Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", "the body is too large");
                Refusal::from(problem.detail(format_args!("at most {BODY_BYTES_MAX} bytes are taken")))
            }
            _ => rejection.into(),
        })?;
        serde_json::from_slice(&body).map(Self).map_err(|error| {
            let problem = Problem::new(StatusCode::BAD_REQUEST, "malformed-body", "the body is not what this path takes");
            problem.detail(error).into()
        })
    }
}

/// Where a page begins and how long it is.
///
/// # Errors
/// A problem that names the field.
pub(super) fn window(after: Option<u64>, limit: Option<u32>) -> Result<(u64, u32), Problem> {
    let limit = limit.unwrap_or(PAGE_DEFAULT);
    if !(1..=PAGE_MAX).contains(&limit) {
        return Err(Problem::invalid("limit", format_args!("1 to {PAGE_MAX}")));
    }
    let after = after.unwrap_or(0);
    // Databases count in 63 bits.
    if i64::try_from(after).is_err() { Err(Problem::invalid("after", "not a position in this list")) } else { Ok((after, limit)) }
}
