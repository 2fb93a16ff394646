//! Tenants' downlinks on their way: queued, asked to be encrypted, reported.

use contracts::ids::{DevEui, GroupId};

use super::Bridge;
use super::io::{Now, Output};
use crate::mac::queue::{Downlink, Encrypted, Outcome, Queue, QueueState, Refused, Report};
use crate::mac::registry::SlotIndex;

impl Bridge {
    /// Queues a tenant's downlink. Repeating an id changes nothing.
    ///
    /// # Errors
    /// [`Refused`]; nothing has changed then.
    pub fn queue_downlink(
        &mut self,
        group: GroupId,
        device: DevEui,
        downlink: Downlink,
        now: Now,
        out: &mut Vec<Output>,
    ) -> Result<(), Refused> {
        let slot = self.registry.slot_of(device).ok_or(Refused::Unknown)?;
        if self.registry.get(slot).is_none_or(|entry| entry.group != group) {
            return Err(Refused::Unknown);
        }
        if self.queued >= self.config.downlinks_max {
            return Err(Refused::BridgeFull);
        }
        self.change_queue(device, |queue| queue.push(downlink, now.wall))?;
        self.flush(now, out);
        Ok(())
    }

    /// Changes a device's queue, made if need be, and keeps what hangs on it in line.
    pub(super) fn change_queue<R>(&mut self, device: DevEui, change: impl FnOnce(&mut Queue) -> R) -> R {
        let queue = self.queues.entry(device).or_default();
        let (before, shared) = (queue.len(), queue.shared());
        let changed = change(queue);
        self.queued = self.queued + queue.len() - before;
        if queue.shared() != shared {
            self.state_due.insert(device);
        }
        if queue.is_empty() {
            self.queues.remove(&device);
        } else {
            self.asking.insert(device);
        }
        changed
    }

    /// The same for a device that may have no queue.
    fn change_known_queue<R: Default>(&mut self, device: DevEui, change: impl FnOnce(&mut Queue) -> R) -> R {
        if self.queues.contains_key(&device) { self.change_queue(device, change) } else { R::default() }
    }

    /// Whether a downlink may go with the next answer to a device.
    pub(super) fn has_downlink(&self, device: DevEui) -> bool {
        self.queues.get(&device).is_some_and(Queue::is_waiting)
    }

    /// The counter or the session of a device changed: what it waits for may have to be encrypted anew.
    pub(super) fn ask_for_encryption(&mut self, device: DevEui) {
        if self.queues.contains_key(&device) {
            self.asking.insert(device);
        }
    }

    pub(super) fn encrypted(&mut self, answer: Encrypted, now: Now, out: &mut Vec<Output>) {
        let device = answer.device;
        let is_taken = self.change_known_queue(device, |queue| queue.encrypted(answer));
        match self.registry.slot_of(device).filter(|_| is_taken) {
            Some(slot) => self.try_answer(slot, now, out),
            None => self.stats.unknown_names += 1,
        }
    }

    /// Changes a queue and says what became of its downlinks.
    pub(super) fn report<I: IntoIterator<Item = Report> + Default>(
        &mut self,
        device: DevEui,
        out: &mut Vec<Output>,
        change: impl FnOnce(&mut Queue) -> I,
    ) {
        let reports = self.change_known_queue(device, change);
        let slot = self.registry.slot_of(device);
        let Some(group) = slot.and_then(|slot| self.registry.get(slot)).map(|entry| entry.group) else { return };
        for (id, outcome) in reports {
            match outcome {
                Outcome::Sent { .. } => self.stats.payloads_sent += 1,
                Outcome::Acked { .. } => self.stats.payloads_acked += 1,
                Outcome::Expired => self.stats.payloads_expired += 1,
                Outcome::Failed(_) => self.stats.payloads_failed += 1,
            }
            out.push(Output::Downlink { group, device, id, outcome });
        }
    }

    /// A new uplink of a device, newest of its session.
    pub(super) fn note_uplink(&mut self, device: DevEui, f_cnt: u32, is_ack: bool, out: &mut Vec<Output>) {
        self.report(device, out, |queue| queue.note_uplink(f_cnt, is_ack));
    }

    /// Custody of these sessions ends here.
    pub(super) fn stop_queues(&mut self, slots: &[SlotIndex], out: &mut Vec<Output>) {
        for device in self.devices_with_queue(slots) {
            self.report(device, out, Queue::stop);
        }
    }

    pub(super) fn start_queues(&mut self, slots: &[SlotIndex]) {
        let devices = self.devices_with_queue(slots);
        self.asking.extend(devices);
    }

    fn devices_with_queue(&self, slots: &[SlotIndex]) -> Vec<DevEui> {
        let devices = slots.iter().filter_map(|slot| self.registry.get(*slot)).map(|entry| entry.device);
        devices.filter(|device| self.queues.contains_key(device)).collect()
    }

    /// The device has a new session.
    pub(super) fn restart_queue(&mut self, device: DevEui) {
        self.change_known_queue(device, Queue::restart);
    }

    pub(super) fn forget_queue(&mut self, device: DevEui) {
        if let Some(queue) = self.queues.remove(&device) {
            self.queued -= queue.len();
        }
        self.asking.remove(&device);
        self.state_due.remove(&device);
    }

    pub(super) fn merge_queue(&mut self, device: DevEui, state: &QueueState) {
        if let (Some(used), Some((_, entry))) = (state.used, self.registry.device_mut(device)) {
            entry.adr.merge(used, entry.session);
        }
        if state.has_downlinks() && self.registry.slot_of(device).is_some() {
            self.change_queue(device, |queue| queue.merge(state));
            // What came from there need not be told there.
            self.state_due.remove(&device);
        }
    }

    /// What is worthless by now.
    pub(super) fn sweep_queues(&mut self, now: Now, out: &mut Vec<Output>) {
        let due: Vec<DevEui> = self
            .queues
            .iter()
            .filter(|(_, queue)| queue.next_expiry().is_some_and(|at| at <= now.wall))
            .map(|(d, _)| *d)
            .collect();
        for device in due {
            if self.serves(device) {
                self.report(device, out, |queue| queue.expire(now.wall));
            }
        }
    }

    /// Whether this node has custody of a device.
    pub(super) fn serves(&self, device: DevEui) -> bool {
        let slot = self.registry.slot_of(device);
        let group = slot.and_then(|slot| self.registry.get(slot)).and_then(|entry| self.groups.get(&entry.group));
        group.is_some_and(|group| group.mode.epoch().is_some())
    }

    /// Questions to tenants and states for the other node, once per input.
    pub(super) fn flush_queues(&mut self, out: &mut Vec<Output>) {
        for device in std::mem::take(&mut self.asking) {
            if !self.serves(device) {
                continue;
            }
            let Some(entry) = self.registry.slot_of(device).and_then(|slot| self.registry.get(slot)) else { continue };
            let Some(queue) = self.queues.get_mut(&device) else { continue };
            if let Some(question) = queue.question(entry.session, entry.joined, entry.down.next) {
                out.push(Output::EncryptWanted { group: entry.group, device, dev_addr: entry.dev_addr, question });
            }
        }
        for device in std::mem::take(&mut self.state_due) {
            let group = self.registry.slot_of(device).and_then(|slot| self.registry.get(slot)).map(|entry| entry.group);
            if let (Some(group), Some(state)) = (group, self.state(device)) {
                out.push(Output::StateDue { group, state: Box::new(state) });
            }
        }
    }
}
