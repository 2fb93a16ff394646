//! One mote: LoRaWAN 1.0.x, class A, EU868, with LMIC's rules for retries and for downlinks (pure).
//!
//! `receiving` judges what comes in a window, `joining` is for motes that join over the air.
//!
//! Sources: LoRaWAN 1.0.2 chapters 3 and 4, mcci-catena/arduino-lmic v6.0.1 `lmic.c` (`processDnData`, `txDelay`, `decodeFrame`).
//! Differences from LMIC, on purpose: the data rate returns to its base with the next reading (LMIC leaves that to the
//! application or to ADR), and a reading that falls due while the mote is busy or its band is closed is not taken at all, so that
//! reading numbers have no gaps.

mod joining;
mod receiving;

use serde::{Deserialize, Serialize};

use crate::airtime::SpreadingFactor;
use crate::fleet::{DevAddr, Device};
use crate::frame::{Header, Reading, Session, build_data};
use crate::ledger::{Attempt, AttemptEnd, MoteRecord, UplinkEnd};
use crate::link::{Link, OPTIONS_BYTES_MAX, Request};
use crate::seed::{Seed, Topic, low_u32};

pub use crate::link::{CHANNELS_HZ, RX2_FREQUENCY_HZ};

/// Attempts for one confirmed uplink (LMIC `TXCONF_ATTEMPTS`).
pub const ATTEMPTS_MAX: u8 = 8;
/// Random period of a retry in seconds (LMIC `RETRY_PERIOD_secs`).
pub const RETRY_PERIOD_S: u64 = 3;
/// End of the uplink to the start of the first window (`RECEIVE_DELAY1`), unless the server set another.
pub const RX1_DELAY_US: u64 = 1_000_000;
/// End of the uplink to the start of the second window (`RECEIVE_DELAY2`).
pub const RX2_DELAY_US: u64 = 2_000_000;
/// From the first window to the second, always.
const RX1_TO_RX2_US: u64 = 1_000_000;
/// A downlink must start this close to its window (LoRaWAN 1.0.2, 3.3).
pub const RX_TOLERANCE_US: u64 = 20;
/// Symbols for which a window stays open without a preamble.
const RX_SYMBOLS: u64 = 8;
/// Largest step of the downlink counter that LMIC accepts (`MAX_FCNT_GAP`).
pub const FCNT_GAP_MAX: u16 = 16_384;
/// A band with 1 % duty cycle is closed for 100 times the airtime, counted from the start of the transmission.
const DUTY_CYCLE_FACTOR: u64 = 100;

/// What all motes of a run have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Decides values, channels, delays.
    pub seed: Seed,
    /// Time between two readings of one mote.
    pub period_us: u64,
    /// Share of confirmed uplinks.
    pub confirmed_ppm: u32,
    /// Data rate of the second window (EU868: SF12; The Things Network: SF9).
    pub rx2_data_rate: SpreadingFactor,
    /// Whether the mote keeps the 1 % duty cycle of its band, as LMIC does.
    pub duty_cycle: bool,
    /// What goes beyond readings and acknowledgements.
    pub depth: Depth,
}

/// What motes do beside sending readings; by default nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Depth {
    /// Set the ADR bit, and ask for a downlink when none came for long.
    pub adr: bool,
    /// Share of readings with a `LinkCheckReq` or a `DeviceTimeReq`.
    pub requests_ppm: u32,
    /// So long after it joined, a mote that joins is switched off and on, and joins anew; 0: never.
    pub rejoin_us: u64,
}

/// One of the two receive windows of class A.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Window {
    /// 1 s after the uplink, its frequency and data rate.
    Rx1,
    /// 2 s after the uplink, fixed frequency and data rate.
    Rx2,
}

/// What a frame is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// A reading, by a mote with a session.
    Reading(Reading),
    /// A join request.
    Join {
        /// Its nonce.
        dev_nonce: u16,
    },
}

/// Where and when a mote listens after a transmission.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Windows {
    /// End of the transmission to the first.
    pub rx1_delay_us: u64,
    /// Frequency of the first.
    pub rx1_frequency_hz: u32,
    /// Data rate of the first.
    pub rx1_data_rate: SpreadingFactor,
    /// Frequency of the second, one second later.
    pub rx2_frequency_hz: u32,
    /// Data rate of the second.
    pub rx2_data_rate: SpreadingFactor,
}

impl Windows {
    /// End of the transmission to the second.
    #[must_use]
    pub fn rx2_delay_us(&self) -> u64 {
        self.rx1_delay_us + RX1_TO_RX2_US
    }

    /// When the second closes without a preamble, after a transmission that ended then.
    fn close_us(&self, end_us: u64) -> u64 {
        end_us + self.rx2_delay_us() + RX_SYMBOLS * self.rx2_data_rate.symbol_us()
    }
}

/// One transmission of a mote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exchange {
    /// What is sent.
    pub content: Content,
    /// Number of the session, see [`Session::ordinal`].
    pub session: u32,
    /// Full uplink counter; of a join request its number, in the life of the mote.
    pub f_cnt: u32,
    /// Asks for an acknowledgement.
    pub confirmed: bool,
    /// The same bytes for every attempt.
    pub bytes: Vec<u8>,
    /// MAC commands in it.
    pub options: Vec<u8>,
    /// 1 to [`ATTEMPTS_MAX`]; 0 for a join request.
    pub attempt: u8,
    /// Start of this attempt on air.
    pub start_us: u64,
    /// End of this attempt on air; the windows count from here.
    pub end_us: u64,
    /// Data rate of this attempt.
    pub data_rate: SpreadingFactor,
    /// Channel of this attempt.
    pub frequency_hz: u32,
    /// Where it is listened afterwards.
    pub windows: Windows,
}

/// Names one attempt, so that a timer of an earlier one is recognised as stale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttemptId {
    /// Number of the session.
    pub session: u32,
    /// Uplink counter.
    pub f_cnt: u32,
    /// Number of the attempt.
    pub attempt: u8,
}

impl AttemptId {
    /// Names the uplink to chance: counters begin anew with each session, chance does not.
    #[must_use]
    pub fn number(&self) -> u64 {
        u64::from(self.session) << 32 | u64::from(self.f_cnt)
    }
}

/// What the mote is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Waiting for its next reading.
    Idle,
    /// Transmitting.
    OnAir(Exchange),
    /// Between the end of a transmission and the close of the second window.
    Listening {
        /// The attempt that is listened for.
        exchange: Exchange,
        /// End of a downlink that is being received.
        receiving_until_us: Option<u64>,
    },
    /// Waiting for the next attempt.
    Backoff(Exchange),
}

/// What happens to a mote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The next reading is due.
    ReadingDue,
    /// The transmission ended.
    AirEnded(AttemptId),
    /// A downlink began in an open window and reaches the antenna.
    DownlinkBegan {
        /// The attempt whose window it is in.
        id: AttemptId,
        /// End on air.
        end_us: u64,
    },
    /// That downlink ended.
    DownlinkEnded {
        /// The attempt whose window it was in.
        id: AttemptId,
        /// Which window.
        window: Window,
        /// What was received.
        bytes: Vec<u8>,
    },
    /// The second window closed.
    WindowsClosed(AttemptId),
    /// The next attempt is due.
    RetryDue(AttemptId),
    /// The next join request is due.
    JoinDue,
}

/// What a mote wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Give this event back at this time.
    Wake {
        /// When.
        at_us: u64,
        /// What.
        event: Event,
    },
    /// Write this down.
    Record(MoteRecord),
    /// A confirmed uplink began (true) or was settled either way (false).
    ConfirmedPending(bool),
    /// A reading was due while the mote was busy, or had no session.
    ReadingSkipped,
    /// The mote has a new session.
    Joined(Session),
}

/// A mote with its state.
#[derive(Clone, Debug)]
pub struct Mote {
    index: u32,
    device: Device,
    policy: Policy,
    state: State,
    session: Option<Session>,
    link: Link,
    joining: joining::Joining,
    f_cnt_up: u32,
    f_cnt_down_next: u32,
    readings_taken: u32,
    slot: u64,
    first_slot_us: u64,
    band_open_us: u64,
    acknowledge_next: bool,
}

impl Mote {
    /// A mote that was switched on at `start_us`; its first reading falls due within one period.
    #[must_use]
    pub fn new(index: u32, device: Device, policy: Policy, start_us: u64) -> Self {
        let phase = policy.seed.below(Topic::Phase, &[u64::from(index)], policy.period_us);
        let personalised =
            Session { ordinal: 0, dev_addr: device.dev_addr, nwk_s_key: device.nwk_s_key, app_s_key: device.app_s_key };
        Self {
            index,
            session: device.otaa.is_none().then_some(personalised),
            device,
            policy,
            link: Link::new(policy.rx2_data_rate),
            joining: joining::Joining::default(),
            state: State::Idle,
            f_cnt_up: 0,
            f_cnt_down_next: 0,
            readings_taken: 0,
            slot: 0,
            first_slot_us: start_us + phase,
            band_open_us: 0,
            acknowledge_next: false,
        }
    }

    /// The mote's identity.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// What the mote is doing.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }

    /// When the next reading falls due: evenly spaced slots, shifted by up to a twentieth of the period.
    #[must_use]
    pub fn next_reading_us(&self) -> u64 {
        let shift = self.policy.seed.below(Topic::Jitter, &[u64::from(self.index), self.slot], self.policy.period_us / 20 + 1);
        self.first_slot_us + self.slot * self.policy.period_us + shift
    }

    /// Its session, if it has one.
    #[must_use]
    pub fn session(&self) -> Option<&Session> {
        self.session.as_ref()
    }

    /// The attempt and window that a downlink with these properties would fall into, if the mote listens there.
    #[must_use]
    pub fn open_window(&self, start_us: u64, frequency_hz: u32, data_rate: SpreadingFactor) -> Option<(AttemptId, Window)> {
        let State::Listening { exchange, receiving_until_us: None } = &self.state else { return None };
        let windows = &exchange.windows;
        let near = |delay_us: u64| start_us.abs_diff(exchange.end_us + delay_us) <= RX_TOLERANCE_US;
        let place = (frequency_hz, data_rate);
        if near(windows.rx1_delay_us) && place == (windows.rx1_frequency_hz, windows.rx1_data_rate) {
            Some((exchange.id(), Window::Rx1))
        } else if near(windows.rx2_delay_us()) && place == (windows.rx2_frequency_hz, windows.rx2_data_rate) {
            Some((exchange.id(), Window::Rx2))
        } else {
            None
        }
    }

    /// Takes an event at its time. Timers of attempts that are over have no effect.
    pub fn apply(&mut self, event: Event, now_us: u64) -> Vec<Effect> {
        let state = std::mem::replace(&mut self.state, State::Idle);
        let mut effects = Vec::new();
        self.state = match (state, event) {
            (state, Event::ReadingDue) => self.take_reading(state, now_us, &mut effects),
            (State::OnAir(exchange), Event::AirEnded(id)) if exchange.id() == id => {
                let at_us = exchange.windows.close_us(exchange.end_us);
                effects.push(Effect::Wake { at_us, event: Event::WindowsClosed(id) });
                State::Listening { exchange, receiving_until_us: None }
            }
            (State::Listening { exchange, receiving_until_us: None }, Event::DownlinkBegan { id, end_us })
                if exchange.id() == id =>
            {
                State::Listening { exchange, receiving_until_us: Some(end_us) }
            }
            (State::Listening { exchange, receiving_until_us: Some(_) }, Event::DownlinkEnded { id, window, bytes })
                if exchange.id() == id =>
            {
                self.judge_downlink(exchange, window, &bytes, now_us, &mut effects)
            }
            (State::Listening { exchange, receiving_until_us: None }, Event::WindowsClosed(id)) if exchange.id() == id => {
                self.end_unanswered(exchange, now_us, &mut effects)
            }
            (State::Backoff(exchange), Event::RetryDue(id)) if exchange.id() == id => self.retry(exchange, now_us, &mut effects),
            (State::Idle, Event::JoinDue) if self.session.is_none() => self.send_join_request(now_us, &mut effects),
            (
                state @ (State::Idle | State::OnAir(_) | State::Listening { .. } | State::Backoff(_)),
                Event::AirEnded(_)
                | Event::DownlinkBegan { .. }
                | Event::DownlinkEnded { .. }
                | Event::WindowsClosed(_)
                | Event::RetryDue(_)
                | Event::JoinDue,
            ) => state,
        };
        effects
    }

    fn take_reading(&mut self, state: State, now_us: u64, effects: &mut Vec<Effect>) -> State {
        self.slot += 1;
        effects.push(Effect::Wake { at_us: self.next_reading_us(), event: Event::ReadingDue });
        if matches!(state, State::Idle) {
            self.switch_off_if_due(now_us);
        }
        match (state, self.session.clone()) {
            (State::Idle, Some(session)) if now_us >= self.band_open_us => {
                let exchange = self.new_exchange(&session);
                if exchange.confirmed {
                    effects.push(Effect::ConfirmedPending(true));
                }
                self.transmit(exchange, now_us, effects)
            }
            (State::Idle, None) => {
                effects.push(Effect::ReadingSkipped);
                self.join_if_not_joining(now_us, effects)
            }
            (state @ (State::Idle | State::OnAir(_) | State::Listening { .. } | State::Backoff(_)), _) => {
                effects.push(Effect::ReadingSkipped);
                state
            }
        }
    }

    fn new_exchange(&mut self, session: &Session) -> Exchange {
        let mote = u64::from(self.index);
        let seed = self.policy.seed;
        let taken = u64::from(self.readings_taken);
        let first = low_u32(seed.below(Topic::FirstReading, &[mote], 1_000_000));
        // -10.0 to 39.9 degrees.
        let decicelsius = i16::try_from(seed.below(Topic::Temperature, &[mote, taken], 500)).unwrap_or(0) - 100;
        let reading = Reading { number: first.wrapping_add(self.readings_taken), decicelsius };
        let confirmed = seed.happens(Topic::Confirmed, &[mote, taken], self.policy.confirmed_ppm);
        let f_cnt = self.f_cnt_up;
        let acknowledge = std::mem::take(&mut self.acknowledge_next);
        let adr = self.policy.depth.adr;
        let mut options = self.link.begin_uplink(adr);
        if let Some(request) = self.request(taken).filter(|_| options.len() < OPTIONS_BYTES_MAX) {
            options.push(request.cid());
        }
        let asks_for_downlink = adr && self.link.asks_for_downlink();
        let header = Header { f_cnt, confirmed, acknowledge, adr, asks_for_downlink, options: &options };
        self.f_cnt_up += 1;
        self.readings_taken += 1;
        Exchange {
            content: Content::Reading(reading),
            session: session.ordinal,
            f_cnt,
            confirmed,
            bytes: build_data(session, &header, reading),
            options,
            attempt: 1,
            start_us: 0,
            end_us: 0,
            data_rate: self.link.data_rate,
            frequency_hz: CHANNELS_HZ[0],
            windows: self.windows(CHANNELS_HZ[0], self.link.data_rate),
        }
    }

    fn request(&self, taken: u64) -> Option<Request> {
        let parts = [u64::from(self.index), taken];
        let (seed, ppm) = (self.policy.seed, self.policy.depth.requests_ppm);
        let kind = seed.draw(Topic::Request, &[parts[0], parts[1], 1]);
        let request = if kind.is_multiple_of(2) { Request::LinkCheck } else { Request::DeviceTime };
        seed.happens(Topic::Request, &parts, ppm).then_some(request)
    }

    fn windows(&self, rx1_frequency_hz: u32, data_rate: SpreadingFactor) -> Windows {
        Windows {
            rx1_delay_us: self.link.rx1_delay_us,
            rx1_frequency_hz,
            rx1_data_rate: self.link.rx1_data_rate(data_rate),
            rx2_frequency_hz: self.link.rx2_frequency_hz,
            rx2_data_rate: self.link.rx2_data_rate,
        }
    }

    /// Puts the exchange on a channel and on air.
    fn transmit(&mut self, mut exchange: Exchange, now_us: u64, effects: &mut Vec<Effect>) -> State {
        let Content::Reading(reading) = exchange.content else { return State::Idle };
        let parts = [u64::from(self.index), exchange.id().number(), u64::from(exchange.attempt)];
        let channels = self.link.enabled();
        let drawn = usize::try_from(self.policy.seed.below(Topic::Channel, &parts, channels.len() as u64)).unwrap_or(0);
        let channel = channels.get(drawn).copied();
        exchange.frequency_hz = channel.map_or(CHANNELS_HZ[0], |channel| channel.frequency_hz);
        let rx1_frequency_hz = channel.map_or(exchange.frequency_hz, |channel| channel.rx1_frequency_hz);
        exchange.windows = self.windows(rx1_frequency_hz, exchange.data_rate);
        self.put_on_air(&mut exchange, now_us);
        effects.push(Effect::Record(MoteRecord::Attempt(Attempt {
            mote: self.index,
            dev_eui: self.device.dev_eui,
            session: exchange.session,
            reading: reading.number,
            decicelsius: reading.decicelsius,
            f_cnt: exchange.f_cnt,
            confirmed: exchange.confirmed,
            options: hex::encode(&exchange.options),
            attempt: exchange.attempt,
            start_us: exchange.start_us,
            end_us: exchange.end_us,
            data_rate: exchange.data_rate,
            frequency_hz: exchange.frequency_hz,
        })));
        effects.push(Effect::Wake { at_us: exchange.end_us, event: Event::AirEnded(exchange.id()) });
        State::OnAir(exchange)
    }

    fn put_on_air(&mut self, exchange: &mut Exchange, now_us: u64) {
        let airtime_us = exchange.data_rate.airtime_us(exchange.bytes.len(), true);
        exchange.start_us = now_us;
        exchange.end_us = now_us + airtime_us;
        if self.policy.duty_cycle {
            self.band_open_us = now_us + DUTY_CYCLE_FACTOR * airtime_us;
        }
    }

    fn end_unanswered(&mut self, exchange: Exchange, now_us: u64, effects: &mut Vec<Effect>) -> State {
        if matches!(exchange.content, Content::Join { .. }) {
            return self.schedule_join(&exchange, now_us, effects);
        }
        self.record_attempt_end(&exchange, None, now_us, effects);
        if exchange.confirmed {
            self.schedule_retry(exchange, now_us, effects)
        } else if exchange.attempt < self.link.transmissions.min(ATTEMPTS_MAX) {
            let at_us = now_us.max(self.band_open_us);
            effects.push(Effect::Wake { at_us, event: Event::RetryDue(exchange.id()) });
            State::Backoff(exchange)
        } else {
            self.finish(&exchange, None, now_us, effects)
        }
    }

    /// LMIC's `txDelay(rxtime, RETRY_PERIOD_secs)`: up to one second plus 0, 1 or 2 whole ones, not before the band opens.
    fn schedule_retry(&mut self, exchange: Exchange, now_us: u64, effects: &mut Vec<Effect>) -> State {
        if exchange.attempt >= ATTEMPTS_MAX {
            return self.finish(&exchange, None, now_us, effects);
        }
        let parts = [u64::from(self.index), exchange.id().number(), u64::from(exchange.attempt)];
        let random = self.policy.seed.draw(Topic::RetryDelay, &parts);
        let delay_us = random % 1_000_000 + (random >> 32) % RETRY_PERIOD_S * 1_000_000;
        let at_us = (now_us + delay_us).max(self.band_open_us);
        effects.push(Effect::Wake { at_us, event: Event::RetryDue(exchange.id()) });
        State::Backoff(exchange)
    }

    /// Same counter, same bytes; a confirmed one goes one data rate lower at the attempts 3, 5 and 7 (LMIC `DRADJUST`).
    fn retry(&mut self, mut exchange: Exchange, now_us: u64, effects: &mut Vec<Effect>) -> State {
        exchange.attempt += 1;
        if exchange.confirmed && exchange.attempt % 2 == 1 {
            exchange.data_rate = exchange.data_rate.lower_data_rate();
        }
        self.transmit(exchange, now_us, effects)
    }

    fn finish(&self, exchange: &Exchange, acknowledged: Option<Window>, now_us: u64, effects: &mut Vec<Effect>) -> State {
        let Content::Reading(reading) = exchange.content else { return State::Idle };
        effects.push(Effect::Record(MoteRecord::UplinkEnd(UplinkEnd {
            mote: self.index,
            dev_eui: self.device.dev_eui,
            session: exchange.session,
            reading: reading.number,
            f_cnt: exchange.f_cnt,
            confirmed: exchange.confirmed,
            attempts: exchange.attempt,
            acknowledged: if exchange.confirmed { acknowledged } else { None },
            at_us: now_us,
        })));
        if exchange.confirmed {
            effects.push(Effect::ConfirmedPending(false));
        }
        State::Idle
    }

    fn record_attempt_end(
        &self,
        exchange: &Exchange,
        answer: Option<(Window, u32, bool)>,
        now_us: u64,
        effects: &mut Vec<Effect>,
    ) {
        let Content::Reading(reading) = exchange.content else { return };
        effects.push(Effect::Record(MoteRecord::AttemptEnd(AttemptEnd {
            mote: self.index,
            dev_eui: self.device.dev_eui,
            session: exchange.session,
            reading: reading.number,
            f_cnt: exchange.f_cnt,
            attempt: exchange.attempt,
            answered: answer.map(|(window, _, _)| window),
            f_cnt_down: answer.map(|(_, f_cnt, _)| f_cnt),
            ack: answer.is_some_and(|(_, _, ack)| ack),
            at_us: now_us,
        })));
    }
}

impl Exchange {
    /// The address in its bytes; a join request has none.
    #[must_use]
    pub fn dev_addr(&self) -> Option<DevAddr> {
        match (self.content, self.bytes.get(1..5)) {
            (Content::Reading(_), Some(&[a, b, c, d])) => Some(DevAddr(u32::from_le_bytes([a, b, c, d]))),
            (Content::Reading(_) | Content::Join { .. }, _) => None,
        }
    }

    /// The name of this attempt.
    #[must_use]
    pub fn id(&self) -> AttemptId {
        AttemptId { session: self.session, f_cnt: self.f_cnt, attempt: self.attempt }
    }
}

#[cfg(test)]
#[path = "mote_tests.rs"]
mod tests;
