//! What the server told a mote by MAC commands, and what the mote answers (pure): EU868, LoRaWAN 1.0.3 chapter 5, as LMIC does it.
//!
//! `RXParamSetupAns`, `RXTimingSetupAns` and `DlChannelAns` are *sticky*: they go with every uplink until a downlink is received, because the
//! mote listens by the new parameters from then on and the server must learn it.

use crate::airtime::SpreadingFactor;
use crate::join::{Accept, frequency_hz};

/// The three default channels of EU868.
pub const CHANNELS_HZ: [u32; 3] = [868_100_000, 868_300_000, 868_500_000];
/// Frequency of the second window in EU868.
pub const RX2_FREQUENCY_HZ: u32 = 869_525_000;
/// Channels of a mote.
pub const CHANNELS_MAX: usize = 16;
/// Bytes of options in a frame.
pub const OPTIONS_BYTES_MAX: usize = 15;
/// Uplinks without any downlink after which the mote asks for one (`ADR_ACK_LIMIT`).
pub const ADR_ACK_LIMIT: u32 = 64;
/// Uplinks after that until it lowers its data rate, and between further steps (`ADR_ACK_DELAY`).
pub const ADR_ACK_DELAY: u32 = 32;
/// Frequencies that the radio can use.
const BAND_HZ: std::ops::RangeInclusive<u32> = 863_000_000..=870_000_000;
/// `LinkADRReq` value for "as it is" (1.0.4).
const KEEP: u8 = 15;
/// What `DevStatusAns` tells: battery not measured, margin in decibels.
const STATUS: [u8; 2] = [255, 10];

/// A command that the mote itself may send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// How well it is heard.
    LinkCheck,
    /// What time it is.
    DeviceTime,
}

impl Request {
    /// Identifier of the command and of its answer.
    #[must_use]
    pub fn cid(self) -> u8 {
        match self {
            Self::LinkCheck => 0x02,
            Self::DeviceTime => 0x0d,
        }
    }
}

/// A channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Channel {
    /// Uplink.
    pub frequency_hz: u32,
    /// First window; another one only after `DlChannelReq`.
    pub rx1_frequency_hz: u32,
    /// Whether the server's mask has it.
    pub is_enabled: bool,
}

/// Radio parameters of a mote and the answers that it owes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    channels: [Option<Channel>; CHANNELS_MAX],
    /// Data rate of a first attempt.
    pub data_rate: SpreadingFactor,
    /// Index of the transmit power.
    pub power: u8,
    /// Transmissions of an unconfirmed uplink.
    pub transmissions: u8,
    /// End of the uplink to the first window.
    pub rx1_delay_us: u64,
    rx1_data_rate_offset: u8,
    /// Data rate of the second window.
    pub rx2_data_rate: SpreadingFactor,
    /// Frequency of the second window.
    pub rx2_frequency_hz: u32,
    uplinks_without_downlink: u32,
    rx_param_answer: Option<u8>,
    is_timing_answered: bool,
    channel_answers: Vec<u8>,
    once: Vec<u8>,
}

fn plain_channel(frequency_hz: u32) -> Option<Channel> {
    Some(Channel { frequency_hz, rx1_frequency_hz: frequency_hz, is_enabled: true })
}

impl Link {
    /// As the mote is switched on.
    #[must_use]
    pub fn new(rx2_data_rate: SpreadingFactor) -> Self {
        let mut channels = [None; CHANNELS_MAX];
        for (channel, frequency_hz) in channels.iter_mut().zip(CHANNELS_HZ) {
            *channel = plain_channel(frequency_hz);
        }
        Self {
            channels,
            data_rate: SpreadingFactor::SF7,
            power: 0,
            transmissions: 1,
            rx1_delay_us: 1_000_000,
            rx1_data_rate_offset: 0,
            rx2_data_rate,
            rx2_frequency_hz: RX2_FREQUENCY_HZ,
            uplinks_without_downlink: 0,
            rx_param_answer: None,
            is_timing_answered: false,
            channel_answers: Vec::new(),
            once: Vec::new(),
        }
    }

    /// As an accept leaves it.
    #[must_use]
    pub fn after_join(accept: &Accept, rx2_data_rate: SpreadingFactor) -> Self {
        let mut link = Self::new(SpreadingFactor::from_data_rate(accept.rx2_data_rate).unwrap_or(rx2_data_rate));
        link.rx1_data_rate_offset = accept.rx1_data_rate_offset.min(5);
        link.rx1_delay_us = u64::from(accept.rx1_delay_s.max(1)) * 1_000_000;
        let listed = accept.channels_hz.iter().zip(&mut link.channels[CHANNELS_HZ.len()..]);
        for (frequency_hz, channel) in listed.filter(|(frequency_hz, _)| BAND_HZ.contains(frequency_hz)) {
            *channel = plain_channel(*frequency_hz);
        }
        link
    }

    /// The channels in use; never none.
    #[must_use]
    pub fn enabled(&self) -> Vec<Channel> {
        self.channels.iter().flatten().copied().filter(|channel| channel.is_enabled).collect()
    }

    /// Data rate of the first window after an uplink at `data_rate`.
    #[must_use]
    pub fn rx1_data_rate(&self, data_rate: SpreadingFactor) -> SpreadingFactor {
        let lower = data_rate.to_data_rate().saturating_sub(self.rx1_data_rate_offset);
        SpreadingFactor::from_data_rate(lower).unwrap_or(data_rate)
    }

    /// Whether the mote asks for any downlink (`ADRACKReq`).
    #[must_use]
    pub fn asks_for_downlink(&self) -> bool {
        self.uplinks_without_downlink >= ADR_ACK_LIMIT
    }

    /// A new uplink is made: takes the answers that go with it, and counts it for ADR. In the end the mote gets louder step by step.
    pub fn begin_uplink(&mut self, adr: bool) -> Vec<u8> {
        let mut options = Vec::new();
        if let Some(status) = self.rx_param_answer {
            options.extend([0x05, status]);
        }
        if self.is_timing_answered {
            options.push(0x08);
        }
        options.extend_from_slice(&self.channel_answers);
        options.append(&mut self.once);
        options.truncate(OPTIONS_BYTES_MAX);
        if adr {
            self.uplinks_without_downlink += 1;
            let beyond = self.uplinks_without_downlink.saturating_sub(ADR_ACK_LIMIT);
            if beyond > 0 && beyond.is_multiple_of(ADR_ACK_DELAY) {
                if self.power == 0 {
                    self.data_rate = self.data_rate.lower_data_rate();
                }
                self.power = 0;
            }
        }
        options
    }

    /// A downlink was received: what was sticky is known to the server.
    pub fn begin_downlink(&mut self) {
        self.uplinks_without_downlink = 0;
        self.rx_param_answer = None;
        self.is_timing_answered = false;
        self.channel_answers.clear();
    }

    /// Carries out the commands of a downlink, up to the first that it does not know. Answers with the identifiers of what was carried out,
    /// answers of the server to the mote's requests among them.
    pub fn take_commands(&mut self, mut bytes: &[u8]) -> Vec<u8> {
        let mut taken = Vec::new();
        let mut block: Vec<&[u8]> = Vec::new();
        while let Some((cid, rest)) = bytes.split_first() {
            let Some((fields, after)) = downlink_fields(*cid).and_then(|length| rest.split_at_checked(length)) else { break };
            bytes = after;
            taken.push(*cid);
            if *cid == 0x03 {
                // Requests in a row are carried out together or not at all.
                block.push(fields);
                if bytes.first() != Some(&0x03) {
                    self.set_rate(&std::mem::take(&mut block));
                }
                continue;
            }
            match *cid {
                0x05 => self.set_rx_params(fields),
                0x06 => self.once.extend([0x06, STATUS[0], STATUS[1]]),
                0x07 => self.set_channel(fields),
                0x08 => {
                    self.rx1_delay_us = u64::from((fields[0] & 0x0f).max(1)) * 1_000_000;
                    self.is_timing_answered = true;
                }
                0x0a => self.set_downlink_channel(fields),
                // DutyCycleReq: acknowledged; the mote keeps 1 % anyhow.
                0x04 => self.once.push(0x04),
                // LinkCheckAns and DeviceTimeAns.
                _ => {}
            }
        }
        taken
    }

    /// Only with a mask of known channels, a rate that it has, and a power that exists; else nothing is changed.
    fn set_rate(&mut self, block: &[&[u8]]) {
        let Some(last) = block.last() else { return };
        let mut enabled: Vec<bool> = self.channels.iter().map(|channel| channel.is_some_and(|c| c.is_enabled)).collect();
        let mut is_mask_right = true;
        for fields in block {
            let mask = u16::from_le_bytes([fields[1], fields[2]]);
            match fields[3] >> 4 & 0x07 {
                0 => (0..CHANNELS_MAX).for_each(|index| enabled[index] = mask >> index & 1 == 1),
                6 => (0..CHANNELS_MAX).for_each(|index| enabled[index] = self.channels[index].is_some()),
                _ => is_mask_right = false,
            }
        }
        is_mask_right &= enabled.iter().any(|is| *is);
        is_mask_right &= enabled.iter().zip(&self.channels).all(|(is, channel)| !is || channel.is_some());
        let (rate, power) = (last[0] >> 4, last[0] & 0x0f);
        let data_rate = if rate == KEEP { Some(self.data_rate) } else { SpreadingFactor::from_data_rate(rate) };
        let is_power_right = power <= 7 || power == KEEP;
        if let Some(data_rate) = data_rate.filter(|_| is_mask_right && is_power_right) {
            self.data_rate = data_rate;
            self.power = if power == KEEP { self.power } else { power };
            self.transmissions = (last[3] & 0x0f).max(1);
            for (channel, is_enabled) in self.channels.iter_mut().zip(enabled) {
                if let Some(channel) = channel {
                    channel.is_enabled = is_enabled;
                }
            }
        }
        let status = u8::from(is_mask_right) | u8::from(data_rate.is_some()) << 1 | u8::from(is_power_right) << 2;
        block.iter().for_each(|_| self.once.extend([0x03, status]));
    }

    fn set_rx_params(&mut self, fields: &[u8]) {
        let frequency_hz = frequency_hz(&fields[1..4]);
        let data_rate = SpreadingFactor::from_data_rate(fields[0] & 0x0f);
        let offset = fields[0] >> 4 & 0x07;
        let (is_channel, is_offset) = (BAND_HZ.contains(&frequency_hz), offset <= 5);
        if let (true, Some(data_rate), true) = (is_channel, data_rate, is_offset) {
            (self.rx2_frequency_hz, self.rx2_data_rate, self.rx1_data_rate_offset) = (frequency_hz, data_rate, offset);
        }
        self.rx_param_answer = Some(u8::from(is_channel) | u8::from(data_rate.is_some()) << 1 | u8::from(is_offset) << 2);
    }

    /// The default channels stay as they are; frequency 0 removes one.
    fn set_channel(&mut self, fields: &[u8]) {
        let (index, frequency_hz, rates) = (usize::from(fields[0]), frequency_hz(&fields[1..4]), fields[4]);
        let is_free = (CHANNELS_HZ.len()..CHANNELS_MAX).contains(&index);
        let is_frequency = is_free && (frequency_hz == 0 || BAND_HZ.contains(&frequency_hz));
        let is_range = is_free && (frequency_hz == 0 || (rates & 0x0f <= rates >> 4 && rates >> 4 <= 7));
        if is_frequency && is_range {
            self.channels[index] = if frequency_hz == 0 { None } else { plain_channel(frequency_hz) };
        }
        self.once.extend([0x07, u8::from(is_frequency) | u8::from(is_range) << 1]);
    }

    fn set_downlink_channel(&mut self, fields: &[u8]) {
        let frequency_hz = frequency_hz(&fields[1..4]);
        let is_frequency = BAND_HZ.contains(&frequency_hz);
        let channel = self.channels.get_mut(usize::from(fields[0])).and_then(Option::as_mut);
        let exists = channel.is_some();
        if let Some(channel) = channel.filter(|_| is_frequency) {
            channel.rx1_frequency_hz = frequency_hz;
        }
        self.channel_answers.extend([0x0a, u8::from(is_frequency) | u8::from(exists) << 1]);
    }
}

/// Bytes after the identifier of a command from the server; nothing for those that a 1.0.x mote does not know.
fn downlink_fields(cid: u8) -> Option<usize> {
    match cid {
        0x02 => Some(2),
        0x03 | 0x05 | 0x0a => Some(4),
        0x04 | 0x08 => Some(1),
        0x06 => Some(0),
        0x07 | 0x0d => Some(5),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn link() -> Link {
        Link::new(SpreadingFactor::SF12)
    }

    #[test]
    fn rates_are_set_together_or_not_at_all() {
        let mut link = link();
        // DR 3, power 2, channels 0 and 1, two transmissions.
        assert_eq!(link.take_commands(&[0x03, 0x32, 0x03, 0x00, 0x02]), [0x03]);
        assert_eq!((link.data_rate, link.power, link.transmissions), (SpreadingFactor::SF9, 2, 2));
        assert_eq!(link.enabled().len(), 2);
        assert_eq!(link.begin_uplink(true), [0x03, 0x07]);
        assert_eq!(link.begin_uplink(true), [0; 0], "answered once");
        // An unknown channel, and a rate that it lacks.
        let before = link.clone();
        link.take_commands(&[0x03, 0x70, 0x08, 0x00, 0x01]);
        assert_eq!(link.begin_uplink(false), [0x03, 0x04]);
        assert_eq!(link.data_rate, before.data_rate);
        // Two in a row: the last mask counts, both are answered.
        link.take_commands(&[0x03, 0xff, 0x01, 0x00, 0x01, 0x03, 0xf0, 0x07, 0x00, 0x01, 0x06]);
        assert_eq!(link.begin_uplink(false), [0x03, 0x07, 0x03, 0x07, 0x06, 255, 10]);
        assert_eq!((link.enabled().len(), link.data_rate, link.power), (3, SpreadingFactor::SF9, 0));
    }

    #[test]
    fn answers_about_windows_stick_until_a_downlink_comes() {
        let mut link = link();
        link.begin_downlink();
        // RX1 offset 1, RX2 DR 3 at 869.525 MHz; RX1 after 3 s; channel 0 answered on 869.1 MHz.
        let taken = link.take_commands(&[0x05, 0x13, 0xd2, 0xad, 0x84, 0x08, 0x03, 0x0a, 0x00, 0x38, 0x9d, 0x84]);
        assert_eq!(taken, [0x05, 0x08, 0x0a]);
        assert_eq!((link.rx2_data_rate, link.rx2_frequency_hz), (SpreadingFactor::SF9, 869_525_000));
        assert_eq!(link.rx1_delay_us, 3_000_000);
        assert_eq!(link.rx1_data_rate(SpreadingFactor::SF7).to_data_rate(), 4);
        assert_eq!(link.rx1_data_rate(SpreadingFactor::SF12).to_data_rate(), 0);
        assert_eq!(link.enabled()[0].rx1_frequency_hz, 869_100_000);
        let answers = [0x05, 0x07, 0x08, 0x0a, 0x03];
        assert_eq!(link.begin_uplink(true), answers);
        assert_eq!(link.begin_uplink(true), answers, "again, for nothing was received");
        link.begin_downlink();
        assert_eq!(link.begin_uplink(true), [0; 0]);
        link.take_commands(&[0x05, 0x7f, 1, 0, 0]);
        assert_eq!(link.begin_uplink(true), [0x05, 0x00], "refused in every respect");
        assert_eq!(link.rx2_data_rate, SpreadingFactor::SF9);
    }

    #[test]
    fn channels_come_and_go_but_the_default_ones_stay() {
        let mut link = link();
        // 867.1 MHz = 0x84_51_1c hundred hertz... steps 8,671,000.
        let steps = 8_671_000_u32.to_le_bytes();
        link.take_commands(&[0x07, 3, steps[0], steps[1], steps[2], 0x50]);
        link.take_commands(&[0x07, 0, steps[0], steps[1], steps[2], 0x50]);
        assert_eq!(link.begin_uplink(false), [0x07, 0x03, 0x07, 0x00]);
        assert_eq!(link.enabled().len(), 4);
        link.take_commands(&[0x07, 3, 0, 0, 0, 0x50]);
        assert_eq!((link.enabled().len(), link.enabled()[0].frequency_hz), (3, 868_100_000));
    }

    #[test]
    fn a_mote_that_hears_nothing_asks_and_gets_slower() {
        let mut link = link();
        link.take_commands(&[0x03, 0x55, 0x07, 0x00, 0x01]);
        for _ in 0..ADR_ACK_LIMIT {
            assert!(!link.asks_for_downlink());
            link.begin_uplink(true);
        }
        assert!(link.asks_for_downlink());
        (0..ADR_ACK_DELAY).for_each(|_| drop(link.begin_uplink(true)));
        assert_eq!((link.power, link.data_rate), (0, SpreadingFactor::SF7), "louder first");
        (0..ADR_ACK_DELAY).for_each(|_| drop(link.begin_uplink(true)));
        assert_eq!(link.data_rate.to_data_rate(), 4);
        link.begin_downlink();
        assert!(!link.asks_for_downlink());
    }

    proptest! {
        #[test]
        fn no_commands_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let mut link = link();
            link.take_commands(&bytes);
            prop_assert!(!link.enabled().is_empty());
            prop_assert!(link.begin_uplink(true).len() <= OPTIONS_BYTES_MAX);
        }
    }
}
