//! Decrypted payloads as the device service decodes them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lora_device_service::codec::cayenne_lpp;

fuzz_target!(|bytes: &[u8]| {
    let decoded = cayenne_lpp::decode(bytes);
    assert!(decoded.values.len() <= bytes.len());
});
