//! Readings in EdgeX's form. Everything here is a function of the uplink: two nodes that hear it make the same event, ids included.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tenant::EventId;
use uuid::Uuid;

use super::{API_VERSION, Resource, Settings, ValueType};
use crate::{config::Codec, reading::RAW, sinks::Heard};

/// Name of the device command that stands for all that an uplink brings.
pub const SOURCE: &str = "uplink";
/// Resource that carries why a payload could not be decoded.
pub const ERROR: &str = "error";

/// An event with its readings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    pub api_version: String,
    pub id: String,
    pub device_name: String,
    pub profile_name: String,
    pub source_name: String,
    /// Nanoseconds since 1970.
    pub origin: u64,
    pub readings: Vec<Reading>,
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub tags: Map<String, Value>,
}

/// One value.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Reading {
    pub id: String,
    pub origin: u64,
    pub device_name: String,
    pub resource_name: String,
    pub profile_name: String,
    pub value_type: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub units: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object_value: Option<Value>,
}

/// A value in EdgeX's form.
#[derive(Debug, Clone, PartialEq)]
pub enum Typed {
    /// Name of the type, and the value as text.
    Simple(&'static str, String),
    /// An object or list.
    Object(Value),
}

/// The event of an uplink.
#[must_use]
pub fn of_uplink(settings: &Settings, heard: &Heard<'_>) -> Event {
    let Heard { uplink, device, opened } = *heard;
    let origin = uplink.heard_at_ms.saturating_mul(1_000_000);
    let profile = settings.profiles.get(&device.profile);
    let is_decimal_text = device.codec == Codec::CayenneLpp;
    let mut typed: Vec<(String, Option<String>, Typed)> = Vec::new();
    for (name, value) in &opened.decoded.values {
        let resource = profile.and_then(|profile| profile.resources.get(name));
        let converted = resource.and_then(|resource| convert(resource.value_type, value));
        if let Some(value) = converted.or_else(|| infer(value, is_decimal_text)) {
            typed.push((name.clone(), resource.and_then(|resource| resource.units.clone()), value));
        }
    }
    if let Some(error) = &opened.decoded.error {
        typed.push((ERROR.to_owned(), None, Typed::Simple("String", error.clone())));
    }
    if typed.is_empty() {
        // An event has at least one reading.
        typed.push((RAW.to_owned(), None, Typed::Simple("String", hex::encode(&opened.payload))));
    }
    let readings = typed.into_iter().map(|(resource_name, units, typed)| {
        let (value_type, value, object_value) = match typed {
            Typed::Simple(value_type, text) => (value_type, Some(text), None),
            Typed::Object(value) => ("Object", None, Some(value)),
        };
        Reading {
            id: derived(uplink.event_id, &resource_name),
            origin,
            device_name: device.name.clone(),
            resource_name,
            profile_name: device.profile.clone(),
            value_type: value_type.to_owned(),
            units,
            value,
            object_value,
        }
    });
    let mut tags: Map<String, Value> = device.tags.iter().map(|(name, text)| (name.clone(), text.as_str().into())).collect();
    tags.insert("devEUI".to_owned(), uplink.dev_eui.to_string().into());
    tags.insert("fCnt".to_owned(), uplink.f_cnt.into());
    Event {
        api_version: API_VERSION.to_owned(),
        id: uplink.event_id.to_string(),
        device_name: device.name.clone(),
        profile_name: device.profile.clone(),
        source_name: SOURCE.to_owned(),
        origin,
        readings: readings.collect(),
        tags,
    }
}

/// An id that follows from an event's and a name.
#[must_use]
pub fn derived(event: EventId, name: &str) -> String {
    Uuid::new_v5(&Uuid::from_bytes(event.0), name.as_bytes()).to_string()
}

/// A value by what it is; nothing for `null`.
fn infer(value: &Value, is_decimal_text: bool) -> Option<Typed> {
    match value {
        Value::Null => None,
        Value::Bool(flag) => Some(Typed::Simple("Bool", flag.to_string())),
        Value::Number(number) if number.is_i64() => Some(Typed::Simple("Int64", number.to_string())),
        Value::Number(number) if number.is_u64() => Some(Typed::Simple("Uint64", number.to_string())),
        Value::Number(number) => number.as_f64().map(|number| Typed::Simple("Float64", float64(number))),
        Value::String(text) => match text.parse::<f64>() {
            Ok(number) if is_decimal_text && text.contains('.') && number.is_finite() => {
                Some(Typed::Simple("Float64", float64(number)))
            }
            _ => Some(Typed::Simple("String", text.clone())),
        },
        Value::Array(_) | Value::Object(_) => Some(Typed::Object(value.clone())),
    }
}

/// A value as the profile wants it; nothing if it cannot be that.
#[must_use]
pub fn convert(value_type: ValueType, value: &Value) -> Option<Typed> {
    let text = match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let integer = |name, min: i128, max: i128| {
        let whole = text.parse::<i128>().ok().or_else(|| whole(text.parse().ok()?));
        whole.filter(|number| (min..=max).contains(number)).map(|number| Typed::Simple(name, number.to_string()))
    };
    let finite = |number: &f64| number.is_finite();
    match value_type {
        ValueType::Bool => match text.as_str() {
            "true" | "1" => Some(Typed::Simple("Bool", "true".to_owned())),
            "false" | "0" => Some(Typed::Simple("Bool", "false".to_owned())),
            _ => None,
        },
        ValueType::String => Some(Typed::Simple("String", text)),
        ValueType::Uint8 => integer("Uint8", 0, u8::MAX.into()),
        ValueType::Uint16 => integer("Uint16", 0, u16::MAX.into()),
        ValueType::Uint32 => integer("Uint32", 0, u32::MAX.into()),
        ValueType::Uint64 => integer("Uint64", 0, u64::MAX.into()),
        ValueType::Int8 => integer("Int8", i8::MIN.into(), i8::MAX.into()),
        ValueType::Int16 => integer("Int16", i16::MIN.into(), i16::MAX.into()),
        ValueType::Int32 => integer("Int32", i32::MIN.into(), i32::MAX.into()),
        ValueType::Int64 => integer("Int64", i64::MIN.into(), i64::MAX.into()),
        ValueType::Float32 => {
            text.parse::<f32>().ok().filter(|n| n.is_finite()).map(|n| Typed::Simple("Float32", exponent(&format!("{n:e}"))))
        }
        ValueType::Float64 => text.parse().ok().filter(finite).map(|number| Typed::Simple("Float64", float64(number))),
        ValueType::Object => (value.is_object() || value.is_array()).then(|| Typed::Object(value.clone())),
    }
}

/// A float that is a whole number, as JavaScript's numbers are.
fn whole(number: f64) -> Option<i128> {
    // Through text: the exact digits, and no cast that could cut.
    (number.fract() == 0.0).then(|| format!("{number:.0}").parse().ok()).flatten()
}

fn float64(number: f64) -> String {
    exponent(&format!("{number:e}"))
}

/// `2.55e1` as Go writes it: `2.55e+01`.
fn exponent(text: &str) -> String {
    let (digits, power) = text.split_once('e').unwrap_or((text, "0"));
    let (sign, power) = power.strip_prefix('-').map_or(('+', power), |power| ('-', power));
    format!("{digits}e{sign}{power:0>2}")
}

/// The value that a codec gets for what a command sets: JSON of the resource's type.
///
/// # Errors
/// It is not of that type.
pub fn setting(name: &str, resource: &Resource, value: &Value) -> Result<Value, String> {
    let typed = convert(resource.value_type, value).ok_or_else(|| format!("{name} is not of type {:?}", resource.value_type))?;
    Ok(match typed {
        Typed::Object(value) => value,
        Typed::Simple("String", text) => Value::String(text),
        Typed::Simple(_, text) => serde_json::from_str(&text.replace("e+", "e")).unwrap_or(Value::String(text)),
    })
}

/// The event as it is added to core-data.
#[must_use]
pub fn add_request(event: &Event) -> Value {
    let request_id = event.id.parse().map(|id: EventId| derived(id, "request")).unwrap_or_default();
    serde_json::json!({"apiVersion": API_VERSION, "requestId": request_id, "event": event})
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn floats_are_written_as_go_does() {
        // From Go's strconv.FormatFloat(x, 'e', -1, 64), as EdgeX uses it.
        let table = [
            (25.5, "2.55e+01"),
            (0.0, "0e+00"),
            (-0.001, "-1e-03"),
            (1e300, "1e+300"),
            (1.0, "1e+00"),
            (123456789.0, "1.23456789e+08"),
        ];
        for (number, text) in table {
            assert_eq!(float64(number), text);
        }
        assert_eq!(convert(ValueType::Float32, &json!(0.1)), Some(Typed::Simple("Float32", "1e-01".to_owned())));
    }

    #[test]
    fn values_keep_to_the_range_of_their_type() {
        let simple = |name, text: &str| Some(Typed::Simple(name, text.to_owned()));
        assert_eq!(convert(ValueType::Uint8, &json!(255)), simple("Uint8", "255"));
        assert_eq!(convert(ValueType::Uint8, &json!(256)), None);
        assert_eq!(convert(ValueType::Uint8, &json!(-1)), None);
        assert_eq!(convert(ValueType::Int16, &json!(12.0)), simple("Int16", "12"));
        assert_eq!(convert(ValueType::Int16, &json!(12.5)), None);
        assert_eq!(convert(ValueType::Uint64, &json!(u64::MAX)), simple("Uint64", "18446744073709551615"));
        assert_eq!(convert(ValueType::Bool, &json!(1)), simple("Bool", "true"));
        assert_eq!(convert(ValueType::Bool, &json!("yes")), None);
        assert_eq!(convert(ValueType::Float64, &json!("23.5")), simple("Float64", "2.35e+01"));
        assert_eq!(convert(ValueType::Float64, &json!("inf")), None);
        assert_eq!(infer(&json!("23.5"), true), simple("Float64", "2.35e+01"));
        assert_eq!(infer(&json!("23.5"), false), simple("String", "23.5"));
        assert_eq!(infer(&Value::Null, true), None);
    }
}
