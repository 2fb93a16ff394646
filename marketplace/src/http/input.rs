//! What comes in: envelopes as bodies, ids in paths, cursors.

use axum::extract::{FromRequest, Request};
use contracts::envelope::Envelope;
use kit::input;
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
        Ok(Self(input::json(request, state, BODY_BYTES_MAX, "the body is not a signed envelope").await?))
    }
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
    let limit = input::page(limit, PAGE_DEFAULT, PAGE_MAX)?;
    // Cursors are sequence numbers, which databases count in 63 bits.
    let parse = |text: &str| text.parse::<u64>().ok().filter(|n| i64::try_from(*n).is_ok());
    let after = cursor.map_or(Some(0), parse).ok_or_else(|| Problem::invalid("cursor", "not a cursor of this list"))?;
    Ok(Window { after, limit })
}
