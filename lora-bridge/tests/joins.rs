//! Activation over the air: answered by the holder only, after it is written ahead; whoever takes over uses no nonce again, ends what was
//! begun, and serves the mote. The mote is `lorawan`, which shares no code with the bridge's `lrwn`.

mod common;

use common::joiner::{Joiner, accepts, recorded, records, register, serving};
use common::{GATEWAY, Rig, address, push, uplinks};
use lora_bridge::bridge::io::Accept;
use lora_bridge::mac::join::{DeviceRecord, NonceRule};
use lora_bridge::{DropReason, GatewayEui, Input, MissedReason, Mode, Output, Session, Window};
use rand::{Rng, SeedableRng};

#[test]
fn a_join_is_written_ahead_answered_at_its_time_and_its_session_works() {
    let joiner = Joiner::new(1);
    let mut rig = serving(std::slice::from_ref(&joiner));
    let tmst = rig.tmst();
    let out = rig.hear(&joiner.request(0x1234));
    assert_eq!((records(&out).len(), accepts(&out).len()), (1, 0), "written ahead first");
    rig.now += 50;
    assert!(accepts(&recorded(&mut rig, &out)).is_empty(), "a better gateway may have heard it");
    assert_eq!(rig.bridge.next_due(), Some(contracts::time::BootTime(rig.now + 150)));
    assert!(accepts(&rig.advance(149)).is_empty());
    let out = rig.advance(1);
    let accept = accepts(&out)[0];
    let json: serde_json::Value = serde_json::from_slice(&accept.bytes[4..]).expect("JSON");
    assert_eq!((accept.window, &json["txpk"]["tmst"]), (Window::Rx1, &tmst.wrapping_add(5_000_000).into()));
    let (mote, nonce) = joiner.joined(&accept.bytes, 0x1234);
    assert_eq!((nonce, accept.joined.join_nonce, accept.joined.dev_nonce), (1, 1, 0x1234));
    assert!(accepts(&rig.advance(4_500)).is_empty(), "once");
    rig.now += 5_000;
    // The first block of counters came with the record.
    let out = rig.hear_and_commit(&mote.frame(0, true));
    assert_eq!(common::downlinks(&out)[0].f_cnt_down, 0);
    // The same request again is a replay.
    rig.now += 10_000;
    assert!(records(&rig.hear(&joiner.request(0x1234))).is_empty());
    assert_eq!(rig.bridge.stats().dropped(DropReason::JoinReplayed), 1);
}

#[test]
fn a_record_that_comes_when_rx1_is_over_is_answered_in_rx2_without_a_turn_in_vain() {
    for delay in 4_800..5_100 {
        let joiner = Joiner::new(1);
        let mut rig = serving(std::slice::from_ref(&joiner));
        let heard_at = rig.now;
        let wanted = rig.hear(&joiner.request(1));
        rig.now += delay;
        let mut out = recorded(&mut rig, &wanted);
        out.extend(rig.apply(Input::Tick));
        while accepts(&out).is_empty() {
            let due = rig.bridge.next_due().expect("an accept is owed").0;
            assert!(due > rig.now, "{delay} ms after the request the bridge turns in vain");
            rig.now = due;
            out = rig.apply(Input::Tick);
            out.extend(rig.apply(Input::Tick));
        }
        let is_rx1 = accepts(&out)[0].window == Window::Rx1;
        assert!(rig.now < heard_at + if is_rx1 { 5_000 } else { 6_000 }, "{delay}");
    }
}

#[test]
fn late_frames_of_the_session_before_are_readings_and_are_not_answered() {
    let joiner = Joiner::new(1);
    let mut rig = serving(std::slice::from_ref(&joiner));
    let mut motes = Vec::new();
    for dev_nonce in [1, 2] {
        let out = rig.hear(&joiner.request(dev_nonce));
        recorded(&mut rig, &out);
        let out = rig.advance(200);
        motes.push(joiner.joined(&accepts(&out)[0].bytes, dev_nonce).0);
        rig.now += 20_000;
        rig.pull();
    }
    let out = rig.hear_and_commit(&motes[1].frame(0, true));
    assert_eq!(common::downlinks(&out).len(), 1);
    let out = rig.hear(&motes[0].frame(3, true));
    assert_eq!(uplinks(&out)[0].event, motes[0].event(3));
    let event = motes[0].event(3);
    assert!(common::downlinks(&rig.commit(vec![event])).is_empty());
    assert!(uplinks(&rig.hear(&motes[0].frame(3, true))).is_empty(), "once");
}

#[test]
fn only_the_holder_answers_and_who_takes_over_answers_what_it_kept_in_rx2() {
    let joiner = Joiner::new(1);
    let mut b = Rig::new();
    b.pull();
    register(&mut b, std::slice::from_ref(&joiner), false, NonceRule::Random);
    b.custody(Mode::Standby);
    assert!(b.hear(&joiner.request(9)).iter().all(|output| matches!(output, Output::Send { .. })));
    assert_eq!(b.bridge.stats().joins_kept, 1);
    b.now += 2_000;
    // Custody, and then the tenant brings the key.
    let lease_end = b.now;
    b.serve(2, Some(lease_end));
    let out = register(&mut b, std::slice::from_ref(&joiner), true, NonceRule::Random);
    let out = recorded(&mut b, &out);
    let accept = accepts(&out)[0];
    assert_eq!(accept.window, Window::Rx2, "the other may have answered in RX1");
    joiner.joined(&accept.bytes, 9);
    // Back in standby the key is forgotten.
    b.custody(Mode::Standby);
    b.serve(3, None);
    b.now += 10_000;
    b.pull();
    assert!(records(&b.hear(&joiner.request(10))).is_empty());
}

/// Nobody can check a request without the root key: what strangers write in the device's name must not push out the device's own.
#[test]
fn a_request_in_standby_outlives_those_that_are_forged_and_replayed() {
    let (joiner, second) = (Joiner::new(1), Joiner::new(2));
    let mut b = Rig::new();
    b.pull();
    register(&mut b, &[joiner.clone(), second.clone()], false, NonceRule::Random);
    b.custody(Mode::Standby);
    let forger = Joiner { key: [0xee; 16], ..joiner.clone() };
    let tmst = b.tmst();
    b.hear(&joiner.request(9));
    for dev_nonce in 100..600 {
        b.now += 2;
        b.hear(&forger.request(dev_nonce));
    }
    // The same again, later: it must not be answered at that one's time.
    b.now += 100;
    b.hear(&joiner.request(9));
    b.hear(&second.request(9));
    assert_eq!(b.bridge.stats().dropped(DropReason::JoinsKeptFull), 500 - 31);
    let lease_end = b.now;
    b.serve(2, Some(lease_end));
    let out = register(&mut b, &[joiner.clone(), second.clone()], true, NonceRule::Random);
    assert_eq!(records(&out).len(), 2, "both motes'");
    let out = recorded(&mut b, &out);
    joiner.joined(&accepts(&out)[0].bytes, 9);
    let json: serde_json::Value = serde_json::from_slice(&accepts(&out)[0].bytes[4..]).expect("JSON");
    assert_eq!(json["txpk"]["tmst"], tmst.wrapping_add(6_000_000));
    assert_eq!(b.bridge.stats().dropped(DropReason::IntegrityCode), 31);
    // What a record names as used is not kept again, but for the newest at its time, which its writer may not have answered.
    for (dev_nonce, f_cnt_up_next, later, kept) in [(9, 0, 0, 0), (9, 1, 0, 0), (10, 0, 0, 1), (10, 1, 0, 0), (10, 0, 20_000, 0)]
    {
        let mut c = Rig::new();
        c.now += 7_000 + later;
        c.pull();
        register(&mut c, std::slice::from_ref(&joiner), false, NonceRule::Random);
        c.custody(Mode::Standby);
        let mut record = recorded_for(&joiner, &[9, 10]);
        record.session.f_cnt_up_next = f_cnt_up_next;
        c.apply(Input::Records { records: vec![record] });
        c.hear(&joiner.request(dev_nonce));
        assert_eq!(
            (c.bridge.stats().joins_kept, c.bridge.stats().dropped(DropReason::JoinReplayed)),
            (kept, 1 - kept),
            "{dev_nonce}"
        );
    }
}

/// What a holder recorded that was sent requests with these nonces, one each 7 s.
fn recorded_for(joiner: &Joiner, dev_nonces: &[u16]) -> DeviceRecord {
    let mut a = serving(std::slice::from_ref(joiner));
    let mut all = Vec::new();
    for dev_nonce in dev_nonces {
        all = records(&a.hear(&joiner.request(*dev_nonce)));
        a.now += 7_000;
        a.pull();
    }
    all.remove(0)
}

#[test]
fn whoever_takes_over_ends_what_the_holder_recorded_and_did_not_answer() {
    let joiner = Joiner::new(1);
    let mut a = serving(std::slice::from_ref(&joiner));
    let (mut b, tmst) = (Rig::new(), a.tmst());
    b.pull();
    register(&mut b, std::slice::from_ref(&joiner), false, NonceRule::Random);
    b.custody(Mode::Standby);
    // The record may be here before the request.
    let begun = records(&a.hear(&joiner.request(9))).remove(0);
    b.apply(Input::Records { records: vec![begun.clone()] });
    b.hear(&joiner.request(9));
    b.now += 4_000;
    let lease_end = b.now;
    b.serve(2, Some(lease_end));
    let out = register(&mut b, std::slice::from_ref(&joiner), true, NonceRule::Random);
    let record = records(&out).remove(0);
    assert!(record.version > begun.version && record.past.is_empty(), "{record:?}");
    assert_eq!(
        (record.session.joined, &record.nonces),
        (begun.session.joined, &begun.nonces),
        "the same nonces, the same session"
    );
    let out = recorded(&mut b, &out);
    let json: serde_json::Value = serde_json::from_slice(&accepts(&out)[0].bytes[4..]).expect("JSON");
    assert_eq!(json["txpk"]["tmst"], tmst.wrapping_add(6_000_000), "the holder may have answered in RX1");
    let (mote, join_nonce) = joiner.joined(&accepts(&out)[0].bytes, 9);
    assert_eq!(join_nonce, 1);
    // What the mote says then is served, and the same request is a replay.
    b.now += 3_000;
    let mut out = b.hear_and_commit(&mote.frame(0, true));
    let holders = begun.session.f_cnt_down_reserved;
    out.extend(b.reserve(&[mote], 2 * holders));
    assert!(common::downlinks(&out)[0].f_cnt_down >= holders, "counters of the holder are not used again");
    b.now += 7_000;
    b.pull();
    assert!(records(&b.hear(&joiner.request(9))).is_empty());
}

/// A request and the record of another one, 1 s older, at a node that takes over.
fn taking_over(begun: &DeviceRecord, registered: &Joiner, requests: &[Vec<u8>]) -> (Rig, Vec<Output>) {
    let mut b = Rig::new();
    b.pull();
    register(&mut b, std::slice::from_ref(registered), false, NonceRule::Random);
    b.custody(Mode::Standby);
    b.apply(Input::Records { records: vec![begun.clone()] });
    b.now += 1_000;
    for request in requests {
        b.hear(request);
        b.now += 50;
    }
    b.now += 2_000;
    let lease_end = b.now;
    b.serve(2, Some(lease_end));
    let out = register(&mut b, std::slice::from_ref(registered), true, NonceRule::Random);
    (b, out)
}

#[test]
fn a_replay_of_what_was_begun_does_not_stand_before_the_devices_own_request() {
    let joiner = Joiner::new(1);
    let begun = recorded_for(&joiner, &[9]);
    let (_, out) = taking_over(&begun, &joiner, &[joiner.request(10), joiner.request(9)]);
    assert_eq!(records(&out)[0].session.joined.map(|joined| joined.dev_nonce), Some(10));
    // Alone it is ended.
    let (_, out) = taking_over(&begun, &joiner, &[joiner.request(9)]);
    assert_eq!(records(&out)[0].session.joined, begun.session.joined);
}

#[test]
fn what_was_begun_with_other_settings_is_not_ended() {
    let joiner = Joiner::new(1);
    let mut begun = recorded_for(&joiner, &[9]);
    begun.session.receive_windows.rx1_delay_seconds = 5;
    let (b, out) = taking_over(&begun, &joiner, &[joiner.request(9)]);
    assert!(records(&out).is_empty());
    assert_eq!(b.bridge.stats().dropped(DropReason::JoinReplayed), 1);
}

#[test]
fn a_request_that_comes_just_after_the_takeover_is_ended_too_and_once() {
    let joiner = Joiner::new(1);
    let begun = recorded_for(&joiner, &[9]);
    let (mut b, out) = taking_over(&begun, &joiner, &[]);
    assert!(records(&out).is_empty());
    let out = b.hear(&joiner.request(9));
    assert_eq!(records(&out)[0].session.joined, begun.session.joined);
    assert_eq!(accepts(&recorded(&mut b, &out)).len() + accepts(&b.advance(200)).len(), 1);
    b.now += 6_000;
    b.pull();
    assert!(records(&b.hear(&joiner.request(9))).is_empty(), "of this epoch it is a replay");
}

#[test]
fn a_gateway_that_has_not_pulled_yet_has_until_a_second_before_the_window() {
    let joiner = Joiner::new(1);
    let mut rig = Rig::new();
    register(&mut rig, std::slice::from_ref(&joiner), true, NonceRule::Random);
    rig.serve(1, None);
    let out = rig.hear(&joiner.request(1));
    assert!(accepts(&recorded(&mut rig, &out)).is_empty());
    assert!(accepts(&rig.advance(3_000)).is_empty());
    rig.pull();
    assert_eq!(accepts(&rig.advance(1_000))[0].window, Window::Rx1);
}

#[test]
fn a_gateway_without_a_queue_gets_the_accept_a_second_before_its_time() {
    let joiner = Joiner::new(1);
    let mut rig = serving(std::slice::from_ref(&joiner));
    let pull_v1 = [&[1, 7, 7, 2][..], &GATEWAY.0.to_be_bytes()].concat();
    rig.apply(Input::Datagram { from: address(1_001), bytes: &pull_v1 });
    let out = rig.hear(&joiner.request(1));
    assert!(accepts(&recorded(&mut rig, &out)).is_empty());
    assert!(accepts(&rig.advance(3_999)).is_empty());
    assert_eq!(accepts(&rig.advance(1))[0].window, Window::Rx1);
}

#[test]
fn a_refusal_in_rx1_leads_to_rx2_and_a_record_that_comes_late_is_counted() {
    let joiner = Joiner::new(1);
    let mut rig = serving(std::slice::from_ref(&joiner));
    let out = rig.hear(&joiner.request(1));
    recorded(&mut rig, &out);
    let out = rig.advance(200);
    let first = accepts(&out)[0].clone();
    let tx_ack = |accept: &Accept, error: &str| {
        let head = [2, accept.bytes[1], accept.bytes[2], 5];
        [&head[..], &accept.gateway.0.to_be_bytes(), format!(r#"{{"txpk_ack":{{"error":"{error}"}}}}"#).as_bytes()].concat()
    };
    let out = rig.apply(Input::Datagram { from: address(1_001), bytes: &tx_ack(&first, "COLLISION_PACKET") });
    let second = accepts(&out)[0];
    assert_eq!(second.window, Window::Rx2);
    assert_eq!(second.joined, first.joined, "the same join");
    rig.now += 20_000;
    rig.pull();
    let out = rig.hear(&joiner.request(2));
    rig.advance(6_000);
    assert_eq!(rig.bridge.stats().missed(MissedReason::NotRecorded), 1);
    assert!(accepts(&recorded(&mut rig, &out)).is_empty(), "too late");
}

#[test]
fn what_is_forged_replayed_foreign_or_too_often_costs_next_to_nothing() {
    let (joiner, stranger) = (Joiner::new(1), Joiner::new(2));
    let mut rig = serving(std::slice::from_ref(&joiner));
    assert!(records(&rig.hear(&stranger.request(1))).is_empty());
    assert_eq!(rig.bridge.stats().dropped(DropReason::FrameJoin), 1);
    let mut forged = joiner.request(1);
    forged[20] ^= 1;
    assert!(records(&rig.hear(&forged)).is_empty());
    assert_eq!(rig.bridge.stats().dropped(DropReason::IntegrityCode), 1);
    // A mote that joins every two seconds for an hour, with a new nonce each time, and never says anything.
    let mut begun = 0;
    for n in 0..1_800_u16 {
        if n % 20 == 0 {
            rig.pull();
        }
        let out = rig.hear(&joiner.request(n));
        begun += records(&out).len();
        recorded(&mut rig, &out);
        rig.advance(2_000);
    }
    assert!((10..25).contains(&begun), "{begun} joins in an hour");
    assert_eq!(rig.bridge.stats().sessions, 1);
}

#[test]
fn rising_nonces_do_not_fall() {
    let joiner = Joiner::new(1);
    let mut rig = Rig::new();
    rig.pull();
    register(&mut rig, std::slice::from_ref(&joiner), true, NonceRule::Rising);
    rig.serve(1, None);
    for (dev_nonce, is_taken) in [(5, true), (5, false), (4, false), (6, true)] {
        rig.now += 400_000;
        rig.pull();
        let out = rig.hear(&joiner.request(dev_nonce));
        assert_eq!(records(&out).len(), usize::from(is_taken), "nonce {dev_nonce}");
        recorded(&mut rig, &out);
        rig.advance(10_000);
    }
}

/// Two nodes, one mote that joins and joins again, kills at every point: before the record is stored anywhere, stored by a minority, stored
/// by the majority, the accept sent or not. The judge: no nonce of the network for two requests, only one node per epoch, the mote is served.
#[test]
#[expect(clippy::too_many_lines, reason = "one history, step by step")]
fn histories_with_kills() {
    let (mut answered, mut takeovers, mut ended) = (0, 0, 0);
    for seed in 0..200_u64 {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
        let joiner = Joiner::new(1);
        // Disks: each node's own newest record, and the witness's.
        let mut disks: [Option<DeviceRecord>; 3] = [None, None, None];
        let fresh = |now: u64, disk: &Option<DeviceRecord>, other: bool| {
            let mut rig = Rig::new();
            rig.now = now;
            rig.pull();
            register(&mut rig, std::slice::from_ref(&joiner), !other, NonceRule::Random);
            rig.apply(Input::Records { records: disk.iter().cloned().collect() });
            rig.custody(Mode::Standby);
            rig
        };
        let mut nodes = [fresh(1_000_000, &None, false), fresh(1_000_000, &None, true)];
        let (mut holder, mut epoch) = (0, 1);
        register(&mut nodes[0], std::slice::from_ref(&joiner), true, NonceRule::Random);
        nodes[0].serve(1, None);
        register(&mut nodes[0], std::slice::from_ref(&joiner), true, NonceRule::Random);
        let mut used = std::collections::BTreeMap::new();
        let mut dev_nonce = 0_u16;
        let mut is_joined = false;
        for _ in 0..60 {
            dev_nonce += 1;
            is_joined = false;
            for node in &mut nodes {
                node.now += 400_000;
                node.pull();
            }
            let request = joiner.request(dev_nonce);
            let mut wanted = Vec::new();
            for (at, node) in nodes.iter_mut().enumerate() {
                let out = node.apply(Input::Datagram { from: address(1_002), bytes: &push(GATEWAY, &[(5, request.clone())]) });
                assert!(at == holder || records(&out).is_empty(), "seed {seed}: a record without custody");
                wanted.extend(records(&out));
            }
            let record = wanted.pop();
            let kill_at = rng.random_range(0..8);
            if let Some(record) = record.clone() {
                // The holder's own disk first, then perhaps others.
                let reach: &[usize] = match kill_at {
                    0 => &[],
                    1 => &[0],
                    2 => &[0, 1],
                    _ => [&[0, 1][..], &[0, 2], &[0, 1, 2]][rng.random_range(0..3)],
                };
                for place in reach {
                    let disk = match place {
                        0 => holder,
                        1 => 2,
                        _ => 1 - holder,
                    };
                    disks[disk] = Some(record.clone());
                    if disk == 1 - holder {
                        nodes[disk].apply(Input::Records { records: vec![record.clone()] });
                    }
                }
                if kill_at > 2 {
                    nodes[holder].apply(Input::Recorded { record: Box::new(record) });
                    if kill_at > 3 {
                        let out = nodes[holder].advance(200);
                        for accept in accepts(&out) {
                            assert_eq!(
                                used.insert(accept.joined.join_nonce, dev_nonce),
                                None,
                                "seed {seed}: a nonce of the network twice"
                            );
                            let (mote, _) = joiner.joined(&accept.bytes, dev_nonce);
                            answered += 1;
                            let heard = nodes[holder].hear(&mote.frame(0, false));
                            is_joined = !uplinks(&heard).is_empty();
                            assert!(is_joined, "seed {seed}: the session does not work");
                        }
                    }
                }
            }
            if kill_at < 6 {
                // Killed. It comes back with its disk; the other takes over with what the majority, the witness and itself, knows.
                takeovers += 1;
                let now = nodes[0].now.max(nodes[1].now);
                nodes[holder] = fresh(now, &disks[holder], true);
                holder = 1 - holder;
                epoch += 1;
                let known: Vec<DeviceRecord> = [holder, 2].iter().filter_map(|disk| disks[*disk].clone()).collect();
                disks[holder] = known.iter().max_by_key(|record| record.version).cloned();
                nodes[holder].now = now;
                nodes[holder].pull();
                nodes[holder].apply(Input::Records { records: known });
                nodes[holder].serve(epoch, Some(now + 1));
                let mut out = register(&mut nodes[holder], std::slice::from_ref(&joiner), true, NonceRule::Random);
                // What it had kept it may answer now; the record is stored everywhere.
                for record in records(&out) {
                    disks = [Some(record.clone()), Some(record.clone()), Some(record.clone())];
                    out.extend(nodes[holder].apply(Input::Recorded { record: Box::new(record.clone()) }));
                    nodes[1 - holder].apply(Input::Records { records: vec![record] });
                }
                out.extend(nodes[holder].advance(1_000));
                for accept in accepts(&out) {
                    assert_eq!(accept.window, Window::Rx2, "seed {seed}");
                    joiner.joined(&accept.bytes, dev_nonce);
                    let before = used.insert(accept.joined.join_nonce, dev_nonce);
                    assert!(before.is_none_or(|before| before == dev_nonce), "seed {seed}: a nonce twice after a takeover");
                    ended += 1;
                }
            }
        }
        // Left alone, the mote joins at its next request.
        let node = &mut nodes[holder];
        node.now += 400_000;
        node.pull();
        let out = node.hear(&joiner.request(0x8000));
        recorded(node, &out);
        let out = node.advance(200);
        let (mote, nonce) = joiner.joined(&accepts(&out)[0].bytes, 0x8000);
        assert_eq!(used.insert(nonce, 0x8000), None, "seed {seed}");
        assert_eq!(uplinks(&node.hear(&mote.frame(0, false))).len(), 1, "seed {seed}");
        let _last = is_joined;
    }
    assert!(answered > 1_000 && takeovers > 1_000, "not empty: {answered} answered, {takeovers} takeovers");
    assert!(ended > takeovers / 2, "whoever takes over ends what was begun: {ended} of {takeovers}");
}

#[test]
fn a_session_from_a_record_is_known_in_standby() {
    let joiner = Joiner::new(1);
    let mut a = serving(std::slice::from_ref(&joiner));
    let out = a.hear(&joiner.request(1));
    let record = records(&out).remove(0);
    recorded(&mut a, &out);
    let out = a.advance(4_000);
    let (mote, _) = joiner.joined(&accepts(&out)[0].bytes, 1);
    let mut b = Rig::new();
    register(&mut b, std::slice::from_ref(&joiner), false, NonceRule::Random);
    b.custody(Mode::Standby);
    let json = serde_json::to_string(&record).expect("JSON");
    b.apply(Input::Records { records: vec![serde_json::from_str(&json).expect("its own JSON")] });
    b.hear(&mote.frame(0, false));
    assert_eq!(b.bridge.stats().buffer_frames, 1);
    let state = b.bridge.state(joiner.device).expect("registered");
    assert_eq!((state.session, state.f_cnt_down_reserved), (Session { ..record.session }.id(), 16));
    assert_eq!(b.bridge.record_version(joiner.device), Some(record.version));
}

/// A device that did not hear an accept asks again: what it used before stays known, also to who has the newest record alone.
#[test]
fn a_record_names_the_sessions_before_it() {
    let joiner = Joiner::new(1);
    let mut a = serving(std::slice::from_ref(&joiner));
    let (mut motes, mut newest) = (Vec::new(), None);
    for dev_nonce in 1..=4 {
        let out = a.hear(&joiner.request(dev_nonce));
        newest = records(&out).pop();
        recorded(&mut a, &out);
        let out = a.advance(4_000);
        motes.push(joiner.joined(&accepts(&out)[0].bytes, dev_nonce).0);
        a.now += 20_000;
        a.pull();
        if dev_nonce == 1 {
            a.hear_and_commit(&motes[0].frame(0, false));
            a.now += 100_000;
            a.pull();
        }
    }
    let record = newest.expect("four joins");
    let past: Vec<_> = record.past.iter().map(|session| session.joined.expect("of a join").dev_nonce).collect();
    assert_eq!(past, [1, 3], "the one that was used, and the last before the newest");
    let mut b = Rig::new();
    register(&mut b, std::slice::from_ref(&joiner), true, NonceRule::Random);
    b.apply(Input::Records { records: vec![record.clone()] });
    b.custody(Mode::Following);
    let of = |out: &[Output]| uplinks(out).first().map(|uplink| (uplink.event, uplink.joined.map(|joined| joined.dev_nonce)));
    assert_eq!(of(&b.hear(&motes[0].frame(5, false))), Some((motes[0].event(5), Some(1))));
    assert_eq!(of(&b.hear(&motes[2].frame(0, false))), Some((motes[2].event(0), Some(3))));
    assert_eq!(of(&b.hear(&motes[3].frame(0, false))), Some((motes[3].event(0), Some(4))));
    assert_eq!(of(&b.hear(&motes[1].frame(0, false))), None, "forgotten: it was never used");
    // What the other node served of a session that is over is not asked for again.
    b.apply(Input::PeerProgress { served: vec![motes[0].mark(9)], settled: vec![motes[0].mark(9)] });
    assert_eq!(of(&b.hear(&motes[0].frame(9, false))), None);
}

#[test]
fn an_uplink_names_the_join_of_its_session_also_from_the_buffer() {
    let joiner = Joiner::new(1);
    let mut a = serving(std::slice::from_ref(&joiner));
    let out = a.hear(&joiner.request(7));
    let record = records(&out).remove(0);
    recorded(&mut a, &out);
    let out = a.advance(4_000);
    let (mote, _) = joiner.joined(&accepts(&out)[0].bytes, 7);
    let mut b = Rig::new();
    register(&mut b, std::slice::from_ref(&joiner), false, NonceRule::Random);
    b.custody(Mode::Standby);
    b.apply(Input::Records { records: vec![record] });
    b.hear(&mote.frame(0, false));
    let others = [GatewayEui(11), GatewayEui(12)];
    for gateway in others {
        let tmst = b.tmst();
        b.hear_by(gateway, tmst, &mote.frame(0, false));
    }
    // It joins again before the insurer serves.
    let out = a.advance(30_000);
    assert!(accepts(&out).is_empty());
    a.pull();
    let out = a.hear(&joiner.request(8));
    b.apply(Input::Records { records: records(&out) });
    let out = b.serve(2, Some(0));
    let uplink = uplinks(&out)[0];
    assert_eq!((uplink.event, uplink.joined.map(|joined| joined.dev_nonce)), (mote.event(0), Some(7)));
    assert_eq!(uplink.dev_addr().to_string(), format!("{:08x}", joiner.address));
    assert_eq!(uplink.others.iter().map(|other| other.gateway).collect::<Vec<_>>(), others, "all that heard it");
}
