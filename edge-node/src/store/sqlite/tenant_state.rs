//! Small values that tenants keep with their node.

use contracts::ids::GroupId;

use super::{Result, Sqlite};

pub(super) async fn get(store: &Sqlite, group: GroupId, key: &str) -> Result<Option<Vec<u8>>> {
    let value = sqlx::query_scalar("SELECT value FROM tenant_state WHERE group_id = ? AND key = ?")
        .bind(group.as_bytes().as_slice())
        .bind(key)
        .fetch_optional(&mut *store.reader.acquire().await?)
        .await?;
    Ok(value)
}

/// Writes a value unless the tenant would then have more than `keys_max` keys; says whether it was written. The node's own keys, which begin
/// with a dot, do not count.
pub(super) async fn put(store: &Sqlite, group: GroupId, key: &str, value: &[u8], keys_max: u32) -> Result<bool> {
    let written = sqlx::query(
        "INSERT INTO tenant_state (group_id, key, value)
         SELECT ?1, ?2, ?3 WHERE (SELECT count(*) FROM tenant_state WHERE group_id = ?1 AND key <> ?2 AND substr(key, 1, 1) <> '.') < ?4
         ON CONFLICT (group_id, key) DO UPDATE SET value = excluded.value",
    )
    .bind(group.as_bytes().as_slice())
    .bind(key)
    .bind(value)
    .bind(keys_max)
    .execute(&mut *store.writer.acquire().await?)
    .await?;
    Ok(written.rows_affected() == 1)
}

/// Forgets everything that the tenant of a group kept.
pub(super) async fn wipe(store: &Sqlite, group: GroupId) -> Result<()> {
    sqlx::query("DELETE FROM tenant_state WHERE group_id = ?")
        .bind(group.as_bytes().as_slice())
        .execute(&mut *store.writer.acquire().await?)
        .await?;
    // Older versions of these pages are in the log until it is written back and cut off, by one at a time.
    let _copies_nothing = store.copier.acquire().await?;
    let busy: i64 = sqlx::query_scalar("PRAGMA wal_checkpoint(TRUNCATE)").fetch_one(&mut *store.writer.acquire().await?).await?;
    if busy != 0 {
        tracing::warn!(%group, "the database's log could not be cut off: a reader is at work");
    }
    Ok(())
}
