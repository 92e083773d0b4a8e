//! The original's story: rows of the view deleted by hand, the topic read again from the start.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use devstack::Service;
use devstack::addresses::{CONSUMER_GROUP, environment};
use reqwest::Method;
use serde_json::json;
use sqlx::PgPool;
use tokio::process::Command;
use tokio::time::Instant;

use crate::system::{EMAIL_DOMAIN, System, with_system};
use crate::wait::until;

/// The topic grows with every run of the tests, and a replay reads all of it.
const EQUAL_DEADLINE: Duration = Duration::from_mins(3);
const CONSUMER: Service = Service::Consumer(1);
/// What the script says by its exit code when the group has members.
const STILL_ACTIVE: i32 = 4;
/// ... when it cannot mean what it was told.
const WRONG_USAGE: i32 = 2;
/// ... when it found nothing to reach Kafka with.
const NO_TOOLS: i32 = 3;

#[tokio::test]
async fn a_replay_brings_rows_back_and_moves_none_backward() {
    with_system(async |system: System| {
        let users = write_history(&system).await;
        system.views_equal(EQUAL_DEADLINE).await;

        let delete = "delete from public.user_view where user_id = any ($1)";
        let by_hand = &users.kept[..users.kept.len() / 2];
        sqlx::query(delete).bind(by_hand).execute(&system.post_db).await.unwrap();
        let watcher = Watcher::start(system.post_db.clone(), users.deleted.clone());

        let refused = replay(&system).await;
        assert_eq!(refused.code, Some(STILL_ACTIVE), "{}", refused.text);
        assert!(refused.text.contains("./dev stop cdc-consumer"), "{}", refused.text);
        assert!(refused.text.contains("nothing was changed"), "{}", refused.text);

        system.stack.stop(CONSUMER).await.unwrap();
        let done = replay(&system).await;
        assert_eq!(done.code, Some(0), "{}", done.text);
        let started = Instant::now();
        system.stack.start(CONSUMER).await.unwrap();
        until("the deleted rows are back", EQUAL_DEADLINE, async || {
            let back = "select count(*) from user_view where user_id = any ($1)";
            let count: i64 = sqlx::query_scalar(back)
                .bind(by_hand)
                .fetch_one(&system.post_db)
                .await
                .map_err(|error| error.to_string())?;
            if usize::try_from(count) == Ok(by_hand.len()) {
                Ok(())
            } else {
                Err(format!("{count} rows"))
            }
        })
        .await;
        system.report.time("consumer started to rows back", started.elapsed());
        system.views_equal(EQUAL_DEADLINE).await;
        system.report.time("consumer started to views equal", started.elapsed());
        assert_everything_was_read_again(&system).await;
        system.report.line("looks of the watcher", watcher.stop().await.to_string());
    })
    .await;
}

#[tokio::test]
async fn the_script_asks_the_local_stack_only_where_it_was_built() {
    let (root, repository) = (temporary(), Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap());
    for directory in ["scripts", "bin", "target/debug"] {
        fs::create_dir_all(root.join(directory)).unwrap();
    }
    let script = root.join("scripts/kafka-replay.sh");
    fs::copy(repository.join("scripts/kafka-replay.sh"), &script).unwrap();
    program(&root.join("dev"), "touch \"${0%/*}/asked\"");
    program(&root.join("bin/docker"), "exit 1");
    let run = async || {
        let path = format!("{}:/usr/bin:/bin", root.join("bin").display());
        let mut command = Command::new(&script);
        command.args(["-t", "user-events"]).env("PATH", path).env_remove("CARGO_TARGET_DIR");
        ended(command.output().await.unwrap())
    };

    let without = run().await;
    assert_eq!(without.code, Some(NO_TOOLS), "{}", without.text);
    assert!(!root.join("asked").exists(), "./dev was run, which installs and builds");

    program(&root.join("target/debug/devstack"), "exit 1");
    let with = run().await;
    assert!(root.join("asked").exists(), "./dev was not run: {}", with.text);
    fs::remove_dir_all(root).unwrap();
}

#[tokio::test]
async fn a_reset_to_an_offset_is_one_partitions_and_says_what_kafka_made_of_it() {
    let bin = temporary();
    fs::create_dir_all(&bin).unwrap();
    program(&bin.join("kafka-get-offsets"), "echo t:0:2; echo t:1:9");
    let groups = "case \"$*\" in *--state*) echo Empty; exit ;; esac
        echo 'date WARN New offset (5) is higher than latest offset' >&2
        echo 'GROUP TOPIC PARTITION NEW-OFFSET'; echo 'g t 0 2'; echo \"$*\" >> \"${0%/*}/asked\"";
    program(&bin.join("kafka-consumer-groups"), groups);
    let reset = async |arguments: &[&str]| {
        let repository = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let mut command = Command::new(repository.join("scripts/kafka-replay.sh"));
        command.args(["-t", "t", "-r", "g", "-o", "5"]).args(arguments);
        command.env("PATH", format!("{}:/usr/bin:/bin", bin.display()));
        ended(command.output().await.unwrap())
    };

    let of_all = reset(&[]).await;
    assert_eq!(of_all.code, Some(WRONG_USAGE), "{}", of_all.text);
    assert!(of_all.text.contains("-p") && !bin.join("asked").exists(), "{}", of_all.text);

    let of_one = reset(&["-p", "0"]).await;
    assert_eq!(of_one.code, Some(0), "{}", of_one.text);
    for said in ["SKIPS", "higher than latest offset", "g t 0 2"] {
        assert!(of_one.text.contains(said), "{}", of_one.text);
    }
    fs::remove_dir_all(bin).unwrap();
}

pub(crate) fn temporary() -> PathBuf {
    std::env::temp_dir().join(format!("replay-{:x}", rand::random::<u64>()))
}

pub(crate) fn program(path: &Path, line: &str) {
    fs::write(path, format!("#!/bin/sh\n{line}\n")).unwrap();
    fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
}

struct Users {
    kept: Vec<i64>,
    deleted: Vec<i64>,
}

/// Users with a past: created, moved between departments, and every fourth deleted.
async fn write_history(system: &System) -> Users {
    let run = rand::random::<u64>();
    let mut users = Users { kept: Vec::new(), deleted: Vec::new() };
    for number in 0..40 {
        let body = |version: i64| {
            json!({
                "name": format!("재처리 {version}"), "department": format!("재처리 {}", version % 3),
                "email": format!("replay-{run:x}-{number}@{EMAIL_DOMAIN}"),
            })
        };
        let url = system.http.users("");
        let id = system.http.expect(201, Method::POST, &url, Some(&body(1))).await.id();
        let url = system.http.users(&format!("/{id}"));
        for version in 2..=4 {
            system.http.expect(200, Method::PUT, &url, Some(&body(version))).await;
        }
        if number % 4 == 0 {
            system.http.expect(204, Method::DELETE, &url, None).await;
            users.deleted.push(id);
        } else {
            users.kept.push(id);
        }
    }
    users
}

pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) text: String,
}

async fn replay(system: &System) -> Ended {
    let places = system.stack.places();
    let output = Command::new(places.root.join("scripts/kafka-replay.sh"))
        .args(["-t", "user-events", "-r", CONSUMER_GROUP])
        .envs(environment())
        .env("DEVSTACK_STATE", &places.state)
        .output()
        .await
        .unwrap();
    ended(output)
}

pub(crate) fn ended(output: Output) -> Ended {
    let text = [output.stdout, output.stderr].concat();
    Ended { code: output.status.code(), text: String::from_utf8_lossy(&text).into_owned() }
}

/// The process is new, so its counters began at zero: it must have met at least one record of
/// every row.
async fn assert_everything_was_read_again(system: &System) {
    let rows: i64 = sqlx::query_scalar("select count(*) from user_view")
        .fetch_one(&system.post_db)
        .await
        .unwrap();
    let records = system.user_records().await.unwrap();
    assert!(records >= u64::try_from(rows).unwrap(), "{records} records for {rows} rows");
    system.report.line("records read again", records.to_string());
}

/// Looks at the view all the time: no version may fall, no deleted user return.
struct Watcher {
    stop: Arc<AtomicBool>,
    looks: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<Vec<String>>,
}

impl Watcher {
    fn start(db: PgPool, deleted: Vec<i64>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let looks = Arc::new(AtomicU64::new(0));
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&looks));
        let task = tokio::spawn(async move {
            let mut newest: BTreeMap<i64, i64> = BTreeMap::new();
            let mut wrong = Vec::new();
            while !stopped.load(Relaxed) {
                let rows: Vec<(i64, i64)> =
                    sqlx::query_as("select user_id, version from user_view")
                        .fetch_all(&db)
                        .await
                        .unwrap();
                for (id, version) in rows {
                    let before = newest.insert(id, version).unwrap_or(i64::MIN);
                    if version < before {
                        wrong.push(format!("user {id} fell from version {before} to {version}"));
                    }
                    if deleted.contains(&id) {
                        wrong.push(format!("user {id} was deleted and is back"));
                    }
                }
                counted.fetch_add(1, Relaxed);
            }
            wrong
        });
        Self { stop, looks, task }
    }

    /// Returns how often it looked.
    async fn stop(self) -> u64 {
        self.stop.store(true, Relaxed);
        let wrong = self.task.await.unwrap();
        assert!(wrong.is_empty(), "{wrong:?}");
        self.looks.load(Relaxed)
    }
}
