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
use contracts::ids::{DevAddr, DevEui, EventId};
use kit::problem::Problem;
use lora_bridge::gwmp::data_rate::DataRate;
use lora_bridge::mac::session::{NwkSKey, Session};
use lora_bridge::mac::uplink::F_CNT_GAP_MAX;
use serde::Deserialize;
use tokio::sync::watch;

use super::Tenant;
use crate::readings::{Decoded, Kind, StoredUplink};

/// Uplinks in one chunk of the stream.
const PAGE: u32 = 256;
/// An idle stream gets a blank line so often.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// Downlinks for devices are answered "unavailable" by this version.
const NO_DOWNLINKS: &str = "this node does not carry tenants' downlinks yet";

type Context = State<Arc<Tenant>>;

/// All routes of one tenant.
pub fn router(tenant: Arc<Tenant>) -> Router {
    Router::new()
        .route(tenant::CONFIG, routing::get(get_configuration))
        .route(tenant::DEVICES, routing::put(register).layer(DefaultBodyLimit::max(tenant::DEVICES_BODY_BYTES_MAX)))
        .route(tenant::UPLINKS, routing::get(follow))
        .route(tenant::READINGS, routing::post(publish).layer(DefaultBodyLimit::max(tenant::READINGS_BODY_BYTES_MAX)))
        .route(tenant::DOWNLINKS, routing::post(queue_downlink).layer(DefaultBodyLimit::max(tenant::DOWNLINK_BODY_BYTES_MAX)))
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
    let sessions = sessions(&registration);
    if let Some(foreign) = sessions.iter().find(|s| !tenant.devices.contains(&s.device)) {
        return Err(Problem::forbidden(format_args!("device {} is not one of this tenant's", foreign.device)));
    }
    let registered = sessions.len();
    let bridge = tenant.bridge.as_ref().ok_or_else(|| Problem::unavailable("this node has no LoRa bridge"))?;
    bridge.register(tenant.group, sessions).await.map_err(|_| Problem::unavailable("the bridge has stopped"))?;
    Ok(Json(tenant::Registered { registered }))
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
    changed: watch::Receiver<u64>,
}

async fn follow(State(tenant): Context, query: Result<Query<After>, QueryRejection>) -> Result<Response, Problem> {
    let Query(After { after }) = query?;
    let changed = tenant.log.uplinks_changed(tenant.group);
    let stream = Stream { tenant, after: after.unwrap_or(0), changed };
    let body = Body::from_stream(futures_util::stream::unfold(stream, |mut stream| async move {
        let lines = next_lines(&mut stream).await?;
        Some((Ok::<_, Infallible>(lines), stream))
    }));
    Ok(([(header::CONTENT_TYPE, tenant::NDJSON)], body).into_response())
}

/// The next uplinks as lines, or a blank line if there is none for a while. `None` ends the stream.
async fn next_lines(stream: &mut Stream) -> Option<Bytes> {
    loop {
        stream.changed.borrow_and_update();
        let page = stream.tenant.log.store().list_undecoded(stream.tenant.group, stream.after, PAGE).await;
        let page = match page {
            Ok(page) => page,
            Err(error) => {
                tracing::error!(error = &error as &dyn std::error::Error, "uplinks cannot be read");
                return None;
            }
        };
        if let Some(last) = page.last() {
            stream.after = last.seq;
            return Some(page.iter().filter_map(line).collect::<Vec<_>>().concat().into());
        }
        match tokio::time::timeout(KEEP_ALIVE, stream.changed.changed()).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return None,
            Err(_) => return Some(Bytes::from_static(b"\n")),
        }
    }
}

fn line(stored: &StoredUplink) -> Option<Vec<u8>> {
    let uplink = &stored.uplink;
    let reception = &uplink.rx;
    let line = tenant::Uplink {
        cursor: stored.seq,
        event_id: tenant::EventId(*uplink.event.as_uuid().as_bytes()),
        dev_eui: tenant::DevEui(*uplink.device.as_bytes()),
        dev_addr: tenant::DevAddr(*uplink.dev_addr.as_bytes()),
        session: uplink.session.to_string(),
        joined: None,
        f_cnt: uplink.f_cnt,
        f_port: uplink.f_port,
        confirmed: uplink.confirmed,
        frm_payload: tenant::HexBytes(hex::decode(&uplink.frm_payload).ok()?),
        heard_at_ms: uplink.heard_at.0,
        kind: match uplink.kind {
            Kind::Live => tenant::UplinkKind::Live,
            Kind::Late => tenant::UplinkKind::Late,
            Kind::Replayed => tenant::UplinkKind::Replayed,
        },
        epoch: uplink.epoch.0,
        rx: tenant::Reception {
            gateway: Some(reception.gateway.clone()),
            frequency_hz: reception.frequency_hz,
            data_rate: reception.data_rate.clone(),
            rssi_dbm: reception.rssi_dbm,
            snr_tenths_db: reception.snr_tenth_db,
        },
    };
    let mut bytes = serde_json::to_vec(&line).ok()?;
    bytes.push(b'\n');
    Some(bytes)
}

async fn publish(
    State(tenant): Context,
    body: Result<Json<tenant::ReadingBatch>, JsonRejection>,
) -> Result<Json<tenant::Accepted>, Problem> {
    let Json(batch) = body?;
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

async fn queue_downlink(body: Result<Json<tenant::Downlink>, JsonRejection>) -> Result<Json<tenant::Queued>, Problem> {
    let Json(downlink) = body?;
    downlink.check().map_err(|e| Problem::invalid(&e.field, e.reason))?;
    Err(Problem::unavailable(NO_DOWNLINKS))
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
