//! The bridge alone: motes and radio, `antirio bridge`, the LoRa device service beside it, a broker and a subscriber, each a real process.
//! The bridge is killed with SIGKILL again and again; the motes' own ledgers judge what the subscriber got.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use edge_node::api::DeviceStatus;
use motes::audit::{Alive, Delivered, Input, Limits, NodeLife, Report, Timeline, audit, decicelsius};
use motes::ledger::Ledgers;
use motes::seed::Sequence;
use serde_json::json;
use tokio::io::AsyncWriteExt as _;
use tokio::process::ChildStdin;

use crate::address::{free_tcp, free_udp};
use crate::process::{self, Process, Start};
use crate::world::{PATRAS_GATEWAY, RIO_GATEWAY, configuration};
use crate::{Common, absolute, poll};

/// How long a process may take to answer after it was started, and readings to arrive after the radio is silent.
const PATIENCE: Duration = Duration::from_secs(30);
/// The service tries again with growing pauses while the bridge is away.
const DELIVERY_DELAY_MS_MAX: u64 = 30_000;
/// Frames that ended on air so short before a kill are not owed: a disk that others keep busy takes its time. What was served all the same must
/// have been delivered ([`Stage::served`]).
const LOSS_MARGIN_MS: u64 = 250;
const APPLICATION: &str = "application";

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The program of the LoRa device service.
    #[arg(long)]
    service: PathBuf,
    /// How often the bridge is killed.
    #[arg(long, default_value_t = 5)]
    kills: u32,
}

/// Everything that runs; dropped, it ends.
struct Stage<'a> {
    common: &'a Common,
    arguments: &'a Arguments,
    directory: PathBuf,
    api: std::net::SocketAddr,
    gateways: std::net::SocketAddr,
    broker: std::net::SocketAddr,
    http: reqwest::Client,
    processes: BTreeMap<&'static str, Process>,
    radio: Option<ChildStdin>,
    lives: Vec<Alive>,
}

/// Runs it in a directory of its own, which stays if something was wrong.
pub async fn run(common: &Common, arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let directory = std::env::temp_dir().join(format!("antirio-bridge-{}", std::process::id()));
    std::fs::create_dir_all(&directory)?;
    let mut stage = Stage {
        common,
        arguments,
        api: free_tcp()?,
        gateways: free_udp()?,
        broker: free_tcp()?,
        http: reqwest::Client::builder().tls_certs_only([]).timeout(Duration::from_secs(10)).build()?,
        processes: BTreeMap::new(),
        radio: None,
        lives: Vec::new(),
        directory: directory.clone(),
    };
    let ran = stage.play().await;
    for (_, process) in std::mem::take(&mut stage.processes) {
        process.stop().await?;
    }
    match &ran {
        Ok(code) if *code == ExitCode::SUCCESS => std::fs::remove_dir_all(&directory)?,
        Ok(_) | Err(_) => eprintln!("logs and ledgers are left in {}", directory.display()),
    }
    ran
}

fn now_ms() -> u64 {
    kit::clock::Clock::system().wall().0
}

/// The kills are at random moments that the seed decides.
fn random_ms(dice: &mut Sequence, from: u64, to: u64) -> Duration {
    Duration::from_millis(from + dice.below(to - from))
}

impl Stage<'_> {
    async fn play(&mut self) -> anyhow::Result<ExitCode> {
        let mut dice = Sequence::new(self.common.seed);
        println!("seed {}, {} motes, {} kills", self.common.seed, self.common.motes, self.arguments.kills);
        self.provision().await?;
        self.start_broker().await?;
        self.start_bridge().await?;
        let socket = self.directory.join("bridge/service/node.sock").display().to_string();
        let service = absolute(&self.arguments.service)?;
        self.start("service", &service, &["--direct".to_owned(), socket])?;
        self.start_radio()?;
        for _ in 0..self.arguments.kills {
            tokio::time::sleep(random_ms(&mut dice, 2_000, 4_000)).await;
            self.kill_bridge().await?;
            tokio::time::sleep(random_ms(&mut dice, 1, 600)).await;
            self.start_bridge().await?;
        }
        self.wait_served_again().await?;
        self.tell_radio("stop-sending").await?;
        self.tell_radio("drain 20000").await?;
        self.wait_says("radio", "\"drained\"").await?;
        self.tell_radio("quit").await?;
        self.wait_says("radio", "\"stopped\"").await?;
        self.conclude().await
    }

    /// Says what was found; the exit status is 1 if anything of it must not be.
    async fn conclude(&mut self) -> anyhow::Result<ExitCode> {
        let (report, again) = self.judge_once_all_is_in().await?;
        let mut violations: Vec<String> = report.violations().iter().map(ToString::to_string).collect();
        let delivered: BTreeSet<_> = self.delivered()?.0.into_iter().map(|row| (row.device.to_string(), row.f_cnt)).collect();
        let served = self.served().await?;
        let missing = served.iter().filter(|newest| !delivered.contains(newest)).count();
        if missing > 0 {
            violations.push(format!("the newest uplinks of {missing} devices were served and not delivered"));
        }
        let found = json!({
            "kills": self.arguments.kills,
            "frames_sent": report.frames_sent,
            "readings_owed": report.readings_owed,
            "lost": report.lost,
            "lost_readings": report.lost_readings,
            "doubled": report.duplicates,
            "devices_served": served.len(),
            "published_again_with_the_same_id": again,
            "downlink_counters_reused": report.downlink_counters_reused,
            "downlinks_on_air": report.downlinks_on_air,
            "confirmed_sent": report.confirmed_sent,
            "confirmed_acknowledged": report.confirmed_acknowledged,
            "joined": report.joined,
            "max_delivery_delay_ms": report.max_delivery_delay_ms,
            "p50_delivery_delay_ms": report.p50_delivery_delay_ms,
            "violations": violations,
        });
        println!("{}", serde_json::to_string_pretty(&found)?);
        if let Some(path) = &self.common.json {
            std::fs::write(path, serde_json::to_vec_pretty(&found)?).with_context(|| path.display().to_string())?;
        }
        anyhow::ensure!(report.readings_owed > 0 && report.downlinks_on_air > 0, "nothing was owed, or nothing was answered");
        Ok(if violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    fn start(&mut self, name: &'static str, program: &Path, arguments: &[String]) -> anyhow::Result<()> {
        let process = Start::new(name, program, arguments, &self.directory).run()?;
        self.processes.insert(name, process);
        Ok(())
    }

    fn check_all(&mut self) -> anyhow::Result<()> {
        self.processes.values_mut().try_for_each(Process::check)
    }

    async fn provision(&self) -> anyhow::Result<()> {
        let fleet = [
            format!("--seed={}", self.common.seed),
            format!("--motes={}", self.common.motes),
            format!("--otaa={}", self.common.otaa),
        ];
        let radio = absolute(&self.common.programs)?.join("antirio-radio");
        let mut configuration = configuration(&radio, &fleet, &self.directory).await?;
        configuration["chirpstack"] = json!({"broker": {"address": self.broker.to_string()}, "application_id": APPLICATION});
        std::fs::write(self.directory.join("devices.json"), configuration.to_string())?;
        Ok(())
    }

    /// Mosquitto, and a subscriber with a session of its own that writes a line per event: when it came, in seconds, and its JSON.
    async fn start_broker(&mut self) -> anyhow::Result<()> {
        let file = self.directory.join("mosquitto.conf");
        let listener = format!("listener {} {}\nallow_anonymous true\n", self.broker.port(), self.broker.ip());
        std::fs::write(&file, format!("{listener}persistence false\nmax_queued_messages 0\nmax_inflight_messages 0\n"))?;
        let mosquitto = ["/usr/sbin/mosquitto", "/usr/bin/mosquitto"].into_iter().find(|path| Path::new(path).exists());
        let mosquitto = Path::new(mosquitto.context("mosquitto is not installed")?);
        self.start("mosquitto", mosquitto, &["-c".to_owned(), file.display().to_string()])?;
        poll::until("mosquitto answers", PATIENCE, Duration::from_millis(20), async || {
            self.check_all()?;
            Ok(tokio::net::TcpStream::connect(self.broker).await.ok())
        })
        .await?;
        let (host, port) = (self.broker.ip().to_string(), self.broker.port().to_string());
        let topic = format!("application/{APPLICATION}/device/+/event/up");
        let subscriber =
            ["mosquitto_sub", "-h", &host, "-p", &port, "-i", "judge", "-c", "-q", "1", "-t", &topic, "-F", "%U %p", "-d"];
        // Line by line, though its output is a file.
        let arguments: Vec<String> = ["-oL"].into_iter().chain(subscriber).map(str::to_owned).collect();
        self.start("subscriber", Path::new("/usr/bin/stdbuf"), &arguments)?;
        self.wait_says("subscriber", "SUBACK").await
    }

    async fn start_bridge(&mut self) -> anyhow::Result<()> {
        let directory = self.directory.display();
        let config = format!(
            "state_directory = \"{directory}/bridge\"\nconfiguration = \"{directory}/devices.json\"\n\
             [lora]\nbind = \"{}\"\n[api]\nbind = \"{}\"\n",
            self.gateways, self.api
        );
        let file = self.directory.join("bridge.toml");
        std::fs::write(&file, config)?;
        let program = absolute(&self.common.programs)?.join("antirio");
        self.start("bridge", &program, &["bridge".to_owned(), "--config".to_owned(), file.display().to_string()])?;
        let url = format!("http://{}/readyz", self.api);
        poll::until(&format!("the bridge answers at {url}"), PATIENCE, Duration::from_millis(10), async || {
            self.check_all()?;
            Ok(process::is_answering(&self.http, &url).await.then_some(()))
        })
        .await?;
        self.lives.push(Alive { from_ms: now_ms(), to_ms: None });
        Ok(())
    }

    async fn kill_bridge(&mut self) -> anyhow::Result<()> {
        self.check_all()?;
        let bridge = self.processes.remove("bridge").context("the bridge runs")?;
        if let Some(life) = self.lives.last_mut() {
            life.to_ms = Some(now_ms());
        }
        bridge.kill().await
    }

    fn start_radio(&mut self) -> anyhow::Result<()> {
        let common = self.common;
        let mut arguments = vec![
            format!("--seed={}", common.seed),
            format!("--motes={}", common.motes),
            format!("--rate={}", common.rate),
            format!("--confirmed={}", common.confirmed),
            format!("--loss={}", common.loss),
            format!("--otaa={}", common.otaa),
            format!("--rejoin={}", common.rejoin),
            format!("--ledgers={}", self.directory.join("ledgers").display()),
            "--quit-on-eof".to_owned(),
        ];
        arguments.extend([RIO_GATEWAY, PATRAS_GATEWAY].map(|eui| format!("--gateway={eui}@{}", self.gateways)));
        let program = absolute(&common.programs)?.join("antirio-radio");
        let mut start = Start::new("radio", &program, &arguments, &self.directory);
        start.is_piped = true;
        let mut radio = start.run()?;
        self.radio = radio.take_input();
        self.processes.insert("radio", radio);
        Ok(())
    }

    async fn tell_radio(&mut self, command: &str) -> anyhow::Result<()> {
        let input = self.radio.as_mut().context("the radio runs")?;
        input.write_all(format!("{command}\n").as_bytes()).await?;
        Ok(input.flush().await?)
    }

    async fn wait_says(&self, name: &str, what: &str) -> anyhow::Result<()> {
        poll::until_said(&self.directory.join(format!("{name}.log")), what, PATIENCE).await
    }

    /// Until the bridge that was started last has heard motes and answered one: its counts begin at 0.
    async fn wait_served_again(&mut self) -> anyhow::Result<()> {
        let url = format!("http://{}/v1/bridge", self.api);
        poll::until("the bridge serves again", PATIENCE, Duration::from_millis(50), async || {
            self.check_all()?;
            let stats: serde_json::Value = self.http.get(&url).send().await?.error_for_status()?.json().await?;
            let count = |name: &str| stats[name].as_u64().unwrap_or(0);
            Ok((count("uplinks_live") > 0 && count("answers_rx1") + count("answers_rx2") > 0).then_some(()))
        })
        .await
    }

    /// The report, once nothing owed is missing any more or patience is over, and how many events were published again.
    async fn judge_once_all_is_in(&mut self) -> anyhow::Result<(Report, u64)> {
        let begun = Instant::now();
        loop {
            let (report, again) = self.judge()?;
            let is_all_in = report.lost == 0 && self.count_waiting().await? == 0;
            if is_all_in || begun.elapsed() > PATIENCE {
                return Ok((report, again));
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// The newest uplink of each device that the bridge counts as served.
    async fn served(&self) -> anyhow::Result<Vec<(String, u32)>> {
        let answer = self.http.get(format!("http://{}/v1/bridge/devices", self.api)).send().await?.error_for_status()?;
        let devices: Vec<DeviceStatus> = answer.json().await?;
        Ok(devices.into_iter().filter_map(|device| Some((device.device, device.f_cnt_up_next.checked_sub(1)?))).collect())
    }

    /// Uplinks and readings that the bridge has not settled.
    async fn count_waiting(&self) -> anyhow::Result<u64> {
        let text = self.http.get(format!("http://{}/metrics", self.api)).send().await?.text().await?;
        let is_count = |line: &&str| line.contains("node_uplinks_undecoded{") || line.contains("node_readings_unsettled{");
        let waiting = text.lines().filter(is_count);
        waiting.map(|line| Ok(line.rsplit(' ').next().unwrap_or_default().parse::<u64>()?)).sum()
    }

    fn judge(&self) -> anyhow::Result<(Report, u64)> {
        let (delivered, again) = self.delivered()?;
        let life = |eui: &str| -> anyhow::Result<NodeLife> {
            let gateway = eui.parse().map_err(|_| anyhow::anyhow!("gateway EUI"))?;
            Ok(NodeLife { node: "bridge".to_owned(), gateway, alive: self.lives.clone() })
        };
        let ledgers = Ledgers::read(&self.directory.join("ledgers"))?;
        let input = Input {
            ledgers: &ledgers,
            nodes: &[life(RIO_GATEWAY)?, life(PATRAS_GATEWAY)?],
            delivered: &delivered,
            timeline: &Timeline::default(),
            limits: Limits { delivery_delay_ms_max: DELIVERY_DELAY_MS_MAX, loss_margin_ms: LOSS_MARGIN_MS, ..Limits::default() },
        };
        Ok((audit(&input), again))
    }

    /// What the subscriber got: each event once, by its id, and how many came again (at least once is promised).
    fn delivered(&self) -> anyhow::Result<(Vec<Delivered>, u64)> {
        let text = std::fs::read_to_string(self.directory.join("subscriber.log"))?;
        let (mut events, mut again) = (BTreeMap::new(), 0);
        for line in text.lines() {
            let Some((seconds, event)) = line.split_once(' ').filter(|(_, rest)| rest.starts_with('{')) else { continue };
            // The last line may still be on its way into the file.
            let Ok(event) = serde_json::from_str::<serde_json::Value>(event) else { continue };
            let (whole, fraction) = seconds.split_once('.').unwrap_or((seconds, "0"));
            let received_at_ms = whole.parse::<u64>()? * 1_000 + fraction.get(..3).unwrap_or("0").parse::<u64>()?;
            let delivered = delivered(&event, received_at_ms)?;
            match events.entry(delivered.event_id.clone()) {
                std::collections::btree_map::Entry::Vacant(free) => drop(free.insert(delivered)),
                std::collections::btree_map::Entry::Occupied(first) => {
                    let first: &Delivered = first.get();
                    let is_same =
                        (first.device, first.f_cnt, first.reading) == (delivered.device, delivered.f_cnt, delivered.reading);
                    anyhow::ensure!(is_same, "one id for two events: {event}");
                    again += 1;
                }
            }
        }
        Ok((events.into_values().collect(), again))
    }
}

fn delivered(event: &serde_json::Value, received_at_ms: u64) -> anyhow::Result<Delivered> {
    let text = |value: &serde_json::Value| value.as_str().map(str::to_owned).with_context(|| format!("not as expected: {event}"));
    let number = |value: &serde_json::Value| value.as_u64().and_then(|number| u32::try_from(number).ok());
    Ok(Delivered {
        device: text(&event["deviceInfo"]["devEui"])?.parse().map_err(|_| anyhow::anyhow!("devEui in {event}"))?,
        session: text(&event["devAddr"])?,
        f_cnt: number(&event["fCnt"]).with_context(|| format!("fCnt in {event}"))?,
        reading: number(&event["object"]["generic_1"]),
        decicelsius: decicelsius(&event["object"]["temperature_2"]),
        heard_at_ms: received_at_ms,
        received_at_ms,
        delivered_by: "bridge".to_owned(),
        event_id: text(&event["deduplicationId"])?,
    })
}
