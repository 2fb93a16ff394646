//! The configuration that the customer seals for this service.
//!
//! ```json
//! {"devices": [{"dev_eui": "0102030405060708", "dev_addr": "26011bda", "nwk_s_key": "...", "app_s_key": "...", "codec": "cayenne-lpp"}],
//!  "joining": [{"dev_eui": "0102030405060709", "join_eui": "70b3d57ed0000001", "dev_addr": "26011bdb", "app_key": "...",
//!               "dev_nonces": "rising", "codec": "cayenne-lpp"}]}
//! ```
//! `devices` are personalised (ABP), `joining` are activated over the air (OTAA); a document has one of the two lists or both. A device may
//! also have `f_cnt_width`, `rx1_delay_s`, `rx2_data_rate`, `rx2_frequency_hz`, `supports_reset` and `desired`, one that joins
//! `rx1_delay_s`, `rx2_data_rate`, `desired` and `dev_nonces` (`random` for LoRaWAN 1.0 to 1.0.3, the default; `rising` for 1.0.4), which go to the node as they are
//! ([`tenant::Device`], [`tenant::JoiningDevice`]), and `name`, `profile`, `tags` and `variables` ([`DeviceSecrets`]). `codec` is `none`,
//! `cayenne-lpp` or the name of one of
//! ```json
//! {"codecs": {"<name>": {"javascript": "function decodeUplink(input) { ... }"}}, "chirpstack": {...}, "edgex": {...}, "downlink_delivery": "at_least_once"}
//! ```
//! For `chirpstack` and `edgex` see [`crate::sinks`]; `downlink_delivery` is for what they ask to be sent ([`Delivery`]).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde::Deserialize;
use serde_json::{Map, Value};
use tenant::{Delivery, DevAddr, DevEui, Device, JoiningDevice, Key, Registration};

use crate::{
    codec::{
        javascript::SOURCE_BYTES_MAX,
        scripts::{SCRIPTS_MAX, Script},
    },
    keys::Secret,
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
    /// One device that joins is not described as it should be.
    #[error("configuration: joining[{index}]: {reason}")]
    Joining {
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

/// What the service itself needs to know about a device; the node never sees an application session key.
#[derive(Debug, Clone)]
pub struct DeviceSecrets {
    /// The address it uses.
    pub dev_addr: DevAddr,
    /// Where its application session key comes from.
    pub secret: Secret,
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
    /// Of downlinks that a sink asks for: as long as nothing else is said they outlast a restart of the node and a change of custody.
    pub downlink_delivery: Delivery,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    #[serde(default)]
    devices: Option<Vec<Map<String, Value>>>,
    #[serde(default)]
    joining: Option<Vec<Map<String, Value>>>,
    #[serde(default)]
    codecs: BTreeMap<String, Source>,
    #[serde(default)]
    chirpstack: Option<chirpstack::Settings>,
    #[serde(default)]
    edgex: Option<edgex::Settings>,
    #[serde(default)]
    downlink_delivery: Option<Delivery>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Source {
    javascript: String,
}

#[derive(Deserialize)]
struct ServiceFields {
    codec: String,
    name: Option<String>,
    profile: Option<String>,
    #[serde(default)]
    tags: BTreeMap<String, String>,
    #[serde(default)]
    variables: Map<String, Value>,
}

const SERVICE_FIELDS: [&str; 5] = ["codec", "name", "profile", "tags", "variables"];
const APP_S_KEY: &str = "app_s_key";

/// Reads a configuration.
///
/// # Errors
/// The first thing that is wrong, with its place.
pub fn parse(json: &[u8]) -> Result<Config, Error> {
    let document: Document = serde_json::from_slice(json).map_err(|error| Error::Form(error.to_string()))?;
    if document.devices.is_none() && document.joining.is_none() {
        return Err(Error::Form("missing field `devices` (or `joining`)".to_owned()));
    }
    let scripts = scripts(document.codecs)?;
    let mut config = Config {
        chirpstack: document.chirpstack,
        edgex: document.edgex,
        downlink_delivery: document.downlink_delivery.unwrap_or(Delivery::AtLeastOnce),
        ..Config::default()
    };
    if let Some(reason) = config.chirpstack.as_ref().and_then(chirpstack::Settings::fault) {
        return Err(Error::Form(format!("chirpstack: {reason}")));
    }
    if let Some(reason) = config.edgex.as_ref().and_then(edgex::Settings::fault) {
        return Err(Error::Form(format!("edgex: {reason}")));
    }
    let mut names = BTreeSet::new();
    for (index, fields) in document.devices.into_iter().flatten().enumerate() {
        let refused = |reason| Error::Device { index, reason };
        let (device, secrets) = parse_device(fields, &scripts).map_err(refused)?;
        config.add(device.dev_eui, secrets, &mut names).map_err(refused)?;
        config.registration.devices.push(device);
    }
    for (index, fields) in document.joining.into_iter().flatten().enumerate() {
        let refused = |reason| Error::Joining { index, reason };
        let (device, secrets) = parse_joining(fields, &scripts).map_err(refused)?;
        config.add(device.dev_eui, secrets, &mut names).map_err(refused)?;
        config.registration.joining.push(device);
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

impl Config {
    /// A DevEUI that comes twice is refused with the registration.
    fn add(&mut self, device: DevEui, secrets: DeviceSecrets, names: &mut BTreeSet<String>) -> Result<(), String> {
        if !names.insert(secrets.name.clone()) && !self.devices.contains_key(&device) {
            return Err("name: another device has it".to_owned());
        }
        self.devices.insert(device, secrets);
        Ok(())
    }
}

type Fields = Map<String, Value>;
type Scripts = BTreeMap<String, Arc<Script>>;

fn read<T: serde::de::DeserializeOwned>(fields: Fields) -> Result<T, String> {
    serde_json::from_value(Value::Object(fields)).map_err(|error| error.to_string())
}

/// The node's fields and the service's are apart, so that an unknown field is refused by the stricter of the two.
fn parse_device(mut fields: Fields, scripts: &Scripts) -> Result<(Device, DeviceSecrets), String> {
    let own = take_own(&mut fields)?;
    let app_s_key = fields.remove(APP_S_KEY).ok_or_else(|| format!("missing field `{APP_S_KEY}`"))?;
    let app_s_key: Key = serde_json::from_value(app_s_key).map_err(|error| error.to_string())?;
    let device: Device = read(fields)?;
    let secrets = secrets(own, device.dev_eui, device.dev_addr, Secret::Session(app_s_key), scripts)?;
    Ok((device, secrets))
}

fn parse_joining(mut fields: Fields, scripts: &Scripts) -> Result<(JoiningDevice, DeviceSecrets), String> {
    let own = take_own(&mut fields)?;
    let device: JoiningDevice = read(fields)?;
    let app_key = device.app_key.ok_or("missing field `app_key`")?;
    let secrets = secrets(own, device.dev_eui, device.dev_addr, Secret::Root(app_key), scripts)?;
    Ok((device, secrets))
}

fn take_own(fields: &mut Fields) -> Result<ServiceFields, String> {
    read(SERVICE_FIELDS.into_iter().filter_map(|name| fields.remove_entry(name)).collect())
}

fn secrets(
    own: ServiceFields,
    dev_eui: DevEui,
    dev_addr: DevAddr,
    secret: Secret,
    scripts: &Scripts,
) -> Result<DeviceSecrets, String> {
    let codec = match own.codec.as_str() {
        NONE => Codec::None,
        CAYENNE_LPP => Codec::CayenneLpp,
        name => Codec::Script(Arc::clone(scripts.get(name).ok_or("codec: neither none, cayenne-lpp nor one of codecs")?)),
    };
    let name = own.name.unwrap_or_else(|| dev_eui.to_string());
    let profile = own.profile.unwrap_or_else(|| format!("lora-{}", codec.name()));
    if !is_name(&name) || !is_name(&profile) {
        return Err("name, profile: 1 to 128 of A-Z a-z 0-9 - _ . ~ :".to_owned());
    }
    if own.tags.len() > ITEMS_MAX || own.variables.len() > ITEMS_MAX {
        return Err(format!("tags, variables: more than {ITEMS_MAX}"));
    }
    let (tags, variables) = (own.tags, own.variables);
    Ok(DeviceSecrets { dev_addr, secret, codec, name, profile, tags, variables })
}
