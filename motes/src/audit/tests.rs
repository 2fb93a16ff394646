//! Planted faults: a clean run, made by the motes and the radio themselves, is spoiled in one way at a time.

use super::*;
use crate::airtime::SpreadingFactor;
use crate::fleet::{DevAddr, Fleet};
use crate::frame::build_downlink;
use crate::ledger::{AcceptOnAir, Downlink, MoteRecord, RadioRecord};
use crate::mote::{Policy, RX1_DELAY_US, RX2_FREQUENCY_HZ, Window};
use crate::radio::{Loss, Output, Radio, Transmission};

const START_MS: u64 = 1_700_000_000_000;
const A: Eui64 = Eui64(0xa);
const B: Eui64 = Eui64(0xb);
const KILL_MS: u64 = START_MS + 60_000;
const CERTIFICATE_MS: u64 = KILL_MS + 900;
const RETURN_MS: u64 = KILL_MS + 30_000;
const HANDBACK_MS: u64 = RETURN_MS + 10_000;

struct Run {
    ledgers: Ledgers,
    nodes: Vec<NodeLife>,
    delivered: Vec<Delivered>,
    timeline: Timeline,
}

impl Run {
    fn report(&self) -> Report {
        let Self { ledgers, nodes, delivered, timeline } = self;
        audit(&Input { ledgers, nodes, delivered, timeline, limits: Limits::default() })
    }

    /// A row of a reading that is owed, delivered in time, and not within the hand-back.
    fn plain_row(&self) -> usize {
        self.delivered.iter().position(|row| row.heard_at_ms > START_MS + 5_000).expect("a row")
    }

    fn downlinks(&mut self) -> impl Iterator<Item = &mut Downlink> {
        self.ledgers.radio.iter_mut().filter_map(|record| match record {
            RadioRecord::Downlink(downlink) => Some(downlink),
            RadioRecord::Start(_) | RadioRecord::Frame(_) | RadioRecord::JoinFrame(_) => None,
        })
    }
}

/// Who serves at a time: A, nobody, B, A again.
fn holder(at_ms: u64) -> Option<(usize, Eui64, &'static str)> {
    match at_ms {
        ..KILL_MS => Some((0, A, "rio")),
        KILL_MS..CERTIFICATE_MS => None,
        CERTIFICATE_MS..HANDBACK_MS => Some((1, B, "patras")),
        HANDBACK_MS.. => Some((0, A, "rio")),
    }
}

/// Two minutes of motes and radio, served by a perfect pair of nodes: A until it is killed, then B, then A again.
fn perfect_run(seed: u64) -> Run {
    let fleet = Fleet::new(seed, 100).expect("a fleet");
    let policy = Policy {
        seed: fleet.seed(),
        period_us: 5_000_000,
        confirmed_ppm: 100_000,
        rx2_data_rate: SpreadingFactor::SF12,
        duty_cycle: false,
        depth: crate::mote::Depth::default(),
    };
    let loss = Loss { uplink_ppm: 50_000, downlink_ppm: 50_000 };
    let mut radio = Radio::new(&fleet, policy, loss, vec![A, B], START_MS * 1_000);
    let mut run = Run {
        ledgers: Ledgers::default(),
        nodes: vec![life("rio", A, &[(START_MS, Some(KILL_MS)), (RETURN_MS, None)]), life("patras", B, &[(START_MS, None)])],
        delivered: Vec::new(),
        timeline: Timeline {
            kill_ms: Some(KILL_MS),
            taker: Some("patras".to_owned()),
            takeover_certificate_ms: Some(CERTIFICATE_MS),
            handback_begin_ms: Some(HANDBACK_MS),
            handback_end_ms: Some(HANDBACK_MS + 5_000),
        },
    };
    let mut counters = vec![0; fleet.devices().len()];
    for now_ms in START_MS..START_MS + 130_000 {
        if now_ms == START_MS + 115_000 {
            radio.stop_sending();
        }
        for output in radio.advance(now_ms * 1_000) {
            match output {
                Output::Mote(record) => run.ledgers.motes.push(record),
                Output::Radio(record) => {
                    if let RadioRecord::Frame(frame) = &record {
                        answer(&fleet, &mut radio, frame, &mut counters);
                    }
                    run.ledgers.radio.push(record);
                }
                Output::Hear { .. } => {}
            }
        }
    }
    assert!(radio.is_drained(), "{:?}", radio.counts());
    deliver(&mut run);
    run
}

fn life(node: &str, gateway: Eui64, alive: &[(u64, Option<u64>)]) -> NodeLife {
    let alive = alive.iter().map(|(from_ms, to_ms)| Alive { from_ms: *from_ms, to_ms: *to_ms }).collect();
    NodeLife { node: node.to_owned(), gateway, alive }
}

fn answer(fleet: &Fleet, radio: &mut Radio, frame: &crate::ledger::Frame, counters: &mut [u32]) {
    let Some((gateway, eui, _)) = holder(frame.end_us / 1_000) else { return };
    let mote = usize::try_from(frame.mote).expect("an index");
    if !frame.confirmed || !frame.gateways.contains(&eui) {
        return;
    }
    let Some(exchange) = radio.listening(mote) else { return };
    let (frequency_hz, data_rate) = (exchange.frequency_hz, exchange.data_rate);
    radio.transmit(Transmission {
        gateway,
        bytes: build_downlink(&fleet.devices()[mote], counters[mote], true, false),
        start_us: frame.end_us + RX1_DELAY_US,
        data_rate,
        frequency_hz,
        inverted: true,
    });
    counters[mote] += 1;
}

/// Stores every owed reading once: at once, or after the takeover what was heard in the outage.
fn deliver(run: &mut Run) {
    let mut rows: std::collections::BTreeMap<(Eui64, u32), Delivered> = std::collections::BTreeMap::new();
    let mut values = std::collections::BTreeMap::new();
    for record in &run.ledgers.motes {
        if let MoteRecord::Attempt(attempt) = record {
            values.insert((attempt.dev_eui, attempt.f_cnt), (attempt.reading, attempt.decicelsius));
        }
    }
    for record in &run.ledgers.radio {
        let RadioRecord::Frame(frame) = record else { continue };
        let at_ms = frame.end_us / 1_000;
        let alive = |node: &&NodeLife| {
            let lives = |alive: &Alive| alive.from_ms <= at_ms && alive.to_ms.is_none_or(|to_ms| at_ms + 50 < to_ms);
            frame.gateways.contains(&node.gateway) && node.alive.iter().any(lives)
        };
        let Some(hearer) = run.nodes.iter().find(alive) else { continue };
        let (reading, decicelsius) = values[&(frame.dev_eui, frame.f_cnt)];
        let served_ms = if (KILL_MS - 40..CERTIFICATE_MS).contains(&at_ms) { CERTIFICATE_MS + 20 } else { at_ms + 15 };
        rows.entry((frame.dev_eui, frame.f_cnt)).or_insert(Delivered {
            device: frame.dev_eui,
            session: "first".to_owned(),
            f_cnt: frame.f_cnt,
            reading: Some(reading),
            decicelsius: Some(i32::from(decicelsius)),
            heard_at_ms: at_ms,
            received_at_ms: served_ms,
            delivered_by: holder(served_ms).map_or(hearer.node.clone(), |(_, _, name)| name.to_owned()),
            event_id: format!("{}-{}", frame.dev_eui, frame.f_cnt),
        });
    }
    run.delivered = rows.into_values().collect();
}

#[test]
fn a_clean_run_passes_and_its_numbers_are_right() {
    for seed in 1..=5 {
        let run = perfect_run(seed);
        let report = run.report();
        assert_eq!(report.violations(), [], "seed {seed}: {report:#?}");
        assert!(report.frames_sent > 2_100 && report.readings_owed > 2_000, "seed {seed}: {report:#?}");
        assert_eq!(report.readings_owed + report.readings_delivered_beyond_owed, report.readings_delivered);
        let heard = report.frames_owed + report.heard_by_a_alone_within_50ms_before_kill + report.heard_by_nobody_alive;
        assert_eq!(heard, report.frames_heard, "every heard frame is in one column");
        assert_eq!(report.readings_delivered, u64::try_from(run.delivered.len()).expect("small"));
        assert!((910..=1_400).contains(&report.takeover_ms.expect("a takeover")), "{report:#?}");
        assert!(report.first_live_answer_ms.expect("an answer") >= 900);
        assert!((600..=970).contains(&report.max_delivery_delay_ms.expect("deliveries")), "{report:#?}");
        assert_eq!((report.handback_max_delay_ms, report.p50_delivery_delay_ms), (Some(15), Some(15)));
        assert!(report.outage_seen_by_store_ms.expect("an outage") >= 900);
        assert_eq!(report.confirmed_sent, report.confirmed_acknowledged + report.confirmed_given_up);
        assert_eq!((report.confirmed_given_up, report.confirmed_unfinished), (0, 0));
        assert!(report.confirmed_after_takeover > 50);
        assert_eq!(report.confirmed_after_takeover, report.confirmed_acknowledged_in_window);
        assert!(report.handback_confirmed_frames > 0 && report.downlinks_on_air > 200);
        assert_eq!(report.handback_confirmed_frames_unanswered_though_heard_by_all, 0);
        assert_eq!((report.downlink_counters_skipped, report.downlink_counter_gap_max), (0, 0));
        assert_eq!(report.heard_at_error_ms_max, Some(0));
        assert!((91.0..98.5).contains(&report.coverage_by_nodes_alive[&1].percent), "{report:#?}");
        assert!((99.2..=100.0).contains(&report.coverage_by_nodes_alive[&2].percent), "{report:#?}");
        let json = serde_json::to_string(&report).expect("JSON");
        assert_eq!(serde_json::from_str::<Report>(&json).expect("a report"), report);
    }
}

#[test]
fn a_planted_loss_is_caught() {
    let mut run = perfect_run(1);
    let row = run.plain_row();
    let gone = run.delivered.remove(row);
    let report = run.report();
    assert_eq!(report.violations(), [Violation::Lost(1)]);
    assert_eq!((report.lost_readings[0].device, report.lost_readings[0].f_cnt), (gone.device, gone.f_cnt));
}

#[test]
fn planted_doubles_are_caught_whatever_they_differ_in() {
    let run = perfect_run(1);
    let row = run.delivered[run.plain_row()].clone();
    let other_id = Delivered { event_id: "another".to_owned(), ..row.clone() };
    let other_session = Delivered { event_id: "another".to_owned(), session: "second".to_owned(), ..row.clone() };
    for double in [row.clone(), other_id, other_session] {
        let mut run = perfect_run(1);
        run.delivered.push(double);
        assert_eq!(run.report().violations(), [Violation::Duplicated(1)]);
    }
    // The same reading under a counter that was never sent is a double and an invention.
    let mut run = perfect_run(1);
    run.delivered.push(Delivered { event_id: "another".to_owned(), f_cnt: row.f_cnt + 65_536, ..row });
    assert_eq!(run.report().violations(), [Violation::Duplicated(1), Violation::Invented(1)]);
}

#[test]
fn a_planted_counter_reuse_is_caught() {
    let mut run = perfect_run(1);
    let mut last = run.downlinks().filter(|downlink| downlink.f_cnt == Some(1)).last().expect("a second downlink").clone();
    last.f_cnt = Some(0);
    last.start_us += 500_000;
    last.frame = None;
    let device = last.dev_eui.expect("a device");
    run.ledgers.radio.push(RadioRecord::Downlink(last));
    let report = run.report();
    assert_eq!(report.violations(), [Violation::CountersReused(1)]);
    assert_eq!(report.reused_counters, [(device, 0)]);
}

#[test]
fn gaps_backward_steps_and_forgeries_are_told_apart() {
    let mut run = perfect_run(1);
    let device = run.downlinks().find(|downlink| downlink.f_cnt == Some(2)).expect("three downlinks").dev_eui;
    // The first two become 40 and 20: one step back, and 0 and 1 were never on air.
    for (found, planted) in [(0, 40), (1, 20)] {
        run.downlinks().find(|downlink| downlink.dev_eui == device && downlink.f_cnt == Some(found)).expect("a downlink").f_cnt =
            Some(planted);
    }
    let report = run.report();
    assert!(report.downlink_counters_backwards >= 2 && report.downlink_counters_reused == 0, "{report:#?}");
    assert_eq!(report.downlink_counter_gap_max, 40);

    let mut run = perfect_run(1);
    run.downlinks().last().expect("a downlink").f_cnt = None;
    assert_eq!(run.report().violations(), [Violation::Unauthentic(1)]);
}

#[test]
fn a_planted_late_reading_is_caught() {
    let mut run = perfect_run(1);
    let row = run.plain_row();
    run.delivered[row].received_at_ms = run.delivered[row].heard_at_ms + 2_500;
    let report = run.report();
    assert_eq!(report.violations(), [Violation::Late(1)]);
    assert_eq!((report.late_readings[0].delay_ms, report.max_delivery_delay_ms), (Some(2_500), Some(2_500)));

    let mut run = perfect_run(1);
    let in_handback = |row: &&mut Delivered| (HANDBACK_MS..HANDBACK_MS + 5_000).contains(&row.heard_at_ms);
    let row = run.delivered.iter_mut().find(in_handback).expect("a row within the hand-back");
    row.received_at_ms = row.heard_at_ms + 150;
    let report = run.report();
    assert_eq!((report.violations(), report.handback_max_delay_ms), (vec![Violation::Late(1)], Some(150)));
}

#[test]
fn planted_wrong_values_are_caught() {
    let spoil: [fn(&mut Delivered); 4] = [
        |row| row.decicelsius = row.decicelsius.map(|value| value + 1),
        |row| row.decicelsius = None,
        |row| row.reading = row.reading.map(|value| value + 1_000_000),
        |row| row.reading = None,
    ];
    for change in spoil {
        let mut run = perfect_run(1);
        let row = run.plain_row();
        change(&mut run.delivered[row]);
        let report = run.report();
        assert_eq!(report.violations(), [Violation::WrongValues(1)]);
        assert_eq!(report.wrong_rows.len(), 1);
    }
}

#[test]
fn frames_around_the_kill_are_in_their_columns() {
    let mut run = perfect_run(1);
    let kill_us = KILL_MS * 1_000;
    let mut planted = 0;
    for (mote, (end_us, gateways)) in [
        (kill_us - 50_001, vec![A]),
        (kill_us - 50_000, vec![A]),
        (kill_us - 1, vec![A]),
        (kill_us - 1, vec![A, B]),
        (kill_us, vec![A]),
    ]
    .into_iter()
    .enumerate()
    {
        let Some(MoteRecord::Attempt(attempt)) =
            run.ledgers.motes.iter().find(|record| matches!(record, MoteRecord::Attempt(_))).cloned()
        else {
            panic!("no attempt")
        };
        let f_cnt = 1_000 + u32::try_from(mote).expect("small");
        let attempt = crate::ledger::Attempt { f_cnt, attempt: 1, confirmed: false, ..attempt };
        run.ledgers.radio.push(RadioRecord::Frame(crate::ledger::Frame {
            session: 0,
            frame: 1_000_000 + u64::from(f_cnt),
            mote: attempt.mote,
            dev_eui: attempt.dev_eui,
            f_cnt,
            attempt: 1,
            confirmed: false,
            end_us,
            gateways,
        }));
        run.ledgers.motes.push(MoteRecord::Attempt(attempt));
        planted += 1;
    }
    let before = perfect_run(1).report();
    let report = run.report();
    assert_eq!(planted, 5);
    // Owed are the one before the margin and the one that B heard too; both are missing in the store.
    assert_eq!((report.lost, report.frames_owed - before.frames_owed), (2, 2));
    assert_eq!(report.heard_by_a_alone_within_50ms_before_kill - before.heard_by_a_alone_within_50ms_before_kill, 2);
    assert_eq!(report.heard_by_nobody_alive - before.heard_by_nobody_alive, 1);
}

#[test]
fn unanswered_confirmed_uplinks_and_two_transmitters_are_seen() {
    let mut run = perfect_run(1);
    for record in &mut run.ledgers.motes {
        if let MoteRecord::UplinkEnd(end) = record
            && end.at_us > CERTIFICATE_MS * 1_000 + 5_000_000
        {
            end.acknowledged = None;
        }
    }
    let report = run.report();
    assert!(report.confirmed_acknowledged_in_window < report.confirmed_after_takeover && report.confirmed_given_up > 0);

    let mut run = perfect_run(1);
    let in_handback = |downlink: &Downlink| (HANDBACK_MS + 1_500..HANDBACK_MS + 4_000).contains(&(downlink.start_us / 1_000));
    run.ledgers.radio.retain(|record| !matches!(record, RadioRecord::Downlink(downlink) if in_handback(downlink)));
    let report = run.report();
    assert!(report.handback_confirmed_frames_answered < report.handback_confirmed_frames);
    assert!(report.handback_confirmed_frames_unanswered_though_heard_by_all > 0);

    let mut run = perfect_run(1);
    let mut second = run.downlinks().last().expect("a downlink").clone();
    second.gateway = if second.gateway == A { B } else { A };
    second.f_cnt = second.f_cnt.map(|f_cnt| f_cnt + 16);
    second.start_us += 1;
    run.ledgers.radio.push(RadioRecord::Downlink(second));
    let report = run.report();
    assert_eq!(report.violations(), [Violation::TwoTransmitters(1)]);
    assert_eq!((report.downlink_counter_gap_max, report.downlink_counters_skipped), (15, 15));
}

/// What else may be on air after an accept with the number 7 by gateway A: number, gateway, milliseconds later, in which window; whether it may.
#[test]
fn of_a_join_only_the_same_accept_may_come_again_from_another_gateway_and_only_for_the_same_request() {
    let cases = [
        (7, B, 1_000, Window::Rx2, true),
        (7, B, 0, Window::Rx2, true),
        (7, B, 0, Window::Rx1, false),
        (7, B, 6_000, Window::Rx2, false),
        (7, A, 1_000, Window::Rx2, false),
        (8, B, 1_000, Window::Rx2, false),
        (6, B, 6_000, Window::Rx1, false),
        (8, B, 6_000, Window::Rx1, true),
    ];
    for (join_nonce, gateway, later_ms, window, is_fine) in cases {
        let mut run = perfect_run(31);
        let any = run.downlinks().find(|downlink| downlink.frame.is_some()).expect("an answer").clone();
        let dev_addr = any.dev_addr.expect("an address");
        let frame = any.frame.map(|_| u64::MAX);
        let accept = |join_nonce, gateway, later_ms: u64, window| Downlink {
            gateway,
            frequency_hz: if window == Window::Rx2 { RX2_FREQUENCY_HZ } else { 868_100_000 },
            start_us: any.start_us + later_ms * 1_000,
            accept: Some(AcceptOnAir { join_nonce, dev_addr }),
            // The mote listens no more.
            frame: frame.filter(|_| later_ms == 0),
            window: None,
            dev_addr: None,
            ..any.clone()
        };
        let on_air = [accept(7, A, 0, Window::Rx1), accept(join_nonce, gateway, later_ms, window)];
        run.ledgers.radio.extend(on_air.map(RadioRecord::Downlink));
        let report = run.report();
        let at_odds = report.join_nonces_not_risen + report.joins_answered_differently;
        assert_eq!(at_odds == 0, is_fine, "{join_nonce} by {gateway:?} after {later_ms} ms");
    }
}

#[test]
fn a_second_transmitter_without_a_window_is_seen() {
    let mut run = perfect_run(31);
    let answer = run.downlinks().find(|downlink| downlink.frame.is_some() && downlink.gateway == A).expect("an answer").clone();
    // As the radio writes it down: the window belongs to the first, the second only transmits. Nobody knows its counter.
    let second = Downlink { gateway: B, window: None, frame: None, dev_addr: None, reached: false, ..answer };
    let at_ms = second.start_us / 1_000;
    run.ledgers.radio.push(RadioRecord::Downlink(second));
    let report = run.report();
    assert_eq!((report.windows_used_by_two_gateways, report.windows_used_by_two_gateways_ms), (1, vec![at_ms]));
    assert_eq!(perfect_run(31).report().windows_used_by_two_gateways, 0);
}

#[test]
fn what_is_not_judged_yet_is_not_owed() {
    let mut run = perfect_run(32);
    let row = run.delivered.remove(run.plain_row());
    let report = |until_ms| {
        let limits = Limits { judged_until_ms: until_ms, ..Limits::default() };
        let Run { ledgers, nodes, delivered, timeline } = &run;
        audit(&Input { ledgers, nodes, delivered, timeline, limits })
    };
    assert_eq!((report(None).lost, report(Some(row.heard_at_ms - 1_000)).lost), (1, 0));
    assert_eq!(report(Some(row.heard_at_ms + 1_000)).lost, 1);
    assert!(report(Some(row.heard_at_ms)).readings_owed < report(None).readings_owed);
}

#[test]
fn contradictions_of_the_ledgers_and_foreign_downlinks_are_seen() {
    let mut run = perfect_run(1);
    let first = run.ledgers.motes.iter().position(|record| matches!(record, MoteRecord::Attempt(_))).expect("an attempt");
    let removed = run.ledgers.motes.remove(first);
    let MoteRecord::Attempt(removed) = removed else { panic!("no attempt") };
    run.delivered.retain(|row| (row.device, row.f_cnt) != (removed.dev_eui, removed.f_cnt));
    assert!(matches!(run.report().violations()[..], [Violation::LedgerFaults(1..=2)]));

    let mut run = perfect_run(1);
    let mut foreign = run.downlinks().last().expect("a downlink").clone();
    foreign =
        Downlink { dev_addr: Some(DevAddr(1)), dev_eui: None, mote: None, f_cnt: None, window: None, frame: None, ..foreign };
    run.ledgers.radio.push(RadioRecord::Downlink(foreign));
    let report = run.report();
    assert_eq!((report.violations(), report.downlinks_unknown), (vec![], 1));
}

#[test]
fn temperatures_are_read_exactly() {
    for (value, tenths) in [("\"23.5\"", 235), ("\"-0.4\"", -4), ("\"-12.0\"", -120), ("7", 70), ("\"7\"", 70)] {
        assert_eq!(decicelsius(&serde_json::from_str(value).expect("JSON")), Some(tenths), "{value}");
    }
    assert_eq!(decicelsius(&serde_json::Value::Null), None);
}

#[test]
fn every_confirmed_transmission_has_its_fate() {
    use answers::{Fate, Held, Service, judge};
    let run = perfect_run(8);
    let held = |node: &str, from_ms, to_ms| Held { node: node.to_owned(), from_ms, to_ms };
    let periods =
        [held("rio", START_MS, Some(KILL_MS)), held("patras", CERTIFICATE_MS, Some(HANDBACK_MS)), held("rio", HANDBACK_MS, None)];
    let Run { ledgers, nodes, delivered, timeline } = &run;
    let input = Input { ledgers, nodes, delivered, timeline, limits: Limits::default() };
    let service = Service { held: &periods, kills_ms: &[KILL_MS], rx2_data_rate: SpreadingFactor::SF12 };
    let found = judge(&input, &service);
    assert_eq!((found.owed, found.answered), (found.fates[&Fate::Rx1], found.fates[&Fate::Rx1]), "{found:?}");
    assert!(found.owed > 200 && found.unexplained.is_empty(), "{found:?}");
    assert!(found.fates[&Fate::Outage] > 0 && found.fates[&Fate::NotByHolder] > 0, "{found:?}");
    assert!(found.airtime_us.values().all(|used_us| *used_us > 0));
    assert_eq!(judge(&input, &Service { kills_ms: &[], ..service }).fates.get(&Fate::Outage), None);

    // One answer taken away is found, whoever else was answered.
    let mut spoiled = ledgers.clone();
    let last = spoiled.radio.iter().rposition(|record| matches!(record, RadioRecord::Downlink(_))).expect("a downlink");
    let RadioRecord::Downlink(taken) = spoiled.radio.remove(last) else { panic!("a downlink") };
    let found = judge(&Input { ledgers: &spoiled, ..input }, &service);
    assert_eq!(found.unexplained.len(), 1, "{found:?}");
    assert_eq!((found.owed - found.answered, found.unexplained[0].0), (1, taken.dev_eui.expect("a mote")));
    // Unless its node had begun anew, so that the gateway need not have pulled.
    let at_ms = found.unexplained[0].2;
    let with_start = |begun_ms| {
        let alive = vec![Alive { from_ms: 0, to_ms: Some(begun_ms - 1) }, Alive { from_ms: begun_ms, to_ms: None }];
        let nodes: Vec<NodeLife> = nodes.iter().map(|node| NodeLife { alive: alive.clone(), ..node.clone() }).collect();
        judge(&Input { ledgers: &spoiled, nodes: &nodes, ..input }, &service).fates.get(&Fate::NotPulled).copied()
    };
    assert_eq!((with_start(at_ms - 4_000), with_start(at_ms - 6_000)), (Some(1), None));
    // Or its gateway sent something else in both windows.
    let with_others = |delays_ms: &[u64]| {
        let mut ledgers = spoiled.clone();
        let other = |delay_ms: &u64| {
            let start_us = (at_ms + delay_ms) * 1_000;
            let (dev_eui, frame, window) = (None, None, None);
            RadioRecord::Downlink(Downlink { start_us, end_us: start_us + 50_000, dev_eui, frame, window, ..taken.clone() })
        };
        ledgers.radio.extend(delays_ms.iter().map(other));
        judge(&Input { ledgers: &ledgers, ..input }, &service).fates.get(&Fate::Busy).copied()
    };
    assert_eq!((with_others(&[980, 2_020]), with_others(&[980, 3_200]), with_others(&[1_990])), (Some(1), None, None));
    // Or the gateway refused it.
    let refusal = crate::ledger::GatewayRecord::Rejected {
        gateway: taken.gateway,
        at_us: taken.start_us - 900_000,
        error: "COLLISION_PACKET".to_owned(),
        tmst: 0,
        counter: 0,
        bytes: taken.bytes,
    };
    spoiled.gateways.push(refusal);
    assert_eq!(judge(&Input { ledgers: &spoiled, ..input }, &service).fates[&Fate::Refused], 1);
}
