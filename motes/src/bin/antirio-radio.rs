//! Motes, radio and gateways in a process of their own; see `motes::process`.

use clap::Parser;

#[derive(Parser)]
#[command(name = "antirio-radio", version, about = "Simulated LoRaWAN motes and gateways that keep their own ledgers")]
struct Cli {
    #[command(flatten)]
    radio: motes::RadioArgs,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    motes::radio_process(Cli::parse().radio).await
}
