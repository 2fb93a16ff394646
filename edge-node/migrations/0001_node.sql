-- Uplinks whose integrity code was verified, from the frame to the settled reading. One row per event.
CREATE TABLE uplink (
    seq          INTEGER PRIMARY KEY AUTOINCREMENT,  -- order of commit; the tenant's cursor
    event_id     BLOB NOT NULL UNIQUE,               -- UUIDv5 of device, session and counter
    group_id     BLOB NOT NULL,
    device       BLOB NOT NULL,
    session      BLOB NOT NULL,
    f_cnt        INTEGER NOT NULL,                   -- 32-bit uplink counter
    heard_at     INTEGER NOT NULL,                   -- wall clock, ms
    kind         TEXT NOT NULL,                      -- live, late, replayed
    epoch        INTEGER NOT NULL,                   -- custody under which it was heard
    body         TEXT NOT NULL,                      -- the uplink as the bridge gave it, JSON
    deliver      INTEGER NOT NULL,                   -- 1: for this node's tenant; 0: buffered for another node
    decoded      TEXT,                               -- the reading, JSON, once the tenant published it
    reading_seq  INTEGER UNIQUE,                     -- order in which readings were published
    settled      INTEGER NOT NULL DEFAULT 0          -- 1: the customer's cloud acknowledged it
) STRICT;
CREATE INDEX uplink_undecoded ON uplink (group_id, seq) WHERE decoded IS NULL AND deliver = 1;
CREATE INDEX uplink_unsettled ON uplink (reading_seq) WHERE decoded IS NOT NULL AND settled = 0;
CREATE INDEX uplink_heard ON uplink (group_id, heard_at);

-- Readings that this node, as a cloud, received from its owner's edges and their insurers.
CREATE TABLE inbox (
    seq          INTEGER PRIMARY KEY AUTOINCREMENT,
    event_id     BLOB NOT NULL UNIQUE,
    group_id     BLOB NOT NULL,
    device       BLOB NOT NULL,
    session      BLOB NOT NULL,
    f_cnt        INTEGER NOT NULL,
    heard_at     INTEGER NOT NULL,
    kind         TEXT NOT NULL,
    epoch        INTEGER NOT NULL,
    decoded      TEXT NOT NULL,
    delivered_by BLOB NOT NULL,                      -- the node that brought it first
    received_at  INTEGER NOT NULL,
    proof        BLOB NOT NULL                       -- id of the batch proof it came under
) STRICT;

-- Signed batch proofs as received.
CREATE TABLE batch_proof (
    id           BLOB PRIMARY KEY,
    envelope     TEXT NOT NULL,
    received_at  INTEGER NOT NULL
) STRICT;

-- Small values that tenants keep with their node.
CREATE TABLE tenant_state (
    group_id     BLOB NOT NULL,
    key          TEXT NOT NULL,
    value        BLOB NOT NULL,
    PRIMARY KEY (group_id, key)
) STRICT;

-- Downlink counters that are reserved: a new holder starts above them.
CREATE TABLE reserved (
    group_id     BLOB NOT NULL,
    device       BLOB NOT NULL,
    session      BLOB NOT NULL,
    upto         INTEGER NOT NULL,
    PRIMARY KEY (group_id, device, session)
) STRICT;

-- Signed node records, newest of each node.
CREATE TABLE node_record (
    node         BLOB PRIMARY KEY,
    record_epoch INTEGER NOT NULL,
    envelope     TEXT NOT NULL
) STRICT;

-- Contracts that this node is a party of, or receives readings under.
CREATE TABLE agreement (
    contract     BLOB PRIMARY KEY,
    envelope     TEXT NOT NULL,
    state        TEXT NOT NULL,                      -- contract life, JSON
    version      INTEGER NOT NULL,
    wiped        INTEGER NOT NULL DEFAULT 0          -- 1: keys and content are gone
) STRICT;
