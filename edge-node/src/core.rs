//! What all parts of a node share.

use std::sync::Arc;

use contracts::blueprint::Blueprint;
use contracts::envelope::Envelope;
use contracts::ids::{GroupId, NodeId, OwnerId};
use kit::clock::Clock;
use peering::Transport;
use storage::BlockStore;

use crate::agreements::Agreements;
use crate::config::Config;
use crate::directory::Directory;
use crate::dmu::policy::Policy;
use crate::edge2edge::client::Client;
use crate::identity::Identity;
use crate::market::evidence::Outbox;
use crate::orchestrator::Orchestrator;
use crate::readings::log::Log;
use crate::readings::north::Destinations;
use crate::store::Store;
use crate::timeline::Timeline;

/// Handles to the parts; cheap to clone behind its `Arc`.
#[derive(Debug)]
pub struct Core {
    pub config: Config,
    pub identity: Identity,
    pub owner: OwnerId,
    /// This node's own signed record.
    pub record: Envelope,
    pub clock: Clock,
    pub policy: Option<Policy>,
    pub store: Store,
    pub log: Log,
    pub destinations: Destinations,
    /// Images and sealed configuration by content id.
    pub content: BlockStore,
    /// Absent on a node that runs no containers.
    pub orchestrator: Option<Orchestrator>,
    pub directory: Directory,
    pub agreements: Agreements,
    pub client: Client,
    pub timeline: Timeline,
    /// Evidence on its way to the arbitrator.
    pub outbox: Outbox,
    /// The services that this edge runs for its owner.
    pub own_service: Option<OwnService>,
}

/// A service of the owner's own, loaded and ready to run.
#[derive(Debug, Clone)]
pub struct OwnService {
    pub group: GroupId,
    /// Images by content id, limits; without containers if the service runs beside the node.
    /// Otherwise `needs` is filled in by the estimate when insurance is looked for.
    pub blueprint: Blueprint,
    /// The configuration as the owner wrote it, application keys included.
    pub configuration: axum::body::Bytes,
    /// What every node that serves it must know; no root keys.
    pub registration: tenant::Registration,
    /// Devices that join, with their root keys.
    pub joining: Vec<tenant::JoiningDevice>,
}

impl OwnService {
    /// All its devices, those that join among them: each takes a radio slot of an insurer.
    #[must_use]
    pub fn devices(&self) -> u64 {
        crate::tenants::http::devices(&self.registration).count() as u64
    }
}

impl Core {
    #[must_use]
    pub fn me(&self) -> NodeId {
        self.identity.keypair.node_id()
    }

    #[must_use]
    pub fn transport(&self) -> &Arc<dyn Transport> {
        self.client.transport()
    }
}
