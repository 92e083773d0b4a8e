//! A post as it is sent, and as it is shown. No I/O.

use serde::{Deserialize, Serialize};
use service::Problem;
use service::fields::Fields;
use service::timestamp::Timestamp;

const TITLE_CHARS_MAX: usize = 200;
const CONTENT_CHARS_MAX: usize = 20_000;

/// A post as sent. What a client read before (author, times, version) may be sent back and is
/// ignored: the service keeps those itself.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PostBody {
    id: Option<i64>,
    title: Option<String>,
    content: Option<String>,
    author_id: Option<i64>,
}

/// A new post whose fields can be stored. Whether its author is known is for the view to say.
#[derive(Debug)]
pub(crate) struct NewPost {
    pub(crate) title: String,
    pub(crate) content: String,
    pub(crate) author_id: i64,
}

/// New content of a post.
#[derive(Debug)]
pub(crate) struct ChangedPost {
    pub(crate) title: String,
    pub(crate) content: String,
    /// Only to be compared: a post keeps its author.
    pub(crate) author_id: Option<i64>,
}

impl PostBody {
    pub(crate) fn create(self) -> Result<NewPost, Problem> {
        let mut fields = Fields::new();
        let (title, content) = self.texts(&mut fields);
        if self.author_id.is_none() {
            fields.reject("authorId", "must be given");
        }
        fields.finish()?;
        Ok(NewPost { title, content, author_id: self.author_id.unwrap_or_default() })
    }

    pub(crate) fn update(self, id: i64) -> Result<ChangedPost, Problem> {
        let mut fields = Fields::new();
        fields.same_id(id, self.id);
        let (title, content) = self.texts(&mut fields);
        fields.finish()?;
        Ok(ChangedPost { title, content, author_id: self.author_id })
    }

    fn texts(&self, fields: &mut Fields) -> (String, String) {
        let title = fields.line("title", self.title.as_deref(), TITLE_CHARS_MAX);
        let content = fields.text("content", self.content.as_deref(), CONTENT_CHARS_MAX);
        (title, content)
    }
}

/// A post with its author, as one row.
#[derive(Debug)]
pub(crate) struct PostRow {
    pub(crate) id: i64,
    pub(crate) title: String,
    pub(crate) content: String,
    pub(crate) author_id: i64,
    pub(crate) created_at: Timestamp,
    pub(crate) updated_at: Timestamp,
    pub(crate) version: i64,
    /// None when the view does not have the author (any more).
    pub(crate) user_id: Option<i64>,
    pub(crate) name: Option<String>,
    pub(crate) email: Option<String>,
    pub(crate) department: Option<String>,
    pub(crate) status: Option<String>,
}

/// A post as every answer shows it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Post {
    pub(crate) id: i64,
    title: String,
    content: String,
    author_id: i64,
    created_at: Timestamp,
    updated_at: Timestamp,
    pub(crate) version: i64,
    author: Option<Author>,
}

/// The author as he is now, not as he was when he wrote.
#[derive(Debug, Serialize)]
struct Author {
    id: i64,
    name: Option<String>,
    email: Option<String>,
    department: Option<String>,
    status: Option<String>,
}

impl Post {
    /// The size of its text, as PostgreSQL counts it.
    pub(crate) fn text_bytes(&self) -> usize {
        self.title.len() + self.content.len() + self.author.as_ref().map_or(0, Author::text_bytes)
    }
}

impl Author {
    fn text_bytes(&self) -> usize {
        let Self { name, email, department, status, .. } = self;
        [name, email, department, status].into_iter().flatten().map(String::len).sum()
    }
}

impl From<PostRow> for Post {
    fn from(row: PostRow) -> Self {
        let PostRow { id, title, content, author_id, created_at, updated_at, version, .. } = row;
        let PostRow { user_id, name, email, department, status, .. } = row;
        let author = user_id.map(|id| Author { id, name, email, department, status });
        Self { id, title, content, author_id, created_at, updated_at, version, author }
    }
}
