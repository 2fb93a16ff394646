//! The radio: the agenda of all motes, and by seed who hears what (pure; time comes from outside).
//!
//! One heap holds everything that will happen, so 10,000 motes cost no more tasks than one. Happenings are processed at their
//! planned time even when the machine is late, so a loaded machine changes when something is done, never what is decided.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use crate::airtime::SpreadingFactor;
use crate::fleet::{DevAddr, Eui64, Fleet, Key};
use crate::frame::{Session, is_downlink_authentic, parse_downlink};
use crate::join;
use crate::ledger::{AcceptOnAir, Downlink, Frame, JoinFrame, MoteRecord, RadioRecord};
use crate::mote::{AttemptId, Content, Effect, Event, Exchange, Mote, Policy, State, Window};
use crate::seed::{Seed, Topic};

/// Most gateways in one world.
pub const GATEWAYS_MAX: usize = 16;

/// An uplink as a gateway's antenna gets it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reception {
    /// Physical payload.
    pub bytes: Vec<u8>,
    /// End on air, to which a gateway's counter value refers.
    pub end_us: u64,
    /// Data rate.
    pub data_rate: SpreadingFactor,
    /// Frequency.
    pub frequency_hz: u32,
    /// Signal strength in dBm.
    pub rssi_dbm: i32,
    /// Signal-to-noise ratio in tenths of a decibel.
    pub snr_decibel_tenths: i32,
}

/// A downlink that a gateway puts on the air.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transmission {
    /// Index of the gateway.
    pub gateway: usize,
    /// Physical payload.
    pub bytes: Vec<u8>,
    /// Start on air.
    pub start_us: u64,
    /// Data rate.
    pub data_rate: SpreadingFactor,
    /// Frequency.
    pub frequency_hz: u32,
    /// Inverted polarisation: motes hear nothing else.
    pub inverted: bool,
}

/// What the radio wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// A gateway hears an uplink.
    Hear {
        /// Index of the gateway.
        gateway: usize,
        /// What it hears.
        reception: Reception,
    },
    /// For the motes' ledger.
    Mote(MoteRecord),
    /// For the radio's ledger.
    Radio(RadioRecord),
}

/// Live totals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counts {
    /// Frames that left the air, retries included.
    pub frames_sent: u64,
    /// Of these, heard by at least one gateway.
    pub frames_heard: u64,
    /// Readings that were due while their mote was busy or its band closed.
    pub readings_skipped: u64,
    /// Confirmed uplinks begun.
    pub confirmed_sent: u64,
    /// Confirmed uplinks acknowledged in a window.
    pub confirmed_acknowledged: u64,
    /// Confirmed uplinks under way.
    pub confirmed_pending: u64,
    /// Frames between start and end on air.
    pub frames_on_air: u64,
    /// Downlinks put on air by any gateway.
    pub downlinks_on_air: u64,
    /// Join requests sent.
    pub join_requests: u64,
    /// Sessions begun by join accepts.
    pub joined: u64,
    /// Downlinks with a payload, commands, or a wish for an acknowledgement that motes accepted.
    pub downlinks_received: u64,
    /// Largest delay between the planned and the actual time of a happening.
    pub lag_us_max: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Happening {
    Mote { mote: u32, event: Event },
    DownlinkStart(Transmission),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    at_us: u64,
    order: u64,
    happening: Happening,
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at_us, self.order).cmp(&(other.at_us, other.order))
    }
}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// A session of a mote, now or before, and the downlinks for it.
#[derive(Clone, Debug)]
struct Tracked {
    mote: usize,
    ordinal: u32,
    nwk_s_key: Key,
    f_cnt_down_max: Option<u32>,
}

/// What a downlink on air is.
#[derive(Clone, Copy, Debug, Default)]
struct Addressee {
    mote: Option<usize>,
    session: u32,
    f_cnt: Option<u32>,
    accept: Option<AcceptOnAir>,
}

/// Loss of the links.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loss {
    /// From a mote to each gateway.
    pub uplink_ppm: u32,
    /// From a gateway to a mote.
    pub downlink_ppm: u32,
}

/// All motes and what is on the air.
#[derive(Debug)]
pub struct Radio {
    seed: Seed,
    loss: Loss,
    motes: Vec<Mote>,
    /// The latest frame of each mote.
    latest: Vec<Option<(AttemptId, u64)>>,
    /// All sessions, of which a server may give several one address; the newest last.
    by_address: BTreeMap<DevAddr, Vec<Tracked>>,
    gateways: Vec<Eui64>,
    agenda: BinaryHeap<Reverse<Entry>>,
    order: u64,
    frame_next: u64,
    sending: bool,
    counts: Counts,
}

impl Radio {
    /// Switches all motes on at `start_us`.
    #[must_use]
    pub fn new(fleet: &Fleet, policy: Policy, loss: Loss, gateways: Vec<Eui64>, start_us: u64) -> Self {
        let motes: Vec<Mote> =
            (0..).zip(fleet.devices()).map(|(index, device)| Mote::new(index, device.clone(), policy, start_us)).collect();
        let mut radio = Self {
            seed: fleet.seed(),
            loss,
            latest: vec![None; motes.len()],
            by_address: BTreeMap::new(),
            gateways,
            agenda: BinaryHeap::new(),
            order: 0,
            frame_next: 0,
            sending: true,
            counts: Counts::default(),
            motes,
        };
        for mote in 0..radio.motes.len() {
            if let Some(session) = radio.motes[mote].session().cloned() {
                radio.track(mote, &session);
            }
            let at_us = radio.motes[mote].next_reading_us();
            radio.plan(at_us, Happening::Mote { mote: u32::try_from(mote).unwrap_or(u32::MAX), event: Event::ReadingDue });
        }
        radio
    }

    /// When something happens next.
    #[must_use]
    pub fn next_us(&self) -> Option<u64> {
        self.agenda.peek().map(|Reverse(entry)| entry.at_us)
    }

    /// Live totals.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// What a mote is listening for, if its windows are not over: what a gateway would know of the uplink.
    #[must_use]
    pub fn listening(&self, mote: usize) -> Option<&Exchange> {
        match self.motes.get(mote)?.state() {
            State::Listening { exchange, .. } => Some(exchange),
            State::Idle | State::OnAir(_) | State::Backoff(_) => None,
        }
    }

    /// No new readings from now on; confirmed uplinks under way go on.
    pub fn stop_sending(&mut self) {
        self.sending = false;
    }

    /// Whether nothing is on air and no confirmed uplink waits for its answer.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        !self.sending && self.counts.confirmed_pending == 0 && self.counts.frames_on_air == 0
    }

    /// Takes a downlink from a gateway, ahead of its start.
    pub fn transmit(&mut self, transmission: Transmission) {
        self.plan(transmission.start_us, Happening::DownlinkStart(transmission));
    }

    /// Does everything that was planned up to `now_us`.
    pub fn advance(&mut self, now_us: u64) -> Vec<Output> {
        let mut outputs = Vec::new();
        while self.next_us().is_some_and(|at_us| at_us <= now_us) {
            let Some(Reverse(entry)) = self.agenda.pop() else { break };
            self.counts.lag_us_max = self.counts.lag_us_max.max(now_us - entry.at_us);
            match entry.happening {
                Happening::Mote { event: Event::ReadingDue | Event::JoinDue, .. } if !self.sending => {}
                Happening::Mote { mote, event } => self.step_mote(mote, event, entry.at_us, &mut outputs),
                Happening::DownlinkStart(transmission) => self.start_downlink(transmission, &mut outputs),
            }
        }
        outputs
    }

    fn plan(&mut self, at_us: u64, happening: Happening) {
        self.order += 1;
        self.agenda.push(Reverse(Entry { at_us, order: self.order, happening }));
    }

    fn step_mote(&mut self, mote: u32, event: Event, at_us: u64, outputs: &mut Vec<Output>) {
        let Some(index) = self.index(mote) else { return };
        if let (Event::AirEnded(id), State::OnAir(exchange)) = (&event, self.motes[index].state())
            && exchange.id() == *id
        {
            let exchange = exchange.clone();
            self.end_frame(mote, index, &exchange, outputs);
        }
        for effect in self.motes[index].apply(event, at_us) {
            match effect {
                Effect::Wake { at_us, event } => self.plan(at_us, Happening::Mote { mote, event }),
                Effect::Record(record) => {
                    self.count(&record);
                    outputs.push(Output::Mote(record));
                }
                Effect::ConfirmedPending(true) => {
                    self.counts.confirmed_pending += 1;
                    self.counts.confirmed_sent += 1;
                }
                Effect::ConfirmedPending(false) => self.counts.confirmed_pending -= 1,
                Effect::ReadingSkipped => self.counts.readings_skipped += 1,
                Effect::Joined(session) => self.track(index, &session),
            }
        }
    }

    fn count(&mut self, record: &MoteRecord) {
        match record {
            MoteRecord::Attempt(_) => self.counts.frames_on_air += 1,
            MoteRecord::UplinkEnd(end) => self.counts.confirmed_acknowledged += u64::from(end.acknowledged.is_some()),
            MoteRecord::JoinAttempt(_) => {
                self.counts.frames_on_air += 1;
                self.counts.join_requests += 1;
            }
            MoteRecord::Joined(_) => self.counts.joined += 1,
            MoteRecord::DownlinkReceived(_) => self.counts.downlinks_received += 1,
            MoteRecord::Start(_) | MoteRecord::AttemptEnd(_) | MoteRecord::DownlinkDropped(_) => {}
        }
    }

    fn track(&mut self, mote: usize, session: &Session) {
        let tracked = Tracked { mote, ordinal: session.ordinal, nwk_s_key: session.nwk_s_key, f_cnt_down_max: None };
        self.by_address.entry(session.dev_addr).or_default().push(tracked);
    }

    /// A frame left the air: every gateway hears it or not, independently.
    fn end_frame(&mut self, mote: u32, index: usize, exchange: &Exchange, outputs: &mut Vec<Output>) {
        let parts = [u64::from(mote), exchange.id().number(), u64::from(exchange.attempt)];
        let mut heard = Vec::new();
        for (gateway, eui) in self.gateways.iter().enumerate() {
            let link = [parts[0], parts[1], parts[2], eui.0];
            if self.seed.happens(Topic::UplinkLoss, &link, self.loss.uplink_ppm) {
                continue;
            }
            heard.push(*eui);
            let signal = self.seed.draw(Topic::Signal, &link);
            let reception = Reception {
                bytes: exchange.bytes.clone(),
                end_us: exchange.end_us,
                data_rate: exchange.data_rate,
                frequency_hz: exchange.frequency_hz,
                rssi_dbm: -60 - i32::try_from(signal % 55).unwrap_or(0),
                snr_decibel_tenths: 100 - i32::try_from((signal >> 32) % 160).unwrap_or(0),
            };
            outputs.push(Output::Hear { gateway, reception });
        }
        let frame = self.frame_next;
        self.frame_next += 1;
        self.latest[index] = Some((exchange.id(), frame));
        self.counts.frames_on_air -= 1;
        let dev_eui = self.motes[index].device().dev_eui;
        let Exchange { session, f_cnt, attempt, confirmed, end_us, .. } = *exchange;
        outputs.push(Output::Radio(match exchange.content {
            Content::Join { dev_nonce } => {
                RadioRecord::JoinFrame(JoinFrame { frame, mote, dev_eui, dev_nonce, end_us, gateways: heard })
            }
            Content::Reading(_) => {
                self.counts.frames_sent += 1;
                self.counts.frames_heard += u64::from(!heard.is_empty());
                RadioRecord::Frame(Frame { frame, mote, dev_eui, session, f_cnt, attempt, confirmed, end_us, gateways: heard })
            }
        }));
    }

    fn start_downlink(&mut self, transmission: Transmission, outputs: &mut Vec<Output>) {
        self.counts.downlinks_on_air += 1;
        let Transmission { gateway, bytes, start_us, data_rate, frequency_hz, inverted } = transmission;
        let eui = self.gateways.get(gateway).copied().unwrap_or(Eui64(0));
        let end_us = start_us + data_rate.airtime_us(bytes.len(), false);
        let header = parse_downlink(&bytes).ok();
        let to = match header {
            Some(header) => self.find_session(&bytes, header.dev_addr, header.f_cnt_low),
            None => self.find_joining(&bytes),
        };
        let mut record = Downlink {
            gateway: eui,
            start_us,
            end_us,
            bytes: hex::encode(&bytes),
            dev_addr: header.map(|header| header.dev_addr),
            f_cnt_low: header.map(|header| header.f_cnt_low),
            f_cnt: to.f_cnt,
            ack: header.is_some_and(|header| header.ack),
            mote: to.mote.and_then(|index| u32::try_from(index).ok()),
            dev_eui: to.mote.map(|index| self.motes[index].device().dev_eui),
            session: to.session,
            accept: to.accept,
            data_rate,
            frequency_hz,
            window: None,
            frame: None,
            reached: false,
        };
        if let (Some(index), Some(mote)) = (to.mote, record.mote)
            && let Some((id, window)) = self.motes[index].open_window(start_us, frequency_hz, data_rate)
        {
            record.window = Some(window);
            record.frame = self.latest[index].filter(|(latest, _)| *latest == id).map(|(_, frame)| frame);
            record.reached = inverted && !self.loses_downlink(mote, id, window, eui);
            if record.reached {
                self.step_mote(mote, Event::DownlinkBegan { id, end_us }, start_us, outputs);
                self.plan(end_us, Happening::Mote { mote, event: Event::DownlinkEnded { id, window, bytes } });
            }
        }
        outputs.push(Output::Radio(RadioRecord::Downlink(record)));
    }

    fn loses_downlink(&self, mote: u32, id: AttemptId, window: Window, gateway: Eui64) -> bool {
        let window = match window {
            Window::Rx1 => 1,
            Window::Rx2 => 2,
        };
        let parts = [u64::from(mote), id.number(), u64::from(id.attempt), window, gateway.0];
        self.seed.happens(Topic::DownlinkLoss, &parts, self.loss.downlink_ppm)
    }

    /// The judge has the keys, so it needs no guess: the session and the full counter are those under which the MIC is right, looked for in
    /// the 65,536 values around the highest counter so far and in the two blocks beside it. The newest session with that address else.
    fn find_session(&mut self, bytes: &[u8], dev_addr: DevAddr, f_cnt_low: u16) -> Addressee {
        let Some(sessions) = self.by_address.get_mut(&dev_addr) else { return Addressee::default() };
        for tracked in sessions.iter_mut().rev() {
            let block = tracked.f_cnt_down_max.unwrap_or(0) >> 16;
            let found = [Some(block), block.checked_add(1), block.checked_sub(1)]
                .into_iter()
                .flatten()
                .filter(|block| *block <= u32::from(u16::MAX))
                .map(|block| (block << 16) | u32::from(f_cnt_low))
                .find(|f_cnt| is_downlink_authentic(bytes, &tracked.nwk_s_key, *f_cnt));
            if let Some(f_cnt) = found {
                tracked.f_cnt_down_max = Some(tracked.f_cnt_down_max.map_or(f_cnt, |highest| highest.max(f_cnt)));
                return Addressee { mote: Some(tracked.mote), session: tracked.ordinal, f_cnt: Some(f_cnt), accept: None };
            }
        }
        let newest = sessions.last();
        Addressee {
            mote: newest.map(|tracked| tracked.mote),
            session: newest.map_or(0, |tracked| tracked.ordinal),
            ..Addressee::default()
        }
    }

    /// Whose key opens a join accept.
    fn find_joining(&self, bytes: &[u8]) -> Addressee {
        if !join::is_accept(bytes) {
            return Addressee::default();
        }
        for (index, mote) in self.motes.iter().enumerate() {
            // The nonce of the request decides about the keys only, not about what is read here.
            let accept = mote.device().otaa.as_ref().and_then(|otaa| join::read_accept(&otaa.app_key, 0, bytes));
            if let Some(accept) = accept {
                let accept = AcceptOnAir { join_nonce: accept.join_nonce, dev_addr: accept.dev_addr };
                return Addressee { mote: Some(index), accept: Some(accept), ..Addressee::default() };
            }
        }
        Addressee::default()
    }

    fn index(&self, mote: u32) -> Option<usize> {
        usize::try_from(mote).ok().filter(|index| *index < self.motes.len())
    }
}

#[cfg(test)]
#[path = "radio_tests.rs"]
mod tests;
