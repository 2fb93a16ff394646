//! Registration with core-metadata: the service, its profiles, its devices. Repeating it changes nothing: what exists is brought up to date.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use hyper::Method;
use serde_json::{Value, json};
use tenant::Backoff;

use super::{
    API_VERSION, Resource, Settings, ValueType, command, event, http,
    registry::{Described, Known, Registry},
};
use crate::{outside::Outside, reading::RAW, service::describe, sinks::downlink::new_id};

/// Devices in one request.
const DEVICES_MAX: usize = 50;
/// Between two attempts: doubles from the first to the longest.
const FIRST_WAIT: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// Why it is not registered yet.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("core-metadata cannot be asked")]
    Http(#[from] http::Error),
    #[error("core-metadata answers {status} to {method} {path}: {message}")]
    Refused { method: Method, path: &'static str, status: u16, message: String },
}

/// Registers, however long it takes; nothing to do without core-metadata in the configuration.
pub async fn register(settings: Arc<Settings>, registry: Registry, outside: Outside) {
    let Some(address) = settings.core_metadata.clone() else { return };
    let (mut backoff, mut failures) = (Backoff::between(FIRST_WAIT, LONGEST_WAIT), 0_u64);
    let metadata = Metadata { address, outside };
    while let Err(error) = metadata.register(&settings, &registry).await {
        failures += 1;
        if failures.is_power_of_two() {
            eprintln!("lora-device-service: not registered after {failures} attempts: {}", describe(&error));
        }
        tokio::time::sleep(backoff.next_wait()).await;
    }
}

struct Metadata {
    address: String,
    outside: Outside,
}

impl Metadata {
    async fn register(&self, settings: &Settings, registry: &Registry) -> Result<(), Error> {
        self.put("/api/v3/deviceservice", Method::PATCH, vec![("service", service(settings))]).await?;
        let devices = registry.all();
        let codecs: BTreeSet<_> = devices.iter().map(|(_, known)| known.profile.as_str()).collect();
        for name in codecs {
            self.put("/api/v3/deviceprofile", Method::PUT, vec![("profile", profile(settings, name))]).await?;
        }
        for some in devices.chunks(DEVICES_MAX) {
            let described = some.iter().map(|(name, known)| ("device", device(settings, name, known))).collect();
            self.put("/api/v3/device", Method::PATCH, described).await?;
        }
        self.standing(settings, registry).await
    }

    /// Adds, and where something exists already brings it up to date. Requests and answers are lists in the same order.
    async fn put(&self, path: &'static str, update: Method, things: Vec<(&'static str, Value)>) -> Result<(), Error> {
        let request =
            |(kind, thing): &(&'static str, Value)| json!({"apiVersion": API_VERSION, "requestId": new_id(), *kind: thing});
        let added = self.ask(Method::POST, path, &things.iter().map(request).collect()).await?;
        let mut known = Vec::new();
        for (thing, answer) in things.into_iter().zip(added) {
            match answer["statusCode"].as_u64() {
                Some(200 | 201) => {}
                Some(409) => known.push(thing),
                status => return Err(refused(Method::POST, path, status, &answer)),
            }
        }
        if known.is_empty() {
            return Ok(());
        }
        for (kind, thing) in &mut known {
            keep_states(kind, thing);
        }
        for answer in self.ask(update.clone(), path, &known.iter().map(request).collect()).await? {
            match answer["statusCode"].as_u64() {
                // Profiles may be closed to changes by EdgeX's configuration; then its own stand.
                Some(200 | 423) => {}
                status => return Err(refused(update, path, status, &answer)),
            }
        }
        Ok(())
    }

    async fn ask(&self, method: Method, path: &'static str, requests: &Value) -> Result<Vec<Value>, Error> {
        let (status, document) = http::ask(&self.outside, &self.address, method.clone(), path, Some(requests)).await?;
        match document {
            // One status for each, whatever the whole is called.
            Value::Array(answers) if (200..300).contains(&status) => Ok(answers),
            // A single profile is answered alone.
            Value::Object(_) => Ok(vec![document]),
            _ => Err(refused(method, path, Some(status.into()), &document)),
        }
    }

    /// Which devices are locked or down.
    async fn standing(&self, settings: &Settings, registry: &Registry) -> Result<(), Error> {
        let path = format!("/api/v3/device/service/name/{}?offset=0&limit=-1", settings.service);
        let (status, document) = http::ask(&self.outside, &self.address, Method::GET, &path, None).await?;
        if status != 200 {
            return Err(refused(Method::GET, "/api/v3/device/service/name", Some(status.into()), &document));
        }
        for described in document["devices"].as_array().into_iter().flatten() {
            if let Ok(described) = serde_json::from_value::<Described>(described.clone()) {
                registry.describe(&described);
            }
        }
        Ok(())
    }
}

fn refused(method: Method, path: &'static str, status: Option<u64>, answer: &Value) -> Error {
    let status = status.and_then(|status| u16::try_from(status).ok()).unwrap_or(0);
    let message = answer["message"].as_str().unwrap_or("no reason given").chars().take(200).collect();
    Error::Refused { method, path, status, message }
}

/// What an administrator set is not ours to change.
fn keep_states(kind: &str, thing: &mut Value) {
    if let (true, Some(fields)) = (kind != "profile", thing.as_object_mut()) {
        fields.remove("adminState");
        fields.remove("operatingState");
    }
}

fn service(settings: &Settings) -> Value {
    json!({"name": settings.service, "description": "LoRaWAN devices behind Antirio", "labels": ["lora", "antirio"],
        "adminState": "UNLOCKED", "baseAddress": settings.base_address.as_deref().unwrap_or("http://localhost:59994")})
}

fn device(settings: &Settings, name: &str, known: &Known) -> Value {
    json!({"name": name, "description": "", "adminState": "UNLOCKED", "operatingState": "UP", "serviceName": settings.service,
        "profileName": known.profile, "labels": [known.codec], "autoEvents": [], "tags": known.tags,
        "protocols": {"lora": {"devEUI": known.eui.to_string()}}})
}

fn profile(settings: &Settings, name: &str) -> Value {
    let own = settings.profiles.get(name);
    let resources = || own.into_iter().flat_map(|profile| &profile.resources);
    let mut listed: Vec<Value> = resources().map(|(name, resource)| described_resource(name, resource)).collect();
    for (built_in, read_write) in [(RAW, "R"), (event::ERROR, "R"), (command::DOWNLINK, "W")] {
        if resources().all(|(name, _)| name != built_in) {
            listed.push(json!({"name": built_in, "isHidden": false, "description": "",
                "properties": {"valueType": "String", "readWrite": read_write}}));
        }
    }
    let readable: Vec<Value> =
        resources().filter(|(_, resource)| resource.readable).map(|(name, _)| json!({"deviceResource": name})).collect();
    let mut commands = Vec::new();
    if !readable.is_empty() {
        commands.push(json!({"name": event::SOURCE, "isHidden": false, "readWrite": "R", "resourceOperations": readable}));
    }
    json!({"name": name, "description": "", "manufacturer": "", "model": "", "labels": ["lora"],
        "deviceResources": listed, "deviceCommands": commands})
}

fn described_resource(name: &str, resource: &Resource) -> Value {
    let read_write = match (resource.readable, resource.writable) {
        (true, true) => "RW",
        (false, true) => "W",
        (true | false, false) => "R",
    };
    let mut properties = json!({"valueType": type_name(resource.value_type), "readWrite": read_write});
    if let (Some(units), Some(fields)) = (&resource.units, properties.as_object_mut()) {
        fields.insert("units".to_owned(), units.as_str().into());
    }
    json!({"name": name, "isHidden": false, "description": "", "properties": properties})
}

fn type_name(value_type: ValueType) -> String {
    // Its name in the configuration is EdgeX's.
    format!("{value_type:?}")
}
