//! What comes in: JSON bodies, ids in paths, query strings.

use axum::extract::{FromRequest, Request};
use kit::input;
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
        let wanted = "the body is not what this path takes";
        Ok(Self(input::json(request, state, BODY_BYTES_MAX, wanted).await?))
    }
}

/// Where a page begins and how long it is.
///
/// # Errors
/// A problem that names the field.
pub(super) fn window(after: Option<u64>, limit: Option<u32>) -> Result<(u64, u32), Problem> {
    let limit = input::page(limit, PAGE_DEFAULT, PAGE_MAX)?;
    let after = after.unwrap_or(0);
    // Databases count in 63 bits.
    if i64::try_from(after).is_err() { Err(Problem::invalid("after", "not a position in this list")) } else { Ok((after, limit)) }
}
