-- Each batch is planned for itself (plan_cache_mode is force_custom_plan in its transaction), and with it were
-- the statements of the counters' triggers: half of what PostgreSQL did for a small batch. What they read is
-- the rows of the batch alone, so one plan is right for all, and it is kept now. An SQL function keeps none:
-- each trigger has its own statement instead. MERGE calls the triggers of inserts and of updates, whether it
-- did both or not; one without rows ends at once.
create or replace function department_stats_insert() returns trigger
language plpgsql
set search_path from current
set plan_cache_mode to force_generic_plan
as $$
begin
    if exists (select from entered) then
        insert into department_stats_slot as s
            (department, slot, user_count, active_count, updated_at)
        select department, department_stats_slot_number(),
            count(*), count(*) filter (where status = 'ACTIVE'), now()
        from entered
        where department is not null
        group by department
        order by department
        on conflict (department, slot) do update set
            user_count = s.user_count + excluded.user_count,
            active_count = s.active_count + excluded.active_count,
            updated_at = excluded.updated_at;
    end if;
    return null;
end
$$;

create or replace function department_stats_delete() returns trigger
language plpgsql
set search_path from current
set plan_cache_mode to force_generic_plan
as $$
begin
    if exists (select from gone) then
        insert into department_stats_slot as s
            (department, slot, user_count, active_count, updated_at)
        select department, department_stats_slot_number(),
            -count(*), -count(*) filter (where status = 'ACTIVE'), now()
        from gone
        where department is not null
        group by department
        order by department
        on conflict (department, slot) do update set
            user_count = s.user_count + excluded.user_count,
            active_count = s.active_count + excluded.active_count,
            updated_at = excluded.updated_at;
    end if;
    return null;
end
$$;

-- A department that nobody enters or leaves is not written: an update that moves nobody costs one aggregate.
create or replace function department_stats_update() returns trigger
language plpgsql
set search_path from current
set plan_cache_mode to force_generic_plan
as $$
begin
    if exists (select from entered) then
        insert into department_stats_slot as s
            (department, slot, user_count, active_count, updated_at)
        select department, department_stats_slot_number(), sum(users), sum(actives), now()
        from (
            select department, count(*) as users, count(*) filter (where status = 'ACTIVE') as actives
            from entered
            group by department
            union all
            select department, -count(*), -count(*) filter (where status = 'ACTIVE')
            from gone
            group by department
        ) as moved
        where department is not null
        group by department
        having sum(users) <> 0 or sum(actives) <> 0
        order by department
        on conflict (department, slot) do update set
            user_count = s.user_count + excluded.user_count,
            active_count = s.active_count + excluded.active_count,
            updated_at = excluded.updated_at;
    end if;
    return null;
end
$$;

-- department_stats_add stays: a batch that is under way while this commits may still call it.
