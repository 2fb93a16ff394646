//! Downlink counters that are reserved, per session; bounds only rise.

use contracts::ids::{DevEui, GroupId, SessionId};
use contracts::write_ahead::{Bound, JOINS, Reserved};

use super::{Error, Result, Sqlite, bytes, unsigned};

/// Raises bounds in one statement; synced when it returns.
pub(super) async fn raise(store: &Sqlite, group: GroupId, bounds: &[Bound]) -> Result<()> {
    if bounds.is_empty() {
        return Ok(());
    }
    // One statement for thousands of devices: the writer is shared with the reading log.
    let rows: Vec<(String, String, u32)> = bounds.iter().map(|b| (b.device.to_string(), b.session.to_string(), b.upto)).collect();
    let rows = serde_json::to_string(&rows).map_err(|e| Error::Row { table: "reserved", reason: e.to_string() })?;
    let mut transaction = store.writer.begin().await?;
    if bounds.iter().any(|bound| bound.session == JOINS) {
        // A newer join ends the device's other sessions; a reservation of the new one may have come before.
        sqlx::query(
            "DELETE FROM reserved WHERE group_id = ?1 AND NOT EXISTS
             (SELECT 1 FROM json_each(?2) WHERE unhex(value ->> 0) = reserved.device AND unhex(value ->> 1) = reserved.session)
             AND device IN
             (SELECT unhex(value ->> 0) FROM json_each(?2) WHERE unhex(value ->> 1) = ?3 AND NOT EXISTS
              (SELECT 1 FROM reserved AS known WHERE known.group_id = ?1 AND known.device = unhex(value ->> 0)
               AND known.session = ?3 AND known.upto >= value ->> 2))",
        )
        .bind(group.as_bytes().as_slice())
        .bind(&rows)
        .bind(JOINS.as_bytes().as_slice())
        .execute(&mut *transaction)
        .await?;
    }
    sqlx::query(
        "INSERT INTO reserved (group_id, device, session, upto)
         SELECT ?, unhex(value ->> 0), unhex(value ->> 1), value ->> 2 FROM json_each(?) WHERE true
         ON CONFLICT (group_id, device, session) DO UPDATE SET upto = max(upto, excluded.upto)",
    )
    .bind(group.as_bytes().as_slice())
    .bind(rows)
    .execute(&mut *transaction)
    .await?;
    transaction.commit().await?;
    Ok(())
}

/// Everything that is known to be reserved in a group.
pub(super) async fn list(store: &Sqlite, group: GroupId) -> Result<Reserved> {
    let rows: Vec<(Vec<u8>, Vec<u8>, i64)> =
        sqlx::query_as("SELECT device, session, upto FROM reserved WHERE group_id = ? ORDER BY device, session")
            .bind(group.as_bytes().as_slice())
            .fetch_all(&mut *store.reader.acquire().await?)
            .await?;
    let mut bounds = Vec::with_capacity(rows.len());
    for (device, session, upto) in rows {
        let (device, session) =
            (DevEui::from_bytes(bytes("reserved", device)?), SessionId::from_bytes(bytes("reserved", session)?));
        bounds.push(Bound { device, session, upto: unsigned("reserved", upto)? });
    }
    let mut reserved = Reserved::default();
    reserved.raise_all(&bounds);
    Ok(reserved)
}
