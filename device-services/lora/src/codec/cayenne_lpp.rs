//! Cayenne Low Power Payload: channel, type, big-endian value, repeated. Types are those of the original (IPSO object id less 3200) and of
//! the common extensions that LoRaWAN servers decode.
//!
//! A value's name is its type and channel, as `temperature_1`; a channel that sends the same type again in one payload gets
//! `temperature_1#2`, `temperature_1#3`, ... Whole numbers are JSON integers. Fractions are decimal strings with as many digits as the
//! type resolves (`"23.5"`): exact, where a binary fraction would not be.

use serde_json::{Map, Value, json};

use super::Decoded;

/// A number within a value.
struct Number {
    /// Bytes it takes, at most 4.
    bytes: usize,
    signed: bool,
    /// The raw number counts steps of `step / 10^digits`.
    step: i64,
    digits: u8,
}

/// The parts of a value.
enum Shape {
    One(Number),
    Parts(&'static [(&'static str, Number)]),
}

const fn unsigned(bytes: usize, digits: u8) -> Number {
    Number { bytes, signed: false, step: 1, digits }
}

const fn signed(bytes: usize, digits: u8) -> Number {
    Number { bytes, signed: true, step: 1, digits }
}

/// Steps of half a per cent.
const HALF: Number = Number { bytes: 1, signed: false, step: 5, digits: 1 };

const ACCELERATION: &[(&str, Number)] = &[("x", signed(2, 3)), ("y", signed(2, 3)), ("z", signed(2, 3))];
const ROTATION: &[(&str, Number)] = &[("x", signed(2, 2)), ("y", signed(2, 2)), ("z", signed(2, 2))];
const COLOUR: &[(&str, Number)] = &[("red", unsigned(1, 0)), ("green", unsigned(1, 0)), ("blue", unsigned(1, 0))];
const POSITION: &[(&str, Number)] = &[("latitude", signed(3, 4)), ("longitude", signed(3, 4)), ("altitude", signed(3, 2))];

/// Name and shape of a type; the unit is in the comment.
fn type_of(code: u8) -> Option<(&'static str, Shape)> {
    let one = |name, number| Some((name, Shape::One(number)));
    let parts = |name, list| Some((name, Shape::Parts(list)));
    match code {
        0 => one("digital_input", unsigned(1, 0)),
        1 => one("digital_output", unsigned(1, 0)),
        2 => one("analog_input", signed(2, 2)),
        3 => one("analog_output", signed(2, 2)),
        100 => one("generic", unsigned(4, 0)),
        101 => one("illuminance", unsigned(2, 0)), // lx
        102 => one("presence", unsigned(1, 0)),
        103 => one("temperature", signed(2, 1)),     // degree Celsius
        104 => one("humidity", HALF),                // %
        113 => parts("accelerometer", ACCELERATION), // g
        115 => one("barometer", unsigned(2, 1)),     // hPa
        116 => one("voltage", unsigned(2, 2)),       // V
        117 => one("current", unsigned(2, 3)),       // A
        118 => one("frequency", unsigned(4, 0)),     // Hz
        120 => one("percentage", unsigned(1, 0)),    // %
        121 => one("altitude", signed(2, 0)),        // m
        125 => one("concentration", unsigned(2, 0)), // ppm
        128 => one("power", unsigned(2, 0)),         // W
        130 => one("distance", unsigned(4, 3)),      // m
        131 => one("energy", unsigned(4, 3)),        // kWh
        132 => one("direction", unsigned(2, 0)),     // degree
        133 => one("unix_time", unsigned(4, 0)),     // s
        134 => parts("gyrometer", ROTATION),         // degree/s
        135 => parts("colour", COLOUR),
        136 => parts("gps", POSITION), // degree, degree, m
        142 => one("switch", unsigned(1, 0)),
        _ => None,
    }
}

/// Decodes a payload. Values before an unknown type or a cut-off value are kept; what follows cannot be told apart any more.
pub fn decode(payload: &[u8]) -> Decoded {
    let mut decoded = Decoded::default();
    let mut rest = payload;
    while !rest.is_empty() {
        let offset = payload.len() - rest.len();
        match decode_value(&mut rest) {
            Ok((name, value)) => insert(&mut decoded.values, name, value),
            Err(reason) => {
                decoded.error = Some(format!("byte {offset}: {reason}"));
                break;
            }
        }
    }
    decoded
}

fn decode_value(rest: &mut &[u8]) -> Result<(String, Value), String> {
    let [channel, code, after @ ..] = *rest else { return Err("a channel without a type".to_owned()) };
    let (name, shape) = type_of(*code).ok_or_else(|| format!("unknown type {code}"))?;
    let mut input = after;
    let cut_off = || format!("the value of {name} is cut off");
    let value = match shape {
        Shape::One(number) => decode_number(&number, &mut input).ok_or_else(cut_off)?,
        Shape::Parts(list) => {
            let mut parts = Map::new();
            for (part, number) in list {
                parts.insert((*part).to_owned(), decode_number(number, &mut input).ok_or_else(cut_off)?);
            }
            Value::Object(parts)
        }
    };
    *rest = input;
    Ok((format!("{name}_{channel}"), value))
}

fn decode_number(number: &Number, input: &mut &[u8]) -> Option<Value> {
    let (bytes, rest) = input.split_at_checked(number.bytes)?;
    *input = rest;
    let raw = bytes.iter().fold(0_i64, |value, byte| (value << 8) | i64::from(*byte));
    let sign_bit = 1_i64 << (8 * number.bytes - 1);
    let raw = if number.signed && raw & sign_bit != 0 { raw - 2 * sign_bit } else { raw };
    Some(decimal(raw * number.step, number.digits))
}

/// `value / 10^digits`, exactly.
fn decimal(value: i64, digits: u8) -> Value {
    if digits == 0 {
        return json!(value);
    }
    let scale = 10_u64.pow(u32::from(digits));
    let sign = if value < 0 { "-" } else { "" };
    let (whole, fraction) = (value.unsigned_abs() / scale, value.unsigned_abs() % scale);
    Value::String(format!("{sign}{whole}.{fraction:0width$}", width = usize::from(digits)))
}

fn insert(values: &mut Map<String, Value>, name: String, value: Value) {
    if !values.contains_key(&name) {
        values.insert(name, value);
        return;
    }
    let free = (2..).map(|times| format!("{name}#{times}")).find(|name| !values.contains_key(name));
    if let Some(name) = free {
        values.insert(name, value);
    }
}
