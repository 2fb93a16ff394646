//! Several gateways: copies collected without a fixed wait, the better way back, a flood, what is known of each.

mod common;

use common::{
    GATEWAY, Mote, OTHER_GATEWAY, Rig, address, downlinks, on_air, pull, push, push_with, the_downlink, tx_ack, uplinks,
};
use contracts::time::BootTime;
use lora_bridge::gwmp::sources::Rate;
use lora_bridge::gwmp::taps::Tap;
use lora_bridge::{Config, DropReason, GatewayEui, Input, MissedReason, Output, Window};

/// Both gateways hear `frames` uplinks, the second `delay` ms later.
fn both_hear(rig: &mut Rig, mote: &Mote, first: u32, frames: u32, delay: u64) {
    for f_cnt in first..first + frames {
        let phy = mote.frame(f_cnt, false);
        let mut out = rig.hear(&phy);
        rig.now += delay;
        out.extend(rig.hear_by(OTHER_GATEWAY, 9, &phy));
        out.extend(rig.advance(100));
        let events: Vec<_> = uplinks(&out).iter().map(|uplink| uplink.event).collect();
        assert_eq!(events, [mote.event(f_cnt)]);
        rig.commit(events);
        rig.now += 5_000;
    }
}

#[test]
fn with_one_gateway_an_uplink_goes_at_once() {
    let mote = Mote::new(1);
    let mut rig = Rig::serving(std::slice::from_ref(&mote));
    for f_cnt in 0..20 {
        assert_eq!(uplinks(&rig.hear_and_take(&mote.frame(f_cnt, false))).len(), 1, "{f_cnt}");
        rig.now += 5_000;
    }
    assert_eq!(rig.bridge.stats().copies_waited, 0);
}

#[test]
fn an_uplink_waits_for_the_gateway_that_heard_its_predecessors_and_no_longer_than_that() {
    let mote = Mote::new(1);
    let mut rig = Rig::serving(std::slice::from_ref(&mote));
    both_hear(&mut rig, &mote, 0, 4, 3);
    let phy = mote.frame(4, true);
    assert!(uplinks(&rig.hear(&phy)).is_empty(), "the other gateway is missing");
    rig.now += 12;
    let out = rig.apply(Input::Datagram { from: address(7), bytes: &push_with(OTHER_GATEWAY, &[(9, phy.clone())], 2, 50) });
    let uplink = uplinks(&out)[0].clone();
    assert_eq!((uplink.gateway, uplink.rx.snr_decibel_tenths), (OTHER_GATEWAY, Some(50)), "the best stands in front");
    assert_eq!(
        uplink.others.iter().map(|other| (other.gateway, other.rx.snr_decibel_tenths)).collect::<Vec<_>>(),
        [(GATEWAY, Some(-40))]
    );
    assert_eq!(uplink.heard_boot, BootTime(rig.now - 12), "the first copy's time");
    // The other gateway does not pull: the way back is the first.
    let tmst = rig.tmst() - 12_000;
    let downlink = the_downlink(&rig.commit(vec![uplink.event]), &mote, Window::Rx1);
    assert_eq!(downlink.tmst, tmst + 1_000_000);
    rig.now += 5_000;

    // It stays away: the wait has an end, then there is none.
    let mut waited = Vec::new();
    for f_cnt in 5..10 {
        let mut out = rig.hear(&mote.frame(f_cnt, false));
        waited.push(uplinks(&out).is_empty());
        if uplinks(&out).is_empty() {
            assert!(rig.bridge.next_due().is_some_and(|due| due <= BootTime(rig.now + 40)));
            out.extend(rig.advance(39));
            assert!(uplinks(&out).is_empty());
            out.extend(rig.advance(1));
        }
        assert_eq!(uplinks(&out).len(), 1);
        rig.commit(vec![mote.event(f_cnt)]);
        rig.now += 5_000;
    }
    assert_eq!(waited, [true, true, true, false, false], "two of the last four were the other gateway's");
}

#[test]
fn gateways_that_come_late_or_are_silent_are_not_waited_for() {
    let mote = Mote::new(1);
    let mut rig = Rig::serving(std::slice::from_ref(&mote));
    both_hear(&mut rig, &mote, 0, 6, 60);
    assert_eq!((rig.bridge.stats().copies, rig.bridge.stats().copies_late, rig.bridge.stats().copies_waited), (6, 6, 0));
    both_hear(&mut rig, &mote, 6, 4, 5);
    let waited = rig.bridge.stats().copies_waited;
    assert!(waited > 0);
    rig.now += 31_000;
    assert_eq!(uplinks(&rig.hear_and_take(&mote.frame(20, false))).len(), 1, "the other gateway was silent for 31 s");
    assert_eq!(rig.bridge.stats().copies_waited, waited);
}

#[test]
fn what_waits_is_given_out_when_custody_changes_or_the_device_goes_on() {
    let mote = Mote::new(1);
    let mut rig = Rig::serving(std::slice::from_ref(&mote));
    both_hear(&mut rig, &mote, 0, 4, 3);
    assert!(uplinks(&rig.hear(&mote.frame(4, false))).is_empty());
    let out = rig.hear(&mote.frame(5, false));
    assert_eq!(uplinks(&out).iter().map(|uplink| uplink.f_cnt).collect::<Vec<_>>(), [4], "in order");
    let out = rig.custody(lora_bridge::Mode::Fenced);
    assert_eq!(uplinks(&out).iter().map(|uplink| uplink.f_cnt).collect::<Vec<_>>(), [5]);
    assert!(uplinks(&rig.advance(1_000)).is_empty(), "once");
    assert_eq!(rig.bridge.stats().in_flight, 2);
}

#[test]
fn many_gateways_are_named_up_to_the_bound() {
    let mote = Mote::new(1);
    let mut rig = Rig::serving(std::slice::from_ref(&mote));
    both_hear(&mut rig, &mote, 0, 4, 3);
    let phy = mote.frame(4, false);
    rig.hear(&phy);
    for gateway in 100..120_u64 {
        assert!(uplinks(&rig.hear_by(GatewayEui(gateway), 1, &phy)).is_empty());
    }
    let out = rig.hear_by(OTHER_GATEWAY, 1, &phy);
    assert_eq!(uplinks(&out)[0].others.len(), 15);
}

#[test]
fn a_flood_from_one_address_costs_itself_only() {
    let motes: Vec<Mote> = (0..2).map(Mote::new).collect();
    let mut rig = Rig::with(Config { source_rate: Rate { per_second: 100, burst: 100 }, ..Config::default() });
    rig.prepare(&motes);
    rig.serve(1, None);
    let noise: Vec<(u32, Vec<u8>)> = (0..8).map(|n| (n, vec![0x40; 20])).collect();
    let flood = push(OTHER_GATEWAY, &noise);
    for _ in 0..1_000 {
        rig.apply(Input::Datagram { from: address(66), bytes: &flood });
    }
    let stats = rig.bridge.stats();
    assert!((100..=108).contains(&stats.packets), "{stats:?}");
    assert!(stats.dropped(DropReason::SourceLimit) > 980);
    assert_eq!(uplinks(&rig.hear_and_take(&motes[0].frame(0, false))).len(), 1, "another address does not notice");
    rig.now += 1_000;
    let out = rig.apply(Input::Datagram { from: address(66), bytes: &push(OTHER_GATEWAY, &[(1, motes[1].frame(0, false))]) });
    assert_eq!(uplinks(&out).len(), 1, "nor does the same one a second later");
    let faults = rig.bridge.take_faults();
    let limit = faults.iter().find(|fault| fault.reason == DropReason::SourceLimit).expect("reported");
    assert_eq!(
        (limit.from, limit.gateway, limit.count),
        (Some(address(66)), Some(OTHER_GATEWAY), stats.dropped(DropReason::SourceLimit))
    );
    assert!(rig.bridge.take_faults().is_empty(), "once");
}

#[test]
fn what_is_known_of_a_gateway() {
    let mote = Mote::new(1);
    let mut rig = Rig::serving(std::slice::from_ref(&mote));
    let out = rig.hear_and_commit(&mote.frame(0, true));
    let downlink = downlinks(&out)[0].clone();
    rig.apply(Input::Datagram { from: address(1_001), bytes: &tx_ack(&downlink, "TX_FREQ") });
    let stat = r#"{"stat":{"time":"2026-01-01 00:00:00 GMT","lati":38.2,"long":21.7,"alti":3,"rxnb":9,"rxok":8,"rxfw":8,"ackr":null,"dwnb":1,"txnb":1}}"#;
    let bytes = [&push(GATEWAY, &[])[..12], stat.as_bytes()].concat();
    rig.apply(Input::Datagram { from: address(1_002), bytes: &bytes });
    let bad = [&push(GATEWAY, &[])[..12], br#"{"rxpk":[{"data":"%"}]}"#].concat();
    rig.apply(Input::Datagram { from: address(1_002), bytes: &bad });
    rig.apply(Input::Datagram { from: address(2_001), bytes: &pull(GATEWAY) });
    rig.now += 5;
    let gateways = rig.bridge.gateways(BootTime(rig.now));
    assert_eq!(gateways.len(), 1);
    let (status, counts) = (&gateways[0], &gateways[0].counts);
    assert_eq!((status.gateway, status.address, status.silence.0, status.version), (GATEWAY, Some(address(2_001)), 5, 2));
    assert_eq!((counts.push_data, counts.pull_data, counts.packets, counts.verified, counts.bad_packets), (3, 2, 1, 1, 1));
    assert_eq!((counts.downlinks, counts.address_changes, counts.tx_results.get("frequency")), (2, 1, Some(&1)), "RX1, then RX2");
    let stat = status.stat.as_ref().expect("a stat");
    assert_eq!((stat.rxnb, stat.latitude_degrees, stat.ackr), (Some(9), Some(38.2), None));
    let json = serde_json::to_value(status).expect("JSON");
    assert_eq!((&json["counts"]["tx_results"]["frequency"], &json["stat"]["rxok"]), (&1.into(), &8.into()));
}

#[test]
fn a_gateway_of_version_1_is_answered_and_served_in_version_1() {
    let mote = Mote::new(1);
    let mut rig = Rig::serving(std::slice::from_ref(&mote));
    let mut bytes = pull(GATEWAY);
    bytes[0] = 1;
    let out = rig.apply(Input::Datagram { from: address(1_001), bytes: &bytes });
    assert_eq!(out, [Output::Send { to: address(1_001), bytes: vec![1, 7, 7, 4] }]);
    let out = rig.apply(Input::Datagram { from: address(1_002), bytes: &push_with(GATEWAY, &[(5, mote.frame(0, true))], 1, 50) });
    assert_eq!(out[0], Output::Send { to: address(1_002), bytes: vec![1, 0x12, 0x34, 1] });
    let out = rig.commit(vec![mote.event(0)]);
    assert_eq!(downlinks(&out)[0].bytes[..5], [1, 0, 0, 3, b'{'], "no token");
    assert_eq!(downlinks(&out)[0].to, address(1_001), "to the socket that pulls");
}

#[test]
fn a_tap_gets_the_datagrams_of_chosen_gateways_as_they_are() {
    let mote = Mote::new(1);
    let (mut rig, mut other) = (Rig::serving(std::slice::from_ref(&mote)), Rig::standby(std::slice::from_ref(&mote)));
    rig.apply(Input::Taps { taps: vec![Tap { to: address(1_700), gateways: vec![GATEWAY] }] });
    let datagram = push(GATEWAY, &[(1, mote.frame(0, true)), (2, vec![0x40, 1])]);
    let out = rig.apply(Input::Datagram { from: address(1_002), bytes: &datagram });
    assert_eq!(out[1], Output::Send { to: address(1_700), bytes: datagram.clone() });
    assert_eq!(uplinks(&out).len(), 1, "and is served here");
    // The other server takes the feed like any gateway; its acknowledgement ends here.
    let fed = other.apply(Input::Datagram { from: address(1), bytes: &datagram });
    assert_eq!(other.bridge.stats().buffer_frames, 1);
    let Output::Send { bytes: ack, .. } = &fed[0] else { panic!("{fed:?}") };
    assert!(rig.apply(Input::Datagram { from: address(1_700), bytes: ack }).is_empty());
    let stats = rig.bridge.stats();
    assert_eq!((stats.tap_sent, stats.tap_acknowledged, stats.dropped(DropReason::Kind)), (1, 1, 0));
    rig.apply(Input::Datagram { from: address(5), bytes: ack });
    assert_eq!(rig.bridge.stats().dropped(DropReason::Kind), 1, "from elsewhere it is no answer");
    let sends = |out: &[Output]| out.iter().filter(|output| matches!(output, Output::Send { .. })).count();
    let back = rig.apply(Input::Datagram { from: address(1_700), bytes: &push(GATEWAY, &[(1, mote.frame(1, false))]) });
    assert_eq!((sends(&back), uplinks(&back).len()), (1, 1), "what the other taps for this one is taken and not sent back");
    let unchosen = rig.apply(Input::Datagram { from: address(1_002), bytes: &push(OTHER_GATEWAY, &[]) });
    assert_eq!(sends(&unchosen), 1);
}

/// Two gateways that pull heard the uplink; the second one's copy comes when the first has the downlink already.
fn answered_by_the_first() -> (Rig, Mote, Vec<Output>) {
    let mote = Mote::new(1);
    let mut rig = Rig::serving(std::slice::from_ref(&mote));
    rig.apply(Input::Datagram { from: address(2_001), bytes: &pull(OTHER_GATEWAY) });
    let tmst = rig.tmst();
    let phy = mote.frame(0, true);
    let out = rig.apply(Input::Datagram { from: address(1_002), bytes: &push_with(GATEWAY, &[(tmst, phy.clone())], 2, 50) });
    let out = rig.commit(uplinks(&out).iter().map(|uplink| uplink.event).collect());
    rig.now += 30;
    let copy = push_with(OTHER_GATEWAY, &[(777_000, phy)], 2, -20);
    assert!(downlinks(&rig.apply(Input::Datagram { from: address(2_002), bytes: &copy })).is_empty());
    (rig, mote, out)
}

#[test]
fn a_gateway_that_refuses_is_followed_by_the_next_and_each_attempt_has_its_own_counter() {
    let (mut rig, mote, out) = answered_by_the_first();
    let mut newest = downlinks(&out)[0].clone();
    assert_eq!((newest.gateway, newest.window, newest.f_cnt_down), (GATEWAY, Window::Rx1, 0));
    let expected = [
        ("COLLISION_PACKET", OTHER_GATEWAY, Window::Rx1, 1_777_000),
        ("TX_FREQ", GATEWAY, Window::Rx2, on_air(&newest, &mote).tmst.wrapping_add(1_000_000)),
        ("TOO_LATE", OTHER_GATEWAY, Window::Rx2, 2_777_000),
    ];
    for (counter, (error, gateway, window, tmst)) in (1_u32..).zip(expected) {
        rig.now += 50;
        let out = rig.apply(Input::Datagram { from: address(1_001), bytes: &tx_ack(&newest, error) });
        let next = downlinks(&out);
        assert_eq!(next.len(), 1, "after {error}");
        newest = next[0].clone();
        assert_eq!((newest.gateway, newest.window, newest.f_cnt_down), (gateway, window, counter));
        assert_eq!(on_air(&newest, &mote).tmst, tmst, "on the gateway's own clock");
    }
    let out = rig.apply(Input::Datagram { from: address(2_001), bytes: &tx_ack(&newest, "COLLISION_PACKET") });
    assert!(downlinks(&out).is_empty());
    let stats = rig.bridge.stats();
    assert_eq!((stats.missed(MissedReason::Refused), stats.answers_retried, stats.answers_rerouted), (1, 3, 2));
}

#[test]
fn no_second_gateway_sends_what_the_first_took_or_said_nothing_of() {
    for word in [Some(""), None] {
        let (mut rig, _, out) = answered_by_the_first();
        let first = downlinks(&out)[0].clone();
        if let Some(word) = word {
            let bytes = tx_ack(&first, word);
            assert!(downlinks(&rig.apply(Input::Datagram { from: address(1_001), bytes: &bytes })).is_empty());
        }
        for _ in 0..60 {
            assert!(downlinks(&rig.advance(100)).is_empty(), "{word:?}");
        }
    }
}

#[test]
fn without_lead_time_for_rx1_the_next_attempt_goes_to_rx2_by_the_best() {
    let (mut rig, _, out) = answered_by_the_first();
    let first = downlinks(&out)[0].clone();
    rig.now += 900;
    let out = rig.apply(Input::Datagram { from: address(1_001), bytes: &tx_ack(&first, "TOO_LATE") });
    assert_eq!((downlinks(&out)[0].gateway, downlinks(&out)[0].window), (GATEWAY, Window::Rx2));
}

#[test]
fn frames_that_are_dropped_are_reported_with_their_gateway_and_those_of_neighbours_are_not() {
    let (mote, stranger) = (Mote::new(1), Mote::new(2));
    let mut rig = Rig::serving(std::slice::from_ref(&mote));
    let forged = Mote { key: [9; 16], ..mote.clone() };
    for f_cnt in 0..5 {
        rig.hear_by(OTHER_GATEWAY, 1, &forged.frame(f_cnt, false));
        rig.hear(&stranger.frame(f_cnt, false));
    }
    rig.hear(&mote.frame(30_000, false));
    let faults: Vec<_> = rig.bridge.take_faults().into_iter().map(|f| (f.reason, f.count, f.from, f.gateway)).collect();
    let (forged, gap) = (DropReason::IntegrityCode, DropReason::CounterGap);
    assert_eq!(faults, [(forged, 5, None, Some(OTHER_GATEWAY)), (gap, 1, None, Some(GATEWAY))]);
    assert_eq!(rig.bridge.stats().dropped(DropReason::UnknownAddress), 5, "counted");
}
