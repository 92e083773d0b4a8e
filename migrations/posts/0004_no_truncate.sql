-- Debezium sends a TRUNCATE as a record without a key. The broker refuses that for a compacted topic, the
-- connector fails with it, and fails again at the same place of the log after every restart. So it is
-- refused where whoever says it can still say something else.
create function refuse_truncate() returns trigger
language plpgsql
as $$
begin
    raise exception 'TRUNCATE of % cannot be captured into a compacted topic', tg_table_name
        using hint = 'DELETE the rows instead; each delete reaches the views';
end
$$;

create trigger refuse_truncate
before truncate on posts
for each statement execute function refuse_truncate();
