//! What comes in: envelopes as bodies, ids in paths, cursors.

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{FromRequest, Request};
use axum::http::{StatusCode, header};
use contracts::envelope::Envelope;
use kit::problem::{Problem, Refusal};
use serde::Deserialize;
use utoipa::IntoParams;

use super::BODY_BYTES_MAX;
use crate::store::Window;

/// Items in a page if the caller does not say.
const PAGE_DEFAULT: u32 = 50;
/// Items in a page at most.
pub(super) const PAGE_MAX: u32 = 200;

/// A JSON body that is an envelope.
pub(super) struct Signed(pub(super) Envelope);

impl<S: Send + Sync> FromRequest<S> for Signed {
    type Rejection = Refusal;

    async fn from_request(request: Request, state: &S) -> Result<Self, Refusal> {
        let content_type = request.headers().get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
        if content_type.split(';').next().is_none_or(|essence| !essence.trim().eq_ignore_ascii_case("application/json")) {
            let problem =
                Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported-media-type", "the body must be application/json");
            return Err(problem.field("Content-Type").into());
        }
        let body = Bytes::from_request(request, state).await.map_err(too_large)?;
        let envelope = serde_json::from_slice(&body).map_err(|error| {
            let problem = Problem::new(StatusCode::BAD_REQUEST, "malformed-body", "the body is not a signed envelope");
            Refusal::from(problem.detail(error))
        })?;
        Ok(Self(envelope))
    }
}

fn too_large(rejection: BytesRejection) -> Refusal {
    if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
        let problem = Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", "the body is too large");
        return problem.detail(format_args!("at most {BODY_BYTES_MAX} bytes are taken")).into();
    }
    rejection.into()
}

/// Which page of a list: `cursor` is the `next` of the page before.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct PageParams {
    /// The `next` of the page before; absent for the first.
    pub(super) cursor: Option<String>,
    /// 1 to 200 items, 50 if absent.
    pub(super) limit: Option<u32>,
}

/// # Errors
/// A problem that names the field.
pub(super) fn window(cursor: Option<&str>, limit: Option<u32>) -> Result<Window, Problem> {
    let limit = limit.unwrap_or(PAGE_DEFAULT);
    if !(1..=PAGE_MAX).contains(&limit) {
        return Err(Problem::invalid("limit", format_args!("1 to {PAGE_MAX}")));
    }
    // Cursors are sequence numbers, which databases count in 63 bits.
    let parse = |text: &str| text.parse::<u64>().ok().filter(|n| i64::try_from(*n).is_ok());
    let after = cursor.map_or(Some(0), parse).ok_or_else(|| Problem::invalid("cursor", "not a cursor of this list"))?;
    Ok(Window { after, limit })
}
