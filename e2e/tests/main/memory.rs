//! The system fits a small machine, also when there is much to do.

use std::time::Duration;

use devstack::Service;

use crate::load::Load;
use crate::system::{EMAIL_DOMAIN, System, with_system};

const CONSUMER_BYTES_MAX: u64 = 96 << 20;
const STACK_BYTES_MAX: u64 = 2560 << 20;
const BULK_ROWS: i64 = 20_000;
const EQUAL_DEADLINE: Duration = Duration::from_mins(2);

#[tokio::test]
async fn memory_stays_within_its_limits_under_load() {
    with_system(async |system: System| {
        let load = Load::start(&system).await;
        load.attempts(200, 200).await;
        bulk(&system).await;
        load.attempts(1000, 1000).await;
        let stack: u64 =
            Service::STANDARD.into_iter().filter_map(|each| memory(&system, each)).sum();
        load.stop(&system).await;
        let equal = system.views_equal(EQUAL_DEADLINE).await;
        system.report.time(format!("last write to views equal, {BULK_ROWS} rows at once"), equal);

        let consumer = peak(&system).expect("the system tells the memory of a process");
        system.report.line("consumer at its peak", format!("{} MiB", consumer >> 20));
        system.report.line("all processes together", format!("{} MiB", stack >> 20));
        assert!(consumer <= CONSUMER_BYTES_MAX, "the consumer took {} MiB", consumer >> 20);
        assert!(stack <= STACK_BYTES_MAX, "the stack takes {} MiB", stack >> 20);
    })
    .await;
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
fn peak(system: &System) -> Option<u64> {
    let running = system.stack.running(Service::Consumer(1))?;
    let status = std::fs::read_to_string(format!("/proc/{}/status", running.pid));
    let Ok(status) = status else { return running.memory_bytes() };
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib << 10)
}
