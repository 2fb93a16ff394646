//! Says what this machine can do for Antirio, and what to do about what it cannot.

use std::net::SocketAddr;
use std::process::ExitCode;

use engine::{Capabilities, Engine as _};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// For programs.
    #[arg(long)]
    json: bool,
    /// UDP address that packet forwarders will use.
    #[arg(long, default_value = "0.0.0.0:1700")]
    lora: SocketAddr,
    /// Socket of a Docker engine.
    #[arg(long, default_value = engine::docker::DEFAULT_SOCKET)]
    docker_socket: std::path::PathBuf,
}

#[derive(Debug, serde::Serialize)]
struct Finding {
    what: &'static str,
    fine: bool,
    details: Vec<String>,
}

/// Exit status 0: some engine can run containers and the ports are free; 1 otherwise.
pub async fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let embedded = embedded()?;
    let docker = docker(args).await;
    let any_engine = embedded.fine || docker.fine;
    let findings = [embedded, docker, lora_port(args.lora), clock()];
    if args.json {
        println!("{}", serde_json::to_string_pretty(&findings)?);
    } else {
        for finding in &findings {
            println!("{} {}", if finding.fine { "ok  " } else { "MISS" }, finding.what);
            for detail in &finding.details {
                println!("       {detail}");
            }
        }
        println!(
            "{}",
            if any_engine {
                "containers can run on this machine"
            } else {
                "no containers can run: mend one of the two engines above"
            }
        );
    }
    let port_free = findings[2].fine;
    Ok(if any_engine && port_free { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn described(what: &'static str, capabilities: Capabilities) -> Finding {
    let fine = capabilities.usable();
    let limits = format!(
        "limits: memory {}, cpu {}, pids {}",
        capabilities.limits.memory, capabilities.limits.cpu, capabilities.limits.pids
    );
    let details = [vec![limits], capabilities.missing, capabilities.warnings].concat();
    Finding { what, fine, details }
}

fn embedded() -> anyhow::Result<Finding> {
    Ok(described("embedded container engine (needs root)", engine::embedded::capabilities(&"doctor".parse()?)))
}

async fn docker(args: &Args) -> Finding {
    let what = "Docker engine";
    let scratch_dir = std::env::temp_dir();
    let Ok(prefix) = "doctor".parse() else { return Finding { what, fine: false, details: Vec::new() } };
    let config = engine::docker::DockerConfig {
        prefix,
        socket: args.docker_socket.clone(),
        scratch_dir,
        image_limits: engine::image::ImageLimits::default(),
    };
    let probed = match engine::docker::DockerEngine::connect(config).await {
        Ok(engine) => engine.probe().await,
        Err(error) => Err(error),
    };
    match probed {
        Ok(capabilities) => described(what, capabilities),
        Err(error) => Finding { what, fine: false, details: vec![error.to_string()] },
    }
}

fn lora_port(address: SocketAddr) -> Finding {
    let what = "UDP port for LoRa packet forwarders";
    match std::net::UdpSocket::bind(address) {
        Ok(_) => Finding { what, fine: true, details: vec![format!("{address} is free")] },
        Err(error) => {
            Finding { what, fine: false, details: vec![format!("{address}: {error}; stop what uses it or configure another")] }
        }
    }
}

fn clock() -> Finding {
    let fine = kit::clock::Clock::system().boot().0 > 0;
    Finding { what: "clock that counts suspended time (CLOCK_BOOTTIME)", fine, details: Vec::new() }
}
