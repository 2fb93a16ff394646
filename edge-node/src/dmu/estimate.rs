//! Estimates: what the running services need (measured use plus a margin), and what is free for others.

use std::collections::BTreeSet;

use contracts::resources::{Interface, Resources};
use contracts::time::Millis;
use serde::{Deserialize, Serialize};

use super::profile;

/// What was measured of the running services together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Thousandths of a core over the time measured.
    pub cpu_millis: u64,
    /// Highest seen.
    pub memory_peak_bytes: u64,
    pub image_bytes: u64,
    /// Bits per second to and from the devices.
    pub traffic_bps: u64,
    pub devices: u64,
}

/// An estimate with the reason for each figure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Estimate {
    pub needs: Resources,
    pub reasons: Vec<String>,
}

/// Least that is asked for, so that an idle service is not estimated at nothing.
const CPU_MILLIS_MIN: u64 = 10;
const MEMORY_BYTES_MIN: u64 = 8 << 20;
const BANDWIDTH_BPS_MIN: u64 = 10_000;

fn with_margin(value: u64, margin_permille: u32) -> u64 {
    value + value / 1_000 * u64::from(margin_permille) + value % 1_000 * u64::from(margin_permille) / 1_000
}

/// Needs = use plus margin, at least the named minimum; radio slots (kind, region) one per device. What leases of `ttl` cost on the link is
/// named too: it is no need of the service.
#[must_use]
pub fn needs(usage: &Usage, margin_permille: u32, days: u32, radio: Option<(&str, &str)>, ttl: Millis) -> Estimate {
    let figure = |name: &str, used: u64, min: u64, reasons: &mut Vec<String>| {
        let value = with_margin(used, margin_permille).max(min);
        reasons.push(format!("{name}: {used} used, margin {margin_permille} permille, at least {min}: {value}"));
        value
    };
    let mut reasons = Vec::new();
    let needs = Resources {
        cpu_millis: figure("cpu_millis", usage.cpu_millis, CPU_MILLIS_MIN, &mut reasons),
        memory_bytes: figure("memory_bytes", usage.memory_peak_bytes, MEMORY_BYTES_MIN, &mut reasons),
        storage_bytes: figure("storage_bytes", usage.image_bytes, 1, &mut reasons),
        bandwidth_bps: figure("bandwidth_bps", usage.traffic_bps, BANDWIDTH_BPS_MIN, &mut reasons),
        uptime_s: u64::from(days) * 86_400,
        battery_wh: None,
        interfaces: radio.map(|radio| slots(radio, usage.devices)).into_iter().collect(),
    };
    if let Some((kind, region)) = radio {
        reasons.push(format!("{kind}:{region} slots: one per device: {}", usage.devices));
    }
    reasons.push(format!(
        "lease: ttl {} ms, renewed every {} ms: at most {} bit/s on this node's link",
        ttl.0,
        profile::renewed_every(ttl).0,
        profile::lease_bps(ttl)
    ));
    Estimate { needs, reasons }
}

/// Slots of one radio interface.
#[must_use]
pub fn slots((kind, region): (&str, &str), slots: u64) -> Interface {
    Interface { kind: kind.to_owned(), region: region.to_owned(), slots }
}

/// The radio that a capability such as `lora:EU868` names; the first one by name.
#[must_use]
pub fn radio(capabilities: &BTreeSet<String>) -> Option<(&str, &str)> {
    capabilities.iter().find_map(|capability| capability.split_once(':'))
}

/// Free = capacity − reserve − own use − promised; the reserve is a part of the capacity, so promises come off one to one. `None`: more is
/// used and promised than there is.
#[must_use]
pub fn free(capacity: &Resources, own: &Resources, promised: &[Resources], reserve_permille: u32) -> Option<Resources> {
    let part = |value: u64| value / 1_000 * u64::from(reserve_permille) + value % 1_000 * u64::from(reserve_permille) / 1_000;
    let reserve = Resources {
        cpu_millis: part(capacity.cpu_millis),
        memory_bytes: part(capacity.memory_bytes),
        storage_bytes: part(capacity.storage_bytes),
        bandwidth_bps: part(capacity.bandwidth_bps),
        ..Resources::default()
    };
    let mut left = capacity.minus(&reserve)?.minus(&Resources { uptime_s: 0, ..own.clone() })?;
    for promise in promised {
        left = left.minus(&Resources { uptime_s: 0, ..promise.clone() })?;
    }
    Some(left)
}

/// Whether two vectors are so far apart that a listing should say so: some figure by more than `permille` of `scale`, or anything else at all.
#[must_use]
pub fn differs(a: &Resources, b: &Resources, scale: &Resources, permille: u64) -> bool {
    let far = |figure: fn(&Resources) -> u64| {
        u128::from(figure(a).abs_diff(figure(b))) * 1_000 > u128::from(figure(scale)) * u128::from(permille)
    };
    let figures: [fn(&Resources) -> u64; 4] = [|r| r.cpu_millis, |r| r.memory_bytes, |r| r.storage_bytes, |r| r.bandwidth_bps];
    figures.into_iter().any(far) || (a.uptime_s, a.battery_wh, &a.interfaces) != (b.uptime_s, b.battery_wh, &b.interfaces)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_estimate_is_use_plus_margin_and_says_why() {
        let usage =
            Usage { cpu_millis: 200, memory_peak_bytes: 20 << 20, image_bytes: 3_000_000, traffic_bps: 5_000, devices: 200 };
        let estimate = needs(&usage, 500, 30, Some(("lora", "EU868")), Millis(10_000));
        assert_eq!((estimate.needs.cpu_millis, estimate.needs.memory_bytes), (300, 30 << 20));
        assert_eq!(estimate.needs.bandwidth_bps, BANDWIDTH_BPS_MIN);
        assert_eq!(estimate.needs.interfaces[0].slots, 200);
        assert_eq!(estimate.reasons.len(), 6);
        assert_eq!(estimate.reasons[5], "lease: ttl 10000 ms, renewed every 2500 ms: at most 2980 bit/s on this node's link");
    }

    #[test]
    fn promises_and_reserve_are_taken_out_of_what_is_free() {
        let capacity = Resources { cpu_millis: 2_000, memory_bytes: 1_000, uptime_s: 100, ..Resources::default() };
        assert_eq!(free(&capacity, &Resources::default(), &[], 100).expect("free").cpu_millis, 1_800);
        let own = Resources { cpu_millis: 500, memory_bytes: 100, ..Resources::default() };
        let promise = Resources { cpu_millis: 500, memory_bytes: 400, uptime_s: 50, ..Resources::default() };
        let left = free(&capacity, &own, std::slice::from_ref(&promise), 100).expect("something is free");
        assert_eq!((left.cpu_millis, left.memory_bytes, left.uptime_s), (800, 400, 100));
        assert_eq!(free(&capacity, &own, &[promise.clone(), promise.clone(), promise], 0), None);
    }

    #[test]
    fn only_what_is_far_off_is_listed_anew() {
        let listed = Resources { cpu_millis: 1_000, memory_bytes: 1_000, ..Resources::default() };
        let now = |cpu_millis| Resources { cpu_millis, ..listed.clone() };
        assert!(!differs(&listed, &now(900), &listed, 100));
        assert!(differs(&listed, &now(899), &listed, 100));
        assert!(differs(&listed, &now(1_101), &listed, 100));
        let radio = Resources { interfaces: vec![slots(("lora", "EU868"), 1)], ..listed.clone() };
        assert!(differs(&listed, &radio, &listed, 1_000));
    }

    #[test]
    fn the_radio_is_read_from_the_capability() {
        let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        assert_eq!(radio(&set(&["gpu", "lora:EU868"])), Some(("lora", "EU868")));
        assert_eq!(radio(&set(&["gpu"])), None);
    }
}
