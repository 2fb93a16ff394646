//! Standby, takeover, hand-back: buffered frames, offers, windows at the border of two leases, counters, streamed state.

mod common;

use common::{GROUP, Mote, OTHER_GATEWAY, Rig, downlinks, offers, the_downlink, uplinks, wanted};
use lora_bridge::buffer::Limits;
use lora_bridge::{Config, CounterSource, Input, Mode, Output, UplinkKind, Window};

fn one() -> (Mote, Rig) {
    let mote = Mote::new(1);
    let rig = Rig::standby(std::slice::from_ref(&mote));
    (mote, rig)
}

#[test]
fn standby_delivers_nothing_and_offers_what_the_other_lacks() {
    let (mote, mut rig) = one();
    for f_cnt in [0, 1, 2] {
        assert!(uplinks(&rig.hear(&mote.frame(f_cnt, f_cnt == 2))).is_empty());
    }
    rig.apply(Input::PeerProgress { served: vec![mote.mark(1)], settled: vec![mote.mark(0)] });
    assert!(offers(&rig.advance(29)).is_empty());
    let out = rig.advance(1);
    assert_eq!(offers(&out).iter().map(|offer| offer.mark).collect::<Vec<_>>(), [mote.mark(2)]);
    let offer = offers(&out)[0].clone();
    assert_eq!((offer.event, offer.frame.phy.to_vec()), (mote.event(2), mote.frame(2, true)));
    let json = serde_json::to_string(&offer.frame).expect("JSON");
    assert_eq!(serde_json::from_str::<lora_bridge::OfferedFrame>(&json).expect("its own JSON"), offer.frame);
    assert_eq!(offers(&rig.advance(250)).len(), 1, "again, until it is served");
    rig.apply(Input::PeerProgress { served: vec![mote.mark(2)], settled: vec![] });
    assert!(offers(&rig.advance(100_000)).is_empty());
    assert_eq!(rig.bridge.stats().buffer_frames, 2, "served frames stay until they are settled");

    // The other node takes the offered frame as late data.
    let mut other = Rig::serving(std::slice::from_ref(&mote));
    let out = other.apply(Input::Offered { frame: offer.frame });
    assert_eq!((uplinks(&out)[0].event, uplinks(&out)[0].kind), (offer.event, UplinkKind::Late));
    // A frame that was named before this node heard it is not offered either.
    rig.apply(Input::PeerProgress { served: vec![mote.mark(3)], settled: vec![] });
    rig.hear(&mote.frame(3, false));
    assert!(offers(&rig.advance(100_000)).is_empty());
}

#[test]
fn takeover_replays_in_order_what_is_not_settled_while_live_frames_go_on() {
    let motes: Vec<Mote> = (0..3).map(Mote::new).collect();
    let mut rig = Rig::standby(&motes);
    for f_cnt in 0..1_000 {
        for mote in &motes {
            rig.hear(&mote.frame(f_cnt, false));
        }
    }
    let served = (0..900).map(|f_cnt| motes[0].mark(f_cnt)).collect();
    let settled = (0..500).map(|f_cnt| motes[1].mark(f_cnt)).collect();
    rig.apply(Input::PeerProgress { served, settled });
    rig.now += 10_000;
    let mut out = rig.serve(2, None);
    let first_batch = uplinks(&out).len();
    assert!(first_batch > 0 && first_batch < 2_500, "in batches: {first_batch}");
    let live = rig.hear(&motes[2].frame(1_000, false));
    assert_eq!((uplinks(&live).len(), uplinks(&live)[0].kind), (1, UplinkKind::Live));
    for _ in 0..10 {
        out.extend(rig.advance(1));
    }
    let counters = |mote: &Mote| -> Vec<u32> {
        uplinks(&out).iter().filter(|uplink| uplink.device == mote.device).map(|uplink| uplink.f_cnt).collect()
    };
    assert_eq!(counters(&motes[0]), (0..1_000).collect::<Vec<_>>(), "served is not settled");
    assert_eq!(counters(&motes[1]), (500..1_000).collect::<Vec<_>>());
    assert_eq!(counters(&motes[2]), (0..1_000).collect::<Vec<_>>());
    assert!(uplinks(&out).iter().all(|uplink| uplink.kind == UplinkKind::Buffered));
    assert!(downlinks(&out).is_empty());
    assert!(out.contains(&Output::Replayed { group: GROUP, frames: 2_500 }));
    let events = uplinks(&out).iter().map(|uplink| uplink.event).collect();
    rig.commit(events);
    assert_eq!(rig.bridge.stats().buffer_frames, 0, "on disk, no longer in the buffer");
}

#[test]
fn what_was_heard_before_the_others_lease_ended_is_answered_in_rx2_only() {
    let (mote, mut rig) = one();
    let tmst = rig.tmst();
    rig.hear(&mote.frame(0, true));
    rig.now += 400;
    // The gateway is done with the first answer by then.
    let lease_end = rig.now + 3_000;
    let out = rig.serve(2, Some(lease_end));
    assert_eq!(uplinks(&out)[0].kind, UplinkKind::Buffered);
    assert_eq!(wanted(&out), [(mote.device, 16)]);
    rig.reserve(std::slice::from_ref(&mote), 16);
    let air = the_downlink(&rig.commit(vec![mote.event(0)]), &mote, Window::Rx2);
    assert_eq!(air.tmst, tmst.wrapping_add(2_000_000));
    rig.now = lease_end - 1;
    the_downlink(&rig.hear_and_commit(&mote.frame(1, true)), &mote, Window::Rx2);
    rig.now = lease_end;
    the_downlink(&rig.hear_and_commit(&mote.frame(2, true)), &mote, Window::Rx1);
}

#[test]
fn served_or_expired_frames_are_delivered_and_not_answered() {
    let motes: Vec<Mote> = (0..3).map(Mote::new).collect();
    let mut rig = Rig::standby(&motes);
    rig.hear(&motes[0].frame(0, true));
    rig.now += 2_000;
    rig.hear(&motes[1].frame(0, true));
    rig.hear(&motes[2].frame(0, true));
    rig.apply(Input::PeerProgress { served: vec![motes[1].mark(0), motes[2].mark(0)], settled: vec![] });
    rig.now += 3_000;
    // The third repeats itself after the other node served it: that node's answer was not heard.
    rig.hear(&motes[2].frame(0, true));
    rig.now += 100;
    let out = rig.serve(2, Some(rig.now));
    assert_eq!(uplinks(&out).len(), 3);
    rig.reserve(&motes, 16);
    let events = uplinks(&out).iter().map(|uplink| uplink.event).collect();
    let out = rig.commit(events);
    the_downlink(&out, &motes[2], Window::Rx2);
}

#[test]
fn the_newest_copy_in_the_buffer_keeps_its_time() {
    let (mote, mut rig) = one();
    let phy = mote.frame(0, true);
    rig.hear(&phy);
    rig.hear_by(OTHER_GATEWAY, 3, &phy);
    rig.now += 4_000;
    let tmst = rig.tmst();
    rig.hear(&phy);
    assert_eq!(rig.bridge.stats().buffer_frames, 1);
    rig.now += 1_000;
    let out = rig.serve(2, None);
    rig.reserve(std::slice::from_ref(&mote), 16);
    assert_eq!(uplinks(&out).len(), 1);
    assert_eq!(the_downlink(&rig.commit(vec![mote.event(0)]), &mote, Window::Rx2).tmst, tmst.wrapping_add(2_000_000));
}

#[test]
fn a_repetition_after_takeover_of_what_the_other_served_is_answered_and_delivered() {
    let (mote, mut rig) = one();
    rig.apply(Input::PeerProgress { served: vec![mote.mark(7)], settled: vec![] });
    rig.serve(2, Some(rig.now));
    rig.reserve(std::slice::from_ref(&mote), 16);
    let out = rig.hear(&mote.frame(7, true));
    assert_eq!(uplinks(&out)[0].event, mote.event(7), "served by the other, whose disk may be gone");
    the_downlink(&rig.commit(vec![mote.event(7)]), &mote, Window::Rx1);
    // Settled is settled: answered, not delivered.
    rig.apply(Input::PeerProgress { served: vec![], settled: vec![mote.mark(8)] });
    rig.now += 3_000;
    let out = rig.hear(&mote.frame(8, true));
    assert!(uplinks(&out).is_empty());
    the_downlink(&out, &mote, Window::Rx1);
}

#[test]
fn counters_start_above_the_highest_reserved_and_a_release_carries_exact_ones() {
    let mote = Mote::new(1);
    let motes = std::slice::from_ref(&mote);
    let mut a = Rig::serving(motes);
    for f_cnt in 0..3 {
        a.now += 5_000;
        a.pull();
        a.hear_and_commit(&mote.frame(f_cnt, true));
    }
    // A dies. B knows its state from the stream, and the highest reservation from the grants.
    let mut b = Rig::standby(motes);
    let (states, end) = a.bridge.export(GROUP, 0, 10);
    assert_eq!(end, None);
    b.apply(Input::Import { states });
    b.apply(Input::CountersFrom { entries: vec![(mote.device, 16)], source: CounterSource::Reservation });
    assert_eq!(wanted(&b.serve(2, Some(b.now))), [(mote.device, 32)]);
    b.reserve(motes, 32);
    b.now += 1;
    assert_eq!(the_downlink(&b.hear_and_commit(&mote.frame(3, true)), &mote, Window::Rx1).f_cnt, 16);
    // B gives back: nothing new, exact counters.
    b.now += 5_000;
    b.hear(&mote.frame(4, true));
    b.custody(Mode::Standby);
    assert!(downlinks(&b.commit(vec![mote.event(4)])).is_empty());
    let exact = b.bridge.exact_counters(GROUP);
    assert_eq!(exact, [(mote.device, 17)]);
    // A is back as follower, with B's states and the release.
    a.custody(Mode::Following);
    a.now += 10_000;
    a.pull();
    a.apply(Input::Import { states: b.bridge.export(GROUP, 0, 10).0 });
    a.hear(&mote.frame(5, true));
    a.commit(vec![mote.event(5)]);
    a.apply(Input::CountersFrom { entries: exact, source: CounterSource::Release });
    a.now += 50;
    let out = a.serve(3, Some(a.now));
    let air = the_downlink(&out, &mote, Window::Rx2);
    assert_eq!((air.f_cnt, air.ack), (17, true), "heard as follower, answered as holder, in RX2");
}

#[test]
fn a_node_that_was_not_told_leaves_out_the_whole_reservation() {
    let mote = Mote::new(1);
    let mut rig = Rig::serving(std::slice::from_ref(&mote));
    rig.hear_and_commit(&mote.frame(0, true));
    rig.custody(Mode::Fenced);
    assert_eq!(wanted(&rig.serve(2, None)), [(mote.device, 32)]);
    assert_eq!(rig.bridge.exact_counters(GROUP), [(mote.device, 16)]);
    assert_eq!(rig.bridge.stats().f_cnt_down_skipped_max, 15);
}

#[test]
fn after_handing_back_a_node_buffers_again() {
    let (mote, mut rig) = one();
    rig.hear(&mote.frame(0, false));
    let out = rig.serve(2, None);
    assert_eq!(uplinks(&out).len(), 1);
    rig.commit(vec![mote.event(0)]);
    rig.custody(Mode::Standby);
    assert!(uplinks(&rig.hear(&mote.frame(0, false))).is_empty());
    assert_eq!(rig.bridge.stats().buffer_frames, 0, "that one is on its own disk");
    rig.hear(&mote.frame(1, false));
    assert_eq!(offers(&rig.advance(60)).len(), 1);
    let again = rig.serve(4, None);
    assert_eq!(uplinks(&again).iter().map(|uplink| uplink.f_cnt).collect::<Vec<_>>(), [1]);
}

#[test]
fn a_replay_that_fails_to_reach_the_disk_is_repeated() {
    let (mote, mut rig) = one();
    rig.hear(&mote.frame(0, false));
    rig.hear(&mote.frame(1, false));
    let out = rig.serve(2, None);
    assert_eq!(uplinks(&out).len(), 2);
    rig.commit(vec![mote.event(1)]);
    rig.apply(Input::CommitFailed { events: vec![mote.event(0)] });
    assert!(uplinks(&rig.advance(99)).is_empty());
    let out = rig.advance(1);
    assert_eq!(uplinks(&out).iter().map(|uplink| uplink.f_cnt).collect::<Vec<_>>(), [0]);
    rig.commit(vec![mote.event(0)]);
    assert!(uplinks(&rig.advance(10_000)).is_empty());
    assert_eq!(rig.bridge.stats().buffer_frames, 0);
}

#[test]
fn the_buffer_is_bounded_and_its_losses_are_counted() {
    let mote = Mote::new(1);
    let buffer = Limits { frames_max: 100, ..Limits::default() };
    let mut rig = Rig::with(Config { buffer, ..Config::default() });
    rig.prepare(std::slice::from_ref(&mote));
    for f_cnt in 0..250 {
        rig.hear(&mote.frame(f_cnt, false));
        if f_cnt % 5 == 0 {
            rig.apply(Input::PeerProgress { served: vec![mote.mark(f_cnt)], settled: vec![] });
        }
    }
    let stats = rig.bridge.stats();
    assert_eq!(stats.buffer_frames, 100);
    assert_eq!(stats.buffer_lost + stats.buffer_evicted_served, 150);
    assert!(stats.buffer_evicted_served >= 49, "the served ones went first: {stats:?}");
    let day = 24 * 3_600 * 1_000;
    rig.advance(day + 1_000);
    assert_eq!(rig.bridge.stats().buffer_frames, 0, "too old");
}

#[test]
fn state_goes_in_pages_and_merges() {
    let motes: Vec<Mote> = (0..10).map(Mote::new).collect();
    let mut a = Rig::serving(&motes);
    for mote in &motes {
        a.hear_and_commit(&mote.frame(3, true));
    }
    let (mut all, mut cursor) = (Vec::new(), Some(0));
    while let Some(from) = cursor {
        let (page, next) = a.bridge.export(GROUP, from, 3);
        assert!(page.len() <= 3);
        all.extend(page);
        cursor = next;
    }
    assert_eq!(all.len(), 10);
    let json = serde_json::to_string(&all).expect("JSON");
    let states: Vec<lora_bridge::SessionState> = serde_json::from_str(&json).expect("its own JSON");
    let mut b = Rig::standby(&motes);
    b.hear(&motes[0].frame(5, false));
    b.apply(Input::Import { states });
    let state = b.bridge.state(motes[0].device).expect("registered");
    assert_eq!((state.f_cnt_up_next, state.f_cnt_down_next, state.f_cnt_down_reserved), (6, 1, 16));
    assert!(state.served.contains(3) && !state.served.contains(5) && !state.settled.contains(3));
    let stranger = lora_bridge::SessionState { device: Mote::new(77).device, ..state };
    b.apply(Input::Import { states: vec![stranger] });
    assert_eq!(b.bridge.stats().unknown_names, 1);
}

/// The insured node's copy of a frame may come before this node's own gateway hears it (`mirror`).
#[test]
fn a_frame_offered_first_and_then_heard_here_is_answered_by_who_takes_over() {
    for is_heard in [true, false] {
        let mote = Mote::new(1);
        let mut b = Rig::standby(std::slice::from_ref(&mote));
        let mut a = Rig::serving(std::slice::from_ref(&mote));
        let phy = mote.frame(0, true);
        let heard = a.hear(&phy);
        let uplink = uplinks(&heard)[0];
        let frame = lora_bridge::OfferedFrame {
            phy: uplink.phy.clone(),
            gateway: uplink.gateway,
            rx: uplink.rx,
            heard_at: uplink.heard_at,
        };
        b.apply(Input::Offered { frame });
        assert_eq!(b.bridge.stats().buffer_frames, 1);
        if is_heard {
            b.hear(&phy);
            assert_eq!(b.bridge.stats().buffer_frames, 1);
            assert_eq!(b.bridge.take_margins(GROUP, 10).len(), 1, "it is within reach");
        }
        b.reserve(std::slice::from_ref(&mote), 16);
        let now = b.now;
        let out = b.serve(2, Some(now + 1));
        let events = uplinks(&out).iter().map(|uplink| uplink.event).collect::<Vec<_>>();
        assert_eq!(events, [mote.event(0)], "delivered once, whoever heard it");
        let out = b.commit(events);
        b.apply(Input::CountersFrom { entries: vec![(mote.device, 16)], source: lora_bridge::CounterSource::Reservation });
        let answered = downlinks(&out).len() + downlinks(&b.reserve(std::slice::from_ref(&mote), 48)).len();
        assert_eq!(answered, usize::from(is_heard));
    }
}
