//! Frames of sessions that are not known yet: the device joined at the other node, and its record is not here. They wait in memory and on the
//! disk, bounded, and are readings once the record comes; they are never answered.

mod common;

use common::joiner::{Joiner, accepts, recorded, records, register, serving};
use common::{GROUP, Mote, Rig, uplinks};
use contracts::ids::EventId;
use lora_bridge::bridge::Config;
use lora_bridge::bridge::io::{OfferedFrame, UplinkKind};
use lora_bridge::mac::join::{DeviceRecord, NonceRule};
use lora_bridge::{GatewayEui, Input, Mode, Output};

/// A device that joined at the other node, and its record.
fn joined_elsewhere(joiner: &Joiner) -> (Mote, DeviceRecord) {
    let mut a = serving(std::slice::from_ref(joiner));
    let out = a.hear(&joiner.request(7));
    let record = records(&out).remove(0);
    recorded(&mut a, &out);
    let out = a.advance(4_000);
    (joiner.joined(&accepts(&out)[0].bytes, 7).0, record)
}

fn following(joiner: &Joiner) -> Rig {
    following_with(joiner, Config::default())
}

fn following_with(joiner: &Joiner, config: Config) -> Rig {
    let mut rig = Rig::with(config);
    rig.pull();
    register(&mut rig, std::slice::from_ref(joiner), true, NonceRule::Random);
    rig.custody(Mode::Following);
    rig
}

/// What is to be stored because its session is not known, by name.
fn awaited(out: &[Output]) -> Vec<(EventId, OfferedFrame)> {
    let waits = |output: &Output| match output {
        Output::Await { event, frame, .. } => Some((*event, frame.clone())),
        _ => None,
    };
    out.iter().filter_map(waits).collect()
}

fn forgotten(out: &[Output]) -> Vec<EventId> {
    let names = |output: &Output| if let Output::Forget { events } = output { events.clone() } else { Vec::new() };
    out.iter().flat_map(names).collect()
}

#[test]
fn a_frame_of_an_unknown_session_is_stored_until_it_is_stored_as_what_it_is() {
    let joiner = Joiner::new(1);
    let (mote, record) = joined_elsewhere(&joiner);
    let mut b = following(&joiner);
    let out = b.hear(&mote.frame(0, false));
    let [(name, _)] = awaited(&out)[..] else { panic!("one is stored: {out:?}") };
    assert!(out.contains(&Output::RecordsMissing { group: GROUP }));
    let tmst = b.tmst();
    assert!(awaited(&b.hear_by(GatewayEui(11), tmst, &mote.frame(0, false))).is_empty(), "the same frame once");
    let out = b.apply(Input::Records { records: vec![record] });
    let events: Vec<_> = uplinks(&out).iter().map(|uplink| uplink.event).collect();
    assert_eq!((events.as_slice(), forgotten(&out)), (&[mote.event(0)][..], vec![]), "not on the disk yet");
    // The disk does not take it: it waits on, and is heard again.
    let out = b.apply(Input::CommitFailed { events });
    assert_eq!(forgotten(&out), []);
    let due = b.bridge.next_due().expect("it is heard again");
    let out = b.advance(due.0.saturating_sub(b.now));
    assert_eq!(uplinks(&out).iter().map(|uplink| uplink.event).collect::<Vec<_>>(), [mote.event(0)]);
    assert_eq!(forgotten(&b.commit(vec![mote.event(0)])), [name]);
    assert!(uplinks(&b.advance(10_000)).is_empty(), "once");
}

#[test]
fn a_stored_frame_of_an_unknown_session_is_delivered_after_a_restart_and_not_answered() {
    let joiner = Joiner::new(1);
    let (mote, record) = joined_elsewhere(&joiner);
    let stored: Vec<_> = awaited(&following(&joiner).hear(&mote.frame(0, true)));
    let frames = || stored.iter().map(|(_, frame)| frame.clone()).collect();
    // Before the record is known, and twice.
    let mut b = following(&joiner);
    for _ in 0..2 {
        let out = b.apply(Input::Awaited { frames: frames() });
        assert_eq!((awaited(&out).len(), forgotten(&out)), (0, vec![]), "it is on the disk");
    }
    let out = b.apply(Input::Records { records: vec![record.clone()] });
    assert_eq!(
        uplinks(&out).iter().map(|uplink| (uplink.event, uplink.kind)).collect::<Vec<_>>(),
        [(mote.event(0), UplinkKind::Late)]
    );
    b.serve(2, None);
    let out = b.commit(vec![mote.event(0)]);
    assert_eq!((common::downlinks(&out).len(), forgotten(&out)), (0, vec![stored[0].0]));
    // Known already: it is an uplink at once, or one that is known.
    let mut c = following(&joiner);
    c.apply(Input::Records { records: vec![record] });
    assert_eq!(uplinks(&c.apply(Input::Awaited { frames: frames() })).len(), 1);
    c.commit(vec![mote.event(0)]);
    assert_eq!(forgotten(&c.apply(Input::Awaited { frames: frames() })), [stored[0].0]);
    // In standby it is kept for the other node, and offered.
    let mut d = following(&joiner);
    d.custody(Mode::Standby);
    d.apply(Input::Awaited { frames: frames() });
    let (_, record) = joined_elsewhere(&joiner);
    let out = d.apply(Input::Records { records: vec![record] });
    assert!(out.iter().any(|output| matches!(output, Output::Keep(uplink) if uplink.event == mote.event(0))));
    assert_eq!(forgotten(&out), [stored[0].0]);
    assert_eq!(common::offers(&d.advance(5_000)).len(), 1);
}

#[test]
fn frames_of_unknown_sessions_are_bounded_and_what_is_pushed_out_is_forgotten() {
    let joiner = Joiner::new(1);
    let (mote, _) = joined_elsewhere(&joiner);
    let mut b = following(&joiner);
    let (mut stored, mut dropped) = (Vec::new(), Vec::new());
    for f_cnt in 0..40 {
        let (tmst, frame) = (b.tmst(), mote.frame(f_cnt, false));
        for gateway in 11..17 {
            let out = b.hear_by(GatewayEui(gateway), tmst, &frame);
            stored.extend(awaited(&out).into_iter().map(|(name, _)| name));
            dropped.extend(forgotten(&out));
        }
    }
    assert_eq!((stored.len(), dropped.as_slice()), (40, &stored[..24]), "sixteen, the newest, however many gateways hear them");
    assert_eq!(b.bridge.stats().awaited_frames, 64, "as four gateways heard them");
    let out = b.apply(Input::Remove { group: GROUP });
    assert_eq!(forgotten(&out), stored[24..]);
}

#[test]
fn frames_of_unknown_sessions_wait_on_where_there_is_no_room_for_them_on_the_way_to_the_disk() {
    let joiner = Joiner::new(1);
    let (mote, record) = joined_elsewhere(&joiner);
    let mut b = following_with(&joiner, Config { in_flight_max: 1, ..Config::default() });
    let names: Vec<_> = (0..2).flat_map(|f_cnt| awaited(&b.hear(&mote.frame(f_cnt, false)))).map(|(name, _)| name).collect();
    let out = b.apply(Input::Records { records: vec![record] });
    assert_eq!((uplinks(&out).len(), uplinks(&out)[0].event, forgotten(&out)), (1, mote.event(0), vec![]));
    assert_eq!(forgotten(&b.commit(vec![mote.event(0)])), names[..1]);
    let out = b.advance(1_000);
    assert_eq!((uplinks(&out).len(), uplinks(&out)[0].event), (1, mote.event(1)));
    assert_eq!(forgotten(&b.commit(vec![mote.event(1)])), names[1..]);
}

#[test]
fn while_a_node_serves_a_neighbours_frames_with_a_devices_address_are_hardly_ever_stored_and_all_are_when_custody_ends() {
    let joiner = Joiner::new(1);
    let mut rig = serving(std::slice::from_ref(&joiner));
    let neighbour = Mote { device: joiner.device, address: joiner.address, key: [9; 16] };
    let (mut on_disk, mut stored, mut in_memory) = (std::collections::BTreeSet::new(), 0, 0);
    for f_cnt in 0..360 {
        rig.now += 10_000;
        let out = rig.hear(&neighbour.frame(f_cnt, false));
        for (name, _) in awaited(&out) {
            stored += 1;
            on_disk.insert(name);
        }
        for name in forgotten(&out) {
            assert!(on_disk.remove(&name), "only what is on the disk is forgotten there");
        }
        in_memory = rig.bridge.stats().awaited_frames;
    }
    assert_eq!((stored, in_memory), (60, 16), "an hour of a frame each 10 s");
    let out = rig.custody(Mode::Following);
    on_disk.extend(awaited(&out).into_iter().map(|(name, _)| name));
    assert_eq!(on_disk.len(), 16, "a session may be known to others only from now on");
    rig.now += 10_000;
    assert_eq!(awaited(&rig.hear(&neighbour.frame(360, false))).len(), 1, "as it is heard");
    let out = rig.apply(Input::Remove { group: GROUP });
    assert_eq!(forgotten(&out).len(), 16);
}
