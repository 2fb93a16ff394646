//! Endpoints on loopback: requests, streams, datagrams, refusals, floods, dead and restarted peers.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::http::{Request, StatusCode};
use axum::routing::{get, post};
use axum::{Extension, Router};
use common::{bind, config, endpoint, id, soon, until};
use contracts::time::Millis;
use http_body_util::BodyExt as _;
use peering::limits::ALPN;
use peering::transport::{DatagramDropped, Error};
use peering::{AddressBook, Endpoint, PeerIdentity, Transport};

fn greeter() -> Router {
    Router::new()
        .route("/whoami", get(|Extension(peer): Extension<PeerIdentity>| async move { peer.0.to_string() }))
        .route("/echo", post(|body: Body| async move { body }))
        .route("/length", post(|body: Bytes| async move { body.len().to_string() }))
}

fn get_request(path: &str) -> Request<Body> {
    Request::get(path).body(Body::empty()).expect("a request")
}

async fn text(body: Body) -> String {
    let bytes = body.collect().await.expect("a whole body").to_bytes();
    String::from_utf8(bytes.to_vec()).expect("text")
}

async fn whoami(from: &dyn Transport, to: &dyn Transport) -> Result<String, Error> {
    let response = soon("answer", from.request(to.me(), get_request("/whoami"))).await?;
    Ok(text(response.into_body()).await)
}

#[tokio::test(flavor = "multi_thread")]
async fn both_sides_ask_and_see_the_proven_key() {
    let book = AddressBook::new();
    let (a, b) = (endpoint(1, &book).await, endpoint(2, &book).await);
    a.serve(greeter());
    assert_eq!(
        soon("503", a.request(b.me(), get_request("/whoami"))).await.expect("answer").status(),
        StatusCode::SERVICE_UNAVAILABLE
    );
    b.serve(greeter());
    assert_eq!(whoami(&a, &b).await.expect("answer"), a.me().to_string());
    assert_eq!(whoami(&b, &a).await.expect("answer"), b.me().to_string(), "over the connection that a dialled");
    assert_eq!(b.counts().dials_failed, 0);
    assert!(b.counts().requests_served >= 2);
    a.close().await;
    b.close().await;
}

/// Every byte goes to the other node and back; what is under way at any time stays within the windows and buffers.
#[tokio::test(flavor = "multi_thread")]
async fn fifty_megabytes_are_streamed_both_ways_and_never_held() {
    const CHUNK_BYTES: usize = 64 << 10;
    const CHUNKS: u64 = 800;
    const UNDER_WAY_BYTES_MAX: u64 = 12 << 20;
    let book = AddressBook::new();
    let (a, b) = (endpoint(1, &book).await, endpoint(2, &book).await);
    b.serve(greeter());
    let sent = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&sent);
    let chunks = futures_util::stream::iter(0..CHUNKS).map(move |n| {
        counted.fetch_add(CHUNK_BYTES as u64, Ordering::SeqCst);
        Ok::<_, std::io::Error>(Bytes::from(vec![(n % 251) as u8; CHUNK_BYTES]))
    });
    let request = Request::post("/echo").body(Body::from_stream(chunks)).expect("a request");
    let mut body = soon("answer", a.request(b.me(), request)).await.expect("answer").into_body();
    let (mut received, mut under_way_max) = (0_u64, 0);
    // A slow reader at first: the sender has to wait.
    tokio::time::sleep(Duration::from_millis(200)).await;
    let stalled_at = sent.load(Ordering::SeqCst);
    while let Some(frame) = soon("next frame", body.frame()).await {
        let data = frame.expect("frame").into_data().expect("data");
        for (offset, byte) in (received..).zip(data.iter()) {
            assert_eq!(u64::from(*byte), offset / CHUNK_BYTES as u64 % 251);
        }
        received += data.len() as u64;
        under_way_max = under_way_max.max(sent.load(Ordering::SeqCst) - received);
    }
    assert_eq!(received, CHUNKS * CHUNK_BYTES as u64);
    assert!(stalled_at < UNDER_WAY_BYTES_MAX, "{stalled_at} bytes were taken while nobody read");
    assert!(under_way_max < UNDER_WAY_BYTES_MAX, "{under_way_max} bytes were under way");
    a.close().await;
    b.close().await;
}
use futures_util::StreamExt as _;

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_not_admitted_gets_nothing() {
    let book = AddressBook::new();
    let mut choosy = config(2, &book);
    choosy.admit = Arc::new(|node| node == id(1));
    let (a, b, stranger) = (endpoint(1, &book).await, bind(choosy).await, endpoint(3, &book).await);
    b.serve(greeter());
    assert!(whoami(&a, &b).await.is_ok());
    let refused = whoami(&stranger, &b).await;
    assert!(matches!(refused, Err(Error::Lost { .. } | Error::Dial { .. })), "{refused:?}");
    until("refusal counted", || b.counts().connections_refused == 1).await;
    assert_eq!(b.counts().requests_served, 1);
    stranger.keep_warm(b.me(), Millis(50));
    let mut state = stranger.peer(b.me());
    soon("alarm at the one turned away", state.wait_for(|state| state.missing)).await.expect("sender");
    assert!(b.peer(stranger.me()).borrow().last_heard.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn another_key_at_the_address_is_no_answer() {
    let (book, wrong) = (AddressBook::new(), AddressBook::new());
    let (a, b) = (endpoint(1, &wrong).await, endpoint(2, &book).await);
    wrong.set(id(9), b.local_address());
    b.serve(greeter());
    let answer = soon("failure", a.request(id(9), get_request("/whoami"))).await;
    assert!(matches!(answer, Err(Error::Dial { .. } | Error::DialTimeout { .. })), "{answer:?}");
    assert!(matches!(a.request(id(8), get_request("/")).await, Err(Error::UnknownAddress(_))));
    assert!(matches!(a.request(a.me(), get_request("/")).await, Err(Error::Myself(_))));
    assert_eq!(b.counts().requests_served, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_in_use_is_an_error_that_names_it() {
    let book = AddressBook::new();
    let a = endpoint(1, &book).await;
    let mut taken = config(2, &book);
    taken.bind = a.local_address().expect("bound");
    let error = Endpoint::bind(taken).await.expect_err("in use").to_string();
    assert!(error.contains(&a.local_address().expect("bound").to_string()), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn datagrams_go_both_ways_and_drops_are_counted() {
    let book = AddressBook::new();
    let (a, b) = (endpoint(1, &book).await, endpoint(2, &book).await);
    let (mut at_a, mut at_b) = (a.take_datagrams().expect("first"), b.take_datagrams().expect("first"));
    assert!(a.take_datagrams().is_none());
    assert_eq!(a.datagram(b.me(), Bytes::from_static(b"early")), Err(DatagramDropped::NotConnected));
    a.keep_warm(b.me(), Millis(100));
    soon("connection", a.peer(b.me()).wait_for(|state| state.connected_since.is_some())).await.expect("sender");
    a.datagram(b.me(), Bytes::from_static(b"there")).expect("sent");
    let there = soon("there", at_b.recv()).await.expect("open");
    assert_eq!((there.from, there.bytes.as_ref()), (a.me(), &b"there"[..]));
    b.datagram(a.me(), Bytes::from_static(b"back")).expect("sent without a dial of b's own");
    assert_eq!(soon("back", at_a.recv()).await.expect("open").bytes.as_ref(), b"back");
    let longest = a.datagram_bytes_max(b.me()).expect("connected");
    assert!(longest >= peering::limits::DATAGRAM_BYTES_MAX, "{longest}");
    a.datagram(b.me(), Bytes::from(vec![0; longest])).expect("sent");
    assert_eq!(soon("longest", at_b.recv()).await.expect("open").bytes.len(), longest);
    assert_eq!(a.datagram(b.me(), Bytes::from(vec![0; 70_000])), Err(DatagramDropped::TooLong));
    let counts = a.counts();
    assert_eq!((counts.datagrams_dropped_not_connected, counts.datagrams_dropped_too_long, counts.datagrams_sent), (1, 1, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_is_held_to_the_rate_and_hurts_nobody_else() {
    const FLOOD: u64 = 30_000;
    let book = AddressBook::new();
    let mut strict = config(2, &book);
    strict.limits.datagrams_per_second_max = 100;
    let (a, b, other) = (endpoint(1, &book).await, bind(strict).await, endpoint(3, &book).await);
    let mut at_b = b.take_datagrams().expect("first");
    for peer in [&a, &other] {
        peer.keep_warm(b.me(), Millis(1_000));
        soon("connection", peer.peer(b.me()).wait_for(|state| state.connected_since.is_some())).await.expect("sender");
    }
    let started = Instant::now();
    for n in 0..FLOOD {
        let _ = a.datagram(b.me(), Bytes::from(n.to_be_bytes().to_vec()));
        if n % 100 == 0 {
            tokio::task::yield_now().await;
        }
    }
    until("drops", || b.counts().datagrams_dropped_rate > 100).await;
    other.datagram(b.me(), Bytes::from_static(b"good")).expect("sent");
    let mut flood = 0_u128;
    loop {
        let datagram = soon("the good one", at_b.recv()).await.expect("open");
        if datagram.from == other.me() {
            break;
        }
        flood += 1;
    }
    let allowed = 200 + started.elapsed().as_millis() / 10 + 1;
    assert!(flood <= allowed, "{flood} of the flood came through, {allowed} may");
    assert_eq!(b.counts().datagrams_dropped_queue_full, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_and_request_rates_have_limits() {
    let book = AddressBook::new();
    let mut strict = config(2, &book);
    strict.limits.request_body_bytes_max = 1_000;
    strict.limits.requests_per_second_max = 10;
    let (a, b) = (endpoint(1, &book).await, bind(strict).await);
    b.serve(greeter());
    let post = |bytes| Request::post("/length").body(Body::from(vec![0_u8; bytes])).expect("a request");
    let fits = soon("fits", a.request(b.me(), post(1_000))).await.expect("answer");
    assert_eq!((fits.status(), text(fits.into_body()).await.as_str()), (StatusCode::OK, "1000"));
    let long = soon("long", a.request(b.me(), post(1_001))).await.expect("answer");
    assert_eq!(long.status(), StatusCode::PAYLOAD_TOO_LARGE);
    let mut refused = 0;
    for _ in 0..40 {
        let answer = soon("answer", a.request(b.me(), get_request("/whoami"))).await.expect("answer");
        refused += u64::from(answer.status() == StatusCode::TOO_MANY_REQUESTS);
    }
    assert!(refused > 0);
    assert_eq!(b.counts().requests_refused_rate, refused);
}

/// A peer that speaks QUIC but not our protocol.
#[tokio::test(flavor = "multi_thread")]
async fn garbage_is_counted_and_dropped_alone() {
    let book = AddressBook::new();
    let b = endpoint(2, &book).await;
    b.serve(greeter());
    let mut at_b = b.take_datagrams().expect("first");
    let raw = iroh::Endpoint::builder(iroh::endpoint::presets::Minimal)
        .secret_key(iroh::SecretKey::from_bytes(&[7; 32]))
        .bind_addr(common::loopback())
        .expect("address")
        .bind()
        .await
        .expect("bound");
    let key = iroh::EndpointId::from_bytes(b.me().as_bytes()).expect("key");
    let address = iroh::EndpointAddr::new(key).with_ip_addr(b.local_address().expect("bound"));
    let connection = soon("connection", raw.connect(address.clone(), ALPN)).await.expect("connected");
    for garbage in [&b""[..], &[0], &[1, 2, 3], &[99; 1_000]] {
        connection.send_datagram(Bytes::from_static(garbage)).expect("sent");
    }
    connection.send_datagram(Bytes::from_static(b"\x02good")).expect("sent");
    assert_eq!(soon("good", at_b.recv()).await.expect("open").bytes.as_ref(), b"good");
    until("all counted", || b.counts().datagrams_dropped_malformed == 4).await;
    for garbage in [&b"\r\n\r\nnonsense"[..], b"GET /", b"POST /length HTTP/1.1\r\ncontent-length: x\r\n\r\n", &[0xff; 70_000]] {
        let (mut send, mut recv) = soon("stream", connection.open_bi()).await.expect("stream");
        let _ = send.write_all(garbage).await;
        let _ = send.finish();
        let _ = soon("end", recv.read_to_end(100_000)).await;
    }
    assert!(connection.close_reason().is_none(), "the connection outlives a bad stream");
    let wrong_protocol = soon("refusal", raw.connect(address, b"antirio/peer/0")).await;
    assert!(wrong_protocol.is_err());
    raw.close().await;
}

/// Runs an endpoint whose process can die: without a word to anybody.
fn mortal(number: u8, addresses: &AddressBook, bind_to: Option<std::net::SocketAddr>) -> (tokio::runtime::Runtime, Endpoint) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("runtime");
    let mut config = config(number, addresses);
    config.bind = bind_to.unwrap_or(config.bind);
    let endpoint = std::thread::scope(|scope| scope.spawn(|| runtime.block_on(bind(config))).join().expect("bound"));
    (runtime, endpoint)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_peer_is_noticed_by_pings_and_a_restarted_one_is_back_at_once() {
    const EVERY: Millis = Millis(150);
    let book = AddressBook::new();
    let a = endpoint(1, &book).await;
    let (runtime, b) = mortal(2, &book, None);
    let (b_id, b_address) = (b.me(), b.local_address());
    b.serve(greeter());
    a.keep_warm(b_id, EVERY);
    let mut state = a.peer(b_id);
    soon("a ping answered", async {
        while state.borrow().round_trip_us.is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    assert!(!state.borrow_and_update().missing);

    runtime.shutdown_background();
    drop(b);
    let died = Instant::now();
    soon("alarm", state.wait_for(|state| state.missing)).await.expect("sender");
    let noticed = died.elapsed();
    assert!(noticed < Duration::from_millis(4 * EVERY.0 + 300), "noticed only after {noticed:?}");
    let asked = Instant::now();
    let answer = soon("failure", a.request(b_id, get_request("/whoami"))).await;
    assert!(matches!(answer, Err(Error::DialTimeout { .. } | Error::Dial { .. })), "{answer:?}");
    assert!(asked.elapsed() < Duration::from_millis(2_500), "failed only after {:?}", asked.elapsed());

    let (runtime, b) = mortal(2, &book, b_address);
    b.serve(greeter());
    let back = Instant::now();
    {
        let _inside = runtime.enter();
        b.keep_warm(a.me(), EVERY);
    }
    soon("end of the alarm", state.wait_for(|state| !state.missing)).await.expect("sender");
    assert!(back.elapsed() < Duration::from_millis(1_500), "back only after {:?}", back.elapsed());
    assert_eq!(whoami(&a, &b).await.expect("answer"), a.me().to_string());
    runtime.shutdown_background();
}

/// Both dial each other at the same time, for a while, and again: there is always a connection and never a pile of them.
#[tokio::test(flavor = "multi_thread")]
async fn simultaneous_dials_end_in_working_connections() {
    let book = AddressBook::new();
    let (a, b) = (endpoint(1, &book).await, endpoint(2, &book).await);
    let (mut at_a, mut at_b) = (a.take_datagrams().expect("first"), b.take_datagrams().expect("first"));
    a.keep_warm(b.me(), Millis(30));
    b.keep_warm(a.me(), Millis(30));
    for round in 0..10_u8 {
        soon("connections", async {
            for (from, to) in [(&a, &b), (&b, &a)] {
                from.peer(to.me()).wait_for(|state| state.connected_since.is_some() && !state.missing).await.expect("sender");
            }
        })
        .await;
        a.datagram(b.me(), Bytes::from(vec![round])).expect("sent");
        b.datagram(a.me(), Bytes::from(vec![round])).expect("sent");
        assert_eq!(soon("at b", at_b.recv()).await.expect("open").bytes.as_ref(), [round]);
        assert_eq!(soon("at a", at_a.recv()).await.expect("open").bytes.as_ref(), [round]);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    a.let_cool(b.me());
    assert!(!a.peer(b.me()).borrow().missing);
}
