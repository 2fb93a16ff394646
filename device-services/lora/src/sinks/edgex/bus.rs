//! Topics and envelopes of EdgeX's message bus (go-mod-messaging, go-mod-core-contracts `common/constants.go`).

use std::sync::Arc;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{
    API_VERSION, Envelope, Settings,
    command::{Commands, Error},
    event::{self, Event},
    registry::Described,
};
use crate::sinks::{Message, downlink::new_id};

/// Reads and writes messages of the bus; cheap to clone.
#[derive(Debug, Clone)]
pub struct Bus {
    settings: Arc<Settings>,
}

#[derive(Deserialize)]
struct Received {
    #[serde(rename = "requestID", default)]
    request_id: String,
    #[serde(rename = "correlationID", default)]
    correlation_id: String,
    #[serde(default)]
    payload: Value,
    #[serde(rename = "queryParams", default)]
    query_params: Option<Map<String, Value>>,
}

#[derive(Deserialize)]
struct SystemEvent {
    #[serde(rename = "type", default)]
    kind: String,
    #[serde(default)]
    details: Value,
}

impl Bus {
    /// With the names of a configuration.
    #[must_use]
    pub fn new(settings: Arc<Settings>) -> Self {
        Bus { settings }
    }

    fn topic(&self, rest: &str) -> String {
        format!("{}/{rest}", self.settings.topic_prefix)
    }

    /// What the service listens to.
    #[must_use]
    pub fn filters(&self) -> Vec<String> {
        let service = &self.settings.service;
        vec![
            self.topic(&format!("device/command/request/{service}/#")),
            self.topic(&format!("system-events/core-metadata/+/+/{service}/#")),
            self.topic(&format!("{service}/validate/device")),
        ]
    }

    /// An event as core-data takes it.
    #[must_use]
    pub fn event(&self, event: &Event) -> Message {
        let Event { profile_name, device_name, source_name, id, .. } = event;
        let topic = self.topic(&format!("events/device/{}/{profile_name}/{device_name}/{source_name}", self.settings.service));
        let envelope = self.envelope(&topic, id, "", 0, &event::add_request(event));
        Message::json(topic, &envelope)
    }

    fn envelope(&self, topic: &str, correlation_id: &str, request_id: &str, error_code: u8, payload: &Value) -> Value {
        let (payload, content_type) = match (payload, self.settings.envelope) {
            (Value::String(text), Envelope::V4) => (Value::String(text.clone()), "text/plain"),
            (Value::String(text), Envelope::V3) => (Value::String(STANDARD.encode(text)), "text/plain"),
            (document, Envelope::V4) => (document.clone(), "application/json"),
            (document, Envelope::V3) => (Value::String(STANDARD.encode(document.to_string())), "application/json"),
        };
        json!({"apiVersion": API_VERSION, "receivedTopic": topic, "correlationID": correlation_id, "requestID": request_id,
            "errorCode": error_code, "payload": payload, "contentType": content_type, "queryParams": {}})
    }

    /// Answers a message.
    pub async fn incoming(&self, commands: &Commands, topic: &str, payload: &[u8]) -> Vec<Message> {
        let Some(rest) = topic.strip_prefix(self.settings.topic_prefix.as_str()).and_then(|rest| rest.strip_prefix('/')) else {
            return Vec::new();
        };
        let Ok(received) = serde_json::from_slice::<Received>(payload) else { return Vec::new() };
        let parts: Vec<&str> = rest.split('/').collect();
        match parts.as_slice() {
            ["device", "command", "request", _, device, command, way @ ("get" | "set")] => {
                self.command(commands, (device, command, way), &received).await
            }
            ["system-events", "core-metadata", ..] => {
                system_event(commands, &self.settings.service, content(&received.payload));
                Vec::new()
            }
            [_, "validate", "device"] => vec![self.answer(&received, validated(&content(&received.payload)))],
            _ => Vec::new(),
        }
    }

    async fn command(
        &self,
        commands: &Commands,
        (device, command, way): (&str, &str, &str),
        received: &Received,
    ) -> Vec<Message> {
        if way == "set" {
            let settings = match content(&received.payload) {
                Value::Object(settings) => settings,
                _ => Map::new(),
            };
            return vec![self.answer(received, commands.set(device, command, &settings).await.map(|()| base_response(200)))];
        }
        let asked = |name: &str| received.query_params.as_ref().and_then(|params| params.get(name)?.as_str());
        let done = commands.get(device, command);
        let pushed = done.as_ref().ok().filter(|_| asked("ds-pushevent") == Some("true")).map(|event| self.event(event));
        let returns = asked("ds-returnevent") != Some("false");
        let answer = self.answer(received, done.map(|event| if returns { event_response(&event) } else { base_response(200) }));
        [Some(answer), pushed].into_iter().flatten().collect()
    }

    fn answer(&self, received: &Received, done: Result<Value, Error>) -> Message {
        let topic = self.topic(&format!("response/{}/{}", self.settings.service, received.request_id));
        let (error_code, payload) = match done {
            Ok(document) => (0, document),
            Err(error) => (1, Value::String(error.to_string())),
        };
        let envelope = self.envelope(&topic, &received.correlation_id, &received.request_id, error_code, &payload);
        Message::json(topic, &envelope)
    }
}

/// What an envelope carries: JSON, or base64 of JSON.
fn content(payload: &Value) -> Value {
    match payload {
        Value::String(text) => {
            STANDARD.decode(text).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or(Value::Null)
        }
        document => document.clone(),
    }
}

fn system_event(commands: &Commands, service: &str, document: Value) {
    let Ok(SystemEvent { kind, details }) = serde_json::from_value(document) else { return };
    let Ok(described) = serde_json::from_value::<Described>(details) else { return };
    match kind.as_str() {
        "device" => commands.registry().describe(&described),
        "deviceservice" if described.name == service => commands.registry().set_locked(described.admin_state == "LOCKED"),
        _ => {}
    }
}

/// Whether a device that somebody wants to add is one that this service can have: it has a DevEUI.
fn validated(document: &Value) -> Result<Value, Error> {
    let eui = document.pointer("/device/protocols/lora/devEUI").and_then(Value::as_str);
    match eui.map(str::parse::<tenant::DevEui>) {
        Some(Ok(_)) => Ok(base_response(200)),
        _ => Err(Error::Invalid("protocols.lora.devEUI: 16 hexadecimal digits".to_owned())),
    }
}

/// An answer without content.
#[must_use]
pub fn base_response(status: u16) -> Value {
    json!({"apiVersion": API_VERSION, "requestId": new_id(), "statusCode": status})
}

/// An answer with an event.
#[must_use]
pub fn event_response(event: &Event) -> Value {
    json!({"apiVersion": API_VERSION, "requestId": new_id(), "statusCode": 200, "event": event})
}
