//! One mote: LoRaWAN 1.0.x, class A, ABP, EU868 default channels, with LMIC's rules for retries and for downlinks (pure).
//!
//! Sources: LoRaWAN 1.0.2 chapters 3 and 4, mcci-catena/arduino-lmic v6.0.1 `lmic.c` (`processDnData`, `txDelay`, `decodeFrame`).
//! Differences from LMIC, on purpose: the data rate returns to its base with the next reading (LMIC leaves that to the
//! application or to ADR), and a reading that falls due while the mote is busy or its band is closed is not taken at all, so that
//! reading numbers have no gaps.

use serde::{Deserialize, Serialize};

use crate::airtime::SpreadingFactor;
use crate::fleet::Device;
use crate::frame::{self, Reading, build_uplink};
use crate::ledger::{Attempt, AttemptEnd, DownlinkDropped, DropReason, MoteRecord, UplinkEnd};
use crate::seed::{Seed, Topic, low_u16, low_u32};

/// Attempts for one confirmed uplink (LMIC `TXCONF_ATTEMPTS`).
pub const ATTEMPTS_MAX: u8 = 8;
/// Random period of a retry in seconds (LMIC `RETRY_PERIOD_secs`).
pub const RETRY_PERIOD_S: u64 = 3;
/// End of the uplink to the start of the first window (`RECEIVE_DELAY1`).
pub const RX1_DELAY_US: u64 = 1_000_000;
/// End of the uplink to the start of the second window (`RECEIVE_DELAY2`).
pub const RX2_DELAY_US: u64 = 2_000_000;
/// A downlink must start this close to its window (LoRaWAN 1.0.2, 3.3).
pub const RX_TOLERANCE_US: u64 = 20;
/// Symbols for which a window stays open without a preamble.
const RX_SYMBOLS: u64 = 8;
/// Largest step of the downlink counter that LMIC accepts (`MAX_FCNT_GAP`).
pub const FCNT_GAP_MAX: u16 = 16_384;
/// The three default channels of EU868.
pub const CHANNELS_HZ: [u32; 3] = [868_100_000, 868_300_000, 868_500_000];
/// Frequency of the second window in EU868.
pub const RX2_FREQUENCY_HZ: u32 = 869_525_000;
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

/// One transmission of a mote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exchange {
    /// What is sent.
    pub reading: Reading,
    /// Full uplink counter.
    pub f_cnt: u32,
    /// Asks for an acknowledgement.
    pub confirmed: bool,
    /// The same bytes for every attempt.
    pub bytes: Vec<u8>,
    /// 1 to [`ATTEMPTS_MAX`].
    pub attempt: u8,
    /// Start of this attempt on air.
    pub start_us: u64,
    /// End of this attempt on air; the windows count from here.
    pub end_us: u64,
    /// Data rate of this attempt.
    pub data_rate: SpreadingFactor,
    /// Channel of this attempt.
    pub frequency_hz: u32,
}

/// Names one attempt, so that a timer of an earlier one is recognised as stale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttemptId {
    /// Uplink counter.
    pub f_cnt: u32,
    /// Number of the attempt.
    pub attempt: u8,
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
    /// A reading was due while the mote was busy.
    ReadingSkipped,
}

/// A mote with its state.
#[derive(Clone, Debug)]
pub struct Mote {
    index: u32,
    device: Device,
    policy: Policy,
    state: State,
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
        Self {
            index,
            device,
            policy,
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

    /// The attempt and window that a downlink with these properties would fall into, if the mote listens there.
    #[must_use]
    pub fn open_window(&self, start_us: u64, frequency_hz: u32, data_rate: SpreadingFactor) -> Option<(AttemptId, Window)> {
        let State::Listening { exchange, receiving_until_us: None } = &self.state else { return None };
        let near = |delay_us: u64| start_us.abs_diff(exchange.end_us + delay_us) <= RX_TOLERANCE_US;
        if near(RX1_DELAY_US) && frequency_hz == exchange.frequency_hz && data_rate == exchange.data_rate {
            Some((exchange.id(), Window::Rx1))
        } else if near(RX2_DELAY_US) && frequency_hz == RX2_FREQUENCY_HZ && data_rate == self.policy.rx2_data_rate {
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
                let close_us = exchange.end_us + RX2_DELAY_US + RX_SYMBOLS * self.policy.rx2_data_rate.symbol_us();
                effects.push(Effect::Wake { at_us: close_us, event: Event::WindowsClosed(id) });
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
            (
                state @ (State::Idle | State::OnAir(_) | State::Listening { .. } | State::Backoff(_)),
                Event::AirEnded(_)
                | Event::DownlinkBegan { .. }
                | Event::DownlinkEnded { .. }
                | Event::WindowsClosed(_)
                | Event::RetryDue(_),
            ) => state,
        };
        effects
    }

    fn take_reading(&mut self, state: State, now_us: u64, effects: &mut Vec<Effect>) -> State {
        self.slot += 1;
        effects.push(Effect::Wake { at_us: self.next_reading_us(), event: Event::ReadingDue });
        match state {
            State::Idle if now_us >= self.band_open_us => {
                let exchange = self.new_exchange();
                if exchange.confirmed {
                    effects.push(Effect::ConfirmedPending(true));
                }
                self.transmit(exchange, now_us, effects)
            }
            state @ (State::Idle | State::OnAir(_) | State::Listening { .. } | State::Backoff(_)) => {
                effects.push(Effect::ReadingSkipped);
                state
            }
        }
    }

    fn new_exchange(&mut self) -> Exchange {
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
        self.f_cnt_up += 1;
        self.readings_taken += 1;
        Exchange {
            reading,
            f_cnt,
            confirmed,
            bytes: build_uplink(&self.device, f_cnt, confirmed, acknowledge, reading),
            attempt: 1,
            start_us: 0,
            end_us: 0,
            data_rate: SpreadingFactor::SF7,
            frequency_hz: CHANNELS_HZ[0],
        }
    }

    fn transmit(&mut self, mut exchange: Exchange, now_us: u64, effects: &mut Vec<Effect>) -> State {
        let parts = [u64::from(self.index), u64::from(exchange.f_cnt), u64::from(exchange.attempt)];
        let channel = usize::try_from(self.policy.seed.below(Topic::Channel, &parts, CHANNELS_HZ.len() as u64)).unwrap_or(0);
        let airtime_us = exchange.data_rate.airtime_us(exchange.bytes.len(), true);
        exchange.frequency_hz = CHANNELS_HZ[channel];
        exchange.start_us = now_us;
        exchange.end_us = now_us + airtime_us;
        if self.policy.duty_cycle {
            self.band_open_us = now_us + DUTY_CYCLE_FACTOR * airtime_us;
        }
        effects.push(Effect::Record(MoteRecord::Attempt(Attempt {
            mote: self.index,
            dev_eui: self.device.dev_eui,
            reading: exchange.reading.number,
            decicelsius: exchange.reading.decicelsius,
            f_cnt: exchange.f_cnt,
            confirmed: exchange.confirmed,
            attempt: exchange.attempt,
            start_us: exchange.start_us,
            end_us: exchange.end_us,
            data_rate: exchange.data_rate,
            frequency_hz: exchange.frequency_hz,
        })));
        effects.push(Effect::Wake { at_us: exchange.end_us, event: Event::AirEnded(exchange.id()) });
        State::OnAir(exchange)
    }

    /// LMIC's `decodeFrame`: address, length and MIC first, then the counter; an acknowledgement ends the exchange.
    fn judge_downlink(
        &mut self,
        exchange: Exchange,
        window: Window,
        bytes: &[u8],
        now_us: u64,
        effects: &mut Vec<Effect>,
    ) -> State {
        match self.accept_downlink(bytes) {
            Ok((f_cnt_down, header)) => {
                self.f_cnt_down_next = f_cnt_down.wrapping_add(1);
                self.acknowledge_next |= header.confirmed;
                self.record_attempt_end(&exchange, Some((window, f_cnt_down, header.ack)), now_us, effects);
                // LMIC does not resend after a downlink without ACK: the uplink ends as not acknowledged.
                self.finish(&exchange, header.ack.then_some(window), now_us, effects)
            }
            Err((reason, f_cnt_low)) => {
                effects.push(Effect::Record(MoteRecord::DownlinkDropped(DownlinkDropped {
                    mote: self.index,
                    dev_eui: self.device.dev_eui,
                    reason,
                    f_cnt_low,
                    f_cnt_down_next: self.f_cnt_down_next,
                    window,
                    at_us: now_us,
                })));
                let close_us = exchange.end_us + RX2_DELAY_US + RX_SYMBOLS * self.policy.rx2_data_rate.symbol_us();
                if now_us >= close_us {
                    self.end_unanswered(exchange, now_us, effects)
                } else {
                    State::Listening { exchange, receiving_until_us: None }
                }
            }
        }
    }

    fn accept_downlink(&self, bytes: &[u8]) -> Result<(u32, frame::DownlinkHeader), (DropReason, Option<u16>)> {
        let header = frame::parse_downlink(bytes).map_err(|_| (DropReason::Malformed, None))?;
        let wire = header.f_cnt_low;
        if header.dev_addr != self.device.dev_addr {
            return Err((DropReason::Address, Some(wire)));
        }
        let step = wire.wrapping_sub(low_u16(self.f_cnt_down_next));
        let f_cnt = self.f_cnt_down_next.wrapping_add(u32::from(step));
        let authentic = |f_cnt| frame::is_downlink_authentic(bytes, &self.device.nwk_s_key, f_cnt);
        if !authentic(f_cnt) {
            // LMIC sees only a wrong MIC here. A counter from the past is what a server that reuses counters would
            // send, so the ledger tells it apart.
            let replayed = f_cnt.checked_sub(1 << 16).is_some_and(authentic);
            return Err((if replayed { DropReason::Replay } else { DropReason::Mic }, Some(wire)));
        }
        if step > FCNT_GAP_MAX {
            return Err((DropReason::Gap, Some(wire)));
        }
        Ok((f_cnt, header))
    }

    fn end_unanswered(&mut self, exchange: Exchange, now_us: u64, effects: &mut Vec<Effect>) -> State {
        self.record_attempt_end(&exchange, None, now_us, effects);
        if exchange.confirmed {
            self.schedule_retry(exchange, now_us, effects)
        } else {
            self.finish(&exchange, None, now_us, effects)
        }
    }

    /// LMIC's `txDelay(rxtime, RETRY_PERIOD_secs)`: up to one second plus 0, 1 or 2 whole ones, not before the band opens.
    fn schedule_retry(&mut self, exchange: Exchange, now_us: u64, effects: &mut Vec<Effect>) -> State {
        if exchange.attempt >= ATTEMPTS_MAX {
            return self.finish(&exchange, None, now_us, effects);
        }
        let parts = [u64::from(self.index), u64::from(exchange.f_cnt), u64::from(exchange.attempt)];
        let random = self.policy.seed.draw(Topic::RetryDelay, &parts);
        let delay_us = random % 1_000_000 + (random >> 32) % RETRY_PERIOD_S * 1_000_000;
        let at_us = (now_us + delay_us).max(self.band_open_us);
        effects.push(Effect::Wake { at_us, event: Event::RetryDue(exchange.id()) });
        State::Backoff(exchange)
    }

    /// Same counter, same bytes; one data rate lower at the attempts 3, 5 and 7 (LMIC `DRADJUST`).
    fn retry(&mut self, mut exchange: Exchange, now_us: u64, effects: &mut Vec<Effect>) -> State {
        exchange.attempt += 1;
        if exchange.attempt % 2 == 1 {
            exchange.data_rate = exchange.data_rate.lower_data_rate();
        }
        self.transmit(exchange, now_us, effects)
    }

    fn finish(&self, exchange: &Exchange, acknowledged: Option<Window>, now_us: u64, effects: &mut Vec<Effect>) -> State {
        effects.push(Effect::Record(MoteRecord::UplinkEnd(UplinkEnd {
            mote: self.index,
            dev_eui: self.device.dev_eui,
            reading: exchange.reading.number,
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
        effects.push(Effect::Record(MoteRecord::AttemptEnd(AttemptEnd {
            mote: self.index,
            dev_eui: self.device.dev_eui,
            reading: exchange.reading.number,
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
    /// The name of this attempt.
    #[must_use]
    pub fn id(&self) -> AttemptId {
        AttemptId { f_cnt: self.f_cnt, attempt: self.attempt }
    }
}

#[cfg(test)]
#[path = "mote_tests.rs"]
mod tests;
