//! Mutated payloads for the decoders, and mutated JavaScript codecs: no panic, no growth. Prints one JSON object.
//! `fuzz_codecs [--inputs N] [--seed S]`; one input in [`SCRIPT_EVERY`] goes to a script too, which costs a thousand times as much.

use std::process::ExitCode;
use std::time::Instant;

use lora_device_service::codec::cayenne_lpp;
use lora_device_service::codec::javascript::{Error, OUTPUT_BYTES_MAX, Payload};
use lora_device_service::codec::worker::{self, Worker};
use lora_device_service::decrypt::{Direction, apply_key_stream};
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde_json::Map;
use tenant::{DevAddr, Key};

/// Every documented type once, and what is none.
const TYPES: [u8; 26] =
    [0, 1, 2, 3, 100, 101, 102, 103, 104, 113, 115, 116, 117, 118, 120, 121, 125, 128, 130, 131, 132, 133, 134, 136, 142, 255];

fn payload(random: &mut ChaCha8Rng) -> Vec<u8> {
    let mut bytes = Vec::new();
    while bytes.len() < 200 && random.random_range(0..6) != 0 {
        bytes.push(random.random());
        bytes.push(TYPES[random.random_range(0..TYPES.len())]);
        let len = random.random_range(0..10);
        bytes.extend((0..len).map(|_| random.random::<u8>()));
    }
    for _ in 0..random.random_range(0..4) {
        let at = random.random_range(0..bytes.len().max(1));
        match random.random_range(0..3) {
            0 => bytes.truncate(at),
            1 if !bytes.is_empty() => bytes[at] ^= 1 << random.random_range(0..8),
            _ => bytes.push(random.random()),
        }
    }
    bytes.truncate(242);
    bytes
}

const SCRIPT_EVERY: u64 = 500;

/// As customers have them: both forms, tables, typed arrays, text.
const SCRIPTS: [&str; 4] = [
    "function decodeUplink(input) { const b = input.bytes; if (b.length < 3) return {errors: ['short']};
        return {data: {t: ((b[0] << 24 >> 16) | b[1]) / 10, h: b[2] / 2, port: input.fPort}, warnings: b[2] > 200 ? ['wet'] : []}; }",
    "function Decoder(bytes, port) { var o = {}; for (var i = 0; i + 1 < bytes.length; i += 2) { o['c' + bytes[i]] = bytes[i + 1] * 0.5; } return o; }",
    "function decodeUplink({bytes, recvTime}) { const v = new DataView(new Uint8Array(bytes).buffer);
        return {data: {f: v.getFloat32(0, true), n: v.getInt16(4), at: recvTime.toISOString(), all: Array.from(bytes).map((x) => x.toString(16))}}; }",
    "const names = {1: 'door', 2: 'leak'}; function decodeUplink(i) { let d = {}; for (const [k, x] of i.bytes.entries()) d[names[k] ?? `x${k}`] = !!(x & 1);
        return {data: d, warnings: [String.fromCharCode(...i.bytes)]}; }",
];

/// What a script is bent with.
const PIECES: [&str; 24] = [
    "{",
    "}",
    "(",
    ")",
    "[",
    "]",
    ";",
    "=>",
    "bytes",
    "input",
    "null",
    "while(1)",
    "throw ",
    "return ",
    "1e309",
    "2n**999999n",
    "\"",
    "`${",
    "new Proxy({},{})",
    "Array(1e9)",
    ".repeat(1e8)",
    "async ",
    "yield ",
    "\\u{d800}",
];

/// A script, bent in up to three places.
fn script(random: &mut ChaCha8Rng) -> String {
    let mut source: Vec<char> = SCRIPTS.choose(random).map(|script| script.chars().collect()).unwrap_or_default();
    for _ in 0..random.random_range(0..4) {
        let at = random.random_range(0..source.len());
        let piece = PIECES.choose(random).copied().unwrap_or_default();
        let end = if random.random() { at } else { random.random_range(at..source.len().min(at + 12)) };
        source.splice(at..end, piece.chars());
    }
    source.into_iter().collect()
}

/// Whatever it is: a result that fits into a reading, or an error, and in time; never the end of the process by itself.
fn run_script(random: &mut ChaCha8Rng, worker: &mut Worker, bytes: Vec<u8>, what: &str) -> Result<(), Error> {
    let source = script(random);
    let (f_port, received_at_ms) = (random.random(), random.random_range(0..4_000_000_000_000));
    let decoded = worker.decode(&source, Payload { bytes, f_port, received_at_ms, variables: Map::new() });
    if let Err(Error::Lost(why)) = &decoded {
        panic!("{what}: {why} by {source}");
    }
    let decoded = decoded?;
    let text = serde_json::to_string(&decoded.values).unwrap_or_default();
    assert!(text.len() <= 2 * OUTPUT_BYTES_MAX, "{what}: {} bytes by {source}", text.len());
    Ok(())
}

fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()).and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) * 1_024
}

fn argument(name: &str, default: u64) -> u64 {
    std::env::args().skip_while(|argument| argument != name).nth(1).map_or(default, |value| value.parse().expect("a number"))
}

fn main() -> ExitCode {
    if std::env::args().nth(1).is_some_and(|first| first == worker::ARGUMENT) {
        return worker::run();
    }
    let inputs = argument("--inputs", 2_000_000);
    let seed = argument("--seed", 20_261_121);
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let start = Instant::now();
    let (mut settled, mut values, mut errors) = (0, 0, 0);
    let mut worker = Worker::new("/proc/self/exe".into());
    let (mut scripts, mut failed, mut timed_out, mut killed) = (0, 0, 0, 0);
    for n in 0..inputs {
        let mut bytes = payload(&mut random);
        let f_cnt = u32::try_from(n % (1 << 32)).expect("32 bits");
        apply_key_stream(&Key([7; 16]), Direction::Up, DevAddr([1, 2, 3, 4]), f_cnt, &mut bytes);
        apply_key_stream(&Key([7; 16]), Direction::Up, DevAddr([1, 2, 3, 4]), f_cnt, &mut bytes);
        let decoded = cayenne_lpp::decode(&bytes);
        assert!(decoded.values.len() <= bytes.len(), "seed {seed}, input {n}: {bytes:02x?}");
        values += decoded.values.len();
        errors += usize::from(decoded.error.is_some());
        if n.is_multiple_of(SCRIPT_EVERY) {
            let done = run_script(&mut random, &mut worker, bytes, &format!("seed {seed}, input {n}"));
            scripts += 1;
            failed += usize::from(done.is_err());
            timed_out += usize::from(done == Err(Error::TimedOut));
            killed += usize::from(worker.process().is_none());
        }
        if n == inputs / 10 {
            settled = resident();
        }
    }
    let growth = resident().saturating_sub(settled);
    assert!(growth < 32 * 1024 * 1024, "seed {seed}: memory grew by {growth} bytes");
    println!(
        r#"{{"inputs":{inputs},"seed":{seed},"seconds":{:.1},"panics":0,"values":{values},"errors":{errors},"scripts":{scripts},"scripts_failed":{failed},"scripts_timed_out":{timed_out},"scripts_killed":{killed},"growth_bytes":{growth}}}"#,
        start.elapsed().as_secs_f64()
    );
    ExitCode::SUCCESS
}
