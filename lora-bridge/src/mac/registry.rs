//! All sessions of a bridge: by slot, by device, by address.

use std::collections::HashMap;

use contracts::ids::{DevAddr, DevEui, GroupId, SessionId};

use super::session::{Entry, Session, SessionState};

/// Devices with the same address cost up to one integrity check each per frame (see [`super::trials`]); more than this are refused.
pub const SESSIONS_PER_ADDRESS_MAX: usize = 1_024;

/// Sessions of a device that are remembered beside the newest: the one that it used last, and one of a join of which it may not have heard.
pub const PAST_MAX: usize = 2;

/// Why a session is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("the device belongs to another group")]
    OtherGroup,
    #[error("more than {SESSIONS_PER_ADDRESS_MAX} devices have this address")]
    AddressCrowded,
    #[error("as many sessions as the bridge may hold are registered")]
    Full,
    #[error("receive windows outside of LoRaWAN's range")]
    ReceiveWindows,
    #[error("as many groups as the bridge may hold are registered")]
    Groups,
}

/// Index of a session.
pub(crate) type SlotIndex = u32;

/// Sessions in a slab; freed slots are used again.
#[derive(Debug)]
pub(crate) struct Registry {
    slots: Vec<Option<Entry>>,
    free: Vec<SlotIndex>,
    by_device: HashMap<DevEui, SlotIndex>,
    by_address: HashMap<DevAddr, Vec<SlotIndex>>,
    /// Sessions before the one in `by_device`, of devices that joined again, oldest first: their late frames are still readings.
    past: HashMap<DevEui, Vec<SlotIndex>>,
    max: usize,
}

impl Registry {
    pub(crate) fn new(max: usize) -> Self {
        let max = max.min(SlotIndex::MAX as usize);
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            by_device: HashMap::new(),
            by_address: HashMap::new(),
            past: HashMap::new(),
            max,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.by_device.len()
    }

    pub(crate) fn get(&self, slot: SlotIndex) -> Option<&Entry> {
        self.slots.get(slot as usize)?.as_ref()
    }

    pub(crate) fn get_mut(&mut self, slot: SlotIndex) -> Option<&mut Entry> {
        self.slots.get_mut(slot as usize)?.as_mut()
    }

    pub(crate) fn slot_of(&self, device: DevEui) -> Option<SlotIndex> {
        self.by_device.get(&device).copied()
    }

    pub(crate) fn device_mut(&mut self, device: DevEui) -> Option<(SlotIndex, &mut Entry)> {
        let slot = self.slot_of(device)?;
        self.get_mut(slot).map(|entry| (slot, entry))
    }

    /// The newest session of a device, or one before it.
    pub(crate) fn session_mut(&mut self, device: DevEui, session: SessionId) -> Option<(SlotIndex, &mut Entry)> {
        let newest = self.by_device.get(&device).into_iter();
        let mut slots = newest.chain(self.past.get(&device).into_iter().flatten()).copied();
        let slot = slots.find(|slot| self.get(*slot).is_some_and(|entry| entry.session == session))?;
        self.get_mut(slot).map(|entry| (slot, entry))
    }

    /// The sessions of a device before the newest, oldest first.
    pub(crate) fn past(&self, device: DevEui) -> impl Iterator<Item = &Entry> {
        self.past.get(&device).into_iter().flatten().filter_map(|slot| self.get(*slot))
    }

    /// The slots of an address: those to try a frame's integrity code with.
    pub(crate) fn with_address(&self, address: DevAddr) -> &[SlotIndex] {
        self.by_address.get(&address).map_or(&[], Vec::as_slice)
    }

    pub(crate) fn entries(&self) -> impl Iterator<Item = (SlotIndex, &Entry)> {
        (0..).zip(&self.slots).filter_map(|(slot, entry)| entry.as_ref().map(|entry| (slot, entry)))
    }

    pub(crate) fn entries_mut(&mut self) -> impl Iterator<Item = &mut Entry> {
        self.slots.iter_mut().flatten()
    }

    /// The slots of a group, ascending.
    pub(crate) fn group(&self, group: GroupId) -> Vec<SlotIndex> {
        self.entries().filter(|(_, entry)| entry.group == group).map(|(slot, _)| slot).collect()
    }

    /// Adds a session; merges into it if it is known; replaces an older session of the device.
    pub(crate) fn register(&mut self, group: GroupId, session: &Session) -> Result<SlotIndex, Refused> {
        if !session.receive_windows.are_valid() {
            return Err(Refused::ReceiveWindows);
        }
        if let Some(slot) = self.slot_of(session.device) {
            return self.renew(slot, group, session);
        }
        if self.len() >= self.max {
            return Err(Refused::Full);
        }
        if self.with_address(session.dev_addr).len() >= SESSIONS_PER_ADDRESS_MAX {
            return Err(Refused::AddressCrowded);
        }
        let entry = Entry::new(group, session);
        let (device, dev_addr) = (session.device, session.dev_addr);
        let slot = self.place(entry)?;
        self.by_device.insert(device, slot);
        self.by_address.entry(dev_addr).or_default().push(slot);
        Ok(slot)
    }

    fn place(&mut self, entry: Entry) -> Result<SlotIndex, Refused> {
        Ok(if let Some(slot) = self.free.pop() {
            self.slots[slot as usize] = Some(entry);
            slot
        } else {
            self.slots.push(Some(entry));
            // `max` keeps the length below the index type's limit.
            SlotIndex::try_from(self.slots.len() - 1).map_err(|_| Refused::Full)?
        })
    }

    /// Adds a session that is over to those of its device: merged if it is known. At the bound one that the device never used goes first,
    /// then the oldest.
    pub(crate) fn remember_past(&mut self, group: GroupId, session: &Session) -> Result<(), Refused> {
        let new = Entry::new(group, session);
        match self.session_mut(session.device, new.session) {
            Some((_, known)) if known.group == group => {
                known.merge(&new.state());
                Ok(())
            }
            Some(_) => Err(Refused::OtherGroup),
            None => self.keep_past(new),
        }
    }

    fn keep_past(&mut self, mut entry: Entry) -> Result<(), Refused> {
        let (device, dev_addr) = (entry.device, entry.dev_addr);
        let known = self.past.get(&device).map_or(&[][..], Vec::as_slice);
        if known.len() >= PAST_MAX {
            let is_unused = |slot: &&SlotIndex| self.get(**slot).is_none_or(|entry| entry.f_cnt_up_next == 0);
            if let Some(forgotten) = known.iter().find(is_unused).or_else(|| known.first()).copied() {
                self.remove(forgotten);
            }
        }
        if self.with_address(dev_addr).len() >= SESSIONS_PER_ADDRESS_MAX {
            return Err(Refused::AddressCrowded);
        }
        entry.is_past = true;
        let slot = self.place(entry)?;
        self.past.entry(device).or_default().push(slot);
        self.by_address.entry(dev_addr).or_default().push(slot);
        Ok(())
    }

    fn renew(&mut self, slot: SlotIndex, group: GroupId, session: &Session) -> Result<SlotIndex, Refused> {
        let new = Entry::new(group, session);
        let crowded = self.with_address(session.dev_addr).len() >= SESSIONS_PER_ADDRESS_MAX;
        let Some(known) = self.get_mut(slot) else { return Err(Refused::Full) };
        if known.group != group {
            return Err(Refused::OtherGroup);
        }
        let is_same_activation = known.dev_addr == new.dev_addr && known.nwk_s_key == new.nwk_s_key;
        if is_same_activation && new.reset_ordinal <= known.reset_ordinal {
            // Who registers need not know how often the device began anew.
            known.receive_windows = session.receive_windows;
            known.uplink_rules = session.uplink_rules;
            if known.session == new.session {
                known.merge(&new.state());
            }
            return Ok(slot);
        }
        let old_address = known.dev_addr;
        if old_address != new.dev_addr && crowded {
            return Err(Refused::AddressCrowded);
        }
        let new_address = new.dev_addr;
        let is_join = new.joined.is_some() && !is_same_activation;
        let mut old = std::mem::replace(known, new);
        // What is wished, and records of sessions to come, are the device's.
        known.link = old.link.take();
        if old_address != new_address {
            self.forget_address(old_address, slot);
            self.by_address.entry(new_address).or_default().push(slot);
        }
        if is_join {
            // Without room only its late frames are lost; the new session stands.
            let _crowded = self.keep_past(old);
        }
        Ok(slot)
    }

    /// Removes a session; its memory is used for the next one.
    pub(crate) fn remove(&mut self, slot: SlotIndex) {
        if let Some(entry) = self.slots.get_mut(slot as usize).and_then(Option::take) {
            if !entry.is_past {
                self.by_device.remove(&entry.device);
            } else if let Some(slots) = self.past.get_mut(&entry.device) {
                slots.retain(|other| *other != slot);
                if slots.is_empty() {
                    self.past.remove(&entry.device);
                }
            }
            self.forget_address(entry.dev_addr, slot);
            self.free.push(slot);
        }
    }

    fn forget_address(&mut self, address: DevAddr, slot: SlotIndex) {
        if let Some(slots) = self.by_address.get_mut(&address) {
            slots.retain(|other| *other != slot);
            if slots.is_empty() {
                self.by_address.remove(&address);
            }
        }
    }

    /// Merges a streamed state into its session; begins that session if the device did elsewhere.
    pub(crate) fn merge(&mut self, state: &SessionState) -> Merged {
        if let Some((_, entry)) = self.session_mut(state.device, state.session) {
            entry.merge(state);
            return Merged::Known;
        }
        let Some((slot, entry)) = self.device_mut(state.device) else { return Merged::Unknown };
        let is_later = state.reset_ordinal > entry.reset_ordinal;
        if is_later && entry.session_at(state.reset_ordinal) == state.session {
            entry.restart(state.reset_ordinal);
            entry.merge(state);
            return Merged::Restarted(slot);
        }
        Merged::Unknown
    }
}

/// What a streamed state was to this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Merged {
    Known,
    /// The device has begun its counters anew: its session is another one now.
    Restarted(SlotIndex),
    /// Of another activation, or of a session that is over.
    Unknown,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mac::session::NwkSKey;

    fn session(device: u64, address: u32) -> Session {
        Session::new(DevEui::from_u64(device), DevAddr::from_u32(address), NwkSKey::from_bytes([7; 16]))
    }

    const GROUP: GroupId = GroupId::from_bytes([1; 16]);

    #[test]
    fn refusals_by_name() {
        let mut registry = Registry::new(1_025);
        for device in 0..1_024 {
            assert!(registry.register(GROUP, &session(device, 5)).is_ok());
        }
        assert_eq!(registry.register(GROUP, &session(2_000, 5)), Err(Refused::AddressCrowded));
        assert_eq!(registry.register(GroupId::from_bytes([2; 16]), &session(3, 5)), Err(Refused::OtherGroup));
        assert!(registry.register(GROUP, &session(2_000, 6)).is_ok());
        assert_eq!(registry.register(GROUP, &session(2_001, 7)), Err(Refused::Full));
        let mut odd = session(3, 5);
        odd.receive_windows.rx1_delay_seconds = 0;
        assert_eq!(registry.register(GROUP, &odd), Err(Refused::ReceiveWindows));
        let newer = Session { reset_ordinal: 2, ..session(3, 5) };
        assert!(registry.register(GROUP, &newer).is_ok());
        let slot = registry.register(GROUP, &session(3, 5)).expect("merely uninformed");
        assert_eq!(registry.get(slot).map(|entry| entry.session), Some(newer.id()));
    }

    #[test]
    fn a_streamed_state_of_a_later_life_is_followed_and_a_forged_one_is_not() {
        let mut registry = Registry::new(10);
        let slot = registry.register(GROUP, &session(1, 5)).expect("room");
        let entry = registry.get_mut(slot).expect("there");
        entry.note_served(40);
        entry.down.merge(9, 16, 0);
        let old = entry.state();
        let later = Session { reset_ordinal: 3, f_cnt_up_next: 2, ..session(1, 5) };
        let state = SessionState { reset_ordinal: 3, ..Entry::new(GROUP, &later).state() };
        let forged = SessionState { reset_ordinal: 4, ..state.clone() };
        assert_eq!(registry.merge(&forged), Merged::Unknown, "the fingerprint is another");
        assert_eq!(registry.merge(&state), Merged::Restarted(slot));
        let entry = registry.get(slot).expect("there");
        assert_eq!((entry.session, entry.f_cnt_up_next, entry.served.is_empty()), (later.id(), 2, true));
        assert_eq!((entry.down.next, entry.down.skipped), (9, 9), "downlink counters go on");
        assert_eq!(registry.merge(&old), Merged::Unknown, "the old life is over");
    }

    #[test]
    fn of_the_sessions_before_the_newest_those_that_were_used_stay() {
        let joined = |n: u8| {
            let joined = crate::mac::session::Joined { join_nonce: n.into(), net_id: 0, dev_nonce: n.into() };
            let key = NwkSKey::from_bytes([n; 16]);
            Session { joined: Some(joined), ..Session::new(DevEui::from_u64(1), DevAddr::from_u32(5), key) }
        };
        let mut registry = Registry::new(10);
        let past = |registry: &Registry| registry.past(DevEui::from_u64(1)).map(|entry| entry.session).collect::<Vec<_>>();
        let slot = registry.register(GROUP, &joined(1)).expect("room");
        registry.get_mut(slot).expect("there").note_served(7);
        // Three accepts that the device did not hear.
        for n in 2..=5 {
            assert_eq!(registry.register(GROUP, &joined(n)), Ok(slot));
        }
        assert_eq!(past(&registry), [joined(1).id(), joined(4).id()], "the one that was used, and the last one");
        assert_eq!(registry.with_address(DevAddr::from_u32(5)).len(), 3);
        let (_, entry) = registry.session_mut(DevEui::from_u64(1), joined(1).id()).expect("remembered");
        assert!(entry.is_past && entry.served.contains(7));
        // A record of another node names what is known, and what is not.
        let served = Session { f_cnt_up_next: 9, ..joined(1) };
        assert_eq!(registry.remember_past(GROUP, &served), Ok(()));
        assert_eq!(registry.remember_past(GroupId::from_bytes([2; 16]), &served), Err(Refused::OtherGroup));
        assert_eq!(registry.remember_past(GROUP, &joined(9)), Ok(()));
        assert_eq!(past(&registry), [joined(1).id(), joined(9).id()]);
        assert_eq!(registry.past(DevEui::from_u64(1)).next().map(|entry| entry.f_cnt_up_next), Some(9));
        for slot in registry.group(GROUP) {
            registry.remove(slot);
        }
        assert_eq!((registry.len(), registry.with_address(DevAddr::from_u32(5)).len(), registry.past.len()), (0, 0, 0));
        assert_eq!(registry.slots.iter().flatten().count(), 0, "no key stays");
    }

    #[test]
    fn registering_again_merges_and_slots_are_used_again() {
        let mut registry = Registry::new(10);
        let slot = registry.register(GROUP, &session(1, 5)).expect("room");
        registry.get_mut(slot).expect("there").note_served(40);
        let again = Session { f_cnt_up_next: 10, f_cnt_down_next: 3, ..session(1, 5) };
        assert_eq!(registry.register(GROUP, &again), Ok(slot));
        let entry = registry.get(slot).expect("there");
        assert_eq!((entry.f_cnt_up_next, entry.down.next, entry.served.contains(40)), (41, 3, true));
        registry.remove(slot);
        assert_eq!((registry.len(), registry.with_address(DevAddr::from_u32(5)).len()), (0, 0));
        assert_eq!(registry.register(GROUP, &session(2, 9)), Ok(slot));
        assert_eq!(registry.group(GROUP), [slot]);
    }
}
