//! What the network changes of a device's receive windows and channels: one change at a time, written ahead (LoRaWAN 1.0.4, 5.4 and 5.6 to 5.8;
//! the same bytes in 1.0.2).
//!
//! A device that takes a change listens by it from the uplink on that carries its answer, and repeats the answer in every uplink until it
//! receives a downlink. From that follows what is needed to know where it listens, whoever serves:
//!
//! - the request leaves when a majority has it on disk, so whoever takes over knows both, the parameters in force and those asked for;
//! - **nothing is sent to a device whose answer was heard before a majority knows of the answer**: until then every uplink of the device
//!   repeats it, so each uplink says by itself which parameters hold for its windows;
//! - a change begins at an uplink without an answer of its kind, and only answers in later uplinks are its own.
//!
//! | state | event | next |
//! |---|---|---|
//! | settled | an uplink, something is wished that is not in force, and the uplink carries no answer of that kind | drafted: the change and the uplink's counter are to be written ahead |
//! | drafted | a majority has it | asking |
//! | asking | an uplink without the answer; its turn (each of four, then ever more rarely) | asking; the request goes with the downlink to it, in the windows in force |
//! | asking | an uplink with the answer "taken" | drafted: in force is what was asked for; nothing is sent to the device meanwhile |
//! | asking | an uplink with the answer "refused" | drafted: not to be asked again; downlinks go on in the windows in force |
//! | drafted | the record does not come back | the same again at the next uplink |
//! | any | custody begins here | not firm: the newest record may be on this disk only, so it is written ahead again before anything is sent |
//! | any | another session (a join, a device that began anew) | settled, with what the device has then |

use std::collections::BTreeMap;

use contracts::ids::{DevEui, Epoch, SessionId};
use contracts::time::{BootTime, Millis};
use serde::{Deserialize, Serialize};

use super::join;
use super::region::{CfListKind, Region};
use super::session::ReceiveWindows;
use crate::gwmp::data_rate::DataRate;

/// Channels of a device in a region with frequencies by index.
pub const CHANNELS_MAX: u8 = 16;
/// Changes that a device refused and that are remembered.
const REFUSED_MAX: usize = 16;
/// Uplinks between two requests double from the fourth on, up to so many.
const ASK_DISTANCE_MAX: u32 = 64;
/// A record that is under way is not written again earlier.
const DRAFT_RETRY: Millis = Millis(500);
/// How near the frequency that a gateway tells lies to the channel's.
const FREQUENCY_TOLERANCE_HZ: u32 = 5_000;

/// A channel that the network added or changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Channel {
    pub frequency_hz: u32,
    /// Indices in the region's table.
    pub data_rate_min: u8,
    pub data_rate_max: u8,
    /// Frequency of RX1, if it is not the uplink's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub downlink_hz: Option<u32>,
}

/// What a device listens by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Radio {
    pub windows: ReceiveWindows,
    /// By index; default channels only if their RX1 was moved.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub channels: BTreeMap<u8, Channel>,
}

/// One MAC command that changes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Change {
    /// `RXTimingSetupReq`.
    RxTiming { rx1_delay_seconds: u8 },
    /// `RXParamSetupReq`.
    RxParams { rx1_data_rate_offset: u8, rx2_data_rate: DataRate, rx2_frequency_hz: u32 },
    /// `NewChannelReq`.
    NewChannel { index: u8, frequency_hz: u32, data_rate_min: u8, data_rate_max: u8 },
    /// `DlChannelReq`: RX1 of a channel.
    DownlinkChannel { index: u8, frequency_hz: u32 },
}

impl Change {
    /// Appends the request; `false` if the region cannot express it. At most 6 bytes.
    fn write(&self, region: &Region, out: &mut Vec<u8>) -> bool {
        // Frequencies are in units of 100 Hz, 24 bits.
        let frequency = |hz: u32| {
            let [a, b, c, _] = (hz / 100).to_le_bytes();
            [a, b, c]
        };
        match *self {
            Self::RxTiming { rx1_delay_seconds } => out.extend([0x08, rx1_delay_seconds & 0x0f]),
            Self::RxParams { rx1_data_rate_offset, rx2_data_rate, rx2_frequency_hz } => {
                let Some(rate) = region.index_of(rx2_data_rate) else { return false };
                out.extend([0x05, (rx1_data_rate_offset & 0x07) << 4 | rate & 0x0f]);
                out.extend(frequency(rx2_frequency_hz));
            }
            Self::NewChannel { index, frequency_hz, data_rate_min, data_rate_max } => {
                out.extend([0x07, index]);
                out.extend(frequency(frequency_hz));
                out.push(data_rate_max << 4 | data_rate_min & 0x0f);
            }
            Self::DownlinkChannel { index, frequency_hz } => {
                out.extend([0x0a, index]);
                out.extend(frequency(frequency_hz));
            }
        }
        true
    }
}

impl Radio {
    /// As the device is registered, or as its join left it.
    pub(crate) fn at_first(windows: ReceiveWindows, is_joined: bool, region: &Region) -> Self {
        let listed = (is_joined && region.cf_list == CfListKind::Frequencies).then_some(region.further_channels_hz);
        let first = u8::try_from(region.default_channels_hz.len()).unwrap_or(0);
        let plain = |frequency_hz: &u32| Channel {
            frequency_hz: *frequency_hz,
            data_rate_min: 0,
            data_rate_max: region.adr_data_rate_max,
            downlink_hz: None,
        };
        let channels = (first..).zip(listed.into_iter().flatten().map(plain)).collect();
        Self { windows, channels }
    }

    fn frequency_hz(&self, index: u8, region: &Region) -> Option<u32> {
        let default = region.default_channels_hz.get(usize::from(index)).copied();
        default.or_else(|| self.channels.get(&index).map(|channel| channel.frequency_hz))
    }

    fn with(&self, change: Change, region: &Region) -> Self {
        let mut changed = self.clone();
        match change {
            Change::RxTiming { rx1_delay_seconds } => changed.windows.rx1_delay_seconds = rx1_delay_seconds,
            Change::RxParams { rx1_data_rate_offset, rx2_data_rate, rx2_frequency_hz } => {
                changed.windows = ReceiveWindows { rx1_data_rate_offset, rx2_data_rate, rx2_frequency_hz, ..changed.windows };
            }
            Change::NewChannel { index, frequency_hz, data_rate_min, data_rate_max } => {
                let channel = Channel { frequency_hz, data_rate_min, data_rate_max, downlink_hz: None };
                changed.channels.insert(index, channel);
            }
            Change::DownlinkChannel { index, frequency_hz } => {
                let Some(uplink_hz) = self.frequency_hz(index, region) else { return changed };
                let plain = Channel {
                    frequency_hz: uplink_hz,
                    data_rate_min: 0,
                    data_rate_max: region.adr_data_rate_max,
                    downlink_hz: None,
                };
                let channel = changed.channels.entry(index).or_insert(plain);
                channel.downlink_hz = (frequency_hz != uplink_hz).then_some(frequency_hz);
            }
        }
        changed
    }

    /// Where RX1 of an uplink at this frequency is.
    pub(crate) fn rx1_hz(&self, uplink_hz: u32) -> u32 {
        let is_this = |channel: &&Channel| channel.frequency_hz.abs_diff(uplink_hz) <= FREQUENCY_TOLERANCE_HZ;
        self.channels.values().find(is_this).and_then(|channel| channel.downlink_hz).unwrap_or(uplink_hz)
    }
}

/// A channel that a device should have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WishedChannel {
    /// A default channel's index only moves its RX1.
    pub index: u8,
    pub channel: Channel,
}

/// What an operator wants of a device's radio. What is not named stays as the device has it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wish {
    pub rx1_delay_seconds: Option<u8>,
    pub rx1_data_rate_offset: Option<u8>,
    pub rx2_data_rate: Option<DataRate>,
    pub rx2_frequency_hz: Option<u32>,
    pub channels: Vec<WishedChannel>,
    /// From one question for battery and margin to the next; never, if absent.
    pub status_interval: Option<Millis>,
}

impl Wish {
    /// The changes that lead there, in the order in which they go.
    fn changes<'a>(&'a self, radio: &'a Radio, region: &'a Region) -> impl Iterator<Item = Change> + 'a {
        let windows = radio.windows;
        let seconds = self.rx1_delay_seconds.filter(|seconds| *seconds != windows.rx1_delay_seconds);
        let timing = seconds.map(|rx1_delay_seconds| Change::RxTiming { rx1_delay_seconds });
        let wished = ReceiveWindows {
            rx1_data_rate_offset: self.rx1_data_rate_offset.unwrap_or(windows.rx1_data_rate_offset),
            rx2_data_rate: self.rx2_data_rate.unwrap_or(windows.rx2_data_rate),
            rx2_frequency_hz: self.rx2_frequency_hz.unwrap_or(windows.rx2_frequency_hz),
            ..windows
        };
        let ReceiveWindows { rx1_data_rate_offset, rx2_data_rate, rx2_frequency_hz, .. } = wished;
        let params = (wished != windows).then_some(Change::RxParams { rx1_data_rate_offset, rx2_data_rate, rx2_frequency_hz });
        let channels = self.channels.iter().flat_map(move |wished| channel_changes(*wished, radio, region));
        timing.into_iter().chain(params).chain(channels)
    }

    fn next(&self, state: &State, region: &Region) -> Option<Change> {
        self.changes(&state.radio, region).find(|change| !state.refused.contains(change))
    }
}

fn channel_changes(wished: WishedChannel, radio: &Radio, region: &Region) -> impl Iterator<Item = Change> {
    let WishedChannel { index, channel } = wished;
    let is_default = usize::from(index) < region.default_channels_hz.len();
    let known = radio.channels.get(&index);
    let is_as_wished = known.is_some_and(|known| {
        let is_same =
            |known: &Channel| (known.data_rate_min, known.data_rate_max) == (channel.data_rate_min, channel.data_rate_max);
        // To set its rates anew would move RX1 back, with an answer that is not repeated.
        known.frequency_hz == channel.frequency_hz && (is_same(known) || known.downlink_hz.is_some())
    });
    let add = (!is_default && !is_as_wished).then_some(Change::NewChannel {
        index,
        frequency_hz: channel.frequency_hz,
        data_rate_min: channel.data_rate_min,
        data_rate_max: channel.data_rate_max,
    });
    let uplink_hz = radio.frequency_hz(index, region);
    let now_hz = known.and_then(|known| known.downlink_hz).or(uplink_hz);
    let wished_hz = channel.downlink_hz.or(uplink_hz);
    let is_there = is_default || is_as_wished;
    let moved = wished_hz.filter(|_| is_there && now_hz.is_some() && now_hz != wished_hz);
    add.into_iter().chain(moved.map(|frequency_hz| Change::DownlinkChannel { index, frequency_hz }))
}

/// The answers of one uplink. `true`: every part was taken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Answers {
    pub rx_params: Option<bool>,
    pub rx_timing: Option<bool>,
    pub new_channel: Option<bool>,
    pub downlink_channel: Option<bool>,
}

impl Answers {
    const fn to(&self, change: Change) -> Option<bool> {
        match change {
            Change::RxTiming { .. } => self.rx_timing,
            Change::RxParams { .. } => self.rx_params,
            Change::NewChannel { .. } => self.new_channel,
            Change::DownlinkChannel { .. } => self.downlink_channel,
        }
    }

    /// The device repeats an answer until it receives a downlink.
    pub(crate) const fn are_repeated(&self) -> bool {
        self.rx_params.is_some() || self.rx_timing.is_some() || self.downlink_channel.is_some()
    }
}

/// A change that was asked for, or is about to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Asked {
    pub change: Change,
    /// Answers in uplinks above this counter are its own.
    pub since: u32,
}

/// In force, asked for, refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    pub radio: Radio,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked: Option<Asked>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refused: Vec<Change>,
}

impl State {
    /// Windows within LoRaWAN's range, no more channels than a device has.
    pub(crate) fn is_sound(&self) -> bool {
        self.radio.windows.are_valid()
            && self.radio.channels.keys().all(|index| *index < CHANNELS_MAX)
            && self.refused.len() <= REFUSED_MAX
    }
}

/// Write-ahead record of a device's link: what a new holder must know of where it listens. No secret. The newest by version counts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinkRecord {
    pub device: DevEui,
    /// As that of a [`join::DeviceRecord`].
    pub version: u32,
    /// The session that it is about.
    pub session: SessionId,
    pub state: State,
}

#[derive(Debug, Clone)]
struct Draft {
    version: u32,
    state: State,
    written: BootTime,
}

/// What a device told of itself (`DevStatusAns`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct DeviceStatus {
    /// 0: external power; 1 (empty) to 254 (full); 255: not known.
    pub battery: u8,
    /// SNR of the last downlink that it received, in dB.
    pub margin_db: i8,
    #[serde(skip)]
    pub at: BootTime,
}

/// How a device's link stands, at the bridge that serves it or may have to.
#[derive(Debug, Clone)]
pub(crate) struct Link {
    wish: Wish,
    state: State,
    /// Of the newest record of this session; 0 if nothing was changed in it.
    version: u32,
    /// The highest of any session's.
    newest: u32,
    /// A majority has that record for certain.
    is_firm: bool,
    draft: Option<Draft>,
    /// How often the change at hand was asked for, and from which uplink on it is asked for again.
    times: u8,
    ask_from: u32,
    /// Of a session that is not known yet.
    stray: Option<Box<LinkRecord>>,
    pub status: Option<DeviceStatus>,
    status_due: Option<BootTime>,
}

/// The uplink that is looked at.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Heard {
    pub f_cnt: u32,
    pub answers: Answers,
}

/// What came of an uplink.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum News {
    Taken,
    Refused,
}

impl Link {
    pub(crate) fn new(wish: Wish, radio: Radio) -> Self {
        Self {
            wish,
            state: State { radio, asked: None, refused: Vec::new() },
            version: 0,
            newest: 0,
            is_firm: false,
            draft: None,
            times: 0,
            ask_from: 0,
            stray: None,
            status: None,
            status_due: None,
        }
    }

    pub(crate) fn state(&self) -> &State {
        &self.state
    }

    pub(crate) fn version(&self) -> u32 {
        self.version
    }

    /// The wish is as the registration says; what the device has at first matters only while nothing was changed.
    pub(crate) fn set_wish(&mut self, wish: Wish, at_first: Radio) {
        self.wish = wish;
        if self.version == 0 && self.draft.is_none() {
            self.state.radio = at_first;
        }
    }

    /// The device has another session.
    pub(crate) fn restart(&mut self, session: SessionId, at_first: Radio) {
        let (stray, newest) = (self.stray.take(), self.newest);
        let (status, status_due) = (self.status, self.status_due);
        *self = Self { newest, status, status_due, ..Self::new(std::mem::take(&mut self.wish), at_first) };
        if let Some(record) = stray {
            self.adopt(session, *record);
        }
    }

    /// A record of another member, or of an earlier life of this one.
    pub(crate) fn adopt(&mut self, session: SessionId, record: LinkRecord) {
        self.newest = self.newest.max(record.version);
        if record.session != session {
            if self.stray.as_ref().is_none_or(|stray| stray.version < record.version) {
                self.stray = Some(Box::new(record));
            }
        } else if record.version > self.version {
            (self.version, self.state, self.is_firm) = (record.version, record.state, false);
            (self.times, self.ask_from) = (0, 0);
            self.draft = None;
        }
    }

    /// Custody begins or ends here.
    pub(crate) fn change_custody(&mut self) {
        (self.is_firm, self.draft) = (false, None);
        (self.times, self.ask_from) = (0, 0);
    }

    fn verdict(&self, heard: Heard) -> Option<(Change, bool)> {
        let asked = self.state.asked.filter(|asked| heard.f_cnt > asked.since)?;
        Some((asked.change, heard.answers.to(asked.change)?))
    }

    /// Whether what is in force is known for the windows of this uplink, and a majority knows it too.
    pub(crate) fn is_certain(&self, heard: Heard) -> bool {
        let is_taken = self.verdict(heard).is_some_and(|(_, is_taken)| is_taken);
        !is_taken && (self.version == 0 || self.is_firm)
    }

    /// An uplink, newest of its session, at the node that serves: what is to be written ahead because of it.
    pub(crate) fn step(
        &mut self,
        heard: Heard,
        region: &Region,
        epoch: Epoch,
        now: BootTime,
    ) -> Option<(u32, State, Option<News>)> {
        let verdict = self.verdict(heard);
        let mut next = self.state.clone();
        if let Some((change, is_taken)) = verdict {
            next.asked = None;
            if is_taken {
                next.radio = next.radio.with(change, region);
            } else {
                next.refused.push(change);
                let spare = next.refused.len().saturating_sub(REFUSED_MAX);
                next.refused.drain(..spare);
            }
        }
        if let Some(draft) = self.draft.as_mut().filter(|draft| verdict.is_none() || draft.state.radio == next.radio) {
            if now.since(draft.written) < DRAFT_RETRY {
                return None;
            }
            draft.written = now;
            return Some((draft.version, draft.state.clone(), None));
        }
        if next.asked.is_none() {
            let begun = self.wish.next(&next, region).filter(|change| heard.answers.to(*change).is_none());
            next.asked = begun.map(|change| Asked { change, since: heard.f_cnt });
        }
        let is_vague = self.version > 0 && !self.is_firm;
        if next == self.state && !is_vague {
            return None;
        }
        let version = join::next_version(self.newest, epoch.0)?;
        self.newest = version;
        self.draft = Some(Draft { version, state: next.clone(), written: now });
        let news = verdict.map(|(_, is_taken)| if is_taken { News::Taken } else { News::Refused });
        Some((version, next, news))
    }

    /// A majority has the record. `true`: it is the newest, and in force.
    pub(crate) fn recorded(&mut self, version: u32) -> bool {
        let Some(draft) = self.draft.take_if(|draft| draft.version == version) else { return false };
        if draft.state.asked.map(|asked| asked.change) != self.state.asked.map(|asked| asked.change) {
            (self.times, self.ask_from) = (0, 0);
        }
        (self.version, self.state, self.is_firm) = (version, draft.state, true);
        true
    }

    /// A draft with a question is under way, or one may be asked with the downlink to this uplink. Whether it is worth a downlink of its own.
    pub(crate) fn is_due(&self, heard: Heard) -> bool {
        let asked = self.draft.as_ref().map_or(self.state.asked, |draft| draft.state.asked);
        asked.is_some_and(|asked| heard.f_cnt >= asked.since && heard.answers.to(asked.change).is_none())
            && heard.f_cnt >= self.ask_from
    }

    /// Appends the request that goes with the downlink to this uplink, if it fits.
    pub(crate) fn write_request(&self, heard: Heard, region: &Region, bytes_max: usize, commands: &mut Vec<u8>) -> bool {
        let Some(asked) = self.state.asked.filter(|asked| self.is_firm && heard.f_cnt >= asked.since) else { return false };
        if heard.answers.to(asked.change).is_some() {
            return false;
        }
        let before = commands.len();
        if asked.change.write(region, commands) && commands.len() <= bytes_max {
            return true;
        }
        commands.truncate(before);
        false
    }

    /// The request left with the downlink to this uplink.
    pub(crate) fn note_asked(&mut self, f_cnt: u32) {
        self.times = self.times.saturating_add(1);
        let distance = 1_u32.checked_shl(u32::from(self.times.saturating_sub(3))).unwrap_or(u32::MAX).min(ASK_DISTANCE_MAX);
        self.ask_from = f_cnt.saturating_add(distance);
    }

    /// When the last window after an uplink is over at the latest, whichever parameters hold.
    pub(crate) fn latest_windows(&self) -> &ReceiveWindows {
        let drafted = self.draft.as_ref().map(|draft| &draft.state.radio.windows);
        let in_force = &self.state.radio.windows;
        drafted.filter(|drafted| drafted.rx2_delay() > in_force.rx2_delay()).unwrap_or(in_force)
    }

    /// Whether it is time to ask for battery and margin. The first question is put somewhere within an interval, so that not all devices
    /// are asked at once.
    pub(crate) fn is_status_due(&mut self, device: DevEui, now: BootTime) -> bool {
        let Some(interval) = self.wish.status_interval else { return false };
        let share = u64::from(device.as_bytes()[7]) * interval.0 / 256;
        now >= *self.status_due.get_or_insert(now + Millis(share))
    }

    pub(crate) fn note_status_asked(&mut self, now: BootTime) {
        if let Some(interval) = self.wish.status_interval {
            // Without an answer it is asked again before a whole interval is over.
            self.status_due = Some(now + Millis(interval.0 / 8));
        }
    }

    /// `DevStatusAns`.
    pub(crate) fn note_status(&mut self, status: DeviceStatus) {
        self.status = Some(status);
        self.status_due = self.wish.status_interval.map(|interval| status.at + interval);
    }
}

#[cfg(test)]
#[path = "link_tests.rs"]
mod tests;
