//! Views are declared in a file: which topic keeps which table. No I/O.

use std::collections::{BTreeMap, HashSet};

use serde::Deserialize;

/// The views file: one `[[view]]` table per view.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct ViewsFile {
    #[serde(rename = "view", default)]
    views: Vec<ViewSpec>,
}

/// One declared view.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ViewSpec {
    /// Kafka topic of one source table's changes.
    pub topic: String,
    /// Table in the generation's schema.
    pub table: String,
    /// Record key field to key column, where the names differ.
    #[serde(default)]
    pub key: BTreeMap<String, String>,
    /// Source field to view column, where the names differ.
    #[serde(default)]
    pub columns: BTreeMap<String, String>,
    /// What to do about a column that a record's schema does not feed.
    #[serde(default)]
    pub absent: Absent,
    /// What to do about rows that a snapshot of the whole table does not mention.
    #[serde(default)]
    pub unmentioned: Unmentioned,
}

/// A record from before a column was added, or from after it was dropped at the source.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Absent {
    /// Stop and say so: the declaration may be wrong.
    #[default]
    Halt,
    /// Leave the column alone: a new row gets its default, an existing row keeps what it has.
    Keep,
}

/// A row of the view that a snapshot of the whole source table does not mention.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unmentioned {
    /// It was deleted while nobody listened: remove it, when the whole snapshot is applied.
    #[default]
    Sweep,
    /// Leave it: the connector's snapshots select only part of the table.
    Keep,
}

impl ViewSpec {
    /// The view column a source field feeds, whether or not the table has it.
    pub fn column_of<'a>(&'a self, field: &'a str) -> &'a str {
        self.columns.get(field).or_else(|| self.key.get(field)).map_or(field, String::as_str)
    }

    /// Which field feeds a column outside the key, of those that are present: the one declared for it, else
    /// the one of its own name. A field that was renamed has two declarations, of which a schema has one;
    /// the error names both where it does not.
    pub fn field_of<'a>(
        &'a self,
        column: &'a str,
        present: impl Fn(&str) -> bool,
    ) -> Result<&'a str, [&'a str; 2]> {
        feeding(&self.columns, column, present)
    }

    /// The same of a key column.
    pub fn key_field_of<'a>(
        &'a self,
        column: &'a str,
        present: impl Fn(&str) -> bool,
    ) -> Result<&'a str, [&'a str; 2]> {
        feeding(&self.key, column, present)
    }

    /// The key column a field of the record key feeds.
    pub fn key_column_of<'a>(&'a self, field: &'a str) -> &'a str {
        self.key.get(field).map_or(field, String::as_str)
    }
}

fn feeding<'a>(
    declared: &'a BTreeMap<String, String>,
    column: &'a str,
    present: impl Fn(&str) -> bool,
) -> Result<&'a str, [&'a str; 2]> {
    let fields = declared.iter().filter(|(_, target)| *target == column).map(|(field, _)| field);
    let mut fields = fields.map(String::as_str).filter(|field| present(field));
    match (fields.next(), fields.next()) {
        (Some(one), Some(other)) => Err([one, other]),
        (Some(field), None) => Ok(field),
        (None, _) => Ok(column),
    }
}

/// What is wrong with a views file.
#[derive(Debug, thiserror::Error)]
pub enum ViewsError {
    #[error("could not parse the views file")]
    Syntax(#[source] toml::de::Error),
    #[error("the views file declares no view; add a [[view]] with topic and table")]
    Empty,
    #[error("view {position}: {member} is empty")]
    Blank { position: usize, member: &'static str },
    #[error("topic {0} is declared twice; one topic keeps one table")]
    TopicTwice(String),
    #[error("table {0} is declared twice; one table is kept by one topic")]
    TableTwice(String),
}

/// Parses and checks the text of a views file.
pub fn parse(text: &str) -> Result<Vec<ViewSpec>, ViewsError> {
    let ViewsFile { views } = toml::from_str(text).map_err(ViewsError::Syntax)?;
    if views.is_empty() {
        return Err(ViewsError::Empty);
    }
    let (mut topics, mut tables) = (HashSet::new(), HashSet::new());
    for (index, view) in views.iter().enumerate() {
        for (member, value) in [("topic", &view.topic), ("table", &view.table)] {
            if value.trim().is_empty() {
                return Err(ViewsError::Blank { position: index + 1, member });
            }
        }
        if !topics.insert(&view.topic) {
            return Err(ViewsError::TopicTwice(view.topic.clone()));
        }
        if !tables.insert(&view.table) {
            return Err(ViewsError::TableTwice(view.table.clone()));
        }
    }
    Ok(views)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_lines_declare_a_view() {
        let views =
            parse("[[view]]\ntopic = 'user-events'\ntable = 'user_view'\nkey = { id = 'user_id' }")
                .expect("a valid file");
        assert_eq!(views.len(), 1);
        assert_eq!(views[0].column_of("id"), "user_id");
        assert_eq!(views[0].column_of("name"), "name");
    }

    #[test]
    fn a_wrong_file_is_refused_with_the_reason() {
        let check = |text: &str, expected: &str| {
            let error = parse(text).expect_err("a wrong file");
            assert_eq!(error.to_string(), expected);
        };
        check("", "the views file declares no view; add a [[view]] with topic and table");
        check("[[view]]\ntopic = ''\ntable = 't'", "view 1: topic is empty");
        check(
            "[[view]]\ntopic = 'a'\ntable = 't'\n[[view]]\ntopic = 'a'\ntable = 'u'",
            "topic a is declared twice; one topic keeps one table",
        );
        check(
            "[[view]]\ntopic = 'a'\ntable = 't'\n[[view]]\ntopic = 'b'\ntable = 't'",
            "table t is declared twice; one table is kept by one topic",
        );
        check("[[view]]\ntopic = 'a'\ntabel = 't'", "could not parse the views file");
    }
}
