//! One Docker engine in a network namespace of its own, and how to leave nothing of it behind.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// It answers within this time, or the run has failed.
const START_MAX: Duration = Duration::from_secs(60);
/// An answer of an engine that lives comes within this time.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// Everything that this run puts on the machine; [`Litter::clear`] removes it, in whatever state it is.
#[derive(Debug)]
pub(super) struct Litter {
    directory: PathBuf,
    namespaces: Vec<String>,
}

fn run(program: &str, arguments: &[&str]) -> Result<String, String> {
    let said = |error: &dyn std::fmt::Display| format!("{program} {}: {error}", arguments.join(" "));
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output().map_err(|error| said(&error))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(said(&String::from_utf8_lossy(&output.stderr).trim()))
    }
}

fn ip(arguments: &str) -> Result<(), String> {
    run("ip", &arguments.split_whitespace().collect::<Vec<_>>()).map(drop)
}

impl Litter {
    /// A directory, and a namespace with the switch that all engines hang on.
    pub(super) fn new() -> Result<Self, String> {
        let directory = super::directory();
        std::fs::create_dir_all(&directory).map_err(|error| format!("{}: {error}", directory.display()))?;
        let mut litter = Self { directory, namespaces: Vec::new() };
        let hub = litter.namespace(0)?;
        ip(&format!("-n {hub} link add switch type bridge"))?;
        ip(&format!("-n {hub} link set switch up"))?;
        Ok(litter)
    }

    fn namespace(&mut self, number: usize) -> Result<String, String> {
        let name = format!("swarm{}-{number}", std::process::id());
        ip(&format!("netns add {name}"))?;
        self.namespaces.push(name.clone());
        ip(&format!("-n {name} link set lo up"))?;
        Ok(name)
    }

    /// Ends every process that has our directory on its command line, what these started first, then unmounts and removes.
    pub(super) fn clear(&mut self) {
        let mark = self.directory.display().to_string();
        let begun = Instant::now();
        loop {
            let ours = processes_of(&mark);
            if ours.is_empty() || begun.elapsed() > Duration::from_secs(20) {
                break;
            }
            for process in ours.iter().flat_map(|process| [children_of(*process), vec![*process]].concat()) {
                let _gone = run("kill", &["-KILL", &process.to_string()]);
            }
            std::thread::park_timeout(Duration::from_millis(100));
        }
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let mut points: Vec<&str> =
            mounts.lines().filter_map(|line| line.split(' ').nth(1)).filter(|at| at.starts_with(&mark)).collect();
        points.sort_unstable_by(|a, b| b.cmp(a));
        for point in points {
            let _gone = run("umount", &["--lazy", point]);
        }
        for name in self.namespaces.drain(..) {
            let _gone = ip(&format!("netns del {name}"));
        }
        let _gone = std::fs::remove_dir_all(&self.directory);
    }
}

fn processes_of(mark: &str) -> Vec<u32> {
    let me = std::process::id();
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let ids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let is_ours = |id: &u32| {
        let line = std::fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
        *id != me && String::from_utf8_lossy(&line).contains(mark)
    };
    ids.filter(is_ours).collect()
}

fn children_of(process: u32) -> Vec<u32> {
    let tasks = std::fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    let children = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
    children.flat_map(|text| text.split_whitespace().filter_map(|id| id.parse().ok()).collect::<Vec<u32>>()).collect()
}

#[derive(Debug)]
pub(super) struct Engine {
    number: usize,
    namespace: String,
    hub: String,
    pub(super) address: String,
    directory: PathBuf,
    child: Child,
}

impl Engine {
    pub(super) fn start(litter: &Arc<Mutex<Litter>>, number: usize) -> Result<Self, String> {
        let mut litter = litter.lock().unwrap_or_else(PoisonError::into_inner);
        let hub = litter.namespaces[0].clone();
        let namespace = litter.namespace(number)?;
        let address = format!("10.78.0.{number}");
        ip(&format!("-n {namespace} link add uplink type veth peer name port{number} netns {hub}"))?;
        ip(&format!("-n {hub} link set port{number} master switch"))?;
        ip(&format!("-n {hub} link set port{number} up"))?;
        ip(&format!("-n {namespace} addr add {address}/24 dev uplink"))?;
        ip(&format!("-n {namespace} link set uplink up"))?;
        let directory = litter.directory.join(format!("engine{number}"));
        std::fs::create_dir_all(&directory).map_err(|error| format!("{}: {error}", directory.display()))?;
        let child = dockerd(&namespace, &directory)?;
        let mut engine = Self { number, namespace, hub, address, directory, child };
        engine.wait_until_it_answers().map(|()| engine)
    }

    fn wait_until_it_answers(&mut self) -> Result<(), String> {
        let begun = Instant::now();
        while self.get("/_ping").is_none() {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Err(format!("dockerd {} ended: {status}", self.number));
            }
            if begun.elapsed() > START_MAX {
                return Err(format!("dockerd {} does not answer", self.number));
            }
            std::thread::park_timeout(Duration::from_millis(50));
        }
        Ok(())
    }

    fn socket(&self) -> PathBuf {
        self.directory.join("sock")
    }

    pub(super) fn docker(&self, arguments: &[&str]) -> Result<String, String> {
        let host = format!("unix://{}", self.socket().display());
        run("docker", &[&["--host", &host], arguments].concat())
    }

    /// The body of an answer with status 200.
    fn get(&self, path: &str) -> Option<String> {
        let mut stream = UnixStream::connect(self.socket()).ok()?;
        stream.set_read_timeout(Some(ANSWER_MAX)).ok()?;
        let request = format!("GET {path} HTTP/1.0\r\nHost: docker\r\n\r\n");
        stream.write_all(request.as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        head.split(' ').nth(1).filter(|status| *status == "200").map(|_| body.to_owned())
    }

    /// Ids of containers that run; none if the engine does not answer.
    pub(super) fn running(&self) -> Vec<String> {
        let list = self.get("/containers/json").unwrap_or_default();
        list.split("\"Id\":\"").skip(1).filter_map(|rest| rest.split('"').next().map(str::to_owned)).collect()
    }

    /// Pulls the cable at the switch, or puts it back.
    pub(super) fn set_link(&self, is_up: bool) -> Result<(), String> {
        let state = if is_up { "up" } else { "down" };
        ip(&format!("-n {} link set port{} {state}", self.hub, self.number))
    }

    /// SIGKILL to dockerd and its containerd, at once.
    pub(super) fn kill(&mut self) -> Result<(), String> {
        let containerd = std::fs::read_to_string(self.directory.join("exec/containerd/containerd.pid"));
        let containerd = containerd.map_err(|error| format!("containerd's process id: {error}"))?;
        run("kill", &["-KILL", &self.child.id().to_string(), containerd.trim()])?;
        self.child.wait().map(drop).map_err(|error| format!("dockerd: {error}"))
    }

    pub(super) fn restart(&mut self) -> Result<(), String> {
        for stale in ["pid", "sock", "exec/containerd/containerd.pid"] {
            let _gone = std::fs::remove_file(self.directory.join(stale));
        }
        self.child = dockerd(&self.namespace, &self.directory)?;
        self.wait_until_it_answers()
    }

    /// SIGKILL to the first process of a container.
    pub(super) fn kill_container(&self, id: &str) -> Result<(), String> {
        let process = self.docker(&["inspect", "--format", "{{.State.Pid}}", id])?;
        run("kill", &["-KILL", process.trim()]).map(drop)
    }
}

fn dockerd(namespace: &str, directory: &Path) -> Result<Child, String> {
    let at = |name: &str| directory.join(name);
    let log = File::options().create(true).append(true).open(at("log")).map_err(|error| format!("a log: {error}"))?;
    let also = log.try_clone().map_err(|error| format!("a log: {error}"))?;
    // nsenter becomes dockerd: its process id is the engine's.
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/run/netns/{namespace}")).arg("dockerd");
    command.arg("--data-root").arg(at("data")).arg("--exec-root").arg(at("exec")).arg("--pidfile").arg(at("pid"));
    command.arg("--host").arg(format!("unix://{}", at("sock").display())).args(["--bridge", "none"]);
    command.stdin(Stdio::null()).stdout(log).stderr(also).spawn().map_err(|error| format!("dockerd: {error}"))
}
