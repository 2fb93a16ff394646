//! The routes for peers, see [`crate::edge2edge::negotiation`].

use std::sync::Arc;

use axum::extract::rejection::JsonRejection;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::{Extension, Json, Router, routing};
use kit::problem::Problem;
use peering::PeerIdentity;

use super::{Inner, customer, provider};
use crate::dmu::negotiation::Answer;
use crate::edge2edge::negotiation::{
    ANSWERS, Answered, BODY_BYTES_MAX, CHALLENGES, CONTRACTS, Challenged, NEGOTIATIONS, Opening, Ready, SIGNATURES, Signed, Text,
};

type Peer = Extension<PeerIdentity>;
type Body<T> = Result<Json<T>, JsonRejection>;
type Reply<T> = Result<Json<T>, Problem>;

pub(super) fn router(inner: Arc<Inner>) -> Router {
    Router::new()
        .route(NEGOTIATIONS, routing::post(answer_opening))
        .route(SIGNATURES, routing::post(sign_text))
        .route(CONTRACTS, routing::post(take_contract))
        .route(CHALLENGES, routing::post(give_challenge))
        .route(ANSWERS, routing::post(check_answer))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(inner)
}

async fn answer_opening(
    State(inner): State<Arc<Inner>>,
    Extension(PeerIdentity(peer)): Peer,
    body: Body<Opening>,
) -> Reply<Answer> {
    provider::answer_opening(&inner, peer, &body?.0).map(Json)
}

async fn sign_text(State(inner): State<Arc<Inner>>, Extension(PeerIdentity(peer)): Peer, body: Body<Text>) -> Reply<Signed> {
    let contract = provider::sign_text(&inner, peer, body?.0).await?;
    Ok(Json(Signed { contract }))
}

async fn take_contract(
    State(inner): State<Arc<Inner>>,
    Extension(PeerIdentity(peer)): Peer,
    body: Body<Text>,
) -> Result<StatusCode, Problem> {
    provider::take_contract(&inner, peer, body?.0).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn give_challenge(
    State(inner): State<Arc<Inner>>,
    Extension(PeerIdentity(peer)): Peer,
    body: Body<Ready>,
) -> Reply<Challenged> {
    let challenge = customer::give_challenge(&inner, peer, body?.0.contract).await?;
    Ok(Json(Challenged { challenge }))
}

async fn check_answer(
    State(inner): State<Arc<Inner>>,
    Extension(PeerIdentity(peer)): Peer,
    body: Body<Answered>,
) -> Reply<Answered> {
    let answer = customer::check_answer(&inner, peer, body?.0.answer).await?;
    Ok(Json(Answered { answer }))
}
