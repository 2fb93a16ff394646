//! The counting behind [`Report`].

use std::collections::{BTreeMap, BTreeSet};

use super::report::{Duplicate, ListedReading, Report, WrongValue, list};
use super::{Alive, Delivered, Input, NodeLife, joins};
use crate::fleet::Eui64;
use crate::ledger::{Downlink, DropReason, Frame, GatewayRecord, MoteRecord, RadioRecord, UplinkEnd};

/// A device, its session and an uplink counter: one reading.
type Key = (Eui64, u32, u32);

/// What became of a frame at the nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Claim {
    Owed,
    DiedTooSoon,
    NobodyAlive,
    Unheard,
}

#[derive(Debug)]
struct Uplink<'a> {
    reading: u32,
    decicelsius: i16,
    confirmed: bool,
    frames: Vec<&'a Frame>,
    end: Option<&'a UplinkEnd>,
}

/// Compares the ledgers with the store.
#[must_use]
pub fn audit(input: &Input<'_>) -> Report {
    let mut report = Report::default();
    let uplinks = collect_uplinks(input, &mut report);
    count_frames(input, &uplinks, &mut report);
    let first_rows = count_rows(input, &uplinks, &mut report);
    judge_delivery(input, &uplinks, &first_rows, &mut report);
    judge_takeover(input, &uplinks, &mut report);
    let downlinks: Vec<&Downlink> = input.ledgers.radio.iter().filter_map(as_downlink).collect();
    judge_counters(&downlinks, &mut report);
    judge_answers(input, &downlinks, &mut report);
    judge_confirmed(input, &uplinks, &mut report);
    judge_handback(input, &uplinks, &downlinks, &mut report);
    joins::judge(input, &downlinks, &mut report);
    count_drops(input, &mut report);
    report
}

pub(super) fn as_downlink(record: &RadioRecord) -> Option<&Downlink> {
    match record {
        RadioRecord::Downlink(downlink) => Some(downlink),
        RadioRecord::Start(_) | RadioRecord::Frame(_) | RadioRecord::JoinFrame(_) => None,
    }
}

fn fault(report: &mut Report, text: String) {
    report.ledger_faults += 1;
    list(&mut report.ledger_fault_texts, text);
}

/// Joins the motes' ledger with the radio's. An attempt without a frame was on air when the ledgers ended.
fn collect_uplinks<'a>(input: &Input<'a>, report: &mut Report) -> BTreeMap<Key, Uplink<'a>> {
    let mut uplinks: BTreeMap<Key, Uplink<'a>> = BTreeMap::new();
    let mut begun: BTreeSet<(Key, u8)> = BTreeSet::new();
    for record in &input.ledgers.motes {
        match record {
            MoteRecord::Attempt(attempt) => {
                let key = (attempt.dev_eui, attempt.session, attempt.f_cnt);
                let uplink = uplinks.entry(key).or_insert_with(|| Uplink {
                    reading: attempt.reading,
                    decicelsius: attempt.decicelsius,
                    confirmed: attempt.confirmed,
                    frames: Vec::new(),
                    end: None,
                });
                if (uplink.reading, uplink.decicelsius) != (attempt.reading, attempt.decicelsius) {
                    fault(report, format!("{} {}: two values under one counter", key.0, key.2));
                }
                if !begun.insert((key, attempt.attempt)) {
                    fault(report, format!("{} {}: attempt {} began twice", key.0, key.2, attempt.attempt));
                }
            }
            MoteRecord::UplinkEnd(end) => match uplinks.get_mut(&(end.dev_eui, end.session, end.f_cnt)) {
                Some(uplink) => uplink.end = Some(end),
                None => fault(report, format!("{} {}: ended without an attempt", end.dev_eui, end.f_cnt)),
            },
            MoteRecord::Start(_)
            | MoteRecord::AttemptEnd(_)
            | MoteRecord::DownlinkDropped(_)
            | MoteRecord::DownlinkReceived(_)
            | MoteRecord::JoinAttempt(_)
            | MoteRecord::Joined(_) => {}
        }
    }
    for record in &input.ledgers.radio {
        let RadioRecord::Frame(frame) = record else { continue };
        let key = (frame.dev_eui, frame.session, frame.f_cnt);
        match uplinks.get_mut(&key).filter(|_| begun.remove(&(key, frame.attempt))) {
            Some(uplink) => uplink.frames.push(frame),
            None => fault(report, format!("{} {}: a frame that its mote did not send", key.0, key.2)),
        }
    }
    uplinks.retain(|_, uplink| !uplink.frames.is_empty());
    uplinks
}

pub(super) fn is_alive(node: &NodeLife, at_us: u64, margin_ms: u64) -> bool {
    let covers = |alive: &Alive| {
        alive.from_ms * 1_000 <= at_us && alive.to_ms.is_none_or(|to_ms| at_us + margin_ms * 1_000 < to_ms * 1_000)
    };
    node.alive.iter().any(covers)
}

fn claim(input: &Input<'_>, frame: &Frame) -> Claim {
    let heard_by = |node: &&NodeLife| frame.gateways.contains(&node.gateway);
    let mut hearers = input.nodes.iter().filter(heard_by).peekable();
    if frame.gateways.is_empty() {
        Claim::Unheard
    } else if hearers.clone().any(|node| is_alive(node, frame.end_us, input.limits.loss_margin_ms)) {
        Claim::Owed
    } else if hearers.any(|node| is_alive(node, frame.end_us, 0)) {
        Claim::DiedTooSoon
    } else {
        Claim::NobodyAlive
    }
}

fn is_heard_by_living(input: &Input<'_>, frame: &Frame) -> bool {
    match claim(input, frame) {
        Claim::Owed | Claim::DiedTooSoon => true,
        Claim::NobodyAlive | Claim::Unheard => false,
    }
}

fn first_owed<'a>(input: &Input<'_>, uplink: &Uplink<'a>) -> Option<&'a Frame> {
    let is_judged = |frame: &&Frame| input.limits.judged_until_ms.is_none_or(|until_ms| frame.end_us <= until_ms * 1_000);
    let owed = uplink.frames.iter().copied().filter(is_judged).filter(|frame| claim(input, frame) == Claim::Owed);
    owed.min_by_key(|frame| frame.end_us)
}

fn count_frames(input: &Input<'_>, uplinks: &BTreeMap<Key, Uplink<'_>>, report: &mut Report) {
    for uplink in uplinks.values() {
        report.readings_sent += 1;
        for frame in &uplink.frames {
            let claim = claim(input, frame);
            report.frames_sent += 1;
            report.frames_heard += u64::from(claim != Claim::Unheard);
            report.frames_owed += u64::from(claim == Claim::Owed);
            report.heard_by_a_alone_within_50ms_before_kill += u64::from(claim == Claim::DiedTooSoon);
            report.heard_by_nobody_alive += u64::from(claim == Claim::NobodyAlive);
            let alive = input.nodes.iter().filter(|node| is_alive(node, frame.end_us, 0)).count();
            let coverage = report.coverage_by_nodes_alive.entry(alive as u64).or_default();
            coverage.frames_sent += 1;
            coverage.frames_heard += u64::from(is_heard_by_living(input, frame));
        }
    }
    for coverage in report.coverage_by_nodes_alive.values_mut() {
        // Two decimals, so that the number survives its own text.
        let hundredths = coverage.frames_heard * 10_000 / coverage.frames_sent.max(1);
        coverage.percent = f64::from(u32::try_from(hundredths).unwrap_or(0)) / 100.0;
    }
}

/// Looks at every row of the store, in the order of receipt; answers with the first row of each reading that was sent.
fn count_rows<'a>(input: &Input<'a>, uplinks: &BTreeMap<Key, Uplink<'_>>, report: &mut Report) -> BTreeMap<Key, &'a Delivered> {
    let mut rows: Vec<&Delivered> = input.delivered.iter().collect();
    rows.sort_by_key(|row| row.received_at_ms);
    let mut ids = BTreeSet::new();
    let mut readings = BTreeSet::new();
    let mut first_rows: BTreeMap<Key, &Delivered> = BTreeMap::new();
    let sessions = Sessions::of(uplinks);
    for row in rows {
        let key = sessions.key(row);
        let id_is_new = ids.insert(row.event_id.as_str());
        let reading_is_new = row.reading.is_none_or(|reading| readings.insert((row.device, reading)));
        let counter_is_new = !first_rows.contains_key(&key);
        if !(id_is_new && reading_is_new && counter_is_new) {
            report.duplicates += 1;
            let Delivered { device, f_cnt, reading, event_id, delivered_by, .. } = row.clone();
            list(&mut report.duplicate_rows, Duplicate { device, f_cnt, reading, event_id, delivered_by });
        }
        first_rows.entry(key).or_insert(row);
        let sent = uplinks.get(&key).map(|uplink| (uplink.reading, uplink.decicelsius));
        let stored = (row.reading, row.decicelsius);
        if sent.is_some_and(|(reading, decicelsius)| stored == (Some(reading), Some(i32::from(decicelsius)))) {
            continue;
        }
        report.wrong_values += u64::from(sent.is_some());
        report.unknown_readings += u64::from(sent.is_none());
        list(&mut report.wrong_rows, WrongValue { device: row.device, f_cnt: row.f_cnt, sent, stored });
    }
    first_rows.retain(|key, _| uplinks.contains_key(key));
    first_rows
}

/// Which session of a device a row of the store belongs to: counters begin anew with each, reading numbers do not.
struct Sessions {
    by_reading: BTreeMap<(Eui64, u32), Key>,
    by_counter: BTreeMap<(Eui64, u32), u32>,
}

impl Sessions {
    fn of(uplinks: &BTreeMap<Key, Uplink<'_>>) -> Self {
        let by_reading = uplinks.iter().map(|(key, uplink)| ((key.0, uplink.reading), *key)).collect();
        Self { by_reading, by_counter: uplinks.keys().map(|(device, session, f_cnt)| ((*device, *f_cnt), *session)).collect() }
    }

    fn key(&self, row: &Delivered) -> Key {
        let by_reading = row.reading.and_then(|reading| self.by_reading.get(&(row.device, reading)));
        let newest = || self.by_counter.get(&(row.device, row.f_cnt)).copied().unwrap_or(0);
        match by_reading {
            Some(key) if key.2 == row.f_cnt => *key,
            Some(_) | None => (row.device, newest(), row.f_cnt),
        }
    }
}

fn judge_delivery(
    input: &Input<'_>,
    uplinks: &BTreeMap<Key, Uplink<'_>>,
    first_rows: &BTreeMap<Key, &Delivered>,
    report: &mut Report,
) {
    let mut delays_ms = Vec::new();
    for (key, uplink) in uplinks {
        let row = first_rows.get(key).copied();
        report.readings_delivered += u64::from(row.is_some());
        if let Some(row) = row {
            let errors_ms = uplink.frames.iter().map(|frame| row.heard_at_ms.abs_diff(frame.end_us / 1_000));
            report.heard_at_error_ms_max = report.heard_at_error_ms_max.max(errors_ms.min());
        }
        let Some(owed) = first_owed(input, uplink) else {
            report.readings_delivered_beyond_owed += u64::from(row.is_some());
            continue;
        };
        report.readings_owed += 1;
        let heard_ms = owed.end_us / 1_000;
        let delay_ms = row.map(|row| row.received_at_ms.saturating_sub(heard_ms));
        let listed = || ListedReading {
            device: key.0,
            f_cnt: key.2,
            reading: uplink.reading,
            confirmed: uplink.confirmed,
            heard_ms,
            gateways: owed.gateways.clone(),
            delay_ms,
            delivered_by: row.map(|row| row.delivered_by.clone()),
        };
        let Some(delay_ms) = delay_ms else {
            report.lost += 1;
            list(&mut report.lost_readings, listed());
            continue;
        };
        delays_ms.push(delay_ms);
        let in_handback = is_in_handback(input, owed.end_us);
        if in_handback {
            report.handback_max_delay_ms = report.handback_max_delay_ms.max(Some(delay_ms));
        }
        let bound_ms = if in_handback { input.limits.handback_delay_ms_max } else { input.limits.delivery_delay_ms_max };
        if delay_ms > bound_ms {
            report.late += 1;
            list(&mut report.late_readings, listed());
        }
    }
    delays_ms.sort_unstable();
    report.max_delivery_delay_ms = delays_ms.last().copied();
    report.p50_delivery_delay_ms = delays_ms.get(delays_ms.len() / 2).copied();
    report.p99_delivery_delay_ms = delays_ms.get(delays_ms.len().saturating_sub(1) * 99 / 100).copied();
}

fn is_in_handback(input: &Input<'_>, at_us: u64) -> bool {
    let after_begin = input.timeline.handback_begin_ms.is_some_and(|begin_ms| at_us >= begin_ms * 1_000);
    after_begin && input.timeline.handback_end_ms.is_none_or(|end_ms| at_us <= end_ms * 1_000)
}

fn judge_takeover(input: &Input<'_>, uplinks: &BTreeMap<Key, Uplink<'_>>, report: &mut Report) {
    let (Some(kill_ms), Some(taker)) = (input.timeline.kill_ms, input.timeline.taker.as_ref()) else { return };
    let live_from_us = input.timeline.takeover_certificate_ms.unwrap_or(kill_ms).max(kill_ms) * 1_000;
    let gateways: Vec<Eui64> = input.nodes.iter().filter(|node| node.node == *taker).map(|node| node.gateway).collect();
    let sessions = Sessions::of(uplinks);
    let is_live = |row: &&Delivered| {
        row.delivered_by == *taker
            && row.received_at_ms >= kill_ms
            && uplinks.get(&sessions.key(row)).is_some_and(|uplink| {
                // A reading that the taker had heard before could come from its buffer, even if it was sent again since.
                let heard = uplink.frames.iter().filter(|frame| frame.gateways.iter().any(|gateway| gateways.contains(gateway)));
                let first_us = heard.map(|frame| frame.end_us).min();
                first_us.is_some_and(|first_us| first_us >= live_from_us)
            })
    };
    let first_live_ms = input.delivered.iter().filter(is_live).map(|row| row.received_at_ms).min();
    report.takeover_ms = first_live_ms.map(|at_ms| at_ms - kill_ms);
    report.first_live_answer_ms = input
        .ledgers
        .radio
        .iter()
        .filter_map(as_downlink)
        .filter(|downlink| {
            downlink.start_us >= kill_ms * 1_000 && downlink.window.is_some() && gateways.contains(&downlink.gateway)
        })
        .map(|downlink| downlink.start_us / 1_000 - kill_ms)
        .min();
    if let Some(first_live_ms) = first_live_ms {
        let mut receipts_ms: Vec<u64> = input.delivered.iter().map(|row| row.received_at_ms).collect();
        receipts_ms.sort_unstable();
        let touching = receipts_ms.windows(2).filter(|pair| pair[1] >= kill_ms && pair[0] <= first_live_ms);
        report.outage_seen_by_store_ms = touching.map(|pair| pair[1] - pair[0]).max();
    }
}

/// Judged from the bytes on air alone, in the order of their start.
fn judge_counters(downlinks: &[&Downlink], report: &mut Report) {
    let mut in_order = downlinks.to_vec();
    // What starts at the same time has no order.
    in_order.sort_by_key(|downlink| (downlink.start_us, downlink.f_cnt));
    let mut used: BTreeMap<(Eui64, u32), BTreeSet<u32>> = BTreeMap::new();
    for downlink in in_order {
        report.downlinks_on_air += 1;
        if downlink.accept.is_some() {
            report.accepts_on_air += 1;
            report.downlinks_outside_window += u64::from(downlink.window.is_none());
            continue;
        }
        let (Some(device), Some(_)) = (downlink.dev_eui, downlink.dev_addr) else {
            report.downlinks_unknown += 1;
            continue;
        };
        report.downlinks_outside_window += u64::from(downlink.window.is_none());
        let Some(f_cnt) = downlink.f_cnt else {
            report.downlinks_unauthentic += 1;
            continue;
        };
        let counters = used.entry((device, downlink.session)).or_default();
        let highest = counters.last().copied();
        if !counters.insert(f_cnt) {
            report.downlink_counters_reused += 1;
            list(&mut report.reused_counters, (device, f_cnt));
            continue;
        }
        match highest {
            Some(highest) if f_cnt < highest => report.downlink_counters_backwards += 1,
            Some(highest) => report.downlink_counter_gap_max = report.downlink_counter_gap_max.max(f_cnt - highest - 1),
            None => report.downlink_counter_gap_max = report.downlink_counter_gap_max.max(f_cnt),
        }
    }
    for counters in used.values() {
        let highest = counters.last().copied().unwrap_or(0);
        report.downlink_counters_skipped += (u64::from(highest) + 1).saturating_sub(counters.len() as u64);
    }
}

fn judge_answers(input: &Input<'_>, downlinks: &[&Downlink], report: &mut Report) {
    // A join may be accepted twice: `joins`.
    let downlinks: Vec<&Downlink> = downlinks.iter().filter(|downlink| downlink.accept.is_none()).copied().collect();
    let mut answers: BTreeMap<u64, Vec<&Downlink>> = BTreeMap::new();
    for downlink in &downlinks {
        if let Some(frame) = downlink.frame {
            answers.entry(frame).or_default().push(downlink);
        }
    }
    for answers in answers.values() {
        report.frames_answered_twice += u64::from(answers.len() > 1);
        if let Some(second) = answers.iter().find(|answer| answer.gateway != answers[0].gateway) {
            report.frames_answered_by_two_gateways += 1;
            list(&mut report.frames_answered_by_two_gateways_ms, second.start_us / 1_000);
        }
    }
    find_simultaneous(&downlinks, report);
    for record in &input.ledgers.gateways {
        match record {
            GatewayRecord::Rejected { error, .. } => *report.tx_rejected.entry(error.clone()).or_default() += 1,
            GatewayRecord::Start(_)
            | GatewayRecord::Queued { .. }
            | GatewayRecord::Malformed { .. }
            | GatewayRecord::Server { .. }
            | GatewayRecord::Totals { .. } => {}
        }
    }
}

/// Pairs of downlinks for one device that two gateways put on air in the same window, of which the radio gives only the first its frame. (An
/// answer in the first window by a node that then loses custody, and one in the second by its successor, are no such pair.)
fn find_simultaneous(downlinks: &[&Downlink], report: &mut Report) {
    let mut by_device: BTreeMap<Eui64, Vec<&Downlink>> = BTreeMap::new();
    for downlink in downlinks {
        if let Some(device) = downlink.dev_eui {
            by_device.entry(device).or_default().push(downlink);
        }
    }
    for downlinks in by_device.values_mut() {
        downlinks.sort_by_key(|downlink| downlink.start_us);
        let is_close = |pair: &&[&Downlink]| pair[1].start_us - pair[0].start_us < ANSWERS_APART_US;
        let is_one_frame = |pair: &&[&Downlink]| pair[0].frame.is_some() && pair[0].frame == pair[1].frame;
        let pairs = downlinks.windows(2).filter(|pair| pair[0].gateway != pair[1].gateway);
        for pair in pairs.filter(is_close).filter(|pair| !is_one_frame(pair)) {
            report.windows_used_by_two_gateways += 1;
            list(&mut report.windows_used_by_two_gateways_ms, pair[0].start_us / 1_000);
        }
    }
}

/// Windows are 1 s apart, and so are at least the answers to two uplinks; the rest is for gateways whose clocks differ.
const ANSWERS_APART_US: u64 = 900_000;

fn judge_confirmed(input: &Input<'_>, uplinks: &BTreeMap<Key, Uplink<'_>>, report: &mut Report) {
    let certificate_us = input.timeline.takeover_certificate_ms.map(|at_ms| at_ms * 1_000);
    for uplink in uplinks.values().filter(|uplink| uplink.confirmed) {
        let acknowledged = uplink.end.is_some_and(|end| end.acknowledged.is_some());
        report.confirmed_sent += 1;
        report.confirmed_acknowledged += u64::from(acknowledged);
        report.confirmed_given_up += u64::from(uplink.end.is_some() && !acknowledged);
        report.confirmed_unfinished += u64::from(uplink.end.is_none());
        let after =
            |frame: &&Frame| certificate_us.is_some_and(|at_us| frame.end_us >= at_us) && is_heard_by_living(input, frame);
        if uplink.frames.iter().any(after) {
            report.confirmed_after_takeover += 1;
            report.confirmed_acknowledged_in_window += u64::from(acknowledged);
        }
    }
}

fn judge_handback(input: &Input<'_>, uplinks: &BTreeMap<Key, Uplink<'_>>, downlinks: &[&Downlink], report: &mut Report) {
    let answered: BTreeSet<u64> = downlinks
        .iter()
        .filter(|downlink| downlink.ack && downlink.window.is_some())
        .filter_map(|downlink| downlink.frame)
        .collect();
    let frames = uplinks.values().filter(|uplink| uplink.confirmed).flat_map(|uplink| &uplink.frames);
    for frame in frames.filter(|frame| is_in_handback(input, frame.end_us) && is_heard_by_living(input, frame)) {
        let is_answered = answered.contains(&frame.frame);
        let mut living = input.nodes.iter().filter(|node| is_alive(node, frame.end_us, 0));
        report.handback_confirmed_frames += 1;
        report.handback_confirmed_frames_answered += u64::from(is_answered);
        if !is_answered && living.all(|node| frame.gateways.contains(&node.gateway)) {
            report.handback_confirmed_frames_unanswered_though_heard_by_all += 1;
        }
    }
}

fn count_drops(input: &Input<'_>, report: &mut Report) {
    for record in &input.ledgers.motes {
        let MoteRecord::DownlinkDropped(dropped) = record else { continue };
        match dropped.reason {
            DropReason::Replay => report.mote_drops_replay += 1,
            DropReason::Gap => report.mote_drops_gap += 1,
            DropReason::Malformed | DropReason::Address | DropReason::Mic | DropReason::JoinNonce => report.mote_drops_other += 1,
        }
    }
}
