//! `antirio-simulate`: random seeds, scenario files, or one line that failed before.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use clap::Parser;
use serde::Serialize;
use simulation::{Outcome, Script, generate, run, shrink};

/// Runs scenarios of faults through the real code in virtual time; exit status 1 if a promise was broken.
#[derive(Debug, Parser)]
struct Arguments {
    /// Random scenarios to run.
    #[arg(long, default_value_t = 0)]
    seeds: u64,
    /// The first of them.
    #[arg(long, default_value_t = 0)]
    first: u64,
    /// Scenario files (TOML).
    files: Vec<PathBuf>,
    /// Days of leases over a cellular link that stalls; every takeover in them is a false one.
    #[arg(long, default_value_t = 0)]
    cellular_days: u64,
    /// Length of a lease in these days.
    #[arg(long, default_value_t = 10_000)]
    ttl_ms: u64,
    /// A scenario on one line, as it was printed when it failed.
    #[arg(long)]
    replay: Option<String>,
    /// Threads; each runs scenarios of its own.
    #[arg(long, default_value_t = 2)]
    threads: u64,
    /// Prints the log of each scenario.
    #[arg(long)]
    log: bool,
    /// Prints what the nodes log, as with `antirio --log` (`debug`, `peering=debug`, …); with one thread only.
    #[arg(long)]
    trace: Option<String>,
    /// Does not look for a shorter scenario that fails.
    #[arg(long)]
    no_shrink: bool,
    /// Writes the summary here.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// What came of all.
#[derive(Debug, Default, Serialize)]
struct Summary {
    seeds: u64,
    scenarios: u64,
    faults: u64,
    violations: u64,
    virtual_hours: f64,
    node_hours: f64,
    core_hours: f64,
    node_hours_per_core_hour: f64,
    takeovers: u64,
    readings_owed: u64,
    readings_delivered: u64,
    downlinks: u64,
    lost: u64,
    doubled: u64,
    counters_reused: u64,
    looks_for_two_holders: u64,
    failed: Vec<Failed>,
}

#[derive(Debug, Serialize)]
struct Failed {
    seed: u64,
    violations: Vec<String>,
    replay: String,
}

impl Summary {
    fn add(&mut self, outcome: &Outcome) {
        const MS_PER_HOUR: f64 = 3_600_000.0;
        let float = |value: u64| f64::from(u32::try_from(value).unwrap_or(u32::MAX));
        self.scenarios += 1;
        self.faults += outcome.faults;
        self.violations += outcome.violations.len() as u64;
        self.virtual_hours += float(outcome.virtual_ms) / MS_PER_HOUR;
        self.node_hours += float(outcome.node_ms) / MS_PER_HOUR;
        self.core_hours += float(outcome.elapsed_us / 1_000) / MS_PER_HOUR;
        self.node_hours_per_core_hour = self.node_hours / self.core_hours.max(f64::MIN_POSITIVE);
        self.takeovers += outcome.takeovers;
        self.readings_owed += outcome.readings_owed;
        self.readings_delivered += outcome.readings_delivered;
        self.downlinks += outcome.downlinks;
        self.lost += outcome.lost;
        self.doubled += outcome.doubled;
        self.counters_reused += outcome.counters_reused;
        self.looks_for_two_holders += outcome.looks;
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(filter) = &arguments.trace {
        kit::telemetry::init(kit::telemetry::Format::Text, filter);
    }
    let scripts = match named_scripts(&arguments) {
        Ok(scripts) => scripts,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(2);
        }
    };
    let total = scripts.len() as u64 + arguments.seeds;
    let next = AtomicU64::new(0);
    let summary = Mutex::new(Summary { seeds: arguments.seeds, ..Summary::default() });
    std::thread::scope(|scope| {
        for _ in 0..arguments.threads.max(1) {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::SeqCst);
                    if index >= total {
                        return;
                    }
                    let named = usize::try_from(index).ok().and_then(|index| scripts.get(index)).cloned();
                    let first_seed = arguments.first + index.saturating_sub(scripts.len() as u64);
                    let script = named.unwrap_or_else(|| generate::scenario(first_seed));
                    one(&arguments, &script, &summary);
                }
            });
        }
    });
    finish(&arguments, summary.into_inner().unwrap_or_else(PoisonError::into_inner))
}

fn named_scripts(arguments: &Arguments) -> Result<Vec<Script>, String> {
    let mut scripts = Vec::new();
    for file in &arguments.files {
        let text = std::fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?;
        scripts.push(Script::parse(&text).map_err(|error| format!("{}: {error}", file.display()))?);
    }
    let days = arguments.first..arguments.first + arguments.cellular_days;
    scripts.extend(days.map(|seed| generate::cellular_day(seed, arguments.ttl_ms)));
    if let Some(line) = &arguments.replay {
        scripts.push(Script::from_line(line)?);
    }
    Ok(scripts)
}

fn one(arguments: &Arguments, script: &Script, summary: &Mutex<Summary>) {
    let outcome = run(script);
    if arguments.log {
        println!("# {}", outcome.name);
        outcome.log.iter().for_each(|line| println!("{line}"));
    }
    let failed = (!outcome.violations.is_empty()).then(|| {
        let fails = |script: &Script| !run(script).violations.is_empty();
        let shortest = if arguments.no_shrink { script.clone() } else { shrink::shrink(script, fails) };
        Failed { seed: script.seed, violations: outcome.violations.clone(), replay: shortest.to_line() }
    });
    let mut summary = summary.lock().unwrap_or_else(PoisonError::into_inner);
    summary.add(&outcome);
    if let Some(failed) = failed {
        println!("{} FAILED: {}", outcome.name, failed.violations.join("; "));
        println!("  again: antirio-simulate --log --replay '{}'", failed.replay);
        summary.failed.push(failed);
    }
    if summary.scenarios.is_multiple_of(1_000) {
        eprintln!("{} scenarios, {} violations", summary.scenarios, summary.violations);
    }
}

fn finish(arguments: &Arguments, summary: Summary) -> ExitCode {
    println!(
        "{} scenarios, {} faults, {} takeovers, {:.1} virtual hours, {:.0} node-hours per core-hour, {} violations",
        summary.scenarios,
        summary.faults,
        summary.takeovers,
        summary.virtual_hours,
        summary.node_hours_per_core_hour,
        summary.violations
    );
    if let Some(path) = &arguments.json {
        let json = serde_json::to_vec_pretty(&summary).unwrap_or_default();
        if let Err(error) = std::fs::write(path, json) {
            eprintln!("{}: {error}", path.display());
            return ExitCode::from(2);
        }
    }
    if summary.violations == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
