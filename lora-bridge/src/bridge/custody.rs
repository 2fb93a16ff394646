//! Registration, custody, replay, progress, and the state that nodes stream to one another.

use std::collections::{BTreeMap, BTreeSet};

use contracts::ids::{DevEui, Epoch, EventId, GroupId};
use contracts::time::BootTime;

use super::io::{Mode, Now, Output};
use super::planning::{Asks, Candidates, Pending, Plan};
use super::{Bridge, Group, InFlight, REPLAY_BATCH, REPLAY_RETRY, Replay};
use crate::buffer::Held;
use crate::mac::adr::AdrMode;
use crate::mac::downlink::{self, CounterSource, Timing};
use crate::mac::registry::{Merged, Refused, SlotIndex};
use crate::mac::session::{Mark, Recent, Session, SessionState};
use crate::rules::Clause;
use crate::stats::MissedReason;

impl Bridge {
    /// The group, made if there is room.
    fn group_entry(&mut self, group: GroupId) -> Option<&mut Group> {
        if !self.groups.contains_key(&group) && self.groups.len() >= self.config.groups_max {
            self.stats.refused += 1;
            return None;
        }
        let new = Group { mode: Mode::Standby, epoch: Epoch(0), replay: None, adr: AdrMode::Off, heard_there: None };
        Some(self.groups.entry(group).or_insert(new))
    }

    pub(super) fn register(&mut self, group: GroupId, sessions: &[Session], now: Now, out: &mut Vec<Output>) {
        let Some(known) = self.group_entry(group) else {
            let refused = sessions.iter().map(|session| (session.device, Refused::Groups));
            out.extend(refused.map(|(device, reason)| Output::Refused { group, device, reason }));
            return;
        };
        let is_serving = known.mode.epoch().is_some();
        for session in sessions {
            let slot = self.registry.slot_of(session.device);
            let before = slot.and_then(|slot| self.registry.get(slot)).map(|entry| entry.session);
            match self.registry.register(group, session) {
                Ok(slot) => {
                    let is_new = before != self.registry.get(slot).map(|entry| entry.session);
                    if is_new {
                        self.collecting.give(slot, out);
                        self.pending.remove(&slot);
                        self.restart_queue(session.device);
                    }
                    if let Some(entry) = self.registry.get_mut(slot).filter(|_| is_new && is_serving) {
                        entry.down.start();
                    }
                    self.set_wish(slot, session, is_new);
                    self.want(slot);
                    self.ask_for_encryption(session.device);
                    self.try_answer(slot, now, out);
                }
                Err(reason) => {
                    self.stats.refused += 1;
                    out.push(Output::Refused { group, device: session.device, reason });
                }
            }
        }
    }

    pub(super) fn remove(&mut self, group: GroupId, out: &mut Vec<Output>) {
        for slot in self.registry.group(group) {
            self.collecting.give(slot, out);
            if let Some(device) = self.registry.get(slot).map(|entry| entry.device) {
                self.forget_queue(device);
            }
            self.registry.remove(slot);
            self.pending.remove(&slot);
            self.waiting.remove(&slot);
        }
        self.forget_resets(group);
        self.buffer.remove_group(group);
        self.groups.remove(&group);
        self.forget_joining(group);
    }

    pub(super) fn custody(&mut self, id: GroupId, mode: Mode, now: Now, out: &mut Vec<Output>) {
        let Some(group) = self.group_entry(id) else { return };
        let old = group.mode;
        if mode.epoch().is_some_and(|epoch| epoch < group.epoch) {
            self.stats.stale_custody += 1;
            return;
        }
        group.mode = mode;
        group.epoch = mode.epoch().unwrap_or(group.epoch);
        let slots = self.registry.group(id);
        for slot in &slots {
            self.collecting.give(*slot, out);
        }
        if old.epoch() != mode.epoch() {
            self.change_epoch(&slots, old, mode);
            match (old.epoch(), mode.epoch()) {
                (_, Some(_)) => self.start_queues(&slots),
                (Some(_), None) => {
                    self.stop_queues(&slots, out);
                    self.store_awaited(id, now, out);
                }
                (None, None) => {}
            }
        }
        match (old.delivers(), mode.delivers()) {
            (false, true) => {
                self.buffer.set_offering(id, None);
                self.begin_replay(id, 0, now.boot);
                self.replay(id, now, out);
            }
            (true, false) => {
                if let Some(group) = self.groups.get_mut(&id) {
                    group.replay = None;
                }
                self.buffer.set_offering(id, Some(now.boot));
                for slot in &slots {
                    if self.pending.remove(slot).is_some_and(|pending| !pending.is_answered_elsewhere) {
                        self.stats.miss(MissedReason::NoCustody);
                    }
                }
            }
            (true, true) | (false, false) => {}
        }
        self.joins_in_custody(id, now, out);
        if mode.epoch().is_some() {
            self.ask_resets(now, out);
            for slot in slots {
                self.try_answer(slot, now, out);
            }
        }
    }

    /// Counters at the borders of custody.
    fn change_epoch(&mut self, slots: &[SlotIndex], old: Mode, new: Mode) {
        for slot in slots {
            if let Some(entry) = self.registry.get_mut(*slot) {
                if old.epoch().is_some() {
                    entry.down.stop();
                }
                if new.epoch().is_some() {
                    entry.adr.clear();
                    entry.down.start();
                }
                if let Some(link) = &mut entry.link {
                    link.change_custody();
                }
            }
            if new.epoch().is_some() {
                self.want(*slot);
            } else {
                self.waiting.remove(slot);
            }
        }
    }

    fn begin_replay(&mut self, group: GroupId, cursor: u64, not_before: BootTime) {
        if let Some(group) = self.groups.get_mut(&group) {
            let frames = group.replay.map_or(0, |replay| replay.frames);
            let cursor = group.replay.map_or(cursor, |replay| replay.cursor.min(cursor));
            group.replay = Some(Replay { cursor, frames, not_before });
        }
    }

    /// Gives out a batch of what was buffered, oldest first, all that is not settled. Live frames go on meanwhile.
    pub(super) fn replay(&mut self, id: GroupId, now: Now, out: &mut Vec<Output>) {
        let Some(mut replay) = self.groups.get(&id).and_then(|group| group.replay) else { return };
        replay.not_before = now.boot;
        for _ in 0..REPLAY_BATCH {
            if self.in_flight.len() >= self.config.in_flight_max {
                replay.not_before = now.boot + REPLAY_RETRY;
                break;
            }
            let Some((cursor, held)) = self.buffer.next_replay(id, replay.cursor) else {
                if let Some(group) = self.groups.get_mut(&id) {
                    group.replay = None;
                }
                out.push(Output::Replayed { group: id, frames: replay.frames });
                return;
            };
            replay.cursor = cursor;
            if self.replay_frame(held, now, out) {
                replay.frames += 1;
            }
        }
        if let Some(group) = self.groups.get_mut(&id) {
            group.replay = Some(replay);
        }
    }

    fn replay_frame(&mut self, held: Held, now: Now, out: &mut Vec<Output>) -> bool {
        let (event, mark) = (held.event, held.mark);
        let mut in_flight = InFlight { slot: SlotIndex::MAX, mark, is_buffered: true, awaited: None };
        // A frame of a session that is no longer known is delivered too; it was verified when it was heard.
        if let Some((slot, entry)) = self.registry.session_mut(mark.device, mark.session) {
            in_flight.slot = slot;
            if entry.settled.contains(mark.f_cnt) || entry.taken.contains(mark.f_cnt) {
                self.buffer.discard(&event);
                return false;
            }
            entry.taken.insert(mark.f_cnt);
            let is_newest = mark.f_cnt.saturating_add(1) >= entry.f_cnt_up_next && !entry.is_past;
            let timing =
                Timing { heard: held.heard, frequency_hz: held.rx.frequency_hz, data_rate: held.rx.data_rate, rx2_only: true };
            let windows = *entry.latest_windows();
            let is_reachable = downlink::reachable(&windows, &timing, self.config.answer_margin, now.boot).is_some();
            if is_newest && is_reachable && !held.is_offered {
                entry.recent = Some(Recent { f_cnt: mark.f_cnt, gateway: held.gateway, tmst: held.rx.tmst, heard: held.heard });
                if held.wants.is_answer() && !held.is_answered {
                    self.pending.insert(slot, Pending::of_buffered(&held));
                }
            }
        }
        self.stats.uplinks_buffered += 1;
        self.in_flight.insert(event, in_flight);
        out.push(Output::Uplink(Self::buffered_uplink(held)));
        true
    }

    pub(super) fn commit_failed(&mut self, events: &[EventId], now: Now) {
        for event in events {
            let Some(failed) = self.land(event) else { continue };
            self.stats.commit_failed += 1;
            self.unknown.note_failed(failed.awaited);
            if let Some(entry) = self.registry.get_mut(failed.slot).filter(|entry| entry.session == failed.mark.session) {
                // A repetition or a copy is taken as new.
                entry.taken.remove(failed.mark.f_cnt);
                if self.pending.get(&failed.slot).is_some_and(|pending| pending.event == *event) {
                    self.pending.remove(&failed.slot);
                }
            }
            let Some((group, cursor)) = self.buffer.give_back(event) else { continue };
            let delivers = self.groups.get(&group).is_some_and(|group| group.mode.delivers());
            if delivers {
                self.begin_replay(group, cursor, now.boot + REPLAY_RETRY);
            } else {
                self.buffer.set_offering(group, Some(now.boot));
            }
        }
    }

    pub(super) fn reserved(&mut self, entries: &[(DevEui, u32)], now: Now, out: &mut Vec<Output>) {
        for (device, upto) in entries {
            let Some((slot, entry)) = self.registry.device_mut(*device) else {
                self.stats.unknown_names += 1;
                continue;
            };
            entry.down.note_reserved(*upto);
            if !entry.down.is_waiting() {
                self.waiting.remove(&slot);
            }
            self.want(slot);
            self.try_answer(slot, now, out);
        }
    }

    pub(super) fn counters_from(&mut self, entries: &[(DevEui, u32)], source: CounterSource, now: Now, out: &mut Vec<Output>) {
        for (device, next) in entries {
            let Some((slot, entry)) = self.registry.device_mut(*device) else {
                self.stats.unknown_names += 1;
                continue;
            };
            entry.down.note_from(*next, source);
            self.want(slot);
            self.ask_for_encryption(*device);
            self.try_answer(slot, now, out);
        }
    }

    pub(super) fn note_served(&mut self, marks: &[Mark]) {
        if !self.config.rules.has(Clause::D3) {
            return self.note_settled(marks);
        }
        for mark in marks {
            self.buffer.note_served(&mark.event());
            let Some((slot, entry)) = self.registry.session_mut(mark.device, mark.session) else {
                self.stats.unknown_names += 1;
                continue;
            };
            entry.note_served(mark.f_cnt);
            self.note_answered_elsewhere(slot, |pending| pending == mark);
        }
    }

    /// While another node serves, what is on its disk is its own to answer.
    fn note_answered_elsewhere(&mut self, slot: SlotIndex, is_served_there: impl Fn(&Mark) -> bool) {
        let Some(entry) = self.registry.get(slot) else { return };
        let is_serving = self.groups.get(&entry.group).is_some_and(|group| group.mode.epoch().is_some());
        if !is_serving && let Some(pending) = self.pending.get_mut(&slot).filter(|pending| is_served_there(&pending.plan.mark)) {
            pending.is_answered_elsewhere = true;
        }
    }

    pub(super) fn note_settled(&mut self, marks: &[Mark]) {
        for mark in marks {
            self.buffer.discard(&mark.event());
            match self.registry.session_mut(mark.device, mark.session) {
                Some((_, entry)) => entry.note_settled(mark.f_cnt),
                None => self.stats.unknown_names += 1,
            }
        }
    }

    pub(super) fn import(&mut self, states: &[SessionState], now: Now, out: &mut Vec<Output>) {
        for state in states {
            let mut state = state.clone();
            if !self.config.rules.has(Clause::D3) {
                state.settled.merge(&state.served);
            }
            match self.registry.merge(&state) {
                Merged::Known => {}
                Merged::Restarted(slot) => self.restarted(slot, now, out),
                Merged::Unknown => {
                    self.stats.unknown_names += 1;
                    continue;
                }
            }
            self.merge_queue(state.device, &state.queue);
            if let Some(slot) = self.registry.slot_of(state.device) {
                self.note_answered_elsewhere(slot, |mark| mark.session == state.session && state.served.contains(mark.f_cnt));
                self.want(slot);
                self.try_answer(slot, now, out);
            }
        }
        self.note_imported(states, now);
    }

    /// What the other node has, or has settled, need not be kept or offered here; it is back, so the rest is offered at once.
    fn note_imported(&mut self, states: &[SessionState], now: Now) {
        let by_session: BTreeMap<_, _> = states.iter().map(|state| ((state.device, state.session), state)).collect();
        let groups: BTreeSet<GroupId> = states
            .iter()
            .filter_map(|state| self.registry.slot_of(state.device))
            .filter_map(|slot| Some(self.registry.get(slot)?.group))
            .collect();
        for mark in groups.iter().flat_map(|group| self.buffer.marks(*group)).collect::<Vec<_>>() {
            let Some(state) = by_session.get(&(mark.device, mark.session)) else { continue };
            if state.settled.contains(mark.f_cnt) {
                self.buffer.discard(&mark.event());
            } else if state.served.contains(mark.f_cnt) {
                self.buffer.note_served(&mark.event());
            }
        }
        for group in groups {
            if self.groups.get(&group).is_some_and(|known| !known.mode.delivers()) {
                self.buffer.set_offering(group, Some(now.boot));
            }
        }
    }
}

impl Pending {
    fn of_buffered(held: &Held) -> Self {
        let mut plan = Plan {
            mark: held.mark,
            wants: held.wants,
            candidates: Candidates::of(held.gateway, held.rx),
            heard: held.heard,
            heard_at: held.heard_at,
            gateways: 1,
            rx2_only: false,
            asks: Asks::default(),
        };
        held.others.iter().for_each(|other| plan.add(*other));
        Self { event: held.event, plan, is_committed: false, is_answered_elsewhere: false }
    }
}
