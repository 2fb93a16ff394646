//! Events as ChirpStack 4 publishes them over MQTT (JSON), so that what reads them goes on working:
//! `application/{application}/device/{devEui}/event/{up|join|status|txack|ack|log}`, and `.../command/down` for downlinks.
//!
//! `deduplicationId` is the event id: the same from whichever node the uplink comes, and again after a repetition. As with ChirpStack, `join`
//! is told with the first uplink of a session; a service that just started, at a node that took over for instance, tells it of sessions whose
//! first uplink (counter 0) it sees, and of later ones.

mod fates;

use std::{collections::BTreeMap, sync::Arc};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tenant::{Client, DevEui, DeviceStatus, Reception, Uplink, UplinkKind};
use tokio::sync::mpsc;

use super::{
    Broker, Heard, Message,
    downlink::{Content, Downlinks, Request, new_id, now_ms},
    feed::Sink,
};
use crate::config::{Config, DeviceSecrets, is_name};

/// Of this sink, in names of cursors and clients.
pub const NAME: &str = "chirpstack";

/// The part `chirpstack` of the configuration.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Where events go.
    pub broker: Broker,
    /// Stands in topics; the id under which ChirpStack had the application, so that readers find it.
    pub application_id: String,
    #[serde(default)]
    application_name: Option<String>,
    #[serde(default)]
    tenant_id: String,
    #[serde(default)]
    tenant_name: String,
    #[serde(default = "default_region")]
    region_config_id: String,
}

fn default_region() -> String {
    "eu868".to_owned()
}

impl Settings {
    pub(crate) fn fault(&self) -> Option<&'static str> {
        if is_name(&self.application_id) { self.broker.fault() } else { Some("application_id: not a part of a topic") }
    }
}

/// The sink.
#[derive(Debug)]
pub struct ChirpStack {
    settings: Settings,
    downlinks: Downlinks,
    /// The newest session of each device that joins, of which something was told.
    sessions: BTreeMap<DevEui, String>,
    fates: Option<mpsc::Receiver<Message>>,
}

impl ChirpStack {
    /// Publishes what it is given; queues downlinks. And what has to run beside it, on a connection of its own: it follows downlinks.
    pub fn new(
        settings: Settings,
        downlinks: Downlinks,
        client: Arc<Client>,
        config: Arc<Config>,
    ) -> (Self, impl Future<Output = ()> + Send) {
        let (fates, follow) = fates::follow(settings.clone(), client, config);
        (ChirpStack { settings, downlinks, sessions: BTreeMap::new(), fates: Some(fates) }, follow)
    }

    /// The event of a join, if this is the first that is known of its session.
    fn join(&mut self, uplink: &Uplink, info: &Value) -> Option<Message> {
        uplink.joined?;
        let known = self.sessions.get(&uplink.dev_eui);
        // A late frame may be of the session before.
        if uplink.kind == UplinkKind::Late || known == Some(&uplink.session) {
            return None;
        }
        let is_new = known.is_some() || uplink.f_cnt == 0;
        self.sessions.insert(uplink.dev_eui, uplink.session.clone());
        let event = json!({"deduplicationId": uplink.event_id, "time": rfc3339(uplink.heard_at_ms), "deviceInfo": info,
            "devAddr": uplink.dev_addr.to_string(), "regionConfigId": self.settings.region_config_id});
        is_new.then(|| Message::json(self.settings.topic(uplink.dev_eui, "join"), &event))
    }

    /// The device of a command topic.
    fn commanded(&self, topic: &str) -> Option<DevEui> {
        let rest = topic.strip_prefix("application/")?.strip_prefix(self.settings.application_id.as_str())?;
        rest.strip_prefix("/device/")?.strip_suffix("/command/down")?.parse().ok()
    }

    fn log(&self, device: DevEui, info: &Value, level: &str, code: &str, description: &str, context: &Value) -> Message {
        let event = json!({"time": rfc3339(now_ms()), "deviceInfo": info, "level": level, "code": code,
            "description": description, "context": context});
        Message::json(self.settings.topic(device, "log"), &event)
    }

    async fn queue(&self, device: DevEui, payload: &[u8]) -> Result<(), String> {
        let request = parse_command(device, payload)?;
        self.downlinks.queue(request).await.map(drop)
    }
}

impl Settings {
    fn topic(&self, device: DevEui, event: &str) -> String {
        format!("application/{}/device/{device}/event/{event}", self.application_id)
    }

    fn device_info(&self, device: DevEui, secrets: Option<&DeviceSecrets>) -> Value {
        json!({
            "tenantId": self.tenant_id,
            "tenantName": self.tenant_name,
            "applicationId": self.application_id,
            "applicationName": self.application_name.as_ref().unwrap_or(&self.application_id),
            "deviceProfileId": secrets.map_or("", |known| known.profile.as_str()),
            "deviceProfileName": secrets.map_or("", |known| known.profile.as_str()),
            "deviceName": secrets.map_or_else(|| device.to_string(), |known| known.name.clone()),
            "devEui": device.to_string(),
            "deviceClassEnabled": "CLASS_A",
            "tags": secrets.map(|known| &known.tags),
        })
    }
}

impl Sink for ChirpStack {
    fn filters(&self) -> Vec<String> {
        vec![format!("application/{}/device/+/command/down", self.settings.application_id)]
    }

    fn messages(&mut self, heard: &Heard<'_>) -> Vec<Message> {
        let Heard { uplink, device, opened } = *heard;
        let info = self.settings.device_info(uplink.dev_eui, Some(device));
        let status = status(&self.settings, uplink, &info);
        let mut messages: Vec<Message> = self.join(uplink, &info).into_iter().chain(status).collect();
        let mut event = up(&self.settings, uplink, info.clone());
        if opened.is_clear {
            event.insert("data".to_owned(), STANDARD.encode(&opened.payload).into());
        }
        if !opened.decoded.values.is_empty() && opened.decoded.error.is_none() {
            event.insert("object".to_owned(), Value::Object(opened.decoded.values.clone()));
        }
        messages.push(Message::json(self.settings.topic(uplink.dev_eui, "up"), &Value::Object(event)));
        let context = json!({"deduplication_id": uplink.event_id});
        let warnings = opened.decoded.warnings.iter().map(|text| ("WARNING", text));
        for (level, text) in opened.decoded.error.iter().map(|text| ("ERROR", text)).chain(warnings) {
            messages.push(self.log(uplink.dev_eui, &info, level, "UPLINK_CODEC", text, &context));
        }
        messages
    }

    async fn incoming(&mut self, topic: &str, payload: &[u8]) -> Vec<Message> {
        let Some(device) = self.commanded(topic) else { return Vec::new() };
        match self.queue(device, payload).await {
            Ok(()) => Vec::new(),
            Err(reason) => {
                let info = self.settings.device_info(device, None);
                vec![self.log(device, &info, "ERROR", "DOWNLINK_CODEC", &reason, &json!({}))]
            }
        }
    }

    fn others(&mut self) -> Option<mpsc::Receiver<Message>> {
        self.fates.take()
    }
}

/// An uplink event without what its payload says.
fn up(settings: &Settings, uplink: &Uplink, info: Value) -> Map<String, Value> {
    let event = json!({
        "deduplicationId": uplink.event_id,
        "time": rfc3339(uplink.heard_at_ms),
        "deviceInfo": info,
        "devAddr": uplink.dev_addr.to_string(),
        "dr": data_rate(&uplink.rx.data_rate).map(|rate| rate.index),
        "fCnt": uplink.f_cnt,
        "fPort": uplink.f_port.unwrap_or(0),
        "confirmed": uplink.confirmed,
        "rxInfo": std::iter::once(&uplink.rx).chain(&uplink.others).map(|rx| rx_info(uplink, rx)).collect::<Vec<_>>(),
        "txInfo": tx_info(&uplink.rx),
        "regionConfigId": settings.region_config_id,
    });
    match event {
        Value::Object(fields) => fields,
        _ => Map::new(),
    }
}

/// The event of what the device told of itself, if it did.
fn status(settings: &Settings, uplink: &Uplink, info: &Value) -> Option<Message> {
    let DeviceStatus { battery, margin_db } = uplink.status?;
    let (is_external, is_unknown) = (battery == 0, battery == u8::MAX);
    // Per cent of 254 steps, in hundredths.
    let level = if is_unknown { 0.0 } else { (f64::from(battery) * 10_000.0 / 254.0).round() / 100.0 };
    let event = json!({"deduplicationId": uplink.event_id, "time": rfc3339(uplink.heard_at_ms), "deviceInfo": info, "margin": margin_db,
        "externalPowerSource": is_external, "batteryLevelUnavailable": is_unknown, "batteryLevel": level});
    Some(Message::json(settings.topic(uplink.dev_eui, "status"), &event))
}

fn rx_info(uplink: &Uplink, rx: &Reception) -> Value {
    // Its number is only told apart from others of the same gateway: the event id gives one that both nodes agree on.
    let [a, b, c, d, ..] = uplink.event_id.0;
    json!({
        "gatewayId": rx.gateway,
        "uplinkId": u32::from_be_bytes([a, b, c, d]),
        "nsTime": rfc3339(uplink.heard_at_ms),
        "rssi": rx.rssi_dbm,
        "snr": f64::from(rx.snr_tenths_db) / 10.0,
        "crcStatus": "CRC_OK",
    })
}

fn tx_info(rx: &Reception) -> Value {
    let modulation = data_rate(&rx.data_rate).map(
        |rate| json!({"lora": {"bandwidth": rate.bandwidth_hz, "spreadingFactor": rate.spreading_factor, "codeRate": "CR_4_5"}}),
    );
    json!({"frequency": rx.frequency_hz, "modulation": modulation})
}

struct DataRate {
    index: u8,
    spreading_factor: u8,
    bandwidth_hz: u32,
}

/// `SF7BW125` and its index in EU868 (LoRaWAN Regional Parameters, 2.4.3).
fn data_rate(text: &str) -> Option<DataRate> {
    let (spreading_factor, bandwidth) = text.strip_prefix("SF")?.split_once("BW")?;
    let (spreading_factor, bandwidth): (u8, u32) = (spreading_factor.parse().ok()?, bandwidth.parse().ok()?);
    let index = match (spreading_factor, bandwidth) {
        (7..=12, 125) => 12 - spreading_factor,
        (7, 250) => 6,
        _ => return None,
    };
    Some(DataRate { index, spreading_factor, bandwidth_hz: bandwidth * 1_000 })
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Command {
    dev_eui: Option<DevEui>,
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    confirmed: bool,
    #[serde(default)]
    f_port: Option<u8>,
    #[serde(default)]
    data: Option<String>,
    #[serde(default)]
    object: Option<Map<String, Value>>,
    #[serde(default)]
    is_encrypted: bool,
}

/// What `command/down` asks for.
fn parse_command(device: DevEui, payload: &[u8]) -> Result<Request, String> {
    let command: Command = serde_json::from_slice(payload).map_err(|error| error.to_string())?;
    if command.dev_eui.is_some_and(|named| named != device) {
        return Err("devEui is another one than in the topic".to_owned());
    }
    if command.is_encrypted {
        return Err("isEncrypted: this service encrypts".to_owned());
    }
    let content = match (command.object, command.data) {
        (Some(object), _) => Content::Values(object),
        (None, Some(data)) => Content::Bytes(STANDARD.decode(data).map_err(|error| format!("data: {error}"))?),
        (None, None) => Content::Bytes(Vec::new()),
    };
    let id = command.id.unwrap_or_else(new_id);
    let (f_port, confirmed) = (command.f_port, command.confirmed);
    Ok(Request { id, device, f_port, content, confirmed, expires_at_ms: None })
}

/// `2026-11-21T05:00:00.123Z` of milliseconds since 1970 (days to civil date after Hinnant, "chrono-compatible low-level date algorithms").
pub(crate) fn rfc3339(ms: u64) -> String {
    let (days, in_day) = (ms / 86_400_000, ms % 86_400_000);
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second, milli) = (in_day / 3_600_000, in_day / 60_000 % 60, in_day / 1_000 % 60, in_day % 1_000);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{milli:03}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_others_write_them() {
        // From `date -u -d @... --iso-8601=seconds`.
        let table = [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (1_700_000_000_123, "2023-11-14T22:13:20.123Z"),
            (4_107_542_399_999, "2100-02-28T23:59:59.999Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
        ];
        for (ms, text) in table {
            assert_eq!(rfc3339(ms), text);
        }
    }

    #[test]
    fn commands_are_what_chirpstack_takes() {
        let device = DevEui([1; 8]);
        let data = br#"{"devEui":"0101010101010101","confirmed":true,"fPort":10,"data":"AQID"}"#;
        let request = parse_command(device, data).expect("valid");
        assert_eq!((request.f_port, request.confirmed, &request.content), (Some(10), true, &Content::Bytes(vec![1, 2, 3])));
        assert_ne!(parse_command(device, data).expect("valid").id, request.id, "the same command again is another downlink");
        let object = parse_command(device, br#"{"fPort":2,"object":{"interval":60},"id":"mine"}"#).expect("valid");
        assert!(object.id == "mine" && matches!(object.content, Content::Values(_)));
        for bad in [&br#"{"devEui":"0101010101010102"}"#[..], br#"{"data":"%"}"#, b"[", br#"{"isEncrypted":true}"#] {
            assert!(parse_command(device, bad).is_err(), "{}", String::from_utf8_lossy(bad));
        }
    }
}
