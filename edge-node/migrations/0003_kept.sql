-- What is buffered for another node is read by group after a restart.
CREATE INDEX uplink_kept ON uplink (group_id, seq) WHERE deliver = 0;
