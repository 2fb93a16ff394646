//! Downlinks that come from a sink, on their way into the node's queue.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde_json::{Map, Value};
use tenant::{Client, DevEui, Downlink, HexBytes};

use crate::{
    codec::{Encoded, scripts::Scripts},
    config::{Codec, Config, DeviceSecrets},
    encryption,
};

/// A downlink without a time of its own is worth sending so long: a day, as class A devices may be silent for long.
const EXPIRES_AFTER: Duration = Duration::from_secs(24 * 3_600);
/// Where a codec that chooses no port sends.
const F_PORT: u8 = 1;

/// What is to be sent.
#[derive(Debug, Clone, PartialEq)]
pub enum Content {
    /// A payload.
    Bytes(Vec<u8>),
    /// Values for the device's codec.
    Values(Map<String, Value>),
}

/// A downlink as somebody outside asks for it.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// The same id again is the same downlink.
    pub id: String,
    /// To whom.
    pub device: DevEui,
    /// The codec may choose another one.
    pub f_port: Option<u8>,
    /// What.
    pub content: Content,
    /// Whether the device has to acknowledge it.
    pub confirmed: bool,
    /// In milliseconds since 1970; a day from now by default.
    pub expires_at_ms: Option<u64>,
}

/// The way to the node's queue.
#[derive(Debug, Clone)]
pub struct Downlinks {
    client: Arc<Client>,
    config: Arc<Config>,
    scripts: Option<Scripts>,
}

impl Downlinks {
    /// Through `client`, for the devices of a configuration.
    #[must_use]
    pub fn new(client: Arc<Client>, config: Arc<Config>, scripts: Option<Scripts>) -> Self {
        Downlinks { client, config, scripts }
    }

    /// Queues a downlink; gives its id.
    ///
    /// # Errors
    /// Why not, in words for whoever asked.
    pub async fn queue(&self, request: Request) -> Result<String, String> {
        let device = self.config.devices.get(&request.device).ok_or("the device is not in the configuration")?;
        let Encoded { f_port, bytes } = self.encode(device, request.content, request.f_port).await?;
        let expires_at_ms = request.expires_at_ms.unwrap_or_else(|| now_ms().saturating_add(millis(EXPIRES_AFTER)));
        let downlink = Downlink {
            id: request.id,
            dev_eui: request.device,
            f_port: f_port.or(request.f_port).unwrap_or(F_PORT),
            payload: HexBytes(encryption::seal(&device.secret.at_rest(), nonce(), &bytes)),
            confirmed: request.confirmed,
            delivery: self.config.downlink_delivery,
            priority: 0,
            expires_at_ms,
        };
        self.client.queue(&downlink).await.map(|queued| queued.id).map_err(|error| error.to_string())
    }

    async fn encode(&self, device: &DeviceSecrets, content: Content, f_port: Option<u8>) -> Result<Encoded, String> {
        match (content, &device.codec, &self.scripts) {
            (Content::Bytes(bytes), ..) => Ok(Encoded { f_port, bytes }),
            (Content::Values(values), Codec::Script(script), Some(scripts)) => {
                scripts.encode(Arc::clone(script), values, f_port, device.variables.clone()).await
            }
            (Content::Values(_), ..) => Err(format!("the codec {} does not encode downlinks", device.codec.name())),
        }
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Wall time in milliseconds since 1970.
#[expect(clippy::disallowed_methods, reason = "the one place where this program reads a clock; nothing of it goes into readings")]
pub(crate) fn now_ms() -> u64 {
    millis(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
}

/// An id that nobody had before.
pub(crate) fn new_id() -> String {
    uuid::Uuid::from_u64_pair(random(), random()).to_string()
}

fn nonce() -> [u8; 8] {
    random().to_le_bytes()
}

/// The keys of the standard library's hash maps come from the machine's randomness.
pub(crate) fn random() -> u64 {
    use std::hash::{BuildHasher as _, Hasher as _};
    std::collections::hash_map::RandomState::new().build_hasher().finish()
}
