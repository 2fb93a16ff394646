//! `/v1/content`: what the content store keeps, why, and how much of it is there.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use kit::problem::Problem;
use serde::{Deserialize, Serialize};
use storage::{BlockStore, Cid};
use utoipa::{IntoParams, ToSchema};

use super::input::{Params, page};
use super::{App, ProblemSchema, failed};

/// Items in a page if the caller does not say; for each, the inner nodes of its DAG are read.
const PAGE_DEFAULT: u32 = 50;
/// Items in one page at most.
pub const PAGE_MAX: u32 = 200;

/// Something that is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct KeptContent {
    /// `CIDv1`.
    pub cid: String,
    /// Why it is kept.
    pub labels: Vec<String>,
    /// Bytes of all its blocks; absent while some are missing.
    pub bytes: Option<u64>,
    /// Blocks that are known and not here; 0 means complete.
    pub missing_blocks: u64,
}

/// How full the store is, and a page of what it keeps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ContentPage {
    pub blocks: u64,
    pub bytes: u64,
    pub limit_bytes: u64,
    pub items: Vec<KeptContent>,
    /// The `after` of the next page; absent on the last.
    pub next: Option<String>,
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ContentQuery {
    /// The `next` of the page before.
    after: Option<String>,
    /// 1 to 200; 50 if absent.
    limit: Option<u32>,
}

/// Pins and sizes.
#[utoipa::path(get, path = "/v1/content", tag = "node", params(ContentQuery), responses(
    (status = 200, body = ContentPage), (status = "4XX", body = ProblemSchema, content_type = "application/problem+json")
))]
pub(super) async fn list_content(
    State(app): State<Arc<App>>,
    Params(query): Params<ContentQuery>,
) -> Result<Json<ContentPage>, Problem> {
    let limit = page(query.limit, PAGE_DEFAULT, PAGE_MAX)? as usize;
    let after = query.after.as_deref().map(storage::parse_cid).transpose().map_err(|e| Problem::invalid("after", e))?;
    let store = &app.core().content;
    let mut by_cid: BTreeMap<Cid, Vec<String>> = BTreeMap::new();
    for pin in store.pins().into_iter().filter(|pin| after.is_none_or(|after| pin.cid > after)) {
        by_cid.entry(pin.cid).or_default().push(pin.label);
    }
    let mut items = Vec::new();
    let mut kept = by_cid.into_iter();
    for (cid, labels) in kept.by_ref().take(limit) {
        let (bytes, missing_blocks) = extent(store, &cid).await.map_err(|e| failed("measure content", &e))?;
        items.push(KeptContent { cid: cid.to_string(), labels, bytes, missing_blocks });
    }
    let next = items.last().filter(|_| kept.next().is_some()).map(|last| last.cid.clone());
    let usage = store.usage();
    Ok(Json(ContentPage { blocks: usage.blocks, bytes: usage.bytes, limit_bytes: usage.limit_bytes, items, next }))
}

/// Bytes of content that is complete, and how many known blocks are missing.
///
/// # Errors
/// The store failed.
pub(super) async fn extent(store: &BlockStore, cid: &Cid) -> Result<(Option<u64>, u64), storage::Error> {
    let missing = store.missing(cid).await?.len() as u64;
    if missing > 0 {
        return Ok((None, missing));
    }
    match store.total_bytes(cid).await {
        Ok(bytes) => Ok((Some(bytes), 0)),
        // Collected in between.
        Err(storage::Error::Missing(_)) => Ok((None, 1)),
        Err(error) => Err(error),
    }
}
