//! A TCP proxy that loses what a network loses.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::{SOON, World, wait_until};

/// What the proxy does with connections, new ones and those there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Forward,
    /// Nobody is there: every connection is closed at once.
    Refuse,
    /// Bytes from the client wait, beginning with those that contain BEGIN.
    HoldBegin,
    /// Bytes from the client wait, beginning with a COPY statement.
    HoldCopy,
    /// Bytes from the client wait, beginning with the first row of a COPY.
    HoldCopyData,
    /// The next COMMIT is not forwarded; the connection is cut instead.
    CutBeforeCommit,
    /// The next COMMIT is forwarded and carried out; its reply is lost and the connection cut.
    CutAfterCommit,
}

/// See the module's description. Ends with its last handle.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    mode: Arc<watch::Sender<Mode>>,
    silence: Arc<watch::Sender<()>>,
    holding: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<()>,
}

impl Proxy {
    /// A proxy in front of `target` (host:port).
    pub(crate) async fn to(target: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let mode = Arc::new(watch::Sender::new(Mode::Forward));
        let silence = Arc::new(watch::Sender::new(()));
        let holding = Arc::new(AtomicBool::new(false));
        let (target, shared, held) = (target.to_owned(), Arc::clone(&mode), Arc::clone(&holding));
        let shared_silence = Arc::clone(&silence);
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                if *shared.borrow() != Mode::Refuse {
                    let (target, mode) = (target.clone(), Arc::clone(&shared));
                    let (held, silenced) = (Arc::clone(&held), shared_silence.subscribe());
                    tokio::spawn(async move {
                        // Ends with either side, or when the mode says so.
                        drop(connection(client, &target, &mode, silenced, &held).await);
                    });
                }
            }
        });
        Self { address, mode, silence, holding, task }
    }

    pub(crate) fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }

    /// From now on the connections there are carry nothing any more, and nobody is told: what a network
    /// does that lost its state. New ones work.
    pub(crate) fn silence(&self) {
        self.silence.send_replace(());
    }

    /// The flag that leads a consumer to this world's database through this proxy.
    pub(crate) fn database_flag(&self, world: &World) -> String {
        format!("--consumer-database-url={}", world.consumer_url(&self.address.to_string()))
    }

    /// Waits until a BEGIN or a COPY has been held back.
    pub(crate) async fn held(&self) {
        wait_until("something to be held back", SOON, || async {
            if self.holding.load(Ordering::Relaxed) {
                Ok(())
            } else {
                Err("nothing arrived".to_owned())
            }
        })
        .await;
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
    mut client: TcpStream,
    target: &str,
    mode: &watch::Sender<Mode>,
    mut silenced: watch::Receiver<()>,
    holding: &AtomicBool,
) -> std::io::Result<()> {
    let mut server = TcpStream::connect(target).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (mut up, mut down) = (vec![0; 64 * 1024], vec![0; 64 * 1024]);
    loop {
        tokio::select! {
            read = client.read(&mut up) => {
                let bytes = match read? { 0 => return Ok(()), count => &up[..count] };
                let now = *mode.borrow();
                match now {
                    Mode::CutBeforeCommit if contains(bytes, b"COMMIT\0") => {
                        mode.send_replace(Mode::Forward);
                        return Ok(());
                    }
                    Mode::CutAfterCommit if contains(bytes, b"COMMIT\0") => {
                        mode.send_replace(Mode::Forward);
                        server.write_all(bytes).await?;
                        return swallow_reply(&mut server).await;
                    }
                    Mode::HoldBegin if contains(bytes, b"BEGIN") => {
                        holding.store(true, Ordering::Relaxed);
                        reached(mode, |mode| mode != Mode::HoldBegin).await;
                    }
                    Mode::HoldCopy if bytes.first() == Some(&b'Q') && contains(bytes, b"copy ") => {
                        holding.store(true, Ordering::Relaxed);
                        reached(mode, |mode| mode != Mode::HoldCopy).await;
                    }
                    Mode::HoldCopyData if bytes.first() == Some(&b'd') => {
                        reached(mode, |mode| mode != Mode::HoldCopyData).await;
                    }
                    _ => {}
                }
                if silenced.has_changed().unwrap_or(false) {
                    return std::future::pending().await;
                }
                server.write_all(bytes).await?;
            }
            read = server.read(&mut down) => {
                match read? { 0 => return Ok(()), count => client.write_all(&down[..count]).await? }
            }
            () = reached(mode, |mode| mode == Mode::Refuse) => return Ok(()),
            Ok(()) = silenced.changed() => return std::future::pending().await,
        }
    }
}

async fn reached(mode: &watch::Sender<Mode>, wanted: fn(Mode) -> bool) {
    // The sender lives as long as the connection.
    drop(mode.subscribe().wait_for(|mode| wanted(*mode)).await.map(|_| ()));
}

/// Waits for the server's "COMMIT" and keeps it.
async fn swallow_reply(server: &mut TcpStream) -> std::io::Result<()> {
    let mut reply = vec![0; 4096];
    loop {
        let read = tokio::time::timeout(Duration::from_secs(10), server.read(&mut reply)).await;
        let count = read.map_err(std::io::Error::other)??;
        if count == 0 || contains(&reply[..count], b"COMMIT\0") {
            return Ok(());
        }
    }
}

fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes.windows(wanted.len()).any(|window| window == wanted)
}
