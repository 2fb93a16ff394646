//! `/v1/bridge/devices`: the sessions of the devices that this node serves for its owner.

use contracts::ids::{DevAddr, DevEui};
use std::collections::BTreeSet;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{AppendHeaders, IntoResponse};
use kit::problem::Problem;
use lora_bridge::mac::session::SessionState;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::input::{Params, next_link, page};
use super::{App, ProblemSchema};

/// Devices in one page at most, and if the caller does not say.
const PAGE_MAX: u32 = 1_000;

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct DevicesQuery {
    /// The cursor, as in the header `Link` of the page before.
    #[serde(default)]
    after: u32,
    /// 1 to 1,000; 1,000 if absent.
    limit: Option<u32>,
}

/// A device with a session. One that is to join is absent until it has joined.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DeviceStatus {
    /// `DevEUI`: 16 hexadecimal digits.
    pub device: String,
    /// 8 hexadecimal digits.
    pub dev_addr: String,
    /// Names its session.
    pub session: String,
    /// Activated over the air.
    pub joined: bool,
    /// How often it began its counters anew (ABP).
    pub resets: u32,
    /// The uplink counter that is expected next.
    pub f_cnt_up_next: u32,
    pub f_cnt_down_next: u32,
    /// Downlink counters below this are written ahead.
    pub f_cnt_down_reserved: u32,
    /// Downlink counters left out since a downlink was last known to be received; at 16,384 the device would be deaf.
    pub f_cnt_down_skipped: u32,
    /// Downlinks that are owed to it at least once.
    pub downlinks_owed: u64,
}

/// Sessions in the order in which the bridge came to know them. A full page has a header `Link` with `rel="next"`.
#[utoipa::path(get, path = "/v1/bridge/devices", tag = "node", params(DevicesQuery), responses(
    (status = 200, body = Vec<DeviceStatus>, headers(("Link" = Option<String>, description = "The next page, RFC 8288"))),
    (status = "4XX", body = ProblemSchema, content_type = "application/problem+json"),
    (status = 503, body = ProblemSchema, content_type = "application/problem+json", description = "The bridge has stopped")
))]
pub(super) async fn list_devices(
    State(app): State<Arc<App>>,
    Params(query): Params<DevicesQuery>,
) -> Result<impl IntoResponse, Problem> {
    let limit = page(query.limit, PAGE_MAX, PAGE_MAX)?;
    let parts = app.context.parts.as_ref().ok_or_else(|| Problem::not_found("this node has no LoRa bridge"))?;
    let own = app.core().own_service.as_ref().ok_or_else(|| Problem::not_found("this node runs no service of its owner's"))?;
    let stopped = |_| Problem::unavailable("the bridge has stopped");
    let (states, next) = parts.bridge.export(own.group, query.after, limit as usize).await.map_err(stopped)?;
    let of_joining = |device: &tenant::JoiningDevice| DevEui::from_bytes(device.dev_eui.0);
    let joining: BTreeSet<DevEui> = own.registration.joining.iter().map(of_joining).collect();
    let device = |state: SessionState| DeviceStatus {
        device: state.device.to_string(),
        dev_addr: parts.links.dev_addr(own.group, state.device).unwrap_or(DevAddr::from_u32(0)).to_string(),
        session: state.session.to_string(),
        joined: joining.contains(&state.device),
        resets: state.reset_ordinal,
        f_cnt_up_next: state.f_cnt_up_next,
        f_cnt_down_next: state.f_cnt_down_next,
        f_cnt_down_reserved: state.f_cnt_down_reserved,
        f_cnt_down_skipped: state.f_cnt_down_skipped,
        downlinks_owed: state.queue.open.len() as u64,
    };
    let devices: Vec<DeviceStatus> = states.into_iter().map(device).collect();
    let next = next.map(|cursor| format!("/v1/bridge/devices?after={cursor}&limit={limit}"));
    Ok((AppendHeaders(next_link(next).into_iter().flatten().collect::<Vec<_>>()), Json(devices)))
}
