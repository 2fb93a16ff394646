//! Taps that operators name by host and port.

use std::net::SocketAddr;

use contracts::time::Millis;

use super::BridgeHandle;
use crate::bridge::io::Input;
use crate::gwmp::GatewayEui;
use crate::gwmp::taps::Tap;

/// Names of taps are resolved so often.
const TAPS_RESOLVED_EVERY: Millis = Millis::from_secs(60);

/// A tap as an operator writes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedTap {
    /// `host:port` of the other server.
    pub server: String,
    /// Whose uplinks; all if empty.
    pub gateways: Vec<GatewayEui>,
}

/// Keeps the taps in line with what their names mean, until the bridge stops. A name that cannot be resolved is tried again.
pub fn keep_taps(bridge: &BridgeHandle, taps: Vec<NamedTap>) -> impl Future<Output = ()> + Send + 'static {
    // The bridge stops with its last handle; this must not be it.
    let (commands, address) = (bridge.commands.downgrade(), bridge.address);
    async move {
        let mut known = Vec::new();
        while commands.strong_count() > 0 {
            let resolved = resolve(&taps, address).await;
            if resolved != known {
                known.clone_from(&resolved);
                let Some(commands) = commands.upgrade() else { return };
                let bridge = BridgeHandle { commands, address };
                if bridge.apply(Input::Taps { taps: resolved }).await.is_err() {
                    return;
                }
            }
            tokio::time::sleep(TAPS_RESOLVED_EVERY.to_duration()).await;
        }
    }
}

async fn resolve(taps: &[NamedTap], own: Option<SocketAddr>) -> Vec<Tap> {
    let is_reachable = |address: &SocketAddr| own.is_none_or(|own| own.is_ipv4() == address.is_ipv4());
    let mut resolved = Vec::new();
    for tap in taps {
        match tokio::net::lookup_host(&tap.server).await.map(|mut addresses| addresses.find(is_reachable)) {
            Ok(Some(to)) => resolved.push(Tap { to, gateways: tap.gateways.clone() }),
            Ok(None) => tracing::warn!(server = tap.server, "a tap has no address of this bridge's family"),
            Err(error) => tracing::warn!(server = tap.server, %error, "the name of a tap cannot be resolved"),
        }
    }
    resolved
}
