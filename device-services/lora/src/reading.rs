//! An uplink becomes a reading: always exactly one, whatever the uplink is.

use std::collections::BTreeMap;

use serde_json::Value;
use tenant::{DevEui, Reading, Uplink};

use crate::{
    codec::{Decoded, cayenne_lpp},
    config::{Codec, DeviceSecrets},
    decrypt::{Direction, apply_key_stream},
};

/// Name under which the payload of an uplink that could not be decoded wholly is kept, in hexadecimal digits.
pub const RAW: &str = "raw";

/// Decrypts and decodes. What cannot be understood gives a reading with an error and the bytes, so that nothing is lost.
pub fn reading_of(devices: &BTreeMap<DevEui, DeviceSecrets>, uplink: &Uplink) -> Reading {
    let decoded = decode(devices, uplink);
    Reading {
        event_id: uplink.event_id,
        dev_eui: uplink.dev_eui,
        f_cnt: uplink.f_cnt,
        decoded: decoded.values,
        heard_at_ms: uplink.heard_at_ms,
        error: decoded.error,
    }
}

fn decode(devices: &BTreeMap<DevEui, DeviceSecrets>, uplink: &Uplink) -> Decoded {
    let mut payload = uplink.frm_payload.0.clone();
    let Some(device) = devices.get(&uplink.dev_eui) else {
        return undecoded("the device is not in the configuration", &payload);
    };
    if device.dev_addr != uplink.dev_addr {
        return undecoded("the device does not use this address", &payload);
    }
    match uplink.f_port {
        None if payload.is_empty() => return Decoded::default(),
        None => return undecoded("a payload without a port", &payload),
        Some(0) => return undecoded("port 0 carries commands for the network, not values", &payload),
        Some(1..=u8::MAX) => {}
    }
    apply_key_stream(&device.app_s_key, Direction::Up, uplink.dev_addr, uplink.f_cnt, &mut payload);
    let mut decoded = match device.codec {
        Codec::CayenneLpp => cayenne_lpp::decode(&payload),
    };
    if decoded.error.is_some() {
        decoded.values.insert(RAW.to_owned(), Value::String(hex::encode(&payload)));
    }
    decoded
}

fn undecoded(reason: &str, payload: &[u8]) -> Decoded {
    let mut decoded = Decoded { error: Some(reason.to_owned()), ..Decoded::default() };
    decoded.values.insert(RAW.to_owned(), Value::String(hex::encode(payload)));
    decoded
}
