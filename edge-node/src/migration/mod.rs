//! Migration: the customer's images and sealed configuration as content, the provider's copy of them, block by verified block.
//!
//! The application key never leaves the customer unsealed: configuration is sealed (HPKE) to the nodes that may open it, in two parts. The
//! network part (addresses and network keys) is opened from standby on, the application part when the services start.

pub mod source;

use std::io::{self, Read as _};
use std::path::Path;

use contracts::node_record::SealingKey;
use contracts::sealed::{Sealed, UnsealingKey};
use engine::{Engine, ImageId, ImageSource};
use storage::{BlockSource, BlockStore, Cid, FetchLimits};
use tokio::io::AsyncReadExt as _;

/// What the network part is sealed for.
pub const PURPOSE_NETWORK: &str = "antirio network configuration v1";
/// What the application part is sealed for.
pub const PURPOSE_APPLICATION: &str = "antirio application configuration v1";
/// A configuration file is at most this long.
pub const CONFIGURATION_BYTES_MAX: u64 = tenant::CONFIG_BYTES_MAX as u64;

/// Why content is not where it should be.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{path}: {source}")]
    File { path: String, source: io::Error },
    #[error("the content store failed")]
    Storage(#[from] storage::Error),
    #[error("the engine refused the image")]
    Engine(#[from] engine::Error),
    #[error("the configuration cannot be sealed or opened")]
    Sealed(#[from] contracts::sealed::Error),
    #[error("the configuration is not of its form: {0}")]
    Form(String),
}

/// The two parts of a configuration as they travel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedConfiguration {
    pub network: Cid,
    pub application: Cid,
}

/// Reads a configuration file with a limit.
///
/// # Errors
/// It cannot be read or is too long.
pub fn read_configuration(path: &Path) -> Result<Vec<u8>, Error> {
    let file_error = |source| Error::File { path: path.display().to_string(), source };
    let mut bytes = Vec::new();
    let read = std::fs::File::open(path)
        .map_err(file_error)?
        .take(CONFIGURATION_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(file_error)?;
    if read as u64 > CONFIGURATION_BYTES_MAX {
        Err(Error::Form(format!("longer than {CONFIGURATION_BYTES_MAX} bytes")))
    } else {
        Ok(bytes)
    }
}

type Fields = serde_json::Map<String, serde_json::Value>;

/// A device without the fields that are not named.
fn only<T: serde::de::DeserializeOwned>(fields: Fields, names: &[&str]) -> Result<T, Error> {
    let own: Fields = fields.into_iter().filter(|(name, _)| names.contains(&name.as_str())).collect();
    serde_json::from_value(own.into()).map_err(|e| Error::Form(e.to_string()))
}

/// The network part of a device service's configuration: what the node itself needs of each device. Fields that only the service knows
/// (the application key among them) are left out.
///
/// # Errors
/// It is no JSON of the form `{"devices": [...], "joining": [...]}`, or a device lacks what the node needs.
pub fn network_part(configuration: &[u8]) -> Result<tenant::Registration, Error> {
    // Without the root key: a node in standby may open this part.
    registration(configuration, &["dev_eui", "join_eui", "dev_addr", "dev_nonces", "rx1_delay_s", "rx2_data_rate"])
}

/// What the owner's own node needs of each device: the network part and the root keys of devices that join.
///
/// # Errors
/// As [`network_part`].
pub fn own_part(configuration: &[u8]) -> Result<tenant::Registration, Error> {
    registration(configuration, &["dev_eui", "join_eui", "dev_addr", "app_key", "dev_nonces", "rx1_delay_s", "rx2_data_rate"])
}

fn registration(configuration: &[u8], joining_fields: &[&str]) -> Result<tenant::Registration, Error> {
    const NODE_FIELDS: [&str; 9] = [
        "dev_eui",
        "dev_addr",
        "nwk_s_key",
        "f_cnt_width",
        "rx1_delay_s",
        "rx2_data_rate",
        "rx2_frequency_hz",
        "supports_reset",
        "f_cnt_gap_max",
    ];
    #[derive(serde::Deserialize)]
    struct Document {
        devices: Option<Vec<Fields>>,
        joining: Option<Vec<Fields>>,
    }
    let document: Document = serde_json::from_slice(configuration).map_err(|e| Error::Form(e.to_string()))?;
    if document.devices.is_none() && document.joining.is_none() {
        return Err(Error::Form("missing field `devices` (or `joining`)".to_owned()));
    }
    let registration = tenant::Registration {
        devices: document.devices.into_iter().flatten().map(|fields| only(fields, &NODE_FIELDS)).collect::<Result<_, _>>()?,
        joining: document.joining.into_iter().flatten().map(|fields| only(fields, joining_fields)).collect::<Result<_, _>>()?,
    };
    registration.check().map_err(|e| Error::Form(e.to_string()))?;
    Ok(registration)
}

/// Stores an image file as content and loads it into the engine.
///
/// # Errors
/// The file cannot be read, is no image, or does not fit into the store.
pub async fn store_image(store: &BlockStore, engine: &dyn Engine, path: &Path, label: &str) -> Result<(Cid, ImageId), Error> {
    let image = engine.load_image(ImageSource::Path(path.to_owned()), None).await?;
    let file_error = |source| Error::File { path: path.display().to_string(), source };
    let file = tokio::fs::File::open(path).await.map_err(file_error)?;
    let cid = store.add(file, label).await?;
    Ok((cid, image))
}

/// Seals both parts of a configuration to the given nodes and stores them as content.
///
/// # Errors
/// The configuration is not of its form, or does not fit into the store.
pub async fn store_configuration(
    store: &BlockStore,
    configuration: &[u8],
    recipients: &[SealingKey],
    label: &str,
) -> Result<SealedConfiguration, Error> {
    let network = serde_json::to_vec(&network_part(configuration)?).map_err(|e| Error::Form(e.to_string()))?;
    let network = store_sealed(store, &network, recipients, PURPOSE_NETWORK, label).await?;
    let application = store_sealed(store, configuration, recipients, PURPOSE_APPLICATION, label).await?;
    Ok(SealedConfiguration { network, application })
}

async fn store_sealed(
    store: &BlockStore,
    secret: &[u8],
    recipients: &[SealingKey],
    purpose: &str,
    label: &str,
) -> Result<Cid, Error> {
    let sealed = Sealed::seal(secret, recipients, purpose)?;
    let json = serde_json::to_vec(&sealed).map_err(|e| Error::Form(e.to_string()))?;
    Ok(store.add(json.as_slice(), label).await?)
}

/// Opens a part that is complete in the store.
///
/// # Errors
/// Blocks are missing, or it is not sealed to this node for this purpose.
pub async fn open_sealed(store: &BlockStore, cid: &Cid, key: &UnsealingKey, purpose: &str) -> Result<Vec<u8>, Error> {
    let mut json = Vec::new();
    // Base64 in JSON, once per recipient.
    let limit = (CONFIGURATION_BYTES_MAX * 2) * contracts::sealed::RECIPIENTS_MAX as u64;
    store
        .read(cid)
        .await?
        .take(limit)
        .read_to_end(&mut json)
        .await
        .map_err(|source| Error::File { path: cid.to_string(), source })?;
    let sealed: Sealed = serde_json::from_slice(&json).map_err(|e| Error::Form(e.to_string()))?;
    Ok(key.open(&sealed, purpose)?)
}

/// Makes content complete from a peer and says how many bytes it has.
///
/// # Errors
/// As [`BlockStore::fetch`].
pub async fn fetch(store: &BlockStore, source: &dyn BlockSource, cid: &Cid, label: &str) -> Result<u64, Error> {
    let progress = |progress: storage::Progress| tracing::debug!(%cid, ?progress, "fetching");
    store.fetch(source, cid, label, FetchLimits::default(), &progress).await?;
    Ok(store.total_bytes(cid).await?)
}

/// Loads an image that is complete in the store.
///
/// # Errors
/// It is no image, or not the one that the contract names.
pub async fn load_image(store: &BlockStore, engine: &dyn Engine, cid: &Cid, expected: &ImageId) -> Result<(), Error> {
    if engine.has_image(expected).await? {
        return Ok(());
    }
    let content = store.read(cid).await?;
    engine.load_image(ImageSource::Reader(Box::new(content)), Some(expected)).await?;
    Ok(())
}
