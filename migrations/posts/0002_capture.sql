-- What Debezium reads. It also writes the heartbeat row: without a change of its own now and then, a slot
-- of a quiet database would hold back the server's WAL until the disk is full.
create table cdc_heartbeat (
    id smallint primary key,
    beaten_at timestamptz not null
);

create publication post_service for table posts, cdc_heartbeat;

grant select on posts to debezium;
grant select, insert, update on cdc_heartbeat to debezium;
