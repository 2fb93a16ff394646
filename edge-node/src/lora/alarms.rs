//! Says which devices may soon be deaf: a device takes no downlink whose counter is more than 16,384 ahead of the last that it received, and
//! each takeover without a release leaves some out.

use std::collections::BTreeSet;
use std::time::Duration;

use contracts::ids::DevEui;
use lora_bridge::SKIPPED_ALARM;
use lora_bridge::server::BridgeHandle;

use crate::timeline::{Event, Timeline};

const INTERVAL: Duration = Duration::from_secs(30);
/// Devices that are named at most; a node with more has another problem.
const DEVICES_MAX: usize = 64;

/// Those that were named. Pure.
#[derive(Debug, Default)]
struct Gaps(BTreeSet<DevEui>);

impl Gaps {
    /// Devices that are to be named now: each once, until it received a downlink.
    fn look(&mut self, gaps: &BTreeSet<DevEui>) -> Vec<DevEui> {
        let news = gaps.difference(&self.0).copied().collect();
        self.0.clone_from(gaps);
        news
    }
}

/// Looks until the bridge stops.
pub async fn run(bridge: BridgeHandle, timeline: Timeline) {
    let mut gaps = Gaps::default();
    while let Ok(found) = bridge.gaps(SKIPPED_ALARM, DEVICES_MAX).await {
        let skipped = |device| found.iter().find(|(_, of, _)| *of == device).map_or(0, |(_, _, skipped)| *skipped);
        for device in gaps.look(&found.iter().map(|(_, device, _)| *device).collect()) {
            let skipped = skipped(device);
            let what = format!(
                "device {device} received no downlink while {skipped} counters were left out: past 16,384 it is deaf until it joins or starts anew"
            );
            timeline.push(Event::Alarm { what });
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_named_once_until_it_hears_again() {
        let mut gaps = Gaps::default();
        let set = |devices: &[u64]| devices.iter().map(|n| DevEui::from_u64(*n)).collect::<BTreeSet<_>>();
        let named = |gaps: &mut Gaps, devices: &[u64]| gaps.look(&set(devices)).len();
        assert_eq!(named(&mut gaps, &[]), 0);
        assert_eq!(named(&mut gaps, &[1]), 1);
        assert_eq!(named(&mut gaps, &[1, 2]), 1);
        assert_eq!(named(&mut gaps, &[2]), 0);
        assert_eq!(named(&mut gaps, &[1, 2]), 1);
    }
}
