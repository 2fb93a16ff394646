//! The bridge's server as a process of its own, without a node: uplinks go to standard output, one JSON line each. An uplink is acknowledged once
//! its line was written.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use contracts::ids::{Epoch, GroupId};
use kit::clock::Clock;
use lora_bridge::bridge::io::{Mode, Output};
use lora_bridge::bridge::{Bridge, Config};
use lora_bridge::server::{self, BridgeHandle};

/// What it says on standard output when it serves.
pub const SERVING: &str = "serving";

#[derive(Debug, clap::Args)]
pub struct Serve {
    /// UDP address for packet forwarders.
    #[arg(long)]
    bind: SocketAddr,
    /// `{"devices": [{dev_eui, dev_addr, nwk_s_key, ...}]}`, at most 10,000; each file is a group of its own.
    #[arg(long, required = true)]
    devices: Vec<PathBuf>,
}

/// Serves until its standard output is closed.
pub async fn run(serve: &Serve) -> anyhow::Result<ExitCode> {
    let socket = server::bind(serve.bind).await?;
    let (bridge, mut outputs) =
        server::spawn_waiting(socket, Bridge::new(Config::default()), Clock::system(), Arc::new(|_, _| true));
    for (index, path) in (0_u128..).zip(&serve.devices) {
        register(&bridge, GroupId::from_bytes(index.to_be_bytes()), path).await?;
    }
    bridge.listen().await?;
    println!("{SERVING}");
    while let Some(batch) = outputs.recv().await {
        let (mut events, mut lines) = (Vec::new(), Vec::new());
        for output in batch {
            if let Output::Uplink(uplink) = output {
                serde_json::to_writer(&mut lines, &uplink)?;
                lines.push(b'\n');
                events.push(uplink.event);
            }
        }
        let mut out = std::io::stdout().lock();
        out.write_all(&lines).and_then(|()| out.flush()).context("standard output is closed")?;
        drop(out);
        bridge.committed(events).await?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn register(bridge: &BridgeHandle, group: GroupId, path: &Path) -> anyhow::Result<()> {
    let configuration = edge_node::migration::read_configuration(path)?;
    let registration = edge_node::migration::network_part(&configuration).with_context(|| path.display().to_string())?;
    bridge.register(group, edge_node::tenants::http::sessions(&registration)).await?;
    bridge.custody(group, Mode::Serving { epoch: Epoch(1), foreign_lease_end: None }).await?;
    Ok(())
}
