//! cdc-consumer
