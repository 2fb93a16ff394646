//! A node that only bridges: gateways on one side, a device service beside it on the other; no containers, no market, no other nodes.
//!
//! It is the node itself with these parts left out, so whatever holds for a node holds for it: an uplink counts once it is on disk, downlink
//! counters and joins are written ahead.

use std::path::PathBuf;

use contracts::node_record::Role;
use serde::{Deserialize, Serialize};

use crate::config::{self, Api, Error, Lora, Readings, Service};

/// Name of the service; with the node's key it names the group of devices.
const SERVICE: &str = "lora";
/// Name of the owner's key, below the state directory: nobody else ever sees it.
const OWNER_KEY: &str = "owner.key";

/// Configuration of `antirio bridge`: one TOML file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Everything that it keeps. The service finds its socket at `service/node.sock` below it.
    pub state_directory: PathBuf,
    /// The configuration of the LoRa device service (JSON): devices with their keys, codecs, brokers. Read at start.
    pub configuration: PathBuf,
    pub lora: Lora,
    pub api: Api,
    #[serde(default)]
    pub readings: Readings,
}

impl Config {
    /// Reads the text of a configuration file.
    ///
    /// # Errors
    /// Unknown or missing fields, wrong types, or values that cannot work together.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let config: Self = toml::from_str(text)?;
        config.to_node().check()?;
        Ok(config)
    }

    /// The same as a node's.
    #[must_use]
    pub fn to_node(&self) -> config::Config {
        config::Config {
            name: "bridge".to_owned(),
            role: Role::Edge,
            owner_key_file: Some(self.state_directory.join(OWNER_KEY)),
            is_restored: false,
            state_directory: self.state_directory.clone(),
            position: None,
            peering: None,
            api: self.api.clone(),
            marketplace: None,
            arbitrator: None,
            cloud: None,
            lora: Some(self.lora.clone()),
            engine: config::Engine::default(),
            policy_file: None,
            service: Some(Service::beside(SERVICE, self.configuration.clone())),
            tenants: config::Outside::default(),
            readings: self.readings.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BRIDGE: &str = r#"
        state_directory = "/var/lib/antirio"
        configuration = "/etc/antirio/devices.json"
        [lora]
        bind = "0.0.0.0:1700"
        [api]
        bind = "127.0.0.1:7101"
    "#;

    #[test]
    fn a_short_file_is_enough() {
        let node = Config::parse(BRIDGE).expect("valid").to_node();
        assert!(node.peering.is_none() && node.cloud.is_none() && node.policy_file.is_none());
        assert!(node.service.is_some_and(|service| service.image.is_none()));
        assert_eq!(node.readings.keep_hours, 24);
    }

    #[test]
    fn mistakes_are_named() {
        let refused = |text: &str| Config::parse(text).expect_err("a mistake").to_string();
        assert!(refused(&BRIDGE.replace("[lora]", "[loro]")).contains("loro"));
        assert!(refused(&BRIDGE.replace("configuration =", "devices =")).contains("devices"));
        assert!(refused(&BRIDGE.replace("127.0.0.1:7101", "0.0.0.0:7101")).starts_with("api.bind"));
        assert!(refused(&format!("{BRIDGE}[readings]\nkeep_hours = 0")).starts_with("readings.keep_hours"));
        assert!(refused(&format!("{BRIDGE}[[lora.taps]]\nserver = \"nowhere\"")).starts_with("lora.taps"));
    }
}
