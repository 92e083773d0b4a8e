-- What a record kept aside stands behind, of the rows of an incremental snapshot (`chunk_lsn` in cdc_offset when it
-- was read). A retry comes later, when the partition may have read others.
alter table cdc_dead_letter
    add column chunk_lsn bigint;
