//! What comes in a window: LMIC's `decodeFrame`. Address, length and integrity code first, then the counter; an acknowledgement ends the
//! exchange.

use super::{Content, Effect, Exchange, FCNT_GAP_MAX, Mote, State, Window};
use crate::frame::{self, Downlink};
use crate::ledger::{DownlinkDropped, DownlinkReceived, DropReason, MoteRecord};
use crate::seed::low_u16;

impl Mote {
    pub(super) fn judge_downlink(
        &mut self,
        exchange: Exchange,
        window: Window,
        bytes: &[u8],
        now_us: u64,
        effects: &mut Vec<Effect>,
    ) -> State {
        let refused = match exchange.content {
            Content::Join { dev_nonce } => match self.read_accept(dev_nonce, bytes) {
                Ok(accept) => {
                    self.begin_session(dev_nonce, &accept, window, now_us, effects);
                    return State::Idle;
                }
                Err(reason) => (reason, None),
            },
            Content::Reading(_) => match self.accept_downlink(bytes) {
                Ok(downlink) => {
                    self.take_downlink(&downlink, window, now_us, effects);
                    self.record_attempt_end(&exchange, Some((window, downlink.f_cnt, downlink.ack)), now_us, effects);
                    // LMIC does not resend after a downlink without ACK: the uplink ends as not acknowledged.
                    return self.finish(&exchange, downlink.ack.then_some(window), now_us, effects);
                }
                Err(refused) => refused,
            },
        };
        self.refuse(exchange, refused, window, now_us, effects)
    }

    fn refuse(
        &mut self,
        exchange: Exchange,
        (reason, f_cnt_low): (DropReason, Option<u16>),
        window: Window,
        now_us: u64,
        effects: &mut Vec<Effect>,
    ) -> State {
        effects.push(Effect::Record(MoteRecord::DownlinkDropped(DownlinkDropped {
            mote: self.index,
            dev_eui: self.device.dev_eui,
            reason,
            f_cnt_low,
            f_cnt_down_next: self.f_cnt_down_next,
            window,
            at_us: now_us,
        })));
        if now_us >= exchange.windows.close_us(exchange.end_us) {
            self.end_unanswered(exchange, now_us, effects)
        } else {
            State::Listening { exchange, receiving_until_us: None }
        }
    }

    fn accept_downlink(&self, bytes: &[u8]) -> Result<Downlink, (DropReason, Option<u16>)> {
        let header = frame::parse_downlink(bytes).map_err(|_| (DropReason::Malformed, None))?;
        let wire = header.f_cnt_low;
        let session = self.session.as_ref().filter(|session| session.dev_addr == header.dev_addr);
        let Some(session) = session else { return Err((DropReason::Address, Some(wire))) };
        let step = wire.wrapping_sub(low_u16(self.f_cnt_down_next));
        let f_cnt = self.f_cnt_down_next.wrapping_add(u32::from(step));
        let authentic = |f_cnt| frame::is_downlink_authentic(bytes, &session.nwk_s_key, f_cnt);
        if !authentic(f_cnt) {
            // LMIC sees only a wrong MIC here. A counter from the past is what a server that reuses counters would
            // send, so the ledger tells it apart.
            let replayed = f_cnt.checked_sub(1 << 16).is_some_and(authentic);
            return Err((if replayed { DropReason::Replay } else { DropReason::Mic }, Some(wire)));
        }
        if step > FCNT_GAP_MAX {
            return Err((DropReason::Gap, Some(wire)));
        }
        Ok(frame::open_downlink(bytes, session, f_cnt))
    }

    /// Commands are carried out, a payload is written down.
    fn take_downlink(&mut self, downlink: &Downlink, window: Window, now_us: u64, effects: &mut Vec<Effect>) {
        self.f_cnt_down_next = downlink.f_cnt.wrapping_add(1);
        self.acknowledge_next |= downlink.confirmed;
        self.link.begin_downlink();
        let commands = self.link.take_commands(&downlink.commands);
        if !downlink.commands.is_empty() || downlink.f_port.is_some() || downlink.confirmed {
            effects.push(Effect::Record(MoteRecord::DownlinkReceived(DownlinkReceived {
                mote: self.index,
                dev_eui: self.device.dev_eui,
                session: self.session.as_ref().map_or(0, |session| session.ordinal),
                f_cnt: downlink.f_cnt,
                confirmed: downlink.confirmed,
                f_port: downlink.f_port,
                payload: hex::encode(&downlink.payload),
                commands: hex::encode(commands),
                window,
                at_us: now_us,
            })));
        }
    }
}
