//! `kill -9` of one process at a time while writes go on. Started again, the system mends itself:
//! what was acknowledged is in the source, and the views equal the source.

use std::process::Stdio;
use std::time::Duration;

use devstack::Service;
use devstack::addresses::CONNECTORS;
use reqwest::Method;
use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::load::Load;
use crate::system::{EMAIL_DOMAIN, System, with_system};
use crate::wait::until;

/// From the restart of what was killed until everything is as if nothing had happened.
const RECOVERY_DEADLINE: Duration = Duration::from_secs(90);

/// Registrations that begin one after another while the worker closes its port, so that some have seen
/// it run and find it gone.
const REGISTRATIONS: usize = 12;
const BETWEEN_REGISTRATIONS: Duration = Duration::from_millis(20);

#[tokio::test]
async fn nothing_is_lost_when_the_consumer_is_killed() {
    check(Service::Consumer(1)).await;
}

#[tokio::test]
async fn nothing_is_lost_when_connect_is_killed() {
    check(Service::Connect).await;
}

#[tokio::test]
async fn nothing_is_lost_when_the_broker_is_killed() {
    check(Service::Kafka).await;
}

/// A consumer that runs knows its schemas: only one that begins needs the registry.
#[tokio::test]
async fn nothing_is_lost_when_the_registry_is_killed() {
    check_while_away(Service::Registry, async |system: &System| {
        let consumer = Service::Consumer(1);
        system.stack.stop(consumer).await.unwrap();
        system.stack.launch(consumer).await.unwrap();
        until("the consumer waits for the registry", RECOVERY_DEADLINE, async || {
            let status = system.consumer_status(consumer).await?;
            let reasons = status["reasons"].as_array().map_or(&[][..], Vec::as_slice);
            let waits = |reason: &serde_json::Value| {
                reason.as_str().is_some_and(|reason| reason.starts_with("registry: "))
            };
            if reasons.iter().any(waits) { Ok(()) } else { Err(status.to_string()) }
        })
        .await;
    })
    .await;
}

/// Requests that arrive together are inserted together: none may be answered before its commit.
#[tokio::test]
async fn nothing_is_lost_when_user_api_is_killed() {
    check(Service::UserApi).await;
}

#[tokio::test]
async fn nothing_is_lost_when_postgresql_is_killed() {
    check(Service::Postgres).await;
}

#[tokio::test]
async fn nothing_is_lost_when_a_connector_is_restarted() {
    with_system(async |system: System| {
        let load = Load::start(&system).await;
        for name in CONNECTORS {
            load.attempts(200, 200).await;
            let connect = &system.http.connect;
            let url = format!("{connect}/connectors/{name}/restart?includeTasks=true");
            let answer = system.http.send(Method::POST, &url, None).await.unwrap();
            assert_eq!(answer.status, 202, "{answer:?}");
        }
        load.attempts(400, 400).await;
        load.stop(&system).await;
        let equal = system.views_equal(RECOVERY_DEADLINE).await;
        system.report.time("last write to views equal", equal);
        connectors_run(&system).await;
    })
    .await;
}

/// Connect never starts a failed task again: `register.sh --watch` beside it does.
#[tokio::test]
async fn tasks_that_failed_while_the_registry_was_away_go_on_when_it_is_back() {
    with_system(async |system: System| {
        let _watch = system.stack.watch_connectors().unwrap();
        system.stack.stop(Service::Registry).await.unwrap();
        // New tasks ask for their schemas with their first change, which a heartbeat brings.
        system.stack.restart(Service::Connect).await.unwrap();
        until("a task has FAILED", RECOVERY_DEADLINE, async || match system.connectors().await {
            Err(status) if status.contains("FAILED") => Ok(()),
            seen => Err(format!("{seen:?}")),
        })
        .await;
        let (id, _) = create_user(&system).await;

        system.stack.start(Service::Registry).await.unwrap();
        let started = Instant::now();
        connectors_run(&system).await;
        let url = system.http.posts(&format!("/users/{id}"));
        system.http.visible(&url, RECOVERY_DEADLINE, |answer| answer.status == 200).await;
        system
            .report
            .time("registry started to the row written meanwhile visible", started.elapsed());
        system.views_equal(RECOVERY_DEADLINE).await;
    })
    .await;
}

/// A worker that starts opens its port before it has its REST resources: HTTP 404 for all of them.
#[tokio::test]
async fn registering_waits_for_connect_whenever_it_restarts() {
    with_system(async |system: System| {
        let registrations = async {
            let mut running = Vec::new();
            for _ in 0..REGISTRATIONS {
                let mut command = system.stack.register_command();
                let command = command.stdin(Stdio::null()).stdout(Stdio::piped());
                running.push(command.stderr(Stdio::piped()).spawn().unwrap());
                sleep(BETWEEN_REGISTRATIONS).await;
            }
            running
        };
        let restart = async {
            sleep(BETWEEN_REGISTRATIONS * 5).await;
            system.stack.restart(Service::Connect).await
        };
        let (running, restarted) = tokio::join!(registrations, restart);
        restarted.unwrap();
        for registration in running {
            let output = registration.wait_with_output().await.unwrap();
            assert!(output.status.success(), "{output:?}");
        }
        connectors_run(&system).await;
    })
    .await;
}

async fn check(service: Service) {
    check_while_away(service, async |_: &System| {}).await;
}

async fn check_while_away(service: Service, meanwhile: impl AsyncFnOnce(&System)) {
    with_system(async |system: System| {
        let load = Load::start(&system).await;
        load.attempts(200, 200).await;
        system.stack.kill(service).await.unwrap();
        let killed = Instant::now();
        load.attempts(400, 20).await;
        meanwhile(&system).await;

        let restarted = Instant::now();
        system.report.time(format!("{service} away"), restarted - killed);
        system.stack.start(service).await.unwrap();
        system.report.time("started to healthy", restarted.elapsed());
        let (id, written) = create_user(&system).await;
        let url = system.http.posts(&format!("/users/{id}"));
        system.http.visible(&url, RECOVERY_DEADLINE, |answer| answer.status == 200).await;
        system.report.time("started to first new row visible", restarted.elapsed());
        system.report.time("that row: 2xx to visible", written.elapsed());
        load.attempts(200, 200).await;

        let ledger = load.stop(&system).await;
        assert!(ledger.acknowledged >= 200, "{ledger:?}");
        let equal = system.views_equal(RECOVERY_DEADLINE).await;
        system.report.time("last write to views equal", equal);
        connectors_run(&system).await;
    })
    .await;
}

async fn connectors_run(system: &System) {
    until("connectors and tasks run by themselves", RECOVERY_DEADLINE, async || {
        system.connectors().await
    })
    .await;
}

/// Tries until it is acknowledged: the database may have been the one that was killed.
async fn create_user(system: &System) -> (i64, Instant) {
    let mut attempt = 0;
    until("a user can be created", RECOVERY_DEADLINE, async || {
        attempt += 1;
        let user = json!({
            "name": "홍길동", "department": "개발팀",
            "email": format!("probe-{:x}-{attempt}@{EMAIL_DOMAIN}", rand::random::<u64>()),
        });
        let answer = system.http.send(Method::POST, &system.http.users(""), Some(&user)).await?;
        if answer.status == 201 {
            Ok((answer.id(), Instant::now()))
        } else {
            Err(format!("{answer:?}"))
        }
    })
    .await
}
