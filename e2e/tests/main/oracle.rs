//! Compares the views with what they must equal: the source tables, row for row, and the query
//! that defines the counts.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::time::Duration;

use sqlx::PgPool;
use tokio::time::Instant;

use crate::system::System;
use crate::wait::until;

/// Rows of a difference that a failure shows.
const SHOWN_MAX: usize = 5;

impl System {
    /// Waits until the views equal their sources; nobody may be writing. Returns how long it took.
    pub(crate) async fn views_equal(&self, deadline: Duration) -> Duration {
        let started = Instant::now();
        until("the views equal the source tables", deadline, async || {
            let Err(difference) = self.compare().await.map_err(|error| error.to_string())? else {
                return Ok(());
            };
            // A connector that gave up would leave just such a difference.
            let connectors = self.connectors().await.err();
            Err(connectors.map_or(difference.clone(), |state| format!("{difference}; {state}")))
        })
        .await;
        started.elapsed()
    }

    async fn compare(&self) -> Result<Result<(), String>, sqlx::Error> {
        let users = |table: &str, id: &str| {
            format!(
                "select {id}, jsonb_build_array(name, email, department, status, created_at,
                     updated_at, version)::text
                 from public.{table}"
            )
        };
        let posts = |table: &str, id: &str| {
            format!(
                "select {id}, jsonb_build_array(author_id, created_at)::text from public.{table}"
            )
        };
        let source = rows(&self.user_db, users("users", "id")).await?;
        let view = rows(&self.post_db, users("user_view", "user_id")).await?;
        let user_view = difference("user_view", &source, &view);
        let source = rows(&self.post_db, posts("posts", "id")).await?;
        let view = rows(&self.post_db, posts("post_view", "post_id")).await?;
        let post_view = difference("post_view", &source, &view);
        Ok(user_view.and(post_view).and(self.compare_derived().await?))
    }

    /// What is derived inside the generation. One statement sees one moment.
    async fn compare_derived(&self) -> Result<Result<(), String>, sqlx::Error> {
        let generation: i32 = sqlx::query_scalar("select current from public.cdc_generation")
            .fetch_one(&self.post_db)
            .await?;
        let counts = format!(
            "select coalesce(d.department, s.department) || ': ' || concat_ws(', ',
                 d.user_count, d.active_count) || ' became ' || concat_ws(', ',
                 s.user_count, s.active_count)
             from views_{generation}.department_stats_definition as d
             full join public.department_stats as s on s.department = d.department
             where (d.user_count, d.active_count) is distinct from (s.user_count, s.active_count)"
        );
        let wrong: Vec<String> = sqlx::query_scalar(&counts).fetch_all(&self.post_db).await?;
        let letters = format!("select error from views_{generation}.cdc_dead_letter");
        let letters: Vec<String> = sqlx::query_scalar(&letters).fetch_all(&self.post_db).await?;
        if !wrong.is_empty() {
            return Ok(Err(format!("department_stats is not its definition: {wrong:?}")));
        }
        if !letters.is_empty() {
            let shown = &letters[..letters.len().min(SHOWN_MAX)];
            return Ok(Err(format!("{} dead letters: {shown:?}", letters.len())));
        }
        Ok(Ok(()))
    }
}

type Rows = BTreeMap<i64, String>;

async fn rows(db: &PgPool, query: String) -> Result<Rows, sqlx::Error> {
    let rows: Vec<(i64, String)> = sqlx::query_as(&query).fetch_all(db).await?;
    Ok(rows.into_iter().collect())
}

fn difference(view_name: &str, source: &Rows, view: &Rows) -> Result<(), String> {
    let missing: Vec<_> = source.iter().filter(|(id, _)| !view.contains_key(id)).collect();
    let extra: Vec<_> = view.iter().filter(|(id, _)| !source.contains_key(id)).collect();
    let unequal: Vec<_> = source
        .iter()
        .filter_map(|(id, row)| view.get(id).map(|seen| (id, row, seen)))
        .filter(|(_, row, seen)| row != seen)
        .collect();
    if missing.is_empty() && extra.is_empty() && unequal.is_empty() {
        return Ok(());
    }
    Err(format!(
        "{view_name} has {} rows, its source {}; missing {}, extra {}, unequal {}",
        view.len(),
        source.len(),
        shown(&missing),
        shown(&extra),
        shown(&unequal)
    ))
}

fn shown(rows: &[impl Debug]) -> String {
    format!("{}: {:?}", rows.len(), &rows[..rows.len().min(SHOWN_MAX)])
}
