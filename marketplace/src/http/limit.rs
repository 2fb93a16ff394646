//! Requests per client address: token buckets, a bounded number of them. Pure.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use contracts::time::{BootTime, Millis};

/// At most this many addresses are told apart; when all are busy, the others share one bucket.
pub const CLIENTS_MAX: usize = 10_000;

/// A token is worth this many parts, so that rates below one per millisecond stay integers.
const PARTS: u64 = 1_000;

#[derive(Debug, Clone, Copy)]
struct Bucket {
    parts: u64,
    at: BootTime,
}

#[derive(Debug)]
pub struct Buckets {
    per_second: u64,
    burst: u64,
    clients: BTreeMap<IpAddr, Bucket>,
}

impl Buckets {
    #[must_use]
    pub const fn new(per_second: u32, burst: u32) -> Self {
        Self { per_second: per_second as u64, burst: burst as u64, clients: BTreeMap::new() }
    }

    /// Takes a token of the client (`None`: it has no address, e.g. in process).
    ///
    /// # Errors
    /// How long until there is one.
    pub fn take(&mut self, client: Option<IpAddr>, now: BootTime) -> Result<(), Millis> {
        let Some(client) = client else { return Ok(()) };
        let full = self.burst * PARTS;
        let refilled = |bucket: &Bucket, rate: u64| (bucket.parts + now.since(bucket.at).0.saturating_mul(rate)).min(full); // parts per ms = tokens per s
        let rate = self.per_second;
        let mut client = network(client);
        if !self.clients.contains_key(&client) && self.clients.len() >= CLIENTS_MAX {
            self.clients.retain(|_, bucket| refilled(bucket, rate) < full);
            if self.clients.len() >= CLIENTS_MAX {
                client = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
            }
        }
        let bucket = self.clients.entry(client).or_insert(Bucket { parts: full, at: now });
        *bucket = Bucket { parts: refilled(bucket, rate), at: now };
        match bucket.parts.checked_sub(PARTS) {
            Some(parts) => {
                bucket.parts = parts;
                Ok(())
            }
            None => Err(Millis((PARTS - bucket.parts).div_ceil(rate))),
        }
    }
}

/// Whoever has one IPv6 address has its /64.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64)),
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v6(low: u64) -> Option<IpAddr> {
        Some(IpAddr::V6(Ipv6Addr::from_bits(0x2001_0db8 << 96 | u128::from(low))))
    }

    #[test]
    fn a_burst_then_the_rate_and_neighbours_of_one_network_share() {
        let mut buckets = Buckets::new(10, 3);
        for n in 0..3 {
            assert_eq!(buckets.take(v6(n), BootTime(0)), Ok(()));
        }
        assert_eq!(buckets.take(v6(9), BootTime(0)), Err(Millis(100)));
        assert_eq!(buckets.take(v6(9), BootTime(99)), Err(Millis(1)));
        assert_eq!(buckets.take(v6(9), BootTime(100)), Ok(()));
        assert_eq!(buckets.take(Some(IpAddr::V4(Ipv4Addr::LOCALHOST)), BootTime(100)), Ok(()));
    }

    #[test]
    fn the_table_stays_bounded_and_strangers_share_when_it_is_full() {
        let mut buckets = Buckets::new(1, 2);
        let client = |n: u32| Some(IpAddr::V4(Ipv4Addr::from_bits(n + 1)));
        let clients = u32::try_from(CLIENTS_MAX).expect("small");
        for n in 0..clients {
            assert_eq!(buckets.take(client(n), BootTime(0)), Ok(()));
        }
        let served = (clients..clients + 10).filter(|n| buckets.take(client(*n), BootTime(0)).is_ok()).count();
        assert_eq!(served, 2, "one bucket for all");
        assert!(buckets.clients.len() <= CLIENTS_MAX + 1);
        assert_eq!(buckets.take(client(clients), BootTime(60_000)), Ok(()), "full buckets are forgotten");
        assert!(buckets.clients.len() < 10);
    }
}
