//! What is owed to a device, and by which gateways it can be sent.

use contracts::ids::{Epoch, EventId};
use contracts::time::{BootTime, WallTime};

use super::collecting::is_better;
use super::io::Reception;
use crate::gwmp::GatewayEui;
use crate::gwmp::rxpk::RxMeta;
use crate::mac::adr::Setting;
use crate::mac::downlink::{Answer, Timing, Wants, Window};
use crate::mac::duty_cycle::Booking;
use crate::mac::link;
use crate::mac::registry::SlotIndex;
use crate::mac::session::{Entry, Mark};

/// Gateways that are tried for one downlink.
const CANDIDATES_MAX: usize = 4;

/// A gateway that heard the uplink.
#[derive(Debug, Clone, Copy)]
pub(super) struct Candidate {
    pub gateway: GatewayEui,
    pub rx: RxMeta,
    refused_rx1: bool,
    refused_rx2: bool,
}

impl Candidate {
    const fn new(gateway: GatewayEui, rx: RxMeta) -> Self {
        Self { gateway, rx, refused_rx1: false, refused_rx2: false }
    }

    pub(super) const fn has_refused(&self, window: Window) -> bool {
        match window {
            Window::Rx1 => self.refused_rx1,
            Window::Rx2 => self.refused_rx2,
        }
    }
}

/// The gateways that heard an uplink, the best first; never none.
#[derive(Debug, Clone, Copy)]
pub(super) struct Candidates {
    best: Candidate,
    others: [Option<Candidate>; CANDIDATES_MAX - 1],
}

impl Candidates {
    pub(super) const fn of(gateway: GatewayEui, rx: RxMeta) -> Self {
        Self { best: Candidate::new(gateway, rx), others: [None; CANDIDATES_MAX - 1] }
    }

    pub(super) const fn best(&self) -> &Candidate {
        &self.best
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Candidate> {
        std::iter::once(&self.best).chain(self.others.iter().flatten())
    }

    /// The worst of too many is left out. A gateway that is known stays as it was heard first.
    fn add(&mut self, copy: Reception) -> bool {
        if self.iter().any(|known| known.gateway == copy.gateway) {
            return false;
        }
        let mut next = Candidate::new(copy.gateway, copy.rx);
        if is_better(&next.rx, &self.best.rx) {
            std::mem::swap(&mut self.best, &mut next);
        }
        for place in &mut self.others {
            match place {
                Some(known) if is_better(&next.rx, &known.rx) => std::mem::swap(known, &mut next),
                Some(_) => {}
                None => {
                    *place = Some(next);
                    return true;
                }
            }
        }
        true
    }

    fn refuse(&mut self, gateway: GatewayEui, window: Window) {
        let all = std::iter::once(&mut self.best).chain(self.others.iter_mut().flatten());
        for candidate in all.filter(|candidate| candidate.gateway == gateway) {
            match window {
                Window::Rx1 => candidate.refused_rx1 = true,
                Window::Rx2 => candidate.refused_rx2 = true,
            }
        }
    }
}

/// What the network itself wants of the device.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Asks {
    /// What the device is to be told of its data rate.
    pub adr: Option<Setting>,
    /// A change of its windows or channels is to be asked for.
    pub is_link_due: bool,
    /// Battery and margin are to be asked for.
    pub is_status_due: bool,
}

impl Asks {
    pub(super) const fn is_any(&self) -> bool {
        self.adr.is_some() || self.is_link_due || self.is_status_due
    }
}

/// Everything that an answer needs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plan {
    /// The uplink that is answered.
    pub mark: Mark,
    pub wants: Wants,
    pub candidates: Candidates,
    /// When the transmission was first heard.
    pub heard: BootTime,
    pub heard_at: WallTime,
    pub gateways: u8,
    pub rx2_only: bool,
    pub asks: Asks,
}

impl Plan {
    pub(super) fn timing(&self, entry: &Entry, rx2_only: bool) -> Timing {
        let rx = &self.candidates.best().rx;
        Timing {
            heard: self.heard,
            frequency_hz: rx.frequency_hz.map(|uplink_hz| entry.rx1_hz(uplink_hz)),
            data_rate: rx.data_rate,
            rx2_only: rx2_only || self.rx2_only,
        }
    }

    pub(super) fn answer(&self) -> Answer {
        let rx = &self.candidates.best().rx;
        let snr = rx.snr_decibel_tenths.unwrap_or(0);
        let margin = (snr.saturating_sub(rx.data_rate.required_snr_decibel_tenths()) / 10).clamp(0, 254);
        Answer {
            ack: self.wants.ack,
            link_check: self.wants.link_check.then(|| (u8::try_from(margin).unwrap_or(0), self.gateways)),
            device_time: self.wants.device_time.then_some(self.heard_at),
        }
    }

    /// What the uplink says of the device's link.
    pub(super) const fn link_heard(&self) -> link::Heard {
        link::Heard { f_cnt: self.mark.f_cnt, answers: self.wants.link }
    }

    /// One more gateway heard the transmission. The earlier of the two times of hearing stays: it is nearer to the end of the transmission.
    pub(super) fn add(&mut self, copy: Reception) {
        if self.candidates.add(copy) {
            self.gateways = self.gateways.saturating_add(1);
        }
    }

    pub(super) fn refuse(&mut self, gateway: GatewayEui, window: Window) {
        self.candidates.refuse(gateway, window);
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
    pub slot: SlotIndex,
    pub plan: Plan,
    pub window: Window,
    pub gateway: GatewayEui,
    pub epoch: Epoch,
    pub sent: BootTime,
    pub f_cnt_down: u32,
    pub booking: Option<Booking>,
    /// Start on the gateway's counter.
    pub tmst: u32,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gwmp::data_rate::DataRate;

    fn heard(gateway: u64, snr: i16) -> Reception {
        let rx = RxMeta {
            tmst: Some(1),
            frequency_hz: None,
            data_rate: DataRate::Other,
            rssi_dbm: Some(-100),
            snr_decibel_tenths: Some(snr),
        };
        Reception { gateway: GatewayEui(gateway), rx }
    }

    #[test]
    fn candidates_are_sorted_bounded_and_known_once() {
        let first = heard(1, -20);
        let mut candidates = Candidates::of(first.gateway, first.rx);
        for (gateway, snr) in [(2, 30), (3, -50), (4, 0), (2, 60), (5, -10), (6, -90)] {
            candidates.add(heard(gateway, snr));
        }
        let order: Vec<_> = candidates.iter().map(|candidate| candidate.gateway.0).collect();
        assert_eq!(order, [2, 4, 5, 1]);
        candidates.refuse(GatewayEui(5), Window::Rx1);
        let refused: Vec<_> = candidates.iter().filter(|c| c.has_refused(Window::Rx1)).map(|c| c.gateway.0).collect();
        assert_eq!(refused, [5]);
        assert!(!candidates.iter().any(|candidate| candidate.has_refused(Window::Rx2)));
    }
}
