//! A running bridge on a real socket, the two sockets of a gateway, and an owner that does at once what the bridge asks of it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use contracts::ids::Epoch;
use contracts::time::Millis;
use kit::clock::Clock;
use lora_bridge::server::{self, BridgeHandle};
use lora_bridge::{Bridge, Config, Mode, Output, Uplink};
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::{GATEWAY, GROUP, Mote, pull, push};

/// What must happen happens within this.
pub const LONG: Duration = Duration::from_secs(20);

pub fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

pub async fn socket(to: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind(loopback()).await.expect("a port");
    socket.connect(to).await.expect("loopback");
    socket
}

pub async fn receive(socket: &UdpSocket) -> Vec<u8> {
    let mut bytes = vec![0; 2_000];
    let len = timeout(LONG, socket.recv(&mut bytes)).await.expect("in time").expect("a datagram");
    bytes.truncate(len);
    bytes
}

/// It serves [`GROUP`] by a clock that the test moves.
pub struct Running {
    pub bridge: BridgeHandle,
    pub clock: Clock,
    /// Two sockets, as forwarders have them.
    pub up: UdpSocket,
    pub down: UdpSocket,
    uplinks: mpsc::UnboundedReceiver<Uplink>,
    tmst: u32,
}

impl Running {
    pub async fn serving(config: Config, motes: &[Mote]) -> Self {
        let clock = Clock::manual();
        clock.advance(Millis(1_000_000));
        let listening = server::bind(loopback()).await.expect("a port");
        let holds: server::Lease = Arc::new(|group, epoch| group == GROUP && epoch == Epoch(1));
        let (bridge, outputs) = server::spawn(listening, Bridge::new(config), clock.clone(), holds);
        let address = bridge.address().expect("bound");
        let (heard, uplinks) = mpsc::unbounded_channel();
        tokio::spawn(own(bridge.clone(), outputs, heard));
        let mut running = Self { bridge, clock, up: socket(address).await, down: socket(address).await, uplinks, tmst: 1_000 };
        running.bridge.register(GROUP, motes.iter().map(Mote::session).collect()).await.expect("running");
        let mode = Mode::Serving { epoch: Epoch(1), foreign_lease_end: None };
        running.bridge.custody(GROUP, mode).await.expect("running");
        running.pull().await;
        running
    }

    /// Another gateway's socket.
    pub async fn other_gateway(&self) -> UdpSocket {
        socket(self.bridge.address().expect("bound")).await
    }

    /// The gateway asks for downlinks; the bridge wakes and does what is due.
    pub async fn pull(&mut self) {
        self.down.send(&pull(GATEWAY)).await.expect("loopback");
    }

    /// The gateway heard a frame; returns when the bridge has looked at it, with the gateway's time of it.
    pub async fn hear(&mut self, phy: &[u8]) -> u32 {
        self.tmst = self.tmst.wrapping_add(20_000);
        self.up.send(&push(GATEWAY, &[(self.tmst, phy.to_vec())])).await.expect("loopback");
        assert_eq!(receive(&self.up).await[3], 1, "PUSH_ACK");
        self.tmst
    }

    /// The next uplink that the owner was given and committed.
    pub async fn uplink(&mut self) -> Uplink {
        timeout(LONG, self.uplinks.recv()).await.expect("in time").expect("running")
    }

    /// The next downlink for the gateway, as JSON; acknowledgements are passed over.
    pub async fn downlink(&mut self) -> (Vec<u8>, serde_json::Value) {
        loop {
            let bytes = receive(&self.down).await;
            if bytes[3] == 3 {
                let json = serde_json::from_slice::<serde_json::Value>(&bytes[4..]).expect("JSON");
                return (bytes, json["txpk"].clone());
            }
        }
    }

    /// A confirmed uplink is delivered, and acknowledged at its time.
    pub async fn assert_served(&mut self, mote: &Mote, f_cnt: u32) {
        let tmst = self.hear(&mote.frame(f_cnt, true)).await;
        let uplink = self.uplink().await;
        assert_eq!((uplink.device, uplink.f_cnt), (mote.device, f_cnt));
        let wanted = [1_000_000, 2_000_000].map(|delay| serde_json::json!(tmst.wrapping_add(delay)));
        while !wanted.contains(&self.downlink().await.1["tmst"]) {}
    }
}

async fn own(bridge: BridgeHandle, mut outputs: mpsc::Receiver<Vec<Output>>, heard: mpsc::UnboundedSender<Uplink>) {
    while let Some(batch) = outputs.recv().await {
        for output in batch {
            let done = match output {
                Output::Uplink(uplink) => {
                    let committed = bridge.committed(vec![uplink.event]).await;
                    let _nobody_looks = heard.send(uplink);
                    committed
                }
                Output::ReserveWanted { entries, .. } => bridge.reserved(entries).await,
                Output::RecordWanted { record, .. } => bridge.recorded(record).await,
                _ => Ok(()),
            };
            if done.is_err() {
                return;
            }
        }
    }
}
