//! The configuration that the customer seals for this service.
//!
//! ```json
//! {"devices": [{"dev_eui": "0102030405060708", "dev_addr": "26011bda", "nwk_s_key": "...", "app_s_key": "...", "codec": "cayenne-lpp"}]}
//! ```
//! Each device may also have `f_cnt_width`, `rx1_delay_s`, `rx2_data_rate`, `rx2_frequency_hz` and `supports_reset`, which go to the node as
//! they are ([`tenant::Device`]).

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value};
use tenant::{DevAddr, DevEui, Device, Key, Registration};

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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum Codec {
    /// Cayenne Low Power Payload.
    #[serde(rename = "cayenne-lpp")]
    CayenneLpp,
}

/// What the service itself needs to know about a device; the node never sees the application key.
#[derive(Debug, Clone)]
pub struct DeviceSecrets {
    /// The address it uses.
    pub dev_addr: DevAddr,
    /// Application session key.
    pub app_s_key: Key,
    /// Its payload format.
    pub codec: Codec,
}

/// A usable configuration.
#[derive(Debug)]
pub struct Config {
    /// For the node.
    pub registration: Registration,
    /// For the service.
    pub devices: BTreeMap<DevEui, DeviceSecrets>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    devices: Vec<Map<String, Value>>,
}

#[derive(Deserialize)]
struct ServiceFields {
    app_s_key: Key,
    codec: Codec,
}

/// Reads a configuration.
///
/// # Errors
/// The first thing that is wrong, with its place.
pub fn parse(json: &[u8]) -> Result<Config, Error> {
    let document: Document = serde_json::from_slice(json).map_err(|error| Error::Form(error.to_string()))?;
    let mut config = Config { registration: Registration::default(), devices: BTreeMap::new() };
    for (index, fields) in document.devices.into_iter().enumerate() {
        let (device, secrets) = parse_device(fields).map_err(|reason| Error::Device { index, reason })?;
        config.devices.insert(device.dev_eui, secrets);
        config.registration.devices.push(device);
    }
    config.registration.check()?;
    Ok(config)
}

/// The node's fields and the service's are apart, so that an unknown field is refused by the stricter of the two.
fn parse_device(mut fields: Map<String, Value>) -> Result<(Device, DeviceSecrets), String> {
    let own: Map<String, Value> = ["app_s_key", "codec"].into_iter().filter_map(|name| fields.remove_entry(name)).collect();
    let ServiceFields { app_s_key, codec } = serde_json::from_value(Value::Object(own)).map_err(|error| error.to_string())?;
    let device: Device = serde_json::from_value(Value::Object(fields)).map_err(|error| error.to_string())?;
    let secrets = DeviceSecrets { dev_addr: device.dev_addr, app_s_key, codec };
    Ok((device, secrets))
}
