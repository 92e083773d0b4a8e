//! Compares the views with the source tables, by nothing but SQL. Knows nothing of how the views
//! are kept.

use std::collections::BTreeMap;
use std::time::Duration;

use sqlx::PgPool;
use tokio::time::{Instant, sleep};

use crate::field::Field;
use crate::watcher::wrong_counts;
use crate::writer::{POST_TITLE, USER_DOMAIN};

/// Rows of a difference that are shown.
const SHOWN_MAX: usize = 5;
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// Every mapped column as text, by key.
type Rows = BTreeMap<i64, String>;

/// Waits until the views equal their sources while nobody writes: how long it took, or what still
/// differed at the deadline.
pub(crate) async fn wait_equal(field: &Field, deadline: Duration) -> Result<Duration, Vec<String>> {
    let started = Instant::now();
    loop {
        let found = match differences(field).await {
            Ok(found) if found.is_empty() => return Ok(started.elapsed()),
            Ok(found) => found,
            Err(error) => vec![format!("cannot compare: {error}")],
        };
        if started.elapsed() >= deadline {
            return Err(found);
        }
        sleep(LOOK_INTERVAL).await;
    }
}

/// What the views show that the source tables do not say, and the other way round.
pub(crate) async fn differences(field: &Field) -> Result<Vec<String>, sqlx::Error> {
    let user_columns = "name, email, department, status, created_at, updated_at, version";
    let pairs = [
        ("user_view", &field.user_db, "users", "id", "user_id", user_columns),
        ("post_view", &field.post_db, "posts", "id", "post_id", "author_id, created_at"),
    ];
    let mut found = Vec::new();
    for (view, source_db, table, source_key, view_key, columns) in pairs {
        let query = |key: &str, table: &str| {
            format!("select {key}, jsonb_build_array({columns})::text from {table}")
        };
        let source = rows(source_db, query(source_key, &format!("public.{table}"))).await?;
        let shown = rows(&field.post_db, query(view_key, &format!("public.{view}"))).await?;
        found.extend(difference(view, &source, &shown));
    }
    let mut db = field.post_db.acquire().await?;
    found.extend(wrong_counts(&mut db).await?);
    found.extend(compare_counts(field).await?);
    Ok(found)
}

/// The counts once more, from the source table itself.
async fn compare_counts(field: &Field) -> Result<Vec<String>, sqlx::Error> {
    let source = "select department, count(*), count(*) filter (where status = 'ACTIVE')
         from users
         group by department";
    let shown = "select department, user_count, active_count from public.department_stats";
    let mut source: Vec<(String, i64, i64)> =
        sqlx::query_as(source).fetch_all(&field.user_db).await?;
    let mut shown: Vec<(String, i64, i64)> =
        sqlx::query_as(shown).fetch_all(&field.post_db).await?;
    source.sort();
    shown.sort();
    let text = || format!("department_stats is {shown:?}, users say {source:?}");
    Ok((source != shown).then(text).into_iter().collect())
}

async fn rows(db: &PgPool, query: String) -> Result<Rows, sqlx::Error> {
    let rows: Vec<(i64, String)> = sqlx::query_as(&query).fetch_all(db).await?;
    Ok(rows.into_iter().collect())
}

/// Id, version and mark of every row that this run's writers left in a source table.
pub(crate) async fn written_users(
    field: &Field,
    run: &str,
) -> Result<Vec<(i64, i64, String)>, sqlx::Error> {
    let query = "select id, version, email from users where email like '%' || $1 || '-%@' || $2";
    sqlx::query_as(query).bind(run).bind(USER_DOMAIN).fetch_all(&field.user_db).await
}

pub(crate) async fn written_posts(
    field: &Field,
    run: &str,
) -> Result<Vec<(i64, i64, String)>, sqlx::Error> {
    let query = "select id, version, title from posts where title like $2 || '%' || $1 || '%'";
    sqlx::query_as(query).bind(run).bind(POST_TITLE).fetch_all(&field.post_db).await
}

fn difference(view: &str, source: &Rows, shown: &Rows) -> Option<String> {
    let missing: Vec<_> = source.iter().filter(|(id, _)| !shown.contains_key(id)).collect();
    let extra: Vec<_> = shown.iter().filter(|(id, _)| !source.contains_key(id)).collect();
    let unequal: Vec<_> = source
        .iter()
        .filter_map(|(id, row)| Some((id, row, shown.get(id)?)))
        .filter(|(_, row, shown)| row != shown)
        .collect();
    if missing.is_empty() && extra.is_empty() && unequal.is_empty() {
        return None;
    }
    Some(format!(
        "{view} has {} rows, its source {}; missing {}, extra {}, unequal {}",
        shown.len(),
        source.len(),
        some_of(&missing),
        some_of(&extra),
        some_of(&unequal)
    ))
}

fn some_of(rows: &[impl std::fmt::Debug]) -> String {
    if rows.is_empty() {
        return "0".to_owned();
    }
    format!("{}: {:?}", rows.len(), &rows[..rows.len().min(SHOWN_MAX)])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(rows: &[(i64, &str)]) -> Rows {
        rows.iter().map(|&(id, row)| (id, row.to_owned())).collect()
    }

    fn check(shown: &[(i64, &str)], wanted: Option<&str>) {
        let source = rows(&[(1, "one"), (2, "two")]);
        assert_eq!(difference("view", &source, &rows(shown)).as_deref(), wanted);
    }

    #[test]
    fn equal_rows_have_no_difference() {
        check(&[(1, "one"), (2, "two")], None);
    }

    #[test]
    fn a_missing_an_extra_and_an_unequal_row_are_found() {
        check(
            &[(1, "one")],
            Some(r#"view has 1 rows, its source 2; missing 1: [(2, "two")], extra 0, unequal 0"#),
        );
        check(
            &[(1, "one"), (2, "two"), (3, "")],
            Some(r#"view has 3 rows, its source 2; missing 0, extra 1: [(3, "")], unequal 0"#),
        );
        check(
            &[(1, "one"), (2, "TWO")],
            Some(
                r#"view has 2 rows, its source 2; missing 0, extra 0, unequal 1: [(2, "two", "TWO")]"#,
            ),
        );
    }
}
