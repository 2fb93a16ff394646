//! Requests and answers, and the limits that the node checks with the functions named `check`.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{DEVICES_MAX, DevAddr, DevEui, EventId, HexBytes, Joined, Key, READING_BYTES_MAX, READINGS_MAX, STATE_KEY_BYTES_MAX};

/// A well-formed request that passes a limit or contradicts itself.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct Refused {
    /// Which part of the request, as `devices[3].rx1_delay_s`.
    pub field: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

/// Body of `PUT /v1/devices`: all devices that this tenant serves.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Registration {
    /// At most [`DEVICES_MAX`], each DevEUI once.
    pub devices: Vec<Device>,
    /// Devices that join over the air; at most [`DEVICES_MAX`] together with the others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub joining: Vec<JoiningDevice>,
}

/// What the network should make of a device's radio by MAC commands. What is absent stays as the device has it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Desired {
    /// Delay of the first receive window in seconds, 1..=15.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rx1_delay_s: Option<u8>,
    /// Steps by which the first window is slower than the uplink, 0..=5.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rx1_data_rate_offset: Option<u8>,
    /// Data rate index of the second receive window, 0..=7.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rx2_data_rate: Option<u8>,
    /// Frequency of the second receive window in Hz.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rx2_frequency_hz: Option<u32>,
    /// Channels to be added, or whose first window is to be elsewhere; at most 16, each index once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub channels: Vec<DesiredChannel>,
    /// From one question for battery and margin to the next in seconds, 60..=2,592,000; never, if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status_interval_s: Option<u32>,
}

/// A channel that a device should have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DesiredChannel {
    /// 0..=15. The region's default channels stay as they are; only their first window can be moved.
    pub index: u8,
    /// Of the uplink, in Hz.
    pub frequency_hz: u32,
    /// Data rate indices, 0..=7.
    #[serde(default)]
    pub data_rate_min: u8,
    /// See there.
    #[serde(default = "default_data_rate_max")]
    pub data_rate_max: u8,
    /// Of the first window, in Hz, if it is not the uplink's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub downlink_frequency_hz: Option<u32>,
}

fn default_data_rate_max() -> u8 {
    5
}

/// What MAC commands can name, in Hz: 24 bits of 100 Hz.
const FREQUENCIES_HZ: std::ops::RangeInclusive<u32> = 100_000_000..=1_677_721_500;

impl Desired {
    fn check(&self) -> Result<(), (&'static str, &'static str)> {
        let is_frequency = |hz: Option<u32>| hz.is_none_or(|hz| FREQUENCIES_HZ.contains(&hz) && hz.is_multiple_of(100));
        if self.rx1_delay_s.is_some_and(|delay| !(1..=15).contains(&delay)) {
            return Err(("rx1_delay_s", "not in 1..=15"));
        }
        if self.rx1_data_rate_offset.is_some_and(|offset| offset > 5) {
            return Err(("rx1_data_rate_offset", "not in 0..=5"));
        }
        if self.rx2_data_rate.is_some_and(|rate| rate > 7) {
            return Err(("rx2_data_rate", "not in 0..=7"));
        }
        if !is_frequency(self.rx2_frequency_hz) {
            return Err(("rx2_frequency_hz", "not a multiple of 100 Hz in 100..=1677.7215 MHz"));
        }
        if self.status_interval_s.is_some_and(|seconds| !(60..=2_592_000).contains(&seconds)) {
            return Err(("status_interval_s", "not in 60..=2592000"));
        }
        let mut seen = std::collections::BTreeSet::new();
        for channel in &self.channels {
            let is_form = channel.index <= 15 && channel.data_rate_min <= channel.data_rate_max && channel.data_rate_max <= 7;
            if !is_form || !is_frequency(Some(channel.frequency_hz)) || !is_frequency(channel.downlink_frequency_hz) {
                return Err(("channels", "an index above 15, a data rate outside of 0..=7, or no frequency"));
            }
            if !seen.insert(channel.index) {
                return Err(("channels", "an index twice"));
            }
        }
        Ok(())
    }
}

/// How a device chooses its DevNonce.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DevNonces {
    /// At random (LoRaWAN 1.0 to 1.0.3): none of the remembered ones may come again.
    #[default]
    Random,
    /// Rising (LoRaWAN 1.0.4).
    Rising,
}

/// A device activated over the air (LoRaWAN 1.0.x): its session comes from its join.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JoiningDevice {
    /// Its identity.
    pub dev_eui: DevEui,
    /// JoinEUI (AppEUI in LoRaWAN 1.0) that it sends.
    pub join_eui: DevEui,
    /// The address that it is given at every join.
    pub dev_addr: DevAddr,
    /// Root key. In the configuration that a node in standby may open it is absent; whoever serves needs it to answer a join.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app_key: Option<Key>,
    /// How it chooses its DevNonce.
    #[serde(default)]
    pub dev_nonces: DevNonces,
    /// Delay of the first receive window that it is told, in seconds, 1..=15. Default 1.
    #[serde(default = "default_rx1_delay_s")]
    pub rx1_delay_s: u8,
    /// Data rate index of the second receive window that it is told, 0..=7; the region's default if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rx2_data_rate: Option<u8>,
    /// What the network should change once it has joined.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub desired: Option<Desired>,
}

/// A device activated by personalisation, with what the node needs to serve its radio side. The application key is not part of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Device {
    /// Its identity.
    pub dev_eui: DevEui,
    /// Its address; several devices may share one.
    pub dev_addr: DevAddr,
    /// Network session key: checks and makes the integrity codes of frames.
    pub nwk_s_key: Key,
    /// Width of its frame counters in bits: 32 (of which 16 are sent), the default. A device that counts in 16 bits would be refused for ever
    /// after 65,535 frames, so it is refused at once.
    #[serde(default = "default_f_cnt_width")]
    pub f_cnt_width: u8,
    /// Delay of the first receive window after an uplink in seconds, 1..=15. Default 1.
    #[serde(default = "default_rx1_delay_s")]
    pub rx1_delay_s: u8,
    /// Data rate index of the second receive window, 0..=7; the region's default if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rx2_data_rate: Option<u8>,
    /// Frequency of the second receive window in Hz; the region's default if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rx2_frequency_hz: Option<u32>,
    /// Whether it may start its counters at 0 again (an ABP device that keeps them in RAM). Default false.
    #[serde(default)]
    pub supports_reset: bool,
    /// How far its frame counter may be ahead of the expected one; LoRaWAN's 16,384 if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub f_cnt_gap_max: Option<u16>,
    /// What the network should change; the fields above say how the device is switched on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub desired: Option<Desired>,
}

fn default_f_cnt_width() -> u8 {
    32
}

fn default_rx1_delay_s() -> u8 {
    1
}

impl Registration {
    /// Checks limits and ranges.
    ///
    /// # Errors
    /// The first field that is out of range.
    pub fn check(&self) -> Result<(), Refused> {
        if self.devices.len() + self.joining.len() > DEVICES_MAX {
            return Err(Refused { field: "devices".to_owned(), reason: "too many devices" });
        }
        let mut seen = std::collections::BTreeSet::new();
        for (index, device) in self.devices.iter().enumerate() {
            let refused = |field: &str, reason| Err(Refused { field: format!("devices[{index}].{field}"), reason });
            if !seen.insert(device.dev_eui) {
                return refused("dev_eui", "the same device twice");
            }
            if device.f_cnt_width != 32 {
                return refused("f_cnt_width", "not 32: devices that count in 16 bits are not served");
            }
            if !(1..=15).contains(&device.rx1_delay_s) {
                return refused("rx1_delay_s", "not in 1..=15");
            }
            if device.rx2_data_rate.is_some_and(|rate| rate > 7) {
                return refused("rx2_data_rate", "not in 0..=7");
            }
            if let Err((field, reason)) = device.desired.as_ref().map_or(Ok(()), Desired::check) {
                return refused(&format!("desired.{field}"), reason);
            }
        }
        for (index, device) in self.joining.iter().enumerate() {
            let refused = |field: &str, reason| Err(Refused { field: format!("joining[{index}].{field}"), reason });
            if !seen.insert(device.dev_eui) {
                return refused("dev_eui", "the same device twice");
            }
            if !(1..=15).contains(&device.rx1_delay_s) {
                return refused("rx1_delay_s", "not in 1..=15");
            }
            if device.rx2_data_rate.is_some_and(|rate| rate > 7) {
                return refused("rx2_data_rate", "not in 0..=7");
            }
            if let Err((field, reason)) = device.desired.as_ref().map_or(Ok(()), Desired::check) {
                return refused(&format!("desired.{field}"), reason);
            }
        }
        Ok(())
    }
}

/// Answer to `PUT /v1/devices`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registered {
    /// Devices that are served now.
    pub registered: usize,
}

/// How an uplink reached the tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UplinkKind {
    /// As it was heard.
    Live,
    /// Below the newest counter of its session, as when another node heard it.
    Late,
    /// From the buffer of frames heard for somebody else, after a takeover.
    Replayed,
}

/// A line of `GET /v1/uplinks`: a frame whose integrity code the node has checked. Unknown fields are ignored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Uplink {
    /// Position in the stream, rising.
    pub cursor: u64,
    /// The same wherever the frame is heard, and different for every other frame.
    pub event_id: EventId,
    /// Which device sent it.
    pub dev_eui: DevEui,
    /// The address it used.
    pub dev_addr: DevAddr,
    /// Session of the device, opaque.
    pub session: String,
    /// Where the session's keys come from; absent for a session by personalisation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub joined: Option<Joined>,
    /// Frame counter, all 32 bits.
    pub f_cnt: u32,
    /// Port; absent if the frame carries no payload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub f_port: Option<u8>,
    /// Whether the device asked for an acknowledgement (the node answers, not the tenant).
    pub confirmed: bool,
    /// Payload as sent: encrypted with the application key.
    pub frm_payload: HexBytes,
    /// When the first gateway heard it, in milliseconds since 1970.
    pub heard_at_ms: u64,
    /// How it came here.
    pub kind: UplinkKind,
    /// Custody epoch under which it was taken.
    pub epoch: u64,
    /// How it was heard best.
    pub rx: Reception,
    /// How other gateways heard it whose copies came in time, at most [`OTHERS_MAX`](crate::OTHERS_MAX).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub others: Vec<Reception>,
    /// What the device told of itself with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<DeviceStatus>,
}

/// Battery and margin as a device tells them when the network asks (`DevStatusAns`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceStatus {
    /// 0: external power; 1 (empty) to 254 (full); 255: not known.
    pub battery: u8,
    /// Signal to noise ratio of the last request that it received, in dB, -32..=31.
    pub margin_db: i8,
}

/// Radio side of an uplink.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reception {
    /// EUI of the gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<String>,
    /// Frequency in Hz.
    pub frequency_hz: u32,
    /// As `SF7BW125`.
    pub data_rate: String,
    /// Signal strength in dBm.
    pub rssi_dbm: i16,
    /// Signal to noise ratio in tenths of a dB.
    pub snr_tenths_db: i16,
}

/// Body of `POST /v1/readings`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReadingBatch {
    /// At most [`READINGS_MAX`].
    pub readings: Vec<Reading>,
}

/// What an uplink says. There is exactly one for every uplink, also for those that make no sense.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reading {
    /// The uplink's.
    pub event_id: EventId,
    /// The uplink's.
    pub dev_eui: DevEui,
    /// The uplink's.
    pub f_cnt: u32,
    /// Values by name. At most [`READING_BYTES_MAX`] bytes together with the rest.
    pub decoded: Map<String, Value>,
    /// The uplink's.
    pub heard_at_ms: u64,
    /// Why the payload, or the rest of it, could not be decoded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl ReadingBatch {
    /// Checks limits.
    ///
    /// # Errors
    /// The first field that is out of range.
    pub fn check(&self) -> Result<(), Refused> {
        if self.readings.len() > READINGS_MAX {
            return Err(Refused { field: "readings".to_owned(), reason: "too many readings" });
        }
        for (index, reading) in self.readings.iter().enumerate() {
            if !fits(reading) {
                return Err(Refused { field: format!("readings[{index}]"), reason: "too large" });
            }
        }
        Ok(())
    }
}

/// Whether a reading is at most [`READING_BYTES_MAX`] long.
fn fits(reading: &Reading) -> bool {
    /// So much room, and nothing is kept.
    struct Room(usize);

    impl std::io::Write for Room {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0 = self.0.checked_sub(bytes.len()).ok_or(std::io::ErrorKind::FileTooLarge)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    serde_json::to_writer(Room(READING_BYTES_MAX), reading).is_ok()
}

/// Answer to `POST /v1/readings`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    /// Readings of the batch that are on the node's disk: all of them.
    pub accepted: usize,
}

/// Answer to `GET /v1/healthz`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// Whether the node serves this tenant now.
    pub ready: bool,
}

/// Checks a key of the small values: 1..=64 of `a-z 0-9 . _ -`, not beginning with a dot.
///
/// # Errors
/// Says what is wrong.
pub fn check_state_key(key: &str) -> Result<(), Refused> {
    let refused = |reason| Err(Refused { field: "key".to_owned(), reason });
    if key.is_empty() || key.len() > STATE_KEY_BYTES_MAX {
        return refused("empty or too long");
    }
    if !key.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-')) || key.starts_with('.') {
        return refused("not of a-z 0-9 . _ -, or a dot at the beginning");
    }
    Ok(())
}

/// An error as the node words it (RFC 9457).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// A URI that names the kind of problem, stable.
    #[serde(rename = "type", default)]
    pub kind: String,
    /// The kind in words.
    #[serde(default)]
    pub title: String,
    /// HTTP status.
    #[serde(default)]
    pub status: u16,
    /// This occurrence in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{} {}", self.status, if self.title.is_empty() { "(no problem document)" } else { &self.title })?;
        self.detail.as_ref().map_or(Ok(()), |detail| write!(formatter, ": {detail}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_bridge_would_not_do_is_refused_by_name() {
        let abp = r#""dev_eui":"0102030405060708","dev_addr":"26011bda","nwk_s_key":"000102030405060708090a0b0c0d0e0f""#;
        let joins = r#""dev_eui":"0102030405060709","join_eui":"70b3d57ed0000001","dev_addr":"26011bdb""#;
        for (device, joining, refused) in [
            ("", "", None),
            (r#","rx2_data_rate":7,"f_cnt_width":32"#, r#","rx2_data_rate":0"#, None),
            (r#","rx2_data_rate":8"#, "", Some("devices[0].rx2_data_rate: not in 0..=7")),
            ("", r#","rx2_data_rate":15"#, Some("joining[0].rx2_data_rate: not in 0..=7")),
            (r#","f_cnt_width":16"#, "", Some("devices[0].f_cnt_width: not 32: devices that count in 16 bits are not served")),
        ] {
            let json = format!(r#"{{"devices":[{{{abp}{device}}}],"joining":[{{{joins}{joining}}}]}}"#);
            let registration: Registration = serde_json::from_str(&json).expect("well-formed");
            assert_eq!(registration.check().err().map(|error| error.to_string()).as_deref(), refused, "{json}");
        }
    }
}
