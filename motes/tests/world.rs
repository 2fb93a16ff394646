//! Motes, radio and gateways over real UDP against a server that does next to nothing: no product code, so that the judge is judged alone.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use motes::audit::{Alive, Delivered, Input, Limits, NodeLife, Timeline, audit};
use motes::fleet::{DevAddr, Eui64, Fleet};
use motes::frame::build_downlink;
use motes::ledger::{GatewayRecord, Ledgers, MoteRecord, RadioRecord};
use motes::mote::Window;
use motes::world::{GatewayConfig, World, WorldConfig};
use serde_json::{Value, json};
use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio::task::JoinHandle;

const A: Eui64 = Eui64(0xaa55_5a00_0000_000a);
const B: Eui64 = Eui64(0xaa55_5a00_0000_000b);
const BOUND: Duration = Duration::from_secs(20);

/// An uplink as the server got it.
#[derive(Clone, Debug)]
struct Uplink {
    bytes: Vec<u8>,
    tmst: u32,
    frequency: f64,
    data_rate: String,
    at_ms: u64,
}

#[derive(Debug, Default)]
struct Seen {
    uplinks: Vec<Uplink>,
    packets_per_datagram: BTreeSet<usize>,
    push_from: BTreeSet<SocketAddr>,
    pulls: Vec<(SocketAddr, Instant)>,
    acks: BTreeMap<[u8; 2], String>,
}

/// Acknowledges what a server must acknowledge and remembers the rest.
struct Sink {
    address: SocketAddr,
    socket: Arc<UdpSocket>,
    seen: Arc<Mutex<Seen>>,
    changes: watch::Receiver<u64>,
    task: JoinHandle<()>,
}

impl Sink {
    async fn start(address: &str) -> Self {
        let socket = Arc::new(UdpSocket::bind(address).await.expect("a socket"));
        let seen = Arc::new(Mutex::new(Seen::default()));
        let (publish, changes) = watch::channel(0);
        let task = tokio::spawn(receive(Arc::clone(&socket), Arc::clone(&seen), publish));
        Self { address: socket.local_addr().expect("an address"), socket, seen, changes, task }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().expect("no panic while locked")
    }

    async fn wait_for(&mut self, what: &str, condition: impl Fn(&Seen) -> bool) {
        let waiting = async {
            while !condition(&self.seen.lock().expect("no panic while locked")) {
                self.changes.changed().await.expect("the sink runs");
            }
        };
        tokio::time::timeout(BOUND, waiting).await.unwrap_or_else(|_| panic!("never seen: {what}"));
    }

    /// Asks the gateway to transmit; the token tells the answer.
    async fn request(&self, token: [u8; 2], tmst: u32, uplink: &Uplink, bytes: &[u8]) {
        let gateway = self.seen().pulls.last().expect("the gateway pulled").0;
        let txpk = json!({"txpk": {"imme": false, "tmst": tmst, "freq": uplink.frequency, "rfch": 0, "powe": 14, "modu": "LORA",
            "datr": uplink.data_rate, "codr": "4/5", "ipol": true, "ncrc": true, "size": bytes.len(), "data": STANDARD.encode(bytes)}});
        let datagram = [&[2, token[0], token[1], 3], txpk.to_string().as_bytes()].concat();
        self.socket.send_to(&datagram, gateway).await.expect("sent");
    }

    async fn stop(self) {
        self.task.abort();
        assert!(self.task.await.expect_err("aborted").is_cancelled());
    }
}

async fn receive(socket: Arc<UdpSocket>, seen: Arc<Mutex<Seen>>, publish: watch::Sender<u64>) {
    let mut buffer = vec![0; 65_536];
    loop {
        let (length, from) = socket.recv_from(&mut buffer).await.expect("received");
        let datagram = &buffer[..length];
        assert!(length >= 12 && datagram[0] == 2, "a header with a gateway: {datagram:?}");
        let token = [datagram[1], datagram[2]];
        let answer = match datagram[3] {
            0 => Some(1),
            2 => Some(4),
            _ => None,
        };
        if let Some(kind) = answer {
            socket.send_to(&[2, token[0], token[1], kind], from).await.expect("answered");
        }
        let mut seen = seen.lock().expect("no panic while locked");
        match datagram[3] {
            0 => take_push(&mut seen, from, &datagram[12..]),
            2 => seen.pulls.push((from, Instant::now())),
            5 => {
                let error = serde_json::from_slice::<Value>(&datagram[12..]).map(|json| json["txpk_ack"]["error"].clone());
                let text = error.ok().and_then(|error| error.as_str().map(str::to_owned)).unwrap_or_else(|| "NONE".to_owned());
                assert_eq!(seen.acks.insert(token, text), None, "one TX_ACK for each request");
            }
            other => panic!("a gateway sends no type {other}"),
        }
        drop(seen);
        publish.send_modify(|version| *version += 1);
    }
}

fn take_push(seen: &mut Seen, from: SocketAddr, body: &[u8]) {
    let json: Value = serde_json::from_slice(body).expect("JSON");
    let packets = json["rxpk"].as_array().cloned().unwrap_or_default();
    seen.push_from.insert(from);
    seen.packets_per_datagram.insert(packets.len());
    for packet in packets {
        let bytes = STANDARD.decode(packet["data"].as_str().expect("data")).expect("base64");
        assert_eq!(packet["size"], json!(bytes.len()));
        seen.uplinks.push(Uplink {
            bytes,
            tmst: u32::try_from(packet["tmst"].as_u64().expect("tmst")).expect("32 bits"),
            frequency: packet["freq"].as_f64().expect("freq"),
            data_rate: packet["datr"].as_str().expect("datr").to_owned(),
            at_ms: now_ms(),
        });
    }
}

#[expect(clippy::disallowed_methods, reason = "stands for the store's own clock")]
fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    u64::try_from(since.as_millis()).expect("milliseconds")
}

fn config(seed: u64, directory: &Path) -> WorldConfig {
    WorldConfig { confirmed_ppm: 0, duty_cycle: false, ..WorldConfig::new(seed, directory.to_owned()) }
}

fn percent_of(part: usize, whole: usize) -> f64 {
    let to_f64 = |value: usize| f64::from(u32::try_from(value).expect("small"));
    100.0 * to_f64(part) / to_f64(whole)
}

/// Reads a frame as a server with all keys would.
fn to_delivered(fleet: &Fleet, uplink: &Uplink, node: &str) -> Delivered {
    let address = DevAddr(u32::from_le_bytes(uplink.bytes[1..5].try_into().expect("four bytes")));
    let device = fleet.devices().iter().find(|device| device.dev_addr == address).expect("a mote of the fleet");
    let f_cnt = u32::from(u16::from_le_bytes([uplink.bytes[6], uplink.bytes[7]]));
    let keys = [device.nwk_s_key, device.app_s_key].map(|key| lorawan::keys::AES128(key.0));
    let plain = lorawan::parser::EncryptedDataPayload::new(uplink.bytes.clone())
        .expect("a data frame")
        .decrypt_if_mic_ok(&keys[0], &keys[1], f_cnt)
        .expect("the MIC is right")
        .to_inner();
    assert_eq!((plain[8], &plain[9..11], &plain[15..17]), (1, &[1, 100][..], &[2, 103][..]), "port and LPP channels");
    Delivered {
        device: device.dev_eui,
        session: "only".to_owned(),
        f_cnt,
        reading: Some(u32::from_be_bytes(plain[11..15].try_into().expect("four bytes"))),
        decicelsius: Some(i32::from(i16::from_be_bytes([plain[17], plain[18]]))),
        heard_at_ms: uplink.at_ms,
        received_at_ms: uplink.at_ms,
        delivered_by: node.to_owned(),
        event_id: format!("{}-{f_cnt}", device.dev_eui),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_gateways_lose_independently_and_deliver_everything_they_heard() {
    const FRAMES: u64 = 8_000;
    let directory = tempfile::tempdir().expect("a directory");
    let mut sinks = [Sink::start("127.0.0.1:0").await, Sink::start("127.0.0.1:0").await];
    let gateways = [A, B].into_iter().zip(&sinks).map(|(eui, sink)| GatewayConfig { eui, server: sink.address });
    let started_ms = now_ms();
    let config = WorldConfig { motes: 10_000, rate_milli: 3_000_000, ..config(21, directory.path()) };
    let world = World::start(config, &gateways.collect::<Vec<_>>()).await.expect("a world");
    assert!(world.wait_for(BOUND, |status| status.counts.frames_sent >= FRAMES).await, "{:?}", world.status());
    let drained = world.drain(BOUND).await.expect("a running world");
    assert!(drained.complete, "{drained:?}");
    let pushed: Vec<u64> = world.gateway_counts().iter().map(|(_, counts)| counts.uplinks_pushed).collect();
    for (sink, pushed) in sinks.iter_mut().zip(pushed) {
        sink.wait_for("all pushed uplinks", |seen| seen.uplinks.len() as u64 == pushed).await;
    }
    let fleet = world.fleet().clone();
    let status = world.shutdown().await.expect("a clean end");

    let ledgers = Ledgers::read(directory.path()).expect("ledgers");
    let frames: Vec<_> = ledgers
        .radio
        .iter()
        .filter_map(|record| match record {
            RadioRecord::Frame(frame) => Some(frame),
            RadioRecord::Start(_) | RadioRecord::Downlink(_) | RadioRecord::JoinFrame(_) => None,
        })
        .collect();
    let union = frames.iter().filter(|frame| !frame.gateways.is_empty()).count();
    assert_eq!((frames.len() as u64, union as u64), (status.counts.frames_sent, status.counts.frames_heard));
    assert!((99.5..99.95).contains(&percent_of(union, frames.len())), "{union} of {}", frames.len());
    for (eui, sink) in [A, B].into_iter().zip(&sinks) {
        let heard = frames.iter().filter(|frame| frame.gateways.contains(&eui)).count();
        assert!((94.0..96.0).contains(&percent_of(heard, frames.len())), "{eui}: {heard} of {}", frames.len());
        let seen = sink.seen();
        assert_eq!(seen.uplinks.len(), heard, "each uplink once, none repeated");
        assert!(seen.packets_per_datagram.iter().all(|packets| (1..=8).contains(packets)));
        assert!(seen.packets_per_datagram.contains(&8), "full datagrams under this load: {:?}", seen.packets_per_datagram);
        assert_eq!(seen.push_from.len(), 1);
        assert!(!seen.push_from.contains(&seen.pulls[0].0), "uplinks and downlinks have a socket each");
    }
    let mut delivered: BTreeMap<String, Delivered> = BTreeMap::new();
    for (node, sink) in ["rio", "patras"].into_iter().zip(&sinks) {
        for uplink in &sink.seen().uplinks {
            let row = to_delivered(&fleet, uplink, node);
            delivered.entry(row.event_id.clone()).or_insert(row);
        }
    }
    let alive = vec![Alive { from_ms: started_ms, to_ms: None }];
    let nodes =
        [("rio", A), ("patras", B)].map(|(node, gateway)| NodeLife { node: node.to_owned(), gateway, alive: alive.clone() });
    let delivered: Vec<Delivered> = delivered.into_values().collect();
    let timeline = Timeline::default();
    let report =
        audit(&Input { ledgers: &ledgers, nodes: &nodes, delivered: &delivered, timeline: &timeline, limits: Limits::default() });
    assert_eq!(report.violations(), [], "{report:#?}");
    assert_eq!((report.frames_owed, report.readings_delivered), (union as u64, union as u64));
}

#[tokio::test]
async fn a_confirmed_uplink_is_acknowledged_in_its_window_and_late_requests_are_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut sink = Sink::start("127.0.0.1:0").await;
    let config = WorldConfig {
        motes: 1,
        rate_milli: 2_000,
        confirmed_ppm: 1_000_000,
        uplink_loss_ppm: 0,
        downlink_loss_ppm: 0,
        ..config(5, directory.path())
    };
    let world = World::start(config, &[GatewayConfig { eui: A, server: sink.address }]).await.expect("a world");
    let device = world.fleet().devices()[0].clone();
    sink.wait_for("an uplink and a pull", |seen| !seen.uplinks.is_empty() && !seen.pulls.is_empty()).await;
    let uplink = sink.seen().uplinks[0].clone();
    assert_eq!(uplink.bytes[0], 0x80);

    // Requests for every millisecond from the end of the uplink on: first what has passed, then what is 2.5 ms ahead at most,
    // then one that fits, then those that overlap with it.
    for step in 0..100_u8 {
        let bytes = build_downlink(&device, 100 + u32::from(step), false, false);
        sink.request([1, step], uplink.tmst.wrapping_add(u32::from(step) * 1_000), &uplink, &bytes).await;
    }
    let ack = build_downlink(&device, 300, true, false);
    sink.request([2, 0], uplink.tmst.wrapping_add(1_000_000), &uplink, &ack).await;
    sink.wait_for("all answers", |seen| seen.acks.len() == 101).await;
    let answers: Vec<String> = sink.seen().acks.values().cloned().collect();
    let mut order = answers[..100].to_vec();
    order.dedup();
    assert_eq!(order[..4], ["TOO_EARLY", "TOO_LATE", "NONE", "COLLISION_PACKET"], "{answers:?}");
    assert_eq!(answers[100], "NONE");

    assert!(world.wait_for(BOUND, |status| status.counts.confirmed_acknowledged == 1).await);
    let lag_us = world.status().counts.lag_us_max;
    world.shutdown().await.expect("a clean end");
    let ledgers = Ledgers::read(directory.path()).expect("ledgers");
    let end = ledgers.motes.iter().find_map(|record| match record {
        MoteRecord::UplinkEnd(end) => Some(end),
        _ => None,
    });
    assert_eq!(end.map(|end| (end.acknowledged, end.attempts)), Some((Some(Window::Rx1), 1)), "lag {lag_us} us");
    let rejected = |wanted: &str| {
        ledgers
            .gateways
            .iter()
            .filter(|record| matches!(record, GatewayRecord::Rejected { error, .. } if error == wanted))
            .count()
    };
    for error in ["TOO_EARLY", "TOO_LATE", "COLLISION_PACKET"] {
        assert_eq!(rejected(error), answers.iter().filter(|answer| *answer == error).count(), "{error}");
    }
    let on_air = ledgers.radio.iter().find_map(|record| match record {
        RadioRecord::Downlink(downlink) if downlink.ack => Some(downlink),
        RadioRecord::Downlink(_) | RadioRecord::Start(_) | RadioRecord::Frame(_) | RadioRecord::JoinFrame(_) => None,
    });
    let on_air = on_air.expect("the answer was on air");
    assert_eq!((on_air.f_cnt, on_air.window, on_air.bytes.as_str()), (Some(300), Some(Window::Rx1), hex::encode(&ack).as_str()));
}

#[tokio::test]
async fn a_gateway_outlives_its_server_and_keeps_the_way_open() {
    let directory = tempfile::tempdir().expect("a directory");
    let started = Instant::now();
    let mut first = Sink::start("127.0.0.1:0").await;
    let address = first.address;
    let config = WorldConfig { motes: 20, rate_milli: 100_000, uplink_loss_ppm: 0, ..config(6, directory.path()) };
    let world = World::start(config, &[GatewayConfig { eui: A, server: address }]).await.expect("a world");
    first.wait_for("a pull at once", |seen| !seen.pulls.is_empty()).await;
    assert!(first.seen().pulls[0].1 - started < Duration::from_secs(1));
    first.wait_for("an uplink", |seen| !seen.uplinks.is_empty()).await;
    first.wait_for("the next pull", |seen| seen.pulls.len() == 2).await;
    let pulls = first.seen().pulls.clone();
    let gap_ms = (pulls[1].1 - pulls[0].1).as_millis();
    assert!((4_950..6_000).contains(&gap_ms), "keepalive after {gap_ms} ms");
    assert_eq!(pulls[0].0, pulls[1].0);

    // The server dies; datagrams go nowhere; a new one on the same port hears from the same sockets.
    let gateway_port = pulls[0].0;
    first.stop().await;
    let dead_since = world.status().counts.frames_sent;
    assert!(world.wait_for(BOUND, |status| status.counts.frames_sent > dead_since + 10).await);
    let mut second = Sink::start(&address.to_string()).await;
    second.wait_for("uplinks again", |seen| seen.uplinks.len() > 3).await;
    assert!(world.is_running());

    // Cut off, then sent elsewhere: the pull comes at once, long before the keepalive.
    world.set_server(A, None).await.expect("a gateway");
    let cut_since = world.status().counts.frames_sent;
    assert!(world.wait_for(BOUND, |status| status.counts.frames_sent > cut_since + 10).await);
    assert!(world.gateway_counts()[0].1.uplinks_blocked > 0);
    let mut third = Sink::start("127.0.0.1:0").await;
    let moved = Instant::now();
    world.set_server(A, Some(third.address)).await.expect("a gateway");
    third.wait_for("a pull", |seen| !seen.pulls.is_empty()).await;
    assert!(moved.elapsed() < Duration::from_secs(1));
    assert_eq!(third.seen().pulls[0].0, gateway_port);
    assert!(world.set_server(B, None).await.is_err());

    // A stranger's datagrams are counted and have no effect.
    second.socket.send_to(&[2, 0, 0, 1], gateway_port).await.expect("sent");
    third.socket.send_to(b"\x02\x00\x00\x03{\"txpk\":[]}", gateway_port).await.expect("sent");
    let counts = async {
        while world.gateway_counts()[0].1.malformed == 0 || world.gateway_counts()[0].1.foreign == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(BOUND, counts).await.expect("both are counted");
    world.shutdown().await.expect("a clean end");
    let ledgers = Ledgers::read(directory.path()).expect("ledgers");
    let servers = ledgers.gateways.iter().filter(|record| matches!(record, GatewayRecord::Server { .. })).count();
    assert_eq!(servers, 2);
}

#[tokio::test]
async fn a_world_refuses_what_is_outside_its_limits() {
    let directory = tempfile::tempdir().expect("a directory");
    let gateway = GatewayConfig { eui: A, server: "127.0.0.1:9".parse().expect("an address") };
    let base = config(1, directory.path());
    for (config, gateways) in [
        (WorldConfig { motes: 0, ..base.clone() }, vec![gateway]),
        (WorldConfig { motes: 65_537, ..base.clone() }, vec![gateway]),
        (WorldConfig { rate_milli: 0, ..base.clone() }, vec![gateway]),
        (WorldConfig { uplink_loss_ppm: 1_000_001, ..base.clone() }, vec![gateway]),
        (base.clone(), vec![]),
        (base.clone(), vec![gateway, gateway]),
        (base, vec![gateway; 17]),
    ] {
        assert!(World::start(config, &gateways).await.is_err());
    }
}
