//! Served is a set, not a watermark: with two gateways and 5 % loss on each link every twentieth frame is heard by one of them only, and
//! arrives at the other's node later than its successors.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// How many counters below the highest are remembered.
pub const WINDOW: u32 = 1_024;

const WORDS: usize = (WINDOW / 64) as usize;

/// A set of uplink counters: exact for the last [`WINDOW`] below `next`, silent about older ones.
///
/// In JSON `{"next": 17, "bits": "<base64 of 128 bytes>"}`; counter `f` is bit `f % 1024`, least significant bit first.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ServedSet {
    /// One above the highest member.
    next: u32,
    bits: [u64; WORDS],
}

impl Default for ServedSet {
    fn default() -> Self {
        Self { next: 0, bits: [0; WORDS] }
    }
}

impl std::fmt::Debug for ServedSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} below {}", self.len(), self.next)
    }
}

const fn place(f_cnt: u32) -> (usize, u64) {
    (((f_cnt % WINDOW) / 64) as usize, 1 << (f_cnt % 64))
}

impl ServedSet {
    /// One above the highest member; 0 when empty.
    #[must_use]
    pub const fn next(&self) -> u32 {
        self.next
    }

    /// Members within the window.
    #[must_use]
    pub fn len(&self) -> u32 {
        self.bits.iter().map(|word| word.count_ones()).sum()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.next == 0
    }

    /// Whether `f_cnt` is a member; false for anything below the window.
    #[must_use]
    pub const fn contains(&self, f_cnt: u32) -> bool {
        if f_cnt >= self.next || self.next - f_cnt > WINDOW {
            return false;
        }
        let (word, bit) = place(f_cnt);
        self.bits[word] & bit != 0
    }

    /// Adds a counter; false if it was a member, lies below the window, or is `u32::MAX`, which has no successor.
    pub fn insert(&mut self, f_cnt: u32) -> bool {
        if f_cnt == u32::MAX || (f_cnt < self.next && self.next - f_cnt > WINDOW) {
            return false;
        }
        if f_cnt >= self.next {
            self.advance(f_cnt + 1);
        }
        let (word, bit) = place(f_cnt);
        let is_new = self.bits[word] & bit == 0;
        self.bits[word] |= bit;
        is_new
    }

    /// Takes a counter out again.
    pub fn remove(&mut self, f_cnt: u32) {
        if self.contains(f_cnt) {
            let (word, bit) = place(f_cnt);
            self.bits[word] &= !bit;
        }
    }

    /// Union of both, seen from the higher end.
    pub fn merge(&mut self, other: &Self) {
        let mut other = *other;
        let next = self.next.max(other.next);
        self.advance(next);
        other.advance(next);
        for (word, more) in self.bits.iter_mut().zip(other.bits) {
            *word |= more;
        }
    }

    /// Moves the window up; what falls out is forgotten.
    fn advance(&mut self, next: u32) {
        if next.saturating_sub(self.next) >= WINDOW {
            self.bits = [0; WORDS];
        } else {
            for f_cnt in self.next..next {
                let (word, bit) = place(f_cnt);
                self.bits[word] &= !bit;
            }
        }
        self.next = self.next.max(next);
    }
}

#[derive(Serialize, Deserialize)]
struct Json {
    next: u32,
    bits: String,
}

impl Serialize for ServedSet {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let bytes: Vec<u8> = self.bits.iter().flat_map(|word| word.to_le_bytes()).collect();
        Json { next: self.next, bits: STANDARD.encode(bytes) }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for ServedSet {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Json { next, bits } = Json::deserialize(deserializer)?;
        let bytes = STANDARD.decode(bits).map_err(serde::de::Error::custom)?;
        let (words, rest) = bytes.as_chunks::<8>();
        if words.len() != WORDS || !rest.is_empty() {
            return Err(serde::de::Error::custom("a served set has 128 bytes"));
        }
        let mut set = Self { next, bits: [0; WORDS] };
        for (word, bytes) in set.bits.iter_mut().zip(words) {
            *word = u64::from_le_bytes(*bytes);
        }
        // Bits at or above `next` would come alive later: a set that names counters not yet seen is not taken over.
        for f_cnt in next..WINDOW {
            let (word, bit) = place(f_cnt);
            set.bits[word] &= !bit;
        }
        Ok(set)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use rand::{Rng, SeedableRng};

    use super::*;

    /// The same by other means: a tree that remembers everything.
    fn model_contains(model: &BTreeSet<u32>, f_cnt: u32) -> bool {
        let next = model.last().map_or(0, |last| last + 1);
        model.contains(&f_cnt) && next - f_cnt <= WINDOW
    }

    #[test]
    fn behaves_like_a_tree_with_a_window() {
        for seed in 0..40_u64 {
            let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
            let start: u32 = if seed % 2 == 0 { 0 } else { 0xffff - 600 };
            let (mut set, mut model, mut top) = (ServedSet::default(), BTreeSet::new(), start);
            for _ in 0..2_000 {
                let f_cnt = match rng.random_range(0..20) {
                    0 => top + rng.random_range(0..3_000),
                    1..=9 => top,
                    _ => top.saturating_sub(rng.random_range(0..1_500)),
                };
                let next = model.last().map_or(0, |last| last + 1);
                let too_old = f_cnt < next && next - f_cnt > WINDOW;
                let is_new = !too_old && model.insert(f_cnt);
                assert_eq!(set.insert(f_cnt), is_new, "seed {seed}: insert {f_cnt}");
                top = top.max(f_cnt + 1);
                let probe = top.saturating_sub(rng.random_range(0..1_200));
                assert_eq!(set.contains(probe), model_contains(&model, probe), "seed {seed}: contains {probe}");
            }
            let json = serde_json::to_string(&set).expect("JSON");
            assert_eq!(serde_json::from_str::<ServedSet>(&json).expect("its own JSON"), set, "seed {seed}");
        }
    }

    #[test]
    fn merging_is_union_commutative_and_idempotent() {
        for seed in 0..200_u64 {
            let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
            let mut random_set = |span: u32| {
                let (mut set, mut model) = (ServedSet::default(), BTreeSet::new());
                for _ in 0..rng.random_range(0..400) {
                    let f_cnt = rng.random_range(0..span);
                    if set.insert(f_cnt) {
                        model.insert(f_cnt);
                    }
                }
                (set, model)
            };
            let ((a, model_a), (b, model_b)) = (random_set(3_000), random_set(5_000));
            let (mut ab, mut ba) = (a, b);
            ab.merge(&b);
            ba.merge(&a);
            assert_eq!(ab, ba, "seed {seed}");
            let union: BTreeSet<u32> = model_a.union(&model_b).copied().collect();
            for f_cnt in 0..5_000 {
                assert_eq!(ab.contains(f_cnt), model_contains(&union, f_cnt), "seed {seed}: {f_cnt}");
            }
            let once = ab;
            ab.merge(&a);
            assert_eq!(ab, once, "seed {seed}");
        }
    }

    #[test]
    fn the_last_counter_has_no_successor() {
        let mut set = ServedSet::default();
        assert!(!set.insert(u32::MAX));
        assert!(set.insert(u32::MAX - 1));
        assert!(set.contains(u32::MAX - 1) && !set.contains(u32::MAX));
        set.remove(u32::MAX - 1);
        assert!(!set.contains(u32::MAX - 1));
    }
}
