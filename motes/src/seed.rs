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

/// A sequence of draws from one seed: SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014).
#[derive(Debug, Clone)]
pub struct Sequence(u64);

/// What SplitMix64 adds to its state at each step.
const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

impl Sequence {
    /// The sequence of a seed, from its beginning.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// 64 evenly distributed bits.
    pub const fn draw(&mut self) -> u64 {
        let drawn = mix(self.0);
        self.0 = self.0.wrapping_add(GAMMA);
        drawn
    }

    /// An even draw from `0..bound`; 0 when `bound` is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.draw().checked_rem(bound).unwrap_or(0)
    }
}

/// The output of SplitMix64 in state `value`.
const fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(GAMMA);
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

    /// The first outputs for seed 1234567, as other implementations give them.
    #[test]
    fn sequences_are_split_mix_64() {
        let mut sequence = Sequence::new(1_234_567);
        let first = [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423_u64];
        for expected in first {
            assert_eq!(sequence.draw(), expected);
        }
        assert_eq!(sequence.below(0), 0);
    }

    #[test]
    fn halves_of_counters() {
        assert_eq!(low_u32(0x1_0000_0002), 2);
        assert_eq!(low_u16(0x0003_fffe), 0xfffe);
    }
}
