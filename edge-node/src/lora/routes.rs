//! Where gateways are reached survives this process: they pull every 5 to 10 s, and a device's receive windows do not wait for that.

use contracts::time::Millis;
use kit::clock::Clock;
use lora_bridge::Input;
use lora_bridge::gwmp::gateways::REFRESH_EVERY;
use lora_bridge::server::BridgeHandle;

use super::{Error, NOBODY};
use crate::store::Store;

const KEY: &str = ".gateway-routes";
/// They are looked at, and if they changed written, so often.
const LOOK_EVERY: Millis = Millis::from_secs(1);

/// Gives the bridge what an earlier process stored; to be called before it listens. What cannot be read is as if it were not there: gateways
/// pull soon.
///
/// # Errors
/// [`Error`].
pub async fn restore(store: &Store, bridge: &BridgeHandle) -> Result<(), Error> {
    match store.get_own(NOBODY, KEY).await? {
        Some(Ok(routes)) => bridge.apply(Input::Routes { routes }).await?,
        Some(Err(error)) => tracing::warn!(%error, "where gateways were reached cannot be read: downlinks wait until they pull"),
        None => {}
    }
    Ok(())
}

/// Stores them at most once a second if one changed, and every [`REFRESH_EVERY`] if any pulled, until the bridge stops.
pub async fn run(store: Store, bridge: BridgeHandle, clock: Clock) {
    let mut stored = (0, 0);
    let mut stored_at = clock.boot();
    loop {
        tokio::time::sleep(LOOK_EVERY.to_duration()).await;
        let Ok(routes) = bridge.routes().await else { return };
        let is_old = clock.boot().since(stored_at) >= REFRESH_EVERY && routes.pulls != stored.1;
        if routes.changes == stored.0 && !is_old {
            continue;
        }
        match store.put_own(NOBODY, KEY, &routes).await {
            Ok(()) => (stored, stored_at) = ((routes.changes, routes.pulls), clock.boot()),
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "where gateways are reached was not stored");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use lora_bridge::{Bridge, Config, GatewayEui};
    use tokio::net::UdpSocket;

    use super::*;
    use crate::store::MemoryDisk;

    /// A bridge as a node starts it: what was stored is known before it listens.
    async fn start(disk: &MemoryDisk, clock: &Clock) -> (BridgeHandle, Store, tokio::task::JoinHandle<()>) {
        let socket = lora_bridge::server::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let bridge = Bridge::new(Config::default());
        let (bridge, outputs) = lora_bridge::server::spawn_waiting(socket, bridge, clock.clone(), Arc::new(|_, _| false));
        drop(outputs);
        let store = Store::memory(disk.clone());
        restore(&store, &bridge).await.unwrap();
        let running = tokio::spawn(run(store.clone(), bridge.clone(), clock.clone()));
        (bridge, store, running)
    }

    /// Where a gateway is reached.
    async fn reached(bridge: &BridgeHandle) -> Vec<(GatewayEui, Option<std::net::SocketAddr>)> {
        bridge.gateways().await.unwrap().into_iter().map(|status| (status.gateway, status.address)).collect()
    }

    #[tokio::test]
    async fn where_a_gateway_pulled_is_on_disk_and_known_before_it_pulls_again() {
        let (disk, clock) = (MemoryDisk::new(), Clock::manual());
        clock.advance(Millis(1_000_000));
        let (bridge, store, running) = start(&disk, &clock).await;
        bridge.listen().await.unwrap();
        let gateway = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        gateway.connect(bridge.address().unwrap()).await.unwrap();
        gateway.send(&[2, 7, 7, 2, 0, 0, 0, 0, 0, 0, 0, 9]).await.unwrap();
        let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
        while store.get_tenant_value(NOBODY, KEY).await.unwrap().is_none() {
            assert!(tokio::time::Instant::now() < deadline, "not stored");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        running.abort();
        let at = Some(gateway.local_addr().unwrap());
        clock.advance(Millis(59_000));
        let (again, ..) = start(&disk, &clock).await;
        assert_eq!(reached(&again).await, [(GatewayEui(9), at)]);
        clock.advance(Millis(2_000));
        let (late, ..) = start(&disk, &clock).await;
        assert_eq!(reached(&late).await, [], "a minute is over");
        store.put_tenant_value(NOBODY, KEY, b"{", u32::MAX).await.unwrap();
        let (unreadable, ..) = start(&disk, &clock).await;
        assert_eq!(reached(&unreadable).await, [], "it starts all the same");
    }
}
