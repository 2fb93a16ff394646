//! Signed node records, the newest of each node.

use contracts::envelope::Envelope;
use contracts::ids::NodeId;
use contracts::node_record::NodeRecord;

use super::{Error, Result, Store, signed};

/// Keeps a verified record unless a newer one is there.
///
/// # Errors
/// The database failed.
pub async fn put(store: &Store, record: &NodeRecord, envelope: &Envelope) -> Result<()> {
    let envelope = serde_json::to_string(envelope).map_err(|e| Error::Row { table: "node_record", reason: e.to_string() })?;
    sqlx::query(
        "INSERT INTO node_record (node, record_epoch, envelope) VALUES (?, ?, ?)
         ON CONFLICT (node) DO UPDATE SET record_epoch = excluded.record_epoch, envelope = excluded.envelope WHERE excluded.record_epoch >= record_epoch",
    )
    .bind(record.node.as_bytes().as_slice())
    .bind(signed(record.record_epoch))
    .bind(envelope)
    .execute(&store.writer)
    .await?;
    Ok(())
}

/// All records as they were received.
///
/// # Errors
/// The database failed or a row is unreadable.
pub async fn list(store: &Store) -> Result<Vec<Envelope>> {
    let rows: Vec<String> = sqlx::query_scalar("SELECT envelope FROM node_record ORDER BY node").fetch_all(&store.reader).await?;
    rows.iter()
        .map(|json| serde_json::from_str(json).map_err(|e| Error::Row { table: "node_record", reason: e.to_string() }))
        .collect()
}

/// # Errors
/// The database failed or the row is unreadable.
pub async fn get(store: &Store, node: NodeId) -> Result<Option<Envelope>> {
    let row: Option<String> = sqlx::query_scalar("SELECT envelope FROM node_record WHERE node = ?")
        .bind(node.as_bytes().as_slice())
        .fetch_optional(&store.reader)
        .await?;
    row.map(|json| serde_json::from_str(&json).map_err(|e| Error::Row { table: "node_record", reason: e.to_string() }))
        .transpose()
}
