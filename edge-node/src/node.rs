//! Puts a node together and runs it: from configuration to listeners, and down again in order.

use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use contracts::envelope::{Envelope, Keypair};
use contracts::ids::Epoch;
use contracts::node_record::{NodeRecord, Role};
use kit::clock::Clock;
use lora_bridge::bridge::io::Mode;
use lora_bridge::bridge::{self, Bridge};
use lora_bridge::server::{BridgeHandle, NamedTap, Socket};
use peering::custody::{CustodyHandle, Entropy, FileVotes, Setup, VoteStore, os_entropy};
use peering::{AddressBook, Endpoint, Transport};
use storage::BlockStore;
use tokio::net::TcpListener;

use crate::agreements::Agreements;
use crate::config::{Config, EngineKind};
use crate::core::{Core, OwnService};
use crate::directory::Directory;
use crate::dmu::policy::Policy;
use crate::edge2edge::client::Client;
use crate::identity::{self, Identity};
use crate::insurance::{self, Parts, reserved::ReservedByGroup};
use crate::lora::leases::Leases;
use crate::lora::links::Links;
use crate::lora::standby::Standby;
use crate::market::evidence::Outbox;
use crate::orchestrator::plan::Desired;
use crate::orchestrator::{self, Orchestrator};
use crate::readings::inbox::Inbox;
use crate::readings::log::Log;
use crate::readings::north::{self, Destination, Destinations};
use crate::readings::unclaimed;
use crate::store::Store;
use crate::tenants::doors::{Doors, UnixDoors};
use crate::tenants::{self, Tenant, TenantSocket};
use crate::timeline::{Event, Timeline};
use crate::{api, edge2edge, lora, market, service};

/// Content that a node stores at most, in bytes.
const CONTENT_BYTES_MAX: u64 = 8 << 30;
/// Where the socket of a service beside the node is, below the state directory.
const SERVICE_DIRECTORY: &str = "service";
/// Between two prunings.
const PRUNE_INTERVAL: std::time::Duration = std::time::Duration::from_secs(600);

/// Why a node does not start. The text is for its operator.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{path}: {source}")]
    File { path: String, source: std::io::Error },
    #[error("{0} is in use by another process: one node per state directory")]
    Locked(String),
    #[error("the policy file is refused")]
    Policy(#[from] crate::dmu::policy::Error),
    #[error("no identity")]
    Identity(#[from] identity::Error),
    #[error("the node's database cannot be used")]
    Store(#[from] crate::store::Error),
    #[error("the content store cannot be used")]
    Storage(#[from] storage::Error),
    #[error("no container engine: run `antirio doctor`")]
    Engine(#[from] engine::Error),
    #[error("the name of the node cannot be part of container names")]
    Name(#[from] engine::spec::Error),
    #[error("peers cannot be served")]
    Peering(#[from] peering::endpoint::BindError),
    #[error("custody cannot be kept")]
    Custody(#[from] peering::custody::Error),
    #[error("packet forwarders cannot be served")]
    Bridge(#[from] lora_bridge::server::Error),
    #[error("what is kept of gateways and time on air cannot be given back")]
    Radio(#[from] lora::Error),
    #[error("the operator API cannot listen on {address}")]
    Api { address: SocketAddr, source: std::io::Error },
    #[error("contracts cannot be read")]
    Agreements(#[from] crate::agreements::Error),
    #[error("node records cannot be read")]
    Directory(#[from] crate::directory::Error),
    #[error("the owner's service cannot be loaded")]
    Service(#[from] crate::migration::Error),
    #[error("the owner's service cannot be started")]
    Insurance(#[from] insurance::Error),
    #[error("the market cannot be dealt with")]
    Market(#[source] Box<market::Error>),
    #[error("no node record: give owner_key_file, or put a signed record into the state directory")]
    NoRecord(#[source] identity::Error),
}

impl From<market::Error> for Error {
    fn from(error: market::Error) -> Self {
        Self::Market(Box::new(error))
    }
}

/// What a node stands on: the parts of a machine, real or simulated.
pub struct Host {
    pub config: Config,
    pub clock: Clock,
    pub identity: Identity,
    /// The node's own signed record.
    pub record: Envelope,
    pub policy: Option<Policy>,
    pub store: Store,
    pub votes: Arc<dyn VoteStore>,
    pub content: BlockStore,
    /// Over an engine that has recovered; absent on a node that runs no containers.
    pub orchestrator: Option<Orchestrator>,
    pub own_service: Option<OwnService>,
    pub doors: Arc<dyn Doors>,
    pub transport: Arc<dyn Transport>,
    /// What `transport` looks peers up in.
    pub addresses: AddressBook,
    pub entropy: Entropy,
    /// Marketplace and arbitrator.
    pub services: market::Services,
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Host").field("config", &self.config).field("transport", &self.transport).finish_non_exhaustive()
    }
}

/// A node that takes part: everything but the operator's API.
#[derive(Debug)]
pub struct Running {
    pub core: Arc<Core>,
    pub custody: CustodyHandle,
    /// Absent on a node without gateways.
    pub parts: Option<Parts>,
    pub inbox: Option<Inbox>,
    pub agent: market::AgentHandle,
    _own_tenant: Option<TenantSocket>,
}

/// A node with its listener.
#[derive(Debug)]
struct Node {
    running: Running,
    listener: TcpListener,
    api: SocketAddr,
    _lock: std::fs::File,
}

/// Starts a node and runs it until `shutdown` resolves.
///
/// # Errors
/// [`Error`] if it cannot start.
pub async fn run(config: Config, clock: Clock, shutdown: impl Future<Output = ()> + Send + 'static) -> Result<(), Error> {
    let node = Box::pin(start(config, clock)).await?;
    node.serve(shutdown).await
}

fn file_error(path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.display().to_string();
    move |source| Error::File { path, source }
}

/// One live process per state directory, which is one per key.
fn lock(directory: &Path) -> Result<std::fs::File, Error> {
    std::fs::create_dir_all(directory).map_err(file_error(directory))?;
    let path = directory.join("lock");
    let file = std::fs::OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(file_error(&path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(Error::Locked(path.display().to_string())),
        Err(std::fs::TryLockError::Error(source)) => Err(file_error(&path)(source)),
    }
}

fn read_policy(config: &Config) -> Result<Option<Policy>, Error> {
    let Some(path) = &config.policy_file else { return Ok(None) };
    let text = std::fs::read_to_string(path).map_err(file_error(path))?;
    Ok(Some(Policy::parse(&text)?))
}

/// The node's signed record: made anew with the owner's key if it is here, else as it was put into the state directory.
fn record(config: &Config, identity: &Identity, bound: SocketAddr, clock: &Clock) -> Result<Envelope, Error> {
    let Some(owner_key_file) = &config.owner_key_file else {
        return identity::read_record(&config.state_directory).map_err(Error::NoRecord);
    };
    let owner: Keypair = identity::load_or_create_key(owner_key_file)?;
    let announced = config.peering.as_ref().map_or(&[][..], |peering| &peering.announce);
    let addresses = if announced.is_empty() { vec![bound] } else { announced.to_vec() };
    let record = NodeRecord {
        node: identity.keypair.node_id(),
        owner: owner.owner_id(),
        name: config.name.clone(),
        role: config.role,
        addresses,
        sealing_key: identity.unsealing.public(),
        position: config.position,
        record_epoch: clock.wall().0,
    };
    Ok(identity::write_record(&config.state_directory, &record, &owner, &identity.keypair)?)
}

async fn open_engine(config: &Config, needed: bool, clock: Clock) -> Result<Option<Orchestrator>, Error> {
    if !needed {
        return Ok(None);
    }
    let state = &config.state_directory;
    let mut selection = engine::select::Config::new(config.name.parse()?, state.join("run"), state.join("images"));
    if let Some(socket) = &config.engine.docker_socket {
        selection.docker_socket.clone_from(socket);
    }
    let wanted = match config.engine.kind {
        EngineKind::Embedded => engine::select::Selection::Embedded,
        EngineKind::Docker => engine::select::Selection::Docker,
        EngineKind::Auto => engine::select::Selection::Auto,
    };
    let selected = engine::select::select(wanted, &selection).await?;
    Ok(Some(Orchestrator::start(selected.engine, clock)))
}

/// Everything up to the point where only serving is missing.
async fn start(config: Config, clock: Clock) -> Result<Node, Error> {
    let lock = lock(&config.state_directory)?;
    let state = config.state_directory.clone();
    let identity = Identity::load_or_create(&state)?;
    let policy = read_policy(&config)?;
    let store = Store::open(&state.join("node.db")).await?;
    let content = BlockStore::open(state.join("content"), CONTENT_BYTES_MAX).await?;
    let votes_path = state.join("votes.json");
    let votes = Arc::new(FileVotes::open(&votes_path).map_err(file_error(&votes_path))?);
    if config.is_restored {
        votes.mark_restored().await.map_err(file_error(&votes_path))?;
    }
    let has_image = config.service.as_ref().is_some_and(|service| service.image.is_some());
    let runs_containers = has_image || policy.as_ref().is_some_and(|p| p.provider.is_some());
    let orchestrator = open_engine(&config, runs_containers, clock.clone()).await?;
    let addresses = AddressBook::new();
    let (transport, bound) = open_transport(&config, &identity, addresses.clone(), &clock).await?;
    let record = record(&config, &identity, bound, &clock)?;
    let own_service = match &config.service {
        Some(service) => {
            let engine = orchestrator.as_ref().map(|orchestrator| orchestrator.engine().as_ref());
            Some(service::load(identity.keypair.node_id(), service, &content, engine).await?)
        }
        None => None,
    };
    let gateways = match &config.lora {
        Some(lora) => Some(lora_bridge::server::bind(lora.bind).await?),
        None => None,
    };
    let bind = config.api.bind;
    let doors = UnixDoors::new(state.join("tenants"));
    let doors = Arc::new(match &own_service {
        Some(service) if !has_image => doors.with_beside(service.group, state.join(SERVICE_DIRECTORY)),
        Some(_) | None => doors,
    });
    let services = market::Services::of(&config)?;
    let host = Host {
        config,
        clock,
        identity,
        record,
        policy,
        store,
        votes,
        content,
        orchestrator,
        own_service,
        doors,
        transport,
        addresses,
        entropy: os_entropy(),
        services,
    };
    let running = assemble(host, gateways).await?;
    let api_error = |source| Error::Api { address: bind, source };
    let listener = TcpListener::bind(bind).await.map_err(api_error)?;
    let api = listener.local_addr().map_err(api_error)?;
    Ok(Node { running, listener, api, _lock: lock })
}

/// The way to other nodes, and its UDP address; a node that has to do with none opens no port, and its record an address of nobody.
async fn open_transport(
    config: &Config,
    identity: &Identity,
    addresses: AddressBook,
    clock: &Clock,
) -> Result<(Arc<dyn Transport>, SocketAddr), Error> {
    let Some(settings) = &config.peering else {
        let alone = peering::in_process::Network::new(clock.clone()).join(identity.keypair.node_id());
        return Ok((Arc::new(alone), SocketAddr::from(([127, 0, 0, 1], 0))));
    };
    // Strangers may connect (a stranger is how every contract begins); what they may ask is decided route by route.
    let admit = Arc::new(|_| true);
    let mut peering = peering::endpoint::Config::new(identity.keypair.secret(), settings.bind, admit, clock.clone());
    peering.addresses = addresses;
    let endpoint = Endpoint::bind(peering).await?;
    let bound = endpoint.local_address().unwrap_or(settings.bind);
    Ok((Arc::new(endpoint), bound))
}

/// Starts all parts of a node on a host. `gateways`: where packet forwarders send to.
///
/// # Errors
/// [`Error`] if a part cannot start.
pub async fn assemble<S: Socket>(host: Host, gateways: Option<S>) -> Result<Running, Error> {
    let Host { votes, doors, transport, entropy, services, .. } = &host;
    let (votes, doors, transport, entropy) = (Arc::clone(votes), Arc::clone(doors), Arc::clone(transport), Arc::clone(entropy));
    let services = services.clone();
    let core = core(host).await?;
    let reserved = ReservedByGroup::default();
    let mut setup = Setup::new(Arc::clone(&transport), core.identity.keypair.clone(), core.clock.clone(), Arc::clone(&votes));
    let records = reserved.clone();
    setup.records = Arc::new(move |group| records.bytes(group));
    setup.entropy = entropy;
    setup.statements = Some(insurance::statements::keep(&core.config.state_directory, core.clock.clone()));
    let (custody, custody_router) = peering::custody::start(setup)?;
    let inbox = (core.config.role == Role::Cloud).then(|| Inbox::start(core.store.clone(), core.clock.clone()));
    let parts = gateways.map(|socket| {
        let (bridge, leases, links, standby) = open_bridge(&core, socket);
        let (core, custody, visits) = (Arc::clone(&core), custody.clone(), insurance::provider::Visits::default());
        Parts { core, custody, votes, bridge, leases, links, standby, reserved, doors, visits }
    });
    if let Some(parts) = &parts {
        // Before anything is sent.
        lora::air_time::restore(&core.store, &parts.bridge).await?;
        kit::task::spawn(lora::air_time::run(core.store.clone(), parts.bridge.clone()));
        lora::routes::restore(&core.store, &parts.bridge).await?;
        kit::task::spawn(lora::routes::run(core.store.clone(), parts.bridge.clone(), core.clock.clone()));
        kit::task::spawn(lora::alarms::run(parts.bridge.clone(), core.timeline.clone()));
    }
    let own_tenant = match (&parts, &core.own_service) {
        (Some(parts), Some(service)) => Some(run_own_service(parts, service).await?),
        _ => None,
    };
    if let Some(parts) = &parts {
        insurance::provider::restore_insured(parts).await;
        parts.bridge.listen().await.map_err(insurance::Error::from)?;
    }
    let context = edge2edge::http::Context { parts: parts.clone(), core: Arc::clone(&core), inbox: inbox.clone() };
    let agent = market::Agent::start_with(Arc::clone(&core), services);
    // Fallbacks of merged routers would clash: only the first has one.
    transport.serve(edge2edge::http::router(context).merge(market::router(&agent)).merge(custody_router));
    start_side_tasks(&core, parts.clone());
    Ok(Running { core, custody, parts, inbox, agent, _own_tenant: own_tenant })
}

async fn core(host: Host) -> Result<Arc<Core>, Error> {
    let Host { config, clock, identity, record, policy, store, content, orchestrator, own_service, transport, addresses, .. } =
        host;
    let directory = Directory::open(store.clone(), addresses).await?;
    let own = directory.put(&record).await?;
    let timeline = Timeline::new(clock.clone());
    let engine = orchestrator.as_ref().map_or_else(|| "none".to_owned(), |o| o.engine().kind().to_string());
    timeline.push(Event::Started { node: config.name.clone(), engine });
    Ok(Arc::new(Core {
        owner: own.owner,
        record,
        policy,
        log: Log::start(store.clone()),
        destinations: Destinations::default(),
        content,
        orchestrator,
        directory,
        agreements: Agreements::open(store.clone()).await?,
        client: Client::new(transport),
        timeline,
        outbox: Outbox::default(),
        own_service,
        store,
        clock,
        identity,
        config,
    }))
}

fn start_side_tasks(core: &Arc<Core>, parts: Option<Parts>) {
    let north = north::run(
        core.log.clone(),
        core.client.clone(),
        core.destinations.clone(),
        core.identity.keypair.clone(),
        core.clock.clone(),
    );
    kit::task::spawn(north);
    if let Some(parts) = parts {
        kit::task::spawn(tell_settled(parts.clone()));
        kit::task::spawn(insurance::run(parts));
    }
    kit::task::spawn(prune(Arc::clone(core)));
}

fn open_bridge<S: Socket>(core: &Arc<Core>, socket: S) -> (BridgeHandle, Leases, Links, Standby) {
    let leases = Leases::default();
    let asked = leases.clone();
    let lease: lora_bridge::server::Lease = Arc::new(move |group, epoch| asked.holds(group, epoch));
    let defaults = bridge::Config::default();
    let power_dbm_max = core.config.lora.as_ref().map_or(defaults.power_dbm_max, |lora| lora.power_dbm_max);
    let bridge = Bridge::new(bridge::Config { power_dbm_max, ..defaults });
    let (bridge, outputs) = lora_bridge::server::spawn_waiting(socket, bridge, core.clock.clone(), lease);
    if let Some(lora) = core.config.lora.as_ref().filter(|lora| !lora.taps.is_empty()) {
        let named = |tap: &crate::config::Tap| NamedTap { server: tap.server.clone(), gateways: tap.gateways.clone() };
        kit::task::spawn(lora_bridge::server::keep_taps(&bridge, lora.taps.iter().map(named).collect()));
    }
    let (links, standby) = (Links::default(), Standby::default());
    kit::task::spawn(standby.clone().run(core.log.clone()));
    let (log, timeline) = (core.log.clone(), core.timeline.clone());
    kit::task::spawn(lora::consume(outputs, bridge.clone(), log, links.clone(), standby.clone(), timeline));
    (bridge, leases, links, standby)
}

/// The owner's own tenant runs with and without a contract; whether its devices are transmitted for is the lease's business.
async fn run_own_service(parts: &Parts, service: &OwnService) -> Result<TenantSocket, Error> {
    let core = &parts.core;
    let sessions = tenants::http::sessions(&service.registration);
    let devices = tenants::http::devices(&service.registration).collect();
    let outside = core.config.service.as_ref().map(|service| outside(&service.outside)).unwrap_or_default();
    let tenant = Tenant::new(service.group, core.log.clone(), Some(parts.bridge.clone()), devices)
        .with_links(parts.links.clone())
        .with_outside(outside);
    tenant.set_configuration(Some(service.configuration.clone()));
    let socket = TenantSocket::open(tenant, parts.doors.as_ref()).map_err(insurance::Error::from)?;
    core.destinations.set(service.group, core.config.cloud.map_or(Destination::Here, Destination::Cloud));
    let may_be_elsewhere = match core.agreements.binding(service.group) {
        Some(agreement) if agreement.state.is_in_force() => insurance::is_armed_or_ended(agreement.state),
        // Its provider may serve for the grace.
        Some(_ended) => !insurance::customer::never_voted(parts, service.group).await,
        None => false,
    };
    if may_be_elsewhere {
        // Follows until its guard knows more: it receives, logs and delivers, and does not transmit.
        drop(parts.links.open(service.group, &sessions));
        insurance::restore(parts, service.group, &service.registration).await?;
        parts.bridge.custody(service.group, Mode::Following).await.map_err(insurance::Error::from)?;
    } else {
        insurance::customer::alone(parts, service.group, Epoch(0), &service.registration).await?;
    }
    let joining = tenants::http::joining(&service.joining);
    parts.bridge.register_joining(service.group, joining).await.map_err(insurance::Error::from)?;
    if service.blueprint.services.is_empty() {
        tracing::info!(directory = %socket.directory().display(), "the service is expected beside this node");
        return Ok(socket);
    }
    let orchestrator = core.orchestrator.as_ref().ok_or(insurance::Error::Lacking("container engine"))?;
    let begun = core.clock.boot_micros();
    let mut connected = socket.tenant.connected();
    let directory = socket.directory().to_owned();
    match orchestrator.deploy(service.group, &service.blueprint, directory, Desired::Running).await {
        // Containers that do not start now are tried again; what their devices send is logged meanwhile.
        Err(orchestrator::Error::Engine(error)) => {
            tracing::error!(error = &error as &dyn std::error::Error, "the containers are not started yet");
            core.timeline.push(Event::Alarm { what: format!("the containers of {} do not start", service.group) });
        }
        deployed => deployed.map_err(insurance::Error::from)?,
    }
    let (timeline, group, clock) = (core.timeline.clone(), service.group, core.clock.clone());
    kit::task::spawn(async move {
        if connected.changed().await.is_ok() {
            timeline.push(Event::ServiceStarted { group, start_us: clock.boot_micros() - begun });
        }
    });
    Ok(socket)
}

/// What the configuration lets a tenant do outside.
pub(crate) fn outside(config: &crate::config::Outside) -> tenants::tunnels::Outside {
    tenants::tunnels::Outside { egress: config.egress.clone(), listen: config.listen }
}

/// What the customer's cloud acknowledged goes to the bridge and to the other party.
async fn tell_settled(parts: Parts) {
    use tokio::sync::broadcast::error::RecvError;
    let mut settled = parts.core.log.settled();
    loop {
        match settled.recv().await {
            Ok(names) => {
                let mut by_group = std::collections::BTreeMap::<_, Vec<_>>::new();
                for name in names.iter() {
                    let mark = lora_bridge::mac::session::Mark { device: name.device, session: name.session, f_cnt: name.f_cnt };
                    by_group.entry(name.group).or_default().push(mark);
                }
                for (group, marks) in by_group {
                    if parts.bridge.settled(marks.clone()).await.is_err() {
                        return;
                    }
                    parts.links.settled(group, marks);
                }
            }
            // Marks that were missed here come with whole session states, and from the disk after a restart.
            Err(RecvError::Lagged(missed)) => tracing::warn!(missed, "settled marks were missed"),
            Err(RecvError::Closed) => return,
        }
    }
}

/// At most one line each [`PRUNE_INTERVAL`].
async fn give_up_unclaimed(core: &Core) {
    let limits = unclaimed::Limits::from(&core.config.readings);
    match unclaimed::give_up(&core.log, &core.destinations, &core.clock, limits).await {
        Ok(0) => {}
        Ok(count) => tracing::warn!(count, in_all = core.log.given_up(), "uplinks that no service took were given up"),
        Err(error) => tracing::warn!(error = &error as &dyn std::error::Error, "uplinks that no service takes stay for now"),
    }
}

async fn prune(core: Arc<Core>) {
    let keep = contracts::time::Millis::from_secs(u64::from(core.config.readings.keep_hours) * 3_600);
    loop {
        tokio::time::sleep(PRUNE_INTERVAL).await;
        give_up_unclaimed(&core).await;
        match core.store.prune_uplinks(core.clock.wall() - keep).await {
            Ok(pruned) => tracing::debug!(pruned, "old readings pruned"),
            Err(error) => tracing::warn!(error = &error as &dyn std::error::Error, "old readings cannot be pruned"),
        }
        if let Err(error) = core.store.prune_accounts(core.clock.wall() - insurance::accounts::KEEP).await {
            tracing::warn!(error = &error as &dyn std::error::Error, "old accounts cannot be pruned");
        }
    }
}

impl Running {
    /// Goes down in order: custody first, so that nobody waits for a lease.
    pub async fn shut_down(&self) {
        self.agent.stop().await;
        if let Some(parts) = &self.parts {
            insurance::release_all(parts).await;
        }
        self.custody.stop().await;
        if let Some(orchestrator) = &self.core.orchestrator
            && let Err(error) = orchestrator.shut_down().await
        {
            tracing::warn!(error = &error as &dyn std::error::Error, "containers are left for the next start");
        }
        self.core.store.close().await;
    }
}

impl Node {
    /// Serves the operator API until `shutdown` resolves, then goes down.
    ///
    /// # Errors
    /// The API's listener failed.
    async fn serve(self, shutdown: impl Future<Output = ()> + Send + 'static) -> Result<(), Error> {
        let Self { running, listener, api: address, .. } = self;
        let context = api::Context {
            core: Arc::clone(&running.core),
            parts: running.parts.clone(),
            inbox: running.inbox.clone(),
            custody: running.custody.clone(),
        };
        let router = api::router_with_market(context, running.agent.clone());
        tracing::info!(node = %running.core.me(), %address, "serving");
        let (stop, mut stopped) = tokio::sync::watch::channel(false);
        kit::task::spawn(async move {
            shutdown.await;
            stop.send_replace(true);
        });
        let served = axum::serve(listener, router);
        let ended = tokio::select! {
            biased;
            _ = stopped.wait_for(|stop| *stop) => Ok(()),
            served = served => served.map_err(|source| Error::Api { address, source }),
        };
        running.shut_down().await;
        ended
    }
}
