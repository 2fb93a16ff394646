//! Makes keys, and prints who they are.

use std::path::PathBuf;
use std::process::ExitCode;

use edge_node::identity::{KEY_FILE, load_or_create_key};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// State directory of the node; its key is made there if it is not there yet.
    #[arg(long)]
    state: Option<PathBuf>,
    /// The owner's key file; made if it is not there yet. Keep it off the node where you can.
    #[arg(long)]
    owner_key: Option<PathBuf>,
}

pub fn init(args: &Args) -> anyhow::Result<ExitCode> {
    let mut said = serde_json::Map::new();
    if let Some(state) = &args.state {
        let key = load_or_create_key(&state.join(KEY_FILE))?;
        said.insert("node".to_owned(), key.node_id().to_string().into());
    }
    if let Some(path) = &args.owner_key {
        let key = load_or_create_key(path)?;
        said.insert("owner".to_owned(), key.owner_id().to_string().into());
        said.insert("key".to_owned(), key.key().to_string().into());
    }
    if said.is_empty() {
        anyhow::bail!("give --state, --owner-key or both");
    }
    println!("{}", serde_json::Value::Object(said));
    Ok(ExitCode::SUCCESS)
}
