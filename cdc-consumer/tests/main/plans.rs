//! How PostgreSQL finds the rows of a batch.

use crate::harness::consumer::Consumer;
use crate::harness::source::{Users, user_feed, user_views};
use crate::harness::{SOON, World, wait_until};

/// Tables whose rows a batch looks up.
const TABLES: &str = "('user_view', 'user_view_deleted')";

/// An analysis that ran before the first batch was committed saw pages without rows. PostgreSQL takes the
/// tables for empty until the next, however they grow.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_are_looked_up_by_key_though_the_statistics_call_the_tables_empty() {
    let world = World::new().await;
    for table in ["user_view", "user_view_deleted"] {
        world.sql(&format!("alter table views_1.{table} set (autovacuum_enabled = false)")).await;
    }
    let feed = user_feed(&world, 1).await;
    let consumer = Consumer::start(&world, &user_views(&feed.topic), &[]);
    // It reads the table of deleted keys to forget old ones, at the start and not again for minutes.
    wait_until("old deleted keys to be looked for", SOON, || async {
        let scans = world.text(&statistic("seq_scan")).await;
        if scans == "1" { Ok(()) } else { Err(scans) }
    })
    .await;

    let mut users = Users::default();
    feed.send(&world, &users.puts(1..=3000)).await;
    let deletes: Vec<_> = (1..=1000).map(|id| users.delete(id)).collect();
    feed.send(&world, &deletes).await;
    world.drained(&feed.topic, 1).await;
    world.sql("analyze").await;
    let none = format!(
        "update pg_class set reltuples = 0
         where oid in (select c.oid from pg_class c where c.relname in {TABLES})
         or oid in (select indexrelid from pg_index i join pg_class c on c.oid = i.indrelid
                    where c.relname in {TABLES})"
    );
    world.sql(&none).await;
    feed.send(&world, &users.puts(500..=3500)).await;
    world.drained(&feed.topic, 1).await;

    // Its sessions have reported what they read when they are gone.
    consumer.stop().await;
    assert_eq!(world.text(&statistic("seq_tup_read")).await, "0");
    world.shows("user_view", &users.as_view()).await;
}

fn statistic(name: &str) -> String {
    format!("select sum({name})::text from pg_stat_user_tables where relname in {TABLES}")
}
