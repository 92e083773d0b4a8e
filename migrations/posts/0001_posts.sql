-- The post service's own data.
create table posts (
    id bigint generated always as identity primary key,
    title text not null,
    content text not null,
    -- No foreign key: users belong to another service, and the view that shows them here may lag, be
    -- rebuilt or be swapped. A post outlives its author.
    author_id bigint not null,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),
    version bigint not null default 1
);

create index posts_author on posts (author_id, id);

grant select, insert, update, delete on posts to post_api;
