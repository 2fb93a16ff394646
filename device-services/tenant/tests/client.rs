//! The client against a real server on a real socket.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering},
};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{Path, State},
    http::{StatusCode, Uri},
    routing::{get, post, put},
};
use tenant::{
    Accepted, Client, Delivery, DevEui, Downlink, Error, HexBytes, Line, Problem, Queued, Reading, ReadingBatch, Registered,
    Registration, Uplink,
};

#[derive(Clone, Default)]
struct Node {
    state: Arc<Mutex<std::collections::BTreeMap<String, Bytes>>>,
    stream: Arc<Mutex<Vec<u8>>>,
    queries: Arc<Mutex<Vec<String>>>,
    connections: Arc<AtomicUsize>,
}

/// Counts connections.
struct Counting(tokio::net::UnixListener, Arc<AtomicUsize>);

impl axum::serve::Listener for Counting {
    type Io = tokio::net::UnixStream;
    type Addr = tokio::net::unix::SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        let accepted = axum::serve::Listener::accept(&mut self.0).await;
        self.1.fetch_add(1, Ordering::Relaxed);
        accepted
    }

    fn local_addr(&self) -> std::io::Result<Self::Addr> {
        self.0.local_addr()
    }
}

/// Serves in a runtime of its own: shutting that down is the node's crash.
fn start(node: &Node, socket: &std::path::Path) -> tokio::runtime::Runtime {
    drop(std::fs::remove_file(socket));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let listener = {
        let _context = runtime.enter();
        Counting(tokio::net::UnixListener::bind(socket).expect("a socket"), Arc::clone(&node.connections))
    };
    let router = Router::new()
        .route(tenant::CONFIG, get(|| async { "{\"devices\":[]}" }))
        .route(
            tenant::DEVICES,
            put(|Json(body): Json<Registration>| async move { Json(Registered { registered: body.devices.len() }) }),
        )
        .route(
            tenant::READINGS,
            post(|Json(body): Json<ReadingBatch>| async move { Json(Accepted { accepted: body.readings.len() }) }),
        )
        .route(tenant::DOWNLINKS, post(|Json(body): Json<Downlink>| async move { Json(Queued { id: body.id }) }))
        .route(tenant::UPLINKS, get(uplinks))
        .route("/v1/state/{key}", get(get_state).put(put_state))
        .route(tenant::HEALTH, get(|| async { (StatusCode::SERVICE_UNAVAILABLE, Json(problem("Not yet", "no custody"))) }))
        .with_state(node.clone());
    runtime.spawn(async move { axum::serve(listener, router).await });
    runtime
}

fn problem(title: &str, detail: &str) -> Problem {
    Problem { kind: "about:blank".to_owned(), title: title.to_owned(), status: 503, detail: Some(detail.to_owned()) }
}

async fn uplinks(State(node): State<Node>, uri: Uri) -> Body {
    node.queries.lock().expect("no panic").push(uri.query().unwrap_or_default().to_owned());
    Body::from(node.stream.lock().expect("no panic").clone())
}

async fn get_state(State(node): State<Node>, Path(key): Path<String>) -> Result<Bytes, StatusCode> {
    node.state.lock().expect("no panic").get(&key).cloned().ok_or(StatusCode::NOT_FOUND)
}

async fn put_state(State(node): State<Node>, Path(key): Path<String>, value: Bytes) -> StatusCode {
    node.state.lock().expect("no panic").insert(key, value);
    StatusCode::NO_CONTENT
}

#[tokio::test]
async fn requests_share_a_connection_and_survive_its_end() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("node.sock");
    let node = Node::default();
    let client = Client::new(&socket);
    assert!(matches!(client.config().await, Err(Error::Unreachable(_))));
    let runtime = start(&node, &socket);
    for _ in 0..10 {
        assert_eq!(client.config().await.unwrap(), "{\"devices\":[]}");
        assert_eq!(client.register(&Registration::default()).await.unwrap().registered, 0);
        assert_eq!(client.publish(&ReadingBatch::default()).await.unwrap().accepted, 0);
        assert_eq!(client.queue(&downlink("d1")).await.unwrap().id, "d1");
    }
    assert_eq!(node.connections.load(Ordering::Relaxed), 1);
    runtime.shutdown_background();
    // A restarted node: the kept connection is dead, the request goes out anew.
    let runtime = start(&node, &socket);
    assert_eq!(client.config().await.unwrap(), "{\"devices\":[]}");
    assert_eq!(node.connections.load(Ordering::Relaxed), 2);
    runtime.shutdown_background();
}

#[tokio::test]
async fn small_values_are_kept() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("node.sock");
    let runtime = start(&Node::default(), &socket);
    let client = Client::new(&socket);
    assert_eq!(client.state("join.nonces").await.unwrap(), None);
    client.put_state("join.nonces", Bytes::from_static(b"\x00\x01")).await.unwrap();
    assert_eq!(client.state("join.nonces").await.unwrap().unwrap(), &b"\x00\x01"[..]);
    for key in ["", "UPPER", "a/b", "..", "a b", &"k".repeat(65)] {
        assert!(matches!(client.state(key).await, Err(Error::Refused(_))), "{key}");
    }
    let large = Bytes::from(vec![0; tenant::STATE_VALUE_BYTES_MAX + 1]);
    assert!(matches!(client.put_state("large", large).await, Err(Error::Refused(_))));
    runtime.shutdown_background();
}

#[tokio::test]
async fn a_refusal_is_a_problem_and_says_whether_to_come_back() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("node.sock");
    let runtime = start(&Node::default(), &socket);
    let error = Client::new(&socket).health().await.unwrap_err();
    assert!(error.is_transient());
    assert_eq!(error.to_string(), "the node refused: 503 Not yet: no custody");
    runtime.shutdown_background();
}

#[tokio::test]
async fn the_stream_gives_uplinks_and_names_what_is_none() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("node.sock");
    let node = Node::default();
    let line = UPLINK.replace('\n', " ");
    *node.stream.lock().unwrap() = format!("{line}\n\nnonsense\n{}\n{line}\n{{\"cut", " ".repeat(5000)).into_bytes();
    let runtime = start(&node, &socket);
    let client = Client::new(&socket);
    let mut uplinks = client.uplinks(Some(41)).await.unwrap();
    let mut seen = Vec::new();
    while let Some(line) = uplinks.next().await.unwrap() {
        seen.push(match line {
            Line::Uplink(uplink) => uplink.cursor.to_string(),
            Line::Malformed(_) => "malformed".to_owned(),
        });
    }
    assert_eq!(seen, ["42", "malformed", "malformed", "42"]);
    client.uplinks(None).await.unwrap();
    assert_eq!(*node.queries.lock().unwrap(), ["after=41", ""]);
    runtime.shutdown_background();
}

/// The form of a line, spelled out: changing it breaks containers in the field.
const UPLINK: &str = r#"{"cursor":42,"event_id":"01234567-89ab-cdef-0123-456789abcdef","dev_eui":"0102030405060708","dev_addr":"26011bda","session":"a1b2",
"f_cnt":70000,"f_port":1,"confirmed":true,"frm_payload":"d394a477","heard_at_ms":1700000000000,"kind":"replayed","epoch":3,
"rx":{"gateway":"aa555a0000000000","frequency_hz":868100000,"data_rate":"SF7BW125","rssi_dbm":-107,"snr_tenths_db":-55}}"#;

const READING: &str = r#"{"event_id":"01234567-89ab-cdef-0123-456789abcdef","dev_eui":"0102030405060708","f_cnt":70000,"decoded":{"temperature_1":"23.5"},"heard_at_ms":1700000000000}"#;

#[test]
fn messages_keep_their_form() {
    let uplink: Uplink = serde_json::from_str(UPLINK).unwrap();
    assert_eq!(serde_json::to_string(&uplink).unwrap(), UPLINK.replace('\n', ""));
    let parsed: Reading = serde_json::from_str(READING).unwrap();
    assert_eq!(serde_json::to_string(&parsed).unwrap(), READING);
    let registration = r#"{"devices":[{"dev_eui":"0102030405060708","dev_addr":"26011bda","nwk_s_key":"000102030405060708090a0b0c0d0e0f","f_cnt_width":32,"rx1_delay_s":1,"supports_reset":false}]}"#;
    let parsed: Registration = serde_json::from_str(registration).unwrap();
    assert_eq!(serde_json::to_string(&parsed).unwrap(), registration);
    assert!(!format!("{parsed:?}").contains("000102030405060708090a"), "a key is shown");
    let json = r#"{"id":"d1","dev_eui":"0102030405060708","f_port":2,"payload":"00ff","confirmed":false,"delivery":"at_least_once","expires_at_ms":5}"#;
    let parsed: Downlink = serde_json::from_str(json).unwrap();
    let written = json.replace(r#","expires_at_ms""#, r#","priority":0,"expires_at_ms""#);
    assert_eq!(serde_json::to_string(&parsed).unwrap(), written);
    assert_eq!(serde_json::from_str::<Downlink>(&written).unwrap(), parsed);
    let no_ids = [
        "01234567-89ab-cdef-0123-456789abcde",
        "0123456789abcdef0123456789abcdef",
        "01234567-89ab-cdef-0123-456789abcdeg",
        "------------------------------------",
        "0123456-789ab-cdef-0123-456789abcdef",
    ];
    for text in no_ids {
        assert!(text.parse::<tenant::EventId>().is_err(), "{text}");
    }
    let long = format!("\"{}\"", "00".repeat(243));
    assert!(serde_json::from_str::<HexBytes>(&long).is_err());
}

fn downlink(id: &str) -> Downlink {
    Downlink {
        id: id.to_owned(),
        dev_eui: DevEui([1; 8]),
        f_port: 1,
        payload: HexBytes(vec![1]),
        confirmed: false,
        delivery: Delivery::AtMostOnce,
        priority: 0,
        expires_at_ms: 1,
    }
}

#[test]
fn limits_are_checked_by_name() {
    let reading: Reading = serde_json::from_str(READING).unwrap();
    let mut large = reading.clone();
    large.decoded.insert("x".to_owned(), "y".repeat(tenant::READING_BYTES_MAX).into());
    assert_eq!(ReadingBatch { readings: vec![reading.clone(), large] }.check().unwrap_err().field, "readings[1]");
    let mut batch = ReadingBatch { readings: vec![reading; tenant::READINGS_MAX] };
    assert_eq!(batch.check(), Ok(()));
    batch.readings.push(batch.readings[0].clone());
    assert_eq!(batch.check().unwrap_err().field, "readings");
    for (id, f_port, field) in [("", 1, "id"), ("d", 0, "f_port"), ("d", 224, "f_port")] {
        assert_eq!(Downlink { f_port, ..downlink(id) }.check().unwrap_err().field, field);
    }
    assert_eq!(downlink("d").check(), Ok(()));
}
