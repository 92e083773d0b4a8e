//! Serving a router until the process is asked to stop.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::serve::{Listener, ListenerExt};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::write_limit::WriteLimit;

/// How long open requests may take to finish once shutdown began.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

/// Most connections open at the same time; more wait to be accepted. Below the number of files a process may
/// usually open.
const CONNECTIONS_MAX: u32 = 900;

/// How long a connection may be idle, take for the head of a request, or take nothing of an answer.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(30);

/// Why a listener could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("could not listen on {address}")]
pub struct ListenError {
    address: SocketAddr,
    source: io::Error,
}

/// Opens the listener, so that a port in use is known before anything else starts.
pub async fn listen(address: SocketAddr) -> Result<TcpListener, ListenError> {
    let listener =
        TcpListener::bind(address).await.map_err(|source| ListenError { address, source })?;
    tracing::info!(%address, "listening");
    Ok(listener)
}

/// Serves until `shutdown` is cancelled, then stops accepting and lets open requests finish for
/// up to ten seconds. What is still open then is cut, and that is logged.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    shutdown: CancellationToken,
) -> io::Result<()> {
    serve_within(CONNECTIONS_MAX, CLIENT_TIMEOUT, listener, router, shutdown).await;
    Ok(())
}

/// What `axum::serve` does, but within limits, which it knows none of.
async fn serve_within(
    connections_max: u32,
    client_timeout: Duration,
    listener: TcpListener,
    router: Router,
    shutdown: CancellationToken,
) {
    // Answers are small; waiting to fill a segment would only add latency.
    let mut listener = listener.tap_io(|stream| {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "could not set TCP_NODELAY");
        }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(client_timeout);
    let permits = Arc::new(Semaphore::new(connections_max as usize));
    let accept = async {
        while let Ok(permit) = Arc::clone(&permits).acquire_owned().await {
            let (stream, _) = Listener::accept(&mut listener).await;
            let service = TowerToHyperService::new(router.clone());
            let stream = WriteLimit::new(stream, client_timeout);
            let connection = http.serve_connection(TokioIo::new(stream), service);
            let shutdown = shutdown.clone();
            tokio::spawn(async move {
                let mut connection = pin!(connection);
                let ended = tokio::select! {
                    ended = connection.as_mut() => ended,
                    () = shutdown.cancelled() => {
                        connection.as_mut().graceful_shutdown();
                        connection.await
                    }
                };
                if let Err(error) = ended {
                    tracing::debug!(%error, "connection ended");
                }
                drop(permit);
            });
        }
    };
    shutdown.run_until_cancelled(accept).await;
    drop(listener);
    // All permits are back when all connections are closed.
    if timeout(DRAIN_TIMEOUT, permits.acquire_many(connections_max)).await.is_err() {
        tracing::warn!(timeout = ?DRAIN_TIMEOUT, "requests still open at the deadline were cut");
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;
    use tokio::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn an_open_request_is_finished_after_shutdown_began() {
        let (entered_sender, mut entered) = mpsc::channel::<()>(1);
        let shutdown = CancellationToken::new();
        let release = CancellationToken::new();
        let handler_release = release.clone();
        let handler = move || async move {
            entered_sender.send(()).await.unwrap();
            handler_release.cancelled().await;
            "finished"
        };
        let listener = listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().route("/", get(handler));
        let server = tokio::spawn(serve(listener, router, shutdown.clone()));

        let mut client = TcpStream::connect(address).await.unwrap();
        let head = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        client.write_all(head).await.unwrap();
        entered.recv().await.unwrap();
        shutdown.cancel();
        release.cancel();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert!(answer.ends_with("finished"), "{answer}");
        server.await.unwrap().unwrap();
    }

    /// Of one connection at a time, the first says half of what it wants.
    #[tokio::test]
    async fn a_connection_that_sends_no_request_is_closed_and_makes_room() {
        let listener = listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().route("/", get(|| async { "answered" }));
        let shutdown = CancellationToken::new();
        let limit = Duration::from_millis(100);
        let server = tokio::spawn(serve_within(1, limit, listener, router, shutdown.clone()));

        let mut half = TcpStream::connect(address).await.unwrap();
        half.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
        let idle = TcpStream::connect(address).await.unwrap();
        let mut last = TcpStream::connect(address).await.unwrap();
        let head = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        last.write_all(head).await.unwrap();
        let mut answer = String::new();
        last.read_to_string(&mut answer).await.unwrap();
        assert!(answer.ends_with("answered"), "{answer}");
        for mut closed in [half, idle] {
            let mut text = String::new();
            closed.read_to_string(&mut text).await.unwrap();
            assert!(!text.contains("answered"), "{text}");
        }
        shutdown.cancel();
        server.await.unwrap();
    }

    /// More than both sides' buffers hold.
    #[tokio::test]
    async fn a_connection_that_does_not_read_its_answer_is_closed_and_makes_room() {
        let listener = listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new()
            .route("/long", get(|| async { vec![b'x'; 64 * 1024 * 1024] }))
            .route("/", get(|| async { "answered" }));
        let shutdown = CancellationToken::new();
        let limit = Duration::from_millis(300);
        let server = tokio::spawn(serve_within(1, limit, listener, router, shutdown.clone()));

        let mut deaf = TcpStream::connect(address).await.unwrap();
        deaf.write_all(b"GET /long HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let mut next = TcpStream::connect(address).await.unwrap();
        let head = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        next.write_all(head).await.unwrap();
        let mut answer = String::new();
        let read = timeout(Duration::from_secs(20), next.read_to_string(&mut answer));
        read.await.expect("there is room").unwrap();
        assert!(answer.ends_with("answered"), "{answer}");
        drop(deaf);
        shutdown.cancel();
        server.await.unwrap();
    }

    /// Slower than the limit in all.
    #[tokio::test]
    async fn a_connection_that_reads_slowly_gets_its_whole_answer() {
        let listener = listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().route("/", get(|| async { vec![b'x'; 64 * 1024 * 1024] }));
        let shutdown = CancellationToken::new();
        let limit = Duration::from_secs(1);
        let server = tokio::spawn(serve_within(1, limit, listener, router, shutdown.clone()));

        let mut slow = TcpStream::connect(address).await.unwrap();
        let head = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        slow.write_all(head).await.unwrap();
        let (mut count, mut bytes) = (0, vec![0; 8 * 1024 * 1024]);
        for _ in 0..8 {
            tokio::time::sleep(Duration::from_millis(200)).await;
            count += slow.read_exact(&mut bytes).await.unwrap();
        }
        count += slow.read_to_end(&mut vec![]).await.unwrap();
        assert!(count > 64 * 1024 * 1024, "{count}");
        shutdown.cancel();
        server.await.unwrap();
    }

    #[tokio::test]
    async fn a_port_in_use_is_named() {
        let first = listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = first.local_addr().unwrap();
        let error = listen(address).await.unwrap_err();
        assert_eq!(error.to_string(), format!("could not listen on {address}"));
    }
}
