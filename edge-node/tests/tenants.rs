//! The tenant socket, spoken to by the tenant's own client and by hand: what a tenant may do, and what a flood of it costs.
#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "common/uplinks.rs"]
mod uplinks;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use contracts::ids::{DevEui, Epoch, EventId, GroupId, SessionId};
use edge_node::lora::links::Links;
use edge_node::lora::standby::Standby;
use edge_node::readings::Uplink;
use edge_node::readings::log::Log;
use edge_node::store::Store;
use edge_node::tenants::doors::{SOCKET_NAME, UnixDoors};
use edge_node::tenants::tunnels::Outside;
use edge_node::tenants::{CONNECTIONS_MAX, Tenant, TenantSocket};
use edge_node::timeline::Timeline;
use kit::clock::Clock;
use lora_bridge::bridge::io::Mode;
use lora_bridge::bridge::{Bridge, Config};
use lora_bridge::server::BridgeHandle;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

const SESSION: SessionId = SessionId::from_bytes([1; 8]);

struct World {
    socket: TenantSocket,
    bridge: BridgeHandle,
    log: Log,
    directory: tempfile::TempDir,
}

fn group(n: u8) -> GroupId {
    GroupId::from_bytes([n; 16])
}

async fn world() -> World {
    let directory = tempfile::tempdir().unwrap();
    let log = Log::start(Store::open(&directory.path().join("node.db")).await.unwrap());
    let (socket, bridge) = open(&log, group(7), &directory.path().join("tenant")).await;
    World { socket, bridge, log, directory }
}

async fn open(log: &Log, group: GroupId, directory: &Path) -> (TenantSocket, BridgeHandle) {
    open_with(log, group, directory, Outside::default()).await
}

async fn open_with(log: &Log, group: GroupId, directory: &Path, outside: Outside) -> (TenantSocket, BridgeHandle) {
    let udp = lora_bridge::server::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let (bridge, outputs) =
        lora_bridge::server::spawn(udp, Bridge::new(Config::default()), Clock::system(), Arc::new(|_, _| false));
    // The bridge stops when nobody takes its outputs.
    let links = Links::default();
    let timeline = Timeline::new(Clock::system());
    tokio::spawn(edge_node::lora::consume(outputs, bridge.clone(), log.clone(), links.clone(), Standby::default(), timeline));
    let devices = BTreeSet::from([DevEui::from_u64(1), DevEui::from_u64(2)]);
    let tenant = Tenant::new(group, log.clone(), Some(bridge.clone()), devices).with_links(links).with_outside(outside);
    (TenantSocket::open(tenant, &UnixDoors::new(directory)).unwrap(), bridge)
}

impl World {
    fn path(&self) -> std::path::PathBuf {
        self.socket.directory().join(SOCKET_NAME)
    }

    fn client(&self) -> tenant::Client {
        tenant::Client::new(self.path())
    }

    /// A request by hand: status and body.
    async fn ask(&self, request: &[u8]) -> (u16, String) {
        let mut stream = UnixStream::connect(self.path()).await.unwrap();
        stream.write_all(request).await.unwrap();
        let mut answer = Vec::new();
        tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut answer)).await.unwrap().unwrap();
        let text = String::from_utf8_lossy(&answer).into_owned();
        let status = text.split_whitespace().nth(1).unwrap().parse().unwrap();
        (status, text.split_once("\r\n\r\n").unwrap().1.to_owned())
    }

    async fn send(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        self.ask(&[head.as_bytes(), body.as_bytes()].concat()).await
    }
}

fn uplink(group: GroupId, f_cnt: u32) -> Uplink {
    Uplink { frm_payload: "0102".to_owned(), ..uplinks::uplink(group, DevEui::from_u64(1), SESSION, f_cnt) }
}

fn reading(f_cnt: u32) -> tenant::Reading {
    let event = EventId::new(DevEui::from_u64(1), SESSION, f_cnt);
    tenant::Reading {
        event_id: tenant::EventId(*event.as_uuid().as_bytes()),
        dev_eui: tenant::DevEui(*DevEui::from_u64(1).as_bytes()),
        f_cnt,
        decoded: serde_json::json!({"generic_1": f_cnt}).as_object().unwrap().clone(),
        heard_at_ms: 1,
        error: None,
    }
}

fn problem(body: &str) -> String {
    let document: serde_json::Value = serde_json::from_str(body).unwrap();
    document["type"].as_str().unwrap().rsplit(':').next().unwrap().to_owned()
}

#[tokio::test]
async fn the_configuration_is_there_only_while_the_tenant_may_have_it() {
    let world = world().await;
    assert!(world.client().config().await.is_err_and(|e| e.is_transient()), "503: ask again later");
    let mut connected = world.socket.tenant.connected();
    world.socket.tenant.set_configuration(Some("{\"devices\":[]}".into()));
    assert_eq!(world.client().config().await.unwrap().as_ref(), b"{\"devices\":[]}");
    assert!(connected.has_changed().unwrap(), "the node knows that the tenant is up");
    connected.borrow_and_update();
    world.socket.tenant.set_configuration(None);
    assert!(world.client().config().await.is_err());
}

#[tokio::test]
async fn uplinks_are_followed_live_and_readings_are_durable_when_they_are_accepted() {
    let world = world().await;
    world.log.append(vec![uplink(group(7), 0), uplink(group(8), 5)]).await.unwrap();
    let client = world.client();
    let mut uplinks = client.uplinks(None).await.unwrap();
    let first = uplinks.next().await.unwrap().unwrap();
    assert!(matches!(&first, tenant::Line::Uplink(u) if u.f_cnt == 0), "{first:?}");
    world.log.append(vec![uplink(group(7), 1)]).await.unwrap();
    let second = tokio::time::timeout(Duration::from_secs(5), uplinks.next()).await.unwrap().unwrap().unwrap();
    assert!(matches!(&second, tenant::Line::Uplink(u) if u.f_cnt == 1), "the uplink of another group is not ours: {second:?}");
    client.publish(&tenant::ReadingBatch { readings: vec![reading(0), reading(1), reading(1)] }).await.unwrap();
    assert_eq!(world.log.store().list_unsettled(group(7), 0, 10).await.unwrap().len(), 2);
}

#[tokio::test]
async fn a_tenant_registers_its_own_devices_and_no_others() {
    let world = world().await;
    let device =
        |n: u64| serde_json::json!({"dev_eui": format!("{n:016x}"), "dev_addr": "00000001", "nwk_s_key": "00".repeat(16)});
    let body = |devices: &[serde_json::Value]| serde_json::json!({"devices": devices}).to_string();
    assert_eq!(world.send("PUT", "/v1/devices", &body(&[device(1), device(2)])).await.0, 200);
    let (status, answer) = world.send("PUT", "/v1/devices", &body(&[device(3)])).await;
    assert_eq!((status, problem(&answer).as_str()), (403, "forbidden"));
}

#[tokio::test]
async fn bad_input_gets_a_problem_document() {
    let world = world().await;
    let many = serde_json::to_string(&tenant::ReadingBatch { readings: (0..300).map(reading).collect() }).unwrap();
    let huge = format!("\"{}\"", "x".repeat(tenant::READINGS_BODY_BYTES_MAX + 1));
    let cases = [
        ("no JSON", "POST", "/v1/readings", "{", 400, "malformed-body"),
        ("unknown field", "POST", "/v1/readings", "{\"readings\":[],\"more\":1}", 422, "malformed-body"),
        ("too many readings", "POST", "/v1/readings", many.as_str(), 400, "invalid-input"),
        ("too large", "POST", "/v1/readings", huge.as_str(), 413, "malformed-body"),
        ("bad cursor", "GET", "/v1/uplinks?after=x", "", 400, "malformed-query"),
        ("bad key", "GET", "/v1/state/..", "", 400, "invalid-input"),
        ("nothing there", "GET", "/v1/state/nothing", "", 404, "not-found"),
        ("no such path", "GET", "/v2/nothing", "", 404, "not-found"),
        (
            "a downlink to somebody else's device",
            "POST",
            "/v1/downlinks",
            "{\"id\":\"a\",\"dev_eui\":\"0000000000000009\",\"f_port\":1,\"payload\":\"00\",\"confirmed\":false,\"expires_at_ms\":1}",
            403,
            "forbidden",
        ),
        (
            "a downlink to a device that is not registered",
            "POST",
            "/v1/downlinks",
            "{\"id\":\"a\",\"dev_eui\":\"0000000000000001\",\"f_port\":1,\"payload\":\"00\",\"confirmed\":false,\"expires_at_ms\":1}",
            404,
            "not-found",
        ),
    ];
    for (what, method, path, body, status, name) in cases {
        let (got, answer) = world.send(method, path, body).await;
        assert_eq!((got, problem(&answer).as_str()), (status, name), "{what}: {answer}");
    }
}

/// Queued, asked to be encrypted, answered; what is owed is on disk before it counts as queued, and comes back after a restart.
#[tokio::test]
async fn a_downlink_is_queued_encrypted_by_its_tenant_and_kept_if_it_is_owed() {
    let world = world().await;
    let (client, group) = (world.client(), group(7));
    let device = serde_json::json!({"dev_eui": "0000000000000001", "dev_addr": "26000001", "nwk_s_key": "00".repeat(16)});
    let registration: tenant::Registration = serde_json::from_value(serde_json::json!({"devices": [device]})).unwrap();
    client.register(&registration).await.unwrap();
    world.bridge.custody(group, Mode::Serving { epoch: Epoch(1), foreign_lease_end: None }).await.unwrap();
    let downlink = tenant::Downlink {
        id: "d1".to_owned(),
        dev_eui: tenant::DevEui(DevEui::from_u64(1).as_bytes().to_owned()),
        f_port: 3,
        payload: tenant::HexBytes(vec![1, 2]),
        confirmed: true,
        delivery: tenant::Delivery::AtLeastOnce,
        priority: 0,
        expires_at_ms: u64::MAX >> 12,
    };
    assert_eq!(client.queue(&downlink).await.unwrap().id, "d1");
    assert_eq!(client.queue(&downlink).await.unwrap().id, "d1", "repeating it changes nothing");
    let kept = world.log.store().get_tenant_value(group, edge_node::lora::downlinks::STATE_KEY).await.unwrap().unwrap();
    assert!(String::from_utf8(kept).unwrap().contains("\"d1\""));
    let asked = client.downlink_events(None).await.unwrap().events;
    assert_eq!((asked.len(), asked[0].id.as_str()), (1, "d1"));
    let tenant::DownlinkState::Wanted { f_cnt_first, count, session, payload, .. } = asked[0].state.clone() else {
        panic!("a question: {asked:?}");
    };
    assert_eq!((f_cnt_first, payload), (0, tenant::HexBytes(vec![1, 2])));
    let answer = tenant::Encrypted {
        id: "d1".to_owned(),
        dev_eui: downlink.dev_eui,
        session,
        f_cnt_first,
        payloads: (0..count).map(|n| tenant::HexBytes(vec![n; 2])).collect(),
    };
    client.encrypted(&answer).await.unwrap();
    let stats = world.bridge.stats().await.unwrap();
    assert_eq!((stats.payloads_waiting, stats.unknown_names), (1, 0), "the bridge took the answer");
    let long = tenant::Encrypted { payloads: vec![tenant::HexBytes(vec![]); 17], ..answer };
    assert!(client.encrypted(&long).await.is_err());
}

#[tokio::test]
async fn state_is_kept_within_its_limits() {
    let world = world().await;
    let client = world.client();
    for n in 0..2 * tenant::STATE_KEYS_MAX {
        // What the node itself keeps of its devices is none of the tenant's.
        assert!(world.log.store().put_tenant_value(group(7), &format!(".record.{n}"), b"x", u32::MAX).await.unwrap());
    }
    client.put_state("cursor", "17".into()).await.unwrap();
    assert_eq!(client.state("cursor").await.unwrap().unwrap().as_ref(), b"17");
    for n in 1..tenant::STATE_KEYS_MAX {
        client.put_state(&format!("key-{n}"), "x".into()).await.unwrap();
    }
    assert!(client.put_state("one-more", "x".into()).await.is_err(), "at most 256 values");
    client.put_state("cursor", "18".into()).await.unwrap();
}

/// A tenant that opens all its places and says nothing holds up itself, for the time of a request head; another tenant notices nothing.
#[tokio::test]
async fn a_tenant_that_floods_its_socket_costs_others_nothing() {
    let world = world().await;
    let (other, _bridge) = open(&world.log, group(8), &world.directory.path().join("other")).await;
    other.tenant.set_configuration(Some("{}".into()));
    let mut idle = Vec::new();
    for _ in 0..4 * CONNECTIONS_MAX {
        let mut stream = UnixStream::connect(world.path()).await.unwrap();
        stream.write_all(b"GET /v1/config HTTP/1.1\r\n").await.unwrap();
        idle.push(stream);
    }
    let neighbour = tenant::Client::new(other.directory().join(SOCKET_NAME));
    let answered = tokio::time::timeout(Duration::from_secs(2), neighbour.config()).await;
    assert_eq!(answered.unwrap().unwrap().as_ref(), b"{}");
    drop(idle);
    let served = tokio::time::timeout(Duration::from_secs(10), world.client().health()).await;
    assert!(!served.unwrap().unwrap().ready, "the places are free again");
}

/// A world whose tenant may connect to `egress`, and is reached at `listen`.
async fn world_with(egress: &[String], listen: Option<std::net::SocketAddr>) -> World {
    let directory = tempfile::tempdir().unwrap();
    let log = Log::start(Store::open(&directory.path().join("node.db")).await.unwrap());
    let outside = Outside { egress: egress.iter().cloned().collect(), listen };
    let (socket, bridge) = open_with(&log, group(7), &directory.path().join("tenant"), outside).await;
    World { socket, bridge, log, directory }
}

/// Sends a line into `one` and reads it at `other`.
async fn carry(one: &mut (impl tokio::io::AsyncWrite + Unpin), other: &mut (impl tokio::io::AsyncRead + Unpin), line: &[u8]) {
    one.write_all(line).await.unwrap();
    one.flush().await.unwrap();
    let mut read = vec![0; line.len()];
    tokio::time::timeout(Duration::from_secs(10), other.read_exact(&mut read)).await.unwrap().unwrap();
    assert_eq!(read, line);
}

#[tokio::test]
async fn a_tenant_reaches_what_the_operator_allows_and_nothing_else() {
    let server = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let allowed = server.local_addr().unwrap().to_string();
    let gone = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string();
    let world = world_with(&[allowed.clone(), gone.clone()], None).await;
    let client = world.client();
    let mut inside = client.connect_to(&allowed).await.unwrap();
    let (mut outside, _) = server.accept().await.unwrap();
    carry(&mut inside, &mut outside, b"to the broker").await;
    carry(&mut outside, &mut inside, b"from the broker").await;
    let status = |refused: Result<_, tenant::Error>| match refused.map(drop) {
        Err(tenant::Error::Problem(problem)) => problem.status,
        other => panic!("{other:?}"),
    };
    assert_eq!(status(client.connect_to("127.0.0.1:1").await), 403);
    assert_eq!(status(client.connect_to(&gone).await), 502);
    assert_eq!(status(client.accept().await), 404, "nothing listens for this tenant");
    // The end of one side is the end of the other.
    drop(outside);
    let mut rest = Vec::new();
    tokio::time::timeout(Duration::from_secs(10), inside.read_to_end(&mut rest)).await.unwrap().unwrap();
    assert!(rest.is_empty());
    assert!(client.health().await.is_ok(), "requests go on beside tunnels");
}

#[tokio::test]
async fn a_tenant_is_reached_from_outside_and_tunnels_are_bounded() {
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let world = world_with(&[], Some(address)).await;
    let client = world.client();
    let reach = || async {
        loop {
            // The node binds its address in a task of its own.
            match tokio::net::TcpStream::connect(address).await {
                Ok(stream) => return stream,
                Err(_) => tokio::task::yield_now().await,
            }
        }
    };
    let (inside, outside) = tokio::join!(client.accept(), reach());
    let (mut inside, mut outside) = (inside.unwrap(), outside);
    carry(&mut outside, &mut inside, b"GET /api/v3/ping").await;
    carry(&mut inside, &mut outside, b"pong").await;
    // As many tunnels as there are places: the next request waits until one ends.
    let mut held = Vec::new();
    for _ in 1..CONNECTIONS_MAX {
        let (inside, outside) = tokio::join!(client.accept(), reach());
        held.push((inside.unwrap(), outside));
    }
    let waiting = client.health();
    tokio::pin!(waiting);
    assert!(tokio::time::timeout(Duration::from_millis(200), &mut waiting).await.is_err(), "there is no place left");
    held.pop();
    tokio::time::timeout(Duration::from_secs(10), waiting).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_second_reader_follows_from_its_own_cursor() {
    let world = world().await;
    for f_cnt in 0..3 {
        world.log.append(vec![uplink(group(7), f_cnt)]).await.unwrap();
    }
    let client = world.client();
    let mut first = client.uplinks(Some(0)).await.unwrap();
    let mut seen = Vec::new();
    while seen.len() < 3 {
        match first.next().await.unwrap().unwrap() {
            tenant::Line::Uplink(uplink) => seen.push((uplink.cursor, uplink.f_cnt)),
            tenant::Line::Malformed(reason) => panic!("{reason}"),
        }
    }
    assert_eq!(seen.iter().map(|(_, f_cnt)| *f_cnt).collect::<Vec<_>>(), [0, 1, 2]);
    // Decoded meanwhile: who follows by a cursor gets it all the same.
    client.publish(&tenant::ReadingBatch { readings: vec![reading(0)] }).await.unwrap();
    let mut second = client.uplinks(Some(0)).await.unwrap();
    let Some(tenant::Line::Uplink(again)) = second.next().await.unwrap() else { panic!("an uplink") };
    assert_eq!((again.cursor, again.f_cnt), seen[0]);
}
