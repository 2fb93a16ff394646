-- The book: who is registered, what is listed, what was matched, what happened.
-- Ids are their text forms; times are milliseconds since the Unix epoch; envelopes are DSSE JSON as received.

CREATE TABLE nodes (
    seq           INTEGER PRIMARY KEY AUTOINCREMENT,
    id            TEXT    NOT NULL UNIQUE,
    owner         TEXT    NOT NULL,
    name          TEXT    NOT NULL,
    role          TEXT    NOT NULL,
    record_epoch  INTEGER NOT NULL,
    registered_at INTEGER NOT NULL,
    record        TEXT    NOT NULL
) STRICT;
CREATE INDEX nodes_owner ON nodes (owner);

CREATE TABLE listings (
    seq         INTEGER PRIMARY KEY AUTOINCREMENT,
    id          TEXT    NOT NULL UNIQUE,
    kind        TEXT    NOT NULL CHECK (kind IN ('offer', 'demand')),
    node        TEXT    NOT NULL REFERENCES nodes (id),
    owner       TEXT    NOT NULL,
    state       TEXT    NOT NULL CHECK (state IN ('open', 'withdrawn', 'expired')),
    listed_at   INTEGER NOT NULL,
    valid_from  INTEGER NOT NULL,
    valid_until INTEGER NOT NULL,
    statement   TEXT    NOT NULL,
    withdrawal  TEXT
) STRICT;
CREATE INDEX listings_node ON listings (node, kind, seq);
CREATE INDEX listings_owner ON listings (owner, state);
CREATE INDEX listings_until ON listings (state, valid_until);

CREATE TABLE matches (
    seq        INTEGER PRIMARY KEY AUTOINCREMENT,
    id         TEXT    NOT NULL UNIQUE,
    round      INTEGER NOT NULL,
    offer      TEXT    NOT NULL REFERENCES listings (id) ON DELETE CASCADE,
    demand     TEXT    NOT NULL REFERENCES listings (id) ON DELETE CASCADE,
    provider   TEXT    NOT NULL REFERENCES nodes (id),
    customer   TEXT    NOT NULL REFERENCES nodes (id),
    state      TEXT    NOT NULL CHECK (state IN ('held', 'confirmed', 'expired', 'released', 'ended')),
    matched_at INTEGER NOT NULL,
    until      INTEGER NOT NULL,
    contract   TEXT,
    statement  TEXT    NOT NULL
) STRICT;
CREATE INDEX matches_offer ON matches (offer, demand);
CREATE INDEX matches_demand ON matches (demand);
CREATE INDEX matches_provider ON matches (provider);
CREATE INDEX matches_customer ON matches (customer);
CREATE INDEX matches_until ON matches (state, until);
-- A demand has one provider at a time, whatever the program does.
CREATE UNIQUE INDEX matches_demand_active ON matches (demand) WHERE state IN ('held', 'confirmed');

CREATE TABLE events (
    seq     INTEGER PRIMARY KEY AUTOINCREMENT,
    kind    TEXT    NOT NULL,
    subject TEXT    NOT NULL,
    id      TEXT    NOT NULL,
    node    TEXT    NOT NULL,
    peer    TEXT,
    at      INTEGER NOT NULL
) STRICT;

-- One row per clearing round and currency that matched something; sums are decimal strings of micro-units.
CREATE TABLE rounds (
    seq      INTEGER PRIMARY KEY AUTOINCREMENT,
    round    INTEGER NOT NULL,
    currency TEXT    NOT NULL,
    at       INTEGER NOT NULL,
    offers   INTEGER NOT NULL,
    demands  INTEGER NOT NULL,
    edges    INTEGER NOT NULL,
    matched  INTEGER NOT NULL,
    volume   TEXT    NOT NULL,
    surplus  TEXT    NOT NULL,
    bound    TEXT    NOT NULL,
    exact    INTEGER NOT NULL,
    UNIQUE (round, currency)
) STRICT;
