//! The real program with a real Mosquitto: events in the forms of ChirpStack and EdgeX, commands, brokers that come and go.
//!
//! EdgeX itself does not run here: its core-metadata is a stand-in that checks the shapes of what it is sent (`edgex_shapes`).

use std::{
    collections::BTreeMap,
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
};

use super::common::{self, APP_S_KEY, DEV_ADDR, F_CNT_FIRST, Node, PATIENCE, Place, Service, event_id, wait_for};
use super::edgex_shapes::{Metadata, check_event, check_response};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use lora_device_service::{
    decrypt::{Direction, apply_key_stream},
    mqtt::{Event, Login, Session},
};
use serde_json::{Value, json};
use tenant::{DevEui, HexBytes, Reception, Uplink, UplinkKind};
use tokio::net::TcpStream;

const SERVICE: &str = "device-lora-antirio";

/// A broker on a port of its own; killed when dropped.
struct Mosquitto {
    child: Child,
    port: u16,
}

impl Mosquitto {
    /// `None`, said aloud: it is not installed.
    fn start(directory: &Path, port: u16) -> Option<Self> {
        let file = directory.join(format!("mosquitto-{port}.conf"));
        std::fs::write(&file, format!("listener {port} 127.0.0.1\nallow_anonymous true\n")).expect("a file");
        let program = ["mosquitto", "/usr/sbin/mosquitto"];
        let start =
            |program: &str| Command::new(program).arg("-c").arg(&file).stdout(Stdio::null()).stderr(Stdio::null()).spawn().ok();
        let Some(child) = program.into_iter().find_map(start) else {
            println!("SKIPPED: mosquitto is not installed; `cargo xtask test --install` installs it");
            return None;
        };
        let broker = Mosquitto { child, port };
        wait_for("the broker", || std::net::TcpStream::connect(("127.0.0.1", port)).ok());
        Some(broker)
    }

    fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound").port()
}

type Messages = Arc<Mutex<Vec<(String, Value)>>>;

/// Somebody who listens to everything and may publish, in a runtime of its own.
struct Listener {
    messages: Messages,
    publish: tokio::sync::mpsc::UnboundedSender<(String, Vec<u8>)>,
    _runtime: tokio::runtime::Runtime,
}

impl Listener {
    fn start(broker: &Mosquitto) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        let messages = Messages::default();
        let (publish, mut queue) = tokio::sync::mpsc::unbounded_channel::<(String, Vec<u8>)>();
        let (address, kept) = (broker.address(), Arc::clone(&messages));
        let (ready, subscribed) = std::sync::mpsc::channel();
        runtime.spawn(async move {
            let stream = TcpStream::connect(address).await.expect("the broker");
            let login = Login { client_id: "listener".to_owned(), user: None };
            let mut session = Session::open(Box::new(stream), &login, vec!["#".to_owned()]).await.expect("a session");
            ready.send(()).expect("the test waits");
            loop {
                tokio::select! {
                    biased;
                    event = session.next() => match event {
                        Ok(Event::Message { topic, payload }) => {
                            let document = serde_json::from_slice(&payload).expect("JSON");
                            kept.lock().expect("no panic").push((topic, document));
                        }
                        Ok(Event::Acknowledged(_) | Event::Quiet) => {}
                        Err(_) => return,
                    },
                    Some((topic, payload)) = queue.recv() => { session.publish(&topic, payload).expect("small enough"); }
                }
            }
        });
        subscribed.recv_timeout(PATIENCE).expect("subscribed");
        Listener { messages, publish, _runtime: runtime }
    }

    fn all(&self, topic: &str) -> Vec<Value> {
        let messages = self.messages.lock().expect("no panic");
        messages.iter().filter(|(known, _)| known == topic).map(|(_, document)| document.clone()).collect()
    }

    /// The first message of a topic that is as it should be.
    fn wait(&self, topic: &str, is_right: impl Fn(&Value) -> bool) -> Value {
        wait_for(topic, || self.all(topic).into_iter().find(&is_right))
    }

    fn publish(&self, topic: &str, document: &Value) {
        self.publish.send((topic.to_owned(), document.to_string().into_bytes())).expect("it listens");
    }
}

const EUI: &str = "0101010101010101";

fn up_topic() -> String {
    format!("application/app-1/device/{EUI}/event/up")
}

fn uplink(number: u32) -> Uplink {
    let payload = [&[3, 103, 0, 235, 2, 100][..], &number.to_be_bytes()].concat();
    let rx = Reception {
        gateway: Some("aa555a0000000000".to_owned()),
        frequency_hz: 868_100_000,
        data_rate: "SF7BW125".to_owned(),
        rssi_dbm: -57,
        snr_tenths_db: 95,
    };
    Uplink { confirmed: number == 1, rx, ..common::uplink(number, &payload) }
}

const CODEC: &str = "function decodeUplink(input) {
        const b = input.bytes, n = b.length;
        return {data: {temperature: (b[2] << 8 | b[3]) / 10, count: b[n - 1] | b[n - 2] << 8, door: false}, warnings: input.fPort === 1 ? [] : ['port']};
    }
    function encodeDownlink(input) { return {fPort: 10, bytes: [input.data.interval >> 8, input.data.interval & 255]}; }";

fn configure(place: &Place, more: &Value) {
    let mut config = json!({
        "devices": [{"dev_eui": EUI, "dev_addr": "26011bda", "nwk_s_key": "0f".repeat(16), "app_s_key": "000102030405060708090a0b0c0d0e0f",
            "codec": "own", "name": "cellar", "profile": "thermometer", "tags": {"room": "cellar"}}],
        "codecs": {"own": {"javascript": CODEC}},
    });
    for (name, value) in more.as_object().expect("an object") {
        config[name] = value.clone();
    }
    place.shared.change(|memory| memory.config = config.to_string().into_bytes());
}

fn ids(messages: &[Value]) -> Vec<String> {
    messages.iter().map(|event| event["deduplicationId"].as_str().expect("an id").to_owned()).collect()
}

#[test]
fn uplinks_become_events_as_chirpstack_has_them() {
    let place = Place::new();
    let Some(broker) = Mosquitto::start(place.directory.path(), free_port()) else { return };
    configure(&place, &json!({"chirpstack": {"broker": {"address": broker.address()}, "application_id": "app-1"}}));
    let listener = Listener::start(&broker);
    let _node = Node::start(&place.socket(), &place.shared);
    place.shared.hear([uplink(0)]);
    let _service = Service::start_with(&place.socket(), &["--direct"]);
    let event = listener.wait(&up_topic(), |_| true);
    place.shared.wait_until("the reading too", |memory| memory.readings.len() == 1);
    let expected = json!({
        "deduplicationId": event_id(0).to_string(), "time": "2023-11-14T22:13:20.000Z", "devAddr": "26011bda", "dr": 5, "fCnt": 0, "fPort": 1,
        "confirmed": false, "data": STANDARD.encode([3, 103, 0, 235, 2, 100, 0, 0, 0, 0]),
        "object": {"temperature": 23.5, "count": 0, "door": false}, "regionConfigId": "eu868",
        "txInfo": {"frequency": 868_100_000, "modulation": {"lora": {"bandwidth": 125_000, "spreadingFactor": 7, "codeRate": "CR_4_5"}}},
        "deviceInfo": {"tenantId": "", "tenantName": "", "applicationId": "app-1", "applicationName": "app-1", "deviceProfileId": "thermometer",
            "deviceProfileName": "thermometer", "deviceName": "cellar", "devEui": EUI, "deviceClassEnabled": "CLASS_A", "tags": {"room": "cellar"}},
        "rxInfo": [{"gatewayId": "aa555a0000000000", "uplinkId": 0x1111_1111, "nsTime": "2023-11-14T22:13:20.000Z", "rssi": -57, "snr": 9.5,
            "crcStatus": "CRC_OK"}],
    });
    assert_eq!(event, expected);
    // What cannot be decoded goes on with its bytes, and why.
    place.shared.hear([Uplink { f_port: Some(9), ..uplink(1) }]);
    let warned = listener.wait(&format!("application/app-1/device/{EUI}/event/log"), |_| true);
    assert_eq!(
        (&warned["level"], &warned["code"], &warned["description"]),
        (&json!("WARNING"), &json!("UPLINK_CODEC"), &json!("port"))
    );
    // Downlinks, and one that is none.
    let command = format!("application/app-1/device/{EUI}/command/down");
    listener.publish(&command, &json!({"devEui": EUI, "confirmed": true, "fPort": 7, "data": STANDARD.encode([1, 2])}));
    listener.publish(&command, &json!({"devEui": EUI, "object": {"interval": 300}, "id": "mine"}));
    listener.publish(&command, &json!({"devEui": "0202020202020202", "data": ""}));
    place.shared.wait_until("two downlinks", |memory| memory.downlinks.len() == 2);
    listener.wait(&format!("application/app-1/device/{EUI}/event/log"), |event| event["code"] == "DOWNLINK_CODEC");
    place.shared.wait_until("two encrypted downlinks", |memory| memory.encrypted.len() == 2);
    let memory = place.shared.lock();
    let (at_rest, on_air) = (&memory.downlinks[0].payload.0, &memory.encrypted[0]);
    assert!(!at_rest.windows(2).any(|part| part == [1, 2]), "the node sees no payload: {at_rest:?}");
    for (f_cnt, payload) in (F_CNT_FIRST..).zip(&on_air.payloads) {
        let mut read = payload.0.clone();
        apply_key_stream(&APP_S_KEY, Direction::Down, DEV_ADDR, f_cnt, &mut read);
        assert_eq!(read, [1, 2]);
    }
    assert_eq!((on_air.f_cnt_first, on_air.payloads.len()), (F_CNT_FIRST, 2));
    let bytes = &memory.downlinks[0];
    assert_eq!((bytes.f_port, bytes.confirmed, bytes.dev_eui), (7, true, DevEui([1; 8])));
    let object = &memory.downlinks[1];
    assert_eq!((object.f_port, object.id.as_str(), object.confirmed), (10, "mine", false));
}

#[test]
fn joins_and_the_fates_of_downlinks_become_events_and_all_gateways_are_named() {
    let place = Place::new();
    let Some(broker) = Mosquitto::start(place.directory.path(), free_port()) else { return };
    configure(
        &place,
        &json!({
            "devices": [],
            "joining": [{"dev_eui": EUI, "join_eui": "70b3d57ed0000001", "dev_addr": "26011bda", "app_key": "0f".repeat(16), "codec": "none", "name": "cellar"}],
            "chirpstack": {"broker": {"address": broker.address()}, "application_id": "app-1"},
        }),
    );
    let listener = Listener::start(&broker);
    let _node = Node::start(&place.socket(), &place.shared);
    let of = |number: u32, session: &str, f_cnt| Uplink {
        session: session.to_owned(),
        joined: Some(tenant::Joined { join_nonce: 1, net_id: 0, dev_nonce: 5 }),
        f_cnt,
        ..uplink(number)
    };
    let heard = |n: u8| Reception { gateway: Some(format!("{n:016x}")), rssi_dbm: -100, ..uplink(0).rx };
    // The fullest line that a node sends.
    let wide = Uplink {
        others: (1..=15).map(heard).collect(),
        frm_payload: HexBytes(vec![7; tenant::PAYLOAD_BYTES_MAX]),
        ..of(1, "a", 1)
    };
    assert!(serde_json::to_vec(&wide).expect("JSON").len() < tenant::LINE_BYTES_MAX);
    let late = Uplink { kind: UplinkKind::Late, ..of(3, "a", 2) };
    place.shared.hear([of(0, "a", 0), wide, of(2, "b", 3), late, of(4, "b", 4)]);
    let state = |cursor, id: &str, state| tenant::DownlinkEvent {
        cursor,
        at_ms: 1_700_000_000_123,
        id: id.to_owned(),
        dev_eui: DevEui([1; 8]),
        state,
    };
    use tenant::DownlinkState::{Acked, Expired, Failed, Sent};
    let fates = vec![
        state(101, "one", Sent { f_cnt: 7, gateway: "aa555a0000000000".to_owned() }),
        state(102, "one", Acked { f_cnt: 7 }),
        state(103, "two", Failed { reason: "not_acknowledged".to_owned() }),
        state(104, "three", Expired),
        state(105, "four", Failed { reason: "unknown".to_owned() }),
    ];
    place.shared.change(|memory| memory.fates = fates);
    let service = Service::start_with(&place.socket(), &["--direct"]);
    wait_for("five uplinks", || (listener.all(&up_topic()).len() == 5).then_some(()));
    let topic = |event: &str| format!("application/app-1/device/{EUI}/event/{event}");
    let joins = listener.all(&topic("join"));
    assert_eq!(ids(&joins), [event_id(0).to_string(), event_id(2).to_string()], "once for each session");
    assert_eq!((&joins[0]["devAddr"], &joins[0]["deviceInfo"]["deviceName"]), (&json!("26011bda"), &json!("cellar")));
    let named = listener.all(&up_topic())[1]["rxInfo"].as_array().expect("a list").clone();
    assert_eq!((named.len(), &named[0]["gatewayId"]), (16, &json!("aa555a0000000000")));
    assert_eq!((&named[15]["gatewayId"], &named[15]["rssi"]), (&json!("000000000000000f"), &json!(-100)));
    let txack = listener.wait(&topic("txack"), |_| true);
    let time = "2023-11-14T22:13:20.123Z";
    assert_eq!(
        (&txack["queueItemId"], &txack["fCntDown"], &txack["gatewayId"], &txack["time"]),
        (&json!("one"), &json!(7), &json!("aa555a0000000000"), &json!(time))
    );
    let acks = wait_for("two acks", || Some(listener.all(&topic("ack"))).filter(|acks| acks.len() == 2));
    let facts = |ack: &Value| (ack["queueItemId"].clone(), ack["acknowledged"].clone(), ack["fCntDown"].clone());
    assert_eq!(facts(&acks[0]), (json!("one"), json!(true), json!(7)));
    assert_eq!(facts(&acks[1]), (json!("two"), json!(false), Value::Null));
    let logs = wait_for("two logs", || Some(listener.all(&topic("log"))).filter(|logs| logs.len() == 2));
    assert_eq!((&logs[0]["code"], &logs[1]["code"]), (&json!("EXPIRED"), &json!("DOWNLINK_GATEWAY")));
    // A service that starts anew repeats nothing of what it noted.
    place.shared.wait_until("it is noted what was told", |memory| {
        memory.state.get("sink.chirpstack.fates").is_some_and(|told| told == "1700000000123 105")
    });
    drop(service);
    let after = state(106, "five", Acked { f_cnt: 9 });
    place.shared.change(|memory| memory.fates.push(after));
    let _service = Service::start_with(&place.socket(), &["--direct"]);
    let acks = wait_for("one more ack", || Some(listener.all(&topic("ack"))).filter(|acks| acks.len() >= 3));
    assert_eq!((acks.len(), facts(&acks[2])), (3, (json!("five"), json!(true), json!(9))));
    assert_eq!(listener.all(&topic("txack")).len(), 1);
}

#[test]
fn a_broker_that_comes_and_goes_holds_up_no_reading_and_misses_no_event() {
    let place = Place::new();
    let port = free_port();
    let Some(broker) = Mosquitto::start(place.directory.path(), port) else { return };
    configure(&place, &json!({"chirpstack": {"broker": {"address": broker.address()}, "application_id": "app-1"}}));
    let _node = Node::start(&place.socket(), &place.shared);
    drop(broker);
    let service = Service::start_with(&place.socket(), &["--direct"]);
    place.shared.hear((0..500).map(uplink));
    place.shared.wait_until("readings without a broker", |memory| memory.readings.len() == 500);
    let broker = Mosquitto::start(place.directory.path(), port).expect("it is installed");
    let listener = Listener::start(&broker);
    let wait_for_event = |listener: &Listener, number: u32| {
        listener.wait(&up_topic(), |event| event["fCnt"] == number);
    };
    place.shared.hear((500..520).map(uplink));
    wait_for_event(&listener, 519);
    // The listener may have come after the service: what it did not hear is what was published before.
    let heard = listener.all(&up_topic());
    let unique: std::collections::BTreeSet<_> = ids(&heard).into_iter().collect();
    assert_eq!(unique.len(), heard.len(), "nothing was interrupted, so nothing was repeated");
    place
        .shared
        .wait_until("the cursor", |memory| memory.state.get("sink.chirpstack.cursor").is_some_and(|cursor| cursor == "520"));
    // A new process goes on where the old one was.
    drop(service);
    let _service = Service::start_with(&place.socket(), &["--direct"]);
    place.shared.hear((520..530).map(uplink));
    wait_for_event(&listener, 529);
    assert_eq!(listener.all(&up_topic()).len(), heard.len() + 10);
    // Killed with events under way: all of them come, some perhaps twice, under the same ids.
    drop(listener);
    drop(broker);
    place.shared.hear((530..800).map(uplink));
    place.shared.wait_until("readings without a broker", |memory| memory.readings.len() == 800);
    let broker = Mosquitto::start(place.directory.path(), port).expect("it is installed");
    let listener = Listener::start(&broker);
    place.shared.hear([uplink(800)]);
    wait_for_event(&listener, 800);
    place
        .shared
        .wait_until("the cursor", |memory| memory.state.get("sink.chirpstack.cursor").is_some_and(|cursor| cursor == "801"));
}

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
