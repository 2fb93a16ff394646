//! HTTP connections of a server: bounded in number, their heads bounded in time, drained at the end.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tower::ServiceExt as _;

/// A client sends its request's head within this time.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Open requests are given this long when the process drains.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);
/// Before the next attempt when a connection could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Accepts until `stopping`, then waits for open connections, at most [`DRAIN_TIMEOUT`]. Connections beyond `connections_max` wait;
/// `count` is told how many are open whenever that changes. Handlers find the client's address as [`ConnectInfo`].
pub async fn serve(
    listener: TcpListener,
    router: Router,
    connections_max: usize,
    count: impl Fn(usize) + Send,
    mut stopping: watch::Receiver<bool>,
) {
    let places = Arc::new(Semaphore::new(connections_max.min(Semaphore::MAX_PERMITS)));
    let mut open = JoinSet::new();
    loop {
        let (stream, peer, place) = tokio::select! {
            biased;
            _ = stopping.wait_for(|stop| *stop) => break,
            Some(_) = open.join_next() => {
                count(open.len());
                continue;
            }
            accepted = accept(&listener, &places) => accepted,
        };
        let (router, stopping) = (router.clone(), stopping.clone());
        open.spawn(async move {
            handle(stream, peer, router, stopping).await;
            drop(place);
        });
        count(open.len());
    }
    drop(listener);
    let drained = async {
        while open.join_next().await.is_some() {
            count(open.len());
        }
    };
    if tokio::time::timeout(DRAIN_TIMEOUT, drained).await.is_err() {
        tracing::warn!(connections = open.len(), "connections are cut: they did not end in time");
    }
}

/// A connection, once there is room for one.
async fn accept(listener: &TcpListener, places: &Arc<Semaphore>) -> (TcpStream, SocketAddr, Option<OwnedSemaphorePermit>) {
    let place = Arc::clone(places).acquire_owned().await.ok(); // the semaphore is never closed
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => return (stream, peer, place),
            Err(error) => {
                // Out of file descriptors, most likely: others must end first.
                tracing::warn!(%error, "a connection was not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn handle(stream: TcpStream, peer: SocketAddr, router: Router, mut stopping: watch::Receiver<bool>) {
    let _ = stream.set_nodelay(true); // only a hint
    let service = hyper::service::service_fn(move |request: hyper::Request<Incoming>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(ConnectInfo(peer));
        let answer = router.clone().oneshot(request);
        async move { Ok::<_, Infallible>(answer.await.unwrap_or_else(|never| match never {})) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        biased;
        ended = &mut connection => Some(ended),
        _ = stopping.wait_for(|stop| *stop) => None,
    };
    let ended = match ended {
        Some(ended) => ended,
        None => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%peer, %error, "a connection broke");
    }
}
