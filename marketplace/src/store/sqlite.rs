//! The store in one SQLite file: write-ahead log, `synchronous=FULL`, one connection that writes and a few that read.

use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use async_trait::async_trait;
use contracts::envelope::Envelope;
use contracts::ids::{ContractId, NodeId, OwnerId, StatementId};
use contracts::money::Currency;
use contracts::node_record::Role;
use contracts::time::WallTime;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteRow, SqliteSynchronous};
use sqlx::{Connection as _, Row as _, SqliteConnection};

use super::{Counts, Error, HISTORY_ROWS_MAX, ListingFilter, MatchFilter, NodeFilter, Rows, Store, Window, build_book};
use crate::book::Book;
use crate::resource::{Event, EventKind, Listing, Match, MatchState, Node, Round, Subject, Sum, Totals};

/// Connections that read beside the one that writes.
const READERS_MAX: u32 = 4;

#[derive(Debug)]
pub struct Sqlite {
    writer: SqlitePool,
    readers: SqlitePool,
}

impl Sqlite {
    /// Opens or creates the file and brings it to the present schema.
    ///
    /// # Errors
    /// [`Error::Sql`] if it cannot be opened, [`Error::Migrate`] if its schema is not one of ours.
    pub async fn open(path: &Path) -> Result<Self, Error> {
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
        Ok(Self { writer, readers })
    }
}

/// Whether a connection may be used again. On a full disk SQLite rolls a transaction back by itself; the driver's own rollback then fails, and
/// from then on it would take every transaction for one inside another: refused, or never committed.
async fn is_clean(connection: &mut SqliteConnection) -> std::result::Result<bool, sqlx::Error> {
    connection.ping().await?; // behind a rollback that is still on its way
    Ok(!connection.is_in_transaction())
}

/// SQLite's integers are signed; what is stored was limited before.
fn int(value: u64) -> Result<i64, Error> {
    i64::try_from(value).map_err(Error::corrupt)
}

fn json(envelope: &Envelope) -> Result<String, Error> {
    serde_json::to_string(envelope).map_err(Error::corrupt)
}

/// Roles as in JSON.
const fn role_text(role: Role) -> &'static str {
    match role {
        Role::Edge => "edge",
        Role::Cloud => "cloud",
        Role::Arbitrator => "arbitrator",
        Role::Marketplace => "marketplace",
    }
}

/// Typed reading of columns.
trait Columns {
    fn number(&self, column: &str) -> Result<u64, Error>;
    fn parsed<T: FromStr<Err: std::fmt::Display>>(&self, column: &str) -> Result<T, Error>;
    fn optional<T: FromStr<Err: std::fmt::Display>>(&self, column: &str) -> Result<Option<T>, Error>;
    fn envelope(&self, column: &str) -> Result<Envelope, Error>;

    fn time(&self, column: &str) -> Result<WallTime, Error> {
        self.number(column).map(WallTime)
    }
}

impl Columns for SqliteRow {
    fn number(&self, column: &str) -> Result<u64, Error> {
        u64::try_from(self.try_get::<i64, _>(column)?).map_err(Error::corrupt)
    }

    fn parsed<T: FromStr<Err: std::fmt::Display>>(&self, column: &str) -> Result<T, Error> {
        self.try_get::<&str, _>(column)?.parse().map_err(Error::corrupt)
    }

    fn optional<T: FromStr<Err: std::fmt::Display>>(&self, column: &str) -> Result<Option<T>, Error> {
        self.try_get::<Option<&str>, _>(column)?.map(|text| text.parse().map_err(Error::corrupt)).transpose()
    }

    fn envelope(&self, column: &str) -> Result<Envelope, Error> {
        serde_json::from_str(self.try_get(column)?).map_err(Error::corrupt)
    }
}

fn node_from(row: &SqliteRow) -> Result<Node, Error> {
    let role: &str = row.try_get("role")?;
    let known = [Role::Edge, Role::Cloud, Role::Arbitrator, Role::Marketplace].into_iter().find(|r| role_text(*r) == role);
    Ok(Node {
        id: row.parsed("id")?,
        owner: row.parsed("owner")?,
        name: row.try_get("name")?,
        role: known.ok_or_else(|| Error::corrupt(role))?,
        record_epoch: row.number("record_epoch")?,
        registered_at: row.time("registered_at")?,
        record: row.envelope("record")?,
    })
}

fn listing_from(row: &SqliteRow) -> Result<Listing, Error> {
    let withdrawal: Option<&str> = row.try_get("withdrawal")?;
    Ok(Listing {
        id: row.parsed("id")?,
        kind: row.parsed("kind")?,
        node: row.parsed("node")?,
        owner: row.parsed("owner")?,
        state: row.parsed("state")?,
        listed_at: row.time("listed_at")?,
        valid_from: row.time("valid_from")?,
        valid_until: row.time("valid_until")?,
        statement: row.envelope("statement")?,
        withdrawal: withdrawal.map(serde_json::from_str).transpose().map_err(Error::corrupt)?,
    })
}

fn match_from(row: &SqliteRow) -> Result<Match, Error> {
    Ok(Match {
        id: row.parsed("id")?,
        round: row.number("round")?,
        offer: row.parsed("offer")?,
        demand: row.parsed("demand")?,
        provider: row.parsed("provider")?,
        customer: row.parsed("customer")?,
        state: row.parsed("state")?,
        matched_at: row.time("matched_at")?,
        until: row.time("until")?,
        contract: row.optional("contract")?,
        statement: row.envelope("statement")?,
        provider_record: row.envelope("provider_record")?,
        customer_record: row.envelope("customer_record")?,
    })
}

fn event_from(row: &SqliteRow) -> Result<Event, Error> {
    Ok(Event {
        seq: row.number("seq")?,
        kind: row.parsed("kind")?,
        subject: row.parsed("subject")?,
        id: row.parsed("id")?,
        node: row.parsed("node")?,
        peer: row.optional("peer")?,
        at: row.time("at")?,
    })
}

fn round_from(row: &SqliteRow) -> Result<Round, Error> {
    Ok(Round {
        round: row.number("round")?,
        currency: Currency::new(row.try_get("currency")?).ok_or_else(|| Error::corrupt("currency"))?,
        at: row.time("at")?,
        offers: row.number("offers")?,
        demands: row.number("demands")?,
        edges: row.number("edges")?,
        matched: row.number("matched")?,
        volume: Sum(row.parsed("volume")?),
        surplus: Sum(row.parsed("surplus")?),
        bound: Sum(row.parsed("bound")?),
        exact: row.try_get("exact")?,
    })
}

fn numbered<T>(rows: &[SqliteRow], from: impl Fn(&SqliteRow) -> Result<T, Error>) -> Result<Rows<T>, Error> {
    rows.iter().map(|row| Ok((row.number("seq")?, from(row)?))).collect()
}

async fn tell(
    db: &mut SqliteConnection,
    kind: EventKind,
    subject: Subject,
    id: StatementId,
    (node, peer): (NodeId, Option<NodeId>),
    at: WallTime,
) -> Result<(), Error> {
    sqlx::query("INSERT INTO events (kind, subject, id, node, peer, at) VALUES (?, ?, ?, ?, ?, ?)")
        .bind(kind.as_str())
        .bind(subject.as_str())
        .bind(id.to_string())
        .bind(node.to_string())
        .bind(peer.map(|p| p.to_string()))
        .bind(int(at.0)?)
        .execute(db)
        .await?;
    Ok(())
}

/// Tells what became of the matches in `ended` (columns id, provider, customer), in order of id.
async fn tell_matches(db: &mut SqliteConnection, ended: &[SqliteRow], kind: EventKind, now: WallTime) -> Result<(), Error> {
    let parties = |row: &SqliteRow| Ok::<_, Error>((row.parsed("id")?, row.parsed("provider")?, row.parsed("customer")?));
    let mut all: Vec<(StatementId, NodeId, NodeId)> = ended.iter().map(parties).collect::<Result<_, _>>()?;
    all.sort_unstable();
    for (id, provider, customer) in all {
        tell(db, kind, Subject::Match, id, (provider, Some(customer)), now).await?;
    }
    Ok(())
}

/// Whether the match was inserted: both listings open and the demand without another.
async fn insert_match(db: &mut SqliteConnection, row: &Match) -> Result<bool, Error> {
    let result = sqlx::query(
        "INSERT INTO matches (id, round, offer, demand, provider, customer, state, matched_at, until, statement)
         SELECT ?1, ?2, o.id, d.id, ?5, ?6, ?7, ?8, ?9, ?10 FROM listings o, listings d
         WHERE o.id = ?3 AND o.state = 'open' AND d.id = ?4 AND d.state = 'open'
           AND NOT EXISTS (SELECT 1 FROM matches m WHERE m.demand = d.id AND m.state IN ('held', 'confirmed'))",
    )
    .bind(row.id.to_string())
    .bind(int(row.round)?)
    .bind(row.offer.to_string())
    .bind(row.demand.to_string())
    .bind(row.provider.to_string())
    .bind(row.customer.to_string())
    .bind(row.state.as_str())
    .bind(int(row.matched_at.0)?)
    .bind(int(row.until.0)?)
    .bind(json(&row.statement)?)
    .execute(db)
    .await?;
    Ok(result.rows_affected() == 1)
}

async fn insert_round(db: &mut SqliteConnection, row: &Round) -> Result<(), Error> {
    sqlx::query(
        "INSERT INTO rounds (round, currency, at, offers, demands, edges, matched, volume, surplus, bound, exact)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(int(row.round)?)
    .bind(row.currency.as_str())
    .bind(int(row.at.0)?)
    .bind(int(row.offers)?)
    .bind(int(row.demands)?)
    .bind(int(row.edges)?)
    .bind(int(row.matched)?)
    .bind(row.volume.0.to_string())
    .bind(row.surplus.0.to_string())
    .bind(row.bound.0.to_string())
    .bind(row.exact)
    .execute(db)
    .await?;
    Ok(())
}

#[async_trait]
impl Store for Sqlite {
    async fn ping(&self) -> Result<(), Error> {
        sqlx::query("SELECT 1").execute(&self.readers).await?;
        Ok(())
    }

    async fn register_node(&self, node: &Node) -> Result<(), Error> {
        sqlx::query(
            "INSERT INTO nodes (id, owner, name, role, record_epoch, registered_at, record) VALUES (?, ?, ?, ?, ?, ?, ?)
             ON CONFLICT (id) DO UPDATE SET owner = excluded.owner, name = excluded.name, role = excluded.role,
               record_epoch = excluded.record_epoch, registered_at = excluded.registered_at, record = excluded.record",
        )
        .bind(node.id.to_string())
        .bind(node.owner.to_string())
        .bind(&node.name)
        .bind(role_text(node.role))
        .bind(int(node.record_epoch)?)
        .bind(int(node.registered_at.0)?)
        .bind(json(&node.record)?)
        .execute(&self.writer)
        .await?;
        Ok(())
    }

    async fn get_node(&self, id: NodeId) -> Result<Option<Node>, Error> {
        let row = sqlx::query("SELECT * FROM nodes WHERE id = ?").bind(id.to_string()).fetch_optional(&self.readers).await?;
        row.as_ref().map(node_from).transpose()
    }

    async fn list_nodes(&self, filter: NodeFilter, page: Window) -> Result<Rows<Node>, Error> {
        let rows = sqlx::query(
            "SELECT * FROM nodes WHERE seq > ?1 AND (?2 IS NULL OR owner = ?2) AND (?3 IS NULL OR role = ?3) ORDER BY seq LIMIT ?4",
        )
        .bind(int(page.after)?)
        .bind(filter.owner.map(|o| o.to_string()))
        .bind(filter.role.map(role_text))
        .bind(page.limit)
        .fetch_all(&self.readers)
        .await?;
        numbered(&rows, node_from)
    }

    async fn count_nodes(&self, owner: OwnerId) -> Result<Counts, Error> {
        let row =
            sqlx::query("SELECT (SELECT COUNT(*) FROM nodes WHERE owner = ?) AS of_owner, (SELECT COUNT(*) FROM nodes) AS every")
                .bind(owner.to_string())
                .fetch_one(&self.readers)
                .await?;
        Ok(Counts { of_node: 0, of_owner: row.number("of_owner")?, all: row.number("every")? })
    }

    async fn create_listing(&self, listing: &Listing) -> Result<(), Error> {
        let mut tx = self.writer.begin().await?;
        sqlx::query(
            "INSERT INTO listings (id, kind, node, owner, state, listed_at, valid_from, valid_until, statement) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(listing.id.to_string())
        .bind(listing.kind.as_str())
        .bind(listing.node.to_string())
        .bind(listing.owner.to_string())
        .bind(listing.state.as_str())
        .bind(int(listing.listed_at.0)?)
        .bind(int(listing.valid_from.0)?)
        .bind(int(listing.valid_until.0)?)
        .bind(json(&listing.statement)?)
        .execute(&mut *tx)
        .await?;
        tell(&mut tx, EventKind::Listed, listing.kind.into(), listing.id, (listing.node, None), listing.listed_at).await?;
        Ok(tx.commit().await?)
    }

    async fn get_listing(&self, id: StatementId) -> Result<Option<Listing>, Error> {
        let row = sqlx::query("SELECT * FROM listings WHERE id = ?").bind(id.to_string()).fetch_optional(&self.readers).await?;
        row.as_ref().map(listing_from).transpose()
    }

    async fn list_listings(&self, filter: ListingFilter, page: Window) -> Result<Rows<Listing>, Error> {
        let rows = sqlx::query(
            "SELECT * FROM listings WHERE seq > ?1 AND kind = ?2 AND (?3 IS NULL OR node = ?3) AND (?4 IS NULL OR owner = ?4)
               AND (?5 IS NULL OR state = ?5) ORDER BY seq LIMIT ?6",
        )
        .bind(int(page.after)?)
        .bind(filter.kind.as_str())
        .bind(filter.node.map(|n| n.to_string()))
        .bind(filter.owner.map(|o| o.to_string()))
        .bind(filter.state.map(|s| s.as_str()))
        .bind(page.limit)
        .fetch_all(&self.readers)
        .await?;
        numbered(&rows, listing_from)
    }

    async fn count_listings(&self, node: NodeId, owner: OwnerId) -> Result<Counts, Error> {
        let row = sqlx::query(
            "SELECT (SELECT COUNT(*) FROM listings WHERE node = ? AND state = 'open') AS of_node,
                    (SELECT COUNT(*) FROM listings WHERE owner = ? AND state = 'open') AS of_owner,
                    (SELECT COUNT(*) FROM listings WHERE state = 'open') AS every",
        )
        .bind(node.to_string())
        .bind(owner.to_string())
        .fetch_one(&self.readers)
        .await?;
        Ok(Counts { of_node: row.number("of_node")?, of_owner: row.number("of_owner")?, all: row.number("every")? })
    }

    async fn withdraw_listing(&self, id: StatementId, withdrawal: &Envelope, now: WallTime) -> Result<(), Error> {
        let mut tx = self.writer.begin().await?;
        let row = sqlx::query(
            "UPDATE listings SET state = 'withdrawn', withdrawal = ?2 WHERE id = ?1 AND state = 'open' RETURNING kind, node",
        )
        .bind(id.to_string())
        .bind(json(withdrawal)?)
        .fetch_optional(&mut *tx)
        .await?;
        let Some(row) = row else { return Ok(()) };
        tell(&mut tx, EventKind::Withdrawn, row.parsed("kind")?, id, (row.parsed("node")?, None), now).await?;
        let released = sqlx::query(
            "UPDATE matches SET state = 'released' WHERE state = 'held' AND (offer = ?1 OR demand = ?1) RETURNING id, provider, customer",
        )
        .bind(id.to_string())
        .fetch_all(&mut *tx)
        .await?;
        tell_matches(&mut tx, &released, EventKind::Released, now).await?;
        Ok(tx.commit().await?)
    }

    async fn create_matches(&self, matches: &[Match], rounds: &[Round], now: WallTime) -> Result<Vec<StatementId>, Error> {
        let mut tx = self.writer.begin().await?;
        let mut created = Vec::new();
        for row in matches {
            if insert_match(&mut tx, row).await? {
                tell(&mut tx, EventKind::Matched, Subject::Match, row.id, (row.provider, Some(row.customer)), now).await?;
                created.push(row.id);
            }
        }
        for round in rounds {
            insert_round(&mut tx, round).await?;
        }
        tx.commit().await?;
        Ok(created)
    }

    async fn get_match(&self, id: StatementId) -> Result<Option<Match>, Error> {
        let row = sqlx::query(
            "SELECT m.*, p.record AS provider_record, c.record AS customer_record
             FROM matches m JOIN nodes p ON p.id = m.provider JOIN nodes c ON c.id = m.customer WHERE m.id = ?",
        )
        .bind(id.to_string())
        .fetch_optional(&self.readers)
        .await?;
        row.as_ref().map(match_from).transpose()
    }

    async fn list_matches(&self, filter: MatchFilter, page: Window) -> Result<Rows<Match>, Error> {
        let rows = sqlx::query(
            "SELECT m.*, p.record AS provider_record, c.record AS customer_record
             FROM matches m JOIN nodes p ON p.id = m.provider JOIN nodes c ON c.id = m.customer
             WHERE m.seq > ?1 AND (?2 IS NULL OR m.provider = ?2 OR m.customer = ?2) AND (?3 IS NULL OR m.offer = ?3 OR m.demand = ?3)
               AND (?4 IS NULL OR m.state = ?4) ORDER BY m.seq LIMIT ?5",
        )
        .bind(int(page.after)?)
        .bind(filter.node.map(|n| n.to_string()))
        .bind(filter.listing.map(|l| l.to_string()))
        .bind(filter.state.map(MatchState::as_str))
        .bind(page.limit)
        .fetch_all(&self.readers)
        .await?;
        numbered(&rows, match_from)
    }

    async fn confirm_match(&self, id: StatementId, contract: ContractId, until: WallTime, now: WallTime) -> Result<(), Error> {
        let mut tx = self.writer.begin().await?;
        let confirmed = sqlx::query(
            "UPDATE matches SET state = 'confirmed', contract = ?2, until = ?3 WHERE id = ?1 AND state = 'held' RETURNING id, provider, customer",
        )
        .bind(id.to_string())
        .bind(contract.to_string())
        .bind(int(until.0)?)
        .fetch_all(&mut *tx)
        .await?;
        tell_matches(&mut tx, &confirmed, EventKind::Confirmed, now).await?;
        Ok(tx.commit().await?)
    }

    async fn expire(&self, now: WallTime) -> Result<u64, Error> {
        let due = "SELECT EXISTS (SELECT 1 FROM listings WHERE state = 'open' AND valid_until <= ?1)
                       OR EXISTS (SELECT 1 FROM matches WHERE state IN ('held', 'confirmed') AND until <= ?1)";
        if !sqlx::query_scalar::<_, bool>(due).bind(int(now.0)?).fetch_one(&self.readers).await? {
            return Ok(0);
        }
        let mut tx = self.writer.begin().await?;
        let listings = sqlx::query(
            "UPDATE listings SET state = 'expired' WHERE state = 'open' AND valid_until <= ? RETURNING id, kind, node",
        )
        .bind(int(now.0)?)
        .fetch_all(&mut *tx)
        .await?;
        let parts = |row: &SqliteRow| {
            Ok::<_, Error>((row.parsed::<StatementId>("id")?, row.parsed::<Subject>("kind")?, row.parsed::<NodeId>("node")?))
        };
        let mut over = listings.iter().map(parts).collect::<Result<Vec<_>, _>>()?;
        over.sort_unstable();
        for (id, subject, node) in over {
            tell(&mut tx, EventKind::Expired, subject, id, (node, None), now).await?;
        }
        let holds = sqlx::query(
            "UPDATE matches SET state = 'expired' WHERE state = 'held' AND until <= ? RETURNING id, provider, customer",
        )
        .bind(int(now.0)?)
        .fetch_all(&mut *tx)
        .await?;
        tell_matches(&mut tx, &holds, EventKind::Expired, now).await?;
        let ended = sqlx::query(
            "UPDATE matches SET state = 'ended' WHERE state = 'confirmed' AND until <= ? RETURNING id, provider, customer",
        )
        .bind(int(now.0)?)
        .fetch_all(&mut *tx)
        .await?;
        tell_matches(&mut tx, &ended, EventKind::Ended, now).await?;
        tx.commit().await?;
        Ok((listings.len() + holds.len() + ended.len()) as u64)
    }

    async fn purge(&self, before: WallTime) -> Result<(), Error> {
        let mut tx = self.writer.begin().await?;
        sqlx::query("DELETE FROM listings WHERE valid_until < ?").bind(int(before.0)?).execute(&mut *tx).await?;
        let kept = int(HISTORY_ROWS_MAX)?;
        sqlx::query("DELETE FROM events WHERE seq <= (SELECT MAX(seq) FROM events) - ?").bind(kept).execute(&mut *tx).await?;
        sqlx::query("DELETE FROM rounds WHERE seq <= (SELECT MAX(seq) FROM rounds) - ?").bind(kept).execute(&mut *tx).await?;
        Ok(tx.commit().await?)
    }

    async fn read_book(&self, now: WallTime) -> Result<Book, Error> {
        let mut tx = self.readers.begin().await?; // one snapshot for all four queries
        let open = sqlx::query(
            "SELECT id, kind, statement FROM listings l WHERE state = 'open' AND valid_from <= ?1 AND valid_until > ?1 AND (kind = 'offer'
               OR NOT EXISTS (SELECT 1 FROM matches m WHERE m.demand = l.id AND m.state IN ('held', 'confirmed')))",
        )
        .bind(int(now.0)?)
        .fetch_all(&mut *tx)
        .await?;
        let claims = sqlx::query("SELECT m.offer, d.statement FROM matches m JOIN listings d ON d.id = m.demand WHERE m.state IN ('held', 'confirmed')")
            .fetch_all(&mut *tx)
            .await?;
        let proposals = sqlx::query(
            "SELECT m.offer, m.demand, COUNT(*) AS times FROM matches m JOIN listings o ON o.id = m.offer AND o.state = 'open'
             JOIN listings d ON d.id = m.demand AND d.state = 'open' GROUP BY m.offer, m.demand",
        )
        .fetch_all(&mut *tx)
        .await?;
        let opens_at: Option<i64> =
            sqlx::query_scalar("SELECT MIN(valid_from) FROM listings WHERE state = 'open' AND valid_from > ?")
                .bind(int(now.0)?)
                .fetch_one(&mut *tx)
                .await?;
        build_book(
            open.iter()
                .map(|r| Ok((r.parsed("id")?, r.parsed("kind")?, r.envelope("statement")?)))
                .collect::<Result<_, Error>>()?,
            claims.iter().map(|r| Ok((r.parsed("offer")?, r.envelope("statement")?))).collect::<Result<_, Error>>()?,
            proposals
                .iter()
                .map(|r| Ok(((r.parsed("offer")?, r.parsed("demand")?), r.number("times")?)))
                .collect::<Result<_, Error>>()?,
            opens_at.map(u64::try_from).transpose().map_err(Error::corrupt)?.map(WallTime),
        )
    }

    async fn list_events(&self, node: Option<NodeId>, page: Window) -> Result<Vec<Event>, Error> {
        let rows =
            sqlx::query("SELECT * FROM events WHERE seq > ?1 AND (?2 IS NULL OR node = ?2 OR peer = ?2) ORDER BY seq LIMIT ?3")
                .bind(int(page.after)?)
                .bind(node.map(|n| n.to_string()))
                .bind(page.limit)
                .fetch_all(&self.readers)
                .await?;
        rows.iter().map(event_from).collect()
    }

    async fn event_range(&self) -> Result<(u64, u64), Error> {
        let row = sqlx::query("SELECT COALESCE(MIN(seq), 0) AS first, COALESCE(MAX(seq), 0) AS last FROM events")
            .fetch_one(&self.readers)
            .await?;
        Ok((row.number("first")?, row.number("last")?))
    }

    async fn list_rounds(&self, page: Window) -> Result<Rows<Round>, Error> {
        let rows = sqlx::query("SELECT * FROM rounds WHERE seq > ? ORDER BY seq LIMIT ?")
            .bind(int(page.after)?)
            .bind(page.limit)
            .fetch_all(&self.readers)
            .await?;
        numbered(&rows, round_from)
    }

    async fn last_round(&self) -> Result<u64, Error> {
        let last: i64 = sqlx::query_scalar("SELECT COALESCE(MAX(round), 0) FROM rounds").fetch_one(&self.readers).await?;
        u64::try_from(last).map_err(Error::corrupt)
    }

    async fn read_totals(&self) -> Result<Totals, Error> {
        let row = sqlx::query(
            "SELECT (SELECT COUNT(*) FROM nodes) AS nodes,
                    (SELECT COUNT(*) FROM listings WHERE state = 'open' AND kind = 'offer') AS offers_open,
                    (SELECT COUNT(*) FROM listings WHERE state = 'open' AND kind = 'demand') AS demands_open,
                    (SELECT COUNT(*) FROM matches WHERE state = 'held') AS matches_held,
                    (SELECT COUNT(*) FROM matches WHERE state = 'confirmed') AS matches_confirmed",
        )
        .fetch_one(&self.readers)
        .await?;
        Ok(Totals {
            nodes: row.number("nodes")?,
            offers_open: row.number("offers_open")?,
            demands_open: row.number("demands_open")?,
            matches_held: row.number("matches_held")?,
            matches_confirmed: row.number("matches_confirmed")?,
        })
    }

    async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
    }
}
