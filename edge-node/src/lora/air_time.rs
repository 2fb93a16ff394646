//! Time on air survives this process: the law counts hours, not lives of processes.

use lora_bridge::Input;
use lora_bridge::mac::duty_cycle::{AirTime, STORE_EVERY};
use lora_bridge::server::BridgeHandle;

use super::{Error, NOBODY};
use crate::store::Store;

const KEY: &str = ".air-time";

/// Gives the bridge what an earlier process stored, and stores what it makes of that: before anything is sent, so that lives that end at once
/// add up too. A disk that is full now keeps nobody from starting: what is sent needs counters on disk anyway, and [`run`] stores it later.
///
/// # Errors
/// [`Error`].
pub async fn restore(store: &Store, bridge: &BridgeHandle) -> Result<(), Error> {
    match store.get_own::<AirTime>(NOBODY, KEY).await? {
        Some(Ok(spent)) => bridge.apply(Input::AirTime { spent: Box::new(spent) }).await?,
        Some(Err(error)) => tracing::error!(%error, "the stored time on air cannot be read: it begins anew"),
        None => {}
    }
    if let Err(error) = store.put_own(NOBODY, KEY, &bridge.air_time().await?).await {
        tracing::error!(error = &error as &dyn std::error::Error, "time on air was not stored");
    }
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
            if let Err(error) = store.put_own(NOBODY, KEY, &spent).await {
                tracing::error!(error = &error as &dyn std::error::Error, "time on air was not stored");
            }
        }
    }
}
