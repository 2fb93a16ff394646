//! From the datagram to the uplink or the buffer.

use std::net::SocketAddr;

use bytes::Bytes;
use contracts::ids::{EventId, GroupId};
use contracts::time::{BootTime, Millis, WallTime};

use super::adapting::RadioUplink;
use super::collecting::is_further;
use super::io::{KeptFrame, Mode, Now, Offer, OfferedFrame, Output, Reception, Uplink, UplinkKind};
use super::planning::{Asks, Candidates, Pending, Plan};
use super::{Bridge, Fault, InFlight, OFFERS_BATCH};
use crate::buffer::Held;
use crate::gwmp::gateways::Pushed;
use crate::gwmp::rxpk::{self, RxMeta};
use crate::gwmp::{self, Body, GatewayEui, Packet};
use crate::mac::downlink::Wants;
use crate::mac::registry::SlotIndex;
use crate::mac::session::{Joined, Mark, Recent};
use crate::mac::uplink::{self, Header};
use crate::rules::Clause;
use crate::stats::{DropReason, MissedReason};

/// A copy by another gateway arrives within this time of the first; a device waits longer before it transmits again (RX2 is over after 2 s).
pub(super) const COPY_WITHIN: Millis = Millis(1_000);

/// Two receptions of one transmission by one gateway carry nearly the same counter value.
const COPY_TMST_MICROS_MAX: u32 = 500_000;

/// A verified reception.
struct Heard<'a> {
    phy: &'a [u8],
    header: Header,
    slot: SlotIndex,
    mark: Mark,
    joined: Option<Joined>,
    wants: Wants,
    hearing: Hearing,
}

/// How a frame came again that is in the buffer.
#[derive(Debug, Clone, Copy)]
enum HeardAgain {
    /// By this node for the first time.
    First,
    Copy,
    Repeated,
}

/// Who heard a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hearer {
    /// A gateway of this node; it may be answered.
    Gateway,
    /// The other node, which knows it and answers it.
    Peer,
    /// A gateway of this node in an earlier life of the process: too late for an answer.
    Earlier,
}

/// By whom, where and when a frame was heard.
#[derive(Debug, Clone, Copy)]
pub(super) struct Hearing {
    pub(super) gateway: GatewayEui,
    pub(super) rx: RxMeta,
    pub(super) heard_at: WallTime,
    pub(super) heard: BootTime,
    pub(super) by: Hearer,
    /// Its name if it waits, or waited, for its session.
    pub(super) awaited: Option<EventId>,
}

impl Hearing {
    pub(super) const fn of(frame: &OfferedFrame, by: Hearer, now: Now) -> Self {
        Self { gateway: frame.gateway, rx: frame.rx, heard_at: frame.heard_at, heard: now.boot, by, awaited: None }
    }

    /// Just now, or long enough ago that nothing can be answered.
    fn is_live(&self) -> bool {
        self.by == Hearer::Gateway
    }

    fn is_of_peer(&self) -> bool {
        self.by == Hearer::Peer
    }
}

impl Heard<'_> {
    fn recent(&self) -> Recent {
        let Hearing { gateway, rx, heard, .. } = self.hearing;
        Recent { f_cnt: self.mark.f_cnt, gateway, tmst: rx.tmst, heard }
    }

    /// Whether this is one more copy of that transmission.
    fn is_copy_of(&self, other: &Recent) -> bool {
        if other.f_cnt != self.mark.f_cnt {
            return false;
        }
        match (self.hearing.rx.tmst, other.tmst) {
            (Some(a), Some(b)) if self.hearing.gateway == other.gateway => {
                a.wrapping_sub(b).min(b.wrapping_sub(a)) < COPY_TMST_MICROS_MAX
            }
            (Some(_) | None, Some(_) | None) => self.hearing.heard.since(other.heard) <= COPY_WITHIN,
        }
    }

    fn plan(&self, heard_wall: WallTime) -> Plan {
        Plan {
            mark: self.mark,
            wants: self.wants,
            candidates: Candidates::of(self.hearing.gateway, self.hearing.rx),
            heard: self.hearing.heard,
            heard_at: heard_wall,
            gateways: 1,
            rx2_only: false,
            asks: Asks::default(),
        }
    }
}

impl Bridge {
    pub(super) fn datagram(&mut self, from: SocketAddr, bytes: &[u8], now: Now, out: &mut Vec<Output>) {
        self.stats.datagrams += 1;
        let packet = match gwmp::parse(bytes) {
            Ok(packet) => packet,
            Err(_) if gwmp::is_push_ack(bytes) && self.taps.is_target(from) => {
                self.stats.tap_acknowledged += 1;
                return;
            }
            Err(error) => return self.fault(error, from, None),
        };
        if !self.sources.admit(from, now.boot) {
            return self.fault(DropReason::SourceLimit, from, Some(packet.gateway));
        }
        match packet.body {
            Body::PushData(json) => {
                self.stats.push_data += 1;
                out.push(Output::Send { to: from, bytes: gwmp::push_ack(packet.version, packet.token) });
                for to in self.taps.targets(from, packet.gateway, bytes) {
                    self.stats.tap_sent += 1;
                    out.push(Output::Send { to, bytes: bytes.to_vec() });
                }
                self.push_data(from, &packet, json, now, out);
            }
            Body::PullData => {
                self.stats.pull_data += 1;
                if self.gateways.pulled(packet.gateway, from, packet.version, now.boot) {
                    out.push(Output::Send { to: from, bytes: gwmp::pull_ack(packet.version, packet.token) });
                } else {
                    self.fault(DropReason::GatewaysFull, from, Some(packet.gateway));
                }
            }
            Body::TxAck(body) => self.tx_ack(packet.gateway, packet.token, body, now, out),
        }
    }

    fn push_data(&mut self, from: SocketAddr, packet: &Packet<'_>, json: &[u8], now: Now, out: &mut Vec<Output>) {
        let gateway = packet.gateway;
        let verified_before = self.stats.verified;
        let mut pushed = Pushed::default();
        let mut frame = std::mem::take(&mut self.frame);
        pushed.stat = rxpk::read(json, &mut frame, |result, phy| match result {
            Ok(rx) => {
                pushed.packets += 1;
                let by = Hearer::Gateway;
                let hearing = Hearing { gateway, rx, heard_at: now.wall, heard: now.boot, by, awaited: None };
                self.hear(phy, hearing, now, out);
            }
            Err(error) => {
                pushed.bad_packets += 1;
                self.fault(error, from, Some(gateway));
            }
        });
        self.frame = frame;
        self.stats.packets += pushed.packets;
        pushed.verified = self.stats.verified - verified_before;
        let packets = pushed.packets + pushed.bad_packets;
        self.sources.charge(from, packets.saturating_sub(1), now.boot);
        self.gateways.pushed(gateway, packet.version, pushed, now.boot);
    }

    /// Counts what a gateway sent and should not have sent, and remembers it for the log.
    fn fault(&mut self, reason: impl Into<DropReason>, from: SocketAddr, gateway: Option<GatewayEui>) {
        self.note_fault(reason.into(), Some(from), gateway);
    }

    /// The same for a frame that a gateway heard.
    pub(super) fn frame_fault(&mut self, reason: impl Into<DropReason>, gateway: GatewayEui) {
        self.note_fault(reason.into(), None, Some(gateway));
    }

    fn note_fault(&mut self, reason: DropReason, from: Option<SocketAddr>, gateway: Option<GatewayEui>) {
        self.stats.drop(reason);
        let fault = self.faults.entry(reason).or_insert(Fault { reason, count: 0, from, gateway });
        *fault = Fault { count: fault.count + 1, from, gateway, reason };
    }

    /// A frame that the other node heard: verified like any frame, never answered.
    pub(super) fn offered(&mut self, frame: &OfferedFrame, now: Now, out: &mut Vec<Output>) {
        if frame.phy.len() > gwmp::PHY_BYTES_MAX {
            return self.frame_fault(DropReason::PacketOversize, frame.gateway);
        }
        self.hear(&frame.phy, Hearing::of(frame, Hearer::Peer, now), now, out);
    }

    /// Devices of neighbours are counted; they are nobody's fault.
    fn drop_frame(&mut self, error: uplink::Error, gateway: GatewayEui) {
        match error {
            uplink::Error::UnknownAddress | uplink::Error::Join | uplink::Error::Downlink | uplink::Error::Proprietary => {
                self.stats.drop(error);
            }
            uplink::Error::Malformed
            | uplink::Error::IntegrityCode
            | uplink::Error::OldCounter
            | uplink::Error::CounterGap
            | uplink::Error::TrialsExhausted => self.frame_fault(error, gateway),
        }
    }

    pub(super) fn hear(&mut self, phy: &[u8], hearing: Hearing, now: Now, out: &mut Vec<Output>) {
        let verified = uplink::header(phy).and_then(|header| {
            let verified = self.trials.verify(&self.registry, &header, phy, hearing.is_live(), hearing.heard)?;
            Ok((header, verified))
        });
        let (header, verified) = match verified {
            Ok(verified) => verified,
            Err(uplink::Error::Join) if hearing.is_live() => {
                return self.join_request(phy, hearing.gateway, hearing.rx, now, out);
            }
            Err(error) if self.await_session(phy, error, hearing, now, out) => return,
            Err(error) => return self.drop_frame(error, hearing.gateway),
        };
        self.stats.verified += 1;
        if verified.is_reset {
            return self.hear_reset(verified.slot, phy, hearing, now, out);
        }
        let Some(entry) = self.registry.get_mut(verified.slot) else { return };
        if hearing.is_live() && verified.f_cnt >= entry.f_cnt_up_next {
            entry.newest = Some((hearing.heard, phy.last_chunk().copied().unwrap_or_default()));
        }
        let reception = Heard {
            phy,
            wants: uplink::wants(&header, phy, verified.f_cnt, entry.nwk_s_key),
            header,
            slot: verified.slot,
            mark: entry.mark(verified.f_cnt),
            joined: entry.joined,
            hearing,
        };
        let group = entry.group;
        let mode = self.groups.get(&group).map_or(Mode::Standby, |group| group.mode);
        let is_over = mode.delivers() && mode.epoch().is_none();
        if is_over && !self.config.rules.has(Clause::D2) {
            return self.stats.drop(DropReason::OldCounter);
        }
        if mode.delivers() {
            self.deliver(&reception, group, mode, now, out);
        } else {
            self.keep(&reception, group, now, out);
        }
    }

    fn deliver(&mut self, reception: &Heard<'_>, group: GroupId, mode: Mode, now: Now, out: &mut Vec<Output>) {
        let Some(entry) = self.registry.get(reception.slot) else { return };
        let f_cnt = reception.mark.f_cnt;
        let is_newest = f_cnt.saturating_add(1) >= entry.f_cnt_up_next;
        if self.is_known(entry, f_cnt) {
            return self.hear_again(reception, mode, is_newest, now, out);
        }
        let Some(entry) = self.registry.get_mut(reception.slot) else { return };
        if self.in_flight.len() >= self.config.in_flight_max {
            return self.frame_fault(DropReason::InFlightFull, reception.hearing.gateway);
        }
        if entry.answered.is_some_and(|answered| f_cnt > answered) {
            // It went on to the next counter without repeating itself: the answer was received.
            entry.answered = None;
            entry.down.skipped = 0;
        }
        let is_served_elsewhere = entry.served.contains(f_cnt);
        entry.taken.insert(f_cnt);
        entry.f_cnt_up_next = entry.f_cnt_up_next.max(f_cnt + 1);
        let is_live = is_newest && reception.hearing.is_live() && !entry.is_past;
        let kind = if is_live { UplinkKind::Live } else { UplinkKind::Late };
        let event = reception.mark.event();
        let mut missing = Vec::new();
        if is_live {
            entry.recent = Some(reception.recent());
            entry.hearers.begin();
            entry.hearers.note(reception.hearing.gateway);
            missing.extend(entry.hearers.missing().filter(|gateway| self.gateways.is_live(*gateway, now.boot)));
            if self.pending.remove(&reception.slot).is_some_and(|pending| !pending.is_answered_elsewhere) {
                // The device went on before its last answer could be sent.
                self.stats.miss(MissedReason::TooLate);
            }
            self.note_joined(reception.mark.device);
            self.note_uplink(reception.mark.device, f_cnt, reception.header.is_ack, out);
            let asks = self.note_asks(reception, mode, now, out);
            if reception.wants.is_answer() || asks.is_any() || self.has_downlink(reception.mark.device) {
                let plan = Plan { asks, ..reception.plan(now.wall) };
                let is_answered_elsewhere = mode.epoch().is_none() && is_served_elsewhere;
                let pending = Pending { event, plan, is_committed: false, is_answered_elsewhere };
                self.pending.insert(reception.slot, pending);
            }
        }
        match kind {
            UplinkKind::Live => self.stats.uplinks_live += 1,
            UplinkKind::Late | UplinkKind::Buffered => self.stats.uplinks_late += 1,
        }
        self.set_in_flight(reception, event);
        let phy = Bytes::copy_from_slice(reception.phy);
        let uplink = Uplink {
            event,
            group,
            device: reception.mark.device,
            session: reception.mark.session,
            joined: reception.joined,
            f_cnt,
            f_port: reception.header.f_port,
            confirmed: reception.header.is_confirmed,
            frm_payload: phy.slice(reception.header.frm_payload.clone()),
            phy,
            gateway: reception.hearing.gateway,
            rx: reception.hearing.rx,
            others: Vec::new(),
            heard_at: reception.hearing.heard_at,
            heard_boot: reception.hearing.heard,
            kind,
        };
        if missing.is_empty() || self.config.copies_wait == Millis(0) {
            out.push(Output::Uplink(uplink));
        } else {
            self.stats.copies_waited += 1;
            self.collecting.wait(reception.slot, uplink, missing, now.boot + self.config.copies_wait, out);
        }
    }

    /// On its way to the disk.
    fn set_in_flight(&mut self, reception: &Heard<'_>, event: EventId) {
        let is_buffered = self.buffer.set_in_flight(&event);
        let awaited = reception.hearing.awaited;
        self.in_flight.insert(event, InFlight { slot: reception.slot, mark: reception.mark, is_buffered, awaited });
        self.unknown.note_in_flight(reception.phy, reception.hearing);
    }

    /// What a new uplink says of the device's radio and link, and what the device is to be asked because of it.
    fn note_asks(&mut self, reception: &Heard<'_>, mode: Mode, now: Now, out: &mut Vec<Output>) -> Asks {
        let (f_cnt, is_adr, wants) = (reception.mark.f_cnt, reception.header.is_adr, reception.wants);
        let uplink = RadioUplink { is_adr, f_cnt, link_adr: wants.link_adr, rx: &reception.hearing.rx };
        let adr = self.note_radio(reception.slot, mode, &uplink, now);
        Asks { adr, ..self.note_link(reception.slot, mode, f_cnt, wants, now, out) }
    }

    /// A counter that is known: a copy, a repetition that wants its answer again, or nothing of interest.
    fn hear_again(&mut self, reception: &Heard<'_>, mode: Mode, is_newest: bool, now: Now, out: &mut Vec<Output>) {
        let Some(entry) = self.registry.get_mut(reception.slot) else { return };
        if !reception.hearing.is_live() {
            self.stats.offers_known += 1;
            let (group, mark) = (entry.group, reception.mark);
            let is_settled = entry.settled.contains(mark.f_cnt);
            if is_settled || entry.served.contains(mark.f_cnt) {
                out.push(Output::OfferKnown { group, mark, is_settled });
            }
            return;
        }
        if let Some(recent) = entry.recent.filter(|recent| reception.is_copy_of(recent)) {
            self.stats.copies += 1;
            if reception.hearing.heard.since(recent.heard) <= self.config.copies_wait {
                // Those who always come later are not waited for.
                entry.hearers.note(reception.hearing.gateway);
            }
            self.note_copy(reception);
            let copy = Reception { gateway: reception.hearing.gateway, rx: reception.hearing.rx };
            if !self.collecting.add(reception.slot, reception.mark, copy, out) {
                self.stats.copies_late += 1;
            }
            return;
        }
        self.stats.repeated += 1;
        if !is_newest || entry.is_past {
            return;
        }
        entry.recent = Some(reception.recent());
        if !reception.wants.ack {
            return;
        }
        if entry.answered == Some(reception.mark.f_cnt) {
            // It would not repeat itself had it heard the answer.
            entry.answered = None;
        }
        let event = reception.mark.event();
        let is_committed = !self.in_flight.contains_key(&event);
        // Nobody tells that a repetition was answered. Whoever serves when it is heard answers it, and nobody later: two nodes would.
        let is_answered_elsewhere = mode.epoch().is_none();
        let pending = Pending { event, plan: reception.plan(now.wall), is_committed, is_answered_elsewhere };
        self.pending.insert(reception.slot, pending);
        self.try_answer(reception.slot, now, out);
    }

    /// One more gateway heard the transmission: it may be the better way back, or another one if the first refuses.
    fn note_copy(&mut self, reception: &Heard<'_>) {
        if let Some(entry) = self.registry.get_mut(reception.slot) {
            entry.adr.note_copy(reception.mark.f_cnt, reception.hearing.rx.snr_decibel_tenths);
        }
        let copy = Reception { gateway: reception.hearing.gateway, rx: reception.hearing.rx };
        let pending = self.pending.get_mut(&reception.slot).map(|pending| &mut pending.plan);
        if let Some(plan) = pending.filter(|plan| plan.mark == reception.mark) {
            return plan.add(copy);
        }
        let token = self.registry.get(reception.slot).and_then(|entry| entry.on_air);
        let on_air = token.and_then(|token| self.outstanding.get_mut(&token));
        if let Some(on_air) = on_air.filter(|on_air| on_air.plan.mark == reception.mark) {
            on_air.plan.add(copy);
        }
    }

    /// Standby: the frame waits until it is settled, or until this node serves.
    fn keep(&mut self, reception: &Heard<'_>, group: GroupId, now: Now, out: &mut Vec<Output>) {
        let f_cnt = reception.mark.f_cnt;
        let event = reception.mark.event();
        let heard_again = self.buffer.update(&event, |held| {
            if held.is_offered && reception.hearing.is_live() {
                // The other node was faster. What this node heard itself it may answer.
                (held.gateway, held.rx, held.heard, held.is_offered) =
                    (reception.hearing.gateway, reception.hearing.rx, reception.hearing.heard, false);
                return HeardAgain::First;
            }
            let recent = Recent { f_cnt, gateway: held.gateway, tmst: held.rx.tmst, heard: held.heard };
            let is_copy = !reception.hearing.is_live() || reception.is_copy_of(&recent);
            if is_copy {
                let copy = Reception { gateway: reception.hearing.gateway, rx: reception.hearing.rx };
                if is_further(&copy, held.gateway, &held.others) {
                    held.others.push(copy);
                }
            } else {
                held.gateway = reception.hearing.gateway;
                held.rx = reception.hearing.rx;
                held.others.clear();
                held.heard = reception.hearing.heard;
                held.is_answered = false;
                held.is_offered = false;
            }
            if is_copy { HeardAgain::Copy } else { HeardAgain::Repeated }
        });
        if let Some(again) = heard_again {
            return self.note_heard_again(reception, again, now);
        }
        if self.registry.get(reception.slot).is_none_or(|entry| self.is_known(entry, f_cnt)) {
            self.stats.copies += 1;
            return;
        }
        let Some(entry) = self.registry.get_mut(reception.slot) else { return };
        let is_served = entry.served.contains(f_cnt);
        entry.f_cnt_up_next = entry.f_cnt_up_next.max(f_cnt + 1);
        if reception.hearing.is_live() {
            entry.adr.note(reception.header.is_adr, f_cnt, reception.hearing.rx.snr_decibel_tenths, now.wall);
        }
        let held = Held {
            group,
            mark: reception.mark,
            joined: reception.joined,
            event,
            phy: Bytes::copy_from_slice(reception.phy),
            wants: reception.wants,
            gateway: reception.hearing.gateway,
            rx: reception.hearing.rx,
            heard_at: reception.hearing.heard_at,
            heard: reception.hearing.heard,
            others: Vec::new(),
            is_answered: is_served || reception.hearing.by == Hearer::Earlier,
            is_offered: reception.hearing.is_of_peer(),
        };
        let offer_at = (!reception.hearing.is_of_peer()).then(|| now.boot + self.config.offer_wait);
        if self.buffer.insert(held.clone(), is_served, offer_at) {
            out.push(Output::Keep(Self::buffered_uplink(held)));
        }
    }

    /// A frame that is in the buffer already.
    fn note_heard_again(&mut self, reception: &Heard<'_>, again: HeardAgain, now: Now) {
        let (f_cnt, snr) = (reception.mark.f_cnt, reception.hearing.rx.snr_decibel_tenths);
        let entry = self.registry.get_mut(reception.slot).filter(|_| reception.hearing.is_live());
        match (again, entry) {
            (HeardAgain::First, Some(entry)) => entry.adr.note(reception.header.is_adr, f_cnt, snr, now.wall),
            (HeardAgain::Copy, Some(entry)) => entry.adr.note_copy(f_cnt, snr),
            (HeardAgain::Repeated, _) | (HeardAgain::First | HeardAgain::Copy, None) => {}
        }
        match again {
            HeardAgain::First | HeardAgain::Copy => self.stats.copies += 1,
            HeardAgain::Repeated => self.stats.repeated += 1,
        }
    }

    /// What an earlier process kept: verified when it was heard, never answered, and offered like what was heard just now.
    pub(super) fn restore_kept(&mut self, group: GroupId, frames: Vec<KeptFrame>, now: Now, out: &mut Vec<Output>) {
        let mut known = Vec::new();
        for KeptFrame { mark, joined, frame } in frames {
            let event = mark.event();
            let entry = self.registry.session_mut(mark.device, mark.session).map(|(_, entry)| entry);
            let (is_settled, is_served) =
                entry.as_ref().map_or((false, false), |e| (e.settled.contains(mark.f_cnt), e.served.contains(mark.f_cnt)));
            if is_settled || entry.as_ref().is_some_and(|e| e.taken.contains(mark.f_cnt)) {
                known.push(event);
                continue;
            }
            if self.buffer.contains(&event) {
                continue;
            }
            if let Some(entry) = entry {
                entry.f_cnt_up_next = entry.f_cnt_up_next.max(mark.f_cnt.saturating_add(1));
            }
            let held = Held {
                group,
                mark,
                joined,
                event,
                phy: frame.phy,
                wants: Wants::default(),
                gateway: frame.gateway,
                rx: frame.rx,
                heard_at: frame.heard_at,
                heard: now.boot,
                others: Vec::new(),
                is_answered: true,
                is_offered: false,
            };
            if !self.buffer.insert(held, is_served, Some(now.boot + self.config.offer_wait)) {
                known.push(event);
            }
        }
        if !known.is_empty() {
            out.push(Output::Forget { events: known });
        }
    }

    pub(super) fn make_offers(&mut self, now: Now, out: &mut Vec<Output>) {
        for _ in 0..OFFERS_BATCH {
            let Some(held) = self.buffer.pop_offer(now.boot) else { return };
            self.stats.offers_made += 1;
            let frame = OfferedFrame { phy: held.phy.clone(), gateway: held.gateway, rx: held.rx, heard_at: held.heard_at };
            out.push(Output::OfferDue(Offer { group: held.group, event: held.event, mark: held.mark, frame }));
        }
    }

    /// A buffered frame as uplink.
    pub(super) fn buffered_uplink(held: Held) -> Uplink {
        // It was read when it was buffered.
        let header = uplink::header(&held.phy).ok();
        let payload = header.as_ref().map_or(0..0, |header| header.frm_payload.clone());
        Uplink {
            event: held.event,
            group: held.group,
            device: held.mark.device,
            session: held.mark.session,
            joined: held.joined,
            f_cnt: held.mark.f_cnt,
            f_port: header.as_ref().and_then(|header| header.f_port),
            confirmed: held.wants.ack,
            frm_payload: held.phy.slice(payload),
            phy: held.phy,
            gateway: held.gateway,
            rx: held.rx,
            others: held.others,
            heard_at: held.heard_at,
            heard_boot: held.heard,
            kind: UplinkKind::Buffered,
        }
    }

    /// The event is on disk or has failed: it is no longer in flight.
    pub(super) fn land(&mut self, event: &EventId) -> Option<InFlight> {
        let landed = self.in_flight.remove(event);
        if landed.is_none() {
            self.stats.unknown_names += 1;
        }
        landed
    }
}
