//! A view's table, from the database's catalogue.

use std::collections::HashSet;

use sqlx::{PgConnection, Row};

use crate::kind::PgType;
use crate::view::ViewSpec;

/// Columns the consumer fills itself: where a row stands in its source, and when it was last written.
pub const SOURCE_EPOCH: &str = "source_epoch";
pub const SOURCE_LSN: &str = "source_lsn";
pub const LAST_PROCESSED_AT: &str = "last_processed_at";

/// A view's table. Columns are numbered: key columns first, in key order, then the others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    pub name: String,
    columns: Vec<Column>,
    key_width: usize,
    /// The table has a `last_processed_at` to stamp.
    pub stamped: bool,
    /// Policies decide which of its rows we may write.
    pub row_security: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Column {
    name: String,
    pg_type: PgType,
}

/// Why a table cannot be a view.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    #[error("could not read the catalogue of table {table}")]
    Read {
        table: String,
        #[source]
        source: sqlx::Error,
    },
    #[error(
        "table {table} does not exist in schema {schema}; add it in a migration of migrations/views"
    )]
    NoTable { schema: String, table: String },
    #[error("table {0} has no primary key; a view needs the primary key of its source table")]
    NoPrimaryKey(String),
    #[error(
        "key column {column} of table {table} is of a domain over an enum, which PostgreSQL cannot compare; \
         declare the column as the enum itself"
    )]
    NoEquality { table: String, column: String },
    #[error(
        "the views file maps field '{field}' to {part} '{column}' of {table}, which is none of {known}"
    )]
    NoColumn { field: String, part: &'static str, column: String, table: String, known: String },
    #[error(
        "table {table} is not prepared for changes ({missing}); call cdc_view('{table}') in its migration"
    )]
    NotPrepared { table: String, missing: String },
}

impl Table {
    /// Reads `schema.name`.
    pub async fn read(
        connection: &mut PgConnection,
        schema: &str,
        name: &str,
    ) -> Result<Self, CatalogError> {
        let rows = sqlx::query(COLUMNS_SQL).bind(schema).bind(name).fetch_all(connection).await;
        let rows = rows.map_err(|source| read_error(name, source))?;
        let mut table = Self {
            name: name.to_owned(),
            columns: vec![],
            key_width: 0,
            stamped: false,
            row_security: false,
        };
        let mut present = HashSet::new();
        for row in rows {
            let column = catalogue_column(&row).map_err(|source| read_error(name, source))?;
            let in_key: bool = row.try_get("in_key").map_err(|source| read_error(name, source))?;
            let comparable: bool =
                row.try_get("comparable").map_err(|source| read_error(name, source))?;
            table.row_security =
                row.try_get("row_security").map_err(|source| read_error(name, source))?;
            if in_key && !comparable {
                return Err(CatalogError::NoEquality { table: table.name, column: column.name });
            }
            present.insert(column.name.clone());
            match column.name.as_str() {
                SOURCE_EPOCH | SOURCE_LSN => {}
                LAST_PROCESSED_AT => table.stamped = true,
                _ if in_key => {
                    table.columns.push(column);
                    table.key_width += 1;
                }
                _ => table.columns.push(column),
            }
        }
        table.check(schema, &present)?;
        Ok(table)
    }

    fn check(&self, schema: &str, present: &HashSet<String>) -> Result<(), CatalogError> {
        let table = self.name.clone();
        if present.is_empty() {
            return Err(CatalogError::NoTable { schema: schema.to_owned(), table });
        }
        if self.key_width == 0 {
            return Err(CatalogError::NoPrimaryKey(table));
        }
        for column in [SOURCE_EPOCH, SOURCE_LSN] {
            if !present.contains(column) {
                return Err(CatalogError::NotPrepared { table, missing: format!("no {column}") });
            }
        }
        Ok(())
    }

    /// Looks whether every column that a declaration names is there.
    pub fn check_mapping(&self, spec: &ViewSpec) -> Result<(), CatalogError> {
        let parts = [
            ("key column", &spec.key, self.key_columns()),
            ("column", &spec.columns, self.value_columns()),
        ];
        for (part, mapped, columns) in parts {
            let known: Vec<&str> = columns.map(|index| self.column_name(index)).collect();
            let missing = mapped.iter().find(|(_, column)| !known.contains(&column.as_str()));
            if let Some((field, column)) = missing {
                let (field, column) = (field.clone(), column.clone());
                let (table, known) = (self.name.clone(), known.join(", "));
                return Err(CatalogError::NoColumn { field, part, column, table, known });
            }
        }
        Ok(())
    }

    /// Number of columns that changes feed.
    pub fn width(&self) -> usize {
        self.columns.len()
    }

    /// The columns of the primary key.
    pub fn key_columns(&self) -> std::ops::Range<usize> {
        0..self.key_width
    }

    /// The columns after the key.
    pub fn value_columns(&self) -> std::ops::Range<usize> {
        self.key_width..self.columns.len()
    }

    /// The key column of this name.
    pub fn key_column(&self, name: &str) -> Option<usize> {
        self.find(name).filter(|index| *index < self.key_width)
    }

    /// The column of this name outside the key.
    pub fn value_column(&self, name: &str) -> Option<usize> {
        self.find(name).filter(|index| *index >= self.key_width)
    }

    /// A column's name; empty when there is no such column.
    pub fn column_name(&self, index: usize) -> &str {
        self.columns.get(index).map_or("", |column| &column.name)
    }

    /// A column's type.
    pub fn column_type(&self, index: usize) -> Option<&PgType> {
        self.columns.get(index).map(|column| &column.pg_type)
    }

    /// Whether PostgreSQL may call keys equal whose text differs (case, padding, trailing zeros).
    pub fn key_equality_is_loose(&self) -> bool {
        let exact = ["bool", "int2", "int4", "int8", "text", "varchar", "uuid", "bytea", "date"];
        self.key_columns()
            .filter_map(|index| self.column_type(index))
            .any(|key| !exact.contains(&key.base.as_str()))
    }

    fn find(&self, name: &str) -> Option<usize> {
        self.columns.iter().position(|column| column.name == name)
    }

    /// A table as the catalogue would describe it, for tests of pure code: `(name, base type)` columns.
    pub fn sample(name: &str, key_width: usize, columns: &[(&str, &str)]) -> Self {
        let columns = columns.iter().map(|(name, base)| Column {
            name: (*name).to_owned(),
            pg_type: PgType {
                name: (*base).to_owned(),
                cast: format!("pg_catalog.{base}"),
                modifier: -1,
                base: (*base).to_owned(),
                enumeration: false,
                range: false,
                element: None,
            },
        });
        Self {
            name: name.to_owned(),
            columns: columns.collect(),
            key_width,
            stamped: true,
            row_security: false,
        }
    }
}

/// Generated columns are PostgreSQL's to fill. A domain counts as its base type: the cast still names the
/// domain, so its checks run.
const COLUMNS_SQL: &str = "
    select
        a.attname as name,
        format_type(a.atttypid, a.atttypmod) as type_name,
        a.atttypmod as modifier,
        format('%I.%I', type_schema.nspname, t.typname) as cast_name,
        base.typname as base,
        base.typtype = 'e' as enumeration,
        not (t.typtype = 'd' and base.typtype = 'e') as comparable,
        base.typcategory = 'R' as range,
        element.typname as element_base,
        format_type(element.oid, a.atttypmod) as element_name,
        coalesce(element.typtype = 'e', false) as element_enumeration,
        coalesce(element.typcategory = 'R', false) as element_range,
        k.position is not null as in_key,
        row_security_active(c.oid) as row_security
    from pg_class c
    join pg_namespace n on n.oid = c.relnamespace
    join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
    join pg_type t on t.oid = a.atttypid
    join pg_namespace type_schema on type_schema.oid = t.typnamespace
    join pg_type base on base.oid = case when t.typtype = 'd' then t.typbasetype else t.oid end
    left join pg_type element on element.oid = base.typelem and base.typcategory = 'A'
    left join pg_index i on i.indrelid = c.oid and i.indisprimary
    left join lateral unnest(i.indkey) with ordinality as k (attnum, position)
        on k.attnum = a.attnum
    where n.nspname = $1 and c.relname = $2 and c.relkind in ('r', 'p') and a.attgenerated = ''
    order by k.position nulls last, a.attnum";

fn catalogue_column(row: &sqlx::postgres::PgRow) -> Result<Column, sqlx::Error> {
    let element_base: Option<String> = row.try_get("element_base")?;
    let element = match element_base {
        None => None,
        Some(base) => Some(Box::new(PgType {
            name: row.try_get("element_name")?,
            cast: String::new(), // elements are cast with their array
            modifier: row.try_get("modifier")?,
            base,
            enumeration: row.try_get("element_enumeration")?,
            range: row.try_get("element_range")?,
            element: None,
        })),
    };
    let pg_type = PgType {
        name: row.try_get("type_name")?,
        cast: row.try_get("cast_name")?,
        modifier: row.try_get("modifier")?,
        base: row.try_get("base")?,
        enumeration: row.try_get("enumeration")?,
        range: row.try_get("range")?,
        element,
    };
    Ok(Column { name: row.try_get("name")?, pg_type })
}

fn read_error(table: &str, source: sqlx::Error) -> CatalogError {
    CatalogError::Read { table: table.to_owned(), source }
}
