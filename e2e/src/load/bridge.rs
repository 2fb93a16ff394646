//! The bridge's server under load: a real process, real datagrams; what it printed is counted.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use motes::fleet::Fleet;
use motes::load::{self, LoadConfig, Sent};
use serde::Deserialize;
use serde_json::{Value, json};

use super::usage::Watch;
use super::{Arguments, place, sent_row};
use crate::address::free_udp;
use crate::process::{Process, Start};
use crate::{Common, poll};

/// Devices in one file at most.
const DEVICES_PER_FILE: usize = 10_000;
/// Sessions whose memory is measured.
const SESSIONS: u32 = 100_000;
/// The bridge serves within this time.
const START_MAX: Duration = Duration::from_secs(30);
/// What it heard it prints within this time.
const PRINT_MAX: Duration = Duration::from_secs(30);

/// A running bridge.
struct Running {
    process: Process,
    log: PathBuf,
}

#[derive(Deserialize)]
struct Line<'a> {
    device: &'a str,
    f_cnt: u32,
}

/// Starts it with these fleets' devices, each file a group.
async fn start(program: &Path, directory: &Path, fleets: &[Fleet], address: std::net::SocketAddr) -> anyhow::Result<Running> {
    let mut arguments = vec!["serve".to_owned(), format!("--bind={address}")];
    let devices = fleets.iter().flat_map(Fleet::devices).collect::<Vec<_>>();
    for (number, devices) in devices.chunks(DEVICES_PER_FILE).enumerate() {
        let path = directory.join(format!("devices-{number}.json"));
        let of = |d: &&motes::fleet::Device| json!({"dev_eui": d.dev_eui, "dev_addr": d.dev_addr, "nwk_s_key": d.nwk_s_key});
        std::fs::write(&path, json!({"devices": devices.iter().map(of).collect::<Vec<_>>()}).to_string())?;
        arguments.push(format!("--devices={}", path.display()));
    }
    let mut process = Start::new("bridge", program, &arguments, directory).run()?;
    let log = directory.join("bridge.log");
    let is_serving = || anyhow::Ok(std::fs::read_to_string(&log)?.lines().any(|line| line == super::server::SERVING));
    poll::until("the bridge serves", START_MAX, Duration::from_millis(20), async || {
        process.check()?;
        Ok(is_serving()?.then_some(()))
    })
    .await?;
    Ok(Running { process, log })
}

/// Sends from a thread of its own.
pub async fn send(fleet: &Fleet, config: LoadConfig) -> anyhow::Result<Sent> {
    let fleet = fleet.clone();
    Ok(tokio::task::spawn_blocking(move || load::send(&fleet, &load::clock(), &config)).await??)
}

/// Waits until nothing more is printed: a frame that was lost announces nothing, and one that is doubled may come late.
async fn printed(running: &mut Running, expected: u64) -> anyhow::Result<BTreeMap<(String, u32), u64>> {
    let printed = poll::until_still(async || {
        running.process.check()?;
        Ok(std::fs::metadata(&running.log)?.len())
    });
    tokio::time::timeout(PRINT_MAX, printed).await.context("the bridge prints on and on")??;
    let mut seen: BTreeMap<(String, u32), u64> = BTreeMap::new();
    for line in BufReader::new(std::fs::File::open(&running.log)?).lines() {
        let line = line?;
        if line.starts_with('{') {
            let uplink: Line<'_> = serde_json::from_str(&line).with_context(|| line.clone())?;
            *seen.entry((uplink.device.to_owned(), uplink.f_cnt)).or_default() += 1;
        }
    }
    if seen.len() as u64 != expected {
        eprintln!("{} of {expected} frames came out of the bridge", seen.len());
    }
    Ok(seen)
}

/// Frames that were sent and not printed, and those printed too often or never sent.
fn lost_and_doubled(fleet: &Fleet, config: &LoadConfig, seen: &BTreeMap<(String, u32), u64>) -> (u64, u64) {
    let name = |number: u64| {
        let (mote, f_cnt) = config.frame(fleet.devices().len(), number);
        (fleet.devices()[mote].dev_eui.to_string(), f_cnt)
    };
    let lost = (0..config.frames).filter(|number| !seen.contains_key(&name(*number))).count() as u64;
    let rows: u64 = seen.values().sum();
    (lost, rows - (config.frames - lost))
}

/// 10,000 motes or as many as were asked for.
pub async fn throughput(
    common: &Common,
    arguments: &Arguments,
    program: &Path,
    directory: &Path,
    copies: u16,
) -> anyhow::Result<Value> {
    let directory = place(directory, &format!("bridge-{copies}"))?;
    let fleet = Fleet::new(common.seed, common.motes)?;
    let address = free_udp()?;
    let mut running = start(program, &directory, std::slice::from_ref(&fleet), address).await?;
    let config = LoadConfig { server: address, ..arguments.load(arguments.frames, copies) };
    let watch = Watch::begin(running.process.id().map(|pid| ("bridge".to_owned(), pid)));
    let sent = send(&fleet, config).await?;
    let seen = printed(&mut running, config.frames).await?;
    let processes = watch.row();
    running.process.stop().await?;
    let (lost, doubled) = lost_and_doubled(&fleet, &config, &seen);
    Ok(json!({
        "part": "bridge",
        "what": "the bridge's server over UDP: from GWMP datagrams to verified, de-duplicated uplinks in a file",
        "motes": common.motes,
        "lost": lost,
        "doubled": doubled,
        "sent": sent_row(&config, &sent),
        "processes": processes,
    }))
}

/// 100,000 sessions in ten groups: before and after an uplink of each.
pub async fn memory(common: &Common, arguments: &Arguments, program: &Path, directory: &Path) -> anyhow::Result<Value> {
    let directory = place(directory, "sessions")?;
    // A fleet is one block of addresses, of 65,536 at most.
    let fleets = [Fleet::new(common.seed, SESSIONS / 2)?, Fleet::new(common.seed + 1, SESSIONS / 2)?];
    let address = free_udp()?;
    let mut running = start(program, &directory, &fleets, address).await?;
    let watch = Watch::begin(running.process.id().map(|pid| ("bridge".to_owned(), pid)));
    let idle = watch.row();
    let mut sent_rows = Vec::new();
    for fleet in &fleets {
        let config = LoadConfig { server: address, frames: u64::from(SESSIONS / 2), ..arguments.load(arguments.frames, 1) };
        sent_rows.push(sent_row(&config, &send(fleet, config).await?));
    }
    let seen = printed(&mut running, u64::from(SESSIONS)).await?;
    let processes = watch.row();
    running.process.stop().await?;
    let devices = fleets.iter().flat_map(Fleet::devices);
    let lost = devices.filter(|device| !seen.contains_key(&(device.dev_eui.to_string(), 0))).count() as u64;
    let doubled = seen.values().sum::<u64>() - (u64::from(SESSIONS) - lost);
    Ok(json!({
        "part": "sessions",
        "what": "the bridge's server with 100,000 sessions in ten groups, before and after an uplink of each",
        "sessions": SESSIONS,
        "lost": lost,
        "doubled": doubled,
        "sent": sent_rows,
        "before": idle,
        "processes": processes,
    }))
}
