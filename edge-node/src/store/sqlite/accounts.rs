//! What an insurer heard and answers for: frames, accounts, receipts.

use contracts::account::Heard;
use contracts::envelope::Envelope;
use contracts::ids::{EventId, GroupId, NodeId, StatementId};
use contracts::time::WallTime;
use sqlx::sqlite::SqliteRow;
use sqlx::{QueryBuilder, Row as _, Sqlite as Sqlite3, SqliteConnection};

use super::uplinks::{delete_kept, push_events};
use super::{AccountRow, Error, Result, Sqlite, Unaccounted, bytes, chunks, event, signed, unsigned};
use crate::readings::{StoredUplink, Uplink};

const HEARD: &str = "heard";
const ACCOUNT: &str = "account";
const RECEIPT: &str = "receipt";

/// They are on this disk: heard for the first time, or again after their copies went.
pub(super) async fn hear(connection: &mut SqliteConnection, uplinks: &[Uplink]) -> Result<()> {
    let mut query = QueryBuilder::<Sqlite3>::new("INSERT INTO heard (event_id, group_id, record, heard_at) ");
    query.push_values(uplinks, |mut row, uplink| {
        let heard = uplink.heard();
        row.push_bind(uplink.event.as_uuid().as_bytes().as_slice()).push_bind(uplink.group.as_bytes().as_slice());
        row.push_bind(heard.to_bytes().to_vec()).push_bind(signed(heard.heard_at.0));
    });
    query.push(" ON CONFLICT (event_id) DO UPDATE SET dropped = 0, received = 0");
    query.build().execute(connection).await?;
    Ok(())
}

/// Their buffered copies went.
pub(super) async fn give_up(connection: &mut SqliteConnection, events: &[EventId]) -> Result<()> {
    let mut query = QueryBuilder::<Sqlite3>::new("UPDATE heard SET dropped = 1 WHERE received = 0 AND dropped = 0 AND ");
    push_events(&mut query, events.iter().copied());
    query.build().execute(connection).await?;
    Ok(())
}

/// Of a group whose uplinks were wiped.
pub(super) async fn give_up_group(connection: &mut SqliteConnection, group: GroupId) -> Result<()> {
    sqlx::query(
        "UPDATE heard SET dropped = 1 WHERE group_id = ? AND received = 0 AND dropped = 0
         AND NOT EXISTS (SELECT 1 FROM uplink WHERE uplink.event_id = heard.event_id)",
    )
    .bind(group.as_bytes().as_slice())
    .execute(connection)
    .await?;
    Ok(())
}

pub(super) async fn list_unreceipted(store: &Sqlite, group: GroupId, after: u64, limit: u32) -> Result<Vec<(u64, Heard)>> {
    let rows = sqlx::query(
        "SELECT seq, record FROM heard WHERE group_id = ? AND seq > ? AND received = 0 AND dropped = 0 ORDER BY seq LIMIT ?",
    )
    .bind(group.as_bytes().as_slice())
    .bind(signed(after))
    .bind(limit)
    .fetch_all(&mut *store.reader.acquire().await?)
    .await?;
    rows.iter().map(|row| Ok((unsigned(HEARD, row.try_get("seq")?)?, heard(row)?))).collect()
}

pub(super) async fn list_unreceipted_uplinks(store: &Sqlite, group: GroupId, limit: u32) -> Result<Vec<StoredUplink>> {
    let rows = sqlx::query(
        "SELECT uplink.seq AS seq, uplink.body AS body FROM heard JOIN uplink ON uplink.event_id = heard.event_id
         WHERE heard.group_id = ? AND heard.received = 0 AND heard.dropped = 0 ORDER BY heard.seq LIMIT ?",
    )
    .bind(group.as_bytes().as_slice())
    .bind(limit)
    .fetch_all(&mut *store.reader.acquire().await?)
    .await?;
    rows.iter().map(super::uplinks::stored).collect()
}

pub(super) async fn put_receipt(
    store: &Sqlite,
    group: GroupId,
    made_at: WallTime,
    receipt: &Envelope,
    events: &[EventId],
) -> Result<()> {
    let mut transaction = store.writer.begin().await?;
    sqlx::query("INSERT INTO receipt (id, group_id, made_at, envelope) VALUES (?, ?, ?, ?) ON CONFLICT (id) DO NOTHING")
        .bind(receipt.id().as_bytes().as_slice())
        .bind(group.as_bytes().as_slice())
        .bind(signed(made_at.0))
        .bind(text(RECEIPT, receipt)?)
        .execute(&mut *transaction)
        .await?;
    for events in chunks(events) {
        let mut query = QueryBuilder::<Sqlite3>::new("UPDATE heard SET received = 1 WHERE ");
        push_events(&mut query, events.iter().copied());
        query.build().execute(&mut *transaction).await?;
        delete_kept(&mut transaction, events).await?;
    }
    transaction.commit().await?;
    Ok(())
}

pub(super) async fn list_receipts(store: &Sqlite, group: GroupId, since: WallTime, limit: u32) -> Result<Vec<Envelope>> {
    let rows: Vec<String> =
        sqlx::query_scalar("SELECT envelope FROM receipt WHERE group_id = ? AND made_at >= ? ORDER BY seq LIMIT ?")
            .bind(group.as_bytes().as_slice())
            .bind(signed(since.0))
            .bind(limit)
            .fetch_all(&mut *store.reader.acquire().await?)
            .await?;
    rows.iter().map(|text| envelope(RECEIPT, text)).collect()
}

pub(super) async fn list_unaccounted(store: &Sqlite, group: GroupId, limit: u32) -> Result<Unaccounted> {
    let rows = sqlx::query("SELECT record FROM heard WHERE group_id = ? AND account IS NULL ORDER BY seq LIMIT ?")
        .bind(group.as_bytes().as_slice())
        .bind(limit)
        .fetch_all(&mut *store.reader.acquire().await?)
        .await?;
    let dropped: Vec<Vec<u8>> =
        sqlx::query_scalar("SELECT event_id FROM heard WHERE group_id = ? AND dropped = 1 ORDER BY seq LIMIT ?")
            .bind(group.as_bytes().as_slice())
            .bind(limit)
            .fetch_all(&mut *store.reader.acquire().await?)
            .await?;
    Ok(Unaccounted {
        heard: rows.iter().map(heard).collect::<Result<_>>()?,
        dropped: dropped.into_iter().map(|column| event(HEARD, column)).collect::<Result<_>>()?,
    })
}

pub(super) async fn put_own(store: &Sqlite, row: &AccountRow, said: &Unaccounted) -> Result<()> {
    let mut transaction = store.writer.begin().await?;
    insert(&mut transaction, row, false).await?;
    for heard in chunks(&said.heard) {
        let mut query = QueryBuilder::<Sqlite3>::new("UPDATE heard SET account = ");
        query.push_bind(signed(row.number)).push(" WHERE ");
        push_events(&mut query, heard.iter().map(Heard::event));
        query.build().execute(&mut *transaction).await?;
    }
    for events in chunks(&said.dropped) {
        let mut query = QueryBuilder::<Sqlite3>::new("UPDATE heard SET dropped = 2 WHERE dropped = 1 AND ");
        push_events(&mut query, events.iter().copied());
        query.build().execute(&mut *transaction).await?;
    }
    transaction.commit().await?;
    Ok(())
}

async fn insert(connection: &mut SqliteConnection, row: &AccountRow, told: bool) -> Result<()> {
    sqlx::query(
        "INSERT INTO account (id, group_id, node, number, made_at, envelope, told) VALUES (?, ?, ?, ?, ?, ?, ?)
         ON CONFLICT (id) DO NOTHING",
    )
    .bind(row.id.as_bytes().as_slice())
    .bind(row.group.as_bytes().as_slice())
    .bind(row.node.as_bytes().as_slice())
    .bind(signed(row.number))
    .bind(signed(row.made_at.0))
    .bind(text(ACCOUNT, &row.envelope)?)
    .bind(told)
    .execute(connection)
    .await?;
    Ok(())
}

pub(super) async fn put(store: &Sqlite, row: &AccountRow, accounts_max: u32) -> Result<bool> {
    let mut transaction = store.writer.begin().await?;
    let count: i64 = sqlx::query_scalar("SELECT count(*) FROM account WHERE group_id = ? AND node = ? AND id <> ?")
        .bind(row.group.as_bytes().as_slice())
        .bind(row.node.as_bytes().as_slice())
        .bind(row.id.as_bytes().as_slice())
        .fetch_one(&mut *transaction)
        .await?;
    let fits = count < i64::from(accounts_max);
    if fits {
        insert(&mut transaction, row, true).await?;
    }
    transaction.commit().await?;
    Ok(fits)
}

pub(super) async fn last(store: &Sqlite, group: GroupId, node: NodeId) -> Result<Option<AccountRow>> {
    let row = sqlx::query("SELECT * FROM account WHERE group_id = ? AND node = ? ORDER BY seq DESC LIMIT 1")
        .bind(group.as_bytes().as_slice())
        .bind(node.as_bytes().as_slice())
        .fetch_optional(&mut *store.reader.acquire().await?)
        .await?;
    row.as_ref().map(account).transpose()
}

pub(super) async fn list(store: &Sqlite, group: GroupId, since: WallTime, limit: u32) -> Result<Vec<AccountRow>> {
    let rows = sqlx::query("SELECT * FROM account WHERE group_id = ? AND made_at >= ? ORDER BY seq LIMIT ?")
        .bind(group.as_bytes().as_slice())
        .bind(signed(since.0))
        .bind(limit)
        .fetch_all(&mut *store.reader.acquire().await?)
        .await?;
    rows.iter().map(account).collect()
}

pub(super) async fn list_untold(store: &Sqlite, group: GroupId, limit: u32) -> Result<Vec<AccountRow>> {
    let rows = sqlx::query("SELECT * FROM account WHERE group_id = ? AND told = 0 ORDER BY seq LIMIT ?")
        .bind(group.as_bytes().as_slice())
        .bind(limit)
        .fetch_all(&mut *store.reader.acquire().await?)
        .await?;
    rows.iter().map(account).collect()
}

pub(super) async fn set_told(store: &Sqlite, id: StatementId) -> Result<()> {
    sqlx::query("UPDATE account SET told = 1 WHERE id = ?")
        .bind(id.as_bytes().as_slice())
        .execute(&mut *store.writer.acquire().await?)
        .await?;
    Ok(())
}

pub(super) async fn prune(store: &Sqlite, before: WallTime) -> Result<()> {
    let mut transaction = store.writer.begin().await?;
    for statement in [
        "DELETE FROM account WHERE made_at < ? AND seq NOT IN (SELECT max(seq) FROM account GROUP BY group_id, node)",
        "DELETE FROM receipt WHERE made_at < ?",
        "DELETE FROM heard WHERE heard_at < ? AND account IS NOT NULL AND (received = 1 OR dropped = 2 OR NOT EXISTS
         (SELECT 1 FROM uplink WHERE uplink.event_id = heard.event_id AND settled = 0))",
    ] {
        sqlx::query(statement).bind(signed(before.0)).execute(&mut *transaction).await?;
    }
    transaction.commit().await?;
    Ok(())
}

fn heard(row: &SqliteRow) -> Result<Heard> {
    Ok(Heard::from_bytes(&bytes(HEARD, row.try_get("record")?)?))
}

fn account(row: &SqliteRow) -> Result<AccountRow> {
    Ok(AccountRow {
        id: StatementId::from_bytes(bytes(ACCOUNT, row.try_get("id")?)?),
        group: GroupId::from_bytes(bytes(ACCOUNT, row.try_get("group_id")?)?),
        node: NodeId::from_bytes(bytes(ACCOUNT, row.try_get("node")?)?),
        number: unsigned(ACCOUNT, row.try_get("number")?)?,
        made_at: WallTime(unsigned(ACCOUNT, row.try_get("made_at")?)?),
        envelope: envelope(ACCOUNT, row.try_get("envelope")?)?,
    })
}

fn text(table: &'static str, envelope: &Envelope) -> Result<String> {
    serde_json::to_string(envelope).map_err(|e| Error::Row { table, reason: e.to_string() })
}

fn envelope(table: &'static str, text: &str) -> Result<Envelope> {
    serde_json::from_str(text).map_err(|e| Error::Row { table, reason: e.to_string() })
}
