//! What a cloud node received: every reading once, by event id.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use contracts::ids::{DevEui, EventId, GroupId, NodeId};
use contracts::time::WallTime;
use sqlx::sqlite::SqliteRow;
use sqlx::{QueryBuilder, Row as _, Sqlite as Sqlite3, SqliteConnection};

use super::texts::{ROWS_MAX, Texts, values};
use super::uplinks::{push_events, reading};
use super::{Error, InboxBatch, Received, Result, Sqlite, bytes, chunks, event, signed, unsigned};
use crate::readings::Reading;

/// Writes whole batches in one transaction; returns for each how many of its readings were new.
pub(super) async fn insert_all(store: &Sqlite, batches: &[InboxBatch]) -> Result<Vec<u64>> {
    let mut transaction = store.writer.begin().await?;
    let mut counts = Vec::with_capacity(batches.len());
    for batch in batches {
        let proof =
            serde_json::to_string(&batch.proof).map_err(|e| Error::Row { table: "batch_proof", reason: e.to_string() })?;
        sqlx::query("INSERT INTO batch_proof (id, envelope, received_at) VALUES (?, ?, ?) ON CONFLICT (id) DO NOTHING")
            .bind(batch.proof_id.as_bytes().as_slice())
            .bind(proof)
            .bind(signed(batch.received_at.0))
            .execute(&mut *transaction)
            .await?;
        let mut new = 0;
        for readings in batch.readings.chunks(ROWS_MAX) {
            new += insert(&mut transaction, batch, readings).await?;
        }
        counts.push(new);
    }
    transaction.commit().await?;
    Ok(counts)
}

static INSERT: LazyLock<Texts> = LazyLock::new(|| {
    Texts::new(|rows| {
        let values = values(rows, 12);
        format!(
            "INSERT INTO inbox (event_id, group_id, device, session, f_cnt, heard_at, kind, epoch, decoded, delivered_by, received_at, proof)
             SELECT * FROM ({values}) WHERE column1 IS NOT NULL ON CONFLICT (event_id) DO NOTHING"
        )
    })
});

/// Adds those of at most [`ROWS_MAX`] that are not there; how many were not.
async fn insert(connection: &mut SqliteConnection, batch: &InboxBatch, readings: &[Reading]) -> Result<u64> {
    let mut query = sqlx::query(INSERT.for_rows(readings.len()));
    for reading in readings {
        query = query.bind(reading.event.as_uuid().as_bytes().to_vec()).bind(reading.group.as_bytes().to_vec());
        query = query.bind(reading.device.as_bytes().to_vec()).bind(reading.session.as_bytes().to_vec());
        query = query.bind(i64::from(reading.f_cnt)).bind(signed(reading.heard_at.0));
        query = query.bind(reading.kind.as_str()).bind(signed(reading.epoch.0)).bind(reading.decoded.get());
        query = query.bind(batch.from.as_bytes().to_vec()).bind(signed(batch.received_at.0));
        query = query.bind(batch.proof_id.as_bytes().to_vec());
    }
    Ok(query.execute(connection).await?.rows_affected())
}

/// Readings behind the cursor in the order of arrival, of one device or of all.
pub(super) async fn list(store: &Sqlite, after: u64, device: Option<DevEui>, limit: u32) -> Result<Vec<Received>> {
    // Two statements, because one with an optional condition would not use the index.
    let query = match device {
        None => sqlx::query(
            "SELECT seq, event_id, group_id, device, session, f_cnt, heard_at, kind, epoch, decoded, delivered_by, received_at FROM inbox
             WHERE seq > ? ORDER BY seq LIMIT ?",
        ),
        Some(device) => sqlx::query(
            "SELECT seq, event_id, group_id, device, session, f_cnt, heard_at, kind, epoch, decoded, delivered_by, received_at FROM inbox
             WHERE device = ? AND seq > ? ORDER BY seq LIMIT ?",
        )
        .bind(device.as_bytes().to_vec()),
    };
    let rows = query.bind(signed(after)).bind(limit).fetch_all(&mut *store.reader.acquire().await?).await?;
    rows.iter().map(received).collect()
}

fn received(row: &SqliteRow) -> Result<Received> {
    Ok(Received {
        seq: unsigned("inbox", row.try_get("seq")?)?,
        reading: reading("inbox", row)?,
        delivered_by: NodeId::from_bytes(bytes("inbox", row.try_get("delivered_by")?)?),
        received_at: WallTime(unsigned("inbox", row.try_get("received_at")?)?),
    })
}

/// Those of `events` that are here, of that group, in the given order.
pub(super) async fn find(store: &Sqlite, group: GroupId, events: &[EventId]) -> Result<Vec<EventId>> {
    let mut here = BTreeSet::new();
    let mut connection = store.reader.acquire().await?;
    for events in chunks(events) {
        let mut query = QueryBuilder::<Sqlite3>::new("SELECT event_id FROM inbox WHERE group_id = ");
        query.push_bind(group.as_bytes().as_slice()).push(" AND ");
        push_events(&mut query, events.iter().copied());
        let rows: Vec<Vec<u8>> = query.build_query_scalar().fetch_all(&mut *connection).await?;
        for column in rows {
            here.insert(event("inbox", column)?);
        }
    }
    Ok(events.iter().filter(|event| here.contains(event)).copied().collect())
}

/// How many readings were received so far. `seq` does not tell: a reading that comes again takes a number, too.
pub(super) async fn count(store: &Sqlite) -> Result<u64> {
    let count: i64 = sqlx::query_scalar("SELECT count(*) FROM inbox").fetch_one(&mut *store.reader.acquire().await?).await?;
    unsigned("inbox", count)
}
