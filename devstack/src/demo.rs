//! The four scenarios, played through HTTP as a user would: what is written at user-api must come
//! out of post-api. The names and departments are those of the example this system follows.

use std::time::Duration;

use anyhow::{Context, bail};
use devstack::addresses::{HOST, POST_API_PORT, USER_API_PORT};
use reqwest::{Client, Method, StatusCode};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::cli::print;

/// The first row may wait for the connector's first snapshot.
const VISIBLE_DEADLINE: Duration = Duration::from_mins(1);
const POLL_INTERVAL: Duration = Duration::from_millis(2);

pub(crate) async fn play() -> anyhow::Result<()> {
    let demo = Demo::new()?;
    print("\nWhat is written at user-api comes out of post-api; measured from the 2xx answer:\n");

    let hong = demo.create_user("홍길동", "hong").await?;
    let jang = demo.create_user("장웅", "jang").await?;

    let old_post = demo.create_post("안녕하세요", hong.id).await?;
    let other_post = demo.create_post("두 번째 포스트", jang.id).await?;

    demo.update_user(&hong, old_post).await?;
    demo.delete_user(&jang, other_post).await?;
    Ok(())
}

struct Demo {
    client: Client,
    /// Makes e-mail addresses and departments of this run different from those of earlier ones.
    run: String,
}

struct User {
    id: i64,
    email: String,
}

/// One answer: what the status was, and the body if it was JSON.
#[derive(Debug)]
struct Answer {
    status: StatusCode,
    body: Value,
}

impl Demo {
    fn new() -> anyhow::Result<Self> {
        let client = Client::builder().timeout(Duration::from_secs(10)).build();
        let run = uuid::Uuid::new_v4().simple().to_string()[..8].to_owned();
        Ok(Self { client: client.context("cannot make an HTTP client")?, run })
    }

    async fn create_user(&self, name: &str, mail: &str) -> anyhow::Result<User> {
        let email = format!("{mail}.{}@example.com", self.run);
        let department = self.department("개발팀");
        let user = json!({
            "name": name, "email": email, "department": department, "status": "ACTIVE"
        });
        let created = self.expect(Method::POST, &users(""), Some(&user), 201).await?;
        let written = Instant::now();
        let id = created["id"].as_i64().context("user-api gave the user no id")?;
        let view = format!("{}/users/{id}", posts(""));
        self.visible(&view, |answer| answer.body["name"] == name).await?;
        report("1 create", &format!("{name} (user {id}) is in user_view"), written);
        Ok(User { id, email })
    }

    async fn create_post(&self, title: &str, author: i64) -> anyhow::Result<i64> {
        let post = json!({
            "title": title, "content": "첫 번째 포스트입니다.", "authorId": author
        });
        let created = self.expect(Method::POST, &posts(""), Some(&post), 201).await?;
        let written = Instant::now();
        let id = created["id"].as_i64().context("post-api gave the post no id")?;
        let read = self
            .visible(&posts(&format!("/{id}")), |answer| answer.body["author"]["id"] == author)
            .await?;
        let name = read["author"]["name"].as_str().unwrap_or_default();
        report("2 post", &format!("post {id} shows its author {name}"), written);
        Ok(id)
    }

    async fn update_user(&self, user: &User, old_post: i64) -> anyhow::Result<()> {
        let name = "홍길동 수정";
        let department = self.department("기획팀");
        let change = json!({
            "name": name, "email": user.email, "department": department, "status": "ACTIVE"
        });
        let path = users(&format!("/{}", user.id));
        self.expect(Method::PUT, &path, Some(&change), 200).await?;
        let written = Instant::now();
        let post = posts(&format!("/{old_post}"));
        self.visible(&post, |answer| answer.body["author"]["name"] == name).await?;
        report("3 update", &format!("the old post {old_post} shows {name}, {department}"), written);
        self.count_is(&department, 1).await
    }

    async fn delete_user(&self, user: &User, old_post: i64) -> anyhow::Result<()> {
        let path = users(&format!("/{}", user.id));
        self.expect(Method::DELETE, &path, None, 204).await?;
        let written = Instant::now();
        let view = format!("{}/users/{}", posts(""), user.id);
        self.visible(&view, |answer| answer.status == StatusCode::NOT_FOUND).await?;
        report("4 delete", &format!("user {} is gone from user_view", user.id), written);
        let post = posts(&format!("/{old_post}"));
        self.visible(&post, |answer| answer.status.is_success() && answer.body["author"].is_null())
            .await?;
        // Everybody of this run's first department has moved or gone.
        self.count_is(&self.department("개발팀"), 0).await?;
        print("             counts in department_stats are right");
        Ok(())
    }

    fn department(&self, name: &str) -> String {
        format!("{name} {}", self.run)
    }

    async fn count_is(&self, department: &str, expected: i64) -> anyhow::Result<()> {
        let count = |answer: &Answer| {
            let all = answer.body.as_array().cloned().unwrap_or_default();
            let found = all.iter().find(|stats| stats["department"] == department).cloned();
            found.and_then(|stats| stats["userCount"].as_i64()).unwrap_or(0)
        };
        self.visible(&posts("/stats/departments"), |answer| {
            answer.status.is_success() && count(answer) == expected
        })
        .await?;
        Ok(())
    }

    /// Reads until the answer is as wanted; what was read last is part of the error.
    async fn visible(&self, url: &str, wanted: impl Fn(&Answer) -> bool) -> anyhow::Result<Value> {
        let end = Instant::now() + VISIBLE_DEADLINE;
        loop {
            let answer = self.send(Method::GET, url, None).await?;
            if wanted(&answer) {
                return Ok(answer.body);
            }
            if Instant::now() >= end {
                let seconds = VISIBLE_DEADLINE.as_secs();
                bail!(
                    "after {seconds} s GET {url} still answers {}: {}; see ./dev logs cdc-consumer",
                    answer.status,
                    answer.body
                );
            }
            sleep(POLL_INTERVAL).await;
        }
    }

    async fn expect(
        &self,
        method: Method,
        url: &str,
        body: Option<&Value>,
        status: u16,
    ) -> anyhow::Result<Value> {
        let what = format!("{method} {url}");
        let answer = self.send(method, url, body).await?;
        if answer.status.as_u16() != status {
            bail!("{what} answered {} instead of {status}: {}", answer.status, answer.body);
        }
        Ok(answer.body)
    }

    async fn send(
        &self,
        method: Method,
        url: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<Answer> {
        let what = format!("{method} {url} failed");
        let mut request = self.client.request(method, url);
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = request.send().await.with_context(|| what.clone())?;
        let status = response.status();
        let text = response.text().await.with_context(|| what)?;
        let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
        Ok(Answer { status, body })
    }
}

fn users(path: &str) -> String {
    format!("http://{HOST}:{USER_API_PORT}/api/users{path}")
}

fn posts(path: &str) -> String {
    format!("http://{HOST}:{POST_API_PORT}/api/posts{path}")
}

fn report(scenario: &str, what: &str, written: Instant) {
    let milliseconds = written.elapsed().as_secs_f64() * 1000.0;
    print(&format!("  {scenario:<10} {what}: {milliseconds:.1} ms"));
}
