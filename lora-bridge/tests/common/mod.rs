//! Motes and gateways for the tests. Frames are made and read with `lorawan`, which shares no code with the bridge's `lrwn`.

#![allow(dead_code, reason = "each test program uses a part of it")]

pub mod joiner;
pub mod running;

use std::net::SocketAddr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use contracts::ids::{DevAddr, DevEui, Epoch, EventId, GroupId};
use contracts::time::{BootTime, Millis, WallTime};
use lora_bridge::{Bridge, Config, GatewayEui, Input, Mode, Now, NwkSKey, Offer, Output, Session, Transmit, Uplink, Window};
use lorawan::keys::{AES128, AppSKey, NewSKey};
use lorawan::maccommands::SerializableMacCommand;
use lorawan::parser::{DataHeader, EncryptedDataPayload, FCtrl};

pub const GROUP: GroupId = GroupId::from_bytes([1; 16]);
pub const GATEWAY: GatewayEui = GatewayEui(0xaa);
pub const OTHER_GATEWAY: GatewayEui = GatewayEui(0xbb);

/// A simulated class A device.
#[derive(Debug, Clone)]
pub struct Mote {
    pub device: DevEui,
    pub address: u32,
    pub key: [u8; 16],
}

impl Mote {
    pub fn new(n: u32) -> Self {
        let mut key = [0x42; 16];
        key[..4].copy_from_slice(&n.to_be_bytes());
        Self { device: DevEui::from_u64(0x0102_0000_0000_0000 + u64::from(n)), address: 0x2600_0000 + n, key }
    }

    pub fn session(&self) -> Session {
        Session::new(self.device, DevAddr::from_u32(self.address), NwkSKey::from_bytes(self.key))
    }

    /// What the tenant of these devices hands in: the payload at rest and the counter, so that tests can tell them apart.
    pub fn payload_on_air(at_rest: &[u8], f_cnt: u32) -> Vec<u8> {
        [at_rest, &f_cnt.to_be_bytes()].concat()
    }

    pub fn frame_with(&self, f_cnt: u32, confirmed: bool, f_ctrl: u8, commands: &[&dyn SerializableMacCommand]) -> Vec<u8> {
        let mut creator = lorawan::creator::DataPayloadCreator::new();
        creator
            .set_confirmed(confirmed)
            .set_uplink(true)
            .set_f_port(2)
            .set_dev_addr(&self.address.to_le_bytes())
            .set_fctrl(&FCtrl::new(f_ctrl, true))
            .set_fcnt(f_cnt);
        let (network, application) = (NewSKey::from(self.key), AppSKey::from([9; 16]));
        creator.build(b"21.5 C", commands, &network, &application).expect("a frame").to_vec()
    }

    pub fn frame(&self, f_cnt: u32, confirmed: bool) -> Vec<u8> {
        self.frame_with(f_cnt, confirmed, 0, &[])
    }

    pub fn event(&self, f_cnt: u32) -> EventId {
        EventId::new(self.device, self.session().id(), f_cnt)
    }

    pub fn mark(&self, f_cnt: u32) -> lora_bridge::Mark {
        lora_bridge::Mark { device: self.device, session: self.session().id(), f_cnt }
    }
}

/// What a mote reads from a downlink on air.
#[derive(Debug, PartialEq, Eq)]
pub struct OnAir {
    pub tmst: u32,
    pub freq: String,
    pub datr: String,
    pub ack: bool,
    pub f_cnt: u16,
    pub phy: Vec<u8>,
}

/// Reads the `PULL_RESP` of a downlink and checks its integrity code under the mote's key.
pub fn on_air(downlink: &Transmit, mote: &Mote) -> OnAir {
    assert_eq!((downlink.bytes[0], downlink.bytes[3]), (2, 3), "version 2, PULL_RESP");
    let json: serde_json::Value = serde_json::from_slice(&downlink.bytes[4..]).expect("JSON");
    let txpk = &json["txpk"];
    let phy = STANDARD.decode(txpk["data"].as_str().expect("a text")).expect("base64");
    assert_eq!(txpk["size"], phy.len());
    assert_eq!((&txpk["imme"], &txpk["ipol"], &txpk["ncrc"]), (&false.into(), &true.into(), &true.into()));
    assert!(txpk.get("ant").is_none() && txpk.get("brd").is_none());
    assert_eq!(phy[0], 0x60, "unconfirmed downlink");
    let frame = EncryptedDataPayload::new(phy.clone()).expect("a frame");
    assert!(frame.validate_mic(&AES128(mote.key), downlink.f_cnt_down), "integrity code");
    assert_eq!(frame.fhdr().dev_addr().as_ref(), mote.address.to_le_bytes());
    OnAir {
        tmst: u32::try_from(txpk["tmst"].as_u64().expect("a number")).expect("32 bits"),
        freq: txpk["freq"].to_string(),
        datr: txpk["datr"].as_str().expect("a text").to_owned(),
        ack: frame.fhdr().fctrl().ack(),
        f_cnt: frame.fhdr().fcnt(),
        phy,
    }
}

pub fn address(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

pub fn push(gateway: GatewayEui, packets: &[(u32, Vec<u8>)]) -> Vec<u8> {
    push_with(gateway, packets, 2, -40)
}

pub fn push_with(gateway: GatewayEui, packets: &[(u32, Vec<u8>)], version: u8, snr_tenths: i16) -> Vec<u8> {
    let snr = f64::from(snr_tenths) / 10.0;
    let packets: Vec<String> = packets
        .iter()
        .map(|(tmst, phy)| {
            format!(
                r#"{{"tmst":{tmst},"freq":868.3,"stat":1,"modu":"LORA","datr":"SF9BW125","codr":"4/5","rssi":-90,"lsnr":{snr},"size":{},"data":"{}"}}"#,
                phy.len(),
                STANDARD.encode(phy)
            )
        })
        .collect();
    let mut bytes = vec![version, 0x12, 0x34, 0];
    bytes.extend_from_slice(&gateway.0.to_be_bytes());
    bytes.extend_from_slice(format!(r#"{{"rxpk":[{}]}}"#, packets.join(",")).as_bytes());
    bytes
}

pub fn pull(gateway: GatewayEui) -> Vec<u8> {
    [&[2, 7, 7, 2][..], &gateway.0.to_be_bytes()].concat()
}

pub fn tx_ack(downlink: &Transmit, error: &str) -> Vec<u8> {
    let head = [2, downlink.bytes[1], downlink.bytes[2], 5];
    let json = if error.is_empty() { String::new() } else { format!(r#"{{"txpk_ack":{{"error":"{error}"}}}}"#) };
    [&head[..], &downlink.gateway.0.to_be_bytes(), json.as_bytes(), b"\0"].concat()
}

/// A bridge with its time.
#[derive(Debug)]
pub struct Rig {
    pub bridge: Bridge,
    pub now: u64,
}

impl Rig {
    pub fn new() -> Self {
        Self::with(Config::default())
    }

    pub fn with(config: Config) -> Self {
        Self { bridge: Bridge::new(config), now: 1_000_000 }
    }

    /// Registered, serving in epoch 1, the gateway pulls, sixteen counters are written ahead for each mote.
    pub fn serving(motes: &[Mote]) -> Self {
        let mut rig = Self::new();
        rig.prepare(motes);
        rig.serve(1, None);
        rig.reserve(motes, 16);
        rig
    }

    pub fn standby(motes: &[Mote]) -> Self {
        let mut rig = Self::new();
        rig.prepare(motes);
        rig.custody(Mode::Standby);
        rig
    }

    pub fn prepare(&mut self, motes: &[Mote]) {
        self.apply(Input::Register { group: GROUP, sessions: motes.iter().map(Mote::session).collect() });
        self.pull();
    }

    pub fn pull(&mut self) {
        self.apply(Input::Datagram { from: address(1_001), bytes: &pull(GATEWAY) });
    }

    pub fn reserve(&mut self, motes: &[Mote], upto: u32) -> Vec<Output> {
        self.apply(Input::Reserved { entries: motes.iter().map(|mote| (mote.device, upto)).collect() })
    }

    pub fn custody(&mut self, mode: Mode) -> Vec<Output> {
        self.apply(Input::Custody { group: GROUP, mode })
    }

    pub fn serve(&mut self, epoch: u64, foreign_lease_end: Option<u64>) -> Vec<Output> {
        self.custody(Mode::Serving { epoch: Epoch(epoch), foreign_lease_end: foreign_lease_end.map(BootTime) })
    }

    pub fn apply(&mut self, input: Input<'_>) -> Vec<Output> {
        let mut out = Vec::new();
        let now = Now { boot: BootTime(self.now), wall: WallTime(1_800_000_000_000 + self.now) };
        self.bridge.apply(input, now, &mut out);
        out
    }

    pub fn advance(&mut self, by: u64) -> Vec<Output> {
        self.now += by;
        self.apply(Input::Tick)
    }

    /// A frame by way of [`GATEWAY`]; `tmst` follows the rig's time.
    pub fn hear(&mut self, phy: &[u8]) -> Vec<Output> {
        let tmst = self.tmst();
        self.hear_by(GATEWAY, tmst, phy)
    }

    pub fn tmst(&self) -> u32 {
        u32::try_from(self.now * 1_000 % (1 << 32)).expect("32 bits")
    }

    pub fn hear_by(&mut self, gateway: GatewayEui, tmst: u32, phy: &[u8]) -> Vec<Output> {
        self.apply(Input::Datagram { from: address(1_002), bytes: &push(gateway, &[(tmst, phy.to_vec())]) })
    }

    /// Hears and commits; what the hearing brings.
    pub fn hear_and_take(&mut self, phy: &[u8]) -> Vec<Output> {
        let out = self.hear(phy);
        self.commit(uplinks(&out).iter().map(|uplink| uplink.event).collect());
        out
    }

    pub fn commit(&mut self, events: Vec<EventId>) -> Vec<Output> {
        self.apply(Input::Committed { events })
    }

    /// Hears and commits; what the commit brings.
    pub fn hear_and_commit(&mut self, phy: &[u8]) -> Vec<Output> {
        let out = self.hear(phy);
        assert!(downlinks(&out).is_empty(), "nothing is answered before it is on disk");
        let events = uplinks(&out).iter().map(|uplink| uplink.event).collect();
        self.commit(events)
    }
}

pub fn uplinks(out: &[Output]) -> Vec<&Uplink> {
    out.iter().filter_map(|output| if let Output::Uplink(uplink) = output { Some(uplink) } else { None }).collect()
}

pub fn downlinks(out: &[Output]) -> Vec<&Transmit> {
    out.iter().filter_map(|output| if let Output::Transmit(downlink) = output { Some(downlink) } else { None }).collect()
}

pub fn offers(out: &[Output]) -> Vec<&Offer> {
    out.iter().filter_map(|output| if let Output::OfferDue(offer) = output { Some(offer) } else { None }).collect()
}

pub fn wanted(out: &[Output]) -> Vec<(DevEui, u32)> {
    let entries =
        out.iter().filter_map(|output| if let Output::ReserveWanted { entries, .. } = output { Some(entries) } else { None });
    entries.flatten().copied().collect()
}

/// The only downlink, as the mote hears it.
pub fn the_downlink(out: &[Output], mote: &Mote, window: Window) -> OnAir {
    let all = downlinks(out);
    assert_eq!(all.len(), 1, "one downlink in {out:?}");
    assert_eq!((all[0].window, all[0].device), (window, mote.device));
    on_air(all[0], mote)
}

pub const MARGIN: Millis = Millis(100);
