//! Real faults on real processes: killed, stopped, cut off, out of disk, out of power, at random moments; judged after each.
//!
//! - [`kind`] — the faults as data
//! - [`plan`] — which strike when, from one seed
//! - [`network`], [`disk`] — what is broken
//! - [`stage`] — carries out the steps
//! - [`verdict`] — what must be true afterwards
//! - [`tally`] — the results

mod disk;
mod kind;
mod network;
mod plan;
mod stage;
mod tally;
mod verdict;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};

use contracts::time::{Millis, WallTime};
use disk::Disk;
use kind::{Act, Expect, Kind, Script, Who};
use motes::audit::answers::Answers;
use network::Network;
use plan::{Dice, MESSAGES, Moment, Planned};
use stage::Stage;
use tally::{Record, Totals};
use verdict::Verdict;

use crate::Common;
use crate::world::WallClocks;

/// Everything owed is in the cloud's store within this time once all is healed.
const SETTLE_MAX: Duration = Duration::from_secs(30);
/// Takeovers that the contract allows before it is settled: more than there will be.
const ACTIVATIONS: u32 = 100_000;
/// Where Debian's libfaketime is.
const WALL_CLOCK_LIBRARY: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Faults in all.
    #[arg(long, default_value_t = 200)]
    count: usize,
    /// Only these kinds (repeat for more).
    #[arg(long, value_enum)]
    only: Vec<Kind>,
    /// The first fault of the plan to carry out: replays a part of a run.
    #[arg(long, default_value_t = 1)]
    from: usize,
    /// Share of readings with a MAC command that wants an answer.
    #[arg(long, default_value = "0")]
    requests: String,
    /// Spreading factor of the motes' second window: 12 in EU868, 9 where the network says so, as The Things Network does.
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u8).range(7..=12))]
    rx2_sf: u8,
    /// A frame that an edge alone heard so long before its death, or less, is not owed: it may not be on its disk yet.
    #[arg(long, default_value_t = 50)]
    loss_margin_ms: u64,
    /// Judge every transmission of a confirmed uplink too: answered in a window of its own, or why not. For kinds that only kill.
    #[arg(long)]
    answers: bool,
    /// Faults that a deployment serves before a new one is set up: the judge reads all of its records after each fault.
    #[arg(long, default_value_t = 50)]
    per_deployment: usize,
}

/// Carries out the plan; the exit status is 1 if anything was not as it must be.
pub async fn run(common: &Common, arguments: &Arguments) -> anyhow::Result<ExitCode> {
    if !rustix::process::geteuid().is_root() {
        println!("SKIPPED: real faults need root (network namespaces, mounts)");
        return Ok(ExitCode::SUCCESS);
    }
    let network = match Network::create() {
        Ok(network) => network,
        Err(error) => {
            println!("SKIPPED: this machine cannot make network namespaces with links that break: {error:#}");
            return Ok(ExitCode::SUCCESS);
        }
    };
    let directory = std::env::temp_dir().join(format!("antirio-{}", std::process::id()));
    std::fs::create_dir_all(&directory)?;
    let mut run = Run::prepare(common, arguments, &network, directory.clone())?;
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let ran = tokio::select! {
        biased;
        _ = terminate.recv() => Err(anyhow::anyhow!("told to end")),
        _ = interrupt.recv() => Err(anyhow::anyhow!("interrupted")),
        ran = run.all() => ran,
    };
    if let Some(stage) = run.stage.take() {
        stage.stop().await;
    }
    let document = run.finish()?;
    if let Some(path) = &common.json {
        std::fs::write(path, serde_json::to_vec_pretty(&document)?).with_context(|| path.display().to_string())?;
    }
    ran?;
    let is_clean = document["violations"].as_u64() == Some(0) && run.records.len() + arguments.from > run.planned.len();
    if is_clean {
        std::fs::remove_dir_all(&directory)?;
    } else {
        eprintln!("logs and ledgers of failed deployments are left in {}", directory.display());
    }
    Ok(if is_clean { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

struct Run<'a> {
    common: &'a Common,
    arguments: &'a Arguments,
    network: &'a Network,
    directory: PathBuf,
    planned: Vec<Planned>,
    skipped: Vec<String>,
    has_disks: bool,
    clocks: Option<PathBuf>,
    stage: Option<Stage<'a>>,
    deployments: usize,
    sum_before: u64,
    records: Vec<Record>,
    totals: Vec<Totals>,
}

/// Whether this machine can mount a file as a disk.
fn check_disks(directory: &Path) -> anyhow::Result<()> {
    let disk = Disk::create(&directory.join("probe"))?;
    disk.cut_power()?;
    disk.restore_power()
}

impl<'a> Run<'a> {
    fn prepare(common: &'a Common, arguments: &'a Arguments, network: &'a Network, directory: PathBuf) -> anyhow::Result<Self> {
        let mut skipped = Vec::new();
        let disks = check_disks(&directory);
        let clocks = Some(PathBuf::from(WALL_CLOCK_LIBRARY)).filter(|library| library.exists());
        let mut kinds = plan::kinds(&arguments.only);
        if let Err(error) = &disks {
            skipped.push(format!("kinds with a disk of their own: {error:#}"));
            kinds.retain(|kind| !kind.needs_disk());
        }
        if clocks.is_none() {
            skipped.push(format!("steps of the wall clock: {WALL_CLOCK_LIBRARY} is not installed (apt-get install libfaketime)"));
            kinds.retain(|kind| !kind.needs_clock());
        }
        if common.engine == "docker" {
            skipped.push("killed containers: only the embedded engine's can be told from others".to_owned());
            kinds.retain(|kind| !kind.needs_embedded_engine());
        }
        for what in &skipped {
            println!("SKIPPED {what}");
        }
        anyhow::ensure!(!kinds.is_empty(), "no kind of fault is left");
        Ok(Self {
            common,
            arguments,
            network,
            planned: plan::plan(common.seed, arguments.count, &kinds, common.ttl_ms),
            skipped,
            has_disks: disks.is_ok(),
            clocks,
            directory,
            stage: None,
            deployments: 0,
            sum_before: 0,
            records: Vec::new(),
            totals: Vec::new(),
        })
    }

    /// The command that repeats a fault alone.
    fn replay(&self, number: usize) -> String {
        let only = self.arguments.only.iter().map(|kind| format!(" --only {}", kind.name())).collect::<String>();
        let common = self.common;
        format!(
            "antirio-demo faults --seed {} --count {number} --from {number} --engine {} --ttl-ms {} --motes {} --rate {} --confirmed {} --requests {}{only}",
            common.seed, common.engine, common.ttl_ms, common.motes, common.rate, common.confirmed, self.arguments.requests
        )
    }

    async fn all(&mut self) -> anyhow::Result<()> {
        let planned = self.planned.clone();
        let mut served = 0;
        for (index, fault) in planned.iter().enumerate().skip(self.arguments.from.saturating_sub(1)) {
            if self.stage.is_none() {
                self.deploy().await?;
                served = 0;
            }
            let mut stage = self.stage.take().context("a deployment")?;
            let record = Box::pin(strike(&mut stage, fault, index + 1)).await;
            println!("{}", line(&record));
            let failed = !record.violations.is_empty();
            if failed {
                println!("  again: {}\n  logs: {}", self.replay(index + 1), stage.world.directory.display());
            }
            self.records.push(record);
            served += 1;
            if failed {
                stage.stop().await;
            } else if served == self.arguments.per_deployment || index + 1 == planned.len() || stage.dissent {
                // After a dissent two of three carry the lease: the next fault may be one too many for it.
                Box::pin(self.wind_up(stage)).await?;
            } else {
                self.stage = Some(stage);
            }
        }
        Ok(())
    }

    async fn deploy(&mut self) -> anyhow::Result<()> {
        self.deployments += 1;
        // A fault that failed may have left something cut.
        self.network.heal()?;
        let directory = self.directory.join(self.deployments.to_string());
        let mut settings = crate::settings(self.common, ACTIVATIONS)?;
        settings.radio = vec![format!("--requests={}", self.arguments.requests)];
        settings.rx2_sf = self.arguments.rx2_sf;
        let clocks = self.clocks.clone().map(|faketime| WallClocks { faketime, directory: directory.join("clocks") });
        let mut stage = Box::pin(Stage::start(settings, self.network, &directory, self.has_disks, clocks)).await?;
        stage.loss_margin_ms = self.arguments.loss_margin_ms;
        self.sum_before = crate::sum(&stage.world.accounts().await?);
        self.stage = Some(stage);
        Ok(())
    }

    /// The deployment ends: motes are answered, everything is judged once more, the money is counted.
    async fn wind_up(&mut self, mut stage: Stage<'a>) -> anyhow::Result<()> {
        let wound_up = Box::pin(end_of(&mut stage, self.sum_before, self.arguments.answers)).await;
        let directory = stage.world.directory.clone();
        stage.stop().await;
        let (totals, violations) = wound_up?;
        self.totals.push(totals);
        if violations.is_empty() {
            std::fs::remove_dir_all(directory)?;
        } else if let Some(last) = self.records.last_mut() {
            println!("at the end of the deployment: {violations:#?}");
            last.violations.extend(violations);
        }
        Ok(())
    }

    fn finish(&self) -> anyhow::Result<serde_json::Value> {
        let common = self.common;
        let settings = serde_json::json!({
            "seed": common.seed, "engine": common.engine, "ttl_ms": common.ttl_ms, "motes": common.motes, "rate": common.rate,
            "confirmed": common.confirmed, "requests": self.arguments.requests, "rx2_sf": self.arguments.rx2_sf,
            "loss_margin_ms": self.arguments.loss_margin_ms, "planned": self.planned.len(), "from": self.arguments.from,
        });
        let document = tally::document(&self.records, &self.totals, &settings, &self.skipped);
        tally::print(&document);
        Ok(document)
    }
}

async fn end_of(stage: &mut Stage<'_>, sum_before: u64, are_answers_judged: bool) -> anyhow::Result<(Totals, Vec<String>)> {
    stage.world.drain_radio(Duration::from_secs(60)).await?;
    crate::settle_down(&mut stage.world).await?;
    stage.fetch_rows().await;
    let sum_after = crate::sum(&stage.world.accounts().await?);
    stage.world.quit_radio().await?;
    let mut verdict = Verdict::of(stage, None)?;
    if sum_before != sum_after {
        verdict.violations.push(format!("the ledger had {sum_before} and has {sum_after}"));
    }
    let answers = if are_answers_judged { verdict::answers(stage)? } else { Answers::default() };
    if !answers.unexplained.is_empty() {
        let unexplained = &answers.unexplained;
        verdict.violations.push(format!("{} confirmed uplinks had no answer: {unexplained:?}", answers.owed - answers.answered));
    }
    let report = &verdict.report;
    let totals = Totals {
        answers,
        downlinks_received: report.downlinks_received,
        frames_sent: report.frames_sent,
        frames_owed: report.frames_owed,
        readings_owed: report.readings_owed,
        confirmed_sent: report.confirmed_sent,
        confirmed_acknowledged: report.confirmed_acknowledged,
        downlinks_on_air: report.downlinks_on_air,
        join_requests_heard: report.join_requests_heard,
        join_requests_accepted: report.join_requests_accepted,
        joined: report.joined,
        left_in_queues: verdict.left_in_queues,
    };
    Ok((totals, verdict.violations))
}

fn line(record: &Record) -> String {
    let ms = |name: &str, value: Option<u64>| value.map_or_else(String::new, |ms| format!(" {name} {ms} ms"));
    let took = [
        ms("takeover", record.takeover_ms),
        ms("release", record.planned_release_ms),
        ms("workload", record.workload_ms),
        ms("recovery", record.recovery_ms),
        ms("settling", record.settling_ms),
    ];
    let ok = if record.dissent { "ok (a member voted otherwise in this epoch)" } else { "ok" };
    let verdict = if record.violations.is_empty() { ok.to_owned() } else { format!("VIOLATION {:#?}", record.violations) };
    format!("{:>4} {:<27} {:<30}{} {verdict}", record.number, record.kind, record.moment, took.concat())
}

/// One fault: to its moment, its steps, recovery, verdict. Whatever goes wrong is a violation.
async fn strike(stage: &mut Stage<'_>, fault: &Planned, number: usize) -> Record {
    let mut record = Record {
        number,
        kind: fault.kind.name(),
        moment: fault.moment.to_string(),
        takeover_ms: None,
        planned_release_ms: None,
        workload_ms: None,
        recovery_ms: None,
        settling_ms: None,
        lost: 0,
        doubled: 0,
        two_holders: 0,
        counters_reused: 0,
        dissent: false,
        violations: Vec::new(),
    };
    if let Err(error) = strike_and_judge(stage, fault, &mut record).await {
        record.violations.push(format!("{error:#}"));
    }
    record
}

async fn strike_and_judge(stage: &mut Stage<'_>, fault: &Planned, record: &mut Record) -> anyhow::Result<()> {
    let script = fault.kind.script();
    let mut dice = fault.dice.clone();
    let expect = carry_out(stage, &script, fault.moment, &mut dice).await?;
    let healed = Instant::now();
    let released = stage.told_to_end.and_then(|told| Some(stage.gained(Who::Patras)?.since(told).0));
    stage.recover().await.context("after everything was healed")?;
    record.recovery_ms = Some(elapsed_ms(healed));
    record.dissent = stage.dissent;
    record.planned_release_ms = released;
    stage.fetch_rows().await;
    if let Expect::Gains(who) = expect {
        record.takeover_ms = stage.first_live(who);
    }
    record.workload_ms = stage.workload_outage();
    record.violations.extend(verdict::check_custody(stage, expect).err());
    let verdict = settle(stage, record).await?;
    (record.lost, record.doubled) = (verdict.lost, verdict.doubled);
    (record.two_holders, record.counters_reused) = (verdict.two_holders, verdict.counters_reused);
    record.violations.extend(verdict.violations);
    Ok(())
}

fn elapsed_ms(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// Waits until everything owed up to now is in the store, then judges.
async fn settle(stage: &mut Stage<'_>, record: &mut Record) -> anyhow::Result<Verdict> {
    let begun = Instant::now();
    let until: WallTime = stage.world.clock.wall();
    loop {
        stage.rest(Millis(100)).await;
        stage.fetch_rows().await;
        stage.observer.catch_up();
        let verdict = Verdict::of(stage, Some(until))?;
        if verdict.lost == 0 || begun.elapsed() > SETTLE_MAX {
            record.settling_ms = Some(elapsed_ms(begun));
            return Ok(verdict);
        }
        stage.world.check_all()?;
    }
}

/// Brings the deployment to the moment and carries out the steps; returns what is to be expected then.
async fn carry_out(stage: &mut Stage<'_>, script: &Script, moment: Moment, dice: &mut Dice) -> anyhow::Result<Expect> {
    stage.act(Act::Mark, dice).await?;
    let expect = match moment {
        Moment::Steady { delay_ms } => {
            for act in &script.prepare {
                stage.act(*act, dice).await?;
            }
            stage.rest(Millis(delay_ms)).await;
            script.expect
        }
        Moment::After { message, delay_ms } => {
            hand_over_until(stage, message, dice).await?;
            stage.rest(Millis(delay_ms)).await;
            Expect::Either
        }
    };
    for act in &script.inject {
        stage.act(*act, dice).await.with_context(|| format!("{act:?}"))?;
    }
    Ok(expect)
}

/// Rio is killed, and started again when patras serves, until the message is seen.
async fn hand_over_until(stage: &mut Stage<'_>, message: usize, dice: &mut Dice) -> anyhow::Result<()> {
    stage.act(Act::Kill(Who::Rio), dice).await?;
    for (index, (who, what)) in MESSAGES.iter().enumerate() {
        stage.wait_says(who, what).await?;
        if index == message {
            return Ok(());
        }
        if *what == "replay_settled" {
            stage.act(Act::Start(Who::Rio), dice).await?;
        }
    }
    Ok(())
}
