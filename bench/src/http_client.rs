//! One connection to a service, for a client that asks one thing after another.
//!
//! The client runs on the processors of the service it measures. What a general one brings along (a pool,
//! redirects, proxies, timers) would be measured as if it were the service's.

use anyhow::{Context, ensure};
use devstack::addresses::HOST;
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{CONTENT_TYPE, HOST as HOST_HEADER};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

pub(crate) struct HttpClient {
    requests: SendRequest<Full<Bytes>>,
}

impl HttpClient {
    pub(crate) async fn connect(port: u16) -> anyhow::Result<Self> {
        let stream = TcpStream::connect((HOST, port)).await;
        let stream = stream.with_context(|| format!("nobody listens on port {port}"))?;
        stream.set_nodelay(true)?;
        let (requests, connection) = http1::handshake(TokioIo::new(stream)).await?;
        // It ends with the client. An error of its own is the request's error, too.
        tokio::spawn(connection);
        Ok(Self { requests })
    }

    pub(crate) async fn get(&mut self, path: &str) -> anyhow::Result<Bytes> {
        self.send(Method::GET, path, Bytes::new()).await
    }

    pub(crate) async fn post(&mut self, path: &str, body: &Value) -> anyhow::Result<Bytes> {
        self.send(Method::POST, path, body.to_string().into()).await
    }

    /// The answer's body; an answer that is no success is an error.
    async fn send(&mut self, method: Method, path: &str, body: Bytes) -> anyhow::Result<Bytes> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST_HEADER, HOST)
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(body))?;
        self.requests.ready().await?;
        let answer = self.requests.send_request(request).await?;
        let status = answer.status();
        let body = answer.into_body().collect().await?.to_bytes();
        ensure!(status.is_success(), "{status}: {}", String::from_utf8_lossy(&body));
        Ok(body)
    }
}
