//! The socket's owner, on loopback with real datagrams.

mod common;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::running::{LONG, loopback, receive, socket};
use common::{GATEWAY, GROUP, Mote, pull, push, uplinks};
use contracts::ids::Epoch;
use kit::clock::Clock;
use lora_bridge::server::{self, BridgeHandle, Error, NamedTap};
use lora_bridge::{Bridge, Config, Mode, Output, Uplink};
use tokio::net::UdpSocket;
use tokio::sync::mpsc::Receiver;
use tokio::time::timeout;

struct Rig {
    bridge: BridgeHandle,
    outputs: Receiver<Vec<Output>>,
    lease: Arc<AtomicBool>,
    /// Two sockets, as forwarders have them.
    up: UdpSocket,
    down: UdpSocket,
}

impl Rig {
    async fn new(motes: &[Mote]) -> Self {
        let lease = Arc::new(AtomicBool::new(true));
        let holds = Arc::clone(&lease);
        let socket_of_bridge = server::bind(loopback()).await.expect("a port");
        let check: server::Lease =
            Arc::new(move |group, epoch| group == GROUP && epoch == Epoch(1) && holds.load(Ordering::SeqCst));
        let (bridge, outputs) = server::spawn(socket_of_bridge, Bridge::new(Config::default()), Clock::system(), check);
        let address = bridge.address().expect("bound");
        let rig = Self { bridge, outputs, lease, up: socket(address).await, down: socket(address).await };
        rig.bridge.register(GROUP, motes.iter().map(Mote::session).collect()).await.expect("running");
        rig.down.send(&pull(GATEWAY)).await.expect("loopback");
        assert_eq!(receive(&rig.down).await, [2, 7, 7, 4]);
        rig
    }

    async fn serving(motes: &[Mote]) -> Self {
        let mut rig = Self::new(motes).await;
        let mode = Mode::Serving { epoch: Epoch(1), foreign_lease_end: None };
        rig.bridge.custody(GROUP, mode).await.expect("running");
        let wants =
            rig.until(|output| if let Output::ReserveWanted { entries, .. } = output { Some(entries) } else { None }).await;
        rig.bridge.reserved(wants).await.expect("running");
        rig
    }

    async fn until<T>(&mut self, find: impl Fn(Output) -> Option<T>) -> T {
        loop {
            let batch = timeout(LONG, self.outputs.recv()).await.expect("in time").expect("running");
            if let Some(found) = batch.into_iter().find_map(&find) {
                return found;
            }
        }
    }

    async fn uplink(&mut self) -> Uplink {
        self.until(|output| if let Output::Uplink(uplink) = output { Some(uplink) } else { None }).await
    }
}

/// A node that starts anew knows its insured devices only after a while; their frames of that while are not lost.
#[tokio::test]
async fn what_comes_before_the_sessions_are_known_waits() {
    let mote = Mote::new(1);
    let socket_of_bridge = server::bind(loopback()).await.expect("a port");
    let (bridge, outputs) =
        server::spawn_waiting(socket_of_bridge, Bridge::new(Config::default()), Clock::system(), Arc::new(|_, _| true));
    let address = bridge.address().expect("bound");
    let lease = Arc::new(AtomicBool::new(true));
    let mut rig = Rig { bridge, outputs, lease, up: socket(address).await, down: socket(address).await };
    rig.up.send(&push(GATEWAY, &[(1_000, mote.frame(0, false))])).await.expect("loopback");
    // An answer of the bridge: it had its turn.
    let stats = rig.bridge.stats().await.expect("running");
    assert_eq!((stats.datagrams, stats.drops.values().sum::<u64>()), (0, 0));
    rig.bridge.register(GROUP, vec![mote.session()]).await.expect("running");
    rig.bridge.custody(GROUP, Mode::Following).await.expect("running");
    assert_eq!(rig.bridge.stats().await.expect("running").datagrams, 0);
    rig.bridge.listen().await.expect("running");
    assert_eq!(rig.uplink().await.event, mote.event(0));
    assert_eq!(receive(&rig.up).await, [2, 0x12, 0x34, 1]);
}

#[tokio::test]
async fn a_confirmed_uplink_from_socket_to_socket() {
    let mote = Mote::new(1);
    let mut rig = Rig::serving(std::slice::from_ref(&mote)).await;
    rig.up.send(&push(GATEWAY, &[(1_000, mote.frame(0, true))])).await.expect("loopback");
    assert_eq!(receive(&rig.up).await, [2, 0x12, 0x34, 1]);
    let uplink = rig.uplink().await;
    assert_eq!(uplink.event, mote.event(0));
    rig.bridge.committed(vec![uplink.event]).await.expect("running");
    let downlink = receive(&rig.down).await;
    let json: serde_json::Value = serde_json::from_slice(&downlink[4..]).expect("JSON");
    assert_eq!((downlink[3], &json["txpk"]["tmst"]), (3, &1_001_000.into()), "to the socket that pulls");

    // The lease is looked at when the downlink leaves.
    rig.lease.store(false, Ordering::SeqCst);
    rig.up.send(&push(GATEWAY, &[(9_000_000, mote.frame(1, true))])).await.expect("loopback");
    let uplink = rig.uplink().await;
    rig.bridge.committed(vec![uplink.event]).await.expect("running");
    let stats = rig.bridge.stats().await.expect("running");
    assert_eq!((stats.server.lease_withheld, stats.answers_rx1), (1, 2));
    rig.lease.store(true, Ordering::SeqCst);
    rig.up.send(&push(GATEWAY, &[(18_000_000, mote.frame(2, true))])).await.expect("loopback");
    let uplink = rig.uplink().await;
    rig.bridge.committed(vec![uplink.event]).await.expect("running");
    let json: serde_json::Value = serde_json::from_slice(&receive(&rig.down).await[4..]).expect("JSON");
    assert_eq!(json["txpk"]["tmst"], 19_000_000, "the withheld one never left");

    let counters = rig.bridge.release(GROUP, Mode::Standby).await.expect("running");
    assert_eq!(counters, [(mote.device, 3)], "the withheld counter is not used again");
    assert_eq!(rig.bridge.export(GROUP, 0, 10).await.expect("running").0.len(), 1);
}

#[tokio::test]
async fn time_passes_without_datagrams() {
    let mote = Mote::new(1);
    let mut rig = Rig::new(std::slice::from_ref(&mote)).await;
    rig.up.send(&push(GATEWAY, &[(1_000, mote.frame(0, false))])).await.expect("loopback");
    let offer = rig.until(|output| if let Output::OfferDue(offer) = output { Some(offer) } else { None }).await;
    assert_eq!(offer.event, mote.event(0));
}

#[tokio::test]
async fn a_consumer_that_lags_costs_datagrams_and_not_memory() {
    let motes: Vec<Mote> = (0..500).map(Mote::new).collect();
    let mut rig = Rig::serving(&motes).await;
    let mut stats = rig.bridge.stats().await.expect("running");
    let mut f_cnt = 0;
    while stats.server.consumer_lagging == 0 {
        for chunk in motes.chunks(8) {
            let packets: Vec<_> = chunk.iter().map(|mote| (1, mote.frame(f_cnt, false))).collect();
            rig.up.send(&push(GATEWAY, &packets)).await.expect("loopback");
        }
        f_cnt += 1;
        stats = rig.bridge.stats().await.expect("commands go on");
        assert!(stats.uplinks_live < 60_000, "bounded: {stats:?}");
    }
    rig.down.send(&pull(GATEWAY)).await.expect("loopback");
    assert_eq!(receive(&rig.down).await, [2, 7, 7, 4], "gateways stay connected");
    let mut taken = 0;
    while let Ok(Some(batch)) = timeout(Duration::from_millis(200), rig.outputs.recv()).await {
        taken += uplinks(&batch).len() as u64;
    }
    stats = rig.bridge.stats().await.expect("running");
    assert_eq!(taken, stats.uplinks_live, "what was taken in comes out");
    rig.up.send(&push(GATEWAY, &[(1, motes[0].frame(f_cnt + 1, false))])).await.expect("loopback");
    assert_eq!(rig.uplink().await.f_cnt, f_cnt + 1);
}

#[tokio::test]
async fn a_tap_is_named_and_ends_with_the_bridge() {
    let mote = Mote::new(1);
    let rig = Rig::new(std::slice::from_ref(&mote)).await;
    let other = UdpSocket::bind(loopback()).await.expect("a port");
    let port = other.local_addr().expect("bound").port();
    let taps = vec![NamedTap { server: format!("localhost:{port}"), gateways: vec![GATEWAY] }];
    let kept = tokio::spawn(server::keep_taps(&rig.bridge, taps));
    let datagram = push(GATEWAY, &[(1, mote.frame(0, false))]);
    // The name is resolved meanwhile: the first datagrams may be too early for it.
    let tapped = timeout(LONG, async {
        let mut bytes = vec![0; 2_000];
        let mut tick = tokio::time::interval(Duration::from_millis(20));
        loop {
            tokio::select! {
                biased;
                received = other.recv(&mut bytes) => return bytes[..received.expect("a datagram")].to_vec(),
                _ = tick.tick() => {
                    rig.up.send(&datagram).await.expect("loopback");
                }
            }
        }
    });
    assert_eq!(tapped.await.expect("in time"), datagram);
    assert!(!kept.is_finished());
    let Rig { bridge, mut outputs, .. } = rig;
    drop(bridge);
    timeout(LONG, async { while outputs.recv().await.is_some() {} }).await.expect("a tap does not keep the bridge alive");
    kept.abort();
}

#[tokio::test]
async fn a_port_in_use_is_named() {
    let rig = Rig::new(&[]).await;
    let address = rig.bridge.address().expect("bound");
    let error = server::bind(address).await.expect_err("in use");
    assert!(matches!(error, Error::AddressInUse { address: named } if named == address));
    assert!(error.to_string().contains("in use"));
    let error = server::bind(SocketAddr::from(([192, 0, 2, 1], 9))).await.expect_err("not ours");
    assert!(matches!(error, Error::Bind { .. }));
}

#[tokio::test]
async fn the_bridge_stops_with_its_last_handle_and_says_so() {
    let Rig { bridge, mut outputs, .. } = Rig::new(&[]).await;
    let other = bridge.clone();
    drop(bridge);
    other.stats().await.expect("one handle is left");
    drop(other);
    assert!(timeout(LONG, outputs.recv()).await.expect("in time").is_none());

    let Rig { bridge, outputs, .. } = Rig::new(&[Mote::new(1)]).await;
    drop(outputs);
    // Without a consumer it stops at the first output it has to hand on.
    let mode = Mode::Serving { epoch: Epoch(1), foreign_lease_end: None };
    bridge.custody(GROUP, mode).await.expect("applied");
    timeout(LONG, async { while bridge.stats().await.is_ok() {} }).await.expect("in time");
    assert!(matches!(bridge.stats().await, Err(Error::Stopped)));
}

/// Gateways pull every five to ten seconds; a device that asks for an answer meanwhile gets it by the address that the process before stored.
#[tokio::test]
async fn after_a_restart_a_confirmed_uplink_is_answered_before_the_gateway_pulls() {
    let mote = Mote::new(1);
    let before = Rig::new(std::slice::from_ref(&mote)).await;
    let stored = serde_json::to_vec(&before.bridge.routes().await.expect("running")).expect("JSON");
    let Rig { bridge, outputs, down: gateway, .. } = before;
    let address = bridge.address().expect("bound");
    drop((bridge, outputs));
    // The process is gone, and with it its socket; the gateway's stays.
    let free = async {
        loop {
            match server::bind(address).await {
                Ok(socket) => return socket,
                Err(Error::AddressInUse { .. }) => tokio::task::yield_now().await,
                Err(error) => panic!("{error}"),
            }
        }
    };
    let socket_of_bridge = timeout(LONG, free).await.expect("in time");
    let (bridge, outputs) =
        server::spawn_waiting(socket_of_bridge, Bridge::new(Config::default()), Clock::system(), Arc::new(|_, _| true));
    let routes = serde_json::from_slice(&stored).expect("its own JSON");
    bridge.apply(lora_bridge::Input::Routes { routes }).await.expect("running");
    bridge.register(GROUP, vec![mote.session()]).await.expect("running");
    let mode = Mode::Serving { epoch: Epoch(1), foreign_lease_end: None };
    bridge.custody(GROUP, mode).await.expect("running");
    bridge.listen().await.expect("running");
    let mut rig = Rig { bridge, outputs, lease: Arc::new(AtomicBool::new(true)), up: socket(address).await, down: gateway };
    let wants = rig.until(|output| if let Output::ReserveWanted { entries, .. } = output { Some(entries) } else { None }).await;
    rig.bridge.reserved(wants).await.expect("running");
    rig.up.send(&push(GATEWAY, &[(1_000, mote.frame(0, true))])).await.expect("loopback");
    let event = rig.until(|output| if let Output::Uplink(uplink) = output { Some(uplink.event) } else { None }).await;
    rig.bridge.committed(vec![event]).await.expect("running");
    let bytes = receive(&rig.down).await;
    assert_eq!(bytes[3], 3, "PULL_RESP, and nobody pulled");
    let json: serde_json::Value = serde_json::from_slice(&bytes[4..]).expect("JSON");
    assert_eq!(json["txpk"]["tmst"], 1_001_000);
    let status = rig.bridge.gateways().await.expect("running");
    assert_eq!((status[0].gateway, status[0].counts.pull_data), (GATEWAY, 0));
}
