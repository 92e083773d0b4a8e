//! The running system from outside: what is written over HTTP must come out over HTTP, whatever is
//! killed, replayed or refused in between.
//!
//! The tests need the local stack (`./dev up`) and its addresses in the environment (`./dev env`);
//! `./dev test` sees to both. They kill servers, so they take turns; each mends what it broke.
//! Measured times go to the terminal and to `target/e2e-report.txt`.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

mod dev;
mod faults;
mod memory;
mod operator;
mod rebalance;
mod refusals;
mod replay;
mod scenarios;
mod slots;

mod consumer;
mod http;
mod load;
mod oracle;
mod report;
mod system;
mod wait;
