//! What a bridge knows of a device: what is registered, what changes, what moves between nodes.

use std::fmt;

use contracts::ids::{DevAddr, DevEui, EventId, GroupId, SessionId};
use contracts::time::{BootTime, Millis};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};

use super::downlink::DownCounters;
use super::link::{Link, Radio, Wish};
use super::queue::QueueState;
use super::region::Region;
use super::served::ServedSet;
use crate::gwmp::GatewayEui;
use crate::gwmp::data_rate::DataRate;

/// Domain tag of session fingerprints.
const SESSION_DOMAIN: &[u8] = b"antirio/lorawan-session/v1\0";

/// EU868 RX2 frequency (RP002, 2.4.7).
pub const EU868_RX2_HZ: u32 = 869_525_000;

/// The network session key: integrity codes and MAC commands. In text 32 hexadecimal digits; never in logs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct NwkSKey([u8; 16]);

/// A text is not 32 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a network session key has 32 hexadecimal digits")]
pub struct NotAKey;

impl NwkSKey {
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    pub(crate) const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    pub(crate) fn aes(self) -> lrwn::AES128Key {
        lrwn::AES128Key::from_bytes(self.0)
    }
}

impl fmt::Debug for NwkSKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NwkSKey(hidden)")
    }
}

impl std::str::FromStr for NwkSKey {
    type Err = NotAKey;

    fn from_str(text: &str) -> Result<Self, NotAKey> {
        if text.len() != 32 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(NotAKey);
        }
        u128::from_str_radix(text, 16).map(|key| Self(key.to_be_bytes())).map_err(|_| NotAKey)
    }
}

impl Serialize for NwkSKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:032x}", u128::from_be_bytes(self.0)))
    }
}

impl<'de> Deserialize<'de> for NwkSKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// The fingerprint of a session, the same at every node: the first 8 bytes of SHA-256 over a domain tag, DevAddr (big-endian), network
/// session key and reset ordinal (big-endian).
#[must_use]
pub fn session_id(dev_addr: DevAddr, nwk_s_key: &NwkSKey, reset_ordinal: u32) -> SessionId {
    let mut hash = Sha256::new();
    hash.update(SESSION_DOMAIN);
    hash.update(dev_addr.as_bytes());
    hash.update(nwk_s_key.0);
    hash.update(reset_ordinal.to_be_bytes());
    let mut id = [0; 8];
    id.copy_from_slice(&hash.finalize()[..8]);
    SessionId::from_bytes(id)
}

/// When and where a class A device listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReceiveWindows {
    /// From the end of the uplink to RX1, 1..=15 s; RX2 follows one second later.
    pub rx1_delay_seconds: u8,
    /// Steps by which RX1 is slower than the uplink, 0..=5.
    pub rx1_data_rate_offset: u8,
    pub rx2_frequency_hz: u32,
    pub rx2_data_rate: DataRate,
}

impl ReceiveWindows {
    /// RX1 after 1 s at the uplink's data rate, RX2 at 869.525 MHz, DR0.
    #[must_use]
    pub const fn eu868() -> Self {
        Self {
            rx1_delay_seconds: 1,
            rx1_data_rate_offset: 0,
            rx2_frequency_hz: EU868_RX2_HZ,
            rx2_data_rate: DataRate::Lora { spreading_factor: 12, bandwidth_khz: 125 },
        }
    }

    pub(crate) const fn are_valid(&self) -> bool {
        matches!(self.rx1_delay_seconds, 1..=15)
            && self.rx1_data_rate_offset <= 5
            && !matches!(self.rx2_data_rate, DataRate::Other)
    }

    /// From the end of the uplink to RX1.
    #[must_use]
    pub const fn rx1_delay(&self) -> Millis {
        Millis::from_secs(self.rx1_delay_seconds as u64)
    }

    /// From the end of the uplink to RX2.
    #[must_use]
    pub const fn rx2_delay(&self) -> Millis {
        Millis::from_secs(self.rx1_delay_seconds as u64 + 1)
    }
}

/// What an operator allows a device beyond the specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct UplinkRules {
    /// How far a counter may be ahead of the expected one; [`super::uplink::F_CNT_GAP_MAX`] by the specification. More than 65,535 cannot
    /// be told from the 16 bits on air.
    pub f_cnt_gap_max: u16,
    /// The device keeps its counters in memory that does not survive a restart (ABP): it may start at 0 again. Whoever replays its old
    /// frames can then have them delivered once more, as a new session.
    pub may_reset: bool,
}

impl Default for UplinkRules {
    fn default() -> Self {
        Self { f_cnt_gap_max: super::uplink::F_CNT_GAP_MAX, may_reset: false }
    }
}

/// The join from which a session's keys follow (LoRaWAN 1.0.x).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Joined {
    /// AppNonce in LoRaWAN 1.0; 24 bits.
    pub join_nonce: u32,
    /// 24 bits.
    pub net_id: u32,
    pub dev_nonce: u16,
}

/// A session as it is registered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Session {
    pub device: DevEui,
    pub dev_addr: DevAddr,
    pub nwk_s_key: NwkSKey,
    /// How often the device began its counters anew with the same address and key; decided by the holder and written ahead.
    #[serde(default)]
    pub reset_ordinal: u32,
    #[serde(default = "ReceiveWindows::eu868")]
    pub receive_windows: ReceiveWindows,
    #[serde(default)]
    pub uplink_rules: UplinkRules,
    /// Absent for a session by personalisation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub joined: Option<Joined>,
    /// What the network should make of the device's radio; from the registration, so no part of what is stored.
    #[serde(skip)]
    pub wish: Wish,
    /// The next uplink counter expected, all 32 bits.
    #[serde(default)]
    pub f_cnt_up_next: u32,
    #[serde(default, skip_serializing_if = "ServedSet::is_empty")]
    pub served: ServedSet,
    #[serde(default, skip_serializing_if = "ServedSet::is_empty")]
    pub settled: ServedSet,
    /// The next downlink counter.
    #[serde(default)]
    pub f_cnt_down_next: u32,
    /// Downlink counters below this are on the disks of a majority.
    #[serde(default)]
    pub f_cnt_down_reserved: u32,
}

impl Session {
    /// A fresh session with the EU868 defaults.
    #[must_use]
    pub fn new(device: DevEui, dev_addr: DevAddr, nwk_s_key: NwkSKey) -> Self {
        Self {
            device,
            dev_addr,
            nwk_s_key,
            reset_ordinal: 0,
            receive_windows: ReceiveWindows::eu868(),
            uplink_rules: UplinkRules::default(),
            joined: None,
            wish: Wish::default(),
            f_cnt_up_next: 0,
            served: ServedSet::default(),
            settled: ServedSet::default(),
            f_cnt_down_next: 0,
            f_cnt_down_reserved: 0,
        }
    }

    /// See [`session_id`].
    #[must_use]
    pub fn id(&self) -> SessionId {
        session_id(self.dev_addr, &self.nwk_s_key, self.reset_ordinal)
    }
}

/// The changing part of a session: what nodes stream to one another. It holds no key. Merged by union of the sets and maximum of the counters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SessionState {
    pub device: DevEui,
    pub session: SessionId,
    /// How often the device began its counters anew: a node that knows fewer follows.
    #[serde(default)]
    pub reset_ordinal: u32,
    pub f_cnt_up_next: u32,
    /// Uplinks on the disk of a node that served the device.
    pub served: ServedSet,
    /// Uplinks that the customer's store acknowledged.
    pub settled: ServedSet,
    pub f_cnt_down_next: u32,
    pub f_cnt_down_reserved: u32,
    /// Downlink counters left out since a downlink was last known to be received.
    pub f_cnt_down_skipped: u32,
    /// Downlinks that are owed at least once, and what the device took of what it was told.
    #[serde(default, skip_serializing_if = "QueueState::is_empty")]
    pub queue: QueueState,
}

/// One uplink by its name: device, session, 32-bit counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Mark {
    pub device: DevEui,
    pub session: SessionId,
    pub f_cnt: u32,
}

impl Mark {
    /// The event id of this uplink.
    #[must_use]
    pub fn event(&self) -> EventId {
        EventId::new(self.device, self.session, self.f_cnt)
    }
}

/// The newest transmission of the newest counter: tells a copy from a repetition.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Recent {
    pub f_cnt: u32,
    pub gateway: GatewayEui,
    pub tmst: Option<u32>,
    pub heard: BootTime,
}

/// How many gateways of a device are remembered.
const HEARERS_MAX: usize = 4;

/// The gateways that heard a device's latest uplinks in time.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Hearers {
    gateways: [u64; HEARERS_MAX],
    /// One bit per uplink, the newest lowest; 0 marks a free place.
    histories: [u8; HEARERS_MAX],
}

impl Hearers {
    /// A new uplink, not heard by anybody yet.
    pub(crate) fn begin(&mut self) {
        for history in &mut self.histories {
            *history <<= 1;
        }
    }

    /// A gateway heard the newest uplink.
    pub(crate) fn note(&mut self, gateway: GatewayEui) {
        let known = self.places().position(|(known, history)| known == gateway && history != 0);
        let weakest = || (0..HEARERS_MAX).min_by_key(|place| self.histories[*place].count_ones());
        if let Some(place) = known.or_else(weakest) {
            self.histories[place] = if known.is_some() { self.histories[place] | 1 } else { 1 };
            self.gateways[place] = gateway.0;
        }
    }

    /// The gateways that heard at least two of the four uplinks before the newest, and not the newest so far.
    pub(crate) fn missing(&self) -> impl Iterator<Item = GatewayEui> {
        let is_missing = |history: u8| history & 1 == 0 && (history & 0b1_1110).count_ones() >= 2;
        self.places().filter(move |(_, history)| is_missing(*history)).map(|(gateway, _)| gateway)
    }

    fn places(&self) -> impl Iterator<Item = (GatewayEui, u8)> {
        self.gateways.into_iter().map(GatewayEui).zip(self.histories)
    }
}

/// A session in the bridge's memory. About 700 bytes.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub group: GroupId,
    pub device: DevEui,
    pub session: SessionId,
    pub dev_addr: DevAddr,
    pub nwk_s_key: NwkSKey,
    pub reset_ordinal: u32,
    /// As registered, or as the join left them.
    pub receive_windows: ReceiveWindows,
    /// What the network changes of that; most devices have none.
    pub link: Option<Box<Link>>,
    pub uplink_rules: UplinkRules,
    pub joined: Option<Joined>,
    pub adr: super::adr::Adr,
    /// The device has joined again since: late frames are delivered, nothing is answered.
    pub is_past: bool,
    pub f_cnt_up_next: u32,
    /// On the disk of a node that serves (this one or the other).
    pub served: ServedSet,
    pub settled: ServedSet,
    /// Handed to this node's owner: on its disk, or on the way to it.
    pub taken: ServedSet,
    pub down: DownCounters,
    pub recent: Option<Recent>,
    pub hearers: Hearers,
    /// When the newest counter was first heard live by this node, and its integrity code.
    pub newest: Option<(BootTime, [u8; 4])>,
    /// The confirmed uplink that was answered last, until what follows tells whether the answer was received.
    pub answered: Option<u32>,
    /// Token of the newest downlink.
    pub on_air: Option<u16>,
}

impl Entry {
    pub(crate) fn new(group: GroupId, session: &Session) -> Self {
        let highest = session.f_cnt_up_next.max(session.served.next()).max(session.settled.next());
        Self {
            group,
            device: session.device,
            session: session.id(),
            dev_addr: session.dev_addr,
            nwk_s_key: session.nwk_s_key,
            reset_ordinal: session.reset_ordinal,
            receive_windows: session.receive_windows,
            link: None,
            uplink_rules: session.uplink_rules,
            joined: session.joined,
            adr: super::adr::Adr::default(),
            is_past: false,
            f_cnt_up_next: highest,
            served: session.served,
            settled: session.settled,
            taken: ServedSet::default(),
            down: DownCounters::new(session.f_cnt_down_next, session.f_cnt_down_reserved),
            recent: None,
            hearers: Hearers::default(),
            newest: None,
            answered: None,
            on_air: None,
        }
    }

    pub(crate) fn mark(&self, f_cnt: u32) -> Mark {
        Mark { device: self.device, session: self.session, f_cnt }
    }

    /// The session as another node would register it, without what was served: marks say that.
    pub(crate) fn to_session(&self) -> Session {
        Session {
            device: self.device,
            dev_addr: self.dev_addr,
            nwk_s_key: self.nwk_s_key,
            reset_ordinal: self.reset_ordinal,
            receive_windows: self.receive_windows,
            uplink_rules: self.uplink_rules,
            joined: self.joined,
            wish: Wish::default(),
            f_cnt_up_next: self.f_cnt_up_next,
            served: ServedSet::default(),
            settled: ServedSet::default(),
            f_cnt_down_next: self.down.next,
            f_cnt_down_reserved: self.down.reserved,
        }
    }

    pub(crate) fn state(&self) -> SessionState {
        SessionState {
            device: self.device,
            session: self.session,
            reset_ordinal: self.reset_ordinal,
            f_cnt_up_next: self.f_cnt_up_next,
            served: self.served,
            settled: self.settled,
            f_cnt_down_next: self.down.next,
            f_cnt_down_reserved: self.down.reserved,
            f_cnt_down_skipped: self.down.skipped,
            queue: QueueState { used: self.adr.used(self.session), ..QueueState::default() },
        }
    }

    /// Union of the sets, maximum of the counters.
    pub(crate) fn merge(&mut self, state: &SessionState) {
        self.served.merge(&state.served);
        self.settled.merge(&state.settled);
        let highest = state.f_cnt_up_next.max(self.served.next()).max(self.settled.next());
        self.f_cnt_up_next = self.f_cnt_up_next.max(highest);
        self.down.merge(state.f_cnt_down_next, state.f_cnt_down_reserved, state.f_cnt_down_skipped);
    }

    /// The windows in force.
    pub(crate) fn windows(&self) -> &ReceiveWindows {
        self.link.as_ref().map_or(&self.receive_windows, |link| &link.state().radio.windows)
    }

    /// Those that end last, whichever hold.
    pub(crate) fn latest_windows(&self) -> &ReceiveWindows {
        self.link.as_ref().map_or(&self.receive_windows, |link| link.latest_windows())
    }

    /// Whether the windows after this uplink are known, here and to a majority.
    pub(crate) fn is_link_certain(&self, heard: &super::link::Heard) -> bool {
        self.link.as_ref().is_none_or(|link| link.is_certain(*heard))
    }

    /// Where RX1 of an uplink at this frequency is.
    pub(crate) fn rx1_hz(&self, uplink_hz: u32) -> u32 {
        self.link.as_ref().map_or(uplink_hz, |link| link.state().radio.rx1_hz(uplink_hz))
    }

    fn radio_at_first(&self, region: &Region) -> Radio {
        Radio::at_first(self.receive_windows, self.joined.is_some(), region)
    }

    /// Its link, made if need be.
    pub(crate) fn link_mut(&mut self, region: &Region) -> &mut Link {
        let at_first = self.radio_at_first(region);
        self.link.get_or_insert_with(|| Box::new(Link::new(Wish::default(), at_first)))
    }

    /// What the registration says.
    pub(crate) fn set_wish(&mut self, wish: &Wish, region: &Region) {
        if self.link.is_some() || *wish != Wish::default() {
            let at_first = self.radio_at_first(region);
            self.link_mut(region).set_wish(wish.clone(), at_first);
        }
    }

    /// The device has another session now.
    pub(crate) fn restart_link(&mut self, region: &Region) {
        let (session, at_first) = (self.session, self.radio_at_first(region));
        if let Some(link) = &mut self.link {
            link.restart(session, at_first);
        }
    }

    /// The session of one of the device's lives.
    pub(crate) fn session_at(&self, reset_ordinal: u32) -> SessionId {
        session_id(self.dev_addr, &self.nwk_s_key, reset_ordinal)
    }

    /// The device began anew: uplink counters from 0, in a new session. Downlink counters go on, for a value is never used twice; to the
    /// device, which counts from 0 again, all of them are left out. It has forgotten what it was told of its radio.
    pub(crate) fn restart(&mut self, reset_ordinal: u32) {
        self.reset_ordinal = reset_ordinal;
        self.session = self.session_at(reset_ordinal);
        self.f_cnt_up_next = 0;
        (self.served, self.settled, self.taken) = Default::default();
        self.down.skipped = self.down.next;
        (self.recent, self.newest, self.answered) = (None, None, None);
        // Its transmit power and its number of transmissions are those of a device that was just switched on, too.
        self.adr.restart();
    }

    pub(crate) fn note_served(&mut self, f_cnt: u32) {
        self.served.insert(f_cnt);
        self.f_cnt_up_next = self.f_cnt_up_next.max(self.served.next());
    }

    pub(crate) fn note_settled(&mut self, f_cnt: u32) {
        self.settled.insert(f_cnt);
        self.note_served(f_cnt);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fingerprint_is_fixed_and_depends_on_every_part() {
        let key = NwkSKey::from_bytes([0x2b; 16]);
        let address = DevAddr::from_u32(0x2601_1bda);
        let id = session_id(address, &key, 0);
        // Recomputed with: printf 'antirio/lorawan-session/v1\0' + 26011bda + 16 x 2b + 00000000 | sha256sum
        assert_eq!(id.to_string(), "6b6b520244f685ef");
        assert_ne!(id, session_id(DevAddr::from_u32(0x2601_1bdb), &key, 0));
        assert_ne!(id, session_id(address, &NwkSKey::from_bytes([0x2c; 16]), 0));
        assert_ne!(id, session_id(address, &key, 1));
    }

    #[test]
    fn a_device_that_begins_anew_is_as_loud_as_it_was_at_first() {
        use crate::mac::adr::{AdrMode, Setting};
        use crate::mac::region::EU868;

        let session = Session::new(DevEui::from_u64(1), DevAddr::from_u32(1), NwkSKey::from_bytes([1; 16]));
        let mut entry = Entry::new(GroupId::from_bytes([1; 16]), &session);
        entry.adr.note_asked(Setting { data_rate: 5, tx_power: 5, nb_trans: 1 });
        entry.adr.answer(7, entry.session, 1);
        let decide = |entry: &mut Entry| {
            (0..20).for_each(|f_cnt| entry.adr.note(true, f_cnt, Some(-90), contracts::time::WallTime(0)));
            let rate = EU868.data_rate(5).expect("in the table");
            entry.adr.decide(&EU868, rate, AdrMode::Alone, entry.session).map(|setting| setting.tx_power)
        };
        assert_eq!(decide(&mut entry), Some(2), "louder than it was told to be");
        entry.restart(1);
        assert_eq!(decide(&mut entry), None, "it is at its loudest: 2 would make it quieter");
    }

    #[test]
    fn a_key_hides_from_logs_and_a_session_reads_with_defaults() {
        let json = r#"{"device":"0102030405060708","dev_addr":"26011bda","nwk_s_key":"000102030405060708090a0b0c0d0e0f"}"#;
        let session: Session = serde_json::from_str(json).expect("a session");
        assert_eq!(session.receive_windows, ReceiveWindows::eu868());
        assert!(!format!("{session:?}").contains("0c0d0e0f"));
        let back = serde_json::to_string(&session).expect("JSON");
        assert_eq!(serde_json::from_str::<Session>(&back).expect("its own JSON"), session);
        assert_eq!("+0102030405060708090a0b0c0d0e0f0".parse::<NwkSKey>(), Err(NotAKey));
    }
}
