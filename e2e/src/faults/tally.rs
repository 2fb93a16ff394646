//! The results of a run, per kind of fault and in all.

use std::collections::BTreeMap;

use motes::audit::answers::Answers;
use serde::Serialize;
use serde_json::{Value, json};

/// What one fault brought to light.
#[derive(Debug, Clone, Serialize)]
pub struct Record {
    /// Its number in the plan, from 1.
    pub number: usize,
    pub kind: String,
    pub moment: String,
    /// Fault to the first live reading at the cloud by who took over; nothing if custody did not move.
    pub takeover_ms: Option<u64>,
    /// SIGTERM to the custody of the successor.
    pub planned_release_ms: Option<u64>,
    /// Death of the containers to the first reading at the cloud that was heard after it.
    pub workload_ms: Option<u64>,
    /// Healed to rio holding again, with everybody in place.
    pub recovery_ms: Option<u64>,
    /// From there until everything owed was in the cloud's store.
    pub settling_ms: Option<u64>,
    pub lost: u64,
    pub doubled: u64,
    pub two_holders: u64,
    pub counters_reused: u64,
    /// Afterwards a member stood by its own vote against the holder of that epoch, so that the lease rested on the others alone.
    pub dissent: bool,
    pub violations: Vec<String>,
}

/// Totals of a deployment at its end.
#[derive(Debug, Default, Clone, Serialize)]
pub struct Totals {
    pub frames_sent: u64,
    pub frames_owed: u64,
    pub readings_owed: u64,
    pub confirmed_sent: u64,
    pub confirmed_acknowledged: u64,
    pub downlinks_on_air: u64,
    pub join_requests_heard: u64,
    pub join_requests_accepted: u64,
    /// Answers in a gateway's queue at a takeover by vote whose window the other node used too.
    pub left_in_queues: u64,
    /// Sessions that motes began by joining.
    pub joined: u64,
    /// Downlinks with MAC commands or payloads that motes accepted.
    pub downlinks_received: u64,
    /// What became of the transmissions of confirmed uplinks, if that was judged.
    pub answers: Answers,
}

/// Of all deployments.
fn all_answers(totals: &[Totals]) -> Answers {
    let mut all = Answers::default();
    for Answers { fates, owed, answered, unexplained, airtime_us } in totals.iter().map(|totals| &totals.answers) {
        for (fate, count) in fates {
            *all.fates.entry(*fate).or_default() += count;
        }
        for (band, used_us) in airtime_us {
            let fullest = all.airtime_us.entry(band.clone()).or_default();
            *fullest = (*fullest).max(*used_us);
        }
        all.owed += owed;
        all.answered += answered;
        all.unexplained.extend(unexplained);
    }
    all
}

fn distribution(mut values: Vec<u64>) -> Value {
    values.sort_unstable();
    let at = |percent: usize| values.get((values.len() * percent).div_ceil(100).max(1) - 1);
    json!({"count": values.len(), "p50": at(50), "p99": at(99), "max": values.last()})
}

fn of_kind(records: &[&Record]) -> Value {
    let sum = |value: fn(&Record) -> u64| records.iter().map(|r| value(r)).sum::<u64>();
    let all = |value: fn(&Record) -> Option<u64>| distribution(records.iter().filter_map(|r| value(r)).collect());
    json!({
        "count": records.len(),
        "violations": records.iter().filter(|r| !r.violations.is_empty()).count(),
        "lost": sum(|r| r.lost),
        "doubled": sum(|r| r.doubled),
        "two_holders": sum(|r| r.two_holders),
        "counters_reused": sum(|r| r.counters_reused),
        "dissent": records.iter().filter(|r| r.dissent).count(),
        "takeover_ms": all(|r| r.takeover_ms),
        "planned_release_ms": all(|r| r.planned_release_ms),
        "workload_ms": all(|r| r.workload_ms),
        "recovery_ms": all(|r| r.recovery_ms),
        "settling_ms": all(|r| r.settling_ms),
    })
}

/// Everything in one document: `{faults, seed, ..., kinds: {name: {...}}, records: [...]}`.
pub fn document(records: &[Record], totals: &[Totals], settings: &Value, skipped: &[String]) -> Value {
    let mut kinds: BTreeMap<&str, Vec<&Record>> = BTreeMap::new();
    for record in records {
        kinds.entry(&record.kind).or_default().push(record);
    }
    let kinds: BTreeMap<&str, Value> = kinds.into_iter().map(|(kind, records)| (kind, of_kind(&records))).collect();
    let mut whole = of_kind(&records.iter().collect::<Vec<_>>());
    whole["faults"] = whole["count"].take();
    let sum = |value: fn(&Totals) -> u64| totals.iter().map(value).sum::<u64>();
    whole["settings"] = settings.clone();
    whole["skipped"] = json!(skipped);
    whole["deployments"] = json!(totals.len());
    whole["totals"] = json!(Totals {
        frames_sent: sum(|t| t.frames_sent),
        frames_owed: sum(|t| t.frames_owed),
        readings_owed: sum(|t| t.readings_owed),
        confirmed_sent: sum(|t| t.confirmed_sent),
        confirmed_acknowledged: sum(|t| t.confirmed_acknowledged),
        downlinks_on_air: sum(|t| t.downlinks_on_air),
        join_requests_heard: sum(|t| t.join_requests_heard),
        join_requests_accepted: sum(|t| t.join_requests_accepted),
        joined: sum(|t| t.joined),
        left_in_queues: sum(|t| t.left_in_queues),
        downlinks_received: sum(|t| t.downlinks_received),
        answers: all_answers(totals),
    });
    whole["kinds"] = json!(kinds);
    whole["records"] = json!(records);
    whole
}

/// A table for people.
pub fn print(document: &Value) {
    let cell = |value: &Value| value.as_u64().map_or_else(|| "-".to_owned(), |n| n.to_string());
    println!(
        "\n{:<28} {:>6} {:>10} {:>6} {:>6} {:>6}   takeover ms p50 / p99 / max",
        "kind", "faults", "violations", "lost", "doubled", "reused"
    );
    let kinds = document["kinds"].as_object();
    for (kind, of) in kinds.into_iter().flatten() {
        let takeover = &of["takeover_ms"];
        println!(
            "{kind:<28} {:>6} {:>10} {:>6} {:>6} {:>6}   {} / {} / {}",
            cell(&of["count"]),
            cell(&of["violations"]),
            cell(&of["lost"]),
            cell(&of["doubled"]),
            cell(&of["counters_reused"]),
            cell(&takeover["p50"]),
            cell(&takeover["p99"]),
            cell(&takeover["max"])
        );
    }
    let of = document;
    println!(
        "{} faults: {} with violations; lost {}, doubled {}, two holders {}, counters reused {}; {} frames owed; planned release ms max {}",
        cell(&of["faults"]),
        cell(&of["violations"]),
        cell(&of["lost"]),
        cell(&of["doubled"]),
        cell(&of["two_holders"]),
        cell(&of["counters_reused"]),
        cell(&of["totals"]["frames_owed"]),
        cell(&of["planned_release_ms"]["max"])
    );
    let answers = &of["totals"]["answers"];
    if answers["owed"].as_u64().is_some_and(|owed| owed > 0) {
        println!(
            "confirmed uplinks that were to be answered: {}, answered in a window of their own: {}; all transmissions: {}",
            cell(&answers["owed"]),
            cell(&answers["answered"]),
            answers["fates"]
        );
    }
}
