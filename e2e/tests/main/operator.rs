//! The consumer's own commands, used on a consumer that runs.

use std::time::Duration;

use serde_json::Value;

use crate::consumer::PARTITION_COUNT;
use crate::load::Load;
use crate::system::{System, with_system};
use crate::wait::until;

const DEADLINE: Duration = Duration::from_mins(3);

#[tokio::test]
async fn status_and_offsets_say_where_the_consumer_stands() {
    with_system(async |system: System| {
        let load = Load::start(&system).await;
        load.attempts(100, 100).await;
        load.stop(&system).await;
        system.views_equal(DEADLINE).await;

        let text = system.command_output(&["status"]).await;
        for word in ["user-events", "post-events", "OWNER", "generation", "0 open dead letters"] {
            assert!(text.contains(word), "{word} is missing:\n{text}");
        }
        until("nothing is left to apply", DEADLINE, async || {
            let status = system.command_output(&["status", "--json"]).await;
            let status: Value = serde_json::from_str(&status).unwrap();
            let partitions = status["partitions"].as_array().unwrap();
            assert_eq!(partitions.len(), PARTITION_COUNT, "{status}");
            let idle = partitions.iter().all(|partition| partition["lag"] == 0);
            if idle { Ok(()) } else { Err(status.to_string()) }
        })
        .await;
        let shown = system.command_output(&["offsets", "show"]).await;
        let user_lines = shown.lines().filter(|line| line.starts_with("user-events-"));
        assert_eq!(user_lines.count(), PARTITION_COUNT / 2, "{shown}");
    })
    .await;
}

#[tokio::test]
async fn offsets_are_reset_under_a_running_consumer() {
    with_system(async |system: System| {
        let load = Load::start(&system).await;
        load.attempts(300, 300).await;
        load.stop(&system).await;
        system.views_equal(DEADLINE).await;

        let reset = ["offsets", "reset", "--topic", "user-events"];
        let before = user_offsets(&system).await;
        let dry = system.command_output(&reset).await;
        assert!(dry.contains("nothing was changed"), "{dry}");
        assert_eq!(user_offsets(&system).await, before);
        for (wrong, word) in [
            (&["--to", "999999999999", "--execute"][..], "outside"),
            (&["--to", "yesterday"], "expected earliest, latest or an offset"),
            (&["--partition", "99", "--execute"], "no stored offset matches"),
        ] {
            let output = system.command(&[&reset, wrong].concat()).await;
            let text = String::from_utf8_lossy(&output.stderr);
            assert!(!output.status.success() && text.contains(word), "{wrong:?}: {text}");
        }
        assert_eq!(user_offsets(&system).await, before);

        let records = system.user_records().await.unwrap();
        let rows: i64 = sqlx::query_scalar("select count(*) from user_view")
            .fetch_one(&system.post_db)
            .await
            .unwrap();
        let done = system.command_output(&[&reset[..], &["--execute"]].concat()).await;
        assert!(!done.contains("nothing was changed"), "{done}");
        // Nothing is written meanwhile: without records to apply the consumer looks for itself, every few
        // seconds, whether its offsets were moved. The log has a record of each row at least.
        let wanted = records + u64::try_from(rows).unwrap();
        until("all was read again", DEADLINE, async || {
            let now = system.user_records().await?;
            if now >= wanted { Ok(()) } else { Err(format!("{now} records of {wanted}")) }
        })
        .await;
        let load = Load::start(&system).await;
        load.attempts(300, 300).await;
        load.stop(&system).await;
        system.report.time("last write to views equal", system.views_equal(DEADLINE).await);
    })
    .await;
}

async fn user_offsets(system: &System) -> Vec<String> {
    let shown = system.command_output(&["offsets", "show"]).await;
    shown.lines().filter(|line| line.starts_with("user-events-")).map(str::to_owned).collect()
}
