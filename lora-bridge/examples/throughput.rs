//! How many frames per second one core takes from GWMP JSON to a verified, de-duplicated event, and what a session costs in memory. Prints
//! one JSON object.
//!
//! Two gateways hear every frame, eight packets per datagram, so half of the packets are copies.

#![expect(clippy::unwrap_used, reason = "a benchmark stops at the first surprise")]

use std::time::Instant;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use contracts::ids::{DevAddr, DevEui, Epoch, GroupId};
use contracts::time::{BootTime, WallTime};
use lora_bridge::gwmp::sources::Rate;
use lora_bridge::{Bridge, Config, Input, Mode, Now, NwkSKey, Output, Session};

const GROUP: GroupId = GroupId::from_bytes([1; 16]);
const KEY: [u8; 16] = [0x2b; 16];
const DEVICES: u32 = 1_000;
const PACKETS_PER_DATAGRAM: usize = 8;

fn frame(address: u32, f_cnt: u32, payload: usize) -> Vec<u8> {
    let mut phy = lrwn::PhyPayload {
        mhdr: lrwn::MHDR { f_type: lrwn::FType::UnconfirmedDataUp, major: lrwn::Major::LoRaWANR1 },
        payload: lrwn::Payload::MACPayload(lrwn::MACPayload {
            fhdr: lrwn::FHDR { devaddr: lrwn::DevAddr::from_be_bytes(address.to_be_bytes()), f_cnt, ..lrwn::FHDR::default() },
            f_port: Some(2),
            frm_payload: Some(lrwn::FRMPayload::Raw(vec![7; payload])),
        }),
        mic: None,
    };
    let key = lrwn::AES128Key::from_bytes(KEY);
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

fn bytes_per_session(now: Now) -> u64 {
    const SESSIONS: u32 = 100_000;
    let before = resident();
    let mut bridge = Bridge::new(Config::default());
    for n in 0..SESSIONS {
        let session = Session::new(DevEui::from_u64(n.into()), DevAddr::from_u32(n), NwkSKey::from_bytes(KEY));
        bridge.apply(Input::Register { group: GROUP, sessions: vec![session] }, now, &mut Vec::new());
    }
    assert_eq!(bridge.stats().sessions, SESSIONS as usize);
    resident().saturating_sub(before) / u64::from(SESSIONS)
}

fn main() {
    let now = Now { boot: BootTime(1_000), wall: WallTime(1_000) };
    let bytes_per_session = bytes_per_session(now);
    // Virtual time stands still while all packets arrive: no allowance of a source would do.
    let mut bridge = Bridge::new(Config { source_rate: Rate::NONE, ..Config::default() });
    let mut out = Vec::new();
    let session = |n: u32| Session::new(DevEui::from_u64(n.into()), DevAddr::from_u32(n), NwkSKey::from_bytes(KEY));
    bridge.apply(Input::Register { group: GROUP, sessions: (0..DEVICES).map(session).collect() }, now, &mut out);
    let mode = Mode::Serving { epoch: Epoch(1), foreign_lease_end: None };
    bridge.apply(Input::Custody { group: GROUP, mode }, now, &mut out);

    let all: Vec<Vec<u8>> = (0..100_u32).flat_map(|f_cnt| (0..DEVICES).map(move |n| frame(n, f_cnt, 10))).collect();
    let datagrams: Vec<Vec<u8>> =
        all.chunks(PACKETS_PER_DATAGRAM).flat_map(|frames| [datagram(1, frames), datagram(2, frames)]).collect();
    let from = "127.0.0.1:1".parse().unwrap();
    let (start, on_core_start) = (Instant::now(), on_core());
    let mut uplinks = 0_u64;
    for bytes in &datagrams {
        out.clear();
        bridge.apply(Input::Datagram { from, bytes }, now, &mut out);
        let events: Vec<_> =
            out.iter().filter_map(|output| if let Output::Uplink(uplink) = output { Some(uplink.event) } else { None }).collect();
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
    println!(
        r#"{{"frames":{},"unique":{uplinks},"core_seconds":{seconds:.3},"elapsed_seconds":{elapsed:.3},"frames_per_second":{:.0},"unique_per_second":{:.0},"bytes_per_session":{bytes_per_session}}}"#,
        stats.packets,
        stats.packets as f64 / seconds,
        uplinks as f64 / seconds
    );
}
