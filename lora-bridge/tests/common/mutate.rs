//! Bent inputs.

use rand::Rng as _;
use rand_chacha::ChaCha8Rng;

/// Changes one to five places: bits, bytes, cuts, repetitions, and what the format at hand knows as `pieces`.
pub fn mutate(rng: &mut ChaCha8Rng, bytes: &mut Vec<u8>, pieces: &[&[u8]]) {
    for _ in 0..rng.random_range(1..6) {
        if bytes.is_empty() {
            bytes.push(rng.random());
        }
        let at = rng.random_range(0..bytes.len());
        match rng.random_range(0..8) {
            0 => bytes[at] ^= 1 << rng.random_range(0..8),
            1 => bytes[at] = rng.random(),
            2 => bytes.truncate(at),
            3 => {
                bytes.remove(at);
            }
            4 if !pieces.is_empty() => {
                let piece = pieces[rng.random_range(0..pieces.len())];
                bytes.splice(at..at, piece.iter().copied());
            }
            5 => {
                let end = rng.random_range(at..bytes.len()).min(at + 200);
                let piece = bytes[at..end].to_vec();
                let to = rng.random_range(0..bytes.len());
                bytes.splice(to..to, piece);
            }
            6 => bytes[at] = [0x00, 0x7f, 0x80, 0xff][rng.random_range(0..4)],
            _ => bytes.push(rng.random()),
        }
    }
}
