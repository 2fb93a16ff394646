//! Joining over the air: a request with a new nonce, windows after 5 and 6 s, then ever longer waits.

use super::{CHANNELS_HZ, Content, Effect, Event, Exchange, Mote, State, Window, Windows};
use crate::airtime::SpreadingFactor;
use crate::fleet::{JoinRules, Otaa};
use crate::frame::Session;
use crate::join::{self, ACCEPT_DELAY1_US, Accept};
use crate::ledger::{DropReason, JoinAttempt, Joined, MoteRecord};
use crate::link::{Link, RX2_FREQUENCY_HZ};
use crate::seed::{Topic, low_u16, low_u32};

/// The first wait between two requests is below this, each further one below twice the last.
const WAIT_US: u64 = 5_000_000;
/// Times that the wait is doubled.
const DOUBLED_MAX: u32 = 4;

/// What a mote knows of its joins.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Joining {
    /// Requests sent in its life.
    requests: u32,
    /// Since it was switched on without a session.
    tries: u32,
    /// A request is on air, listened for, or waited for.
    is_under_way: bool,
    join_nonce: Option<u32>,
    joined_us: u64,
    /// Sessions in its life.
    sessions: u32,
}

impl Mote {
    /// The owner switches a mote off and on: the session is gone, and with it all counters.
    pub(super) fn switch_off_if_due(&mut self, now_us: u64) {
        let rejoin_us = self.policy.depth.rejoin_us;
        if self.device.otaa.is_some() && rejoin_us > 0 && self.session.is_some() && now_us >= self.joining.joined_us + rejoin_us {
            self.session = None;
            self.acknowledge_next = false;
        }
    }

    pub(super) fn join_if_not_joining(&mut self, now_us: u64, effects: &mut Vec<Effect>) -> State {
        if self.joining.is_under_way {
            return State::Idle;
        }
        self.joining.tries = 0;
        if now_us >= self.band_open_us {
            self.send_join_request(now_us, effects)
        } else {
            self.joining.is_under_way = true;
            effects.push(Effect::Wake { at_us: self.band_open_us, event: Event::JoinDue });
            State::Idle
        }
    }

    pub(super) fn send_join_request(&mut self, now_us: u64, effects: &mut Vec<Effect>) -> State {
        let Some(otaa) = self.device.otaa.clone() else { return State::Idle };
        let dev_nonce = self.new_nonce(&otaa);
        let request = self.joining.requests;
        // One data rate lower with every other request (LMIC).
        let mut data_rate = SpreadingFactor::SF7;
        (0..self.joining.tries / 2).for_each(|_| data_rate = data_rate.lower_data_rate());
        self.joining.requests += 1;
        self.joining.tries += 1;
        self.joining.is_under_way = true;
        let parts = [u64::from(self.index), u64::from(request), 0];
        let drawn = usize::try_from(self.policy.seed.below(Topic::DevNonce, &parts, CHANNELS_HZ.len() as u64)).unwrap_or(0);
        let frequency_hz = CHANNELS_HZ[drawn];
        let mut exchange = Exchange {
            content: Content::Join { dev_nonce },
            session: self.joining.sessions,
            f_cnt: request,
            confirmed: false,
            bytes: join::request(self.device.dev_eui, &otaa, dev_nonce),
            options: Vec::new(),
            attempt: 0,
            start_us: now_us,
            end_us: now_us,
            data_rate,
            frequency_hz,
            windows: Windows {
                rx1_delay_us: ACCEPT_DELAY1_US,
                rx1_frequency_hz: frequency_hz,
                rx1_data_rate: data_rate,
                // Those of the region, whatever the mote will be told in the accept.
                rx2_frequency_hz: RX2_FREQUENCY_HZ,
                rx2_data_rate: SpreadingFactor::SF12,
            },
        };
        self.put_on_air(&mut exchange, now_us);
        effects.push(Effect::Record(MoteRecord::JoinAttempt(JoinAttempt {
            mote: self.index,
            dev_eui: self.device.dev_eui,
            dev_nonce,
            request,
            start_us: exchange.start_us,
            end_us: exchange.end_us,
            data_rate,
            frequency_hz,
        })));
        effects.push(Effect::Wake { at_us: exchange.end_us, event: Event::AirEnded(exchange.id()) });
        State::OnAir(exchange)
    }

    fn new_nonce(&self, otaa: &Otaa) -> u16 {
        match otaa.rules {
            JoinRules::V1_0_3 => {
                let parts = [u64::from(self.index), u64::from(self.joining.requests), 1];
                low_u16(low_u32(self.policy.seed.draw(Topic::DevNonce, &parts)))
            }
            JoinRules::V1_0_4 => low_u16(self.joining.requests),
        }
    }

    /// Nobody accepted.
    pub(super) fn schedule_join(&mut self, exchange: &Exchange, now_us: u64, effects: &mut Vec<Effect>) -> State {
        let bound_us = WAIT_US << self.joining.tries.saturating_sub(1).min(DOUBLED_MAX);
        let parts = [u64::from(self.index), u64::from(exchange.f_cnt)];
        let wait_us = self.policy.seed.below(Topic::JoinDelay, &parts, bound_us);
        let at_us = (now_us + wait_us).max(self.band_open_us);
        effects.push(Effect::Wake { at_us, event: Event::JoinDue });
        State::Idle
    }

    /// Whether bytes are an accept of this request, by the rules of this mote.
    pub(super) fn read_accept(&self, dev_nonce: u16, bytes: &[u8]) -> Result<Accept, DropReason> {
        let otaa = self.device.otaa.as_ref().ok_or(DropReason::Malformed)?;
        if !join::is_accept(bytes) {
            return Err(DropReason::Malformed);
        }
        let accept = join::read_accept(&otaa.app_key, dev_nonce, bytes).ok_or(DropReason::Mic)?;
        let is_risen = self.joining.join_nonce.is_none_or(|last| accept.join_nonce > last);
        match otaa.rules {
            JoinRules::V1_0_4 if !is_risen => Err(DropReason::JoinNonce),
            JoinRules::V1_0_3 | JoinRules::V1_0_4 => Ok(accept),
        }
    }

    pub(super) fn begin_session(
        &mut self,
        dev_nonce: u16,
        accept: &Accept,
        window: Window,
        now_us: u64,
        effects: &mut Vec<Effect>,
    ) {
        self.joining.sessions += 1;
        self.joining.join_nonce = Some(accept.join_nonce);
        self.joining.is_under_way = false;
        self.joining.joined_us = now_us;
        let session = Session {
            ordinal: self.joining.sessions,
            dev_addr: accept.dev_addr,
            nwk_s_key: accept.nwk_s_key,
            app_s_key: accept.app_s_key,
        };
        self.link = Link::after_join(accept, self.policy.rx2_data_rate);
        self.f_cnt_up = 0;
        self.f_cnt_down_next = 0;
        self.session = Some(session.clone());
        effects.push(Effect::Record(MoteRecord::Joined(Joined {
            mote: self.index,
            dev_eui: self.device.dev_eui,
            session: session.ordinal,
            dev_nonce,
            join_nonce: accept.join_nonce,
            dev_addr: session.dev_addr,
            window,
            at_us: now_us,
        })));
        effects.push(Effect::Joined(session));
    }
}
