//! Addresses shared by many devices, counters beyond the rules, devices that begin anew.

mod common;

use common::{GATEWAY, GROUP, Mote, OTHER_GATEWAY, Rig, downlinks, uplinks};
use contracts::ids::DevEui;
use lora_bridge::{DropReason, Input, Mode, Output, Session, UplinkRules};

fn crowd(size: u32) -> Vec<Mote> {
    (0..size).map(|n| Mote { address: 0x2601_0001, ..Mote::new(n) }).collect()
}

#[test]
fn a_thousand_devices_share_an_address() {
    let motes = crowd(1_000);
    let mut rig = Rig::new();
    rig.prepare(&motes);
    rig.serve(1, None);
    let mut most = 0;
    for (n, mote) in (0..).zip(&motes) {
        let before = rig.bridge.stats().trials;
        let out = rig.hear_and_take(&mote.frame(n % 7, false));
        assert_eq!(uplinks(&out)[0].device, mote.device);
        most = most.max(rig.bridge.stats().trials - before);
        rig.now += 20;
    }
    assert!(most <= 1_000, "{most}");
    // A copy by another gateway finds its session at once.
    let phy = motes[999].frame(50, false);
    rig.hear_and_take(&phy);
    let before = rig.bridge.stats().trials;
    rig.hear_by(OTHER_GATEWAY, 5, &phy);
    assert_eq!((rig.bridge.stats().trials - before, rig.bridge.stats().copies), (1, 1));
    // Devices whose counters differ are found by their counters.
    let far: Vec<Session> =
        (0..).zip(&motes).map(|(n, mote)| Session { f_cnt_up_next: 1_000 + n * 16, ..mote.session() }).collect();
    rig.apply(Input::Register { group: GROUP, sessions: far });
    let before = rig.bridge.stats().trials;
    rig.hear_and_take(&motes[700].frame(1_000 + 700 * 16, false));
    assert!(rig.bridge.stats().trials - before <= 3, "{}", rig.bridge.stats().trials - before);
}

#[test]
fn rubbish_for_a_crowded_address_costs_bounded_work_and_others_nothing() {
    let motes = crowd(1_000);
    let single = Mote::new(5_000);
    let mut rig = Rig::new();
    rig.prepare(&motes);
    rig.prepare(std::slice::from_ref(&single));
    rig.serve(1, None);
    let mut rubbish = motes[0].frame(0, false);
    for n in 0..1_000_u32 {
        rubbish[9..13].copy_from_slice(&n.to_le_bytes());
        rig.hear(&rubbish);
    }
    let stats = rig.bridge.stats();
    assert!(stats.trials <= 20_000 + 1_000 * 64, "64 per frame and the allowance: {}", stats.trials);
    assert!(stats.dropped(DropReason::TrialsExhausted) > 900, "{stats:?}");
    assert_eq!(uplinks(&rig.hear_and_take(&single.frame(0, false))).len(), 1, "another address");
    rig.now += 100;
    assert_eq!(uplinks(&rig.hear_and_take(&motes[900].frame(0, false))).len(), 1, "a tenth of a second later");
}

#[test]
fn an_operator_may_widen_the_gap() {
    let (strict, wide) = (Mote::new(1), Mote::new(2));
    let mut rig = Rig::new();
    let rules = UplinkRules { f_cnt_gap_max: u16::MAX, may_reset: false };
    rig.apply(Input::Register {
        group: GROUP,
        sessions: vec![strict.session(), Session { uplink_rules: rules, ..wide.session() }],
    });
    rig.serve(1, None);
    assert!(uplinks(&rig.hear(&strict.frame(16_385, false))).is_empty());
    assert_eq!(rig.bridge.stats().dropped(DropReason::CounterGap), 1);
    for f_cnt in [40_000, 0x1_0000 + 30_000, 0x1_0000 + 29_000] {
        assert_eq!(uplinks(&rig.hear_and_take(&wide.frame(f_cnt, false)))[0].f_cnt, f_cnt);
    }
}

fn restarting(mote: &Mote) -> Session {
    Session { uplink_rules: UplinkRules { may_reset: true, ..UplinkRules::default() }, ..mote.session() }
}

fn resets_wanted(out: &[Output]) -> Vec<(DevEui, u32)> {
    let wanted = |output: &Output| match output {
        Output::ResetWanted(reset) => Some((reset.device, reset.reset_ordinal)),
        _ => None,
    };
    out.iter().filter_map(wanted).collect()
}

#[test]
fn a_device_that_begins_anew_is_asked_about_and_then_served_and_answered() {
    for next in [3_u32, 500, 20_000, 70_000] {
        let mote = Mote::new(1);
        let mut rig = Rig::new();
        rig.apply(Input::Register { group: GROUP, sessions: vec![restarting(&mote)] });
        rig.pull();
        rig.serve(1, None);
        rig.reserve(std::slice::from_ref(&mote), 16);
        let known = Session { f_cnt_up_next: next - 1, ..restarting(&mote) };
        rig.apply(Input::Register { group: GROUP, sessions: vec![known] });
        assert_eq!(downlinks(&rig.hear_and_commit(&mote.frame(next - 1, true))).len(), 1);
        rig.now += 60_000;
        rig.pull();
        let phy = mote.frame(0, true);
        let out = rig.hear(&phy);
        assert_eq!((uplinks(&out).len(), resets_wanted(&out)), (0, vec![(mote.device, 1)]), "next {next}");
        rig.now += 3;
        let copy = rig.hear_by(OTHER_GATEWAY, 7, &phy);
        assert!(uplinks(&copy).is_empty() && resets_wanted(&copy).is_empty(), "asked once: next {next}");
        rig.now += 20;
        let out = rig.apply(Input::Reset { entries: vec![(mote.device, 1)] });
        let uplink = uplinks(&out)[0].clone();
        let new = Session { reset_ordinal: 1, ..mote.session() };
        assert_eq!((uplinks(&out).len(), uplink.f_cnt, uplink.session, uplink.gateway), (1, 0, new.id(), GATEWAY), "next {next}");
        assert_eq!(uplink.heard_boot.0, rig.now - 23);
        let answered = rig.commit(vec![uplink.event]);
        assert_eq!(downlinks(&answered)[0].f_cnt_down, 1, "downlink counters go on");
        rig.now += 1_000;
        assert_eq!(uplinks(&rig.hear_and_take(&mote.frame(1, false)))[0].session, new.id());
        assert_eq!(rig.bridge.state(mote.device).map(|state| (state.reset_ordinal, state.f_cnt_up_next)), Some((1, 2)));
        assert_eq!(rig.bridge.stats().resets, 1);
    }
}

#[test]
fn what_is_no_new_beginning() {
    let (mote, strict) = (Mote::new(1), Mote::new(2));
    let mut rig = Rig::new();
    rig.apply(Input::Register { group: GROUP, sessions: vec![restarting(&mote), strict.session()] });
    rig.serve(1, None);
    for mote in [&mote, &strict] {
        rig.hear_and_take(&mote.frame(9, false));
        rig.hear_and_take(&mote.frame(10, false));
    }
    rig.now += 5_000;
    let late = rig.hear_and_take(&mote.frame(8, false));
    assert_eq!((uplinks(&late).len(), resets_wanted(&late).len()), (1, 0), "a few seconds late");
    rig.now += 60_000;
    let repeated = rig.hear(&mote.frame(10, false));
    assert!(uplinks(&repeated).is_empty() && resets_wanted(&repeated).is_empty(), "the newest, repeated");
    let not_allowed = rig.hear(&strict.frame(0, false));
    assert_eq!((uplinks(&not_allowed).len(), resets_wanted(&not_allowed).len()), (1, 0), "late, by the specification");
}

#[test]
fn only_the_holder_decides_and_the_next_holder_takes_the_question_over() {
    let mote = Mote::new(1);
    let mut rig = Rig::new();
    rig.apply(Input::Register { group: GROUP, sessions: vec![Session { f_cnt_up_next: 900, ..restarting(&mote) }] });
    rig.pull();
    rig.custody(Mode::Standby);
    assert!(resets_wanted(&rig.hear(&mote.frame(0, false))).is_empty());
    rig.now += 1_000;
    assert!(resets_wanted(&rig.hear(&mote.frame(1, false))).is_empty());
    assert_eq!(resets_wanted(&rig.serve(2, None)), [(mote.device, 1)]);
    rig.now += 200;
    assert!(resets_wanted(&rig.advance(0)).is_empty());
    assert_eq!(resets_wanted(&rig.advance(400)), [(mote.device, 1)], "again until it is decided");
    let out = rig.apply(Input::Reset { entries: vec![(mote.device, 1)] });
    assert_eq!(uplinks(&out).iter().map(|uplink| uplink.f_cnt).collect::<Vec<_>>(), [0, 1]);
    let session = Session { reset_ordinal: 1, ..mote.session() }.id();
    assert!(out.contains(&Output::SessionChanged { group: GROUP, device: mote.device, session }));
    // A node that hears of the record follows, whatever older sessions are named beside it.
    let mut member = Rig::standby(&[]);
    member.apply(Input::Register { group: GROUP, sessions: vec![restarting(&mote)] });
    let named = vec![(mote.device, session), (mote.device, mote.session().id())];
    let out = member.apply(Input::WrittenAhead { sessions: named });
    assert_eq!(out, [Output::SessionChanged { group: GROUP, device: mote.device, session }]);
    // Another follows by the streamed state, with what it heard meanwhile.
    let state = rig.bridge.state(mote.device).expect("registered");
    let mut other = Rig::new();
    other.apply(Input::Register { group: GROUP, sessions: vec![Session { f_cnt_up_next: 900, ..restarting(&mote) }] });
    other.custody(Mode::Standby);
    other.hear(&mote.frame(1, false));
    other.apply(Input::Import { states: vec![state] });
    assert_eq!((other.bridge.stats().resets, other.bridge.stats().buffer_frames), (1, 1));
    let gone = other.advance(601_000);
    assert!(uplinks(&gone).is_empty());
    assert_eq!(other.bridge.stats().dropped(DropReason::ResetUndecided), 0);
}
