//! Chance, decided beforehand: every random decision is a pure function of the seed and of what is decided, never of the order
//! or the time in which it is asked. Two runs with one seed lose the same frames, however the machine is loaded.

/// Parts per million that make certainty.
pub const PPM: u32 = 1_000_000;

/// What is being decided; keeps the draws of one topic independent of all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Topic {
    /// Session keys of a mote.
    Keys = 1,
    /// Offset of a mote's schedule.
    Phase,
    /// Offset of one uplink within its slot.
    Jitter,
    /// Whether an uplink is confirmed.
    Confirmed,
    /// The measured value.
    Temperature,
    /// Where a mote's reading numbers start.
    FirstReading,
    /// Channel of an attempt.
    Channel,
    /// Delay before the next attempt.
    RetryDelay,
    /// Whether one gateway hears one uplink.
    UplinkLoss,
    /// Whether one downlink reaches its mote.
    DownlinkLoss,
    /// Where a gateway's microsecond counter starts.
    GatewayCounter,
    /// Tokens of a gateway's datagrams.
    Token,
    /// Signal strength that a gateway reports.
    Signal,
    /// Which motes join over the air, and their root keys.
    Otaa,
    /// `DevNonce` of a join request.
    DevNonce,
    /// Delay before the next join request.
    JoinDelay,
    /// Whether a mote asks for a link check or for the time.
    Request,
}

/// The one number that decides a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seed(pub u64);

impl Seed {
    /// 64 evenly distributed bits for `topic` and what identifies the decision within it.
    #[must_use]
    pub fn draw(self, topic: Topic, parts: &[u64]) -> u64 {
        let mut state = mix(self.0 ^ mix(topic as u64));
        for part in parts {
            state = mix(state ^ mix(*part));
        }
        state
    }

    /// An even draw from `0..bound`; 0 when `bound` is 0.
    #[must_use]
    pub fn below(self, topic: Topic, parts: &[u64], bound: u64) -> u64 {
        self.draw(topic, parts).checked_rem(bound).unwrap_or(0)
    }

    /// True in `ppm` out of a million draws.
    #[must_use]
    pub fn happens(self, topic: Topic, parts: &[u64], ppm: u32) -> bool {
        self.below(topic, parts, u64::from(PPM)) < u64::from(ppm)
    }
}

/// The SplitMix64 step (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014).
fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The lower half of a 64-bit counter, as a 32-bit hardware counter shows it.
#[must_use]
pub fn low_u32(value: u64) -> u32 {
    let bytes = value.to_le_bytes();
    u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

/// The lower half of a 32-bit counter, as it goes over the air.
#[must_use]
pub fn low_u16(value: u32) -> u16 {
    let bytes = value.to_le_bytes();
    u16::from_le_bytes([bytes[0], bytes[1]])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_depend_on_everything_and_on_nothing_else() {
        let seed = Seed(7);
        assert_eq!(seed.draw(Topic::Phase, &[1, 2]), seed.draw(Topic::Phase, &[1, 2]));
        assert_ne!(seed.draw(Topic::Phase, &[1, 2]), seed.draw(Topic::Phase, &[2, 1]));
        assert_ne!(seed.draw(Topic::Phase, &[1, 2]), seed.draw(Topic::Jitter, &[1, 2]));
        assert_ne!(seed.draw(Topic::Phase, &[1, 2]), Seed(8).draw(Topic::Phase, &[1, 2]));
        assert_eq!(seed.below(Topic::Phase, &[1], 0), 0);
    }

    #[test]
    fn shares_come_out_as_asked() {
        for seed in 0..20 {
            let hits = (0..100_000).filter(|n| Seed(seed).happens(Topic::UplinkLoss, &[*n, 3], 50_000)).count();
            // 5 % of 100,000 with a standard deviation of 69.
            assert!((4_700..5_300).contains(&hits), "seed {seed}: {hits}");
        }
    }

    #[test]
    fn two_links_lose_independently() {
        let seed = Seed(11);
        let both =
            (0..400_000u64).filter(|n| (0..2).all(|gateway| seed.happens(Topic::UplinkLoss, &[*n, gateway], 50_000))).count();
        // 0.25 % of 400,000 with a standard deviation of 32.
        assert!((870..1_130).contains(&both), "{both}");
    }

    #[test]
    fn halves_of_counters() {
        assert_eq!(low_u32(0x1_0000_0002), 2);
        assert_eq!(low_u16(0x0003_fffe), 0xfffe);
    }
}
