-- The row of an incremental snapshot that a partition read last: the connector sends such rows between changes, and a
-- transaction that was open then has a lower LSN and is newer all the same.
alter table cdc_offset
    add column chunk_offset bigint,
    add column chunk_lsn bigint;
