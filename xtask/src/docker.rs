//! A Docker engine of the tests' own: started by hand with its own directories, ended by its own process id.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::packages;

/// It answers within this time, or it is not used.
const START_MAX: Duration = Duration::from_secs(30);

/// A running engine; ended when dropped.
#[derive(Debug)]
pub struct Docker {
    child: Child,
    directory: PathBuf,
}

impl Docker {
    /// Starts an engine with all its files below a new temporary directory.
    pub fn start() -> Result<Self, String> {
        if !packages::has("dockerd") {
            return Err("no dockerd is installed (apt-get install docker.io)".to_owned());
        }
        if !packages::is_root() {
            return Err("starting dockerd needs root".to_owned());
        }
        let directory = std::env::temp_dir().join(format!("antirio-dockerd-{}", std::process::id()));
        std::fs::create_dir_all(&directory).map_err(|error| format!("{}: {error}", directory.display()))?;
        let log = File::create(directory.join("log")).map_err(|error| format!("the engine's log: {error}"))?;
        let also = log.try_clone().map_err(|error| format!("the engine's log: {error}"))?;
        let path = |name: &str| directory.join(name);
        let child = Command::new("dockerd")
            .arg("--data-root")
            .arg(path("data"))
            .arg("--exec-root")
            .arg(path("exec"))
            .arg("--pidfile")
            .arg(path("pid"))
            .arg("--host")
            .arg(format!("unix://{}", path("docker.sock").display()))
            // Tenants have no network: the engine needs no bridge and must not touch the machine's firewall.
            .args(["--bridge", "none", "--iptables=false", "--ip6tables=false", "--ip-forward=false"])
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(also)
            .spawn()
            .map_err(|error| format!("dockerd: {error}"))?;
        let mut docker = Self { child, directory };
        docker.wait_until_it_answers().map(|()| docker)
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.join("docker.sock")
    }

    fn wait_until_it_answers(&mut self) -> Result<(), String> {
        let begun = Instant::now();
        while !answers(&self.socket()) {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Err(format!("dockerd ended: {status}; see {}", self.directory.join("log").display()));
            }
            if begun.elapsed() > START_MAX {
                return Err(format!("dockerd does not answer; see {}", self.directory.join("log").display()));
            }
            pause();
        }
        Ok(())
    }
}

/// Between two looks at something that another process does.
fn pause() {
    std::thread::park_timeout(Duration::from_millis(50));
}

fn answers(socket: &Path) -> bool {
    use std::io::{Read as _, Write as _};
    let Ok(mut stream) = std::os::unix::net::UnixStream::connect(socket) else { return false };
    let asked = stream.write_all(b"GET /_ping HTTP/1.1\r\nHost: docker\r\nConnection: close\r\n\r\n");
    let mut answer = [0; 12];
    asked.is_ok() && stream.read_exact(&mut answer).is_ok() && &answer[9..12] == b"200"
}

impl Drop for Docker {
    fn drop(&mut self) {
        // SIGTERM lets it end its own helpers; it takes up to ten seconds.
        let _asked = Command::new("kill").arg(self.child.id().to_string()).status();
        let begun = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) {
            if begun.elapsed() > Duration::from_secs(20) {
                let _killed = self.child.kill();
                break;
            }
            pause();
        }
        let _reaped = self.child.wait();
        let _left = std::fs::remove_dir_all(&self.directory);
    }
}
