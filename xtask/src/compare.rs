//! Antirio and Docker Swarm side by side: the same faults, the same image, the same machine, one after the other in one run.

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::build;
use crate::swarm;

/// How we call ourselves for Docker Swarm's part: a process that outlives Ctrl-C long enough to clean up.
pub const SWARM_ALONE: &str = "measure-swarm";

const RUNS_DEFAULT: u32 = 10;

struct Options {
    runs: u32,
    json: Option<PathBuf>,
}

fn options(arguments: &[&str]) -> Result<Options, String> {
    let mut options = Options { runs: RUNS_DEFAULT, json: None };
    for pair in arguments.chunks(2) {
        match pair {
            ["--runs", runs] => options.runs = runs.parse().map_err(|error| format!("--runs {runs}: {error}"))?,
            ["--json", path] => options.json = Some(path.into()),
            _ => return Err("cargo xtask bench takeover --peer swarm [--runs N] [--json FILE]".to_owned()),
        }
    }
    Ok(options)
}

pub fn run(arguments: &[&str]) -> Result<(), String> {
    let Options { runs, json } = options(arguments)?;
    if let Some(reason) = swarm::missing() {
        println!("SKIPPED Docker Swarm: {reason}");
        return Ok(());
    }
    let built = build::everything()?;
    let directory = swarm::directory();
    let scratch = directory.with_extension("results");
    std::fs::create_dir_all(&scratch).map_err(|error| format!("{}: {error}", scratch.display()))?;
    let antirio = antirio(&built, runs, &scratch.join("antirio.json"))?;
    let swarm = swarm_guarded(&built.image, runs)?;
    let _left = std::fs::remove_dir_all(&scratch);
    let found = format!("{{\"runs\": {runs},\n \"antirio\": {antirio},\n \"swarm\": {swarm}}}\n");
    println!("{found}");
    match json {
        Some(path) => std::fs::write(&path, found).map_err(|error| format!("{}: {error}", path.display())),
        None => Ok(()),
    }
}

/// Link of the holder cut, its node, which is its engine, killed, its workload killed; an outage ends with the first live reading at the cloud: the
/// insurer's, for the workload (which its own node starts anew) the customer's.
fn antirio(built: &build::Built, runs: u32, json: &Path) -> Result<String, String> {
    let count = (3 * runs).to_string();
    let mut demo = built.demo("faults");
    demo.args(["--count", &count, "--only", "cut-rio", "--only", "kill-rio", "--only", "kill-workload"]).arg("--json").arg(json);
    build::run(&mut demo)?;
    std::fs::read_to_string(json).map_err(|error| format!("{}: {error}", json.display()))
}

/// In a group of processes of its own: Ctrl-C ends us, and it sees its input end and cleans up.
fn swarm_guarded(image: &Path, runs: u32) -> Result<String, String> {
    let myself = std::env::current_exe().map_err(|error| format!("our own program: {error}"))?;
    let mut child = Command::new(myself);
    child.arg(SWARM_ALONE).arg(image).arg(runs.to_string());
    let mut child =
        child.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().map_err(|error| error.to_string())?;
    let guard = child.stdin.take();
    let said = child.stdout.take().ok_or("a pipe")?;
    let mut last = String::new();
    for line in std::io::BufRead::lines(std::io::BufReader::new(said)) {
        last = line.map_err(|error| error.to_string())?;
        println!("{last}");
    }
    let status = child.wait().map_err(|error| error.to_string())?;
    drop(guard);
    if status.success() { Ok(last) } else { Err(format!("Docker Swarm could not be measured: {status}")) }
}

/// Docker Swarm's part; its last line is the result.
pub fn swarm_alone(image: &str, runs: &str) -> Result<(), String> {
    let runs = runs.parse().map_err(|error| format!("{runs}: {error}"))?;
    let measured = swarm::measure(Path::new(image), runs)?;
    println!("{}", measured.json());
    Ok(())
}
