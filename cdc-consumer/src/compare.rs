//! A view's table beside its source table, in another database: which keys differ.
//!
//! Both sides are read in the order of their keys as text, each row as one digest that its own PostgreSQL
//! computes. Nothing is held but the keys that differ.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use anyhow::Context;
use futures_util::{Stream, TryStreamExt};
use serde::Serialize;
use sqlx::postgres::{PgConnectOptions, PgRow};
use sqlx::{Connection, PgConnection, Row};

use crate::catalog::Table;
use crate::plan;
use crate::room::Room;
use crate::sql::quote;
use crate::view::ViewSpec;

/// The key columns as text.
pub(crate) type Key = Vec<String>;

/// How a row of the view differs from its source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Difference {
    /// Only the source has it.
    Missing,
    /// Only the view has it.
    Unexpected,
    /// Both have it, with other values.
    Unequal,
}

/// What both sides say of one key: digests of the row, none where it is not there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Sides {
    pub(crate) source: Option<String>,
    pub(crate) view: Option<String>,
}

impl Sides {
    pub(crate) fn difference(&self) -> Option<Difference> {
        match (&self.source, &self.view) {
            (Some(source), Some(view)) => (source != view).then_some(Difference::Unequal),
            (Some(_), None) => Some(Difference::Missing),
            (None, Some(_)) => Some(Difference::Unexpected),
            (None, None) => None,
        }
    }
}

/// What a first reading of both sides found.
#[derive(Debug, Default)]
pub(crate) struct Reading {
    /// Rows of the source.
    pub(crate) row_count: u64,
    /// Keys whose sides differed, at most the limit given.
    pub(crate) differing: BTreeMap<Key, Sides>,
    /// The limit was reached; the rest was not read.
    pub(crate) cut_short: bool,
}

/// The statements that read one side.
#[derive(Debug)]
pub(crate) struct Side {
    all: String,
    some: String,
}

impl Side {
    /// The view's table.
    pub(crate) fn of_view(table: &Table) -> Self {
        let column = |index: usize| format!("t.{}::text", quote(table.column_name(index)));
        Self::new(&quote(&table.name), table, column)
    }

    /// The source table, `name` as SQL writes it. Its values are read as the view's types where those are
    /// PostgreSQL's own: `1.5` in a `numeric(10,2)` is `1.50`. Not as a text of some length, which would cut what
    /// the view may have cut. `fields` are its names of the view's columns.
    pub(crate) fn of_source(name: &str, table: &Table, fields: &[String]) -> Self {
        let column = |index: usize| {
            let field = quote(fields.get(index).map_or("", String::as_str));
            match table.column_type(index) {
                Some(target) if Room::of(target).is_some() => format!("t.{field}::text"),
                Some(target) if target.cast.starts_with("pg_catalog.") => {
                    format!("t.{field}::{}::text", target.name)
                }
                _ => format!("t.{field}::text"),
            }
        };
        Self::new(name, table, column)
    }

    fn new(from: &str, table: &Table, column: impl Fn(usize) -> String) -> Self {
        let keys: Vec<_> = table.key_columns().map(&column).collect();
        let all: Vec<_> = (0..table.width()).map(&column).collect();
        let ordered: Vec<_> = keys.iter().map(|key| format!("({key}) collate \"C\"")).collect();
        let arrays: Vec<_> = (1..=keys.len()).map(|number| format!("${number}::text[]")).collect();
        let read = format!(
            "select array[{}] as key, md5(row({})::text) as digest from {from} as t",
            keys.join(", "),
            all.join(", ")
        );
        Self {
            all: format!("{read} order by {}", ordered.join(", ")),
            some: format!(
                "{read} where ({}) in (select * from unnest({}))",
                keys.join(", "),
                arrays.join(", ")
            ),
        }
    }

    async fn digests(
        &self,
        connection: &mut PgConnection,
        keys: &[&Key],
    ) -> Result<BTreeMap<Key, String>, sqlx::Error> {
        let mut query = sqlx::query(&self.some);
        for column in 0..keys.first().map_or(0, |key| key.len()) {
            query = query.bind(keys.iter().map(|key| key.get(column)).collect::<Vec<_>>());
        }
        query
            .fetch(connection)
            .map_err(Into::into)
            .and_then(async |row| read(&row))
            .try_collect()
            .await
    }
}

/// What the source, whose table is `name`, calls each of the view's columns.
pub(crate) async fn fields(
    connection: &mut PgConnection,
    name: &str,
    table: &Table,
    spec: &ViewSpec,
) -> anyhow::Result<Vec<String>> {
    let known: Vec<String> = sqlx::query_scalar(
        "select attname::text from pg_attribute
         where attrelid = $1::regclass and attnum > 0 and not attisdropped",
    )
    .bind(name)
    .fetch_all(connection)
    .await
    .with_context(|| format!("could not read the columns of {name}"))?;
    let present = |field: &str| known.iter().any(|known| known == field);
    let fields = (0..table.width()).map(|index| {
        let column = table.column_name(index);
        let field = if table.key_columns().contains(&index) {
            spec.key_field_of(column, present)
        } else {
            spec.field_of(column, present)
        };
        field.map(str::to_owned).map_err(|fields| plan::twice(fields, table, index).into())
    });
    fields.collect()
}

/// A connection whose server writes values as text in one way on both sides.
pub(crate) async fn connect(options: &PgConnectOptions) -> Result<PgConnection, sqlx::Error> {
    let options = options.clone().application_name("cdc-consumer verify").options([
        ("timezone", "UTC"),
        ("datestyle", "ISO"),
        ("intervalstyle", "postgres"),
        ("bytea_output", "hex"),
        ("extra_float_digits", "1"),
        ("lc_monetary", "C"),
    ]);
    PgConnection::connect_with(&options).await
}

/// Reads both sides once, side by side.
pub(crate) async fn all(
    (source, source_connection): (&Side, &mut PgConnection),
    (view, view_connection): (&Side, &mut PgConnection),
    differing_max: usize,
) -> Result<Reading, sqlx::Error> {
    let mut source = std::pin::pin!(rows(&source.all, source_connection));
    let mut view = std::pin::pin!(rows(&view.all, view_connection));
    let mut reading = Reading::default();
    let (mut one, mut other) = (source.try_next().await?, view.try_next().await?);
    loop {
        let order = match (&one, &other) {
            (None, None) => return Ok(reading),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some((key, _)), Some((other_key, _))) => key.cmp(other_key),
        };
        let (ours, theirs) = (order.is_le(), order.is_ge());
        let from_source = if ours { one.take() } else { None };
        let from_view = if theirs { other.take() } else { None };
        reading.row_count += u64::from(ours);
        let key = from_source.as_ref().or(from_view.as_ref()).map(|(key, _)| key.clone());
        let sides = Sides {
            source: from_source.map(|(_, digest)| digest),
            view: from_view.map(|(_, digest)| digest),
        };
        if sides.difference().is_some() {
            reading.differing.extend(key.map(|key| (key, sides)));
        }
        if reading.differing.len() >= differing_max {
            reading.cut_short = true;
            return Ok(reading);
        }
        if ours {
            one = source.try_next().await?;
        }
        if theirs {
            other = view.try_next().await?;
        }
    }
}

/// What both sides say of these keys now.
pub(crate) async fn some(
    (source, source_connection): (&Side, &mut PgConnection),
    (view, view_connection): (&Side, &mut PgConnection),
    keys: &[&Key],
) -> Result<BTreeMap<Key, Sides>, sqlx::Error> {
    let mut from_source = source.digests(source_connection, keys).await?;
    let mut from_view = view.digests(view_connection, keys).await?;
    let sides = keys.iter().map(|&key| {
        let sides = Sides { source: from_source.remove(key), view: from_view.remove(key) };
        (key.clone(), sides)
    });
    Ok(sides.collect())
}

fn rows<'a>(
    sql: &'a str,
    connection: &'a mut PgConnection,
) -> impl Stream<Item = Result<(Key, String), sqlx::Error>> + 'a {
    let query = sqlx::query(sql);
    query.fetch(connection).and_then(async |row| read(&row))
}

fn read(row: &PgRow) -> Result<(Key, String), sqlx::Error> {
    Ok((row.try_get("key")?, row.try_get("digest")?))
}
