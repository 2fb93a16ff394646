//! `/v1/accounts`: what insurers said that they heard, how much of this node's frames that covers, and everything as statements for a judge.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use contracts::account::audit::{self, Coverage};
use contracts::account::{Account, FrameDigest};
use contracts::ids::{DevEui, EventId, GroupId, NodeId, StatementId};
use contracts::time::{Millis, WallTime};
use kit::problem::Problem;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::input::{Id, Params};
use super::{App, ProblemSchema, failed};
use crate::insurance::accounts;
use crate::store::AccountRow;

/// Accounts, and receipts, in one answer at most: the oldest first, so that a later `since` gives the rest.
pub const PAGE_MAX: u32 = 4_500;
/// Frames that are looked at for the coverage.
const FRAMES_MAX: usize = 100_000;
const FRAMES_PAGE: u32 = 5_000;
/// How far back, if the caller does not say: as long as settled frames are kept.
const SINCE: Millis = Millis::from_secs(24 * 3_600);
/// A younger frame may be in no account yet.
const SETTLE: Millis = Millis(2 * accounts::ACCOUNT_INTERVAL.0);

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct AccountsQuery {
    /// Milliseconds since the Unix epoch; 24 hours ago if absent.
    since: Option<u64>,
}

/// A signed account, without its lists.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct KeptAccount {
    #[schema(value_type = String)]
    pub id: StatementId,
    #[schema(value_type = String)]
    pub node: NodeId,
    pub number: u64,
    /// Milliseconds since the Unix epoch.
    #[schema(value_type = u64)]
    pub made_at: WallTime,
    /// Frames that it names.
    pub heard: usize,
    /// Frames that were given up.
    pub dropped: usize,
}

/// How many of a device's frames its insurer heard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DeviceCoverage {
    /// `DevEUI`.
    pub device: String,
    /// Frames on this node's disk.
    pub frames: u64,
    /// Those to whose very bytes the insurer had committed.
    pub committed: u64,
}

/// The accounts of a group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AccountsView {
    pub accounts: Vec<KeptAccount>,
    /// By accounts of other nodes, of frames that this node heard at least two minutes ago; devices in order.
    pub coverage: Vec<DeviceCoverage>,
}

/// Accounts that are kept here, this node's own and those of its insurer, and the coverage of each device: proven, of the past, frame by
/// frame, by what the insurer signed. Whether it would hear a device now, by its own word, is at `/v1/insurance/coverage`.
#[utoipa::path(get, path = "/v1/accounts/{id}", tag = "node", params(("id" = String, Path, description = "`group_…`"), AccountsQuery), responses(
    (status = 200, body = AccountsView),
    (status = "4XX", body = ProblemSchema, content_type = "application/problem+json")
))]
pub(super) async fn list_accounts(
    State(app): State<Arc<App>>,
    Id(group): Id<GroupId>,
    Params(query): Params<AccountsQuery>,
) -> Result<Json<AccountsView>, Problem> {
    let since = since(&app, &query);
    let rows = app.core().store.list_accounts(group, since, PAGE_MAX).await.map_err(|e| failed("list accounts", &e))?;
    let read = |row: AccountRow| row.envelope.verify::<Account>().ok().map(|verified| (row, verified.statement));
    let read: Vec<(AccountRow, Account)> = rows.into_iter().filter_map(read).collect();
    let frames = frames(&app, group, since).await.map_err(|e| failed("list frames", &e))?;
    let me = app.core().me();
    let of_others = read.iter().map(|(_, account)| account).filter(|account| account.node != me);
    let coverage = audit::coverage(frames, of_others)
        .into_iter()
        .map(|(device, Coverage { frames, committed })| DeviceCoverage { device: device.to_string(), frames, committed })
        .collect();
    let kept = |(row, account): &(AccountRow, Account)| KeptAccount {
        id: row.id,
        node: row.node,
        number: row.number,
        made_at: row.made_at,
        heard: account.heard.len(),
        dropped: account.dropped.len(),
    };
    Ok(Json(AccountsView { accounts: read.iter().map(kept).collect(), coverage }))
}

fn since(app: &App, query: &AccountsQuery) -> WallTime {
    query.since.map_or_else(|| app.core().clock.wall() - SINCE, WallTime)
}

async fn frames(app: &App, group: GroupId, since: WallTime) -> Result<Vec<(DevEui, EventId, FrameDigest)>, crate::store::Error> {
    let until = app.core().clock.wall() - SETTLE;
    let (mut frames, mut after) = (Vec::new(), 0);
    while frames.len() < FRAMES_MAX {
        let page = app.core().store.list_delivered_since(group, since, after, FRAMES_PAGE).await?;
        let Some(last) = page.last() else { break };
        after = last.seq;
        let ripe = page.iter().map(|stored| &stored.uplink).filter(|it| it.heard_at <= until);
        frames.extend(ripe.map(|uplink| (uplink.device, uplink.event, uplink.heard().frame)));
    }
    Ok(frames)
}

/// Accounts, receipts and frames that are still here, as signed statements, one JSON envelope per line: what `antirio verdict --statements`
/// takes, from who accuses and from who answers.
#[utoipa::path(get, path = "/v1/accounts/{id}/statements", tag = "node", params(("id" = String, Path, description = "`group_…`"), AccountsQuery), responses(
    (status = 200, body = String, content_type = "application/x-ndjson"),
    (status = "4XX", body = ProblemSchema, content_type = "application/problem+json")
))]
pub(super) async fn list_statements(
    State(app): State<Arc<App>>,
    Id(group): Id<GroupId>,
    Params(query): Params<AccountsQuery>,
) -> Result<impl IntoResponse, Problem> {
    let since = since(&app, &query);
    let statements = accounts::statements(app.core(), group, since, PAGE_MAX).await.map_err(|e| failed("list statements", &e))?;
    let mut lines = String::new();
    for statement in statements {
        lines.push_str(&serde_json::to_string(&statement).map_err(|e| failed("list statements", &e))?);
        lines.push('\n');
    }
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], lines))
}
