//! The API over the router: what is accepted, what is refused and how, lists, events, statistics.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::{Method, Request, StatusCode};
use common::{HOUR, Market, Party, contract, market, market_with};
use contracts::envelope::Envelope;
use contracts::ids::StatementId;
use contracts::time::Millis;
use futures_util::StreamExt as _;
use kit::problem::Problem;
use marketplace::config::Limits;
use marketplace::http::{BODY_BYTES_MAX, openapi};
use marketplace::resource::{Listing, ListingState, Marketplace, Match, MatchState, Node, Page, Statistics};
use marketplace::store::Memory;
use serde_json::{Value, json};
use tower::ServiceExt as _;

/// Rio is customer, Patras provider, both registered.
async fn open_market() -> (Market, Party, Party) {
    let (market, rio, patras) = (market().await, Party::new(1), Party::new(2));
    market.register(&rio).await;
    market.register(&patras).await;
    (market, rio, patras)
}

fn problem(body: &str) -> Problem {
    serde_json::from_str(body).unwrap_or_else(|e| panic!("not a problem: {e}: {body}"))
}

#[tokio::test]
async fn from_listing_to_introduction_to_contract() {
    let (market, rio, patras) = open_market().await;
    let (offer, demand) = market.list_pair(&patras, &rio).await;
    assert_eq!(market.service.clear().await.unwrap().matches, 1);
    assert_eq!(market.service.clear().await.unwrap().matches, 0, "matched once while held");
    let page: Page<Match> = market.get(&format!("/v1/matches?node={}&listing={demand}&state=held", rio.id())).await;
    let [found] = page.items.as_slice() else { panic!("one match") };
    let marketplace: Marketplace = market.get("/v1/marketplace").await;
    assert_eq!((marketplace.id, marketplace.round), (market.keypair.node_id(), 1));
    let introduction = found.introduction(marketplace.id).unwrap();
    assert_eq!(introduction.terms.price_per_day.micros(), 2_500_000);
    assert_eq!((introduction.terms.offer, introduction.terms.demand), (offer, demand));
    assert_eq!((introduction.provider, introduction.customer), (patras.record(1), rio.record(1)));
    assert_eq!(introduction.terms.held_until, market.now() + Millis::from_secs(60));

    let path = format!("/v1/matches/{}/contract", found.id);
    let of_another = contract(&rio, &patras, Some(demand), market.now());
    assert_eq!(market.refusal(Method::PUT, &path, &of_another).await, (422, "contract-mismatch".into()));
    let swapped = contract(&patras, &rio, Some(found.id), market.now());
    assert_eq!(market.refusal(Method::PUT, &path, &swapped).await, (422, "contract-mismatch".into()));
    let agreed = contract(&rio, &patras, Some(found.id), market.now());
    let mut half_signed = agreed.clone();
    half_signed.signatures.pop();
    assert_eq!(market.refusal(Method::PUT, &path, &half_signed).await, (400, "bad-signature".into()));
    for _ in 0..2 {
        let (status, confirmed) = market.send::<Match>(Method::PUT, &path, &agreed).await;
        assert_eq!(
            (status, confirmed.state, confirmed.contract),
            (StatusCode::OK, MatchState::Confirmed, Some(agreed.id().into()))
        );
    }
    market.clock.advance(Millis::from_secs(61));
    assert!(!market.service.expire().await.unwrap(), "confirmed: the hold does not run out");
    let statistics: Statistics = market.get("/v1/statistics").await;
    assert_eq!((statistics.totals.matches_confirmed, statistics.totals.matches_held), (1, 0));
    let [round] = statistics.rounds.as_slice() else { panic!("one round matched") };
    assert_eq!(
        (round.matched, round.volume.0, round.surplus.0, round.bound.0, round.exact),
        (1, 2_500_000, 1_000_000, 1_000_000, true)
    );
    let (_, csv) = market.call(Request::get("/v1/statistics.csv").body(Body::empty()).unwrap()).await;
    let lines: Vec<_> = csv.lines().collect();
    assert_eq!(lines.len(), 2);
    assert_eq!(lines[1], format!("1,EUR,{},1,1,1,1,2500000,1000000,1000000,true", round.at.0));
}

#[tokio::test]
async fn a_hold_that_runs_out_frees_both_sides_and_a_pair_is_not_tried_for_ever() {
    let (market, rio, patras) = open_market().await;
    let (_, demand) = market.list_pair(&patras, &rio).await;
    for round in 1..=3 {
        assert_eq!(market.service.clear().await.unwrap().matches, 1, "round {round}");
        market.clock.advance(Millis::from_secs(60));
        assert!(market.service.expire().await.unwrap());
    }
    assert_eq!(market.service.clear().await.unwrap().matches, 0, "three times nothing came of it");
    let late: Page<Match> = market.get(&format!("/v1/matches?listing={demand}&state=expired")).await;
    let path = format!("/v1/matches/{}/contract", late.items[0].id);
    let too_late = contract(&rio, &patras, Some(late.items[0].id), market.now());
    assert_eq!(market.refusal(Method::PUT, &path, &too_late).await, (409, "match-over".into()));
}

#[tokio::test]
async fn statements_are_listed_once_and_never_again() {
    let (market, rio, patras) = open_market().await;
    let offer = Envelope::sign(&patras.offer(1, market.now()), &patras.node);
    let (first, _) = market.send::<Listing>(Method::POST, "/v1/offers", &offer).await;
    let (again, listing) = market.send::<Listing>(Method::POST, "/v1/offers", &offer).await;
    assert_eq!((first, again), (StatusCode::CREATED, StatusCode::OK));
    assert_eq!(market.get::<Page<Listing>>("/v1/offers").await.items, std::slice::from_ref(&listing));
    assert_eq!(market.get::<Listing>(&format!("/v1/offers/{}", offer.id())).await, listing);

    assert_eq!(market.refusal(Method::POST, "/v1/withdrawals", &rio.withdrawal(offer.id())).await, (403, "forbidden".into()));
    let unknown = rio.withdrawal(StatementId::from_bytes([3; 32]));
    assert_eq!(market.refusal(Method::POST, "/v1/withdrawals", &unknown).await, (404, "not-found".into()));
    for _ in 0..2 {
        let (status, withdrawn) = market.send::<Listing>(Method::POST, "/v1/withdrawals", &patras.withdrawal(offer.id())).await;
        assert_eq!((status, withdrawn.state), (StatusCode::OK, ListingState::Withdrawn));
        assert!(withdrawn.withdrawal.is_some());
    }
    assert_eq!(market.refusal(Method::POST, "/v1/offers", &offer).await, (409, "withdrawn-statement".into()));
    assert!(market.get::<Page<Listing>>("/v1/offers?state=open").await.items.is_empty());

    let demand = Envelope::sign(&rio.demand(1, market.now()), &rio.node);
    assert_eq!(market.send::<Listing>(Method::POST, "/v1/demands", &demand).await.0, StatusCode::CREATED);
    market.clock.advance(HOUR);
    assert_eq!(
        market.refusal(Method::POST, "/v1/demands", &demand).await,
        (422, "expired-statement".into()),
        "before the round says so"
    );
    market.service.expire().await.unwrap();
    assert_eq!(market.refusal(Method::POST, "/v1/demands", &demand).await, (422, "expired-statement".into()));
    assert_eq!(market.get::<Listing>(&format!("/v1/demands/{}", demand.id())).await.state, ListingState::Expired);
}

#[tokio::test]
async fn withdrawing_releases_what_was_held() {
    let (market, rio, patras) = open_market().await;
    let (offer, _) = market.list_pair(&patras, &rio).await;
    market.service.clear().await.unwrap();
    market.send::<Listing>(Method::POST, "/v1/withdrawals", &patras.withdrawal(offer)).await;
    let page: Page<Match> = market.get(&format!("/v1/matches?node={}", rio.id())).await;
    assert_eq!(page.items[0].state, MatchState::Released);
    let other = Party::new(3);
    market.register(&other).await;
    let replacement = Envelope::sign(&other.offer(1, market.now()), &other.node);
    market.send::<Listing>(Method::POST, "/v1/offers", &replacement).await;
    assert_eq!(market.service.clear().await.unwrap().matches, 1, "the demand finds another provider");
}

#[tokio::test]
async fn records_rise_and_need_both_keys() {
    let (market, rio, _) = open_market().await;
    let path = format!("/v1/nodes/{}", rio.id());
    let put = async |envelope: &Envelope| market.send_raw(Method::PUT, &path, serde_json::to_vec(envelope).unwrap()).await;
    assert_eq!(put(&rio.signed_record(1)).await.0, StatusCode::OK, "known");
    assert_eq!(put(&rio.signed_record(3)).await.0, StatusCode::CREATED);
    let (status, body) = put(&rio.signed_record(2)).await;
    assert_eq!((status.as_u16(), problem(&body).name()), (409, "stale-record"));
    assert_eq!(market.get::<Node>(&path).await.record_epoch, 3);
    let by_node_alone = Envelope::sign(&rio.record(4), &rio.node);
    let by_owner_alone = Envelope::sign(&rio.record(4), &rio.owner);
    for envelope in [by_node_alone, by_owner_alone] {
        let (status, body) = put(&envelope).await;
        assert_eq!((status.as_u16(), problem(&body).name()), (400, "bad-signature"));
    }
    let other = Party::new(7);
    assert_eq!(
        market.refusal(Method::PUT, &path, &other.signed_record(1)).await,
        (400, "invalid-input".into()),
        "the path names another node"
    );

    // The node is sold: not while it has open listings, then yes, and its old owner's statements are refused.
    let sold = Party { node: rio.node.clone(), owner: other.owner.clone() };
    let demand = Envelope::sign(&rio.demand(1, market.now()), &rio.node);
    market.send::<Listing>(Method::POST, "/v1/demands", &demand).await;
    assert_eq!(market.refusal(Method::PUT, &path, &sold.signed_record(4)).await, (409, "conflict".into()));
    market.send::<Listing>(Method::POST, "/v1/withdrawals", &rio.withdrawal(demand.id())).await;
    assert_eq!(put(&sold.signed_record(4)).await.0, StatusCode::CREATED);
    let of_old_owner = Envelope::sign(&rio.demand(2, market.now()), &rio.node);
    assert_eq!(market.refusal(Method::POST, "/v1/demands", &of_old_owner).await, (403, "owner-mismatch".into()));
}

#[tokio::test]
async fn bad_statements_get_a_problem_that_says_why() {
    let (market, rio, patras) = open_market().await;
    let now = market.now();
    let good = Envelope::sign(&patras.offer(1, now), &patras.node);
    let mut changed = good.clone();
    changed.payload[20] ^= 1;
    let mut forged = good.clone();
    forged.signatures[0].sig[10] ^= 1;
    let by_another = Envelope::sign(&patras.offer(1, now), &rio.node);
    let stranger = Party::new(9);
    let unregistered = Envelope::sign(&stranger.offer(1, now), &stranger.node);
    let expired = Envelope::sign(&patras.offer(1, now - HOUR), &patras.node);
    let too_early = Envelope::sign(&patras.offer(1, now + HOUR * 24 * 31), &patras.node);
    let endless =
        Envelope::sign(&contracts::listing::Offer { valid_until: now + HOUR * 24 * 31, ..patras.offer(1, now) }, &patras.node);
    let demand = Envelope::sign(&rio.demand(1, now), &rio.node);
    for (name, status, envelope) in [
        ("bad-signature", 400, &changed),
        ("bad-signature", 400, &forged),
        ("bad-signature", 400, &by_another),
        ("unknown-statement-type", 400, &demand),
        ("node-not-registered", 403, &unregistered),
        ("expired-statement", 422, &expired),
        ("invalid-input", 400, &too_early),
        ("invalid-input", 400, &endless),
    ] {
        assert_eq!(market.refusal(Method::POST, "/v1/offers", envelope).await, (status, name.to_owned()));
    }
    let payload = |value: Value| Envelope { payload: serde_json::to_vec(&value).unwrap(), ..good.clone() };
    let offer = serde_json::to_value(patras.offer(1, now)).unwrap();
    for (field, value) in [
        ("nonce", json!(1.5)),
        ("ask_per_day", json!("01")),
        ("ask_per_day", json!(2)),
        ("colour", json!("red")),
        ("node", json!("node_00")),
    ] {
        let mut wrong = offer.clone();
        wrong[field] = value;
        let mut envelope = payload(wrong);
        envelope.signatures.clear();
        envelope.cosign(&patras.node);
        assert_eq!(market.refusal(Method::POST, "/v1/offers", &envelope).await, (400, "malformed-statement".into()), "{field}");
    }
    assert!(market.get::<Page<Listing>>("/v1/offers").await.items.is_empty(), "nothing of this was listed");
}

#[tokio::test]
async fn bad_requests_get_a_problem_too() {
    let (market, _, patras) = open_market().await;
    let good = serde_json::to_string(&Envelope::sign(&patras.offer(1, market.now()), &patras.node)).unwrap();
    let twice = good.replacen("\"payloadType\"", "\"payloadType\":\"x\",\"payloadType\"", 1);
    let extra = good.replacen('{', "{\"extra\":1,", 1);
    let long_payload =
        json!({ "payloadType": "application/vnd.antirio.offer.v1+json", "payload": "A".repeat(1_400_000), "signatures": [] })
            .to_string();
    let deep = "[".repeat(100_000);
    for (name, status, body) in [
        ("malformed-body", 400, ""),
        ("malformed-body", 400, "nonsense"),
        ("malformed-body", 400, &good[..good.len() / 2]),
        ("malformed-body", 400, &twice),
        ("malformed-body", 400, &extra),
        ("malformed-body", 400, &deep),
        ("too-large", 400, &long_payload),
        ("too-large", 413, &" ".repeat(BODY_BYTES_MAX + 1)),
    ] {
        let (got, answer) = market.send_raw(Method::POST, "/v1/offers", body.to_owned()).await;
        assert_eq!((got.as_u16(), problem(&answer).name()), (status, name), "{answer}");
    }
    for (name, status, method, path) in [
        ("not-found", 404, "GET", "/v2/offers"),
        ("method-not-allowed", 405, "DELETE", "/v1/offers"),
        ("invalid-input", 400, "GET", "/v1/offers/statement_00"),
        ("not-found", 404, "GET", &format!("/v1/offers/statement_{}", "0".repeat(64))),
        ("invalid-input", 400, "GET", "/v1/offers?limit=0"),
        ("invalid-input", 400, "GET", "/v1/offers?limit=201"),
        ("invalid-input", 400, "GET", "/v1/offers?cursor=x"),
        ("invalid-input", 400, "GET", "/v1/offers?cursor=18446744073709551615"),
        ("malformed-query", 400, "GET", "/v1/offers?state=sold"),
        ("malformed-query", 400, "GET", "/v1/offers?colour=red"),
        ("malformed-query", 400, "GET", "/v1/matches?node=rio"),
        ("invalid-input", 400, "GET", "/v1/events?after=18446744073709551615"),
        ("unsupported-media-type", 415, "POST", "/v1/offers"),
    ] {
        let request = Request::builder().method(method).uri(path).body(Body::from("{}")).unwrap();
        let (got, answer) = market.call(request).await;
        assert_eq!((got.as_u16(), problem(&answer).name()), (status, name), "{method} {path}");
    }
    let (_, metrics) = market.call(Request::get("/metrics").body(Body::empty()).unwrap()).await;
    assert!(metrics.contains("marketplace_problems_total{name=\"malformed-body\"} 6"), "{metrics}");
    assert!(metrics.contains("marketplace_statements_total{name=\"node_record\"} 2"), "{metrics}");
}

#[tokio::test]
async fn lists_go_by_cursor() {
    let (market, rio, patras) = open_market().await;
    let mut ids = Vec::new();
    for nonce in 0..7 {
        let offer = Envelope::sign(&patras.offer(nonce, market.now()), &patras.node);
        market.send::<Listing>(Method::POST, "/v1/offers", &offer).await;
        ids.push(offer.id());
    }
    let mut seen = Vec::new();
    let mut path = "/v1/offers?limit=3".to_owned();
    loop {
        let page: Page<Listing> = market.get(&path).await;
        seen.extend(page.items.iter().map(|l| l.id));
        let Some(next) = page.next else { break };
        path = format!("/v1/offers?limit=3&cursor={next}");
    }
    assert_eq!(seen, ids);
    assert!(market.get::<Page<Listing>>(&format!("/v1/offers?node={}", rio.id())).await.items.is_empty());
    assert_eq!(
        market.get::<Page<Listing>>(&format!("/v1/offers?owner={}&state=open", patras.owner.owner_id())).await.items.len(),
        7
    );
    assert_eq!(market.get::<Page<Node>>("/v1/nodes?role=edge").await.items.len(), 2);
}

#[tokio::test]
async fn what_one_caller_may_use_is_limited() {
    let limits = Limits {
        listings_per_node_max: 2,
        nodes_per_owner_max: 1,
        nodes_max: 2,
        requests_per_second_max: 1,
        requests_burst_max: 2,
        ..Limits::default()
    };
    let market = market_with(limits, Arc::new(Memory::default())).await;
    let rio = Party::new(1);
    market.register(&rio).await;
    let second = Party { node: Party::new(3).node, owner: rio.owner.clone() };
    assert_eq!(
        market.refusal(Method::PUT, &format!("/v1/nodes/{}", second.id()), &second.signed_record(1)).await,
        (429, "limit-reached".into())
    );
    market.register(&Party::new(4)).await;
    let third = Party::new(5);
    assert_eq!(
        market.refusal(Method::PUT, &format!("/v1/nodes/{}", third.id()), &third.signed_record(1)).await,
        (429, "limit-reached".into())
    );
    let demand = |nonce| Envelope::sign(&rio.demand(nonce, market.now()), &rio.node);
    for nonce in 0..2 {
        assert_eq!(market.send::<Listing>(Method::POST, "/v1/demands", &demand(nonce)).await.0, StatusCode::CREATED);
    }
    assert_eq!(market.refusal(Method::POST, "/v1/demands", &demand(2)).await, (429, "limit-reached".into()));
    assert_eq!(
        market.send::<Listing>(Method::POST, "/v1/demands", &demand(1)).await.0,
        StatusCode::OK,
        "known ones are no new ones"
    );

    let from = |last| {
        let mut request = Request::get("/healthz").body(Body::empty()).unwrap();
        request.extensions_mut().insert(ConnectInfo(std::net::SocketAddr::from(([192, 0, 2, last], 999))));
        request
    };
    assert_eq!(market.call(from(1)).await.0, StatusCode::OK);
    assert_eq!(market.call(from(1)).await.0, StatusCode::OK);
    let (status, body) = market.call(from(1)).await;
    assert_eq!((status.as_u16(), problem(&body).name()), (429, "too-many-requests"));
    assert_eq!(market.call(from(2)).await.0, StatusCode::OK, "another address");
    market.clock.advance(Millis::from_secs(1));
    assert_eq!(market.call(from(1)).await.0, StatusCode::OK);
}

/// Reads SSE text until `count` events came; (id, kind) of each.
async fn read_events(body: &mut axum::body::BodyDataStream, count: usize) -> Vec<(u64, String)> {
    let mut text = String::new();
    let read = async {
        // Comments that keep the stream alive do not count.
        while text.split_inclusive("\n\n").filter(|b| b.contains("id: ") && b.ends_with("\n\n")).count() < count {
            text.push_str(std::str::from_utf8(&body.next().await.expect("the stream goes on").unwrap()).unwrap());
        }
    };
    tokio::time::timeout(Duration::from_secs(10), read).await.expect("events come");
    let field = |block: &str, name: &str| block.lines().find_map(|l| l.strip_prefix(name)).map(str::to_owned).unwrap();
    text.split("\n\n").filter(|b| b.contains("id: ")).map(|b| (field(b, "id: ").parse().unwrap(), field(b, "event: "))).collect()
}

#[tokio::test]
async fn events_are_resumed_where_they_were_left() {
    let (market, rio, patras) = open_market().await;
    let open = |path: String, last: Option<u64>| {
        let mut request = Request::get(path);
        if let Some(last) = last {
            request = request.header("Last-Event-ID", last.to_string());
        }
        let router = market.router.clone();
        async move { router.oneshot(request.body(Body::empty()).unwrap()).await.unwrap() }
    };
    let live = open("/v1/events".into(), None).await;
    assert_eq!(live.headers()["content-type"], "text/event-stream");
    let mut live = live.into_body().into_data_stream();
    let (offer, _) = market.list_pair(&patras, &rio).await;
    market.service.clear().await.unwrap();
    market.send::<Listing>(Method::POST, "/v1/withdrawals", &patras.withdrawal(offer)).await;
    market.clock.advance(HOUR);
    market.service.expire().await.unwrap();
    let seen = read_events(&mut live, 6).await;
    let kinds: Vec<_> = seen.iter().map(|(_, kind)| kind.as_str()).collect();
    assert_eq!(kinds, ["listed", "listed", "matched", "withdrawn", "released", "expired"]);
    let mut resumed = open("/v1/events".into(), Some(seen[2].0)).await.into_body().into_data_stream();
    assert_eq!(read_events(&mut resumed, 3).await, seen[3..]);
    let mut of_patras = open(format!("/v1/events?after=0&node={}", patras.id()), None).await.into_body().into_data_stream();
    let kinds: Vec<_> = read_events(&mut of_patras, 4).await.into_iter().map(|(_, kind)| kind).collect();
    assert_eq!(kinds, ["listed", "matched", "withdrawn", "released"]);

    let (_, ready) = market.call(Request::get("/readyz").body(Body::empty()).unwrap()).await;
    assert_eq!(ready, "ok\n");
    market.stop.send_replace(true);
    let (status, body) = market.call(Request::get("/readyz").body(Body::empty()).unwrap()).await;
    assert_eq!((status.as_u16(), problem(&body).name()), (503, "unavailable"));
    let rest = tokio::time::timeout(Duration::from_secs(10), live.count()).await.expect("streams end when the process drains");
    assert_eq!(rest, 0);
}

#[tokio::test]
async fn event_streams_are_limited() {
    let market = market_with(Limits { event_streams_max: 1, ..Limits::default() }, Arc::new(Memory::default())).await;
    let open = || market.router.clone().oneshot(Request::get("/v1/events").body(Body::empty()).unwrap());
    let first = open().await.unwrap();
    assert_eq!(open().await.unwrap().status(), StatusCode::SERVICE_UNAVAILABLE);
    drop(first);
    assert_eq!(open().await.unwrap().status(), StatusCode::OK, "its place is free again");
}

/// The document in `docs/` is what the code says; `UPDATE_GOLDEN=1` rewrites it.
#[tokio::test]
async fn openapi_is_as_published() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/openapi/marketplace.json");
    let document = openapi();
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::create_dir_all(std::path::Path::new(path).parent().unwrap()).unwrap();
        std::fs::write(path, &document).unwrap();
    }
    let published = std::fs::read_to_string(path).unwrap_or_default();
    assert!(published == document, "docs/openapi/marketplace.json is not what the code says: run this test with UPDATE_GOLDEN=1");
    let (status, served) = market().await.call(Request::get("/openapi.json").body(Body::empty()).unwrap()).await;
    assert_eq!((status, served), (StatusCode::OK, document));
    let document: Value = serde_json::from_str(&published).unwrap();
    assert_eq!(document["openapi"], "3.1.0");
    assert!(document["paths"]["/v1/matches/{id}/contract"]["put"].is_object());
}
