//! A mote that joins over the air, made with `lorawan`, and a bridge that lets it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use contracts::ids::{DevAddr, DevEui};
use lora_bridge::bridge::io::Accept;
use lora_bridge::mac::join::{AppKey, DeviceRecord, JoiningDevice, NonceRule};
use lora_bridge::{Input, Output, ReceiveWindows};
use lorawan::creator::JoinRequestCreator;
use lorawan::parser::{DecryptedJoinAcceptPayload, DevNonce};

use super::{GROUP, Mote, Rig};

const JOIN_EUI: u64 = 0x70b3_d57e_d000_0001;

#[derive(Debug, Clone)]
pub struct Joiner {
    pub device: DevEui,
    pub address: u32,
    pub key: [u8; 16],
}

impl Joiner {
    pub fn new(n: u8) -> Self {
        Self { device: DevEui::from_u64(0x0a00 + u64::from(n)), address: 0x0100_0000 + u32::from(n), key: [n; 16] }
    }

    pub fn registration(&self, has_key: bool, nonce_rule: NonceRule) -> JoiningDevice {
        JoiningDevice {
            device: self.device,
            join_eui: DevEui::from_u64(JOIN_EUI),
            dev_addr: DevAddr::from_u32(self.address),
            app_key: has_key.then(|| AppKey::from_bytes(self.key)),
            nonce_rule,
            receive_windows: ReceiveWindows::eu868(),
            wish: lora_bridge::mac::link::Wish::default(),
        }
    }

    pub fn request(&self, dev_nonce: u16) -> Vec<u8> {
        let mut request = JoinRequestCreator::new();
        let device = u64::from_be_bytes(*self.device.as_bytes());
        request.set_app_eui(&JOIN_EUI.to_le_bytes()).set_dev_eui(&device.to_le_bytes()).set_dev_nonce(&dev_nonce.to_le_bytes());
        request.build(&self.key.into()).to_vec()
    }

    /// Reads the `PULL_RESP` of an accept as the mote does: its session, its nonce of the network, its data rate of RX2, its channels.
    pub fn joined(&self, accept: &[u8], dev_nonce: u16) -> (Mote, u32) {
        let json: serde_json::Value = serde_json::from_slice(&accept[4..]).expect("JSON");
        assert_eq!(json["txpk"]["ncrc"], true);
        let phy = STANDARD.decode(json["txpk"]["data"].as_str().expect("a text")).expect("base64");
        let key = self.key.into();
        let read = DecryptedJoinAcceptPayload::new(phy, &key).expect("an accept");
        assert!(read.validate_mic(&key), "integrity code");
        assert_eq!(read.dev_addr().as_ref(), self.address.to_le_bytes());
        assert_eq!((read.rx_delay(), read.dl_settings().rx1_dr_offset()), (1, 0));
        assert!(read.c_f_list().is_some(), "five more channels");
        let nonce = read.app_nonce();
        let nonce = nonce.as_ref();
        let nonce = u32::from_le_bytes([nonce[0], nonce[1], nonce[2], 0]);
        let dev_nonce = dev_nonce.to_le_bytes();
        let session = read.derive_newskey(&DevNonce::new(&dev_nonce[..]).expect("two bytes"), &key);
        let key = session.as_ref().try_into().expect("16 bytes");
        (Mote { device: self.device, address: self.address, key }, nonce)
    }
}

pub fn accepts(out: &[Output]) -> Vec<&Accept> {
    out.iter().filter_map(|output| if let Output::Accept(accept) = output { Some(accept) } else { None }).collect()
}

pub fn records(out: &[Output]) -> Vec<DeviceRecord> {
    let record = |output: &Output| match output {
        Output::RecordWanted { record, .. } => Some((**record).clone()),
        _ => None,
    };
    out.iter().filter_map(record).collect()
}

pub fn register(rig: &mut Rig, joiners: &[Joiner], has_key: bool, rule: NonceRule) -> Vec<Output> {
    let devices = joiners.iter().map(|joiner| joiner.registration(has_key, rule)).collect();
    rig.apply(Input::RegisterJoining { group: GROUP, devices })
}

pub fn serving(joiners: &[Joiner]) -> Rig {
    let mut rig = Rig::new();
    rig.pull();
    register(&mut rig, joiners, true, NonceRule::Random);
    rig.serve(1, None);
    rig
}

pub fn recorded(rig: &mut Rig, out: &[Output]) -> Vec<Output> {
    let records = records(out).into_iter();
    records.flat_map(|record| rig.apply(Input::Recorded { record: Box::new(record) })).collect()
}
