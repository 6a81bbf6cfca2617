//! One replica reaches a session of another: it hands a browser over, or asks for the session's end.
//!
//! A connection carries one request. It is encrypted, the one who serves is known by the certificate that it has put
//! into the registry, and the one who asks by the key that all replicas share: its request is sealed for a challenge.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use ring::rand::{SecureRandom, SystemRandom};
use rustls::ServerConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, oneshot};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

use crate::clock::Clock;
use crate::gateway::conn::{Conn, Counted, Tcp};
use crate::gateway::directory::{Attach, Directory, Identity, Mail, Refused, SessionId};
use crate::gateway::sealing::{Sealing, put};
use crate::gateway::tunnel::Tunnel;
use crate::gateway::{Totals, tls, upstream};
use crate::session::Stop;

/// How another replica is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Replica {
    pub(super) address: SocketAddr,
    /// SHA-256 of its certificate.
    pub(super) certificate: [u8; 32],
}

/// Asks other replicas.
pub(crate) struct Peers {
    sealing: Sealing,
    timeout: Duration,
    clock: Clock,
}

/// Answers other replicas.
pub(crate) struct Host {
    listener: std::net::TcpListener,
    tls: Arc<ServerConfig>,
    pub(super) certificate: [u8; 32],
    sealing: Sealing,
    clock: Clock,
}

/// A browser for a session of another replica.
pub(crate) struct Offered {
    pub(crate) identity: Identity,
    pub(crate) generation: u32,
    /// Its 101, with the cookie of this generation.
    pub(crate) answer: BytesMut,
}

/// What became of it.
pub(crate) enum Handed {
    /// Its session goes on over this connection.
    Taken(Box<TlsStream<Tcp>>),
    /// Another browser is attached, and stays.
    Occupied,
    /// There is no such session, or nobody who could be asked.
    Gone,
}

/// How the shared secret is used here.
const PURPOSE: &[u8] = b"streamgate replicas 1";

/// One who asks has this long for its request.
const REQUEST: Duration = Duration::from_secs(5);

/// Requests that are read at the same time; further connections wait.
const READ_AT_ONCE: usize = 256;

/// A request has a 101 and its cookie, and a few names.
const LONGEST: u32 = 256 << 10;

const CHALLENGE: usize = 32;

/// The first byte of a request.
const ATTACH: u8 = 1;
const END: u8 = 2;
const REPLACE: u8 = 3;

/// The first byte of an answer.
pub(crate) const DONE: u8 = 1;
const OCCUPIED: u8 = 2;
const GONE: u8 = 3;

impl Peers {
    /// `timeout` is for each request.
    pub(crate) fn new(secret: &str, timeout: Duration, clock: &Clock) -> Self {
        Peers { sealing: Sealing::derived(PURPOSE, secret), timeout, clock: clock.clone() }
    }

    /// Hands a browser to its session.
    pub(crate) async fn hand_over(&self, replica: &Replica, id: SessionId, offered: &Offered) -> Handed {
        let mut request = vec![ATTACH];
        request.extend_from_slice(&id.0);
        request.extend_from_slice(&offered.generation.to_be_bytes());
        let Identity { principal, function, target } = &offered.identity;
        for field in [principal.as_bytes(), function.as_bytes(), target.as_bytes(), &offered.answer] {
            put(&mut request, field);
        }
        match self.ask(replica, request).await {
            Some((DONE, stream)) => Handed::Taken(Box::new(stream)),
            Some((OCCUPIED, _)) => Handed::Occupied,
            _ => Handed::Gone,
        }
    }

    /// Asks for the end of a session and waits for it; false when there was none.
    pub(crate) async fn release(&self, replica: &Replica, id: SessionId, stop: Stop) -> bool {
        let mut request = vec![match stop {
            Stop::Asked => END,
            Stop::Replaced => REPLACE,
        }];
        request.extend_from_slice(&id.0);
        matches!(self.ask(replica, request).await, Some((DONE, _)))
    }

    /// Sends a request and reads the first byte of its answer. `None`, with a line in the log, when there is none in time.
    async fn ask(&self, replica: &Replica, request: Vec<u8>) -> Option<(u8, TlsStream<Tcp>)> {
        let asked = async {
            let tcp = TcpStream::connect(replica.address).await?;
            upstream::tune(&tcp);
            let connector = TlsConnector::from(tls::pinned_client(replica.certificate));
            let name = ServerName::try_from("replica").expect("it is a name");
            let mut stream = connector.connect(name, tcp.into()).await?;
            let mut challenge = [0; CHALLENGE];
            stream.read_exact(&mut challenge).await?;
            let mut message = Vec::new();
            put(&mut message, &self.sealing.seal(&challenge, request));
            stream.write_all(&message).await?;
            stream.flush().await?;
            let answer = stream.read_u8().await?;
            Ok::<_, std::io::Error>((answer, TlsStream::from(stream)))
        };
        let problem = match self.clock.timeout(self.timeout, asked).await {
            Some(Ok(answered)) => return Some(answered),
            Some(Err(error)) => error.to_string(),
            None => "no answer within `directory.timeout`".into(),
        };
        tracing::info!(replica = %replica.address, error = problem, "Another replica could not be asked.");
        None
    }
}

impl Host {
    /// Serves on a port that is bound already.
    pub(crate) fn new(listener: std::net::TcpListener, secret: &str, clock: &Clock) -> Self {
        let (tls, certificate) = tls::own_server(clock);
        let sealing = Sealing::derived(PURPOSE, secret);
        Host { listener, tls, certificate, sealing, clock: clock.clone() }
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.listener.local_addr().expect("a bound socket has an address")
    }

    /// Answers other replicas until it is dropped. A browser that they carry here counts among the files of this process.
    pub(crate) async fn serve(self, directory: Arc<Directory>, totals: Arc<Totals>) {
        let listener = self.listener.try_clone().and_then(TcpListener::from_std);
        let listener = listener.expect("the socket does not block");
        let (host, free) = (Arc::new(self), Arc::new(Semaphore::new(READ_AT_ONCE)));
        let mut asked = tokio::task::JoinSet::new();
        loop {
            let place = Arc::clone(&free).acquire_owned().await.expect("it is never closed");
            let (tcp, from) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::error!(%error, "A connection of another replica could not be accepted.");
                    host.clock.sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let (host, directory, totals) = (Arc::clone(&host), Arc::clone(&directory), Arc::clone(&totals));
            asked.spawn(async move {
                let read = host.clock.timeout(REQUEST, host.read(tcp)).await;
                drop(place);
                match read {
                    Some(Ok((stream, request))) => host.answer(stream, request, &directory, &totals).await,
                    Some(Err(error)) => {
                        tracing::debug!(%from, %error, "A request on `directory.listen` was none.")
                    }
                    None => tracing::debug!(%from, "A request on `directory.listen` took too long."),
                }
            });
            while asked.try_join_next().is_some() {}
        }
    }

    /// Reads a request of somebody who has the key.
    async fn read(&self, tcp: TcpStream) -> std::io::Result<(TlsStream<Tcp>, Request)> {
        upstream::tune(&tcp);
        let mut stream = TlsAcceptor::from(Arc::clone(&self.tls)).accept(tcp.into()).await?;
        let mut challenge = [0; CHALLENGE];
        SystemRandom::new().fill(&mut challenge).expect("the system has randomness");
        stream.write_all(&challenge).await?;
        stream.flush().await?;
        let len = stream.read_u32().await?;
        let invalid = |what| std::io::Error::new(std::io::ErrorKind::InvalidData, what);
        if len > LONGEST {
            return Err(invalid("it is too long"));
        }
        let mut sealed = vec![0; len as usize];
        stream.read_exact(&mut sealed).await?;
        let mut fields =
            self.sealing.open(&challenge, &mut sealed).ok_or_else(|| invalid("not sealed by a replica"))?;
        let request = (|| {
            let [kind] = fields.exactly()?;
            let id = SessionId(fields.exactly()?);
            Some(match kind {
                ATTACH => {
                    let generation = u32::from_be_bytes(fields.exactly()?);
                    let [principal, function, target] =
                        [fields.text()?, fields.text()?, fields.text()?].map(Into::into);
                    let identity = Identity { principal, function, target };
                    let answer = fields.bytes()?.into();
                    Request::Attach(id, Offered { identity, generation, answer })
                }
                END => Request::Release(id, Stop::Asked),
                REPLACE => Request::Release(id, Stop::Replaced),
                _ => return None,
            })
        })();
        Ok((stream.into(), request.ok_or_else(|| invalid("of another version"))?))
    }

    async fn answer(
        &self,
        mut stream: TlsStream<Tcp>,
        request: Request,
        directory: &Directory,
        totals: &Arc<Totals>,
    ) {
        let answer = match request {
            Request::Release(id, stop) => match directory.find(id) {
                Some(entry) => {
                    entry.make_way(stop, &self.clock).await;
                    DONE
                }
                None => GONE,
            },
            Request::Attach(id, offered) => {
                let entry = directory.find(id).filter(|it| it.about.identity == offered.identity);
                let Some((entry, counted)) = entry.zip(Counted::beside(totals)) else {
                    return last_byte(&mut Conn::tls(stream), GONE).await;
                };
                let (reply, taken) = oneshot::channel();
                let Offered { generation, answer, .. } = offered;
                let answer = BytesMut::from([&[DONE], &answer[..]].concat().as_slice());
                let (mut conn, early) = (Conn::tunnel(Tunnel::new(stream)), BytesMut::new());
                conn.count(counted);
                let attach = Attach { conn, early, answer, generation, reply };
                if let Err(Mail::Attach(unread)) = entry.post(Mail::Attach(Box::new(attach))) {
                    unread.refuse(false);
                }
                if let Ok(Err(Refused { mut conn, is_taken, .. })) = taken.await {
                    last_byte(&mut conn, if is_taken { OCCUPIED } else { GONE }).await;
                }
                return;
            }
        };
        stream.write_u8(answer).await.ok();
        stream.shutdown().await.ok();
    }
}

enum Request {
    Attach(SessionId, Offered),
    Release(SessionId, Stop),
}

async fn last_byte(conn: &mut Conn, answer: u8) {
    let written = async {
        conn.write_all(&[answer]).await?;
        conn.shutdown().await
    };
    if let Err(error) = written.await {
        tracing::debug!(%error, "Another replica left before it was answered.");
    }
}
