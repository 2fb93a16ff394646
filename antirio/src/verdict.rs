//! Recomputes a contract's verdict: from an arbitrator's public records, or from a case file without a network.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use arbitrator::case::{self, Case, Exhibit, Review};
use contracts::envelope::Envelope;
use contracts::ids::ContractId;
use kit::clock::Clock;

/// The arbitrator's verdict is not what follows from the evidence.
const DISAGREES: u8 = 2;
/// The verdict follows, and a member broke the rules of custody or hides what it heard.
const CONVICTED: u8 = 3;

/// Largest case file.
const CASE_BYTES_MAX: u64 = 256 << 20;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The contract; its records are fetched from the arbitrator.
    #[arg(required_unless_present = "case", requires = "arbitrator")]
    contract: Option<ContractId>,
    /// URL of the arbitrator.
    #[arg(long)]
    arbitrator: Option<String>,
    /// A case file, as `--save` writes it; no network is used.
    #[arg(long, conflicts_with_all = ["contract", "arbitrator"])]
    case: Option<PathBuf>,
    /// Statements that a member kept (JSON envelopes, one per line), to be judged with the case: of custody, and accounts, receipts and shown
    /// frames as `/v1/accounts/{group}/statements` gives them.
    #[arg(long)]
    statements: Vec<PathBuf>,
    /// Write the case to a file.
    #[arg(long)]
    save: Option<PathBuf>,
}

pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let mut case = match (&args.case, args.contract, &args.arbitrator) {
        (Some(file), _, _) => serde_json::from_slice(&read(file)?).context("not a case file")?,
        (None, Some(contract), Some(url)) => fetch(&arbitrator::Client::new(url)?, contract).await?,
        (None, _, _) => anyhow::bail!("name a contract and its arbitrator, or a case file"),
    };
    for file in &args.statements {
        for line in read(file)?.split(|byte| *byte == b'\n').filter(|line| !line.trim_ascii().is_empty()) {
            case.statements.push(serde_json::from_slice::<Envelope>(line).with_context(|| format!("in {}", file.display()))?);
        }
    }
    if let Some(file) = &args.save {
        std::fs::write(file, serde_json::to_vec(&case)?).with_context(|| format!("{} cannot be written", file.display()))?;
    }
    let review = case::review(&case, Clock::system().wall())?;
    println!("{}", serde_json::to_string_pretty(&describe(&review))?);
    Ok(exit_code(&review))
}

fn read(file: &Path) -> anyhow::Result<Vec<u8>> {
    let named = || format!("{} cannot be read", file.display());
    let length = std::fs::metadata(file).with_context(named)?.len();
    anyhow::ensure!(length <= CASE_BYTES_MAX, "{} has {length} bytes, at most {CASE_BYTES_MAX} are read", file.display());
    std::fs::read(file).with_context(named)
}

/// All public records of a contract.
async fn fetch(client: &arbitrator::Client, contract: ContractId) -> anyhow::Result<Case> {
    let view = client.get_contract(contract).await?;
    let mut evidence = Vec::new();
    let mut after = 0;
    loop {
        let page = client.list_evidence(contract, after).await?;
        evidence.extend(page.items.into_iter().map(|it| Exhibit { received_at: it.received_at, envelope: it.envelope }));
        match page.next {
            Some(next) => after = next,
            None => break,
        }
    }
    let verdict = match view.standing.ended {
        Some(_) => Some(client.get_verdict(contract).await?.envelope),
        None => None,
    };
    Ok(Case { contract: view.envelope, in_force_since: view.standing.in_force_since, evidence, verdict, statements: Vec::new() })
}

fn describe(review: &Review) -> serde_json::Value {
    let convictions: Vec<_> = review
        .convictions
        .iter()
        .map(
            |(it, proof)| serde_json::json!({"member": it.member, "offence": it.offence, "epoch": it.epoch, "statements": proof}),
        )
        .collect();
    let books: Vec<_> = review
        .books
        .iter()
        .map(|it| {
            serde_json::json!({"member": it.node, "offence": it.offence, "number": it.number, "statements": it.proof, "missing": it.missing})
        })
        .collect();
    serde_json::json!({
        "contract": review.contract,
        "agrees": review.agrees(),
        "recomputed": review.recomputed,
        "signed": review.signed,
        "convictions": convictions,
        "books": books,
    })
}

fn exit_code(review: &Review) -> ExitCode {
    if !review.agrees() {
        ExitCode::from(DISAGREES)
    } else if review.convictions.is_empty() && review.books.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(CONVICTED)
    }
}
