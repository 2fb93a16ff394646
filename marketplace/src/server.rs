//! The running marketplace: store, clearing rounds, connections, and their orderly end.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use kit::clock::Clock;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tower::ServiceExt as _;

use crate::config::{self, Config, StoreConfig};
use crate::http::{self, App};
use crate::reputation::{Reputation, Unknown};
use crate::service::{self, Parts, Service};
use crate::store::{self, Memory, Sqlite, Store};

/// A client sends its request's head within this time.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Open requests are given this long when the process drains.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

/// Why the marketplace does not run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the configuration cannot be used")]
    Config(#[from] config::Error),
    #[error("the store cannot be opened")]
    Store(#[from] store::Error),
    #[error("the service cannot start")]
    Service(#[from] service::Error),
}

/// Runs until `shutdown` resolves, then drains: no new connections, streams end, open requests finish.
///
/// # Errors
/// Only at the start; a running marketplace answers errors as problems and logs them.
pub async fn run(config: Config, listener: TcpListener, shutdown: impl Future<Output = ()> + Send) -> Result<(), Error> {
    run_with(config, listener, Clock::system(), Arc::new(Unknown), shutdown).await
}

/// As [`run`], with a clock and a source of reputation handed in.
///
/// # Errors
/// As [`run`].
pub async fn run_with(
    config: Config,
    listener: TcpListener,
    clock: Clock,
    reputation: Arc<dyn Reputation>,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), Error> {
    config.validate()?;
    let keypair = config.secret_key.load()?;
    let store: Arc<dyn Store> = match &config.store {
        StoreConfig::Memory => Arc::new(Memory::default()),
        StoreConfig::Sqlite(path) => Arc::new(Sqlite::open(path).await?),
    };
    let id = keypair.node_id();
    let service =
        Arc::new(Service::new(Parts { store, keypair, clock, reputation, limits: config.limits, hold: config.hold() }).await?);
    let (stop, stopping) = watch::channel(false);
    let app = App::new(Arc::clone(&service), stopping.clone());
    let rounds = tokio::spawn(Arc::clone(&service).run_rounds(Duration::from_millis(config.round_ms), stopping.clone()));
    let address = listener.local_addr().map_or_else(|e| e.to_string(), |a| a.to_string());
    tracing::info!(%id, address, "the marketplace is open");
    let connections = serve(listener, http::router(app), Arc::clone(&service), config.limits.connections_max, stopping);
    let mut connections = pin!(connections);
    tokio::select! {
        biased;
        () = shutdown => {}
        () = &mut connections => {}
    }
    stop.send_replace(true);
    connections.await;
    if let Err(error) = rounds.await {
        tracing::error!(%error, "the clearing task failed");
    }
    service.close().await;
    tracing::info!("the marketplace is closed");
    Ok(())
}

/// Accepts until `stopping`, then waits for open connections.
async fn serve(
    listener: TcpListener,
    router: Router,
    service: Arc<Service>,
    connections_max: u32,
    mut stopping: watch::Receiver<bool>,
) {
    let permits = Arc::new(Semaphore::new(connections_max as usize));
    let mut open = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            biased;
            _ = stopping.wait_for(|stop| *stop) => break,
            Some(_) = open.join_next() => continue,
            accepted = accept(&listener, &permits) => accepted,
        };
        let (stream, peer, permit) = accepted;
        let (router, service, stopping) = (router.clone(), Arc::clone(&service), stopping.clone());
        open.spawn(async move {
            service.metrics.connections.inc();
            handle(stream, peer, router, stopping).await;
            service.metrics.connections.dec();
            drop(permit);
        });
    }
    drop(listener);
    if tokio::time::timeout(DRAIN_TIMEOUT, async { while open.join_next().await.is_some() {} }).await.is_err() {
        tracing::warn!(connections = open.len(), "connections are cut: they did not end in time");
    }
}

/// A connection, once there is room for one.
async fn accept(
    listener: &TcpListener,
    permits: &Arc<Semaphore>,
) -> (TcpStream, SocketAddr, Option<tokio::sync::OwnedSemaphorePermit>) {
    let permit = Arc::clone(permits).acquire_owned().await.ok(); // the semaphore is never closed
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => return (stream, peer, permit),
            Err(error) => {
                // Out of file descriptors, most likely: others must end first.
                tracing::warn!(%error, "a connection was not accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
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
