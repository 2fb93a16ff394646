//! A random scenario for every seed: faults of every kind, at random times, on random machines.

use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use crate::machine::Machine;
use crate::network::Link;
use crate::script::{Fault, Script, Step};

/// Faults in one scenario at most.
const FAULTS_MAX: usize = 14;
/// Length of a scenario in ttl.
const TTLS: std::ops::Range<u64> = 6..25;

/// In one of so many scenarios the customer's edge is lost for good, with its disk.
const DESTROYED_EVERY: u64 = 10;

/// In one of so many scenarios the contract comes of the market.
const MARKET_EVERY: u64 = 8;

/// In one of so many scenarios most motes join over the air, again and again.
const JOINING_EVERY: u64 = 6;

/// In one of so many scenarios the gateway of an edge falls silent or its containers do not keep running, for long enough that it gives up.
const DISABLED_EVERY: u64 = 15;
const DISABLED_LENGTH_MS: u64 = 150_000;

/// In one of so many scenarios the disk of the customer's cloud or of the witness is full for a while.
const FULL_EVERY: u64 = 11;

/// The scenario of a seed: the same in every version that does not change this function.
#[must_use]
pub fn scenario(seed: u64) -> Script {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let ttl_ms = *[300, 1_000, 1_000, 1_000, 2_000].choose(&mut rng).unwrap_or(&1_000);
    let length_ms = ttl_ms * rng.random_range(TTLS);
    let mut script = Script {
        name: format!("seed {seed}"),
        seed,
        ttl_ms,
        quiet_ms: rng.random_range(0..=2 * ttl_ms),
        motes: rng.random_range(1..=12),
        uplinks_per_1000_s: rng.random_range(500..=6_000),
        confirmed_percent: *[0, 10, 50].choose(&mut rng).unwrap_or(&10),
        radio_loss_percent: *[0, 5, 30].choose(&mut rng).unwrap_or(&5),
        link: usual_link(&mut rng, ttl_ms),
        length_ms,
        ..Script::default()
    };
    // Clocks are wrong from the start, as clocks are.
    for machine in Machine::MEMBERS {
        if rng.random_bool(0.5) {
            script.steps.push(Step { at_ms: 0, fault: Fault::Drift(machine, rng.random_range(-10..=10)) });
        }
    }
    let faults = rng.random_range(1..=FAULTS_MAX);
    for _ in 0..faults {
        let at_ms = rng.random_range(0..length_ms);
        for (after_ms, fault) in incident(&mut rng, ttl_ms) {
            script.steps.push(Step { at_ms: (at_ms + after_ms).min(length_ms), fault });
        }
    }
    if seed.is_multiple_of(DESTROYED_EVERY) {
        // With randomness of its own: other seeds stay what they are.
        let at_ms = ChaCha8Rng::seed_from_u64(!seed).random_range(0..length_ms);
        script.steps.push(Step { at_ms, fault: Fault::Destroy(Machine::Rio) });
    }
    if seed % MARKET_EVERY == MARKET_EVERY - 1 {
        make_market(&mut script);
    }
    if seed % JOINING_EVERY == JOINING_EVERY - 2 {
        (script.joining_percent, script.rejoin_s) = (70, 8);
        // An accept takes five seconds.
        script.length_ms = script.length_ms.max(20_000);
    }
    if seed % DISABLED_EVERY == DISABLED_EVERY - 3 {
        disable(&mut script);
    }
    if seed % FULL_EVERY == 3 {
        fill_disk(&mut script);
    }
    script.steps.sort_by_key(|step| step.at_ms);
    script
}

/// An edge loses what it serves with: its gateway or its containers.
fn disable(script: &mut Script) {
    let mut rng = ChaCha8Rng::seed_from_u64(!script.seed);
    script.length_ms = script.length_ms.max(DISABLED_LENGTH_MS);
    // Not too many transmissions: this is long.
    script.uplinks_per_1000_s = script.uplinks_per_1000_s.min(2_000);
    let machine = any(&mut rng, &[Machine::Rio, Machine::Rio, Machine::Patras]);
    let from_ms = rng.random_range(0..60_000);
    let (begins, ends) = match rng.random_bool(0.7) {
        true => (Fault::Unplug(machine), Fault::PlugIn(machine)),
        false => (Fault::BreakContainers(machine), Fault::MendContainers(machine)),
    };
    script.steps.push(Step { at_ms: from_ms, fault: begins });
    if rng.random_bool(0.7) {
        let at_ms = rng.random_range(from_ms + 20_000..=script.length_ms);
        script.steps.push(Step { at_ms, fault: ends });
    }
}

/// The disk of a machine that is no edge is full for a while. With randomness of its own: the rest of a scenario stays what it is.
fn fill_disk(script: &mut Script) {
    let mut rng = ChaCha8Rng::seed_from_u64(script.seed.rotate_left(32));
    let machine = any(&mut rng, &[Machine::Cloud, Machine::Cloud, Machine::Arbitrator]);
    let from_ms = rng.random_range(0..script.length_ms);
    let to_ms = rng.random_range(from_ms..=script.length_ms);
    script.steps.push(Step { at_ms: from_ms, fault: Fault::FillDisk(machine) });
    script.steps.push(Step { at_ms: to_ms, fault: Fault::EmptyDisk(machine) });
}

/// The contract comes of the market, whose marketplace is away for a while. Clocks are not set: listings and contracts have a term.
fn make_market(script: &mut Script) {
    let mut rng = ChaCha8Rng::seed_from_u64(!script.seed);
    script.market = true;
    script.steps.retain(|step| !matches!(step.fault, Fault::SetClock(..)));
    let closed_ms = rng.random_range(0..script.length_ms);
    script.steps.push(Step { at_ms: closed_ms, fault: Fault::CloseMarketplace });
    script.steps.push(Step { at_ms: rng.random_range(closed_ms..=script.length_ms), fault: Fault::OpenMarketplace });
}

/// A day of leases, without motes, over a cellular link of the customer that stalls fifty times for two to five seconds.
#[must_use]
pub fn cellular_day(seed: u64, ttl_ms: u64) -> Script {
    const DAY_MS: u64 = 24 * 3_600_000;
    const STALLS: u64 = 50;
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut script = Script {
        name: format!("cellular day {seed}, ttl {ttl_ms} ms"),
        seed,
        ttl_ms,
        quiet_ms: 60_000,
        motes: 1,
        uplinks_per_1000_s: 0,
        link: Link { delay_ms: 35, jitter_ms: 30, loss_ppm: 2_000, doubled_ppm: 0, bits_per_second: 0 },
        length_ms: DAY_MS,
        ..Script::default()
    };
    for stall in 0..STALLS {
        // One in each fiftieth of the day.
        let at_ms = stall * (DAY_MS / STALLS) + rng.random_range(0..DAY_MS / STALLS - 10_000);
        script.steps.push(Step { at_ms, fault: Fault::Isolate(Machine::Rio) });
        script.steps.push(Step { at_ms: at_ms + rng.random_range(2_000..=5_000), fault: Fault::MendLinks });
    }
    script
}

/// A network on which the lease can be kept: round trips below a tenth of the ttl.
fn usual_link(rng: &mut ChaCha8Rng, ttl_ms: u64) -> Link {
    let delay_ms = rng.random_range(0..=ttl_ms / 60);
    Link {
        delay_ms,
        jitter_ms: rng.random_range(0..=ttl_ms / 60),
        loss_ppm: *[0, 0, 10_000].choose(rng).unwrap_or(&0),
        doubled_ppm: *[0, 0, 20_000].choose(rng).unwrap_or(&0),
        bits_per_second: 0,
    }
}

fn any(rng: &mut ChaCha8Rng, machines: &[Machine]) -> Machine {
    *machines.choose(rng).unwrap_or(&Machine::Rio)
}

/// Something goes wrong, and perhaps right again: steps and their times from its beginning.
fn incident(rng: &mut ChaCha8Rng, ttl_ms: u64) -> Vec<(u64, Fault)> {
    let machine = any(rng, &[Machine::Rio, Machine::Rio, Machine::Patras, Machine::Arbitrator, Machine::Cloud]);
    let member = any(rng, &Machine::MEMBERS);
    let other = any(rng, &Machine::ALL);
    let pause = rng.random_range(0..=4 * ttl_ms);
    match rng.random_range(0..14) {
        0..=2 => vec![(0, Fault::Kill(machine)), (pause, Fault::Start(machine))],
        3 => vec![(0, Fault::Kill(machine))],
        4 => {
            let edge = any(rng, &Machine::EDGES);
            vec![(0, Fault::ShutDown(edge)), (pause, Fault::Start(edge))]
        }
        5 => vec![(0, Fault::Freeze(member)), (pause, Fault::Thaw(member))],
        6 if member != other => vec![(0, Fault::Cut(member, other)), (pause, Fault::MendLinks)],
        7 if member != other => vec![(0, Fault::CutOneWay(member, other)), (pause, Fault::MendLinks)],
        6 | 7 => vec![(0, Fault::Deafen(member)), (pause, Fault::MendLinks)],
        8 => vec![(0, Fault::Isolate(member)), (pause, Fault::MendLinks)],
        9 => vec![(0, Fault::Deafen(member)), (pause, Fault::MendLinks)],
        10 => vec![(0, Fault::Links(bad_link(rng, ttl_ms))), (pause, Fault::MendLinks)],
        11 => vec![(0, Fault::SlowDisk(machine, rng.random_range(1..=ttl_ms / 4)))],
        12 => vec![
            (0, Fault::FillDisk(any(rng, &Machine::EDGES))),
            (pause, Fault::EmptyDisk(Machine::Rio)),
            (pause, Fault::EmptyDisk(Machine::Patras)),
        ],
        _ => vec![(0, Fault::SetClock(machine, rng.random_range(-86_400_000..=86_400_000)))],
    }
}

fn bad_link(rng: &mut ChaCha8Rng, ttl_ms: u64) -> Link {
    Link {
        delay_ms: rng.random_range(0..=ttl_ms / 4),
        jitter_ms: rng.random_range(0..=ttl_ms / 2),
        loss_ppm: rng.random_range(0..=400_000),
        doubled_ppm: rng.random_range(0..=300_000),
        bits_per_second: *[0, 20_000, 200_000].choose(rng).unwrap_or(&0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_seed_gives_a_valid_scenario_and_always_the_same() {
        for seed in 0..2_000 {
            let script = scenario(seed);
            assert!(script.check().is_ok(), "seed {seed}: {:?}", script.check());
            assert_eq!(script, scenario(seed), "seed {seed}");
            assert!(!script.steps.is_empty(), "seed {seed}");
        }
    }

    #[test]
    fn every_disk_is_full_in_some_scenario() {
        let fills = |script: &Script, machine| script.steps.iter().any(|step| step.fault == Fault::FillDisk(machine));
        let scripts: Vec<_> = (0..1_000).map(scenario).collect();
        for machine in Machine::ALL {
            let count = scripts.iter().filter(|script| fills(script, machine)).count();
            assert!(count >= 10, "{}: {count}", machine.name());
        }
    }

    #[test]
    fn what_is_shut_down_is_what_starts_again() {
        let mut shut_down = 0;
        for seed in 0..2_000 {
            let faults: Vec<Fault> =
                incident(&mut ChaCha8Rng::seed_from_u64(seed), 1_000).into_iter().map(|(_, fault)| fault).collect();
            if let [Fault::ShutDown(ended), started] = faults.as_slice() {
                assert_eq!(*started, Fault::Start(*ended), "seed {seed}");
                shut_down += 1;
            }
        }
        assert!(shut_down > 50, "{shut_down} machines were shut down");
    }
}
