//! What EdgeX's published API asks of the documents that a device service sends, in our own words, and a core-metadata that checks it.
//!
//! Taken from the API descriptions of device-sdk-go and core-metadata (version 3 of the API, releases 3 and 4): which fields are there,
//! of which form, and which of them must be.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use axum::{
    Json, Router,
    extract::{Path, State},
    http::{Method, StatusCode},
    response::{IntoResponse as _, Response},
    routing::{get, post},
};
use serde_json::{Value, json};

const VALUE_TYPES: [&str; 14] = [
    "Bool", "String", "Uint8", "Uint16", "Uint32", "Uint64", "Int8", "Int16", "Int32", "Int64", "Float32", "Float64", "Object",
    "Binary",
];

fn is_uuid(value: &Value) -> bool {
    let parts: Option<Vec<&str>> = value.as_str().map(|text| text.split('-').collect());
    parts.is_some_and(|parts| {
        let hex = |text: &&str| text.bytes().all(|byte| byte.is_ascii_hexdigit());
        parts.iter().map(|part| part.len()).eq([8, 4, 4, 4, 12]) && parts.iter().all(hex)
    })
}

/// Go reads both fixed and exponent forms; core-data's readers expect the exponent form with a sign and two digits.
fn is_float(text: &str) -> bool {
    let Some((digits, power)) = text.split_once('e') else { return false };
    digits.parse::<f64>().is_ok()
        && power.len() >= 3
        && power.starts_with(['+', '-'])
        && power[1..].bytes().all(|b| b.is_ascii_digit())
}

/// Checks an event; gives type and value by resource.
pub fn check_event(event: &Value) -> BTreeMap<String, (String, String)> {
    assert_eq!(event["apiVersion"], "v3", "{event}");
    assert!(is_uuid(&event["id"]), "{event}");
    for field in ["deviceName", "profileName", "sourceName"] {
        assert!(event[field].as_str().is_some_and(|text| !text.is_empty()), "{field}: {event}");
    }
    let origin = event["origin"].as_u64().unwrap_or_else(|| panic!("origin: {event}"));
    assert!(origin > 1_000_000_000_000_000_000, "nanoseconds");
    let readings =
        event["readings"].as_array().filter(|readings| !readings.is_empty()).unwrap_or_else(|| panic!("readings: {event}"));
    let check = |reading: &Value| {
        assert!(is_uuid(&reading["id"]), "{reading}");
        assert_eq!((&reading["deviceName"], &reading["profileName"]), (&event["deviceName"], &event["profileName"]));
        assert!(reading["origin"].is_u64(), "{reading}");
        let value_type =
            reading["valueType"].as_str().filter(|name| VALUE_TYPES.contains(name)).unwrap_or_else(|| panic!("{reading}"));
        let value = if value_type == "Object" {
            assert!(reading["value"].is_null());
            reading["objectValue"].to_string()
        } else {
            reading["value"].as_str().unwrap_or_else(|| panic!("a simple value is a text: {reading}")).to_owned()
        };
        assert!(!value_type.starts_with("Float") || is_float(&value), "{reading}");
        (reading["resourceName"].as_str().expect("a name").to_owned(), (value_type.to_owned(), value))
    };
    let checked: BTreeMap<_, _> = readings.iter().map(check).collect();
    assert_eq!(checked.len(), readings.len(), "a resource once");
    checked
}

/// Checks what all answers have.
pub fn check_response(document: &Value, status: u16) {
    assert_eq!((&document["apiVersion"], &document["statusCode"]), (&json!("v3"), &json!(status)), "{document}");
    assert!(is_uuid(&document["requestId"]), "{document}");
}

#[derive(Default)]
struct Kept {
    services: BTreeMap<String, Value>,
    profiles: BTreeMap<String, Value>,
    devices: BTreeMap<String, Value>,
    faults: Vec<String>,
    failures_left: usize,
    reads: usize,
}

/// A stand-in for core-metadata.
pub struct Metadata {
    address: SocketAddr,
    kept: Arc<Mutex<Kept>>,
    _runtime: tokio::runtime::Runtime,
}

type Shared = State<Arc<Mutex<Kept>>>;

impl Metadata {
    pub fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).expect("a port");
        let address = listener.local_addr().expect("bound");
        let kept = Arc::new(Mutex::new(Kept::default()));
        let router = Router::new()
            .route("/api/v3/{kind}", post(put).patch(put).put(put))
            .route("/api/v3/device/service/name/{name}", get(list))
            .with_state(Arc::clone(&kept));
        runtime.spawn(async move { axum::serve(listener, router).await });
        Metadata { address, kept, _runtime: runtime }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Kept> {
        self.kept.lock().expect("no panic")
    }

    pub fn address(&self) -> String {
        self.address.to_string()
    }

    pub fn fail_times(&self, times: usize) {
        self.lock().failures_left = times;
    }

    pub fn is_complete(&self) -> bool {
        self.lock().reads >= 1
    }

    pub fn was_read_again(&self) -> bool {
        self.lock().reads >= 2
    }

    pub fn faults(&self) -> Vec<String> {
        self.lock().faults.clone()
    }

    /// Names of what is registered.
    pub fn standing(&self) -> BTreeSet<String> {
        let kept = self.lock();
        kept.services.keys().chain(kept.profiles.keys()).chain(kept.devices.keys()).cloned().collect()
    }

    pub fn lock_devices(&self) {
        self.lock().devices.values_mut().for_each(|device| device["adminState"] = json!("LOCKED"));
    }
}

async fn put(State(kept): Shared, Path(kind): Path<String>, method: Method, Json(requests): Json<Value>) -> Response {
    let mut kept = kept.lock().expect("no panic");
    if kept.failures_left > 0 {
        kept.failures_left -= 1;
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    let Some(requests) = requests.as_array() else { return StatusCode::BAD_REQUEST.into_response() };
    let answers: Vec<Value> = requests.iter().map(|request| take(&mut kept, &kind, &method, request)).collect();
    (StatusCode::MULTI_STATUS, Json(answers)).into_response()
}

fn take(kept: &mut Kept, kind: &str, method: &Method, request: &Value) -> Value {
    let answer =
        |status: u16| json!({"apiVersion": "v3", "requestId": request["requestId"], "statusCode": status, "message": ""});
    let (field, update) = match kind {
        "deviceservice" => ("service", Method::PATCH),
        "deviceprofile" => ("profile", Method::PUT),
        "device" => ("device", Method::PATCH),
        _ => return answer(404),
    };
    let thing = request[field].clone();
    let is_new = method == Method::POST;
    let mut fault =
        if request["apiVersion"] == "v3" && is_uuid(&request["requestId"]) { None } else { Some("request".to_owned()) };
    if is_new {
        fault = fault.or_else(|| check(kept, field, &thing));
    } else if *method != update {
        fault = Some(format!("{method} does not update a {field}"));
    }
    if let Some(fault) = fault {
        kept.faults.push(format!("{method} {field}: {fault}: {request}"));
        return answer(400);
    }
    let name = thing["name"].as_str().unwrap_or_default().to_owned();
    let table = match field {
        "service" => &mut kept.services,
        "profile" => &mut kept.profiles,
        _ => &mut kept.devices,
    };
    match (table.get_mut(&name), is_new) {
        (Some(_), true) => answer(409),
        (None, true) => {
            table.insert(name, thing);
            answer(201)
        }
        (Some(known), false) => {
            for (field, value) in thing.as_object().into_iter().flatten() {
                known[field] = value.clone();
            }
            answer(200)
        }
        (None, false) => answer(404),
    }
}

/// What is wrong with something that is to be added.
fn check(kept: &Kept, kind: &str, thing: &Value) -> Option<String> {
    let text = |field: &str| thing[field].as_str().filter(|text| !text.is_empty());
    let one_of = |field: &str, words: &[&str]| text(field).is_some_and(|word| words.contains(&word));
    let mut faults = Vec::new();
    let mut unless = |holds: bool, what: &str| {
        if !holds {
            faults.push(what.to_owned())
        }
    };
    unless(text("name").is_some(), "name");
    match kind {
        "service" => {
            unless(one_of("adminState", &["LOCKED", "UNLOCKED"]), "adminState");
            unless(text("baseAddress").is_some_and(|address| address.starts_with("http://")), "baseAddress");
        }
        "profile" => check_profile(thing, &mut unless),
        _ => {
            unless(one_of("adminState", &["LOCKED", "UNLOCKED"]), "adminState");
            unless(one_of("operatingState", &["UP", "DOWN", "UNKNOWN"]), "operatingState");
            unless(text("serviceName").is_some_and(|name| kept.services.contains_key(name)), "serviceName: unknown");
            unless(text("profileName").is_some_and(|name| kept.profiles.contains_key(name)), "profileName: unknown");
            unless(
                thing["protocols"]
                    .as_object()
                    .is_some_and(|protocols| protocols.values().all(Value::is_object) && !protocols.is_empty()),
                "protocols",
            );
        }
    }
    faults.into_iter().next()
}

fn check_profile(profile: &Value, unless: &mut impl FnMut(bool, &str)) {
    let empty = Vec::new();
    let resources = profile["deviceResources"].as_array().unwrap_or(&empty);
    let mut names = BTreeSet::new();
    for resource in resources {
        let properties = &resource["properties"];
        unless(resource["name"].as_str().is_some_and(|name| names.insert(name)), "deviceResources.name");
        unless(properties["valueType"].as_str().is_some_and(|name| VALUE_TYPES.contains(&name)), "valueType");
        unless(properties["readWrite"].as_str().is_some_and(|way| ["R", "W", "RW"].contains(&way)), "readWrite");
    }
    unless(!names.is_empty(), "deviceResources");
    for command in profile["deviceCommands"].as_array().unwrap_or(&empty) {
        unless(command["name"].as_str().is_some_and(|name| !names.contains(name)), "deviceCommands.name");
        unless(command["readWrite"].is_string() && command["isHidden"].is_boolean(), "deviceCommands.readWrite");
        let operations = command["resourceOperations"].as_array().unwrap_or(&empty);
        let is_known = |operation: &Value| operation["deviceResource"].as_str().is_some_and(|name| names.contains(name));
        unless(!operations.is_empty() && operations.iter().all(is_known), "resourceOperations");
    }
}

async fn list(State(kept): Shared, Path(name): Path<String>) -> Json<Value> {
    let mut kept = kept.lock().expect("no panic");
    kept.reads += 1;
    let devices: Vec<Value> = kept.devices.values().filter(|device| device["serviceName"] == name.as_str()).cloned().collect();
    Json(json!({"apiVersion": "v3", "statusCode": 200, "totalCount": devices.len(), "devices": devices}))
}
