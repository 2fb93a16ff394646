//! Configuration of a node: one TOML file, a pure function from text to [`Config`]. Defaults work for a LAN.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;

use contracts::geo::Position;
use contracts::ids::NodeId;
use contracts::node_record::Role;
use lora_bridge::GatewayEui;
use lora_bridge::gwmp::taps::TAPS_MAX;
use serde::{Deserialize, Serialize};

/// What a node is and does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Lower-case letters, digits and hyphens.
    pub name: String,
    pub role: Role,
    /// Everything that the node keeps.
    pub state_directory: PathBuf,
    /// That directory was lost or put back from a copy before this start; said on the command line.
    #[serde(skip)]
    pub is_restored: bool,
    /// The owner's secret key file, if it lies on this machine; it signs the node record at start. Without it the record file in the state directory is used.
    #[serde(default)]
    pub owner_key_file: Option<PathBuf>,
    #[serde(default)]
    pub position: Option<Position>,
    /// Absent on a node that has to do with no other.
    #[serde(default)]
    pub peering: Option<Peering>,
    pub api: Api,
    #[serde(default)]
    pub marketplace: Option<Url>,
    #[serde(default)]
    pub arbitrator: Option<Arbitrator>,
    /// The cloud that receives this edge's readings.
    #[serde(default)]
    pub cloud: Option<NodeId>,
    #[serde(default)]
    pub lora: Option<Lora>,
    #[serde(default)]
    pub engine: Engine,
    /// The owner's policy ([`crate::dmu::policy`]); without one the node neither insures nor is insured.
    #[serde(default)]
    pub policy_file: Option<PathBuf>,
    /// The services that this edge runs for itself and may insure.
    #[serde(default)]
    pub service: Option<Service>,
    /// What services of others, that this node insures, may do here.
    #[serde(default)]
    pub tenants: Outside,
    #[serde(default)]
    pub readings: Readings,
}

/// How long readings stay in the node's own log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Readings {
    /// After they were settled: the cloud has them, or, on a node without a cloud, the service made them. Whoever follows the log (the service
    /// on behalf of a broker that is away) must not lag by more. 1 to 8,784; default 24.
    pub keep_hours: u16,
    /// On a node without a cloud: uplinks that no service takes are given up after so long, but not before
    /// `keep_hours`. 1 to 8,784; default 720.
    #[serde(default = "unclaimed_hours")]
    pub unclaimed_hours: u16,
    /// The same for their number: beyond it the oldest go, but none that was heard within `keep_hours`. At least 1; default 1,000,000 (a
    /// thousand bytes each).
    #[serde(default = "unclaimed_max")]
    pub unclaimed_max: u64,
}

const fn unclaimed_hours() -> u16 {
    720
}

const fn unclaimed_max() -> u64 {
    1_000_000
}

impl Default for Readings {
    fn default() -> Self {
        Self { keep_hours: 24, unclaimed_hours: unclaimed_hours(), unclaimed_max: unclaimed_max() }
    }
}

/// Longest time that readings may be kept: a leap year.
const KEEP_HOURS_MAX: u16 = 8_784;

/// How a service, which has no network, reaches the outside through its node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Outside {
    /// Addresses it may connect to, `host:port`; `*` allows every address.
    #[serde(default)]
    pub egress: BTreeSet<String>,
    /// TCP address at which this node takes connections for it.
    #[serde(default)]
    pub listen: Option<SocketAddr>,
}

impl Outside {
    fn is_valid(&self) -> bool {
        let is_address = |text: &String| {
            let port = text.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port.parse::<u16>());
            text == "*"
                || (matches!(port, Some(Ok(1..)))
                    && text.len() <= tenant::ADDRESS_BYTES_MAX
                    && text.to_ascii_lowercase() == *text)
        };
        self.egress.len() <= EGRESS_MAX && self.egress.iter().all(is_address)
    }
}

/// Addresses that a service may be allowed to connect to.
const EGRESS_MAX: usize = 64;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peering {
    /// UDP address of the peering endpoint.
    pub bind: SocketAddr,
    /// Addresses under which others reach it; by default the bound one.
    #[serde(default)]
    pub announce: Vec<SocketAddr>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Api {
    /// TCP address of the operator API; loopback, because it knows no passwords.
    pub bind: SocketAddr,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Url {
    pub url: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Arbitrator {
    pub node: NodeId,
    pub url: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lora {
    /// UDP address for packet forwarders (GWMP); 1700 is customary.
    pub bind: SocketAddr,
    /// Servers that get the uplinks of this node's gateways too, as a packet multiplexer does.
    #[serde(default)]
    pub taps: Vec<Tap>,
    /// Whether the data rates of the owner's devices are managed (ADR) while nobody insures them. A device that was told to be faster and
    /// quieter may be out of an insurer's reach. Default false.
    #[serde(default)]
    pub adr: bool,
    /// Highest transmit power of the gateways in dBm, effective radiated; the law's limit of each sub-band is kept too. Default 27.
    #[serde(default = "default_power_dbm_max")]
    pub power_dbm_max: i8,
}

const fn default_power_dbm_max() -> i8 {
    27
}

/// A server that gets the uplinks of some gateways too. It never gets a downlink through.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tap {
    /// Its port for packet forwarders, as `host:port`.
    pub server: String,
    /// EUIs of the gateways; all if absent.
    #[serde(default)]
    pub gateways: Vec<GatewayEui>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Engine {
    #[serde(default)]
    pub kind: EngineKind,
    /// The Docker engine's socket.
    #[serde(default)]
    pub docker_socket: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EngineKind {
    Embedded,
    Docker,
    /// Whatever the machine can do, embedded first.
    #[default]
    Auto,
}

/// A service of the owner's own: an image and its configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Service {
    /// Names the group of devices; stays when the file is edited.
    pub name: String,
    /// Image tar (OCI layout or `docker save`). Without one the node runs no container: the service is a process of the operator's beside it,
    /// at the socket `service/node.sock` below the state directory.
    #[serde(default)]
    pub image: Option<PathBuf>,
    /// JSON: `{"devices": [{dev_eui, dev_addr, nwk_s_key, app_s_key, codec}]}`.
    pub configuration: PathBuf,
    #[serde(default = "default_memory_bytes")]
    pub memory_bytes_max: u64,
    #[serde(default = "default_cpu_millis")]
    pub cpu_millis_max: u64,
    /// Broker, EdgeX: what it reaches through this node.
    #[serde(default)]
    pub outside: Outside,
}

impl Service {
    /// A service beside the node.
    pub(crate) fn beside(name: &str, configuration: PathBuf) -> Self {
        Self {
            name: name.to_owned(),
            image: None,
            configuration,
            memory_bytes_max: default_memory_bytes(),
            cpu_millis_max: default_cpu_millis(),
            outside: Outside::default(),
        }
    }
}

const fn default_memory_bytes() -> u64 {
    64 << 20
}

const fn default_cpu_millis() -> u64 {
    1_000
}

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Toml(#[from] toml::de::Error),
    #[error("{field}: {reason}")]
    Field { field: &'static str, reason: &'static str },
}

impl Config {
    /// Reads the text of a configuration file.
    ///
    /// # Errors
    /// Unknown or missing fields, wrong types, or values that cannot work together.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let config: Self = toml::from_str(text)?;
        config.check()?;
        Ok(config)
    }

    pub(crate) fn check(&self) -> Result<(), Error> {
        let unless = |holds: bool, field, reason| if holds { Ok(()) } else { Err(Error::Field { field, reason }) };
        unless(matches!(self.role, Role::Edge | Role::Cloud), "role", "a node is an edge or a cloud")?;
        unless(self.api.bind.ip().is_loopback(), "api.bind", "the operator API knows no passwords: bind it to loopback")?;
        unless(self.position.is_none_or(Position::is_valid), "position", "not a place on the earth")?;
        let is_server =
            |tap: &Tap| tap.server.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
        let taps = self.lora.iter().flat_map(|lora| &lora.taps);
        unless(taps.clone().count() <= TAPS_MAX, "lora.taps", "more than 16")?;
        unless(taps.clone().all(is_server), "lora.taps.server", "not `host:port`")?;
        let egress = "at most 64 of host:port in lower case, or *";
        unless(self.tenants.is_valid(), "tenants.egress", egress)?;
        unless(self.service.as_ref().is_none_or(|service| service.outside.is_valid()), "service.outside.egress", egress)?;
        let keep_hours = self.readings.keep_hours;
        unless((1..=KEEP_HOURS_MAX).contains(&keep_hours), "readings.keep_hours", "not in 1..=8784")?;
        let unclaimed_hours = self.readings.unclaimed_hours;
        unless((1..=KEEP_HOURS_MAX).contains(&unclaimed_hours), "readings.unclaimed_hours", "not in 1..=8784")?;
        unless(self.readings.unclaimed_max > 0, "readings.unclaimed_max", "not above 0")?;
        let is_alone = self.role == Role::Edge
            && self.cloud.is_none()
            && self.policy_file.is_none()
            && self.marketplace.is_none()
            && self.arbitrator.is_none();
        unless(self.peering.is_some() || is_alone, "peering", "who deals with others needs a [peering] section")?;
        let is_container = self.service.as_ref().is_none_or(|service| service.image.is_some());
        unless(is_container || self.policy_file.is_none(), "service.image", "insurance is for containers")?;
        unless(self.service.is_none() || self.lora.is_some(), "lora", "a service for LoRa devices needs a [lora] section")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLOUD: &str = r#"
        name = "cloud"
        role = "cloud"
        state_directory = "/var/lib/antirio"
        [peering]
        bind = "127.0.0.1:7100"
        [api]
        bind = "127.0.0.1:7101"
    "#;

    #[test]
    fn a_short_file_is_enough() {
        let config = Config::parse(CLOUD).expect("valid");
        assert_eq!((config.role, config.engine.kind), (Role::Cloud, EngineKind::Auto));
    }

    #[test]
    fn mistakes_are_named() {
        let unknown = Config::parse(&CLOUD.replace("role =", "rolle =")).expect_err("unknown field");
        assert!(unknown.to_string().contains("rolle"), "{unknown}");
        let open = Config::parse(&CLOUD.replace("127.0.0.1:7101", "0.0.0.0:7101")).expect_err("API for everybody");
        assert!(open.to_string().starts_with("api.bind"), "{open}");
    }
}
