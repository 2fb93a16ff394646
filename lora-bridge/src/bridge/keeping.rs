//! Join requests that were heard before this node could check them: who wrote them is not known, so nobody's may push out another's.
//!
//! They are worth keeping only until their RX2 begins. Within that time
//! - the same request is kept once, as it was heard first,
//! - a device has [`DEVICE_MAX`] requests, shared evenly by the gateways that heard them: a gateway that brings more than its share loses its
//!   own newest ones to the others,
//! - all devices together have [`ALL_MAX`], shared evenly by them in the same way.
//!
//! Which of them the device wrote shows the root key at a takeover.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use contracts::ids::DevEui;
use contracts::time::{BootTime, Millis};

use super::collecting::is_better;
use super::hearing::COPY_WITHIN;
use crate::gwmp::GatewayEui;
use crate::gwmp::rxpk::RxMeta;
use crate::mac::join::Request;

/// Requests that are kept for one device. A mote that joins sends one in the time that they are kept.
pub(super) const DEVICE_MAX: usize = 32;
/// Requests that are kept in all.
pub(super) const ALL_MAX: usize = 16_384;
/// Of each that is kept, others may have been kept in its place within the same time.
const AGES_PER_REQUEST: usize = 4;

/// A request as it was heard.
#[derive(Debug, Clone)]
pub(super) struct Heard {
    pub phy: Vec<u8>,
    pub request: Request,
    pub gateway: GatewayEui,
    pub rx: RxMeta,
    pub at: BootTime,
}

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kept {
    /// It is kept.
    New,
    /// It was kept before.
    Copy,
    /// Its sender has its share.
    Full,
}

/// All that are kept.
#[derive(Debug)]
pub(super) struct Keeping {
    /// In the order in which they were heard.
    requests: BTreeMap<DevEui, Vec<Heard>>,
    /// Devices by the number of their requests.
    sizes: BTreeSet<(usize, DevEui)>,
    /// By age; may name some that are gone.
    ages: VecDeque<(BootTime, DevEui)>,
    len: usize,
    all_max: usize,
}

impl Default for Keeping {
    fn default() -> Self {
        Self::new(ALL_MAX)
    }
}

impl Keeping {
    const fn new(all_max: usize) -> Self {
        Self { requests: BTreeMap::new(), sizes: BTreeSet::new(), ages: VecDeque::new(), len: 0, all_max }
    }

    /// Keeps a request for `worth` after it was heard. Of two gateways with the same transmission the better one counts if `is_reached`.
    pub(super) fn keep(&mut self, heard: Heard, is_reached: bool, worth: Millis) -> Kept {
        let (now, device) = (heard.at, heard.request.device);
        self.forget_worthless(now, worth);
        if let Some(known) = self.requests.get_mut(&device).and_then(|all| all.iter_mut().find(|k| k.request == heard.request)) {
            if is_reached && now.since(known.at) <= COPY_WITHIN && is_better(&heard.rx, &known.rx) {
                (known.gateway, known.rx) = (heard.gateway, heard.rx);
            }
            return Kept::Copy;
        }
        let has_room = self.ages.len() < self.all_max.saturating_mul(AGES_PER_REQUEST)
            && self.make_room_of(device, heard.gateway)
            && self.make_room(device);
        if !has_room {
            return Kept::Full;
        }
        self.ages.push_back((now, device));
        self.change(device, |all| all.push(heard));
        Kept::New
    }

    /// Gives out what is kept of a device, newest first: that is the one whose windows it opens.
    pub(super) fn take(&mut self, device: DevEui) -> Vec<Heard> {
        let mut taken = Vec::new();
        self.change(device, |all| taken = std::mem::take(all));
        taken.reverse();
        taken
    }

    pub(super) fn retain(&mut self, is_known: impl Fn(DevEui) -> bool) {
        let gone: Vec<DevEui> = self.requests.keys().copied().filter(|device| !is_known(*device)).collect();
        gone.into_iter().for_each(|device| drop(self.take(device)));
    }

    fn forget_worthless(&mut self, now: BootTime, worth: Millis) {
        while let Some((at, device)) = self.ages.front().copied().filter(|(at, _)| now.since(*at) >= worth) {
            self.ages.pop_front();
            self.change(device, |all| all.retain(|kept| kept.at > at));
        }
    }

    /// Room for one more of this device among all.
    fn make_room(&mut self, device: DevEui) -> bool {
        if self.len < self.all_max {
            return true;
        }
        let own = self.requests.get(&device).map_or(0, Vec::len);
        match self.sizes.last().copied() {
            Some((most, greediest)) if most > own + 1 => {
                self.change(greediest, |all| drop(all.pop()));
                true
            }
            Some(_) | None => false,
        }
    }

    /// Room for one more by this gateway among those of the device.
    fn make_room_of(&mut self, device: DevEui, gateway: GatewayEui) -> bool {
        let Some(all) = self.requests.get(&device).filter(|all| all.len() >= DEVICE_MAX) else { return true };
        let mut shares: BTreeMap<GatewayEui, usize> = BTreeMap::new();
        all.iter().for_each(|kept| *shares.entry(kept.gateway).or_default() += 1);
        let own = shares.get(&gateway).copied().unwrap_or(0);
        let Some((greediest, most)) = shares.into_iter().max_by_key(|(_, share)| *share) else { return true };
        let has_more = most > own + 1;
        if has_more {
            self.change(device, |all| {
                if let Some(newest) = all.iter().rposition(|kept| kept.gateway == greediest) {
                    all.remove(newest);
                }
            });
        }
        has_more
    }

    fn change(&mut self, device: DevEui, change: impl FnOnce(&mut Vec<Heard>)) {
        let all = self.requests.entry(device).or_default();
        let before = all.len();
        change(all);
        let after = all.len();
        if after == 0 {
            self.requests.remove(&device);
        }
        self.sizes.remove(&(before, device));
        if after > 0 {
            self.sizes.insert((after, device));
        }
        self.len = self.len - before + after;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORTH: Millis = Millis(6_000);

    fn heard(device: u64, dev_nonce: u16, gateway: u64, at: u64) -> Heard {
        let request = Request { join_eui: DevEui::from_u64(1), device: DevEui::from_u64(device), dev_nonce, mic: [0; 4] };
        let rx = RxMeta {
            tmst: Some(1),
            frequency_hz: None,
            data_rate: crate::gwmp::data_rate::DataRate::Other,
            rssi_dbm: None,
            snr_decibel_tenths: None,
        };
        Heard { phy: Vec::new(), request, gateway: GatewayEui(gateway), rx, at: BootTime(at) }
    }

    fn nonces(keeping: &mut Keeping, device: u64) -> Vec<u16> {
        keeping.take(DevEui::from_u64(device)).into_iter().map(|kept| kept.request.dev_nonce).collect()
    }

    #[test]
    fn a_flood_by_one_gateway_leaves_the_others_their_share() {
        let mut keeping = Keeping::default();
        for nonce in 0..1_000 {
            let kept = keeping.keep(heard(1, nonce, 7, 100), true, WORTH);
            assert_eq!(kept, if nonce < 32 { Kept::New } else { Kept::Full }, "{nonce}");
        }
        assert_eq!(keeping.keep(heard(1, 2_000, 8, 101), true, WORTH), Kept::New);
        assert_eq!(keeping.keep(heard(1, 2_000, 8, 102), true, WORTH), Kept::Copy);
        for nonce in 3_000..4_000 {
            keeping.keep(heard(1, nonce, 7, 103), true, WORTH);
        }
        let kept = nonces(&mut keeping, 1);
        assert_eq!((kept.len(), kept[0], kept[31]), (DEVICE_MAX, 2_000, 0), "newest first");
        assert_eq!((keeping.len, keeping.sizes.len(), keeping.requests.len()), (0, 0, 0));
    }

    #[test]
    fn a_flood_for_one_device_leaves_the_others_their_share() {
        let mut keeping = Keeping::new(6);
        for nonce in 0..10 {
            keeping.keep(heard(1, nonce, 7, 100), true, WORTH);
        }
        for device in 2..7 {
            assert_eq!(keeping.keep(heard(device, 1, 7, 101), true, WORTH), Kept::New, "{device}");
        }
        assert_eq!(keeping.len, 6);
        assert_eq!(keeping.keep(heard(2, 2, 7, 102), true, WORTH), Kept::Full);
        assert_eq!(keeping.keep(heard(9, 1, 7, 102), true, WORTH), Kept::Full, "nobody has more than one");
        for device in 2..7 {
            assert_eq!(nonces(&mut keeping, device), [1]);
        }
        assert_eq!(nonces(&mut keeping, 1), [0]);
    }

    #[test]
    fn what_is_worthless_makes_room() {
        let mut keeping = Keeping::new(40);
        for (at, nonce) in (0..60).map(|nonce| (1_000 + u64::from(nonce), nonce)) {
            keeping.keep(heard(1, nonce, 7, at), true, WORTH);
        }
        assert_eq!(keeping.keep(heard(1, 900, 7, 6_999), true, WORTH), Kept::Full);
        assert_eq!(keeping.keep(heard(1, 901, 7, 7_000), true, WORTH), Kept::New, "the first is over");
        assert_eq!(keeping.keep(heard(2, 902, 7, 13_000), true, WORTH), Kept::New);
        assert_eq!((nonces(&mut keeping, 1), nonces(&mut keeping, 2)), (vec![], vec![902]));
        assert!(keeping.ages.len() <= 1);
    }
}
