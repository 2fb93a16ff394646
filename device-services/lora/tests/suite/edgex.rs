//! A device service of EdgeX, with a real Mosquitto. EdgeX itself does not run here: its core-metadata is a stand-in that checks the shapes of
//! what it is sent (`edgex_shapes`).

use std::collections::BTreeMap;

use super::broker::{Listener, Mosquitto, configure, free_port, uplink};
use super::common::{Node, PATIENCE, Place, Service, event_id, wait_for};
use super::edgex_shapes::{Metadata, check_event, check_response};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

const SERVICE: &str = "device-lora-antirio";

fn edgex(broker: &Mosquitto, metadata: &Metadata, listen: u16, envelope: &str) -> Value {
    json!({"edgex": {"broker": {"address": broker.address()}, "envelope": envelope, "core_metadata": metadata.address(),
        "base_address": "http://rio:59994", "listen": format!("127.0.0.1:{listen}"),
        "profiles": {"thermometer": {"resources": {
            "temperature": {"type": "Float32", "units": "degC"}, "count": {"type": "Uint16"}, "door": {"type": "Bool"},
            "interval": {"type": "Uint16", "writable": true, "readable": false}}}}}})
}

/// A request by hand: status, correlation id and document.
fn ask(port: u16, method: &str, path: &str, body: &str) -> (u16, String, Value) {
    use std::io::{Read as _, Write as _};
    let mut stream = wait_for("the REST routes", || std::net::TcpStream::connect(("127.0.0.1", port)).ok());
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let head = format!(
        "{method} /api/v3{path} HTTP/1.1\r\nHost: x\r\nX-Correlation-ID: mine\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body.as_bytes())).expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    let correlation = head.lines().find_map(|line| line.strip_prefix("x-correlation-id: ")).unwrap_or_default().to_owned();
    (status, correlation, serde_json::from_str(body).expect("JSON"))
}

#[test]
fn edgex_gets_events_answers_and_registrations() {
    let place = Place::new();
    let Some(broker) = Mosquitto::start(place.directory.path(), free_port()) else { return };
    let (metadata, listen) = (Metadata::start(), free_port());
    configure(&place, &edgex(&broker, &metadata, listen, "v4"));
    let listener = Listener::start(&broker);
    let _node = Node::start(&place.socket(), &place.shared);
    let _service = Service::start_with(&place.socket(), &["--direct"]);
    wait_for("the registration", || metadata.is_complete().then_some(()));
    let (status, correlation, unheard) = ask(listen, "GET", "/device/name/cellar/temperature", "");
    assert_eq!((status, correlation.as_str()), (500, "mine"), "{unheard}");
    place.shared.hear([uplink(7)]);
    let topic = format!("edgex/events/device/{SERVICE}/thermometer/cellar/uplink");
    let envelope = listener.wait(&topic, |_| true);
    assert_eq!(
        (&envelope["apiVersion"], &envelope["contentType"], &envelope["errorCode"]),
        (&json!("v3"), &json!("application/json"), &json!(0))
    );
    let request = &envelope["payload"];
    let readings = check_event(&request["event"]);
    assert_eq!((&request["apiVersion"], &request["event"]["id"]), (&json!("v3"), &json!(event_id(7).to_string())));
    assert_eq!(request["event"]["origin"], json!(1_700_000_000_007_000_000_u64));
    let expected = BTreeMap::from([
        ("count".to_owned(), ("Uint16".to_owned(), "7".to_owned())),
        ("door".to_owned(), ("Bool".to_owned(), "false".to_owned())),
        ("temperature".to_owned(), ("Float32".to_owned(), "2.35e+01".to_owned())),
    ]);
    assert_eq!(readings, expected);
    rest(&place, &listener, listen, &topic);
    bus(&place, &listener);
    assert_eq!(metadata.faults(), Vec::<String>::new(), "shapes of what was registered");
}

fn rest(place: &Place, listener: &Listener, listen: u16, topic: &str) {
    for (path, field) in [("/ping", "timestamp"), ("/version", "sdk_version"), ("/config", "config")] {
        let (status, correlation, document) = ask(listen, "GET", path, "");
        assert_eq!((status, correlation.as_str(), &document["serviceName"]), (200, "mine", &json!(SERVICE)), "{path}");
        assert!(!document[field].is_null() && document["apiVersion"] == "v3", "{path}: {document}");
    }
    let event_of = |path: &str| {
        let (status, _, document) = ask(listen, "GET", path, "");
        assert_eq!(status, 200, "{path}: {document}");
        check_response(&document, 200);
        document
    };
    assert_eq!(check_event(&event_of("/device/name/cellar/uplink")["event"]).len(), 3);
    let one = check_event(&event_of("/device/name/cellar/temperature?ds-pushevent=true")["event"]);
    assert_eq!(one.keys().collect::<Vec<_>>(), ["temperature"]);
    listener.wait(&topic.replace("/uplink", "/temperature"), |_| true);
    assert!(event_of("/device/name/cellar/count?ds-returnevent=false")["event"].is_null());
    let (status, _, done) = ask(listen, "PUT", "/device/name/cellar/interval", r#"{"interval":"300"}"#);
    assert_eq!(status, 200, "{done}");
    let (status, ..) = ask(listen, "PUT", "/device/name/cellar/downlink", r#"{"downlink":"33:0102ff"}"#);
    assert_eq!(status, 200);
    place.shared.wait_until("two downlinks", |memory| memory.downlinks.len() == 2);
    assert_eq!(place.shared.lock().downlinks.iter().map(|downlink| downlink.f_port).collect::<Vec<_>>(), [10, 33]);
    let refusals = [
        ("GET", "/device/name/attic/uplink", "", 404),
        ("GET", "/device/name/cellar/nothing", "", 404),
        ("GET", "/device/name/cellar/interval", "", 405),
        ("PUT", "/device/name/cellar/temperature", r#"{"temperature":"1"}"#, 405),
        ("PUT", "/device/name/cellar/nothing", "{}", 404),
        ("PUT", "/device/name/cellar/interval", r#"{"interval":"70000"}"#, 400),
        ("PUT", "/device/name/cellar/interval", "nonsense", 400),
        ("PUT", "/device/name/cellar/downlink", r#"{"downlink":"0:00"}"#, 400),
        ("DELETE", "/ping", "", 405),
        ("POST", "/discovery", "", 503),
        ("DELETE", "/discovery", "", 501),
        ("DELETE", "/discovery/requestId/4a1c", "", 404),
        ("POST", "/profilescan", "{}", 501),
        ("DELETE", "/profilescan/device/name/cellar", "", 501),
        ("POST", "/secret", r#"{"secretName":"x","secretData":[]}"#, 500),
        ("POST", "/secret", "{}", 400),
        ("POST", "/callback/device", "{}", 404),
    ];
    for (method, path, body, expected) in refusals {
        let (status, correlation, document) = ask(listen, method, path, body);
        assert_eq!((status, correlation.as_str()), (expected, "mine"), "{method} {path}: {document}");
        check_response(&document, expected);
        assert!(document["message"].is_string(), "{method} {path}: {document}");
    }
}

fn bus(place: &Place, listener: &Listener) {
    let request = |id: &str, payload: Value, query: Value| {
        json!({"apiVersion": "v3", "requestID": id, "correlationID": format!("corr-{id}"), "payload": payload, "queryParams": query,
            "contentType": "application/json", "errorCode": 0, "receivedTopic": ""})
    };
    let command = |id: &str, command: &str, way: &str, payload: Value| {
        listener
            .publish(&format!("edgex/device/command/request/{SERVICE}/cellar/{command}/{way}"), &request(id, payload, json!({})));
        listener.wait(&format!("edgex/response/{SERVICE}/{id}"), |_| true)
    };
    let got = command("r1", "count", "get", Value::Null);
    assert_eq!((&got["requestID"], &got["correlationID"], &got["errorCode"]), (&json!("r1"), &json!("corr-r1"), &json!(0)));
    check_event(&got["payload"]["event"]);
    let set = command("r2", "interval", "set", json!({"interval": "60"}));
    assert_eq!((&set["errorCode"], place.shared.lock().downlinks.len()), (&json!(0), 3), "{set}");
    // As EdgeX 3 writes it.
    let set = command("r3", "interval", "set", json!(STANDARD.encode(r#"{"interval":"61"}"#)));
    assert_eq!((&set["errorCode"], place.shared.lock().downlinks.len()), (&json!(0), 4), "{set}");
    let refused = command("r4", "nothing", "get", Value::Null);
    assert_eq!((&refused["errorCode"], &refused["contentType"]), (&json!(1), &json!("text/plain")));
    let validate = |id: &str, eui: &str| {
        let device = json!({"apiVersion": "v3", "device": {"name": "new", "protocols": {"lora": {"devEUI": eui}}}});
        listener.publish(&format!("edgex/{SERVICE}/validate/device"), &request(id, device, json!({})));
        listener.wait(&format!("edgex/response/{SERVICE}/{id}"), |_| true)["errorCode"].clone()
    };
    assert_eq!((validate("v1", "0303030303030303"), validate("v2", "none")), (json!(0), json!(1)));
    let lock = |state: &str, operating: &str| {
        let details = json!({"name": "cellar", "adminState": state, "operatingState": operating, "serviceName": SERVICE});
        let event = json!({"apiVersion": "v3", "type": "device", "action": "update", "source": "core-metadata", "owner": SERVICE, "details": details});
        listener.publish(
            &format!("edgex/system-events/core-metadata/device/update/{SERVICE}/thermometer"),
            &request("", event, json!({})),
        );
    };
    for (number, state, operating, error) in [(0, "LOCKED", "UP", 1), (1, "UNLOCKED", "DOWN", 1), (2, "UNLOCKED", "UP", 0)] {
        lock(state, operating);
        // Messages of one publisher are taken in order.
        let answer = command(&format!("s{number}"), "count", "get", Value::Null);
        assert_eq!(answer["errorCode"], json!(error), "{state} {operating}: {answer}");
    }
}

#[test]
fn envelopes_can_be_those_of_edgex_3_and_registration_is_repeated_until_it_is_done() {
    let place = Place::new();
    let Some(broker) = Mosquitto::start(place.directory.path(), free_port()) else { return };
    let metadata = Metadata::start();
    metadata.fail_times(3);
    let listen = free_port();
    configure(&place, &edgex(&broker, &metadata, listen, "v3"));
    let listener = Listener::start(&broker);
    let _node = Node::start(&place.socket(), &place.shared);
    let service = Service::start_with(&place.socket(), &["--direct"]);
    place.shared.hear([uplink(0)]);
    let topic = format!("edgex/events/device/{SERVICE}/thermometer/cellar/uplink");
    let envelope = listener.wait(&topic, |_| true);
    let payload = STANDARD.decode(envelope["payload"].as_str().expect("base64")).expect("base64");
    check_event(&serde_json::from_slice::<Value>(&payload).expect("JSON")["event"]);
    wait_for("the registration", || metadata.is_complete().then_some(()));
    let standing = metadata.standing();
    drop(service);
    // Again, by a new process: what is there is brought up to date, and stays locked if an administrator locked it.
    metadata.lock_devices();
    let _service = Service::start_with(&place.socket(), &["--direct"]);
    wait_for("the second registration", || metadata.was_read_again().then_some(()));
    assert_eq!(metadata.standing(), standing);
    wait_for("the lock", || (ask(listen, "GET", "/device/name/cellar/uplink", "").0 == 423).then_some(()));
    assert_eq!(metadata.faults(), Vec::<String>::new());
}
