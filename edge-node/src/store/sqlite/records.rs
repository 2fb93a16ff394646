//! Signed node records, the newest of each node.

use contracts::envelope::Envelope;
use contracts::node_record::NodeRecord;

use super::{Error, Result, Sqlite, signed};

/// Keeps a verified record unless a newer one is there.
pub(super) async fn put(store: &Sqlite, record: &NodeRecord, envelope: &Envelope) -> Result<()> {
    let envelope = serde_json::to_string(envelope).map_err(|e| Error::Row { table: "node_record", reason: e.to_string() })?;
    sqlx::query(
        "INSERT INTO node_record (node, record_epoch, envelope) VALUES (?, ?, ?)
         ON CONFLICT (node) DO UPDATE SET record_epoch = excluded.record_epoch, envelope = excluded.envelope WHERE excluded.record_epoch >= record_epoch",
    )
    .bind(record.node.as_bytes().as_slice())
    .bind(signed(record.record_epoch))
    .bind(envelope)
    .execute(&mut *store.writer.acquire().await?)
    .await?;
    Ok(())
}

/// All records as they were received.
pub(super) async fn list(store: &Sqlite) -> Result<Vec<Envelope>> {
    let rows: Vec<String> = sqlx::query_scalar("SELECT envelope FROM node_record ORDER BY node")
        .fetch_all(&mut *store.reader.acquire().await?)
        .await?;
    rows.iter()
        .map(|json| serde_json::from_str(json).map_err(|e| Error::Row { table: "node_record", reason: e.to_string() }))
        .collect()
}
