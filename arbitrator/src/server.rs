//! The running arbitrator: store, endpoint, witness, time rules, connections, and their orderly end.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use contracts::envelope::{Envelope, Keypair};
use contracts::node_record::{NodeRecord, Role};
use contracts::sealed::UnsealingKey;
use kit::clock::Clock;
use kit::connections;
use peering::custody::os_entropy;
use peering::{AddressBook, Endpoint, endpoint};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::config::{self, Config, StoreConfig};
use crate::http::{self, App};
use crate::service::{self, Parts, Service};
use crate::store::{self, Memory, Sqlite, Store};
use crate::witness::{self, Admitted};

/// HTTP connections at a time; more wait.
pub const CONNECTIONS_MAX: usize = 4_096;

/// Why the arbitrator does not run.
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
    #[error("the peering endpoint cannot start")]
    Endpoint(#[from] endpoint::BindError),
    #[error("the witness cannot start")]
    Witness(#[from] witness::Error),
}

/// Runs until `shutdown` resolves, then drains: no new connections, streams end, open requests finish, votes stop.
///
/// # Errors
/// Only at the start; a running arbitrator answers errors as problems and logs them.
pub async fn run(config: Config, listener: TcpListener, shutdown: impl Future<Output = ()> + Send) -> Result<(), Error> {
    run_with(config, listener, Clock::system(), shutdown).await
}

/// As [`run`], with a clock handed in.
///
/// # Errors
/// As [`run`].
pub async fn run_with(
    config: Config,
    listener: TcpListener,
    clock: Clock,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), Error> {
    config.validate()?;
    let keypair = config.secret_key.load()?;
    let store: Arc<dyn Store> = match &config.store {
        StoreConfig::Memory => Arc::new(Memory::default()),
        StoreConfig::Sqlite(path) => {
            let store = Sqlite::open(path).await?;
            if config.is_restored {
                store.mark_votes_restored().await?;
            }
            Arc::new(store)
        }
    };
    let (admitted, addresses) = (Admitted::default(), AddressBook::new());
    let endpoint = bind(&config, &keypair, &admitted, &addresses, &clock).await?;
    let record = node_record(&config, &keypair, &endpoint, &clock);
    let parts = Parts {
        store,
        keypair: keypair.clone(),
        record,
        operators: config.operators.clone(),
        clock: clock.clone(),
        nodes_max: config.limits.nodes_max,
    };
    let service = Arc::new(Service::new(parts).await?);
    let transport = Arc::new(endpoint.clone());
    let witness = witness::start(Arc::clone(&service), transport, keypair, clock, admitted, addresses, os_entropy()).await?;
    let (stop, stopping) = watch::channel(false);
    let every = Duration::from_millis(config.tick_ms);
    let mut tasks = JoinSet::new();
    tasks.spawn(witness.run(every, stopping.clone()));
    tasks.spawn(Arc::clone(&service).run_ticks(every, stopping.clone()));
    let id = service.me();
    tracing::info!(%id, http = ?listener.local_addr().ok(), peering = ?endpoint.local_address(), "the arbitrator is open");
    let app = App::new(service, config.limits, stopping.clone());
    let mut connections = pin!(connections::serve(listener, http::router(app), CONNECTIONS_MAX, |_open| {}, stopping));
    tokio::select! {
        biased;
        () = shutdown => {}
        () = &mut connections => {}
    }
    stop.send_replace(true);
    connections.await;
    while let Some(ended) = tasks.join_next().await {
        if let Err(error) = ended {
            tracing::error!(%error, "a task of the arbitrator failed");
        }
    }
    endpoint.close().await;
    tracing::info!("the arbitrator is closed");
    Ok(())
}

async fn bind(
    config: &Config,
    keypair: &Keypair,
    admitted: &Admitted,
    addresses: &AddressBook,
    clock: &Clock,
) -> Result<Endpoint, endpoint::BindError> {
    let admitted = admitted.clone();
    let admit: endpoint::Admit = Arc::new(move |node| admitted.contains(node));
    let settings = endpoint::Config::new(keypair.secret(), config.peering_bind, admit, clock.clone());
    Endpoint::bind(endpoint::Config { addresses: addresses.clone(), ..settings }).await
}

/// Its own record: node and owner are one key. Made anew at each start, so its epoch is the time.
fn node_record(config: &Config, keypair: &Keypair, endpoint: &Endpoint, clock: &Clock) -> Envelope {
    let bound = endpoint.local_address().unwrap_or(config.peering_bind);
    let addresses = if config.addresses.is_empty() { vec![bound] } else { config.addresses.clone() };
    let record = NodeRecord {
        node: keypair.node_id(),
        owner: keypair.owner_id(),
        name: config.name.clone(),
        role: Role::Arbitrator,
        addresses,
        sealing_key: UnsealingKey::derive(&keypair.secret()).public(),
        position: None,
        record_epoch: clock.wall().0,
    };
    Envelope::sign(&record, keypair)
}

impl Service {
    /// Looks at what is due, again and again, until `stopping`.
    pub async fn run_ticks(self: Arc<Self>, every: Duration, mut stopping: watch::Receiver<bool>) {
        loop {
            tokio::select! {
                biased;
                _ = stopping.wait_for(|stop| *stop) => return,
                () = tokio::time::sleep(every) => {}
            }
            if let Err(error) = self.tick().await {
                tracing::error!(error = &error as &dyn std::error::Error, "what is due could not be done");
            }
        }
    }
}
