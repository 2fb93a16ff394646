//! Records of joins and links as they come from other nodes, once they are unsealed, and what is stored of gateways.
#![no_main]

use std::sync::{Mutex, OnceLock};

use contracts::ids::{DevAddr, DevEui, Epoch, GroupId};
use contracts::time::{BootTime, WallTime};
use libfuzzer_sys::fuzz_target;
use lora_bridge::gwmp::gateways::Routes;
use lora_bridge::mac::join::{AppKey, DeviceRecord, JoiningDevice, NonceRule};
use lora_bridge::mac::link::{LinkRecord, Wish};
use lora_bridge::{Bridge, Config, Input, Mode, Now, ReceiveWindows};

static BRIDGE: OnceLock<Mutex<Bridge>> = OnceLock::new();

fuzz_target!(|bytes: &[u8]| {
    let now = Now { boot: BootTime(1_000_000), wall: WallTime(1_000_000) };
    let bridge = BRIDGE.get_or_init(|| {
        let group = GroupId::from_bytes([1; 16]);
        let mut bridge = Bridge::new(Config::default());
        let device = JoiningDevice {
            device: DevEui::from_u64(1),
            join_eui: DevEui::from_u64(2),
            dev_addr: DevAddr::from_u32(0x0100_0000),
            app_key: Some(AppKey::from_bytes([0x2b; 16])),
            nonce_rule: NonceRule::Random,
            receive_windows: ReceiveWindows::eu868(),
            wish: Wish::default(),
        };
        let mode = Mode::Serving { epoch: Epoch(1), foreign_lease_end: None };
        for input in [Input::RegisterJoining { group, devices: vec![device] }, Input::Custody { group, mode }] {
            bridge.apply(input, now, &mut Vec::new());
        }
        Mutex::new(bridge)
    });
    let Ok(mut bridge) = bridge.lock() else { return };
    let mut apply = |input| bridge.apply(input, now, &mut Vec::new());
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
