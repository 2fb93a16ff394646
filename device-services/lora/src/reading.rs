//! An uplink becomes a reading: always exactly one, whatever the uplink is.

use std::{collections::BTreeMap, sync::Arc};

use serde_json::Value;
use tenant::{DevEui, Reading, Uplink};

use crate::{
    codec::{
        Decoded, cayenne_lpp,
        javascript::Payload,
        scripts::{Script, Scripts},
    },
    config::{Codec, DeviceSecrets},
    decrypt::{Direction, apply_key_stream},
};

/// Name under which the payload of an uplink that could not be decoded wholly is kept, in hexadecimal digits.
pub const RAW: &str = "raw";

/// An uplink with what it says.
#[derive(Debug, Clone)]
pub struct Opened {
    /// Decrypted; as it came if it could not be decrypted.
    pub payload: Vec<u8>,
    /// Whether [`Opened::payload`] is what the device sent, in clear.
    pub is_clear: bool,
    /// What it says.
    pub decoded: Decoded,
}

/// What is left to do for an uplink.
#[derive(Debug)]
pub enum Step {
    /// Nothing.
    Done(Opened),
    /// The customer's code has to look at it.
    Run(Arc<Script>, Payload),
}

/// Decrypts and decodes as far as that needs no code of the customer's. What cannot be understood gives an error and the bytes, so that
/// nothing is lost.
pub fn open(devices: &BTreeMap<DevEui, DeviceSecrets>, uplink: &Uplink) -> Step {
    let mut payload = uplink.frm_payload.0.clone();
    let unreadable = |reason: &str, payload| Step::Done(undecoded(reason, payload, false));
    let Some(device) = devices.get(&uplink.dev_eui) else {
        return unreadable("the device is not in the configuration", payload);
    };
    if device.dev_addr != uplink.dev_addr {
        return unreadable("the device does not use this address", payload);
    }
    let f_port = match uplink.f_port {
        None if payload.is_empty() => return Step::Done(Opened { payload, is_clear: true, decoded: Decoded::default() }),
        None => return unreadable("a payload without a port", payload),
        Some(0) => return unreadable("port 0 carries commands for the network, not values", payload),
        Some(port @ 1..=u8::MAX) => port,
    };
    let key = match device.secret.app_s_key(uplink.joined) {
        Ok(key) => key,
        Err(error) => return unreadable(&error.to_string(), payload),
    };
    apply_key_stream(&key, Direction::Up, uplink.dev_addr, uplink.f_cnt, &mut payload);
    match &device.codec {
        Codec::None => Step::Done(undecoded_by_choice(payload)),
        Codec::CayenneLpp => Step::Done(finish(cayenne_lpp::decode(&payload), payload)),
        Codec::Script(script) => {
            let (bytes, received_at_ms, variables) = (payload, uplink.heard_at_ms, device.variables.clone());
            Step::Run(Arc::clone(script), Payload { bytes, f_port, received_at_ms, variables })
        }
    }
}

/// Decrypts and decodes.
pub async fn decode(devices: &BTreeMap<DevEui, DeviceSecrets>, scripts: Option<&Scripts>, uplink: &Uplink) -> Opened {
    match open(devices, uplink) {
        Step::Done(opened) => opened,
        Step::Run(script, payload) => {
            let bytes = payload.bytes.clone();
            let decoded = match scripts {
                Some(scripts) => scripts.decode(script, payload).await,
                None => Decoded::failed("the codecs have not been started"),
            };
            finish(decoded, bytes)
        }
    }
}

/// The reading of an uplink.
#[must_use]
pub fn reading(uplink: &Uplink, decoded: Decoded) -> Reading {
    Reading {
        event_id: uplink.event_id,
        dev_eui: uplink.dev_eui,
        f_cnt: uplink.f_cnt,
        decoded: decoded.values,
        heard_at_ms: uplink.heard_at_ms,
        error: decoded.error,
    }
}

/// Where something was not understood, the bytes are kept.
fn finish(mut decoded: Decoded, payload: Vec<u8>) -> Opened {
    if decoded.error.is_some() {
        decoded.values.insert(RAW.to_owned(), Value::String(hex::encode(&payload)));
    }
    Opened { payload, is_clear: true, decoded }
}

fn undecoded(reason: &str, payload: Vec<u8>, is_clear: bool) -> Opened {
    Opened { is_clear, ..finish(Decoded::failed(reason), payload) }
}

fn undecoded_by_choice(payload: Vec<u8>) -> Opened {
    let mut decoded = Decoded::default();
    decoded.values.insert(RAW.to_owned(), Value::String(hex::encode(&payload)));
    Opened { payload, is_clear: true, decoded }
}
