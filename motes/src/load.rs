//! Load: more frames than motes may send by the rules of the air, from many gateways, at an even pace.
//!
//! Nothing is judged here but what was sent and which datagrams were acknowledged. Motes send in turn, unconfirmed, at SF7, without listening;
//! who wants windows, duty cycles and losses takes [`crate::world`]. Each gateway looks for new packets every 10 ms, as Semtech's forwarder
//! does, not all at the same moment, and sends what it has in datagrams of up to `batch` packets.

use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use crate::airtime::SpreadingFactor;
use crate::fleet::{DevAddr, Eui64, Fleet};
use crate::frame::{Header, Reading, Session, build_data};
use crate::gateway::Clock;
use crate::gwmp::{self, DATAGRAM_BYTES_MAX, ServerDatagram};
use crate::mote::CHANNELS_HZ;
use crate::radio::Reception;
use crate::seed::{Topic, low_u16, low_u32};

/// Interval of a forwarder's look into its concentrator.
const FETCH_US: u64 = 10_000;
/// Acknowledgements may come this long after the last datagram.
const LAST_ACKS: Duration = Duration::from_secs(1);
/// Most gateways: each has a socket.
pub const GATEWAYS_MAX: u16 = 1_000;
/// Most packets in a datagram: what fits into 32 KiB.
pub const BATCH_MAX: usize = 100;
/// First EUI of these gateways.
const EUI_FIRST: u64 = 0xaa55_5a00_0001_0000;

/// Why load could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A value outside its limits.
    #[error("{0}")]
    Config(&'static str),
    /// A socket could not be made.
    #[error("socket")]
    Socket(#[from] io::Error),
}

/// What is to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadConfig {
    /// Where to.
    pub server: SocketAddr,
    /// Frames per second, each counted once however many gateways hear it.
    pub rate: u32,
    /// Frames in all.
    pub frames: u64,
    /// The first mote that sends; those before it are left to others.
    pub mote_first: usize,
    /// Counter of the motes' first frames.
    pub f_cnt_first: u32,
    /// Gateways.
    pub gateways: u16,
    /// Gateways that hear each frame.
    pub copies: u16,
    /// Packets in one datagram at most.
    pub batch: usize,
}

impl LoadConfig {
    fn check(&self) -> Result<(), Error> {
        let unless = |holds: bool, reason| if holds { Ok(()) } else { Err(Error::Config(reason)) };
        unless(self.rate > 0, "no frames per second")?;
        unless((1..=GATEWAYS_MAX).contains(&self.gateways), "1 to 1,000 gateways")?;
        unless((1..=self.gateways).contains(&self.copies), "a frame is heard by one gateway to all of them")?;
        unless((1..=BATCH_MAX).contains(&self.batch), "1 to 100 packets in a datagram")
    }

    /// The mote and the counter of the n-th frame.
    #[must_use]
    pub fn frame(&self, motes: usize, number: u64) -> (usize, u32) {
        let motes = motes.saturating_sub(self.mote_first).max(1) as u64;
        let mote = self.mote_first + usize::try_from(number % motes).unwrap_or(0);
        (mote, self.f_cnt_first.wrapping_add(low_u32(number / motes)))
    }
}

/// What the n-th mote measures for the frame with this counter.
#[must_use]
pub fn reading(fleet: &Fleet, mote: usize, f_cnt: u32) -> Reading {
    let drawn = fleet.seed().below(Topic::Temperature, &[mote as u64, u64::from(f_cnt)], 500);
    Reading { number: f_cnt.wrapping_add(1_000), decicelsius: i16::try_from(drawn).unwrap_or(0) - 100 }
}

/// What was sent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// When the first datagram with each frame went, wall-clock microseconds, by number of the frame; 0 for one that the socket refused.
    pub first_us: Vec<u64>,
    /// From the first datagram to the last.
    pub elapsed_us: u64,
    /// Packets, copies included.
    pub packets: u64,
    /// `PUSH_DATA`.
    pub datagrams: u64,
    /// Of these, answered by `PUSH_ACK`.
    pub acknowledged: u64,
    /// Datagrams that the socket refused.
    pub refused: u64,
    /// How far this generator was behind its pace at most.
    pub lag_us_max: u64,
    /// Time that this generator spent on a core; nothing where the kernel does not say.
    pub on_core_us: Option<u64>,
}

struct Gateway {
    eui: Eui64,
    socket: UdpSocket,
    pending: VecDeque<(u64, Reception)>,
    tokens: u16,
}

/// Sends at the pace of `config` until all frames are sent, on this thread.
///
/// # Errors
/// [`Error`]; what a socket refuses later is counted.
pub fn send(fleet: &Fleet, clock: &Clock, config: &LoadConfig) -> Result<Sent, Error> {
    config.check()?;
    let mut gateways = (0..config.gateways).map(|index| bind(config, index)).collect::<Result<Vec<_>, Error>>()?;
    let mut sent = Sent { first_us: vec![0; usize::try_from(config.frames).unwrap_or(0)], ..Sent::default() };
    let (on_core, start_us) = (on_core_us(), clock.now_us());
    let due_us = |number: u64| start_us + number * 1_000_000 / u64::from(config.rate);
    let mut next = 0;
    let mut turn = 0_u64;
    while next < config.frames || gateways.iter().any(|gateway| !gateway.pending.is_empty()) {
        let at_us = start_us + turn * FETCH_US / u64::from(config.gateways);
        wait_until(clock, at_us);
        sent.lag_us_max = sent.lag_us_max.max(clock.now_us().saturating_sub(at_us));
        while next < config.frames && due_us(next) <= at_us {
            hear(fleet, config, next, due_us(next), &mut gateways);
            next += 1;
        }
        let index = usize::try_from(turn % u64::from(config.gateways)).unwrap_or(0);
        push(&mut gateways[index], clock, config, &mut sent);
        sent.acknowledged += take_acks(&gateways[index]);
        turn += 1;
    }
    sent.elapsed_us = clock.now_us() - start_us;
    let until_us = clock.now_us() + u64::try_from(LAST_ACKS.as_micros()).unwrap_or(0);
    while sent.acknowledged < sent.datagrams && clock.now_us() < until_us {
        pause(Duration::from_millis(1));
        sent.acknowledged += gateways.iter().map(take_acks).sum::<u64>();
    }
    sent.on_core_us = on_core_us().zip(on_core).map(|(end, begin)| end - begin);
    Ok(sent)
}

/// The clock of a run, by this machine's wall clock.
#[must_use]
pub fn clock() -> Clock {
    Clock::new(crate::world::wall_us())
}

fn bind(config: &LoadConfig, index: u16) -> Result<Gateway, Error> {
    let address: SocketAddr = if config.server.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0_u16; 8], 0).into() };
    let socket = UdpSocket::bind(address)?;
    socket.connect(config.server)?;
    socket.set_nonblocking(true)?;
    let eui = Eui64(EUI_FIRST + u64::from(index));
    // Its way for downlinks, as a forwarder opens it at its start.
    socket.send(&gwmp::pull_data([0, 0], eui))?;
    Ok(Gateway { eui, socket, pending: VecDeque::new(), tokens: 0 })
}

fn wait_until(clock: &Clock, at_us: u64) {
    let wait_us = at_us.saturating_sub(clock.now_us());
    if wait_us > 0 {
        pause(Duration::from_micros(wait_us));
    }
}

#[expect(clippy::disallowed_methods, reason = "the pace of the load, on a thread of its own")]
fn pause(time: Duration) {
    std::thread::sleep(time);
}

/// The frame left the air.
fn hear(fleet: &Fleet, config: &LoadConfig, number: u64, end_us: u64, gateways: &mut [Gateway]) {
    let (mote, f_cnt) = config.frame(fleet.devices().len(), number);
    let Some(device) = fleet.devices().get(mote) else { return };
    let session = Session { ordinal: 0, dev_addr: device.dev_addr, nwk_s_key: device.nwk_s_key, app_s_key: device.app_s_key };
    let header = Header { f_cnt, confirmed: false, acknowledge: false, adr: false, asks_for_downlink: false, options: &[] };
    let bytes = build_data(&session, &header, reading(fleet, mote, f_cnt));
    for copy in 0..usize::from(config.copies) {
        let reception = Reception {
            bytes: bytes.clone(),
            end_us,
            data_rate: SpreadingFactor::SF7,
            frequency_hz: channel(device.dev_addr, f_cnt),
            rssi_dbm: -60 - i32::try_from(copy).unwrap_or(0) * 10,
            snr_decibel_tenths: 90 - i32::try_from(copy).unwrap_or(0) * 20,
        };
        let index = (mote + copy) % gateways.len();
        gateways[index].pending.push_back((number, reception));
    }
}

fn channel(address: DevAddr, f_cnt: u32) -> u32 {
    CHANNELS_HZ[usize::from(low_u16(address.0.wrapping_add(f_cnt))) % CHANNELS_HZ.len()]
}

fn push(gateway: &mut Gateway, clock: &Clock, config: &LoadConfig, sent: &mut Sent) {
    while !gateway.pending.is_empty() {
        let taken = gateway.pending.len().min(config.batch);
        let (numbers, batch): (Vec<u64>, Vec<(u32, Reception)>) =
            gateway.pending.drain(..taken).map(|(number, reception)| (number, (low_u32(reception.end_us), reception))).unzip();
        gateway.tokens = gateway.tokens.wrapping_add(1);
        let datagram = gwmp::push_data(gateway.tokens.to_be_bytes(), gateway.eui, &batch, None);
        let now_us = clock.now_us();
        if gateway.socket.send(&datagram).is_err() {
            sent.refused += 1;
            continue;
        }
        sent.datagrams += 1;
        sent.packets += batch.len() as u64;
        for number in numbers {
            if let Some(first_us) = usize::try_from(number).ok().and_then(|number| sent.first_us.get_mut(number)) {
                *first_us = if *first_us == 0 { now_us } else { *first_us };
            }
        }
    }
}

fn take_acks(gateway: &Gateway) -> u64 {
    let mut buffer = [0; DATAGRAM_BYTES_MAX];
    let mut acks = 0;
    while let Ok(length) = gateway.socket.recv(&mut buffer) {
        acks += u64::from(matches!(gwmp::parse(&buffer[..length]), Ok(ServerDatagram::PushAck(_))));
    }
    acks
}

/// Time that this thread spent on a core, as the kernel counts it.
fn on_core_us() -> Option<u64> {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    let nanos: u64 = stat.split_whitespace().next()?.parse().ok()?;
    Some(nanos / 1_000)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use base64::Engine as _;

    use super::*;

    /// A server that acknowledges everything; what it heard: data by the gateway that heard it.
    fn serve(socket: &UdpSocket, until_packets: usize) -> BTreeMap<String, Vec<u64>> {
        let mut heard: BTreeMap<String, Vec<u64>> = BTreeMap::new();
        let mut buffer = [0; 65_536];
        while heard.values().map(Vec::len).sum::<usize>() < until_packets {
            let (length, from) = socket.recv_from(&mut buffer).expect("a datagram");
            if buffer[3] != 0 {
                continue;
            }
            socket.send_to(&[2, buffer[1], buffer[2], 1], from).expect("sent");
            let eui = u64::from_be_bytes(buffer[4..12].try_into().expect("eight bytes"));
            let body: serde_json::Value = serde_json::from_slice(&buffer[12..length]).expect("JSON");
            let packets = body["rxpk"].as_array().expect("packets");
            assert!(packets.len() <= 3, "a batch");
            for packet in packets {
                heard.entry(packet["data"].as_str().expect("data").to_owned()).or_default().push(eui);
            }
        }
        heard
    }

    #[test]
    fn every_frame_comes_from_as_many_gateways_as_hear_it() {
        let server = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        let address = server.local_addr().expect("an address");
        let config = LoadConfig {
            server: address,
            rate: 10_000,
            frames: 200,
            mote_first: 0,
            f_cnt_first: 5,
            gateways: 4,
            copies: 2,
            batch: 3,
        };
        let serving = std::thread::spawn(move || serve(&server, 400));
        let fleet = Fleet::new(1, 50).expect("a fleet");
        let sent = send(&fleet, &clock(), &config).expect("sent");
        let heard = serving.join().expect("no panic");
        assert_eq!((sent.packets, sent.acknowledged, sent.refused), (400, sent.datagrams, 0));
        assert!(sent.first_us.iter().all(|at_us| *at_us > 0));
        assert!(sent.elapsed_us >= 19_000, "{} us for 200 frames at 10,000/s", sent.elapsed_us);
        assert_eq!(heard.len(), 200, "all different");
        assert!(heard.values().all(|gateways| gateways.len() == 2 && gateways[0] != gateways[1]));
        let (mote, f_cnt) = config.frame(50, 51);
        assert_eq!((mote, f_cnt), (1, 6));
        let session = fleet.devices()[mote].clone();
        let built = crate::frame::build_uplink(&session, f_cnt, false, false, reading(&fleet, mote, f_cnt));
        assert!(heard.contains_key(&base64::engine::general_purpose::STANDARD.encode(built)), "the frame of mote 1, counter 6");
    }

    #[test]
    fn what_cannot_be_sent_is_refused() {
        let config = LoadConfig {
            server: ([127, 0, 0, 1], 9).into(),
            rate: 1,
            frames: 1,
            mote_first: 0,
            f_cnt_first: 0,
            gateways: 2,
            copies: 3,
            batch: 8,
        };
        let fleet = Fleet::new(1, 1).expect("a fleet");
        assert!(matches!(send(&fleet, &clock(), &config), Err(Error::Config(_))));
        assert!(matches!(send(&fleet, &clock(), &LoadConfig { rate: 0, copies: 1, ..config }), Err(Error::Config(_))));
    }
}
