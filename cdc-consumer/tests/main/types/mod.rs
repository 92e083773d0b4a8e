//! Every type, from PostgreSQL through Debezium, Kafka and the consumer into PostgreSQL: the same text.
//!
//! Values are the edges of each type and random ones; `CDC_SEED=n` replays those of one run.

mod columns;
mod lost;
mod modes;
mod values;

use std::fmt::Write;

use crate::harness::connector::{CONNECT_SOON, Source};
use crate::harness::consumer::Consumer;
use crate::harness::{World, wait_until};
use crate::histories::{Random, Replay, seeds};
use columns::{ARRAYS, Column, NUMBERS, PREPARE, RANGES, TEXTS, TIMES};

/// Random values beside the edges of each column.
const RANDOM_VALUES: usize = 12;
/// Rows from here on are inserted while the connector streams; those before it are in its snapshot.
const STREAMED: usize = 1001;

/// A table of the source, kept by a view of the same name, whose columns are `c0`, `c1`, ...
struct Matrix {
    name: &'static str,
    columns: Vec<Column>,
    rows: Vec<Vec<Option<String>>>,
}

impl Matrix {
    fn new(name: &'static str, columns: &[Column], random: &mut Random) -> Self {
        let height = columns.iter().map(|column| column.edges.len()).max().unwrap_or(0);
        let height = height + RANDOM_VALUES;
        let value = |column: &Column, row: usize, random: &mut Random| match column.edges.get(row) {
            Some(edge) => Some((*edge).to_owned()),
            None if row + 1 == height => None,
            None => Some((column.random)(random)),
        };
        let rows = (0..height)
            .map(|row| columns.iter().map(|column| value(column, row, random)).collect());
        Self { name, rows: rows.collect(), columns: columns.to_vec() }
    }

    fn create(&self) -> String {
        let mut columns = String::new();
        for (index, column) in self.columns.iter().enumerate() {
            write!(columns, ", c{index} {}", column.kind).expect("a string");
        }
        format!("create table {} (id bigint primary key{columns})", self.name)
    }

    /// Inserts the rows under ids from `first` on.
    fn insert(&self, first: usize) -> String {
        let rows = self.rows.iter().enumerate().map(|(number, row)| {
            let cells = row.iter().zip(&self.columns).map(|(cell, column)| match cell {
                Some(text) => format!(", '{}'::{}", text.replace('\'', "''"), column.kind),
                None => ", null".to_owned(),
            });
            format!("({}{})", first + number, cells.collect::<String>())
        });
        let rows: Vec<_> = rows.collect();
        format!("insert into {} values {};\n", self.name, rows.join(", "))
    }

    /// Where source and view differ, a line for each cell.
    async fn difference(&self, world: &World, source: &Source) -> Vec<String> {
        let id = ("id".to_owned(), "id");
        let columns = self.columns.iter().enumerate();
        let columns = columns.map(|(index, column)| (format!("c{index}"), column.kind));
        let columns: Vec<_> = std::iter::once(id).chain(columns).collect();
        source.differences(world, self.name, &columns).await
    }
}

/// A source and a world that know the types of [`PREPARE`].
async fn prepared() -> (World, Source) {
    let world = World::new().await;
    let source = Source::new(&world).await;
    source.sql(PREPARE).await;
    let prepare = format!("set search_path to public; {PREPARE}");
    let done = sqlx::raw_sql(&prepare).execute(&mut world.db().await).await;
    done.expect("types");
    (world, source)
}

fn declaration(source: &Source, table: &str) -> String {
    format!("[[view]]\ntopic = '{}'\ntable = '{table}'\n", source.topic(table))
}

/// Snapshot and stream of these tables end equal in the view.
async fn check(tables: &[(&'static str, &[Column])], options: &[(&str, &str)]) {
    for seed in seeds(1) {
        let _replay = Replay(seed);
        let mut random = Random::new(seed);
        let matrices: Vec<_> =
            tables.iter().map(|(name, columns)| Matrix::new(name, columns, &mut random)).collect();
        check_matrices(&matrices, options).await;
    }
}

async fn check_matrices(matrices: &[Matrix], options: &[(&str, &str)]) {
    let (world, source) = prepared().await;
    let mut views = String::new();
    for matrix in matrices {
        source.sql(&format!("{}; {}", matrix.create(), matrix.insert(1))).await;
        world.view(&matrix.create(), matrix.name).await;
        views.push_str(&declaration(&source, matrix.name));
    }
    source.capture(options).await;
    let consumer = Consumer::start(&world, &views, &["--copy-rows-min=1"]);
    let equal = |what: &'static str| {
        wait_until(what, CONNECT_SOON, || async {
            let mut lines = vec![];
            for matrix in matrices {
                lines.extend(matrix.difference(&world, &source).await);
            }
            if lines.is_empty() {
                return Ok(());
            }
            lines.push(consumer.state());
            lines.extend(world.dead_letters().await);
            lines.push(source.status().await["tasks"][0].to_string());
            Err(lines.join("\n"))
        })
    };
    equal("the view to equal the snapshot").await;
    let all: String = matrices.iter().map(|matrix| matrix.insert(STREAMED)).collect();
    source.sql(&all).await;
    equal("the view to equal what was streamed").await;
    assert_eq!(world.dead_letters().await, Vec::<String>::new());
    consumer.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_type_arrives_as_postgresql_writes_it() {
    let tables = [
        ("numbers", NUMBERS),
        ("texts", TEXTS),
        ("times", TIMES),
        ("ranges", RANGES),
        ("arrays", ARRAYS),
    ];
    check(&tables, &[]).await;
}

/// Columns of the view that are wider than the source's, or text: what PostgreSQL's own cast makes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_shown_in_wider_columns_or_as_text_are_what_postgresql_makes_of_them() {
    for seed in seeds(1) {
        let _replay = Replay(seed);
        let mut random = Random::new(seed);
        let (world, source) = prepared().await;
        let mut rows = vec!["(1, null, null, null, null, null, null, null)".to_owned()];
        for id in 2..400 {
            let day = values::date(&mut random);
            rows.push(format!(
                "({id}, '{}', '{}', {}, {}, '{day}', '{day} {}', '{}')",
                values::real(&mut random),
                values::double(&mut random),
                id % 2 == 0,
                values::bigint(&mut random),
                values::time(&mut random, 6),
                values::decimal(&mut random, 9, 2),
            ));
        }
        let edges = [
            "0.1",
            "1",
            "-0",
            "1e5",
            "1e6",
            "1e15",
            "1e22",
            "1e23",
            "1e-4",
            "1e-5",
            "NaN",
            "Infinity",
            "-Infinity",
            "123456.7",
            "9007199254740993",
            "1e-37",
        ];
        for (index, edge) in edges.iter().enumerate() {
            rows.push(format!("({}, '{edge}', '{edge}')", 1000 + index));
        }
        let (full, short) = rows.split_at(399);
        let source_table = "create table wide (id int primary key, r real, d double precision, \
            b boolean, i bigint, day date, at timestamp, price numeric(12, 2))";
        source
            .sql(&format!(
                "{source_table}; insert into wide values {}; insert into wide (id, r, d) values {}",
                full.join(", "),
                short.join(", ")
            ))
            .await;
        let view = "create table wide (id numeric primary key, r double precision, d text, b text, \
            i varchar, day text, at text, price text)";
        world.view(view, "wide").await;
        source.sql("create table single (id int primary key, r real)").await;
        source.sql("insert into single select id, r from wide").await;
        world.view("create table single (id int primary key, r text)", "single").await;
        source.capture(&[]).await;
        let views = declaration(&source, "wide") + &declaration(&source, "single");
        let consumer = Consumer::start(&world, &views, &[]);
        let columns = ["id", "r::double precision", "d", "b", "i", "day", "at", "price"];
        source.is_shown(&world, &consumer, "wide", &columns).await;
        source.is_shown(&world, &consumer, "single", &["id", "r"]).await;
        assert_eq!(world.dead_letters().await, Vec::<String>::new());
        consumer.stop().await;
    }
}
