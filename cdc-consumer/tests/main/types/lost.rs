//! What Debezium changes before it reaches Kafka: nobody behind it can know. docs/guarantees.md lists it;
//! here stands what happens, so that a release of Debezium that mends it is noticed.

use std::fmt::Write;

use super::columns::LEFT_OUT;
use super::{STREAMED, declaration, prepared};
use crate::check::check;
use crate::harness::connector::CONNECT_SOON;
use crate::harness::consumer::Consumer;
use crate::harness::{World, wait_until};

/// How a value shows that is refused as a dead letter.
const REFUSED: &str = "dead letter";

/// Type, value, what a snapshot shows, what streaming shows.
const CHANGED: &[[&str; 4]] = &[
    ["date", "0044-03-15 BC", "0044-03-15", "0044-03-15 BC"],
    ["date", "1582-10-10", "1582-10-20", "1582-10-10"],
    ["timestamp", "294276-12-31 23:59:59.999999", REFUSED, REFUSED],
    ["timetz", "10:00:00+02", "08:00:00+00", "08:00:00+00"],
    ["timetz", "24:00:00+00", "00:00:00+00", "00:00:00+00"],
    ["time(3)[]", "{24:00:00}", "{00:00:00}", "{00:00:00}"],
    ["name", "n", "n", "null"],
    ["numeric", "1.50", "1.5", "1.5"],
    ["numeric[]", "{1.50}", "{1.5}", "{1.5}"],
    ["integer[]", "{{1,2},{3,4}}", "{NULL,NULL}", "{NULL,NULL}"],
    ["integer[]", "[0:1]={1,2}", "{1,2}", "{1,2}"],
    ["text[]", "{{a,b},{c,d}}", REFUSED, REFUSED],
    ["text[]", "{{{a,b},{c,d}}}", REFUSED, REFUSED],
    ["numeric[]", "{{1.5,2},{3,4}}", "{NULL,NULL}", "{NULL,NULL}"],
    ["uuid[]", "{{{00000000-0000-0000-0000-000000000000}}}", REFUSED, REFUSED],
    ["inet[]", "{{::1}}", REFUSED, REFUSED],
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_that_debezium_changes_are_known_by_name() {
    let (world, source) = prepared().await;
    let mut create = "create table changed (id bigint primary key".to_owned();
    let (mut read, mut streamed) = (String::new(), String::new());
    for (index, [kind, value, ..]) in CHANGED.iter().enumerate() {
        write!(create, ", c{index} {kind}").expect("a string");
        for (rows, first) in [(&mut read, 1), (&mut streamed, STREAMED)] {
            writeln!(
                rows,
                "insert into changed (id, c{index}) values ({}, '{value}');",
                first + index
            )
            .expect("a string");
        }
    }
    create.push(')');
    source.sql(&format!("{create}; {read}")).await;
    world.view(&create, "changed").await;
    source.capture(&[]).await;
    let consumer = Consumer::start(&world, &declaration(&source, "changed"), &[]);
    // In a snapshot the connector is past it when its last row has come.
    is_shown(&world, &consumer, 1, CHANGED.iter().map(|[_, _, read, _]| *read)).await;
    source.sql(&streamed).await;
    is_shown(&world, &consumer, STREAMED, CHANGED.iter().map(|[.., streamed]| *streamed)).await;
    consumer.stop().await;
}

async fn is_shown<'a>(
    world: &World,
    consumer: &Consumer,
    first: usize,
    expected: impl Iterator<Item = &'a str> + Clone,
) {
    wait_until("the values to show as expected", CONNECT_SOON, || async {
        let mut lines = vec![];
        for (index, expected) in expected.clone().enumerate() {
            let id = first + index;
            let letters = format!(
                "select count(*) from cdc_dead_letter where key_text = '{id}' and reason = 'refused'"
            );
            let shown = format!("select c{index} from changed where id = {id}");
            let found = if world.text(&letters).await == "1" {
                REFUSED.to_owned()
            } else {
                world.text(&shown).await
            };
            if found != expected {
                let [kind, value, ..] = CHANGED[index];
                lines.push(format!("{kind} {value} ({id}): {expected}, shown {found}"));
            }
        }
        if lines.is_empty() {
            return Ok(());
        }
        lines.push(consumer.state());
        lines.extend(world.dead_letters().await);
        Err(lines.join("\n"))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn types_that_debezium_leaves_out_are_known_by_name() {
    let (_world, source) = prepared().await;
    let mut create = "create table left_out (id bigint primary key".to_owned();
    for (index, kind) in LEFT_OUT.iter().enumerate() {
        write!(create, ", c{index} {kind}").expect("a string");
    }
    source.sql(&format!("{create}); insert into left_out (id) values (1)")).await;
    source.capture(&[]).await;
    let schema = source.schema("left_out").await;
    assert!(schema.contains("\"name\":\"id\""), "{schema}");
    for (index, kind) in LEFT_OUT.iter().enumerate() {
        let sent = schema.contains(&format!("\"name\":\"c{index}\""));
        assert!(!sent, "{kind} is sent: {schema}");
    }
}

/// Without `event.converting.failure.handling.mode=fail` each of these would arrive as null.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_value_that_debezium_cannot_convert_stops_the_connector_and_names_the_column() {
    for (kind, value) in [("numeric", "NaN"), ("mood[]", "{sad,NULL}")] {
        let (world, source) = prepared().await;
        let create = format!("create table t (id bigint primary key, c {kind})");
        source.sql(&format!("{create}; insert into t values (1, null)")).await;
        world.view(&create, "t").await;
        source.capture(&[]).await;
        let consumer = Consumer::start(&world, &declaration(&source, "t"), &[]);
        source.is_shown(&world, &consumer, "t", &["id", "c"]).await;
        source.sql(&format!("insert into t values (2, '{value}')")).await;
        let error = source.failure().await;
        assert!(error.contains("public.t.c"), "{kind}: {error}");
        assert_eq!(world.text("select count(*) from t").await, "1", "{kind}");
        consumer.stop().await;
    }
}

/// The shipped converter asks Connect for the value, and Connect answers with the schema's default.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_null_in_a_column_with_a_default_arrives_as_the_default_and_check_says_so() {
    let (world, source) = prepared().await;
    let create = "create table t (id bigint primary key, c text default 'dflt', n int default 7, \
        sure int not null default 8, plain text)";
    source.sql(&format!("{create}; insert into t (id, c) values (1, null), (2, 'x')")).await;
    world.view("create table t (id bigint primary key, c text, n int, plain text)", "t").await;
    source.capture(&[]).await;
    let consumer = Consumer::start(&world, &declaration(&source, "t"), &[]);
    let shown = async |id: u32, expected: &str| {
        let sql = format!("select concat_ws(' ', c, n, plain) from t where id = {id}");
        wait_until("the row to be shown", CONNECT_SOON, || async {
            let shown = world.text(&sql).await;
            if shown == expected { Ok(()) } else { Err(format!("{id}: {shown}")) }
        })
        .await;
    };
    shown(1, "dflt 7").await;
    source.sql("insert into t values (3, null, null), (4, 'y', 1)").await;
    shown(3, "dflt 7").await;
    shown(4, "y 1").await;
    consumer.stop().await;
    let (printed, error) = check(&world, &declaration(&source, "t")).await;
    assert_eq!(error, None, "{printed}");
    let line = printed.lines().find(|line| line.contains("columns of "));
    let line = line.unwrap_or_else(|| panic!("{printed}"));
    assert!(
        line.starts_with("doubtful")
            && line.contains("c, n may be null at the source and have a default"),
        "{line}"
    );
}
