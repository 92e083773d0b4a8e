//! `cdc-consumer verify`: whether a view equals its source, and what is derived from it its definition.
//!
//! Changes go on meanwhile. A row that differs is looked at again until it is equal, or until it stayed
//! different for as long as the view may lag while its source stood still.

use std::collections::BTreeMap;
use std::io::Write;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use secrecy::ExposeSecret;
use serde::Serialize;
use sqlx::PgConnection;
use sqlx::postgres::PgConnectOptions;
use tokio::time::Instant;

use crate::cli::VerifySettings;
use crate::compare::{self, Difference, Key, Side, Sides};
use crate::database::{Database, schema_of};
use crate::decode::View;
use crate::pipeline;
use crate::sql::quote;

/// Keys looked at again: more mean that the view is not a bit behind, but another table.
const DIFFERING_MAX: usize = 100_000;
/// Keys printed without `--json`.
const SHOWN_MAX: usize = 20;
const PAUSE: Duration = Duration::from_millis(500);
/// A row that changes at every look is given up after so many times the wait.
const PATIENCE: u32 = 6;

#[derive(Debug, Serialize)]
struct Report {
    view: String,
    source_table: String,
    /// Rows of the source.
    rows: u64,
    differing: Vec<Differing>,
    /// Too many rows differ; the rest was not read.
    cut_short: bool,
    /// Rows whose source changed at every look.
    undecided: Vec<Key>,
    /// Views whose definition says something else.
    derived: Vec<String>,
    dead_letters: i64,
}

#[derive(Debug, Serialize)]
struct Differing {
    key: Key,
    difference: Difference,
}

/// Compares, prints, and fails when anything differs.
pub async fn verify(settings: &VerifySettings, out: &mut impl Write) -> anyhow::Result<()> {
    let specs = pipeline::declaration(&settings.views.views_file)?;
    let Some(spec) = specs.iter().find(|spec| spec.table == settings.view) else {
        let known: Vec<_> = specs.iter().map(|spec| spec.table.as_str()).collect();
        bail!(
            "{} declares no view {}; it has {}",
            settings.views.views_file.display(),
            settings.view,
            known.join(", ")
        );
    };
    let database = Database::new(&settings.database.consumer_database_url)?;
    let generation = database.current_generation().await?;
    let views = pipeline::views(&database, generation, std::slice::from_ref(spec)).await?;
    let view = views.first().context("the declared view")?;
    let mut view_connection = compare::connect(&database.options_of(generation)).await?;
    let source_options: PgConnectOptions = settings
        .source_database_url
        .expose_secret()
        .parse()
        .context("the source database's URL is not valid")?;
    let mut source_connection =
        compare::connect(&source_options).await.context("could not connect to the source")?;

    let source_table = qualified(&settings.source_table);
    let fields = compare::fields(&mut source_connection, &source_table, &view.table, spec).await?;
    let rows = Rows {
        source_side: Side::of_source(&source_table, &view.table, &fields),
        view_side: Side::of_view(&view.table),
        source: &mut source_connection,
        view: &mut view_connection,
    };
    let report = rows.report(settings, view, &schema_of(generation)).await;
    // What was read stands still since then, or is gone.
    ensure!(
        database.current_generation().await? == generation,
        "other views took the place of those that were compared meanwhile; say it again"
    );
    let report = report?;
    if settings.json {
        serde_json::to_writer_pretty(&mut *out, &report)?;
        writeln!(out)?;
    } else {
        print(&report, out)?;
    }
    judge(&report)
}

/// `schema.table` with each part quoted; a name in quotes is taken as it is.
fn qualified(name: &str) -> String {
    if name.contains('"') {
        return name.to_owned();
    }
    name.split('.').map(quote).collect::<Vec<_>>().join(".")
}

struct Rows<'a> {
    source_side: Side,
    view_side: Side,
    source: &'a mut PgConnection,
    view: &'a mut PgConnection,
}

impl Rows<'_> {
    async fn report(
        mut self,
        settings: &VerifySettings,
        view: &View,
        schema: &str,
    ) -> anyhow::Result<Report> {
        let mut report = self.compare(settings, view).await?;
        report.derived = derived(self.view, schema).await?;
        let letters = sqlx::query_scalar("select count(*) from cdc_dead_letter");
        report.dead_letters = letters.fetch_one(self.view).await?;
        Ok(report)
    }

    async fn compare(&mut self, settings: &VerifySettings, view: &View) -> anyhow::Result<Report> {
        let reading = compare::all(
            (&self.source_side, &mut *self.source),
            (&self.view_side, &mut *self.view),
            DIFFERING_MAX,
        )
        .await
        .with_context(|| {
            format!("could not compare {} with {}", view.table.name, settings.source_table)
        })?;
        let (differing, undecided) = self.settle(reading.differing, settings.wait.into()).await?;
        Ok(Report {
            view: view.table.name.clone(),
            source_table: settings.source_table.clone(),
            rows: reading.row_count,
            differing,
            cut_short: reading.cut_short,
            undecided,
            derived: vec![],
            dead_letters: 0,
        })
    }

    /// Looks again at what differed, until nothing does or everything that does has stood still.
    async fn settle(
        &mut self,
        first: BTreeMap<Key, Sides>,
        wait: Duration,
    ) -> anyhow::Result<(Vec<Differing>, Vec<Key>)> {
        let started = Instant::now();
        let mut open: BTreeMap<Key, (Sides, Instant)> =
            first.into_iter().map(|(key, sides)| (key, (sides, started))).collect();
        let mut differing = Vec::new();
        while !open.is_empty() && started.elapsed() < wait * PATIENCE {
            tokio::time::sleep(PAUSE).await;
            let keys: Vec<&Key> = open.keys().collect();
            let sides = compare::some(
                (&self.source_side, &mut *self.source),
                (&self.view_side, &mut *self.view),
                &keys,
            )
            .await?;
            for (key, now) in sides {
                let Some(difference) = now.difference() else {
                    open.remove(&key);
                    continue;
                };
                let Some((before, since)) = open.get_mut(&key) else { continue };
                if before.source != now.source {
                    (*before, *since) = (now, Instant::now());
                } else if since.elapsed() >= wait {
                    open.remove(&key);
                    differing.push(Differing { key, difference });
                }
            }
        }
        Ok((differing, open.into_keys().collect()))
    }
}

/// Views of the generation whose rows are not those of the view `<name>_definition`. One statement each:
/// it sees one moment.
async fn derived(connection: &mut PgConnection, schema: &str) -> anyhow::Result<Vec<String>> {
    let pairs: Vec<(String, Vec<String>)> = sqlx::query_as(
        "select left(v.viewname, -length('_definition')),
             array_agg(quote_ident(a.attname) order by a.attnum)
         from pg_views v
         join pg_attribute a on a.attrelid = format('%I.%I', v.schemaname, v.viewname)::regclass
             and a.attnum > 0
         where v.schemaname = $1 and v.viewname like '%\\_definition'
         group by v.viewname order by v.viewname",
    )
    .bind(schema)
    .fetch_all(&mut *connection)
    .await
    .context("could not list the derived views")?;
    let mut wrong = Vec::new();
    for (name, columns) in pairs {
        let (served, defined) = (quote(&name), quote(&format!("{name}_definition")));
        let columns = columns.join(", ");
        let sql = format!(
            "select exists ((select {columns} from {served} except all select {columns} from {defined})
                 union all (select {columns} from {defined} except all select {columns} from {served}))"
        );
        let differs: bool = sqlx::query_scalar(&sql)
            .fetch_one(&mut *connection)
            .await
            .with_context(|| format!("could not compare {name} with its definition"))?;
        if differs {
            wrong.push(name);
        }
    }
    Ok(wrong)
}

fn print(report: &Report, out: &mut impl Write) -> anyhow::Result<()> {
    let Report { view, source_table, rows, differing, .. } = report;
    writeln!(
        out,
        "{rows} rows of {source_table} compared with {view}: {} differ",
        differing.len()
    )?;
    for Differing { key, difference } in differing.iter().take(SHOWN_MAX) {
        let difference = match difference {
            Difference::Missing => "missing in the view",
            Difference::Unexpected => "only in the view",
            Difference::Unequal => "other values",
        };
        writeln!(out, "  {}: {difference}", key.join(", "))?;
    }
    if differing.len() > SHOWN_MAX {
        writeln!(out, "  ... all of them with --json")?;
    }
    if report.cut_short {
        writeln!(out, "more than {DIFFERING_MAX} rows differ; the rest was not read")?;
    }
    if !report.undecided.is_empty() {
        writeln!(out, "{} rows changed at every look", report.undecided.len())?;
    }
    for name in &report.derived {
        writeln!(out, "{name} is not what {name}_definition says")?;
    }
    writeln!(out, "{} open dead letters", report.dead_letters)?;
    Ok(())
}

fn judge(report: &Report) -> anyhow::Result<()> {
    if !report.differing.is_empty() || report.cut_short {
        bail!("{} does not equal {}", report.view, report.source_table);
    }
    if !report.derived.is_empty() {
        bail!("derived views do not equal their definitions: {}", report.derived.join(", "));
    }
    if !report.undecided.is_empty() {
        bail!("{} rows changed too often to be compared; run it again", report.undecided.len());
    }
    Ok(())
}
