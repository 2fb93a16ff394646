//! Every durable write of every node, once as the last thing that its process did and once as the first that it did not.

use std::sync::atomic::{AtomicUsize, Ordering};

use simulation::machine::Machine;
use simulation::script::{Crash, Expect, Fault, Step, Written};
use simulation::{Script, run};

/// Fail points of one machine in the longer story: they are spread over all of its writes.
const SPREAD_OVER: u64 = 30;

/// Takeover, return and hand-back, with confirmed uplinks.
fn story() -> Script {
    let step = |at_ms, fault| Step { at_ms, fault };
    Script {
        name: "fail points".to_owned(),
        ttl_ms: 300,
        quiet_ms: 300,
        motes: 8,
        uplinks_per_1000_s: 8_000,
        confirmed_percent: 50,
        length_ms: 5_000,
        steps: vec![step(1_500, Fault::Kill(Machine::Rio)), step(3_000, Fault::Start(Machine::Rio))],
        ..Script::default()
    }
}

/// The same, with motes that join before and while the insurer serves.
fn joins() -> Script {
    let step = |at_ms, fault| Step { at_ms, fault };
    Script {
        joining_percent: 40,
        rejoin_s: 1,
        length_ms: 13_000,
        steps: vec![step(5_600, Fault::Kill(Machine::Rio)), step(12_000, Fault::Start(Machine::Rio))],
        ..story()
    }
}

/// The story once for each crash: one at every write of each machine, or, if there are more than `at_most`, at so many of them.
fn crashes(story: &Script, expect: Expect, at_most: impl Fn(Machine) -> u64) -> Vec<Script> {
    let outcome = run(&Script { expect, ..story.clone() });
    assert!(outcome.violations.is_empty(), "{:?}", outcome.violations);
    let mut crashes = Vec::new();
    for (machine, (database, votes)) in outcome.writes {
        for (of, count) in [(Written::Database, database), (Written::Votes, votes)] {
            let stride = count.div_ceil(at_most(machine)).max(1);
            for write in (1..=count).filter(|write| write % stride == 0) {
                let crash = |after| Script { crash: Some(Crash { machine, write, of, after }), ..story.clone() };
                crashes.extend([false, true].map(crash));
            }
        }
    }
    crashes
}

fn count(scripts: &[Script], of: Written, machine: Machine) -> usize {
    let is_such = |script: &&Script| script.crash.is_some_and(|crash| crash.of == of && crash.machine == machine);
    scripts.iter().filter(is_such).count()
}

#[test]
fn a_crash_at_any_write_loses_nothing() {
    let mut scripts = crashes(&story(), Expect { takeovers: Some(1), ..Expect::default() }, |_| u64::MAX);
    let (database, votes) = (count(&scripts, Written::Database, Machine::Rio), count(&scripts, Written::Votes, Machine::Patras));
    let at_cloud = count(&scripts, Written::Database, Machine::Cloud);
    assert!(database > 20 && at_cloud > 5 && votes >= 4, "{database} and {votes} fail points");
    assert!(count(&scripts, Written::Votes, Machine::Arbitrator) >= 4, "votes of the witness");
    let expect = Expect { takeovers: Some(1), joined: 4, joined_at_insurer: 1, ..Expect::default() };
    let joins = crashes(&joins(), expect, |machine| if machine == Machine::Arbitrator { u64::MAX } else { SPREAD_OVER });
    assert!(count(&joins, Written::Database, Machine::Arbitrator) >= 4, "records at the witness");
    println!("{} fail points, {} with joins", scripts.len(), joins.len());
    scripts.extend(joins);
    let next = AtomicUsize::new(0);
    let check = || {
        let mut failed = Vec::new();
        while let Some(script) = scripts.get(next.fetch_add(1, Ordering::SeqCst)) {
            let (outcome, crash) = (run(script), &script.crash);
            if !outcome.violations.is_empty() {
                failed.push(format!(
                    "{crash:?}: {}\n  again: antirio-simulate --log --replay '{}'",
                    outcome.violations.join("; "),
                    script.to_line()
                ));
            }
            assert!(outcome.log.iter().any(|line| line.ends_with("dies at a write")), "{crash:?} never happened");
        }
        failed
    };
    let failed = std::thread::scope(|scope| {
        let other = scope.spawn(check);
        let mut failed = check();
        failed.extend(other.join().expect("no panic"));
        failed
    });
    assert!(failed.is_empty(), "{} of {}\n{}", failed.len(), scripts.len(), failed.join("\n"));
}
