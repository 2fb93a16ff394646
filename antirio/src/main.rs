//! The `antirio` program: one binary, one subcommand per process, and the tools around them.

mod content;
mod credit;
mod doctor;
mod identity;
mod serve;
mod verdict;
mod verify;
mod watch;

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};
use kit::telemetry;

/// Edge nodes of different owners insure one another.
#[derive(Debug, Parser)]
#[command(name = "antirio", version, about, propagate_version = true)]
struct Cli {
    /// What to log: a level, or directives such as `info,edge_node=debug`.
    #[arg(long, global = true, env = "ANTIRIO_LOG", default_value = "info")]
    log: String,
    /// Log as JSON lines.
    #[arg(long, global = true)]
    log_json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run an edge or cloud node.
    Node(serve::ServeVoter),
    /// Run a marketplace.
    Marketplace(serve::Serve),
    /// Run an arbitrator.
    Arbitrator(serve::ServeVoter),
    /// Run a LoRa bridge with a device service beside it: no containers, no insurance, no other nodes.
    Bridge(serve::Serve),
    /// Make keys, and print who they are.
    Init(identity::Args),
    /// Content ids and image tars.
    #[command(subcommand)]
    Content(content::Command),
    /// Check the signatures of a statement in a file.
    Verify(verify::Args),
    /// Recompute a contract's verdict from its evidence, and see who broke the rules of custody. Ends with 2 if the arbitrator's verdict
    /// does not follow, with 3 if a member is convicted.
    Verdict(verdict::Args),
    /// Sign and send an operator's credit to an owner's account.
    Credit(credit::Args),
    /// Show a node's events as they happen.
    Watch(watch::Args),
    /// Show the contracts that a node knows.
    Contracts(watch::Args),
    /// Show what a node is and whom it serves.
    Status(watch::Args),
    /// Say what this machine can do, and what is missing.
    Doctor(doctor::Args),
    /// Print shell completions.
    Completions { shell: clap_complete::Shell },
}

fn main() -> ExitCode {
    // Before any thread starts: container set-up happens in single-threaded copies of this program.
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|first| first == engine::embedded::HELPER_ARGUMENT) {
        return engine::embedded::helper_main(arguments);
    }
    let cli = Cli::parse();
    telemetry::init(if cli.log_json { telemetry::Format::Json } else { telemetry::Format::Text }, &cli.log);
    match run(cli.command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("antirio: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        tracing::debug!("a cryptography provider was installed before");
    }
    if let Command::Completions { shell } = command {
        clap_complete::generate(shell, &mut Cli::command(), "antirio", &mut std::io::stdout());
        return Ok(ExitCode::SUCCESS);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let ended = runtime.block_on(async {
        match command {
            Command::Node(args) => serve::node(args).await,
            Command::Marketplace(args) => serve::marketplace(args).await,
            Command::Arbitrator(args) => serve::arbitrator(args).await,
            Command::Bridge(args) => serve::bridge(args).await,
            Command::Init(args) => identity::init(&args),
            Command::Content(command) => content::run(command).await,
            Command::Verify(args) => verify::run(&args),
            Command::Verdict(args) => verdict::run(args).await,
            Command::Credit(args) => credit::run(args).await,
            Command::Watch(args) => watch::follow(&args).await,
            Command::Contracts(args) => watch::contracts(&args).await,
            Command::Status(args) => watch::status(&args).await,
            Command::Doctor(args) => doctor::run(&args).await,
            Command::Completions { .. } => Ok(ExitCode::SUCCESS),
        }
    });
    runtime.shutdown_timeout(std::time::Duration::from_secs(2));
    ended
}
