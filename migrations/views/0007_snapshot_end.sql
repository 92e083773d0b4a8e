-- When the last row of a snapshot was sent, in milliseconds from 1970 (Kafka's timestamp of the record): it
-- finds the place of the snapshot in partitions that have no row of it. -1: not known.
alter table cdc_snapshot
    add column record_timestamp bigint not null default -1;
