//! The custody machine under a model checker, in a scope of seconds; `examples/custody_model.rs` explores larger ones.
//! Every clause that looks pedantic is switched off once: the checker must find the history that goes wrong.

#[path = "custody/world.rs"]
mod world;

use contracts::custody::{Mark, Rules};
use stateright::{Checker, HasDiscoveries, Model};
use world::{Faults, NO_FAULTS, Scope};

const THREADS: usize = 2;

fn assert_exhausted(name: &str, scope: Scope) {
    let checker = scope.checker().threads(THREADS).finish_when(HasDiscoveries::AnyFailures).spawn_dfs().join();
    println!("{name}: {} states to depth {}, no violation", checker.unique_state_count(), checker.max_depth());
    checker.assert_properties();
}

/// The scope in which the absence of a clause shows soonest.
fn scope_that_catches(mark: Mark) -> Scope {
    let rules = Rules::ALL.without(mark);
    let quiet = Scope { ticks: 8, drift: false, faults: NO_FAULTS, recovery_sample: 0, rules, ..Scope::exhaustive() };
    let restarts = Faults { restarts: 1, ..NO_FAULTS };
    let releases = Faults { releases: 1, ..NO_FAULTS };
    match mark {
        Mark::S1 | Mark::S7 => Scope { late: 1, ..quiet },
        Mark::S2 | Mark::S3 | Mark::S5 | Mark::S9 | Mark::S10 => Scope { ticks: 7, faults: restarts, ..quiet },
        Mark::S4 => Scope { epochs: 6, faults: releases, ..quiet },
        Mark::S6 => quiet,
        Mark::S8 => Scope { ticks: 7, drift: true, ..quiet },
        Mark::S11 => Scope { faults: Faults { restarts: 1, ..releases }, epochs: 6, ..quiet },
        Mark::S12 => Scope { ticks: 8, faults: restarts, ..quiet },
        Mark::L1 | Mark::L2 | Mark::L3 | Mark::L4 | Mark::L5 | Mark::L6 => {
            Scope { ticks: 4, faults: releases, recovery_sample: 1, ..quiet }
        }
    }
}

#[test]
fn late_and_doubled_messages_break_no_promise() {
    let faults = Faults { duplicates: 1, ..NO_FAULTS };
    assert_exhausted("late, doubled", Scope { ticks: 3, late: 1, drift: false, faults, ..Scope::exhaustive() });
}

#[test]
fn releases_restarts_and_stalls_break_no_promise() {
    let faults = Faults { releases: 1, stalls: 1, restarts: 1, ..NO_FAULTS };
    assert_exhausted("release, restart, stall", Scope { ticks: 3, drift: false, faults, ..Scope::exhaustive() });
}

#[test]
fn restarts_under_drifting_clocks_break_no_promise() {
    assert_exhausted("restart, drift", Scope { ticks: 4, ..Scope::exhaustive() });
}

#[test]
fn hand_backs_that_are_overdue_and_stalls_break_no_promise() {
    let faults = Faults { overdue: 2, releases: 1, stalls: 1, ..NO_FAULTS };
    assert_exhausted("overdue, release, stall", Scope { ticks: 3, drift: false, faults, ..Scope::exhaustive() });
}

#[test]
fn restored_disks_break_no_promise() {
    let faults = Faults { restores: 1, restarts: 1, ..NO_FAULTS };
    assert_exhausted("restore, restart", Scope { ticks: 3, drift: false, faults, ..Scope::exhaustive() });
}

#[test]
fn every_clause_is_needed() {
    for mark in Mark::ALL {
        let checker =
            scope_that_catches(mark).checker().threads(THREADS).finish_when(HasDiscoveries::AnyFailures).spawn_dfs().join();
        let counterexample = |name: &&str| checker.discovery_classification(name).to_string() == "counterexample";
        let discoveries = checker.discoveries();
        let caught: Vec<&str> = discoveries.keys().copied().filter(counterexample).collect();
        println!("without {mark}: {caught:?} after {} states", checker.unique_state_count());
        assert_ne!(caught, Vec::<&str>::new(), "nothing goes wrong without {mark}");
    }
}
