//! What comes in: JSON bodies, ids in paths, query strings, places in lists.

use std::str::FromStr;

use axum::extract::{FromRequest, Request};
use axum::http::{HeaderName, HeaderValue, header};
pub(super) use kit::input::{Id, Params, page};
use kit::problem::Problem;
use serde::de::DeserializeOwned;

use super::BODY_BYTES_MAX;

/// A JSON body.
pub(super) struct Body<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let wanted = "the body is not what this path takes";
        kit::input::json(request, state, BODY_BYTES_MAX, wanted).await.map(Self)
    }
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
