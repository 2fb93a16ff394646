//! The operator API over its router: what it shows, what it refuses and how, pages, streams, limits.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, Request, StatusCode};
use common::{GROUP, Node, TTL, Wishes, id, keypair, refused, uplinks};
use contracts::contract::State;
use contracts::custody::Readiness;
use contracts::envelope::Envelope;
use contracts::ids::{DevEui, Epoch, EventId, GroupId, SessionId, StatementId};
use contracts::time::WallTime;
use edge_node::api::{self, ContentPage, ContractDetail, EstimateView, KnownContract, ReceivedReading, Released, Status};
use edge_node::readings::{Decoded, Kind, Reading, Uplink};
use edge_node::store::InboxBatch;
use edge_node::timeline::{Entry, Event};
use futures_util::StreamExt as _;
use kit::clock::Clock;
use peering::Transport as _;
use peering::custody::{CustodyHandle, FileVotes, GroupConfig, Role, Setup};
use peering::in_process::{Network, Passage};
use serde_json::{Value, json};
use tower::ServiceExt as _;

async fn node(wishes: Wishes) -> Node {
    Node::start(&Network::new(Clock::system()), wishes).await
}

fn reading(device: u64, f_cnt: u32) -> Reading {
    let (device, session) = (DevEui::from_u64(device), SessionId::from_bytes([1; 8]));
    Reading {
        event: EventId::new(device, session, f_cnt),
        group: GROUP,
        device,
        session,
        f_cnt,
        heard_at: WallTime(1_000 + u64::from(f_cnt)),
        kind: Kind::Live,
        epoch: Epoch(1),
        decoded: serde_json::value::to_raw_value(&json!({ "n": f_cnt })).unwrap(),
    }
}

fn uplink(f_cnt: u32) -> Uplink {
    let Reading { group, device, session, heard_at, .. } = reading(9, f_cnt);
    Uplink { heard_at, ..uplinks::uplink(group, device, session, f_cnt) }
}

/// Writes readings of devices 1, 2, 3, 1, 2, 3 … as a cloud receives them.
async fn receive(node: &Node, count: u32) {
    let readings = (0..count).map(|n| reading(u64::from(n % 3) + 1, n)).collect();
    let proof =
        Envelope::sign(&contracts::listing::Withdrawal { node: id(2), listing: StatementId::from_bytes([1; 32]) }, &keypair(2));
    let batch = InboxBatch { from: id(2), received_at: WallTime(5_000), proof_id: proof.id(), proof, readings };
    assert_eq!(node.core.store.insert_batches(&[batch]).await.unwrap(), [u64::from(count)]);
}

fn next_of(headers: &HeaderMap) -> Option<String> {
    let link = headers.get("link")?.to_str().unwrap();
    Some(link.strip_prefix('<').unwrap().split_once(">; rel=\"next\"").unwrap().0.to_owned())
}

#[tokio::test]
async fn openapi_is_as_published() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/openapi/node.json");
    let document = api::openapi();
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::create_dir_all(std::path::Path::new(path).parent().unwrap()).unwrap();
        std::fs::write(path, &document).unwrap();
    }
    let published = std::fs::read_to_string(path).unwrap_or_default();
    assert!(published == document, "docs/openapi/node.json is not what the code says: run this test with UPDATE_GOLDEN=1");
    assert_eq!(node(Wishes::default()).await.text("/openapi.json").await, document);
    let document: Value = serde_json::from_str(&published).unwrap();
    assert_eq!(document["openapi"], "3.1.0");
    for (path, method) in [
        ("/orchestrator/service_customer/image/status", "get"),
        ("/orchestrator/service_customer/image/status", "post"),
        ("/orchestrator/service_provider/image/status", "get"),
        ("/orchestrator/service_provider/image/status", "post"),
        ("/orchestrator/service_provider/contract", "get"),
        ("/orchestrator/service_provider/contract", "post"),
        ("/orchestrator/service_customer/contract/testing", "get"),
        ("/orchestrator/service_customer/contract/testing", "post"),
        ("/orchestrator/health", "get"),
        ("/filecoin_interface/backend/image", "post"),
        ("/filecoin_interface/orchestrator/image", "get"),
        ("/filecoin_interface/orchestrator/image", "post"),
        ("/filecoin_interface/backend/error", "post"),
        ("/filecoin_interface/health", "get"),
    ] {
        assert!(document["paths"][path][method].is_object(), "{method} {path}");
    }
}

#[tokio::test]
async fn health_and_readiness_say_what_is_wrong() {
    let node = node(Wishes::default()).await;
    let (status, _, body) = node.call(Request::get("/healthz").body(Body::empty()).unwrap()).await;
    assert_eq!((status, body.len()), (StatusCode::NO_CONTENT, 0));
    let ready: api::Readiness = node.get("/readyz").await;
    let names: Vec<_> = ready.checks.iter().map(|c| (c.name.as_str(), c.ok)).collect();
    assert_eq!((ready.ready, names), (true, vec![("database", true), ("bridge", true)]));
    node.core.store.close().await;
    assert_eq!(node.get_refusal("/readyz").await, refused(503, "unavailable", None));
    let (_, _, body) = node.call(Request::get("/readyz").body(Body::empty()).unwrap()).await;
    assert!(String::from_utf8(body).unwrap().contains("database: does not answer"));
    assert_eq!(node.get_refusal("/metrics").await, refused(500, "internal", None), "no figures are made up");
}

#[tokio::test]
async fn what_cannot_be_served_is_a_problem() {
    let node = node(Wishes::default()).await;
    assert_eq!(node.get_refusal("/v2/status").await, refused(404, "not-found", None));
    assert_eq!(node.post_refusal("/v1/status", &json!({})).await, refused(405, "method-not-allowed", None));
    let plain = Request::post("/v1/release").header("content-type", "text/plain").body(Body::from("{}")).unwrap();
    assert_eq!(node.refusal(plain).await, refused(415, "unsupported-media-type", Some("Content-Type")));
    assert_eq!(node.post_refusal("/v1/release", &json!({ "group": 1 })).await, refused(400, "malformed-body", None));
    let long = json!({ "group": GROUP, "reason": "x".repeat(api::BODY_BYTES_MAX) });
    assert_eq!(node.post_refusal("/v1/release", &long).await, refused(413, "too-large", None));
    let rebound = Request::get("/v1/status").header("host", "attacker.example:7101").body(Body::empty()).unwrap();
    assert_eq!(node.refusal(rebound).await, refused(403, "forbidden", Some("Host")));
    let local = Request::get("/v1/status").header("host", "127.0.0.1:7101").body(Body::empty()).unwrap();
    assert_eq!(node.call(local).await.0, StatusCode::OK);
    assert_eq!(node.get_refusal("/v1/market").await, refused(501, "not-configured", None));
    assert_eq!(node.get_refusal("/orchestrator/health").await, refused(501, "not-configured", None));
}

#[tokio::test]
async fn readings_go_by_cursor_and_device() {
    let node = node(Wishes::default()).await;
    receive(&node, 10).await;
    let (mut path, mut seen) = (Some("/v1/readings?limit=4".to_owned()), Vec::new());
    while let Some(next) = path {
        let (status, headers, body) = node.call(Request::get(&next).body(Body::empty()).unwrap()).await;
        assert_eq!(status, StatusCode::OK);
        let page: Vec<ReceivedReading> = serde_json::from_slice(&body).unwrap();
        seen.extend(page.iter().map(|r| r.f_cnt));
        path = next_of(&headers);
    }
    assert_eq!(seen, (0..10).collect::<Vec<_>>());
    let of_two: Vec<ReceivedReading> = node.get("/v1/readings?device=0000000000000002").await;
    assert_eq!(of_two.iter().map(|r| r.f_cnt).collect::<Vec<_>>(), [1, 4, 7]);
    assert_eq!(
        (of_two[0].device.as_str(), &of_two[0].decoded, of_two[0].delivered_by),
        ("0000000000000002", &json!({ "n": 1 }), id(2))
    );
    let behind: Vec<ReceivedReading> = node.get(&format!("/v1/readings?device=0000000000000002&after={}", of_two[1].seq)).await;
    assert_eq!(behind, of_two[2..], "the cursor is the same with and without a filter");
    let nobody: Vec<ReceivedReading> = node.get("/v1/readings?device=00000000000000ff").await;
    assert_eq!(nobody, []);
    assert_eq!(node.get_refusal("/v1/readings?limit=0").await, refused(400, "invalid-input", Some("limit")));
    assert_eq!(node.get_refusal("/v1/readings?limit=5001").await, refused(400, "invalid-input", Some("limit")));
    assert_eq!(node.get_refusal("/v1/readings?device=xyz").await, refused(400, "invalid-input", Some("device")));
    assert_eq!(node.get_refusal("/v1/readings?after=18446744073709551615").await, refused(400, "invalid-input", Some("after")));
    assert_eq!(node.get_refusal("/v1/readings?after=-1").await, refused(400, "malformed-query", None));
    assert_eq!(node.get_refusal("/v1/readings?cursor=1").await, refused(400, "malformed-query", None));
    let edge = api::router(api::Context { inbox: None, ..node.context.clone() });
    let answer = edge.oneshot(Request::get("/v1/readings").body(Body::empty()).unwrap()).await.unwrap();
    assert_eq!(answer.status(), StatusCode::NOT_FOUND, "an edge keeps no readings of others");
}

#[tokio::test]
async fn contracts_go_by_cursor_and_id() {
    let node = node(Wishes::default()).await;
    let image = (node.image.1.as_str(), node.image.2.as_str());
    let first = node.add_contract(1, 2, GROUP, image, State::Standby { activations: 0 }).await;
    let second = node.add_contract(2, 1, GroupId::from_bytes([8; 16]), image, State::Agreed).await;
    let (_, headers, body) = node.call(Request::get("/v1/contracts?limit=1").body(Body::empty()).unwrap()).await;
    let page: Vec<KnownContract> = serde_json::from_slice(&body).unwrap();
    assert_eq!(page[0].id, first.min(second));
    let rest: Vec<KnownContract> = node.get(&next_of(&headers).unwrap()).await;
    assert_eq!(rest.iter().map(|c| c.id).collect::<Vec<_>>(), [first.max(second)]);
    let of_group: Vec<KnownContract> = node.get(&format!("/v1/contracts?group={GROUP}")).await;
    assert_eq!(of_group.iter().map(|c| (c.id, c.state)).collect::<Vec<_>>(), [(first, State::Standby { activations: 0 })]);
    let detail: ContractDetail = node.get(&format!("/v1/contracts/{second}")).await;
    assert_eq!(
        (detail.known.id, detail.part.as_str(), detail.wiped, detail.envelope.signatures.len()),
        (second, "provider", false, 2)
    );
    let unknown = contracts::ids::ContractId::from_bytes([9; 32]);
    assert_eq!(node.get_refusal(&format!("/v1/contracts/{unknown}")).await, refused(404, "not-found", None));
    assert_eq!(node.get_refusal("/v1/contracts/node_12").await, refused(400, "invalid-input", Some("id")));
    assert_eq!(node.get_refusal("/v1/contracts?after=1").await, refused(400, "invalid-input", Some("after")));
    assert_eq!(node.get_refusal("/v1/contracts?limit=1001").await, refused(400, "invalid-input", Some("limit")));
}

async fn follow(node: &Node, path: &str, last: Option<&str>) -> axum::response::Response {
    let mut request = Request::get(path);
    if let Some(last) = last {
        request = request.header("last-event-id", last);
    }
    node.router.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap()
}

/// The next events of a stream.
async fn take(response: axum::response::Response, count: usize) -> Vec<Entry> {
    assert_eq!(response.status(), StatusCode::OK);
    let mut body = response.into_body().into_data_stream();
    let (mut text, mut entries) = (String::new(), Vec::new());
    while entries.len() < count {
        let chunk = tokio::time::timeout(Duration::from_secs(10), body.next()).await.expect("an event in time").unwrap().unwrap();
        text.push_str(std::str::from_utf8(&chunk).unwrap());
        while let Some((event, rest)) = text.split_once("\n\n") {
            let data = event.lines().find_map(|line| line.strip_prefix("data: ")).unwrap();
            let entry: Entry = serde_json::from_str(data).unwrap();
            assert!(event.lines().any(|line| line == format!("id: {}", entry.seq)), "{event}");
            entries.push(entry);
            text = rest.to_owned();
        }
    }
    entries
}

#[tokio::test]
async fn event_streams_resume_without_gap_or_doubling() {
    let node = node(Wishes::default()).await;
    let alarm = |n: u64| Event::Alarm { what: n.to_string() };
    (1..=5).for_each(|n| node.core.timeline.push(alarm(n)));
    let sequence = |entries: Vec<Entry>| entries.iter().map(|e| e.seq).collect::<Vec<_>>();
    assert_eq!(sequence(take(follow(&node, "/v1/events", None).await, 5).await), [1, 2, 3, 4, 5]);
    let resumed = follow(&node, "/v1/events", Some("3")).await;
    node.core.timeline.push(alarm(6));
    assert_eq!(sequence(take(resumed, 3).await), [4, 5, 6]);
    assert_eq!(sequence(take(follow(&node, "/v1/events?after=5", None).await, 1).await), [6]);
    assert_eq!(sequence(take(follow(&node, "/v1/events", Some("900")).await, 6).await), [1, 2, 3, 4, 5, 6], "of an earlier run");
    // A reader that does not read for longer than the live stream keeps events gets them from what is kept.
    let slow = follow(&node, "/v1/events?after=6", None).await;
    (7..=600).for_each(|n| node.core.timeline.push(alarm(n)));
    assert_eq!(sequence(take(slow, 594).await), (7..=600).collect::<Vec<_>>());
    (601..=1_500).for_each(|n| node.core.timeline.push(alarm(n)));
    assert_eq!(node.get_refusal("/v1/events?after=499").await, refused(410, "events-gone", Some("Last-Event-ID")));
    assert_eq!(sequence(take(follow(&node, "/v1/events?after=500", None).await, 1_000).await), (501..=1_500).collect::<Vec<_>>());
    let wrong = Request::get("/v1/events").header("last-event-id", "x").body(Body::empty()).unwrap();
    assert_eq!(node.refusal(wrong).await, refused(400, "invalid-input", Some("Last-Event-ID")));
}

#[tokio::test]
async fn event_streams_are_limited() {
    let node = node(Wishes::default()).await;
    let mut open = Vec::new();
    for _ in 0..api::EVENT_STREAMS_MAX {
        open.push(follow(&node, "/v1/events", None).await);
    }
    assert_eq!(node.get_refusal("/v1/events").await, refused(503, "unavailable", None));
    assert!(node.text("/metrics").await.contains("node_event_streams 32\n"));
    drop(open.pop());
    assert_eq!(follow(&node, "/v1/events", None).await.status(), StatusCode::OK, "its place is free again");
}

#[tokio::test]
async fn content_shows_pins_sizes_and_what_is_missing() {
    let node = node(Wishes::default()).await;
    let cid = storage::parse_cid(&node.image.1).unwrap();
    node.core.content.pin(&cid, "another reason").await.unwrap();
    let absent = storage::parse_cid(&format!("bafkrei{}", "a".repeat(52))).unwrap();
    node.core.content.pin(&absent, "to come").await.unwrap();
    let mut all = Vec::new();
    let mut path = Some("/v1/content?limit=1".to_owned());
    while let Some(next) = path {
        let page: ContentPage = node.get(&next).await;
        assert_eq!((page.items.len(), page.bytes), (1, node.core.content.usage().bytes));
        all.extend(page.items);
        path = page.next.map(|next| format!("/v1/content?limit=1&after={next}"));
    }
    all.sort_by_key(|item| item.missing_blocks);
    assert_eq!(all.len(), 2);
    assert_eq!(
        (all[0].cid.as_str(), all[0].labels.len(), all[0].bytes),
        (node.image.1.as_str(), 2, node.core.content.total_bytes(&cid).await.ok())
    );
    assert_eq!((all[1].labels.as_slice(), all[1].bytes, all[1].missing_blocks), (&["to come".to_owned()][..], None, 1));
    assert_eq!(node.get_refusal("/v1/content?limit=201").await, refused(400, "invalid-input", Some("limit")));
    assert_eq!(node.get_refusal("/v1/content?after=nothing").await, refused(400, "invalid-input", Some("after")));
}

const POLICY: &str = include_str!("common/policy.toml");

fn insured() -> Wishes {
    let configuration = format!(
        "marketplace = {{ url = \"http://127.0.0.1:9\" }}\narbitrator = {{ node = \"{}\", url = \"http://127.0.0.1:9\" }}",
        id(3)
    );
    Wishes { policy: Some(POLICY.to_owned()), service: true, configuration }
}

#[tokio::test]
async fn the_estimate_shows_use_needs_and_what_is_free() {
    let nothing: EstimateView = node(Wishes::default()).await.get("/v1/estimate").await;
    assert_eq!(nothing, EstimateView { own: None, demand: None, spare: None });
    let node = node(insured()).await;
    let image = (node.image.1.as_str(), node.image.2.as_str());
    let contract = node.add_contract(2, 1, GroupId::from_bytes([8; 16]), image, State::Preparing).await;
    node.add_contract(2, 1, GroupId::from_bytes([9; 16]), image, State::Proposed).await;
    let estimate: EstimateView = node.get("/v1/estimate").await;
    let own = estimate.own.unwrap();
    let cid = storage::parse_cid(image.0).unwrap();
    assert_eq!((own.group, own.image_bytes), (GROUP, node.core.content.total_bytes(&cid).await.unwrap()));
    assert_eq!((own.cpu_millis, own.memory_bytes), (None, None), "nothing runs, so nothing is measured");
    let demand = estimate.demand.unwrap();
    assert_eq!((demand.needs.storage_bytes, demand.needs.uptime_s), (own.image_bytes * 3 / 2, 30 * 86_400));
    assert!(demand.reasons.len() >= 4);
    let spare = estimate.spare.unwrap();
    assert_eq!(spare.promised.iter().map(|(id, needs)| (*id, needs.cpu_millis)).collect::<Vec<_>>(), [(contract, 100)]);
    assert_eq!(spare.free.unwrap().cpu_millis, 1_000 - 100 - 100, "less the reserve, less the promise");
    assert!(spare.reasons.iter().any(|reason| reason.contains(&contract.to_string())));
}

#[tokio::test]
async fn the_market_agent_speaks_for_itself() {
    let node = node(insured()).await;
    let agent = edge_node::market::Agent::start(Arc::clone(&node.core)).unwrap();
    let node = Node { router: api::router_with_market(node.context.clone(), agent.clone()), ..node };
    let market: Value = node.get("/v1/market").await;
    assert_eq!((&market["registered"], &market["negotiations"]), (&json!(false), &json!(0)), "no marketplace answers here");
    agent.stop().await;
    let estimate: EstimateView = node.get("/v1/estimate").await;
    assert_eq!(estimate.demand, agent.status().estimate, "what is shown is what would be asked for");
    assert!(estimate.demand.is_some());
}

#[tokio::test]
async fn metrics_tell_what_is_kept_and_what_waits() {
    let node = node(Wishes::default()).await;
    receive(&node, 4).await;
    node.add_contract(1, 2, GROUP, (&node.image.1, &node.image.2), State::Standby { activations: 0 }).await;
    node.core.log.append((0..3).map(uplink).collect()).await.unwrap();
    let decoded = Decoded { event: uplink(0).event, decoded: "{}".into() };
    assert_eq!(node.core.log.publish(GROUP, vec![decoded]).await, Ok(1));
    node.get::<Status>("/v1/status").await;
    node.get_refusal("/v1/nothing").await;
    let text = node.text("/metrics").await;
    let usage = node.core.content.usage();
    for line in [
        format!("node_readings_unsettled{{group=\"{GROUP}\"}} 1"),
        format!("node_uplinks_undecoded{{group=\"{GROUP}\"}} 2"),
        "node_readings_received_total 4".to_owned(),
        "node_contracts{state=\"standby\"} 1".to_owned(),
        "node_bridge_up 1".to_owned(),
        "node_bridge_datagrams_total 0".to_owned(),
        "node_custody_received_total 0".to_owned(),
        "node_peering_datagrams_sent_total 0".to_owned(),
        format!("node_content_bytes {}", usage.bytes),
        "node_content_pins 1".to_owned(),
        "node_api_requests_total{method=\"GET\",status=\"200\"} 1".to_owned(),
        "node_api_requests_total{method=\"GET\",status=\"404\"} 1".to_owned(),
    ] {
        assert!(text.lines().any(|l| l == line), "no line `{line}` in\n{text}");
    }
    assert!(text.ends_with("# EOF\n"));
    node.core.log.settle(vec![reading(9, 0).name()]).await.unwrap();
    assert!(node.text("/metrics").await.contains(&format!("node_readings_unsettled{{group=\"{GROUP}\"}} 0\n")));
}

fn group(number: u8) -> GroupConfig {
    GroupConfig {
        group: GROUP,
        members: vec![id(1), id(2), id(3)],
        candidates: vec![id(1), id(2)],
        eligible: vec![id(1), id(2)],
        first_holder: id(1),
        ttl: TTL,
        readiness: if number == 3 { Readiness::Unready } else { Readiness::Ready },
    }
}

async fn member(network: &Network, number: u8, disk: &std::path::Path) -> CustodyHandle {
    let transport = Arc::new(network.join(id(number)));
    let votes = FileVotes::open(disk.join(format!("votes-{number}"))).unwrap();
    let (custody, routes) =
        peering::custody::start(Setup::new(transport.clone(), keypair(number), Clock::system(), Arc::new(votes))).unwrap();
    transport.serve(routes);
    custody.add_group(group(number)).await.unwrap();
    custody
}

async fn until(custody: &CustodyHandle, what: &str, is_so: impl FnMut(&peering::custody::CustodyView) -> bool) {
    let mut view = custody.subscribe(GROUP).unwrap();
    let waited = tokio::time::timeout(Duration::from_secs(10), view.wait_for(is_so)).await;
    let _ = waited.unwrap_or_else(|_| panic!("{what} does not happen")).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_gives_custody_to_the_other_party_at_once() {
    let network = Network::new(Clock::system());
    let node = Node::start(&network, Wishes::default()).await;
    let order = json!({ "group": GROUP, "reason": "new power supply" });
    assert_eq!(node.post_refusal("/v1/release", &order).await, refused(404, "not-found", Some("group")), "no contract");
    node.add_contract(1, 2, GROUP, (&node.image.1, &node.image.2), State::Standby { activations: 0 }).await;
    assert_eq!(node.post_refusal("/v1/release", &order).await, refused(404, "not-found", Some("group")), "no custody yet");
    let disk = tempfile::tempdir().unwrap();
    let _witness = member(&network, 3, disk.path()).await;
    node.custody.add_group(group(1)).await.unwrap();
    until(&node.custody, "the customer holds", |view| matches!(view.role, Role::Holder { .. })).await;
    let provider = member(&network, 2, disk.path()).await;
    until(&provider, "the provider follows", |view| view.voted_for == Some(id(1))).await;
    for reason in ["", "line\nbreak", &"x".repeat(257)] {
        let order = json!({ "group": GROUP, "reason": reason });
        assert_eq!(node.post_refusal("/v1/release", &order).await, refused(400, "invalid-input", Some("reason")));
    }

    let cut = Arc::new(AtomicBool::new(true));
    let is_cut = Arc::clone(&cut);
    network.set_faults(Arc::new(move |message| {
        let between = [message.from, message.to] == [id(1), id(2)] || [message.from, message.to] == [id(2), id(1)];
        if between && is_cut.load(Ordering::SeqCst) { Passage::Lost } else { Passage::Delivered }
    }));
    until(&node.custody, "the provider is missed", |view| view.missing.contains(&id(2))).await;
    let presence = edge_node::insurance::presence::run(node.custody.clone(), node.core.timeline.clone(), GROUP);
    let presence = tokio::spawn(presence);
    let told = |text: String| {
        let timeline = node.core.timeline.clone();
        async move {
            let says = |e: &Entry| matches!(&e.event, Event::Alarm { what } if *what == text);
            let told = tokio::time::timeout(Duration::from_secs(20), async {
                while !timeline.follow(0).0.iter().any(says) {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            });
            assert!(told.await.is_ok(), "never told: {text}");
        }
    };
    told(format!("member {} of {GROUP} does not answer", id(2))).await;
    assert_eq!(node.post_refusal("/v1/release", &order).await, refused(409, "conflict", None), "nobody would serve");
    cut.store(false, Ordering::SeqCst);
    until(&node.custody, "the provider answers", |view| view.missing.is_empty()).await;
    told(format!("member {} of {GROUP} answers again", id(2))).await;
    presence.abort();
    until(&node.custody, "the customer still holds", |view| matches!(view.role, Role::Holder { .. })).await;

    let (status, released) = node.post("/v1/release", &order).await;
    assert_eq!(status, StatusCode::OK, "{released}");
    let released: Released = serde_json::from_value(released).unwrap();
    assert_eq!((released.group, released.successor), (GROUP, id(2)));
    until(&provider, "the provider holds", |view| matches!(view.role, Role::Holder { epoch } if epoch == released.epoch.next()))
        .await;
    let (kept, _) = node.core.timeline.follow(0);
    assert!(kept.iter().any(|e| e.event == Event::Released { group: GROUP, epoch: released.epoch }));
    until(&node.custody, "the customer follows", |view| view.voted_for == Some(id(2))).await;
    assert_eq!(node.post_refusal("/v1/release", &order).await, refused(409, "conflict", None), "not held here any more");
    let status: Status = node.get("/v1/status").await;
    assert_eq!((status.groups[0].role.as_str(), status.groups[0].holder), ("follower", Some(id(2))));
    let metrics = node.text("/metrics").await;
    assert!(metrics.contains(&format!("node_custody_role{{group=\"{GROUP}\",role=\"follower\"}} 1\n")), "{metrics}");
}

/// A bridge that stopped while custody is held would serve nobody.
#[tokio::test(flavor = "multi_thread")]
async fn a_release_is_carried_out_though_nobody_waits_for_it() {
    let network = Network::new(Clock::system());
    let node = Node::start(&network, Wishes::default()).await;
    node.add_contract(1, 2, GROUP, (&node.image.1, &node.image.2), State::Standby { activations: 0 }).await;
    let disk = tempfile::tempdir().unwrap();
    let _witness = member(&network, 3, disk.path()).await;
    let provider = member(&network, 2, disk.path()).await;
    node.custody.add_group(group(1)).await.unwrap();
    until(&node.custody, "the customer holds", |view| matches!(view.role, Role::Holder { .. })).await;
    {
        let released = edge_node::insurance::release_one(&node.parts, GROUP);
        let mut released = std::pin::pin!(released);
        // Begun, and given up.
        assert!(futures_util::poll!(&mut released).is_pending());
    }
    until(&provider, "the provider holds", |view| matches!(view.role, Role::Holder { .. })).await;
}
