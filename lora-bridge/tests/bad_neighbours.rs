//! What one mote, one gateway or one address can do to the others of a running bridge, over real sockets: cost a little.

mod common;

use common::joiner::Joiner;
use common::running::Running;
use common::{GROUP, Mote, push};
use contracts::time::Millis;
use lora_bridge::bridge::io::Input;
use lora_bridge::mac::join::NonceRule;
use lora_bridge::{Config, DropReason, GatewayEui};

const FLOODING: GatewayEui = GatewayEui(0xf100d);

async fn register(field: &Running, joiners: &[&Joiner]) {
    let devices = joiners.iter().map(|joiner| joiner.registration(true, NonceRule::Random)).collect();
    field.bridge.apply(Input::RegisterJoining { group: GROUP, devices }).await.expect("running");
}

/// As fast as the network takes them, and then once a second for an hour.
#[tokio::test]
async fn a_mote_that_joins_in_a_loop_is_answered_ever_more_rarely_and_the_others_are_served() {
    let (restless, calm, mote) = (Joiner::new(1), Joiner::new(2), Mote::new(7));
    let mut field = Running::serving(Config::default(), std::slice::from_ref(&mote)).await;
    register(&field, &[&restless, &calm]).await;
    for n in 0..2_000 {
        field.hear(&restless.request(n)).await;
        if n % 200 == 0 {
            field.assert_served(&mote, u32::from(n)).await;
        }
    }
    let stats = field.bridge.stats().await.expect("running");
    assert_eq!((stats.joins_begun, stats.dropped(DropReason::JoinTooSoon)), (1, 1_999));

    // One that joins once gets in meanwhile.
    let tmst = field.hear(&calm.request(9)).await;
    assert_eq!(field.bridge.stats().await.expect("running").joins_begun, 2);
    field.clock.advance(Millis(4_000));
    field.pull().await;
    let accept = loop {
        let (bytes, txpk) = field.downlink().await;
        if txpk["tmst"] == tmst.wrapping_add(5_000_000) {
            break bytes;
        }
    };
    let (joined, _) = calm.joined(&accept, 9);
    field.clock.advance(Millis(3_000));
    field.assert_served(&joined, 0).await;

    let before = field.bridge.stats().await.expect("running").joins_begun;
    for second in 0..3_600_u16 {
        field.clock.advance(Millis(1_000));
        field.pull().await;
        field.hear(&restless.request(10_000 + second)).await;
        if second % 60 == 0 {
            field.assert_served(&mote, 10_000 + u32::from(second)).await;
        }
    }
    let stats = field.bridge.stats().await.expect("running");
    let joins = stats.joins_begun - before;
    // Three at once in 6 s each, then 12, 24 ... 384 s apart.
    assert!((8..=20).contains(&joins), "{joins} joins in an hour");
    assert_eq!((stats.in_flight, stats.sessions), (0, 3));
}

/// The flood stands in the socket's queue before every good packet.
#[tokio::test]
async fn a_gateway_that_floods_uses_up_its_own_allowance() {
    let (config, mote) = (Config::default(), Mote::new(7));
    let allowance = u64::from(config.source_rate.burst);
    let mut field = Running::serving(config, std::slice::from_ref(&mote)).await;
    let flooding = field.other_gateway().await;
    let stranger = Mote { address: 0x0bad_0bad, ..Mote::new(8) };
    let half = push(FLOODING, &[(1, stranger.frame(1, false))]);
    // What names no gateway is no more than a comparison, and costs nobody's allowance.
    let rubbish = [half.clone(), half[..half.len() / 2].to_vec(), half, vec![0xff; 300]];
    let (mut looked_at, mut buffer) = (0_u64, vec![0; 2_000]);
    for round in 0..1_500_u32 {
        for datagram in rubbish.iter().cycle().take(48) {
            flooding.send(datagram).await.expect("loopback");
            looked_at += u64::from(datagram[0] == 2);
        }
        while flooding.try_recv(&mut buffer).is_ok() {}
        field.hear(&mote.frame(round, false)).await;
        assert_eq!(field.uplink().await.f_cnt, round);
    }
    let stats = field.bridge.stats().await.expect("running");
    assert_eq!(stats.dropped(DropReason::SourceLimit), looked_at - allowance, "the rest was not looked at");
    assert_eq!(stats.dropped(DropReason::Version), 1_500 * 12);
    assert_eq!((stats.uplinks_live, stats.in_flight), (1_500, 0));
    // The allowance comes back with time: the gateway is not shut out for ever.
    field.clock.advance(Millis(1_000));
    flooding.send(&push(FLOODING, &[(1, mote.frame(1_500, false))])).await.expect("loopback");
    // Behind it in the socket's queue; then the time is over in which the device's usual gateway might bring a copy.
    field.hear(&stranger.frame(2, false)).await;
    field.clock.advance(Millis(100));
    field.pull().await;
    assert_eq!(field.uplink().await.f_cnt, 1_500);
}

#[tokio::test]
async fn an_address_that_a_thousand_devices_share_costs_a_bounded_number_of_trials() {
    let crowd: Vec<Mote> = (0..1_000).map(|n| Mote { address: 0x2601_0001, ..Mote::new(n) }).collect();
    let alone = Mote::new(5_000);
    let motes: Vec<Mote> = crowd.iter().chain([&alone]).cloned().collect();
    let mut field = Running::serving(Config::default(), &motes).await;
    for mote in &crowd {
        field.hear(&mote.frame(0, false)).await;
        assert_eq!(field.uplink().await.device, mote.device);
        // A frame every 20 ms: what the allowance pays for.
        field.clock.advance(Millis(20));
    }
    let before = field.bridge.stats().await.expect("running").trials;
    let mut rubbish = crowd[0].frame(1, false);
    for round in 0..1_000_u32 {
        rubbish[9..13].copy_from_slice(&round.to_le_bytes());
        field.hear(&rubbish).await;
        if round.is_multiple_of(100) {
            field.assert_served(&alone, round).await;
        }
    }
    let stats = field.bridge.stats().await.expect("running");
    // 64 of each frame are free, 20,000 more are the allowance while the clock stands still.
    assert!(stats.trials - before <= 20_000 + 1_010 * 64, "{}", stats.trials - before);
    assert!(stats.dropped(DropReason::TrialsExhausted) > 900, "{:?}", stats.drops);
    field.clock.advance(Millis(100));
    field.hear(&crowd[900].frame(1, false)).await;
    assert_eq!(field.uplink().await.device, crowd[900].device, "a tenth of a second later");
}
