//! What must be true after a fault, judged from the sensors' own records, the cloud's store, and what the nodes said of custody.

use contracts::ids::Epoch;
use contracts::time::WallTime;
use edge_node::timeline::Event;
use motes::airtime::SpreadingFactor;
use motes::audit::answers::{self, Answers};
use motes::audit::{Input, Limits, Report, Timeline, Violation};
use motes::ledger::Ledgers;

use super::kind::{Expect, Who};
use super::stage::Stage;
use crate::judge::{judge_readings, node_lives};

/// A time in which a node held custody, by its own word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    pub by: Who,
    pub epoch: Epoch,
    pub from: WallTime,
    pub to: Option<WallTime>,
    /// By a vote; else by the release of the holder before, which stops before it releases.
    pub by_vote: bool,
}

/// All times of custody, in the order of epochs.
pub fn held(stage: &Stage<'_>) -> Vec<Held> {
    let mut all = Vec::new();
    for who in [Who::Rio, Who::Patras] {
        let mut open: Option<Held> = None;
        for said in stage.observer.seen.iter().filter(|s| s.by == who.name()) {
            let at = stage.true_time(said.by, said.entry.at);
            match said.entry.event {
                Event::CustodyGained { epoch, asked_at, .. } => {
                    all.extend(open.take());
                    open = Some(Held { by: who, epoch, from: at, to: None, by_vote: asked_at.is_some() });
                }
                Event::CustodyLost { .. } | Event::Released { .. } | Event::Started { .. } => {
                    all.extend(open.take().map(|held| Held { to: Some(at), ..held }));
                }
                _ => {}
            }
        }
        all.extend(open);
    }
    for held in &mut all {
        end_with_its_process(stage, held);
    }
    all.sort_by_key(|held| held.epoch);
    all
}

/// A killed process does not say that it lost custody, and one that is stopped by a signal says it when it goes on.
fn end_with_its_process(stage: &Stage<'_>, held: &mut Held) {
    let deaths = stage.deaths.iter().filter(|(who, _)| *who == held.by).map(|(_, at)| *at);
    let pauses = stage.pauses.iter().filter(|(who, from, to)| {
        // Custody that ends at once after the pause ended within it.
        *who == held.by && held.to.is_some_and(|end| end >= *from && to.is_none_or(|to| end.since(to).0 < WOKEN_MS))
    });
    let ends = deaths.chain(pauses.map(|(_, from, _)| *from)).filter(|at| *at >= held.from);
    held.to = ends.chain(held.to).min();
}

/// A process that goes on after SIGSTOP says within this time that its lease is over.
const WOKEN_MS: u64 = 200;

/// Pairs of custody that overlap in time.
pub fn overlaps(all: &[Held]) -> Vec<(Held, Held)> {
    let mut found = Vec::new();
    for (index, former) in all.iter().enumerate() {
        for latter in &all[index + 1..] {
            let overlaps = former.to.is_none_or(|to| to > latter.from);
            if former.by != latter.by && latter.by_vote && overlaps {
                found.push((*former, *latter));
            }
        }
    }
    found
}

/// An answer goes to the gateway up to 2 s (the second window) before its time.
const QUEUED_MS_MAX: u64 = 2_100;

/// Whether somebody was elected between the uplink and the answer: then the former holder may have sent its answer to the gateway while it
/// held. After a release that is no excuse: who released had stopped, and the other leaves to it what it had heard.
fn lay_in_a_queue(all: &[Held], at: WallTime) -> bool {
    all.iter().any(|held| held.by_vote && held.from <= at && at.since(held.from).0 <= QUEUED_MS_MAX)
}

/// What must not be, of one fault or of a whole deployment.
#[derive(Debug, Default, Clone)]
pub struct Verdict {
    pub lost: u64,
    pub doubled: u64,
    pub counters_reused: u64,
    pub two_holders: u64,
    /// Answers that a gateway's queue still held when the other node was elected, and answered too.
    pub left_in_queues: u64,
    /// In words; empty if all is well.
    pub violations: Vec<String>,
    pub report: Report,
}

impl Verdict {
    /// Judges what is known up to `until` (`None`: the run is over).
    pub fn of(stage: &Stage<'_>, until: Option<WallTime>) -> anyhow::Result<Self> {
        let judged_until_ms = until.map(|at| at.0);
        let limits = Limits { judged_until_ms, loss_margin_ms: stage.loss_margin_ms, ..Limits::default() };
        let report = judge_readings(&stage.world, &stage.rows, &Timeline::default(), limits)?;
        let held = held(stage);
        let overlaps = overlaps(&held);
        let both = report.windows_used_by_two_gateways_ms.iter().chain(&report.frames_answered_by_two_gateways_ms);
        let (left, twice): (Vec<u64>, Vec<u64>) = both.partition(|at| lay_in_a_queue(&held, WallTime(**at)));
        let mut violations: Vec<String> = report
            .violations()
            .iter()
            .filter(|v| !matches!(v, Violation::Late(_) | Violation::TwoTransmitters(_)))
            .map(ToString::to_string)
            .collect();
        if report.joins_answered_differently > 0 {
            violations.push(format!("{} join requests were accepted in two ways", report.joins_answered_differently));
        }
        violations.extend(report.lost_readings.iter().take(5).map(|lost| format!("lost: {lost:?}")));
        violations.extend(report.ledger_fault_texts.iter().take(5).cloned());
        violations.extend(report.duplicate_rows.iter().take(5).map(|row| format!("doubled: {row:?}")));
        violations
            .extend(twice.iter().map(|at| format!("two gateways answered one frame at {at}, and nobody had just been elected")));
        violations.extend(overlaps.iter().map(|(former, latter)| format!("two holders: {former:?} and {latter:?}")));
        Ok(Self {
            lost: report.lost,
            doubled: report.duplicates,
            counters_reused: report.downlink_counters_reused,
            two_holders: (overlaps.len() + twice.len()) as u64,
            left_in_queues: left.len() as u64,
            violations,
            report,
        })
    }
}

/// What became of every transmission of a confirmed uplink.
pub fn answers(stage: &Stage<'_>) -> anyhow::Result<Answers> {
    let held: Vec<answers::Held> = held(stage)
        .into_iter()
        .map(|held| answers::Held { node: held.by.name().to_owned(), from_ms: held.from.0, to_ms: held.to.map(|to| to.0) })
        .collect();
    let mut kills_ms: Vec<u64> = stage.deaths.iter().map(|(_, at)| at.0).collect();
    kills_ms.sort_unstable();
    let ledgers = Ledgers::read(&stage.world.ledgers)?;
    let (nodes, timeline) = (node_lives(&stage.world)?, Timeline::default());
    let input = Input { ledgers: &ledgers, nodes: &nodes, delivered: &[], timeline: &timeline, limits: Limits::default() };
    let rx2_data_rate = SpreadingFactor::new(stage.world.settings.rx2_sf)?;
    Ok(answers::judge(&input, &answers::Service { held: &held, kills_ms: &kills_ms, rx2_data_rate }))
}

/// Whether custody went where the fault had to send it.
pub fn check_custody(stage: &Stage<'_>, expect: Expect) -> Result<(), String> {
    let moved = stage.gained(Who::Patras);
    let since = stage.observer.seen.get(stage.mark.0..).unwrap_or_default();
    let fenced = since.iter().find(|s| s.by == "rio" && matches!(s.entry.event, Event::CustodyLost { .. }));
    match expect {
        Expect::Gains(who) if stage.gained(who).is_none() => Err(format!("{} did not gain custody", who.name())),
        Expect::Stays if moved.is_some() => Err("custody moved to patras though rio could go on".to_owned()),
        Expect::Stays if fenced.is_some() => Err(format!("rio stopped serving though it had a majority: {fenced:?}")),
        Expect::Gains(_) | Expect::Stays | Expect::Either => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(by: Who, epoch: u64, from: u64, to: Option<u64>) -> Held {
        Held { by, epoch: Epoch(epoch), from: WallTime(from), to: to.map(WallTime), by_vote: true }
    }

    #[test]
    fn only_an_election_excuses_a_second_answer() {
        let elected = held(Who::Patras, 2, 10_000, None);
        let at = |ms| lay_in_a_queue(&[elected], WallTime(ms));
        assert_eq!([9_999, 10_000, 12_100, 12_101].map(at), [false, true, true, false]);
        assert!(!lay_in_a_queue(&[Held { by_vote: false, ..elected }], WallTime(10_500)), "a release");
    }

    #[test]
    fn overlapping_custody_is_found_and_a_release_is_none() {
        let rio = held(Who::Rio, 1, 100, Some(200));
        assert!(overlaps(&[rio, held(Who::Patras, 2, 200, None)]).is_empty());
        assert_eq!(overlaps(&[rio, held(Who::Patras, 2, 199, None)]).len(), 1);
        assert_eq!(overlaps(&[held(Who::Rio, 1, 100, None), held(Who::Patras, 3, 5_000, None)]).len(), 1);
        assert!(overlaps(&[rio, Held { by_vote: false, ..held(Who::Patras, 2, 199, None) }]).is_empty());
        assert!(overlaps(&[rio, held(Who::Rio, 2, 150, None)]).is_empty(), "the same node");
    }
}
