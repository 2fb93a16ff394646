//! Measures two endpoints on loopback in one process; prints JSON: round trips in microseconds, throughput, memory.
//!
//! `cargo run --release -p peering --example roundtrip -- [ROUNDS]`

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::Request;
use axum::routing::{get, post};
use contracts::time::Millis;
use futures_util::{StreamExt as _, stream};
use http_body_util::BodyExt as _;
use kit::clock::Clock;
use peering::endpoint::Config;
use peering::{AddressBook, Endpoint, Transport as _};
use serde_json::{Value, json};

type Failure = Box<dyn std::error::Error + Send + Sync>;

const ROUNDS_DEFAULT: usize = 20_000;
const DATAGRAM_BYTES: usize = 200;
const STREAM_BYTES: usize = 100 << 20;
const CHUNK_BYTES: usize = 64 << 10;

/// Resident memory of this process in kilobytes (proc(5), VmRSS).
fn rss_kb() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

fn percentiles(mut micros: Vec<u64>) -> Value {
    micros.sort_unstable();
    let at = |per_mille: usize| micros.get((micros.len().saturating_sub(1)) * per_mille / 1_000).copied();
    json!({ "p50_us": at(500), "p99_us": at(990), "max_us": at(1_000), "rounds": micros.len() })
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}

async fn endpoint(secret: u8, addresses: &AddressBook) -> Result<Endpoint, Failure> {
    let mut config = Config::new([secret; 32], SocketAddr::from(([127, 0, 0, 1], 0)), Arc::new(|_| true), Clock::system());
    config.addresses = addresses.clone();
    config.limits.requests_per_second_max = u32::MAX;
    config.limits.datagrams_per_second_max = u32::MAX;
    let endpoint = Endpoint::bind(config).await?;
    addresses.set(endpoint.me(), endpoint.local_address());
    Ok(endpoint)
}

async fn datagrams(a: &Endpoint, b: &Endpoint, rounds: usize) -> Result<Value, Failure> {
    let mut at_a = a.take_datagrams().ok_or("taken")?;
    let mut at_b = b.take_datagrams().ok_or("taken")?;
    let (echo, back_to) = (b.clone(), a.me());
    tokio::spawn(async move {
        while let Some(datagram) = at_b.recv().await {
            let _ = echo.datagram(back_to, datagram.bytes);
        }
    });
    let mut times = Vec::with_capacity(rounds);
    let payload = Bytes::from(vec![7; DATAGRAM_BYTES]);
    for _ in 0..rounds {
        let started = Instant::now();
        a.datagram(b.me(), payload.clone())?;
        at_a.recv().await.ok_or("closed")?;
        times.push(micros(started));
    }
    Ok(percentiles(times))
}

async fn requests(a: &Endpoint, b: &Endpoint, rounds: usize) -> Result<Value, Failure> {
    let mut times = Vec::with_capacity(rounds);
    for _ in 0..rounds {
        let started = Instant::now();
        let response = a.request(b.me(), Request::get("/hello").body(Body::empty())?).await?;
        response.into_body().collect().await?;
        times.push(micros(started));
    }
    Ok(percentiles(times))
}

async fn streams(a: &Endpoint, b: &Endpoint) -> Result<Value, Failure> {
    let chunk = Bytes::from(vec![7; CHUNK_BYTES]);
    let chunks = stream::iter(0..STREAM_BYTES / CHUNK_BYTES).map(move |_| Ok::<_, std::io::Error>(chunk.clone()));
    let started = Instant::now();
    let request = Request::post("/echo").body(Body::from_stream(chunks))?;
    let mut body = a.request(b.me(), request).await?.into_body();
    let mut received = 0;
    while let Some(frame) = body.frame().await {
        received += frame?.into_data().map(|data| data.len()).unwrap_or_default();
    }
    let millis = micros(started) / 1_000;
    Ok(json!({ "bytes_each_way": received, "ms": millis, "rss_kb_after": rss_kb() }))
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<(), Failure> {
    let rounds = std::env::args().nth(1).map_or(Ok(ROUNDS_DEFAULT), |text| text.parse())?;
    let rss_kb_bare = rss_kb();
    let addresses = AddressBook::new();
    let a = endpoint(1, &addresses).await?;
    let rss_kb_one = rss_kb();
    let b = endpoint(2, &addresses).await?;
    b.serve(Router::new().route("/hello", get(|| async { "hello" })).route("/echo", post(|body: Body| async move { body })));
    let started = Instant::now();
    a.keep_warm(b.me(), Millis(1_000));
    a.peer(b.me()).wait_for(|state| state.connected_since.is_some()).await?;
    let connect_us = micros(started);
    let report = json!({
        "connect_us": connect_us,
        "datagram_round_trip": datagrams(&a, &b, rounds).await?,
        "request_round_trip": requests(&a, &b, rounds / 4).await?,
        "rss_kb": { "bare": rss_kb_bare, "one_endpoint": rss_kb_one, "two_endpoints_in_use": rss_kb() },
        "stream": streams(&a, &b).await?,
    });
    println!("{}", serde_json::to_string_pretty(&report)?);
    a.close().await;
    b.close().await;
    Ok(())
}
