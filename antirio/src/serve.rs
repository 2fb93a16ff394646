//! The long-running processes: read the configuration, listen, run until told to stop.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use kit::clock::Clock;
use serde::de::DeserializeOwned;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

/// Flags of every process.
#[derive(Debug, clap::Args)]
pub struct Serve {
    /// Configuration file (TOML).
    #[arg(long)]
    config: PathBuf,
    /// Print the configuration as it is understood, without secrets, and end.
    #[arg(long)]
    dump_config: bool,
}

/// Flags of a process that votes.
#[derive(Debug, clap::Args)]
pub struct ServeVoter {
    #[command(flatten)]
    serve: Serve,
    /// Its state was lost or put back from a copy: said once, at the first start after it. It then votes in no group before it has heard
    /// what the other members voted meanwhile.
    #[arg(long)]
    restored: bool,
}

fn read(args: &Serve) -> anyhow::Result<String> {
    std::fs::read_to_string(&args.config).with_context(|| format!("{} cannot be read", args.config.display()))
}

fn parse<T: DeserializeOwned>(args: &Serve) -> anyhow::Result<T> {
    toml::from_str(&read(args)?).with_context(|| format!("{} is not a valid configuration", args.config.display()))
}

fn dump(config: &impl serde::Serialize) -> anyhow::Result<ExitCode> {
    print!("{}", toml::to_string_pretty(config)?);
    Ok(ExitCode::SUCCESS)
}

/// Resolves with SIGTERM or SIGINT.
async fn shutdown() {
    let (Ok(mut terminate), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) else {
        tracing::error!("signals cannot be received; end this process with SIGKILL");
        return std::future::pending().await;
    };
    tokio::select! {
        biased;
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

pub async fn node(ServeVoter { serve: args, restored }: ServeVoter) -> anyhow::Result<ExitCode> {
    let mut config = edge_node::config::Config::parse(&read(&args)?).with_context(|| args.config.display().to_string())?;
    if args.dump_config {
        return dump(&config);
    }
    config.is_restored = restored;
    edge_node::node::run(config, Clock::system(), shutdown()).await?;
    Ok(ExitCode::SUCCESS)
}

/// A node without insurance: devices and gateways, a device service beside it.
pub async fn bridge(args: Serve) -> anyhow::Result<ExitCode> {
    let config = edge_node::standalone::Config::parse(&read(&args)?).with_context(|| args.config.display().to_string())?;
    if args.dump_config {
        return dump(&config);
    }
    edge_node::node::run(config.to_node(), Clock::system(), shutdown()).await?;
    Ok(ExitCode::SUCCESS)
}

pub async fn marketplace(args: Serve) -> anyhow::Result<ExitCode> {
    let config: marketplace::Config = parse(&args)?;
    if args.dump_config {
        return dump(&config);
    }
    let listener = TcpListener::bind(config.bind).await.with_context(|| format!("TCP {} cannot be listened on", config.bind))?;
    marketplace::run(config, listener, shutdown()).await?;
    Ok(ExitCode::SUCCESS)
}

pub async fn arbitrator(ServeVoter { serve: args, restored }: ServeVoter) -> anyhow::Result<ExitCode> {
    let mut config: arbitrator::Config = parse(&args)?;
    config.is_restored = restored;
    if args.dump_config {
        return dump(&config);
    }
    let listener = TcpListener::bind(config.bind).await.with_context(|| format!("TCP {} cannot be listened on", config.bind))?;
    Box::pin(arbitrator::run(config, listener, shutdown())).await?;
    Ok(ExitCode::SUCCESS)
}
