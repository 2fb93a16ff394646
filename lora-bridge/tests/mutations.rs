//! Whatever arrives: no panic, bounded state, and the next good datagram is served. Seeded; the seed is in every message.

mod common;
#[path = "common/mutate.rs"]
mod mutate;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use common::{GATEWAY, GROUP, Mote, OTHER_GATEWAY, Rig, address, downlinks, pull, push, tx_ack, uplinks};
use contracts::time::WallTime;
use lora_bridge::{Config, Input, Mode, OfferedFrame};
use mutate::mutate;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

const CASES: u32 = 120_000;

const PIECES: &[&[u8]] =
    &[b"{", b"}", b"[", b"]", b"\"", b"\\", b",", b":", b"null", b"-1", b"1e999", b"\0", b"\xff", b"\"rxpk\":["];

#[test]
fn no_datagram_harms_the_bridge() {
    let seed = 20_260_101;
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let motes: Vec<Mote> = (0..8).map(Mote::new).collect();
    let config = Config { gateways_max: 16, in_flight_max: 64, outstanding_max: 16, ..Config::default() };
    let mut rig = Rig::with(config);
    rig.prepare(&motes);
    rig.serve(1, None);
    rig.reserve(&motes, 1_000_000);
    let mut sent = None;
    for case in 0..CASES {
        rig.now += 7;
        let mote = &motes[rng.random_range(0..motes.len())];
        let f_cnt = case / 8;
        let mut frames: Vec<(u32, Vec<u8>)> = vec![(rng.random(), mote.frame(f_cnt, rng.random()))];
        if rng.random() {
            let mut second = mote.frame(f_cnt, rng.random());
            mutate(&mut rng, &mut second, PIECES);
            second.truncate(255);
            frames.push((rng.random(), second));
        }
        let mut bytes = match rng.random_range(0..10) {
            0 => pull(OTHER_GATEWAY),
            1 | 2 if sent.is_some() => {
                tx_ack(sent.as_ref().expect("just checked"), ["TOO_LATE", "", "NONE", "x"][rng.random_range(0..4)])
            }
            _ => push(GATEWAY, &frames),
        };
        mutate(&mut rng, &mut bytes, PIECES);
        let out = rig.apply(Input::Datagram { from: address(1_001), bytes: &bytes });
        let events = uplinks(&out).iter().map(|uplink| uplink.event).collect();
        let out = rig.commit(events);
        sent = downlinks(&out).last().map(|downlink| (*downlink).clone()).or(sent);
        if case % 1_000 == 0 {
            rig.pull();
            let waited = rig.advance(0);
            rig.commit(uplinks(&waited).iter().map(|uplink| uplink.event).collect());
            let stats = rig.bridge.stats();
            assert!(stats.gateways <= 16 && stats.in_flight <= 64, "seed {seed}, case {case}: {stats:?}");
        }
    }
    let stats = rig.bridge.stats();
    assert!(stats.uplinks_live > 1_000, "seed {seed}: some survive: {stats:?}");
    assert!(stats.drops.len() > 10, "seed {seed}: many ways to be dropped: {stats:?}");
    let next = CASES / 8 + 5;
    let mut out = rig.hear(&motes[0].frame(next, false));
    // It may wait for a gateway that mutations made up.
    out.extend(rig.advance(40));
    assert_eq!(uplinks(&out).iter().filter(|uplink| uplink.f_cnt == next).count(), 1, "seed {seed}");
}

#[test]
fn no_offered_frame_harms_the_bridge() {
    let seed = 7;
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mote = Mote::new(1);
    let mut rig = Rig::standby(std::slice::from_ref(&mote));
    for case in 0..20_000_u32 {
        if case == 10_000 {
            rig.custody(Mode::Following);
        }
        let mut phy = mote.frame(case, rng.random());
        mutate(&mut rng, &mut phy, PIECES);
        let rx = serde_json::from_str(
            r#"{"tmst":null,"frequency_hz":null,"data_rate":"other","rssi_dbm":null,"snr_decibel_tenths":null}"#,
        );
        let frame = OfferedFrame { phy: phy.into(), gateway: GATEWAY, rx: rx.expect("metadata"), heard_at: WallTime(0) };
        rig.apply(Input::Offered { frame });
    }
    assert!(rig.bridge.stats().verified < 2_000, "seed {seed}: mutated frames are not authentic");
}

#[test]
fn a_good_packet_survives_whatever_stands_beside_it() {
    let mut survived = 0;
    for seed in 0..2_000_u64 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mote = Mote::new(1);
        let mut rig = Rig::serving(std::slice::from_ref(&mote));
        let good = format!(r#"{{"tmst":1,"data":"{}"}}"#, STANDARD.encode(mote.frame(0, false)));
        // Text and brackets stay balanced: otherwise the datagram says something else.
        let values = ["null", "-7", "1e400", "\"\"", "[]", "{}", "\"A,]}{[\"", "[1,{\"a\":\"]\"}]", "true", "0.5"];
        let keys = ["tmst", "freq", "stat", "datr", "rssi", "lsnr", "data", "rsig", "modu", "x"];
        let fields: Vec<String> = (0..rng.random_range(0..5))
            .map(|_| format!("\"{}\":{}", keys[rng.random_range(0..keys.len())], values[rng.random_range(0..values.len())]))
            .collect();
        let odd = format!("{{{}}}", fields.join(","));
        let bytes = [&push(GATEWAY, &[])[..12], format!(r#"{{"rxpk":[{odd},{good},{odd}]}}"#).as_bytes()].concat();
        let out = rig.apply(Input::Datagram { from: address(1), bytes: &bytes });
        assert_eq!(uplinks(&out).len(), 1, "seed {seed}: {odd}");
        survived += 1;
    }
    assert_eq!(survived, 2_000);
    let _ = GROUP;
}
