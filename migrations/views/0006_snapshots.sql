-- Snapshots of whole source tables. A snapshot begins anew what a view may show: a row it does not mention
-- was deleted while nobody listened, and must go once the snapshot is read to its end.

-- Per partition: first offset of each snapshot, and the LSN its rows share.
alter table cdc_offset
    add column source_snapshots jsonb not null default '{}';

-- The newest snapshot of each view that was read to its last record.
create table cdc_snapshot (
    view_name text primary key,
    topic text not null,
    source_lsn bigint not null,
    ended_at timestamptz not null default now(),
    -- Where the partitions' logs ended some time after that, as {"0": 17}: read so far, no row of the
    -- snapshot is left to come. Null until the broker was asked.
    log_ends jsonb,
    -- When the rows it does not mention were removed, and how many.
    swept_at timestamptz,
    swept_rows bigint not null default 0
);
