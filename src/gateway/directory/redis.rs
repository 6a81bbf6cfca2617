//! The registry of replicas that share a Redis or Valkey server.
//!
//! Each replica has a lease, `streamgate:replica:ID`, which says how it is reached and ends soon after the replica has
//! died. Each session has a hash, `streamgate:session:ID`: its owner, what others need to know of it, and whether a
//! browser is there. A session is written by its owner alone, except that another replica may make itself the owner; the
//! one before learns of it and ends. What is said about sessions and replicas is sealed with the key that the replicas
//! share, so that whoever can write to the server can at most forget a session, and not lead a browser astray.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::{Client, ConnectionAddr, FromRedisValue, Pipeline, pipe};
use tokio::runtime::Handle;
use tokio::sync::Notify;

use crate::clock::{Clock, SystemTime};
use crate::config::{self, Place, Problem, Viewer};
use crate::gateway::directory::peer::{Host, Peers, Replica};
use crate::gateway::directory::registry::{Elsewhere, Known, Registry};
use crate::gateway::directory::{About, Entry, Identity, SessionId};
use crate::gateway::sealing::{Fields, Sealing, put};
use crate::gateway::tls;
use crate::session::Stop;
use crate::store::link::{self, Health, PAUSE, Turn, describe};
use crate::telemetry::Metrics;

/// Sessions of all replicas, as far as the server is there.
pub(crate) struct Redis {
    /// Names this replica; a new one at each start.
    me: String,
    manager: ConnectionManager,
    /// The server's address, to find out which of ours leads there.
    server: ConnectionAddr,
    runtime: Handle,
    peers: Arc<Peers>,
    sealing: Sealing,
    timeout: Duration,
    listen: SocketAddr,
    advertise: Option<IpAddr>,
    certificate: [u8; 32],
    own: Mutex<HashMap<SessionId, Own>>,
    news: Notify,
    health: Mutex<Health>,
    clock: Clock,
    metrics: Metrics,
}

/// A session of this replica.
struct Own {
    entry: Arc<Entry>,
    due: Due,
    /// When its browser came, in milliseconds since the Unix epoch: of two replicas that have the same session after the
    /// server has lost what it knew, the one with the later browser is right.
    at: u64,
    /// When it ended, where the server has not heard of that.
    ended: Option<Instant>,
}

/// What the server still has to be told of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    Nothing,
    /// It has changed.
    Update,
    /// The server knows nothing of it yet, or nothing any more.
    Claim,
    /// It has ended.
    End,
}

/// What the server is asked.
const REQUESTS: [&str; 6] = ["renew", "refresh", "tell", "locate", "take", "leave"];

/// How the shared secret is used here.
const PURPOSE: &[u8] = b"streamgate registry 1";

/// How long a replica counts as alive after it was last heard of, and how often it is heard of.
const LEASE: Duration = Duration::from_secs(15);
const RENEW: Duration = Duration::from_secs(5);

/// How long a session is remembered that its owner has not ended, and how often the owner says that it lives. Whether the
/// owner lives is a matter of its lease, so this need not be often.
const KEEP: Duration = Duration::from_secs(600);
const REFRESH: Duration = Duration::from_secs(180);

/// Sessions of one round trip.
const BATCH: usize = 256;

/// Makes `ARGV[1]` the owner: `ARGV` = owner, record, attached, time of the last browser, milliseconds to keep it, whether to
/// stand back when a browser is attached elsewhere, an owner that is dead. Gives whether it was done, and the owner before.
const TAKE: &str = "local owner = redis.call('HGET', KEYS[1], 'owner') or ''
if ARGV[6] == '1' and owner ~= '' and owner ~= ARGV[1] and owner ~= ARGV[7]
    and redis.call('HGET', KEYS[1], 'attached') == '1' then
  return {0, owner}
end
redis.call('HSET', KEYS[1], 'owner', ARGV[1], 'record', ARGV[2], 'attached', ARGV[3], 'at', ARGV[4])
redis.call('PEXPIRE', KEYS[1], ARGV[5])
return {1, owner}";

/// The same unless somebody else is the owner.
const UPDATE: &str = "local owner = redis.call('HGET', KEYS[1], 'owner') or ''
if owner ~= '' and owner ~= ARGV[1] then
  return {0, owner}
end
redis.call('HSET', KEYS[1], 'owner', ARGV[1], 'record', ARGV[2], 'attached', ARGV[3], 'at', ARGV[4])
redis.call('PEXPIRE', KEYS[1], ARGV[5])
return {1, owner}";

/// The same unless somebody else is the owner and had a browser later.
const CLAIM: &str = "local owner = redis.call('HGET', KEYS[1], 'owner') or ''
if owner ~= '' and owner ~= ARGV[1] and tonumber(redis.call('HGET', KEYS[1], 'at') or 0) > tonumber(ARGV[4]) then
  return {0, owner}
end
redis.call('HSET', KEYS[1], 'owner', ARGV[1], 'record', ARGV[2], 'attached', ARGV[3], 'at', ARGV[4])
redis.call('PEXPIRE', KEYS[1], ARGV[5])
return {1, owner}";

/// Keeps a session of the owner `ARGV[1]` for `ARGV[2]` milliseconds. Gives whether there was one, and its owner.
const TOUCH: &str = "local owner = redis.call('HGET', KEYS[1], 'owner') or ''
if owner == ARGV[1] then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
return {owner == '' and 0 or 1, owner}";

/// Forgets a session of the owner `ARGV[1]`.
const END: &str = "local owner = redis.call('HGET', KEYS[1], 'owner') or ''
if owner == ARGV[1] then redis.call('DEL', KEYS[1]) end
return {1, owner}";

/// What each of the scripts answers.
type Answer = (u8, String);

impl Redis {
    /// Checks the URL of the server, and what its certificate is verified with.
    pub(crate) fn client(config: &config::Directory) -> Result<Client, Problem> {
        let ca = config.ca.as_deref().map(|it| tls::authorities(it, "directory.ca")).transpose()?;
        link::client(&config.url, ca).map_err(|it| Problem::new(Place::Nowhere, "directory.url", it))
    }

    /// Nothing is asked of the server yet. Must be called within the runtime that is to speak with it.
    pub(crate) fn new(
        config: &config::Directory,
        secret: &str,
        host: &Host,
        clock: &Clock,
        metrics: &Metrics,
    ) -> Result<Redis, Problem> {
        let client = Redis::client(config)?;
        let server = client.get_connection_info().addr().clone();
        let settings = ConnectionManagerConfig::new()
            .set_connection_timeout(Some(config.timeout))
            .set_response_timeout(Some(config.timeout))
            .set_number_of_retries(0);
        let manager = ConnectionManager::new_lazy_with_config(client, settings)
            .map_err(|error| Problem::new(Place::Nowhere, "directory.url", error.to_string()))?;
        metrics.directory_begins(&REQUESTS);
        Ok(Redis {
            me: uuid::Uuid::new_v4().simple().to_string(),
            manager,
            server,
            runtime: Handle::current(),
            peers: Arc::new(Peers::new(secret, config.timeout, clock)),
            sealing: Sealing::derived(PURPOSE, secret),
            timeout: config.timeout,
            listen: host.address(),
            advertise: config.advertise,
            certificate: host.certificate,
            own: Mutex::default(),
            news: Notify::new(),
            health: Mutex::default(),
            clock: clock.clone(),
            metrics: metrics.clone(),
        })
    }

    /// Tells the server of this replica and its sessions, until `stop`; then it takes its leave.
    pub(crate) async fn run(&self, stop: impl Future<Output = ()>) {
        let mut stop = std::pin::pin!(stop);
        let (mut renew, mut refresh) = (self.clock.now(), self.clock.now() + REFRESH);
        loop {
            let now = self.clock.now();
            if now >= renew {
                renew = now + if self.renew().await { RENEW } else { PAUSE };
            }
            if now >= refresh {
                self.refresh().await;
                refresh = now + REFRESH;
            }
            if !self.tell().await {
                renew = now + PAUSE; // a server that comes back may have forgotten that this replica lives
            }
            let wake = renew.min(refresh);
            tokio::select! {
                () = self.news.notified() => {}
                () = self.clock.sleep_until(wake) => {}
                () = &mut stop => break,
            }
        }
        self.tell().await;
        let mut leave = pipe();
        leave.cmd("DEL").arg(replica_key(&self.me));
        self.ask::<()>("leave", leave).await;
    }

    /// Asks the server, for a bounded time. `None`, which is counted and noted, when it does not answer, or did not a moment
    /// ago.
    async fn ask<T: FromRedisValue + Send + 'static>(&self, what: &str, pipeline: Pipeline) -> Option<T> {
        let started = self.clock.now();
        // A try is over when its time is, so the next may follow then.
        if self.health().turn(started, self.timeout) == Turn::Skip {
            self.metrics.directory_request(what, "skipped");
            return None;
        }
        let mut manager = self.manager.clone();
        // Where the connection lives: a worker comes and goes.
        let asked = self.runtime.spawn(async move { pipeline.query_async::<T>(&mut manager).await });
        let problem = match self.clock.timeout(self.timeout, asked).await {
            Some(Ok(Ok(answer))) => {
                self.metrics.directory_request(what, "ok");
                self.metrics.directory_took(what, self.clock.now() - started);
                self.metrics.directory_up(true);
                if self.health().recovered() {
                    tracing::info!("The directory is there again.");
                }
                return Some(answer);
            }
            Some(Ok(Err(error))) => describe(&error),
            Some(Err(error)) => error.to_string(),
            None => "no answer within `directory.timeout`".into(),
        };
        self.metrics.directory_request(what, "failed");
        self.metrics.directory_up(false);
        if self.health().failed(self.clock.now()) {
            tracing::warn!(
                server = %self.server,
                error = problem,
                "The directory cannot be asked. Sessions live on; a browser that comes to another replica reconnects."
            );
        }
        None
    }

    /// Says that this replica lives; false when it could not be said.
    async fn renew(&self) -> bool {
        // What a server that is away was not told of an end it has forgotten by itself.
        let now = self.clock.now();
        self.own().retain(|_, it| it.ended.is_none_or(|at| now < at + KEEP));
        let ip = match self.advertise {
            Some(ip) => ip,
            None if !self.listen.ip().is_unspecified() => self.listen.ip(),
            None => self
                .clock
                .timeout(self.timeout, self.own_address())
                .await
                .unwrap_or(Ipv4Addr::LOCALHOST.into()),
        };
        let mut lease = Vec::new();
        put(&mut lease, SocketAddr::new(ip, self.listen.port()).to_string().as_bytes());
        lease.extend_from_slice(&self.certificate);
        let key = replica_key(&self.me);
        let sealed = self.sealing.seal(key.as_bytes(), lease);
        let mut renew = pipe();
        renew.cmd("EXISTS").arg(&key);
        renew.cmd("SET").arg(&key).arg(sealed).arg("PX").arg(LEASE.as_millis() as u64).ignore();
        let Some((was_known,)) = self.ask::<(bool,)>("renew", renew).await else { return false };
        if !was_known {
            // At start, or after the server has lost what it knew, or this replica was taken for dead: all is told again.
            for own in self.own().values_mut().filter(|it| it.due < Due::Claim) {
                own.due = Due::Claim;
            }
        }
        true
    }

    /// This machine's address on the way to the server.
    async fn own_address(&self) -> IpAddr {
        let found = async {
            let (host, port) = match &self.server {
                ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => {
                    (host.as_str(), *port)
                }
                _ => return Err(std::io::ErrorKind::Unsupported.into()),
            };
            let server = tokio::net::lookup_host((host, port)).await?.next();
            let server = server.ok_or(std::io::ErrorKind::NotFound)?;
            let any: IpAddr = if server.is_ipv4() {
                Ipv4Addr::UNSPECIFIED.into()
            } else {
                std::net::Ipv6Addr::UNSPECIFIED.into()
            };
            let socket = tokio::net::UdpSocket::bind((any, 0)).await?;
            socket.connect(server).await?; // sends nothing
            Ok::<_, std::io::Error>(socket.local_addr()?.ip())
        };
        found.await.unwrap_or(Ipv4Addr::LOCALHOST.into())
    }

    /// Says of all sessions that they live.
    async fn refresh(&self) {
        let quiet: Vec<(SessionId, Arc<Entry>)> = {
            let own = self.own();
            let quiet = own.iter().filter(|(_, it)| it.due == Due::Nothing);
            quiet.map(|(id, it)| (*id, Arc::clone(&it.entry))).collect()
        };
        for some in quiet.chunks(BATCH) {
            let mut touches = pipe();
            for (id, _) in some {
                touches
                    .cmd("EVAL")
                    .arg(TOUCH)
                    .arg(1)
                    .arg(session_key(*id))
                    .arg(&self.me)
                    .arg(KEEP.as_millis() as u64);
            }
            let Some(answers) = self.ask::<Vec<Answer>>("refresh", touches).await else { return };
            for ((id, entry), (is_there, owner)) in some.iter().zip(answers) {
                if is_there == 0 {
                    if let Some(own) = self.own().get_mut(id) {
                        own.due = own.due.max(Due::Claim);
                    }
                } else if owner != self.me {
                    self.lose(*id, entry);
                }
            }
        }
    }

    /// Tells the server what is due; false when it could not be told.
    async fn tell(&self) -> bool {
        loop {
            let told: Vec<(SessionId, Due, Arc<Entry>, u64)> = {
                let mut own = self.own();
                let due = own.iter_mut().filter(|(_, it)| it.due != Due::Nothing).take(BATCH);
                let take = |(id, it): (&SessionId, &mut Own)| {
                    (*id, std::mem::replace(&mut it.due, Due::Nothing), Arc::clone(&it.entry), it.at)
                };
                due.map(take).collect()
            };
            if told.is_empty() {
                return true;
            }
            let mut news = pipe();
            for (id, due, entry, at) in &told {
                match due {
                    Due::End => drop(news.cmd("EVAL").arg(END).arg(1).arg(session_key(*id)).arg(&self.me)),
                    Due::Claim => self.write(&mut news, CLAIM, entry, *at, ""),
                    Due::Update | Due::Nothing => self.write(&mut news, UPDATE, entry, *at, ""),
                }
            }
            let answers = self.ask::<Vec<Answer>>("tell", news).await;
            let Some(answers) = answers.filter(|it| it.len() == told.len()) else {
                let mut own = self.own();
                for (id, due, entry, _) in told {
                    if let Some(it) = own.get_mut(&id).filter(|it| Arc::ptr_eq(&it.entry, &entry)) {
                        it.due = it.due.max(due);
                    }
                }
                return false;
            };
            for ((id, due, entry, _), (is_done, owner)) in told.into_iter().zip(answers) {
                match due {
                    Due::End => drop(self.forget(id, &entry)),
                    _ if is_done == 0 => self.lose(id, &entry),
                    _ => self.replace(id, owner),
                }
            }
        }
    }

    /// A session was taken over by another replica: it ends here.
    fn lose(&self, id: SessionId, entry: &Arc<Entry>) {
        if let Some(own) = self.forget(id, entry) {
            drop(own.entry.stop(Stop::Replaced));
        }
    }

    /// Takes a session out, unless another one has its id by now.
    fn forget(&self, id: SessionId, entry: &Arc<Entry>) -> Option<Own> {
        let mut own = self.own();
        if own.get(&id).is_some_and(|it| Arc::ptr_eq(&it.entry, entry)) { own.remove(&id) } else { None }
    }

    /// Asks the owner before to end a session. It would learn of it anyway, but later.
    fn replace(&self, id: SessionId, owner: String) {
        if owner.is_empty() || owner == self.me {
            return;
        }
        let (manager, peers, sealing) = (self.manager.clone(), Arc::clone(&self.peers), self.sealing.clone());
        let (clock, timeout) = (self.clock.clone(), self.timeout);
        self.runtime.spawn(async move {
            let mut manager = manager;
            let mut get = pipe();
            get.cmd("GET").arg(replica_key(&owner));
            let asked = clock.timeout(timeout, get.query_async::<(Option<Vec<u8>>,)>(&mut manager)).await;
            if let Some(Ok((Some(mut lease),))) = asked
                && let Some(replica) = replica(&sealing, &owner, &mut lease)
            {
                peers.release(&replica, id, Stop::Replaced).await;
            }
        });
    }

    fn write(&self, pipeline: &mut Pipeline, script: &str, entry: &Entry, at: u64, refuse_unless: &str) {
        let key = session_key(entry.id);
        let record = self.sealing.seal(key.as_bytes(), record(entry));
        pipeline
            .cmd("EVAL")
            .arg(script)
            .arg(1)
            .arg(key)
            .arg(&self.me)
            .arg(record)
            .arg(u8::from(entry.is_attached()))
            .arg(at)
            .arg(KEEP.as_millis() as u64)
            .arg(u8::from(!refuse_unless.is_empty()))
            .arg(refuse_unless);
    }

    /// Milliseconds since the Unix epoch.
    fn at(&self) -> u64 {
        self.clock.wall().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |it| it.as_millis() as u64)
    }

    /// How a replica is reached, if it is alive.
    async fn alive(&self, owner: &str) -> Option<Replica> {
        let mut get = pipe();
        get.cmd("GET").arg(replica_key(owner));
        let (lease,) = self.ask::<(Option<Vec<u8>>,)>("locate", get).await?;
        replica(&self.sealing, owner, &mut lease?)
    }

    fn own(&self) -> MutexGuard<'_, HashMap<SessionId, Own>> {
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Registry for Redis {
    async fn locate(&self, id: SessionId) -> Option<Elsewhere> {
        let key = session_key(id);
        let mut get = pipe();
        get.cmd("HMGET").arg(&key).arg("owner").arg("record").arg("attached");
        type Fields = (Option<String>, Option<Vec<u8>>, Option<u8>);
        let (fields,) = self.ask::<(Fields,)>("locate", get).await?;
        let (Some(owner), Some(mut record), Some(attached)) = fields else { return None };
        if owner == self.me {
            return None; // it has just ended
        }
        let mut known = known(self.sealing.open(key.as_bytes(), &mut record)?)?;
        known.is_attached = attached == 1;
        let replica = self.alive(&owner).await?;
        Some(Elsewhere { id, known, replica, peers: Arc::clone(&self.peers) })
    }

    async fn take_over(&self, entry: &Arc<Entry>, viewer: Viewer) -> bool {
        // `-` is no replica's name: nobody is known to be dead.
        let mut refuse_unless = if viewer == Viewer::Refuse { "-".to_owned() } else { String::new() };
        loop {
            let mut take = pipe();
            let at = self.at();
            self.write(&mut take, TAKE, entry, at, &refuse_unless);
            let Some((answer,)) = self.ask::<(Answer,)>("take", take).await else {
                self.changed(entry); // it is told later
                return true;
            };
            match answer {
                (1, owner) => {
                    self.own().insert(
                        entry.id,
                        Own { entry: Arc::clone(entry), due: Due::Nothing, at, ended: None },
                    );
                    self.replace(entry.id, owner);
                    return true;
                }
                (_, owner) if owner != refuse_unless && self.alive(&owner).await.is_none() => {
                    refuse_unless = owner
                }
                _ => return false,
            }
        }
    }

    fn changed(&self, entry: &Arc<Entry>) {
        let at = self.at();
        let mut all = self.own();
        match all.get_mut(&entry.id) {
            Some(own) if Arc::ptr_eq(&own.entry, entry) => {
                own.due = own.due.max(Due::Update);
                if entry.is_attached() {
                    own.at = at;
                }
            }
            // One that was lost to another replica is not claimed back because its browser is gone.
            _ if !entry.is_attached() => return,
            _ => {
                drop(all.insert(entry.id, Own { entry: Arc::clone(entry), due: Due::Claim, at, ended: None }))
            }
        }
        drop(all);
        self.news.notify_one();
    }

    fn ended(&self, entry: &Arc<Entry>) {
        if let Some(own) = self.own().get_mut(&entry.id)
            && Arc::ptr_eq(&own.entry, entry)
        {
            (own.due, own.ended) = (Due::End, Some(self.clock.now()));
        } else {
            return;
        }
        self.news.notify_one();
    }
}

fn replica_key(id: &str) -> String {
    format!("streamgate:replica:{id}")
}

fn session_key(id: SessionId) -> String {
    format!("streamgate:session:{id}")
}

fn replica(sealing: &Sealing, id: &str, lease: &mut [u8]) -> Option<Replica> {
    let mut fields = sealing.open(replica_key(id).as_bytes(), lease)?;
    let address = fields.text()?.parse().ok()?;
    Some(Replica { address, certificate: fields.exactly()? })
}

fn record(entry: &Entry) -> Vec<u8> {
    let About { identity, subprotocol, request, began } = &entry.about;
    let Identity { principal, function, target } = identity;
    let mut record = Vec::with_capacity(256);
    record.extend_from_slice(&began.to_be_bytes());
    record.extend_from_slice(&entry.generation().to_be_bytes());
    for field in [principal, function, target, request] {
        put(&mut record, field.as_bytes());
    }
    if let Some(subprotocol) = subprotocol {
        put(&mut record, subprotocol.as_bytes());
    }
    record
}

fn known(mut fields: Fields<'_>) -> Option<Known> {
    let began = u64::from_be_bytes(fields.exactly()?);
    let generation = u32::from_be_bytes(fields.exactly()?);
    let [principal, function, target, request] =
        [fields.text()?, fields.text()?, fields.text()?, fields.text()?].map(Into::into);
    let subprotocol = fields.text().map(Into::into);
    let about = About { identity: Identity { principal, function, target }, subprotocol, request, began };
    Some(Known { about, generation, is_attached: false })
}
