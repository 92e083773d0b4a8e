//! What the views owe their readers at a mark: what was committed at the source before the mark was
//! written stands before it in the log, so a view that shows the mark shows that, too. Looked at after
//! each fault, since a later change of the row, a replay or a rebuild hides what was lost.

use std::collections::BTreeMap;
use std::time::Duration;

use sqlx::PgPool;
use tokio::time::timeout;

use crate::field::Field;
use crate::marker::Marker;

/// For one question to a server that may be frozen.
const READ_DEADLINE: Duration = Duration::from_secs(5);

/// A row of a source table, or of its view.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Row {
    /// None in a view without such a column.
    version: Option<i64>,
    /// None where the version says enough.
    author: Option<i64>,
}

type Rows = BTreeMap<i64, Row>;

/// A view, and how rows from an id on are read from it and from its source.
#[derive(Debug)]
struct Pair {
    view: &'static str,
    source_db: fn(&Field) -> &PgPool,
    from_source: &'static str,
    from_view: &'static str,
}

const USERS: Pair = Pair {
    view: "user_view",
    source_db: |field| &field.user_db,
    from_source: "select id, version, null::bigint from public.users where id >= $1",
    from_view: "select user_id, version, null::bigint from public.user_view where user_id >= $1",
};

const POSTS: Pair = Pair {
    view: "post_view",
    source_db: |field| &field.post_db,
    from_source: "select id, version, author_id from public.posts where id >= $1",
    from_view: "select post_id, null::bigint, author_id from public.post_view where post_id >= $1",
};

/// What was there before a mark.
#[derive(Debug)]
pub(crate) struct Owed {
    debts: Vec<Debt>,
}

/// Of one view.
#[derive(Debug)]
struct Debt {
    pair: &'static Pair,
    first_id: i64,
    /// What the view showed before the source was read: of these rows, those that the source did not
    /// have any more were deleted before the mark.
    shown: Rows,
    source: Rows,
}

impl Owed {
    /// Whoever calls this writes the mark afterwards.
    pub(crate) async fn read(field: &Field, marker: &Marker) -> anyhow::Result<Self> {
        let first = marker.first_ids_of_writers();
        let mut debts = Vec::new();
        for (pair, first_id) in [(&USERS, first.users), (&POSTS, first.posts)] {
            let shown = rows(&field.post_db, pair.from_view, first_id).await?;
            let source = rows((pair.source_db)(field), pair.from_source, first_id).await?;
            debts.push(Debt { pair, first_id, shown, source });
        }
        Ok(Self { debts })
    }

    /// What the views still owe although they show the mark.
    pub(crate) async fn missing(&self, field: &Field) -> anyhow::Result<Vec<String>> {
        let mut missing = Vec::new();
        for debt in &self.debts {
            let Debt { pair, first_id, .. } = debt;
            let shown = rows(&field.post_db, pair.from_view, *first_id).await?;
            // Afterwards: a row that is there now was there all the time, for no id is used again.
            let source = rows((pair.source_db)(field), pair.from_source, *first_id).await?;
            missing.extend(debt.missing(&shown, &source));
        }
        Ok(missing)
    }
}

impl Debt {
    /// Of what the view shows while it shows the mark; `source` was read after that.
    fn missing(&self, shown: &Rows, source: &Rows) -> Vec<String> {
        let view = self.pair.view;
        let lost = self.source.iter().filter_map(|(id, owed)| {
            let now = source.get(id);
            let fine = match shown.get(id) {
                None => now.is_none(),
                Some(Row { version: Some(version), .. }) => Some(*version) >= owed.version,
                // Without a version one cannot tell an older state from a newer one.
                Some(Row { author, .. }) => *author == owed.author || now != Some(owed),
            };
            let text = || format!("{view} {id} owes {owed:?}, shows {:?}", shown.get(id));
            (!fine).then(text)
        });
        let deleted = self.shown.keys().filter(|id| !self.source.contains_key(id));
        let ghosts = deleted
            .filter(|id| shown.contains_key(id))
            .map(|id| format!("{view} {id} was deleted, but is shown"));
        lost.chain(ghosts).collect()
    }
}

async fn rows(db: &PgPool, query: &str, first_id: i64) -> anyhow::Result<Rows> {
    let query = sqlx::query_as(query).bind(first_id);
    let rows: Vec<(i64, Option<i64>, Option<i64>)> =
        timeout(READ_DEADLINE, query.fetch_all(db)).await??;
    Ok(rows.into_iter().map(|(id, version, author)| (id, Row { version, author })).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Users by their versions.
    fn users(rows: &[(i64, i64)]) -> Rows {
        let row = |&(id, version)| (id, Row { version: Some(version), author: None });
        rows.iter().map(row).collect()
    }

    /// Posts by their versions, of which a view has none, and their authors.
    fn posts(rows: &[(i64, Option<i64>, i64)]) -> Rows {
        let row = |&(id, version, author)| (id, Row { version, author: Some(author) });
        rows.iter().map(row).collect()
    }

    /// Before the mark, view first; then the same while the mark is visible.
    fn check(pair: &'static Pair, before: [Rows; 2], after: [Rows; 2], wanted: &[&str]) {
        let [shown, source] = before;
        let debt = Debt { pair, first_id: 0, shown, source };
        let [shown, source] = after;
        let missing = debt.missing(&shown, &source);
        let ids: Vec<&str> =
            missing.iter().map(|text| text.split(' ').nth(1).unwrap_or(text)).collect();
        assert_eq!(ids, wanted, "{missing:?}");
    }

    #[test]
    fn a_change_that_is_missing_behind_a_visible_mark_is_found() {
        let before = || [users(&[]), users(&[(1, 1), (2, 5), (3, 1)])];
        let source = || users(&[(1, 1), (2, 5), (3, 1)]);
        check(&USERS, before(), [source(), source()], &[]);
        check(&USERS, before(), [users(&[(1, 1), (2, 4)]), source()], &["2", "3"]);
    }

    #[test]
    fn a_delete_that_is_missing_behind_a_visible_mark_is_found() {
        let before = || [users(&[(1, 1), (2, 1)]), users(&[(1, 1)])];
        check(&USERS, before(), [users(&[(1, 1)]), users(&[(1, 1)])], &[]);
        check(&USERS, before(), [users(&[(1, 1), (2, 1)]), users(&[(1, 1)])], &["2"]);
    }

    #[test]
    fn what_changes_while_the_mark_is_on_its_way_is_not_missing() {
        let before = || [users(&[(1, 1)]), users(&[(1, 1), (2, 5), (3, 1)])];
        // One changed and one deleted, seen and not yet seen; one that came, and one that came and went.
        let source = || users(&[(2, 6), (3, 1), (4, 1)]);
        check(&USERS, before(), [users(&[(2, 6), (3, 1), (4, 1)]), source()], &[]);
        check(&USERS, before(), [users(&[(1, 1), (2, 5), (3, 1), (5, 1)]), source()], &[]);
    }

    #[test]
    fn a_view_without_versions_owes_what_did_not_change_meanwhile() {
        let before = || [posts(&[]), posts(&[(1, Some(1), 7), (2, Some(3), 8)])];
        let source = || posts(&[(1, Some(1), 7), (2, Some(4), 9)]);
        check(&POSTS, before(), [posts(&[(1, None, 7), (2, None, 9)]), source()], &[]);
        check(&POSTS, before(), [posts(&[(1, None, 6), (2, None, 8)]), source()], &["1"]);
        check(&POSTS, before(), [posts(&[(1, None, 7)]), source()], &["2"]);
    }
}
