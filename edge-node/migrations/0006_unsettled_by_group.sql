-- Each group's readings are shipped for themselves.
DROP INDEX uplink_unsettled;
CREATE INDEX uplink_unsettled ON uplink (group_id, reading_seq) WHERE decoded IS NOT NULL AND settled = 0;
