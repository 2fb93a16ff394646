//! Joins: only the node that serves answers, once the result is on the disks of a majority. The accept then goes to its gateway at once, which
//! sends it five seconds after the request, whoever serves by then. Whoever takes over in the meantime and heard the request, too, answers it in
//! RX2 with the same accept: perhaps the gateway died with its node.
//!
//! | state of a device | event | next |
//! |---|---|---|
//! | idle | a fit request while serving | recording: nonces used, [`Output::RecordWanted`] |
//! | idle | a request in standby | kept, for a takeover within its window ([`super::keeping`]) |
//! | kept | custody and root key are here | recording, in RX2 only if another may have answered; what another recorded stays as it is |
//! | recording | [`super::io::Input::Recorded`] | recorded: the new session is registered |
//! | recorded | [`GATHER`] after the request ([`UNQUEUED_MAX`] before the window, if the gateway has no queue) | on air: in RX1 (5 s), else in RX2 (6 s) |
//! | on air | refused in RX1 | recorded, RX2 only |
//! | any | custody ends, or RX2 is over | idle; the nonces stay used |
//!
//! A request with another nonce is not taken before the one at hand is over; a device that joins again and again without an uplink in
//! between is answered ever more rarely.

use contracts::ids::{DevEui, Epoch, GroupId};
use contracts::time::{BootTime, Millis, WallTime};

use super::Bridge;
use super::collecting::is_better;
use super::hearing::COPY_WITHIN;
use super::io::{Accept, Now, Output};
use super::keeping::{Heard, Kept};
use crate::gwmp::rxpk::RxMeta;
use crate::gwmp::txpk::{TxResult, Txpk};
use crate::gwmp::{self, GatewayEui, Version};
use crate::mac::downlink::{self, BLOCK, DownCounters, Timing, Window};
use crate::mac::duty_cycle::{self, Booking};
use crate::mac::join::{self, AppKey, DeviceRecord, JoiningDevice, Nonces, Unfit};
use crate::mac::link::Wish;
use crate::mac::registry::PAST_MAX;
use crate::mac::session::{Entry, Joined, ReceiveWindows, Session};
use crate::stats::{DropReason, MissedReason};

/// JOIN_ACCEPT_DELAY1 in seconds (RP002).
const JOIN_DELAY_SECONDS: u8 = 5;
/// So long a request is waited for at better gateways than the first.
const GATHER: Millis = Millis(200);
/// To a gateway that says nothing of what it takes (GWMP v1) an accept goes at most so long before its window: forwarders of that time have
/// no queue.
const UNQUEUED_MAX: Millis = Millis::from_secs(1);
/// Two nodes hear one request at about the same time, however their wall clocks differ; a later one is replayed.
const REPEATED_WITHIN: Millis = Millis::from_secs(5);
/// From one join of a device to the next.
const INTERVAL: Millis = Millis::from_secs(6);
/// Joins without an uplink in between before the interval doubles.
const PATIENCE: u8 = 3;
const DOUBLINGS_MAX: u8 = 6;

#[derive(Debug, Clone)]
struct Pending {
    heard: Heard,
    joined: Joined,
    key: AppKey,
    version: u32,
    epoch: Epoch,
    rx2_only: bool,
    is_recorded: bool,
    is_on_air: bool,
}

/// A device that joins over the air.
#[derive(Debug)]
pub(super) struct Joining {
    group: GroupId,
    device: JoiningDevice,
    nonces: Nonces,
    /// Of the newest record.
    version: u32,
    /// When the request was heard that the newest session comes from.
    requested_at: Option<WallTime>,
    pending: Option<Pending>,
    not_before: BootTime,
    streak: u8,
}

/// An accept whose fate the gateway has not told.
#[derive(Debug, Clone, Copy)]
pub(super) struct OnAir {
    device: DevEui,
    /// Of the record.
    version: u32,
    gateway: GatewayEui,
    window: Window,
    booking: Booking,
    /// Start on the gateway's counter.
    tmst: u32,
    sent: BootTime,
}

impl Joining {
    pub(super) const fn wish(&self) -> &Wish {
        &self.device.wish
    }

    /// Whether the accept of this session is what it would be if this node had begun it.
    fn begins(&self, session: &Session, key: AppKey) -> bool {
        let own = session.joined.and_then(|joined| join::session(&self.device, key, joined));
        own.is_some_and(|own| own.id() == session.id() && own.receive_windows == session.receive_windows)
    }

    /// Uses a nonce of the device and one of the network.
    fn new_session(&mut self, dev_nonce: u16, key: AppKey) -> Result<Session, Unfit> {
        let join_nonce = self.nonces.take(self.device.nonce_rule, dev_nonce)?;
        let joined = Joined { join_nonce, net_id: join::NET_ID, dev_nonce };
        let mut session = join::session(&self.device, key, joined).ok_or(Unfit::Unbuildable)?;
        // The first block of counters is written ahead together with the session.
        session.f_cnt_down_reserved = BLOCK;
        Ok(session)
    }
}

fn join_windows(region: &crate::mac::region::Region) -> ReceiveWindows {
    ReceiveWindows {
        rx1_delay_seconds: JOIN_DELAY_SECONDS,
        rx1_data_rate_offset: 0,
        rx2_frequency_hz: region.rx2_hz,
        rx2_data_rate: region.data_rate(region.rx2_data_rate).unwrap_or(crate::gwmp::data_rate::DataRate::Other),
    }
}

impl Pending {
    fn timing(&self) -> Timing {
        Timing {
            heard: self.heard.at,
            frequency_hz: self.heard.rx.frequency_hz,
            data_rate: self.heard.rx.data_rate,
            rx2_only: self.rx2_only,
        }
    }

    fn window_at(&self, windows: &ReceiveWindows, window: Window) -> BootTime {
        self.heard.at
            + match window {
                Window::Rx1 => windows.rx1_delay(),
                Window::Rx2 => windows.rx2_delay(),
            }
    }
}

impl Bridge {
    /// Devices that join. A root key that is known stays known until custody ends at a node that only insures.
    pub(super) fn register_joining(&mut self, group: GroupId, devices: Vec<JoiningDevice>, now: Now, out: &mut Vec<Output>) {
        for device in devices {
            let id = device.device;
            let address = device.dev_addr;
            let is_known = self.joining.get(&id).is_some_and(|known| known.group == group);
            let is_taken = self.joining.contains_key(&id) && !is_known;
            if is_taken || (!is_known && self.joining.len() >= self.config.sessions_max) || !device.receive_windows.are_valid() {
                self.stats.refused += 1;
                continue;
            }
            let fresh = |device| Joining {
                group,
                device,
                nonces: Nonces::default(),
                version: 0,
                requested_at: None,
                pending: None,
                not_before: BootTime(0),
                streak: 0,
            };
            match self.joining.get_mut(&id) {
                Some(known) => {
                    let app_key = device.app_key.or(known.device.app_key);
                    known.device = JoiningDevice { app_key, ..device };
                }
                None => drop(self.joining.insert(id, fresh(device))),
            }
            self.unknown.note_address(address, group);
            self.renew_wish(id);
            self.take_up_kept(id, now, out);
        }
    }

    /// Write-ahead records of others, or of an earlier life: nonces never go back, the newest session counts.
    pub(super) fn take_records(&mut self, records: &[DeviceRecord], now: Now, out: &mut Vec<Output>) {
        for record in records {
            let Some(joining) = self.joining.get_mut(&record.device).filter(|_| record.session.device == record.device) else {
                self.stats.unknown_names += 1;
                continue;
            };
            joining.nonces.merge(joining.device.nonce_rule, &record.nonces);
            if record.version <= joining.version {
                continue;
            }
            (joining.version, joining.requested_at) = (record.version, record.requested_at);
            let group = joining.group;
            self.register(group, std::slice::from_ref(&record.session), now, out);
            for past in record.past.iter().filter(|past| past.device == record.device).take(PAST_MAX) {
                if self.registry.remember_past(group, past).is_err() {
                    self.stats.refused += 1;
                }
            }
            self.hear_awaited(record.session.dev_addr, now, out);
        }
    }

    /// The newest version known of a device's record.
    #[must_use]
    pub fn record_version(&self, device: DevEui) -> Option<u32> {
        self.joining.get(&device).map(|joining| joining.version)
    }

    pub(super) fn join_request(&mut self, phy: &[u8], gateway: GatewayEui, rx: RxMeta, now: Now, out: &mut Vec<Output>) {
        let Some(request) = join::request(phy) else { return self.stats.drop(DropReason::FrameJoin) };
        // One that is over must not stand in the way.
        self.send_accepts(now, out);
        let groups = &self.groups;
        let Some(joining) = self.joining.get_mut(&request.device).filter(|known| known.device.join_eui == request.join_eui)
        else {
            return self.stats.drop(DropReason::FrameJoin);
        };
        if let Some(pending) = joining.pending.as_mut().filter(|pending| pending.heard.request == request) {
            let is_copy = now.boot.since(pending.heard.at) <= COPY_WITHIN;
            if is_copy
                && !pending.is_on_air
                && is_better(&rx, &pending.heard.rx)
                && self.gateways.route(gateway, now.boot).is_some()
            {
                (pending.heard.gateway, pending.heard.rx) = (gateway, rx);
            }
            self.stats.copies += 1;
            return;
        }
        let epoch = groups.get(&joining.group).and_then(|group| group.mode.epoch());
        let heard = Heard { phy: phy.to_vec(), request, gateway, rx, at: now.boot };
        let begun = self.begun_before(&heard, epoch, now);
        let Some(joining) = self.joining.get(&request.device) else { return };
        if epoch.is_none() || joining.device.app_key.is_none() {
            if begun.is_none() && joining.nonces.is_used(joining.device.nonce_rule, request.dev_nonce) {
                return self.frame_fault(DropReason::JoinReplayed, gateway);
            }
            return self.keep_request(heard);
        }
        self.begin_join(heard, false, begun, now, out);
    }

    /// For a takeover; who wrote it is not known.
    fn keep_request(&mut self, heard: Heard) {
        let is_reached = self.gateways.route(heard.gateway, heard.at).is_some();
        let gateway = heard.gateway;
        match self.keeping.keep(heard, is_reached, join_windows(self.region()).rx2_delay()) {
            Kept::New => self.stats.joins_kept += 1,
            Kept::Copy => self.stats.copies += 1,
            Kept::Full => self.frame_fault(DropReason::JoinsKeptFull, gateway),
        }
    }

    /// What was heard before this node could answer: the newest that the device itself wrote and nobody answered, else what a holder before
    /// this one began to answer.
    fn take_up_kept(&mut self, device: DevEui, now: Now, out: &mut Vec<Output>) {
        let Some(joining) = self.joining.get(&device) else { return };
        let Some(group) = self.groups.get(&joining.group) else { return };
        let super::Mode::Serving { epoch, foreign_lease_end } = group.mode else { return };
        if joining.device.app_key.is_none() {
            return;
        }
        let mut all = self.keeping.take(device);
        all.sort_by_key(|kept| joining.nonces.is_used(joining.device.nonce_rule, kept.request.dev_nonce));
        for kept in all {
            let rx2_only = foreign_lease_end.is_some_and(|end| kept.at < end);
            let begun = self.begun_before(&kept, Some(epoch), now);
            self.begin_join(kept, rx2_only, begun, now, out);
            if self.joining.get(&device).is_some_and(|joining| joining.pending.is_some()) {
                break;
            }
        }
    }

    /// The session that was recorded for this request in an epoch before this one, if the device has said nothing in it yet. A request that is
    /// replayed later comes too long after the record's: it could be answered at the time of another one of the device.
    fn begun_before(&self, heard: &Heard, epoch: Option<Epoch>, now: Now) -> Option<Session> {
        let joining = self.joining.get(&heard.request.device)?;
        let is_recent = joining.requested_at?.0.abs_diff(now.wall_at(heard.at).0) <= REPEATED_WITHIN.0;
        let is_before = epoch.is_none_or(|epoch| join::epoch_of(joining.version) < epoch.0);
        let entry = self.registry.slot_of(heard.request.device).and_then(|slot| self.registry.get(slot))?;
        let is_its = entry.joined.is_some_and(|joined| joined.dev_nonce == heard.request.dev_nonce);
        (is_recent && is_before && is_its && entry.f_cnt_up_next == 0).then(|| entry.to_session())
    }

    /// Takes the nonces, or goes on with what another `begun`, and asks for the record.
    fn begin_join(&mut self, heard: Heard, rx2_only: bool, begun: Option<Session>, now: Now, out: &mut Vec<Output>) {
        let (device, gateway) = (heard.request.device, heard.gateway);
        let Some(joining) = self.joining.get_mut(&device) else { return };
        let Some(key) = joining.device.app_key.filter(|key| join::is_authentic(&heard.phy, *key)) else {
            return self.frame_fault(DropReason::IntegrityCode, gateway);
        };
        let Some(epoch) = self.groups.get(&joining.group).and_then(|group| group.mode.epoch()) else { return };
        if joining.pending.is_some() || now.boot < joining.not_before {
            return self.frame_fault(DropReason::JoinTooSoon, gateway);
        }
        let windows = join_windows(self.config.region.region());
        let timing = Timing { heard: heard.at, frequency_hz: None, data_rate: heard.rx.data_rate, rx2_only: true };
        if downlink::reachable(&windows, &timing, self.config.answer_margin, now.boot).is_none() {
            return self.stats.miss(MissedReason::TooLate);
        }
        let Some(version) = join::next_version(joining.version, epoch.0) else {
            return self.frame_fault(DropReason::JoinLimit, gateway);
        };
        // With other settings than those of who began it the accept would not be the same.
        let begun = begun.filter(|session| joining.begins(session, key));
        let is_begun = begun.is_some();
        let session = match begun.map_or_else(|| joining.new_session(heard.request.dev_nonce, key), Ok) {
            Ok(session) => session,
            Err(Unfit::Replayed) => return self.frame_fault(DropReason::JoinReplayed, gateway),
            Err(Unfit::Exhausted) => return self.frame_fault(DropReason::JoinLimit, gateway),
            Err(Unfit::Unbuildable) => return self.stats.miss(MissedReason::Unbuildable),
        };
        let Some(joined) = session.joined else { return self.stats.miss(MissedReason::Unbuildable) };
        let doublings = joining.streak.saturating_sub(PATIENCE).min(DOUBLINGS_MAX);
        joining.not_before = now.boot + Millis(INTERVAL.0 << doublings);
        joining.streak = joining.streak.saturating_add(1);
        if !is_begun {
            joining.requested_at = Some(now.wall_at(heard.at));
        }
        joining.version = version;
        let requested_at = joining.requested_at;
        let newest = self.registry.slot_of(device).and_then(|slot| self.registry.get(slot)).filter(|_| !is_begun);
        let mut past: Vec<Session> = self.registry.past(device).chain(newest).map(Entry::to_session).collect();
        if past.len() > PAST_MAX {
            // As the registry does when the new session is registered.
            past.remove(past[..PAST_MAX].iter().position(|session| session.f_cnt_up_next == 0).unwrap_or(0));
        }
        let record = DeviceRecord { device, version, nonces: joining.nonces.clone(), session, requested_at, past };
        // Who began it may have answered in RX1.
        let rx2_only = rx2_only || is_begun;
        joining.pending = Some(Pending { heard, joined, key, version, epoch, rx2_only, is_recorded: false, is_on_air: false });
        self.keeping.take(device);
        self.stats.joins_begun += 1;
        self.joins.insert(device);
        out.push(Output::RecordWanted { group: joining.group, epoch, record: Box::new(record) });
    }

    /// A record is on the disks of a majority: its session counts from now on.
    pub(super) fn recorded(&mut self, record: &DeviceRecord, now: Now, out: &mut Vec<Output>) {
        let Some(joining) = self.joining.get_mut(&record.device).filter(|joining| joining.version == record.version) else {
            self.stats.unknown_names += 1;
            return;
        };
        if let Some(pending) = joining.pending.as_mut().filter(|pending| pending.version == record.version) {
            pending.is_recorded = true;
        }
        let group = joining.group;
        let before = self.registry.slot_of(record.device).and_then(|slot| self.registry.get(slot)).map(|entry| entry.session);
        self.register(group, std::slice::from_ref(&record.session), now, out);
        if before != Some(record.session.id()) {
            self.begin_counters(record);
        }
        self.send_accepts(now, out);
    }

    /// Nobody used a counter of this session before; the first block is part of its record.
    fn begin_counters(&mut self, record: &DeviceRecord) {
        if let Some((slot, entry)) = self.registry.device_mut(record.device) {
            entry.down = DownCounters::begun(record.session.f_cnt_down_reserved);
            self.waiting.remove(&slot);
            self.wanted.retain(|(_, device, _)| *device != record.device);
        }
    }

    /// An uplink of the device in its newest session.
    pub(super) fn note_joined(&mut self, device: DevEui) {
        if let Some(joining) = self.joining.get_mut(&device) {
            (joining.streak, joining.not_before) = (0, BootTime(0));
        }
    }

    /// Accepts whose time has come, and joins whose time is over.
    pub(super) fn send_accepts(&mut self, now: Now, out: &mut Vec<Output>) {
        for device in self.joins.clone() {
            if !self.step_join(device, now, out) {
                self.joins.remove(&device);
                if let Some(joining) = self.joining.get_mut(&device) {
                    joining.pending = None;
                }
            }
        }
    }

    /// False when the join is over.
    fn step_join(&mut self, device: DevEui, now: Now, out: &mut Vec<Output>) -> bool {
        let windows = join_windows(self.region());
        let Some((group, pending)) =
            self.joining.get(&device).and_then(|joining| Some((joining.group, joining.pending.as_ref()?)))
        else {
            return false;
        };
        if self.groups.get(&group).and_then(|group| group.mode.epoch()) != Some(pending.epoch) {
            self.stats.miss(MissedReason::NoCustody);
            return false;
        }
        let window = downlink::reachable(&windows, &pending.timing(), self.config.answer_margin, now.boot);
        let Some(window) = window else {
            if !pending.is_on_air {
                self.stats.miss(if pending.is_recorded { MissedReason::TooLate } else { MissedReason::NotRecorded });
            }
            return false;
        };
        if window == Window::Rx2 && !pending.is_on_air && !pending.rx2_only {
            // RX1 is over: what is due from now on is RX2.
            self.set_rx2_only(device);
            return self.step_join(device, now, out);
        }
        if pending.is_on_air || !pending.is_recorded || now.boot < self.leaves_at(pending) {
            return true;
        }
        match self.transmit_accept(device, window, now) {
            Ok(accept) => {
                out.push(Output::Accept(accept));
                true
            }
            Err(MissedReason::DutyCycle | MissedReason::Busy) if window == Window::Rx1 => {
                self.set_rx2_only(device);
                self.step_join(device, now, out)
            }
            Err(reason) => {
                self.stats.miss(reason);
                false
            }
        }
    }

    /// When an accept goes to its gateway; one that has not pulled yet has until a second before.
    fn leaves_at(&self, pending: &Pending) -> BootTime {
        let heard = &pending.heard;
        let has_queue = self.gateways.route(heard.gateway, heard.at).is_some_and(|route| route.version == Version::V2);
        let window = if pending.rx2_only { Window::Rx2 } else { Window::Rx1 };
        let window_at = pending.window_at(&join_windows(self.region()), window);
        let soon = heard.at + GATHER;
        if has_queue { soon } else { soon.max(BootTime(window_at.0.saturating_sub(UNQUEUED_MAX.0))) }
    }

    fn set_rx2_only(&mut self, device: DevEui) {
        if let Some(pending) = self.joining.get_mut(&device).and_then(|joining| joining.pending.as_mut()) {
            (pending.rx2_only, pending.is_on_air) = (true, false);
        }
    }

    fn accept_power_dbm(&self, device: DevEui, window: Window) -> Option<i8> {
        let pending = self.joining.get(&device)?.pending.as_ref()?;
        let place = downlink::slot(&join_windows(self.region()), &pending.timing(), window, 0);
        Some(self.power_dbm(pending.heard.gateway, place.frequency_hz))
    }

    fn transmit_accept(&mut self, device: DevEui, window: Window, now: Now) -> Result<Accept, MissedReason> {
        let region = self.region();
        let power_dbm = self.accept_power_dbm(device, window).ok_or(MissedReason::NoCustody)?;
        let joining = self.joining.get_mut(&device).ok_or(MissedReason::NoCustody)?;
        let pending = joining.pending.as_mut().ok_or(MissedReason::NoCustody)?;
        let (gateway, group) = (pending.heard.gateway, joining.group);
        let route = self.gateways.route(gateway, now.boot).ok_or(MissedReason::NoRoute)?;
        let tmst = pending.heard.rx.tmst.ok_or(MissedReason::NoTimestamp)?;
        let phy = join::accept(&joining.device, pending.key, pending.joined, region).ok_or(MissedReason::Unbuildable)?;
        let place = downlink::slot(&join_windows(region), &pending.timing(), window, tmst);
        let micros = duty_cycle::time_on_air_micros(place.data_rate, phy.len(), false);
        if !self.schedules.is_free(gateway, place.tmst, micros) {
            return Err(MissedReason::Busy);
        }
        let booking = self.ledger.book(gateway, place.frequency_hz, micros, now.boot).ok_or(MissedReason::DutyCycle)?;
        self.schedules.plan(gateway, place.tmst, micros, now.boot);
        let txpk = Txpk { tmst: place.tmst, frequency_hz: place.frequency_hz, data_rate: place.data_rate, power_dbm, phy: &phy };
        let token = self.next_token;
        self.next_token = token.wrapping_add(1);
        let bytes = gwmp::pull_resp(route.version, token.to_be_bytes(), &txpk);
        pending.is_on_air = true;
        let (epoch, joined) = (pending.epoch, pending.joined);
        if route.version == Version::V2 {
            self.accepts.retain(|_, on_air| now.boot.since(on_air.sent) < Millis::from_secs(10));
            self.accepts.insert(
                token,
                OnAir { device, version: pending.version, gateway, window, booking, tmst: place.tmst, sent: now.boot },
            );
        }
        self.gateways.sent(gateway);
        self.stats.joins_accepted += 1;
        Ok(Accept { group, epoch, device, joined, window, gateway, to: route.address, bytes })
    }

    pub(super) fn awaits_accept_tx_ack(&self, gateway: GatewayEui, token: u16) -> bool {
        self.accepts.get(&token).is_some_and(|on_air| on_air.gateway == gateway)
    }

    /// The gateway's word about an accept; `None` if the token is not one's.
    pub(super) fn accept_tx_ack(
        &mut self,
        gateway: GatewayEui,
        token: u16,
        result: TxResult,
        now: Now,
        out: &mut Vec<Output>,
    ) -> Option<()> {
        self.accepts.get(&token).filter(|on_air| on_air.gateway == gateway)?;
        let on_air = self.accepts.remove(&token)?;
        if result.is_accepted() {
            return Some(());
        }
        self.ledger.give_back(gateway, on_air.booking);
        self.schedules.give_back(gateway, on_air.tmst);
        let pending = self.joining.get(&on_air.device).and_then(|joining| joining.pending.as_ref());
        let is_at_hand = pending.is_some_and(|pending| pending.version == on_air.version);
        match on_air.window {
            Window::Rx1 if is_at_hand => {
                self.set_rx2_only(on_air.device);
                self.send_accepts(now, out);
            }
            Window::Rx1 | Window::Rx2 => self.stats.miss(MissedReason::Refused),
        }
        Some(())
    }

    /// When an accept has to leave, or a join is over.
    pub(super) fn next_accept(&self) -> Option<BootTime> {
        let windows = join_windows(self.region());
        let due = |device: &DevEui| {
            let pending = self.joining.get(device)?.pending.as_ref()?;
            let rx2 = pending.window_at(&windows, Window::Rx2);
            Some(if pending.is_on_air || !pending.is_recorded { rx2 } else { self.leaves_at(pending) })
        };
        self.joins.iter().filter_map(due).min()
    }

    /// Custody of a group changed.
    pub(super) fn joins_in_custody(&mut self, group: GroupId, now: Now, out: &mut Vec<Output>) {
        let devices: Vec<DevEui> = self.joining.iter().filter(|(_, known)| known.group == group).map(|(id, _)| *id).collect();
        let is_standby = self.groups.get(&group).is_some_and(|group| group.mode == super::Mode::Standby);
        for device in devices {
            if is_standby && let Some(joining) = self.joining.get_mut(&device) {
                joining.device.app_key = None;
            }
            self.take_up_kept(device, now, out);
        }
        self.send_accepts(now, out);
    }

    pub(super) fn forget_joining(&mut self, group: GroupId) {
        self.joining.retain(|_, joining| joining.group != group);
        self.unknown.forget(group);
        let joining = &self.joining;
        self.keeping.retain(|device| joining.contains_key(&device));
        self.joins.retain(|device| self.joining.contains_key(device));
    }
}
