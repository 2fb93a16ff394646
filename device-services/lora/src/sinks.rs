//! Readings in the forms that others already understand: [`chirpstack`], [`edgex`].
//!
//! Each sink has a task, a broker and a cursor of its own ([`feed`]). It starts after readings flow and is fed from the node's log, so it
//! can neither hold up a reading nor lose one that the node still has.

pub mod chirpstack;
pub mod downlink;
pub mod edgex;
pub mod feed;

use std::{path::PathBuf, sync::Arc};

use bytes::Bytes;
use serde::Deserialize;
use tenant::{Client, Uplink};
use tokio::task::JoinSet;

use crate::{
    codec::scripts::Scripts,
    config::{Config, DeviceSecrets},
    encryption,
    mqtt::Login,
    outside::Outside,
    reading::Opened,
};
use downlink::Downlinks;
use feed::Feed;

/// A broker in the configuration: `{"address": "host:1883", "username": ..., "password": ..., "client_id": ...}`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Broker {
    /// `host:port`.
    pub address: String,
    #[serde(default)]
    username: Option<String>,
    #[serde(default)]
    password: Option<String>,
    /// Another one for each process by default: customer and provider must not push one another out.
    #[serde(default)]
    client_id: Option<String>,
}

impl Broker {
    fn fault(&self) -> Option<&'static str> {
        (!is_address(&self.address)).then_some("broker.address: not host:port")
    }

    fn login(&self, sink: &str) -> Login {
        let client_id = self.client_id.clone().unwrap_or_else(|| format!("antirio-{sink}-{:016x}", downlink::random()));
        let user = self.username.clone().map(|name| (name, self.password.clone().unwrap_or_default()));
        Login { client_id, user }
    }
}

/// Whether it is `host:port`.
pub(crate) fn is_address(text: &str) -> bool {
    let port = text.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port.parse::<u16>());
    text.len() <= tenant::ADDRESS_BYTES_MAX && matches!(port, Some(Ok(1..)))
}

/// An uplink of a known device with what it says.
#[derive(Debug, Clone, Copy)]
pub struct Heard<'a> {
    /// As the node gave it.
    pub uplink: &'a Uplink,
    /// From the configuration.
    pub device: &'a DeviceSecrets,
    /// Decrypted and decoded.
    pub opened: &'a Opened,
}

/// Something to publish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Where.
    pub topic: String,
    /// What, JSON.
    pub payload: Vec<u8>,
}

impl Message {
    fn json(topic: String, payload: &serde_json::Value) -> Self {
        Message { topic, payload: payload.to_string().into_bytes() }
    }
}

/// The sinks of the configuration; dropped, they stop.
#[derive(Debug)]
pub struct Sinks {
    socket: PathBuf,
    outside: Outside,
    running: Option<(Bytes, JoinSet<()>)>,
}

impl Sinks {
    /// None runs yet.
    #[must_use]
    pub fn new(socket: PathBuf, outside: Outside) -> Self {
        Sinks { socket, outside, running: None }
    }

    /// Starts the sinks of a configuration; those of the same one go on, those of another one stop.
    pub fn start(&mut self, json: Bytes, config: &Arc<Config>, scripts: &Option<Scripts>) {
        if self.running.as_ref().is_some_and(|(known, _)| *known == json) {
            return;
        }
        let mut tasks = JoinSet::new();
        // A connection of their own: readings do not wait behind them.
        let client = Arc::new(Client::new(&self.socket));
        let own = Arc::new(Client::new(&self.socket));
        tasks.spawn(encryption::answer_node(own, Arc::clone(config)));
        let downlinks = Downlinks::new(Arc::clone(&client), Arc::clone(config), scripts.clone());
        let feed = |sink: &'static str, broker: &Broker| Feed {
            cursor_key: format!("sink.{sink}.cursor"),
            address: broker.address.clone(),
            login: broker.login(sink),
            client: Arc::clone(&client),
            outside: self.outside.clone(),
            config: Arc::clone(config),
            scripts: scripts.clone(),
        };
        if let Some(settings) = &config.chirpstack {
            let own = Arc::new(Client::new(&self.socket));
            let (sink, beside) = chirpstack::ChirpStack::new(settings.clone(), downlinks.clone(), own, Arc::clone(config));
            tasks.spawn(feed::run(sink, feed(chirpstack::NAME, &settings.broker)));
            tasks.spawn(beside);
        }
        if let Some(settings) = &config.edgex {
            let (sink, services) = edgex::EdgeX::new(settings.clone(), config, downlinks, self.outside.clone());
            tasks.spawn(feed::run(sink, feed(edgex::NAME, &settings.broker)));
            tasks.spawn(services);
        }
        self.running = Some((json, tasks));
    }
}
