//! The configuration that the customer seals for this service.
//!
//! ```json
//! {"devices": [{"dev_eui": "0102030405060708", "dev_addr": "26011bda", "nwk_s_key": "...", "app_s_key": "...", "codec": "cayenne-lpp"}]}
//! ```
//! Each device may also have `f_cnt_width`, `rx1_delay_s`, `rx2_data_rate`, `rx2_frequency_hz` and `supports_reset`, which go to the node as
//! they are ([`tenant::Device`]), and `name`, `profile`, `tags` and `variables` ([`DeviceSecrets`]). `codec` is `none`, `cayenne-lpp` or
//! the name of one of
//! ```json
//! {"codecs": {"<name>": {"javascript": "function decodeUplink(input) { ... }"}}, "chirpstack": {...}, "edgex": {...}}
//! ```
//! For `chirpstack` and `edgex` see [`crate::sinks`].

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde::Deserialize;
use serde_json::{Map, Value};
use tenant::{DevAddr, DevEui, Device, Key, Registration};

use crate::{
    codec::{
        javascript::SOURCE_BYTES_MAX,
        scripts::{SCRIPTS_MAX, Script},
    },
    sinks::{chirpstack, edgex},
};

/// Longest name of a device or profile.
const NAME_BYTES_MAX: usize = 128;
/// Most `tags` or `variables` of a device.
const ITEMS_MAX: usize = 32;

/// Why a configuration cannot be used. Never repeats a value of it: they may be keys.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is no JSON, or not of the outer form.
    #[error("configuration: {0}")]
    Form(String),
    /// One device is not described as it should be.
    #[error("configuration: devices[{index}]: {reason}")]
    Device {
        /// Position in the list, from 0.
        index: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// A value is out of range.
    #[error("configuration: {0}")]
    Range(#[from] tenant::Refused),
}

/// How a device packs its values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Codec {
    /// The bytes as they are, in hexadecimal digits.
    None,
    /// Cayenne Low Power Payload.
    CayenneLpp,
    /// The customer's own.
    Script(Arc<Script>),
}

impl Codec {
    /// As in the configuration.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Codec::None => NONE,
            Codec::CayenneLpp => CAYENNE_LPP,
            Codec::Script(script) => &script.name,
        }
    }
}

const NONE: &str = "none";
const CAYENNE_LPP: &str = "cayenne-lpp";

/// What the service itself needs to know about a device; the node never sees the application key.
#[derive(Debug, Clone)]
pub struct DeviceSecrets {
    /// The address it uses.
    pub dev_addr: DevAddr,
    /// Application session key.
    pub app_s_key: Key,
    /// Its payload format.
    pub codec: Codec,
    /// What people call it; its DevEUI by default. Unique.
    pub name: String,
    /// What kind of device it is; `lora-` and the codec by default.
    pub profile: String,
    /// For those who read its events.
    pub tags: BTreeMap<String, String>,
    /// For its codec.
    pub variables: Map<String, Value>,
}

/// A usable configuration.
#[derive(Debug, Default)]
pub struct Config {
    /// For the node.
    pub registration: Registration,
    /// For the service.
    pub devices: BTreeMap<DevEui, DeviceSecrets>,
    /// Events in the form of ChirpStack.
    pub chirpstack: Option<chirpstack::Settings>,
    /// The device service of EdgeX.
    pub edgex: Option<edgex::Settings>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    devices: Vec<Map<String, Value>>,
    #[serde(default)]
    codecs: BTreeMap<String, Source>,
    #[serde(default)]
    chirpstack: Option<chirpstack::Settings>,
    #[serde(default)]
    edgex: Option<edgex::Settings>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Source {
    javascript: String,
}

#[derive(Deserialize)]
struct ServiceFields {
    app_s_key: Key,
    codec: String,
    name: Option<String>,
    profile: Option<String>,
    #[serde(default)]
    tags: BTreeMap<String, String>,
    #[serde(default)]
    variables: Map<String, Value>,
}

const SERVICE_FIELDS: [&str; 6] = ["app_s_key", "codec", "name", "profile", "tags", "variables"];

/// Reads a configuration.
///
/// # Errors
/// The first thing that is wrong, with its place.
pub fn parse(json: &[u8]) -> Result<Config, Error> {
    let document: Document = serde_json::from_slice(json).map_err(|error| Error::Form(error.to_string()))?;
    let scripts = scripts(document.codecs)?;
    let mut config = Config { chirpstack: document.chirpstack, edgex: document.edgex, ..Config::default() };
    if let Some(reason) = config.chirpstack.as_ref().and_then(chirpstack::Settings::fault) {
        return Err(Error::Form(format!("chirpstack: {reason}")));
    }
    if let Some(reason) = config.edgex.as_ref().and_then(edgex::Settings::fault) {
        return Err(Error::Form(format!("edgex: {reason}")));
    }
    let mut names = BTreeSet::new();
    for (index, fields) in document.devices.into_iter().enumerate() {
        let (device, secrets) = parse_device(fields, &scripts).map_err(|reason| Error::Device { index, reason })?;
        if !names.insert(secrets.name.clone()) && !config.devices.contains_key(&device.dev_eui) {
            return Err(Error::Device { index, reason: "name: another device has it".to_owned() });
        }
        config.devices.insert(device.dev_eui, secrets);
        config.registration.devices.push(device);
    }
    config.registration.check()?;
    Ok(config)
}

fn scripts(sources: BTreeMap<String, Source>) -> Result<BTreeMap<String, Arc<Script>>, Error> {
    let refused = |name: &str, reason: &str| Err(Error::Form(format!("codecs.{name}: {reason}")));
    if sources.len() > SCRIPTS_MAX {
        return Err(Error::Form(format!("codecs: more than {SCRIPTS_MAX}")));
    }
    let mut scripts = BTreeMap::new();
    for (index, (name, Source { javascript })) in sources.into_iter().enumerate() {
        if !is_name(&name) || name == NONE || name == CAYENNE_LPP {
            return refused(&name, "not a name for a codec");
        }
        if javascript.len() > SOURCE_BYTES_MAX {
            return refused(&name, "too long");
        }
        scripts.insert(name.clone(), Arc::new(Script { name, index, source: javascript }));
    }
    Ok(scripts)
}

/// Names stand in topics and paths.
pub(crate) fn is_name(text: &str) -> bool {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~' | b':');
    (1..=NAME_BYTES_MAX).contains(&text.len()) && text.bytes().all(good)
}

/// The node's fields and the service's are apart, so that an unknown field is refused by the stricter of the two.
fn parse_device(
    mut fields: Map<String, Value>,
    scripts: &BTreeMap<String, Arc<Script>>,
) -> Result<(Device, DeviceSecrets), String> {
    let own: Map<String, Value> = SERVICE_FIELDS.into_iter().filter_map(|name| fields.remove_entry(name)).collect();
    let own: ServiceFields = serde_json::from_value(Value::Object(own)).map_err(|error| error.to_string())?;
    let device: Device = serde_json::from_value(Value::Object(fields)).map_err(|error| error.to_string())?;
    let codec = match own.codec.as_str() {
        NONE => Codec::None,
        CAYENNE_LPP => Codec::CayenneLpp,
        name => Codec::Script(Arc::clone(scripts.get(name).ok_or("codec: neither none, cayenne-lpp nor one of codecs")?)),
    };
    let name = own.name.unwrap_or_else(|| device.dev_eui.to_string());
    let profile = own.profile.unwrap_or_else(|| format!("lora-{}", codec.name()));
    if !is_name(&name) || !is_name(&profile) {
        return Err("name, profile: 1 to 128 of A-Z a-z 0-9 - _ . ~ :".to_owned());
    }
    if own.tags.len() > ITEMS_MAX || own.variables.len() > ITEMS_MAX {
        return Err(format!("tags, variables: more than {ITEMS_MAX}"));
    }
    let (tags, variables) = (own.tags, own.variables);
    Ok((
        device.clone(),
        DeviceSecrets { dev_addr: device.dev_addr, app_s_key: own.app_s_key, codec, name, profile, tags, variables },
    ))
}
