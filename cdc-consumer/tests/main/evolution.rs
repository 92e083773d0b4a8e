//! A source table whose columns change, and whose slot is lost, while it is written: the real connector's
//! schemas, relation messages and snapshots.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use sqlx::{Connection, Executor};
use tokio::task::JoinHandle;

use crate::harness::connector::{CONNECT_SOON, Source};
use crate::harness::consumer::Consumer;
use crate::harness::{World, wait_until};
use crate::histories::Random;

const KEYS: usize = 40;
/// Less is no load.
const WRITES_MIN: u64 = 50;
const ITEM: &str = "create table item (id bigint primary key, name varchar(20) not null, \
    amount int, note text)";

/// Inserts, updates and deletes rows of `item`, naming only columns that every shape of it has.
struct Load {
    stop: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Load {
    async fn start(source: &Source) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (ours, mut db) = (Arc::clone(&stop), source.db().await);
        let task = tokio::spawn(async move {
            let (mut random, mut count) = (Random::new(7), 0);
            while count < WRITES_MIN || !ours.load(Ordering::Relaxed) {
                let (id, number) = (random.below(KEYS), random.below(10_000));
                let statement = match random.below(10) {
                    0..5 => format!(
                        "insert into item (id, name, amount) values ({id}, 'n{number}', {number}) \
                         on conflict (id) do update set amount = excluded.amount"
                    ),
                    5..8 => format!("update item set name = 'u{number}' where id = {id}"),
                    _ => format!("delete from item where id = {id}"),
                };
                let done = db.execute(statement.as_str()).await;
                count += done.expect("a write of the source").rows_affected();
            }
        });
        Self { stop, task }
    }

    /// Ends the writes, once there were some.
    async fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.expect("no panic");
    }
}

/// `item` with rows, captured, and its view, whose number column takes integers and decimals.
async fn items(create_view: &str, connector: &[(&str, &str)]) -> (World, Source) {
    let world = World::new().await;
    let source = Source::new(&world).await;
    let rows = "insert into item select n, 'name', n, 'note ' || n from generate_series(0, 19) n";
    source.sql(&format!("{ITEM}; {rows}")).await;
    world.view(create_view, "item").await;
    source.capture(connector).await;
    (world, source)
}

fn declared(source: &Source, more: &str) -> String {
    format!("[[view]]\ntopic = '{}'\ntable = 'item'\n{more}", source.topic("item"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn columns_that_come_go_and_change_under_load_are_followed() {
    let view = "create table item (id bigint primary key, name text, amount numeric, note text)";
    let (world, source) = items(view, &[]).await;
    let consumer = Consumer::start(&world, &declared(&source, "absent = 'keep'\n"), &[]);
    source.is_shown(&world, &consumer, "item", &["id"]).await;
    let load = Load::start(&source).await;

    // Nullable, and with a default: the view's table first, then the source.
    world.sql("alter table item add color text, add size int default 7").await;
    source.sql("alter table item add color text, add size int not null default 7").await;
    source.sql("update item set color = 'red' where id % 2 = 0").await;
    // Wider, of another type, nullable.
    source.sql("alter table item alter name type varchar(200), alter amount type bigint").await;
    source.sql("alter table item alter amount type numeric(20, 2)").await;
    source.sql("alter table item alter name drop not null").await;
    source.sql("update item set name = null, size = 8 where id % 3 = 0").await;
    // Renamed: the view gets the new name beside the old one, the source sends it with its next updates.
    world.sql("alter table item add remark text").await;
    source.sql("alter table item rename note to remark").await;
    source.sql("update item set remark = coalesce(remark, 'none'), amount = amount").await;
    // Dropped: the view keeps what it has.
    source.sql("alter table item drop color").await;

    load.stop().await;
    let columns = ["id", "name", "amount", "size", "remark"];
    source.is_shown(&world, &consumer, "item", &columns).await;
    assert_ne!(world.text("select count(*) from item where color = 'red'").await, "0");
    assert_eq!(world.dead_letters().await, Vec::<String>::new());
    consumer.stop().await;
}

/// Without `absent = "keep"`: nothing of the new shape is applied until somebody decides, nothing is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_column_dropped_at_the_source_stops_the_view_until_it_is_decided_about() {
    let view = "create table item (id bigint primary key, name text, amount int, note text)";
    let (world, source) = items(view, &[]).await;
    let consumer = Consumer::start(&world, &declared(&source, ""), &[]);
    source.is_shown(&world, &consumer, "item", &["id", "name", "amount", "note"]).await;
    source.sql("alter table item drop note").await;
    source.sql("update item set name = 'later'; insert into item values (100, 'new', 1)").await;
    let error = consumer.failure().await;
    assert!(error.contains("no field feeds column item.note"), "{error}");
    assert_eq!(world.text("select count(*) from item where name <> 'name'").await, "0");

    let consumer = Consumer::start(&world, &declared(&source, "absent = 'keep'\n"), &[]);
    source.is_shown(&world, &consumer, "item", &["id", "name", "amount"]).await;
    assert_eq!(world.text("select note from item where id = 7").await, "note 7");
    consumer.stop().await;
}

/// Rows damaged by hand, and one removed: a signal has the connector read the table again, in chunks
/// between the changes of the load.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_incremental_snapshot_under_load_mends_the_view() {
    let view = "create table item (id bigint primary key, name text, amount int, note text)";
    let settings = [
        ("signal.data.collection", "public.debezium_signal"),
        ("incremental.snapshot.chunk.size", "50"),
    ];
    let (world, source) = items(view, &settings).await;
    source.sql("create table debezium_signal (id text primary key, type text, data text)").await;
    source
        .sql("insert into item select n, 'quiet', n, 'q' from generate_series(1000, 1999) n")
        .await;
    let columns = ["id", "name", "amount", "note"];
    let consumer = Consumer::start(&world, &declared(&source, ""), &[]);
    source.is_shown(&world, &consumer, "item", &columns).await;

    world.sql("update item set name = 'damaged' where id between 1100 and 1300").await;
    world.sql("delete from item where id between 1500 and 1600").await;
    let load = Load::start(&source).await;
    let order = r#"{"data-collections": ["public.item"], "type": "incremental"}"#;
    source
        .sql(&format!("insert into debezium_signal values ('1', 'execute-snapshot', '{order}')"))
        .await;
    wait_until("the damaged rows to be mended", CONNECT_SOON, || async {
        let mended = "select count(*) from item where id >= 1000 and name = 'quiet'";
        let mended = world.text(mended).await;
        if mended == "1000" { Ok(()) } else { Err(format!("{mended} of 1000")) }
    })
    .await;
    load.stop().await;
    source.is_shown(&world, &consumer, "item", &columns).await;
    consumer.stop().await;
}

/// Its changes have lower LSNs than the rows of the chunk, which do not contain them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_that_is_open_while_a_chunk_is_read_is_not_lost() {
    let view = "create table item (id bigint primary key, name text, amount int, note text)";
    let settings = [("signal.data.collection", "public.debezium_signal")];
    let (world, source) = items(view, &settings).await;
    source.sql("create table debezium_signal (id text primary key, type text, data text)").await;
    let columns = ["id", "name", "amount", "note"];
    let consumer = Consumer::start(&world, &declared(&source, ""), &[]);
    source.is_shown(&world, &consumer, "item", &columns).await;

    let mut open = source.db().await;
    let mut transaction = open.begin().await.expect("a transaction");
    for change in ["update item set name = 'late' where id < 5", "delete from item where id > 15"] {
        transaction.execute(change).await.expect("a change");
    }
    world.sql("update item set name = 'damaged'").await;
    let order = r#"{"data-collections": ["public.item"], "type": "incremental"}"#;
    source
        .sql(&format!("insert into debezium_signal values ('1', 'execute-snapshot', '{order}')"))
        .await;
    wait_until("the chunk to be applied", CONNECT_SOON, || async {
        let damaged = world.text("select count(*) from item where name = 'damaged'").await;
        if damaged == "0" { Ok(()) } else { Err(format!("{damaged} rows are damaged")) }
    })
    .await;
    transaction.commit().await.expect("a commit");
    source.is_shown(&world, &consumer, "item", &columns).await;
    consumer.stop().await;
}

/// The slot goes while the connector is away; `when_needed` takes a new snapshot by itself. Rows deleted
/// meanwhile are in no record, and go all the same; readers never see the view empty.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_slot_is_mended_by_a_new_snapshot_and_no_ghost_stays() {
    let view = "create table item (id bigint primary key, name text, amount int, note text)";
    let settings = [("snapshot.mode", "when_needed")];
    let (world, source) = items(view, &settings).await;
    let columns = ["id", "name", "amount", "note"];
    let consumer = Consumer::start(&world, &declared(&source, ""), &[]);
    source.sql("insert into item select n, 'more', n, 'm' from generate_series(100, 299) n").await;
    source.is_shown(&world, &consumer, "item", &columns).await;

    source.stop().await;
    source.drop_slot().await;
    source
        .sql("delete from item where id % 3 = 0; update item set name = 'unheard' where id = 1")
        .await;
    source.sql("insert into item values (1000, 'new', 1, null)").await;
    let fewest = Fewest::watch(&world).await;
    source.resume().await;
    source.is_shown(&world, &consumer, "item", &columns).await;
    assert!(fewest.seen().await > 100, "a reader saw the view without its rows");
    // Streaming goes on behind the snapshot.
    source
        .sql("delete from item where id = 1000; insert into item values (3, 'again', 3, null)")
        .await;
    source.is_shown(&world, &consumer, "item", &columns).await;
    consumer.stop().await;
}

/// The fewest rows that a reader of `item` saw.
struct Fewest {
    stop: Arc<AtomicBool>,
    task: JoinHandle<i64>,
}

impl Fewest {
    async fn watch(world: &World) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (ours, mut db) = (Arc::clone(&stop), world.db().await);
        let task = tokio::spawn(async move {
            let mut fewest = i64::MAX;
            while !ours.load(Ordering::Relaxed) {
                let count = sqlx::query_scalar("select count(*) from item").fetch_one(&mut db);
                fewest = fewest.min(count.await.expect("a count"));
            }
            fewest
        });
        Self { stop, task }
    }

    async fn seen(self) -> i64 {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.expect("no panic")
    }
}

/// Its record has no key, which the broker refuses for a compacted topic (docs/guarantees.md).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_truncate_of_the_source_table_empties_the_view() {
    let view = "create table item (id bigint primary key, name text, amount int, note text)";
    let not_compacted = [("topic.creation.default.cleanup.policy", "delete")];
    let (world, source) = items(view, &not_compacted).await;
    let consumer = Consumer::start(&world, &declared(&source, ""), &[]);
    let columns = ["id", "name", "amount", "note"];
    source.is_shown(&world, &consumer, "item", &columns).await;
    source.sql("truncate item; insert into item values (100, 'new', 1)").await;
    source.is_shown(&world, &consumer, "item", &columns).await;
    assert_eq!(world.text("select string_agg(id::text, ',') from item").await, "100");
    consumer.stop().await;
}
