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
use crate::kind::PgType;
use crate::plan;
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
        let name = |index: usize| format!("t.{}", quote(table.column_name(index)));
        let key = |index: usize| {
            let key_type = table.column_type(index).map_or("text", |target| &target.name);
            (name(index), key_type.to_owned())
        };
        Self::new(&quote(&table.name), table, |index| format!("{}::text", name(index)), key)
    }

    /// The source table, `name` as SQL writes it. Its values are read as the view's types, see [`cast`]. `fields`
    /// are what it has for the view's columns.
    pub(crate) fn of_source(name: &str, table: &Table, fields: &[Field]) -> Self {
        let field = |index: usize| fields.get(index).cloned().unwrap_or_default();
        let column = |index: usize| {
            let name = quote(&field(index).name);
            match table.column_type(index).and_then(cast) {
                Some(cast) => format!("t.{name}::{cast}::text"),
                None => format!("t.{name}::text"),
            }
        };
        let key = |index: usize| {
            let Field { name, type_name } = field(index);
            let same = table.column_type(index).is_some_and(|target| target.name == type_name);
            if same {
                (format!("t.{}", quote(&name)), type_name)
            } else {
                (column(index), "text".to_owned())
            }
        };
        Self::new(name, table, column, key)
    }

    /// `column`: a column as the text that is compared. `key`: a key column, and the type it is looked up by; its
    /// own wherever a key can be read as that, so that an index serves.
    fn new(
        from: &str,
        table: &Table,
        column: impl Fn(usize) -> String,
        key: impl Fn(usize) -> (String, String),
    ) -> Self {
        let keys: Vec<_> = table.key_columns().map(&column).collect();
        let all: Vec<_> = (0..table.width()).map(&column).collect();
        let ordered: Vec<_> = keys.iter().map(|key| format!("({key}) collate \"C\"")).collect();
        let arrays: Vec<_> = (1..=keys.len()).map(|number| format!("${number}::text[]")).collect();
        let names: Vec<_> = (1..=keys.len()).map(|number| format!("k{number}")).collect();
        let (found, types): (Vec<_>, Vec<_>) = table.key_columns().map(key).unzip();
        let wanted: Vec<_> = names
            .iter()
            .zip(types)
            .map(|(name, key_type)| format!("u.{name}::{key_type}"))
            .collect();
        let read = format!(
            "select array[{}] as key, md5(row({})::text) as digest from {from} as t",
            keys.join(", "),
            all.join(", ")
        );
        Self {
            all: format!("{read} order by {}", ordered.join(", ")),
            some: format!(
                "{read} where ({}) in (select {} from unnest({}) as u ({}))",
                found.join(", "),
                wanted.join(", "),
                arrays.join(", "),
                names.join(", ")
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

/// What a value of the source is read as, to be written as a column of this type writes it: `1.5` in a
/// `numeric(10,2)` is `1.50`. Only in types of PostgreSQL's own, which the source has, too. Never in one that cuts
/// what the view may have cut (the length of a text), or that fails where a value is no value of the view (out
/// of range): such a row differs, and the others are compared.
fn cast(target: &PgType) -> Option<String> {
    let PgType { cast, modifier, .. } = target;
    if !cast.starts_with("pg_catalog.") {
        return None;
    }
    let base = target.element.as_ref().map_or(&target.base, |element| &element.base);
    match (base.as_str(), *modifier) {
        // As text they are the same in whatever type.
        ("int2" | "int4" | "int8" | "oid" | "name" | "char" | "varchar", _) => None,
        // Precision and scale share the modifier, behind a header of four bytes; the scale has a sign.
        ("numeric", 4..) => {
            let scale = (((modifier - 4) & 0x7ff) ^ 0x400) - 0x400;
            Some(format!("{cast}(1000,{scale})"))
        }
        ("time" | "timetz" | "timestamp" | "timestamptz", 0..) => {
            Some(format!("{cast}({modifier})"))
        }
        // Its fields, and the precision of its seconds.
        ("interval", 0..) => Some(match (modifier >> 16, modifier & 0xffff) {
            (fields, 0xffff) => format!("{cast}({fields})"),
            (fields, precision) => format!("{cast}({fields},{precision})"),
        }),
        _ => Some(cast.clone()),
    }
}

/// A column of the source.
#[derive(Debug, Clone, Default)]
pub(crate) struct Field {
    name: String,
    /// As `format_type` writes it.
    type_name: String,
}

/// What the source, whose table is `name`, has for each of the view's columns.
pub(crate) async fn fields(
    connection: &mut PgConnection,
    name: &str,
    table: &Table,
    spec: &ViewSpec,
) -> anyhow::Result<Vec<Field>> {
    let known: Vec<(String, String)> = sqlx::query_as(
        "select attname::text, format_type(atttypid, atttypmod) from pg_attribute
         where attrelid = $1::regclass and attnum > 0 and not attisdropped",
    )
    .bind(name)
    .fetch_all(connection)
    .await
    .with_context(|| format!("could not read the columns of {name}"))?;
    let type_of = |field: &str| known.iter().find(|(name, _)| name == field).map(|(_, it)| it);
    let present = |field: &str| type_of(field).is_some();
    let fields = (0..table.width()).map(|index| {
        let column = table.column_name(index);
        let field = if table.key_columns().contains(&index) {
            spec.key_field_of(column, present)
        } else {
            spec.field_of(column, present)
        };
        let field = field.map_err(|fields| plan::twice(fields, table, index))?;
        let type_name = type_of(field).cloned().unwrap_or_default();
        Ok(Field { name: field.to_owned(), type_name })
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Else each look at some rows would read the whole table.
    #[test]
    fn a_key_of_one_type_is_looked_up_as_that() {
        let table = Table::sample("v", 2, &[("a", "int8"), ("b", "text")]);
        let field = |name: &str, type_name: &str| Field {
            name: name.to_owned(),
            type_name: type_name.to_owned(),
        };
        let check = |side: Side, expected| assert!(side.some.ends_with(expected), "{side:?}");
        check(
            Side::of_source("s", &table, &[field("A", "int8"), field("b", "varchar(9)")]),
            "where (t.\"A\", t.\"b\"::pg_catalog.text::text) in \
             (select u.k1::int8, u.k2::text from unnest($1::text[], $2::text[]) as u (k1, k2))",
        );
        check(
            Side::of_view(&table),
            "where (t.\"a\", t.\"b\") in \
             (select u.k1::int8, u.k2::text from unnest($1::text[], $2::text[]) as u (k1, k2))",
        );
    }
}
