//! What targets share.

use std::sync::{Mutex, OnceLock};

use contracts::ids::{DevAddr, DevEui, Epoch, GroupId};
use contracts::time::{BootTime, WallTime};
use lora_bridge::mac::join::{AppKey, JoiningDevice, NonceRule};
use lora_bridge::mac::link::Wish;
use lora_bridge::{Bridge, Config, Input, Mode, Now, NwkSKey, ReceiveWindows, Session};

pub const NOW: Now = Now { boot: BootTime(1_000_000), wall: WallTime(1_000_000) };

static BRIDGE: OnceLock<Mutex<Bridge>> = OnceLock::new();

/// A bridge that serves a device by personalisation and two that join. One of these is answered, the requests of the other are kept: its root key
/// is not known.
pub fn bridge() -> &'static Mutex<Bridge> {
    BRIDGE.get_or_init(|| {
        let group = GroupId::from_bytes([1; 16]);
        let mut bridge = Bridge::new(Config::default());
        let session = Session::new(DevEui::from_u64(1), DevAddr::from_u32(0x0403_0201), NwkSKey::from_bytes([0x2b; 16]));
        let joining = |n: u64, app_key| JoiningDevice {
            device: DevEui::from_u64(n),
            join_eui: DevEui::from_u64(2),
            dev_addr: DevAddr::from_u32(0x0100_0000),
            app_key,
            nonce_rule: NonceRule::Random,
            receive_windows: ReceiveWindows::eu868(),
            wish: Wish::default(),
        };
        let devices = vec![joining(1, Some(AppKey::from_bytes([0x2b; 16]))), joining(3, None)];
        let mode = Mode::Serving { epoch: Epoch(1), foreign_lease_end: None };
        let inputs = [
            Input::Register { group, sessions: vec![session] },
            Input::RegisterJoining { group, devices },
            Input::Custody { group, mode },
        ];
        for input in inputs {
            bridge.apply(input, NOW, &mut Vec::new());
        }
        Mutex::new(bridge)
    })
}
