//! The store in one SQLite file: write-ahead log, `synchronous=FULL`, one connection that writes and a few that read.

use std::fs::{File, TryLockError};
use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use contracts::custody::{Durable, MemberIndex};
use contracts::envelope::{Envelope, Key};
use contracts::evidence::Input;
use contracts::ids::{ContractId, DevEui, Epoch, GroupId, NodeId, OwnerId, SessionId, StatementId};
use contracts::ledger::{Account, AccountId, Holder, Ledger, Transfer};
use contracts::money::Currency;
use contracts::time::WallTime;
use contracts::write_ahead::{Bound, JOINS, Reservation, SESSIONS_MAX};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteRow, SqliteSynchronous};
use sqlx::{Connection as _, QueryBuilder, Row as _, SqliteConnection};

use super::{
    Changes, ContractChange, ContractFilter, ContractRow, Error, EventRow, EvidenceRow, GrantRow, LedgerChange, NodeRow, Records,
    RecordsError, Result, SEALED_BYTES_MAX, SealedRow, Store, TransferRow, VerdictRow, both, touched,
};

/// Connections that read beside the one that writes.
const READERS_MAX: u32 = 4;

#[derive(Debug)]
pub struct Sqlite {
    writer: SqlitePool,
    readers: SqlitePool,
    /// Held as long as the store lives: votes allow one process per key.
    _lock: File,
}

/// A predecessor that is just ending may hold the lock for a moment: its last connections still end.
const LOCK_WAIT_MAX: std::time::Duration = std::time::Duration::from_secs(5);
/// Between two looks at the lock; the kernel tells nobody that it is free.
const LOCK_LOOK: std::time::Duration = std::time::Duration::from_millis(20);

async fn take_lock(lock: &File) -> Result<()> {
    let begun = tokio::time::Instant::now();
    loop {
        match lock.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) if begun.elapsed() < LOCK_WAIT_MAX => tokio::time::sleep(LOCK_LOOK).await,
            Err(TryLockError::WouldBlock) => return Err(Error::InUse),
            Err(TryLockError::Error(error)) => return Err(Error::Lock(error)),
        }
    }
}

impl Sqlite {
    /// Opens or creates the file and brings it to the present schema. A lock beside it keeps other processes out.
    ///
    /// # Errors
    /// [`Error::InUse`] if another process has it; [`Error::Sql`] or [`Error::Migrate`] if it cannot be opened or is not one of ours.
    pub async fn open(path: &Path) -> Result<Self> {
        let mut lock_path = path.as_os_str().to_owned();
        lock_path.push(".lock");
        let lock = File::options().create(true).truncate(false).write(true).open(lock_path)?;
        take_lock(&lock).await?;
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(Duration::from_secs(5));
        let writer = SqlitePoolOptions::new()
            .max_connections(1)
            .after_release(|connection, _| Box::pin(is_clean(connection)))
            .connect_with(options.clone())
            .await?;
        sqlx::migrate!("./migrations").run(&writer).await?;
        let readers = SqlitePoolOptions::new().max_connections(READERS_MAX).connect_with(options.read_only(true)).await?;
        Ok(Self { writer, readers, _lock: lock })
    }

    /// The file was put back from a copy of unknown age: in each group the witness first hears the other members, until it votes.
    ///
    /// # Errors
    /// The database failed.
    pub async fn mark_votes_restored(&self) -> Result<()> {
        let mark = "UPDATE votes SET durable = json_set(durable, '$.restored', json('true'))";
        sqlx::query(mark).execute(&self.writer).await?;
        Ok(())
    }
}

/// Whether a connection may be used again. On a full disk SQLite rolls a transaction back by itself; the driver's own rollback then fails, and
/// from then on it would take every transaction for one inside another: refused, or never committed.
async fn is_clean(connection: &mut SqliteConnection) -> std::result::Result<bool, sqlx::Error> {
    connection.ping().await?; // behind a rollback that is still on its way
    Ok(!connection.is_in_transaction())
}

/// SQLite's integers are signed; what is stored was limited before.
fn int(value: u64) -> Result<i64> {
    i64::try_from(value).map_err(Error::corrupt)
}

fn json(value: &impl Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(Error::corrupt)
}

/// Devices for SQLite's `json_each` and `unhex`.
fn hex_list<'a>(devices: impl IntoIterator<Item = &'a DevEui>) -> Result<String> {
    json(&devices.into_iter().map(|device| hex::encode(device.as_bytes())).collect::<Vec<_>>())
}

fn holder_bytes(holder: &Holder) -> &[u8] {
    match holder {
        Holder::External => &[],
        Holder::Owner(owner) => owner.as_bytes(),
    }
}

/// Typed reading of columns.
trait Columns {
    fn number(&self, column: &str) -> Result<u64>;
    fn bytes<const N: usize>(&self, column: &str) -> Result<[u8; N]>;
    fn parsed<T: DeserializeOwned>(&self, column: &str) -> Result<T>;
}

impl Columns for SqliteRow {
    fn number(&self, column: &str) -> Result<u64> {
        u64::try_from(self.try_get::<i64, _>(column)?).map_err(Error::corrupt)
    }

    fn bytes<const N: usize>(&self, column: &str) -> Result<[u8; N]> {
        self.try_get::<&[u8], _>(column)?.try_into().map_err(Error::corrupt)
    }

    fn parsed<T: DeserializeOwned>(&self, column: &str) -> Result<T> {
        serde_json::from_str(self.try_get(column)?).map_err(Error::corrupt)
    }
}

fn payload<T: DeserializeOwned>(envelope: &Envelope) -> Result<T> {
    serde_json::from_slice(&envelope.payload).map_err(Error::corrupt)
}

fn contract_from(row: &SqliteRow) -> Result<ContractRow> {
    let envelope: Envelope = row.parsed("envelope")?;
    Ok(ContractRow {
        seq: row.number("seq")?,
        id: ContractId::from_bytes(row.bytes("id")?),
        contract: payload(&envelope)?,
        envelope,
        standing: row.parsed("standing")?,
        version: row.number("version")?,
    })
}

fn evidence_from(row: &SqliteRow) -> Result<EvidenceRow> {
    Ok(EvidenceRow {
        seq: row.number("seq")?,
        id: StatementId::from_bytes(row.bytes("id")?),
        contract: ContractId::from_bytes(row.bytes("contract")?),
        author: NodeId::from_bytes(row.bytes("author")?).into(),
        received_at: WallTime(row.number("received_at")?),
        envelope: row.parsed("envelope")?,
    })
}

fn account_from(row: &SqliteRow) -> Result<(AccountId, Account)> {
    let holder: &[u8] = row.try_get("holder")?;
    let holder = if holder.is_empty() {
        Holder::External
    } else {
        Holder::Owner(OwnerId::from_bytes(holder.try_into().map_err(Error::corrupt)?))
    };
    let currency = Currency::new(row.try_get("currency")?).ok_or_else(|| Error::corrupt("currency"))?;
    let account =
        Account::from_stored(row.try_get("posted")?, row.number("reserved")?).ok_or_else(|| Error::corrupt("balance"))?;
    Ok((AccountId { holder, currency }, account))
}

fn verdict_from(row: &SqliteRow) -> Result<VerdictRow> {
    let envelope: Envelope = row.parsed("envelope")?;
    Ok(VerdictRow { verdict: payload(&envelope)?, envelope })
}

/// Exactly one row was written, or somebody else was first.
fn one(result: &sqlx::sqlite::SqliteQueryResult) -> Result<()> {
    if result.rows_affected() == 1 { Ok(()) } else { Err(Error::Changed) }
}

async fn write_contract(db: &mut SqliteConnection, change: ContractChange) -> Result<()> {
    match change {
        ContractChange::Enter { id, contract, envelope, standing } => {
            let due_at = standing.due_at(&contract).map(|due| int(due.0)).transpose()?;
            let insert = "INSERT OR IGNORE INTO contracts (id, group_id, in_force, due_at, version, standing, envelope)
                VALUES (?, ?, 1, ?, 1, ?, ?)";
            let query = sqlx::query(insert).bind(id.as_bytes().as_slice()).bind(contract.group.as_bytes().as_slice());
            one(&query.bind(due_at).bind(json(&standing)?).bind(json(&envelope)?).execute(&mut *db).await?)?;
            for node in contract.members() {
                let query = sqlx::query("INSERT INTO contract_members (node, contract) VALUES (?, ?)");
                query.bind(node.as_bytes().as_slice()).bind(id.as_bytes().as_slice()).execute(&mut *db).await?;
            }
            // In one statement: there may be ten thousand, and votes wait for this writer.
            let insert = "INSERT INTO contract_devices (device, contract) SELECT unhex(value), ? FROM json_each(?)";
            let query = sqlx::query(insert).bind(id.as_bytes().as_slice());
            query.bind(hex_list(&contract.devices)?).execute(&mut *db).await?;
        }
        ContractChange::Stand { id, version, standing, due_at } => {
            let in_force = standing.state.is_in_force();
            let update =
                "UPDATE contracts SET in_force = ?, due_at = ?, version = version + 1, standing = ? WHERE id = ? AND version = ?";
            let query = sqlx::query(update).bind(in_force).bind(due_at.map(|due| int(due.0)).transpose()?);
            one(&query.bind(json(&standing)?).bind(id.as_bytes().as_slice()).bind(int(version)?).execute(&mut *db).await?)?;
            if !in_force {
                let query = sqlx::query("DELETE FROM contract_devices WHERE contract = ?");
                query.bind(id.as_bytes().as_slice()).execute(&mut *db).await?;
            }
        }
    }
    Ok(())
}

async fn write_ledger(db: &mut SqliteConnection, change: LedgerChange, at: i64) -> Result<()> {
    let update = sqlx::query("UPDATE ledger_version SET version = version + 1 WHERE version = ?");
    one(&update.bind(int(change.version)?).execute(&mut *db).await?)?;
    for (id, account) in change.accounts {
        let query = sqlx::query("INSERT OR REPLACE INTO accounts (holder, currency, posted, reserved) VALUES (?, ?, ?, ?)");
        let query = query.bind(holder_bytes(&id.holder)).bind(id.currency.as_str()).bind(account.posted_micros());
        query.bind(int(account.reserved().micros())?).execute(&mut *db).await?;
    }
    for (id, pending) in change.pendings {
        let query = sqlx::query("INSERT OR REPLACE INTO pendings (id, pending) VALUES (?, ?)");
        query.bind(id.as_uuid().as_bytes().as_slice()).bind(json(&pending)?).execute(&mut *db).await?;
    }
    for (transfer, movement) in change.transfers {
        let insert = "INSERT INTO transfers (id, debit, credit, made_at, movement, transfer) VALUES (?, ?, ?, ?, ?, ?)";
        let query = sqlx::query(insert).bind(transfer.id.as_uuid().as_bytes().as_slice()).bind(holder_bytes(&movement.debit));
        let query = query.bind(holder_bytes(&movement.credit)).bind(at);
        query.bind(json(&movement)?).bind(json(&transfer)?).execute(&mut *db).await?;
    }
    Ok(())
}

async fn write(db: &mut SqliteConnection, changes: Changes) -> Result<()> {
    let at = int(changes.at.0)?;
    for node in changes.nodes {
        let query = sqlx::query("INSERT OR REPLACE INTO nodes (node, owner, record_epoch, envelope) VALUES (?, ?, ?, ?)");
        let query = query.bind(node.record.node.as_bytes().as_slice()).bind(node.record.owner.as_bytes().as_slice());
        query.bind(int(node.record.record_epoch)?).bind(json(&node.envelope)?).execute(&mut *db).await?;
    }
    if let Some(change) = changes.contract {
        write_contract(db, change).await?;
    }
    if let Some(row) = changes.evidence {
        let insert = "INSERT OR IGNORE INTO evidence (id, contract, author, received_at, envelope) VALUES (?, ?, ?, ?, ?)";
        let query = sqlx::query(insert).bind(row.id.as_bytes().as_slice()).bind(row.contract.as_bytes().as_slice());
        let query = query.bind(row.author.as_bytes().as_slice()).bind(int(row.received_at.0)?);
        one(&query.bind(json(&row.envelope)?).execute(&mut *db).await?)?;
    }
    if let Some((id, envelope)) = changes.order {
        let query = sqlx::query("INSERT OR IGNORE INTO orders (id, envelope) VALUES (?, ?)");
        one(&query.bind(id.as_bytes().as_slice()).bind(json(&envelope)?).execute(&mut *db).await?)?;
    }
    if let Some(change) = changes.ledger {
        write_ledger(db, change, at).await?;
    }
    if let Some(row) = changes.verdict {
        let query = sqlx::query("INSERT INTO verdicts (contract, provider_owner, envelope) VALUES (?, ?, ?)");
        let query = query.bind(row.verdict.contract.as_bytes().as_slice()).bind(row.verdict.provider.owner.as_bytes().as_slice());
        query.bind(json(&row.envelope)?).execute(&mut *db).await?;
    }
    if let Some((group, epoch)) = changes.reported {
        let query = sqlx::query("UPDATE grants SET reported = 1 WHERE group_id = ? AND epoch = ?");
        query.bind(group.as_bytes().as_slice()).bind(int(epoch.0)?).execute(&mut *db).await?;
    }
    for body in changes.events {
        let query = sqlx::query("INSERT INTO events (at, body) VALUES (?, ?)");
        query.bind(at).bind(json(&body)?).execute(&mut *db).await?;
    }
    Ok(())
}

async fn write_records(
    db: &mut SqliteConnection,
    group: GroupId,
    reservation: &Reservation,
    sealed: &[(DevEui, Vec<u8>)],
) -> std::result::Result<(), RecordsError> {
    let group = group.as_bytes().as_slice();
    for joins in reservation.bounds.iter().filter(|bound| bound.session == JOINS) {
        // A newer join ends the device's other sessions; a reservation of the new one may have come before.
        let end = "DELETE FROM record_bounds WHERE group_id = ?1 AND device = ?2
            AND NOT EXISTS (SELECT 1 FROM json_each(?5) WHERE value = lower(hex(record_bounds.session)))
            AND NOT EXISTS (SELECT 1 FROM record_bounds WHERE group_id = ?1 AND device = ?2 AND session = ?3 AND upto >= ?4)";
        let named = reservation.bounds.iter().filter(|bound| bound.device == joins.device);
        let named: Vec<String> = named.map(|bound| bound.session.to_string()).collect();
        let query = sqlx::query(end).bind(group).bind(joins.device.as_bytes().as_slice());
        let query = query.bind(JOINS.as_bytes().as_slice()).bind(joins.upto).bind(serde_json::json!(named).to_string());
        query.execute(&mut *db).await.map_err(Error::from)?;
    }
    for bound in &reservation.bounds {
        let upsert = "INSERT INTO record_bounds (group_id, device, session, upto) VALUES (?, ?, ?, ?)
            ON CONFLICT DO UPDATE SET upto = excluded.upto WHERE excluded.upto > upto";
        let query = sqlx::query(upsert).bind(group).bind(bound.device.as_bytes().as_slice());
        let query = query.bind(bound.session.as_bytes().as_slice()).bind(bound.upto);
        query.execute(&mut *db).await.map_err(Error::from)?;
    }
    for (device, blob) in sealed {
        let upsert = "INSERT INTO record_sealed (group_id, device, epoch, seq, blob) VALUES (?, ?, ?, ?, ?)
            ON CONFLICT DO UPDATE SET epoch = excluded.epoch, seq = excluded.seq, blob = excluded.blob
            WHERE (excluded.epoch, excluded.seq) > (epoch, seq)";
        let query = sqlx::query(upsert).bind(group).bind(device.as_bytes().as_slice()).bind(int(reservation.epoch.0)?);
        query.bind(int(reservation.seq)?).bind(blob).execute(&mut *db).await.map_err(Error::from)?;
    }
    let select = "SELECT (SELECT COUNT(*) FROM record_bounds WHERE group_id = ?1),
        (SELECT COALESCE(SUM(length(blob)), 0) FROM record_sealed WHERE group_id = ?1)";
    let (bounds, bytes): (i64, i64) = sqlx::query_as(select).bind(group).fetch_one(&mut *db).await.map_err(Error::from)?;
    let within = |n: i64, max: usize| usize::try_from(n).is_ok_and(|n| n <= max);
    if within(bounds, SESSIONS_MAX) && within(bytes, SEALED_BYTES_MAX) { Ok(()) } else { Err(RecordsError::Full) }
}

#[async_trait]
impl Store for Sqlite {
    async fn node(&self, id: NodeId) -> Result<Option<NodeRow>> {
        let query = sqlx::query_scalar("SELECT envelope FROM nodes WHERE node = ?").bind(id.as_bytes().as_slice());
        let Some(text) = query.fetch_optional(&self.readers).await? else { return Ok(None) };
        let text: String = text;
        let envelope: Envelope = serde_json::from_str(&text).map_err(Error::corrupt)?;
        Ok(Some(NodeRow { record: payload(&envelope)?, envelope }))
    }

    async fn node_count(&self) -> Result<u64> {
        let count: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM nodes").fetch_one(&self.readers).await?;
        u64::try_from(count).map_err(Error::corrupt)
    }

    async fn contract(&self, id: ContractId) -> Result<Option<ContractRow>> {
        let query = sqlx::query("SELECT * FROM contracts WHERE id = ?").bind(id.as_bytes().as_slice());
        query.fetch_optional(&self.readers).await?.as_ref().map(contract_from).transpose()
    }

    async fn contracts(&self, filter: ContractFilter) -> Result<Vec<ContractRow>> {
        // Only the conditions that there are: with all of them in one statement no index would be used.
        let mut query = QueryBuilder::<sqlx::Sqlite>::new("SELECT c.* FROM contracts c WHERE c.seq > ");
        query.push_bind(int(filter.after)?);
        if let Some(member) = filter.member {
            query.push(" AND EXISTS (SELECT 1 FROM contract_members m WHERE m.contract = c.id AND m.node = ");
            query.push_bind(member.as_bytes().to_vec()).push(")");
        }
        if let Some(group) = filter.group {
            query.push(" AND c.group_id = ").push_bind(group.as_bytes().to_vec());
        }
        match filter.in_force {
            // As the index says it.
            Some(true) => query.push(" AND c.in_force = 1"),
            Some(false) => query.push(" AND c.in_force = 0"),
            None => &mut query,
        };
        if let Some(since) = filter.ended_since {
            // As the index says it.
            query.push(" AND c.in_force = 0 AND json_extract(c.standing, '$.ended.at') >= ").push_bind(int(since.0)?);
        }
        if let Some(due) = filter.due {
            query.push(" AND c.due_at IS NOT NULL AND c.due_at <= ").push_bind(int(due.0)?);
        }
        query.push(" ORDER BY c.seq LIMIT ").push_bind(filter.limit);
        query.build().fetch_all(&self.readers).await?.iter().map(contract_from).collect()
    }

    async fn covering(&self, devices: &[DevEui]) -> Result<Vec<ContractRow>> {
        let select = "SELECT * FROM contracts WHERE id IN
            (SELECT d.contract FROM json_each(?) named JOIN contract_devices d ON d.device = unhex(named.value)) ORDER BY seq";
        let rows = sqlx::query(select).bind(hex_list(devices)?).fetch_all(&self.readers).await?;
        rows.iter().map(contract_from).collect()
    }

    async fn statement(&self, id: StatementId) -> Result<Option<EvidenceRow>> {
        let query = sqlx::query("SELECT * FROM evidence WHERE id = ?").bind(id.as_bytes().as_slice());
        query.fetch_optional(&self.readers).await?.as_ref().map(evidence_from).transpose()
    }

    async fn evidence(&self, contract: ContractId, after: u64, limit: u32) -> Result<Vec<EvidenceRow>> {
        let query = sqlx::query("SELECT * FROM evidence WHERE contract = ? AND seq > ? ORDER BY seq LIMIT ?");
        let query = query.bind(contract.as_bytes().as_slice()).bind(int(after)?).bind(limit);
        query.fetch_all(&self.readers).await?.iter().map(evidence_from).collect()
    }

    async fn inputs(&self, contract: ContractId) -> Result<Vec<Input>> {
        let query = sqlx::query("SELECT id, received_at FROM evidence WHERE contract = ? ORDER BY seq");
        let rows = query.bind(contract.as_bytes().as_slice()).fetch_all(&self.readers).await?;
        let input = |row: &SqliteRow| {
            Ok(Input { statement: StatementId::from_bytes(row.bytes("id")?), received_at: WallTime(row.number("received_at")?) })
        };
        rows.iter().map(input).collect()
    }

    async fn evidence_count(&self, contract: ContractId, author: Key) -> Result<u64> {
        let query = sqlx::query_scalar("SELECT COUNT(*) FROM evidence WHERE contract = ? AND author = ?");
        let count: i64 =
            query.bind(contract.as_bytes().as_slice()).bind(author.as_bytes().as_slice()).fetch_one(&self.readers).await?;
        u64::try_from(count).map_err(Error::corrupt)
    }

    async fn ledger(&self, transfers: &[Transfer]) -> Result<(Ledger, u64)> {
        let mut db = self.readers.acquire().await?;
        let mut snapshot = db.begin().await?;
        let (ids, mut accounts) = touched(transfers);
        let mut part = Ledger::default();
        for id in ids {
            let bytes = id.as_uuid().as_bytes().as_slice();
            let query = sqlx::query("SELECT transfer FROM transfers WHERE id = ?").bind(bytes);
            if let Some(row) = query.fetch_optional(&mut *snapshot).await? {
                part.transfers.insert(id, row.parsed("transfer")?);
            }
            let query = sqlx::query("SELECT pending FROM pendings WHERE id = ?").bind(bytes);
            if let Some(row) = query.fetch_optional(&mut *snapshot).await? {
                let pending: contracts::ledger::Pending = row.parsed("pending")?;
                accounts.extend(both(&pending.movement));
                part.pendings.insert(id, pending);
            }
        }
        for id in accounts {
            let query = sqlx::query("SELECT * FROM accounts WHERE holder = ? AND currency = ?");
            let row = query.bind(holder_bytes(&id.holder)).bind(id.currency.as_str()).fetch_optional(&mut *snapshot).await?;
            part.accounts.extend(row.as_ref().map(account_from).transpose()?);
        }
        let version: i64 = sqlx::query_scalar("SELECT version FROM ledger_version").fetch_one(&mut *snapshot).await?;
        snapshot.commit().await?;
        Ok((part, u64::try_from(version).map_err(Error::corrupt)?))
    }

    async fn accounts(&self, owner: OwnerId) -> Result<Vec<(AccountId, Account)>> {
        let query = sqlx::query("SELECT * FROM accounts WHERE holder = ? ORDER BY currency").bind(owner.as_bytes().as_slice());
        query.fetch_all(&self.readers).await?.iter().map(account_from).collect()
    }

    async fn sums(&self) -> Result<Vec<(String, i64)>> {
        let query = sqlx::query_as("SELECT currency, SUM(posted) FROM accounts GROUP BY currency ORDER BY currency");
        Ok(query.fetch_all(&self.readers).await?)
    }

    async fn transfers(&self, owner: Option<OwnerId>, after: u64, limit: u32) -> Result<Vec<TransferRow>> {
        let select = "SELECT * FROM transfers WHERE seq > ?1 AND (?2 IS NULL OR debit = ?2 OR credit = ?2) ORDER BY seq LIMIT ?3";
        let query = sqlx::query(select).bind(int(after)?).bind(owner.map(|owner| owner.as_bytes().to_vec())).bind(limit);
        let row = |row: &SqliteRow| {
            Ok(TransferRow {
                seq: row.number("seq")?,
                transfer: row.parsed("transfer")?,
                movement: row.parsed("movement")?,
                made_at: WallTime(row.number("made_at")?),
            })
        };
        query.fetch_all(&self.readers).await?.iter().map(row).collect()
    }

    async fn order(&self, id: StatementId) -> Result<Option<Envelope>> {
        let query = sqlx::query("SELECT envelope FROM orders WHERE id = ?").bind(id.as_bytes().as_slice());
        query.fetch_optional(&self.readers).await?.map(|row| row.parsed("envelope")).transpose()
    }

    async fn verdict(&self, contract: ContractId) -> Result<Option<VerdictRow>> {
        let query = sqlx::query("SELECT envelope FROM verdicts WHERE contract = ?").bind(contract.as_bytes().as_slice());
        query.fetch_optional(&self.readers).await?.as_ref().map(verdict_from).transpose()
    }

    async fn verdicts_about(&self, owner: OwnerId, limit: u32) -> Result<Vec<VerdictRow>> {
        let query = sqlx::query("SELECT envelope FROM verdicts WHERE provider_owner = ? ORDER BY seq DESC LIMIT ?");
        query.bind(owner.as_bytes().as_slice()).bind(limit).fetch_all(&self.readers).await?.iter().map(verdict_from).collect()
    }

    async fn events(&self, after: u64, limit: u32) -> Result<Vec<EventRow>> {
        let query = sqlx::query("SELECT * FROM events WHERE seq > ? ORDER BY seq LIMIT ?").bind(int(after)?).bind(limit);
        let row = |row: &SqliteRow| {
            Ok(EventRow { seq: row.number("seq")?, at: WallTime(row.number("at")?), body: row.parsed("body")? })
        };
        query.fetch_all(&self.readers).await?.iter().map(row).collect()
    }

    async fn last_event(&self) -> Result<u64> {
        let seq: i64 = sqlx::query_scalar("SELECT COALESCE(MAX(seq), 0) FROM events").fetch_one(&self.readers).await?;
        u64::try_from(seq).map_err(Error::corrupt)
    }

    async fn commit(&self, changes: Changes) -> Result<()> {
        let mut transaction = self.writer.begin_with("BEGIN IMMEDIATE").await?;
        write(&mut transaction, changes).await?;
        Ok(transaction.commit().await?)
    }

    async fn persist_votes(&self, batch: &[(GroupId, Durable)], at: WallTime) -> Result<()> {
        let mut transaction = self.writer.begin_with("BEGIN IMMEDIATE").await?;
        for (group, durable) in batch {
            let (group, epoch) = (group.as_bytes().as_slice(), int(durable.voted_epoch.0)?);
            let voted_for = durable.voted_for.map(|member| i64::from(member.0));
            let query =
                sqlx::query("INSERT OR REPLACE INTO votes (group_id, voted_epoch, voted_for, durable) VALUES (?, ?, ?, ?)");
            query.bind(group).bind(epoch).bind(voted_for).bind(json(durable)?).execute(&mut *transaction).await?;
            if voted_for.is_some() && epoch > 0 {
                let query =
                    sqlx::query("INSERT OR IGNORE INTO grants (group_id, epoch, voted_for, granted_at) VALUES (?, ?, ?, ?)");
                query.bind(group).bind(epoch).bind(voted_for).bind(int(at.0)?).execute(&mut *transaction).await?;
            }
        }
        Ok(transaction.commit().await?)
    }

    async fn votes(&self, group: GroupId) -> Result<Option<Durable>> {
        let query = sqlx::query("SELECT durable FROM votes WHERE group_id = ?").bind(group.as_bytes().as_slice());
        query.fetch_optional(&self.readers).await?.map(|row| row.parsed("durable")).transpose()
    }

    async fn unreported_grants(&self, group: Option<GroupId>, limit: u32) -> Result<Vec<GrantRow>> {
        let select =
            "SELECT * FROM grants WHERE reported = 0 AND (?1 IS NULL OR group_id = ?1) ORDER BY group_id, epoch LIMIT ?2";
        let query = sqlx::query(select).bind(group.map(|group| group.as_bytes().to_vec())).bind(limit);
        let rows = query.fetch_all(&self.readers).await?;
        let row = |row: &SqliteRow| {
            Ok(GrantRow {
                group: GroupId::from_bytes(row.bytes("group_id")?),
                epoch: Epoch(row.number("epoch")?),
                voted_for: MemberIndex(u8::try_from(row.number("voted_for")?).map_err(Error::corrupt)?),
                granted_at: WallTime(row.number("granted_at")?),
            })
        };
        rows.iter().map(row).collect()
    }

    async fn put_records(
        &self,
        group: GroupId,
        holder: MemberIndex,
        reservation: &Reservation,
        sealed: &[(DevEui, Vec<u8>)],
    ) -> std::result::Result<(), RecordsError> {
        let mut transaction = self.writer.begin_with("BEGIN IMMEDIATE").await.map_err(Error::from)?;
        let query = sqlx::query("SELECT durable FROM votes WHERE group_id = ?").bind(group.as_bytes().as_slice());
        let row = query.fetch_optional(&mut *transaction).await.map_err(Error::from)?;
        let voted: Durable = row.map(|row| row.parsed("durable")).transpose()?.unwrap_or_default();
        if voted.voted_epoch != reservation.epoch || voted.holder() != Some(holder) {
            return Err(RecordsError::NotTheHolder { voted_epoch: voted.voted_epoch });
        }
        write_records(&mut transaction, group, reservation, sealed).await?;
        Ok(transaction.commit().await.map_err(Error::from)?)
    }

    async fn records(&self, group: GroupId) -> Result<Records> {
        let group = group.as_bytes().as_slice();
        let query = sqlx::query("SELECT * FROM record_bounds WHERE group_id = ? ORDER BY device, session").bind(group);
        let bound = |row: &SqliteRow| {
            Ok(Bound {
                device: DevEui::from_bytes(row.bytes("device")?),
                session: SessionId::from_bytes(row.bytes("session")?),
                upto: u32::try_from(row.number("upto")?).map_err(Error::corrupt)?,
            })
        };
        let bounds = query.fetch_all(&self.readers).await?.iter().map(bound).collect::<Result<_>>()?;
        let query = sqlx::query("SELECT * FROM record_sealed WHERE group_id = ? ORDER BY device").bind(group);
        let sealed = |row: &SqliteRow| {
            Ok(SealedRow {
                device: DevEui::from_bytes(row.bytes("device")?),
                epoch: Epoch(row.number("epoch")?),
                seq: row.number("seq")?,
                blob: row.try_get("blob")?,
            })
        };
        let sealed = query.fetch_all(&self.readers).await?.iter().map(sealed).collect::<Result<_>>()?;
        Ok(Records { bounds, sealed })
    }
}
