//! Downlink counters that are reserved, per session; bounds only rise.

use contracts::ids::{DevEui, GroupId, SessionId};
use contracts::write_ahead::{Bound, Reserved};

use super::{Result, Store, bytes, unsigned};

/// Raises bounds; synced when it returns.
///
/// # Errors
/// The database failed.
pub async fn raise(store: &Store, group: GroupId, bounds: &[Bound]) -> Result<()> {
    let mut transaction = store.writer.begin().await?;
    for bound in bounds {
        sqlx::query(
            "INSERT INTO reserved (group_id, device, session, upto) VALUES (?, ?, ?, ?)
             ON CONFLICT (group_id, device, session) DO UPDATE SET upto = max(upto, excluded.upto)",
        )
        .bind(group.as_bytes().as_slice())
        .bind(bound.device.as_bytes().as_slice())
        .bind(bound.session.as_bytes().as_slice())
        .bind(i64::from(bound.upto))
        .execute(&mut *transaction)
        .await?;
    }
    transaction.commit().await?;
    Ok(())
}

/// Everything that is known to be reserved in a group.
///
/// # Errors
/// The database failed or a row is unreadable.
pub async fn list(store: &Store, group: GroupId) -> Result<Reserved> {
    let rows: Vec<(Vec<u8>, Vec<u8>, i64)> = sqlx::query_as("SELECT device, session, upto FROM reserved WHERE group_id = ? ORDER BY device, session")
        .bind(group.as_bytes().as_slice())
        .fetch_all(&store.reader)
        .await?;
    let mut reserved = Reserved::default();
    for (device, session, upto) in rows {
        let (device, session) = (DevEui::from_bytes(bytes("reserved", device)?), SessionId::from_bytes(bytes("reserved", session)?));
        reserved.raise(Bound { device, session, upto: unsigned("reserved", upto)? });
    }
    Ok(reserved)
}
