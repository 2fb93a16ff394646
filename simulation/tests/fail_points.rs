//! Every durable write of every node, once as the last thing that its process did and once as the first that it did not.

use std::sync::atomic::{AtomicUsize, Ordering};

use simulation::machine::Machine;
use simulation::script::{Crash, Fault, Step, Written};
use simulation::{Script, run};

/// Takeover, return and hand-back, with confirmed uplinks: every kind of write that a node makes.
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

fn crashes() -> Vec<Crash> {
    let writes = run(&story()).writes;
    let mut crashes = Vec::new();
    for (machine, (database, votes)) in writes {
        for (of, count) in [(Written::Database, database), (Written::Votes, votes)] {
            for write in 1..=count {
                crashes.extend([false, true].map(|after| Crash { machine, write, of, after }));
            }
        }
    }
    crashes
}

#[test]
fn a_crash_at_any_write_loses_nothing() {
    let crashes = crashes();
    let of = |of, machine| crashes.iter().filter(|crash| crash.of == of && crash.machine == machine).count();
    let (database, votes) = (of(Written::Database, Machine::Rio), of(Written::Votes, Machine::Patras));
    assert!(database > 20 && of(Written::Database, Machine::Cloud) > 5 && votes >= 4, "{database} and {votes} fail points");
    let next = AtomicUsize::new(0);
    let check = || {
        let mut failed = Vec::new();
        while let Some(crash) = crashes.get(next.fetch_add(1, Ordering::SeqCst)) {
            let script = Script { crash: Some(*crash), ..story() };
            let outcome = run(&script);
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
    println!("{} fail points", crashes.len());
    assert!(failed.is_empty(), "{} of {}\n{}", failed.len(), crashes.len(), failed.join("\n"));
}
