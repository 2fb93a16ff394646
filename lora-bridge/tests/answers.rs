//! Confirmed uplinks are acknowledged after they are on disk, in a window that can be reached, with a counter that was written ahead.

mod common;

use common::{
    GATEWAY, GROUP, Mote, OTHER_GATEWAY, Rig, address, downlinks, on_air, pull, push, push_with, the_downlink, tx_ack, uplinks,
    wanted,
};
use contracts::ids::Epoch;
use contracts::time::BootTime;
use lora_bridge::{CounterSource, Input, MissedReason, Mode, Output, ReceiveWindows, Session, Window};

fn one() -> (Mote, Rig) {
    let mote = Mote::new(1);
    let rig = Rig::serving(std::slice::from_ref(&mote));
    (mote, rig)
}

#[test]
fn an_acknowledgement_waits_for_the_disk_and_goes_out_in_rx1() {
    let (mote, mut rig) = one();
    let tmst = rig.tmst();
    let out = rig.hear(&mote.frame(0, true));
    assert!(downlinks(&out).is_empty());
    assert!(downlinks(&rig.advance(20)).is_empty(), "time alone answers nothing");
    let air = the_downlink(&rig.commit(vec![mote.event(0)]), &mote, Window::Rx1);
    assert_eq!((air.tmst, air.freq.as_str(), air.datr.as_str()), (tmst.wrapping_add(1_000_000), "868.3", "SF9BW125"));
    assert_eq!((air.ack, air.f_cnt), (true, 0));
    assert!(rig.hear_and_commit(&mote.frame(1, false)).is_empty(), "unconfirmed uplinks are not answered");
}

#[test]
fn the_window_depends_on_the_time_left() {
    let (mote, mut rig) = one();
    for (f_cnt, wait, window) in
        [(0, 900, Some(Window::Rx1)), (1, 901, Some(Window::Rx2)), (2, 1_900, Some(Window::Rx2)), (3, 1_901, None)]
    {
        let tmst = rig.tmst();
        rig.hear(&mote.frame(f_cnt, true));
        rig.now += wait;
        let out = rig.commit(vec![mote.event(f_cnt)]);
        match window {
            Some(Window::Rx1) => assert_eq!(the_downlink(&out, &mote, Window::Rx1).tmst, tmst.wrapping_add(1_000_000)),
            Some(Window::Rx2) => {
                let air = the_downlink(&out, &mote, Window::Rx2);
                assert_eq!(air.tmst, tmst.wrapping_add(2_000_000));
                assert_eq!((air.freq.as_str(), air.datr.as_str()), ("869.525", "SF12BW125"));
            }
            None => assert!(downlinks(&out).is_empty()),
        }
        rig.now += 10_000;
        rig.pull();
    }
    assert_eq!(rig.bridge.stats().missed(MissedReason::TooLate), 1);
}

#[test]
fn receive_windows_of_a_session_are_its_own() {
    let mote = Mote::new(1);
    let mut rig = Rig::new();
    let receive_windows = ReceiveWindows {
        rx1_delay_seconds: 5,
        rx1_data_rate_offset: 1,
        rx2_frequency_hz: 869_100_000,
        rx2_data_rate: "SF9BW125".parse().expect("a data rate"),
    };
    let session = Session { receive_windows, f_cnt_down_next: 40, f_cnt_down_reserved: 40, ..mote.session() };
    rig.apply(Input::Register { group: GROUP, sessions: vec![session] });
    rig.pull();
    let out = rig.serve(1, None);
    assert_eq!(wanted(&out), [(mote.device, 56)]);
    rig.reserve(std::slice::from_ref(&mote), 56);
    let tmst = u32::MAX - 3;
    rig.hear_by(GATEWAY, tmst, &mote.frame(0, true));
    let air = the_downlink(&rig.commit(vec![mote.event(0)]), &mote, Window::Rx1);
    assert_eq!((air.tmst, air.datr.as_str(), air.f_cnt), (4_999_996, "SF10BW125", 40), "wrapped");
    rig.now += 20_000;
    rig.hear_by(GATEWAY, 10, &mote.frame(1, true));
    rig.now += 5_000;
    let air = the_downlink(&rig.commit(vec![mote.event(1)]), &mote, Window::Rx2);
    assert_eq!((air.tmst, air.freq.as_str(), air.datr.as_str()), (6_000_010, "869.1", "SF9BW125"));
}

#[test]
fn a_repeated_confirmed_uplink_is_answered_again_and_delivered_once() {
    let (mote, mut rig) = one();
    let phy = mote.frame(0, true);
    let first = the_downlink(&rig.hear_and_commit(&phy), &mote, Window::Rx1);
    for n in 1..8_u16 {
        rig.now += 4_000;
        let tmst = rig.tmst();
        let out = rig.hear(&phy);
        assert!(uplinks(&out).is_empty());
        let air = the_downlink(&out, &mote, Window::Rx1);
        assert_eq!((air.f_cnt, air.tmst), (n, tmst.wrapping_add(1_000_000)), "a new counter, the newest time");
        assert_ne!(air.phy, first.phy);
    }
    // Repeated while the first copy is still on its way to the disk: one answer, to the newest.
    let phy = mote.frame(1, true);
    rig.now += 4_000;
    rig.hear(&phy);
    rig.now += 4_000;
    let tmst = rig.tmst();
    assert!(downlinks(&rig.hear(&phy)).is_empty());
    let air = the_downlink(&rig.commit(vec![mote.event(1)]), &mote, Window::Rx1);
    assert_eq!(air.tmst, tmst.wrapping_add(1_000_000));
}

#[test]
fn a_copy_by_another_gateway_is_not_answered_again_but_may_be_the_better_way() {
    let (mote, mut rig) = one();
    let phy = mote.frame(0, true);
    rig.hear_and_commit(&phy);
    rig.now += 200;
    assert!(downlinks(&rig.hear_by(OTHER_GATEWAY, 5, &phy)).is_empty());

    rig.apply(Input::Datagram { from: address(2_001), bytes: &pull(OTHER_GATEWAY) });
    rig.now += 5_000;
    let phy = mote.frame(1, true);
    rig.hear(&phy);
    rig.now += 10;
    let louder = push_with(OTHER_GATEWAY, &[(500, phy.clone())], 2, 95);
    rig.apply(Input::Datagram { from: address(2_002), bytes: &louder });
    let out = rig.commit(vec![mote.event(1)]);
    assert_eq!((downlinks(&out)[0].gateway, downlinks(&out)[0].to), (OTHER_GATEWAY, address(2_001)), "where it pulls from");
    assert_eq!(on_air(downlinks(&out)[0], &mote).tmst, 1_000_500);
}

#[test]
fn downlinks_go_only_to_where_a_gateway_pulls_from() {
    let (mote, mut rig) = one();
    rig.hear_by(OTHER_GATEWAY, 5, &mote.frame(0, true));
    assert!(downlinks(&rig.commit(vec![mote.event(0)])).is_empty());
    rig.now += 61_000;
    rig.hear(&mote.frame(1, true));
    assert!(downlinks(&rig.commit(vec![mote.event(1)])).is_empty(), "it went silent");
    assert_eq!(rig.bridge.stats().missed(MissedReason::NoRoute), 2);
    rig.apply(Input::Datagram { from: address(7_777), bytes: &pull(GATEWAY) });
    rig.now += 10;
    rig.hear(&mote.frame(2, true));
    assert_eq!(downlinks(&rig.commit(vec![mote.event(2)]))[0].to, address(7_777));
}

#[test]
fn too_late_for_rx1_is_tried_in_rx2_with_a_new_counter() {
    let (mote, mut rig) = one();
    let tmst = rig.tmst();
    let out = rig.hear_and_commit(&mote.frame(0, true));
    let first = downlinks(&out)[0].clone();
    rig.now += 900;
    let mut foreign = tx_ack(&first, "TOO_LATE");
    foreign[11] ^= 1;
    assert!(rig.apply(Input::Datagram { from: address(1_001), bytes: &foreign }).is_empty(), "another gateway's word");
    let late = tx_ack(&first, "TOO_LATE");
    let out = rig.apply(Input::Datagram { from: address(1_001), bytes: &late });
    let air = the_downlink(&out, &mote, Window::Rx2);
    assert_eq!((air.f_cnt, air.tmst, air.ack), (1, tmst.wrapping_add(2_000_000), true));
    let second = downlinks(&out)[0].clone();
    assert!(rig.apply(Input::Datagram { from: address(1_001), bytes: &late }).is_empty(), "once only");
    assert!(rig.apply(Input::Datagram { from: address(1_001), bytes: &tx_ack(&second, "COLLISION_PACKET") }).is_empty());
    rig.now += 5_000;
    let third = the_downlink(&rig.hear_and_commit(&mote.frame(1, true)), &mote, Window::Rx1);
    assert_eq!(third.f_cnt, 2, "a refusal gives no counter back");
    let stats = rig.bridge.stats();
    assert_eq!((stats.answers_retried, stats.tx_ack_unmatched, stats.missed(MissedReason::Refused)), (1, 2, 1));
    assert_eq!((stats.tx_results["too_late"], stats.tx_results["collision_packet"]), (1, 1));
}

#[test]
fn a_version_1_gateway_gets_version_1_without_token() {
    let (mote, mut rig) = one();
    let mut pull = pull(GATEWAY);
    pull[0] = 1;
    rig.apply(Input::Datagram { from: address(3), bytes: &pull });
    let push = push_with(GATEWAY, &[(7, mote.frame(0, true))], 1, 0);
    rig.apply(Input::Datagram { from: address(4), bytes: &push });
    let out = rig.commit(vec![mote.event(0)]);
    assert_eq!(downlinks(&out)[0].bytes[..4], [1, 0, 0, 3]);
}

#[test]
fn counters_come_in_blocks_of_16_refilled_at_half() {
    let mote = Mote::new(1);
    let mut rig = Rig::new();
    rig.prepare(std::slice::from_ref(&mote));
    assert_eq!(wanted(&rig.serve(1, None)), [(mote.device, 16)], "all devices when custody begins");
    // Confirmed before anything is written ahead: it waits, and goes out as soon as the counter is safe.
    rig.hear(&mote.frame(0, true));
    assert!(downlinks(&rig.commit(vec![mote.event(0)])).is_empty());
    rig.now += 50;
    assert_eq!(the_downlink(&rig.reserve(std::slice::from_ref(&mote), 16), &mote, Window::Rx1).f_cnt, 0);
    let mut requests = Vec::new();
    for f_cnt in 1..16 {
        rig.now += 5_000;
        rig.pull();
        let out = rig.hear_and_commit(&mote.frame(f_cnt, true));
        assert_eq!(u32::from(the_downlink(&out, &mote, Window::Rx1).f_cnt), f_cnt);
        requests.extend(wanted(&out).into_iter().map(|(_, upto)| (f_cnt, upto)));
    }
    assert_eq!(requests, [(7, 32)], "asked once, with half a block left");
    rig.now += 5_000;
    rig.pull();
    let out = rig.hear_and_commit(&mote.frame(16, true));
    assert!(downlinks(&out).is_empty(), "nothing beyond what is written ahead");
    assert_eq!(wanted(&rig.advance(600)), [(mote.device, 32)], "asked again");
    rig.advance(5_000);
    assert_eq!(rig.bridge.stats().missed(MissedReason::NoCounter), 1);
    assert!(wanted(&rig.reserve(std::slice::from_ref(&mote), 32)).is_empty());
    assert!(wanted(&rig.advance(600)).is_empty());
}

#[test]
fn requests_are_gathered_per_input() {
    let motes: Vec<Mote> = (0..100).map(Mote::new).collect();
    let mut rig = Rig::new();
    rig.prepare(&motes);
    let out = rig.serve(1, None);
    assert_eq!(out.iter().filter(|output| matches!(output, Output::ReserveWanted { .. })).count(), 1);
    assert_eq!(wanted(&out).len(), 100);
}

#[test]
fn without_custody_nothing_is_transmitted() {
    for mode in [Mode::Fenced, Mode::Following] {
        let (mote, mut rig) = one();
        rig.custody(mode);
        let out = rig.hear(&mote.frame(0, true));
        assert_eq!(uplinks(&out).len(), 1, "{mode:?}: received and delivered");
        assert!(downlinks(&rig.commit(vec![mote.event(0)])).is_empty());
        assert!(wanted(&rig.reserve(std::slice::from_ref(&mote), 32)).is_empty());
        assert!(downlinks(&rig.advance(5_000)).is_empty());
        assert_eq!(rig.bridge.stats().missed(MissedReason::NoCustody), 1);
    }
}

/// Whoever serves when a repetition is heard may have answered it, and tells nobody.
#[test]
fn a_repetition_is_answered_by_who_serves_when_it_is_heard() {
    let (mote, mut rig) = one();
    rig.custody(Mode::Following);
    let phy = mote.frame(0, true);
    rig.hear(&phy);
    rig.commit(vec![mote.event(0)]);
    rig.now += 6_000;
    assert!(downlinks(&rig.hear(&phy)).is_empty(), "not in custody");
    assert!(downlinks(&rig.serve(5, None)).is_empty(), "custody came within its windows");
    assert!(downlinks(&rig.reserve(std::slice::from_ref(&mote), 32)).is_empty());
    rig.now += 6_000;
    assert_eq!(downlinks(&rig.hear(&phy)).len(), 1, "the next repetition is its own");
}

#[test]
fn a_lower_epoch_is_refused() {
    let (_, mut rig) = one();
    rig.serve(5, None);
    rig.custody(Mode::Following);
    rig.serve(4, None);
    assert_eq!((rig.bridge.mode(GROUP), rig.bridge.stats().stale_custody), (Some(Mode::Following), 1));
    let mode = Mode::Serving { epoch: Epoch(6), foreign_lease_end: Some(BootTime(3)) };
    rig.custody(mode);
    assert_eq!(rig.bridge.mode(GROUP), Some(mode));
}

#[test]
fn adr_link_check_and_time_requests_are_answered() {
    let (mote, mut rig) = one();
    let air = the_downlink(&rig.hear_and_commit(&mote.frame_with(0, false, 0xc0, &[])), &mote, Window::Rx1);
    assert_eq!((air.ack, air.phy.len()), (false, 12), "ADRACKReq: an empty downlink");
    rig.now += 5_000;
    let link_check = lorawan::maccommands::UplinkMacCommand::LinkCheckReq(lorawan::maccommands::LinkCheckReqPayload());
    let phy = mote.frame_with(1, true, 0, &[&link_check]);
    rig.hear(&phy);
    rig.hear_by(OTHER_GATEWAY, 9, &phy);
    let air = the_downlink(&rig.commit(vec![mote.event(1)]), &mote, Window::Rx1);
    // -4.0 dB at SF9, which needs -12.5 dB; two gateways.
    assert_eq!((air.ack, &air.phy[8..11]), (true, &[0x02, 8, 2][..]));
}

#[test]
fn skipped_counters_are_summed_until_a_downlink_is_received() {
    let (mote, mut rig) = one();
    let skipped = |rig: &Rig| rig.bridge.stats().f_cnt_down_skipped_max;
    rig.apply(Input::CountersFrom { entries: vec![(mote.device, 100)], source: CounterSource::Reservation });
    assert_eq!(skipped(&rig), 100);
    rig.reserve(std::slice::from_ref(&mote), 116);
    let phy = mote.frame(0, true);
    rig.hear_and_commit(&phy);
    rig.now += 4_000;
    rig.hear(&phy);
    assert_eq!(skipped(&rig), 100, "it repeated itself: it did not hear the answer");
    rig.now += 4_000;
    rig.hear_and_commit(&mote.frame(1, false));
    assert_eq!(skipped(&rig), 0, "it went on after the second answer");
}

#[test]
fn one_datagram_answers_each_device_of_it_once() {
    let motes: Vec<Mote> = (0..8).map(Mote::new).collect();
    let mut rig = Rig::serving(&motes);
    // So far apart that the gateway can send one answer after the other.
    let packets: Vec<_> = (0..).zip(&motes).map(|(n, mote)| (1_000 + n * 200_000, mote.frame(0, true))).collect();
    let out = rig.apply(Input::Datagram { from: address(1), bytes: &push(GATEWAY, &packets) });
    let events = uplinks(&out).iter().map(|uplink| uplink.event).collect();
    let out = rig.commit(events);
    let mut tokens: Vec<_> = downlinks(&out).iter().map(|downlink| downlink.bytes[1..3].to_vec()).collect();
    tokens.dedup();
    assert_eq!(tokens.len(), 8);
}

#[test]
fn rx2_is_as_loud_as_its_sub_band_and_the_gateway_allow() {
    let power = |downlink: &lora_bridge::Transmit| {
        let json: serde_json::Value = serde_json::from_slice(&downlink.bytes[4..]).expect("JSON");
        json["txpk"]["powe"].as_i64().expect("a number")
    };
    let mote = Mote::new(1);
    for (power_dbm_max, expected) in [(27, 27), (20, 20), (10, 10)] {
        let mut rig = Rig::with(lora_bridge::Config { power_dbm_max, ..lora_bridge::Config::default() });
        rig.prepare(std::slice::from_ref(&mote));
        rig.serve(1, None);
        rig.reserve(std::slice::from_ref(&mote), 16);
        let out = rig.hear_and_commit(&mote.frame(0, true));
        assert_eq!((downlinks(&out)[0].window, power(downlinks(&out)[0])), (Window::Rx1, expected.min(14)));
        let refusal = tx_ack(downlinks(&out)[0], "TOO_LATE");
        let out = rig.apply(Input::Datagram { from: address(1_001), bytes: &refusal });
        assert_eq!((downlinks(&out)[0].window, power(downlinks(&out)[0])), (Window::Rx2, expected));
        // An old forwarder that has not this power.
        let refusal = tx_ack(downlinks(&out)[0], "TX_POWER");
        rig.apply(Input::Datagram { from: address(1_001), bytes: &refusal });
        rig.now += 5_000;
        let out = rig.hear_and_commit(&mote.frame(1, true));
        let refusal = tx_ack(downlinks(&out)[0], "TOO_LATE");
        let out = rig.apply(Input::Datagram { from: address(1_001), bytes: &refusal });
        assert_eq!((downlinks(&out)[0].window, power(downlinks(&out)[0])), (Window::Rx2, expected.min(14)));
    }
}
