-- Users per department, counted from the transitions that really happened in user_view: a stale or
-- repeated change alters no row, so it fires nothing and counts nothing.
--
-- Several writers touch the same few departments at once. Each adds to rows of its own (its slot), so
-- they neither wait for each other nor deadlock; the view sums the slots. A writer names its slot in the
-- setting `cdc.slot`; a session without one (psql, a repair by hand) uses -1.
-- A single slot may be negative (one writer counted a user in, another counted him out); sums are not.
create table department_stats_slot (
    department text not null,
    slot integer not null,
    user_count bigint not null,
    active_count bigint not null,
    updated_at timestamptz not null,
    primary key (department, slot)
) with (fillfactor = 50);

create view department_stats as
select
    department,
    sum(user_count)::bigint as user_count,
    sum(active_count)::bigint as active_count,
    max(updated_at) as updated_at
from department_stats_slot
group by department
having sum(user_count) <> 0;

comment on view department_stats is 'published: users and active users per department';

-- What department_stats must always equal. Used to verify, never to serve.
create view department_stats_definition as
select
    department,
    count(*) as user_count,
    count(*) filter (where status = 'ACTIVE') as active_count
from user_view
where department is not null
group by department;

create function department_stats_slot_number() returns integer
language sql stable
as $$ select coalesce(nullif(current_setting('cdc.slot', true), '')::integer, -1) $$;

-- Adds to the counters of this session's slot. A department whose sums are both zero is not written:
-- an update that moves nobody costs one aggregate. Ordered, so that two sessions that share a slot lock
-- its rows in the same order.
create function department_stats_add(departments text[], users bigint[], actives bigint[])
returns void
language sql
set search_path from current
as $$
    insert into department_stats_slot as s (department, slot, user_count, active_count, updated_at)
    select department, department_stats_slot_number(), sum(users), sum(actives), now()
    from unnest(departments, users, actives) as moved (department, users, actives)
    where department is not null
    group by department
    having sum(users) <> 0 or sum(actives) <> 0
    order by department
    on conflict (department, slot) do update set
        user_count = s.user_count + excluded.user_count,
        active_count = s.active_count + excluded.active_count,
        updated_at = excluded.updated_at
$$;

-- PostgreSQL names transition tables per trigger, so each row operation has a body of its own.
create function department_stats_insert() returns trigger
language plpgsql
set search_path from current
as $$
begin
    perform department_stats_add(array_agg(department), array_agg(users), array_agg(actives))
    from (
        select department, count(*) as users, count(*) filter (where status = 'ACTIVE') as actives
        from entered
        group by department
    ) as moved;
    return null;
end
$$;

create function department_stats_delete() returns trigger
language plpgsql
set search_path from current
as $$
begin
    perform department_stats_add(array_agg(department), array_agg(-users), array_agg(-actives))
    from (
        select department, count(*) as users, count(*) filter (where status = 'ACTIVE') as actives
        from gone
        group by department
    ) as moved;
    return null;
end
$$;

create function department_stats_update() returns trigger
language plpgsql
set search_path from current
as $$
begin
    perform department_stats_add(array_agg(department), array_agg(users), array_agg(actives))
    from (
        select department, count(*) as users, count(*) filter (where status = 'ACTIVE') as actives
        from entered
        group by department
        union all
        select department, -count(*), -count(*) filter (where status = 'ACTIVE')
        from gone
        group by department
    ) as moved;
    return null;
end
$$;

create function department_stats_truncate() returns trigger
language plpgsql
set search_path from current
as $$
begin
    delete from department_stats_slot;
    return null;
end
$$;

create trigger department_stats_insert
after insert on user_view
referencing new table as entered
for each statement execute function department_stats_insert();

create trigger department_stats_update
after update on user_view
referencing old table as gone new table as entered
for each statement execute function department_stats_update();

create trigger department_stats_delete
after delete on user_view
referencing old table as gone
for each statement execute function department_stats_delete();

create trigger department_stats_truncate
after truncate on user_view
for each statement execute function department_stats_truncate();
