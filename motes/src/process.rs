//! Motes, radio and gateways as a program: flags in, status lines of JSON out, commands on standard input.
//!
//! Commands, one per line: `stop-sending`, `drain [MILLISECONDS]`, `server EUI HOST:PORT`, `block EUI`, `status`, `quit`.
//! Every line of output is an object with `event`: `started`, `status` (each second), `stopped_sending`, `drained`, `server`, `refused`,
//! `stopped`.

use std::io::{BufRead, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{Instant, interval, sleep_until};

use crate::airtime::SpreadingFactor;
use crate::fleet::{Eui64, Fleet};
use crate::mote::Depth;
use crate::world::{self, Drained, GatewayConfig, World, WorldConfig};

/// Longest command line that is read.
const COMMAND_BYTES_MAX: usize = 256;
/// How long `drain` waits when no bound is given.
const DRAIN_MS_DEFAULT: u64 = 60_000;

/// Flags of the radio process.
#[derive(Args, Clone, Debug)]
pub struct RadioArgs {
    /// Decides identities, schedule, losses.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Number of motes.
    #[arg(long, default_value_t = 200)]
    pub motes: u32,
    /// Uplinks per second of all motes together.
    #[arg(long, default_value = "20", value_parser = |text: &str| parse_scaled(text, 3))]
    pub rate: u64,
    /// Share of confirmed uplinks.
    #[arg(long, default_value = "0.05", value_parser = parse_ppm)]
    pub confirmed: u32,
    /// Independent loss of every link, both ways.
    #[arg(long, default_value = "0.05", value_parser = parse_ppm)]
    pub loss: u32,
    /// Spreading factor of the second window: 12 in EU868, 9 with The Things Network.
    #[arg(long, default_value = "12", value_parser = parse_spreading_factor)]
    pub rx2_sf: SpreadingFactor,
    /// Let motes ignore the 1 % duty cycle.
    #[arg(long)]
    pub no_duty_cycle: bool,
    /// Share of motes that join over the air, every other one by the rules of LoRaWAN 1.0.4.
    #[arg(long, default_value = "0", value_parser = parse_ppm)]
    pub otaa: u32,
    /// Seconds after which such a mote is switched off and on and joins anew; 0: never.
    #[arg(long, default_value_t = 0)]
    pub rejoin: u32,
    /// Let motes set the ADR bit.
    #[arg(long)]
    pub adr: bool,
    /// Share of readings with a `LinkCheckReq` or `DeviceTimeReq`.
    #[arg(long, default_value = "0", value_parser = parse_ppm)]
    pub requests: u32,
    /// A gateway and its node, e.g. `aa555a0000000101@127.0.0.1:1700`; repeat for more.
    #[arg(long = "gateway", value_name = "EUI@HOST:PORT", value_parser = parse_gateway)]
    pub gateways: Vec<GatewayConfig>,
    /// Directory of the ledgers; existing ledgers are replaced.
    #[arg(long, default_value = "ledgers")]
    pub ledgers: PathBuf,
    /// Write the provisioning list of the fleet to this file.
    #[arg(long)]
    pub provisioning: Option<PathBuf>,
    /// Only write the provisioning list.
    #[arg(long, requires = "provisioning")]
    pub provisioning_only: bool,
    /// Stop after this many seconds.
    #[arg(long)]
    pub duration: Option<u64>,
    /// Stop when standard input ends, e.g. because the parent process died.
    #[arg(long)]
    pub quit_on_eof: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Command {
    StopSending,
    Drain(Duration),
    Server(Eui64, Option<SocketAddr>),
    Status,
    Quit,
    InputEnded,
    Refused(String),
}

/// Runs until told to stop: by `quit`, by the duration, by SIGTERM or SIGINT.
///
/// # Errors
/// Bad flags, and whatever goes wrong with sockets or ledgers.
pub async fn radio_process(args: RadioArgs) -> anyhow::Result<()> {
    if let Some(path) = &args.provisioning {
        write_provisioning(&args, path)?;
        if args.provisioning_only {
            return Ok(());
        }
    }
    if args.gateways.is_empty() {
        bail!("at least one --gateway EUI@HOST:PORT is needed");
    }
    let config = WorldConfig {
        seed: args.seed,
        motes: args.motes,
        rate_milli: args.rate,
        confirmed_ppm: args.confirmed,
        uplink_loss_ppm: args.loss,
        downlink_loss_ppm: args.loss,
        rx2_data_rate: args.rx2_sf,
        duty_cycle: !args.no_duty_cycle,
        otaa_ppm: args.otaa,
        depth: Depth { adr: args.adr, requests_ppm: args.requests, rejoin_us: u64::from(args.rejoin) * 1_000_000 },
        ledger_directory: args.ledgers.clone(),
    };
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT")?;
    let commands = read_commands();
    let world = World::start(config, &args.gateways).await?;
    let gateways: Vec<String> = args.gateways.iter().map(|gateway| format!("{}@{}", gateway.eui, gateway.server)).collect();
    print_line(
        &json!({"event": "started", "motes": args.motes, "seed": args.seed, "gateways": gateways, "ledgers": args.ledgers}),
    )?;
    let deadline = args.duration.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let ended = tokio::select! {
        biased;
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => Ok(()),
        result = serve(&world, commands, args.quit_on_eof) => result,
    };
    // What stopped the world comes first; that it had stopped is only the consequence.
    let status = world.shutdown().await?;
    print_line(&json!({"event": "stopped", "status": status}))?;
    ended
}

type Draining<'a> = Pin<Box<dyn Future<Output = Result<Drained, world::Error>> + 'a>>;

async fn serve(world: &World, mut commands: mpsc::Receiver<Command>, quit_on_eof: bool) -> anyhow::Result<()> {
    let mut tick = interval(Duration::from_secs(1));
    let mut open = true;
    // Draining takes long; commands and status lines go on beside it.
    let mut draining: Option<Draining<'_>> = None;
    loop {
        tokio::select! {
            biased;
            command = commands.recv(), if open => {
                let command = command.unwrap_or(Command::InputEnded);
                open = command != Command::InputEnded;
                match command {
                    Command::Quit => return Ok(()),
                    Command::InputEnded if quit_on_eof => return Ok(()),
                    Command::Drain(bound) => draining = Some(Box::pin(world.drain(bound))),
                    other => carry_out(world, other).await?,
                }
            }
            drained = async { draining.as_mut().expect("checked by the condition").await }, if draining.is_some() => {
                draining = None;
                let drained = drained?;
                print_line(&json!({"event": "drained", "complete": drained.complete, "confirmed_pending": drained.confirmed_pending}))?;
            }
            _ = tick.tick() => {
                if !world.is_running() {
                    return Err(world::Error::Stopped.into());
                }
                print_line(&to_status_line(world))?;
            }
        }
    }
}

async fn carry_out(world: &World, command: Command) -> anyhow::Result<()> {
    match command {
        Command::StopSending => {
            world.stop_sending().await?;
            print_line(&json!({"event": "stopped_sending"}))
        }
        Command::Server(gateway, server) => match world.set_server(gateway, server).await {
            Ok(()) => print_line(&json!({"event": "server", "gateway": gateway, "server": server})),
            Err(error) => print_line(&json!({"event": "refused", "reason": error.to_string()})),
        },
        Command::Status => print_line(&to_status_line(world)),
        Command::Refused(reason) => print_line(&json!({"event": "refused", "reason": reason})),
        Command::Drain(_) | Command::Quit | Command::InputEnded => Ok(()),
    }
}

fn to_status_line(world: &World) -> Value {
    let gateways: serde_json::Map<String, Value> =
        world.gateway_counts().into_iter().map(|(eui, counts)| (eui.to_string(), json!(counts))).collect();
    json!({"event": "status", "status": world.status(), "gateways": gateways})
}

fn print_line(line: &Value) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).context("standard output")
}

fn write_provisioning(args: &RadioArgs, path: &PathBuf) -> anyhow::Result<()> {
    let list = Fleet::with_otaa(args.seed, args.motes, args.otaa)?.provisioning(args.rx2_sf);
    std::fs::write(path, serde_json::to_vec_pretty(&list)?).with_context(|| path.display().to_string())
}

/// A thread of its own: a blocked read of standard input must not hold up the end of the program.
fn read_commands() -> mpsc::Receiver<Command> {
    let (sender, receiver) = mpsc::channel(16);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            let command = match line {
                Ok(line) if line.trim().is_empty() => continue,
                Ok(line) => parse_command(&line),
                Err(_) => Command::InputEnded,
            };
            let ended = command == Command::InputEnded;
            if sender.blocking_send(command).is_err() || ended {
                return;
            }
        }
        // Nobody listens any more if this fails.
        let _ = sender.blocking_send(Command::InputEnded);
    });
    receiver
}

fn parse_command(line: &str) -> Command {
    let refused =
        |reason: &str| Command::Refused(format!("{reason}: {}", line.chars().take(COMMAND_BYTES_MAX).collect::<String>()));
    let words: Vec<&str> = line.split_whitespace().collect();
    match words.as_slice() {
        ["stop-sending"] => Command::StopSending,
        ["drain"] => Command::Drain(Duration::from_millis(DRAIN_MS_DEFAULT)),
        ["drain", bound_ms] => match bound_ms.parse() {
            Ok(bound_ms) => Command::Drain(Duration::from_millis(bound_ms)),
            Err(_) => refused("not a number of milliseconds"),
        },
        ["server", eui, address] => match (eui.parse(), address.parse()) {
            (Ok(eui), Ok(address)) => Command::Server(eui, Some(address)),
            (Err(_), _) | (_, Err(_)) => refused("not EUI HOST:PORT"),
        },
        ["block", eui] => match eui.parse() {
            Ok(eui) => Command::Server(eui, None),
            Err(_) => refused("not an EUI"),
        },
        ["status"] => Command::Status,
        ["quit"] => Command::Quit,
        _ => refused("unknown command"),
    }
}

fn parse_gateway(text: &str) -> Result<GatewayConfig, String> {
    let (eui, server) = text.split_once('@').ok_or("EUI@HOST:PORT is needed")?;
    Ok(GatewayConfig {
        eui: eui.parse().map_err(|error: crate::fleet::NotHex| error.to_string())?,
        server: server.parse().map_err(|error: std::net::AddrParseError| error.to_string())?,
    })
}

fn parse_spreading_factor(text: &str) -> Result<SpreadingFactor, String> {
    let value: u8 = text.parse().map_err(|_| "a number from 7 to 12 is needed".to_owned())?;
    SpreadingFactor::new(value).map_err(|error| error.to_string())
}

fn parse_ppm(text: &str) -> Result<u32, String> {
    let ppm = parse_scaled(text, 6)?;
    u32::try_from(ppm).ok().filter(|ppm| *ppm <= crate::seed::PPM).ok_or_else(|| "a share is between 0 and 1".to_owned())
}

/// A decimal number times ten to the power of `places`, exactly: no floating point.
fn parse_scaled(text: &str, places: usize) -> Result<u64, String> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(fraction) || fraction.len() > places {
        return Err(format!("a number with at most {places} decimals is needed"));
    }
    format!("{whole}{fraction:0<places$}").parse().map_err(|_| "the number is too large".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_exactly() {
        assert_eq!(parse_scaled("20", 3), Ok(20_000));
        assert_eq!(parse_scaled("0.05", 6), Ok(50_000));
        assert_eq!(parse_scaled("1000.125", 3), Ok(1_000_125));
        for bad in ["", ".5", "-1", "1e3", "0.0001", "1.2.3", "99999999999999999999"] {
            assert!(parse_scaled(bad, 3).is_err(), "{bad}");
        }
        assert_eq!(parse_ppm("1"), Ok(1_000_000));
        assert!(parse_ppm("1.000001").is_err());
    }

    #[test]
    fn commands_are_read_or_refused() {
        assert_eq!(parse_command(" stop-sending "), Command::StopSending);
        assert_eq!(parse_command("drain 1500"), Command::Drain(Duration::from_millis(1_500)));
        let server = Command::Server(Eui64(10), Some("127.0.0.1:1700".parse().expect("an address")));
        assert_eq!(parse_command("server 000000000000000a 127.0.0.1:1700"), server);
        assert_eq!(parse_command("block 000000000000000a"), Command::Server(Eui64(10), None));
        for bad in ["drain soon", "server a b", "block", "explode", "quit now"] {
            assert!(matches!(parse_command(bad), Command::Refused(_)), "{bad}");
        }
        assert!(parse_gateway("000000000000000a@127.0.0.1:1700").is_ok());
        assert!(parse_gateway("a@127.0.0.1:1700").is_err() && parse_gateway("127.0.0.1:1700").is_err());
    }
}
