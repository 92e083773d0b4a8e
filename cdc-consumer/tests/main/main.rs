//! The consumer on the real servers: PostgreSQL, Kafka and the schema registry of the environment.
//!
//! Every test has a database, topics and a group of its own, and removes them. A server that is not there
//! is a failure. `./dev test` starts the servers first; `eval "$(./dev env)"` names those that run.

mod harness;

mod check;
mod commits;
mod copy;
mod dead_letters;
mod deadlocks;
mod declarations;
mod epochs;
mod evolution;
mod fence;
mod histories;
mod hostile;
mod keys;
mod lifecycle;
mod offsets;
mod outages;
mod owners;
mod plans;
mod poison;
mod positions;
mod rebuild;
mod rebuild_refused;
mod registry;
mod replay;
mod snapshots;
mod superseded;
mod sweeps;
mod toast;
mod types;
mod verify;
