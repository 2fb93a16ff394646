//! Frames as gateways hear them and as other nodes offer them: data, MAC commands, joins.
#![no_main]

mod common;

use contracts::time::WallTime;
use libfuzzer_sys::fuzz_target;
use lora_bridge::gwmp::data_rate::DataRate;
use lora_bridge::gwmp::rxpk::RxMeta;
use lora_bridge::{GatewayEui, Input, OfferedFrame};

fuzz_target!(|bytes: &[u8]| {
    let rx = RxMeta { tmst: Some(1), frequency_hz: None, data_rate: DataRate::Other, rssi_dbm: None, snr_decibel_tenths: None };
    let frame = OfferedFrame { phy: bytes.to_vec().into(), gateway: GatewayEui(1), rx, heard_at: WallTime(0) };
    if let Ok(mut bridge) = common::bridge().lock() {
        bridge.apply(Input::Offered { frame }, common::NOW, &mut Vec::new());
    }
});
