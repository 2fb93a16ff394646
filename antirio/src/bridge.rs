//! The LoRa bridge alone: serves the devices of a file, writes verified uplinks to standard output, one JSON line each.
//!
//! An uplink counts as served, and is acknowledged, once its line was written and flushed.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use contracts::ids::{Epoch, GroupId};
use kit::clock::Clock;
use lora_bridge::bridge::io::{Mode, Output};
use lora_bridge::bridge::{Bridge, Config};
use lora_bridge::server::NamedTap;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// UDP address for packet forwarders.
    #[arg(long, default_value = "0.0.0.0:1700")]
    bind: SocketAddr,
    /// JSON: `{"devices": [{dev_eui, dev_addr, nwk_s_key, ...}]}`.
    #[arg(long)]
    devices: PathBuf,
    /// A server that gets all uplinks too, as `host:port`; may be given several times.
    #[arg(long)]
    tap: Vec<String>,
}

pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let configuration = edge_node::migration::read_configuration(&args.devices)?;
    let registration = edge_node::migration::network_part(&configuration)?;
    let socket = lora_bridge::server::bind(args.bind).await?;
    let group = GroupId::from_bytes([0; 16]);
    let (bridge, mut outputs) =
        lora_bridge::server::spawn(socket, Bridge::new(Config::default()), Clock::system(), Arc::new(|_, _| true));
    let taps: Vec<_> = args.tap.into_iter().map(|server| NamedTap { server, gateways: Vec::new() }).collect();
    if !taps.is_empty() {
        kit::task::spawn(lora_bridge::server::keep_taps(&bridge, taps));
    }
    bridge.register(group, edge_node::tenants::http::sessions(&registration)).await?;
    bridge.custody(group, Mode::Serving { epoch: Epoch(1), foreign_lease_end: None }).await?;
    while let Some(batch) = outputs.recv().await {
        let mut events = Vec::new();
        let mut lines = Vec::new();
        for output in batch {
            match output {
                Output::Uplink(uplink) => {
                    serde_json::to_writer(&mut lines, &uplink)?;
                    lines.push(b'\n');
                    events.push(uplink.event);
                }
                // Nobody else serves these devices: what this process remembers is all there is.
                Output::ReserveWanted { entries, .. } => bridge.reserved(entries).await?,
                Output::ResetWanted(reset) => bridge.reset(vec![(reset.device, reset.reset_ordinal)]).await?,
                Output::Refused { device, reason, .. } => tracing::warn!(%device, ?reason, "a device was refused"),
                Output::RecordWanted { record, .. } => bridge.recorded(record).await?,
                Output::EncryptWanted { .. }
                | Output::SessionChanged { .. }
                | Output::Accept(_)
                | Output::Keep(_)
                | Output::Forget { .. }
                | Output::Downlink { .. }
                | Output::StateDue { .. }
                | Output::OfferDue(_)
                | Output::OfferKnown { .. }
                | Output::Replayed { .. }
                | Output::Send { .. }
                | Output::Transmit(_) => {}
            }
        }
        let mut out = std::io::stdout().lock();
        out.write_all(&lines).and_then(|()| out.flush()).context("standard output is closed")?;
        drop(out);
        bridge.committed(events).await?;
    }
    Ok(ExitCode::SUCCESS)
}
