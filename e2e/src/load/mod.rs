//! How much LoRa a bridge and a node take over UDP, how soon a reading is out, and how early an answer is at its gateway.
//!
//! - [`bridge`], [`server`] — the bridge's server alone: throughput, and memory with 100,000 sessions
//! - [`node`] — a node with its device service and its owner's cloud: throughput and latency
//! - [`lead`] — how long before its time an answer is at the gateway
//! - [`usage`] — what processes use of the machine
//!
//! Everything runs on one machine and shares its cores with the generator of load and with this program, which the result says.

mod bridge;
mod lead;
mod node;
mod server;
mod usage;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use motes::load::{LoadConfig, Sent};
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};

pub use self::server::{Serve, run as serve};
use crate::Common;

/// What to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Part {
    /// The bridge's server alone: every frame heard by one gateway, then by two.
    Bridge,
    /// The same with 100,000 sessions.
    Sessions,
    /// A node, its device service, its owner's cloud.
    Node,
    /// The same at half the load: from datagram to reading.
    Latency,
    /// How early answers are at their gateway.
    Lead,
}

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Frames per second; each counts once however many gateways hear it.
    #[arg(long, default_value_t = 20_000)]
    frames: u32,
    /// Frames per second for the whole node, if not the same.
    #[arg(long)]
    node_frames: Option<u32>,
    /// Frames per second for the latency, if not half of the node's.
    #[arg(long)]
    latency_frames: Option<u32>,
    /// How long each load lasts.
    #[arg(long, default_value_t = 20)]
    seconds: u32,
    #[arg(long, default_value_t = 32)]
    gateways: u16,
    /// Packets in one datagram at most; forwarders send what they heard in 10 ms, up to 8.
    #[arg(long, default_value_t = 8)]
    batch: usize,
    /// Only these parts (repeat for more).
    #[arg(long, value_enum)]
    only: Vec<Part>,
}

impl Arguments {
    fn has(&self, part: Part) -> bool {
        self.only.is_empty() || self.only.contains(&part)
    }

    /// A load of `rate` frames a second for a server whose address is not known yet.
    fn load(&self, rate: u32, copies: u16) -> LoadConfig {
        LoadConfig {
            server: ([127, 0, 0, 1], 0).into(),
            rate,
            frames: u64::from(rate) * u64::from(self.seconds),
            mote_first: 0,
            f_cnt_first: 0,
            gateways: self.gateways,
            copies,
            batch: self.batch,
        }
    }
}

/// Measures; the exit status is 1 if a frame was lost or doubled where none may be.
pub async fn run(common: &Common, arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let directory = std::env::temp_dir().join(format!("antirio-{}", std::process::id()));
    std::fs::create_dir_all(&directory)?;
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let measured = tokio::select! {
        biased;
        _ = terminate.recv() => Err(anyhow::anyhow!("told to end")),
        _ = interrupt.recv() => Err(anyhow::anyhow!("interrupted")),
        measured = measure(common, arguments, &directory) => measured,
    };
    let document = match measured {
        Ok(document) => document,
        Err(error) => {
            eprintln!("logs are left in {}", directory.display());
            return Err(error);
        }
    };
    println!("{document:#}");
    if let Some(path) = &common.json {
        std::fs::write(path, serde_json::to_vec_pretty(&document)?).with_context(|| path.display().to_string())?;
    }
    std::fs::remove_dir_all(&directory)?;
    Ok(if document["lost"] == 0 && document["doubled"] == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn measure(common: &Common, arguments: &Arguments, directory: &Path) -> anyhow::Result<Value> {
    let mut rows = Vec::new();
    let mut done = |row: Value| {
        eprintln!("{row}");
        rows.push(row);
    };
    let myself = std::env::current_exe()?;
    if arguments.has(Part::Bridge) {
        for copies in [1, 2] {
            done(Box::pin(bridge::throughput(common, arguments, &myself, directory, copies)).await?);
        }
    }
    if arguments.has(Part::Sessions) {
        done(Box::pin(bridge::memory(common, arguments, &myself, directory)).await?);
    }
    let node_frames = arguments.node_frames.unwrap_or(arguments.frames);
    if arguments.has(Part::Node) {
        done(Box::pin(node::throughput(common, arguments, directory, node_frames)).await?);
    }
    if arguments.has(Part::Latency) {
        let frames = arguments.latency_frames.unwrap_or(node_frames / 2);
        done(Box::pin(node::latency(common, arguments, directory, frames)).await?);
    }
    if arguments.has(Part::Lead) {
        for gateways in [1, 2] {
            done(Box::pin(lead::measure(common, arguments, directory, gateways)).await?);
        }
    }
    let sum = |field: &str| rows.iter().filter_map(|row| row[field].as_u64()).sum::<u64>();
    Ok(json!({
        "lost": sum("lost"),
        "doubled": sum("doubled"),
        "cores": std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
        "load_average_at_end": usage::load_average(),
        "seed": common.seed,
        "rows": rows,
    }))
}

/// A fresh directory for one part.
fn place(directory: &Path, name: &str) -> anyhow::Result<PathBuf> {
    let place = directory.join(name);
    std::fs::create_dir_all(&place)?;
    Ok(place)
}

/// What the generator did.
fn sent_row(config: &LoadConfig, sent: &Sent) -> Value {
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    let per_second = |count: u64| (count as f64 * 1e6 / sent.elapsed_us.max(1) as f64).round();
    json!({
        "frames": config.frames,
        "frames_per_second": per_second(config.frames),
        "packets": sent.packets,
        "packets_per_second": per_second(sent.packets),
        "gateways": config.gateways,
        "gateways_that_hear_a_frame": config.copies,
        "packets_per_datagram_max": config.batch,
        "datagrams": sent.datagrams,
        "datagrams_unacknowledged": sent.datagrams - sent.acknowledged,
        "datagrams_refused_by_the_socket": sent.refused,
        "behind_its_pace_us_max": sent.lag_us_max,
        "core_seconds": sent.on_core_us.map(usage::seconds),
    })
}

/// What is found in values: `{count, p50, p99, max}` and `{min, p1}`, in milliseconds of three decimals.
fn distribution(mut micros: Vec<u64>) -> Value {
    micros.sort_unstable();
    let at = |permille: usize| {
        let index = (micros.len() * permille).div_ceil(1_000).max(1) - 1;
        micros.get(index).map(|us| usage::millis(*us))
    };
    json!({"count": micros.len(), "min": at(0), "p1": at(10), "p50": at(500), "p99": at(990), "p999": at(999), "max": at(1_000)})
}
