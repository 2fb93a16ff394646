//! Explores every history of the custody machine within bounds, and prints what was found as JSON.
//!
//! `cargo run --release -p contracts --example custody_model -- [--ticks N] [--epochs N] [--late N] [--lifetime N]
//! [--restarts N] [--duplicates N] [--stalls N] [--releases N] [--overdue N] [--restores N] [--members N] [--drift | --no-drift] [--sample N] [--without MARK] [--threads N] [--seconds N] [--json FILE]`

#[path = "../tests/custody/world.rs"]
mod world;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use contracts::custody::Mark;
use stateright::{Checker, HasDiscoveries, Model};
use world::Scope;

struct Arguments {
    scope: Scope,
    threads: usize,
    seconds: u64,
    json: Option<String>,
}

fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Arguments, String> {
    let mut parsed = Arguments { scope: Scope::exhaustive(), threads: 2, seconds: 3_600, json: None };
    let scope = &mut parsed.scope;
    while let Some(name) = arguments.next() {
        if name == "--drift" || name == "--no-drift" {
            scope.drift = name == "--drift";
            continue;
        }
        let value = arguments.next().ok_or_else(|| format!("{name} needs a value"))?;
        if name == "--seconds" {
            parsed.seconds = value.parse().map_err(|_| format!("{name} needs a number, not {value}"))?;
            continue;
        }
        let number = || value.parse::<u8>().map_err(|_| format!("{name} needs a number up to 255, not {value}"));
        match name.as_str() {
            "--ticks" => scope.ticks = number()?,
            "--epochs" => scope.epochs = number()?.into(),
            "--late" => scope.late = number()?.into(),
            "--lifetime" => scope.lifetime = number()?,
            "--members" => scope.members = number()?,
            "--restarts" => scope.faults.restarts = number()?,
            "--duplicates" => scope.faults.duplicates = number()?,
            "--stalls" => scope.faults.stalls = number()?,
            "--releases" => scope.faults.releases = number()?,
            "--overdue" => scope.faults.overdue = number()?,
            "--restores" => scope.faults.restores = number()?.min(1),
            "--sample" => scope.recovery_sample = number()?.into(),
            "--threads" => parsed.threads = number()?.into(),
            "--json" => parsed.json = Some(value),
            "--without" => {
                let mark = Mark::ALL.into_iter().find(|mark| mark.to_string() == value);
                scope.rules = scope.rules.without(mark.ok_or_else(|| format!("no clause is marked {value}"))?);
            }
            _ => return Err(format!("unknown argument {name}")),
        }
    }
    Ok(parsed)
}

fn main() -> ExitCode {
    let Arguments { scope, threads, seconds, json } = match parse(std::env::args().skip(1)) {
        Ok(arguments) => arguments,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(2);
        }
    };
    let started = Instant::now();
    let limit = Duration::from_secs(seconds);
    let checker = scope.checker().threads(threads).timeout(limit).finish_when(HasDiscoveries::AnyFailures).spawn_dfs().join();
    let violations: BTreeMap<&str, Vec<String>> = checker
        .discoveries()
        .into_iter()
        .filter(|(name, _)| checker.discovery_classification(name).to_string() == "counterexample")
        .map(|(name, path)| (name, path.into_actions().iter().map(|action| format!("{action:?}")).collect()))
        .collect();
    let report = serde_json::json!({
        "scope": format!("{scope:?}"),
        "states": checker.unique_state_count(),
        "transitions": checker.state_count(),
        "depth": checker.max_depth(),
        "exhausted": started.elapsed() < limit && violations.is_empty(),
        "seconds": started.elapsed().as_secs_f64(),
        "violations": violations,
    });
    println!("{report:#}");
    if let Some(path) = json
        && let Err(error) = std::fs::write(&path, report.to_string())
    {
        eprintln!("cannot write {path}: {error}");
        return ExitCode::FAILURE;
    }
    if violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
