//! Configuration: one TOML table, every field with a default but the secret key.

use std::net::SocketAddr;
use std::path::PathBuf;

use contracts::time::Millis;
pub use kit::secret_key::SecretKey;
use serde::{Deserialize, Serialize};

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
