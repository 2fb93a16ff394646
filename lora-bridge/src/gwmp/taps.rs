//! Taps: the `PUSH_DATA` of chosen gateways, as they are, to further servers. Uplinks only, as a packet multiplexer does.
//!
//! So a node that insures others hears their motes without a change at its gateway: the gateway's own server taps for it, or it taps for that
//! server. The gateway is acknowledged by this bridge; what the other server answers is counted and goes no further.

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::SocketAddr;

use super::GatewayEui;

/// More taps than this are not looked at.
pub const TAPS_MAX: usize = 16;

/// Gateways that one tap may name.
pub const TAP_GATEWAYS_MAX: usize = 1_024;

/// Datagrams remembered, so that servers which tap for one another do not send them round for ever.
const REMEMBERED: usize = 256;

/// Where the datagrams of some gateways go too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tap {
    /// The other server's port for packet forwarders.
    pub to: SocketAddr,
    /// Whose datagrams; all if empty.
    pub gateways: Vec<GatewayEui>,
}

/// The taps in force.
#[derive(Debug, Default)]
pub(crate) struct Taps {
    taps: Vec<Tap>,
    forwarded: VecDeque<u64>,
}

impl Taps {
    pub(crate) fn set(&mut self, mut taps: Vec<Tap>) {
        taps.truncate(TAPS_MAX);
        for tap in &mut taps {
            tap.gateways.truncate(TAP_GATEWAYS_MAX);
            tap.gateways.sort_unstable();
        }
        self.taps = taps;
    }

    /// Whether an address is that of a server for which is tapped.
    pub(crate) fn is_target(&self, address: SocketAddr) -> bool {
        self.taps.iter().any(|tap| tap.to == address)
    }

    /// The servers that get a datagram: none if it came from one of them, or was forwarded before.
    pub(crate) fn targets(&mut self, from: SocketAddr, gateway: GatewayEui, datagram: &[u8]) -> Vec<SocketAddr> {
        let is_wanted = |tap: &&Tap| tap.gateways.is_empty() || tap.gateways.binary_search(&gateway).is_ok();
        let targets: Vec<SocketAddr> = self.taps.iter().filter(is_wanted).map(|tap| tap.to).collect();
        if targets.is_empty() || self.is_target(from) {
            return Vec::new();
        }
        let mut digest = DefaultHasher::new();
        datagram.hash(&mut digest);
        let digest = digest.finish();
        if self.forwarded.contains(&digest) {
            return Vec::new();
        }
        if self.forwarded.len() >= REMEMBERED {
            self.forwarded.pop_front();
        }
        self.forwarded.push_back(digest);
        targets
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    #[test]
    fn chosen_gateways_go_to_chosen_servers_once() {
        let mut taps = Taps::default();
        assert!(taps.targets(at(9), GatewayEui(1), b"a").is_empty());
        taps.set(vec![Tap { to: at(1), gateways: vec![GatewayEui(7), GatewayEui(3)] }, Tap { to: at(2), gateways: Vec::new() }]);
        assert_eq!(taps.targets(at(9), GatewayEui(3), b"a"), [at(1), at(2)]);
        assert_eq!(taps.targets(at(9), GatewayEui(4), b"b"), [at(2)]);
        assert!(taps.targets(at(9), GatewayEui(4), b"b").is_empty(), "it came round");
        assert!(taps.targets(at(2), GatewayEui(4), b"c").is_empty(), "from a server for which is tapped");
        assert!(taps.is_target(at(1)) && !taps.is_target(at(9)));
        for n in 0..1_000_u32 {
            taps.targets(at(9), GatewayEui(4), &n.to_le_bytes());
        }
        assert_eq!(taps.forwarded.len(), REMEMBERED);
        taps.set(vec![Tap { to: at(1), gateways: Vec::new() }; 20]);
        assert_eq!(taps.taps.len(), TAPS_MAX);
    }
}
