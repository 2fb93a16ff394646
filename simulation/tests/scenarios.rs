//! All scenario files, a thousand random scenarios, and the simulator's own promises.

use simulation::machine::Machine;
use simulation::script::{Expect, Fault, Step};
use simulation::{Outcome, Script, generate, run};

/// Random scenarios in this test; `cargo xtask simulate` runs more.
const SEEDS: u64 = 1_000;

fn scenario_files() -> Vec<Script> {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/scenarios");
    let mut paths: Vec<_> = std::fs::read_dir(directory).expect("scenarios").map(|entry| entry.expect("a file").path()).collect();
    paths.sort();
    let read = |path: &std::path::PathBuf| {
        let text = std::fs::read_to_string(path).expect("readable");
        Script::parse(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    };
    paths.iter().map(read).collect()
}

fn complain(script: &Script, outcome: &Outcome) -> Option<String> {
    let what = outcome.violations.join("; ");
    (!what.is_empty())
        .then(|| format!("{}: {what}\n  again: antirio-simulate --log --replay '{}'", outcome.name, script.to_line()))
}

#[test]
fn every_scenario_keeps_the_promises() {
    let scripts = scenario_files();
    assert!(scripts.len() >= 15, "{} scenarios", scripts.len());
    let failed: Vec<_> = scripts.iter().filter_map(|script| complain(script, &run(script))).collect();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn random_faults_break_no_promise() {
    let run_from = |first: u64| {
        let mut failed = Vec::new();
        let mut sum = (0, 0, 0);
        for seed in (first..SEEDS).step_by(2) {
            let script = generate::scenario(seed);
            let outcome = run(&script);
            sum = (sum.0 + outcome.faults, sum.1 + outcome.takeovers, sum.2 + outcome.readings_owed);
            failed.extend(complain(&script, &outcome));
        }
        (failed, sum)
    };
    let (odd, even) = std::thread::scope(|scope| {
        let odd = scope.spawn(|| run_from(1));
        (run_from(0), odd.join().expect("no panic"))
    });
    let failed: Vec<_> = odd.0.into_iter().chain(even.0).collect();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    // A simulator in which nothing happens would keep every promise.
    let (faults, takeovers, owed) = (odd.1.0 + even.1.0, odd.1.1 + even.1.1, odd.1.2 + even.1.2);
    println!("{SEEDS} seeds: {faults} faults, {takeovers} takeovers, {owed} readings owed");
    assert!(faults > 5 * SEEDS && takeovers > SEEDS / 4 && owed > SEEDS, "{faults} faults, {takeovers} takeovers, {owed} owed");
}

/// What an insurer heard in standby is on its disk, also if it dies in the very millisecond in which it gains custody (seed 9851 once).
#[test]
fn an_insurer_that_dies_around_its_takeover_loses_nothing() {
    let step = |at_ms, fault| Step { at_ms, fault };
    let kill = step(4_000, Fault::Kill(Machine::Rio));
    let story = Script {
        uplinks_per_1000_s: 12_000,
        radio_loss_percent: 0,
        length_ms: 12_000,
        steps: vec![step(1_000, Fault::SlowDisk(Machine::Patras, 60)), kill.clone()],
        ..Script::default()
    };
    let outcome = run(&story);
    assert_eq!(complain(&story, &outcome), None);
    let at = |what: &str| {
        let at_ms = |line: &String| line.trim().split_once(' ').filter(|(_, said)| said.starts_with(what))?.0.parse::<u64>().ok();
        outcome.log.iter().find_map(at_ms).unwrap_or_else(|| panic!("{what}: {:#?}", outcome.log))
    };
    // The log counts from before the first custody, steps from after it.
    let gained_ms = at("patras holds") - at("SlowDisk(Patras, 60)") + 1_000;
    for at_ms in (gained_ms - 4..=gained_ms + 4).chain((gained_ms + 10..gained_ms + 400).step_by(30)) {
        let more = [step(at_ms, Fault::Kill(Machine::Patras)), step(at_ms + 300, Fault::Start(Machine::Patras))];
        let steps = story.steps.iter().cloned().chain(more).collect();
        let script = Script { steps, ..story.clone() };
        let outcome = run(&script);
        assert!(outcome.violations.is_empty(), "{}", complain(&script, &outcome).unwrap_or_default());
        assert!(outcome.readings_owed >= 10, "{} owed", outcome.readings_owed);
    }
    let seed = generate::scenario(9_851);
    assert_eq!(complain(&seed, &run(&seed)), None);
}

/// An insurer that is killed, comes back, takes over and gives back says what it heard, has receipts for it, and nothing convicts it.
#[test]
fn an_honest_insurer_is_convicted_of_nothing() {
    let step = |at_ms, fault| Step { at_ms, fault };
    let steps = vec![
        step(2_000, Fault::Kill(Machine::Patras)),
        step(3_000, Fault::Start(Machine::Patras)),
        step(5_000, Fault::Kill(Machine::Rio)),
        step(8_000, Fault::Isolate(Machine::Cloud)),
        step(10_000, Fault::Start(Machine::Rio)),
        step(12_000, Fault::MendLinks),
    ];
    let script = Script { uplinks_per_1000_s: 8_000, length_ms: 15_000, steps, ..Script::default() };
    let outcome = run(&script);
    assert!(outcome.violations.is_empty(), "{}", complain(&script, &outcome).unwrap_or_default());
    let number = |line: &str, before: &str| line.split_once(before)?.0.rsplit(' ').next()?.parse::<u64>().ok();
    let said = outcome.log.iter().find_map(|line| Some((number(line, " frames, in ")?, number(line, " receipts")?)));
    let (heard, receipts) = said.expect("a line about the accounts");
    assert!(heard >= 25 && receipts >= 2, "{heard} frames, {receipts} receipts");
}

/// A vote of the witness leaves when it is on its disk: not before there is room, and not before the disk is done.
#[test]
fn a_takeover_waits_for_the_disk_of_the_witness() {
    let step = |at_ms, fault| Step { at_ms, fault };
    let run = |first: Step, more: &[Step]| {
        let steps = [&[first, step(2_000, Fault::Kill(Machine::Rio))], more].concat();
        let outcome = run(&Script { steps, ..Script::default() });
        assert!(outcome.violations.is_empty() && outcome.takeovers == 1, "{outcome:?}");
        outcome.takeover_ms.expect("a takeover")
    };
    let usual_ms = run(step(1_000, Fault::SlowDisk(Machine::Arbitrator, 0)), &[]);
    let slow_ms = run(step(1_000, Fault::SlowDisk(Machine::Arbitrator, 400)), &[]);
    let full_ms = run(step(1_000, Fault::FillDisk(Machine::Arbitrator)), &[step(9_000, Fault::EmptyDisk(Machine::Arbitrator))]);
    assert!(usual_ms + 300 < slow_ms && slow_ms < 8_000 && full_ms >= 8_000, "{usual_ms}, {slow_ms}, {full_ms} ms");
}

/// The judge sees what it is to see: with a clock that is far more wrong than the protocol allows for there are two holders.
#[test]
fn two_holders_are_seen() {
    let step = |at_ms, fault| Step { at_ms, fault };
    let steps = vec![step(0, Fault::Drift(Machine::Rio, -50)), step(6_000, Fault::Isolate(Machine::Rio))];
    let outcome = run(&Script { steps, ..Script::default() });
    assert!(outcome.violations.iter().any(|what| what.starts_with("two holders")), "{:?}", outcome.violations);
}

#[test]
fn missed_expectations_are_seen() {
    let kill = vec![Step { at_ms: 4_000, fault: Fault::Kill(Machine::Rio) }];
    let expect = Expect { takeovers: Some(0), takeover_ms_max: Some(10), ..Expect::default() };
    let outcome = run(&Script { steps: kill, expect, ..Script::default() });
    assert_eq!(outcome.violations.len(), 2, "{:?}", outcome.violations);
}
