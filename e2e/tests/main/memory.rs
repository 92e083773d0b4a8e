//! The system fits a small machine, also when there is much to do.

use std::time::Duration;

use devstack::Service;
use devstack::addresses::TOPICS;
use serde_json::Value;
use tokio::time::Instant;

use crate::load::Load;
use crate::system::{EMAIL_DOMAIN, System, with_system};
use crate::wait::until;

const CONSUMER: Service = Service::Consumer(1);

const CONSUMER_BYTES_MAX: u64 = 96 << 20;
const STACK_BYTES_MAX: u64 = 2560 << 20;
const BULK_ROWS: i64 = 20_000;
/// The topic grows with every run of the tests, and catching up reads all of it.
const EQUAL_DEADLINE: Duration = Duration::from_mins(3);

#[tokio::test]
async fn memory_stays_within_its_limits_under_load_and_while_catching_up() {
    with_system(async |system: System| {
        let load = Load::start(&system).await;
        load.attempts(200, 200).await;
        bulk(&system).await;
        load.attempts(1000, 1000).await;
        let stack = Service::STANDARD.into_iter().filter_map(|each| memory(&system, each)).sum();
        load.stop(&system).await;
        let equal = system.views_equal(EQUAL_DEADLINE).await;
        system.report.time(format!("last write to views equal, {BULK_ROWS} rows at once"), equal);
        check(&system, "all processes under load", stack, STACK_BYTES_MAX);
        check(&system, "consumer at its peak under load", peak(&system), CONSUMER_BYTES_MAX);

        catch_up(&system).await;
        check(&system, "consumer at its peak catching up", peak(&system), CONSUMER_BYTES_MAX);
    })
    .await;
}

fn check(system: &System, what: &str, bytes: u64, bytes_max: u64) {
    system.report.line(what, format!("{} MiB", bytes >> 20));
    let (mib, mib_max) = (bytes >> 20, bytes_max >> 20);
    assert!((1..=mib_max).contains(&mib), "{what}: {mib} MiB, {mib_max} are allowed");
}

/// A new process reads both topics from the beginning, as fast as it can.
async fn catch_up(system: &System) {
    system.stack.stop(CONSUMER).await.unwrap();
    for topic in TOPICS {
        system.command_output(&["offsets", "reset", "--topic", topic, "--execute"]).await;
    }
    let started = Instant::now();
    system.stack.start(CONSUMER).await.unwrap();
    let records = until("all was read again", EQUAL_DEADLINE, async || {
        let records = system.user_records().await?;
        let text = system.command_output(&["status", "--json"]).await;
        let status: Value = serde_json::from_str(&text).unwrap();
        let partitions = status["partitions"].as_array().unwrap();
        let done = partitions.iter().all(|partition| partition["lag"] == 0);
        if done { Ok(records) } else { Err(text) }
    })
    .await;
    let time = started.elapsed();
    system.report.time(format!("started to {records} records of users read again"), time);
    system.views_equal(EQUAL_DEADLINE).await;
}

/// One transaction at the source: batches fill up to their limits.
async fn bulk(system: &System) {
    let insert = "insert into users (name, email, department)
         select '사용자 ' || n, 'bulk-' || n || '-' || $1 || '@' || $2, '부서 ' || n % 20
         from generate_series(1, $3) as n";
    sqlx::query(insert)
        .bind(format!("{:x}", rand::random::<u64>()))
        .bind(EMAIL_DOMAIN)
        .bind(BULK_ROWS)
        .execute(&system.user_db)
        .await
        .unwrap();
}

fn memory(system: &System, service: Service) -> Option<u64> {
    system.stack.running(service).and_then(|running| running.memory_bytes())
}

/// The most the consumer ever held, where the system keeps account of that; else what it holds now.
fn peak(system: &System) -> u64 {
    let running = system.stack.running(CONSUMER).expect("the consumer runs");
    let status = std::fs::read_to_string(format!("/proc/{}/status", running.pid));
    let line = status.iter().flat_map(|text| text.lines()).find(|line| line.starts_with("VmHWM:"));
    let kib = line.and_then(|line| line.split_ascii_whitespace().nth(1)?.parse::<u64>().ok());
    kib.map(|kib| kib << 10).or_else(|| running.memory_bytes()).expect("a process has memory")
}
