//! Records of joins and links as they come from other nodes, once they are unsealed, and what is stored of gateways.
#![no_main]

mod common;

use libfuzzer_sys::fuzz_target;
use lora_bridge::Input;
use lora_bridge::gwmp::gateways::Routes;
use lora_bridge::mac::join::DeviceRecord;
use lora_bridge::mac::link::LinkRecord;

fuzz_target!(|bytes: &[u8]| {
    let Ok(mut bridge) = common::bridge().lock() else { return };
    let mut apply = |input| bridge.apply(input, common::NOW, &mut Vec::new());
    if let Ok(record) = serde_json::from_slice::<DeviceRecord>(bytes) {
        apply(Input::Records { records: vec![record] });
    }
    if let Ok(record) = serde_json::from_slice::<LinkRecord>(bytes) {
        apply(Input::LinkRecords { records: vec![record] });
    }
    if let Ok(routes) = serde_json::from_slice::<Routes>(bytes) {
        apply(Input::Routes { routes });
    }
});
