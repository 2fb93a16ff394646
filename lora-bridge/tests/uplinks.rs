//! From the datagram to the uplink: verified, de-duplicated, with its 32-bit counter; whatever is wrong is dropped alone and counted.

mod common;

use bytes::Bytes;
use common::{GATEWAY, GROUP, Mote, OTHER_GATEWAY, Rig, address, downlinks, pull, push, push_with, uplinks};
use contracts::ids::DevAddr;
use contracts::time::WallTime;
use lora_bridge::{Config, DropReason, Input, Mode, NwkSKey, OfferedFrame, Output, Session, UplinkKind};

#[test]
fn acknowledgements_come_at_once_and_first() {
    let mote = Mote::new(1);
    let mut rig = Rig::serving(std::slice::from_ref(&mote));
    let out = rig.hear(&mote.frame(0, false));
    assert_eq!(out[0], Output::Send { to: address(1_002), bytes: vec![2, 0x12, 0x34, 1] });
    assert_eq!(uplinks(&out).len(), 1);
    let version_1 = push_with(GATEWAY, &[(7, mote.frame(1, false))], 1, 50);
    let out = rig.apply(Input::Datagram { from: address(5), bytes: &version_1 });
    assert_eq!(out[0], Output::Send { to: address(5), bytes: vec![1, 0x12, 0x34, 1] });
    assert_eq!(uplinks(&out).len(), 1);
    let out = rig.apply(Input::Datagram { from: address(6), bytes: &pull(GATEWAY) });
    assert_eq!(out, [Output::Send { to: address(6), bytes: vec![2, 7, 7, 4] }]);
}

#[test]
fn an_uplink_carries_everything_its_owner_needs() {
    let mote = Mote::new(1);
    let mut rig = Rig::serving(std::slice::from_ref(&mote));
    let phy = mote.frame(3, true);
    let out = rig.hear(&phy);
    let uplink = uplinks(&out)[0];
    assert_eq!((uplink.event, uplink.device, uplink.group, uplink.f_cnt), (mote.event(3), mote.device, GROUP, 3));
    assert_eq!((uplink.f_port, uplink.confirmed, uplink.kind), (Some(2), true, UplinkKind::Live));
    assert_eq!(uplink.phy, phy);
    assert_eq!(uplink.frm_payload, phy[9..15], "as it was on air");
    assert_eq!(
        (uplink.rx.frequency_hz, uplink.rx.rssi_dbm, uplink.rx.snr_decibel_tenths),
        (Some(868_300_000), Some(-90), Some(-40))
    );
    let json = serde_json::to_string(uplink).expect("JSON");
    assert_eq!(&serde_json::from_str::<lora_bridge::Uplink>(&json).expect("its own JSON"), uplink);
}

#[test]
fn bad_frames_are_dropped_alone_and_counted_by_reason() {
    let (mote, stranger) = (Mote::new(1), Mote::new(99));
    let mut rig = Rig::serving(std::slice::from_ref(&mote));
    rig.hear_and_commit(&mote.frame(5_000, false));
    let mut forged = mote.frame(5_001, false);
    forged[10] ^= 1;
    let mut downlink = mote.frame(5_001, false);
    downlink[0] = 0x60;
    let packets = [
        mote.frame(5_001, false),
        stranger.frame(0, false),
        forged,
        mote.frame(3_000, false),
        mote.frame(5_002 + 16_385, false),
        downlink,
        vec![0; 23],
        vec![0xe0, 1, 2],
        vec![0x40, 1, 2],
        mote.frame(5_002, false),
    ];
    let packets: Vec<_> = packets.into_iter().map(|phy| (1, phy)).collect();
    let out = rig.apply(Input::Datagram { from: address(1), bytes: &push(GATEWAY, &packets) });
    assert_eq!(uplinks(&out).iter().map(|uplink| uplink.f_cnt).collect::<Vec<_>>(), [5_001, 5_002]);
    let stats = rig.bridge.stats();
    for reason in [
        DropReason::UnknownAddress,
        DropReason::IntegrityCode,
        DropReason::OldCounter,
        DropReason::CounterGap,
        DropReason::FrameDownlink,
        DropReason::FrameJoin,
        DropReason::FrameProprietary,
        DropReason::FrameMalformed,
    ] {
        assert_eq!(stats.dropped(reason), 1, "{reason:?}");
    }
    assert_eq!(stats.drops.values().sum::<u64>(), 8);
    for (bytes, reason) in [
        (vec![2, 0, 0], DropReason::DatagramShort),
        (vec![2; 40_000], DropReason::DatagramLong),
        (vec![9; 20], DropReason::Version),
        (vec![2, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0], DropReason::Kind),
    ] {
        assert!(rig.apply(Input::Datagram { from: address(1), bytes: &bytes }).is_empty());
        assert_eq!(rig.bridge.stats().dropped(reason), 1, "{reason:?}");
    }
}

#[test]
fn the_first_copy_wins_and_others_add_nothing() {
    let mote = Mote::new(1);
    let mut rig = Rig::serving(std::slice::from_ref(&mote));
    let phy = mote.frame(0, false);
    assert_eq!(uplinks(&rig.hear(&phy)).len(), 1);
    rig.now += 300;
    assert!(uplinks(&rig.hear_by(OTHER_GATEWAY, 77, &phy)).is_empty());
    let again = rig.tmst() - 300_000;
    assert!(uplinks(&rig.hear_by(GATEWAY, again, &phy)).is_empty(), "the same datagram twice");
    assert_eq!((rig.bridge.stats().copies, rig.bridge.stats().repeated), (2, 0));
    rig.now += 3_000;
    assert!(uplinks(&rig.hear(&phy)).is_empty(), "NbTrans");
    assert_eq!(rig.bridge.stats().repeated, 1);
}

#[test]
fn devices_that_share_an_address_are_told_apart_by_their_keys() {
    let motes: Vec<Mote> = (0..20).map(|n| Mote { address: 0x2601_0001, ..Mote::new(n) }).collect();
    let mut rig = Rig::serving(&motes);
    for (n, mote) in motes.iter().enumerate() {
        let f_cnt = u32::try_from(n).expect("small") * 3;
        let out = rig.hear(&mote.frame(f_cnt, false));
        assert_eq!((uplinks(&out)[0].device, uplinks(&out)[0].f_cnt), (mote.device, f_cnt));
    }
}

#[test]
fn counters_roll_over_from_16_to_32_bits() {
    let mote = Mote::new(1);
    let mut rig = Rig::new();
    let session = Session { f_cnt_up_next: 0xfffe, ..mote.session() };
    rig.apply(Input::Register { group: GROUP, sessions: vec![session] });
    rig.serve(1, None);
    for f_cnt in [0xfffe, 0xffff, 0x1_0000, 0x1_0001] {
        let out = rig.hear(&mote.frame(f_cnt, false));
        assert_eq!(uplinks(&out).iter().map(|uplink| uplink.event).collect::<Vec<_>>(), [mote.event(f_cnt)]);
    }
    let late = mote.frame(0xfff0, false);
    let out = rig.hear(&late);
    assert_eq!((uplinks(&out)[0].f_cnt, uplinks(&out)[0].kind), (0xfff0, UplinkKind::Late), "below the edge");
    assert!(uplinks(&rig.hear(&mote.frame(0, false))).is_empty(), "its integrity code is for another upper half");
}

#[test]
fn late_frames_inside_the_window_are_delivered_once_and_never_answered() {
    let mote = Mote::new(1);
    let mut rig = Rig::serving(std::slice::from_ref(&mote));
    rig.hear_and_commit(&mote.frame(2_000, false));
    let out = rig.hear(&mote.frame(977, true));
    assert_eq!((uplinks(&out)[0].kind, uplinks(&out)[0].f_cnt), (UplinkKind::Late, 977));
    assert!(downlinks(&rig.commit(vec![mote.event(977)])).is_empty());
    rig.now += 5_000;
    let again = rig.hear(&mote.frame(977, true));
    assert!(uplinks(&again).is_empty() && downlinks(&again).is_empty());
    assert!(uplinks(&rig.hear(&mote.frame(976, false))).is_empty(), "one below the window");
}

#[test]
fn what_the_peer_offers_is_verified_and_never_answered() {
    let mote = Mote::new(1);
    let mut rig = Rig::serving(std::slice::from_ref(&mote));
    rig.hear_and_commit(&mote.frame(10, false));
    let offer = |phy: Vec<u8>| {
        let rx = serde_json::from_str(
            r#"{"tmst":5,"frequency_hz":868100000,"data_rate":"SF7BW125","rssi_dbm":-80,"snr_decibel_tenths":70}"#,
        );
        let frame =
            OfferedFrame { phy: Bytes::from(phy), gateway: OTHER_GATEWAY, rx: rx.expect("metadata"), heard_at: WallTime(77) };
        Input::Offered { frame }
    };
    for f_cnt in [8, 11] {
        let out = rig.apply(offer(mote.frame(f_cnt, true)));
        let uplink = uplinks(&out)[0].clone();
        assert_eq!((uplink.kind, uplink.f_cnt, uplink.heard_at), (UplinkKind::Late, f_cnt, WallTime(77)));
        assert!(downlinks(&rig.commit(vec![uplink.event])).is_empty());
    }
    // It is on this node's disk: the other one may stop offering it.
    let known = rig.apply(offer(mote.frame(8, true)));
    let says_so = |output: &Output| matches!(output, Output::OfferKnown { mark, is_settled: false, .. } if mark.f_cnt == 8);
    assert!(known.len() == 1 && known.iter().all(says_so), "{known:?}");
    assert!(rig.apply(offer(vec![7; 300])).is_empty());
    let mut forged = mote.frame(9, true);
    forged[9] ^= 1;
    assert!(rig.apply(offer(forged)).is_empty());
    let stats = rig.bridge.stats();
    assert_eq!(
        (stats.offers_known, stats.dropped(DropReason::PacketOversize), stats.dropped(DropReason::IntegrityCode)),
        (1, 1, 1)
    );
    // The same frame by this node's own gateway right afterwards is answered: nobody else will.
    let out = rig.hear(&mote.frame(11, true));
    assert!(uplinks(&out).is_empty());
    assert_eq!(downlinks(&out).len(), 1);
}

#[test]
fn what_could_not_be_stored_is_taken_again() {
    let mote = Mote::new(1);
    let mut rig = Rig::serving(std::slice::from_ref(&mote));
    let phy = mote.frame(0, true);
    assert_eq!(uplinks(&rig.hear(&phy)).len(), 1);
    assert!(downlinks(&rig.apply(Input::CommitFailed { events: vec![mote.event(0)] })).is_empty());
    assert!(rig.commit(vec![mote.event(0)]).is_empty(), "it is not in flight any more");
    rig.now += 4_000;
    let out = rig.hear_and_commit(&phy);
    assert_eq!(downlinks(&out).len(), 1, "the repetition is new, stored and answered");
}

#[test]
fn uplinks_that_nobody_commits_are_bounded() {
    let motes: Vec<Mote> = (0..5).map(Mote::new).collect();
    let mut rig = Rig::with(Config { in_flight_max: 3, ..Config::default() });
    rig.prepare(&motes);
    rig.serve(1, None);
    let delivered: usize = motes.iter().map(|mote| uplinks(&rig.hear(&mote.frame(0, false))).len()).sum();
    assert_eq!((delivered, rig.bridge.stats().dropped(DropReason::InFlightFull)), (3, 2));
    rig.commit(vec![motes[0].event(0)]);
    assert_eq!(uplinks(&rig.hear(&motes[4].frame(0, false))).len(), 1, "it was not marked as known");
}

#[test]
fn a_contract_that_ends_leaves_nothing_behind() {
    let mote = Mote::new(1);
    let mut rig = Rig::standby(std::slice::from_ref(&mote));
    rig.hear(&mote.frame(0, true));
    rig.apply(Input::Remove { group: GROUP });
    let stats = rig.bridge.stats();
    assert_eq!((stats.sessions, stats.buffer_frames, rig.bridge.mode(GROUP)), (0, 0, None));
    rig.hear(&mote.frame(1, true));
    assert_eq!(rig.bridge.stats().dropped(DropReason::UnknownAddress), 1);
    assert!(rig.advance(10_000).is_empty());
}

#[test]
fn a_reset_with_a_new_ordinal_is_a_new_session() {
    let mote = Mote::new(1);
    let mut rig = Rig::serving(std::slice::from_ref(&mote));
    rig.hear_and_commit(&mote.frame(500, false));
    let session = Session { reset_ordinal: 1, ..mote.session() };
    let id = session.id();
    rig.apply(Input::Register { group: GROUP, sessions: vec![session.clone()] });
    let out = rig.hear(&mote.frame(0, false));
    assert_eq!((uplinks(&out)[0].f_cnt, uplinks(&out)[0].session), (0, id));
    assert_ne!(id, mote.session().id());
    let out = rig.apply(Input::Register { group: GROUP, sessions: vec![mote.session()] });
    assert!(out.is_empty(), "who registers need not know the ordinal: {out:?}");
    assert_eq!(uplinks(&rig.hear(&mote.frame(1, false)))[0].session, id);
    let other = Session { dev_addr: DevAddr::from_u32(7), nwk_s_key: NwkSKey::from_bytes([1; 16]), ..session };
    rig.apply(Input::Register { group: GROUP, sessions: vec![other] });
    rig.hear(&mote.frame(2, false));
    assert_eq!(rig.bridge.stats().dropped(DropReason::UnknownAddress), 1, "the old address is forgotten");
    assert!(matches!(rig.bridge.mode(GROUP), Some(Mode::Serving { .. })));
}
