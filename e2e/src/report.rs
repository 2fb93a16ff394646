//! The result of a run: one table for people, one JSON document for programs.

use std::collections::BTreeMap;

use contracts::ids::OwnerId;
use motes::audit::Report;
use serde::Serialize;

use crate::cycle::Measured;

/// Everything that a run found.
#[derive(Debug, Serialize)]
pub struct Outcome {
    pub frames_sent: u64,
    pub frames_heard: u64,
    pub frames_owed: u64,
    pub heard_by_a_alone_within_50ms_before_kill: u64,
    pub heard_by_nobody_alive: u64,
    pub readings_owed: u64,
    pub readings_delivered: u64,
    pub lost: u64,
    pub duplicates: u64,
    pub downlink_counters_reused: u64,
    pub confirmed_after_takeover: u64,
    pub confirmed_acknowledged_in_window: u64,
    pub takeover_ms: u64,
    pub takeover_parts: Measured,
    pub first_live_answer_ms: Option<u64>,
    pub outage_seen_by_cloud_ms: Option<u64>,
    pub max_delivery_delay_ms: Option<u64>,
    pub p99_delivery_delay_ms: Option<u64>,
    pub handback_max_delay_ms: Option<u64>,
    pub handback_confirmed_frames: u64,
    pub handback_confirmed_frames_unanswered_though_heard_by_all: u64,
    pub container_start_ms: f64,
    /// Resident memory of every process, now and at its highest, in megabytes.
    pub rss_mb: BTreeMap<String, (f64, f64)>,
    pub rss_idle_mb: BTreeMap<String, (f64, f64)>,
    /// What the insurer still has of the customer's keys after the contract.
    pub foreign_keys_left: Vec<String>,
    pub ledger_balanced: bool,
    /// Micro-units available and reserved of each owner.
    pub accounts_before: BTreeMap<OwnerId, (u64, u64)>,
    pub accounts_after: BTreeMap<OwnerId, (u64, u64)>,
    pub certificates: Vec<String>,
    pub contract: Option<String>,
    pub outcome: Option<String>,
    /// What must not be; empty for a clean run.
    pub violations: Vec<String>,
    pub audit: Report,
}

impl Outcome {
    pub fn is_clean(&self) -> bool {
        // The promise; what else was found is printed, and is a goal.
        let joins = self.audit.join_nonces_not_risen + self.audit.joins_answered_differently;
        self.lost + self.duplicates + self.downlink_counters_reused + joins == 0
            && self.foreign_keys_left.is_empty()
            && self.ledger_balanced
    }

    pub fn print(&self) {
        let audit = &self.audit;
        println!("\n== What the sensors' and the radio's own records say ==");
        let row = |name: &str, value: String| println!("  {name:<58} {value:>12}");
        let opt = |value: Option<u64>| value.map_or_else(|| "-".to_owned(), |v| format!("{v} ms"));
        row("frames sent", self.frames_sent.to_string());
        row("frames heard by a gateway", self.frames_heard.to_string());
        for (alive, coverage) in &audit.coverage_by_nodes_alive {
            row(&format!("  heard while {alive} node(s) were alive"), format!("{:.2} %", coverage.percent));
        }
        row("frames owed", self.frames_owed.to_string());
        row(
            "  heard by rio alone within 50 ms before its kill (not owed)",
            self.heard_by_a_alone_within_50ms_before_kill.to_string(),
        );
        row("  heard by nobody alive (not owed)", self.heard_by_nobody_alive.to_string());
        row("readings owed", self.readings_owed.to_string());
        row("readings delivered", self.readings_delivered.to_string());
        row("readings LOST", self.lost.to_string());
        row("readings DOUBLED", self.duplicates.to_string());
        row("downlink counters REUSED", self.downlink_counters_reused.to_string());
        row("confirmed uplinks after the takeover", self.confirmed_after_takeover.to_string());
        row("  acknowledged in a window", self.confirmed_acknowledged_in_window.to_string());
        row("join requests heard by a living node", audit.join_requests_heard.to_string());
        row("  accepted / sessions begun", format!("{} / {}", audit.join_requests_accepted, audit.joined));
        row("  accepted by patras", audit.join_requests_accepted_by_taker.to_string());
        row("join nonces REUSED", audit.join_nonces_not_risen.to_string());
        row("takeover: kill to first live reading at the cloud", format!("{} ms", self.takeover_ms));
        row("  of it, kill to the first ask (rest of the lease)", format!("{} ms", self.takeover_parts.lease_ms));
        row("  of it, ask and vote", format!("{} ms", self.takeover_parts.ask_and_vote_ms));
        row("  of it, certificate to the containers' first request", format!("{:.1} ms", self.takeover_parts.start_ms));
        row("  beside it, replay of the buffer settled after", format!("{} ms", self.takeover_parts.replay_ms));
        row("first answer on air by patras after the kill", opt(self.first_live_answer_ms));
        row("outage as the cloud saw it", opt(self.outage_seen_by_cloud_ms));
        row("largest delivery delay of an owed reading", opt(self.max_delivery_delay_ms));
        row("largest delivery delay during hand-back", opt(self.handback_max_delay_ms));
        println!("== Memory (resident, MB: insured and idle / at the end / highest) ==");
        for (name, (now, high)) in &self.rss_mb {
            let idle = self.rss_idle_mb.get(name).map_or(0.0, |(now, _)| *now);
            row(name, format!("{idle:.1} / {now:.1} / {high:.1}"));
        }
        println!("== Money (micro-EUR: available / reserved) ==");
        for (owner, after) in &self.accounts_after {
            let before = self.accounts_before.get(owner).copied().unwrap_or_default();
            row(&format!("owner {}", owner.short()), format!("{} / {} -> {} / {}", before.0, before.1, after.0, after.1));
        }
        row("foreign keys left at patras after the contract", self.foreign_keys_left.len().to_string());
        row("sum unchanged", self.ledger_balanced.to_string());
        row("contract", format!("{} {}", self.contract.clone().unwrap_or_default(), self.outcome.clone().unwrap_or_default()));
        row("custody certificates", self.certificates.join(" "));
        if self.is_clean() && self.violations.is_empty() {
            println!("\nNothing owed was lost, nothing was doubled, no counter was reused, the money adds up.");
        } else {
            println!("\nVIOLATIONS:");
            for violation in self.violations.iter().chain(&self.foreign_keys_left) {
                println!("  {violation}");
            }
        }
    }
}
