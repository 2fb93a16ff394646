//! What is owed to devices: acknowledged only after the uplink is on disk, only with custody, only with a counter that is written ahead.

use contracts::ids::{DevEui, Epoch, EventId};
use contracts::time::{BootTime, Millis, WallTime};

use super::io::{Mode, Now, Output, Transmit};
use super::{Bridge, RESERVE_RETRY};
use crate::gwmp::gateways::Route;
use crate::gwmp::rxpk::RxMeta;
use crate::gwmp::txpk::{self, Txpk};
use crate::gwmp::{self, GatewayEui, Token, Version};
use crate::mac::adr::Setting;
use crate::mac::downlink::{self, Answer, F_OPTS_BYTES_MAX, Frame, Timing, Wants, Window};
use crate::mac::duty_cycle::{self, Booking};
use crate::mac::queue::Queue;
use crate::mac::registry::SlotIndex;
use crate::mac::session::{Entry, Mark};
use crate::stats::MissedReason;

/// A gateway tells what became of a downlink within this time, or never.
const TX_ACK_WITHIN: Millis = Millis::from_secs(5);

/// Everything that an answer needs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plan {
    /// The uplink that is answered.
    pub mark: Mark,
    pub wants: Wants,
    pub gateway: GatewayEui,
    pub rx: RxMeta,
    /// When the transmission was first heard.
    pub heard: BootTime,
    pub heard_at: WallTime,
    pub gateways: u8,
    pub rx2_only: bool,
    /// What the device is to be told of its data rate.
    pub adr: Option<Setting>,
}

impl Plan {
    const fn timing(&self, rx2_only: bool) -> Timing {
        Timing {
            heard: self.heard,
            frequency_hz: self.rx.frequency_hz,
            data_rate: self.rx.data_rate,
            rx2_only: rx2_only || self.rx2_only,
        }
    }

    fn answer(&self) -> Answer {
        let snr = self.rx.snr_decibel_tenths.unwrap_or(0);
        let margin = (snr.saturating_sub(self.rx.data_rate.required_snr_decibel_tenths()) / 10).clamp(0, 254);
        Answer {
            ack: self.wants.ack,
            link_check: self.wants.link_check.then(|| (u8::try_from(margin).unwrap_or(0), self.gateways)),
            device_time: self.wants.device_time.then_some(self.heard_at),
        }
    }
}

/// An answer that waits: for the disk, for custody, for a counter.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pending {
    pub event: EventId,
    pub plan: Plan,
    pub is_committed: bool,
    /// The node that serves has the uplink and answers it.
    pub is_answered_elsewhere: bool,
}

/// A downlink whose fate the gateway has not told.
#[derive(Debug, Clone, Copy)]
pub(super) struct Outstanding {
    slot: SlotIndex,
    plan: Plan,
    window: Window,
    gateway: GatewayEui,
    epoch: Epoch,
    sent: BootTime,
    f_cnt_down: u32,
    booking: Option<Booking>,
}

/// A window and what it costs.
#[derive(Debug, Clone, Copy)]
struct Choice {
    window: Window,
    frequency_hz: u32,
    micros: u64,
}

/// A downlink on its way to the gateway.
#[derive(Clone, Copy)]
struct Sending {
    slot: SlotIndex,
    plan: Plan,
    choice: Choice,
    epoch: Epoch,
    now: Now,
}

/// What came of an attempt to answer.
enum Attempt {
    /// Or there is nothing to send any more.
    Sent,
    /// No counter is written ahead, or the payload is not encrypted.
    Waits,
    Missed(MissedReason),
}

impl Bridge {
    pub(super) fn committed(&mut self, events: &[EventId], now: Now, out: &mut Vec<Output>) {
        for event in events {
            let Some(landed) = self.land(event) else { continue };
            self.stats.committed += 1;
            if landed.is_buffered {
                self.buffer.remove(event);
            }
            let Some(entry) = self.registry.get_mut(landed.slot) else { continue };
            if (entry.device, entry.session) != (landed.mark.device, landed.mark.session) {
                continue;
            }
            entry.note_served(landed.mark.f_cnt);
            if let Some(pending) = self.pending.get_mut(&landed.slot).filter(|pending| pending.event == *event) {
                pending.is_committed = true;
                self.try_answer(landed.slot, now, out);
            }
        }
    }

    /// Sends what is owed to a session if it may be sent now.
    pub(super) fn try_answer(&mut self, slot: SlotIndex, now: Now, out: &mut Vec<Output>) {
        let Some(pending) = self.pending.get(&slot).filter(|pending| pending.is_committed && !pending.is_answered_elsewhere)
        else {
            return;
        };
        let plan = pending.plan;
        let Some(mode) = self.registry.get(slot).and_then(|entry| self.groups.get(&entry.group)).map(|group| group.mode) else {
            return;
        };
        let Mode::Serving { epoch, foreign_lease_end } = mode else { return };
        // Another node may have answered in RX1; a device that heard it does not listen in RX2.
        let rx2_only = foreign_lease_end.is_some_and(|end| plan.heard < end);
        match self.attempt(slot, plan, rx2_only, epoch, now, out) {
            Attempt::Sent => {
                self.pending.remove(&slot);
            }
            Attempt::Waits => {}
            Attempt::Missed(reason) => {
                self.pending.remove(&slot);
                self.stats.miss(reason);
            }
        }
    }

    fn attempt(&mut self, slot: SlotIndex, plan: Plan, rx2_only: bool, epoch: Epoch, now: Now, out: &mut Vec<Output>) -> Attempt {
        let Some(route) = self.gateways.route(plan.gateway, now.boot) else {
            return Attempt::Missed(MissedReason::NoRoute);
        };
        let Some(tmst) = plan.rx.tmst else {
            return Attempt::Missed(MissedReason::NoTimestamp);
        };
        let Some(entry) = self.registry.get(slot).filter(|entry| entry.session == plan.mark.session) else {
            return Attempt::Missed(MissedReason::NoCustody);
        };
        let (group, device, windows) = (entry.group, entry.device, entry.receive_windows);
        let timing = plan.timing(rx2_only);
        if downlink::reachable(&windows, &timing, self.config.answer_margin, now.boot).is_none() {
            return Attempt::Missed(MissedReason::TooLate);
        }
        let queue = self.queues.get(&device);
        let ready = entry.down.peek().and_then(|f_cnt| queue?.ready(entry.session, f_cnt));
        let is_due = plan.wants.is_answer() || plan.adr.is_some();
        if ready.is_none() && !is_due && queue.is_none_or(|queue| !queue.is_waiting()) {
            return Attempt::Sent;
        }
        if entry.down.peek().is_none() {
            self.want(slot);
            return Attempt::Waits;
        }
        if ready.is_none() && !is_due {
            self.ask_for_encryption(device);
            return Attempt::Waits;
        }
        let mut commands = Vec::with_capacity(F_OPTS_BYTES_MAX);
        plan.answer().write_commands(&mut commands);
        let setting = plan.adr.filter(|_| commands.len() + 5 <= F_OPTS_BYTES_MAX);
        commands.extend(setting.iter().flat_map(|setting| setting.request()));
        let bare = Frame {
            ack: plan.wants.ack,
            adr: self.groups.get(&group).is_some_and(|group| group.adr),
            pending: queue.is_some_and(Queue::is_waiting),
            commands: &commands,
            ..Frame::default()
        };
        let full = ready.as_ref().map(|ready| Frame {
            is_confirmed: ready.confirmed,
            pending: ready.more,
            payload: Some((ready.f_port, &ready.payload)),
            ..bare
        });
        let full_choice = full.as_ref().and_then(|frame| self.choose(entry, &plan, &timing, frame, now));
        let (frame, choice) = match (&full, full_choice) {
            (Some(frame), Some(choice)) => (frame, choice),
            _ if is_due => match self.choose(entry, &plan, &timing, &bare, now) {
                Some(choice) => (&bare, choice),
                None => return Attempt::Missed(MissedReason::DutyCycle),
            },
            _ => return Attempt::Missed(MissedReason::DutyCycle),
        };
        let sending = Sending { slot, plan, choice, epoch, now };
        self.send_frame(&sending, frame, setting, route, downlink::slot(&windows, &timing, choice.window, tmst), out)
    }

    /// Takes a counter, makes the frame, and hands it over.
    fn send_frame(
        &mut self,
        sending: &Sending,
        frame: &Frame<'_>,
        setting: Option<Setting>,
        route: Route,
        place: downlink::Slot,
        out: &mut Vec<Output>,
    ) -> Attempt {
        let Sending { slot, plan, choice, epoch, .. } = *sending;
        let Some(entry) = self.registry.get_mut(slot) else { return Attempt::Missed(MissedReason::NoCustody) };
        let (group, device) = (entry.group, entry.device);
        let Some(f_cnt_down) = entry.down.take() else { return Attempt::Waits };
        let Some(phy) = downlink::build(entry.dev_addr, entry.nwk_s_key, f_cnt_down, frame) else {
            return Attempt::Missed(MissedReason::Unbuildable);
        };
        if let Some(setting) = setting {
            entry.adr.note_asked(setting);
        }
        if plan.wants.ack {
            entry.answered = Some(plan.mark.f_cnt);
        }
        let bytes = self.hand_over(sending, f_cnt_down, route, place, &phy);
        if frame.payload.is_some() {
            self.note_payload_sent(sending, f_cnt_down, device, route.version, out);
        }
        out.push(Output::Transmit(Transmit {
            group,
            epoch,
            device,
            event: plan.mark.event(),
            f_cnt_down,
            window: choice.window,
            gateway: plan.gateway,
            to: route.address,
            bytes,
        }));
        self.want(slot);
        self.ask_for_encryption(device);
        Attempt::Sent
    }

    /// The window for a frame: RX1 if it can be reached, takes the frame, and its sub-band has time left; else RX2 likewise.
    ///
    /// RX1 with little left gives way to RX2 if the frame costs less of what is left there. What nobody waits for leaves a tenth of the
    /// hour to acknowledgements.
    fn choose(&self, entry: &Entry, plan: &Plan, timing: &Timing, frame: &Frame<'_>, now: Now) -> Option<Choice> {
        let region = self.region();
        let windows = downlink::reachable_windows(&entry.receive_windows, timing, self.config.answer_margin, now.boot);
        let mut choices = windows.filter_map(|window| {
            let place = downlink::slot(&entry.receive_windows, timing, window, 0);
            let micros = duty_cycle::time_on_air_micros(place.data_rate, frame.len(), false);
            let left = self.ledger.left_micros(plan.gateway, place.frequency_hz, now.boot);
            let budget = self.ledger.budget_micros(place.frequency_hz);
            let kept = if plan.wants.is_answer() { 0 } else { budget / 10 };
            let fits = frame.mac_payload_len() <= region.mac_payload_bytes_max(place.data_rate) && micros + kept <= left;
            fits.then_some((Choice { window, frequency_hz: place.frequency_hz, micros }, left, budget))
        });
        let (first, left, budget) = choices.next()?;
        let second = choices.next().filter(|(second, left_there, _)| {
            left * 4 < budget && u128::from(first.micros) * u128::from(*left_there) > u128::from(second.micros) * u128::from(left)
        });
        Some(second.map_or(first, |(second, ..)| second))
    }

    /// Counts the time on air, makes the datagram, and waits for the gateway's word.
    fn hand_over(&mut self, sending: &Sending, f_cnt_down: u32, route: Route, place: downlink::Slot, phy: &[u8]) -> Vec<u8> {
        let Sending { slot, plan, choice, epoch, now } = *sending;
        let txpk = Txpk {
            tmst: place.tmst,
            frequency_hz: place.frequency_hz,
            data_rate: place.data_rate,
            power_dbm: self.config.power_dbm,
            phy,
        };
        let token = self.next_token;
        self.next_token = token.wrapping_add(1);
        let bytes = gwmp::pull_resp(route.version, token.to_be_bytes(), &txpk);
        let booking = self.ledger.book(plan.gateway, choice.frequency_hz, choice.micros, now.boot);
        let window = choice.window;
        if route.version == Version::V2 {
            let gateway = plan.gateway;
            self.await_tx_ack(token, Outstanding { slot, plan, window, gateway, epoch, sent: now.boot, f_cnt_down, booking });
        }
        match window {
            Window::Rx1 => self.stats.answers_rx1 += 1,
            Window::Rx2 => self.stats.answers_rx2 += 1,
        }
        self.gateways.sent(plan.gateway);
        bytes
    }

    /// A gateway that says nothing about downlinks (GWMP 1) is taken at its word.
    fn note_payload_sent(&mut self, sending: &Sending, f_cnt: u32, device: DevEui, version: Version, out: &mut Vec<Output>) {
        let gateway = sending.plan.gateway;
        self.change_queue(device, |queue| queue.note_on_air(f_cnt, sending.plan.mark.f_cnt));
        if version == Version::V1 {
            self.report(device, out, |queue| queue.note_taken(f_cnt, gateway));
        }
    }

    fn await_tx_ack(&mut self, token: u16, outstanding: Outstanding) {
        // The queue may hold tokens that were acknowledged since; it is bounded like the map, by the number of tokens.
        let max = self.config.outstanding_max.clamp(1, usize::from(u16::MAX));
        while self.outstanding.len() >= max || self.sent.len() >= usize::from(u16::MAX) {
            self.forget_oldest();
        }
        self.sent.push_back((outstanding.sent, token));
        self.outstanding.insert(token, outstanding);
    }

    fn forget_oldest(&mut self) {
        if let Some((sent, token)) = self.sent.pop_front()
            && let Some(silent) = self.outstanding.get(&token).filter(|outstanding| outstanding.sent == sent)
        {
            self.silent.push((silent.plan.mark.device, silent.f_cnt_down));
            self.outstanding.remove(&token);
            self.stats.tx_ack_missing += 1;
        }
    }

    /// Downlinks of which no gateway said anything.
    pub(super) fn flush_silent(&mut self, out: &mut Vec<Output>) {
        for (device, f_cnt) in std::mem::take(&mut self.silent) {
            self.report(device, out, |queue| queue.note_silence(f_cnt));
        }
    }

    /// The gateway says what became of a downlink. A refusal never gives the counter back.
    pub(super) fn tx_ack(&mut self, gateway: GatewayEui, token: Token, body: &[u8], now: Now, out: &mut Vec<Output>) {
        let token = u16::from_be_bytes(token);
        let result = txpk::read_tx_ack(body);
        if self.accept_tx_ack(gateway, token, result, now, out).is_some() {
            self.stats.tx_result(result);
            self.gateways.answered(gateway, result);
            return;
        }
        if self.outstanding.get(&token).is_none_or(|outstanding| outstanding.gateway != gateway) {
            self.stats.tx_ack_unmatched += 1;
            return;
        }
        let Some(outstanding) = self.outstanding.remove(&token) else { return };
        self.stats.tx_result(result);
        self.gateways.answered(gateway, result);
        let (device, f_cnt_down) = (outstanding.plan.mark.device, outstanding.f_cnt_down);
        if result.is_accepted() {
            return self.report(device, out, |queue| queue.note_taken(f_cnt_down, gateway));
        }
        if let Some(booking) = outstanding.booking {
            self.ledger.give_back(gateway, booking);
        }
        self.report(device, out, |queue| {
            queue.note_refused(f_cnt_down);
            None
        });
        if let Some(entry) = self.registry.get_mut(outstanding.slot)
            && entry.session == outstanding.plan.mark.session
            && entry.answered == Some(outstanding.plan.mark.f_cnt)
        {
            entry.answered = None;
        }
        match outstanding.window {
            Window::Rx1 if !self.pending.contains_key(&outstanding.slot) => self.retry(&outstanding, now, out),
            // A newer transmission is about to be answered.
            Window::Rx1 => {}
            Window::Rx2 => self.stats.miss(MissedReason::Refused),
        }
    }

    /// RX1 failed: RX2, with a new counter.
    fn retry(&mut self, failed: &Outstanding, now: Now, out: &mut Vec<Output>) {
        let mode = self.registry.get(failed.slot).and_then(|entry| self.groups.get(&entry.group)).map(|group| group.mode);
        if mode.and_then(|mode| mode.epoch()) != Some(failed.epoch) {
            return self.stats.miss(MissedReason::NoCustody);
        }
        let plan = Plan { rx2_only: true, ..failed.plan };
        match self.attempt(failed.slot, plan, true, failed.epoch, now, out) {
            Attempt::Sent => self.stats.answers_retried += 1,
            Attempt::Waits => {
                let event = plan.mark.event();
                let pending = Pending { event, plan, is_committed: true, is_answered_elsewhere: false };
                self.pending.insert(failed.slot, pending);
            }
            Attempt::Missed(reason) => self.stats.miss(reason),
        }
    }

    /// Forgets what can no longer be answered.
    pub(super) fn sweep_answers(&mut self, now: Now, out: &mut Vec<Output>) {
        while self.sent.front().is_some_and(|(sent, _)| now.boot.since(*sent) > TX_ACK_WITHIN) {
            self.forget_oldest();
        }
        self.flush_silent(out);
        let (registry, groups, stats, margin) = (&self.registry, &self.groups, &mut self.stats, self.config.answer_margin);
        self.pending.retain(|slot, pending| {
            let Some(entry) = registry.get(*slot) else { return false };
            let timing = pending.plan.timing(true);
            if downlink::reachable(&entry.receive_windows, &timing, margin, now.boot).is_some() {
                return true;
            }
            if !pending.is_answered_elsewhere {
                let is_serving = groups.get(&entry.group).is_some_and(|group| group.mode.epoch().is_some());
                stats.miss(match (is_serving, pending.is_committed) {
                    (false, _) => MissedReason::NoCustody,
                    (true, false) => MissedReason::TooLate,
                    (true, true) if entry.down.peek().is_some() => MissedReason::NotEncrypted,
                    (true, true) => MissedReason::NoCounter,
                });
            }
            false
        });
    }

    /// Notes a session's wish for counters, if it has one and this node serves it.
    pub(super) fn want(&mut self, slot: SlotIndex) {
        let Some(entry) = self.registry.get_mut(slot) else { return };
        let is_serving = self.groups.get(&entry.group).is_some_and(|group| group.mode.epoch().is_some());
        if !is_serving || entry.is_past {
            return;
        }
        if let Some(upto) = entry.down.want() {
            self.wanted.push((entry.group, entry.device, upto));
            self.waiting.insert(slot);
        }
    }

    /// One request per group for all wishes of this input.
    pub(super) fn flush_wanted(&mut self, now: Now, out: &mut Vec<Output>) {
        if self.wanted.is_empty() {
            return;
        }
        self.asked = now.boot;
        let mut wanted = std::mem::take(&mut self.wanted);
        wanted.sort_unstable();
        for chunk in wanted.chunk_by(|a, b| a.0 == b.0) {
            let entries = chunk.iter().map(|(_, device, upto)| (*device, *upto)).collect();
            out.push(Output::ReserveWanted { group: chunk[0].0, entries });
        }
        wanted.clear();
        self.wanted = wanted;
    }

    /// What was asked for and not granted, once more.
    pub(super) fn ask_again(&mut self, now: Now) {
        debug_assert!(now.boot.since(self.asked) >= RESERVE_RETRY);
        self.asked = now.boot;
        let (registry, groups, wanted) = (&self.registry, &self.groups, &mut self.wanted);
        self.waiting.retain(|slot| {
            let Some(entry) = registry.get(*slot) else { return false };
            let is_serving = groups.get(&entry.group).is_some_and(|group| group.mode.epoch().is_some());
            if !is_serving || !entry.down.is_waiting() {
                return false;
            }
            wanted.push((entry.group, entry.device, entry.down.wanted));
            true
        });
    }
}
