//! Rows of new keys, by COPY: it writes the rows of a page as one record of the write-ahead log, where every
//! other statement writes one a row.

use sqlx::{PgConnection, Row};

use crate::fold::{Entry, ViewBatch};
use crate::rows::CellText;
use crate::sql::CopyStatements;
use crate::write::bind;

/// Bytes sent at once: PostgreSQL reads them while we write the next.
const CHUNK: usize = 64 * 1024;

/// What became of some entries.
#[derive(Debug)]
pub(crate) struct Copied {
    /// Rows inserted.
    pub(crate) rows: u64,
    /// Entries that were left: their key is known.
    pub(crate) rest: Vec<Entry>,
}

/// Inserts the entries of keys that have neither a row nor a later delete. They must be complete rows.
/// A row that another transaction inserts after we looked breaks the primary key.
pub(crate) async fn new_rows(
    connection: &mut PgConnection,
    statements: &CopyStatements,
    view: &ViewBatch,
    entries: &[Entry],
) -> Result<Copied, sqlx::Error> {
    sqlx::query(&statements.hold).execute(&mut *connection).await?;
    let keys: Vec<usize> = (0..view.key_width()).collect();
    let found =
        bind(view, &statements.new_keys, &keys, entries).fetch_one(&mut *connection).await?;
    let numbers: Vec<i64> = found.try_get(0)?;
    let stamp: String = found.try_get(1)?;
    let stamp = statements.stamped.then_some(stamp.as_str());
    if numbers.is_empty() {
        return Ok(Copied { rows: 0, rest: entries.to_vec() });
    }
    let mut rest: Vec<Option<Entry>> = entries.iter().copied().map(Some).collect();
    let mut text = String::with_capacity(CHUNK + CHUNK / 4);
    let mut copy = connection.copy_in_raw(&statements.copy).await?;
    for number in numbers {
        let index = usize::try_from(number).ok().and_then(|number| number.checked_sub(1));
        if let Some(entry) = index.and_then(|index| rest.get_mut(index)?.take()) {
            write_row(&mut text, view, &entry, stamp);
        }
        if text.len() >= CHUNK {
            copy.send(text.as_bytes()).await?;
            text.clear();
        }
    }
    copy.send(text.as_bytes()).await?;
    Ok(Copied { rows: copy.finish().await?, rest: rest.into_iter().flatten().collect() })
}

/// A line of COPY's text format: the columns of the view, then the position, then the time.
fn write_row(out: &mut String, view: &ViewBatch, entry: &Entry, stamp: Option<&str>) {
    let rows = view.rows();
    for column in 0..rows.width() {
        match rows.cell(entry.row, column) {
            CellText::Text(text) => escape(out, text),
            CellText::Null | CellText::Keep | CellText::Absent => out.push_str("\\N"),
        }
        out.push('\t');
    }
    let mut number = itoa::Buffer::new();
    out.push_str(number.format(entry.position.epoch));
    out.push('\t');
    out.push_str(number.format(entry.position.lsn));
    if let Some(stamp) = stamp {
        out.push('\t');
        out.push_str(stamp);
    }
    out.push('\n');
}

/// Text as a field of COPY's text format:
/// <https://www.postgresql.org/docs/current/sql-copy.html#id-1.9.3.55.9.2>.
fn escape(out: &mut String, text: &str) {
    let special = |byte: &u8| matches!(byte, b'\\' | b'\t' | b'\n' | b'\r');
    if !text.as_bytes().iter().any(special) {
        return out.push_str(text);
    }
    for character in text.chars() {
        match character {
            '\\' => out.push_str("\\\\"),
            '\t' => out.push_str("\\t"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            other => out.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn escaped(text: &str) -> String {
        let mut out = String::new();
        escape(&mut out, text);
        out
    }

    #[test]
    fn text_that_looks_like_syntax_is_escaped() {
        assert_eq!(escaped("plain, with \"quotes\" and 한글"), "plain, with \"quotes\" and 한글");
        assert_eq!(escaped("\\N"), "\\\\N");
        assert_eq!(escaped("\\."), "\\\\.");
        assert_eq!(escaped("a\tb\nc\rd\\"), "a\\tb\\nc\\rd\\\\");
        assert_eq!(escaped(""), "");
    }
}
