//! Reads of the node's database that only its operator needs. Nothing in here writes.

use std::collections::BTreeMap;

use contracts::ids::{DevEui, Epoch, EventId, GroupId, NodeId, SessionId};
use contracts::time::WallTime;
use sqlx::Row as _;

use super::readings::ReceivedReading;
use crate::store::{Error, Result, Store, bytes, signed, unsigned};

/// Whether both the writing and the reading connections answer.
///
/// # Errors
/// The database failed.
pub(super) async fn answers(store: &Store) -> Result<()> {
    for pool in [&store.writer, &store.reader] {
        let _one: i64 = sqlx::query_scalar("SELECT 1").fetch_one(pool).await?;
    }
    Ok(())
}

/// Received readings behind the cursor in the order of arrival, of one device or of all.
///
/// # Errors
/// The database failed or a row is unreadable.
pub(super) async fn received(store: &Store, after: u64, device: Option<DevEui>, limit: u32) -> Result<Vec<ReceivedReading>> {
    let rows = sqlx::query(
        "SELECT seq, event_id, group_id, device, session, f_cnt, heard_at, kind, epoch, decoded, delivered_by, received_at FROM inbox
         WHERE seq > ?1 AND (?2 IS NULL OR device = ?2) ORDER BY seq LIMIT ?3",
    )
    .bind(signed(after))
    .bind(device.map(|device| device.as_bytes().to_vec()))
    .bind(limit)
    .fetch_all(&store.reader)
    .await?;
    rows.iter().map(reading).collect()
}

fn reading(row: &sqlx::sqlite::SqliteRow) -> Result<ReceivedReading> {
    const TABLE: &str = "inbox";
    let event: Vec<u8> = row.try_get("event_id")?;
    let decoded: &str = row.try_get("decoded")?;
    Ok(ReceivedReading {
        seq: unsigned(TABLE, row.try_get("seq")?)?,
        event: EventId::from_uuid(uuid::Uuid::from_bytes(bytes(TABLE, event)?)),
        group: GroupId::from_bytes(bytes(TABLE, row.try_get("group_id")?)?),
        device: DevEui::from_bytes(bytes(TABLE, row.try_get("device")?)?).to_string(),
        session: SessionId::from_bytes(bytes(TABLE, row.try_get("session")?)?).to_string(),
        f_cnt: unsigned(TABLE, row.try_get("f_cnt")?)?,
        heard_at: WallTime(unsigned(TABLE, row.try_get("heard_at")?)?),
        received_at: WallTime(unsigned(TABLE, row.try_get("received_at")?)?),
        delivered_by: NodeId::from_bytes(bytes(TABLE, row.try_get("delivered_by")?)?),
        kind: row.try_get("kind")?,
        epoch: Epoch(unsigned(TABLE, row.try_get("epoch")?)?),
        decoded: serde_json::from_str(decoded).map_err(|e| Error::Row { table: TABLE, reason: e.to_string() })?,
    })
}

/// How many readings were received so far; rows are never deleted.
///
/// # Errors
/// The database failed.
pub(super) async fn received_count(store: &Store) -> Result<u64> {
    let last: i64 = sqlx::query_scalar("SELECT coalesce(max(seq), 0) FROM inbox").fetch_one(&store.reader).await?;
    unsigned("inbox", last)
}

/// What waits in the reading log, by group.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Waiting {
    /// Uplinks that the tenant has not decoded.
    pub(super) undecoded: u64,
    /// Readings that the customer's cloud has not acknowledged.
    pub(super) unsettled: u64,
}

/// # Errors
/// The database failed or a row is unreadable.
pub(super) async fn waiting(store: &Store) -> Result<BTreeMap<GroupId, Waiting>> {
    // Each arm has a partial index that holds only what waits.
    let undecoded = "SELECT group_id, count(*) FROM uplink WHERE decoded IS NULL AND deliver = 1 GROUP BY group_id";
    let unsettled = "SELECT group_id, count(*) FROM uplink WHERE decoded IS NOT NULL AND settled = 0 GROUP BY group_id";
    let mut waiting: BTreeMap<GroupId, Waiting> = BTreeMap::new();
    let rows: Vec<(Vec<u8>, i64)> = sqlx::query_as(undecoded).fetch_all(&store.reader).await?;
    for (group, count) in rows {
        waiting.entry(GroupId::from_bytes(bytes("uplink", group)?)).or_default().undecoded = unsigned("uplink", count)?;
    }
    let rows: Vec<(Vec<u8>, i64)> = sqlx::query_as(unsettled).fetch_all(&store.reader).await?;
    for (group, count) in rows {
        waiting.entry(GroupId::from_bytes(bytes("uplink", group)?)).or_default().unsettled = unsigned("uplink", count)?;
    }
    Ok(waiting)
}

/// Bytes of a group's uplinks and readings heard since a time, as they are in the log.
///
/// # Errors
/// The database failed.
pub(super) async fn traffic_bytes(store: &Store, group: GroupId, since: WallTime) -> Result<u64> {
    let sum: i64 = sqlx::query_scalar(
        "SELECT coalesce(sum(length(body) + coalesce(length(decoded), 0)), 0) FROM uplink WHERE group_id = ?1 AND heard_at >= ?2",
    )
    .bind(group.as_bytes().as_slice())
    .bind(signed(since.0))
    .fetch_one(&store.reader)
    .await?;
    unsigned("uplink", sum)
}
