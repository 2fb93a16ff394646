//! What the own service uses: measured now and then, for estimates.

use std::sync::Arc;
use std::time::Duration;

use contracts::resources::Resources;
use contracts::time::Millis;

use super::{Inner, lock};
use crate::core::OwnService;
use crate::dmu::estimate::{Estimate, Usage};
use crate::dmu::meter::Meter;

/// Time between samples.
const INTERVAL: Duration = Duration::from_secs(5);
/// Traffic is averaged over so long.
const TRAFFIC_WINDOW: Millis = Millis::from_secs(300);

/// What was measured so far.
#[derive(Debug, Default)]
pub(super) struct Use {
    meter: Meter,
    image_bytes: u64,
    traffic_bps: u64,
    /// The service was seen running.
    pub(super) running: bool,
}

impl Use {
    fn usage(&self, cpu_permille: usize, devices: u64) -> Usage {
        Usage {
            cpu_millis: self.meter.cpu_millis(cpu_permille),
            memory_peak_bytes: self.meter.memory_peak_bytes(),
            image_bytes: self.image_bytes,
            traffic_bps: self.traffic_bps,
            devices,
        }
    }
}

/// Measures for ever.
pub(super) async fn measure(inner: Arc<Inner>) {
    loop {
        if let Err(error) = sample(&inner).await {
            tracing::debug!(error = error.chain(), "the own service was not measured");
        }
        inner.wake.notify_one();
        tokio::time::sleep(INTERVAL).await;
    }
}

async fn sample(inner: &Inner) -> Result<(), super::Error> {
    let core = &inner.core;
    let Some(own) = &core.own_service else { return Ok(()) };
    let mut image_bytes = 0;
    for service in &own.blueprint.services {
        image_bytes += core.content.total_bytes(&storage::parse_cid(&service.image)?).await?;
    }
    let traffic_bps = traffic_bps(inner, own.group).await.unwrap_or(0);
    let stats = match &core.orchestrator {
        Some(orchestrator) => match orchestrator.usage(own.group).await {
            Ok(stats) => Some(stats),
            Err(error) => {
                tracing::debug!(error = &error as &dyn std::error::Error, "the own service does not run yet");
                return Ok(());
            }
        },
        None => None,
    };
    let mut used = lock(&inner.used);
    if let Some(stats) = stats {
        used.meter.observe(core.clock.boot_micros(), stats.cpu_ns, stats.memory_bytes);
    }
    (used.image_bytes, used.traffic_bps, used.running) = (image_bytes, traffic_bps, true);
    Ok(())
}

/// Bits per second that the group's uplinks take on their way to the cloud, from the log of the last minutes.
async fn traffic_bps(inner: &Inner, group: contracts::ids::GroupId) -> crate::store::Result<u64> {
    let bytes = inner.core.store.traffic_bytes(group, inner.now() - TRAFFIC_WINDOW).await?;
    Ok(bytes * 8 * 1_000 / TRAFFIC_WINDOW.0)
}

impl Inner {
    fn devices(&self) -> u64 {
        self.core.own_service.as_ref().map_or(0, OwnService::devices)
    }

    /// What the own service takes away from what can be offered.
    pub(super) fn own_use(&self) -> Resources {
        let Some(own) = &self.core.own_service else { return Resources::default() };
        super::listings::own_use(&lock(&self.used).usage(990, self.devices()), &own.blueprint.capabilities)
    }

    /// What insurance would be asked for; absent for a node that buys none.
    pub(super) fn estimate(&self) -> Option<Estimate> {
        let own = self.core.own_service.as_ref()?;
        let rules = self.core.policy.as_ref()?.customer.as_ref()?;
        let usage = lock(&self.used).usage(950, self.devices());
        Some(super::listings::needs(rules, &usage, &own.blueprint.capabilities))
    }
}
