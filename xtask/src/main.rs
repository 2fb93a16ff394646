//! The project's own commands: `cargo xtask demo | test | bench | simulate | lint`. Standard library only, so that it builds in a second.

mod arduino;
mod build;
mod compare;
mod docker;
mod packages;
mod swarm;
mod tests;

use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};

const USAGE: &str = "\
cargo xtask demo [--engine embedded|docker|auto] [--motes N] [--seed N] [--json FILE] [--keep]
    builds Antirio and shows its whole job with real parts; needs root for the embedded engine
cargo xtask test [--install]
    every test, then the demo as a test; --install fetches what tests need (apt), else what is missing is said and skipped
cargo xtask arduino
    the Arduino sketches: compiled for an Uno, and run here against a stand-in for the LMIC library (a part of the tests)
cargo xtask bench takeover [--runs N] [--engine E] [--motes N] [--ttl-ms N] [--json FILE]
    kill, takeover, return, hand-back, N times: the distribution and its parts
cargo xtask bench takeover --peer swarm [--runs N] [--json FILE]
    the same faults against Docker Swarm and against Antirio, one after the other; needs root and dockerd
cargo xtask bench faults [--count N] [--only KIND]... [--seed N] [--engine E] [--ttl-ms N] [--json FILE]
    N real faults (200), each process in a network namespace of its own: killed, stopped, cut off, out of disk or power; judged after each;
    the exit status is 1 if anything owed was lost or doubled, a counter was reused, or two held custody
cargo xtask bench bridge [--kills N] [--motes N] [--rate N] [--otaa SHARE] [--seed N] [--json FILE]
    the bridge alone between motes and a broker, killed again and again; needs Mosquitto
cargo xtask bench lora [--frames N] [--motes N] [--seconds N] [--batch N] [--only bridge|sessions|node|latency|lead]... [--json FILE]
    LoRa under load: the bridge in process, then over UDP, then a whole node; how soon a reading is out, how early answers are at their
    gateway; one JSON object each; needs root for the embedded engine
cargo xtask bench lora --kills N [--motes N] [--rate N] [--confirmed SHARE] [--seed N] [--json FILE]
    the edge that serves is killed N times at random messages, with 2,000 motes and MAC commands; the motes' own records judge
cargo xtask bench start | peering | model | lease-traffic | arbitrator [arguments]
    the parts alone: the bridge's throughput, the start of a container, round trips between peers, the exhaustive model of custody,
    what leases cost on the wire, what 10,000 contracts cost their witness
cargo xtask bench fuzz [--inputs N] [--seed N]
    mutated inputs (10,000,000) for all that gateways, motes and payloads can say: no panic, no growth; two JSON objects
cargo xtask simulate [--seeds N] [--first N] [--json FILE] [--log] [--replay LINE] [FILES]
    the whole product on one thread and in virtual time: random scenarios of faults by seed, scenario files, or one that failed before
cargo xtask lint
    rustfmt and clippy over everything";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["demo", rest @ ..] => demo("demo", rest),
        ["test"] => tests::run(false),
        ["test", "--install"] => tests::run(true),
        ["arduino"] => arduino::run(false),
        ["bench", "takeover", "--peer", "swarm", rest @ ..] => compare::run(rest),
        [compare::SWARM_ALONE, image, runs] => compare::swarm_alone(image, runs),
        ["bench", "takeover", rest @ ..] => demo("takeover", rest),
        ["bench", "faults", rest @ ..] => demo("faults", rest),
        ["bench", "bridge", rest @ ..] => bridge(rest),
        ["bench", "lora", rest @ ..] => lora(rest),
        ["bench", "fuzz", rest @ ..] => {
            example("lora-bridge", "fuzz_bridge", rest).and_then(|()| example("lora-device-service", "fuzz_codecs", rest))
        }
        ["bench", name, rest @ ..] => bench(name, rest),
        ["simulate", rest @ ..] => simulate(rest),
        ["lint"] => lint(),
        _ => Err(USAGE.to_owned()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}

/// Builds, then becomes the demo.
fn demo(command: &str, arguments: &[&str]) -> Result<(), String> {
    turn_into(build::everything()?.demo(command).args(arguments))
}

fn bridge(arguments: &[&str]) -> Result<(), String> {
    turn_into(build::everything()?.bridge().args(arguments))
}

/// Signals go to it alone, and its exit status is ours.
fn turn_into(demo: &mut Command) -> Result<(), String> {
    let failed = demo.exec();
    Err(format!("the demo cannot be started: {failed}"))
}

/// `--name=value` as the two words that it stands for.
fn words<'a>(arguments: &[&'a str]) -> Vec<&'a str> {
    let split = |argument: &&'a str| match argument.split_once('=') {
        Some((name, value)) if name.starts_with("--") => vec![name, value],
        Some(_) | None => vec![*argument],
    };
    arguments.iter().flat_map(split).collect()
}

/// Flags that are not given, with their defaults.
fn with_defaults<'a>(arguments: &[&'a str], defaults: &[(&'a str, &'a str)]) -> Vec<&'a str> {
    let missing = defaults.iter().filter(|(name, _)| !arguments.contains(name));
    arguments.iter().copied().chain(missing.flat_map(|(name, value)| [*name, *value])).collect()
}

/// The load, or the kills.
fn lora(arguments: &[&str]) -> Result<(), String> {
    let arguments = &words(arguments)[..];
    let Some(kills) = arguments.iter().position(|argument| *argument == "--kills") else {
        if !arguments.contains(&"--only") {
            example("lora-bridge", "throughput", &[])?;
        }
        return demo("load", &with_defaults(arguments, &[("--motes", "10000")]));
    };
    let (before, after) = (&arguments[..kills], arguments.get(kills + 2..).unwrap_or_default());
    let count = *arguments.get(kills + 1).ok_or(USAGE)?;
    // Not too many joins: an accept in RX2, where a node answers that has just taken over, is on air for two seconds at SF12.
    let defaults = [
        ("--motes", "2000"),
        ("--rate", "200"),
        ("--confirmed", "0.01"),
        ("--requests", "0.01"),
        ("--otaa", "0.02"),
        ("--rejoin", "100"),
        ("--rx2-sf", "9"),
        ("--per-deployment", "25"),
    ];
    let mut faults = with_defaults(&[before, after].concat(), &defaults);
    faults.extend(["--count", count, "--only", "kill-serving", "--answers"]);
    demo("faults", &faults)
}

fn bench(name: &str, arguments: &[&str]) -> Result<(), String> {
    let (package, example) = match name {
        "start" => ("engine", "start_latency"),
        "peering" => ("peering", "roundtrip"),
        "model" => ("contracts", "custody_model"),
        "lease-traffic" => ("peering", "lease_traffic"),
        "arbitrator" => ("arbitrator", "witness_load"),
        _ => return Err(USAGE.to_owned()),
    };
    let mut cargo = Command::new(build::cargo());
    cargo.args(["run", "--release", "--quiet", "--package", package, "--example", example, "--"]);
    if name == "start" {
        cargo.arg(std::path::absolute(build::everything()?.service).map_err(|error| error.to_string())?);
    }
    build::run(cargo.args(arguments))
}

fn example(package: &str, name: &str, arguments: &[&str]) -> Result<(), String> {
    let mut cargo = Command::new(build::cargo());
    cargo.args(["run", "--release", "--quiet", "--package", package, "--example", name, "--"]);
    build::run(cargo.args(arguments))
}

fn simulate(arguments: &[&str]) -> Result<(), String> {
    let built = build::everything()?;
    let failed = Command::new(built.programs.join("antirio-simulate")).args(arguments).exec();
    Err(format!("the simulator cannot be started: {failed}"))
}

fn lint() -> Result<(), String> {
    build::run(Command::new(build::cargo()).args(["fmt", "--all", "--check"]))?;
    build::run(Command::new(build::cargo()).args([
        "clippy",
        "--release",
        "--workspace",
        "--all-targets",
        "--",
        "--deny",
        "warnings",
    ]))
}
