//! The services that an edge runs for its owner: from the files in the configuration to a running, registered deployment.

use std::path::Path;

use axum::body::Bytes;
use contracts::blueprint::{Activation, Blueprint, Service};
use contracts::ids::{GroupId, NodeId};
use contracts::resources::Resources;
use sha2::{Digest as _, Sha256};
use storage::BlockStore;

use crate::config;
use crate::core::OwnService;
use crate::migration::{self, network_part, own_part, read_configuration};

/// Processes and threads that one service may have.
const PIDS_MAX: u64 = 32;
/// What a node must be able to do for LoRa devices in Europe.
pub const CAPABILITY_LORA: &str = "lora:EU868";

/// The group of an owner's service: the same after every restart, another for every node and name.
#[must_use]
pub fn group_of(node: NodeId, name: &str) -> GroupId {
    let digest =
        Sha256::new().chain_update(b"antirio group v1\0").chain_update(node.as_bytes()).chain_update(name.as_bytes()).finalize();
    let mut id = [0; 16];
    id.copy_from_slice(&digest[..16]);
    GroupId::from_bytes(id)
}

/// Reads, stores and loads what the configuration names. Without an image, or on a node without an engine, no container is described.
///
/// # Errors
/// A file cannot be read or is not of its form, or the engine refuses the image.
pub async fn load(
    node: NodeId,
    service: &config::Service,
    content: &BlockStore,
    engine: Option<&dyn engine::Engine>,
) -> Result<OwnService, migration::Error> {
    let configuration = read_configuration(&service.configuration)?;
    let services = match (&service.image, engine) {
        (Some(image), Some(engine)) => vec![container(service, image, content, engine).await?],
        (None, _) | (_, None) => Vec::new(),
    };
    let blueprint = Blueprint {
        services,
        needs: Resources::default(),
        capabilities: [CAPABILITY_LORA.to_owned()].into(),
        activation: Activation::Offline,
    };
    Ok(OwnService {
        group: group_of(node, &service.name),
        blueprint,
        registration: network_part(&configuration)?,
        joining: own_part(&configuration)?.joining,
        configuration: Bytes::from(configuration),
    })
}

async fn container(
    service: &config::Service,
    image: &Path,
    content: &BlockStore,
    engine: &dyn engine::Engine,
) -> Result<Service, migration::Error> {
    let (image, image_id) = migration::store_image(content, engine, image, &format!("own service {}", service.name)).await?;
    Ok(Service {
        name: service.name.clone(),
        image: image.to_string(),
        image_id: image_id.to_string(),
        command: Vec::new(),
        environment: std::collections::BTreeMap::new(),
        depends_on: Vec::new(),
        memory_bytes_max: service.memory_bytes_max,
        cpu_millis_max: service.cpu_millis_max,
        pids_max: PIDS_MAX,
    })
}
