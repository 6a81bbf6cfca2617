//! A new process takes the ports of the old one over, so that no connection is refused in between.
//!
//! Both share the listening sockets: the old one passes them over a Unix socket, goes on accepting until the new one says
//! that it serves, and then drains. A connection that waits to be accepted is accepted by whichever comes first.

use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use tokio::net::UnixListener;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

/// What an old process has passed.
pub(super) struct Taken {
    pub(super) gateway: TcpListener,
    pub(super) admin: TcpListener,
    old: UnixStream,
}

/// The ports of this process, for the one that comes after it.
pub(super) struct Offer {
    path: PathBuf,
    gateway: TcpListener,
    admin: TcpListener,
}

/// How long either side waits for the other: the new process checks its policies before it asks, so nothing is slow.
const PATIENCE: Duration = Duration::from_secs(10);

/// Stands before the listening sockets, so that nobody else's are taken for them.
const GREETING: &[u8] = b"streamgate-1";

/// Asks the process that serves now for its ports; none when there is no such process.
pub(super) fn take(path: &Path) -> std::io::Result<Option<Taken>> {
    use std::io::ErrorKind::{ConnectionRefused, NotFound};
    let old = match UnixStream::connect(path) {
        Ok(it) => it,
        Err(error) if matches!(error.kind(), NotFound | ConnectionRefused) => return Ok(None),
        Err(error) => return Err(error),
    };
    old.set_read_timeout(Some(PATIENCE))?;
    let mut greeting = [0; GREETING.len()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received =
        recvmsg(&old, &mut [IoSliceMut::new(&mut greeting)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let mut sockets: Vec<TcpListener> = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            sockets.extend(fds.map(TcpListener::from));
        }
    }
    let is_greeted = received.bytes == GREETING.len() && greeting == GREETING;
    match <[TcpListener; 2]>::try_from(sockets) {
        Ok([gateway, admin]) if is_greeted => Ok(Some(Taken { gateway, admin, old })),
        _ => Err(std::io::Error::other("who listens there is no gateway of this kind")),
    }
}

impl Taken {
    /// Says so when a port that was taken over is not the one that is configured.
    pub(super) fn compare(&self, setting: &str, wanted: SocketAddr, taken: &TcpListener) {
        let Ok(serves) = taken.local_addr() else { return };
        if serves.ip() != wanted.ip() || (wanted.port() != 0 && serves.port() != wanted.port()) {
            tracing::warn!(
                "`{setting}` is {wanted}, but this process has taken over {serves} from the one before it. Stop and start to change it."
            );
        }
    }

    /// Tells the old process that this one serves.
    pub(super) fn serving(mut self) -> std::io::Result<()> {
        self.old.write_all(b"1")
    }
}

impl Offer {
    pub(super) fn new(path: &Path, gateway: TcpListener, admin: TcpListener) -> Self {
        Offer { path: path.to_owned(), gateway, admin }
    }

    /// Waits in the background for a process that takes the ports over; `taken` is told once it serves. The ports are
    /// open as long as it waits.
    ///
    /// # Errors
    /// When the path cannot be listened on.
    pub(super) fn listen(self, taken: Arc<Notify>) -> std::io::Result<JoinHandle<()>> {
        match std::fs::remove_file(&self.path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&self.path)?;
        std::fs::set_permissions(&self.path, std::fs::Permissions::from_mode(0o600))?;
        Ok(tokio::spawn(async move {
            let own = rustix::process::geteuid().as_raw();
            loop {
                let Ok((stream, _)) = listener.accept().await else { return };
                if !stream.peer_cred().is_ok_and(|it| it.uid() == own || it.uid() == 0) {
                    tracing::warn!("A process of another user asked for the ports.");
                    continue;
                }
                let passed = stream.into_std().and_then(|it| {
                    it.set_nonblocking(false)?;
                    self.pass(&it)?;
                    Ok(it)
                });
                match passed {
                    Ok(stream) => {
                        if tokio::task::spawn_blocking(move || serves(stream)).await.is_ok_and(|it| it) {
                            tracing::info!("Another process has taken over; this one drains.");
                            return taken.notify_one();
                        }
                        tracing::warn!("A process asked for the ports and did not come to serve.");
                    }
                    Err(error) => tracing::warn!(%error, "The ports could not be passed on."),
                }
            }
        }))
    }

    fn pass(&self, to: &UnixStream) -> std::io::Result<()> {
        let fds = [self.gateway.as_fd(), self.admin.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        ancillary.push(SendAncillaryMessage::ScmRights(&fds));
        sendmsg(to, &[IoSlice::new(GREETING)], &mut ancillary, SendFlags::NOSIGNAL)?;
        Ok(())
    }
}

/// Whether the process that was given the ports says that it serves.
fn serves(mut stream: UnixStream) -> bool {
    let mut byte = [0];
    stream.set_read_timeout(Some(PATIENCE)).is_ok() && stream.read_exact(&mut byte).is_ok()
}
