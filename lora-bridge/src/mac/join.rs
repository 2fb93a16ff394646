//! Activation over the air (LoRaWAN 1.0.x): the request, the nonces, the accept, the network session key.
//!
//! Nonces are what makes a join unique. The network's rises with every accept and is never used twice; a device's may come once, of which
//! the last [`DEV_NONCES_MAX`] are remembered (1.0 to 1.0.3), or has to rise (1.0.4). The application session key is not derived here: the
//! tenant has the root key and needs only the nonces ([`Joined`]).

use std::collections::VecDeque;
use std::fmt;

use contracts::ids::{DevAddr, DevEui};
use contracts::time::WallTime;
use serde::{Deserialize, Serialize};

use super::link::Wish;
use super::region::{CfListKind, Region};
use super::session::{Joined, NwkSKey, ReceiveWindows, Session};

/// Remembered nonces of a device that chooses them at random. It may repeat an older one by chance at 1 in 256 joins.
pub const DEV_NONCES_MAX: usize = 256;
/// The network's first. Many devices take a JoinNonce only if it is above the last one that they stored, and store 0 at first.
const JOIN_NONCE_MIN: u32 = 1;
/// AppNonce has 24 bits.
const JOIN_NONCE_MAX: u32 = 0xff_ffff;
/// NetID of private networks (LoRaWAN 1.0.2, 6.1.1: "000000 or 000001 ... for experimental networks").
pub const NET_ID: u32 = 0;
const REQUEST_BYTES: usize = 23;

/// The root key of a device; never in logs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct AppKey([u8; 16]);

impl AppKey {
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    fn aes(self) -> lrwn::AES128Key {
        lrwn::AES128Key::from_bytes(self.0)
    }
}

impl fmt::Debug for AppKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AppKey(hidden)")
    }
}

/// How a device chooses its DevNonce.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NonceRule {
    /// At random: no remembered one may come again (LoRaWAN 1.0 to 1.0.3).
    Random,
    /// Each above all before (LoRaWAN 1.0.4).
    Rising,
}

/// A device that joins over the air.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoiningDevice {
    pub device: DevEui,
    pub join_eui: DevEui,
    /// The address that it is given at every join.
    pub dev_addr: DevAddr,
    /// Only a node that serves may have it.
    pub app_key: Option<AppKey>,
    pub nonce_rule: NonceRule,
    /// What it is told of its receive windows. RX2 is at the region's frequency.
    pub receive_windows: ReceiveWindows,
    /// What the network should make of its radio once it has joined.
    pub wish: Wish,
}

/// A join request; its integrity code is not checked yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Request {
    pub join_eui: DevEui,
    pub device: DevEui,
    pub dev_nonce: u16,
    pub mic: [u8; 4],
}

/// Reads a join request (LoRaWAN 1.0.2, 6.2.4).
pub(crate) fn request(phy: &[u8]) -> Option<Request> {
    if phy.len() != REQUEST_BYTES || phy[0] != 0 {
        return None;
    }
    let eui = |from: usize| {
        let mut bytes: [u8; 8] = phy[from..from + 8].try_into().ok()?;
        bytes.reverse();
        Some(DevEui::from_bytes(bytes))
    };
    Some(Request {
        join_eui: eui(1)?,
        device: eui(9)?,
        dev_nonce: u16::from_le_bytes([phy[17], phy[18]]),
        mic: phy[19..].try_into().ok()?,
    })
}

/// Whether the request was made with the device's root key.
pub(crate) fn is_authentic(phy: &[u8], key: AppKey) -> bool {
    lrwn::PhyPayload::from_slice(phy).and_then(|frame| frame.validate_join_request_mic(&key.aes())).unwrap_or(false)
}

/// Why a request is not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unfit {
    /// The device's nonce was used before.
    Replayed,
    /// The network's nonces are used up.
    Exhausted,
    /// No session can be derived.
    Unbuildable,
}

/// The nonces of a device; what must never go back.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nonces {
    /// The device's, oldest first; the highest only, if they rise.
    pub dev_nonces: VecDeque<u16>,
    /// The network's next one; 0, as nobody has joined yet, stands for 1.
    pub join_nonce_next: u32,
}

impl Nonces {
    /// Whether a nonce of the device may not come any more.
    pub(crate) fn is_used(&self, rule: NonceRule, dev_nonce: u16) -> bool {
        match rule {
            NonceRule::Random => self.dev_nonces.contains(&dev_nonce),
            NonceRule::Rising => self.dev_nonces.iter().any(|used| *used >= dev_nonce),
        }
    }

    /// Uses a nonce of the device and one of the network; gives the latter.
    pub(crate) fn take(&mut self, rule: NonceRule, dev_nonce: u16) -> Result<u32, Unfit> {
        if self.is_used(rule, dev_nonce) {
            return Err(Unfit::Replayed);
        }
        let join_nonce = self.join_nonce_next.max(JOIN_NONCE_MIN);
        if join_nonce > JOIN_NONCE_MAX {
            return Err(Unfit::Exhausted);
        }
        match rule {
            NonceRule::Random if self.dev_nonces.len() >= DEV_NONCES_MAX => drop(self.dev_nonces.pop_front()),
            NonceRule::Random => {}
            NonceRule::Rising => self.dev_nonces.clear(),
        }
        self.dev_nonces.push_back(dev_nonce);
        self.join_nonce_next = join_nonce + 1;
        Ok(join_nonce)
    }

    /// Takes over what another node used.
    pub(crate) fn merge(&mut self, rule: NonceRule, other: &Self) {
        self.join_nonce_next = self.join_nonce_next.max(other.join_nonce_next);
        for nonce in &other.dev_nonces {
            if !self.dev_nonces.contains(nonce) {
                self.dev_nonces.push_back(*nonce);
            }
        }
        match rule {
            NonceRule::Random => {
                while self.dev_nonces.len() > DEV_NONCES_MAX {
                    self.dev_nonces.pop_front();
                }
            }
            NonceRule::Rising => {
                let highest = self.dev_nonces.iter().max().copied();
                self.dev_nonces = highest.into_iter().collect();
            }
        }
    }
}

/// The session that a join begins.
pub(crate) fn session(device: &JoiningDevice, key: AppKey, joined: Joined) -> Option<Session> {
    let join_eui = lrwn::EUI64::from_be_bytes(*device.join_eui.as_bytes());
    let net_id = net_id(joined.net_id);
    let nwk_s_key =
        lrwn::keys::get_f_nwk_s_int_key(false, &key.aes(), &net_id, &join_eui, joined.join_nonce, joined.dev_nonce).ok()?;
    let mut session = Session::new(device.device, device.dev_addr, NwkSKey::from_bytes(nwk_s_key.to_bytes()));
    session.receive_windows = device.receive_windows;
    session.joined = Some(joined);
    Some(session)
}

fn net_id(net_id: u32) -> lrwn::NetID {
    let [_, a, b, c] = net_id.to_be_bytes();
    lrwn::NetID::from_be_bytes([a, b, c])
}

/// The bytes of the accept, encrypted (LoRaWAN 1.0.2, 6.2.5).
pub(crate) fn accept(device: &JoiningDevice, key: AppKey, joined: Joined, region: &Region) -> Option<Vec<u8>> {
    let cf_list = match region.cf_list {
        CfListKind::Frequencies if !region.further_channels_hz.is_empty() => {
            lrwn::CFListChannels::from_slice(region.further_channels_hz).ok().map(lrwn::CFList::Channels)
        }
        CfListKind::Frequencies => None,
        CfListKind::Masks => None,
    };
    let windows = &device.receive_windows;
    let mut phy = lrwn::PhyPayload {
        mhdr: lrwn::MHDR { f_type: lrwn::FType::JoinAccept, major: lrwn::Major::LoRaWANR1 },
        payload: lrwn::Payload::JoinAccept(lrwn::JoinAcceptPayload {
            join_nonce: joined.join_nonce,
            home_netid: net_id(joined.net_id),
            devaddr: lrwn::DevAddr::from_be_bytes(*device.dev_addr.as_bytes()),
            dl_settings: lrwn::DLSettings {
                opt_neg: false,
                rx2_dr: region.index_of(windows.rx2_data_rate)?,
                rx1_dr_offset: windows.rx1_data_rate_offset,
            },
            rx_delay: windows.rx1_delay_seconds,
            cflist: cf_list,
        }),
        mic: None,
    };
    let join_eui = lrwn::EUI64::from_be_bytes(*device.join_eui.as_bytes());
    phy.set_join_accept_mic(lrwn::JoinType::Join, &join_eui, joined.dev_nonce, &key.aes()).ok()?;
    phy.encrypt_join_accept_payload(&key.aes()).ok()?;
    phy.to_vec().ok()
}

/// Write-ahead record of a device, secret: what a new holder must know of its joins. The newest by version counts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceRecord {
    pub device: DevEui,
    /// Epoch in the upper 20 bits, number within it in the lower 12.
    pub version: u32,
    pub nonces: Nonces,
    pub session: Session,
    /// When the request was heard that the session comes from, on the clock of who heard it: who ends the join tells it from a replay by that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requested_at: Option<WallTime>,
    /// Sessions before it, oldest first, at most [`PAST_MAX`](super::registry::PAST_MAX): whoever keeps the record can check their late frames.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub past: Vec<Session>,
}

/// Records within one epoch of one device.
const VERSIONS: u32 = 1 << 12;

/// The epoch in which a version was made.
pub(crate) const fn epoch_of(version: u32) -> u64 {
    (version / VERSIONS) as u64
}

/// The version after `newest` in `epoch`, or `None` if those of the epoch are used up.
pub(crate) fn next_version(newest: u32, epoch: u64) -> Option<u32> {
    let first = u32::try_from(epoch).ok()?.checked_mul(VERSIONS)?;
    let next = newest.checked_add(1)?.max(first);
    (next - first < VERSIONS).then_some(next)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nonces_by_rule() {
        let mut random = Nonces::default();
        assert_eq!(random.take(NonceRule::Random, 7), Ok(1), "devices with empty memory refuse 0");
        assert_eq!(random.take(NonceRule::Random, 3), Ok(2));
        assert_eq!(random.take(NonceRule::Random, 7), Err(Unfit::Replayed));
        for nonce in 1_000..1_256 {
            assert!(random.take(NonceRule::Random, nonce).is_ok());
        }
        assert_eq!(random.dev_nonces.len(), DEV_NONCES_MAX);
        assert_eq!(random.take(NonceRule::Random, 7), Ok(259), "the oldest are forgotten");
        let mut rising = Nonces::default();
        assert_eq!(rising.take(NonceRule::Rising, 5), Ok(1));
        assert_eq!(rising.take(NonceRule::Rising, 5), Err(Unfit::Replayed));
        assert_eq!(rising.take(NonceRule::Rising, 4), Err(Unfit::Replayed));
        assert_eq!(rising.take(NonceRule::Rising, 6), Ok(2));
        let mut last = Nonces { join_nonce_next: JOIN_NONCE_MAX + 1, ..Nonces::default() };
        assert_eq!(last.take(NonceRule::Random, 1), Err(Unfit::Exhausted));
        rising.merge(NonceRule::Rising, &Nonces { dev_nonces: [9].into(), join_nonce_next: 1 });
        assert_eq!((rising.join_nonce_next, rising.take(NonceRule::Rising, 9)), (3, Err(Unfit::Replayed)));
        let mut stored: Nonces = serde_json::from_str(r#"{"dev_nonces":[],"join_nonce_next":0}"#).expect("a record that names 0");
        assert_eq!((stored.take(NonceRule::Random, 1), stored.join_nonce_next), (Ok(1), 2));
    }

    #[test]
    fn versions_rise_with_the_epoch_and_have_an_end() {
        assert_eq!(next_version(0, 1), Some(4_096));
        assert_eq!(next_version(4_096, 1), Some(4_097));
        assert_eq!(next_version(8_191, 1), None, "used up");
        assert_eq!(next_version(4_099, 3), Some(12_288));
        assert_eq!(next_version(12_288, 2), None, "a record of a later epoch is known: this one is over");
        assert_eq!(next_version(0, 1 << 20), None);
    }

    #[test]
    fn what_is_no_request_is_none() {
        assert_eq!(request(&[0; 22]), None);
        assert_eq!(request(&[0; 24]), None);
        assert_eq!(request(&[0x20; 23]), None);
        let mut phy = [0; 23];
        phy[1] = 1;
        phy[16] = 2;
        phy[17] = 3;
        let read = request(&phy).expect("a request");
        assert_eq!(
            (read.join_eui.to_string().as_str(), read.device.to_string().as_str()),
            ("0000000000000001", "0200000000000000")
        );
        assert_eq!(read.dev_nonce, 3);
    }
}
