//! JavaScript codecs: both forms, and what hostile code costs.

use std::{path::PathBuf, sync::Arc, time::Instant};

use lora_device_service::codec::{
    Encoded,
    javascript::{CPU_MAX, Error, OUTPUT_BYTES_MAX, Payload, decode, encode},
    scripts::{Script, Scripts},
    worker::Worker,
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Map, Value, json};

fn payload(bytes: &[u8]) -> Payload {
    let variables = json!({"offset": "2"}).as_object().expect("an object").clone();
    Payload { bytes: bytes.to_vec(), f_port: 5, received_at_ms: 1_700_000_000_123, variables }
}

fn values(source: &str) -> Value {
    Value::Object(decode(source, &payload(&[0, 235, 91])).expect("it decodes").values)
}

#[test]
fn both_forms_decode() {
    let modern = "function decodeUplink(input) { return {data: {
        t: (input.bytes[0] << 8 | input.bytes[1]) / 10, port: input.fPort, at: input.recvTime.toISOString(), v: input.variables.offset}}; }";
    assert_eq!(values(modern), json!({"t": 23.5, "port": 5, "at": "2023-11-14T22:13:20.123Z", "v": "2"}));
    assert_eq!(values("const decodeUplink = ({bytes}) => ({data: {n: bytes.length}})"), json!({"n": 3}));
    // Without declarations, as many older ones are written.
    assert_eq!(
        values(
            "function Decoder(bytes, port) { for (i = 0, sum = 0; i < bytes.length; i++) sum += bytes[i]; return {sum: sum, port: port}; }"
        ),
        json!({"sum": 326, "port": 5})
    );
    let both = "function Decoder() { return {form: 'old'}; } function decodeUplink() { return {data: {form: 'new'}}; }";
    assert_eq!(values(both), json!({"form": "new"}));
}

#[test]
fn errors_and_warnings_are_the_codecs_own() {
    let told = decode("function decodeUplink() { return {warnings: ['low', {n: 1}], errors: ['bad port']}; }", &payload(&[]))
        .expect("it decodes");
    assert_eq!(
        (told.error.as_deref(), told.warnings.as_slice()),
        (Some("bad port"), &["low".to_owned(), "{\"n\":1}".to_owned()][..])
    );
    let thrown = |source: &str| decode(source, &payload(&[])).expect_err("it fails").to_string();
    assert_eq!(thrown("function decodeUplink() { throw new Error('no such port') }"), "the codec failed: no such port");
    assert_eq!(thrown("function decodeUplink() { throw 'text' }"), "the codec failed: text");
    assert!(thrown("function decodeUplink( {").contains("the codec failed"));
    assert!(thrown("var x = 1").contains("neither decodeUplink nor Decoder"));
    for (result, why) in [
        ("null", "no object"),
        ("{}", "no data"),
        ("{data: [1]}", "no object"),
        ("{data: 7}", "no object"),
        ("(async () => 1)()", "no data"),
    ] {
        let error = thrown(&format!("function decodeUplink() {{ return {result} }}"));
        assert!(error.contains(why), "{result}: {error}");
    }
}

#[test]
fn downlinks_are_encoded() {
    let variables = Map::new();
    let data = json!({"interval": 300}).as_object().expect("an object").clone();
    let bytes = vec![1, 44];
    let modern =
        "function encodeDownlink(input) { return {fPort: 10, bytes: [input.data.interval >> 8, input.data.interval & 255]}; }";
    assert_eq!(encode(modern, &data, None, &variables), Ok(Encoded { f_port: Some(10), bytes: bytes.clone() }));
    let typed = "function encodeDownlink(input) { return {bytes: new Uint8Array([1, 44])}; }";
    assert_eq!(encode(typed, &data, Some(3), &variables), Ok(Encoded { f_port: None, bytes: bytes.clone() }));
    let old = "function Encoder(data, port) { return [data.interval >> 8, data.interval & 255]; }";
    assert_eq!(encode(old, &data, None, &variables), Ok(Encoded { f_port: None, bytes }));
    let refused = |source: &str| encode(source, &data, None, &variables).expect_err("refused");
    assert_eq!(refused("function encodeDownlink() { return {errors: ['no']} }"), Error::Threw("no".to_owned()));
    for result in ["{bytes: [256]}", "{bytes: [1.5]}", "{bytes: new Array(243).fill(0)}", "{}", "{bytes: [1], fPort: 300}"] {
        assert!(matches!(refused(&format!("function encodeDownlink() {{ return {result} }}")), Error::Form(_)), "{result}");
    }
}

/// Every one of these ends by itself, in bounded time and memory, with an error that says why.
#[test]
fn hostile_codecs_are_stopped() {
    let table = [
        ("while (true) {}", "longer than"),
        ("for (;;) { try { while (true) {} } catch (e) {} }", "longer than"),
        ("try { while (true) {} } finally { while (true) {} }", "longer than"),
        ("Array.prototype.indexOf.call({length: 2 ** 53 - 1}, 1)", "longer than"),
        ("/(a+)+b/.test('a'.repeat(40))", "longer than"),
        ("let a = []; for (;;) a.push(new Uint8Array(65536))", "memory"),
        ("let s = 'x'; for (;;) s += s", ""),
        ("new ArrayBuffer(1 << 30)", "memory"),
        ("(function f() { f() })()", ""),
        ("return {data: {text: 'x'.repeat(7000)}}", "more than"),
        ("let d = {}, o = d; for (let i = 0; i < 1000; i++) o = o.o = {}; return {data: d}", ""),
        ("let d = {}; d.d = d; return {data: d}", "circular"),
        ("return {data: {toJSON() { while (true) {} }}}", "longer than"),
        ("return new Proxy({}, {get() { while (true) {} }})", "longer than"),
        ("throw {get message() { while (true) {} }}", ""),
        ("let e = new Error(); Object.defineProperty(e, 'message', {get() { while (true) {} }}); throw e", "longer than"),
    ];
    for (body, why) in table {
        let begun = Instant::now();
        let error = decode(&format!("function decodeUplink() {{ {body} }}"), &payload(&[])).expect_err(body).to_string();
        println!("{:>5} ms  {error}  <- {body}", begun.elapsed().as_millis());
        assert!(error.contains(why), "{body}: {error}");
    }
    let at_load = decode("while (true) {}", &payload(&[]));
    assert_eq!(at_load, Err(Error::TimedOut), "loading counts");
    assert!(decode(&"x".repeat(100), &payload(&[])).is_err_and(|error| error.to_string().len() < 300));
}

#[test]
fn the_language_cannot_be_bent_against_the_service() {
    // What the codec changes is its own loss: the prelude has what it needs already, and the result is checked outside.
    let bent = "JSON.parse = JSON.stringify = () => { throw 1 }; Date = null; Array.from = () => [1]; Object.prototype.data = 5;
        Object.prototype.toJSON = undefined; function decodeUplink(input) { return {data: {n: input.bytes.length}}; }";
    assert_eq!(values(bent), json!({"n": 3}));
    let polluted = "Object.prototype.toJSON = function () { return 'x' }; function decodeUplink() { return {data: {}} }";
    assert!(matches!(decode(polluted, &payload(&[])), Err(Error::Form(_))));
    for name in ["require", "process", "std", "os", "fetch", "Deno", "console", "module"] {
        let source = format!("function decodeUplink() {{ return {{data: {{kind: typeof {name}}}}} }}");
        assert_eq!(values(&source), json!({"kind": "undefined"}), "{name}");
    }
}

/// What a codec keeps for itself is gone with the call: the values follow from the frame alone, on whichever node.
#[test]
fn nothing_is_left_for_the_next_call() {
    let source = "var calls = 0; let seen = []; function decodeUplink(input) {
        calls++; seen.push(1); globalThis.extra = (globalThis.extra || 0) + 1; Array.prototype.mark = (Array.prototype.mark || 0) + 1;
        return {data: {calls, seen: seen.length, extra, mark: [].mark}}; }";
    for _ in 0..3 {
        assert_eq!(values(source), json!({"calls": 1, "seen": 1, "extra": 1, "mark": 1}));
    }
}

fn program() -> PathBuf {
    env!("CARGO_BIN_EXE_lora-device-service").into()
}

/// One operation that the interpreter does not interrupt, of several seconds: digits of a number of a million bits, again and again.
const UNINTERRUPTED: &str =
    "function decodeUplink() { const a = 3n ** 600000n; let n = 0; const digits = [a, a, a, a, a, a, a, a, a, a].join();
    return {data: {n: digits.length}}; }";

/// What the interpreter cannot end is ended with its process, and the next call has another.
#[test]
fn a_step_without_end_is_ended_with_its_process() {
    let mut worker = Worker::new(program());
    let good = "function decodeUplink(input) { return {data: {n: input.bytes.length}, warnings: ['w']} }";
    let expected = decode(good, &payload(&[1, 2])).expect("it decodes");
    assert_eq!(worker.decode(good, payload(&[1, 2])), Ok(expected.clone()), "as here");
    let process = worker.process().expect("it is kept");
    assert_eq!(
        (worker.decode(good, payload(&[1, 2])), worker.process()),
        (Ok(expected.clone()), Some(process)),
        "for the next call"
    );

    let begun = Instant::now();
    let ended = worker.decode(UNINTERRUPTED, payload(&[]));
    println!("ended after {} ms", begun.elapsed().as_millis());
    assert_eq!((ended, worker.process()), (Err(Error::TimedOut), None));
    assert!(!PathBuf::from(format!("/proc/{process}")).exists(), "ended and waited for");
    assert_eq!(worker.decode(good, payload(&[1, 2])), Ok(expected.clone()));

    // Ended by somebody else, it is missed once.
    let process = worker.process().and_then(|process| Pid::from_raw(process.cast_signed())).expect("a process");
    kill_process(process, Signal::KILL).expect("it runs");
    assert!(matches!(worker.decode(good, payload(&[1, 2])), Err(Error::Lost(_))));
    assert_eq!(worker.decode(good, payload(&[1, 2])), Ok(expected));
    let data = json!({"n": 7}).as_object().expect("an object").clone();
    let encoded = worker.encode("function encodeDownlink(i) { return {fPort: 3, bytes: [i.data.n]} }", data, None, Map::new());
    assert_eq!(encoded, Ok(Encoded { f_port: Some(3), bytes: vec![7] }));
    assert!(matches!(Worker::new("/nonexistent".into()).decode(good, payload(&[])), Err(Error::Lost(_))));
}

/// One that never returns costs itself, not the others.
#[tokio::test]
async fn an_endless_codec_pauses_and_others_go_on() {
    let script = |name: &str, index, source: &str| Arc::new(Script { name: name.to_owned(), index, source: source.to_owned() });
    let endless = script("endless", 0, "function decodeUplink() { while (true) {} }");
    let good = script("good", 1, "function decodeUplink() { return {data: {ok: true}} }");
    let scripts = Scripts::start(program()).expect("a thread");
    let first = scripts.decode(Arc::clone(&endless), payload(&[])).await;
    assert!(first.error.is_some_and(|text| text.contains("longer than")));
    let begun = Instant::now();
    for _ in 0..200 {
        let paused = scripts.decode(Arc::clone(&endless), payload(&[])).await;
        assert!(paused.error.is_some_and(|text| text.contains("pauses")));
        assert_eq!(scripts.decode(Arc::clone(&good), payload(&[])).await.values["ok"], json!(true));
    }
    // Unpaused they alone would take 20 s.
    let (took, unpaused) = (begun.elapsed(), CPU_MAX * 200);
    println!("200 calls of each: {} ms", took.as_millis());
    assert!(took < unpaused / 2, "{took:?}");
    const { assert!(OUTPUT_BYTES_MAX < tenant::READING_BYTES_MAX) };
}
