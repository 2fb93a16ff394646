//! Where each gateway is reached: the source of its last `PULL_DATA`, never of a `PUSH_DATA`, which comes from another socket.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use contracts::time::{BootTime, Millis};

use super::{GatewayEui, Version};

/// A gateway that has not pulled for so long is not reached any more (its keepalive is 5 s).
pub const PULL_SILENCE_MAX: Millis = Millis::from_secs(60);

/// Where and how downlinks go to a gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    pub address: SocketAddr,
    pub version: Version,
    pulled: BootTime,
}

/// Bounded map of gateways.
#[derive(Debug)]
pub struct Gateways {
    routes: BTreeMap<GatewayEui, Route>,
    max: usize,
    swept: BootTime,
}

impl Gateways {
    /// At most `max` gateways.
    #[must_use]
    pub const fn new(max: usize) -> Self {
        Self { routes: BTreeMap::new(), max, swept: BootTime(0) }
    }

    /// Notes a `PULL_DATA`. False if the map is full of gateways that are alive.
    pub fn pulled(&mut self, gateway: GatewayEui, address: SocketAddr, version: Version, now: BootTime) -> bool {
        let route = Route { address, version, pulled: now };
        if let Some(known) = self.routes.get_mut(&gateway) {
            *known = route;
            return true;
        }
        if self.routes.len() >= self.max && now.since(self.swept) >= Millis::from_secs(1) {
            // At most once a second, so that a flood of made-up gateways does not make every datagram a sweep.
            self.swept = now;
            self.routes.retain(|_, route| now.since(route.pulled) <= PULL_SILENCE_MAX);
        }
        let has_room = self.routes.len() < self.max;
        if has_room {
            self.routes.insert(gateway, route);
        }
        has_room
    }

    /// The way down to a gateway that pulls.
    #[must_use]
    pub fn route(&self, gateway: GatewayEui, now: BootTime) -> Option<Route> {
        self.routes.get(&gateway).copied().filter(|route| now.since(route.pulled) <= PULL_SILENCE_MAX)
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.routes.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.routes.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_source_wins_and_the_map_is_bounded() {
        let mut gateways = Gateways::new(2);
        let at = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
        let start = BootTime(100_000);
        assert!(gateways.pulled(GatewayEui(1), at(1), Version::V2, start));
        assert!(gateways.pulled(GatewayEui(1), at(2), Version::V2, start));
        assert_eq!(gateways.route(GatewayEui(1), start).map(|route| route.address), Some(at(2)));
        assert!(gateways.pulled(GatewayEui(2), at(3), Version::V1, start + Millis(50_000)));
        assert!(!gateways.pulled(GatewayEui(3), at(4), Version::V2, start + Millis(60_000)), "both are alive");
        assert!(gateways.pulled(GatewayEui(3), at(4), Version::V2, start + Millis(61_001)), "the first went silent");
        assert_eq!(gateways.route(GatewayEui(1), start + Millis(61_001)), None);
        assert_eq!(gateways.len(), 2);
    }
}
