//! Adaptive data rate, and how well each of both nodes hears a device.

use contracts::ids::{DevEui, GroupId, SessionId};
use contracts::time::{BootTime, Millis, WallTime};
use serde::Serialize;

use super::Bridge;
use super::io::{Mode, Now};
use crate::gwmp::rxpk::RxMeta;
use crate::mac::adr::{AdrMode, Margin, Setting};
use crate::mac::link::DeviceStatus;
use crate::mac::registry::SlotIndex;
use crate::mac::session::Entry;

/// How a device is heard and how it listens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DeviceView {
    pub group: GroupId,
    pub device: DevEui,
    pub session: SessionId,
    /// The next uplink counter expected.
    pub f_cnt_up_next: u32,
    /// Downlink counters left out since it was last known to receive one; see [`super::SKIPPED_ALARM`].
    pub f_cnt_down_skipped: u32,
    /// How this node hears it; nothing, if it does not, or not since it began to serve.
    pub here: Option<Heard>,
    /// How the other party of the contract does.
    pub there: Option<Heard>,
    /// The other party heard it lately and often enough to serve it.
    pub is_covered: bool,
    pub receive_windows: crate::mac::session::ReceiveWindows,
    /// A change of windows or channels that the device has not answered.
    pub asked: Option<crate::mac::link::Change>,
    pub refused: Vec<crate::mac::link::Change>,
    /// Battery and margin as it told them.
    pub status: Option<DeviceStatus>,
    /// When it told them.
    pub status_at: Option<WallTime>,
}

/// What an uplink says of its device's radio.
#[derive(Debug, Clone, Copy)]
pub(super) struct RadioUplink<'a> {
    pub is_adr: bool,
    pub f_cnt: u32,
    /// `LinkADRAns`.
    pub link_adr: Option<u8>,
    pub rx: &'a RxMeta,
}

/// How a node hears a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Heard {
    pub heard_at: WallTime,
    /// The newest uplink heard.
    pub f_cnt: u32,
    /// Of the twenty up to it.
    pub heard_of_20: u8,
    /// The best of the last twenty heard, in tenths of a decibel.
    pub snr_decibel_tenths: i16,
}

impl From<Margin> for Heard {
    fn from(margin: Margin) -> Self {
        let Margin { heard_at, f_cnt, heard, snr_decibel_tenths, .. } = margin;
        Self { heard_at, f_cnt, heard_of_20: heard, snr_decibel_tenths }
    }
}

/// Devices of a group within the other party's reach, and those that are not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Coverage {
    pub devices: u64,
    pub covered: u64,
    /// Never heard there, or too long ago, or too rarely.
    pub not_covered: u64,
}

/// How long ago there was a sign of a radio.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RadioSigns {
    /// Since the last datagram of any gateway; absent if none ever came. Gateways pull every few seconds, whatever they hear.
    pub silence: Option<Millis>,
    /// Since the other party told that it hears devices of the group; absent if it never did.
    pub heard_there: Option<Millis>,
}

impl Entry {
    fn is_covered(&self) -> bool {
        self.adr.covered(self.session, self.f_cnt_up_next.saturating_sub(1)).is_some()
    }

    fn view(&self, now: Now) -> DeviceView {
        let link = self.link.as_deref();
        let state = link.map(crate::mac::link::Link::state);
        let status = link.and_then(|link| link.status);
        DeviceView {
            group: self.group,
            device: self.device,
            session: self.session,
            f_cnt_up_next: self.f_cnt_up_next,
            f_cnt_down_skipped: self.down.skipped,
            here: self.adr.margin(self.device, self.session).map(Heard::from),
            there: self.adr.other().filter(|other| other.session == self.session).map(|other| Heard::from(*other)),
            is_covered: self.is_covered(),
            receive_windows: *self.windows(),
            asked: state.and_then(|state| state.asked).map(|asked| asked.change),
            refused: state.map(|state| state.refused.clone()).unwrap_or_default(),
            status,
            status_at: status.map(|status| now.wall_at(status.at)),
        }
    }
}

impl Bridge {
    pub(super) fn set_adr(&mut self, group: GroupId, mode: AdrMode) {
        match self.groups.get_mut(&group) {
            Some(group) => group.adr = mode,
            None => self.stats.unknown_names += 1,
        }
    }

    /// A new uplink, newest of its session: what it says of the device's radio, and what the device is to be told.
    pub(super) fn note_radio(&mut self, slot: SlotIndex, mode: Mode, uplink: &RadioUplink<'_>, now: Now) -> Option<Setting> {
        let region = self.region();
        let entry = self.registry.get_mut(slot)?;
        let adr_mode = self.groups.get(&entry.group).map(|group| group.adr).unwrap_or_default();
        if let Some(status) = uplink.link_adr.filter(|_| mode.epoch().is_some()) {
            let (device, session) = (entry.device, entry.session);
            if entry.adr.answer(status, session, uplink.f_cnt) {
                self.state_due.insert(device);
            }
        }
        entry.adr.note(uplink.is_adr, uplink.f_cnt, uplink.rx.snr_decibel_tenths, now.wall);
        mode.epoch()?;
        entry.adr.decide(region, uplink.rx.data_rate, adr_mode, entry.session)
    }

    /// How the other node hears devices.
    pub(super) fn note_margins(&mut self, margins: &[Margin], now: BootTime) {
        for margin in margins {
            match self.registry.device_mut(margin.device) {
                Some((_, entry)) if entry.session == margin.session => {
                    entry.adr.note_other(*margin);
                    if let Some(group) = self.groups.get_mut(&entry.group) {
                        group.heard_there = Some(now);
                    }
                }
                Some(_) | None => self.stats.unknown_names += 1,
            }
        }
    }

    /// Whether this node and the other party of a group have a radio at all.
    #[must_use]
    pub fn radio_signs(&self, group: GroupId, now: BootTime) -> RadioSigns {
        let since = |at: BootTime| now.since(at);
        RadioSigns {
            silence: self.gateways.last_seen().map(since),
            heard_there: self.groups.get(&group).and_then(|group| group.heard_there).map(since),
        }
    }

    /// How this node hears devices of a group that it heard since the last call, at most `max`: for the other node.
    pub fn take_margins(&mut self, group: GroupId, max: usize) -> Vec<Margin> {
        let entries = self.registry.entries_mut().filter(|entry| entry.group == group && !entry.is_past);
        entries.filter_map(|entry| entry.adr.take_news(entry.device, entry.session)).take(max).collect()
    }

    /// Up to `max` devices from `cursor` (0 at first) on, and where to go on.
    #[must_use]
    pub fn devices(&self, cursor: u32, max: usize, now: Now) -> (Vec<DeviceView>, Option<u32>) {
        let mut views = Vec::new();
        for (slot, entry) in self.registry.entries().filter(|(slot, entry)| *slot >= cursor && !entry.is_past) {
            if views.len() == max {
                return (views, Some(slot));
            }
            views.push(entry.view(now));
        }
        (views, None)
    }

    /// How much of a group the other party reaches.
    #[must_use]
    pub fn coverage(&self, group: GroupId) -> Coverage {
        let mut coverage = Coverage::default();
        for (_, entry) in self.registry.entries().filter(|(_, entry)| entry.group == group && !entry.is_past) {
            coverage.devices += 1;
            if entry.is_covered() {
                coverage.covered += 1;
            } else {
                coverage.not_covered += 1;
            }
        }
        coverage
    }

    /// Devices of which at least `min` downlink counters were left out since they were last known to receive one, at most `max`.
    #[must_use]
    pub fn gaps(&self, min: u32, max: usize) -> Vec<(GroupId, DevEui, u32)> {
        let entries = self.registry.entries().map(|(_, entry)| entry).filter(|entry| entry.down.skipped >= min && !entry.is_past);
        entries.map(|entry| (entry.group, entry.device, entry.down.skipped)).take(max).collect()
    }
}
