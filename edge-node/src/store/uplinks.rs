//! The reading log: an uplink's way from verified frame to settled reading, one row per event.

use contracts::ids::{DevEui, Epoch, EventId, GroupId, SessionId};
use contracts::time::WallTime;
use lora_bridge::mac::session::Mark;
use sqlx::{Row as _, Sqlite, SqliteConnection, Transaction};
use uuid::Uuid;

use super::{Error, Result, Store, bytes, signed, unsigned};
use crate::readings::{Decoded, Kind, Reading, StoredUplink, Uplink};

const TABLE: &str = "uplink";

/// Begins the transaction in which a batch of changes is written and synced together.
///
/// # Errors
/// The database failed.
pub async fn begin(store: &Store) -> Result<Transaction<'static, Sqlite>> {
    Ok(store.writer.begin().await?)
}

/// Adds an uplink; an event that is there already stays as it is, except that a buffered one becomes deliverable.
///
/// # Errors
/// The database failed.
pub async fn insert(connection: &mut SqliteConnection, uplink: &Uplink) -> Result<()> {
    let body = serde_json::to_string(uplink).map_err(|e| Error::Row { table: TABLE, reason: e.to_string() })?;
    sqlx::query(
        "INSERT INTO uplink (event_id, group_id, device, session, f_cnt, heard_at, kind, epoch, body, deliver) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
         ON CONFLICT (event_id) DO UPDATE SET deliver = 1, kind = excluded.kind, epoch = excluded.epoch, body = excluded.body
         WHERE uplink.deliver = 0 AND excluded.deliver = 1",
    )
    .bind(uplink.event.as_uuid().as_bytes().as_slice())
    .bind(uplink.group.as_bytes().as_slice())
    .bind(uplink.device.as_bytes().as_slice())
    .bind(uplink.session.as_bytes().as_slice())
    .bind(i64::from(uplink.f_cnt))
    .bind(signed(uplink.heard_at.0))
    .bind(uplink.kind.as_str())
    .bind(signed(uplink.epoch.0))
    .bind(body)
    .bind(uplink.deliver)
    .execute(connection)
    .await?;
    Ok(())
}

/// Writes what the tenant decoded; the first answer for an event stays. Says whether it was the first.
///
/// # Errors
/// The database failed.
pub async fn publish(connection: &mut SqliteConnection, group: GroupId, reading: &Decoded) -> Result<bool> {
    let written = sqlx::query(
        "UPDATE uplink SET decoded = ?, reading_seq = (SELECT coalesce(max(reading_seq), 0) + 1 FROM uplink)
         WHERE event_id = ? AND group_id = ? AND decoded IS NULL AND deliver = 1",
    )
    .bind(&reading.decoded)
    .bind(reading.event.as_uuid().as_bytes().as_slice())
    .bind(group.as_bytes().as_slice())
    .execute(connection)
    .await?;
    Ok(written.rows_affected() == 1)
}

/// Marks events as acknowledged by the customer's cloud.
///
/// # Errors
/// The database failed.
pub async fn settle(connection: &mut SqliteConnection, event: EventId) -> Result<()> {
    sqlx::query("UPDATE uplink SET settled = 1 WHERE event_id = ?")
        .bind(event.as_uuid().as_bytes().as_slice())
        .execute(connection)
        .await?;
    Ok(())
}

/// Takes over a reading that another node made (hand-back): stored as if our own tenant had published it.
///
/// # Errors
/// The database failed.
pub async fn import(connection: &mut SqliteConnection, uplink: &Uplink, decoded: Option<&str>) -> Result<()> {
    insert(connection, uplink).await?;
    if let Some(decoded) = decoded {
        publish(connection, uplink.group, &Decoded { event: uplink.event, decoded: decoded.to_owned() }).await?;
    }
    Ok(())
}

/// Drops settled rows, and buffered ones, that were heard before `before`. Returns how many went.
///
/// # Errors
/// The database failed.
pub async fn prune(store: &Store, before: WallTime) -> Result<u64> {
    let done = sqlx::query("DELETE FROM uplink WHERE heard_at < ? AND (settled = 1 OR deliver = 0)")
        .bind(signed(before.0))
        .execute(&store.writer)
        .await?;
    Ok(done.rows_affected())
}

/// Forgets every uplink of a group: the contract ended and its grace is over.
///
/// # Errors
/// The database failed.
pub async fn wipe(store: &Store, group: GroupId) -> Result<()> {
    sqlx::query("DELETE FROM uplink WHERE group_id = ? AND (settled = 1 OR deliver = 0)")
        .bind(group.as_bytes().as_slice())
        .execute(&store.writer)
        .await?;
    Ok(())
}

/// Uplinks that the tenant of `group` still has to decode, behind the cursor, in order.
///
/// # Errors
/// The database failed or a row is unreadable.
pub async fn list_undecoded(store: &Store, group: GroupId, after: u64, limit: u32) -> Result<Vec<StoredUplink>> {
    let rows = sqlx::query(
        "SELECT seq, body FROM uplink WHERE group_id = ? AND seq > ? AND decoded IS NULL AND deliver = 1 ORDER BY seq LIMIT ?",
    )
    .bind(group.as_bytes().as_slice())
    .bind(signed(after))
    .bind(limit)
    .fetch_all(&store.reader)
    .await?;
    rows.iter().map(|row| Ok(StoredUplink { seq: unsigned(TABLE, row.try_get("seq")?)?, uplink: body(row)? })).collect()
}

/// All uplinks of a group that the customer's cloud has not acknowledged, with their reading if there is one, in order.
///
/// # Errors
/// The database failed or a row is unreadable.
pub async fn list_open(store: &Store, group: GroupId, after: u64, limit: u32) -> Result<Vec<(StoredUplink, Option<String>)>> {
    let rows =
        sqlx::query("SELECT seq, body, decoded FROM uplink WHERE group_id = ? AND seq > ? AND settled = 0 ORDER BY seq LIMIT ?")
            .bind(group.as_bytes().as_slice())
            .bind(signed(after))
            .bind(limit)
            .fetch_all(&store.reader)
            .await?;
    rows.iter()
        .map(|row| {
            let stored = StoredUplink { seq: unsigned(TABLE, row.try_get("seq")?)?, uplink: body(row)? };
            Ok((stored, row.try_get("decoded")?))
        })
        .collect()
}

/// Readings that are not settled, in the order in which they were published.
///
/// # Errors
/// The database failed or a row is unreadable.
pub async fn list_unsettled(store: &Store, after: u64, limit: u32) -> Result<Vec<(u64, Reading)>> {
    let rows = sqlx::query(
        "SELECT reading_seq, event_id, group_id, device, session, f_cnt, heard_at, kind, epoch, decoded FROM uplink
         WHERE decoded IS NOT NULL AND settled = 0 AND reading_seq > ? ORDER BY reading_seq LIMIT ?",
    )
    .bind(signed(after))
    .bind(limit)
    .fetch_all(&store.reader)
    .await?;
    rows.iter().map(|row| Ok((unsigned(TABLE, row.try_get("reading_seq")?)?, reading(TABLE, row)?))).collect()
}

fn body(row: &sqlx::sqlite::SqliteRow) -> Result<Uplink> {
    let text: &str = row.try_get("body")?;
    serde_json::from_str(text).map_err(|e| Error::Row { table: TABLE, reason: e.to_string() })
}

/// A reading from the columns that the log and the inbox have in common.
pub(super) fn reading(table: &'static str, row: &sqlx::sqlite::SqliteRow) -> Result<Reading> {
    let event: Vec<u8> = row.try_get("event_id")?;
    let decoded: &str = row.try_get("decoded")?;
    let kind: &str = row.try_get("kind")?;
    Ok(Reading {
        event: EventId::from_uuid(Uuid::from_bytes(bytes(table, event)?)),
        group: GroupId::from_bytes(bytes(table, row.try_get("group_id")?)?),
        device: DevEui::from_bytes(bytes(table, row.try_get("device")?)?),
        session: SessionId::from_bytes(bytes(table, row.try_get("session")?)?),
        f_cnt: unsigned(table, row.try_get("f_cnt")?)?,
        heard_at: WallTime(unsigned(table, row.try_get("heard_at")?)?),
        kind: Kind::parse(kind).ok_or_else(|| Error::Row { table, reason: format!("kind {kind}") })?,
        epoch: Epoch(unsigned(table, row.try_get("epoch")?)?),
        decoded: serde_json::from_str(decoded).map_err(|e| Error::Row { table, reason: e.to_string() })?,
    })
}

/// Every uplink of a group that is on disk, and those that are settled, by name.
///
/// # Errors
/// The database failed or a row is unreadable.
pub async fn marks(store: &Store, group: GroupId) -> Result<(Vec<Mark>, Vec<Mark>)> {
    let rows: Vec<(Vec<u8>, Vec<u8>, i64, bool)> =
        sqlx::query_as("SELECT device, session, f_cnt, settled FROM uplink WHERE group_id = ? AND deliver = 1 ORDER BY seq")
            .bind(group.as_bytes().as_slice())
            .fetch_all(&store.reader)
            .await?;
    let (mut served, mut settled) = (Vec::with_capacity(rows.len()), Vec::new());
    for (device, session, f_cnt, is_settled) in rows {
        let mark = Mark {
            device: DevEui::from_bytes(bytes(TABLE, device)?),
            session: SessionId::from_bytes(bytes(TABLE, session)?),
            f_cnt: unsigned(TABLE, f_cnt)?,
        };
        served.push(mark);
        if is_settled {
            settled.push(mark);
        }
    }
    Ok((served, settled))
}

/// The highest place in the log that holds something not yet settled; 0 if all is.
///
/// # Errors
/// The database failed.
pub async fn last_open(store: &Store, group: GroupId) -> Result<u64> {
    let last: Option<i64> = sqlx::query_scalar("SELECT max(seq) FROM uplink WHERE group_id = ? AND settled = 0 AND deliver = 1")
        .bind(group.as_bytes().as_slice())
        .fetch_one(&store.reader)
        .await?;
    unsigned(TABLE, last.unwrap_or(0))
}

/// Whether anything for the customer's cloud is not settled up to a place in the log.
///
/// # Errors
/// The database failed.
pub async fn has_open(store: &Store, group: GroupId, upto: u64) -> Result<bool> {
    let open = sqlx::query_scalar(
        "SELECT EXISTS (SELECT 1 FROM uplink WHERE group_id = ? AND seq <= ? AND settled = 0 AND deliver = 1)",
    )
    .bind(group.as_bytes().as_slice())
    .bind(signed(upto))
    .fetch_one(&store.reader)
    .await?;
    Ok(open)
}
