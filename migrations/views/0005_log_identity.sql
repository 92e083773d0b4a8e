-- The last record read of each partition: its offset and the time Kafka stored with it. A log that has
-- another record at that offset is another log: the topic was deleted and made again, or cut and
-- written anew.
alter table cdc_offset
    add column anchor_offset bigint,
    add column anchor_timestamp bigint; -- milliseconds from 1970
