//! Receive windows that move: two bridges and a mote of `motes`, which shares no code with them, under loss of requests, answers and records,
//! and kills of whoever serves. The judge is the mote: every downlink falls into a window that it opened after that very uplink, and once
//! the faults stop it listens as wished.

mod common;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use common::{GATEWAY, GROUP, Rig, address};
use contracts::ids::{DevAddr, DevEui, EventId};
use contracts::time::Millis;
use lora_bridge::gwmp::data_rate::DataRate;
use lora_bridge::mac::link::{Change, Channel, LinkRecord, Wish, WishedChannel};
use lora_bridge::{CounterSource, Input, MissedReason, Mode, NwkSKey, Output, Session, Transmit};
use motes::airtime::SpreadingFactor;
use motes::fleet::{Device, Fleet};
use motes::mote::{Depth, Effect, Event, Exchange, Mote, Policy, State};
use motes::seed::Seed;
use rand::{Rng, SeedableRng};

/// A mote sends about so often.
const PERIOD_US: u64 = 20_000_000;

fn device_id(device: &Device) -> DevEui {
    DevEui::from_u64(device.dev_eui.0)
}

fn session(device: &Device, wish: &Wish) -> Session {
    let key = NwkSKey::from_bytes(device.nwk_s_key.0);
    let mut session = Session::new(device_id(device), DevAddr::from_u32(device.dev_addr.0), key);
    session.wish = wish.clone();
    session
}

/// What happens in the world, in microseconds.
#[derive(Debug)]
enum Happens {
    Mote(Event),
    /// A frame of the mote reaches the bridges.
    Arrives(Box<Exchange>),
    /// The gateway transmits.
    Downlink(Box<Transmit>),
    /// A majority answered this life of this node.
    Recorded(usize, u32, Box<LinkRecord>),
    Tick,
}

struct World {
    rng: rand_chacha::ChaCha8Rng,
    now_us: u64,
    due: BinaryHeap<Reverse<(u64, u64)>>,
    happens: BTreeMap<u64, Happens>,
    device: Device,
    mote: Mote,
    wish: Wish,
    nodes: [Rig; 2],
    lives: [u32; 2],
    /// The nodes' and the witness's.
    disks: [Option<LinkRecord>; 3],
    reserved: u32,
    holder: usize,
    epoch: u64,
    /// Per mille of uplinks, downlinks and records that get lost.
    loss: u32,
    /// No record reaches anybody else.
    is_alone: bool,
    exchanges: Vec<Exchange>,
    judged: u32,
    received: u32,
    takeovers: u32,
    taken_over_while_asking: u32,
}

impl World {
    fn new(seed: u64, wish: Wish) -> Self {
        let device = Fleet::new(seed + 1, 1).expect("one mote").devices()[0].clone();
        let policy = Policy {
            seed: Seed(seed),
            period_us: PERIOD_US,
            confirmed_ppm: 400_000,
            rx2_data_rate: SpreadingFactor::SF12,
            duty_cycle: false,
            depth: Depth::default(),
        };
        let mote = Mote::new(0, device.clone(), policy, 1_000_000_000);
        let mut world = Self {
            rng: rand_chacha::ChaCha8Rng::seed_from_u64(seed),
            now_us: 1_000_000_000,
            due: BinaryHeap::new(),
            happens: BTreeMap::new(),
            nodes: [Rig::new(), Rig::new()],
            lives: [0, 0],
            device,
            mote,
            wish,
            disks: [None, None, None],
            reserved: 0,
            holder: 0,
            epoch: 1,
            loss: 200,
            is_alone: false,
            exchanges: Vec::new(),
            judged: 0,
            received: 0,
            takeovers: 0,
            taken_over_while_asking: 0,
        };
        world.start(0);
        world.start(1);
        world.serve();
        let first = world.mote.next_reading_us();
        world.at(first, Happens::Mote(Event::ReadingDue));
        world.at(world.now_us, Happens::Tick);
        world
    }

    fn at(&mut self, at_us: u64, what: Happens) {
        let id = self.happens.last_key_value().map_or(0, |(id, _)| id + 1);
        self.due.push(Reverse((at_us, id)));
        self.happens.insert(id, what);
    }

    /// A node begins with what its disk has.
    fn start(&mut self, node: usize) {
        self.nodes[node] = Rig::new();
        self.nodes[node].now = self.now_us / 1_000;
        self.lives[node] += 1;
        let sessions = vec![session(&self.device, &self.wish)];
        self.nodes[node].apply(Input::Register { group: GROUP, sessions });
        self.nodes[node].pull();
        self.nodes[node].custody(Mode::Standby);
        if let Some(record) = self.disks[node].clone() {
            self.nodes[node].apply(Input::LinkRecords { records: vec![record] });
        }
    }

    /// The holder takes what the majority of itself and the witness knows.
    fn serve(&mut self) {
        let newest = [self.holder, 2].into_iter().filter_map(|disk| self.disks[disk].clone()).max_by_key(|record| record.version);
        self.disks[self.holder].clone_from(&newest);
        let device = device_id(&self.device);
        let (epoch, now, reserved) = (self.epoch, self.now_us / 1_000, self.reserved);
        let node = &mut self.nodes[self.holder];
        node.now = now;
        node.apply(Input::LinkRecords { records: newest.into_iter().collect() });
        let entries = vec![(device, reserved)];
        let mut out = node.apply(Input::CountersFrom { entries, source: CounterSource::Reservation });
        out.extend(node.serve(epoch, Some(now)));
        self.carry_out(self.holder, out);
    }

    fn take_over(&mut self, is_kill: bool) {
        self.takeovers += 1;
        let asks = |record: &LinkRecord| record.state.asked.is_some();
        self.taken_over_while_asking += u32::from(self.disks.iter().flatten().max_by_key(|r| r.version).is_some_and(asks));
        let old = self.holder;
        if is_kill {
            self.start(old);
        } else {
            self.nodes[old].now = self.now_us / 1_000;
            let out = self.nodes[old].custody(Mode::Standby);
            self.carry_out(old, out);
        }
        (self.holder, self.epoch) = (1 - old, self.epoch + 1);
        self.serve();
    }

    fn carry_out(&mut self, node: usize, out: Vec<Output>) {
        for output in out {
            match output {
                Output::Uplink(uplink) => {
                    let out = self.nodes[node].commit(vec![uplink.event]);
                    self.carry_out(node, out);
                }
                Output::ReserveWanted { entries, .. } if node == self.holder => {
                    self.reserved = self.reserved.max(entries[0].1);
                    let out = self.nodes[node].apply(Input::Reserved { entries });
                    self.carry_out(node, out);
                }
                Output::LinkRecordWanted { record, .. } => self.write(node, record),
                Output::Transmit(downlink) => {
                    assert_eq!(node, self.holder, "only the holder transmits");
                    // As the gateway has it: by the end of the uplink that is answered.
                    let offset = txpk(&downlink)["tmst"].as_u64().expect("a number");
                    let exchange = self.judge(&downlink, u32::try_from(offset).expect("32 bits"));
                    let at_us = exchange.0.end_us + exchange.1;
                    self.at(at_us, Happens::Downlink(Box::new(downlink)));
                }
                _ => {}
            }
        }
    }

    /// The holder's disk first, then perhaps the others'.
    fn write(&mut self, node: usize, record: Box<LinkRecord>) {
        assert_eq!(node, self.holder, "only the holder writes records");
        assert!(self.disks.iter().flatten().all(|known| known.version <= record.version), "versions rise");
        self.disks[node] = Some((*record).clone());
        let mut stored = 0;
        for other in [1 - node, 2] {
            if !self.is_alone && !self.is_lost() {
                self.disks[other] = Some((*record).clone());
                stored += 1;
                if other < 2 {
                    self.nodes[other].apply(Input::LinkRecords { records: vec![(*record).clone()] });
                }
            }
        }
        if stored > 0 && !self.is_lost() {
            let delay_us = if self.rng.random_bool(0.1) { 3_000_000 } else { self.rng.random_range(0..80_000) };
            self.at(self.now_us + delay_us, Happens::Recorded(node, self.lives[node], record));
        }
    }

    fn is_lost(&mut self) -> bool {
        self.rng.random_range(0..1_000) < self.loss
    }

    /// The window of the uplink that this downlink is meant for, and its distance from the uplink's end.
    fn judge(&mut self, downlink: &Transmit, tmst: u32) -> (Exchange, u64) {
        self.judged += 1;
        let txpk = txpk(downlink);
        let frequency_hz = hz(&txpk);
        let rate: SpreadingFactor = spreading_factor(txpk["datr"].as_str().expect("a text"));
        let session = session(&self.device, &self.wish).id();
        for exchange in self.exchanges.iter().rev().take(20) {
            let is_answered = EventId::new(device_id(&self.device), session, exchange.f_cnt) == downlink.event;
            let windows = &exchange.windows;
            let end = u32::try_from(exchange.end_us % (1 << 32)).expect("32 bits");
            let after = u64::from(tmst.wrapping_sub(end));
            let rx1 = (windows.rx1_delay_us, windows.rx1_frequency_hz, windows.rx1_data_rate);
            let rx2 = (windows.rx2_delay_us(), windows.rx2_frequency_hz, windows.rx2_data_rate);
            let place = (after, frequency_hz, rate);
            if is_answered && (place == rx1 || place == rx2) {
                return (exchange.clone(), after);
            }
        }
        panic!("no window for {downlink:?}, {txpk}; the newest uplink: {:?}", self.exchanges.last());
    }

    fn step(&mut self) {
        let Some(Reverse((at_us, id))) = self.due.pop() else { panic!("the world stands still") };
        let what = self.happens.remove(&id).expect("once");
        self.now_us = self.now_us.max(at_us);
        let now = self.now_us / 1_000;
        self.nodes.iter_mut().for_each(|node| node.now = now);
        match what {
            Happens::Mote(event) => self.apply(event),
            Happens::Arrives(exchange) => self.arrive(&exchange),
            Happens::Downlink(downlink) => self.transmit(&downlink),
            Happens::Recorded(node, life, record) => {
                if self.lives[node] == life && self.holder == node {
                    let out = self.nodes[node].apply(Input::LinkRecorded { record });
                    self.carry_out(node, out);
                }
            }
            Happens::Tick => {
                for node in 0..2 {
                    self.nodes[node].pull();
                    let out = self.nodes[node].apply(Input::Tick);
                    self.carry_out(node, out);
                }
                self.at(self.now_us + 200_000, Happens::Tick);
            }
        }
    }

    fn apply(&mut self, event: Event) {
        let was_on_air = matches!(self.mote.state(), State::OnAir(_));
        for effect in self.mote.apply(event, self.now_us) {
            if let Effect::Wake { at_us, event } = effect {
                self.at(at_us, Happens::Mote(event));
            }
        }
        if let State::OnAir(exchange) = self.mote.state()
            && !was_on_air
        {
            let exchange = exchange.clone();
            self.exchanges.push(exchange.clone());
            self.at(exchange.end_us + 15_000, Happens::Arrives(Box::new(exchange)));
        }
    }

    fn arrive(&mut self, exchange: &Exchange) {
        let json = format!(
            r#"{{"rxpk":[{{"tmst":{},"freq":{},"stat":1,"modu":"LORA","datr":"SF{}BW125","codr":"4/5","rssi":-90,"lsnr":5,"size":{},"data":"{}"}}]}}"#,
            exchange.end_us % (1 << 32),
            f64::from(exchange.frequency_hz) / 1e6,
            12 - exchange.data_rate.to_data_rate(),
            exchange.bytes.len(),
            STANDARD.encode(&exchange.bytes)
        );
        let mut bytes = vec![2, 0x12, 0x34, 0];
        bytes.extend_from_slice(&GATEWAY.0.to_be_bytes());
        bytes.extend_from_slice(json.as_bytes());
        for node in 0..2 {
            if !self.is_lost() {
                let out = self.nodes[node].apply(Input::Datagram { from: address(1_002), bytes: &bytes });
                self.carry_out(node, out);
            }
        }
    }

    fn transmit(&mut self, downlink: &Transmit) {
        let txpk = txpk(downlink);
        let frequency_hz = hz(&txpk);
        let rate = spreading_factor(txpk["datr"].as_str().expect("a text"));
        // It may have received the predecessor's answer in RX1.
        if self.is_lost() {
            return;
        }
        let Some((id, window)) = self.mote.open_window(self.now_us, frequency_hz, rate) else { return };
        let bytes = STANDARD.decode(txpk["data"].as_str().expect("a text")).expect("base64");
        let end_us = self.now_us + rate.airtime_us(bytes.len(), false);
        self.received += 1;
        self.apply(Event::DownlinkBegan { id, end_us });
        self.at(end_us, Happens::Mote(Event::DownlinkEnded { id, window, bytes }));
    }

    fn run(&mut self, us: u64) {
        let until = self.now_us + us;
        while self.now_us < until {
            self.step();
        }
    }

    fn newest(&self) -> &Exchange {
        self.exchanges.last().expect("an uplink")
    }
}

fn txpk(downlink: &Transmit) -> serde_json::Value {
    let mut json: serde_json::Value = serde_json::from_slice(&downlink.bytes[4..]).expect("JSON");
    json["txpk"].take()
}

/// The frequency, from its text in MHz.
fn hz(txpk: &serde_json::Value) -> u32 {
    let text = txpk["freq"].to_string();
    let (whole, rest) = text.split_once('.').unwrap_or((&text, ""));
    format!("{whole}{rest:0<6}").parse().expect("a number")
}

fn spreading_factor(text: &str) -> SpreadingFactor {
    let factor = text.strip_prefix("SF").and_then(|rest| rest.strip_suffix("BW125")).expect("125 kHz");
    SpreadingFactor::new(factor.parse().expect("a number")).expect("a data rate")
}

fn wish(rng: &mut rand_chacha::ChaCha8Rng) -> Wish {
    let channel = |index: u8, frequency_hz, downlink_hz| WishedChannel {
        index,
        channel: Channel { frequency_hz, data_rate_min: 0, data_rate_max: 5, downlink_hz },
    };
    let all =
        [channel(1, 868_300_000, Some(869_100_000)), channel(3, 867_100_000, None), channel(4, 867_300_000, Some(868_900_000))];
    let mut chance = |share| rng.random_bool(share);
    let channels = all.into_iter().filter(|_| chance(0.6)).collect();
    Wish {
        rx1_delay_seconds: rng.random_bool(0.8).then(|| rng.random_range(1..=5)),
        rx1_data_rate_offset: rng.random_bool(0.6).then(|| rng.random_range(0..=5)),
        rx2_data_rate: rng.random_bool(0.6).then(|| DataRate::eu868(rng.random_range(0..=5)).expect("in the table")),
        // A frequency that the mote refuses, at times.
        rx2_frequency_hz: rng.random_bool(0.4).then(|| if rng.random_bool(0.3) { 871_000_000 } else { 869_450_000 }),
        channels,
        status_interval: rng.random_bool(0.5).then_some(Millis::from_secs(600)),
    }
}

/// Whether the mote's newest uplink shows that it listens as wished; what it refused it need not.
fn is_as_wished(world: &World) -> bool {
    let (windows, wish) = (&world.newest().windows, &world.wish);
    let is_timed = wish.rx1_delay_seconds.is_none_or(|seconds| windows.rx1_delay_us == u64::from(seconds) * 1_000_000);
    let is_refused = wish.rx2_frequency_hz == Some(871_000_000);
    let rx2_rate = wish.rx2_data_rate.is_none_or(|rate| DataRate::eu868(windows.rx2_data_rate.to_data_rate()) == Some(rate));
    let rx2_hz = wish.rx2_frequency_hz.is_none_or(|hz| windows.rx2_frequency_hz == hz);
    is_timed && (is_refused || rx2_rate && rx2_hz)
}

#[test]
fn every_downlink_falls_into_a_window_that_the_mote_listens_in() {
    let (mut judged, mut received, mut takeovers, mut while_asking, mut refused, mut statuses) = (0, 0, 0, 0, 0, 0);
    for seed in 0..60_u64 {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(1_000 + seed);
        let mut world = World::new(seed, wish(&mut rng));
        println!("seed {seed}: {:?}", world.wish);
        for _ in 0..25 {
            world.run(rng.random_range(1_000_000..60_000_000));
            match rng.random_range(0..10) {
                0..4 => world.take_over(true),
                4 => world.take_over(false),
                5 => {
                    // The operator changes his mind.
                    world.wish = wish(&mut rng);
                    for node in 0..2 {
                        let sessions = vec![session(&world.device, &world.wish)];
                        let out = world.nodes[node].apply(Input::Register { group: GROUP, sessions });
                        world.carry_out(node, out);
                    }
                }
                _ => {}
            }
        }
        world.loss = 0;
        world.run(PERIOD_US * 100);
        assert!(is_as_wished(&world), "seed {seed}: wished {:?}, has {:?}", world.wish, world.newest().windows);
        let before = world.received;
        world.run(PERIOD_US * 20);
        assert!(world.newest().options.is_empty() || world.wish.status_interval.is_some(), "seed {seed}: no answer sticks");
        assert!(world.received > before, "seed {seed}: it still hears");
        let state = world.disks[world.holder].as_ref().map(|record| record.state.clone());
        let is_refused = state.as_ref().is_some_and(|state| !state.refused.is_empty());
        refused += u32::from(is_refused);
        if let Some(state) = state {
            assert!(state.asked.is_none(), "seed {seed}: nothing is left to ask: {state:?}");
            for (index, channel) in &state.radio.channels {
                let by_mote = world.exchanges.iter().rev().take(60).find(|e| e.frequency_hz == channel.frequency_hz);
                let rx1_hz = channel.downlink_hz.unwrap_or(channel.frequency_hz);
                assert!(by_mote.is_none_or(|e| e.windows.rx1_frequency_hz == rx1_hz), "seed {seed}: channel {index}");
            }
        }
        statuses += world.nodes.iter().map(|node| node.bridge.stats().statuses).sum::<u64>();
        judged += world.judged;
        received += world.received;
        takeovers += world.takeovers;
        while_asking += world.taken_over_while_asking;
    }
    println!(
        "{judged} downlinks judged, {received} received, {takeovers} takeovers, {while_asking} while a change was asked for"
    );
    assert!(received > 3_000 && takeovers > 500 && while_asking > 100 && refused > 3 && statuses > 100, "not empty");
}

/// One mote, no loss: each step of the table in order.
#[test]
fn a_change_is_written_ahead_asked_answered_and_in_force() {
    let wish = Wish { rx1_delay_seconds: Some(3), ..Wish::default() };
    let mut world = World::new(7, wish);
    world.loss = 0;
    world.run(PERIOD_US * 8);
    assert_eq!(world.newest().windows.rx1_delay_us, 3_000_000);
    assert_eq!(world.newest().windows.rx2_delay_us(), 4_000_000);
    assert_eq!(world.newest().options, [0_u8; 0], "the answer went until a downlink came");
    let record = world.disks[0].clone().expect("a record");
    assert_eq!((record.state.radio.windows.rx1_delay_seconds, record.state.asked), (3, None));
    assert_eq!(world.disks[2].as_ref(), Some(&record), "the witness has it too");
    let stats = world.nodes[0].bridge.stats();
    assert_eq!((stats.link_asked, stats.link_taken, stats.link_refused), (1, 1, 0));
    assert_eq!(stats.missed(MissedReason::NotRecorded), 0);
}

/// Nothing is sent to a mote whose answer is not known to a majority, and what is refused is asked for once.
#[test]
fn without_a_majority_nothing_is_asked_and_a_refusal_is_remembered() {
    let wish = Wish { rx2_frequency_hz: Some(871_000_000), ..Wish::default() };
    let mut world = World::new(9, wish);
    world.loss = 0;
    world.run(PERIOD_US * 30);
    let stats = world.nodes[0].bridge.stats();
    assert_eq!((stats.link_asked, stats.link_taken, stats.link_refused), (1, 0, 1));
    let record = world.disks[2].clone().expect("a record");
    assert!(matches!(record.state.refused[..], [Change::RxParams { rx2_frequency_hz: 871_000_000, .. }]));
    world.take_over(true);
    world.run(PERIOD_US * 30);
    assert_eq!(world.nodes[1].bridge.stats().link_asked, 0, "the successor knows");
    // Another wish, and no record gets through: it is never asked, acknowledgements go on.
    world.wish = Wish { rx1_delay_seconds: Some(2), ..Wish::default() };
    let sessions = vec![session(&world.device, &world.wish)];
    world.nodes[1].apply(Input::Register { group: GROUP, sessions });
    world.is_alone = true;
    let before = world.received;
    world.run(PERIOD_US * 50);
    assert_eq!(world.newest().windows.rx1_delay_us, 1_000_000);
    assert!(world.received > before + 5, "{} acknowledgements", world.received - before);
}
