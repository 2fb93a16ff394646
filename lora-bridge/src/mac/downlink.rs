//! Downlinks of class A: counters written ahead, the receive window, the frame.

use contracts::ids::DevAddr;
use contracts::time::{BootTime, Millis, WallTime};
use serde::{Deserialize, Serialize};

use super::link::Answers;
use super::session::{NwkSKey, ReceiveWindows};
use crate::gwmp::data_rate::DataRate;

/// Downlink counters are written ahead in blocks of this size, and anew when at most half a block is left.
pub const BLOCK: u32 = 16;

/// GPS time began at 1980-01-06 00:00:00 UTC.
const GPS_EPOCH: WallTime = WallTime(315_964_800_000);

/// GPS time is ahead of UTC by so many leap seconds (since 2017-01-01).
const GPS_LEAP: Millis = Millis::from_secs(18);

/// How a new lower bound of downlink counters is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CounterSource {
    /// The previous holder released with exact counters.
    Release,
    /// The highest reservation that the majority knows; what lies below may have been used.
    Reservation,
}

/// The downlink counters of a session: a value is taken at most once, ever, and only below what is written ahead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DownCounters {
    /// The next value.
    pub next: u32,
    /// Values below this are on the disks of a majority.
    pub reserved: u32,
    /// Asked for, answered or not.
    pub wanted: u32,
    /// Left out since a downlink was last known to be received.
    pub skipped: u32,
    /// `next` is known to be right: told so since this node last stopped serving.
    is_exact: bool,
}

impl DownCounters {
    pub(crate) const fn new(next: u32, reserved: u32) -> Self {
        Self { next, reserved, wanted: 0, skipped: 0, is_exact: false }
    }

    /// Of a session that begins here, with its first counters written ahead.
    pub(crate) const fn begun(reserved: u32) -> Self {
        Self { next: 0, reserved, wanted: 0, skipped: 0, is_exact: true }
    }

    /// What [`Self::take`] would give.
    pub(crate) fn peek(&self) -> Option<u32> {
        (self.next < self.reserved && self.next < u32::MAX).then_some(self.next)
    }

    /// The next value, if it is written ahead.
    pub(crate) fn take(&mut self) -> Option<u32> {
        // The last value of all is left unused, for it has no successor to remember.
        if self.next >= self.reserved || self.next == u32::MAX {
            return None;
        }
        let value = self.next;
        self.next += 1;
        Some(value)
    }

    /// The bound to ask for, once per block.
    pub(crate) fn want(&mut self) -> Option<u32> {
        let left = self.reserved.saturating_sub(self.next);
        if left > BLOCK / 2 || self.wanted > self.reserved {
            return None;
        }
        self.wanted = self.reserved.max(self.next).saturating_add(BLOCK);
        (self.wanted > self.reserved).then_some(self.wanted)
    }

    pub(crate) const fn is_waiting(&self) -> bool {
        self.wanted > self.reserved
    }

    pub(crate) fn note_reserved(&mut self, upto: u32) {
        self.reserved = self.reserved.max(upto);
    }

    pub(crate) fn note_from(&mut self, next: u32, source: CounterSource) {
        match source {
            // Values between were used and counted by the other holder.
            CounterSource::Release => self.next = self.next.max(next),
            CounterSource::Reservation => self.skip_to(next.max(self.reserved)),
        }
        self.is_exact = true;
        self.wanted = 0;
    }

    pub(crate) fn merge(&mut self, next: u32, reserved: u32, skipped: u32) {
        self.next = self.next.max(next);
        self.reserved = self.reserved.max(reserved);
        self.skipped = self.skipped.max(skipped);
    }

    /// Custody begins: whoever was not told the counter leaves out all that may have been used.
    pub(crate) fn start(&mut self) {
        if !self.is_exact {
            self.skip_to(self.reserved);
        }
        self.wanted = 0;
    }

    /// Custody ends: what another does from now on is not seen.
    pub(crate) const fn stop(&mut self) {
        self.is_exact = false;
    }

    fn skip_to(&mut self, next: u32) {
        let skipped = next.saturating_sub(self.next);
        self.skipped = self.skipped.saturating_add(skipped);
        self.next = self.next.max(next);
    }
}

/// The receive window that a downlink is meant for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Window {
    Rx1,
    Rx2,
}

/// What can be heard of an uplink that matters for its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Timing {
    pub heard: BootTime,
    pub frequency_hz: Option<u32>,
    pub data_rate: DataRate,
    pub rx2_only: bool,
}

/// The windows that can still be reached, the first one first: the gateway must have the packet `margin` before it opens.
pub(crate) fn reachable_windows(
    windows: &ReceiveWindows,
    timing: &Timing,
    margin: Millis,
    now: BootTime,
) -> impl Iterator<Item = Window> + use<> {
    let is_open = |delay: Millis| now + margin <= timing.heard + delay;
    let rx1_is_possible = !timing.rx2_only && timing.frequency_hz.is_some() && rx1_rate(windows, timing).is_some();
    let rx1 = (rx1_is_possible && is_open(windows.rx1_delay())).then_some(Window::Rx1);
    let rx2 = is_open(windows.rx2_delay()).then_some(Window::Rx2);
    rx1.into_iter().chain(rx2)
}

/// The first window that can still be reached.
pub(crate) fn reachable(windows: &ReceiveWindows, timing: &Timing, margin: Millis, now: BootTime) -> Option<Window> {
    reachable_windows(windows, timing, margin, now).next()
}

fn rx1_rate(windows: &ReceiveWindows, timing: &Timing) -> Option<DataRate> {
    timing.data_rate.slowed(windows.rx1_data_rate_offset)
}

/// The data rates of both windows, whether they can still be reached or not; nothing if that of RX1 is not known.
pub(crate) fn data_rates(windows: &ReceiveWindows, timing: &Timing) -> Option<[DataRate; 2]> {
    timing.frequency_hz?;
    Some([rx1_rate(windows, timing)?, windows.rx2_data_rate])
}

/// Where and when of a downlink.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Slot {
    pub tmst: u32,
    pub frequency_hz: u32,
    pub data_rate: DataRate,
}

/// The place of `window` for an uplink that ended at `tmst` on the gateway's counter.
pub(crate) fn slot(windows: &ReceiveWindows, timing: &Timing, window: Window, tmst: u32) -> Slot {
    let rx2 = (windows.rx2_delay(), windows.rx2_frequency_hz, windows.rx2_data_rate);
    let (delay, frequency_hz, data_rate) = match (window, timing.frequency_hz, rx1_rate(windows, timing)) {
        (Window::Rx1, Some(frequency_hz), Some(data_rate)) => (windows.rx1_delay(), frequency_hz, data_rate),
        (Window::Rx1 | Window::Rx2, _, _) => rx2,
    };
    // At most 16 s, far from the limit of 32 bits.
    let micros = u32::try_from(delay.0 * 1_000).unwrap_or(u32::MAX);
    Slot { tmst: tmst.wrapping_add(micros), frequency_hz, data_rate }
}

/// What an uplink asks for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Wants {
    /// It is confirmed.
    pub ack: bool,
    /// ADRACKReq: any downlink will do.
    pub any: bool,
    pub link_check: bool,
    pub device_time: bool,
    /// Its answer to a request for another data rate.
    pub link_adr: Option<u8>,
    /// Its answers to changes of its receive windows and channels.
    pub link: Answers,
    /// Battery and margin in dB, as asked for.
    pub status: Option<(u8, i8)>,
}

impl Wants {
    pub(crate) const fn is_answer(self) -> bool {
        self.ack || self.any || self.link_check || self.device_time
    }
}

/// The answers to MAC commands of an uplink.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Answer {
    pub ack: bool,
    /// Margin in dB and number of gateways.
    pub link_check: Option<(u8, u8)>,
    /// When the uplink ended.
    pub device_time: Option<WallTime>,
}

/// `DevStatusReq`.
pub(crate) const DEV_STATUS_REQ: u8 = 0x06;

/// MAC commands in one frame beside a payload.
pub(crate) const F_OPTS_BYTES_MAX: usize = 15;

impl Answer {
    /// Appends its MAC commands (LoRaWAN 1.0.3, 5.2 and 5.9), at most 9 bytes.
    pub(crate) fn write_commands(&self, bytes: &mut Vec<u8>) {
        if let Some((margin, gateways)) = self.link_check {
            bytes.extend_from_slice(&[0x02, margin, gateways]);
        }
        if let Some(at) = self.device_time {
            let Millis(since) = at.since(GPS_EPOCH) + GPS_LEAP;
            // The field wraps with the GPS second counter, in 2116.
            let [a, b, c, d, ..] = (since / 1_000).to_le_bytes();
            let fraction = u8::try_from(since % 1_000 * 256 / 1_000).unwrap_or(u8::MAX);
            bytes.extend_from_slice(&[0x0d, a, b, c, d, fraction]);
        }
    }
}

/// A downlink before its integrity code.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Frame<'a> {
    pub is_confirmed: bool,
    pub ack: bool,
    /// The network manages the device's data rate.
    pub adr: bool,
    /// More waits: the device may ask for it by another uplink.
    pub pending: bool,
    /// At most [`F_OPTS_BYTES_MAX`].
    pub commands: &'a [u8],
    /// Port and payload, encrypted.
    pub payload: Option<(u8, &'a [u8])>,
}

impl Frame<'_> {
    /// Bytes of FHDR, port and payload.
    pub(crate) fn mac_payload_len(&self) -> usize {
        7 + self.commands.len() + self.payload.map_or(0, |(_, payload)| 1 + payload.len())
    }

    /// Bytes on air: with header and integrity code.
    pub(crate) fn len(&self) -> usize {
        self.mac_payload_len() + 5
    }
}

/// The bytes of a downlink, or `None` if the library cannot build it.
pub(crate) fn build(dev_addr: DevAddr, key: NwkSKey, f_cnt: u32, frame: &Frame<'_>) -> Option<Vec<u8>> {
    let f_type = if frame.is_confirmed { lrwn::FType::ConfirmedDataDown } else { lrwn::FType::UnconfirmedDataDown };
    let mut phy = lrwn::PhyPayload {
        mhdr: lrwn::MHDR { f_type, major: lrwn::Major::LoRaWANR1 },
        payload: lrwn::Payload::MACPayload(lrwn::MACPayload {
            fhdr: lrwn::FHDR {
                devaddr: lrwn::DevAddr::from_be_bytes(*dev_addr.as_bytes()),
                f_ctrl: lrwn::FCtrl { adr: frame.adr, ack: frame.ack, f_pending: frame.pending, ..lrwn::FCtrl::default() },
                f_cnt,
                f_opts: if frame.commands.is_empty() {
                    lrwn::MACCommandSet::new(Vec::new())
                } else {
                    lrwn::MACCommandSet::from_slice(frame.commands)
                },
            },
            f_port: frame.payload.map(|(port, _)| port),
            frm_payload: frame.payload.map(|(_, payload)| lrwn::FRMPayload::Raw(payload.to_vec())),
        }),
        mic: None,
    };
    phy.set_downlink_data_mic(lrwn::MACVersion::LoRaWAN1_0, 0, &key.aes()).ok()?;
    phy.to_vec().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_taken_once_and_below_the_reservation() {
        let mut down = DownCounters::new(0, 0);
        assert_eq!(down.take(), None);
        assert_eq!(down.want(), Some(16));
        assert_eq!(down.want(), None, "asked already");
        down.note_reserved(16);
        let taken: Vec<_> = std::iter::from_fn(|| down.take()).collect();
        assert_eq!(taken, (0..16).collect::<Vec<_>>());
        assert_eq!(down.want(), Some(32));
        down.note_reserved(8);
        assert_eq!(down.take(), None, "an old reservation gives nothing");
        let mut half = DownCounters::new(7, 16);
        assert_eq!(half.want(), None);
        assert_eq!(half.take(), Some(7));
        assert_eq!(half.want(), Some(32), "refilled at half");
        assert_eq!(DownCounters::new(u32::MAX, u32::MAX).take(), None);
    }

    #[test]
    fn whoever_was_not_told_the_counter_skips() {
        let mut unknown = DownCounters::new(3, 16);
        unknown.start();
        assert_eq!((unknown.next, unknown.skipped), (16, 13));
        let mut told = DownCounters::new(3, 16);
        told.note_from(9, CounterSource::Release);
        told.start();
        assert_eq!((told.next, told.skipped), (9, 0));
        told.stop();
        told.start();
        assert_eq!((told.next, told.skipped), (16, 7), "custody was away in between");
        let mut taken_over = DownCounters::new(3, 16);
        taken_over.note_from(32, CounterSource::Reservation);
        assert_eq!((taken_over.next, taken_over.skipped), (32, 29));
        taken_over.note_from(20, CounterSource::Release);
        assert_eq!(taken_over.next, 32, "never back");
    }

    #[test]
    fn windows_by_table() {
        let windows = ReceiveWindows::eu868();
        let lora = DataRate::Lora { spreading_factor: 7, bandwidth_khz: 125 };
        let timing = Timing { heard: BootTime(1_000), frequency_hz: Some(868_100_000), data_rate: lora, rx2_only: false };
        let at = |timing: &Timing, now| reachable(&windows, timing, Millis(100), BootTime(now));
        assert_eq!(at(&timing, 1_900), Some(Window::Rx1));
        assert_eq!(at(&timing, 1_901), Some(Window::Rx2));
        assert_eq!(at(&timing, 2_900), Some(Window::Rx2));
        assert_eq!(at(&timing, 2_901), None);
        assert_eq!(at(&Timing { rx2_only: true, ..timing }, 1_000), Some(Window::Rx2));
        assert_eq!(at(&Timing { data_rate: DataRate::Other, ..timing }, 1_000), Some(Window::Rx2));
        assert_eq!(at(&Timing { frequency_hz: None, ..timing }, 1_000), Some(Window::Rx2));
        let rx1 = slot(&windows, &timing, Window::Rx1, u32::MAX - 1);
        assert_eq!(rx1, Slot { tmst: 999_998, frequency_hz: 868_100_000, data_rate: lora });
        let rx2 = slot(&windows, &timing, Window::Rx2, 5);
        assert_eq!((rx2.tmst, rx2.frequency_hz, rx2.data_rate.to_string().as_str()), (2_000_005, 869_525_000, "SF12BW125"));
    }
}
