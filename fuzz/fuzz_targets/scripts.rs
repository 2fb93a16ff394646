//! JavaScript codecs with a payload, under their limits: the first byte says where the code begins.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lora_device_service::codec::javascript::{self, OUTPUT_BYTES_MAX, Payload};
use serde_json::Map;

fuzz_target!(|bytes: &[u8]| {
    let Some((len, rest)) = bytes.split_first() else { return };
    let (payload, source) = rest.split_at(rest.len().min(usize::from(*len)));
    let Ok(source) = std::str::from_utf8(source) else { return };
    let payload = Payload { bytes: payload.to_vec(), f_port: 1, received_at_ms: 0, variables: Map::new() };
    if let Ok(decoded) = javascript::decode(source, &payload) {
        let text = serde_json::to_string(&decoded.values).unwrap_or_default();
        assert!(text.len() <= 2 * OUTPUT_BYTES_MAX);
    }
});
