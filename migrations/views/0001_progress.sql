-- What a generation knows of its own progress. These tables live in the same schema as the views they
-- describe, so that rows and offsets commit, roll back, and are restored from a backup together.

-- One row per partition. `next_offset` is the first record that has not taken effect.
create table cdc_offset (
    topic text not null,
    partition integer not null,
    next_offset bigint not null check (next_offset >= 0),
    -- Number of the current owner: every acquisition adds one, and a batch commits only under its own.
    epoch bigint not null default 0,
    owner text not null default '',
    -- Highest next offset ever reached: below it a record is a repetition, however often it is read.
    seen_offset bigint not null default 0,
    -- The lives of the source database: first offset of each source epoch, and the highest LSN of the newest.
    source_epochs jsonb not null default '{}',
    source_lsn_max bigint not null default 0,
    updated_at timestamptz not null default now(),
    primary key (topic, partition)
) with (fillfactor = 50); -- updated once per batch: room on the page keeps those updates HOT

-- Below this source position a view takes no more changes: set by a TRUNCATE at the source, which also
-- removed the rows below it. An older change that arrives later, from another partition, is stale.
create table cdc_floor (
    view_name text primary key,
    source_epoch integer not null,
    source_lsn bigint not null
);

-- Records kept aside in the transaction of their batch: `refused` could not be applied itself,
-- `parked` waits behind an older record of the same key.
create table cdc_dead_letter (
    id bigint generated always as identity primary key,
    view_name text not null,
    topic text not null,
    partition integer not null,
    record_offset bigint not null,
    -- The key as text, in the view's own column order; null when the key itself could not be read.
    key_text text,
    record_key bytea,
    record_value bytea,
    schema_id bigint,
    reason text not null check (reason in ('refused', 'parked')),
    error text not null,
    quarantined_at timestamptz not null default now(),
    -- A replay meets the same record again: it stays one dead letter.
    unique (topic, partition, record_offset)
);

create index cdc_dead_letter_key on cdc_dead_letter (view_name, key_text);

-- Turns a table into a view that changes can be applied to: adds the source position every row carries,
-- and the memory of deleted keys (same key columns and types, so equality is PostgreSQL's own).
-- Call it once per table, in the migration that creates the table.
create procedure cdc_view(view_table regclass)
language plpgsql
set search_path from current
as $$
declare
    table_name text := (select relname from pg_class where oid = view_table);
    key_columns text;
begin
    select string_agg(quote_ident(a.attname), ', ' order by k.position)
    into key_columns
    from pg_index i
    cross join lateral unnest(i.indkey) with ordinality as k (attnum, position)
    join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.attnum
    where i.indrelid = view_table and i.indisprimary;

    if key_columns is null then
        raise exception 'table % has no primary key', view_table
            using hint = 'a view needs the primary key of its source table';
    end if;

    execute format(
        'alter table %s
             add column source_epoch integer not null default 0,
             add column source_lsn bigint not null default 0',
        view_table);
    execute format(
        'create table %I as select %s, source_epoch, source_lsn, now() as deleted_at
         from %s with no data',
        table_name || '_deleted', key_columns, view_table);
    execute format(
        'alter table %I
             add primary key (%s),
             alter column source_epoch set not null,
             alter column source_lsn set not null,
             alter column deleted_at set not null,
             alter column deleted_at set default now()',
        table_name || '_deleted', key_columns);
    execute format('create index on %I (deleted_at)', table_name || '_deleted');
end
$$;
