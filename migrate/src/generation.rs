//! Generations of views, and the thin views in `public` that readers see.

use std::fmt;
use std::num::ParseIntError;
use std::str::FromStr;
use std::time::{Duration, Instant};

use sqlx::{Connection, PgConnection};

use crate::MigrateError;
use crate::bootstrap::execute;
use crate::lock::{self, ATTEMPT_MAX, PAUSE};

/// Longest wait for a lock of what precedes the swap in its transaction.
const LOCK_TIMEOUT: &str = "5s";

/// From the first attempt at a swap until it gives up. Between two attempts waiting readers go on.
const SWAP_MAX: Duration = Duration::from_secs(5);

/// `invalid_table_definition`: columns were dropped, renamed or retyped, which `create or replace
/// view` cannot do.
const COLUMNS_DIFFER: &str = "42P16";

/// The number of a complete set of views, counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Generation(i32);

impl Generation {
    /// The generation a new database starts with.
    pub const FIRST: Self = Self(1);

    /// The generation with this number; none if it is not positive.
    pub fn new(number: i32) -> Option<Self> {
        (number > 0).then_some(Self(number))
    }

    /// Its number.
    pub fn number(self) -> i32 {
        self.0
    }

    /// The schema its tables live in, a plain identifier.
    pub fn schema(self) -> String {
        format!("views_{}", self.0)
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Generation {
    type Err = GenerationError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::new(text.parse()?).ok_or(GenerationError::NotPositive)
    }
}

/// Why a text is not a generation's number.
#[derive(Debug, thiserror::Error)]
pub enum GenerationError {
    /// Not a number.
    #[error("a generation is a whole number")]
    NotANumber(#[from] ParseIntError),
    /// Zero or below.
    #[error("generations are counted from 1")]
    NotPositive,
}

/// What the consumer may do with a generation's tables.
const WORK: &str = "select, insert, update, delete, truncate";

/// Creates what all generations share and this generation's schema, and makes the schema the
/// connection's search path.
///
/// What a migration makes there is the consumer's from the moment it commits: the next batch of a running
/// one may fire a new trigger that writes a new table.
pub(crate) async fn enter(
    db: &mut PgConnection,
    generation: Generation,
) -> Result<(), MigrateError> {
    let schema = generation.schema();
    let statements = format!(
        "create table if not exists public.cdc_generation (
             current integer not null check (current > 0),
             -- At most one row: there is one answer to which generation is current.
             single boolean primary key default true check (single)
         );
         grant select on public.cdc_generation to post_api, cdc_consumer;
         create schema if not exists {schema};
         alter default privileges in schema {schema} grant {WORK} on tables to cdc_consumer;
         set search_path to {schema}"
    );
    execute(db, statements).await.map_err(|source| MigrateError::Generation { generation, source })
}

/// Lets the consumer work in the generation, also in tables from before they were its own by default. Readers
/// need nothing here: a thin view reads with its owner's rights.
pub(crate) async fn grant(
    db: &mut PgConnection,
    generation: Generation,
) -> Result<(), MigrateError> {
    let schema = generation.schema();
    let statements = format!(
        "grant usage on schema {schema} to cdc_consumer;
         grant {WORK} on all tables in schema {schema} to cdc_consumer;
         revoke all on {schema}._sqlx_migrations from cdc_consumer"
    );
    execute(db, statements).await.map_err(|source| MigrateError::Generation { generation, source })
}

pub(crate) async fn current(db: &mut PgConnection) -> Result<Option<Generation>, MigrateError> {
    let failed = |source| MigrateError::Current { source };
    let recorded: bool =
        sqlx::query_scalar("select to_regclass('public.cdc_generation') is not null")
            .fetch_one(&mut *db)
            .await
            .map_err(failed)?;
    if !recorded {
        return Ok(None);
    }
    let number: Option<i32> = sqlx::query_scalar("select current from public.cdc_generation")
        .fetch_optional(db)
        .await
        .map_err(failed)?;
    Ok(number.and_then(Generation::new))
}

/// The generations there are, in their order.
pub(crate) async fn all(db: &mut PgConnection) -> Result<Vec<Generation>, MigrateError> {
    let numbers: Vec<i32> = sqlx::query_scalar(
        "select substring(nspname from 7)::int
         from pg_namespace
         where nspname ~ '^views_[1-9][0-9]{0,8}$'
         order by 1",
    )
    .fetch_all(db)
    .await
    .map_err(|source| MigrateError::Current { source })?;
    Ok(numbers.into_iter().filter_map(Generation::new).collect())
}

/// Drops a generation with everything in it.
pub(crate) async fn drop(
    db: &mut PgConnection,
    generation: Generation,
) -> Result<(), MigrateError> {
    if current(db).await? == Some(generation) {
        return Err(MigrateError::InUse { generation });
    }
    if !all(db).await?.contains(&generation) {
        return Err(MigrateError::NoGeneration { generation });
    }
    execute(db, format!("drop schema {} cascade", generation.schema()))
        .await
        .map_err(|source| MigrateError::Generation { generation, source })?;
    tracing::info!(%generation, "generation dropped");
    Ok(())
}

/// Points the thin views, and the record of which generation is current, at `generation`, after `before`
/// did its part of the same transaction.
pub(crate) async fn publish<E: From<MigrateError>>(
    db: &mut PgConnection,
    generation: Generation,
    before: impl AsyncFnOnce(&mut PgConnection) -> Result<(), E>,
) -> Result<(), E> {
    let failed = |source| MigrateError::Generation { generation, source };
    let mut tx = db.begin().await.map_err(failed)?;
    execute(&mut tx, format!("set local lock_timeout to '{LOCK_TIMEOUT}'"))
        .await
        .map_err(failed)?;
    before(&mut tx).await?;
    let view_count = swap(&mut tx, generation).await?;
    tx.commit().await.map_err(failed)?;
    tracing::info!(%generation, view_count, "views published");
    Ok(())
}

/// Points the thin views at the generation as soon as their readers let it. Returns how many there are.
async fn swap(tx: &mut PgConnection, generation: Generation) -> Result<usize, MigrateError> {
    let failed = |source| MigrateError::Generation { generation, source };
    let deadline = Instant::now() + SWAP_MAX;
    loop {
        let mut attempt = tx.begin().await.map_err(failed)?;
        let (view, source) = match point(&mut attempt, generation).await {
            Ok(view_count) => {
                attempt.commit().await.map_err(failed)?;
                return Ok(view_count);
            }
            Err(MigrateError::Publish { view, source, .. }) if lock::not_available(&source) => {
                (view, source)
            }
            Err(error) => return Err(error),
        };
        attempt.rollback().await.map_err(failed)?;
        if Instant::now() >= deadline {
            let sessions = lock::holders(tx, "public", Some(&view)).await.map_err(failed)?;
            return Err(MigrateError::BeingRead { generation, view, sessions, source });
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Returns how many views readers see now.
async fn point(tx: &mut PgConnection, generation: Generation) -> Result<usize, MigrateError> {
    let failed = |source| MigrateError::Generation { generation, source };
    let of = |view: &str| {
        let view = view.to_owned();
        move |source| MigrateError::Publish { generation, view, source }
    };
    let published = published(tx, generation).await.map_err(failed)?;
    if published.is_empty() {
        return Err(MigrateError::NoGeneration { generation });
    }
    let withdrawn = withdrawn(tx, &published).await.map_err(failed)?;
    let view_count = u32::try_from(published.len() + withdrawn.len()).unwrap_or(u32::MAX);
    // Zero would mean without end.
    let share = (ATTEMPT_MAX / view_count).as_millis().max(1);
    execute(tx, format!("set local lock_timeout to '{share}ms'")).await.map_err(failed)?;
    for view in &published {
        replace(tx, generation, view).await.map_err(of(&view.name))?;
    }
    for name in withdrawn {
        execute(tx, format!("drop view public.{name}")).await.map_err(of(&name))?;
    }
    sqlx::query(
        "insert into public.cdc_generation (current)
         values ($1)
         on conflict (single) do update set current = excluded.current",
    )
    .bind(generation.number())
    .execute(tx)
    .await
    .map_err(failed)?;
    Ok(published.len())
}

/// A table or view of a generation that readers may see. Names are quoted for SQL.
#[derive(Debug, sqlx::FromRow)]
struct Published {
    name: String,
    columns: String,
    /// What the thin view's comment says when it already shows exactly this.
    mark: String,
    /// The comment of the thin view that is there now.
    present_mark: Option<String>,
}

async fn published(
    db: &mut PgConnection,
    generation: Generation,
) -> Result<Vec<Published>, sqlx::Error> {
    sqlx::query_as(
        "select
             quote_ident(c.relname) as name,
             string_agg(quote_ident(a.attname), ', ' order by a.attnum) as columns,
             format(
                 'thin view: %s (%s)',
                 n.nspname,
                 string_agg(
                     format('%s %s', a.attname, format_type(a.atttypid, a.atttypmod)),
                     ', ' order by a.attnum)) as mark,
             obj_description(
                 to_regclass(format('public.%I', c.relname)), 'pg_class') as present_mark
         from pg_class as c
         join pg_namespace as n on n.oid = c.relnamespace
         join pg_attribute as a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
         where n.nspname = $1
             and c.relkind in ('r', 'p', 'v', 'm')
             and obj_description(c.oid, 'pg_class') like 'published:%'
         group by n.nspname, c.relname
         order by c.relname",
    )
    .bind(generation.schema())
    .fetch_all(db)
    .await
}

async fn replace(
    db: &mut PgConnection,
    generation: Generation,
    view: &Published,
) -> Result<(), sqlx::Error> {
    let Published { name, columns, mark, present_mark } = view;
    if present_mark.as_ref() == Some(mark) {
        return Ok(());
    }
    let schema = generation.schema();
    let body = format!("view public.{name} as select {columns} from {schema}.{name}");
    let mut attempt = db.begin().await?;
    match execute(&mut attempt, format!("create or replace {body}")).await {
        Ok(()) => attempt.commit().await?,
        Err(error) if lock::code(&error).as_deref() == Some(COLUMNS_DIFFER) => {
            attempt.rollback().await?;
            let grants = grants(db, name).await?;
            // No cascade: a view somebody else built on this one is his to change first.
            execute(db, format!("drop view public.{name}; create {body}; {grants}")).await?;
        }
        Err(error) => return Err(error),
    }
    let literal: String =
        sqlx::query_scalar("select quote_literal($1)").bind(mark).fetch_one(&mut *db).await?;
    let finish = format!(
        "comment on view public.{name} is {literal};
         grant select on public.{name} to post_api"
    );
    execute(db, finish).await
}

/// Statements that let everybody else do with a thin view what he may do now.
async fn grants(db: &mut PgConnection, view: &str) -> Result<String, sqlx::Error> {
    sqlx::query_scalar(
        "select coalesce(
             string_agg(
                 format(
                     'grant %s on public.%s to %s%s',
                     a.privilege_type,
                     $1,
                     coalesce(quote_ident(r.rolname), 'public'),
                     case when a.is_grantable then ' with grant option' end),
                 '; '),
             '')
         from pg_class c
         cross join aclexplode(c.relacl) a
         left join pg_roles r on r.oid = a.grantee
         where c.oid = ('public.' || $1)::regclass and a.grantee <> c.relowner",
    )
    .bind(view)
    .fetch_one(db)
    .await
}

/// The thin views of earlier generations that this one no longer has.
async fn withdrawn(
    db: &mut PgConnection,
    published: &[Published],
) -> Result<Vec<String>, sqlx::Error> {
    let kept: Vec<&str> = published.iter().map(|view| view.name.as_str()).collect();
    sqlx::query_scalar(
        "select quote_ident(relname)
         from pg_class
         where relnamespace = 'public'::regnamespace
             and relkind = 'v'
             and obj_description(oid, 'pg_class') like 'thin view: %'
             and quote_ident(relname) <> all ($1)",
    )
    .bind(kept)
    .fetch_all(db)
    .await
}
