//! What the own service uses: measured now and then, for estimates.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use contracts::resources::Resources;
use contracts::time::{Millis, WallTime};

use super::{Inner, lock};
use crate::core::OwnService;
use crate::dmu::estimate::{Estimate, Usage};
use crate::dmu::meter::Meter;

/// Time between samples.
const INTERVAL: Duration = Duration::from_secs(5);
/// Traffic is averaged over so long.
const TRAFFIC_WINDOW: Millis = Millis::from_secs(300);
/// So many samples make a window.
const LOOKS_MAX: usize = 60;

/// What was measured so far.
#[derive(Debug, Default)]
pub(super) struct Use {
    meter: Meter,
    image_bytes: u64,
    /// When the log was looked at, and the bytes that were new.
    traffic: VecDeque<(WallTime, u64)>,
    /// The service was seen running.
    pub(super) running: bool,
}

impl Use {
    /// Bytes on the way to the cloud since the look before.
    fn note_traffic(&mut self, at: WallTime, bytes: u64) {
        self.traffic.push_back((at, bytes));
        while self.traffic.len() > LOOKS_MAX || self.traffic.front().is_some_and(|(first, _)| at.since(*first) >= TRAFFIC_WINDOW)
        {
            self.traffic.pop_front();
        }
    }

    fn usage(&self, cpu_permille: usize, devices: u64) -> Usage {
        Usage {
            cpu_millis: self.meter.cpu_millis(cpu_permille),
            memory_peak_bytes: self.meter.memory_peak_bytes(),
            image_bytes: self.image_bytes,
            traffic_bps: self.traffic.iter().map(|(_, bytes)| bytes * 8 * 1_000).sum::<u64>() / TRAFFIC_WINDOW.0,
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
    // Only what is new: the log of five minutes under load takes seconds to read.
    let at = inner.now();
    let since = lock(&inner.used).traffic.back().map_or(at - TRAFFIC_WINDOW, |(last, _)| *last);
    let traffic = core.store.traffic_bytes(own.group, since).await.unwrap_or(0);
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
    used.note_traffic(at, traffic);
    (used.image_bytes, used.running) = (image_bytes, true);
    Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traffic_is_what_came_within_the_window() {
        let mut used = Use::default();
        let bits = |used: &Use| used.usage(990, 0).traffic_bps * TRAFFIC_WINDOW.0 / 8_000;
        for look in 1..=60 {
            used.note_traffic(WallTime(look * 5_000), 300);
        }
        assert_eq!(bits(&used), 60 * 300);
        used.note_traffic(WallTime(61 * 5_000), 0);
        assert_eq!(bits(&used), 59 * 300, "the first look is over");
        used.note_traffic(WallTime(70 * 5_000), 0);
        assert_eq!(bits(&used), 50 * 300);
        // A clock that was set back.
        (0..60).for_each(|_| used.note_traffic(WallTime(5_000), 0));
        assert_eq!(bits(&used), 0);
    }
}
