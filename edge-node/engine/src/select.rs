//! Which engine this machine can use.

use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::docker::{DEFAULT_SOCKET, DockerConfig, DockerEngine};
use crate::embedded::{EmbeddedConfig, EmbeddedEngine};
use crate::image::ImageLimits;
use crate::{Engine, Error, NodePrefix, Recovery};

/// What the operator wishes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Selection {
    /// The embedded engine or an error.
    Embedded,
    /// The Docker engine or an error.
    Docker,
    /// The embedded engine where the machine allows it, else a Docker engine that answers, else an error that says what both lack.
    #[default]
    Auto,
}

/// Everything that either engine needs.
#[derive(Debug, Clone)]
pub struct Config {
    /// Begins the outside names of this node's containers.
    pub prefix: NodePrefix,
    /// Embedded: state of live containers, such as `/run/antirio/rio`. Docker: where image tars are spooled.
    pub state_dir: PathBuf,
    /// Embedded: unpacked images, such as `/var/lib/antirio/rio/images`.
    pub image_dir: PathBuf,
    /// Docker: the engine's socket.
    pub docker_socket: PathBuf,
    /// Embedded: the program whose `main` calls [`crate::embedded::helper_main`]; this one if `None`.
    pub helper: Option<PathBuf>,
    /// Bounds of loaded images.
    pub image_limits: ImageLimits,
}

impl Config {
    /// With this program as the helper, Docker's usual socket and the default bounds.
    #[must_use]
    pub fn new(prefix: NodePrefix, state_dir: impl Into<PathBuf>, image_dir: impl Into<PathBuf>) -> Self {
        let (state_dir, image_dir, docker_socket) = (state_dir.into(), image_dir.into(), DEFAULT_SOCKET.into());
        Self { prefix, state_dir, image_dir, docker_socket, helper: None, image_limits: ImageLimits::default() }
    }
}

/// An engine that is ready, and what it found.
#[derive(Debug, Clone)]
pub struct Selected {
    /// The engine.
    pub engine: Arc<dyn Engine>,
    /// What an earlier process of this node left.
    pub recovery: Recovery,
}

/// Opens the engine of the selection and lets it recover.
///
/// # Errors
/// [`Error::Unavailable`] with a sentence for everything that is missing, of both engines for [`Selection::Auto`].
pub async fn select(selection: Selection, config: &Config) -> Result<Selected, Error> {
    let engine: Arc<dyn Engine> = match selection {
        Selection::Embedded => Arc::new(embedded(config)?),
        Selection::Docker => Arc::new(docker(config).await?),
        Selection::Auto => match embedded(config) {
            Ok(engine) => Arc::new(engine),
            Err(Error::Unavailable { kind, missing }) => {
                tracing::info!(missing = missing.join("; "), "the embedded engine cannot be used here");
                match docker(config).await {
                    Ok(engine) => Arc::new(engine),
                    Err(Error::Unavailable { missing: also, .. }) => {
                        return Err(Error::Unavailable { kind, missing: missing.into_iter().chain(also).collect() });
                    }
                    Err(error) => return Err(error),
                }
            }
            Err(error) => return Err(error),
        },
    };
    let recovery = engine.recover().await?;
    Ok(Selected { engine, recovery })
}

fn embedded(config: &Config) -> Result<EmbeddedEngine, Error> {
    let mut embedded = EmbeddedConfig::new(config.prefix.clone(), &config.state_dir, &config.image_dir);
    if let Some(helper) = &config.helper {
        embedded.helper.clone_from(helper);
    }
    embedded.image_limits = config.image_limits;
    EmbeddedEngine::open(embedded)
}

async fn docker(config: &Config) -> Result<DockerEngine, Error> {
    let (prefix, socket, scratch_dir) = (config.prefix.clone(), config.docker_socket.clone(), config.state_dir.clone());
    DockerEngine::connect(DockerConfig { prefix, socket, scratch_dir, image_limits: config.image_limits }).await
}
