//! The running marketplace: store, clearing rounds, connections, and their orderly end.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use kit::clock::Clock;
use kit::connections;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::config::{self, Config, StoreConfig};
use crate::http::{self, App};
use crate::reputation::{Reputation, Unknown};
use crate::service::{self, Parts, Service};
use crate::store::{self, Memory, Sqlite, Store};

/// Why the marketplace does not run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the configuration cannot be used")]
    Config(#[from] config::Error),
    #[error("there is no secret key")]
    SecretKey(#[from] kit::secret_key::Error),
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
    let metrics = Arc::clone(&service);
    let count = move |open| {
        metrics.metrics.connections.set(i64::try_from(open).unwrap_or(i64::MAX));
    };
    let connections = connections::serve(listener, http::router(app), config.limits.connections_max as usize, count, stopping);
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
