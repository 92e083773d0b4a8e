-- Of a post only what statistics need: the text stays in the post service's own table.
create table post_view (
    post_id bigint primary key,
    author_id bigint,
    created_at timestamptz
) with (fillfactor = 85);

call cdc_view('post_view');

create index post_view_author on post_view (author_id);

comment on table post_view is 'published: author and time of every post, kept by cdc-consumer';
