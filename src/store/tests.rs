//! The store at both places by one table, and what becomes of it when the server is away.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use futures_util::FutureExt;

use super::*;

/// A real server in a directory of its own; it listens on a socket there, keeps nothing on disk and is killed
/// with the test.
struct Server {
    dir: PathBuf,
    child: Child,
}

impl Server {
    fn start() -> Server {
        static N_SERVERS: AtomicU32 = AtomicU32::new(0);
        let n = N_SERVERS.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("streamgate-store-{}-{n}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("a directory for the test");
        let child = Server::at(&dir);
        Server { dir, child }
    }

    fn at(dir: &std::path::Path) -> Child {
        let mut child = Command::new("redis-server")
            .current_dir(dir)
            .args(["--port", "0", "--unixsocket", "redis.sock", "--save", "", "--appendonly", "no"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("redis-server is installed by `make test`");
        let mut lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
        let is_ready = |line: std::io::Result<String>| {
            line.is_ok_and(|it| it.to_lowercase().contains("ready to accept connections"))
        };
        assert!(lines.any(is_ready), "redis-server starts");
        std::thread::spawn(move || lines.for_each(drop));
        child
    }

    fn kill(&mut self) {
        self.child.kill().expect("it can be killed");
        self.child.wait().expect("it ends");
    }

    fn restart(&mut self) {
        self.child = Server::at(&self.dir);
    }

    fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status();
        assert!(sent.expect("kill can be started").success());
    }

    fn client(&self) -> ::redis::Client {
        let socket = self.dir.join("redis.sock");
        ::redis::Client::open(format!("redis+unix://{}", socket.display())).expect("a URL")
    }

    fn store(&self, clock: &Clock) -> Store {
        Store::in_redis(self.client(), TIMEOUT, clock).expect("it can be made")
    }

    /// Asks it something past the store.
    async fn ask<T: ::redis::FromRedisValue>(&self, command: &[&str]) -> T {
        let mut connection = self.client().get_multiplexed_async_connection().await.expect("it is there");
        let mut asked = ::redis::Cmd::new();
        asked.arg(command);
        asked.query_async(&mut connection).await.unwrap_or_else(|it| panic!("{it}"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
        drop(std::fs::remove_dir_all(&self.dir));
    }
}

/// Runs a check on a store in memory and on one in Redis, with a clock that stands still.
async fn both(check: impl AsyncFn(&Store)) {
    let server = Server::start();
    check(&Store::in_memory(1000)).await;
    check(&server.store(&Clock::system())).await;
}

const NOW: f64 = 1_800_000_000.5;
/// Long: a busy machine is no failure.
const TIMEOUT: Duration = Duration::from_secs(20);

const MINUTE: Duration = Duration::from_secs(60);

#[tokio::test]
async fn a_value_is_what_was_set_last() {
    both(async |store| {
        let get = async |name| store.get(NOW, name).await.expect("it is there");
        assert_eq!(get(b"n").await, None);
        for value in [&b"one"[..], b"", b"\0\xff\r\n", &[b'x'; VALUE_MAX]] {
            store.set(NOW, b"n", value, None).await.expect("it is there");
            assert_eq!(get(b"n").await.as_deref(), Some(value));
        }
        store.set(NOW, b"plugin\0\xff\r\n", b"two", Some(MINUTE)).await.expect("it is there");
        assert_eq!(get(b"plugin\0\xff\r\n").await.as_deref(), Some(&b"two"[..]));
        store.delete(b"n").await.expect("it is there");
        store.delete(b"n").await.expect("it is there");
        assert_eq!(get(b"n").await, None);
    })
    .await;
}

#[tokio::test]
async fn add_keeps_what_is_there() {
    both(async |store| {
        let add = async |value, ttl| store.add(NOW, b"n", value, ttl).await.expect("it is there");
        assert!(add(b"one", Some(MINUTE)).await);
        assert!(!add(b"two", Some(MINUTE)).await);
        assert!(!add(b"two", None).await);
        assert_eq!(store.get(NOW, b"n").await, Ok(Some("one".into())));
        store.delete(b"n").await.expect("it is there");
        assert!(add(b"two", None).await);
    })
    .await;
}

#[tokio::test]
async fn a_counter_is_a_value_in_decimal_notation_of_64_bits() {
    both(async |store| {
        let incr = async |by| store.incr(NOW, b"n", by, Some(MINUTE)).await.expect("it is there");
        let set = async |value: &str| {
            store.set(NOW, b"n", value.as_bytes(), None).await.expect("it is there");
        };
        assert_eq!(incr(5).await, Count::At(5));
        assert_eq!(incr(-7).await, Count::At(-2));
        assert_eq!(store.get(NOW, b"n").await, Ok(Some("-2".into())));
        assert_eq!(incr(0).await, Count::At(-2));
        set("9223372036854775806").await;
        assert_eq!(incr(1).await, Count::At(i64::MAX));
        assert_eq!(incr(1).await, Count::Overflow);
        assert_eq!(incr(i64::MIN).await, Count::At(-1));
        assert_eq!(incr(i64::MIN).await, Count::Overflow);
        assert_eq!(store.get(NOW, b"n").await, Ok(Some("-1".into())));
        for text in ["", "x", "1.5", "007", "+1", "-0", " 1", "1 ", "9223372036854775808"] {
            set(text).await;
            assert_eq!(incr(1).await, Count::NoInteger, "{text:?}");
            assert_eq!(store.get(NOW, b"n").await, Ok(Some(Bytes::from_static(text.as_bytes()))));
        }
    })
    .await;
}

#[tokio::test]
async fn a_rate_allows_a_burst_and_says_when_more_is_allowed() {
    both(async |store| {
        let slow = Rate::new(36.0, 3600.0, 3.0).expect("it is sound");
        let take = async |rate| store.take(NOW, b"n", rate).await.expect("it is there");
        for remaining in [2, 1, 0] {
            assert_eq!(take(slow).await, Verdict { allowed: true, retry_after: 0.0, remaining });
        }
        for _ in 0..3 {
            let refused = take(slow).await;
            assert!(!refused.allowed && refused.remaining == 0);
            assert!(refused.retry_after > 90.0 && refused.retry_after <= 100.0, "{refused:?}");
        }
        let larger = take(Rate::new(36.0, 3600.0, 5.0).expect("it is sound")).await;
        assert_eq!(
            (larger.allowed, larger.remaining),
            (true, 1),
            "what was taken counts when the rate is changed"
        );
        let fast = Rate::new(1e9, 1.0, 1e9).expect("it is sound");
        assert!(store.take(NOW, b"m", fast).await.expect("it is there").allowed);
    })
    .await;
}

#[tokio::test]
async fn there_are_as_many_leases_as_the_limit_and_a_holder_keeps_its_own() {
    both(async |store| {
        let take = async |holder: &[u8], limit| {
            store.lease_take(NOW, b"n", holder, limit, MINUTE).await.expect("it is there")
        };
        assert!(!take(b"a", 0).await);
        assert_eq!(store.lease_count(NOW, b"n").await, Ok(0));
        assert!(take(b"a", 2).await && take(b"\0\xff", 2).await && !take(b"c", 2).await);
        assert!(take(b"a", 2).await && take(b"a", 1).await, "it has one");
        assert_eq!(store.lease_count(NOW, b"n").await, Ok(2));
        store.lease_release(NOW, b"n", b"nobody");
        store.lease_release(NOW, b"n", b"\0\xff");
        while store.lease_count(NOW, b"n").await != Ok(1) {
            tokio::task::yield_now().await; // it did not wait
        }
        assert!(take(b"c", 2).await && !take(b"d", 2).await);
    })
    .await;
}

#[tokio::test]
async fn a_value_a_rate_and_a_lease_of_one_name_do_not_meet() {
    both(async |store| {
        let rate = Rate::new(1.0, 100.0, 1.0).expect("it is sound");
        store.set(NOW, b"n", b"value", None).await.expect("it is there");
        assert!(store.take(NOW, b"n", rate).await.expect("it is there").allowed);
        assert_eq!(store.lease_take(NOW, b"n", b"a", 1, MINUTE).await, Ok(true));
        store.delete(b"n").await.expect("it is there");
        assert!(!store.take(NOW, b"n", rate).await.expect("it is there").allowed);
        assert_eq!(store.lease_count(NOW, b"n").await, Ok(1));
    })
    .await;
}

#[test]
fn a_rate_that_makes_no_sense_is_refused() {
    assert!(Rate::new(0.001, 1.0, 1.0).is_some());
    for (rate, per, burst) in [
        (0.0, 1.0, 1.0),
        (-1.0, -1.0, 1.0),
        (1.0, 0.0, 1.0),
        (1.0, 1.0, 0.0),
        (1.0, 1.0, 1.5),
        (1.0, 1.0, 2e9),
        (1.0, 1e9, 1.0),
        (f64::NAN, 1.0, 1.0),
        (f64::INFINITY, 1.0, 1.0),
        (1.0, f64::INFINITY, 1.0),
        (1.0, 1.0, f64::NAN),
        (1e300, 1e-300, 1.0),
    ] {
        assert_eq!(Rate::new(rate, per, burst), None, "{rate} in {per}, {burst} at once");
    }
}

#[test]
fn a_store_in_memory_answers_at_once() {
    let store = Store::in_memory(10);
    assert!(store.set(NOW, b"n", b"v", None).now_or_never().is_some());
    assert!(store.get(NOW, b"n").now_or_never().is_some());
    assert!(store.lease_take(NOW, b"n", b"a", 1, MINUTE).now_or_never().is_some());
}

#[tokio::test]
async fn what_is_in_redis_ends_by_itself() {
    let server = Server::start();
    let store = server.store(&Clock::system());
    let left =
        async |kind: &str| -> i64 { server.ask(&["PTTL", &format!("streamgate:store:{kind}:n")]).await };
    let is_about = |left: i64, ttl: i64| left > ttl - 50_000 && left <= ttl;
    store.set(NOW, b"n", b"v", Some(MINUTE)).await.expect("it is there");
    assert!(is_about(left("value").await, 60_000));
    store.set(NOW, b"n", b"v", None).await.expect("it is there");
    assert_eq!(left("value").await, -1);
    store.delete(b"n").await.expect("it is there");
    store.add(NOW, b"n", b"v", Some(2 * MINUTE)).await.expect("it is there");
    assert!(is_about(left("value").await, 120_000));
    store.add(NOW, b"n", b"v", Some(9 * MINUTE)).await.expect("it is there");
    assert!(is_about(left("value").await, 120_000));
    store.delete(b"n").await.expect("it is there");
    store.incr(NOW, b"n", 1, Some(MINUTE)).await.expect("it is there");
    store.incr(NOW, b"n", 1, Some(9 * MINUTE)).await.expect("it is there");
    store.incr(NOW, b"n", 1, None).await.expect("it is there");
    assert!(is_about(left("value").await, 60_000), "from its beginning");
    store.delete(b"n").await.expect("it is there");
    store.incr(NOW, b"n", 1, None).await.expect("it is there");
    store.incr(NOW, b"n", 1, Some(MINUTE)).await.expect("it is there");
    assert_eq!(left("value").await, -1);
    store.set(NOW, b"n", b"v", Some(Duration::MAX)).await.expect("it is bounded");

    let rate = Rate::new(1.0, 100.0, 3.0).expect("it is sound");
    for ttl in [100_000, 200_000, 300_000, 300_000] {
        store.take(NOW, b"n", rate).await.expect("it is there");
        assert!(is_about(left("rate").await, ttl), "when nothing is left of what was taken");
    }

    store.lease_take(NOW, b"n", b"a", 9, 2 * MINUTE).await.expect("it is there");
    assert!(is_about(left("lease").await, 120_000));
    store.lease_take(NOW, b"n", b"b", 9, MINUTE).await.expect("it is there");
    assert!(is_about(left("lease").await, 120_000), "with the last");
    store.lease_take(NOW, b"n", b"b", 9, 3 * MINUTE).await.expect("it is there");
    assert!(is_about(left("lease").await, 180_000));
}

#[tokio::test]
async fn a_lease_in_redis_that_has_ended_is_not_counted_and_makes_room() {
    let server = Server::start();
    let store = server.store(&Clock::system());
    store.lease_take(NOW, b"n", b"a", 2, MINUTE).await.expect("it is there");
    store.lease_take(NOW, b"n", b"b", 2, MINUTE).await.expect("it is there");
    // As if it had been taken long ago.
    let changed: i64 = server.ask(&["ZADD", "streamgate:store:lease:n", "CH", "1000", "a"]).await;
    assert_eq!((changed, store.lease_count(NOW, b"n").await), (1, Ok(1)));
    assert_eq!(store.lease_take(NOW, b"n", b"c", 2, MINUTE).await, Ok(true));
    assert_eq!(store.lease_take(NOW, b"n", b"a", 2, MINUTE).await, Ok(false));
}

#[tokio::test]
async fn a_rate_in_redis_decides_as_the_one_in_memory() {
    let server = Server::start();
    let (redis, memory) = (server.store(&Clock::system()), Store::in_memory(10));
    // The server's time cannot be set, but what it has noted can be made older. An interval is a thousand
    // seconds and all waits are quarters of it, so that the time this test takes changes no verdict.
    let rate = Rate::new(1.0, 1000.0, 4.0).expect("it is sound");
    let (mut now, mut random) = (NOW, 7_u64);
    for step in 0..500 {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let wait = [0, 0, 250, 500, 750, 1000, 1250, 4000][(random >> 61) as usize];
        now += f64::from(wait);
        let age = "local state = redis.call('GET', KEYS[1])
            if not state then return end
            local at, level = string.match(state, '^(%d+) (.+)$')
            redis.call('SET', KEYS[1], string.format('%.0f %s', at - ARGV[1] * 1000000, level), 'KEEPTTL')";
        let () = server.ask(&["EVAL", age, "1", "streamgate:store:rate:n", &wait.to_string()]).await;
        let (a, b) = (redis.take(now, b"n", rate).await, memory.take(now, b"n", rate).await);
        let (a, b) = (a.expect("it is there"), b.expect("it is there"));
        assert_eq!((a.allowed, a.remaining), (b.allowed, b.remaining), "step {step}");
        assert!((a.retry_after - b.retry_after).abs() < 100.0, "step {step}: {a:?} {b:?}");
    }
}

#[tokio::test]
async fn replicas_share_counters_rates_and_leases() {
    let server = Server::start();
    let stores: Vec<Arc<Store>> = (0..4).map(|_| Arc::new(server.store(&Clock::system()))).collect();
    let rate = Rate::new(30.0, 1e5, 30.0).expect("it is sound");
    let tasks: Vec<_> = (0..4_u8)
        .map(|replica| {
            let store = Arc::clone(&stores[usize::from(replica)]);
            // Their clocks do not agree, and that does not matter.
            let now = NOW + 1e6 * f64::from(replica);
            tokio::spawn(async move {
                let mut n = (0, 0);
                for i in 0..50 {
                    store.incr(now, b"n", 1, Some(MINUTE)).await.expect("it is there");
                    let taken = store.take(now, b"n", rate).await.expect("it is there");
                    let lease = store.lease_take(now, b"n", &[replica, i], 20, MINUTE).await;
                    n.0 += u32::from(taken.allowed);
                    n.1 += u32::from(lease.expect("it is there"));
                }
                n
            })
        })
        .collect();
    let mut sum = (0, 0);
    for task in tasks {
        let n = task.await.expect("no task panics");
        sum = (sum.0 + n.0, sum.1 + n.1);
    }
    assert_eq!(sum, (30, 20));
    assert_eq!(stores[0].incr(NOW, b"n", 0, None).await, Ok(Count::At(200)));
    assert_eq!(stores[1].lease_count(NOW, b"n").await, Ok(20));
}

#[tokio::test]
async fn a_server_that_was_killed_is_left_alone_for_a_second_and_then_used_again() {
    let mut server = Server::start();
    let clock = Clock::paused();
    let store = server.store(&clock);
    assert_eq!(store.set(NOW, b"n", b"v", None).await, Ok(()));
    server.kill();
    assert_eq!(store.get(NOW, b"n").await, Err(Unavailable));
    server.restart();
    for _ in 0..3 {
        assert_eq!(store.get(NOW, b"n").await, Err(Unavailable), "it is not asked");
    }
    clock.advance(Duration::from_millis(999));
    assert_eq!(store.lease_count(NOW, b"n").now_or_never(), Some(Err(Unavailable)));
    clock.advance(Duration::from_millis(1));
    assert_eq!(store.get(NOW, b"n").await, Ok(None), "a new one");
    assert_eq!(store.incr(NOW, b"n", 1, None).await, Ok(Count::At(1)));
    assert!(store.queue_push(b"n", "queues have nothing to do with it"));
}

#[tokio::test]
async fn a_server_that_was_never_there_is_used_when_it_comes() {
    let mut server = Server::start();
    server.kill();
    let clock = Clock::paused();
    let store = server.store(&clock);
    for _ in 0..3 {
        assert_eq!(store.get(NOW, b"n").await, Err(Unavailable));
        clock.advance(Duration::from_secs(1));
    }
    server.restart();
    assert_eq!(store.get(NOW, b"n").await, Ok(None));
}

#[tokio::test]
async fn nobody_waits_for_longer_than_the_timeout() {
    let server = Server::start();
    let clock = Clock::paused();
    let store = server.store(&clock);
    assert_eq!(store.get(NOW, b"n").await, Ok(None));
    server.signal("STOP");
    let mut waits = std::pin::pin!(store.get(NOW, b"n"));
    assert_eq!(waits.as_mut().now_or_never(), None);
    clock.advance(TIMEOUT);
    assert_eq!(waits.await, Err(Unavailable));
    assert_eq!(store.get(NOW, b"n").now_or_never(), Some(Err(Unavailable)));
    server.signal("CONT");
    clock.advance(Duration::from_secs(1));
    assert_eq!(store.get(NOW, b"n").await, Ok(None));
}
