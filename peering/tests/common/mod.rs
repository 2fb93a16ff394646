//! Helpers of the tests: endpoints on loopback, waiting for conditions.
#![allow(dead_code, reason = "each test binary uses a part")]

pub mod cluster;

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use contracts::envelope::Keypair;
use contracts::ids::NodeId;
use contracts::time::Millis;
use kit::clock::Clock;
use peering::endpoint::Config;
use peering::{AddressBook, Endpoint, Transport as _};

/// Longer than anything that works takes on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(10);

pub fn keypair(number: u8) -> Keypair {
    Keypair::from_secret(&[number; 32])
}

pub fn id(number: u8) -> NodeId {
    keypair(number).node_id()
}

pub fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

pub fn config(number: u8, addresses: &AddressBook) -> Config {
    let mut config = Config::new([number; 32], loopback(), Arc::new(|_| true), Clock::system());
    config.addresses = addresses.clone();
    config.dial_timeout = Millis(1_000);
    config.idle_timeout = Millis(4_000);
    config
}

/// Binds and enters its address into the book.
pub async fn bind(config: Config) -> Endpoint {
    let addresses = config.addresses.clone();
    let endpoint = Endpoint::bind(config).await.expect("binds on loopback");
    addresses.set(endpoint.me(), endpoint.local_address());
    endpoint
}

pub async fn endpoint(number: u8, addresses: &AddressBook) -> Endpoint {
    bind(config(number, addresses)).await
}

/// Ends with `future`, or fails the test.
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("not in time: {what}"),
    }
}

/// Ends when `condition` holds; for things that have no signal of their own.
pub async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    soon(what, async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}
