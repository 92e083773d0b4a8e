//! `cdc-consumer check`: looks at everything the consumer stands on, and says what is wrong. Changes nothing.

use std::io::Write;
use std::sync::Arc;

use anyhow::{Context, bail};
use serde::Serialize;
use sqlx::PgConnection;

use crate::catalog::Table;
use crate::check_topic::TopicCheck;
use crate::cli::CheckSettings;
use crate::database::{Database, Generation, schema_of};
use crate::decode::View;
use crate::fence::{self, StoredOffset};
use crate::pipeline::{self, SessionError};
use crate::refetch::RecordFetcher;
use crate::registry::Registry;
use crate::source;
use crate::view::ViewSpec;

/// The oldest PostgreSQL that knows `merge`.
const SERVER_VERSION_MIN: i32 = 150_000;

/// How one thing was found to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    Fine,
    /// It works, and may not be what is wanted.
    Doubtful,
    Wrong,
}

#[derive(Debug, Serialize)]
struct Finding {
    verdict: Verdict,
    subject: String,
    says: String,
}

/// What was found so far.
#[derive(Debug, Default)]
pub(crate) struct Findings(Vec<Finding>);

impl Findings {
    pub(crate) fn add(&mut self, verdict: Verdict, subject: &str, says: impl Into<String>) {
        self.0.push(Finding { verdict, subject: subject.to_owned(), says: says.into() });
    }

    /// Something could not be looked at, or is wrong by its own account.
    pub(crate) fn failed(&mut self, subject: &str, error: &anyhow::Error) {
        let says = service::telemetry::chain(error.as_ref()).to_string();
        self.add(Verdict::Wrong, subject, says);
    }
}

/// What the database says.
#[derive(Default)]
struct Stored {
    views: Vec<View>,
    /// Nothing where they could not be read.
    offsets: Option<Vec<StoredOffset>>,
}

/// Looks at everything and prints it. An error when something is wrong.
pub async fn check(settings: &CheckSettings, out: &mut impl Write) -> anyhow::Result<()> {
    let specs = pipeline::declaration(&settings.views.views_file)?;
    let mut findings = Findings::default();
    let mut stored = Stored::default();
    if let Err(error) = look_at_database(settings, &specs, &mut stored, &mut findings).await {
        findings.failed("database", &error);
    }
    if let Err(error) = look_at_topics(settings, &specs, stored, &mut findings).await {
        findings.failed("Kafka", &error);
    }
    print(settings.json, &findings.0, out)?;
    let wrong = findings.0.iter().filter(|finding| finding.verdict == Verdict::Wrong).count();
    if wrong > 0 {
        bail!("{wrong} of {} things are wrong", findings.0.len());
    }
    Ok(())
}

async fn look_at_database(
    settings: &CheckSettings,
    specs: &[ViewSpec],
    stored: &mut Stored,
    findings: &mut Findings,
) -> anyhow::Result<()> {
    let database = Database::new(&settings.database.consumer_database_url)?;
    let generation = database.current_generation().await?;
    let mut connection = database.connect_to(generation).await?;
    let (version, number): (String, i32) = sqlx::query_as(
        "select current_setting('server_version'), current_setting('server_version_num')::int",
    )
    .fetch_one(&mut connection)
    .await
    .context("could not ask for the version")?;
    let verdict = if number < SERVER_VERSION_MIN { Verdict::Wrong } else { Verdict::Fine };
    let says = format!("PostgreSQL {version} (15 or newer is needed), generation {generation}");
    findings.add(verdict, "database", says);
    for spec in specs {
        let subject = format!("table {}", spec.table);
        match look_at_table(&mut connection, generation, spec).await {
            Ok(table) => {
                let key: Vec<_> =
                    table.key_columns().map(|column| table.column_name(column)).collect();
                let says = format!("{} columns, key {}", table.width(), key.join(", "));
                findings.add(Verdict::Fine, &subject, says);
                stored.views.push(View { spec: spec.clone(), table });
            }
            Err(error) => findings.failed(&subject, &error),
        }
    }
    stored.offsets = Some(fence::stored(&mut connection).await?);
    let letters: i64 = sqlx::query_scalar("select count(*) from cdc_dead_letter")
        .fetch_one(&mut connection)
        .await
        .context("could not count the dead letters")?;
    let (verdict, says) = match letters {
        0 => (Verdict::Fine, "none".to_owned()),
        open => (Verdict::Doubtful, format!("{open}; `cdc-consumer dead-letters list` shows them")),
    };
    findings.add(verdict, "dead letters", says);
    Ok(())
}

async fn look_at_table(
    connection: &mut PgConnection,
    generation: Generation,
    spec: &ViewSpec,
) -> anyhow::Result<Table> {
    let schema = schema_of(generation);
    let table = Table::read(connection, &schema, &spec.table).await?;
    table.check_mapping(spec)?;
    if fence::shows_another_topic(connection, &spec.topic, &table).await? {
        let (topic, table) = (spec.topic.clone(), table.name);
        return Err(SessionError::AnotherTopic { topic, table }.into());
    }
    let lacking: Option<String> = sqlx::query_scalar(
        "select string_agg(lower(needed), ', ')
         from unnest(array['SELECT', 'INSERT', 'UPDATE', 'DELETE']) as needed
         where not has_table_privilege(format('%I.%I', $1, $2), needed)",
    )
    .bind(&schema)
    .bind(&spec.table)
    .fetch_one(connection)
    .await
    .context("could not ask for the rights")?;
    if let Some(lacking) = lacking {
        bail!("the consumer's role may not {lacking} there; run `migrate views`");
    }
    Ok(table)
}

async fn look_at_topics(
    settings: &CheckSettings,
    specs: &[ViewSpec],
    stored: Stored,
    findings: &mut Findings,
) -> anyhow::Result<()> {
    let mut check = TopicCheck {
        kafka: &settings.kafka,
        client: Arc::new(source::client(&settings.kafka)?),
        registry: Registry::new(&settings.registry)?,
        fetcher: RecordFetcher::new(&settings.kafka),
        offsets: stored.offsets,
        views: Arc::new(stored.views),
        findings,
    };
    for spec in specs {
        check.look(&spec.topic).await?;
    }
    Ok(())
}

fn print(json: bool, findings: &[Finding], out: &mut impl Write) -> anyhow::Result<()> {
    if json {
        serde_json::to_writer_pretty(&mut *out, findings)?;
        return Ok(writeln!(out)?);
    }
    for Finding { verdict, subject, says } in findings {
        let verdict = match verdict {
            Verdict::Fine => "fine",
            Verdict::Doubtful => "doubtful",
            Verdict::Wrong => "wrong",
        };
        writeln!(out, "{verdict:<9} {subject:<28} {says}")?;
    }
    Ok(())
}
