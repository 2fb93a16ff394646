//! The routes of the tenant socket.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::rejection::{BytesRejection, JsonRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router, routing};
use contracts::digits;
use contracts::ids::{DevAddr, DevEui, EventId};
use contracts::time::{Millis, WallTime};
use kit::input::Bulk;
use kit::problem::Problem;
use lora_bridge::gwmp::data_rate::DataRate;
use lora_bridge::mac::join::{AppKey, JoiningDevice, NonceRule};
use lora_bridge::mac::link::{Channel, Wish, WishedChannel};
use lora_bridge::mac::queue;
use lora_bridge::mac::session::{Joined, NwkSKey, ReceiveWindows, Session};
use lora_bridge::mac::uplink::{F_CNT_GAP_MAX, told_status};
use serde::Deserialize;
use tokio::sync::watch;

use super::Tenant;
use crate::readings::pace::Pace;
use crate::readings::{Decoded, Kind, Reception, StoredUplink};

/// Uplinks in one chunk of the stream.
const PAGE: u32 = 256;
/// About how long a line is.
const LINE_BYTES: usize = 512;
/// An idle stream gets a blank line so often.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// Longest wait until an owed downlink is on disk, and then until the other party was told.
const OWED_MAX: Duration = Duration::from_secs(5);
const TELL_MAX: Duration = Duration::from_secs(1);

type Context = State<Arc<Tenant>>;

/// All routes of one tenant.
pub fn router(tenant: Arc<Tenant>) -> Router {
    Router::new()
        .route(tenant::CONFIG, routing::get(get_configuration))
        .route(tenant::DEVICES, routing::put(register).layer(DefaultBodyLimit::max(tenant::DEVICES_BODY_BYTES_MAX)))
        .route(tenant::UPLINKS, routing::get(follow))
        .route(tenant::READINGS, routing::post(publish).layer(DefaultBodyLimit::max(tenant::READINGS_BODY_BYTES_MAX)))
        .route(
            tenant::DOWNLINKS,
            routing::post(queue_downlink)
                .put(take_encrypted)
                .get(downlink_events)
                .layer(DefaultBodyLimit::max(tenant::ENCRYPTED_BODY_BYTES_MAX)),
        )
        .route(
            &format!("{}/{{key}}", tenant::STATE),
            routing::get(get_state).put(put_state).layer(DefaultBodyLimit::max(tenant::STATE_VALUE_BYTES_MAX)),
        )
        .route(tenant::HEALTH, routing::get(health))
        .fallback(|| async { Problem::not_found("no such path on the tenant socket") })
        .with_state(tenant)
}

async fn get_configuration(State(tenant): Context) -> Result<Response, Problem> {
    let configuration = tenant.configuration().ok_or_else(|| Problem::unavailable("this node does not serve the tenant now"))?;
    tenant.connected.send_modify(|count| *count += 1);
    Ok(([(header::CONTENT_TYPE, "application/json")], configuration).into_response())
}

async fn register(
    State(tenant): Context,
    body: Result<Json<tenant::Registration>, JsonRejection>,
) -> Result<Json<tenant::Registered>, Problem> {
    let Json(registration) = body?;
    registration.check().map_err(|e| Problem::invalid(&e.field, e.reason))?;
    if let Some(foreign) = devices(&registration).find(|device| !tenant.devices.contains(device)) {
        return Err(Problem::forbidden(format_args!("device {foreign} is not one of this tenant's")));
    }
    let (sessions, joining) = (sessions(&registration), joining(&registration.joining));
    let registered = sessions.len() + joining.len();
    let bridge = tenant.bridge.as_ref().ok_or_else(|| Problem::unavailable("this node has no LoRa bridge"))?;
    let stopped = |_| Problem::unavailable("the bridge has stopped");
    bridge.register(tenant.group, sessions).await.map_err(stopped)?;
    bridge.register_joining(tenant.group, joining).await.map_err(stopped)?;
    Ok(Json(tenant::Registered { registered }))
}

/// All devices of a registration.
pub fn devices(registration: &tenant::Registration) -> impl Iterator<Item = DevEui> + '_ {
    let sessions = registration.devices.iter().map(|device| device.dev_eui);
    sessions.chain(registration.joining.iter().map(|device| device.dev_eui)).map(|eui| DevEui::from_bytes(eui.0))
}

/// Devices that join over the air, as the bridge wants them.
#[must_use]
pub fn joining(devices: &[tenant::JoiningDevice]) -> Vec<JoiningDevice> {
    let device = |device: &tenant::JoiningDevice| {
        let mut receive_windows = ReceiveWindows::eu868();
        receive_windows.rx1_delay_seconds = device.rx1_delay_s;
        if let Some(rate) = device.rx2_data_rate.and_then(DataRate::eu868) {
            receive_windows.rx2_data_rate = rate;
        }
        JoiningDevice {
            device: DevEui::from_bytes(device.dev_eui.0),
            join_eui: DevEui::from_bytes(device.join_eui.0),
            dev_addr: DevAddr::from_bytes(device.dev_addr.0),
            app_key: device.app_key.as_ref().map(|key| AppKey::from_bytes(key.0)),
            nonce_rule: match device.dev_nonces {
                tenant::DevNonces::Random => NonceRule::Random,
                tenant::DevNonces::Rising => NonceRule::Rising,
            },
            receive_windows,
            wish: wish(device.desired.as_ref()),
        }
    };
    devices.iter().map(device).collect()
}

/// What the network should change, as the bridge wants it.
fn wish(desired: Option<&tenant::Desired>) -> Wish {
    let Some(desired) = desired else { return Wish::default() };
    let channel = |channel: &tenant::DesiredChannel| WishedChannel {
        index: channel.index,
        channel: Channel {
            frequency_hz: channel.frequency_hz,
            data_rate_min: channel.data_rate_min,
            data_rate_max: channel.data_rate_max,
            downlink_hz: channel.downlink_frequency_hz,
        },
    };
    Wish {
        rx1_delay_seconds: desired.rx1_delay_s,
        rx1_data_rate_offset: desired.rx1_data_rate_offset,
        rx2_data_rate: desired.rx2_data_rate.and_then(DataRate::eu868),
        rx2_frequency_hz: desired.rx2_frequency_hz,
        channels: desired.channels.iter().map(channel).collect(),
        status_interval: desired.status_interval_s.map(|seconds| Millis::from_secs(u64::from(seconds))),
    }
}

/// The radio side of devices as the bridge wants it.
#[must_use]
pub fn sessions(registration: &tenant::Registration) -> Vec<Session> {
    let session = |device: &tenant::Device| {
        let key = NwkSKey::from_bytes(device.nwk_s_key.0);
        let mut session = Session::new(DevEui::from_bytes(device.dev_eui.0), DevAddr::from_bytes(device.dev_addr.0), key);
        session.receive_windows.rx1_delay_seconds = device.rx1_delay_s;
        if let Some(hz) = device.rx2_frequency_hz {
            session.receive_windows.rx2_frequency_hz = hz;
        }
        if let Some(rate) = device.rx2_data_rate.and_then(DataRate::eu868) {
            session.receive_windows.rx2_data_rate = rate;
        }
        session.wish = wish(device.desired.as_ref());
        session.uplink_rules.may_reset = device.supports_reset;
        session.uplink_rules.f_cnt_gap_max = device.f_cnt_gap_max.unwrap_or(F_CNT_GAP_MAX);
        session
    };
    registration.devices.iter().map(session).collect()
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct After {
    after: Option<u64>,
}

struct Stream {
    tenant: Arc<Tenant>,
    after: u64,
    /// Also uplinks that have a reading.
    all: bool,
    changed: watch::Receiver<u64>,
    pace: Pace,
}

async fn follow(State(tenant): Context, query: Result<Query<After>, QueryRejection>) -> Result<Response, Problem> {
    let Query(After { after }) = query?;
    let changed = tenant.log.uplinks_changed(tenant.group);
    let stream = Stream { tenant, after: after.unwrap_or(0), all: after.is_some(), changed, pace: Pace::default() };
    let body = Body::from_stream(futures_util::stream::unfold(stream, |mut stream| async move {
        let lines = next_lines(&mut stream).await?;
        Some((Ok::<_, Infallible>(lines), stream))
    }));
    Ok(([(header::CONTENT_TYPE, tenant::NDJSON)], body).into_response())
}

/// The next uplinks as lines, or a blank line if there is none for a while. `None` ends the stream.
async fn next_lines(stream: &mut Stream) -> Option<Bytes> {
    loop {
        stream.pace.turn().await;
        stream.changed.borrow_and_update();
        let (store, group) = (stream.tenant.log.store(), stream.tenant.group);
        let page = if stream.all {
            store.list_delivered(group, stream.after, PAGE).await
        } else {
            store.list_undecoded(group, stream.after, PAGE).await
        };
        let page = match page {
            Ok(page) => page,
            Err(error) => {
                tracing::error!(error = &error as &dyn std::error::Error, "uplinks cannot be read");
                return None;
            }
        };
        if let Some(last) = page.last() {
            stream.after = last.seq;
            let mut lines = Vec::with_capacity(LINE_BYTES * page.len());
            page.iter().for_each(|stored| write_line(stored, &mut lines));
            return Some(lines.into());
        }
        stream.pace.found_nothing();
        match tokio::time::timeout(KEEP_ALIVE, stream.changed.changed()).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return None,
            Err(_) => return Some(Bytes::from_static(b"\n")),
        }
    }
}

/// One line more, unless the row holds no frame.
fn write_line(stored: &StoredUplink, lines: &mut Vec<u8>) {
    let end = lines.len();
    if line(stored).is_some_and(|line| serde_json::to_writer(&mut *lines, &line).is_ok()) {
        lines.push(b'\n');
    } else {
        lines.truncate(end);
    }
}

fn line(stored: &StoredUplink) -> Option<tenant::Uplink> {
    let uplink = &stored.uplink;
    Some(tenant::Uplink {
        cursor: stored.seq,
        event_id: tenant::EventId(*uplink.event.as_uuid().as_bytes()),
        dev_eui: tenant::DevEui(*uplink.device.as_bytes()),
        dev_addr: tenant::DevAddr(*uplink.dev_addr.as_bytes()),
        session: uplink.session.to_string(),
        joined: uplink.joined.map(told),
        f_cnt: uplink.f_cnt,
        f_port: uplink.f_port,
        confirmed: uplink.confirmed,
        frm_payload: tenant::HexBytes(digits::bytes(&uplink.frm_payload)?),
        heard_at_ms: uplink.heard_at.0,
        kind: match uplink.kind {
            Kind::Live => tenant::UplinkKind::Live,
            Kind::Late => tenant::UplinkKind::Late,
            Kind::Replayed => tenant::UplinkKind::Replayed,
        },
        epoch: uplink.epoch.0,
        rx: reception(&uplink.rx),
        others: uplink.others.iter().take(tenant::OTHERS_MAX).map(reception).collect(),
        status: digits::bytes(&uplink.phy).and_then(|phy| told_status(&phy)).map(device_status),
    })
}

fn reception(reception: &Reception) -> tenant::Reception {
    tenant::Reception {
        gateway: Some(reception.gateway.clone()),
        frequency_hz: reception.frequency_hz,
        data_rate: reception.data_rate.clone(),
        rssi_dbm: reception.rssi_dbm,
        snr_tenths_db: reception.snr_tenth_db,
    }
}

const fn device_status((battery, margin_db): (u8, i8)) -> tenant::DeviceStatus {
    tenant::DeviceStatus { battery, margin_db }
}

/// As tenants are told.
pub(crate) const fn told(joined: Joined) -> tenant::Joined {
    tenant::Joined { join_nonce: joined.join_nonce, net_id: joined.net_id, dev_nonce: joined.dev_nonce }
}

async fn publish(
    State(tenant): Context,
    body: Result<Bulk<tenant::ReadingBatch>, JsonRejection>,
) -> Result<Json<tenant::Accepted>, Problem> {
    let Bulk(batch) = body?;
    batch.check().map_err(|e| Problem::invalid(&e.field, e.reason))?;
    let accepted = batch.readings.len();
    let decoded =
        batch.readings.into_iter().map(decoded).collect::<Result<_, _>>().map_err(|e| Problem::invalid("readings", e))?;
    tenant.log.publish(tenant.group, decoded).await.map_err(Problem::unavailable)?;
    Ok(Json(tenant::Accepted { accepted }))
}

/// What goes on: the decoded values, and the reason if some could not be decoded.
fn decoded(reading: tenant::Reading) -> Result<Decoded, serde_json::Error> {
    let mut values = reading.decoded;
    if let Some(error) = reading.error {
        values.insert("error".to_owned(), error.into());
    }
    let event = EventId::from_uuid(uuid::Uuid::from_bytes(reading.event_id.0));
    Ok(Decoded { event, decoded: serde_json::to_string(&values)? })
}

async fn queue_downlink(
    State(tenant): Context,
    body: Result<Json<tenant::Downlink>, JsonRejection>,
) -> Result<Json<tenant::Queued>, Problem> {
    let Json(downlink) = body?;
    downlink.check().map_err(|e| Problem::invalid(&e.field, e.reason))?;
    let device = DevEui::from_bytes(downlink.dev_eui.0);
    if !tenant.devices.contains(&device) {
        return Err(Problem::forbidden(format_args!("device {device} is not one of this tenant's")));
    }
    let bridge = tenant.bridge.as_ref().ok_or_else(|| Problem::unavailable("this node has no LoRa bridge"))?;
    let is_owed = downlink.delivery == tenant::Delivery::AtLeastOnce;
    let id = downlink.id.clone();
    let mut stored = tenant.links.downlinks().stored(tenant.group);
    let queued = bridge.queue_downlink(tenant.group, device, waiting(downlink)).await;
    queued.map_err(|_| Problem::unavailable("the bridge has stopped"))?.map_err(refused)?;
    if is_owed {
        let on_disk = async {
            while !tenant.links.downlinks().knows(tenant.group, device, &id) {
                stored.changed().await?;
            }
            Ok::<(), watch::error::RecvError>(())
        };
        let on_disk = tokio::time::timeout(OWED_MAX, on_disk).await;
        on_disk.ok().and_then(Result::ok).ok_or_else(|| Problem::unavailable("the downlink is not on disk yet"))?;
        // A party that is away hears of it as soon as it is back; the downlink does not wait for that.
        let _told_or_not = tokio::time::timeout(TELL_MAX, tenant.links.flush(tenant.group)).await;
    }
    Ok(Json(tenant::Queued { id }))
}

/// As the bridge wants it.
fn waiting(downlink: tenant::Downlink) -> queue::Downlink {
    queue::Downlink {
        id: downlink.id,
        f_port: downlink.f_port,
        payload: downlink.payload.0.into(),
        confirmed: downlink.confirmed,
        delivery: match downlink.delivery {
            tenant::Delivery::AtMostOnce => queue::Delivery::AtMostOnce,
            tenant::Delivery::AtLeastOnce => queue::Delivery::AtLeastOnce,
        },
        priority: downlink.priority,
        expires_at: WallTime(downlink.expires_at_ms),
    }
}

fn refused(refused: queue::Refused) -> Problem {
    match refused {
        queue::Refused::Unknown => Problem::not_found("the device is not registered"),
        queue::Refused::Full | queue::Refused::BridgeFull => Problem::unavailable(refused),
        queue::Refused::Form => Problem::invalid("payload", refused),
        queue::Refused::Expired => Problem::invalid("expires_at_ms", refused),
    }
}

async fn downlink_events(
    State(tenant): Context,
    query: Result<Query<After>, QueryRejection>,
) -> Result<Json<tenant::DownlinkEvents>, Problem> {
    let Query(After { after }) = query?;
    let events = async {
        loop {
            let (events, mut newest) = tenant.links.downlinks().after(tenant.group, after);
            if !events.is_empty() {
                return events;
            }
            if newest.changed().await.is_err() {
                return Vec::new();
            }
        }
    };
    let wait = Duration::from_millis(tenant::DOWNLINK_WAIT_MS_MAX);
    let events = tokio::time::timeout(wait, events).await.unwrap_or_default();
    Ok(Json(tenant::DownlinkEvents { events }))
}

async fn take_encrypted(
    State(tenant): Context,
    body: Result<Json<tenant::Encrypted>, JsonRejection>,
) -> Result<StatusCode, Problem> {
    let Json(encrypted) = body?;
    encrypted.check().map_err(|e| Problem::invalid(&e.field, e.reason))?;
    let device = DevEui::from_bytes(encrypted.dev_eui.0);
    if !tenant.devices.contains(&device) {
        return Err(Problem::forbidden(format_args!("device {device} is not one of this tenant's")));
    }
    let session = encrypted.session.parse().map_err(|_| Problem::invalid("session", "not as it was asked for"))?;
    let bridge = tenant.bridge.as_ref().ok_or_else(|| Problem::unavailable("this node has no LoRa bridge"))?;
    tenant.links.downlinks().answered(tenant.group, device, &encrypted.id, encrypted.f_cnt_first);
    let payloads = encrypted.payloads.into_iter().map(|payload| payload.0.into()).collect();
    let answer = queue::Encrypted { device, id: encrypted.id, session, f_cnt_first: encrypted.f_cnt_first, payloads };
    bridge.encrypted(answer).await.map_err(|_| Problem::unavailable("the bridge has stopped"))?;
    Ok(StatusCode::NO_CONTENT)
}

async fn get_state(State(tenant): Context, Path(key): Path<String>) -> Result<Vec<u8>, Problem> {
    tenant::check_state_key(&key).map_err(|e| Problem::invalid(&e.field, e.reason))?;
    let value = tenant.log.store().get_tenant_value(tenant.group, &key).await.map_err(internal)?;
    value.ok_or_else(|| Problem::not_found("nothing was put under this key"))
}

async fn put_state(
    State(tenant): Context,
    Path(key): Path<String>,
    body: Result<Bytes, BytesRejection>,
) -> Result<StatusCode, Problem> {
    let body = body?;
    tenant::check_state_key(&key).map_err(|e| Problem::invalid(&e.field, e.reason))?;
    let keys_max = u32::try_from(tenant::STATE_KEYS_MAX).unwrap_or(u32::MAX);
    let written = tenant.log.store().put_tenant_value(tenant.group, &key, &body, keys_max).await.map_err(internal)?;
    if written { Ok(StatusCode::NO_CONTENT) } else { Err(Problem::conflict("a tenant keeps at most 256 values")) }
}

async fn health(State(tenant): Context) -> Json<tenant::Health> {
    Json(tenant::Health { ready: tenant.configuration().is_some() })
}

/// The cause goes to the log, not to the tenant.
fn internal(error: crate::store::Error) -> Problem {
    tracing::error!(error = &error as &dyn std::error::Error, "the node's database failed");
    Problem::internal()
}
