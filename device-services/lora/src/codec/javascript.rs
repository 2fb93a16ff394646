//! JavaScript codecs in the two forms that are in use:
//!
//! - `decodeUplink({bytes, fPort, recvTime, variables}) -> {data, warnings, errors}` and
//!   `encodeDownlink({data, fPort, variables}) -> {bytes, fPort, warnings, errors}` (The Things Stack, ChirpStack 4)
//! - `Decoder(bytes, port, variables) -> data` and `Encoder(data, port, variables) -> bytes` (older)
//!
//! Every call has an interpreter of its own, so nothing is left of one call for the next: what a codec says depends on the frame alone, and
//! two nodes that hear the same frame say the same (unless the codec asks for the time or a random number). That costs about 0.1 ms.
//!
//! The code is not trusted. A call has [`CPU_MAX`] of processor time (not of wall time: a busy machine does not make a good codec fail),
//! [`MEMORY_BYTES_MAX`], [`STACK_BYTES_MAX`], [`OUTPUT_BYTES_MAX`]; it sees no files, no network and nothing of other devices.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use rquickjs::context::EvalOptions;
use rquickjs::{CatchResultExt as _, CaughtError, Context, Ctx, Function, Runtime, Value as Js};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{Decoded, Encoded};

/// Processor time of a call. It is looked at between steps of the interpreter; one step on huge integers may take longer, for which there is
/// [`super::worker`].
pub const CPU_MAX: Duration = Duration::from_millis(100);
/// Memory of a call, the interpreter itself included.
pub const MEMORY_BYTES_MAX: usize = 8 << 20;
/// Stack of a call.
pub const STACK_BYTES_MAX: usize = 256 << 10;
/// What a codec may return, as JSON: with the rest of a reading it stays below [`tenant::READING_BYTES_MAX`].
pub const OUTPUT_BYTES_MAX: usize = 6 << 10;
/// Longest source of a codec.
pub const SOURCE_BYTES_MAX: usize = 256 << 10;
/// Longest message of an error or warning in characters, and how many of them are kept.
const MESSAGE_CHARACTERS_MAX: usize = 200;
const MESSAGES_MAX: usize = 8;

/// Runs before the codec's code, so that what it needs of the language is the original: `[decode, encode]`.
const PRELUDE: &str = r#"(function () {
    "use strict";
    const parse = JSON.parse, stringify = JSON.stringify, Time = Date, Fault = TypeError, list = Array.from, lists = Array;
    const result = (output, name) => {
        if (output === null || typeof output !== "object") throw new Fault(name + " returned no object");
        return output;
    };
    const bytes = (value) => value === undefined || value === null ? undefined : list.call(lists, value);
    return [
        function (modern, old, json) {
            const input = parse(json);
            if (modern === null && old === null) throw new Fault("neither decodeUplink nor Decoder is defined");
            if (modern === null) return stringify({ data: old(input.bytes, input.fPort, input.variables) });
            input.recvTime = new Time(input.recvTime);
            const output = result(modern(input), "decodeUplink");
            return stringify({ data: output.data, warnings: output.warnings, errors: output.errors });
        },
        function (modern, old, json) {
            const input = parse(json);
            if (modern === null && old === null) throw new Fault("neither encodeDownlink nor Encoder is defined");
            if (modern === null) return stringify({ bytes: bytes(old(input.data, input.fPort, input.variables)) });
            const output = result(modern(input), "encodeDownlink");
            return stringify({ bytes: bytes(output.bytes), fPort: output.fPort, warnings: output.warnings, errors: output.errors });
        },
    ];
})()"#;

/// What the functions of the codec are, by whichever declaration.
const DECODERS: &str =
    "[typeof decodeUplink === 'function' ? decodeUplink : null, typeof Decoder === 'function' ? Decoder : null]";
const ENCODERS: &str =
    "[typeof encodeDownlink === 'function' ? encodeDownlink : null, typeof Encoder === 'function' ? Encoder : null]";

/// Why a call has no result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Error {
    /// It used up [`CPU_MAX`].
    #[error("the codec took longer than {} ms", CPU_MAX.as_millis())]
    TimedOut,
    /// It threw, ran out of memory or stack, or is no valid code.
    #[error("the codec failed: {0}")]
    Threw(String),
    /// Its result is too large.
    #[error("the codec returned more than {OUTPUT_BYTES_MAX} bytes")]
    TooLarge,
    /// Its result is not of the form that is asked for.
    #[error("the codec returned {0}")]
    Form(String),
    /// What was to be encoded is too large.
    #[error("the values to encode are too large")]
    Input,
    /// Its process ended or could not be started.
    #[error("the codec's process failed: {0}")]
    Lost(String),
}

/// A payload to decode.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Payload {
    /// Decrypted.
    pub bytes: Vec<u8>,
    /// Its port.
    pub f_port: u8,
    /// In milliseconds since 1970.
    pub received_at_ms: u64,
    /// Of the device, from the configuration.
    pub variables: Map<String, Value>,
}

/// Decodes a payload.
///
/// # Errors
/// [`Error`]; what the codec itself reports as errors is in the result.
pub fn decode(source: &str, payload: &Payload) -> Result<Decoded, Error> {
    #[derive(Deserialize)]
    struct Output {
        data: Option<Value>,
        #[serde(default)]
        warnings: Option<Value>,
        #[serde(default)]
        errors: Option<Value>,
    }
    let input = json!({"bytes": payload.bytes, "fPort": payload.f_port, "recvTime": payload.received_at_ms,
        "variables": payload.variables});
    let output: Output = parse(&call(source, 0, DECODERS, &input.to_string())?)?;
    let errors = messages(output.errors);
    let values = match output.data {
        Some(Value::Object(values)) => values,
        None | Some(Value::Null) if !errors.is_empty() => Map::new(),
        None | Some(Value::Null) => return Err(Error::Form("no data".to_owned())),
        Some(_) => return Err(Error::Form("data that is no object".to_owned())),
    };
    let error = (!errors.is_empty()).then(|| errors.join("; "));
    Ok(Decoded { values, warnings: messages(output.warnings), error })
}

/// Encodes values for a downlink.
///
/// # Errors
/// [`Error`]; what the codec itself reports as errors is [`Error::Threw`].
pub fn encode(
    source: &str,
    data: &Map<String, Value>,
    f_port: Option<u8>,
    variables: &Map<String, Value>,
) -> Result<Encoded, Error> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Output {
        bytes: Option<Vec<u8>>,
        #[serde(default)]
        f_port: Option<u8>,
        #[serde(default)]
        errors: Option<Value>,
    }
    let input = json!({"data": data, "fPort": f_port, "variables": variables}).to_string();
    if input.len() > 4 * OUTPUT_BYTES_MAX {
        return Err(Error::Input);
    }
    let output: Output = parse(&call(source, 1, ENCODERS, &input)?)?;
    let errors = messages(output.errors);
    if !errors.is_empty() {
        return Err(Error::Threw(errors.join("; ")));
    }
    let bytes = output.bytes.ok_or_else(|| Error::Form("no bytes".to_owned()))?;
    if bytes.len() > tenant::PAYLOAD_BYTES_MAX {
        return Err(Error::Form(format!("{} bytes, more than fit into a frame", bytes.len())));
    }
    Ok(Encoded { f_port: output.f_port, bytes })
}

fn parse<T: serde::de::DeserializeOwned>(output: &str) -> Result<T, Error> {
    serde_json::from_str(output).map_err(|error| Error::Form(format!("something else than is asked for: {error}")))
}

fn messages(list: Option<Value>) -> Vec<String> {
    let text = |value: Value| match value {
        Value::String(text) => short(&text),
        other => short(&other.to_string()),
    };
    match list {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Array(list)) => list.into_iter().take(MESSAGES_MAX).map(text).collect(),
        Some(one) => vec![text(one)],
    }
}

fn short(text: &str) -> String {
    text.chars().take(MESSAGE_CHARACTERS_MAX).collect()
}

/// Processor time of this thread.
fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// Calls function `which` of the prelude with the codec's functions and `input`, in an interpreter of its own.
fn call(source: &str, which: usize, functions: &str, input: &str) -> Result<String, Error> {
    let refused = |error: rquickjs::Error| Error::Threw(error.to_string());
    let runtime = Runtime::new().map_err(refused)?;
    runtime.set_memory_limit(MEMORY_BYTES_MAX);
    runtime.set_max_stack_size(STACK_BYTES_MAX);
    let (timed_out, end) = (Rc::new(Cell::new(false)), cpu_time() + CPU_MAX);
    let interrupted = Rc::clone(&timed_out);
    runtime.set_interrupt_handler(Some(Box::new(move || {
        let is_over = cpu_time() > end;
        interrupted.set(interrupted.get() || is_over);
        is_over
    })));
    let context = Context::full(&runtime).map_err(refused)?;
    let done = context.with(|ctx| run(&ctx, source, which, functions, input).catch(&ctx).map_err(|error| thrown(&error)));
    if timed_out.get() {
        return Err(Error::TimedOut);
    }
    match done {
        Ok(Some(output)) => Ok(output),
        Ok(None) => Err(Error::TooLarge),
        Err(message) => Err(Error::Threw(message)),
    }
}

/// `None`: the result is too large.
fn run<'js>(ctx: &Ctx<'js>, source: &str, which: usize, functions: &str, input: &str) -> rquickjs::Result<Option<String>> {
    let mut sloppy = EvalOptions::default();
    sloppy.strict = false;
    let ours: Vec<Function<'js>> = ctx.eval(PRELUDE)?;
    ctx.eval_with_options::<(), _>(source, sloppy)?;
    let theirs: Vec<Js<'js>> = ctx.eval(functions)?;
    let (Some(function), [modern, old]) = (ours.get(which), theirs.as_slice()) else { return Err(rquickjs::Error::Unknown) };
    let output: rquickjs::String<'js> = function.call((modern.clone(), old.clone(), input))?;
    let output = output.to_string()?;
    Ok((output.len() <= OUTPUT_BYTES_MAX).then_some(output))
}

fn thrown(error: &CaughtError<'_>) -> String {
    match error {
        CaughtError::Exception(exception) => {
            let message = exception.message().unwrap_or_default();
            if message.is_empty() { "it threw an error without a message".to_owned() } else { short(&message) }
        }
        CaughtError::Value(value) => match value.as_string().and_then(|text| text.to_string().ok()) {
            Some(text) => short(&text),
            None if value.is_null() => "out of memory".to_owned(),
            None => "it threw something that is no error".to_owned(),
        },
        CaughtError::Error(error) => short(&error.to_string()),
    }
}
