//! `/v1/readings`: what a cloud received.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{AppendHeaders, IntoResponse};
use contracts::ids::{DevEui, Epoch, EventId, GroupId, NodeId};
use contracts::time::WallTime;
use kit::problem::Problem;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::input::{Params, next_link, page, parse_field};
use super::{App, ProblemSchema, failed};
use crate::store::Received;

/// Readings in one page at most, and if the caller does not say.
pub const PAGE_MAX: u32 = 5_000;

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ReadingsQuery {
    /// The cursor: `seq` of the last reading seen.
    #[serde(default)]
    after: u64,
    /// 1 to 5,000; 5,000 if absent.
    limit: Option<u32>,
    /// `DevEUI`: 16 hexadecimal digits.
    device: Option<String>,
}

/// A reading in the cloud's store.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ReceivedReading {
    /// The cursor.
    pub seq: u64,
    #[schema(value_type = String)]
    /// UUID, the same for everybody who heard the frame.
    pub event: EventId,
    #[schema(value_type = String)]
    pub group: GroupId,
    pub device: String,
    pub session: String,
    pub f_cnt: u32,
    /// Milliseconds since the Unix epoch.
    #[schema(value_type = u64)]
    pub heard_at: WallTime,
    /// Milliseconds since the Unix epoch.
    #[schema(value_type = u64)]
    pub received_at: WallTime,
    #[schema(value_type = String)]
    pub delivered_by: NodeId,
    /// `live`, `late`, `replayed`.
    pub kind: String,
    #[schema(value_type = u64)]
    pub epoch: Epoch,
    pub decoded: serde_json::Value,
}

impl TryFrom<Received> for ReceivedReading {
    type Error = serde_json::Error;

    fn try_from(received: Received) -> Result<Self, Self::Error> {
        let Received { seq, reading, delivered_by, received_at } = received;
        Ok(Self {
            seq,
            event: reading.event,
            group: reading.group,
            device: reading.device.to_string(),
            session: reading.session.to_string(),
            f_cnt: reading.f_cnt,
            heard_at: reading.heard_at,
            received_at,
            delivered_by,
            kind: reading.kind.as_str().to_owned(),
            epoch: reading.epoch,
            decoded: serde_json::from_str(reading.decoded.get())?,
        })
    }
}

/// Readings in the order of arrival. A full page has a header `Link` with `rel="next"`.
#[utoipa::path(get, path = "/v1/readings", tag = "node", params(ReadingsQuery), responses(
    (status = 200, body = Vec<ReceivedReading>, headers(("Link" = Option<String>, description = "The next page, RFC 8288"))),
    (status = "4XX", body = ProblemSchema, content_type = "application/problem+json")
))]
pub(super) async fn list_readings(
    State(app): State<Arc<App>>,
    Params(query): Params<ReadingsQuery>,
) -> Result<impl IntoResponse, Problem> {
    let limit = page(query.limit, PAGE_MAX, PAGE_MAX)?;
    if i64::try_from(query.after).is_err() {
        return Err(Problem::invalid("after", "not a place in this list"));
    }
    let device: Option<DevEui> = parse_field("device", query.device.as_deref())?;
    if app.context.inbox.is_none() {
        return Err(Problem::not_found("this node is no cloud and keeps no readings of others"));
    }
    let rows = app.core().store.list_received(query.after, device, limit).await.map_err(|e| failed("list readings", &e))?;
    let readings: Result<Vec<ReceivedReading>, _> = rows.into_iter().map(ReceivedReading::try_from).collect();
    let readings = readings.map_err(|e| failed("list readings", &e))?;
    let is_full = u32::try_from(readings.len()).is_ok_and(|count| count == limit);
    let next = readings.last().filter(|_| is_full).map(|last| {
        let device = device.map(|device| format!("&device={device}")).unwrap_or_default();
        format!("/v1/readings?after={}&limit={limit}{device}", last.seq)
    });
    Ok((AppendHeaders(next_link(next).into_iter().flatten().collect::<Vec<_>>()), Json(readings)))
}
