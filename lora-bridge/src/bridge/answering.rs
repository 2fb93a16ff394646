//! What is owed to devices: acknowledged only after the uplink is on disk, only with custody, only with a counter that is written ahead.

use contracts::ids::{DevEui, Epoch, EventId};
use contracts::time::Millis;

use super::io::{Mode, Now, Output, Transmit};
use super::planning::{Candidate, Outstanding, Pending, Plan};
use super::{Bridge, RESERVE_RETRY};
use crate::gwmp::gateways::Route;
use crate::gwmp::txpk::{self, TxResult, Txpk};
use crate::gwmp::{self, GatewayEui, Token, Version};
use crate::mac::adr::{AdrMode, Setting};
use crate::mac::downlink::{self, F_OPTS_BYTES_MAX, Frame, Timing, Window};
use crate::mac::duty_cycle;
use crate::mac::queue::{Failure, Queue};
use crate::mac::registry::SlotIndex;
use crate::mac::session::Entry;
use crate::stats::MissedReason;

/// A gateway tells what became of a downlink within this time, or never.
const TX_ACK_WITHIN: Millis = Millis::from_secs(5);

/// A gateway, a window and what it costs.
#[derive(Debug, Clone, Copy)]
struct Choice {
    candidate: Candidate,
    window: Window,
    frequency_hz: u32,
    micros: u64,
}

/// The requests to the device in a downlink.
#[derive(Debug, Clone, Copy, Default)]
struct Requests {
    setting: Option<Setting>,
    is_link: bool,
    is_status: bool,
}

/// A downlink on its way to the gateway.
#[derive(Clone, Copy)]
struct Sending {
    slot: SlotIndex,
    plan: Plan,
    choice: Choice,
    requests: Requests,
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
            self.unknown.note_committed(landed.awaited);
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
        if let Err(reason) = self.is_any_reachable(&plan, now) {
            return Attempt::Missed(reason);
        }
        let known = self.registry.get(slot).filter(|entry| entry.session == plan.mark.session);
        let Some((group, device)) = known.map(|entry| (entry.group, entry.device)) else {
            return Attempt::Missed(MissedReason::NoCustody);
        };
        if !self.is_link_certain(slot, &plan, epoch, now, out) {
            return Attempt::Waits;
        }
        self.give_up_too_long(slot, &plan, out);
        let Some(entry) = self.registry.get(slot) else { return Attempt::Missed(MissedReason::NoCustody) };
        let timing = plan.timing(entry, rx2_only);
        if downlink::reachable(entry.windows(), &timing, self.config.answer_margin, now.boot).is_none() {
            return Attempt::Missed(MissedReason::TooLate);
        }
        let queue = self.queues.get(&device);
        let ready = entry.down.peek().and_then(|f_cnt| queue?.ready(entry.session, f_cnt));
        let (commands, requests) = self.commands(entry, &plan);
        let is_due = plan.wants.is_answer() || requests.is_link || requests.setting.is_some() || requests.is_status;
        if ready.is_none() && !is_due && queue.is_none_or(|queue| !queue.is_waiting()) {
            // A change that is not written ahead yet may still be asked for in these windows.
            return if plan.asks.is_link_due { Attempt::Waits } else { Attempt::Sent };
        }
        if entry.down.peek().is_none() {
            self.want(slot);
            return Attempt::Waits;
        }
        if ready.is_none() && !is_due {
            self.ask_for_encryption(device);
            return Attempt::Waits;
        }
        let bare = Frame {
            ack: plan.wants.ack,
            adr: self.groups.get(&group).is_some_and(|group| group.adr != AdrMode::Off),
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
        let choose = |frame| self.choose(entry, &plan, &timing, frame, now).map(|choice| (frame, choice));
        let chosen = match full.as_ref().map(choose) {
            Some(Ok(chosen)) => Ok(chosen),
            Some(Err(_)) | None if is_due => choose(&bare),
            Some(Err(reason)) => Err(reason),
            None => Err(MissedReason::DutyCycle),
        };
        let (frame, choice) = match chosen {
            Ok(chosen) => chosen,
            Err(reason) => return Attempt::Missed(reason),
        };
        let place = downlink::slot(entry.windows(), &timing, choice.window, choice.candidate.rx.tmst.unwrap_or(0));
        self.send_frame(&Sending { slot, plan, choice, requests, epoch, now }, frame, place, out)
    }

    /// A payload that fits neither window at the rate that the device uses now ends, or nothing behind it would ever go. Answers and requests
    /// are not counted: they go first, and alone.
    fn give_up_too_long(&mut self, slot: SlotIndex, plan: &Plan, out: &mut Vec<Output>) {
        let Some(entry) = self.registry.get(slot) else { return };
        let device = entry.device;
        let ready = entry.down.peek().and_then(|f_cnt| self.queues.get(&device)?.ready(entry.session, f_cnt));
        let rates = downlink::data_rates(entry.windows(), &plan.timing(entry, false));
        let (Some(ready), Some(rates)) = (ready, rates) else { return };
        let frame = Frame { payload: Some((ready.f_port, &ready.payload)), ..Frame::default() };
        let region = self.region();
        if rates.iter().all(|rate| frame.mac_payload_len() > region.mac_payload_bytes_max(*rate)) {
            self.stats.miss(MissedReason::TooLong);
            self.report(device, out, |queue| queue.give_up(Failure::TooLong));
        }
    }

    fn route(&self, candidate: &Candidate, now: Now) -> Option<Route> {
        self.gateways.route(candidate.gateway, now.boot)
    }

    fn is_any_reachable(&self, plan: &Plan, now: Now) -> Result<(), MissedReason> {
        let mut routed = plan.candidates.iter().filter(|candidate| self.route(candidate, now).is_some()).peekable();
        if routed.peek().is_none() {
            return Err(MissedReason::NoRoute);
        }
        if routed.any(|candidate| candidate.rx.tmst.is_some()) { Ok(()) } else { Err(MissedReason::NoTimestamp) }
    }

    /// Answers and requests, by importance, as far as they fit.
    fn commands(&self, entry: &Entry, plan: &Plan) -> (Vec<u8>, Requests) {
        let mut commands = Vec::with_capacity(F_OPTS_BYTES_MAX);
        plan.answer().write_commands(&mut commands);
        let (region, heard) = (self.region(), plan.link_heard());
        let is_link = entry.link.as_ref().is_some_and(|link| link.write_request(heard, region, F_OPTS_BYTES_MAX, &mut commands));
        let setting = plan.asks.adr.filter(|_| commands.len() + 5 <= F_OPTS_BYTES_MAX);
        commands.extend(setting.iter().flat_map(|setting| setting.request()));
        let is_status = plan.asks.is_status_due && commands.len() < F_OPTS_BYTES_MAX;
        if is_status {
            commands.push(downlink::DEV_STATUS_REQ);
        }
        (commands, Requests { setting, is_link, is_status })
    }

    /// Takes a counter, makes the frame, and hands it over.
    fn send_frame(&mut self, sending: &Sending, frame: &Frame<'_>, place: downlink::Slot, out: &mut Vec<Output>) -> Attempt {
        let Sending { slot, plan, choice, requests, epoch, now } = *sending;
        let Some(route) = self.route(&choice.candidate, now) else { return Attempt::Missed(MissedReason::NoRoute) };
        let Some(entry) = self.registry.get_mut(slot) else { return Attempt::Missed(MissedReason::NoCustody) };
        let (group, device) = (entry.group, entry.device);
        let Some(f_cnt_down) = entry.down.take() else { return Attempt::Waits };
        let Some(phy) = downlink::build(entry.dev_addr, entry.nwk_s_key, f_cnt_down, frame) else {
            return Attempt::Missed(MissedReason::Unbuildable);
        };
        if let Some(setting) = requests.setting {
            entry.adr.note_asked(setting);
        }
        if let Some(link) = &mut entry.link {
            if requests.is_link {
                link.note_asked(plan.mark.f_cnt);
                self.stats.link_asked += 1;
            }
            if requests.is_status {
                link.note_status_asked(now.boot);
            }
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
            gateway: choice.candidate.gateway,
            to: route.address,
            bytes,
        }));
        self.want(slot);
        self.ask_for_encryption(device);
        Attempt::Sent
    }

    /// Gateway and window for a frame: the best gateway that can take it. Once one has refused RX1, or transmits something else then, RX1 by any
    /// other goes before RX2 by any.
    fn choose(&self, entry: &Entry, plan: &Plan, timing: &Timing, frame: &Frame<'_>, now: Now) -> Result<Choice, MissedReason> {
        let usable = |candidate: &&Candidate| candidate.rx.tmst.is_some() && self.route(candidate, now).is_some();
        let over = |windows: &[Window]| {
            let mut missed = None;
            for candidate in plan.candidates.iter().filter(usable) {
                match self.choose_window(entry, plan, candidate, timing, frame, windows, now) {
                    Ok(choice) => return Ok(choice),
                    Err(reason) => missed = missed.max(reason),
                }
            }
            Err(missed)
        };
        let is_taken = |candidate: &Candidate| {
            let (place, micros) = Self::place(entry, timing, candidate, Window::Rx1, frame);
            candidate.has_refused(Window::Rx1) || !self.schedules.is_free(candidate.gateway, place.tmst, micros)
        };
        let chosen = if plan.candidates.iter().any(is_taken) {
            over(&[Window::Rx1]).or_else(|in_rx1| over(&[Window::Rx2]).map_err(|in_rx2| in_rx1.max(in_rx2)))
        } else {
            over(&[Window::Rx1, Window::Rx2])
        };
        chosen.map_err(|missed| missed.unwrap_or(MissedReason::DutyCycle))
    }

    /// Where a frame goes in a window, and its time on air in microseconds.
    fn place(entry: &Entry, timing: &Timing, candidate: &Candidate, window: Window, frame: &Frame<'_>) -> (downlink::Slot, u64) {
        let place = downlink::slot(entry.windows(), timing, window, candidate.rx.tmst.unwrap_or(0));
        (place, duty_cycle::time_on_air_micros(place.data_rate, frame.len(), false))
    }

    /// The window for a frame: RX1 if it can be reached, takes the frame, the gateway is free then and its sub-band has time left; else RX2
    /// likewise.
    ///
    /// RX1 with little left gives way to RX2 if the frame costs less of what is left there. What nobody waits for leaves a tenth of the
    /// hour to acknowledgements.
    #[expect(clippy::too_many_arguments, reason = "one question about one candidate")]
    fn choose_window(
        &self,
        entry: &Entry,
        plan: &Plan,
        candidate: &Candidate,
        timing: &Timing,
        frame: &Frame<'_>,
        allowed: &[Window],
        now: Now,
    ) -> Result<Choice, Option<MissedReason>> {
        let region = self.region();
        let windows = downlink::reachable_windows(entry.windows(), timing, self.config.answer_margin, now.boot);
        let mut missed = None;
        let mut choices = windows.filter(|w| allowed.contains(w) && !candidate.has_refused(*w)).filter_map(|window| {
            let (place, micros) = Self::place(entry, timing, candidate, window, frame);
            let left = self.ledger.left_micros(candidate.gateway, place.frequency_hz, now.boot);
            let budget = self.ledger.budget_micros(place.frequency_hz);
            let kept = if plan.wants.is_answer() { 0 } else { budget / 10 };
            let hindrance = if frame.mac_payload_len() > region.mac_payload_bytes_max(place.data_rate) {
                Some(MissedReason::TooLong)
            } else if micros + kept > left {
                Some(MissedReason::DutyCycle)
            } else {
                (!self.schedules.is_free(candidate.gateway, place.tmst, micros)).then_some(MissedReason::Busy)
            };
            missed = missed.max(hindrance);
            let choice = Choice { candidate: *candidate, window, frequency_hz: place.frequency_hz, micros };
            hindrance.is_none().then_some((choice, left, budget))
        });
        let (first, second) = (choices.next(), choices.next());
        let Some((first, left, budget)) = first else { return Err(missed) };
        let second = second.filter(|(second, left_there, _)| {
            left * 4 < budget && u128::from(first.micros) * u128::from(*left_there) > u128::from(second.micros) * u128::from(left)
        });
        Ok(second.map_or(first, |(second, ..)| second))
    }

    /// Counts the time on air, makes the datagram, and waits for the gateway's word.
    fn hand_over(&mut self, sending: &Sending, f_cnt_down: u32, route: Route, place: downlink::Slot, phy: &[u8]) -> Vec<u8> {
        let Sending { slot, plan, choice, epoch, now, .. } = *sending;
        let txpk = Txpk {
            tmst: place.tmst,
            frequency_hz: place.frequency_hz,
            data_rate: place.data_rate,
            power_dbm: self.power_dbm(choice.candidate.gateway, place.frequency_hz),
            phy,
        };
        let token = self.next_token;
        self.next_token = token.wrapping_add(1);
        let bytes = gwmp::pull_resp(route.version, token.to_be_bytes(), &txpk);
        let (window, gateway) = (choice.window, choice.candidate.gateway);
        let booking = self.ledger.book(gateway, choice.frequency_hz, choice.micros, now.boot);
        let tmst = place.tmst;
        self.schedules.plan(gateway, tmst, choice.micros, now.boot);
        if route.version == Version::V2 {
            self.await_tx_ack(
                token,
                Outstanding { slot, plan, window, gateway, epoch, sent: now.boot, f_cnt_down, booking, tmst },
            );
            if let Some(entry) = self.registry.get_mut(slot) {
                entry.on_air = Some(token);
            }
        }
        match window {
            Window::Rx1 => self.stats.answers_rx1 += 1,
            Window::Rx2 => self.stats.answers_rx2 += 1,
        }
        if gateway != plan.candidates.best().gateway {
            self.stats.answers_rerouted += 1;
        }
        self.gateways.sent(gateway);
        bytes
    }

    /// A gateway that says nothing about downlinks (GWMP 1) is taken at its word.
    fn note_payload_sent(&mut self, sending: &Sending, f_cnt: u32, device: DevEui, version: Version, out: &mut Vec<Output>) {
        let gateway = sending.choice.candidate.gateway;
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
        if result == TxResult::Unreadable {
            return self.unreadable_tx_ack(gateway, token);
        }
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
        self.schedules.give_back(gateway, outstanding.tmst);
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
        // Else a newer transmission is about to be answered.
        if !self.pending.contains_key(&outstanding.slot) {
            self.retry(&outstanding, now, out);
        }
    }

    /// As good as silence: the packet may have been sent. What is counted as on air stays so, and nothing is sent once more.
    fn unreadable_tx_ack(&mut self, gateway: GatewayEui, token: u16) {
        let is_awaited = self.outstanding.get(&token).is_some_and(|outstanding| outstanding.gateway == gateway)
            || self.awaits_accept_tx_ack(gateway, token);
        if !is_awaited {
            self.stats.tx_ack_unmatched += 1;
            return;
        }
        self.stats.tx_result(TxResult::Unreadable);
        self.gateways.answered(gateway, TxResult::Unreadable);
    }

    /// A gateway refused: another one, or RX2, with a new counter.
    fn retry(&mut self, failed: &Outstanding, now: Now, out: &mut Vec<Output>) {
        let mode = self.registry.get(failed.slot).and_then(|entry| self.groups.get(&entry.group)).map(|group| group.mode);
        if mode.and_then(|mode| mode.epoch()) != Some(failed.epoch) {
            return self.stats.miss(MissedReason::NoCustody);
        }
        let mut plan = failed.plan;
        plan.refuse(failed.gateway, failed.window);
        // What went out in RX2 for some reason does not go back to RX1.
        plan.rx2_only |= failed.window == Window::Rx2;
        let is_left = |window: Window| plan.candidates.iter().any(|candidate| !candidate.has_refused(window));
        if !is_left(Window::Rx2) {
            return self.stats.miss(MissedReason::Refused);
        }
        match self.attempt(failed.slot, plan, plan.rx2_only, failed.epoch, now, out) {
            Attempt::Sent => self.stats.answers_retried += 1,
            Attempt::Waits => {
                let event = plan.mark.event();
                let pending = Pending { event, plan, is_committed: true, is_answered_elsewhere: false };
                self.pending.insert(failed.slot, pending);
            }
            // Nobody is left to take it.
            Attempt::Missed(MissedReason::DutyCycle | MissedReason::Busy | MissedReason::NoRoute | MissedReason::TooLong)
                if failed.window == Window::Rx2 =>
            {
                self.stats.miss(MissedReason::Refused);
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
            let timing = pending.plan.timing(entry, true);
            if downlink::reachable(entry.latest_windows(), &timing, margin, now.boot).is_some() {
                return true;
            }
            let is_owed = pending.plan.wants.is_answer() || pending.plan.asks.adr.is_some();
            if !pending.is_answered_elsewhere && is_owed {
                let is_serving = groups.get(&entry.group).is_some_and(|group| group.mode.epoch().is_some());
                stats.miss(match (is_serving, pending.is_committed) {
                    (false, _) => MissedReason::NoCustody,
                    (true, false) => MissedReason::TooLate,
                    (true, true) if !entry.is_link_certain(&pending.plan.link_heard()) => MissedReason::NotRecorded,
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
