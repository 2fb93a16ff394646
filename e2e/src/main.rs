//! The demo and the takeover benchmark: real processes, real containers, real datagrams, judged by the sensors' own records.

mod address;
mod alone;
mod containers;
mod cycle;
mod faults;
mod judge;
mod load;
mod observe;
mod poll;
mod process;
mod report;
mod wiped;
mod world;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use edge_node::timeline::Event;
use tokio::signal::unix::{SignalKind, signal};

use cycle::{Measured, Served};
use judge::Marks;
use observe::Observer;
use report::Outcome;
use world::{Settings, World};

#[derive(Debug, Parser)]
#[command(
    name = "antirio-demo",
    version,
    about = "Two owners insure one another's edge; one is killed, the other serves its sensors"
)]
struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Args)]
struct Common {
    /// Where the programs `antirio` and `antirio-radio` are.
    #[arg(long, global = true, default_value = "target/release")]
    programs: PathBuf,
    /// Image tar of the LoRa device service.
    #[arg(long, global = true, default_value = "target/lora-device-service.tar")]
    image: PathBuf,
    /// Container engine of both edges.
    #[arg(long, global = true, default_value = "auto", value_parser = ["embedded", "docker", "auto"])]
    engine: String,
    /// Socket of the Docker engine, if not the usual one.
    #[arg(long, global = true)]
    docker_socket: Option<PathBuf>,
    #[arg(long, global = true, default_value_t = 200)]
    motes: u32,
    /// Uplinks per second of all motes together.
    #[arg(long, global = true, default_value = "20")]
    rate: String,
    /// Share of confirmed uplinks.
    #[arg(long, global = true, default_value = "0.05")]
    confirmed: String,
    /// Independent loss of every radio link.
    #[arg(long, global = true, default_value = "0.05")]
    loss: String,
    /// Share of motes that join over the air; the others are personalised.
    #[arg(long, global = true, default_value = "0.05")]
    otaa: String,
    /// Seconds after which such a mote is switched off and on, and joins anew; 0: never.
    #[arg(long, global = true, default_value_t = 20)]
    rejoin: u32,
    #[arg(long, global = true, default_value_t = 1)]
    seed: u64,
    /// Lease length in milliseconds.
    #[arg(long, global = true, default_value_t = 1_000)]
    ttl_ms: u64,
    /// Write the result as JSON to this file.
    #[arg(long, global = true)]
    json: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The whole story once, with a live timeline.
    Demo {
        /// Leave everything running afterwards and say what to try.
        #[arg(long)]
        keep: bool,
    },
    /// Kill and return, again and again; the distribution of the takeover.
    Takeover {
        #[arg(long, default_value_t = 30)]
        runs: u32,
    },
    /// Real faults, one after another, each process in a network namespace of its own; needs root.
    Faults(faults::Arguments),
    /// The bridge alone, killed again and again: every reading reaches the broker; needs Mosquitto.
    Bridge(alone::Arguments),
    /// LoRa under load over UDP: throughput, latency, how early answers are at their gateway.
    Load(load::Arguments),
    /// The bridge's server alone, for the load.
    #[command(hide = true)]
    Serve(load::Serve),
}

fn main() -> ExitCode {
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        eprintln!("a cryptography provider was installed before");
    }
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("antirio-demo: {error}");
            return ExitCode::FAILURE;
        }
    };
    let code = runtime.block_on(run(cli));
    runtime.shutdown_background();
    match code {
        Ok(code) => code,
        Err(error) => {
            eprintln!("antirio-demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the command in a directory of its own; ends all processes whatever happens, also on Ctrl-C.
async fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let activations = match &cli.command {
        Command::Demo { .. } => 2,
        Command::Takeover { runs } => *runs + 1,
        Command::Faults(arguments) => {
            check_programs(&cli.common)?;
            return Box::pin(faults::run(&cli.common, arguments)).await;
        }
        Command::Bridge(arguments) => {
            check_programs(&cli.common)?;
            return Box::pin(alone::run(&cli.common, arguments)).await;
        }
        Command::Load(arguments) => {
            check_machine(&cli.common)?;
            return Box::pin(load::run(&cli.common, arguments)).await;
        }
        Command::Serve(arguments) => return Box::pin(load::serve(arguments)).await,
    };
    check_machine(&cli.common)?;
    let directory = std::env::temp_dir().join(format!("antirio-{}", std::process::id()));
    std::fs::create_dir_all(&directory)?;
    let settings = settings(&cli.common, activations)?;
    let mut world = World::prepare(settings, &directory, address::loopback()?, None)?;
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let ran = tokio::select! {
        biased;
        _ = terminate.recv() => Err(anyhow::anyhow!("told to end")),
        _ = interrupt.recv() => Err(anyhow::anyhow!("interrupted")),
        ran = command(&cli, &mut world) => ran,
    };
    if let (Ok(_), Command::Demo { keep: true }) = (&ran, &cli.command) {
        say_what_to_try(&world);
        tokio::select! {
            biased;
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    }
    world.stop().await;
    match &ran {
        Ok(code) if *code == ExitCode::SUCCESS => std::fs::remove_dir_all(&directory)?,
        Ok(_) | Err(_) => eprintln!("logs and ledgers are left in {}", directory.display()),
    }
    ran
}

fn settings(common: &Common, activations: u32) -> anyhow::Result<Settings> {
    Ok(Settings {
        programs: absolute(&common.programs)?,
        image: absolute(&common.image)?,
        engine: common.engine.clone(),
        docker_socket: common.docker_socket.clone(),
        motes: common.motes,
        rate: common.rate.clone(),
        confirmed: common.confirmed.clone(),
        loss: common.loss.clone(),
        otaa: common.otaa.clone(),
        rejoin: common.rejoin,
        seed: common.seed,
        ttl_ms: common.ttl_ms,
        quiet_ms: 2_000,
        activations,
        gateways: vec![(world::RIO_GATEWAY, "rio"), (world::PATRAS_GATEWAY, "patras")],
        radio: Vec::new(),
        rx2_sf: 12,
    })
}

fn absolute(path: &Path) -> anyhow::Result<PathBuf> {
    std::path::absolute(path).with_context(|| path.display().to_string())
}

/// Says what is missing before anything is started.
fn check_machine(common: &Common) -> anyhow::Result<()> {
    check_programs(common)?;
    let needs_root = common.engine != "docker";
    if needs_root && !rustix::process::geteuid().is_root() {
        anyhow::bail!(
            "the embedded container engine needs root (namespaces, cgroups, overlay mounts).\n\
             Run this as root, or give --engine docker if a Docker engine answers; `antirio doctor` says more."
        );
    }
    Ok(())
}

fn check_programs(common: &Common) -> anyhow::Result<()> {
    for program in ["antirio", "antirio-radio"] {
        let path = common.programs.join(program);
        anyhow::ensure!(path.exists(), "{} is missing: build it first, or use `cargo xtask demo`", path.display());
    }
    anyhow::ensure!(common.image.exists(), "{} is missing: use `cargo xtask demo`", common.image.display());
    Ok(())
}

async fn command(cli: &Cli, world: &mut World) -> anyhow::Result<ExitCode> {
    match &cli.command {
        Command::Demo { .. } => demo(cli, world).await,
        Command::Takeover { runs } => takeover(cli, world, *runs).await,
        // They make their own worlds, before there is one.
        Command::Faults(_) | Command::Bridge(_) | Command::Load(_) | Command::Serve(_) => anyhow::bail!("not in this world"),
    }
}

/// Up to the point where the contract is armed and readings flow.
async fn insure(world: &mut World, observer: &mut Observer) -> anyhow::Result<()> {
    world.provision().await?;
    world.start_center().await?;
    observer.say(world.clock.wall(), "marketplace and arbitrator are open, both owners paid in 1,000 EUR");
    for name in ["cloud", "patras", "rio"] {
        world.start_node(name).await?;
        observer.follow(world, name);
    }
    observer
        .wait(world, "rio's own service", 0, Duration::from_secs(20), |s| {
            s.by == "rio" && matches!(s.entry.event, Event::ServiceStarted { .. })
        })
        .await?;
    let armed = |name: &'static str| move |s: &observe::Said| s.by == name && matches!(s.entry.event, Event::Armed { .. });
    observer.wait(world, "patras in custody", 0, Duration::from_secs(60), armed("patras")).await?;
    observer.wait(world, "rio in custody", 0, Duration::from_secs(60), armed("rio")).await?;
    let epoch = world.wait_holder("rio", Duration::from_secs(30)).await?;
    observer.catch_up();
    observer.say(world.clock.wall(), &format!("rio holds custody of its sensors in epoch {epoch}"));
    world.start_radio().await?;
    observer.say(world.clock.wall(), "the radio is on");
    Ok(())
}

async fn demo(cli: &Cli, world: &mut World) -> anyhow::Result<ExitCode> {
    let mut observer = Observer::new(world.clock.wall(), false);
    insure(world, &mut observer).await?;
    let accounts_before = world.accounts().await?;
    let sum_before = sum(&accounts_before);
    let rss_idle_mb = world.memory_mb();
    tokio::time::sleep(Duration::from_secs(6)).await;
    let (marks, measured) =
        cycle::run(world, &mut observer, Served { at_least: Duration::from_secs(6), until_join: true }).await?;
    tokio::time::sleep(Duration::from_secs(5)).await;
    observer.say(world.clock.wall(), "no new readings from here on; what is under way is answered");
    world.drain_radio(Duration::from_secs(20)).await?;
    settle_down(world).await?;
    // What is in force does not need it; and no next contract follows this one, so that the insurer has to forget everything.
    world.end("marketplace").await?;
    observer.say(world.clock.wall(), "the marketplace closes");
    cycle::maintain(world, &mut observer).await?;
    let settled = observer
        .wait(world, "the verdict", 0, Duration::from_secs(30), |s| matches!(s.entry.event, Event::Settled { .. }))
        .await?;
    settle_down(world).await?;
    observer
        .wait(world, "the end of the insurance at patras", 0, Duration::from_secs(30), |s| {
            s.by == "patras" && matches!(s.entry.event, Event::Wiped { .. })
        })
        .await?;
    let foreign_keys_left = world.foreign_keys_left("patras").await?;
    let rss_mb = world.memory_mb();
    let accounts_after = world.accounts().await?;
    world.quit_radio().await?;
    observer.catch_up();
    let audit = judge::judge(world, marks).await?;
    let outcome = outcome(&observer, audit, measured, &settled.entry.event);
    let outcome = Outcome {
        foreign_keys_left,
        ledger_balanced: sum_before == sum(&accounts_after),
        accounts_before,
        accounts_after,
        rss_mb,
        rss_idle_mb,
        ..outcome
    };
    outcome.print();
    if let Some(path) = &cli.common.json {
        std::fs::write(path, serde_json::to_vec_pretty(&outcome)?).with_context(|| path.display().to_string())?;
    }
    Ok(if outcome.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn sum(accounts: &std::collections::BTreeMap<contracts::ids::OwnerId, (u64, u64)>) -> u64 {
    accounts.values().map(|(available, reserved)| available + reserved).sum()
}

/// Waits until the cloud's store stands still: everything that was under way is in.
async fn settle_down(world: &mut World) -> anyhow::Result<()> {
    poll::until_still(async || {
        world.check_all()?;
        Ok(world.all_readings().await?.len())
    })
    .await
    .map(drop)
}

fn outcome(observer: &Observer, audit: motes::audit::Report, measured: Measured, settled: &Event) -> Outcome {
    let certificate = |s: &observe::Said| match &s.entry.event {
        Event::CustodyGained { epoch, certificate: Some(id), .. } => Some(format!("{}:{}", epoch, id.short())),
        _ => None,
    };
    let (contract, ended) = match settled {
        Event::Settled { contract, outcome, .. } => (Some(contract.short()), Some(outcome.clone())),
        _ => (None, None),
    };
    let mut violations: Vec<String> = audit.violations().iter().map(ToString::to_string).collect();
    if audit.handback_confirmed_frames_unanswered_though_heard_by_all > 0 {
        let count = audit.handback_confirmed_frames_unanswered_though_heard_by_all;
        violations.push(format!("{count} confirmed frames heard by both during hand-back were not answered"));
    }
    Outcome {
        frames_sent: audit.frames_sent,
        frames_heard: audit.frames_heard,
        frames_owed: audit.frames_owed,
        heard_by_a_alone_within_50ms_before_kill: audit.heard_by_a_alone_within_50ms_before_kill,
        heard_by_nobody_alive: audit.heard_by_nobody_alive,
        readings_owed: audit.readings_owed,
        readings_delivered: audit.readings_delivered,
        lost: audit.lost,
        duplicates: audit.duplicates,
        downlink_counters_reused: audit.downlink_counters_reused,
        confirmed_after_takeover: audit.confirmed_after_takeover,
        confirmed_acknowledged_in_window: audit.confirmed_acknowledged_in_window,
        takeover_ms: audit.takeover_ms.unwrap_or(measured.takeover_ms),
        takeover_parts: measured,
        first_live_answer_ms: audit.first_live_answer_ms,
        outage_seen_by_cloud_ms: audit.outage_seen_by_store_ms,
        max_delivery_delay_ms: audit.max_delivery_delay_ms,
        p99_delivery_delay_ms: audit.p99_delivery_delay_ms,
        handback_max_delay_ms: audit.handback_max_delay_ms,
        handback_confirmed_frames: audit.handback_confirmed_frames,
        handback_confirmed_frames_unanswered_though_heard_by_all: audit.handback_confirmed_frames_unanswered_though_heard_by_all,
        container_start_ms: measured.start_ms,
        rss_mb: std::collections::BTreeMap::new(),
        rss_idle_mb: std::collections::BTreeMap::new(),
        foreign_keys_left: Vec::new(),
        ledger_balanced: false,
        accounts_before: std::collections::BTreeMap::new(),
        accounts_after: std::collections::BTreeMap::new(),
        certificates: observer.seen.iter().filter_map(certificate).collect(),
        contract,
        outcome: ended,
        violations,
        audit,
    }
}

/// What is found in sorted values: `{p50, p99, max}`.
fn distribution(values: &mut [f64]) -> serde_json::Value {
    values.sort_by(f64::total_cmp);
    let at = |percent: usize| values.get((values.len() * percent).div_ceil(100).max(1) - 1).copied();
    serde_json::json!({"p50": at(50), "p99": at(99), "max": values.last()})
}

async fn takeover(cli: &Cli, world: &mut World, runs: u32) -> anyhow::Result<ExitCode> {
    let mut observer = Observer::new(world.clock.wall(), true);
    insure(world, &mut observer).await?;
    println!("insured; {runs} runs of kill, takeover, return, hand-back");
    let mut cycles: Vec<(Marks, Measured)> = Vec::new();
    for run in 1..=runs {
        tokio::time::sleep(Duration::from_secs(2)).await;
        let (marks, measured) =
            cycle::run(world, &mut observer, Served { at_least: Duration::from_secs(2), until_join: false }).await?;
        println!("run {run:>3}: {measured:?}");
        cycles.push((marks, measured));
    }
    world.drain_radio(Duration::from_secs(60)).await?;
    settle_down(world).await?;
    world.quit_radio().await?;
    let mut audits = Vec::new();
    for (marks, _) in &cycles {
        audits.push(judge::judge(world, *marks).await?);
    }
    let whole = audits.first().context("at least one run")?;
    let of = |value: fn(&Measured) -> f64| distribution(&mut cycles.iter().map(|(_, m)| value(m)).collect::<Vec<_>>());
    #[expect(clippy::cast_precision_loss, reason = "milliseconds")]
    let found = serde_json::json!({
        "runs": runs,
        "ttl_ms": world.settings.ttl_ms,
        "engine": world.settings.engine,
        "takeover_ms": distribution(&mut audits.iter().filter_map(|a| a.takeover_ms).map(|ms| ms as f64).collect::<Vec<_>>()),
        "lease_ms": of(|m| m.lease_ms as f64),
        "ask_and_vote_ms": of(|m| m.ask_and_vote_ms as f64),
        "start_ms": of(|m| m.start_ms),
        "replay_ms": of(|m| m.replay_ms as f64),
        "replayed_frames": of(|m| m.replayed as f64),
        "handback_max_delay_ms": audits.iter().filter_map(|a| a.handback_max_delay_ms).max(),
        "handback_confirmed_frames_unanswered_though_heard_by_all": audits.iter().map(|a| a.handback_confirmed_frames_unanswered_though_heard_by_all).max(),
        "max_delivery_delay_ms": whole.max_delivery_delay_ms,
        "frames_sent": whole.frames_sent,
        "frames_owed": whole.frames_owed,
        "lost": whole.lost,
        "duplicates": whole.duplicates,
        "downlink_counters_reused": whole.downlink_counters_reused,
        "confirmed_sent": whole.confirmed_sent,
        "confirmed_acknowledged": whole.confirmed_acknowledged,
        "violations": whole.violations().iter().map(ToString::to_string).collect::<Vec<_>>(),
    });
    println!("{}", serde_json::to_string_pretty(&found)?);
    if let Some(path) = &cli.common.json {
        std::fs::write(path, serde_json::to_vec_pretty(&found)?).with_context(|| path.display().to_string())?;
    }
    Ok(if whole.lost + whole.duplicates + whole.downlink_counters_reused == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn say_what_to_try(world: &World) {
    println!("\nEverything is still running; Ctrl-C ends it. To try:");
    for name in ["rio", "patras", "cloud"] {
        println!("  curl http://{}/v1/status        # {name}", world.places[name].api);
    }
    println!("  curl http://{}/v1/readings?limit=3", world.places["cloud"].api);
    println!("  antirio watch --api http://{}", world.places["patras"].api);
    println!("  logs, ledgers, databases: {}", world.directory.display());
    if let Some(id) = world.process_id("rio") {
        println!("  kill -9 {id}                                    # rio once more");
    }
}
