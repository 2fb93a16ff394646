//! Configuration: one TOML table, every field with a default but the secret key.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use contracts::envelope::Keypair;
use contracts::time::Millis;
use serde::{Deserialize, Deserializer, Serialize};

/// How a marketplace runs.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where [`crate::run`]'s caller binds.
    #[serde(default = "default_bind")]
    pub bind: SocketAddr,
    #[serde(default)]
    pub store: StoreConfig,
    /// Signs the matches.
    pub secret_key: SecretKey,
    /// Time between clearing rounds, milliseconds.
    #[serde(default = "default_round_ms")]
    pub round_ms: u64,
    /// How long a match holds capacity unless a contract confirms it, milliseconds.
    #[serde(default = "default_hold_ms")]
    pub hold_ms: u64,
    #[serde(default)]
    pub limits: Limits,
}

/// `store = "memory"` or `store = { sqlite = "PATH" }`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StoreConfig {
    Memory,
    Sqlite(PathBuf),
}

/// `secret_key = { file = "PATH" }` (64 hexadecimal digits or 32 raw bytes) or `secret_key = { hex = "…" }`.
#[derive(Clone)]
pub enum SecretKey {
    File(PathBuf),
    Bytes([u8; 32]),
}

/// What one caller, node, owner or process may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Open listings of one node, of one owner, of all.
    pub listings_per_node_max: u64,
    pub listings_per_owner_max: u64,
    pub listings_max: u64,
    pub nodes_per_owner_max: u64,
    pub nodes_max: u64,
    /// Requests per second and client address (IPv6: per /64), and how many at once after a pause.
    pub requests_per_second_max: u32,
    pub requests_burst_max: u32,
    pub connections_max: u32,
    pub event_streams_max: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            listings_per_node_max: 64,
            listings_per_owner_max: 1_024,
            listings_max: 100_000,
            nodes_per_owner_max: 1_024,
            nodes_max: 100_000,
            requests_per_second_max: 200,
            requests_burst_max: 1_000,
            connections_max: 4_096,
            event_streams_max: 1_024,
        }
    }
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self::Sqlite(PathBuf::from("marketplace.sqlite"))
    }
}

const fn default_bind() -> SocketAddr {
    SocketAddr::V4(std::net::SocketAddrV4::new(std::net::Ipv4Addr::LOCALHOST, 7_310))
}

const fn default_round_ms() -> u64 {
    1_000
}

const fn default_hold_ms() -> u64 {
    120_000
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{field} must be {wanted}")]
    Range { field: &'static str, wanted: &'static str },
    #[error("cannot read the secret key file {path}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("the secret key file {path} holds neither 64 hexadecimal digits nor 32 bytes")]
    Key { path: PathBuf },
}

impl Config {
    /// With defaults, for a key.
    #[must_use]
    pub fn new(store: StoreConfig, secret_key: [u8; 32]) -> Self {
        let secret_key = SecretKey::Bytes(secret_key);
        Self {
            bind: default_bind(),
            store,
            secret_key,
            round_ms: default_round_ms(),
            hold_ms: default_hold_ms(),
            limits: Limits::default(),
        }
    }

    /// # Errors
    /// [`Error::Range`] names the field.
    pub fn validate(&self) -> Result<(), Error> {
        let wanted = [
            ((10..=60_000).contains(&self.round_ms), "round_ms", "10 to 60,000"),
            ((100..=86_400_000).contains(&self.hold_ms), "hold_ms", "100 to 86,400,000"),
            (self.limits.requests_per_second_max > 0 && self.limits.requests_burst_max > 0, "limits.requests", "at least one"),
            (
                self.limits.connections_max > 0 && self.limits.event_streams_max > 0,
                "limits.connections_max and event_streams_max",
                "at least one",
            ),
        ];
        wanted.into_iter().find(|(holds, ..)| !holds).map_or(Ok(()), |(_, field, wanted)| Err(Error::Range { field, wanted }))
    }

    #[must_use]
    pub const fn hold(&self) -> Millis {
        Millis(self.hold_ms)
    }
}

impl SecretKey {
    /// # Errors
    /// If the file cannot be read or holds no key.
    pub fn load(&self) -> Result<Keypair, Error> {
        match self {
            Self::Bytes(bytes) => Ok(Keypair::from_secret(bytes)),
            Self::File(path) => Self::read(path).map(|bytes| Keypair::from_secret(&bytes)),
        }
    }

    fn read(path: &Path) -> Result<[u8; 32], Error> {
        let content = std::fs::read(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
        if let Ok(raw) = <[u8; 32]>::try_from(content.as_slice()) {
            return Ok(raw);
        }
        let mut bytes = [0; 32];
        hex::decode_to_slice(content.trim_ascii(), &mut bytes).map_err(|_| Error::Key { path: path.to_owned() })?;
        Ok(bytes)
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "SecretKey({})", path.display()),
            Self::Bytes(_) => f.write_str("SecretKey(hidden)"),
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum SecretKeyText {
    File(PathBuf),
    Hex(String),
}

impl<'de> Deserialize<'de> for SecretKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match SecretKeyText::deserialize(deserializer)? {
            SecretKeyText::File(path) => Ok(Self::File(path)),
            SecretKeyText::Hex(digits) => {
                let mut bytes = [0; 32];
                hex::decode_to_slice(&digits, &mut bytes)
                    .map_err(|_| serde::de::Error::custom("a secret key has 64 hexadecimal digits"))?;
                Ok(Self::Bytes(bytes))
            }
        }
    }
}

/// For showing a configuration: never the secret.
impl Serialize for SecretKey {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeMap as _;
        let mut map = serializer.serialize_map(Some(1))?;
        match self {
            Self::File(path) => map.serialize_entry("file", path)?,
            Self::Bytes(_) => map.serialize_entry("hex", "(hidden)")?,
        }
        map.end()
    }
}
