//! What processes use of the machine, as the kernel counts it (proc_pid_stat(5)).

use std::collections::BTreeMap;

use rustix::param::clock_ticks_per_second;
use serde_json::{Value, json};

use crate::process::resident_kb;

/// Microseconds as seconds, for people.
#[expect(clippy::cast_precision_loss, reason = "for people")]
pub fn seconds(micros: u64) -> f64 {
    (micros as f64 / 1e3).round() / 1e3
}

/// Microseconds as milliseconds.
#[expect(clippy::cast_precision_loss, reason = "for people")]
pub fn millis(micros: u64) -> f64 {
    micros as f64 / 1e3
}

/// The machine's load average of the last minute.
pub fn load_average() -> Option<f64> {
    std::fs::read_to_string("/proc/loadavg").ok()?.split_whitespace().next()?.parse().ok()
}

/// Time on a core of a process so far, its threads included, in microseconds.
fn on_core_us(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in brackets, may hold anything.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let (user, system): (u64, u64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    Some((user + system) * 1_000_000 / clock_ticks_per_second().max(1))
}

/// Processes by name, and what they had used when it was begun to look at them.
#[derive(Debug)]
pub struct Watch {
    begun: BTreeMap<String, (u32, u64)>,
}

impl Watch {
    /// Processes that are gone already are left out.
    pub fn begin(processes: impl IntoIterator<Item = (String, u32)>) -> Self {
        let begun = processes.into_iter().filter_map(|(name, pid)| Some((name, (pid, on_core_us(pid)?)))).collect();
        Self { begun }
    }

    /// `{name: {core_seconds, resident_mb, resident_mb_max}}` since the beginning.
    pub fn row(&self) -> Value {
        let of = |(pid, begun): &(u32, u64)| {
            let (now, highest) = resident_kb(*pid).unwrap_or_default();
            json!({
                "core_seconds": on_core_us(*pid).map(|us| seconds(us - begun)),
                "resident_mb": megabytes(now),
                "resident_mb_max": megabytes(highest),
            })
        };
        self.begun.iter().map(|(name, process)| (name.clone(), of(process))).collect::<serde_json::Map<_, _>>().into()
    }
}

/// Kilobytes (KiB, as the kernel says) as megabytes (10^6 bytes).
#[expect(clippy::cast_precision_loss, reason = "for people")]
fn megabytes(kb: u64) -> f64 {
    (kb as f64 * 1.024 / 100.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_uses_the_machine() {
        let watch = Watch::begin([("me".to_owned(), std::process::id()), ("nobody".to_owned(), u32::MAX)]);
        let row = watch.row();
        assert!(row["me"]["resident_mb"].as_f64().is_some_and(|mb| mb > 0.5), "{row}");
        assert!(row["me"]["core_seconds"].is_number() && row.get("nobody").is_none());
        assert_eq!((seconds(1_234_567), millis(1_500)), (1.235, 1.5));
        assert!(load_average().is_some());
    }
}
