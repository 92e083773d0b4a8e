//! Serving a router until the process is asked to stop.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::serve::ListenerExt;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// How long open requests may take to finish once shutdown began.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

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
    // Answers are small; waiting to fill a segment would only add latency.
    let listener = listener.tap_io(|stream| {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "could not set TCP_NODELAY");
        }
    });
    let stop = shutdown.clone();
    let server = axum::serve(listener, router)
        .with_graceful_shutdown(async move { stop.cancelled().await })
        .into_future();
    let deadline = async {
        shutdown.cancelled().await;
        tokio::time::sleep(DRAIN_TIMEOUT).await;
    };
    tokio::select! {
        result = server => result,
        () = deadline => {
            tracing::warn!(timeout = ?DRAIN_TIMEOUT, "requests still open at the deadline were cut");
            Ok(())
        }
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

    #[tokio::test]
    async fn a_port_in_use_is_named() {
        let first = listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = first.local_addr().unwrap();
        let error = listen(address).await.unwrap_err();
        assert_eq!(error.to_string(), format!("could not listen on {address}"));
    }
}
