//! The operator API of a node: REST on loopback, for its owner, the command line and a dashboard.

use std::convert::Infallible;
use std::sync::Arc;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::sse::{self, KeepAlive, Sse};
use axum::{Json, Router, routing};
use contracts::ids::{ContractId, Epoch, EventId, GroupId, NodeId};
use contracts::time::WallTime;
use futures_util::{Stream, StreamExt as _};
use kit::problem::Problem;
use peering::custody::{CustodyHandle, Role};
use serde::{Deserialize, Serialize};

use crate::core::Core;
use crate::insurance::Parts;
use crate::readings::inbox::Inbox;
use crate::timeline::Entry;

/// Readings in one page at most.
const PAGE_MAX: u32 = 5_000;

/// What the handlers work with.
#[derive(Debug, Clone)]
pub struct Context {
    pub core: Arc<Core>,
    pub parts: Option<Parts>,
    pub inbox: Option<Inbox>,
    pub custody: CustodyHandle,
}

/// All routes.
pub fn router(context: Context) -> Router {
    Router::new()
        .route("/healthz", routing::get(|| async { StatusCode::NO_CONTENT }))
        .route("/v1/status", routing::get(get_status))
        .route("/v1/events", routing::get(follow_events))
        .route("/v1/readings", routing::get(list_readings))
        .route("/v1/contracts", routing::get(list_contracts))
        .route("/v1/bridge", routing::get(get_bridge))
        .fallback(|| async { Problem::not_found("no such path in the operator API") })
        .with_state(context)
}

/// How it stands with the node.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status {
    pub node: NodeId,
    pub name: String,
    pub engine: Option<String>,
    pub groups: Vec<GroupStatus>,
}

/// A group of devices that this node has to do with.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct GroupStatus {
    pub group: GroupId,
    pub contract: ContractId,
    /// `holder`, `fenced`, `follower`, `recovering`, `stopped`.
    pub role: String,
    pub epoch: Epoch,
    pub holder: Option<NodeId>,
    /// Members that do not answer.
    pub missing: Vec<NodeId>,
}

async fn get_status(State(context): State<Context>) -> Json<Status> {
    let core = &context.core;
    let group = |agreement: crate::agreements::Agreement| {
        let group = agreement.contract.group;
        let view = context.custody.subscribe(group)?.borrow().clone();
        let role = match view.role {
            Role::Holder { .. } => "holder",
            Role::Fenced { .. } => "fenced",
            Role::Follower { .. } => "follower",
            Role::Recovering => "recovering",
            Role::Stopped => "stopped",
        };
        let role = role.to_owned();
        Some(GroupStatus { group, contract: agreement.id, role, epoch: view.voted_epoch, holder: view.voted_for, missing: view.missing })
    };
    Json(Status {
        node: core.me(),
        name: core.config.name.clone(),
        engine: core.orchestrator.as_ref().map(|o| o.engine().kind().to_string()),
        groups: core.agreements.list().into_iter().filter_map(group).collect(),
    })
}

/// Resumes behind `Last-Event-ID`.
async fn follow_events(State(context): State<Context>, headers: HeaderMap) -> Sse<impl Stream<Item = Result<sse::Event, Infallible>>> {
    let after = headers.get("last-event-id").and_then(|id| id.to_str().ok()).and_then(|id| id.parse().ok()).unwrap_or(0);
    let (kept, live) = context.core.timeline.follow(after);
    let live = futures_util::stream::unfold(live, |mut live| async move {
        loop {
            match live.recv().await {
                Ok(entry) => return Some((entry, live)),
                Err(tokio::sync::broadcast::error::RecvError::Lagged(_)) => {}
                Err(tokio::sync::broadcast::error::RecvError::Closed) => return None,
            }
        }
    });
    let events = futures_util::stream::iter(kept).chain(live).filter_map(|entry| async move { event(&entry).map(Ok) });
    Sse::new(events).keep_alive(KeepAlive::default())
}

fn event(entry: &Entry) -> Option<sse::Event> {
    sse::Event::default().id(entry.seq.to_string()).json_data(entry).ok()
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ReadingsQuery {
    #[serde(default)]
    after: u64,
    limit: Option<u32>,
}

/// A reading in the cloud's store.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ReceivedReading {
    /// The cursor.
    pub seq: u64,
    pub event: EventId,
    pub group: GroupId,
    pub device: String,
    pub session: String,
    pub f_cnt: u32,
    pub heard_at: WallTime,
    pub received_at: WallTime,
    pub delivered_by: NodeId,
    pub kind: String,
    pub epoch: Epoch,
    pub decoded: serde_json::Value,
}

async fn list_readings(State(context): State<Context>, query: Result<Query<ReadingsQuery>, QueryRejection>) -> Result<Json<Vec<ReceivedReading>>, Problem> {
    let Query(ReadingsQuery { after, limit }) = query?;
    let inbox = context.inbox.as_ref().ok_or_else(|| Problem::not_found("this node is no cloud and keeps no readings of others"))?;
    let rows = inbox.list(after, limit.unwrap_or(PAGE_MAX).min(PAGE_MAX)).await.map_err(|error| {
        tracing::error!(error = &error as &dyn std::error::Error, "readings cannot be read");
        Problem::internal()
    })?;
    let view = |row: crate::store::inbox::Received| {
        let reading = row.reading;
        ReceivedReading {
            seq: row.seq,
            event: reading.event,
            group: reading.group,
            device: reading.device.to_string(),
            session: reading.session.to_string(),
            f_cnt: reading.f_cnt,
            heard_at: reading.heard_at,
            received_at: row.received_at,
            delivered_by: row.delivered_by,
            kind: reading.kind.as_str().to_owned(),
            epoch: reading.epoch,
            decoded: serde_json::from_str(reading.decoded.get()).unwrap_or_default(),
        }
    };
    Ok(Json(rows.into_iter().map(view).collect()))
}

/// A contract that this node knows.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct KnownContract {
    pub id: ContractId,
    pub state: contracts::contract::State,
    pub contract: contracts::contract::Contract,
}

async fn list_contracts(State(context): State<Context>) -> Json<Vec<KnownContract>> {
    let known = |a: crate::agreements::Agreement| KnownContract { id: a.id, state: a.state, contract: (*a.contract).clone() };
    Json(context.core.agreements.list().into_iter().map(known).collect())
}

async fn get_bridge(State(context): State<Context>) -> Result<Json<lora_bridge::stats::Stats>, Problem> {
    let parts = context.parts.as_ref().ok_or_else(|| Problem::not_found("this node has no LoRa bridge"))?;
    parts.bridge.stats().await.map(Json).map_err(|_| Problem::unavailable("the bridge has stopped"))
}
