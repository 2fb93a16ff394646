//! How many frames per second one core takes from GWMP JSON to a verified, de-duplicated, decrypted and decoded event, what a session costs in
//! memory, and what frames of an address cost that 1,000 devices share. Prints one JSON object.
//!
//! Two gateways hear every frame, eight packets per datagram, so half of the packets are copies.

#![expect(clippy::unwrap_used, reason = "a benchmark stops at the first surprise")]

use std::time::Instant;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use contracts::ids::{DevAddr, DevEui, Epoch, EventId, GroupId};
use contracts::time::{BootTime, WallTime};
use lora_bridge::gwmp::sources::Rate;
use lora_bridge::{Bridge, Config, Input, Mode, Now, NwkSKey, Output, Session, Uplink};
use lora_device_service::codec::cayenne_lpp;
use lora_device_service::decrypt::{Direction, apply_key_stream};

const GROUP: GroupId = GroupId::from_bytes([1; 16]);
const KEY: [u8; 16] = [0x2b; 16];
const DEVICES: u32 = 1_000;
const PACKETS_PER_DATAGRAM: usize = 8;

/// Cayenne LPP: temperature 21.5 degrees, humidity 40 %, and an analogue input.
const PAYLOAD: [u8; 11] = [1, 103, 0, 215, 2, 104, 80, 3, 2, 1, 44];
const APP_S_KEY: tenant::Key = tenant::Key([9; 16]);

fn key_stream(address: u32, f_cnt: u32, payload: &mut [u8]) {
    apply_key_stream(&APP_S_KEY, Direction::Up, tenant::DevAddr(address.to_be_bytes()), f_cnt, payload);
}

fn frame(address: u32, f_cnt: u32) -> Vec<u8> {
    frame_of(address, f_cnt, KEY)
}

fn frame_of(address: u32, f_cnt: u32, key: [u8; 16]) -> Vec<u8> {
    let mut payload = PAYLOAD.to_vec();
    key_stream(address, f_cnt, &mut payload);
    let mut phy = lrwn::PhyPayload {
        mhdr: lrwn::MHDR { f_type: lrwn::FType::UnconfirmedDataUp, major: lrwn::Major::LoRaWANR1 },
        payload: lrwn::Payload::MACPayload(lrwn::MACPayload {
            fhdr: lrwn::FHDR { devaddr: lrwn::DevAddr::from_be_bytes(address.to_be_bytes()), f_cnt, ..lrwn::FHDR::default() },
            f_port: Some(2),
            frm_payload: Some(lrwn::FRMPayload::Raw(payload)),
        }),
        mic: None,
    };
    let key = lrwn::AES128Key::from_bytes(key);
    phy.set_uplink_data_mic(lrwn::MACVersion::LoRaWAN1_0, 0, 0, 0, &key, &key).unwrap();
    phy.to_vec().unwrap()
}

fn datagram(gateway: u8, frames: &[Vec<u8>]) -> Vec<u8> {
    let packets: Vec<String> = frames
        .iter()
        .map(|phy| {
            format!(
                r#"{{"jver":1,"tmst":3512348611,"time":"2026-01-01T00:00:00.000000Z","chan":2,"rfch":0,"freq":868.100000,"mid":8,"stat":1,"modu":"LORA","datr":"SF7BW125","codr":"4/5","rssi":-35,"lsnr":5.1,"foff":12,"size":{},"data":"{}"}}"#,
                phy.len(),
                STANDARD.encode(phy)
            )
        })
        .collect();
    let mut bytes = vec![2, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, gateway];
    bytes.extend_from_slice(format!(r#"{{"rxpk":[{}]}}"#, packets.join(",")).as_bytes());
    bytes
}

/// Resident memory of this process in bytes; 0 where there is no `/proc`.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()).and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) * 1_024
}

/// Time that this thread spent on a core, in seconds; what others do on the machine does not count. `None` where there is no `/proc`.
fn on_core() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    let nanos: u64 = stat.split_whitespace().next()?.parse().ok()?;
    Some(nanos as f64 / 1e9)
}

/// Decrypts and decodes as the device service does; the event, to be committed.
fn decoded(uplink: &Uplink) -> EventId {
    let mut payload = uplink.frm_payload.to_vec();
    let address =
        u32::from_be_bytes(*DevAddr::from_bytes([uplink.phy[4], uplink.phy[3], uplink.phy[2], uplink.phy[1]]).as_bytes());
    key_stream(address, uplink.f_cnt, &mut payload);
    let decoded = cayenne_lpp::decode(&payload);
    assert!(decoded.error.is_none() && decoded.values.len() == 3);
    uplink.event
}

/// Microseconds of a core per frame, and integrity codes per frame, where 1,000 devices share an address and all expect about the same counter.
fn crowded(now: Now) -> (f64, f64) {
    let mut bridge = Bridge::new(Config { source_rate: Rate::NONE, ..Config::default() });
    let key = |n: u32| u128::from(n).to_be_bytes();
    let session = |n: u32| Session::new(DevEui::from_u64(n.into()), DevAddr::from_u32(7), NwkSKey::from_bytes(key(n)));
    bridge.apply(Input::Register { group: GROUP, sessions: (0..1_000).map(session).collect() }, now, &mut Vec::new());
    let mode = Mode::Serving { epoch: Epoch(1), foreign_lease_end: None };
    bridge.apply(Input::Custody { group: GROUP, mode }, now, &mut Vec::new());
    let datagrams: Vec<_> =
        (0..4).flat_map(|f_cnt| (0..1_000).map(move |n| datagram(1, &[frame_of(7, f_cnt, key(n))]))).collect();
    let from = "127.0.0.1:1".parse().unwrap();
    let (start, on_core_start) = (Instant::now(), on_core());
    for (n, bytes) in (0_u64..).zip(&datagrams) {
        // 17 frames a second, as 1,000 devices that send once a minute: the allowance for trials is never used up.
        let now = Now { boot: BootTime(now.boot.0 + n * 60), ..now };
        bridge.apply(Input::Datagram { from, bytes }, now, &mut Vec::new());
    }
    let seconds = on_core().zip(on_core_start).map_or(start.elapsed().as_secs_f64(), |(end, start)| end - start);
    let stats = bridge.stats();
    assert_eq!(stats.uplinks_live, 4_000);
    (seconds * 1e6 / 4_000.0, stats.trials as f64 / 4_000.0)
}

/// What a session costs, and megabytes resident with 100,000 of them.
fn bytes_per_session(now: Now) -> (u64, f64) {
    const SESSIONS: u32 = 100_000;
    let before = resident();
    let mut bridge = Bridge::new(Config::default());
    for n in 0..SESSIONS {
        let session = Session::new(DevEui::from_u64(n.into()), DevAddr::from_u32(n), NwkSKey::from_bytes(KEY));
        bridge.apply(Input::Register { group: GROUP, sessions: vec![session] }, now, &mut Vec::new());
    }
    assert_eq!(bridge.stats().sessions, SESSIONS as usize);
    let resident = resident();
    (resident.saturating_sub(before) / u64::from(SESSIONS), resident as f64 / 1e6)
}

fn main() {
    let now = Now { boot: BootTime(1_000), wall: WallTime(1_000) };
    let (bytes_per_session, resident_100_000) = bytes_per_session(now);
    // Virtual time stands still while all packets arrive: no allowance of a source would do.
    let mut bridge = Bridge::new(Config { source_rate: Rate::NONE, ..Config::default() });
    let mut out = Vec::new();
    let session = |n: u32| Session::new(DevEui::from_u64(n.into()), DevAddr::from_u32(n), NwkSKey::from_bytes(KEY));
    bridge.apply(Input::Register { group: GROUP, sessions: (0..DEVICES).map(session).collect() }, now, &mut out);
    let mode = Mode::Serving { epoch: Epoch(1), foreign_lease_end: None };
    bridge.apply(Input::Custody { group: GROUP, mode }, now, &mut out);

    let all: Vec<Vec<u8>> = (0..100_u32).flat_map(|f_cnt| (0..DEVICES).map(move |n| frame(n, f_cnt))).collect();
    let datagrams: Vec<Vec<u8>> =
        all.chunks(PACKETS_PER_DATAGRAM).flat_map(|frames| [datagram(1, frames), datagram(2, frames)]).collect();
    let from = "127.0.0.1:1".parse().unwrap();
    let (start, on_core_start) = (Instant::now(), on_core());
    let mut uplinks = 0_u64;
    for bytes in &datagrams {
        out.clear();
        bridge.apply(Input::Datagram { from, bytes }, now, &mut out);
        let events: Vec<_> = out
            .iter()
            .filter_map(|output| if let Output::Uplink(uplink) = output { Some(decoded(uplink)) } else { None })
            .collect();
        uplinks += events.len() as u64;
        if !events.is_empty() {
            bridge.apply(Input::Committed { events }, now, &mut out);
        }
    }
    let elapsed = start.elapsed().as_secs_f64();
    let seconds = on_core().zip(on_core_start).map_or(elapsed, |(end, start)| end - start);
    let stats = bridge.stats();
    assert_eq!(uplinks, all.len() as u64);
    assert_eq!(stats.copies, uplinks);
    let (crowded_micros, crowded_trials) = crowded(now);
    println!(
        r#"{{"frames":{},"unique":{uplinks},"core_seconds":{seconds:.3},"elapsed_seconds":{elapsed:.3},"frames_per_second":{:.0},"unique_per_second":{:.0},"bytes_per_session":{bytes_per_session},"resident_100000_sessions_mb":{:.0},"crowded_address_micros_per_frame":{crowded_micros:.0},"crowded_address_trials_per_frame":{crowded_trials:.0}}}"#,
        stats.packets,
        stats.packets as f64 / seconds,
        uplinks as f64 / seconds,
        resident_100_000
    );
}
