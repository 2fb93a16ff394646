-- Ids are raw bytes; times are milliseconds since the Unix epoch; money is micro-units.

CREATE TABLE nodes (
    node BLOB PRIMARY KEY,
    owner BLOB NOT NULL,
    record_epoch INTEGER NOT NULL,
    envelope TEXT NOT NULL
) STRICT;

CREATE TABLE contracts (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id BLOB NOT NULL UNIQUE,
    group_id BLOB NOT NULL,
    in_force INTEGER NOT NULL CHECK (in_force IN (0, 1)),
    due_at INTEGER,
    version INTEGER NOT NULL,
    standing TEXT NOT NULL,
    envelope TEXT NOT NULL
) STRICT;
CREATE INDEX contracts_in_force_by_group ON contracts (group_id) WHERE in_force = 1;
CREATE INDEX contracts_due ON contracts (due_at) WHERE due_at IS NOT NULL;

CREATE TABLE contract_members (
    node BLOB NOT NULL,
    contract BLOB NOT NULL REFERENCES contracts (id),
    PRIMARY KEY (node, contract)
) STRICT, WITHOUT ROWID;

-- Only while the contract is in force.
CREATE TABLE contract_devices (
    device BLOB NOT NULL,
    contract BLOB NOT NULL REFERENCES contracts (id),
    PRIMARY KEY (device, contract)
) STRICT, WITHOUT ROWID;

CREATE TABLE evidence (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id BLOB NOT NULL UNIQUE,
    contract BLOB NOT NULL REFERENCES contracts (id),
    author BLOB NOT NULL,
    received_at INTEGER NOT NULL,
    envelope TEXT NOT NULL
) STRICT;
CREATE INDEX evidence_by_contract ON evidence (contract, seq);

CREATE TABLE orders (
    id BLOB PRIMARY KEY,
    envelope TEXT NOT NULL
) STRICT;

-- The external account has the empty holder; no owner's account is ever overdrawn.
CREATE TABLE accounts (
    holder BLOB NOT NULL,
    currency TEXT NOT NULL,
    posted INTEGER NOT NULL,
    reserved INTEGER NOT NULL CHECK (reserved >= 0),
    PRIMARY KEY (holder, currency),
    CHECK (length(holder) = 0 OR posted >= reserved)
) STRICT, WITHOUT ROWID;

CREATE TABLE transfers (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id BLOB NOT NULL UNIQUE,
    debit BLOB NOT NULL,
    credit BLOB NOT NULL,
    made_at INTEGER NOT NULL,
    movement TEXT NOT NULL,
    transfer TEXT NOT NULL
) STRICT;
CREATE INDEX transfers_by_debit ON transfers (debit, seq);
CREATE INDEX transfers_by_credit ON transfers (credit, seq);

CREATE TABLE pendings (
    id BLOB PRIMARY KEY,
    pending TEXT NOT NULL
) STRICT;

-- Rises with every commit that moves money: whoever computed on an older ledger is refused.
CREATE TABLE ledger_version (
    only_row INTEGER PRIMARY KEY CHECK (only_row = 1),
    version INTEGER NOT NULL
) STRICT;
INSERT INTO ledger_version VALUES (1, 0);

CREATE TABLE verdicts (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    contract BLOB NOT NULL UNIQUE REFERENCES contracts (id),
    provider_owner BLOB NOT NULL,
    envelope TEXT NOT NULL
) STRICT;
CREATE INDEX verdicts_by_provider_owner ON verdicts (provider_owner, seq);

CREATE TABLE events (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    at INTEGER NOT NULL,
    body TEXT NOT NULL
) STRICT;

-- This arbitrator's own votes as a witness, synced before they leave, and each grant as it was made.
CREATE TABLE votes (
    group_id BLOB PRIMARY KEY,
    voted_epoch INTEGER NOT NULL,
    voted_for INTEGER,
    durable TEXT NOT NULL
) STRICT;
CREATE TABLE grants (
    group_id BLOB NOT NULL,
    epoch INTEGER NOT NULL,
    voted_for INTEGER NOT NULL,
    granted_at INTEGER NOT NULL,
    reported INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (group_id, epoch)
) STRICT, WITHOUT ROWID;
CREATE INDEX grants_unreported ON grants (group_id, epoch) WHERE reported = 0;

-- Write-ahead records of holders: bounds of downlink counters that only rise, and the newest sealed record of each device.
CREATE TABLE record_bounds (
    group_id BLOB NOT NULL,
    device BLOB NOT NULL,
    session BLOB NOT NULL,
    upto INTEGER NOT NULL,
    PRIMARY KEY (group_id, device, session)
) STRICT, WITHOUT ROWID;
CREATE TABLE record_sealed (
    group_id BLOB NOT NULL,
    device BLOB NOT NULL,
    epoch INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    blob BLOB NOT NULL,
    PRIMARY KEY (group_id, device)
) STRICT;
