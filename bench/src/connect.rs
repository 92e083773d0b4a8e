//! Connectors, through Connect's REST interface.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use reqwest::{Client, Method, StatusCode};
use serde_json::Value as Json;

use crate::servers::Servers;

/// For a connector to begin its work.
const START_MAX: Duration = Duration::from_mins(2);
const PAUSE: Duration = Duration::from_millis(100);

/// A registered connector. Say [`Connector::remove`] in the end: it has no other.
pub(crate) struct Connector {
    url: String,
    client: Client,
    pub(crate) name: String,
}

impl Connector {
    /// Removes what runs that were broken off left behind.
    pub(crate) async fn remove_all(servers: &Servers, prefix: &str) -> anyhow::Result<()> {
        let names: Vec<String> =
            reqwest::get(format!("{}/connectors", servers.connect)).await?.json().await?;
        for name in names.iter().filter(|name| name.starts_with(prefix)) {
            Self::named(servers, name).remove().await?;
        }
        Ok(())
    }

    fn named(servers: &Servers, name: &str) -> Self {
        let url = format!("{}/connectors/{name}", servers.connect);
        Self { url, client: Client::new(), name: name.to_owned() }
    }

    /// What a registered connector was configured with.
    pub(crate) async fn settings(servers: &Servers, name: &str) -> anyhow::Result<Json> {
        let connector = Self::named(servers, name);
        let response = connector.client.get(format!("{}/config", connector.url)).send().await?;
        Ok(response.error_for_status()?.json().await?)
    }

    /// Registers it and waits until all its tasks run.
    pub(crate) async fn start(
        servers: &Servers,
        name: &str,
        config: &Json,
    ) -> anyhow::Result<Self> {
        let connector = Self::named(servers, name);
        let tasks = config["tasks.max"].as_str().and_then(|count| count.parse().ok()).unwrap_or(1);
        let deadline = Instant::now() + START_MAX;
        connector.put("config", Some(config), deadline).await?;
        connector.wait_for_tasks(tasks, deadline).await?;
        Ok(connector)
    }

    /// Ends its tasks; its settings stay, and how far it came. A paused connector would go on reading until
    /// its queue is full.
    pub(crate) async fn stop(servers: &Servers, name: &str) -> anyhow::Result<()> {
        let connector = Self::named(servers, name);
        let deadline = Instant::now() + START_MAX;
        connector.put("stop", None, deadline).await?;
        loop {
            let status = connector.status().await?;
            let tasks = status["tasks"].as_array().map_or(0, Vec::len);
            if status["connector"]["state"] == "STOPPED" && tasks == 0 {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("{name} does not stop within {START_MAX:?}: {status}");
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Lets a stopped one go on. No error when it runs.
    pub(crate) async fn resume(servers: &Servers, name: &str) -> anyhow::Result<()> {
        let connector = Self::named(servers, name);
        let deadline = Instant::now() + START_MAX;
        connector.put("resume", None, deadline).await?;
        connector.wait_for_tasks(1, deadline).await
    }

    async fn put(&self, path: &str, body: Option<&Json>, deadline: Instant) -> anyhow::Result<()> {
        loop {
            let request = self.client.put(format!("{}/{path}", self.url));
            let request = body.into_iter().fold(request, reqwest::RequestBuilder::json);
            let response = request.send().await.context("Kafka Connect does not answer")?;
            match response.status() {
                status if status.is_success() => return Ok(()),
                // The worker is busy with another change.
                StatusCode::CONFLICT if Instant::now() < deadline => {
                    tokio::time::sleep(PAUSE).await;
                }
                _ => bail!("Kafka Connect refused {}: {}", self.name, response.text().await?),
            }
        }
    }

    async fn wait_for_tasks(&self, count: usize, deadline: Instant) -> anyhow::Result<()> {
        while self.running_tasks().await? < count {
            if Instant::now() > deadline {
                bail!("{} does not run within {START_MAX:?}: {}", self.name, self.status().await?);
            }
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    }

    /// How many tasks run; fails with the trace of one that failed.
    pub(crate) async fn running_tasks(&self) -> anyhow::Result<usize> {
        let status = self.status().await?;
        let tasks = status["tasks"].as_array().cloned().unwrap_or_default();
        if let Some(failed) = tasks.iter().find(|task| task["state"] == "FAILED") {
            bail!("{} failed: {}", self.name, failed["trace"].as_str().unwrap_or_default());
        }
        Ok(tasks.iter().filter(|task| task["state"] == "RUNNING").count())
    }

    async fn status(&self) -> anyhow::Result<Json> {
        // 404: not all of Connect knows of it yet.
        let response = self.client.get(format!("{}/status", self.url)).send().await?;
        Ok(response.json().await?)
    }

    /// Takes it away and waits until it is gone.
    pub(crate) async fn remove(self) -> anyhow::Result<()> {
        let deadline = Instant::now() + START_MAX;
        let mut method = Method::DELETE;
        loop {
            let response = self.client.request(method.clone(), &self.url).send().await?;
            match response.status() {
                StatusCode::NOT_FOUND => return Ok(()),
                status if status.is_success() => method = Method::GET,
                StatusCode::CONFLICT => {}
                _ => bail!("{} cannot be removed: {}", self.name, response.text().await?),
            }
            if Instant::now() > deadline {
                bail!("{} is not gone within {START_MAX:?}", self.name);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}
