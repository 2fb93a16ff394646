-- What this node heard as an insurer, and has to answer for.
CREATE TABLE heard (
    seq          INTEGER PRIMARY KEY AUTOINCREMENT,
    event_id     BLOB NOT NULL UNIQUE,
    group_id     BLOB NOT NULL,
    record       BLOB NOT NULL,                      -- as an account names it
    heard_at     INTEGER NOT NULL,                   -- wall clock, ms
    account      INTEGER,                            -- number of the account that names it
    received     INTEGER NOT NULL DEFAULT 0,         -- 1: there is a receipt of the customer's store
    dropped      INTEGER NOT NULL DEFAULT 0          -- 1: given up; 2: and an account says so
) STRICT;
CREATE INDEX heard_open ON heard (group_id, seq) WHERE received = 0 AND dropped = 0;
CREATE INDEX heard_unaccounted ON heard (group_id, seq) WHERE account IS NULL;
CREATE INDEX heard_dropped ON heard (group_id, seq) WHERE dropped = 1;

-- Signed accounts, this node's own and those of its insurers. Two of one number are both kept: they are evidence.
CREATE TABLE account (
    seq          INTEGER PRIMARY KEY AUTOINCREMENT,
    id           BLOB NOT NULL UNIQUE,
    group_id     BLOB NOT NULL,
    node         BLOB NOT NULL,
    number       INTEGER NOT NULL,
    made_at      INTEGER NOT NULL,                   -- wall clock, ms, as the account says
    envelope     TEXT NOT NULL,
    told         INTEGER NOT NULL                    -- 1: the other party has it
) STRICT;
CREATE INDEX account_group ON account (group_id, node, seq);
CREATE INDEX account_untold ON account (group_id, seq) WHERE told = 0;

-- Receipts of the customer's store for what this node has heard.
CREATE TABLE receipt (
    seq          INTEGER PRIMARY KEY AUTOINCREMENT,
    id           BLOB NOT NULL UNIQUE,
    group_id     BLOB NOT NULL,
    made_at      INTEGER NOT NULL,
    envelope     TEXT NOT NULL
) STRICT;
CREATE INDEX receipt_group ON receipt (group_id, seq);
