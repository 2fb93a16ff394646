//! The reading log: an uplink's way from verified frame to settled reading, one row per event.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use contracts::ids::{DevEui, Epoch, EventId, GroupId, SessionId};
use contracts::time::WallTime;
use lora_bridge::mac::session::Mark;
use sqlx::sqlite::SqliteRow;
use sqlx::{QueryBuilder, Row as _, Sqlite as Sqlite3, SqliteConnection};

use super::texts::{ROWS_MAX, Texts, parameters, values};
use super::undecoded::Addition;
use super::{Change, Error, Result, Sqlite, Waiting, Write, accounts, bytes, chunks, event, signed, unsigned};
use crate::readings::{Kind, Reading, StoredUplink, Uplink};

const TABLE: &str = "uplink";
/// Readings in one statement at most: with more, SQLite takes it for cheaper to read the whole log.
const PUBLISHED_MAX: usize = 64;

/// Writes changes in one transaction; per change how many readings were published by it.
pub(super) async fn commit(store: &Sqlite, to: &Write<'_>, changes: &[Change]) -> Result<Vec<u64>> {
    let mut counts = Vec::with_capacity(changes.len());
    let addition = if let [change] = changes
        && is_one_statement(change)
    {
        let mut writer = store.writer.acquire().await?;
        let mut addition = store.undecoded.begin();
        counts.push(write(&mut writer, change, &mut addition).await?);
        addition
    } else {
        let mut transaction = store.writer.begin().await?;
        let mut addition = store.undecoded.begin();
        for change in changes {
            counts.push(write(&mut transaction, change, &mut addition).await?);
        }
        transaction.commit().await?;
        addition
    };
    store.undecoded.end(&addition, changes);
    to.reach(addition.last().unwrap_or(0));
    Ok(counts)
}

/// Such a change is a transaction by itself, in one change of thread where `BEGIN` and `COMMIT` make it three.
fn is_one_statement(change: &Change) -> bool {
    match change {
        Change::Append(uplinks) => uplinks.len() <= ROWS_MAX,
        Change::Publish(_, readings) => readings.len() <= PUBLISHED_MAX,
        Change::Settle(names) => names.len() <= ROWS_MAX,
        Change::Hear(_) | Change::Forget(_) | Change::Import(_) => false,
    }
}

/// The last place in the log that can be seen.
pub(super) async fn last_place(store: &Sqlite) -> Result<u64> {
    let place: Option<i64> =
        sqlx::query_scalar("SELECT max(seq) FROM uplink").fetch_one(&mut *store.reader.acquire().await?).await?;
    unsigned(TABLE, place.unwrap_or(0))
}

async fn write(connection: &mut SqliteConnection, change: &Change, addition: &mut Addition) -> Result<u64> {
    let mut published = 0;
    match change {
        Change::Append(uplinks) => {
            for uplinks in uplinks.chunks(ROWS_MAX) {
                insert(connection, uplinks.iter(), addition).await?;
            }
        }
        Change::Hear(uplinks) => {
            for uplinks in uplinks.chunks(ROWS_MAX) {
                insert(connection, uplinks.iter(), addition).await?;
            }
            for uplinks in chunks(uplinks) {
                accounts::hear(connection, uplinks).await?;
            }
        }
        Change::Publish(group, readings) => {
            for readings in readings.chunks(PUBLISHED_MAX) {
                published += publish(connection, readings.iter().map(|r| (*group, r.event, r.decoded.as_str()))).await?;
            }
        }
        Change::Settle(names) => {
            for names in names.chunks(ROWS_MAX) {
                let mut query = sqlx::query(SETTLE.for_rows(names.len()));
                for name in names {
                    query = query.bind(name.event().as_uuid().as_bytes().to_vec());
                }
                query.execute(&mut *connection).await?;
            }
        }
        Change::Forget(events) => {
            for events in chunks(events) {
                forget(connection, events).await?;
            }
        }
        Change::Import(uplinks) => {
            for uplinks in uplinks.chunks(ROWS_MAX) {
                insert(connection, uplinks.iter().map(|(uplink, _)| uplink), addition).await?;
            }
            let decoded = |(uplink, decoded): &(Uplink, Option<String>)| Some((uplink.group, uplink.event, decoded.clone()?));
            let readings: Vec<_> = uplinks.iter().filter_map(decoded).collect();
            for readings in readings.chunks(PUBLISHED_MAX) {
                published +=
                    publish(connection, readings.iter().map(|(group, event, text)| (*group, *event, text.as_str()))).await?;
            }
        }
    }
    Ok(published)
}

static INSERT: LazyLock<Texts> = LazyLock::new(|| {
    Texts::new(|rows| {
        let values = values(rows, 11);
        format!(
            "INSERT INTO uplink (seq, event_id, group_id, device, session, f_cnt, heard_at, kind, epoch, body, deliver)
             SELECT * FROM ({values}) WHERE column1 IS NOT NULL
             ON CONFLICT (event_id) DO UPDATE SET seq = excluded.seq, deliver = 1, kind = excluded.kind, epoch = excluded.epoch, body = excluded.body
             WHERE uplink.deliver = 0 AND excluded.deliver = 1"
        )
    })
});

static PUBLISH: LazyLock<Texts> = LazyLock::new(|| {
    Texts::new(|rows| {
        let values = values(rows, 4);
        format!(
            "WITH answer (n, group_id, event_id, decoded) AS ({values}), first (seq, decoded, place) AS (
               SELECT uplink.seq, answer.decoded, row_number() OVER (ORDER BY answer.n) FROM answer CROSS JOIN uplink
               ON uplink.event_id = answer.event_id AND uplink.group_id = answer.group_id
               WHERE uplink.decoded IS NULL AND uplink.deliver = 1)
             UPDATE uplink SET decoded = first.decoded,
               reading_seq = (SELECT coalesce(max(reading_seq), 0) FROM uplink) + first.place
             FROM first WHERE uplink.seq = first.seq"
        )
    })
});

static SETTLE: LazyLock<Texts> =
    LazyLock::new(|| Texts::new(|rows| format!("UPDATE uplink SET settled = 1 WHERE event_id IN ({})", parameters(rows))));

/// Adds at most [`ROWS_MAX`] uplinks; an event that is there already stays as it is, except that a buffered one becomes deliverable: at the
/// end of the log whoever follows it will find it.
async fn insert<'a>(
    connection: &mut SqliteConnection,
    uplinks: impl ExactSizeIterator<Item = &'a Uplink>,
    addition: &mut Addition,
) -> Result<()> {
    let rows = uplinks.len();
    let mut last = last_given(connection, addition).await?;
    let mut query = sqlx::query(INSERT.for_rows(rows));
    for uplink in uplinks {
        last += 1;
        let body = serde_json::to_string(uplink).map_err(|e| Error::Row { table: TABLE, reason: e.to_string() })?;
        query = query.bind(signed(last)).bind(uplink.event.as_uuid().as_bytes().to_vec());
        query = query.bind(uplink.group.as_bytes().to_vec());
        query = query.bind(uplink.device.as_bytes().to_vec()).bind(uplink.session.as_bytes().to_vec());
        query = query.bind(i64::from(uplink.f_cnt)).bind(signed(uplink.heard_at.0)).bind(uplink.kind.as_str());
        query = query.bind(signed(uplink.epoch.0)).bind(body).bind(uplink.deliver);
    }
    let taken = query.execute(connection).await?.rows_affected();
    addition.add(last, rows, taken);
    Ok(())
}

/// The last number that was given to an uplink, whether it is still there or not.
async fn last_given(connection: &mut SqliteConnection, addition: &mut Addition) -> Result<u64> {
    if let Some(last) = addition.last() {
        return Ok(last);
    }
    let last: Option<i64> =
        sqlx::query_scalar("SELECT seq FROM sqlite_sequence WHERE name = 'uplink'").fetch_optional(connection).await?;
    let last = unsigned(TABLE, last.unwrap_or(0))?;
    addition.begin_at(last);
    Ok(last)
}

/// Writes what the tenants of groups decoded, at most [`PUBLISHED_MAX`] readings, numbered on in this order; the first answer for an event
/// stays. Says how many were the first.
async fn publish<'a>(
    connection: &mut SqliteConnection,
    readings: impl ExactSizeIterator<Item = (GroupId, EventId, &'a str)>,
) -> Result<u64> {
    let mut named = BTreeSet::new();
    let mut query = sqlx::query(PUBLISH.for_rows(readings.len()));
    for (n, (group, event, decoded)) in (1_i64..).zip(readings.filter(|(group, event, _)| named.insert((*group, *event)))) {
        query = query.bind(n).bind(group.as_bytes().to_vec()).bind(event.as_uuid().as_bytes().to_vec());
        query = query.bind(decoded.to_owned());
    }
    Ok(query.execute(connection).await?.rows_affected())
}

/// The condition that a row is of one of these events.
pub(super) fn push_events(query: &mut QueryBuilder<Sqlite3>, events: impl Iterator<Item = EventId>) {
    query.push("event_id IN (");
    let mut list = query.separated(", ");
    for event in events {
        list.push_bind(event.as_uuid().as_bytes().to_vec());
    }
    query.push(")");
}

/// Drops what is buffered of events.
async fn forget(connection: &mut SqliteConnection, events: &[EventId]) -> Result<()> {
    let dropped = delete_kept(connection, events).await?;
    if dropped.is_empty() { Ok(()) } else { accounts::give_up(connection, &dropped).await }
}

/// Drops what is buffered of events; of which there was something.
pub(super) async fn delete_kept(connection: &mut SqliteConnection, events: &[EventId]) -> Result<Vec<EventId>> {
    let mut query = QueryBuilder::new("DELETE FROM uplink WHERE deliver = 0 AND ");
    push_events(&mut query, events.iter().copied());
    query.push(" RETURNING event_id");
    let dropped: Vec<Vec<u8>> = query.build_query_scalar().fetch_all(connection).await?;
    dropped.into_iter().map(|column| event(TABLE, column)).collect()
}

/// What is buffered for a group, behind the cursor, in order.
pub(super) async fn list_kept(store: &Sqlite, group: GroupId, after: u64, limit: u32) -> Result<Vec<StoredUplink>> {
    let query =
        "SELECT seq, body FROM uplink WHERE group_id = ? AND seq > ? AND deliver = 0 AND settled = 0 ORDER BY seq LIMIT ?";
    let rows = page(store, query, group, after, limit).await?;
    rows.iter().map(stored).collect()
}

/// Drops settled rows that were heard before `before`; the highest counter of each session stays known. Returns how many went.
pub(super) async fn prune(store: &Sqlite, before: WallTime) -> Result<u64> {
    let mut transaction = store.writer.begin().await?;
    sqlx::query(
        "INSERT INTO pruned (group_id, device, session, f_cnt)
         SELECT group_id, device, session, max(f_cnt) FROM uplink WHERE heard_at < ? AND settled = 1 AND deliver = 1 AND NOT EXISTS
         (SELECT 1 FROM heard WHERE heard.event_id = uplink.event_id AND received = 0 AND dropped = 0)
         GROUP BY group_id, device, session
         ON CONFLICT (group_id, device, session) DO UPDATE SET f_cnt = max(f_cnt, excluded.f_cnt)",
    )
    .bind(signed(before.0))
    .execute(&mut *transaction)
    .await?;
    let done = sqlx::query(
        "DELETE FROM uplink WHERE heard_at < ? AND settled = 1 AND NOT EXISTS
         (SELECT 1 FROM heard WHERE heard.event_id = uplink.event_id AND received = 0 AND dropped = 0)",
    )
    .bind(signed(before.0))
    .execute(&mut *transaction)
    .await?;
    transaction.commit().await?;
    store.undecoded.doubt();
    Ok(done.rows_affected())
}

/// Forgets every uplink of a group: the contract ended and its grace is over.
pub(super) async fn wipe(store: &Sqlite, group: GroupId) -> Result<()> {
    let mut transaction = store.writer.begin().await?;
    for table in
        ["DELETE FROM uplink WHERE group_id = ? AND (settled = 1 OR deliver = 0)", "DELETE FROM pruned WHERE group_id = ?"]
    {
        sqlx::query(table).bind(group.as_bytes().as_slice()).execute(&mut *transaction).await?;
    }
    accounts::give_up_group(&mut transaction, group).await?;
    transaction.commit().await?;
    store.undecoded.doubt();
    Ok(())
}

/// Uplinks on the disk that the tenant of `group` still has to decode, behind the cursor, in order.
pub(super) async fn list_undecoded(store: &Sqlite, group: GroupId, after: u64, limit: u32) -> Result<Vec<StoredUplink>> {
    if let Some(held) = store.undecoded.list(group, after, store.syncs.place(), limit) {
        return Ok(held);
    }
    let query = "SELECT seq, body FROM uplink WHERE group_id = ? AND seq > ? AND decoded IS NULL AND deliver = 1 AND seq <= ? ORDER BY seq LIMIT ?";
    let rows = synced_page(store, query, group, after, limit).await?;
    rows.iter().map(stored).collect()
}

/// Uplinks on the disk for the tenant of `group`, decoded or not, behind the cursor, in order.
pub(super) async fn list_delivered(store: &Sqlite, group: GroupId, after: u64, limit: u32) -> Result<Vec<StoredUplink>> {
    let query = "SELECT seq, body FROM uplink WHERE group_id = ? AND seq > ? AND deliver = 1 AND seq <= ? ORDER BY seq LIMIT ?";
    let rows = synced_page(store, query, group, after, limit).await?;
    rows.iter().map(stored).collect()
}

/// Those of them that were heard at `since` or later.
pub(super) async fn list_delivered_since(
    store: &Sqlite,
    group: GroupId,
    since: WallTime,
    after: u64,
    limit: u32,
) -> Result<Vec<StoredUplink>> {
    let query =
        "SELECT seq, body FROM uplink WHERE group_id = ? AND heard_at >= ? AND seq > ? AND deliver = 1 ORDER BY seq LIMIT ?";
    let query = sqlx::query(query).bind(group.as_bytes().as_slice()).bind(signed(since.0)).bind(signed(after)).bind(limit);
    query.fetch_all(&mut *store.reader.acquire().await?).await?.iter().map(stored).collect()
}

/// All deliverable uplinks of a group that the customer's cloud has not acknowledged, with their reading if there is one, in order.
pub(super) async fn list_open(
    store: &Sqlite,
    group: GroupId,
    after: u64,
    limit: u32,
) -> Result<Vec<(StoredUplink, Option<String>)>> {
    let query = "SELECT seq, body, decoded FROM uplink
         WHERE group_id = ? AND seq > ? AND settled = 0 AND deliver = 1 ORDER BY seq LIMIT ?";
    let rows = page(store, query, group, after, limit).await?;
    rows.iter().map(|row| Ok((stored(row)?, row.try_get("decoded")?))).collect()
}

/// Readings of a group that are not settled, in the order in which they were published.
pub(super) async fn list_unsettled(store: &Sqlite, group: GroupId, after: u64, limit: u32) -> Result<Vec<(u64, Reading)>> {
    let query = "SELECT reading_seq, event_id, group_id, device, session, f_cnt, heard_at, kind, epoch, decoded FROM uplink
         WHERE group_id = ? AND decoded IS NOT NULL AND settled = 0 AND reading_seq > ? ORDER BY reading_seq LIMIT ?";
    let rows = page(store, query, group, after, limit).await?;
    rows.iter().map(|row| Ok((unsigned(TABLE, row.try_get("reading_seq")?)?, reading(TABLE, row)?))).collect()
}

/// Rows of a group behind the cursor. `query` takes group, cursor and limit, in this order.
async fn page(store: &Sqlite, query: &'static str, group: GroupId, after: u64, limit: u32) -> Result<Vec<SqliteRow>> {
    let rows = sqlx::query(query)
        .bind(group.as_bytes().as_slice())
        .bind(signed(after))
        .bind(limit)
        .fetch_all(&mut *store.reader.acquire().await?)
        .await?;
    Ok(rows)
}

/// The same, of what is on the disk. `query` takes group, cursor, last place and limit, in this order.
async fn synced_page(store: &Sqlite, query: &'static str, group: GroupId, after: u64, limit: u32) -> Result<Vec<SqliteRow>> {
    let query = sqlx::query(query).bind(group.as_bytes().as_slice()).bind(signed(after)).bind(signed(store.syncs.place()));
    Ok(query.bind(limit).fetch_all(&mut *store.reader.acquire().await?).await?)
}

/// An uplink from a row with `seq` and `body`.
pub(super) fn stored(row: &SqliteRow) -> Result<StoredUplink> {
    Ok(StoredUplink { seq: unsigned(TABLE, row.try_get("seq")?)?, uplink: body(row)? })
}

fn body(row: &SqliteRow) -> Result<Uplink> {
    let text: &str = row.try_get("body")?;
    serde_json::from_str(text).map_err(|e| Error::Row { table: TABLE, reason: e.to_string() })
}

/// A reading from the columns that the log and the inbox have in common.
pub(super) fn reading(table: &'static str, row: &SqliteRow) -> Result<Reading> {
    let event: Vec<u8> = row.try_get("event_id")?;
    let decoded: &str = row.try_get("decoded")?;
    let kind: &str = row.try_get("kind")?;
    Ok(Reading {
        event: super::event(table, event)?,
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

/// Deliverable uplinks of a group by name, behind the cursor, in order, and whether they are settled.
pub(super) async fn list_marks(store: &Sqlite, group: GroupId, after: u64, limit: u32) -> Result<Vec<(u64, Mark, bool)>> {
    let query = "SELECT seq, device, session, f_cnt, settled FROM uplink WHERE group_id = ? AND seq > ? AND deliver = 1 ORDER BY seq LIMIT ?";
    let rows = page(store, query, group, after, limit).await?;
    rows.iter().map(|row| Ok((unsigned(TABLE, row.try_get("seq")?)?, mark(row)?, row.try_get("settled")?))).collect()
}

/// The highest counter of each session of a group that was pruned.
pub(super) async fn list_pruned(store: &Sqlite, group: GroupId) -> Result<Vec<Mark>> {
    let query = sqlx::query("SELECT device, session, f_cnt FROM pruned WHERE group_id = ? ORDER BY device, session");
    query.bind(group.as_bytes().as_slice()).fetch_all(&mut *store.reader.acquire().await?).await?.iter().map(mark).collect()
}

fn mark(row: &SqliteRow) -> Result<Mark> {
    Ok(Mark {
        device: DevEui::from_bytes(bytes(TABLE, row.try_get("device")?)?),
        session: SessionId::from_bytes(bytes(TABLE, row.try_get("session")?)?),
        f_cnt: unsigned(TABLE, row.try_get("f_cnt")?)?,
    })
}

/// The highest place in the log that holds something not yet settled; 0 if all is.
pub(super) async fn last_open(store: &Sqlite, group: GroupId) -> Result<u64> {
    let last: Option<i64> = sqlx::query_scalar("SELECT max(seq) FROM uplink WHERE group_id = ? AND settled = 0 AND deliver = 1")
        .bind(group.as_bytes().as_slice())
        .fetch_one(&mut *store.reader.acquire().await?)
        .await?;
    unsigned(TABLE, last.unwrap_or(0))
}

/// Whether anything for the customer's cloud is not settled up to a place in the log.
pub(super) async fn has_open(store: &Sqlite, group: GroupId, upto: u64) -> Result<bool> {
    let open = sqlx::query_scalar(
        "SELECT EXISTS (SELECT 1 FROM uplink WHERE group_id = ? AND seq <= ? AND settled = 0 AND deliver = 1)",
    )
    .bind(group.as_bytes().as_slice())
    .bind(signed(upto))
    .fetch_one(&mut *store.reader.acquire().await?)
    .await?;
    Ok(open)
}

/// What waits, by group.
pub(super) async fn count_waiting(store: &Sqlite) -> Result<BTreeMap<GroupId, Waiting>> {
    // Each arm has a partial index that holds only what waits.
    let undecoded = "SELECT group_id, count(*) FROM uplink WHERE decoded IS NULL AND deliver = 1 GROUP BY group_id";
    let unsettled = "SELECT group_id, count(*) FROM uplink WHERE decoded IS NOT NULL AND settled = 0 GROUP BY group_id";
    let mut waiting: BTreeMap<GroupId, Waiting> = BTreeMap::new();
    let rows: Vec<(Vec<u8>, i64)> = sqlx::query_as(undecoded).fetch_all(&mut *store.reader.acquire().await?).await?;
    for (group, count) in rows {
        waiting.entry(GroupId::from_bytes(bytes(TABLE, group)?)).or_default().undecoded = unsigned(TABLE, count)?;
    }
    let rows: Vec<(Vec<u8>, i64)> = sqlx::query_as(unsettled).fetch_all(&mut *store.reader.acquire().await?).await?;
    for (group, count) in rows {
        waiting.entry(GroupId::from_bytes(bytes(TABLE, group)?)).or_default().unsettled = unsigned(TABLE, count)?;
    }
    Ok(waiting)
}

/// Length of a group's uplinks and readings heard since a time.
pub(super) async fn traffic_bytes(store: &Sqlite, group: GroupId, since: WallTime) -> Result<u64> {
    let sum: i64 = sqlx::query_scalar(
        "SELECT coalesce(sum(length(body) + coalesce(length(decoded), 0)), 0) FROM uplink WHERE group_id = ?1 AND heard_at >= ?2",
    )
    .bind(group.as_bytes().as_slice())
    .bind(signed(since.0))
    .fetch_one(&mut *store.reader.acquire().await?)
    .await?;
    unsigned(TABLE, sum)
}
