-- Users as the post service sees them. Column names are those of the original example.
-- Only the key is `not null`: a view shows what the source says and adds no rules of its own.
create table user_view (
    user_id bigint primary key,
    name text,
    email text,
    department text,
    status text,
    created_at timestamptz,
    updated_at timestamptz,
    version bigint,
    last_processed_at timestamptz not null default now()
) with (fillfactor = 85); -- an update that changes no indexed column stays on its page (HOT)

call cdc_view('user_view');

create index user_view_department on user_view (department);

comment on table user_view is 'published: users of the user service, kept by cdc-consumer';
