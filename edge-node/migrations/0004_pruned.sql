-- The highest counter of each session among the uplinks that were pruned: a restart knows where the device was.
CREATE TABLE pruned (
    group_id     BLOB NOT NULL,
    device       BLOB NOT NULL,
    session      BLOB NOT NULL,
    f_cnt        INTEGER NOT NULL,
    PRIMARY KEY (group_id, device, session)
) STRICT;
