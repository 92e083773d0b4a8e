//! The connector's other ways to write types: each is recognised from the schema, or refused.

use super::columns::{Column, EXACT, INTERVALS, MILLISECONDS, NANOSECONDS, TEXTS, TIMES};
use super::{check, declaration, prepared};
use crate::harness::consumer::Consumer;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn intervals_and_decimals_are_exact_as_text() {
    let modes = [("interval.handling.mode", "string"), ("decimal.handling.mode", "string")];
    check(&[("intervals", INTERVALS), ("exact", EXACT)], &modes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn times_arrive_in_every_precision_that_holds_them() {
    // What isostring loses of a time, the list of losses names.
    let end_of_day = "24:00:00";
    let iso: Vec<Column> =
        TIMES.iter().copied().filter(|column| !column.edges.contains(&end_of_day)).collect();
    check(&[("times", &iso)], &[("time.precision.mode", "isostring")]).await;
    check(&[("times", TIMES)], &[("time.precision.mode", "adaptive_time_microseconds")]).await;
    let hstore: Vec<Column> =
        TEXTS.iter().copied().filter(|column| column.kind == "hstore").collect();
    // A timestamp beyond the year 294246 is lost in microseconds, as it is by default without precision.
    let micros: Vec<Column> =
        TIMES.iter().copied().filter(|column| column.kind != "timestamp(3)").collect();
    let modes = [("time.precision.mode", "microseconds"), ("hstore.handling.mode", "map")];
    check(&[("times", &micros), ("maps", &hstore)], &modes).await;
    check(&[("times", NANOSECONDS)], &[("time.precision.mode", "nanoseconds")]).await;
    check(&[("times", MILLISECONDS)], &[("time.precision.mode", "connect")]).await;
}

/// Starts a consumer for each table with one column of such a type, and expects its last words.
async fn refused(options: &[(&str, &str)], cases: &[(&str, &str, &str)]) {
    let (world, source) = prepared().await;
    for (index, (kind, value, _)) in cases.iter().enumerate() {
        let create = format!("create table t{index} (id bigint primary key, c {kind})");
        source.sql(&format!("{create}; insert into t{index} values (1, {value})")).await;
        world.view(&create, &format!("t{index}")).await;
    }
    source.capture(options).await;
    for (index, (kind, _, expected)) in cases.iter().enumerate() {
        let table = format!("t{index}");
        source.schema(&table).await;
        let consumer = Consumer::start(&world, &declaration(&source, &table), &[]);
        let error = consumer.failure().await;
        assert!(error.contains(expected), "{kind}: {error}");
        assert!(error.contains(&format!("column {table}.c")), "{kind}: {error}");
        assert_eq!(world.text(&format!("select count(*) from {table}")).await, "0", "{kind}");
    }
    assert_eq!(world.dead_letters().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_defaults_lose_is_refused_before_the_first_row() {
    let cases = [
        ("interval", "'1 mon'", "interval.handling.mode=string"),
        ("varbit", "'0010'", "does not send how many bits"),
        ("varbit(8)", "'0010'", "does not send how many bits"),
        ("bit(3)[]", "null", "cannot be written to a column of type bit(3)[]"),
        ("time[]", "'{10:11:12.123456}'", "time(3)[]"),
        ("timetz[]", "'{10:11:12.123456+00}'", "timetz(0)[]"),
        ("box", "null", "no field feeds column"),
    ];
    refused(&[], &cases).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn modes_that_round_or_hide_values_are_refused_by_name() {
    let modes = [
        ("decimal.handling.mode", "double"),
        ("binary.handling.mode", "base64"),
        ("time.precision.mode", "connect"),
    ];
    let cases = [
        ("numeric(12, 2)", "1.50", "decimal.handling.mode=precise"),
        ("money", "1.50", "decimal.handling.mode=precise"),
        ("numeric[]", "'{1.50}'", "decimal.handling.mode=precise"),
        ("bytea", "'\\x00'", "binary.handling.mode=bytes"),
        ("bytea[]", "'{\"\\\\x00\"}'", "binary.handling.mode=bytes"),
        ("time", "'10:11:12.123456'", "time.precision.mode=adaptive"),
        ("timestamp", "'2020-01-02 10:11:12.123456'", "time.precision.mode=adaptive"),
        ("timestamp[]", "'{2020-01-02}'", "time.precision.mode=adaptive"),
    ];
    refused(&modes, &cases).await;
    let hidden = [("bytea", "'\\x00'", "binary.handling.mode=bytes")];
    for mode in ["base64-url-safe", "hex"] {
        refused(&[("binary.handling.mode", mode)], &hidden).await;
    }
}
