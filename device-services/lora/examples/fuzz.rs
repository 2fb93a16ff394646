//! Mutated payloads for the decoders: no panic, no growth. Prints one JSON object. `fuzz [--inputs N] [--seed S]`.

use std::time::Instant;

use lora_device_service::codec::cayenne_lpp;
use lora_device_service::decrypt::{Direction, apply_key_stream};
use tenant::{DevAddr, Key};

/// SplitMix64 (Steele, Lea, Flood 2014): this package has no generator of its own.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() >> 1).unwrap_or(0) % limit.max(1)
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[0]
    }
}

/// Every documented type once, and what is none.
const TYPES: [u8; 26] =
    [0, 1, 2, 3, 100, 101, 102, 103, 104, 113, 115, 116, 117, 118, 120, 121, 125, 128, 130, 131, 132, 133, 134, 136, 142, 255];

fn payload(random: &mut Random) -> Vec<u8> {
    let mut bytes = Vec::new();
    while bytes.len() < 200 && random.below(6) != 0 {
        bytes.push(random.byte());
        bytes.push(TYPES[random.below(TYPES.len())]);
        let len = random.below(10);
        bytes.extend((0..len).map(|_| random.byte()));
    }
    for _ in 0..random.below(4) {
        let at = random.below(bytes.len());
        match random.below(3) {
            0 => bytes.truncate(at),
            1 if !bytes.is_empty() => bytes[at] ^= 1 << random.below(8),
            _ => bytes.push(random.byte()),
        }
    }
    bytes.truncate(242);
    bytes
}

fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()).and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) * 1_024
}

fn argument(name: &str, default: u64) -> u64 {
    std::env::args().skip_while(|argument| argument != name).nth(1).map_or(default, |value| value.parse().expect("a number"))
}

fn main() {
    let inputs = argument("--inputs", 2_000_000);
    let seed = argument("--seed", 20_261_121);
    let mut random = Random(seed);
    let start = Instant::now();
    let (mut settled, mut values, mut errors) = (0, 0, 0);
    for n in 0..inputs {
        let mut bytes = payload(&mut random);
        let f_cnt = u32::try_from(n % (1 << 32)).expect("32 bits");
        apply_key_stream(&Key([7; 16]), Direction::Up, DevAddr([1, 2, 3, 4]), f_cnt, &mut bytes);
        apply_key_stream(&Key([7; 16]), Direction::Up, DevAddr([1, 2, 3, 4]), f_cnt, &mut bytes);
        let decoded = cayenne_lpp::decode(&bytes);
        assert!(decoded.values.len() <= bytes.len(), "seed {seed}, input {n}: {bytes:02x?}");
        values += decoded.values.len();
        errors += usize::from(decoded.error.is_some());
        if n == inputs / 10 {
            settled = resident();
        }
    }
    let growth = resident().saturating_sub(settled);
    assert!(growth < 32 * 1024 * 1024, "seed {seed}: memory grew by {growth} bytes");
    println!(
        r#"{{"inputs":{inputs},"seed":{seed},"seconds":{:.1},"panics":0,"values":{values},"errors":{errors},"growth_bytes":{growth}}}"#,
        start.elapsed().as_secs_f64()
    );
}
