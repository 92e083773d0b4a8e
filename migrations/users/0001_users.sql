-- The user service's own data. Everything else in this system is derived from this table.
create table users (
    id bigint generated always as identity primary key,
    name text not null,
    email text not null,
    department text not null,
    status text not null default 'ACTIVE',
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),
    -- Raised by every update: what ETag and If-Match compare.
    version bigint not null default 1,
    constraint users_email_key unique (email),
    constraint users_status_check check (status in ('ACTIVE', 'INACTIVE', 'SUSPENDED'))
);

grant select, insert, update, delete on users to user_api;
