//! The two services as a client sees them.

use std::time::Duration;

use reqwest::{Client, Method};
use serde_json::Value;
use tokio::time::Instant;

use crate::wait::until;

const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug, Clone)]
pub(crate) struct Http {
    client: Client,
    /// Addresses without a slash at their ends.
    pub(crate) user_api: String,
    pub(crate) post_api: String,
    pub(crate) connect: String,
}

/// What came back; the body is null when it was empty, a string when it was not JSON.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) content_type: String,
    pub(crate) body: Value,
}

impl Answer {
    pub(crate) fn id(&self) -> i64 {
        self.body["id"].as_i64().unwrap_or_else(|| panic!("the answer has no id: {self:?}"))
    }

    pub(crate) fn version(&self) -> i64 {
        self.body["version"].as_i64().unwrap_or_else(|| panic!("no version: {self:?}"))
    }
}

pub(crate) fn json(text: &str) -> Value {
    if text.is_empty() {
        return Value::Null;
    }
    serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.to_owned()))
}

impl Http {
    pub(crate) fn new(user_api: String, post_api: String, connect: String) -> Self {
        let client = Client::builder().timeout(REQUEST_TIMEOUT).build().unwrap();
        Self { client, user_api, post_api, connect }
    }

    pub(crate) fn users(&self, path: &str) -> String {
        format!("{}/api/users{path}", self.user_api)
    }

    pub(crate) fn posts(&self, path: &str) -> String {
        format!("{}/api/posts{path}", self.post_api)
    }

    /// Sends and reads the answer; the error says that none came.
    pub(crate) async fn send(
        &self,
        method: Method,
        url: &str,
        body: Option<&Value>,
    ) -> Result<Answer, String> {
        let body = body.map(|body| ("application/json", body.to_string().into_bytes()));
        self.send_bytes(method, url, body).await
    }

    pub(crate) async fn send_bytes(
        &self,
        method: Method,
        url: &str,
        body: Option<(&str, Vec<u8>)>,
    ) -> Result<Answer, String> {
        let mut request = self.client.request(method, url);
        if let Some((kind, bytes)) = body {
            request = request.header("content-type", kind).body(bytes);
        }
        let read = async {
            let response = request.send().await?;
            let status = response.status().as_u16();
            let kind = response.headers().get("content-type").map(|kind| kind.to_str());
            let content_type = kind.and_then(Result::ok).unwrap_or_default().to_owned();
            let body = json(&response.text().await?);
            Ok::<_, reqwest::Error>(Answer { status, content_type, body })
        };
        read.await.map_err(|error| format!("{url}: {error:?}"))
    }

    /// Sends and insists on the status.
    pub(crate) async fn expect(
        &self,
        status: u16,
        method: Method,
        url: &str,
        body: Option<&Value>,
    ) -> Answer {
        let answer = self.send(method.clone(), url, body).await.unwrap();
        assert_eq!(answer.status, status, "{method} {url}: {answer:?}");
        answer
    }

    pub(crate) async fn get(&self, url: &str) -> Result<Answer, String> {
        self.send(Method::GET, url, None).await
    }

    /// Reads until the answer is as wanted; returns it with the time that took.
    pub(crate) async fn visible(
        &self,
        url: &str,
        deadline: Duration,
        wanted: impl Fn(&Answer) -> bool,
    ) -> (Answer, Duration) {
        let started = Instant::now();
        let answer = until(&format!("GET {url} is as wanted"), deadline, async || {
            let answer = self.get(url).await?;
            if wanted(&answer) { Ok(answer) } else { Err(format!("{answer:?}")) }
        })
        .await;
        (answer, started.elapsed())
    }
}
