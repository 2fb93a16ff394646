//! Configuration: one TOML table, every field with a default but the secret key.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::PathBuf;

use contracts::envelope::Key;
use contracts::node_record::{ADDRESSES_MAX, NAME_BYTES_MAX};
pub use kit::secret_key::SecretKey;
use serde::{Deserialize, Serialize};

/// How an arbitrator runs.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where [`crate::run`]'s caller binds for HTTP.
    #[serde(default = "default_bind")]
    pub bind: SocketAddr,
    #[serde(default)]
    pub store: StoreConfig,
    /// The store was put back from a copy before this start; said on the command line.
    #[serde(skip)]
    pub is_restored: bool,
    /// Signs verdicts and votes; its public half is the arbitrator's node id.
    pub secret_key: SecretKey,
    /// UDP address of the peering endpoint, through which members reach the witness.
    #[serde(default = "default_peering_bind")]
    pub peering_bind: SocketAddr,
    /// Where members find the peering endpoint, for the node record; the bound address if empty.
    #[serde(default)]
    pub addresses: Vec<SocketAddr>,
    #[serde(default = "default_name")]
    pub name: String,
    /// Who may sign orders of deposit and withdrawal.
    #[serde(default)]
    pub operators: BTreeSet<Key>,
    /// Between looks at what is due, milliseconds.
    #[serde(default = "default_tick_ms")]
    pub tick_ms: u64,
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

/// What this process takes at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    pub nodes_max: u64,
    pub requests_in_flight_max: u32,
    pub event_streams_max: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { nodes_max: 100_000, requests_in_flight_max: 1_024, event_streams_max: 1_024 }
    }
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self::Sqlite(PathBuf::from("arbitrator.sqlite"))
    }
}

const fn loopback(port: u16) -> SocketAddr {
    SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, port))
}

const fn default_bind() -> SocketAddr {
    loopback(7_320)
}

const fn default_peering_bind() -> SocketAddr {
    loopback(7_321)
}

fn default_name() -> String {
    "arbitrator".to_owned()
}

const fn default_tick_ms() -> u64 {
    1_000
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
        Self {
            bind: default_bind(),
            store,
            is_restored: false,
            secret_key: SecretKey::Bytes(secret_key),
            peering_bind: default_peering_bind(),
            addresses: Vec::new(),
            name: default_name(),
            operators: BTreeSet::new(),
            tick_ms: default_tick_ms(),
            limits: Limits::default(),
        }
    }

    /// # Errors
    /// [`Error::Range`] names the field.
    pub fn validate(&self) -> Result<(), Error> {
        let name_ok = (1..=NAME_BYTES_MAX).contains(&self.name.len())
            && self.name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        let wanted = [
            ((10..=60_000).contains(&self.tick_ms), "tick_ms", "10 to 60,000"),
            (self.addresses.len() <= ADDRESSES_MAX, "addresses", "at most 16"),
            (name_ok, "name", "1 to 63 lower-case letters, digits and hyphens"),
            (self.limits.requests_in_flight_max > 0, "limits.requests_in_flight_max", "at least one"),
        ];
        wanted.into_iter().find(|(holds, ..)| !holds).map_or(Ok(()), |(_, field, wanted)| Err(Error::Range { field, wanted }))
    }
}

#[cfg(test)]
mod tests {
    use contracts::envelope::Keypair;

    use super::*;

    #[test]
    fn defaults_work_unknown_fields_do_not_and_the_secret_stays_hidden() {
        let digits = "07".repeat(32);
        let config: Config =
            toml::from_str(&format!("secret_key = {{ hex = \"{digits}\" }}\noperators = [\"{digits}\"]")).expect("config");
        config.validate().expect("valid");
        assert_eq!(config.secret_key.load().expect("key").key(), Keypair::from_secret(&[7; 32]).key());
        assert!(!toml::to_string(&config).expect("toml").replace(&format!("[\"{digits}\"]"), "").contains(&digits));
        assert!(toml::from_str::<Config>(&format!("secret_key = {{ hex = \"{digits}\" }}\nbogus = 1")).is_err());
        assert!(toml::from_str::<Config>("secret_key = { hex = \"07\" }").is_err());
        let bad = Config { tick_ms: 0, ..config };
        assert!(matches!(bad.validate(), Err(Error::Range { field: "tick_ms", .. })));
    }
}
