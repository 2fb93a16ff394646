//! How long before its time an answer is at the gateway, by the gateway's own record.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use motes::fleet::{Eui64, Fleet};
use motes::ledger::{GatewayRecord, Ledgers, RadioRecord};
use motes::load::LoadConfig;
use motes::mote::Window;
use serde_json::{Value, json};

use super::{Arguments, distribution, node, place, sent_row};
use crate::Common;
use crate::world::{PATRAS_GATEWAY, RIO_GATEWAY};

/// Motes that ask for answers; the others are load.
const MOTES: u32 = 200;
/// Their uplinks per second, and the share that is to be acknowledged: far from the duty cycle's end.
const RATE: &str = "50";
const CONFIRMED: &str = "0.1";
/// Share of readings that ask for the time or a link check.
const REQUESTS: &str = "0.1";
/// Load beside them, as a share of the whole.
const BESIDE: u32 = 4;

/// Answers to 200 motes that one or two gateways of the same node hear, beside a quarter of the node's load.
pub async fn measure(common: &Common, arguments: &Arguments, directory: &Path, gateways: usize) -> anyhow::Result<Value> {
    let directory = place(directory, &format!("lead-{gateways}"))?;
    let mut settings = crate::settings(common, 0)?;
    settings.gateways = [RIO_GATEWAY, PATRAS_GATEWAY].into_iter().take(gateways).map(|eui| (eui, "rio")).collect();
    settings.radio = vec![
        format!("--motes={MOTES}"),
        format!("--rate={RATE}"),
        format!("--confirmed={CONFIRMED}"),
        format!("--requests={REQUESTS}"),
    ];
    let mut world = node::deploy(settings, &directory).await?;
    let measured = async {
        world.start_radio().await?;
        let server = world.places["rio"].addresses.lora.context("rio hears gateways")?;
        let rate = arguments.latency_frames.unwrap_or(arguments.node_frames.unwrap_or(arguments.frames) / BESIDE);
        let mote_first = usize::try_from(MOTES).unwrap_or(0);
        let config = LoadConfig { server, mote_first, ..arguments.load(rate, 1) };
        let watch = node::watch(&world)?;
        // Alone, then with load beside it.
        let alone_until_us = {
            tokio::time::sleep(Duration::from_secs(arguments.seconds.into())).await;
            world.clock.wall().0 * 1_000
        };
        let sent = super::bridge::send(&Fleet::new(common.seed, common.motes)?, config).await?;
        world.drain_radio(Duration::from_secs(30)).await?;
        world.quit_radio().await?;
        let ledgers = Ledgers::read(&world.ledgers)?;
        Ok(json!({
            "part": "lead",
            "what": "milliseconds from the downlink's arrival at the gateway to its start on air",
            "gateways_that_hear_a_frame": gateways,
            "alone": leads(&ledgers, 0, alone_until_us),
            "beside_load": leads(&ledgers, alone_until_us, u64::MAX),
            "sent": sent_row(&config, &sent),
            "processes": watch.row(),
            "bridge": world.bridge_stats("rio").await?,
        }))
    };
    let measured = Box::pin(measured).await;
    world.stop().await;
    measured
}

/// Leads of the downlinks that came to a gateway in this time, by window.
fn leads(ledgers: &Ledgers, from_us: u64, to_us: u64) -> Value {
    let windows: BTreeMap<(Eui64, u64), Window> = ledgers
        .radio
        .iter()
        .filter_map(|record| match record {
            RadioRecord::Downlink(downlink) => Some(((downlink.gateway, downlink.start_us), downlink.window?)),
            RadioRecord::Start(_) | RadioRecord::Frame(_) | RadioRecord::JoinFrame(_) => None,
        })
        .collect();
    let mut leads: BTreeMap<Window, Vec<u64>> = BTreeMap::new();
    let mut others = 0_u64;
    let mut rejected = 0_u64;
    for record in &ledgers.gateways {
        match record {
            GatewayRecord::Queued { gateway, at_us, lead_us } if (from_us..to_us).contains(at_us) => {
                match windows.get(&(*gateway, at_us + u64::from(*lead_us))) {
                    Some(window) => leads.entry(*window).or_default().push(u64::from(*lead_us)),
                    None => others += 1,
                }
            }
            GatewayRecord::Rejected { at_us, .. } if (from_us..to_us).contains(at_us) => rejected += 1,
            GatewayRecord::Queued { .. }
            | GatewayRecord::Rejected { .. }
            | GatewayRecord::Start(_)
            | GatewayRecord::Malformed { .. }
            | GatewayRecord::Server { .. }
            | GatewayRecord::Totals { .. } => {}
        }
    }
    let mut of = |window| distribution(leads.remove(&window).unwrap_or_default());
    json!({"rx1": of(Window::Rx1), "rx2": of(Window::Rx2), "in_no_window": others, "refused": rejected})
}
