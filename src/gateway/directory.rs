//! Which sessions there are and how to reach them, so that a browser that comes back on any worker of any replica finds
//! the one that it left.

mod peer;
mod redis;
mod registry;

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use futures_util::task::AtomicWaker;
use ring::digest::{SHA256, digest};
use serde_json::json;
use tokio::sync::oneshot;

use crate::clock::Clock;
use crate::config::Viewer;
use crate::gateway::conn::Conn;
use crate::session::{Control, Stop};

pub(crate) use self::peer::{Handed, Host, Offered, Peers};
pub(crate) use self::redis::Redis;
pub(crate) use self::registry::{Alone, Elsewhere, Registry};

/// Names a session; 16 bytes that nobody can guess.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct SessionId(pub(crate) [u8; 16]);

/// All sessions of this process, and the way to those of other replicas.
pub(crate) struct Directory {
    entries: Mutex<HashMap<SessionId, Arc<Entry>>>,
    registry: Arc<dyn Registry>,
    drains_until: OnceLock<Instant>,
}

/// A session of this process, and how it is reached.
pub(crate) struct Entry {
    id: SessionId,
    pub(crate) about: About,
    generation: AtomicU32,
    is_attached: AtomicBool,
    mail: Mutex<Option<VecDeque<Mail>>>,
    waker: AtomicWaker,
}

/// What stays the same of a session as long as it lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct About {
    pub(crate) identity: Identity,
    /// The subprotocol that was agreed on; a browser that comes back must offer it again.
    pub(crate) subprotocol: Option<Box<str>>,
    /// NVCF's id of it; empty when the upstream gave none.
    pub(crate) request: Box<str>,
    /// When it began, in seconds since the Unix epoch.
    pub(crate) began: u64,
}

/// Whose session it is, and which request opened it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) principal: Box<str>,
    pub(crate) function: Box<str>,
    /// The request target that went upstream. Another target is another handshake, which the function has to see.
    pub(crate) target: Box<str>,
}

/// Where a session is.
pub(crate) enum Found {
    /// In this process.
    Here(Arc<Entry>),
    /// In another replica.
    There(Box<Elsewhere>),
}

/// What is asked of a session.
pub(crate) enum Mail {
    /// A browser has come back.
    Attach(Box<Attach>),
    /// It is to end. The sender is dropped once it has.
    Stop(Stop, oneshot::Sender<()>),
    /// The gateway is about to end, and waits for it until this time.
    Drain(Instant),
    /// As many bytes of what was sent to the browser before have arrived.
    Arrived(u64),
    /// The policies do not let it go on; the browser gets this Close frame.
    Refused(Control),
}

/// A browser that wants to come back.
pub(crate) struct Attach {
    pub(crate) conn: Conn,
    /// What it has sent after its request.
    pub(crate) early: BytesMut,
    /// Its 101, with the cookie of this generation.
    pub(crate) answer: BytesMut,
    pub(crate) generation: u32,
    /// Told how it went; the connection comes back when the session does not take it.
    pub(crate) reply: oneshot::Sender<Result<(), Refused>>,
}

/// A browser that was not taken.
pub(crate) struct Refused {
    pub(crate) conn: Conn,
    pub(crate) early: BytesMut,
    /// Another browser is attached, and stays.
    pub(crate) is_taken: bool,
}

/// An entry that is in the directory as long as this lives.
pub(crate) struct Listed {
    directory: Arc<Directory>,
    pub(crate) entry: Arc<Entry>,
}

/// How long whoever needs the end of a session waits for it.
const MAKE_WAY: Duration = Duration::from_secs(1);

impl SessionId {
    /// A name of the session that does not let anybody into it: for logs and plugins.
    pub(crate) fn public_name(self) -> String {
        let digest = ring::digest::digest(&ring::digest::SHA256, &self.0);
        let (name, _) = digest.as_ref().split_first_chunk().expect("a digest has 32 bytes");
        SessionId(*name).to_string()
    }

    /// A new one.
    pub(crate) fn random() -> Self {
        SessionId(rand::random()) // of a generator that is fit for keys, without a system call for each
    }

    /// The one that a browser names by a token of its own choice. Principal and function are part of it, so that a token
    /// leads nobody into another's session.
    pub(crate) fn of_token(principal: &str, function: &str, token: &str) -> Self {
        let text = [principal, function, token].map(|it| format!("{}:{it}", it.len())).concat();
        let hash = digest(&SHA256, text.as_bytes());
        SessionId(hash.as_ref()[..16].try_into().expect("a hash has 32 bytes"))
    }
}

impl SessionId {
    /// Reads what `Display` writes.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let number = u128::from_str_radix(text, 16).ok().filter(|_| text.len() == 32)?;
        Some(SessionId(number.to_be_bytes()))
    }
}

impl Directory {
    /// An empty one.
    pub(crate) fn new(registry: Arc<dyn Registry>) -> Self {
        Directory { entries: Mutex::default(), registry, drains_until: OnceLock::new() }
    }

    /// The session with this id, if it is in this process.
    pub(crate) fn find(&self, id: SessionId) -> Option<Arc<Entry>> {
        self.entries().get(&id).cloned()
    }

    /// The session with this id, wherever it is, as far as that can be told within a bounded time.
    pub(crate) async fn seek(&self, id: SessionId) -> Option<Found> {
        match self.find(id) {
            Some(entry) => Some(Found::Here(entry)),
            None => self.registry.locate(id).await.map(|it| Found::There(Box::new(it))),
        }
    }

    /// Lists a session. One that had the same id is not listed any more and asked to end; with `viewer` set to refuse, it
    /// stays when its browser is there, and nothing is listed.
    pub(crate) fn list(self: &Arc<Self>, entry: Entry, viewer: Viewer) -> Option<Listed> {
        let entry = Arc::new(entry);
        let mut entries = self.entries();
        if viewer == Viewer::Refuse && entries.get(&entry.id).is_some_and(|it| it.is_attached()) {
            return None;
        }
        let before = entries.insert(entry.id, Arc::clone(&entry));
        drop(entries);
        if let Some(before) = before {
            drop(before.stop(Stop::Replaced));
        }
        Some(Listed { directory: Arc::clone(self), entry })
    }

    /// Tells the other replicas of a session whose id nobody else can have yet.
    pub(crate) fn announce(&self, entry: &Arc<Entry>) {
        self.registry.changed(entry);
    }

    /// Makes the other replicas know that the session with this id is here, and the one that had it end it. False when a
    /// browser is attached to it there, and stays.
    pub(crate) async fn take_over(&self, entry: &Arc<Entry>, viewer: Viewer) -> bool {
        self.registry.take_over(entry, viewer).await
    }

    /// Tells a session which browser is there now: the one of this generation, or none.
    pub(crate) fn note_browser(&self, entry: &Arc<Entry>, generation: Option<u32>) {
        entry.is_attached.store(generation.is_some(), Ordering::Relaxed);
        if let Some(generation) = generation {
            entry.generation.store(generation, Ordering::Relaxed);
        }
        self.registry.changed(entry);
    }

    /// Tells all sessions that the gateway is about to end.
    pub(crate) fn drain(&self, until: Instant) {
        self.drains_until.get_or_init(|| until);
        for entry in self.entries().values() {
            drop(entry.post(Mail::Drain(until))); // one that has ended needs no telling
        }
    }

    /// The sessions of this process, for an operator.
    pub(crate) fn describe(&self) -> Vec<serde_json::Value> {
        let describe = |entry: &Arc<Entry>| {
            json!({
                "id": entry.id.to_string(),
                "session": entry.id.public_name(),
                "principal": entry.about.identity.principal,
                "function": entry.about.identity.function,
                "state": if entry.is_attached() { "attached" } else { "parked" },
                "began": entry.about.began,
            })
        };
        self.entries().values().map(describe).collect()
    }

    /// Until when the gateway waits for its sessions, once they were told that it is about to end.
    pub(crate) fn drains_until(&self) -> Option<Instant> {
        self.drains_until.get().copied()
    }

    /// A session has ended: it takes no more mail, and nobody finds it any more.
    pub(crate) fn close(&self, entry: &Arc<Entry>) {
        entry.close();
        let mut entries = self.entries();
        if entries.get(&entry.id).is_some_and(|it| Arc::ptr_eq(it, entry)) {
            entries.remove(&entry.id);
        }
        drop(entries);
        self.registry.ended(entry);
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<SessionId, Arc<Entry>>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Found {
    pub(crate) fn about(&self) -> &About {
        match self {
            Found::Here(entry) => &entry.about,
            Found::There(there) => &there.known.about,
        }
    }

    /// How a browser gets there; the label `kind`.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Found::Here(_) => "reattach",
            Found::There(_) => "handover",
        }
    }

    /// Counts the browsers that have come back.
    pub(crate) fn generation(&self) -> u32 {
        match self {
            Found::Here(entry) => entry.generation(),
            Found::There(there) => there.known.generation,
        }
    }

    /// Whether a browser is there now, as far as it is known.
    pub(crate) fn is_attached(&self) -> bool {
        match self {
            Found::Here(entry) => entry.is_attached(),
            Found::There(there) => there.known.is_attached,
        }
    }

    /// Asks the session to end, and waits until it has, for a bounded time.
    pub(crate) async fn make_way(&self, stop: Stop, clock: &Clock) {
        match self {
            Found::Here(entry) => entry.make_way(stop, clock).await,
            Found::There(there) => drop(there.make_way(stop).await), // a replica that is gone has no session either
        }
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut text = [0; 32];
        for (place, byte) in text.chunks_exact_mut(2).zip(self.0) {
            place.copy_from_slice(&[DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
        }
        f.pad(std::str::from_utf8(&text).expect("digits"))
    }
}

impl Entry {
    /// Its id, which lets in whoever knows it.
    pub(crate) fn id(&self) -> SessionId {
        self.id
    }

    /// A session with a browser.
    pub(crate) fn new(id: SessionId, about: About, generation: u32) -> Self {
        Entry {
            id,
            about,
            generation: AtomicU32::new(generation),
            is_attached: AtomicBool::new(true),
            mail: Mutex::new(Some(VecDeque::new())),
            waker: AtomicWaker::new(),
        }
    }

    /// Leaves mail for the session; gives it back when the session has ended.
    pub(crate) fn post(&self, mail: Mail) -> Result<(), Mail> {
        match &mut *self.mail() {
            Some(queue) => queue.push_back(mail),
            None => return Err(mail),
        }
        self.waker.wake();
        Ok(())
    }

    /// Asks the session to end; the receiver hears of its end.
    pub(crate) fn stop(&self, stop: Stop) -> oneshot::Receiver<()> {
        let (ended, has_ended) = oneshot::channel();
        drop(self.post(Mail::Stop(stop, ended))); // one that has ended drops it at once
        has_ended
    }

    /// The same, and waits until it has ended, for a bounded time: sooner or later it will.
    pub(crate) async fn make_way(&self, stop: Stop, clock: &Clock) {
        clock.timeout(MAKE_WAY, self.stop(stop)).await;
    }

    /// The next mail.
    pub(crate) fn poll(&self, cx: &Context<'_>) -> Poll<Mail> {
        self.waker.register(cx.waker());
        match self.mail().as_mut().and_then(VecDeque::pop_front) {
            Some(mail) => Poll::Ready(mail),
            None => Poll::Pending,
        }
    }

    /// Takes no more mail. Browsers that wait are given back.
    fn close(&self) {
        let unread = self.mail().take();
        for mail in unread.into_iter().flatten() {
            if let Mail::Attach(attach) = mail {
                attach.refuse(false);
            }
        }
    }

    /// Counts the browsers that have come back.
    pub(crate) fn generation(&self) -> u32 {
        self.generation.load(Ordering::Relaxed)
    }

    /// Whether a browser is there now.
    pub(crate) fn is_attached(&self) -> bool {
        self.is_attached.load(Ordering::Relaxed)
    }

    fn mail(&self) -> MutexGuard<'_, Option<VecDeque<Mail>>> {
        self.mail.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Attach {
    /// Gives the browser back.
    pub(crate) fn refuse(self, is_taken: bool) {
        let Attach { conn, early, reply, .. } = self;
        drop(reply.send(Err(Refused { conn, early, is_taken }))); // nobody waits when its worker has ended
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.directory.close(&self.entry);
    }
}
