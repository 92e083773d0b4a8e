//! A network of one connection: it stands between one consumer and `PostgreSQL` and loses what a
//! network loses.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

/// How `PostgreSQL` answers a commit.
const COMMITTED: &[u8] = b"COMMIT\0";
/// Longest wait for that answer before the connection is cut without it.
const REPLY_DEADLINE: Duration = Duration::from_secs(10);
const CHUNK_BYTES: usize = 64 * 1024;

/// What happens to connections, to new ones and to those there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Forward,
    /// Every connection is closed, new ones at once.
    Cut,
    /// Nothing passes and nobody is told.
    Stall,
    /// Each piece waits so long, in both directions.
    Slow(Duration),
    /// The next answer to a COMMIT is lost and its connection cut; then as `Forward`.
    LoseCommitReply,
}

/// Ends with its last handle.
#[derive(Debug)]
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    mode: Arc<watch::Sender<Mode>>,
    task: tokio::task::JoinHandle<()>,
}

impl Proxy {
    /// A proxy in front of `target` (host:port) on a free port of this machine.
    pub(crate) async fn to(target: String) -> std::io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let mode = Arc::new(watch::Sender::new(Mode::Forward));
        let shared = Arc::clone(&mode);
        let task = tokio::spawn(async move {
            loop {
                let Ok((client, _)) = listener.accept().await else {
                    // Out of descriptors, for example: the next connection may work.
                    sleep(Duration::from_millis(50)).await;
                    continue;
                };
                if *shared.borrow() == Mode::Cut {
                    continue;
                }
                let (target, mode) = (target.clone(), Arc::clone(&shared));
                // A connection's error is what its two ends see as its end.
                tokio::spawn(async move { connection(client, &target, &mode).await.ok() });
            }
        });
        Ok(Self { address, mode, task })
    }

    /// Returns how it was until now.
    pub(crate) fn set(&self, mode: Mode) -> Mode {
        self.mode.send_replace(mode)
    }

    pub(crate) fn mode(&self) -> Mode {
        *self.mode.borrow()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn connection(
    client: TcpStream,
    target: &str,
    mode: &watch::Sender<Mode>,
) -> std::io::Result<()> {
    let server = TcpStream::connect(target).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (client_read, client_write) = client.into_split();
    let (server_read, server_write) = server.into_split();
    // Whichever side ends first ends both.
    tokio::select! {
        done = questions(client_read, server_write, mode) => done,
        done = answers(server_read, client_write, mode) => done,
        () = reached(mode, |mode| mode == Mode::Cut) => Ok(()),
    }
}

async fn questions(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mode: &watch::Sender<Mode>,
) -> std::io::Result<()> {
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let count = from.read(&mut chunk).await?;
        if count == 0 {
            return Ok(());
        }
        pass(mode).await;
        to.write_all(&chunk[..count]).await?;
    }
}

async fn answers(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mode: &watch::Sender<Mode>,
) -> std::io::Result<()> {
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let count = from.read(&mut chunk).await?;
        if count == 0 {
            return Ok(());
        }
        pass(mode).await;
        let commits = contains(&chunk[..count], COMMITTED);
        let lose = commits
            && mode.send_if_modified(|mode| {
                let lose = *mode == Mode::LoseCommitReply;
                if lose {
                    *mode = Mode::Forward;
                }
                lose
            });
        if lose {
            return Ok(());
        }
        timeout(REPLY_DEADLINE, to.write_all(&chunk[..count])).await??;
    }
}

/// Waits as long as the network takes.
async fn pass(mode: &watch::Sender<Mode>) {
    let now = *mode.borrow();
    match now {
        Mode::Slow(delay) => sleep(delay).await,
        Mode::Stall => reached(mode, |mode| mode != Mode::Stall).await,
        Mode::Forward | Mode::Cut | Mode::LoseCommitReply => {}
    }
}

async fn reached(mode: &watch::Sender<Mode>, wanted: fn(Mode) -> bool) {
    // The sender outlives its connections' tasks, so there is always a mode to wait for.
    mode.subscribe().wait_for(|mode| wanted(*mode)).await.map(|_| ()).ok();
}

fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes.windows(wanted.len()).any(|window| window == wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that answers each piece with what it got.
    async fn echo() -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (mut from, mut to) = stream.into_split();
                tokio::spawn(async move { tokio::io::copy(&mut from, &mut to).await.ok() });
            }
        });
        address
    }

    async fn ask(stream: &mut TcpStream, text: &[u8]) -> std::io::Result<Vec<u8>> {
        stream.write_all(text).await?;
        let mut answer = vec![0; text.len()];
        stream.read_exact(&mut answer).await?;
        Ok(answer)
    }

    #[tokio::test]
    async fn a_connection_is_cut_and_a_new_one_refused_until_the_network_is_back() {
        let proxy = Proxy::to(echo().await).await.unwrap();
        let mut stream = TcpStream::connect(proxy.address).await.unwrap();
        assert_eq!(ask(&mut stream, b"one").await.unwrap(), b"one");
        proxy.set(Mode::Cut);
        assert!(ask(&mut stream, b"two").await.is_err());
        let mut refused = TcpStream::connect(proxy.address).await.unwrap();
        assert!(ask(&mut refused, b"three").await.is_err());
        proxy.set(Mode::Forward);
        let mut stream = TcpStream::connect(proxy.address).await.unwrap();
        assert_eq!(ask(&mut stream, b"four").await.unwrap(), b"four");
    }

    #[tokio::test]
    async fn what_is_stalled_arrives_when_the_network_is_back() {
        let proxy = Proxy::to(echo().await).await.unwrap();
        let mut stream = TcpStream::connect(proxy.address).await.unwrap();
        proxy.set(Mode::Stall);
        let late = timeout(Duration::from_millis(100), ask(&mut stream, b"late")).await;
        assert!(late.is_err(), "{late:?}");
        proxy.set(Mode::Forward);
        let mut answer = [0; 4];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"late");
    }

    #[tokio::test]
    async fn the_reply_to_one_commit_is_lost_and_no_other() {
        let proxy = Proxy::to(echo().await).await.unwrap();
        proxy.set(Mode::LoseCommitReply);
        let mut stream = TcpStream::connect(proxy.address).await.unwrap();
        assert_eq!(ask(&mut stream, b"BEGIN\0").await.unwrap(), b"BEGIN\0");
        assert!(ask(&mut stream, COMMITTED).await.is_err());
        assert_eq!(proxy.mode(), Mode::Forward);
        let mut stream = TcpStream::connect(proxy.address).await.unwrap();
        assert_eq!(ask(&mut stream, COMMITTED).await.unwrap(), COMMITTED);
    }
}
