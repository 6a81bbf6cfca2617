//! The sessions of this process, by id, so that a browser that comes back on any worker finds the one that it left.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use futures_util::task::AtomicWaker;
use ring::digest::{SHA256, digest};
use ring::rand::{SecureRandom, SystemRandom};
use serde_json::json;
use tokio::sync::oneshot;

use crate::clock::Clock;
use crate::config::Viewer;
use crate::gateway::conn::Conn;
use crate::session::Stop;
use crate::telemetry::Sessions;

/// Names a session; 16 bytes that nobody can guess.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct SessionId(pub(crate) [u8; 16]);

/// All sessions of this process.
#[derive(Default)]
pub(crate) struct Directory(Mutex<HashMap<SessionId, Arc<Entry>>>);

/// What others know of a session, and how they reach it.
pub(crate) struct Entry {
    pub(crate) identity: Identity,
    /// The subprotocol that was agreed on; a browser that comes back must offer it again.
    pub(crate) subprotocol: Option<Box<str>>,
    /// NVCF's id of it; empty when the upstream gave none.
    pub(crate) request: Box<str>,
    /// When it began, in seconds since the Unix epoch.
    pub(crate) began: u64,
    generation: AtomicU32,
    is_attached: AtomicBool,
    mail: Mutex<Option<VecDeque<Mail>>>,
    waker: AtomicWaker,
}

/// Whose session it is, and which request opened it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) principal: Box<str>,
    pub(crate) function: Box<str>,
    /// The request target that went upstream. Another target is another handshake, which the function has to see.
    pub(crate) target: Box<str>,
}

/// What is asked of a session.
pub(crate) enum Mail {
    /// A browser has come back.
    Attach(Box<Attach>),
    /// It is to end. The sender is dropped once it has.
    Stop(Stop, oneshot::Sender<()>),
    /// The gateway is about to end, and waits for it until this time.
    Drain(Instant),
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
    id: SessionId,
    pub(crate) entry: Arc<Entry>,
}

/// How long whoever needs the end of a session waits for it.
const MAKE_WAY: Duration = Duration::from_secs(1);

impl SessionId {
    /// A new one.
    pub(crate) fn random() -> Self {
        let mut bytes = [0; 16];
        SystemRandom::new().fill(&mut bytes).expect("the system has randomness");
        SessionId(bytes)
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
    fn parse(text: &str) -> Option<Self> {
        let number = u128::from_str_radix(text, 16).ok().filter(|_| text.len() == 32)?;
        Some(SessionId(number.to_be_bytes()))
    }
}

impl Directory {
    /// The session with this id.
    pub(crate) fn find(&self, id: SessionId) -> Option<Arc<Entry>> {
        self.entries().get(&id).cloned()
    }

    /// Lists a session. One that had the same id is not listed any more and asked to end; with `viewer` set to refuse, it
    /// stays when its browser is there, and nothing is listed.
    pub(crate) fn list(self: &Arc<Self>, id: SessionId, entry: Entry, viewer: Viewer) -> Option<Listed> {
        let entry = Arc::new(entry);
        let mut entries = self.entries();
        if viewer == Viewer::Refuse && entries.get(&id).is_some_and(|it| it.is_attached()) {
            return None;
        }
        let before = entries.insert(id, Arc::clone(&entry));
        drop(entries);
        if let Some(before) = before {
            drop(before.stop(Stop::Replaced));
        }
        Some(Listed { directory: Arc::clone(self), id, entry })
    }

    /// Tells all sessions that the gateway is about to end.
    pub(crate) fn drain(&self, until: Instant) {
        for entry in self.entries().values() {
            drop(entry.post(Mail::Drain(until))); // one that has ended needs no telling
        }
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<SessionId, Arc<Entry>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sessions for Directory {
    fn list(&self) -> Vec<serde_json::Value> {
        let describe = |(id, entry): (&SessionId, &Arc<Entry>)| {
            json!({
                "id": id.to_string(),
                "principal": entry.identity.principal,
                "function": entry.identity.function,
                "state": if entry.is_attached() { "attached" } else { "parked" },
                "began": entry.began,
            })
        };
        self.entries().iter().map(describe).collect()
    }

    fn end(&self, id: &str) -> bool {
        let entry = SessionId::parse(id).and_then(|it| self.find(it));
        entry.is_some_and(|it| {
            drop(it.stop(Stop::Asked));
            true
        })
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|it| write!(f, "{it:02x}"))
    }
}

impl Entry {
    /// A session with a browser.
    pub(crate) fn new(
        identity: Identity,
        subprotocol: Option<String>,
        request: String,
        began: u64,
        generation: u32,
    ) -> Self {
        Entry {
            identity,
            subprotocol: subprotocol.map(Into::into),
            request: request.into(),
            began,
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
    pub(crate) fn close(&self) {
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

    /// Says whether a browser is there.
    pub(crate) fn set_attached(&self, is_attached: bool) {
        self.is_attached.store(is_attached, Ordering::Relaxed);
    }

    /// Which browser is there now: the one of this generation.
    pub(crate) fn set_generation(&self, generation: u32) {
        self.generation.store(generation, Ordering::Relaxed);
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
        self.entry.close();
        let mut entries = self.directory.entries();
        if entries.get(&self.id).is_some_and(|it| Arc::ptr_eq(it, &self.entry)) {
            entries.remove(&self.id);
        }
    }
}
