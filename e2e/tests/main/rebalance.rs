//! Several consumers share the partitions; members come, go and die while writes go on.

use std::time::Duration;

use devstack::Service;
use reqwest::Method;
use serde_json::json;
use tokio::time::Instant;

use crate::load::Load;
use crate::system::{EMAIL_DOMAIN, System, with_system};
use crate::wait::until;

const MOVE_DEADLINE: Duration = Duration::from_secs(45);
const EQUAL_DEADLINE: Duration = Duration::from_secs(30);

#[tokio::test]
async fn partitions_move_between_two_and_four_consumers_and_nothing_is_lost() {
    with_system(async |system: System| {
        let [first, second, third, fourth] = [1, 2, 3, 4].map(Service::Consumer);
        let load = Load::start(&system).await;

        start(&system, &[second]).await;
        moved(&system, "two consumers", &[first, second]).await;
        load.attempts(200, 200).await;

        start(&system, &[third, fourth]).await;
        moved(&system, "four consumers", &[first, second, third, fourth]).await;
        load.attempts(200, 200).await;

        system.stack.kill(second).await.unwrap();
        moved(&system, "one of four killed", &[first, third, fourth]).await;
        load.attempts(200, 200).await;

        for consumer in [third, fourth] {
            system.stack.stop(consumer).await.unwrap();
        }
        moved(&system, "two of three stopped", &[first]).await;
        load.stop(&system).await;
        system.report.time("last write to views equal", system.views_equal(EQUAL_DEADLINE).await);
    })
    .await;
}

/// A frozen process is the worst member: it holds its connections, its locks and its opinion of
/// what it owns.
#[tokio::test]
async fn a_consumer_that_freezes_is_replaced_and_joins_again_when_it_thaws() {
    with_system(async |system: System| {
        let [first, second] = [1, 2].map(Service::Consumer);
        let load = Load::start(&system).await;
        start(&system, &[second]).await;
        moved(&system, "two consumers", &[first, second]).await;
        load.attempts(200, 200).await;

        system.stack.pause(second).unwrap();
        moved(&system, "one of two frozen", &[first]).await;
        let applied = Instant::now();
        let url = system.http.posts(&format!("/users/{}", create_user(&system).await));
        system.http.visible(&url, MOVE_DEADLINE, |answer| answer.status == 200).await;
        system.report.time("a new row visible meanwhile", applied.elapsed());

        system.stack.resume(second).unwrap();
        moved(&system, "thawed", &[first, second]).await;
        load.attempts(200, 200).await;
        load.stop(&system).await;
        system.report.time("last write to views equal", system.views_equal(EQUAL_DEADLINE).await);
    })
    .await;
}

async fn create_user(system: &System) -> i64 {
    let user = json!({
        "name": "홍길동", "department": "개발팀",
        "email": format!("frozen-{:x}@{EMAIL_DOMAIN}", rand::random::<u64>()),
    });
    system.http.expect(201, Method::POST, &system.http.users(""), Some(&user)).await.id()
}

async fn start(system: &System, consumers: &[Service]) {
    for &consumer in consumers {
        system.stack.launch(consumer).await.unwrap();
    }
}

/// Waits until these members own everything, and notes how long that took.
async fn moved(system: &System, what: &str, consumers: &[Service]) {
    let started = Instant::now();
    let shares = until(&format!("{what}: partitions are shared out"), MOVE_DEADLINE, async || {
        system.shared_out(consumers).await
    })
    .await;
    system.report.time(format!("{what}: {shares} partitions"), started.elapsed());
}
