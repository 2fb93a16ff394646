//! A device service of EdgeX (API version v3, which both EdgeX 3 and 4 speak): events and commands over MQTT, REST, registration with
//! core-metadata.
//!
//! # Layout
//! `event` readings in EdgeX's form (pure) | `registry` what is known of the devices | `command` reading and setting, by whichever way |
//! `rest` the routes | `bus` topics and envelopes | `metadata` registration | `http` its requests

pub mod bus;
pub mod command;
pub mod event;
pub mod http;
pub mod metadata;
pub mod registry;
pub mod rest;

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use serde::Deserialize;
use tokio::sync::mpsc;

use super::{Broker, Heard, Message, downlink::Downlinks, feed::Sink, is_address};
use crate::{
    config::{Config, is_name},
    outside::Outside,
};
use bus::Bus;
use command::Commands;
use registry::Registry;

/// Of this sink, in names of cursors and clients.
pub const NAME: &str = "edgex";
/// The version that every document carries.
pub const API_VERSION: &str = "v3";
/// Messages from REST that wait for the bus.
const OTHERS_MAX: usize = 64;

/// The part `edgex` of the configuration.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The message bus.
    pub broker: Broker,
    /// Under which EdgeX knows this service.
    #[serde(default = "default_service")]
    pub service: String,
    /// First part of all topics.
    #[serde(default = "default_prefix")]
    pub topic_prefix: String,
    /// How messages are wrapped.
    #[serde(default)]
    pub envelope: Envelope,
    /// `host:port` of core-metadata; without it nothing is registered.
    #[serde(default)]
    pub core_metadata: Option<String>,
    /// `http://host:port` under which others reach the REST routes; registered with core-metadata.
    #[serde(default)]
    pub base_address: Option<String>,
    /// Where the REST routes are served if the service uses the machine's own network; behind a node the node's operator says where.
    #[serde(default)]
    pub listen: Option<SocketAddr>,
    /// What devices of a profile have, by name of the profile.
    #[serde(default)]
    pub profiles: BTreeMap<String, Profile>,
}

/// How messages on the bus carry their content.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Envelope {
    /// EdgeX 3: base64.
    V3,
    /// EdgeX 4: JSON.
    #[default]
    V4,
}

/// Resources of a profile; what is decoded and not named here is published with the type that its value has.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// By name.
    #[serde(default)]
    pub resources: BTreeMap<String, Resource>,
}

/// A value of a device.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resource {
    /// As EdgeX names it.
    #[serde(rename = "type")]
    pub value_type: ValueType,
    /// Its unit.
    #[serde(default)]
    pub units: Option<String>,
    /// Whether it can be set: then the device's codec must encode downlinks.
    #[serde(default)]
    pub writable: bool,
    /// Whether it can be read.
    #[serde(default = "yes")]
    pub readable: bool,
}

fn yes() -> bool {
    true
}

/// Value types of EdgeX that a reading of this service can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum ValueType {
    Bool,
    String,
    Uint8,
    Uint16,
    Uint32,
    Uint64,
    Int8,
    Int16,
    Int32,
    Int64,
    Float32,
    Float64,
    Object,
}

fn default_service() -> String {
    "device-lora-antirio".to_owned()
}

fn default_prefix() -> String {
    NAME.to_owned()
}

impl Settings {
    pub(crate) fn fault(&self) -> Option<&'static str> {
        let address_is_good = self.core_metadata.as_deref().is_none_or(is_address);
        let resources_are_good = self.profiles.values().all(|profile| profile.resources.keys().all(|name| is_name(name)));
        if !is_name(&self.service) || !self.topic_prefix.split('/').all(is_name) {
            return Some("service, topic_prefix: not parts of a topic");
        }
        if !address_is_good {
            return Some("core_metadata: not host:port");
        }
        if !self.profiles.keys().all(|name| is_name(name)) || !resources_are_good {
            return Some("profiles: a name cannot stand in a path");
        }
        self.broker.fault()
    }
}

/// The sink.
#[derive(Debug)]
pub struct EdgeX {
    bus: Bus,
    commands: Commands,
    others: Option<mpsc::Receiver<Message>>,
}

impl EdgeX {
    /// The sink, and what has to run beside it: REST and registration.
    pub fn new(
        settings: Settings,
        config: &Arc<Config>,
        downlinks: Downlinks,
        outside: Outside,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let settings = Arc::new(settings);
        let registry = Registry::new(Arc::clone(&settings), config);
        let commands = Commands::new(registry.clone(), downlinks);
        let bus = Bus::new(Arc::clone(&settings));
        let (sender, others) = mpsc::channel(OTHERS_MAX);
        let incoming = outside.incoming(settings.listen);
        let router = rest::router(rest::Context { commands: commands.clone(), bus: bus.clone(), outbox: sender });
        let services = async move {
            let registration = metadata::register(settings, registry, outside);
            tokio::join!(rest::serve(incoming, router), registration);
        };
        (EdgeX { bus, commands, others: Some(others) }, services)
    }
}

impl Sink for EdgeX {
    fn filters(&self) -> Vec<String> {
        self.bus.filters()
    }

    fn messages(&mut self, heard: &Heard<'_>) -> Vec<Message> {
        let event = event::of_uplink(self.commands.registry().settings(), heard);
        self.commands.registry().heard(&heard.device.name, &event);
        vec![self.bus.event(&event)]
    }

    async fn incoming(&mut self, topic: &str, payload: &[u8]) -> Vec<Message> {
        self.bus.incoming(&self.commands, topic, payload).await
    }

    fn others(&mut self) -> Option<mpsc::Receiver<Message>> {
        self.others.take()
    }
}
