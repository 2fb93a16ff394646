//! Checks a signed statement in a file and says what it is, whose it is and what its id is.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use contracts::contract::Contract;
use contracts::envelope::{Envelope, Error, Key, Statement};
use contracts::evidence::{Evidence, Verdict};
use contracts::listing::{Demand, Match, Offer, Withdrawal};
use contracts::node_record::NodeRecord;
use contracts::proof::BatchProof;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// A file with one envelope (JSON).
    file: PathBuf,
}

fn signers<T: Statement>(envelope: &Envelope) -> Result<Vec<Key>, Error> {
    envelope.verify::<T>().map(|verified| verified.signers)
}

/// Verifies as whatever the envelope says that it is.
fn verify(envelope: &Envelope) -> Result<Vec<Key>, Error> {
    match envelope.payload_type.as_str() {
        NodeRecord::TYPE => signers::<NodeRecord>(envelope),
        Offer::TYPE => signers::<Offer>(envelope),
        Demand::TYPE => signers::<Demand>(envelope),
        Withdrawal::TYPE => signers::<Withdrawal>(envelope),
        Match::TYPE => signers::<Match>(envelope),
        Contract::TYPE => signers::<Contract>(envelope),
        BatchProof::TYPE => signers::<BatchProof>(envelope),
        Verdict::TYPE => signers::<Verdict>(envelope),
        _ => Evidence::read(envelope).map(|evidence| evidence.signers),
    }
}

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let text = std::fs::read(&args.file).with_context(|| format!("{} cannot be read", args.file.display()))?;
    let envelope: Envelope = serde_json::from_slice(&text).context("not an envelope")?;
    let signers = verify(&envelope).context("the statement does not verify")?;
    let payload: serde_json::Value = serde_json::from_slice(&envelope.payload)?;
    let said = serde_json::json!({"id": envelope.id(), "type": envelope.payload_type, "signers": signers, "statement": payload});
    println!("{}", serde_json::to_string_pretty(&said)?);
    Ok(ExitCode::SUCCESS)
}
