//! What a deployment used: samples of counters in, percentile and peak out. Pure.

use std::collections::VecDeque;

/// CPU samples kept: an hour at one in five seconds.
pub const SAMPLES_MAX: usize = 720;

/// Measures one deployment.
#[derive(Debug, Clone, Default)]
pub struct Meter {
    last: Option<(u64, u64)>,
    cpu_millis: VecDeque<u64>,
    memory_peak_bytes: u64,
}

impl Meter {
    /// Notes what the engine counted at a time (microseconds of any clock that only rises). A counter that fell belongs to a new container.
    pub fn observe(&mut self, at_us: u64, cpu_ns: Option<u64>, memory_bytes: Option<u64>) {
        self.memory_peak_bytes = self.memory_peak_bytes.max(memory_bytes.unwrap_or(0));
        let Some(cpu_ns) = cpu_ns else { return };
        if let Some((last_us, last_ns)) = self.last
            && at_us > last_us
            && cpu_ns >= last_ns
        {
            if self.cpu_millis.len() == SAMPLES_MAX {
                self.cpu_millis.pop_front();
            }
            // Nanoseconds per microsecond are thousandths of a core, rounded up.
            self.cpu_millis.push_back((cpu_ns - last_ns).div_ceil(at_us - last_us));
        }
        self.last = Some((at_us, cpu_ns));
    }

    /// The CPU use below which `permille` of the samples lie, in thousandths of a core; 0 without samples.
    #[must_use]
    pub fn cpu_millis(&self, permille: usize) -> u64 {
        let mut sorted: Vec<u64> = self.cpu_millis.iter().copied().collect();
        sorted.sort_unstable();
        let index = (sorted.len() * permille).div_ceil(1_000).saturating_sub(1);
        sorted.get(index).copied().unwrap_or(0)
    }

    #[must_use]
    pub const fn memory_peak_bytes(&self) -> u64 {
        self.memory_peak_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_and_peaks_come_from_differences_of_counters() {
        let mut meter = Meter::default();
        assert_eq!((meter.cpu_millis(950), meter.memory_peak_bytes()), (0, 0));
        let mut cpu_ns = 0;
        for n in 0..=100_u64 {
            cpu_ns += if n == 50 { 900_000_000 } else { 10_000_000 };
            meter.observe(n * 1_000_000, Some(cpu_ns), Some(1_000 + n % 7));
        }
        assert_eq!((meter.cpu_millis(950), meter.cpu_millis(1_000)), (10, 900));
        assert_eq!(meter.memory_peak_bytes(), 1_006);
        meter.observe(200_000_000, Some(5), Some(1));
        meter.observe(201_000_000, Some(5), None);
        assert_eq!(meter.cpu_millis(1), 0, "a restarted container begins anew, without a negative sample");
    }
}
