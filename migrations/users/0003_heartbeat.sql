-- The service writes the heartbeat row, and Debezium reads it like any other (docs/adr/0015).
grant select, insert, update on cdc_heartbeat to user_api;
revoke insert, update on cdc_heartbeat from debezium;
