//! What the tests need of the distribution.

use std::path::Path;
use std::process::Command;

/// A program, or another file by its path, and the Debian package that it comes in.
const NEEDED: [(&str, &str); 8] = [
    ("dockerd", "docker.io"),
    ("iptables", "iptables"),
    ("mosquitto", "mosquitto"),
    ("mosquitto_sub", "mosquitto-clients"),
    ("g++", "g++"),
    ("avr-g++", "gcc-avr"),
    ("/usr/lib/avr/include/avr/io.h", "avr-libc"),
    ("/usr/share/arduino/hardware/arduino/avr/cores/arduino/Arduino.h", "arduino-core-avr"),
];

/// Whether the program is in a place where the system keeps programs, or the file is there.
pub fn has(program: &str) -> bool {
    let path = std::env::var("PATH").unwrap_or_default();
    // Users that are not root may have no sbin in their path.
    path.split(':').chain(["/usr/sbin", "/sbin"]).any(|directory| Path::new(directory).join(program).is_file())
}

pub fn is_root() -> bool {
    Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout.trim_ascii() == b"0")
}

/// Installs what is missing.
pub fn install() -> Result<(), String> {
    let missing: Vec<&str> = NEEDED.into_iter().filter(|(program, _)| !has(program)).map(|(_, package)| package).collect();
    if missing.is_empty() {
        return Ok(());
    }
    if !is_root() {
        return Err(format!("installing {} needs root", missing.join(", ")));
    }
    crate::build::run(Command::new("apt-get").args(["update", "--quiet"]))?;
    let mut apt = Command::new("apt-get");
    apt.args(["install", "--yes", "--quiet", "--no-install-recommends"]).args(missing);
    // The tests start servers of their own: runlevel 1 keeps the packages from starting theirs (invoke-rc.d(8)).
    crate::build::run(apt.env("DEBIAN_FRONTEND", "noninteractive").env("RUNLEVEL", "1"))
}
