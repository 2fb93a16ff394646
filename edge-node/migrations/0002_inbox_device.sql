-- A cloud lists the readings of one device in the order of arrival.
CREATE INDEX inbox_device ON inbox (device, seq);
