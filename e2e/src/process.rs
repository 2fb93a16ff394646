//! Child processes: started with a log file each, ended by their own ids, never left behind.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context as _;
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, ChildStdin, Command};

/// A process ends within this time of SIGTERM, or is killed.
const GRACE: Duration = Duration::from_secs(5);

/// A running child.
#[derive(Debug)]
pub struct Process {
    pub name: String,
    child: Child,
    log: PathBuf,
}

/// How a child is started.
#[derive(Debug)]
pub struct Start<'a> {
    name: &'a str,
    program: &'a Path,
    arguments: &'a [String],
    directory: &'a Path,
    /// Its standard input is written by this program.
    pub is_piped: bool,
    /// Network namespace, as `ip netns` names it.
    pub namespace: Option<&'a str>,
    /// A library that shifts the wall clock, and the file that says by how much.
    pub wall_clock: Option<(&'a Path, PathBuf)>,
}

impl<'a> Start<'a> {
    pub fn new(name: &'a str, program: &'a Path, arguments: &'a [String], directory: &'a Path) -> Self {
        Self { name, program, arguments, directory, is_piped: false, namespace: None, wall_clock: None }
    }

    /// Everything that it prints goes to `<directory>/<name>.log`. It dies with this process.
    pub fn run(self) -> anyhow::Result<Process> {
        let log = self.directory.join(format!("{}.log", self.name));
        let file = File::options().create(true).append(true).open(&log).with_context(|| log.display().to_string())?;
        let mut command = match self.namespace {
            // Not `ip netns exec`, which hides the control groups; nsenter becomes the program, so its id is the child's.
            Some(namespace) => {
                let mut command = Command::new("nsenter");
                command.arg(format!("--net=/run/netns/{namespace}")).arg(self.program);
                command
            }
            None => Command::new(self.program),
        };
        if let Some((library, file)) = &self.wall_clock {
            command.env("LD_PRELOAD", library).env("FAKETIME_TIMESTAMP_FILE", file).env("FAKETIME_NO_CACHE", "1");
            command.env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        }
        let input = if self.is_piped { Stdio::piped() } else { Stdio::null() };
        command.args(self.arguments).stdin(input).stdout(file.try_clone()?).stderr(file);
        // A process group of its own: Ctrl-C on the terminal reaches the demo, which ends the others in order.
        command.process_group(0).kill_on_drop(true);
        let child = command.spawn().with_context(|| format!("{} cannot be started", self.program.display()))?;
        Ok(Process { name: self.name.to_owned(), child, log })
    }
}

impl Process {
    pub fn take_input(&mut self) -> Option<ChildStdin> {
        self.child.stdin.take()
    }

    pub fn id(&self) -> Option<u32> {
        self.child.id()
    }

    /// `Err` with the end of its log if it has ended.
    pub fn check(&mut self) -> anyhow::Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => anyhow::bail!("{} ended: {status}\n{}", self.name, self.log_end()),
        }
    }

    fn log_end(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }

    /// Sends a signal; it may have ended already.
    pub fn signal(&self, signal: Signal) {
        if let Some(pid) = self.child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw) {
            let _ended = kill_process(pid, signal);
        }
    }

    /// SIGKILL, and waits until it is gone.
    pub async fn kill(mut self) -> anyhow::Result<()> {
        self.child.start_kill()?;
        self.child.wait().await?;
        Ok(())
    }

    /// SIGTERM, and SIGKILL if it does not end in time.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        self.signal(Signal::TERM);
        if tokio::time::timeout(GRACE, self.child.wait()).await.is_err() {
            return self.kill().await;
        }
        Ok(())
    }

    /// [`resident_kb`] of this process.
    pub fn memory_kb(&self) -> Option<(u64, u64)> {
        resident_kb(self.child.id()?)
    }
}

/// Resident memory now and at its highest, in kilobytes (`proc_pid_status(5)`).
pub fn resident_kb(pid: u32) -> Option<(u64, u64)> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let field =
        |name: &str| status.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse::<u64>().ok();
    Some((field("VmRSS:")?, field("VmHWM:")?))
}

/// Whether a process answers there, and well.
pub async fn is_answering(http: &reqwest::Client, url: &str) -> bool {
    http.get(url).send().await.is_ok_and(|answer| answer.status().is_success())
}
