//! Fetched key sets and discovery documents, kept for all workers; the fetching itself is the caller's.
//!
//! Strangers choose what is in a token, so they must not be able to make the gateway ask an identity provider
//! often: one fetch at a time for each URL, one for unknown keys in [`COOLDOWN`], none within [`PAUSE`] of a
//! failed one. And a provider that is down must not lock out everybody: its last keys serve for [`STALE`]
//! more.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{Map, Value};
use tracing::warn;

use crate::clock::{Clock, Instant};
use crate::lua::jose::{self, KeySet, Reason};

/// Where the documents come from. Each call to [`Keys`] brings its own, so that the cache holds no VM and no
/// client.
pub(crate) trait Fetch {
    /// Gets the body of a 200 answer, of at most [`LARGEST`] bytes. Other answers are failures.
    async fn fetch(&self, url: &str) -> Result<Fetched, Failure>;
}

/// A document as it came.
#[derive(Clone, Debug)]
pub(crate) struct Fetched {
    pub body: Vec<u8>,
    /// What the answer allows, see [`max_age`].
    pub max_age: Option<Duration>,
}

/// Why a document could not be had, for the log: a short word or a sentence, never a part of the document.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Failure(pub String);

/// What an issuer says about itself (OpenID Connect Discovery 1.0 §3).
#[derive(Clone, Debug)]
pub(crate) struct Discovery {
    pub issuer: String,
    pub jwks_uri: String,
    pub document: Map<String, Value>,
}

/// The cache; one for a gateway. It survives reloads: what is kept depends on nothing but the URL.
pub(crate) struct Keys {
    clock: Clock,
    sets: Shelf<KeySet>,
    discoveries: Shelf<Discovery>,
}

/// Documents of one kind, by URL.
struct Shelf<T> {
    slots: Mutex<Slots<T>>,
}

struct Slots<T> {
    by_url: HashMap<String, Used<T>>,
    /// Counts uses, so that the least recent one is known.
    n_uses: u64,
}

struct Used<T> {
    slot: Arc<Slot<T>>,
    at: u64,
}

/// One URL.
struct Slot<T> {
    /// Never held while waiting.
    state: Mutex<State<T>>,
    /// Held by the caller that fetches. The others wait for it, unless they can do with what is there.
    flight: tokio::sync::Mutex<()>,
}

/// What is known of one URL.
struct State<T> {
    kept: Option<Kept<T>>,
    /// When the last fetch ended, or began if it never ended.
    asked: Option<Instant>,
    /// When the last fetch failed; nothing once one succeeded.
    failed: Option<Instant>,
    /// How many fetches began since one ended: more than one if their callers were dropped meanwhile.
    n_begun: u32,
}

struct Kept<T> {
    document: Arc<T>,
    fresh_until: Instant,
}

/// What a caller does.
enum Step<T> {
    Take(Arc<T>),
    Refuse(Reason),
    /// Fetch, or take this if somebody else is fetching already.
    Fetch(Option<Arc<T>>),
}

impl Keys {
    pub(crate) fn new(clock: Clock) -> Self {
        Keys { clock, sets: Shelf::new(), discoveries: Shelf::new() }
    }

    /// The keys at this URL, among which the named one is.
    ///
    /// Waits for at most one fetch of its own. Dropping the future is allowed; the next caller takes over.
    /// Fails with [`Reason::UnknownKey`] or [`Reason::KeysUnavailable`].
    pub(crate) async fn get<F: Fetch>(
        &self,
        url: &str,
        kid: Option<&str>,
        fetch: &F,
    ) -> Result<Arc<KeySet>, Reason> {
        let has_key = |set: &KeySet| kid.is_none_or(|kid| set.knows(kid));
        self.sets.get(url, &self.clock, fetch, has_key, read_keys).await
    }

    /// Other keys at this URL than these, with which a signature was found wrong: keys without names change without a sign.
    /// Fetches as seldom as [`Keys::get`] does for a name that nobody knows, and fails like it.
    pub(crate) async fn renewed<F: Fetch>(
        &self,
        url: &str,
        old: &Arc<KeySet>,
        fetch: &F,
    ) -> Result<Arc<KeySet>, Reason> {
        let is_other = |set: &KeySet| !std::ptr::eq(set, Arc::as_ptr(old));
        self.sets.get(url, &self.clock, fetch, is_other, read_keys).await
    }

    /// What the issuer with this URL says about itself. Fails with [`Reason::KeysUnavailable`].
    pub(crate) async fn discover<F: Fetch>(&self, issuer: &str, fetch: &F) -> Result<Arc<Discovery>, Reason> {
        let url = format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/'));
        let read = |body: &[u8]| Discovery::read(body, issuer);
        self.discoveries.get(&url, &self.clock, fetch, |_| true, read).await
    }
}

fn read_keys(body: &[u8]) -> Result<KeySet, Failure> {
    KeySet::from_jwks(body).map_err(|error| Failure(error.to_string()))
}

impl Discovery {
    fn read(body: &[u8], issuer: &str) -> Result<Self, Failure> {
        let failure = |why: &str| Failure(format!("the discovery document {why}"));
        if body.len() > LARGEST {
            return Err(failure("is too large"));
        }
        let document = jose::object(body).ok_or_else(|| failure("is no JSON object"))?;
        let text = |name: &str| document.get(name).and_then(Value::as_str);
        // Else one issuer could speak for another (OpenID Connect Discovery 1.0 §4.3). A slash at the end may
        // differ: many write it in the one place and not in the other.
        let its_issuer = text("issuer").ok_or_else(|| failure("names no issuer"))?;
        if its_issuer.trim_end_matches('/') != issuer.trim_end_matches('/') {
            return Err(failure("is of another issuer"));
        }
        let is_good =
            |it: &&str| it.len() <= LONGEST_URL && (it.starts_with("https://") || it.starts_with("http://"));
        let jwks_uri = text("jwks_uri").filter(is_good).ok_or_else(|| failure("has no good jwks_uri"))?;
        Ok(Discovery { issuer: its_issuer.to_owned(), jwks_uri: jwks_uri.to_owned(), document })
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// For how long an answer may be kept, as its header `cache-control` says (RFC 9111 §5.2.2).
pub(crate) fn max_age(cache_control: &str) -> Option<Duration> {
    let mut found = None;
    for directive in cache_control.split(',').map(|it| it.trim().to_ascii_lowercase()) {
        match directive.split_once('=') {
            None if directive == "no-store" || directive == "no-cache" => return Some(Duration::ZERO),
            Some(("max-age", seconds)) => {
                // A number that is too large means very long.
                let seconds = seconds.trim_matches('"');
                let is_number = !seconds.is_empty() && seconds.bytes().all(|it| it.is_ascii_digit());
                found = is_number.then(|| Duration::from_secs(seconds.parse().unwrap_or(u32::MAX.into())));
            }
            _ => {}
        }
    }
    found
}

impl<T> Shelf<T> {
    fn new() -> Self {
        Shelf { slots: Mutex::new(Slots { by_url: HashMap::new(), n_uses: 0 }) }
    }

    async fn get<F: Fetch>(
        &self,
        url: &str,
        clock: &Clock,
        fetch: &F,
        suits: impl Fn(&T) -> bool,
        read: impl Fn(&[u8]) -> Result<T, Failure>,
    ) -> Result<Arc<T>, Reason> {
        let slot = self.slot(url);
        // Ends: after a fetch of one's own, the state says take or refuse.
        loop {
            let instead = match slot.state().step(&suits, clock.now()) {
                Step::Take(document) => return Ok(document),
                Step::Refuse(reason) => return Err(reason),
                Step::Fetch(instead) => instead,
            };
            let _flight = match (slot.flight.try_lock(), instead) {
                (Ok(flight), _) => flight,
                (Err(_), Some(document)) => return Ok(document),
                (Err(_), None) => slot.flight.lock().await,
            };
            // Between the look and the lock, another caller may have fetched.
            let step = slot.state().step(&suits, clock.now());
            if !matches!(step, Step::Fetch(_)) {
                continue;
            }
            slot.state().begin(clock.now());
            let answer = clock.timeout(LONGEST_FETCH, fetch.fetch(url)).await;
            let answer = answer.unwrap_or_else(|| Err(Failure("timeout".to_owned())));
            let document = answer.and_then(|it| Ok((read(&it.body)?, it.max_age)));
            if let Err(failure) = &document {
                // At most once in a pause for each URL. What follows `?` may be private.
                let url = url.split_once('?').map_or(url, |(it, _)| it);
                warn!(url, cause = %failure, "A document of an identity provider could not be had.");
            }
            slot.state().end(document, clock.now());
        }
    }

    /// The slot of this URL, which is now the most recently used one.
    fn slot(&self, url: &str) -> Arc<Slot<T>> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots.n_uses += 1;
        let at = slots.n_uses;
        if let Some(used) = slots.by_url.get_mut(url) {
            used.at = at;
            return used.slot.clone();
        }
        if slots.by_url.len() >= MOST_URLS
            && let Some(oldest) = slots.by_url.iter().min_by_key(|(_, it)| it.at).map(|(url, _)| url.clone())
        {
            slots.by_url.remove(&oldest);
        }
        let slot = Arc::new(Slot { state: Mutex::new(State::new()), flight: tokio::sync::Mutex::new(()) });
        slots.by_url.insert(url.to_owned(), Used { slot: slot.clone(), at });
        slot
    }
}

impl<T> Slot<T> {
    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> State<T> {
    fn new() -> Self {
        State { kept: None, asked: None, failed: None, n_begun: 0 }
    }

    /// What a caller does whom only a document that suits can serve.
    fn step(&self, suits: impl Fn(&T) -> bool, now: Instant) -> Step<T> {
        let is_within = |since: Option<Instant>, span: Duration| since.is_some_and(|it| now < it + span);
        let failed =
            is_within(self.failed, PAUSE) || (self.n_begun >= MOST_BEGUN && is_within(self.asked, PAUSE));
        let Some(kept) = &self.kept else {
            return if failed { Step::Refuse(Reason::KeysUnavailable) } else { Step::Fetch(None) };
        };

        let suits = suits(&kept.document);
        if now < kept.fresh_until {
            return match suits {
                true => Step::Take(kept.document.clone()),
                false if !is_within(self.asked, COOLDOWN) => Step::Fetch(None),
                // A fetch is under way that may bring the key: after a rotation, many come with the new one
                // at once.
                false if (1..MOST_BEGUN).contains(&self.n_begun) => Step::Fetch(None),
                // Whether the key exists is not known when the source did not answer.
                false if self.failed.is_some() => Step::Refuse(Reason::KeysUnavailable),
                false => Step::Refuse(Reason::UnknownKey),
            };
        }
        let stale = (suits && now < kept.fresh_until + STALE).then(|| kept.document.clone());
        match (failed, stale) {
            (false, stale) => Step::Fetch(stale),
            (true, Some(document)) => Step::Take(document),
            (true, None) => Step::Refuse(Reason::KeysUnavailable),
        }
    }

    fn begin(&mut self, now: Instant) {
        // Whoever was dropped long ago is forgotten.
        let is_long_ago = self.asked.is_some_and(|it| now >= it + PAUSE);
        self.n_begun = if is_long_ago { 1 } else { self.n_begun + 1 };
        self.asked = Some(now);
    }

    fn end(&mut self, document: Result<(T, Option<Duration>), Failure>, now: Instant) {
        self.n_begun = 0;
        self.asked = Some(now);
        match document {
            Ok((document, max_age)) => {
                let fresh_for = max_age.unwrap_or(USUALLY_FRESH).clamp(SHORTEST_FRESH, LONGEST_FRESH);
                self.kept = Some(Kept { document: Arc::new(document), fresh_until: now + fresh_for });
                self.failed = None;
            }
            Err(_) => self.failed = Some(now),
        }
    }
}

/// How long a document is fresh if its answer does not say.
const USUALLY_FRESH: Duration = Duration::from_secs(10 * 60);

/// Less would be a burden for the provider, whatever it says; keys are rotated in days.
const SHORTEST_FRESH: Duration = Duration::from_secs(5 * 60);

/// More would keep a withdrawn key for too long.
const LONGEST_FRESH: Duration = Duration::from_secs(24 * 60 * 60);

/// How long a document serves that is no longer fresh while its source is down.
const STALE: Duration = Duration::from_secs(24 * 60 * 60);

/// How long after a fetch an unknown key causes no other. A new key is thus known after this time at the
/// latest.
const COOLDOWN: Duration = Duration::from_secs(30);

/// How long after a failure nothing is fetched.
const PAUSE: Duration = Duration::from_secs(5);

/// How many fetches may be begun in a pause when their callers are dropped: browsers that come and go at once
/// must not become requests to the provider.
const MOST_BEGUN: u32 = 3;

/// A fetcher has a shorter limit of its own; this one is in case that it forgets.
const LONGEST_FETCH: Duration = Duration::from_secs(10);

/// Providers of more tenants than this are configured rarely. For each of the two kinds of documents.
const MOST_URLS: usize = 64;

/// Of a document, in bytes.
pub(crate) const LARGEST: usize = 256 * 1024;

const LONGEST_URL: usize = 2048;

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::Semaphore;

    use super::*;
    use crate::lua::jose::{Algorithm, Signer};

    /// A provider whose answers the test decides.
    struct Provider {
        answer: Mutex<Result<Fetched, Failure>>,
        n_fetches: AtomicUsize,
        /// One permit lets one fetch end.
        gate: Semaphore,
    }

    impl Provider {
        fn answering(kids: &[&str]) -> Self {
            let answer = Mutex::new(Ok(Fetched { body: jwks(kids), max_age: None }));
            Provider { answer, n_fetches: AtomicUsize::new(0), gate: Semaphore::new(10_000) }
        }

        /// A provider whose fetches end when `release` is called.
        fn slow(kids: &[&str]) -> Self {
            Provider { gate: Semaphore::new(0), ..Self::answering(kids) }
        }

        fn release(&self) {
            self.gate.add_permits(1);
        }

        fn answers(&self, kids: &[&str], max_age: Option<Duration>) {
            *self.answer.lock().expect("no test panics with it") = Ok(Fetched { body: jwks(kids), max_age });
        }

        fn answers_text(&self, body: &str) {
            let fetched = Fetched { body: body.as_bytes().to_vec(), max_age: None };
            *self.answer.lock().expect("no test panics with it") = Ok(fetched);
        }

        fn is_down(&self) {
            *self.answer.lock().expect("no test panics with it") = Err(Failure("unreachable".to_owned()));
        }

        fn n_fetches(&self) -> usize {
            self.n_fetches.load(Ordering::SeqCst)
        }
    }

    impl Fetch for Provider {
        async fn fetch(&self, _url: &str) -> Result<Fetched, Failure> {
            self.n_fetches.fetch_add(1, Ordering::SeqCst);
            self.gate.acquire().await.expect("the gate is never closed").forget();
            self.answer.lock().expect("no test panics with it").clone()
        }
    }

    fn jwks(kids: &[&str]) -> Vec<u8> {
        let signer = Signer::generate(Algorithm::EdDSA).expect("random numbers");
        let keys: Vec<_> = kids.iter().map(|kid| signer.jwk(kid)).collect();
        serde_json::json!({ "keys": keys }).to_string().into_bytes()
    }

    fn cache() -> (Keys, Clock) {
        let clock = Clock::paused();
        (Keys::new(clock.clone()), clock)
    }

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    const URL: &str = "https://issuer.example/jwks?tenant=1";

    #[tokio::test]
    async fn a_thousand_concurrent_callers_cause_one_fetch() {
        let (keys, _clock) = cache();
        let (keys, provider) = (Arc::new(keys), Arc::new(Provider::slow(&["a"])));
        let calls: Vec<_> = (0..1000)
            .map(|n| {
                let (keys, provider) = (keys.clone(), provider.clone());
                // A third of them have a key that does not exist, each another one.
                let kid = if n % 3 == 0 { format!("unknown-{n}") } else { "a".to_owned() };
                tokio::spawn(async move { keys.get(URL, Some(&kid), &*provider).await.map(|it| it.len()) })
            })
            .collect();
        while provider.n_fetches() == 0 {
            tokio::task::yield_now().await;
        }
        provider.release();
        for (n, call) in calls.into_iter().enumerate() {
            let expected = if n % 3 == 0 { Err(Reason::UnknownKey) } else { Ok(1) };
            assert_eq!(call.await.expect("no call panics"), expected);
        }
        assert_eq!(provider.n_fetches(), 1);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn callers_of_several_threads_share_the_fetch_too() {
        let (keys, _clock) = cache();
        let (keys, provider) = (Arc::new(keys), Arc::new(Provider::slow(&["a"])));
        let calls: Vec<_> = (0..1000)
            .map(|_| {
                let (keys, provider) = (keys.clone(), provider.clone());
                tokio::spawn(async move { keys.get(URL, Some("a"), &*provider).await.is_ok() })
            })
            .collect();
        provider.release();
        for call in calls {
            assert!(call.await.expect("no call panics"));
        }
        assert_eq!(provider.n_fetches(), 1);
    }

    #[tokio::test]
    async fn keys_are_fresh_for_as_long_as_their_answer_says_within_bounds() {
        let check = async |max_age: Option<u64>, expected: u64| {
            let (keys, clock) = cache();
            let provider = Provider::answering(&[]);
            provider.answers(&["a"], max_age.map(seconds));
            for (after, n_fetches) in [(0, 1), (expected - 1, 1), (1, 2)] {
                clock.advance(seconds(after));
                assert!(keys.get(URL, Some("a"), &provider).await.is_ok());
                assert_eq!(provider.n_fetches(), n_fetches, "{max_age:?}");
            }
        };
        check(None, 600).await;
        check(Some(0), 300).await;
        check(Some(299), 300).await;
        check(Some(3600), 3600).await;
        check(Some(u64::MAX), 86_400).await;
    }

    #[tokio::test]
    async fn an_unknown_key_causes_one_fetch_in_thirty_seconds() {
        let (keys, clock) = cache();
        let provider = Provider::answering(&["a"]);
        assert!(keys.get(URL, Some("a"), &provider).await.is_ok());
        clock.advance(seconds(29));
        for n in 0..100 {
            let result = keys.get(URL, Some(&format!("unknown-{n}")), &provider).await;
            assert_eq!(result.map(|it| it.len()), Err(Reason::UnknownKey));
        }
        assert_eq!(provider.n_fetches(), 1);

        clock.advance(seconds(1));
        provider.answers(&["a", "b"], None);
        assert!(keys.get(URL, Some("b"), &provider).await.is_ok());
        for n in 0..100 {
            assert!(keys.get(URL, Some(&format!("unknown-{n}")), &provider).await.is_err());
        }
        assert!(keys.get(URL, None, &provider).await.is_ok());
        assert_eq!(provider.n_fetches(), 2);
    }

    #[tokio::test]
    async fn keys_with_which_a_signature_was_wrong_are_fetched_again_once_in_thirty_seconds() {
        let (keys, clock) = cache();
        let provider = Provider::answering(&["a"]);
        let old = keys.get(URL, Some("a"), &provider).await.expect("keys");
        assert_eq!(keys.renewed(URL, &old, &provider).await.err(), Some(Reason::UnknownKey));
        assert_eq!(provider.n_fetches(), 1);
        clock.advance(seconds(30));
        let new = keys.renewed(URL, &old, &provider).await.expect("they came again");
        assert_eq!(provider.n_fetches(), 2);
        let shared = keys.renewed(URL, &old, &provider).await.expect("they are there already");
        assert!(Arc::ptr_eq(&new, &shared));
        assert!(keys.renewed(URL, &new, &provider).await.is_err());
        assert_eq!(provider.n_fetches(), 2);
        clock.advance(seconds(30));
        provider.is_down();
        assert_eq!(keys.renewed(URL, &new, &provider).await.err(), Some(Reason::KeysUnavailable));
        assert!(keys.get(URL, Some("a"), &provider).await.is_ok(), "they serve on");
    }

    #[tokio::test]
    async fn callers_with_a_new_key_share_the_fetch_that_brings_it() {
        let (keys, clock) = cache();
        let (keys, provider) = (Arc::new(keys), Arc::new(Provider::slow(&["a"])));
        provider.release();
        assert!(keys.get(URL, Some("a"), &*provider).await.is_ok());
        clock.advance(seconds(60));
        provider.answers(&["b"], None);
        let call = |kid: &'static str| {
            let (keys, provider) = (keys.clone(), provider.clone());
            tokio::spawn(async move { keys.get(URL, Some(kid), &*provider).await.map(|it| it.len()) })
        };
        let new: Vec<_> = (0..100).map(|_| call("b")).collect();
        let unknown: Vec<_> = (0..100).map(|_| call("c")).collect();
        while provider.n_fetches() < 2 {
            tokio::task::yield_now().await;
        }
        assert!(keys.get(URL, Some("a"), &*provider).await.is_ok(), "a known key does not wait");
        provider.release();
        for call in new {
            assert_eq!(call.await.expect("no call panics"), Ok(1));
        }
        for call in unknown {
            assert_eq!(call.await.expect("no call panics"), Err(Reason::UnknownKey));
        }
        assert_eq!(provider.n_fetches(), 2);
    }

    #[tokio::test]
    async fn a_failed_fetch_is_not_repeated_within_five_seconds() {
        let (keys, clock) = cache();
        let provider = Provider::answering(&["a"]);
        provider.is_down();
        for (after, n_fetches) in [(0, 1), (0, 1), (4, 1), (1, 2), (4, 2)] {
            clock.advance(seconds(after));
            let result = keys.get(URL, Some("a"), &provider).await;
            assert_eq!(result.map(|it| it.len()), Err(Reason::KeysUnavailable));
            assert_eq!(provider.n_fetches(), n_fetches);
        }
        provider.answers(&["a"], None);
        clock.advance(seconds(1));
        assert!(keys.get(URL, Some("a"), &provider).await.is_ok());
    }

    #[tokio::test]
    async fn a_document_that_is_no_key_set_is_a_failure() {
        let (keys, clock) = cache();
        let provider = Provider::answering(&["a"]);
        assert!(keys.get(URL, Some("a"), &provider).await.is_ok());
        clock.advance(seconds(600));
        provider.answers_text("<html>");
        assert!(keys.get(URL, Some("a"), &provider).await.is_ok(), "the keys from before serve on");
        assert_eq!(provider.n_fetches(), 2);
    }

    #[tokio::test]
    async fn keys_serve_for_a_day_when_their_source_is_down() {
        let (keys, clock) = cache();
        let provider = Provider::answering(&["a"]);
        assert!(keys.get(URL, Some("a"), &provider).await.is_ok());
        provider.is_down();
        clock.advance(seconds(600));
        assert!(keys.get(URL, Some("a"), &provider).await.is_ok());
        assert!(keys.get(URL, None, &provider).await.is_ok());
        let unknown = keys.get(URL, Some("b"), &provider).await;
        assert_eq!(unknown.map(|it| it.len()), Err(Reason::KeysUnavailable), "the key may exist by now");
        assert_eq!(provider.n_fetches(), 2);

        clock.advance(seconds(86_399));
        assert!(keys.get(URL, Some("a"), &provider).await.is_ok());
        clock.advance(seconds(1));
        let result = keys.get(URL, Some("a"), &provider).await;
        assert_eq!(result.map(|it| it.len()), Err(Reason::KeysUnavailable));

        provider.answers(&["a"], None);
        clock.advance(seconds(5));
        assert!(keys.get(URL, Some("a"), &provider).await.is_ok());
    }

    #[tokio::test]
    async fn an_unknown_key_is_unavailable_while_the_source_of_fresh_keys_is_down() {
        let (keys, clock) = cache();
        let provider = Provider::answering(&["a"]);
        assert!(keys.get(URL, Some("a"), &provider).await.is_ok());
        provider.is_down();
        clock.advance(seconds(30));
        for _ in 0..10 {
            let result = keys.get(URL, Some("b"), &provider).await;
            assert_eq!(result.map(|it| it.len()), Err(Reason::KeysUnavailable));
        }
        assert!(keys.get(URL, Some("a"), &provider).await.is_ok());
        assert_eq!(provider.n_fetches(), 2);
    }

    #[tokio::test]
    async fn nobody_waits_for_a_slow_source_who_has_keys_that_serve() {
        let (keys, clock) = cache();
        let (keys, provider) = (Arc::new(keys), Arc::new(Provider::slow(&["a"])));
        provider.release();
        assert!(keys.get(URL, Some("a"), &*provider).await.is_ok());
        clock.advance(seconds(600));
        let first = {
            let (keys, provider) = (keys.clone(), provider.clone());
            tokio::spawn(async move { keys.get(URL, Some("a"), &*provider).await.is_ok() })
        };
        while provider.n_fetches() < 2 {
            tokio::task::yield_now().await;
        }
        assert!(keys.get(URL, Some("a"), &*provider).await.is_ok());
        provider.release();
        assert!(first.await.expect("no call panics"));
        assert_eq!(provider.n_fetches(), 2);
    }

    #[tokio::test]
    async fn a_source_that_never_answers_is_given_up() {
        let (keys, clock) = cache();
        let provider = Provider::slow(&["a"]);
        let mut call = std::pin::pin!(keys.get(URL, Some("a"), &provider));
        assert!(is_pending(&mut call).await);
        clock.advance(LONGEST_FETCH);
        assert_eq!(call.await.map(|it| it.len()), Err(Reason::KeysUnavailable));
    }

    #[tokio::test]
    async fn the_next_caller_takes_over_from_one_that_was_dropped_but_not_without_end() {
        let (keys, clock) = cache();
        let provider = Provider::slow(&["a"]);
        for n in 1..=100 {
            let mut call = Box::pin(keys.get(URL, Some("a"), &provider));
            assert_eq!(is_pending(&mut call.as_mut()).await, n <= 3);
            drop(call);
        }
        assert_eq!(provider.n_fetches(), 3);

        clock.advance(PAUSE);
        provider.release();
        assert!(keys.get(URL, Some("a"), &provider).await.is_ok());
        assert_eq!(provider.n_fetches(), 4);
    }

    #[tokio::test]
    async fn a_waiting_caller_takes_over_from_one_that_was_dropped() {
        let (keys, _clock) = cache();
        let provider = Provider::slow(&["a"]);
        let mut first = Box::pin(keys.get(URL, Some("a"), &provider));
        assert!(is_pending(&mut first.as_mut()).await);
        let mut second = Box::pin(keys.get(URL, Some("a"), &provider));
        assert!(is_pending(&mut second.as_mut()).await);
        drop(first);
        provider.release();
        assert!(second.await.is_ok());
        assert_eq!(provider.n_fetches(), 2);
    }

    #[tokio::test]
    async fn the_least_recently_used_of_65_urls_goes() {
        let (keys, _clock) = cache();
        let provider = Provider::answering(&["a"]);
        let get = async |n: usize| {
            assert!(keys.get(&format!("https://issuer.example/{n}"), Some("a"), &provider).await.is_ok());
            provider.n_fetches()
        };
        for n in 0..64 {
            assert_eq!(get(n).await, n + 1);
        }
        assert_eq!(get(0).await, 64);
        assert_eq!(get(64).await, 65); // instead of 1
        assert_eq!(get(0).await, 65);
        assert_eq!(get(2).await, 65);
        assert_eq!(get(1).await, 66);
    }

    #[tokio::test]
    async fn a_discovery_document_is_kept_and_must_be_of_its_issuer() {
        let check = async |issuer: &str, document: &str, expected: Option<&str>| {
            let (keys, _clock) = cache();
            let provider = Provider::answering(&[]);
            provider.answers_text(document);
            for _ in 0..2 {
                let result = keys.discover(issuer, &provider).await;
                assert_eq!(result.as_ref().ok().map(|it| it.jwks_uri.as_str()), expected, "{document}");
            }
            assert_eq!(provider.n_fetches(), 1);
        };
        let good = r#"{"issuer":"https://a.example/realm","jwks_uri":"https://a.example/keys","x":[1]}"#;
        check("https://a.example/realm", good, Some("https://a.example/keys")).await;
        check("https://a.example/realm/", good, Some("https://a.example/keys")).await;
        check("https://b.example/realm", good, None).await;
        check("https://a.example", r#"{"issuer":"https://a.example"}"#, None).await;
        check("https://a.example", r#"{"issuer":"https://a.example","jwks_uri":"file:///etc/passwd"}"#, None)
            .await;
        check("https://a.example", r#"{"jwks_uri":"https://a.example/keys"}"#, None).await;
        check("https://a.example", "[]", None).await;
        check("https://a.example", &format!("{{\"issuer\":\"{}\"}}", "a".repeat(LARGEST)), None).await;
    }

    #[test]
    fn max_age_is_read_from_cache_control() {
        let check =
            |text: &str, expected: Option<u64>| assert_eq!(max_age(text), expected.map(seconds), "{text}");
        check("max-age=3600", Some(3600));
        check("public, Max-Age=60, must-revalidate", Some(60));
        check("max-age=\"60\"", Some(60));
        check("max-age=99999999999999999999999", Some(u32::MAX.into()));
        check("no-cache, max-age=60", Some(0));
        check("max-age=60, no-store", Some(0));
        check("s-maxage=60", None);
        check("max-age=-1", None);
        check("max-age=", None);
        check("", None);
    }

    async fn is_pending<F: Future + Unpin>(future: &mut F) -> bool {
        std::future::poll_fn(|cx| {
            std::task::Poll::Ready(std::pin::Pin::new(&mut *future).poll(cx).is_pending())
        })
        .await
    }
}
