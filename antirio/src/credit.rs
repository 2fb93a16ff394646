//! The first payment rail: an operator's signed word that an owner paid in.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use contracts::envelope::Envelope;
use contracts::evidence::Deposit;
use contracts::ids::OwnerId;
use contracts::money::{Amount, Currency};
use contracts::time::Millis;
use edge_node::identity::load_or_create_key;
use kit::clock::Clock;

/// How long an order may be under way.
const VALIDITY: Millis = Millis::from_secs(3_600);

#[derive(Debug, clap::Args)]
pub struct Args {
    /// URL of the arbitrator.
    #[arg(long)]
    arbitrator: String,
    /// The operator's key file.
    #[arg(long)]
    operator_key: PathBuf,
    #[arg(long)]
    owner: OwnerId,
    /// Whole units of the currency.
    #[arg(long)]
    amount: u32,
    #[arg(long, default_value = "EUR")]
    currency: String,
}

pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let client = arbitrator::Client::new(&args.arbitrator)?;
    let operator = load_or_create_key(&args.operator_key)?;
    let now = Clock::system().wall();
    let deposit = Deposit {
        arbitrator: client.describe_arbitrator().await?.node,
        operator: operator.key(),
        owner: args.owner,
        currency: Currency::new(&args.currency).context("a currency is three to eight capital letters")?,
        amount: Amount::from_units(args.amount),
        nonce: now.0,
        valid_until: now + VALIDITY,
    };
    let order = client.take_order(&Envelope::sign(&deposit, &operator)).await?;
    println!("{}", serde_json::to_string(&order)?);
    Ok(ExitCode::SUCCESS)
}
