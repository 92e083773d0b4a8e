//! Keyset pages: `?after=KEY&limit=N`, answered with an array and a `Link: <...>; rel="next"`.

use std::fmt::Display;
use std::pin::pin;

use axum::Json;
use axum::http::header::LINK;
use axum::http::{HeaderValue, Uri};
use axum::response::{IntoResponse, Response};
use futures_util::{Stream, TryStreamExt};
use percent_encoding::{AsciiSet, CONTROLS, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::{Deserialize, Serialize};

use crate::Problem;

/// What stands in a query as it is.
const QUERY: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Most bytes of text in one answer, beyond which a page ends early: a thousand rows of 60 kB would be half of
/// what a container may use.
pub const PAGE_BYTES_MAX: i64 = 1024 * 1024;

/// The query part of a list request.
#[derive(Debug, Clone, Copy, Deserialize)]
pub struct PageQuery<K = i64> {
    after: Option<K>,
    limit: Option<i64>,
}

/// One page: rows in ascending order of their key, all above `after`.
#[derive(Debug, Clone, Copy)]
pub struct Page<K = i64> {
    after: Option<K>,
    limit: i64,
}

impl<K> PageQuery<K> {
    /// Fills in what was not given; a limit outside `1..=limit_max` is a 400.
    pub fn page(self, limit_default: i64, limit_max: i64) -> Result<Page<K>, Problem> {
        let limit = self.limit.unwrap_or(limit_default);
        if !(1..=limit_max).contains(&limit) {
            return Err(Problem::bad_request(format!("limit must be from 1 to {limit_max}")));
        }
        Ok(Page { after: self.after, limit })
    }
}

impl Page {
    /// Only rows with a greater id belong to the page.
    pub fn after(&self) -> i64 {
        self.after.unwrap_or(i64::MIN)
    }
}

impl Page<String> {
    /// Only rows with a greater name belong to the page, all without one.
    pub fn after_name(&self) -> Option<&str> {
        self.after.as_deref()
    }
}

impl<K> Page<K> {
    /// How many rows to fetch: one more than the page holds shows whether there is a next one.
    pub fn fetch_limit(&self) -> i64 {
        self.limit + 1
    }

    /// Of the rows of a query as they come, those up to the first that makes the answer too long.
    pub async fn take<T, E>(
        &self,
        rows: impl Stream<Item = Result<T, E>>,
        bytes: impl Fn(&T) -> usize,
    ) -> Result<Vec<T>, E> {
        let mut rows = pin!(rows);
        let (mut taken, mut sum) = (vec![], 0);
        while sum <= bytes_max()
            && let Some(row) = rows.try_next().await?
        {
            sum += bytes(&row);
            taken.push(row);
        }
        Ok(taken)
    }

    /// The answer to the request for `uri`, made of the rows fetched: of as many as have [`PAGE_BYTES_MAX`]
    /// bytes together, but one at least. Of the rows that did not fit, the first must have been fetched.
    pub fn answer<T: Serialize, I: Display>(
        &self,
        uri: &Uri,
        rows: Vec<T>,
        key: impl Fn(&T) -> I,
        bytes: impl Fn(&T) -> usize,
    ) -> Response {
        self.answer_within(bytes_max(), uri, rows, key, bytes)
    }

    fn answer_within<T: Serialize, I: Display>(
        &self,
        bytes_max: usize,
        uri: &Uri,
        mut rows: Vec<T>,
        key: impl Fn(&T) -> I,
        bytes: impl Fn(&T) -> usize,
    ) -> Response {
        let limit = usize::try_from(self.limit).unwrap_or(usize::MAX);
        let mut sum = 0;
        let fits = |row: &&T| {
            sum += bytes(row);
            sum <= bytes_max
        };
        let shown = rows.iter().take(limit).take_while(fits).count().max(1);
        // Behind a row that is too long alone, nothing was fetched.
        let more = rows.len() > shown || sum > bytes_max;
        rows.truncate(shown);
        let next = rows.last().filter(|_| more).map(|row| self.link(uri, &key(row).to_string()));
        let mut response = Json(rows).into_response();
        if let Some(link) = next {
            response.headers_mut().insert(LINK, link);
        }
        response
    }

    fn link(&self, uri: &Uri, after: &str) -> HeaderValue {
        // curl sends Korean paths as they are; a header must be ASCII.
        let path = utf8_percent_encode(uri.path(), CONTROLS);
        let after = utf8_percent_encode(after, QUERY);
        let link = format!("<{path}?after={after}&limit={}>; rel=\"next\"", self.limit);
        HeaderValue::from_str(&link).expect("a path with everything but ASCII encoded is visible")
    }
}

fn bytes_max() -> usize {
    usize::try_from(PAGE_BYTES_MAX).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(limit: i64, rows: Vec<i64>, link: Option<&str>) {
        let query = PageQuery::<i64> { after: None, limit: Some(limit) };
        let page = query.page(10, 100).unwrap();
        let uri = Uri::from_static("/by/%EA%B0%9C?after=0");
        let response = page.answer(&uri, rows, |row| *row, |_| 0);
        let seen = response.headers().get(LINK).map(|value| value.to_str().unwrap());
        assert_eq!(seen, link);
    }

    #[test]
    fn a_page_links_to_the_next_one_only_if_there_is_one() {
        check(2, vec![], None);
        check(2, vec![5, 6], None);
        check(2, vec![5, 6, 7], Some("</by/%EA%B0%9C?after=6&limit=2>; rel=\"next\""));
    }

    #[test]
    fn a_page_by_name_links_with_the_name_encoded() {
        let query = PageQuery { after: Some("가".to_owned()), limit: Some(1) };
        let page = query.page(10, 100).unwrap();
        assert_eq!(page.after_name(), Some("가"));
        let response =
            page.answer(&Uri::from_static("/"), vec!["R&D-1 나", "b"], |row| *row, |_| 0);
        let link = response.headers().get(LINK).unwrap().to_str().unwrap();
        assert_eq!(link, "</?after=R%26D-1%20%EB%82%98&limit=1>; rel=\"next\"");
    }

    #[test]
    fn a_row_that_is_too_long_alone_does_not_end_the_list() {
        let query = PageQuery::<i64> { after: None, limit: Some(9) };
        let page = query.page(10, 100).unwrap();
        let response =
            page.answer(&Uri::from_static("/"), vec![5], |row| *row, |_| bytes_max() + 1);
        assert_eq!(response.headers()[LINK], "</?after=5&limit=9>; rel=\"next\"");
    }

    #[test]
    fn a_page_ends_before_the_row_that_makes_it_too_long() {
        for (bytes_max, link) in [
            (0, Some("</?after=5&limit=9>; rel=\"next\"")),
            (11, Some("</?after=6&limit=9>; rel=\"next\"")),
            (17, Some("</?after=6&limit=9>; rel=\"next\"")),
            (18, None),
        ] {
            let query = PageQuery::<i64> { after: None, limit: Some(9) };
            let page = query.page(10, 100).unwrap();
            let uri = Uri::from_static("/");
            let size = |row: &i64| usize::try_from(*row).unwrap();
            let response = page.answer_within(bytes_max, &uri, vec![5, 6, 7], |row| *row, size);
            let seen = response.headers().get(LINK).map(|value| value.to_str().unwrap());
            assert_eq!(seen, link, "{bytes_max}");
        }
    }

    #[test]
    fn a_limit_out_of_range_is_refused() {
        for (limit, accepted) in [(0, false), (-1, false), (1, true), (100, true), (101, false)] {
            let query = PageQuery { after: Some(1), limit: Some(limit) };
            assert_eq!(query.page(10, 100).is_ok(), accepted, "{limit}");
        }
    }
}
