//! The routes that peers may use. Every handler first finds the contract that gives the peer the right to ask.

use std::collections::BTreeMap;

use crate::insurance::records;
use axum::body::Body;
use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, Path, Query, State};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json, Router, routing};
use contracts::envelope::Envelope;
use contracts::ids::{GroupId, NodeId};
use contracts::write_ahead::{RecordsQuery, RecordsView, RecordsWrite, SESSIONS_MAX, is_session};
use kit::input::Bulk;
use kit::problem::Problem;
use peering::PeerIdentity;
use serde::Deserialize;

use super::messages::{
    AccountReport, FRAMES_MAX, Frames, Level, LevelAnswer, LevelReport, MARGINS_MAX, MARKS_MAX, Margins, OPEN_MAX, OpenUplink,
    OpenUplinks, Progress, ReceiptAnswer, ReceiptWanted, STATES_MAX, Sessions,
};
use crate::agreements::Agreement;
use crate::insurance::progress::without_hearsay;
use crate::insurance::{Parts, accounts, provider};
use crate::readings::inbox::Inbox;
use crate::readings::north::{Accepted, Batch};

/// Bodies of peers' requests are at most this long.
const BODY_BYTES_MAX: usize = 8 << 20;

/// What the handlers work with.
#[derive(Debug, Clone)]
pub struct Context {
    pub parts: Option<Parts>,
    pub core: std::sync::Arc<crate::core::Core>,
    /// On a cloud.
    pub inbox: Option<Inbox>,
}

type Peer = Extension<PeerIdentity>;

/// All routes for peers but those of negotiation and custody, which are merged beside it.
pub fn router(context: Context) -> Router {
    Router::new()
        .route("/peer/v1/node-record", routing::get(get_record))
        .route("/peer/v1/readings", routing::post(accept_readings))
        .route("/peer/v1/content/{cid}", routing::get(get_content))
        .route("/peer/v1/groups/{group}/progress", routing::post(take_progress))
        .route("/peer/v1/groups/{group}/frames", routing::post(take_frames))
        .route("/peer/v1/groups/{group}/margins", routing::post(take_margins))
        .route("/peer/v1/groups/{group}/sessions", routing::get(list_sessions).post(take_sessions))
        .route("/peer/v1/groups/{group}/records", routing::put(store_records).get(list_records))
        .route("/peer/v1/groups/{group}/open", routing::get(list_open))
        .route("/peer/v1/groups/{group}/receipts", routing::post(sign_receipt))
        .route("/peer/v1/groups/{group}/accounts", routing::post(take_account))
        .route("/peer/v1/groups/{group}/level", routing::post(answer_level))
        .fallback(|| async { Problem::not_found("no such path for peers") })
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(context)
}

impl Context {
    /// Whether readings of a group may come from the peer: an edge of the same owner, or its insurer.
    fn may_deliver(&self, group: GroupId, peer: NodeId) -> bool {
        let core = &self.core;
        let insures =
            |a: &Agreement| a.contract.group == group && a.contract.provider.node == peer && a.contract.readings_to == core.me();
        core.directory.owner(peer) == Some(core.owner) || core.agreements.list().iter().any(insures)
    }

    fn parts(&self) -> Result<&Parts, Problem> {
        self.parts.as_ref().ok_or_else(|| Problem::forbidden("this node serves no devices"))
    }

    /// The contract between this node and the peer for a group, in force or being wound up: custody goes back in the grace too.
    fn agreement(&self, group: GroupId, peer: NodeId) -> Result<Agreement, Problem> {
        let me = self.core.me();
        let is_ours = |a: &Agreement| {
            let parties = [a.contract.customer.node, a.contract.provider.node];
            parties.contains(&peer) && parties.contains(&me) && peer != me
        };
        self.core
            .agreements
            .binding(group)
            .filter(is_ours)
            .ok_or_else(|| Problem::forbidden("no contract in force with this peer for this group"))
    }
}

fn failed(error: &(dyn std::error::Error + 'static)) -> Problem {
    tracing::warn!(error, "a peer's request failed here");
    Problem::internal()
}

fn within(count: usize, max: usize, field: &str) -> Result<(), Problem> {
    if count <= max { Ok(()) } else { Err(Problem::invalid(field, format_args!("{count}, at most {max}"))) }
}

async fn get_record(State(context): State<Context>) -> Json<Envelope> {
    Json(context.core.record.clone())
}

async fn accept_readings(
    State(context): State<Context>,
    Extension(PeerIdentity(peer)): Peer,
    body: Result<Bulk<Batch>, JsonRejection>,
) -> Result<Json<Accepted>, Problem> {
    let Bulk(batch) = body?;
    let inbox = context.inbox.as_ref().ok_or_else(|| Problem::forbidden("this node is no cloud"))?;
    inbox.accept(peer, |group| context.may_deliver(group, peer), batch).await.map(Json)
}

/// The store's word for what it has, for whoever may deliver.
async fn sign_receipt(
    State(context): State<Context>,
    Extension(PeerIdentity(peer)): Peer,
    group: Result<Path<GroupId>, PathRejection>,
    body: Result<Json<ReceiptWanted>, JsonRejection>,
) -> Result<Json<ReceiptAnswer>, Problem> {
    let (Path(group), Json(ReceiptWanted { events })) = (group?, body?);
    if context.inbox.is_none() || !context.may_deliver(group, peer) {
        return Err(Problem::forbidden("no contract lets this node deliver readings of this group"));
    }
    within(events.len(), contracts::account::ENTRIES_MAX, "events")?;
    let core = &context.core;
    let events = core.store.find_received(group, &events).await.map_err(|e| failed(&e))?;
    let sign = |events| {
        let receipt = contracts::account::Receipt { store: core.me(), group, events, at: core.clock.wall() };
        Envelope::sign(&receipt, &core.identity.keypair)
    };
    Ok(Json(ReceiptAnswer { receipt: (!events.is_empty()).then(|| sign(events)) }))
}

async fn take_account(
    State(context): State<Context>,
    Extension(PeerIdentity(peer)): Peer,
    group: Result<Path<GroupId>, PathRejection>,
    body: Result<Json<AccountReport>, JsonRejection>,
) -> Result<Json<()>, Problem> {
    let (Path(group), Json(report)) = (group?, body?);
    let is_insurer = |a: &Agreement| {
        a.contract.group == group && a.contract.provider.node == peer && a.contract.customer.node == context.core.me()
    };
    // Also after a contract: its last account comes when all is wiped.
    if !context.core.agreements.list().iter().any(is_insurer) {
        return Err(Problem::forbidden("accounts come from the insurer of a group"));
    }
    accounts::take(&context.core, group, peer, report.account).await.map(Json)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ContentQuery {
    format: ContentFormat,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum ContentFormat {
    /// One block.
    Raw,
    /// The DAG below, as CARv1.
    Car,
}

async fn get_content(
    State(context): State<Context>,
    Extension(PeerIdentity(peer)): Peer,
    cid: Result<Path<String>, PathRejection>,
    query: Result<Query<ContentQuery>, QueryRejection>,
) -> Result<Response, Problem> {
    let (Path(cid), Query(ContentQuery { format })) = (cid?, query?);
    let shares_contract =
        context.core.agreements.list().iter().any(|a| [a.contract.customer.node, a.contract.provider.node].contains(&peer));
    if !shares_contract {
        return Err(Problem::forbidden("content is for the parties of a contract"));
    }
    let cid = storage::parse_cid(&cid).map_err(|e| Problem::invalid("cid", e))?;
    let content = &context.core.content;
    let missing = |error: storage::Error| match error {
        storage::Error::Missing(cid) => Problem::not_found(format_args!("block {cid} is not here")),
        other => failed(&other),
    };
    match format {
        ContentFormat::Raw => Ok(content.get_block(&cid).await.map_err(missing)?.into_response()),
        ContentFormat::Car => Ok(Body::from_stream(content.export_car(&cid).await.map_err(missing)?).into_response()),
    }
}

async fn take_progress(
    State(context): State<Context>,
    Extension(PeerIdentity(peer)): Peer,
    group: Result<Path<GroupId>, PathRejection>,
    body: Result<Json<Progress>, JsonRejection>,
) -> Result<Json<()>, Problem> {
    let (Path(group), Json(progress)) = (group?, body?);
    context.agreement(group, peer)?;
    within(progress.served.len().max(progress.settled.len()), MARKS_MAX, "served")?;
    let parts = context.parts()?;
    let Progress { mut served, settled } = progress;
    // Only the customer's store says what it has; see `without_hearsay`.
    served.extend(settled);
    parts.bridge.peer_progress(served, Vec::new()).await.map_err(|e| failed(&e))?;
    Ok(Json(()))
}

async fn take_frames(
    State(context): State<Context>,
    Extension(PeerIdentity(peer)): Peer,
    group: Result<Path<GroupId>, PathRejection>,
    body: Result<Json<Frames>, JsonRejection>,
) -> Result<Json<()>, Problem> {
    let (Path(group), Json(Frames { frames })) = (group?, body?);
    // Also for the grace after a contract: a frame is verified like any other, whoever brings it.
    let is_insurer = context
        .core
        .agreements
        .list()
        .iter()
        .any(|a| a.contract.group == group && [a.contract.customer.node, a.contract.provider.node].contains(&peer));
    if !is_insurer {
        return Err(Problem::forbidden("no contract with this peer for this group"));
    }
    within(frames.len(), FRAMES_MAX, "frames")?;
    let parts = context.parts()?;
    for frame in frames {
        parts.bridge.offered(frame).await.map_err(|e| failed(&e))?;
    }
    Ok(Json(()))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SessionsQuery {
    cursor: u32,
}

async fn list_sessions(
    State(context): State<Context>,
    Extension(PeerIdentity(peer)): Peer,
    group: Result<Path<GroupId>, PathRejection>,
    query: Result<Query<SessionsQuery>, QueryRejection>,
) -> Result<Json<Sessions>, Problem> {
    let (Path(group), Query(SessionsQuery { cursor })) = (group?, query?);
    context.agreement(group, peer)?;
    let (states, next) = context.parts()?.bridge.export(group, cursor, STATES_MAX).await.map_err(|e| failed(&e))?;
    Ok(Json(Sessions { states, next }))
}

async fn take_sessions(
    State(context): State<Context>,
    Extension(PeerIdentity(peer)): Peer,
    group: Result<Path<GroupId>, PathRejection>,
    body: Result<Json<Sessions>, JsonRejection>,
) -> Result<Json<()>, Problem> {
    let (Path(group), Json(Sessions { states, .. })) = (group?, body?);
    context.agreement(group, peer)?;
    within(states.len(), STATES_MAX, "states")?;
    context.parts()?.bridge.import(without_hearsay(states)).await.map_err(|e| failed(&e))?;
    Ok(Json(()))
}

async fn take_margins(
    State(context): State<Context>,
    Extension(PeerIdentity(peer)): Peer,
    group: Result<Path<GroupId>, PathRejection>,
    body: Result<Json<Margins>, JsonRejection>,
) -> Result<Json<()>, Problem> {
    let (Path(group), Json(Margins { margins })) = (group?, body?);
    let agreement = context.agreement(group, peer)?;
    within(margins.len(), MARGINS_MAX, "margins")?;
    if let Some(foreign) = margins.iter().find(|margin| !agreement.contract.devices.contains(&margin.device)) {
        return Err(Problem::invalid("margins", format_args!("device {} is not in the contract", foreign.device)));
    }
    context.parts()?.bridge.peer_margins(margins).await.map_err(|e| failed(&e))?;
    Ok(Json(()))
}

/// A member's duty: keep what the holder reserves, durably, unless its epoch is not the one this node voted for.
async fn store_records(
    State(context): State<Context>,
    Extension(PeerIdentity(peer)): Peer,
    group: Result<Path<GroupId>, PathRejection>,
    body: Result<Json<RecordsWrite>, JsonRejection>,
) -> Result<Json<()>, Problem> {
    let (Path(group), Json(reservation)) = (group?, body?);
    let agreement = context.agreement(group, peer)?;
    within(reservation.bounds.len(), SESSIONS_MAX, "bounds")?;
    for sealed in &reservation.sealed {
        within(sealed.blob.len() / 2, records::BLOB_BYTES_MAX, "sealed")?;
        if !agreement.contract.devices.contains(&sealed.device) {
            return Err(Problem::invalid("sealed", format_args!("device {} is not in the contract", sealed.device)));
        }
    }
    let parts = context.parts()?;
    let view =
        parts.custody.subscribe(group).ok_or_else(|| Problem::unavailable("this node does not take part in custody yet"))?;
    let (voted_epoch, voted_for) = {
        let view = view.borrow();
        (view.voted_epoch, view.voted_for)
    };
    if reservation.epoch < voted_epoch || (reservation.epoch == voted_epoch && voted_for != Some(peer)) {
        return Err(Problem::conflict(format_args!(
            "epoch {} is not the peer's: {voted_epoch} was voted for",
            reservation.epoch
        )));
    }
    // Records first: a version among the bounds says that the record is here.
    if records::take(parts, group, &reservation.sealed).await.map_err(|e| failed(&e))? > 0 {
        return Err(Problem::invalid("sealed", "a record does not open here"));
    }
    context.core.store.raise_reserved(group, &reservation.bounds).await.map_err(|e| failed(&e))?;
    parts.reserved.raise(group, &reservation.bounds);
    let sessions = reservation.bounds.iter().map(|bound| (bound.device, bound.session));
    let sessions = sessions.filter(|(_, session)| is_session(*session)).collect();
    parts.bridge.written_ahead(sessions).await.map_err(|_| Problem::unavailable("the bridge has stopped"))?;
    Ok(Json(()))
}

/// A page of what this member keeps of a group, for one that takes over.
async fn list_records(
    State(context): State<Context>,
    Extension(PeerIdentity(peer)): Peer,
    group: Result<Path<GroupId>, PathRejection>,
    query: Result<Query<RecordsQuery>, QueryRejection>,
) -> Result<Json<RecordsView>, Problem> {
    let (Path(group), Query(RecordsQuery { after })) = (group?, query?);
    context.agreement(group, peer)?;
    Ok(Json(records::view(context.parts()?, group, after).await.map_err(|e| failed(&e))?))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct OpenQuery {
    after: u64,
}

async fn list_open(
    State(context): State<Context>,
    Extension(PeerIdentity(peer)): Peer,
    group: Result<Path<GroupId>, PathRejection>,
    query: Result<Query<OpenQuery>, QueryRejection>,
) -> Result<Json<OpenUplinks>, Problem> {
    let (Path(group), Query(OpenQuery { after })) = (group?, query?);
    let agreement = context.agreement(group, peer)?;
    if agreement.contract.customer.node != peer {
        return Err(Problem::forbidden("open uplinks are for the customer"));
    }
    provider::note_visit(context.parts()?, group);
    let rows = context.core.store.list_open(group, after, OPEN_MAX).await.map_err(|e| failed(&e))?;
    let upto = rows.last().map_or(after, |(stored, _)| stored.seq);
    let more = rows.len() == OPEN_MAX as usize;
    let uplinks = rows.into_iter().map(|(stored, decoded)| OpenUplink { uplink: stored.uplink, decoded }).collect();
    Ok(Json(OpenUplinks { uplinks, upto, more }))
}

async fn answer_level(
    State(context): State<Context>,
    Extension(PeerIdentity(peer)): Peer,
    group: Result<Path<GroupId>, PathRejection>,
    body: Result<Json<LevelReport>, JsonRejection>,
) -> Result<Json<LevelAnswer>, Problem> {
    let (Path(group), Json(report)) = (group?, body?);
    let agreement = context.agreement(group, peer)?;
    let level = report.level.verify_signed_by::<Level>(&[peer.into()])?.statement;
    if level.group != group || level.node != peer || agreement.contract.customer.node != peer {
        return Err(Problem::forbidden("level is said by the customer, of its own group"));
    }
    let answer = provider::answer_level(context.parts()?, &agreement, level.epoch, level.upto).await.map_err(|e| failed(&e))?;
    Ok(Json(answer))
}

/// Where peers are known to be, for the operator.
#[must_use]
pub fn peers(core: &crate::core::Core, nodes: &[NodeId]) -> BTreeMap<NodeId, peering::PeerState> {
    nodes.iter().map(|node| (*node, *core.transport().peer(*node).borrow())).collect()
}
