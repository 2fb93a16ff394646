//! The end of a run: what is still open, what the motes' ledger says of what was delivered, and what came of the run.

use contracts::ids::NodeId;
use edge_node::lora::standby::UNKNOWN;
use edge_node::readings::StoredUplink;
use lora_bridge::bridge::adapting::Coverage;
use motes::audit::{self, Alive, Delivered, Limits, NodeLife, Report};
use motes::fleet::Eui64;
use motes::ledger::RadioRecord;

use super::{Outcome, World, gateway_eui};
use crate::clock::WALL_START;
use crate::machine::Machine;
use crate::script::Fault;
use crate::{market, nodes};

/// A frame waits for two writes under way (of the bridge's consumer and of the log), then for its own, each of which may wait for one more.
const WRITES_BEFORE_DISK: u64 = 4;

/// Frames on the disk of an insurer that one look reads.
const KEPT_MAX: u32 = 1_000;

/// An answer goes to the gateway up to 2 s (the second window) before its time.
const QUEUED_MS_MAX: u64 = 2_100;

/// When custody was gained: by a vote, and in any way.
#[derive(Debug, Clone, Copy)]
struct Gains<'a> {
    elected_ms: &'a [u64],
    all_ms: &'a [u64],
}

/// Whether custody was gained between the uplink and the answer at `at_ms`: then the former holder may have sent its answer to the gateway
/// while it held.
fn lay_in_a_queue(gained_ms: &[u64], at_ms: u64) -> bool {
    gained_ms.iter().any(|gained_ms| at_ms.checked_sub(*gained_ms).is_some_and(|since_ms| since_ms <= QUEUED_MS_MAX))
}

/// What the audit found that must not be. After a vote the former holder's answer may meet the successor's in one window, and a lower counter may
/// come after a higher one, which the mote drops. Who released had stopped, so that no window is used twice then; but a repetition that both
/// heard just before may be answered once more in the other window, for nobody tells that a repetition was answered.
fn find_violations(report: &Report, gains: Gains<'_>) -> Vec<String> {
    let may_be_overtaken = gains.elected_ms.len() > 1;
    let counts = [
        ("owed readings lost", report.lost),
        ("readings doubled", report.duplicates),
        ("wrong values", report.wrong_values),
        ("unknown readings", report.unknown_readings),
        ("downlink counters reused", report.downlink_counters_reused),
        ("downlink counters backwards", if may_be_overtaken { 0 } else { report.downlink_counters_backwards }),
        ("downlinks with a wrong integrity code", report.downlinks_unauthentic),
        ("nonces of joins reused", report.join_nonces_not_risen),
        ("joins accepted in two ways", report.joins_answered_differently),
        ("faults of the ledgers", report.ledger_faults),
    ];
    let counted = counts.into_iter().filter(|(_, count)| *count > 0).map(|(what, count)| format!("{what}: {count}"));
    let unexcused = |at_ms: &[u64], gained_ms| -> Vec<u64> {
        let at_ms = at_ms.iter().map(|at_ms| at_ms.saturating_sub(WALL_START.0));
        at_ms.filter(|at_ms| !lay_in_a_queue(gained_ms, *at_ms)).collect()
    };
    let windows = unexcused(&report.windows_used_by_two_gateways_ms, gains.elected_ms).into_iter();
    let windows = windows.map(|at_ms| format!("two gateways used one window at {at_ms}, and nobody had just been elected"));
    let frames = unexcused(&report.frames_answered_by_two_gateways_ms, gains.all_ms).into_iter();
    let frames = frames.map(|at_ms| format!("two gateways answered one frame at {at_ms}, and nobody had just gained custody"));
    counted.chain(windows).chain(frames).collect()
}

impl World {
    /// How each node sees custody, for who looks for a fault.
    pub(super) fn log_custody(&self) {
        for machine in Machine::EDGES {
            let Some(running) = self.machines[&machine].node_running() else { continue };
            let view = running.custody.subscribe(self.group()).map(|view| view.borrow().role);
            self.checker.log(format!("{}: {view:?} {:?}", machine.name(), running.custody.counts()));
        }
    }

    pub(super) async fn log_open_readings(&self) {
        for machine in self.edges() {
            let Some(running) = self.machines[&machine].node_running() else { continue };
            let open = running.core.store.last_open(self.group()).await;
            let kept = running.core.store.list_kept(self.group(), 0, 10).await.map(|kept| kept.len());
            self.checker.log(format!("{}: last open {open:?}, kept {kept:?}", machine.name()));
            let Some(parts) = &running.parts else { continue };
            if let Ok(stats) = parts.bridge.stats().await {
                let (buffered, awaited, in_flight) = (stats.buffer_frames, stats.awaited_frames, stats.in_flight);
                self.checker
                    .log(format!("{}: {buffered} buffered, {awaited} await a session, {in_flight} in flight", machine.name()));
            }
        }
    }

    /// Something that is not with the customer's store yet: on a disk, or heard in standby and not yet offered with success.
    pub(super) async fn has_open_readings(&self) -> bool {
        for machine in self.edges() {
            let Some(running) = self.machines[&machine].node_running() else { return true };
            let store = &running.core.store;
            let is_of_a_session = |kept: &StoredUplink| kept.uplink.session != UNKNOWN;
            let kept = store.list_kept(self.group(), 0, KEPT_MAX).await;
            let keeps = kept.map_or(true, |kept| kept.iter().any(is_of_a_session) || kept.len() >= KEPT_MAX as usize);
            if keeps || store.last_open(self.group()).await.unwrap_or(u64::MAX) > 0 {
                return true;
            }
            let Some(parts) = &running.parts else { continue };
            if parts.bridge.stats().await.is_ok_and(|stats| stats.buffer_frames + stats.in_flight > 0) {
                return true;
            }
        }
        false
    }

    /// Frames whose session no edge that has them knows.
    pub(super) async fn has_awaited_frames(&self) -> bool {
        for machine in self.edges() {
            let Some(running) = self.machines[&machine].node_running() else { continue };
            let Some(parts) = &running.parts else { continue };
            if parts.bridge.stats().await.is_ok_and(|stats| stats.awaited_frames > 0) {
                return true;
            }
        }
        false
    }

    /// What the customer knows of its insurer's ears.
    pub(super) async fn check_coverage(&self) {
        let Some(expected) = self.script.expect.covered else { return };
        let customer = self.machines[&Machine::Rio].node_running();
        let coverage = match customer.as_ref().and_then(|running| running.parts.as_ref()) {
            Some(parts) => parts.bridge.coverage(self.group()).await.unwrap_or_default(),
            None => Coverage::default(),
        };
        let Coverage { devices, covered, not_covered } = coverage;
        let motes = u64::from(self.script.motes);
        if (devices, covered, not_covered) != (motes, expected, motes - expected) {
            self.checker.violate(format!("of {motes} motes {expected} are to be covered, not {coverage:?}"));
        }
    }

    pub(super) async fn audit(&self) -> Report {
        let delivered = match self.machines[&Machine::Cloud].node_running() {
            Some(cloud) => nodes::list_received(&cloud).await,
            None => Vec::new(),
        };
        let name = |node: NodeId| {
            let machine = Machine::ALL.into_iter().find(|machine| self.node_id(*machine) == node);
            machine.map_or_else(|| node.to_string(), |machine| machine.name().to_owned())
        };
        let delivered: Vec<Delivered> = delivered.iter().map(|reading| nodes::delivered(reading, &name)).collect();
        let nodes: Vec<NodeLife> = Machine::EDGES
            .into_iter()
            .map(|machine| {
                let to_wall = |ms: u64| WALL_START.0 + ms;
                let alive = |(from, to): &(u64, Option<u64>)| Alive { from_ms: to_wall(*from), to_ms: to.map(to_wall) };
                let alive = self.machines[&machine].lives.iter().map(alive).collect();
                NodeLife { node: machine.name().to_owned(), gateway: gateway_eui(machine), alive }
            })
            .collect();
        let slowest_write = self.script.steps.iter().filter_map(|step| match step.fault {
            Fault::SlowDisk(_, ms) => Some(ms),
            _ => None,
        });
        // A frame is offered after 30 ms, and must travel.
        let travel = 4 * (self.script.link.delay_ms + self.script.link.jitter_ms);
        let until_on_disk = WRITES_BEFORE_DISK * slowest_write.max().unwrap_or(0);
        let until_kept = if self.script.mirror { 0 } else { until_on_disk };
        let limits = Limits { loss_margin_ms: 50 + travel + until_kept, ..Limits::default() };
        let ledgers = self.ledger.ledgers().unwrap_or_default();
        let timeline = audit::Timeline { taker: Some(Machine::Patras.name().to_owned()), ..audit::Timeline::default() };
        let input = audit::Input { ledgers: &ledgers, nodes: &nodes, delivered: &delivered, timeline: &timeline, limits };
        audit::audit(&input)
    }

    /// When a counter was on air, for who looks for a fault.
    fn log_downlinks(&self, device: Eui64, f_cnt: u32) {
        for record in &self.ledger.ledgers().unwrap_or_default().radio {
            let RadioRecord::Downlink(downlink) = record else { continue };
            if downlink.dev_eui == Some(device) && downlink.f_cnt == Some(f_cnt) {
                let at_ms = (downlink.start_us / 1_000).saturating_sub(WALL_START.0);
                let (gateway, session, bytes) = (downlink.gateway, downlink.session, &downlink.bytes);
                self.checker.log(format!("{device} session {session} counter {f_cnt} by {gateway} at {at_ms}: {bytes}"));
            }
        }
    }

    fn judge_report(&self, report: &Report) {
        let all_ms: Vec<u64> = self.checker.gained().iter().map(|(at_ms, ..)| *at_ms).collect();
        for what in find_violations(report, Gains { elected_ms: &self.checker.elected_ms(), all_ms: &all_ms }) {
            self.checker.violate(what);
        }
        let expect = &self.script.expect;
        if report.joined < expect.joined || report.join_requests_accepted_by_taker < expect.joined_at_insurer {
            let by_insurer = report.join_requests_accepted_by_taker;
            self.checker.violate(format!("only {} joins, of these {by_insurer} by the insurer", report.joined));
        }
        for (device, f_cnt) in &report.reused_counters {
            self.log_downlinks(*device, *f_cnt);
        }
        for listed in report.lost_readings.iter().take(5) {
            self.checker.log(format!("lost {listed:?}"));
        }
    }

    pub(super) fn finish(self, report: Option<Report>) -> Outcome {
        for hardware in self.machines.values() {
            for contradiction in hardware.votes.take_contradictions() {
                self.checker.violate(format!("{} {contradiction}", hardware.machine.name()));
            }
        }
        let statements = self.judge_statements();
        let report = report.unwrap_or_default();
        self.judge_report(&report);
        let takeovers = self.checker.gained().iter().filter(|(_, machine, _)| *machine == Machine::Patras).count() as u64;
        let (takeover_ms, virtual_ms) = (self.takeover_ms(), self.now_ms());
        let (downlinks, looks) = (self.checker.downlinks(), self.checker.looks());
        self.checker.log(format!(
            "{} frames, {} owed readings, {} delivered, {downlinks} downlinks, {statements} statements kept, {} joins, of these {} by the insurer",
            report.frames_sent,
            report.readings_owed,
            report.readings_delivered,
            report.joined,
            report.join_requests_accepted_by_taker
        ));
        for hardware in self.machines.values() {
            if let Some(process) = &hardware.process {
                process.kill();
            }
            self.network.leave(hardware.node);
        }
        let since = |machine: Machine| {
            let (database, votes) = self.writes_settled.get(&machine).copied().unwrap_or_default();
            let (database_before, votes_before) = self.writes_before.get(&machine).copied().unwrap_or_default();
            (machine, (database.saturating_sub(database_before), votes.saturating_sub(votes_before)))
        };
        let writes = Machine::ALL.map(since).into();
        if let Some(process) = &self.marketplace {
            process.kill();
        }
        for service in [market::marketplace_id(), market::arbitrator_http_id()] {
            self.network.leave(service);
        }
        let (log, violations) = self.checker.finish();
        Outcome {
            name: self.script.name.clone(),
            seed: self.script.seed,
            violations,
            virtual_ms,
            node_ms: virtual_ms * Machine::ALL.len() as u64,
            faults: self.script.steps.len() as u64,
            takeovers,
            takeover_ms,
            readings_owed: report.readings_owed,
            readings_delivered: report.readings_delivered,
            lost: report.lost,
            doubled: report.duplicates,
            counters_reused: report.downlink_counters_reused,
            downlinks,
            datagrams: self.links.sent(),
            looks,
            writes,
            log,
            elapsed_us: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gains<'a>(elected_ms: &'a [u64], all_ms: &'a [u64]) -> Gains<'a> {
        Gains { elected_ms, all_ms }
    }

    #[test]
    fn whatever_must_not_be_on_air_is_seen() {
        assert!(find_violations(&Report::default(), gains(&[], &[])).is_empty());
        for report in [
            Report { downlink_counters_reused: 1, ..Report::default() },
            Report { downlink_counters_backwards: 1, ..Report::default() },
            Report { downlinks_unauthentic: 1, ..Report::default() },
            Report { frames_answered_by_two_gateways_ms: vec![WALL_START.0 + 5_000], ..Report::default() },
            Report { windows_used_by_two_gateways_ms: vec![WALL_START.0 + 5_000], ..Report::default() },
        ] {
            assert_eq!(find_violations(&report, gains(&[100], &[100])).len(), 1, "{report:?}");
        }
    }

    #[test]
    fn an_answer_may_lie_in_a_queue_while_another_node_is_elected() {
        let at_ms = || vec![WALL_START.0 + 5_000];
        let frame = Report { frames_answered_by_two_gateways_ms: at_ms(), ..Report::default() };
        let window = Report { windows_used_by_two_gateways_ms: at_ms(), ..Report::default() };
        for (gained_ms, violations) in [(2_899, 1), (2_900, 0), (5_000, 0), (5_001, 1)] {
            let all_ms = [100, gained_ms];
            let (elected, released) = (gains(&all_ms, &all_ms), gains(&[100], &all_ms));
            assert_eq!(find_violations(&frame, elected).len(), violations, "elected at {gained_ms}");
            assert_eq!(find_violations(&window, elected).len(), violations, "elected at {gained_ms}");
            assert_eq!(find_violations(&frame, released).len(), violations, "released to at {gained_ms}");
            assert_eq!(find_violations(&window, released).len(), 1, "who released had stopped");
        }
        let overtaken = Report { downlink_counters_backwards: 1, ..Report::default() };
        assert!(find_violations(&overtaken, gains(&[100, 4_000], &[100, 4_000])).is_empty());
    }
}
