//! Reads a node's operator API.

use std::process::ExitCode;

use anyhow::Context as _;
use futures_util::StreamExt as _;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// URL of the node's operator API.
    #[arg(long, env = "ANTIRIO_API", default_value = "http://127.0.0.1:7300")]
    api: String,
}

async fn get(args: &Args, path: &str) -> anyhow::Result<reqwest::Response> {
    let url = format!("{}{path}", args.api.trim_end_matches('/'));
    // The operator API is plain HTTP on loopback: no certificates are needed, and a small machine may have none.
    let client = reqwest::Client::builder().tls_certs_only([]).build()?;
    let response = client.get(&url).send().await.with_context(|| format!("{url} does not answer"))?;
    Ok(response.error_for_status()?)
}

/// Every event as one JSON line.
pub async fn follow(args: &Args) -> anyhow::Result<ExitCode> {
    let mut body = get(args, "/v1/events").await?.bytes_stream();
    let mut text = Vec::new();
    while let Some(chunk) = body.next().await {
        text.extend_from_slice(&chunk?);
        while let Some(end) = text.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = text.drain(..=end).collect();
            if let Some(data) = line.strip_prefix(b"data:") {
                println!("{}", String::from_utf8_lossy(data).trim());
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

pub async fn contracts(args: &Args) -> anyhow::Result<ExitCode> {
    print(args, "/v1/contracts").await
}

pub async fn status(args: &Args) -> anyhow::Result<ExitCode> {
    print(args, "/v1/status").await
}

async fn print(args: &Args, path: &str) -> anyhow::Result<ExitCode> {
    let answer: serde_json::Value = get(args, path).await?.json().await?;
    println!("{}", serde_json::to_string_pretty(&answer)?);
    Ok(ExitCode::SUCCESS)
}
