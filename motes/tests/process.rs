//! The radio as a process: commands in, lines of JSON out.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};

use motes::fleet::{Fleet, Provisioning};
use motes::ledger::{GatewayRecord, Ledgers};
use serde_json::Value;

const GATEWAY: &str = "aa555a000000000a";

struct Radio {
    child: Child,
    input: ChildStdin,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Radio {
    /// Nobody listens at the gateway's server: a gateway must not mind.
    fn start(ledgers: &Path, flags: &[&str]) -> Self {
        let gateway = format!("{GATEWAY}@127.0.0.1:9");
        let mut child = Command::new(env!("CARGO_BIN_EXE_antirio-radio"))
            .args(["--motes", "10", "--rate", "100", "--confirmed", "0", "--no-duty-cycle", "--gateway", &gateway, "--ledgers"])
            .arg(ledgers)
            .args(flags)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("started");
        let input = child.stdin.take().expect("a pipe");
        let lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        Self { child, input, lines }
    }

    fn say(&mut self, line: &str) {
        writeln!(self.input, "{line}").expect("written");
    }

    /// Skips status lines of the clock until the wanted event.
    fn hear(&mut self, event: &str) -> Value {
        for line in &mut self.lines {
            let line: Value = serde_json::from_str(&line.expect("a line")).expect("JSON");
            if line["event"] == event {
                return line;
            }
        }
        panic!("ended without {event:?}");
    }

    fn end(mut self) {
        let stopped = self.hear("stopped");
        assert!(stopped["status"]["frames_sent"].as_u64().is_some());
        assert!(self.child.wait().expect("ended").success());
    }
}

#[test]
fn commands_are_carried_out_and_answered() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut radio = Radio::start(directory.path(), &["--seed", "3"]);
    assert_eq!(radio.hear("started")["seed"], 3);
    radio.say("status");
    assert!(radio.hear("status")["gateways"][GATEWAY]["uplinks_pushed"].is_u64());
    radio.say(&format!("block {GATEWAY}"));
    assert_eq!(radio.hear("server")["server"], Value::Null);
    radio.say(&format!("server {GATEWAY} 127.0.0.1:10"));
    assert_eq!(radio.hear("server")["server"], "127.0.0.1:10");
    radio.say("server 0000000000000001 127.0.0.1:10");
    assert_eq!(radio.hear("refused")["reason"], "no gateway 0000000000000001");
    radio.say("explode");
    assert_eq!(radio.hear("refused")["reason"], "unknown command: explode");
    radio.say("stop-sending");
    radio.hear("stopped_sending");
    radio.say("drain 10000");
    assert_eq!(radio.hear("drained")["complete"], true);
    radio.say("quit");
    radio.end();
    let ledgers = Ledgers::read(directory.path()).expect("ledgers");
    assert!(matches!(ledgers.gateways.last(), Some(GatewayRecord::Totals { .. })));
}

#[test]
fn it_ends_with_its_input_its_duration_or_a_signal() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut orphan = Radio::start(&directory.path().join("orphan"), &["--quit-on-eof"]);
    orphan.hear("started");
    let Radio { child, input, lines } = orphan;
    drop(input);
    let output = lines.map(|line| line.expect("a line")).last().expect("a last line");
    assert!(output.contains("\"stopped\""), "{output}");
    assert!(child.wait_with_output().expect("ended").status.success());

    let timed = Radio::start(&directory.path().join("timed"), &["--duration", "1"]);
    timed.end();

    let mut signalled = Radio::start(&directory.path().join("signalled"), &[]);
    signalled.hear("status");
    let killed = Command::new("kill").args(["-TERM", &signalled.child.id().to_string()]).status().expect("kill runs");
    assert!(killed.success());
    signalled.end();
}

#[test]
fn provisioning_is_written_and_bad_flags_are_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("fleet.json");
    let run = |flags: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_antirio-radio")).args(flags).stderr(Stdio::null()).status().expect("it runs").success()
    };
    let path = file.to_str().expect("text");
    assert!(run(&["--seed", "9", "--motes", "3", "--rx2-sf", "9", "--provisioning", path, "--provisioning-only"]));
    let list: Provisioning = serde_json::from_slice(&std::fs::read(&file).expect("a file")).expect("a list");
    assert_eq!(list.devices, Fleet::new(9, 3).expect("a fleet").devices());
    assert_eq!(list.rx2_data_rate.to_string(), "SF9BW125");
    for flags in [&["--motes", "3"][..], &["--loss", "2"], &["--rate", "x"], &["--gateway", "nonsense"], &["--provisioning-only"]]
    {
        assert!(!run(flags), "{flags:?}");
    }
}
