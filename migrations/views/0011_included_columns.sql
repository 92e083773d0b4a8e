-- Turns a table into a view that changes can be applied to: adds the source position every row carries,
-- and the memory of deleted keys (same key columns and types, so equality is PostgreSQL's own).
-- Call it once per table, in the migration that creates the table.
--
-- As in 0001; columns that the primary key's index only includes are no part of the key.
create or replace procedure cdc_view(view_table regclass)
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
    where i.indrelid = view_table and i.indisprimary and k.position <= i.indnkeyatts;

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
