//! What is known of each gateway: where it is reached, how it fares, what it says of itself.
//!
//! Downlinks go to the source of the last `PULL_DATA`, never to that of a `PUSH_DATA`, which comes from another socket. The protocol knows no
//! authentication: whoever can send datagrams to this port can claim a gateway's EUI; a changed address is counted.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use contracts::time::{BootTime, Millis, WallTime};
use serde::{Deserialize, Serialize};

use super::stat::Stat;
use super::txpk::TxResult;
use super::{GatewayEui, Version};

/// A gateway that has not pulled for so long is not reached any more (its keepalive is 5 s).
pub const PULL_SILENCE_MAX: Millis = Millis::from_secs(60);

/// Who stores [`Routes`] does so at least so often while gateways pull: a process that begins anew may use what is no older than
/// [`PULL_SILENCE_MAX`].
pub const REFRESH_EVERY: Millis = Millis::from_secs(20);

/// Nobody waits for copies of a gateway that was silent for so long.
pub const LIVE_SILENCE_MAX: Millis = Millis::from_secs(30);

/// Where and how downlinks go to a gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    pub address: SocketAddr,
    pub version: Version,
    pulled: BootTime,
}

/// Where all gateways are reached, to be stored: a process that begins anew can answer before they pull again.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Routes {
    /// Rises when a gateway is reached elsewhere than before, or for the first time.
    pub changes: u64,
    /// Rises with every `PULL_DATA`.
    pub pulls: u64,
    /// By gateway.
    pub routes: Vec<StoredRoute>,
}

/// Where one gateway is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoredRoute {
    pub gateway: GatewayEui,
    pub address: SocketAddr,
    /// Of the protocol.
    pub version: u8,
    /// When it last pulled.
    pub pulled_at: WallTime,
}

/// Counts of one gateway since it is known.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    pub push_data: u64,
    pub pull_data: u64,
    /// Packets heard and readable.
    pub packets: u64,
    /// Of these, with a right integrity code of a registered session.
    pub verified: u64,
    /// Packets that could not be read.
    pub bad_packets: u64,
    /// `PULL_RESP` sent to it.
    pub downlinks: u64,
    /// `TX_ACK` by result.
    pub tx_results: BTreeMap<&'static str, u64>,
    /// How often it pulled from another address than before.
    pub address_changes: u64,
}

#[derive(Debug)]
struct Gateway {
    version: Version,
    /// Its last datagram of any kind.
    seen: BootTime,
    route: Option<Route>,
    stat: Option<Stat>,
    /// It said that it has not the power that it was told.
    has_refused_power: bool,
    counts: Counts,
}

/// One gateway, for operators.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GatewayStatus {
    pub gateway: GatewayEui,
    /// Protocol version of its last datagram.
    pub version: u8,
    /// Where downlinks go; absent while it does not pull.
    pub address: Option<SocketAddr>,
    /// Since its last datagram.
    pub silence: Millis,
    /// The last `stat` that it sent.
    pub stat: Option<Stat>,
    pub counts: Counts,
}

/// What one `PUSH_DATA` brought.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pushed {
    pub packets: u64,
    pub verified: u64,
    pub bad_packets: u64,
    pub stat: Option<Stat>,
}

/// Bounded map of gateways.
#[derive(Debug)]
pub struct Gateways {
    known: BTreeMap<GatewayEui, Gateway>,
    max: usize,
    swept: BootTime,
    /// As in [`Routes`].
    changes: u64,
    pulls: u64,
}

impl Gateways {
    /// At most `max` gateways.
    #[must_use]
    pub const fn new(max: usize) -> Self {
        Self { known: BTreeMap::new(), max, swept: BootTime(0), changes: 0, pulls: 0 }
    }

    /// The gateway, made if fewer than `limit` are known.
    fn entry(&mut self, gateway: GatewayEui, version: Version, limit: usize, now: BootTime) -> Option<&mut Gateway> {
        if !self.known.contains_key(&gateway) {
            if self.known.len() >= limit && now.since(self.swept) >= Millis::from_secs(1) {
                // At most once a second, so that a flood of made-up gateways does not make every datagram a sweep.
                self.swept = now;
                self.known.retain(|_, known| now.since(known.seen) <= PULL_SILENCE_MAX);
            }
            if self.known.len() >= limit {
                return None;
            }
        }
        let new = || Gateway { version, seen: now, route: None, stat: None, has_refused_power: false, counts: Counts::default() };
        let known = self.known.entry(gateway).or_insert_with(new);
        known.version = version;
        known.seen = now;
        Some(known)
    }

    /// Notes a `PULL_DATA`. False if the map is full of gateways that are alive.
    pub fn pulled(&mut self, gateway: GatewayEui, address: SocketAddr, version: Version, now: BootTime) -> bool {
        let Some(known) = self.entry(gateway, version, self.max, now) else { return false };
        known.counts.pull_data += 1;
        let route = Route { address, version, pulled: now };
        let before = known.route.replace(route);
        known.counts.address_changes += u64::from(before.is_some_and(|before| before.address != address));
        self.pulls += 1;
        self.changes += u64::from(before.is_none_or(|before| (before.address, before.version) != (address, version)));
        true
    }

    /// For the disk: those that pulled lately.
    pub(crate) fn routes(&self, now: BootTime, wall: WallTime) -> Routes {
        let stored = |(gateway, known): (&GatewayEui, &Gateway)| {
            let route = known.route.filter(|route| now.since(route.pulled) <= PULL_SILENCE_MAX)?;
            let pulled_at = wall - now.since(route.pulled);
            Some(StoredRoute { gateway: *gateway, address: route.address, version: route.version.byte(), pulled_at })
        };
        Routes { changes: self.changes, pulls: self.pulls, routes: self.known.iter().filter_map(stored).collect() }
    }

    /// From the disk, at the beginning. Whoever pulled here already is known better; what is older than [`PULL_SILENCE_MAX`], or of a time to
    /// come, is not used.
    pub(crate) fn restore(&mut self, stored: &Routes, now: BootTime, wall: WallTime) {
        for route in stored.routes.iter().take(self.max) {
            let age = wall.since(route.pulled_at);
            let Some(version) = Version::of(route.version) else { continue };
            let is_known = self.known.get(&route.gateway).is_some_and(|known| known.route.is_some());
            if is_known || route.pulled_at > wall || age > PULL_SILENCE_MAX {
                continue;
            }
            let pulled = now - age;
            if let Some(known) = self.entry(route.gateway, version, self.max, pulled) {
                known.route = Some(Route { address: route.address, version, pulled });
            }
        }
    }

    /// Notes a `PUSH_DATA`. Those who only push fill at most half of the map, so that there is room for those who pull.
    pub(crate) fn pushed(&mut self, gateway: GatewayEui, version: Version, pushed: Pushed, now: BootTime) {
        let Some(known) = self.entry(gateway, version, self.max.div_ceil(2), now) else { return };
        known.counts.push_data += 1;
        known.counts.packets += pushed.packets;
        known.counts.verified += pushed.verified;
        known.counts.bad_packets += pushed.bad_packets;
        known.stat = pushed.stat.or_else(|| known.stat.take());
    }

    pub(crate) fn sent(&mut self, gateway: GatewayEui) {
        if let Some(known) = self.known.get_mut(&gateway) {
            known.counts.downlinks += 1;
        }
    }

    pub(crate) fn answered(&mut self, gateway: GatewayEui, result: TxResult) {
        if let Some(known) = self.known.get_mut(&gateway) {
            *known.counts.tx_results.entry(result.name()).or_default() += 1;
            known.has_refused_power |= result == TxResult::Power;
        }
    }

    /// Whether it ever refused a downlink for its power. Forwarders of today take the next lower power that they have, with a warning; those
    /// before version 5 of Semtech's refuse.
    pub(crate) fn has_refused_power(&self, gateway: GatewayEui) -> bool {
        self.known.get(&gateway).is_some_and(|known| known.has_refused_power)
    }

    /// The way down to a gateway that pulls.
    #[must_use]
    pub fn route(&self, gateway: GatewayEui, now: BootTime) -> Option<Route> {
        self.known.get(&gateway)?.route.filter(|route| now.since(route.pulled) <= PULL_SILENCE_MAX)
    }

    /// Whether something came from the gateway lately.
    #[must_use]
    pub fn is_live(&self, gateway: GatewayEui, now: BootTime) -> bool {
        self.known.get(&gateway).is_some_and(|known| now.since(known.seen) <= LIVE_SILENCE_MAX)
    }

    /// When something came from any gateway last.
    #[must_use]
    pub fn last_seen(&self) -> Option<BootTime> {
        self.known.values().map(|gateway| gateway.seen).max()
    }

    /// All gateways, by EUI.
    #[must_use]
    pub fn statuses(&self, now: BootTime) -> Vec<GatewayStatus> {
        let status = |(gateway, known): (&GatewayEui, &Gateway)| GatewayStatus {
            gateway: *gateway,
            version: known.version.byte(),
            address: self.route(*gateway, now).map(|route| route.address),
            silence: now.since(known.seen),
            stat: known.stat.clone(),
            counts: known.counts.clone(),
        };
        self.known.iter().map(status).collect()
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.known.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    #[test]
    fn the_newest_source_wins_and_the_map_is_bounded() {
        let mut gateways = Gateways::new(2);
        let start = BootTime(100_000);
        assert!(gateways.pulled(GatewayEui(1), at(1), Version::V2, start));
        assert!(gateways.pulled(GatewayEui(1), at(2), Version::V2, start));
        assert_eq!(gateways.route(GatewayEui(1), start).map(|route| route.address), Some(at(2)));
        assert_eq!(gateways.statuses(start)[0].counts.address_changes, 1);
        assert!(gateways.pulled(GatewayEui(2), at(3), Version::V1, start + Millis(50_000)));
        assert!(!gateways.pulled(GatewayEui(3), at(4), Version::V2, start + Millis(60_000)), "both are alive");
        assert!(gateways.pulled(GatewayEui(3), at(4), Version::V2, start + Millis(61_001)), "the first went silent");
        assert_eq!(gateways.route(GatewayEui(1), start + Millis(61_001)), None);
        assert_eq!(gateways.len(), 2);
    }

    #[test]
    fn who_only_pushes_has_no_route_and_leaves_room_for_those_who_pull() {
        let mut gateways = Gateways::new(4);
        let now = BootTime(100_000);
        for gateway in 0..10 {
            gateways.pushed(GatewayEui(gateway), Version::V1, Pushed { packets: 3, ..Pushed::default() }, now);
        }
        assert_eq!((gateways.len(), gateways.route(GatewayEui(0), now)), (2, None));
        assert!(gateways.is_live(GatewayEui(0), now) && !gateways.is_live(GatewayEui(0), now + Millis(30_001)));
        assert!(
            gateways.pulled(GatewayEui(8), at(8), Version::V2, now) && gateways.pulled(GatewayEui(9), at(9), Version::V2, now)
        );
        let statuses = gateways.statuses(now + Millis(7));
        assert_eq!((statuses[0].version, statuses[0].counts.packets, statuses[0].silence), (1, 3, Millis(7)));
        assert_eq!((statuses[3].gateway, statuses[3].address), (GatewayEui(9), Some(at(9))));
    }

    #[test]
    fn routes_outlive_the_process_for_a_minute() {
        let mut before = Gateways::new(4);
        let (now, wall) = (BootTime(1_000_000), WallTime(5_000_000));
        for (gateway, silence) in [(1, 0), (2, 20_000), (3, 70_000)] {
            before.pulled(GatewayEui(gateway), at(1), Version::V1, now - Millis(silence));
        }
        before.pulled(GatewayEui(1), at(1), Version::V1, now);
        before.pulled(GatewayEui(1), at(11), Version::V1, now);
        let stored = before.routes(now, wall);
        assert_eq!((stored.changes, stored.pulls, stored.routes.len()), (4, 5, 2), "the third does not pull any more");
        let json = serde_json::to_vec(&stored).expect("JSON");
        let read = || serde_json::from_slice::<Routes>(&json).expect("its own JSON");
        assert_eq!(read(), stored);
        let addresses = |now, wall, max| {
            let mut after = Gateways::new(max);
            after.restore(&read(), now, wall);
            [1, 2].map(|gateway| after.route(GatewayEui(gateway), now).map(|route| (route.address.port(), route.version)))
        };
        let both = [Some((11, Version::V1)), Some((1, Version::V1))];
        assert_eq!(addresses(now + Millis(100), wall + Millis(100), 4), both);
        assert_eq!(addresses(BootTime(5_000), wall + Millis(30_000), 4), both, "the machine began anew");
        assert_eq!(addresses(now, wall + Millis(40_001), 4), [both[0], None], "a minute after it pulled");
        assert_eq!(addresses(now, wall - Millis(1), 4), [None, both[1]], "of a time to come");
        assert_eq!(addresses(now, wall, 1), [both[0], None], "bounded");
        let mut after = Gateways::new(4);
        after.pulled(GatewayEui(1), at(12), Version::V2, now);
        after.restore(&read(), now, wall);
        assert_eq!(after.route(GatewayEui(1), now).map(|route| route.address), Some(at(12)), "what it said here counts");
        assert_eq!(after.route(GatewayEui(2), now + Millis(40_001)), None);
    }
}
