use std::collections::BTreeMap;

use super::*;
use crate::fleet::Fleet;
use crate::frame::build_downlink;
use crate::ledger::DropReason;

fn mote(confirmed_ppm: u32, duty_cycle: bool) -> Mote {
    let device = Fleet::new(5, 1).expect("one mote").devices()[0].clone();
    let policy = Policy {
        seed: Seed(5),
        period_us: 10_000_000,
        confirmed_ppm,
        rx2_data_rate: SpreadingFactor::SF9,
        duty_cycle,
        depth: Depth::default(),
    };
    Mote::new(0, device, policy, 1_000_000)
}

/// Sends one reading and goes into the windows; returns the exchange.
fn listen(mote: &mut Mote, now_us: u64) -> Exchange {
    let effects = mote.apply(Event::ReadingDue, now_us);
    let (at_us, event) = wake(&effects, |event| matches!(event, Event::AirEnded(_))).expect("an end of the air time");
    mote.apply(event, at_us);
    let State::Listening { exchange, .. } = mote.state().clone() else { panic!("not listening: {:?}", mote.state()) };
    exchange
}

fn wake(effects: &[Effect], matching: impl Fn(&Event) -> bool) -> Option<(u64, Event)> {
    effects.iter().find_map(|effect| match effect {
        Effect::Wake { at_us, event } if matching(event) => Some((*at_us, event.clone())),
        Effect::Wake { .. } | Effect::Record(_) | Effect::ConfirmedPending(_) | Effect::ReadingSkipped | Effect::Joined(_) => {
            None
        }
    })
}

fn receive(mote: &mut Mote, exchange: &Exchange, window: Window, bytes: Vec<u8>) -> Vec<Effect> {
    let start_us = exchange.end_us + if window == Window::Rx1 { RX1_DELAY_US } else { RX2_DELAY_US };
    mote.apply(Event::DownlinkBegan { id: exchange.id(), end_us: start_us + 50_000 }, start_us);
    mote.apply(Event::DownlinkEnded { id: exchange.id(), window, bytes }, start_us + 50_000)
}

fn number(exchange: &Exchange) -> u32 {
    match exchange.content {
        Content::Reading(reading) => reading.number,
        Content::Join { .. } => panic!("a join request"),
    }
}

fn drop_reason(effects: &[Effect]) -> Option<DropReason> {
    effects.iter().find_map(|effect| match effect {
        Effect::Record(MoteRecord::DownlinkDropped(dropped)) => Some(dropped.reason),
        Effect::Record(_) | Effect::Wake { .. } | Effect::ConfirmedPending(_) | Effect::ReadingSkipped | Effect::Joined(_) => {
            None
        }
    })
}

#[test]
fn confirmed_uplink_is_repeated_eight_times_and_then_given_up() {
    let mut mote = mote(1_000_000, true);
    let mut attempts: Vec<Attempt> = Vec::new();
    let mut agenda: BTreeMap<u64, Event> = BTreeMap::from([(mote.next_reading_us(), Event::ReadingDue)]);
    let mut ended = None;
    while let Some((at_us, event)) = agenda.pop_first() {
        if event == Event::ReadingDue && !attempts.is_empty() {
            continue; // only one reading in this test
        }
        for effect in mote.apply(event, at_us) {
            match effect {
                Effect::Wake { at_us, event } => assert!(agenda.insert(at_us, event).is_none()),
                Effect::Record(MoteRecord::Attempt(attempt)) => attempts.push(attempt),
                Effect::Record(MoteRecord::UplinkEnd(end)) => ended = Some(end),
                Effect::Record(_) | Effect::ConfirmedPending(_) | Effect::ReadingSkipped | Effect::Joined(_) => {}
            }
        }
    }
    assert_eq!(attempts.iter().map(|attempt| attempt.attempt).collect::<Vec<_>>(), (1..=8).collect::<Vec<_>>());
    let rates: Vec<_> = attempts.iter().map(|attempt| attempt.data_rate.to_string()).collect();
    assert_eq!(rates, ["SF7BW125", "SF7BW125", "SF8BW125", "SF8BW125", "SF9BW125", "SF9BW125", "SF10BW125", "SF10BW125"]);
    assert!(attempts.iter().all(|attempt| attempt.f_cnt == 0 && attempt.reading == attempts[0].reading));
    for pair in attempts.windows(2) {
        let gap_us = pair[1].start_us - pair[0].end_us;
        let airtime_us = pair[0].end_us - pair[0].start_us;
        assert!(gap_us >= RX2_DELAY_US && gap_us >= 99 * airtime_us, "{gap_us}");
        assert!(gap_us <= (RX2_DELAY_US + 33_000 + 3_000_000).max(99 * airtime_us), "{gap_us}");
    }
    let ended = ended.expect("an end");
    assert_eq!((ended.attempts, ended.acknowledged), (8, None));
    assert_eq!(*mote.state(), State::Idle);
}

#[test]
fn acknowledgement_ends_the_exchange_and_timers_of_it_are_stale() {
    for window in [Window::Rx1, Window::Rx2] {
        let mut mote = mote(1_000_000, false);
        let first = listen(&mut mote, 2_000_000);
        let bytes = build_downlink(mote.device(), 0, true, false);
        let effects = receive(&mut mote, &first, window, bytes);
        assert!(effects.iter().any(
            |effect| matches!(effect, Effect::Record(MoteRecord::UplinkEnd(end)) if end.acknowledged == Some(window) && end.attempts == 1)
        ));
        assert_eq!(*mote.state(), State::Idle);
        let second = listen(&mut mote, 20_000_000);
        assert_eq!(second.f_cnt, 1);
        assert!(mote.apply(Event::WindowsClosed(first.id()), 20_100_000).is_empty(), "a stale timer has no effect");
        assert!(mote.apply(Event::RetryDue(second.id()), 20_100_000).is_empty());
    }
}

#[test]
fn downlink_without_acknowledgement_ends_a_confirmed_uplink_as_not_acknowledged() {
    let mut mote = mote(1_000_000, false);
    let exchange = listen(&mut mote, 2_000_000);
    let bytes = build_downlink(mote.device(), 0, false, false);
    let effects = receive(&mut mote, &exchange, Window::Rx1, bytes);
    assert_eq!(*mote.state(), State::Idle);
    assert!(
        effects.iter().any(|effect| matches!(effect, Effect::Record(MoteRecord::UplinkEnd(end)) if end.acknowledged.is_none()))
    );
}

#[test]
fn counters_are_judged_as_by_lmic() {
    let foreign = Fleet::new(6, 2).expect("two motes").devices()[1].clone();
    // (next expected, counter sent, expected outcome)
    let table = [
        (0, 0, Ok(0)),
        (0, 16_384, Ok(16_384)),
        (0, 16_385, Err(DropReason::Gap)),
        (10, 9, Err(DropReason::Replay)),
        (10, 0, Err(DropReason::Replay)),
        (65_530, 65_540, Ok(65_540)),
        (65_540, 65_539, Err(DropReason::Replay)),
        (65_540, 65_530, Err(DropReason::Replay)),
        (0, 70_000, Err(DropReason::Mic)),
    ];
    for (next, sent, expected) in table {
        let mut mote = mote(1_000_000, false);
        mote.f_cnt_down_next = next;
        let exchange = listen(&mut mote, 2_000_000);
        let bytes = build_downlink(mote.device(), sent, true, false);
        let effects = receive(&mut mote, &exchange, Window::Rx1, bytes);
        match expected {
            Ok(accepted) => {
                assert_eq!(drop_reason(&effects), None, "{next} {sent}");
                assert_eq!(mote.f_cnt_down_next, accepted + 1);
            }
            Err(reason) => {
                assert_eq!(drop_reason(&effects), Some(reason), "{next} {sent}");
                assert_eq!(mote.f_cnt_down_next, next);
                assert!(
                    matches!(mote.state(), State::Listening { receiving_until_us: None, .. }),
                    "the second window is still open"
                );
            }
        }
    }
    let mut mote = mote(1_000_000, false);
    let exchange = listen(&mut mote, 2_000_000);
    assert_eq!(
        drop_reason(&receive(&mut mote, &exchange, Window::Rx1, build_downlink(&foreign, 0, true, false))),
        Some(DropReason::Address)
    );
    assert_eq!(drop_reason(&receive(&mut mote, &exchange, Window::Rx2, vec![1, 2, 3])), Some(DropReason::Malformed));
}

#[test]
fn windows_are_strict_in_time_frequency_and_rate() {
    let mut mote = mote(0, false);
    let exchange = listen(&mut mote, 2_000_000);
    let rx1 = exchange.end_us + RX1_DELAY_US;
    let rx2 = exchange.end_us + RX2_DELAY_US;
    let id = exchange.id();
    assert_eq!(mote.open_window(rx1, exchange.frequency_hz, SpreadingFactor::SF7), Some((id, Window::Rx1)));
    assert_eq!(mote.open_window(rx1 + 20, exchange.frequency_hz, SpreadingFactor::SF7), Some((id, Window::Rx1)));
    assert_eq!(mote.open_window(rx1 + 21, exchange.frequency_hz, SpreadingFactor::SF7), None);
    assert_eq!(mote.open_window(rx1, RX2_FREQUENCY_HZ, SpreadingFactor::SF7), None);
    assert_eq!(mote.open_window(rx2, RX2_FREQUENCY_HZ, SpreadingFactor::SF9), Some((id, Window::Rx2)));
    assert_eq!(mote.open_window(rx2, RX2_FREQUENCY_HZ, SpreadingFactor::SF12), None);
    assert_eq!(mote.open_window(rx2, exchange.frequency_hz, SpreadingFactor::SF7), None);
}

#[test]
fn a_confirmed_downlink_is_acknowledged_with_the_next_uplink() {
    let mut mote = mote(0, false);
    let exchange = listen(&mut mote, 2_000_000);
    let bytes = build_downlink(mote.device(), 0, false, true);
    receive(&mut mote, &exchange, Window::Rx1, bytes);
    assert_eq!(listen(&mut mote, 20_000_000).bytes[5], 0x20);
}

#[test]
fn busy_motes_skip_readings_and_numbers_have_no_gaps() {
    let mut mote = mote(0, false);
    let first = listen(&mut mote, 2_000_000);
    let effects = mote.apply(Event::ReadingDue, 2_500_000);
    assert!(effects.contains(&Effect::ReadingSkipped));
    mote.apply(Event::WindowsClosed(first.id()), 5_000_000);
    let second = listen(&mut mote, 20_000_000);
    assert_eq!(number(&second), number(&first) + 1);
}
