//! A node under load, nobody insuring it: `antirio node` with the LoRa device service in a container, and its owner's cloud.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use edge_node::api::ReceivedReading;
use edge_node::timeline::Event;
use motes::audit::decicelsius;
use motes::fleet::Fleet;
use motes::load::{self, LoadConfig, Sent};
use serde_json::{Value, json};

use super::bridge::send;
use super::usage::Watch;
use super::{Arguments, distribution, place, sent_row};
use crate::observe::Observer;
use crate::world::{Settings, World};
use crate::{Common, address, containers, poll};

/// The node takes part within this time.
const START_MAX: Duration = Duration::from_secs(30);
/// If no reading came for so long, none will.
const STILL_MAX: Duration = Duration::from_secs(5);
/// Between two looks at the cloud.
const LOOK: Duration = Duration::from_millis(2);

/// Starts a node and its cloud, and waits until its devices are served. All are personalised: the generator of load does not join.
pub async fn deploy(settings: Settings, directory: &Path) -> anyhow::Result<World> {
    let settings = Settings { otaa: "0".to_owned(), ..settings };
    let motes = u64::from(settings.motes);
    let mut world = World::prepare(settings, directory, address::loopback()?, None)?;
    let started = async {
        world.provision().await?;
        world.start_center().await?;
        let mut observer = Observer::new(world.clock.wall(), true);
        for name in ["cloud", "rio"] {
            world.start_node(name).await?;
            observer.follow(&world, name);
        }
        let is_it = |s: &crate::observe::Said| s.by == "rio" && matches!(s.entry.event, Event::ServiceStarted { .. });
        observer.wait(&mut world, "rio's own service", 0, START_MAX, is_it).await?;
        poll::until("the devices are served", START_MAX, Duration::from_millis(50), async || {
            Ok((world.bridge_stats("rio").await?["sessions"].as_u64() == Some(motes)).then_some(()))
        })
        .await
    };
    match Box::pin(started).await {
        Ok(()) => Ok(world),
        Err(error) => {
            world.stop().await;
            Err(error)
        }
    }
}

/// The processes that a reading passes.
pub fn watch(world: &World) -> anyhow::Result<Watch> {
    let mut processes: Vec<(String, u32)> =
        ["rio", "cloud", "radio"].into_iter().filter_map(|name| Some((name.to_owned(), world.process_id(name)?))).collect();
    let services = containers::find(&world.directory.join("rio"), crate::world::SERVICE_PROGRAM)?;
    processes
        .extend(services.into_iter().map(|pid| ("rio's device service".to_owned(), pid.as_raw_nonzero().get().unsigned_abs())));
    processes.push(("this program, with the generator of load".to_owned(), std::process::id()));
    Ok(Watch::begin(processes))
}

/// A reading and when this program saw it at the cloud's API, wall-clock microseconds.
struct Seen {
    reading: ReceivedReading,
    seen_us: u64,
}

/// Reads on at the cloud until all is there or nothing comes any more.
async fn follow(world: &mut World, clock: motes::gateway::Clock, look: Duration, expected: u64) -> anyhow::Result<Vec<Seen>> {
    let (mut all, mut last): (Vec<Seen>, Instant) = (Vec::new(), Instant::now());
    while (all.len() as u64) < expected && last.elapsed() < STILL_MAX {
        let page = world.readings(all.last().map_or(0, |seen| seen.reading.seq)).await?;
        let seen_us = clock.now_us();
        if page.is_empty() {
            tokio::time::sleep(look).await;
            continue;
        }
        last = Instant::now();
        all.extend(page.into_iter().map(|reading| Seen { reading, seen_us }));
    }
    world.check_all()?;
    Ok(all)
}

/// What the cloud has of what was sent.
#[derive(Default)]
struct Judged {
    lost: u64,
    doubled: u64,
    wrong: u64,
    /// From the first datagram with the frame to the cloud's receipt, microseconds.
    received_us: Vec<u64>,
    /// To when this program saw it at the cloud's API.
    seen_us: Vec<u64>,
    last_received_us: u64,
}

fn judge(fleet: &Fleet, config: &LoadConfig, sent: &Sent, seen: &[Seen]) -> Judged {
    let motes: BTreeMap<String, usize> =
        fleet.devices().iter().enumerate().map(|(index, device)| (device.dev_eui.to_string(), index)).collect();
    let numbers: BTreeMap<(usize, u32), u64> =
        (0..config.frames).map(|number| (config.frame(fleet.devices().len(), number), number)).collect();
    let mut times = vec![0_u64; sent.first_us.len()];
    let mut judged = Judged::default();
    for Seen { reading, seen_us } in seen {
        let name = motes.get(&reading.device).map(|mote| (*mote, reading.f_cnt));
        let number = name.and_then(|name| Some((name, usize::try_from(*numbers.get(&name)?).ok()?)));
        let Some(((mote, f_cnt), number)) = number else {
            judged.wrong += 1;
            continue;
        };
        let measured = load::reading(fleet, mote, f_cnt);
        let said = &reading.decoded;
        let is_right = said["generic_1"].as_u64() == Some(u64::from(measured.number))
            && decicelsius(&said["temperature_2"]) == Some(measured.decicelsius.into());
        judged.wrong += u64::from(!is_right);
        times[number] += 1;
        judged.doubled += u64::from(times[number] > 1);
        let first_us = sent.first_us[number];
        // The cloud's clock has milliseconds.
        judged.received_us.push((reading.received_at.0 * 1_000 + 999).saturating_sub(first_us));
        judged.seen_us.push(seen_us.saturating_sub(first_us));
        judged.last_received_us = judged.last_received_us.max(reading.received_at.0 * 1_000);
    }
    judged.lost = times.iter().filter(|times| **times == 0).count() as u64;
    judged
}

fn row(part: &str, world: &World, config: &LoadConfig, sent: &Sent, judged: Judged) -> Value {
    let begun_us = sent.first_us.iter().copied().filter(|us| *us > 0).min().unwrap_or(0);
    let took_us = judged.last_received_us.saturating_sub(begun_us);
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    let per_second = (config.frames - judged.lost) as f64 * 1e6 / took_us.max(1) as f64;
    json!({
        "part": part,
        "what": "antirio node (uninsured), device service in a container, cloud; two synced databases",
        "motes": world.settings.motes,
        "engine": world.settings.engine,
        "lost": judged.lost,
        "doubled": judged.doubled,
        "wrong": judged.wrong,
        "readings_per_second_at_the_cloud": per_second.round(),
        "cloud_behind_the_last_frame_ms": super::usage::millis(took_us.saturating_sub(sent.elapsed_us)),
        "uplink_to_cloud_ms": distribution(judged.received_us),
        "uplink_to_reader_at_the_cloud_ms": distribution(judged.seen_us),
        "sent": sent_row(config, sent),
    })
}

async fn under_load(
    common: &Common,
    arguments: &Arguments,
    directory: &Path,
    part: &str,
    rate: u32,
    looks_meanwhile: bool,
) -> anyhow::Result<Value> {
    let directory = place(directory, part)?;
    let mut world = deploy(crate::settings(common, 0)?, &directory).await?;
    let measured = async {
        let fleet = Fleet::new(common.seed, common.motes)?;
        let server = world.places["rio"].addresses.lora.context("rio hears gateways")?;
        let config = LoadConfig { server, ..arguments.load(rate, 1) };
        let watch = watch(&world)?;
        let clock = load::clock();
        let (sent, seen) = if looks_meanwhile {
            let (sent, seen) = tokio::join!(send(&fleet, config), follow(&mut world, clock, LOOK, config.frames));
            (sent?, seen?)
        } else {
            let sent = send(&fleet, config).await?;
            (sent, follow(&mut world, clock, LOOK * 50, config.frames).await?)
        };
        let mut row = row(part, &world, &config, &sent, judge(&fleet, &config, &sent, &seen));
        row["processes"] = watch.row();
        row["bridge"] = world.bridge_stats("rio").await?;
        Ok(row)
    };
    let measured = Box::pin(measured).await;
    world.stop().await;
    measured
}

/// As much as it takes; the cloud is read afterwards.
pub async fn throughput(common: &Common, arguments: &Arguments, directory: &Path, rate: u32) -> anyhow::Result<Value> {
    under_load(common, arguments, directory, "node", rate, false).await
}

/// With a reader at the cloud that looks every 2 ms.
pub async fn latency(common: &Common, arguments: &Arguments, directory: &Path, rate: u32) -> anyhow::Result<Value> {
    under_load(common, arguments, directory, "latency", rate, true).await
}
