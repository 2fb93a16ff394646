//! A gateway has one transmitter: what the bridge told it to send is in the way of what comes next.

mod common;

use common::{GATEWAY, Mote, OTHER_GATEWAY, Rig, address, downlinks, on_air, pull, push_with, tx_ack, uplinks};
use lora_bridge::{GatewayEui, Input, MissedReason, Window};

/// The motes' confirmed uplinks end at the same moment; each is taken at once. Gateway and window of each answer.
fn answered(rig: &mut Rig, motes: &[Mote], f_cnt: u32) -> Vec<Option<(GatewayEui, Window)>> {
    let answer = |mote: &Mote| {
        let out = rig.hear_and_commit(&mote.frame(f_cnt, true));
        let sent = downlinks(&out);
        assert!(sent.len() <= 1);
        sent.first().map(|downlink| (downlink.gateway, downlink.window))
    };
    motes.iter().map(answer).collect()
}

const RX1: Option<(GatewayEui, Window)> = Some((GATEWAY, Window::Rx1));
const RX2: Option<(GatewayEui, Window)> = Some((GATEWAY, Window::Rx2));

#[test]
fn of_three_at_once_one_is_answered_in_each_window_and_one_later() {
    let motes: Vec<Mote> = (0..4).map(Mote::new).collect();
    let mut rig = Rig::serving(&motes);
    assert_eq!(answered(&mut rig, &motes[..3], 0), [RX1, RX2, None]);
    let stats = rig.bridge.stats();
    assert_eq!((stats.missed(MissedReason::Busy), stats.missed(MissedReason::DutyCycle)), (1, 0));
    // The answer in RX2 takes a second at SF12, from 2 s on: RX1 of uplinks that end a second later falls into it.
    rig.now += 1_000;
    assert_eq!(answered(&mut rig, &motes[3..], 0), [RX2]);
    rig.now += 5_000;
    assert_eq!(answered(&mut rig, &motes[2..3], 1), [RX1], "with its next uplink");
}

#[test]
fn another_gateway_in_the_first_window_goes_before_the_second() {
    let motes: Vec<Mote> = (0..2).map(Mote::new).collect();
    let mut rig = Rig::serving(&motes);
    rig.apply(Input::Datagram { from: address(2_001), bytes: &pull(OTHER_GATEWAY) });
    assert_eq!(answered(&mut rig, &motes[..1], 0), [RX1]);
    let (phy, tmst) = (motes[1].frame(0, true), rig.tmst());
    let heard = |rig: &mut Rig, gateway, tmst, snr| {
        rig.apply(Input::Datagram { from: address(2_002), bytes: &push_with(gateway, &[(tmst, phy.clone())], 2, snr) })
    };
    let out = heard(&mut rig, GATEWAY, tmst, 50);
    heard(&mut rig, OTHER_GATEWAY, 777_000, -90);
    let out = rig.commit(uplinks(&out).iter().map(|uplink| uplink.event).collect());
    let sent = downlinks(&out);
    assert_eq!((sent.len(), sent[0].gateway, sent[0].window), (1, OTHER_GATEWAY, Window::Rx1));
    assert_eq!(on_air(sent[0], &motes[1]).tmst, 1_777_000, "on its own clock");
    assert_eq!(rig.bridge.stats().answers_rerouted, 1);
}

#[test]
fn what_a_gateway_refused_is_in_nobodys_way() {
    let motes: Vec<Mote> = (0..2).map(Mote::new).collect();
    let mut rig = Rig::serving(&motes);
    let out = rig.hear_and_commit(&motes[0].frame(0, true));
    let bytes = tx_ack(downlinks(&out)[0], "COLLISION_PACKET");
    let out = rig.apply(Input::Datagram { from: address(1_001), bytes: &bytes });
    assert_eq!(downlinks(&out)[0].window, Window::Rx2);
    assert_eq!(answered(&mut rig, &motes[1..], 0), [RX1]);
}

/// A thousand confirmed uplinks at random moments: whatever two downlinks of a gateway are, one is over when the other begins.
#[test]
fn no_two_downlinks_of_a_gateway_overlap() {
    use rand::{Rng, SeedableRng};
    for seed in 0..4_u64 {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
        let motes: Vec<Mote> = (0..50).map(Mote::new).collect();
        let mut rig = Rig::serving(&motes);
        let mut on_air_micros: Vec<(u64, u64)> = Vec::new();
        let mut next = vec![0; motes.len()];
        let begun = rig.now;
        for _ in 0..1_000 {
            rig.now += rng.random_range(0..400);
            rig.pull();
            let which = rng.random_range(0..motes.len());
            let out = rig.hear_and_commit(&motes[which].frame(next[which], true));
            next[which] += 1;
            rig.reserve(&motes[which..=which], next[which] + 64);
            for downlink in downlinks(&out) {
                let delay = if downlink.window == Window::Rx1 { 1_000_000 } else { 2_000_000 };
                let sent = on_air(downlink, &motes[which]);
                // 12 bytes without CRC, at SF9 and at SF12.
                let micros = if sent.datr == "SF9BW125" { 144_384 } else { 991_232 };
                on_air_micros.push(((rig.now - begun) * 1_000 + delay, micros));
            }
        }
        on_air_micros.sort_unstable();
        let overlap = on_air_micros.windows(2).find(|pair| pair[0].0 + pair[0].1 >= pair[1].0);
        assert_eq!(overlap, None, "seed {seed}");
        let busy = rig.bridge.stats().missed(MissedReason::Busy);
        assert!(
            on_air_micros.len() > 200 && busy > 100,
            "seed {seed}: {} answers, {busy} without a free window",
            on_air_micros.len()
        );
    }
}
