//! Changes of devices' receive windows and channels: asked for when they are written ahead, answered when the answer is; and what devices
//! tell of themselves. The rules are those of [`crate::mac::link`].

use contracts::ids::{DevEui, Epoch};

use super::Bridge;
use super::io::{Mode, Now, Output};
use super::planning::{Asks, Plan};
use crate::mac::downlink::Wants;
use crate::mac::link::{DeviceStatus, Heard, LinkRecord, News};
use crate::mac::registry::SlotIndex;
use crate::mac::session::Session;

impl Bridge {
    /// What the registration of a session wishes; its device may be one that joins.
    pub(super) fn set_wish(&mut self, slot: SlotIndex, session: &Session, is_new: bool) {
        let region = self.region();
        let Some(entry) = self.registry.get_mut(slot) else { return };
        if is_new {
            entry.restart_link(region);
        }
        let joining = self.joining.get(&session.device);
        entry.set_wish(joining.map_or(&session.wish, |joining| joining.wish()), region);
    }

    /// The registration of a device that joins was renewed.
    pub(super) fn renew_wish(&mut self, device: DevEui) {
        let region = self.region();
        if let Some((_, entry)) = self.registry.device_mut(device)
            && let Some(joining) = self.joining.get(&device)
        {
            entry.set_wish(joining.wish(), region);
        }
    }

    /// A live uplink: what the device answers and tells, and what it is to be asked.
    pub(super) fn note_link(
        &mut self,
        slot: SlotIndex,
        mode: Mode,
        f_cnt: u32,
        wants: Wants,
        now: Now,
        out: &mut Vec<Output>,
    ) -> Asks {
        let Some(epoch) = mode.epoch() else { return Asks::default() };
        let heard = Heard { f_cnt, answers: wants.link };
        self.step_link(slot, heard, epoch, now, out);
        let Some(entry) = self.registry.get_mut(slot) else { return Asks::default() };
        let device = entry.device;
        let Some(link) = &mut entry.link else { return Asks::default() };
        if let Some((battery, margin_db)) = wants.status {
            link.note_status(DeviceStatus { battery, margin_db, at: now.boot });
            self.stats.statuses += 1;
        }
        Asks { adr: None, is_link_due: link.is_due(heard), is_status_due: link.is_status_due(device, now.boot) }
    }

    fn step_link(&mut self, slot: SlotIndex, heard: Heard, epoch: Epoch, now: Now, out: &mut Vec<Output>) {
        let region = self.region();
        let Some(entry) = self.registry.get_mut(slot) else { return };
        let (group, device, session) = (entry.group, entry.device, entry.session);
        let Some((version, state, news)) = entry.link.as_mut().and_then(|link| link.step(heard, region, epoch, now.boot)) else {
            return;
        };
        match news {
            Some(News::Taken) => self.stats.link_taken += 1,
            Some(News::Refused) => self.stats.link_refused += 1,
            None => {}
        }
        let record = Box::new(LinkRecord { device, version, session, state });
        out.push(Output::LinkRecordWanted { group, epoch, record });
    }

    /// Whether the device's windows after the uplink at hand are known for certain; if not, what is missing is being written ahead.
    pub(super) fn is_link_certain(
        &mut self,
        slot: SlotIndex,
        plan: &Plan,
        epoch: Epoch,
        now: Now,
        out: &mut Vec<Output>,
    ) -> bool {
        let heard = plan.link_heard();
        if self.registry.get(slot).is_none_or(|entry| entry.is_link_certain(&heard)) {
            return true;
        }
        self.step_link(slot, heard, epoch, now, out);
        false
    }

    /// A record is on the disks of a majority: it counts from now on, and what waited for it goes.
    pub(super) fn link_recorded(&mut self, record: &LinkRecord, now: Now, out: &mut Vec<Output>) {
        let Some((slot, entry)) = self.registry.device_mut(record.device).filter(|(_, entry)| entry.session == record.session)
        else {
            self.stats.unknown_names += 1;
            return;
        };
        if entry.link.as_mut().is_some_and(|link| link.recorded(record.version)) {
            self.try_answer(slot, now, out);
        }
    }

    /// Records of others, or of an earlier life.
    pub(super) fn take_link_records(&mut self, records: Vec<LinkRecord>) {
        let region = self.region();
        for record in records {
            if !record.state.is_sound() {
                self.stats.refused += 1;
                continue;
            }
            let Some((_, entry)) = self.registry.device_mut(record.device) else {
                self.stats.unknown_names += 1;
                continue;
            };
            let session = entry.session;
            entry.link_mut(region).adopt(session, record);
        }
    }

    /// The newest version known of a device's link record.
    #[must_use]
    pub fn link_version(&self, device: DevEui) -> Option<u32> {
        let entry = self.registry.get(self.registry.slot_of(device)?)?;
        entry.link.as_ref().map(|link| link.version())
    }
}
