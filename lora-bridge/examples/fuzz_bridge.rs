//! Mutated inputs by the million for everything that gateways, motes and other nodes can send: no panic, no growth. Prints one JSON object.
//!
//! `fuzz_bridge [--inputs N] [--seed S]`. The same seed gives the same inputs; a panic names seed and input. Mutations know the structure: datagrams
//! whose JSON is bent, frames bent inside good datagrams, MAC commands and join requests bent inside frames with a right integrity code.

#![expect(clippy::unwrap_used, reason = "a fuzzer stops at the first surprise")]

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use aes::Aes128;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use bytes::Bytes;
use cmac::{Cmac, Mac};
use contracts::ids::{DevAddr, DevEui, Epoch, GroupId};
use contracts::time::{BootTime, Millis, WallTime};
use lora_bridge::gwmp::sources::Rate;
use lora_bridge::mac::join::{AppKey, DeviceRecord, JoiningDevice, NonceRule};
use lora_bridge::mac::link::{LinkRecord, Wish};
use lora_bridge::{
    Bridge, Config, GatewayEui, Input, Mode, Now, NwkSKey, OfferedFrame, Output, ReceiveWindows, Session, UplinkRules,
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

#[path = "../tests/common/mutate.rs"]
mod mutate;
use mutate::mutate;

const GROUP: GroupId = GroupId::from_bytes([1; 16]);
const STANDBY: GroupId = GroupId::from_bytes([2; 16]);
const KEY: [u8; 16] = [0x2b; 16];
const DEVICES: u32 = 64;
/// Devices that join over the air; the last eight are prepared for only, and their root keys are not known.
const JOINING: u32 = 40;
const JOIN_EUI: u64 = 0x70b3_d57e_d000_0001;
/// Memory may grow by so much after the first tenth of the inputs.
const GROWTH_BYTES_MAX: u64 = 64 * 1024 * 1024;

static SEED: AtomicU64 = AtomicU64::new(0);
static INPUT: AtomicU64 = AtomicU64::new(0);

const TARGETS: [&str; 8] =
    ["gwmp", "phy_payload", "mac_commands", "join_request", "join_of_known", "tx_ack", "offered", "records"];

fn address(n: u32) -> u32 {
    0x2600_0000 + n
}

fn mic(prefix: &[u8], message: &[u8]) -> [u8; 4] {
    let mut mac = <Cmac<Aes128> as Mac>::new(&KEY.into());
    mac.update(prefix);
    mac.update(message);
    mac.finalize().into_bytes()[..4].try_into().unwrap()
}

/// An uplink with a right integrity code around whatever stands behind the counter.
fn frame(device: u32, f_cnt: u32, is_confirmed: bool, f_ctrl: u8, rest: &[u8]) -> Vec<u8> {
    let mut phy = vec![if is_confirmed { 0x80 } else { 0x40 }];
    phy.extend_from_slice(&address(device).to_le_bytes());
    phy.push(f_ctrl);
    phy.extend_from_slice(&f_cnt.to_le_bytes()[..2]);
    phy.extend_from_slice(&rest[..rest.len().min(240)]);
    let mut b0 = [0; 16];
    b0[0] = 0x49;
    b0[6..10].copy_from_slice(&address(device).to_le_bytes());
    b0[10..14].copy_from_slice(&f_cnt.to_le_bytes());
    b0[15] = u8::try_from(phy.len()).unwrap();
    let code = mic(&b0, &phy);
    phy.extend_from_slice(&code);
    phy
}

fn joining_device(n: u32) -> JoiningDevice {
    JoiningDevice {
        device: DevEui::from_u64(0x0a00_0000 + u64::from(n)),
        join_eui: DevEui::from_u64(JOIN_EUI),
        dev_addr: DevAddr::from_u32(0x0100_0000 + n),
        app_key: (n + 8 < JOINING).then(|| AppKey::from_bytes(KEY)),
        nonce_rule: if n.is_multiple_of(2) { NonceRule::Random } else { NonceRule::Rising },
        receive_windows: ReceiveWindows::eu868(),
        wish: wish(),
    }
}

/// Receive windows are to be moved too, and statuses asked for.
fn wish() -> Wish {
    Wish { rx1_delay_seconds: Some(2), rx1_data_rate_offset: Some(1), status_interval: Some(Millis(60_000)), ..Wish::default() }
}

/// Bent before its integrity code is made, after it, or not at all.
fn join_of_known(rng: &mut ChaCha8Rng) -> Vec<u8> {
    let device = 0x0a00_0000 + u64::from(rng.random_range(0..JOINING));
    let mut phy = [&[0][..], &JOIN_EUI.to_le_bytes(), &device.to_le_bytes(), &rng.random::<[u8; 2]>()].concat();
    let bent = rng.random_range(0..3);
    if bent == 0 {
        mutate(rng, &mut phy, &[]);
    }
    let code = mic(&[], &phy);
    phy.extend_from_slice(&code);
    if bent == 1 {
        mutate(rng, &mut phy, &[]);
    }
    phy
}

fn join_request(rng: &mut ChaCha8Rng) -> Vec<u8> {
    let mut phy = vec![0x00];
    phy.extend_from_slice(&[0; 8]);
    phy.extend_from_slice(&rng.random_range(0..u64::from(DEVICES)).to_le_bytes());
    phy.extend_from_slice(&rng.random::<[u8; 2]>());
    let code = mic(&[], &phy);
    phy.extend_from_slice(&code);
    phy
}

const JSON_PIECES: &[&[u8]] = &[
    b"{",
    b"}",
    b"[",
    b"]",
    b"\"",
    b"\\",
    b"\\u0000",
    b"\\ud800",
    b",",
    b":",
    b"null",
    b"-1",
    b"1e999",
    b"-0.0",
    b"99999999999999999999",
    b"\0",
    b"\xff",
    b"\"rxpk\":[",
    b"\"stat\":{",
    b"\"rsig\":[{",
    b"\"datr\":50000",
    b"\"datr\":\"SF99BW-1\"",
    b"\"data\":\"",
    b"\"lsnr\":\"",
    b"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[",
];

/// A well-formed `PUSH_DATA`, in one of the dialects of the field.
fn push(rng: &mut ChaCha8Rng, frames: &[Vec<u8>]) -> Vec<u8> {
    let packets: Vec<String> = frames
        .iter()
        .map(|phy| {
            let data = match rng.random_range(0..3) {
                0 => STANDARD_NO_PAD.encode(phy),
                1 => STANDARD.encode(phy).replace('/', "\\/"),
                _ => STANDARD.encode(phy),
            };
            let tmst: u32 = rng.random();
            match rng.random_range(0..4) {
                0 => format!(r#"{{"tmst":{tmst},"freq":868.8,"stat":1,"modu":"FSK","datr":50000,"rssi":-75.5,"data":"{data}"}}"#),
                1 => format!(
                    r#"{{"jver":2,"tmst":{tmst},"freq":868.3,"datr":"SF9BW125","rsig":[{{"ant":0,"rssic":-90,"lsnr":1.5}}],"data":"{data}"}}"#
                ),
                _ => format!(
                    r#"{{"tmst":{tmst},"chan":2,"rfch":0,"freq":868.1,"stat":1,"modu":"LORA","datr":"SF7BW125","codr":"4/5","rssi":-35,"lsnr":5.1,"size":{},"data":"{data}"}}"#,
                    phy.len()
                ),
            }
        })
        .collect();
    let stat = if rng.random_range(0..8) == 0 { r#","stat":{"rxnb":2,"ackr":null,"lati":38.2}"# } else { "" };
    let mut bytes = vec![rng.random_range(1..=2), 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, rng.random_range(1..4)];
    bytes.extend_from_slice(format!(r#"{{"rxpk":[{}]{stat}}}"#, packets.join(",")).as_bytes());
    if rng.random_range(0..8) == 0 {
        bytes.push(0);
    }
    bytes
}

fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()).and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) * 1_024
}

struct Fuzzer {
    rng: ChaCha8Rng,
    bridge: Bridge,
    out: Vec<Output>,
    now: u64,
    f_cnt: u32,
    /// The newest downlink: its datagram, and where it went.
    sent: Option<(Vec<u8>, GatewayEui)>,
    /// Written ahead, and told again later.
    record: Option<DeviceRecord>,
    link: Option<LinkRecord>,
    /// Bent records that were records still.
    taken: u64,
    made: [u64; TARGETS.len()],
}

impl Fuzzer {
    fn new(seed: u64) -> Self {
        let config =
            Config { source_rate: Rate::NONE, gateways_max: 64, in_flight_max: 1_024, outstanding_max: 256, ..Config::default() };
        let mut fuzzer = Self {
            rng: ChaCha8Rng::seed_from_u64(seed),
            bridge: Bridge::new(config),
            out: Vec::new(),
            now: 1_000_000,
            f_cnt: 0,
            sent: None,
            record: None,
            link: None,
            taken: 0,
            made: [0; TARGETS.len()],
        };
        let session = |n: u32| {
            // A quarter may begin anew.
            let rules = UplinkRules { may_reset: n.is_multiple_of(4), ..UplinkRules::default() };
            let session = Session::new(DevEui::from_u64(n.into()), DevAddr::from_u32(address(n)), NwkSKey::from_bytes(KEY));
            Session { uplink_rules: rules, wish: wish(), ..session }
        };
        fuzzer.apply(Input::Register { group: GROUP, sessions: (0..DEVICES).map(session).collect() });
        fuzzer.apply(Input::Register { group: STANDBY, sessions: (DEVICES..DEVICES + 8).map(session).collect() });
        let (served, prepared) = (0..JOINING - 8, JOINING - 8..JOINING);
        fuzzer.apply(Input::RegisterJoining { group: GROUP, devices: served.map(joining_device).collect() });
        fuzzer.apply(Input::RegisterJoining { group: STANDBY, devices: prepared.map(joining_device).collect() });
        fuzzer.apply(Input::Custody { group: GROUP, mode: Mode::Serving { epoch: Epoch(1), foreign_lease_end: None } });
        fuzzer
    }

    fn apply(&mut self, input: Input<'_>) {
        let now = Now { boot: BootTime(self.now), wall: WallTime(self.now) };
        self.out.clear();
        self.bridge.apply(input, now, &mut self.out);
        let mut events = Vec::new();
        let mut reserved = Vec::new();
        let mut resets = Vec::new();
        let mut recorded = Vec::new();
        let mut linked = Vec::new();
        for output in self.out.drain(..) {
            match output {
                Output::Uplink(uplink) => events.push(uplink.event),
                Output::ReserveWanted { entries, .. } => reserved.extend(entries),
                Output::ResetWanted(reset) => resets.push((reset.device, reset.reset_ordinal)),
                Output::Transmit(downlink) => self.sent = Some((downlink.bytes, downlink.gateway)),
                Output::Accept(accept) => self.sent = Some((accept.bytes, accept.gateway)),
                Output::RecordWanted { record, .. } => recorded.push(record),
                Output::LinkRecordWanted { record, .. } => linked.push(record),
                _ => {}
            }
        }
        if !reserved.is_empty() {
            self.apply(Input::Reserved { entries: reserved });
        }
        for record in linked {
            self.link = Some((*record).clone());
            self.apply(Input::LinkRecorded { record });
        }
        if !resets.is_empty() {
            self.apply(Input::Reset { entries: resets });
        }
        if !events.is_empty() {
            self.apply(Input::Committed { events });
        }
        for record in recorded {
            self.record = Some((*record).clone());
            // Some are never written.
            if self.rng.random_range(0..8) != 0 {
                self.apply(Input::Recorded { record });
            }
        }
    }

    fn datagram(&mut self, bytes: &[u8]) {
        let from = "127.0.0.1:1".parse().unwrap();
        self.apply(Input::Datagram { from, bytes });
    }

    fn good_frame(&mut self) -> Vec<u8> {
        let device = self.rng.random_range(0..DEVICES + 8);
        let rest: Vec<u8> = (0..self.rng.random_range(0..24)).map(|n| if n == 0 { 2 } else { self.rng.random() }).collect();
        let is_confirmed = self.rng.random_range(0..16) == 0;
        frame(device, self.f_cnt, is_confirmed, 0, &rest)
    }

    /// Commands in the options, or alone on port 0, under a right integrity code.
    fn mac_commands(&mut self) {
        let device = self.rng.random_range(0..DEVICES);
        let mut commands = vec![0x02, 0x0d, 0x03, 0x07, 0x06, 0xff, 0x10, 0x05, 0x07, 0x07, 0x03, 0x08];
        mutate(&mut self.rng, &mut commands, &[b"\x02", b"\x03\x07", b"\x06\xff\x1f", b"\x0d", b"\x0a\x03", b"\x80"]);
        let (f_ctrl, rest) = if self.rng.random() {
            commands.truncate(15);
            (u8::try_from(commands.len()).unwrap() | (self.rng.random::<u8>() & 0xf0), commands)
        } else {
            (self.rng.random::<u8>() & 0xf0, [&[0][..], &commands].concat())
        };
        let phy = frame(device, self.f_cnt, self.rng.random(), f_ctrl, &rest);
        let bytes = push(&mut self.rng, &[phy]);
        self.datagram(&bytes);
    }

    /// A record of a join or a link as another node seals it, bent: of what is a record still, all is taken.
    fn records(&mut self) {
        let is_join = self.rng.random();
        let json = if is_join { serde_json::to_vec(&self.record) } else { serde_json::to_vec(&self.link) };
        let mut json = json.unwrap();
        if self.rng.random_range(0..4) == 0 {
            mutate(&mut self.rng, &mut json, JSON_PIECES);
        } else {
            // Other numbers of the same length: the form stays.
            let from = self.rng.random_range(0..json.len());
            for byte in json[from..].iter_mut().filter(|byte| byte.is_ascii_digit()).take(6) {
                *byte = b'0' + self.rng.random_range(0..10);
            }
        }
        if is_join && let Ok(record) = serde_json::from_slice::<DeviceRecord>(&json) {
            self.taken += 1;
            self.apply(Input::Records { records: vec![record] });
        } else if let Ok(record) = serde_json::from_slice::<LinkRecord>(&json) {
            self.taken += 1;
            self.apply(Input::LinkRecords { records: vec![record] });
        }
    }

    /// An answer to the newest downlink, or to none.
    fn tx_ack(&mut self) {
        let mut bytes = vec![2, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 1];
        if let Some((sent, gateway)) = &self.sent {
            bytes[1..3].copy_from_slice(&sent[1..3]);
            bytes[4..12].copy_from_slice(&gateway.0.to_be_bytes());
        }
        let bodies: [&[u8]; 4] =
            [b"", b"\0", br#"{"txpk_ack":{"error":"TOO_LATE"}}"#, br#"{"txpk_ack":{"warn":"TX_POWER","value":27}}"#];
        bytes.extend_from_slice(bodies[self.rng.random_range(0..bodies.len())]);
        if self.rng.random_range(0..4) != 0 {
            mutate(&mut self.rng, &mut bytes, JSON_PIECES);
        }
        self.datagram(&bytes);
    }

    fn step(&mut self, n: u64) {
        self.now += u64::from(n.is_multiple_of(4));
        self.f_cnt = u32::try_from(n / 512).unwrap() % 100_000;
        let target = self.rng.random_range(0..TARGETS.len());
        self.made[target] += 1;
        match TARGETS[target] {
            "gwmp" => {
                let frames = [self.good_frame(), self.good_frame()];
                let mut bytes = push(&mut self.rng, &frames);
                if self.rng.random_range(0..16) == 0 {
                    bytes[3] = 2;
                    bytes.truncate(12);
                }
                mutate(&mut self.rng, &mut bytes, JSON_PIECES);
                self.datagram(&bytes);
            }
            "phy_payload" => {
                let mut phy = self.good_frame();
                mutate(&mut self.rng, &mut phy, &[]);
                phy.truncate(255);
                let bytes = push(&mut self.rng, &[phy]);
                self.datagram(&bytes);
            }
            "mac_commands" => self.mac_commands(),
            "join_request" => {
                let mut phy = join_request(&mut self.rng);
                if self.rng.random_range(0..4) != 0 {
                    mutate(&mut self.rng, &mut phy, &[]);
                }
                phy.truncate(255);
                let bytes = push(&mut self.rng, &[phy]);
                self.datagram(&bytes);
            }
            "join_of_known" => {
                let mut phy = join_of_known(&mut self.rng);
                phy.truncate(255);
                let bytes = push(&mut self.rng, &[phy]);
                self.datagram(&bytes);
                if self.rng.random_range(0..64) == 0 {
                    self.apply(Input::Records { records: self.record.iter().cloned().collect() });
                }
            }
            "tx_ack" => self.tx_ack(),
            "records" => self.records(),
            _ => {
                let mut phy = self.good_frame();
                mutate(&mut self.rng, &mut phy, &[]);
                let rx = serde_json::from_str(
                    r#"{"tmst":null,"frequency_hz":null,"data_rate":"other","rssi_dbm":null,"snr_decibel_tenths":null}"#,
                );
                let frame =
                    OfferedFrame { phy: Bytes::from(phy), gateway: GatewayEui(9), rx: rx.unwrap(), heard_at: WallTime(0) };
                self.apply(Input::Offered { frame });
            }
        }
        if n.is_multiple_of(1_024) {
            self.now += 300;
            self.apply(Input::Tick);
            self.datagram(&[2, 7, 7, 2, 0, 0, 0, 0, 0, 0, 0, 1]);
        }
    }
}

fn argument(name: &str) -> Option<u64> {
    let mut arguments = std::env::args().skip_while(|argument| argument != name);
    arguments.nth(1).map(|value| value.parse().unwrap())
}

fn main() {
    let inputs = argument("--inputs").unwrap_or(10_000_000);
    let seed = argument("--seed").unwrap_or(20_261_121);
    SEED.store(seed, Ordering::Relaxed);
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        eprintln!("seed {}, input {}", SEED.load(Ordering::Relaxed), INPUT.load(Ordering::Relaxed));
        hook(info);
    }));
    let mut fuzzer = Fuzzer::new(seed);
    let start = Instant::now();
    let (mut settled, mut highest) = (0, 0);
    for n in 0..inputs {
        INPUT.store(n, Ordering::Relaxed);
        fuzzer.step(n);
        if n.is_multiple_of(65_536) {
            highest = highest.max(resident());
        }
        if n == inputs / 10 {
            settled = resident();
        }
    }
    let stats = fuzzer.bridge.stats();
    let growth = highest.max(resident()).saturating_sub(settled);
    assert!(growth <= GROWTH_BYTES_MAX, "seed {seed}: memory grew by {growth} bytes");
    assert!(stats.gateways <= 64 && stats.in_flight <= 1_024, "seed {seed}: {stats:?}");
    assert!(stats.sessions <= (DEVICES + 8 + JOINING) as usize, "seed {seed}: {stats:?}");
    assert!(stats.joins_begun > 0 && stats.joins_accepted > 0, "seed {seed}: joins are answered: {stats:?}");
    assert!(fuzzer.taken > inputs / 1_000, "seed {seed}: bent records are read: {}", fuzzer.taken);
    assert!(stats.uplinks_live > inputs / 200, "seed {seed}: good ones are served: {stats:?}");
    let by_target: Vec<String> = TARGETS.iter().zip(fuzzer.made).map(|(name, made)| format!(r#""{name}":{made}"#)).collect();
    println!(
        r#"{{"inputs":{inputs},"seed":{seed},"seconds":{:.1},"targets":{{{}}},"panics":0,"uplinks":{},"joins":{},"records":{},"resident_bytes":{},"growth_bytes":{growth},"drops":{}}}"#,
        start.elapsed().as_secs_f64(),
        by_target.join(","),
        stats.uplinks_live + stats.uplinks_late,
        stats.joins_begun,
        fuzzer.taken,
        resident(),
        serde_json::to_string(&stats.drops).unwrap(),
    );
}
