//! Tenants: containers of this node's owner or of others, each behind a Unix socket in a directory of its own.
//!
//! A tenant has no network. Through its socket it gets its configuration, registers its devices, follows its uplinks and hands in
//! readings; the protocol is the crate `tenant`. A tenant that floods or lingers costs bounded memory and nobody else's time.
//!
//! - [`http`] — the routes
//! - [`doors`] — where the sockets are
//! - [`tunnels`] — connections outward and inward, as far as the operator allows them

pub mod doors;
pub mod http;
pub mod tunnels;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use axum::body::Bytes;
use contracts::ids::{Epoch, GroupId};
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use lora_bridge::server::BridgeHandle;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;

use crate::lora::links::Links;
use crate::readings::log::Log;
use doors::{Connection, Door, Doors};
use tunnels::{Arrivals, Gate, Outside};

/// Connections of one tenant at a time, tunnels among them; more wait in the kernel's queue.
pub const CONNECTIONS_MAX: usize = 32;
/// The time a tenant has for the head of a request.
const REQUEST_HEAD: std::time::Duration = std::time::Duration::from_secs(5);

/// What the routes of one tenant work with.
#[derive(Debug)]
pub struct Tenant {
    pub group: GroupId,
    log: Log,
    bridge: Option<BridgeHandle>,
    links: Links,
    /// The opened configuration; absent while the tenant may not have it.
    configuration: RwLock<Option<Bytes>>,
    /// The devices that this tenant may register.
    devices: std::collections::BTreeSet<contracts::ids::DevEui>,
    /// Rises with every configuration that is fetched: the tenant is up.
    connected: watch::Sender<u64>,
    /// Custody under which uplinks are handed out now.
    epoch: watch::Sender<Epoch>,
    outside: Outside,
    arrivals: Arrivals,
}

impl Tenant {
    #[must_use]
    pub fn new(
        group: GroupId,
        log: Log,
        bridge: Option<BridgeHandle>,
        devices: std::collections::BTreeSet<contracts::ids::DevEui>,
    ) -> Self {
        let (connected, epoch) = (watch::Sender::new(0), watch::Sender::new(Epoch(0)));
        let (outside, arrivals) = (Outside::default(), Arrivals::default());
        let (links, configuration) = (Links::default(), RwLock::new(None));
        Self { group, log, bridge, links, configuration, devices, connected, epoch, outside, arrivals }
    }

    /// Where its downlinks' events come from.
    #[must_use]
    pub fn with_links(self, links: Links) -> Self {
        Self { links, ..self }
    }

    /// Lets the tenant reach the outside, and be reached, as far as the operator allows.
    #[must_use]
    pub fn with_outside(mut self, outside: Outside) -> Self {
        self.outside = outside;
        self
    }

    /// Gives the tenant its configuration, or takes it back.
    pub fn set_configuration(&self, configuration: Option<Bytes>) {
        *self.configuration.write().unwrap_or_else(PoisonError::into_inner) = configuration;
    }

    fn configuration(&self) -> Option<Bytes> {
        self.configuration.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Rises whenever the tenant fetched its configuration.
    #[must_use]
    pub fn connected(&self) -> watch::Receiver<u64> {
        self.connected.subscribe()
    }

    pub fn set_epoch(&self, epoch: Epoch) {
        self.epoch.send_replace(epoch);
    }
}

/// An open tenant socket; dropped, it closes and its connections end.
#[derive(Debug)]
pub struct TenantSocket {
    pub tenant: Arc<Tenant>,
    directory: PathBuf,
    accepting: JoinHandle<()>,
    /// Takes connections from outside.
    listening: Option<JoinHandle<()>>,
}

impl Drop for TenantSocket {
    fn drop(&mut self) {
        self.accepting.abort();
        if let Some(listening) = &self.listening {
            listening.abort();
        }
    }
}

impl TenantSocket {
    /// Opens the door of the tenant's group.
    ///
    /// # Errors
    /// The directory or socket cannot be made.
    pub fn open(tenant: Tenant, doors: &dyn Doors) -> io::Result<Self> {
        let Door { directory, connections } = doors.open(tenant.group)?;
        let tenant = Arc::new(tenant);
        let accepting = kit::task::spawn(accept(connections, Gate::new(Arc::clone(&tenant))));
        let listening = tenant.outside.listen.map(|address| kit::task::spawn(tunnels::listen(address, tenant.arrivals.sender())));
        Ok(Self { tenant, directory, accepting, listening })
    }

    /// What is mounted into the container.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }
}

/// Serves connections until it is aborted; with it all connections end.
async fn accept(mut incoming: BoxStream<'static, io::Result<Connection>>, gate: Gate) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let stream = tokio::select! {
            biased;
            _ended = connections.join_next(), if !connections.is_empty() => { drop(place); continue }
            accepted = incoming.next() => match accepted {
                Some(Ok(stream)) => stream,
                Some(Err(error)) => {
                    tracing::warn!(%error, "a tenant's connection could not be taken");
                    tokio::task::yield_now().await;
                    continue;
                }
                None => return,
            },
        };
        let (gate, tunnel) = gate.for_connection();
        let service = TowerToHyperService::new(gate);
        connections.spawn(kit::task::belong(async move {
            let _place = place;
            let served = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(REQUEST_HEAD)
                .max_buf_size(64 << 10)
                .serve_connection(TokioIo::new(stream), service)
                .with_upgrades()
                .await;
            if let Err(error) = served {
                tracing::debug!(%error, "a tenant's connection ended");
            }
            tunnel.carry().await;
        }));
    }
}
