//! Time on air survives this process: the law counts hours, not lives of processes.

use contracts::ids::GroupId;
use lora_bridge::Input;
use lora_bridge::mac::duty_cycle::{AirTime, STORE_EVERY};
use lora_bridge::server::BridgeHandle;

use crate::store::Store;

/// No group's.
const NOBODY: GroupId = GroupId::from_bytes([0; 16]);
const KEY: &str = ".air-time";

/// Why it cannot be read or kept.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the database")]
    Store(#[from] crate::store::Error),
    #[error("the bridge")]
    Bridge(#[from] lora_bridge::server::Error),
    #[error("its form")]
    Form(#[from] serde_json::Error),
}

/// Gives the bridge what an earlier process stored, and stores what it makes of that: before anything is sent, so that lives that end at once
/// add up too. A disk that is full now keeps nobody from starting: what is sent needs counters on disk anyway, and [`run`] stores it later.
///
/// # Errors
/// [`Error`].
pub async fn restore(store: &Store, bridge: &BridgeHandle) -> Result<(), Error> {
    if let Some(bytes) = store.get_tenant_value(NOBODY, KEY).await? {
        match serde_json::from_slice::<AirTime>(&bytes) {
            Ok(spent) => bridge.apply(Input::AirTime { spent: Box::new(spent) }).await?,
            Err(error) => tracing::error!(%error, "the stored time on air cannot be read: it begins anew"),
        }
    }
    if let Err(error) = keep(store, &bridge.air_time().await?).await {
        tracing::error!(error = &error as &dyn std::error::Error, "time on air was not stored");
    }
    Ok(())
}

async fn keep(store: &Store, spent: &AirTime) -> Result<(), Error> {
    let bytes = serde_json::to_vec(spent)?;
    store.put_tenant_value(NOBODY, KEY, &bytes, u32::MAX).await?;
    Ok(())
}

/// Stores it whenever it changed, until the bridge stops.
pub async fn run(store: Store, bridge: BridgeHandle) {
    let mut stored = 0;
    loop {
        tokio::time::sleep(STORE_EVERY.to_duration()).await;
        let Ok(spent) = bridge.air_time().await else { return };
        if spent.changes != stored {
            stored = spent.changes;
            if let Err(error) = keep(&store, &spent).await {
                tracing::error!(error = &error as &dyn std::error::Error, "time on air was not stored");
            }
        }
    }
}
