//! Adaptive data rate, for groups where it is switched on: those that no other node insures, because what one node's gateways hear says
//! nothing about the other's.

use contracts::ids::GroupId;

use super::Bridge;
use super::io::Mode;
use crate::gwmp::rxpk::RxMeta;
use crate::mac::adr::Setting;
use crate::mac::downlink::Wants;
use crate::mac::registry::SlotIndex;

impl Bridge {
    pub(super) fn set_adr(&mut self, group: GroupId, is_on: bool) {
        match self.groups.get_mut(&group) {
            Some(group) => group.adr = is_on,
            None => self.stats.unknown_names += 1,
        }
        for slot in self.registry.group(group) {
            if let Some(entry) = self.registry.get_mut(slot).filter(|_| !is_on) {
                entry.adr.clear();
            }
        }
    }

    /// A new uplink, newest of its session: what it says of the device's radio, and what the device is to be told.
    pub(super) fn note_radio(
        &mut self,
        slot: SlotIndex,
        mode: Mode,
        is_adr: bool,
        f_cnt: u32,
        wants: Wants,
        rx: &RxMeta,
    ) -> Option<Setting> {
        let region = self.region();
        let entry = self.registry.get_mut(slot)?;
        let is_on = self.groups.get(&entry.group).is_some_and(|group| group.adr);
        if !is_on || mode.epoch().is_none() {
            return None;
        }
        if let Some(status) = wants.link_adr {
            entry.adr.answer(status);
        }
        entry.adr.note(is_adr, f_cnt, rx.snr_decibel_tenths);
        entry.adr.decide(region, rx.data_rate)
    }
}
