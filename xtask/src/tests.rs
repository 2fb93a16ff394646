//! Every test of the workspace, then the demo itself as a test, with each engine that this machine can use.

use std::process::Command;

use crate::arduino;
use crate::build::{self, Built, cargo};
use crate::docker::Docker;
use crate::packages;

pub fn run(install: bool) -> Result<(), String> {
    if install {
        packages::install()?;
    }
    arduino::run(install)?;
    let engine = Docker::start();
    let mut tests = Command::new(cargo());
    tests.args(["test", "--release", "--workspace", "--quiet", "--no-fail-fast"]);
    match &engine {
        Ok(docker) => {
            tests.env("ANTIRIO_DOCKER_SOCKET", docker.socket());
        }
        Err(missing) if install => return Err(format!("the tests need a Docker engine: {missing}")),
        Err(missing) => {
            println!("SKIPPED tests with a Docker engine: {missing}; `cargo xtask test --install` installs and starts one")
        }
    }
    let built = build::everything()?;
    build::run(&mut tests)?;
    bridge(&built, install)?;
    demo(&built, install)?;
    load(&built)?;
    faults(&built)?;
    println!("all tests passed");
    Ok(())
}

/// The bridge without anything else, killed five times; no root needed.
fn bridge(built: &Built, is_required: bool) -> Result<(), String> {
    println!("== the bridge alone ==");
    if ["mosquitto", "mosquitto_sub"].into_iter().all(packages::has) {
        return build::run(&mut built.bridge());
    }
    if is_required {
        return Err("the bridge alone needs Mosquitto".to_owned());
    }
    println!("SKIPPED the bridge alone: no mosquitto or mosquitto_sub; `cargo xtask test --install` installs them");
    Ok(())
}

/// A light load on a whole node, a second of it: that nothing is lost, not how fast it is.
fn load(built: &Built) -> Result<(), String> {
    if !packages::is_root() {
        println!("SKIPPED the load on a whole node: the embedded engine needs root");
        return Ok(());
    }
    println!("== a light load on a whole node ==");
    let mut command = built.demo("load");
    command.args(["--engine", "embedded", "--only", "latency", "--frames", "200", "--seconds", "1"]);
    build::run(&mut command)
}

/// Twenty real faults, one of each of these kinds; what this machine cannot do they skip and say so.
fn faults(built: &Built) -> Result<(), String> {
    println!("== twenty real faults ==");
    let mut command = built.demo("faults");
    command.args(["--engine", "embedded", "--count", "20"]);
    for kind in FAULTS {
        command.args(["--only", kind]);
    }
    build::run(&mut command)
}

const FAULTS: [&str; 20] = [
    "kill-rio",
    "kill-patras",
    "kill-patras-holding",
    "kill-arbitrator",
    "kill-cloud",
    "kill-workload",
    "stop-rio",
    "stop-patras",
    "stop-arbitrator",
    "cut-rio",
    "cut-arbitrator",
    "cut-rio-from-patras",
    "cut-cloud-in-handback",
    "deaf-rio",
    "mute-rio",
    "restart-rio",
    "both-rio-first",
    "planned",
    "power-rio",
    "full-rio",
];

/// The demo's exit status says whether anything owed was lost, doubled, reused or unbalanced.
fn demo(built: &Built, is_required: bool) -> Result<(), String> {
    if !packages::is_root() {
        if is_required {
            return Err("the demo with the embedded engine needs root".to_owned());
        }
        println!("SKIPPED the demo with the embedded engine: it needs root");
        return Ok(());
    }
    println!("== the demo as a test ==");
    let mut command = built.demo("demo");
    command.args(["--engine", "embedded"]);
    build::run(&mut command)
}
