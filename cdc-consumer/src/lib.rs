//! Keeps PostgreSQL tables equal to the source tables whose changes Debezium writes to Kafka.
//!
//! A record becomes a row in six steps, one type each; ARCHITECTURE.md walks through them.
//! Groups of modules in reading order: what is declared, what arrives, what becomes of it, how it takes
//! effect, and who decides; within a group by the alphabet.
#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

pub mod config;
pub mod view;

pub mod avro;
pub mod convert;
pub mod decimal;
pub mod entry;
pub mod envelope;
pub mod float;
pub mod kind;
pub mod pairing;
pub mod plan;
pub mod room;
pub mod schema;
pub mod skip;
pub mod temporal;
pub mod text;
pub mod wire;

pub mod batch;
pub mod decode;
pub mod fold;
pub mod offsets;
pub mod rows;

pub mod apply;
pub mod catalog;
mod copy;
pub mod database;
pub mod fence;
mod mentioned;
mod open_letters;
mod prune;
pub mod quarantine;
mod snapshot_end;
pub mod sql;
pub mod sweep;
mod sweep_sql;
mod swept;
mod takeover;
mod untold;
mod upsert;
pub mod write;
pub mod writer;

mod assignment;
mod group;
pub mod headers;
mod held;
mod kafka_admin;
pub mod pipeline;
pub mod recovery;
pub mod refetch;
pub mod registry;
mod schema_wait;
mod session;
pub mod source;

pub mod admin;
pub mod board;
pub mod metrics;

mod catch_up;
pub mod check;
mod check_topic;
pub mod cli;
mod compare;
pub mod dead_letters;
mod lost;
pub mod offsets_command;
pub mod rebuild;
mod same_log;
pub mod status;
pub mod verify;
