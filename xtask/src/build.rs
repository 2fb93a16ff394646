//! Builds the programs and the image of the LoRa device service.

use std::env;
use std::path::PathBuf;
use std::process::Command;

/// What was built, and where.
#[derive(Debug)]
pub struct Built {
    pub programs: PathBuf,
    pub image: PathBuf,
    /// The device service as a static program.
    pub service: PathBuf,
}

pub fn cargo() -> String {
    env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned())
}

pub fn target_directory() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from)
}

/// Runs a command to its end; its output is the user's.
pub fn run(command: &mut Command) -> Result<(), String> {
    let name = format!("{command:?}");
    let status = command.status().map_err(|error| format!("{name}: {error}"))?;
    if status.success() { Ok(()) } else { Err(format!("{name}: {status}")) }
}

/// This machine's target triple, as rustc names it.
fn host() -> Result<String, String> {
    let output = Command::new("rustc").arg("-vV").output().map_err(|error| format!("rustc: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines()
        .find_map(|line| line.strip_prefix("host: ").map(str::to_owned))
        .ok_or_else(|| "rustc does not name its host".to_owned())
}

/// `antirio`, `antirio-radio`, `antirio-demo`, `antirio-simulate`, and the device service as a static program in an image tar.
pub fn everything() -> Result<Built, String> {
    // Together, so that all of them and the tests share one set of features of the libraries below.
    let packages = ["antirio", "motes", "e2e", "simulation"].into_iter().flat_map(|package| ["--package", package]);
    run(Command::new(cargo()).args(["build", "--release"]).args(packages))?;
    let host = host()?;
    // With --target the flag reaches the program only, not the compiler's plugins.
    let mut service = Command::new(cargo());
    service.args(["build", "--release", "--package", "lora-device-service", "--target", &host]);
    run(service.env("RUSTFLAGS", "-C target-feature=+crt-static"))?;
    let target = target_directory();
    let program = target.join(host).join("release").join("lora-device-service");
    let built =
        Built { programs: target.join("release"), image: target.join("lora-device-service.tar"), service: program.clone() };
    let packed = Command::new(built.programs.join("antirio"))
        .args(["content", "pack", "--log=warn"])
        .args([&program, &built.image])
        .output()
        .map_err(|error| format!("antirio content pack: {error}"))?;
    if packed.status.success() {
        Ok(built)
    } else {
        Err(format!("the image cannot be packed: {}", String::from_utf8_lossy(&packed.stderr)))
    }
}

impl Built {
    /// The demo program with where everything is.
    pub fn demo(&self, command: &str) -> Command {
        let mut demo = Command::new(self.programs.join("antirio-demo"));
        demo.arg(command).arg("--programs").arg(&self.programs).arg("--image").arg(&self.image);
        demo
    }

    /// The demo program's test of the bridge alone.
    pub fn bridge(&self) -> Command {
        let mut bridge = self.demo("bridge");
        bridge.arg("--service").arg(&self.service);
        bridge
    }
}
