//! What a node has and a blueprint needs: the resource vector, radio interfaces included, which are spent like memory.

use serde::{Deserialize, Serialize};

/// At most this many kinds of interface in one vector.
pub const INTERFACES_MAX: usize = 32;
/// Integers in statements stay exactly representable everywhere.
pub const INTEGER_MAX: u64 = (1 << 53) - 1;

/// A vector of resources, free, promised or needed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resources {
    /// Thousandths of a core.
    pub cpu_millis: u64,
    pub memory_bytes: u64,
    pub storage_bytes: u64,
    /// Bits per second.
    pub bandwidth_bps: u64,
    /// How long the resources stay there, in seconds; compared, not spent.
    pub uptime_s: u64,
    /// Watt hours, if on battery.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub battery_wh: Option<u64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<Interface>,
}

/// Slots of a radio interface, e.g. `lora:EU868` with one slot per served device.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Interface {
    /// `lora`, `ble`, `zigbee` …
    pub kind: String,
    /// Region or channel plan, e.g. `EU868`.
    pub region: String,
    pub slots: u64,
}

impl Resources {
    /// Every number within [`INTEGER_MAX`], every interface once, names short.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        let numbers = [
            self.cpu_millis,
            self.memory_bytes,
            self.storage_bytes,
            self.bandwidth_bps,
            self.uptime_s,
            self.battery_wh.unwrap_or(0),
        ];
        let named = |text: &str| (1..=32).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        numbers.iter().all(|n| *n <= INTEGER_MAX)
            && self.interfaces.len() <= INTERFACES_MAX
            && self.interfaces.iter().all(|i| i.slots <= INTEGER_MAX && named(&i.kind) && named(&i.region))
            && self
                .interfaces
                .iter()
                .enumerate()
                .all(|(n, a)| self.interfaces[..n].iter().all(|b| (&a.kind, &a.region) != (&b.kind, &b.region)))
    }

    /// Whether every need fits.
    #[must_use]
    pub fn covers(&self, need: &Self) -> bool {
        self.minus(need).is_some()
    }

    /// What is left after `spent` is taken out; `None` if something would fall below zero. Uptime is compared and kept.
    #[must_use]
    pub fn minus(&self, spent: &Self) -> Option<Self> {
        if spent.uptime_s > self.uptime_s {
            return None;
        }
        let battery_wh = match (self.battery_wh, spent.battery_wh) {
            (Some(have), Some(need)) => Some(have.checked_sub(need)?),
            (have, _) => have, // no battery figure: mains power, which covers any need
        };
        let mut interfaces = self.interfaces.clone();
        for need in &spent.interfaces {
            let have = interfaces.iter_mut().find(|i| (&i.kind, &i.region) == (&need.kind, &need.region))?;
            have.slots = have.slots.checked_sub(need.slots)?;
        }
        Some(Self {
            cpu_millis: self.cpu_millis.checked_sub(spent.cpu_millis)?,
            memory_bytes: self.memory_bytes.checked_sub(spent.memory_bytes)?,
            storage_bytes: self.storage_bytes.checked_sub(spent.storage_bytes)?,
            bandwidth_bps: self.bandwidth_bps.checked_sub(spent.bandwidth_bps)?,
            uptime_s: self.uptime_s,
            battery_wh,
            interfaces,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lora(slots: u64) -> Vec<Interface> {
        vec![Interface { kind: "lora".into(), region: "EU868".into(), slots }]
    }

    #[test]
    fn interfaces_are_spent_like_memory() {
        let node =
            Resources { cpu_millis: 1_000, memory_bytes: 100, uptime_s: 10, interfaces: lora(200), ..Resources::default() };
        let need = Resources { cpu_millis: 100, memory_bytes: 60, uptime_s: 10, interfaces: lora(150), ..Resources::default() };
        let left = node.minus(&need).expect("fits once");
        assert_eq!(left.interfaces, lora(50));
        assert!(!left.covers(&need), "neither memory nor slots are left");
        assert!(!node.covers(&Resources { uptime_s: 11, ..Resources::default() }));
        assert!(!Resources::default().covers(&Resources { interfaces: lora(0), ..Resources::default() }), "no such radio");
    }

    #[test]
    fn one_interface_is_named_once() {
        let twice = Resources { interfaces: [lora(1), lora(1)].concat(), ..Resources::default() };
        assert!(!twice.is_valid());
        assert!(!Resources { cpu_millis: INTEGER_MAX + 1, ..Resources::default() }.is_valid());
    }
}
