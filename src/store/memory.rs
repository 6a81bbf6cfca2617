//! The store in this process: bounded maps in which the least recently used make room, and queues.
//!
//! Why no cache of a library: `moka` reads its own clock, is over its bounds for a while, and may refuse a
//! new entry in favour of a popular one, so that a counter would be lost that has just begun; `governor` has
//! one rate for all keys and never forgets one by itself. `lru` does the part that is hard, the order of use;
//! the rest, ends and bounds, is here.
//!
//! One lock for each kind is enough: with 100,000 entries an operation holds it for about a microsecond, two
//! threads that do nothing else get half a million done in a second, and a worker comes here a few times for
//! a session. Shards would cut the bounds into pieces, and with them the number of leases that one name can
//! have.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::hash::RandomState;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use lru::LruCache;

use crate::store::{Count, Rate, SLACK, Verdict, millis};

/// Values, rates and leases. They do not push each other out: a flood of new names is no way to be rid of a
/// lease.
pub(super) struct Memory {
    values: Mutex<Table<Bytes>>,
    rates: Mutex<Table<Level>>,
    leases: Mutex<Table<Leases>>,
}

/// A map with ends and bounds.
struct Table<V> {
    /// In the order of use. Hashed with a key of our own: names come from outside.
    slots: LruCache<Arc<[u8]>, Slot<V>, RandomState>,
    /// The names of those that end, in the order of their ends.
    ends: BTreeSet<(u64, Arc<[u8]>)>,
    /// What all of them weigh, and may weigh.
    weight: Weight,
    bounds: Weight,
}

struct Slot<V> {
    value: V,
    /// In microseconds, or [`NEVER`]: it is not there any more from then on.
    end: u64,
    /// When it was put.
    weight: Weight,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Weight {
    entries: usize,
    bytes: usize,
}

trait Weigh {
    /// Without its name.
    fn weigh(&self) -> Weight;
}

/// How full a bucket is that leaks evenly, one cell an interval, and was looked at in microseconds `at`. This
/// is the continuous-state leaky bucket, the second of the two equivalent forms of GCRA in ITU-T I.371, annex
/// A. It is better here than the theoretical arrival time: it stays small, so that an `f64` is exact enough,
/// and it keeps its meaning when the rate is changed.
#[derive(Clone, Copy)]
struct Level {
    at: u64,
    level: f64,
}

/// The leases of a name.
#[derive(Default)]
struct Leases {
    ends: HashMap<Arc<[u8]>, u64>,
    in_order: BTreeSet<(u64, Arc<[u8]>)>,
    /// Of the holders' names.
    bytes: usize,
}

/// The queues of all plugins.
#[derive(Default)]
pub(super) struct Queues {
    all: Mutex<AllQueues>,
    dropped: AtomicU64,
}

#[derive(Default)]
struct AllQueues {
    /// Those that are not empty.
    queues: HashMap<Box<[u8]>, Queue>,
    bytes: usize,
}

#[derive(Default)]
struct Queue {
    entries: VecDeque<Vec<u8>>,
    bytes: usize,
}

/// The end of what has none.
const NEVER: u64 = u64::MAX;

/// Bytes that the entries of one kind may have, with what it takes to keep them.
const BYTES_MAX: usize = 128 << 20;

/// Bytes that it takes to keep an entry or a lease, beside name and value: nodes of a map, a list and a tree,
/// and the heads of what is allocated.
const OVERHEAD: usize = 200;

/// How many that have ended are looked for by each operation that may add one: more than it adds, so that
/// they get fewer.
const SWEEP: usize = 8;

/// Of one queue.
const QUEUE_ENTRIES: usize = 1000;
const QUEUE_BYTES: usize = 8 << 20;

/// Of all queues.
const QUEUES: usize = 1000;
const QUEUES_BYTES: usize = 64 << 20;

/// Bytes that it takes to keep an entry of a queue, beside its text.
const QUEUE_OVERHEAD: usize = 32;

impl Memory {
    pub(super) fn new(entries: usize) -> Memory {
        let bounds = Weight { entries: entries.max(1), bytes: BYTES_MAX };
        Memory {
            values: Mutex::new(Table::new(bounds)),
            rates: Mutex::new(Table::new(bounds)),
            leases: Mutex::new(Table::new(bounds)),
        }
    }

    pub(super) fn get(&self, now: f64, name: &[u8]) -> Option<Bytes> {
        lock(&self.values).get(micros(now), name).map(|it| it.value.clone())
    }

    pub(super) fn set(&self, now: f64, name: &[u8], value: &[u8], ttl: Option<Duration>) {
        let (now, value) = (micros(now), Bytes::copy_from_slice(value));
        lock(&self.values).put(now, name, value, end(now, ttl));
    }

    pub(super) fn add(&self, now: f64, name: &[u8], value: &[u8], ttl: Option<Duration>) -> bool {
        let (now, value) = (micros(now), Bytes::copy_from_slice(value));
        let mut values = lock(&self.values);
        let is_new = values.get(now, name).is_none();
        if is_new {
            values.put(now, name, value, end(now, ttl));
        }
        is_new
    }

    pub(super) fn delete(&self, name: &[u8]) {
        lock(&self.values).remove(name);
    }

    pub(super) fn incr(&self, now: f64, name: &[u8], by: i64, ttl: Option<Duration>) -> Count {
        let now = micros(now);
        let mut values = lock(&self.values);
        let (before, end) = match values.get(now, name) {
            None => (0, end(now, ttl)),
            Some(slot) => match integer(&slot.value) {
                Some(value) => (value, slot.end),
                None => return Count::NoInteger,
            },
        };
        let Some(value) = before.checked_add(by) else { return Count::Overflow };
        values.put(now, name, value.to_string().into(), end);
        Count::At(value)
    }

    pub(super) fn take(&self, now: f64, name: &[u8], rate: Rate) -> Verdict {
        let now = micros(now);
        let mut rates = lock(&self.rates);
        let before = rates.get(now, name).map(|it| it.value);
        let (verdict, after) = Level::take(before, now, rate);
        if let Some(after) = after {
            let full = Duration::from_micros((after.level * rate.interval).ceil() as u64);
            rates.put(now, name, after, end(now, Some(full)));
        }
        verdict
    }

    pub(super) fn lease_take(&self, now: f64, name: &[u8], holder: &[u8], limit: u32, ttl: Duration) -> bool {
        let now = micros(now);
        let mut table = lock(&self.leases);
        let limit = table.bounds.entries.min(limit as usize);
        let mut leases = table.get(now, name).map(|slot| std::mem::take(&mut slot.value)).unwrap_or_default();
        leases.sweep(now);
        let has_it = leases.ends.contains_key(holder) || leases.ends.len() < limit;
        if has_it {
            leases.prolong(holder, end(now, Some(ttl)));
        }
        table.put_leases(now, name, leases);
        has_it
    }

    pub(super) fn lease_release(&self, now: f64, name: &[u8], holder: &[u8]) {
        let now = micros(now);
        let mut table = lock(&self.leases);
        if let Some(slot) = table.get(now, name) {
            let mut leases = std::mem::take(&mut slot.value);
            leases.remove(holder);
            table.put_leases(now, name, leases);
        }
    }

    pub(super) fn lease_count(&self, now: f64, name: &[u8]) -> u64 {
        let now = micros(now);
        lock(&self.leases).get(now, name).map_or(0, |slot| {
            slot.value.sweep(now);
            slot.value.ends.len() as u64
        })
    }
}

impl<V: Weigh> Table<V> {
    fn new(bounds: Weight) -> Table<V> {
        let slots = LruCache::unbounded_with_hasher(RandomState::new());
        Table { slots, ends: BTreeSet::new(), weight: Weight::default(), bounds }
    }

    /// What is there, which is now the most recently used.
    fn get(&mut self, now: u64, name: &[u8]) -> Option<&mut Slot<V>> {
        if self.slots.peek(name)?.end <= now {
            self.remove(name);
            return None;
        }
        self.slots.get_mut(name)
    }

    /// Keeps it, and makes room for it.
    fn put(&mut self, now: u64, name: &[u8], value: V, end: u64) {
        let mut weight = value.weigh();
        weight.bytes += name.len() + OVERHEAD;
        let name = match self.slots.get_key_value_mut(name) {
            Some((name, slot)) => {
                self.weight.sub(slot.weight);
                if slot.end != end {
                    self.ends.remove(&(slot.end, Arc::clone(name)));
                }
                let is_listed = slot.end == end || end == NEVER;
                *slot = Slot { value, end, weight };
                (!is_listed).then(|| Arc::clone(name))
            }
            None => {
                let name: Arc<[u8]> = name.into();
                self.slots.put(Arc::clone(&name), Slot { value, end, weight });
                (end != NEVER).then_some(name)
            }
        };
        self.ends.extend(name.map(|it| (end, it)));
        self.weight.add(weight);
        for _ in 0..SWEEP {
            if !self.remove_ended(now) {
                break;
            }
        }
        while self.weight.exceeds(self.bounds) {
            if self.remove_ended(now) {
                continue;
            }
            let Some((name, slot)) = self.slots.pop_lru() else { break };
            self.forget(name, slot.end, slot.weight);
        }
    }

    fn remove(&mut self, name: &[u8]) {
        if let Some((name, slot)) = self.slots.pop_entry(name) {
            self.forget(name, slot.end, slot.weight);
        }
    }

    /// Removes one that has ended; false when there is none.
    fn remove_ended(&mut self, now: u64) -> bool {
        let Some((end, name)) = self.ends.first() else { return false };
        if *end > now {
            return false;
        }
        let name = Arc::clone(name);
        self.remove(&name);
        true
    }

    /// One that is no longer in the slots.
    fn forget(&mut self, name: Arc<[u8]>, end: u64, weight: Weight) {
        self.weight.sub(weight);
        if end != NEVER {
            self.ends.remove(&(end, name));
        }
    }
}

impl Table<Leases> {
    /// The name lives as long as the last of its leases.
    fn put_leases(&mut self, now: u64, name: &[u8], leases: Leases) {
        match leases.in_order.last().map(|(end, _)| *end) {
            Some(end) => self.put(now, name, leases, end),
            None => self.remove(name),
        }
    }
}

impl Level {
    /// The verdict, and the new level when it is to be kept. `TAKE` in `redis.rs` does the same.
    fn take(before: Option<Level>, now: u64, rate: Rate) -> (Verdict, Option<Level>) {
        let before = before.unwrap_or(Level { at: now, level: 0.0 });
        let leaked = now.saturating_sub(before.at) as f64 / rate.interval;
        let mut level = (before.level - leaked).max(0.0);
        let allowed = level + 1.0 <= rate.burst + SLACK;
        let mut retry_after = 0.0;
        if allowed {
            level += 1.0;
        } else {
            // A thousandth less, as the slack of a whole number; then up, as whoever comes a microsecond too
            // early is refused.
            retry_after = ((level + 1.0 - rate.burst) * rate.interval - 1e-3).ceil().max(1.0);
        }
        let remaining = (rate.burst - level + SLACK).floor().max(0.0) as u64;
        // A clock that was set back is followed at once, or nothing would leak until it is where it was.
        let after = (allowed || now < before.at).then_some(Level { at: now, level });
        (Verdict { allowed, retry_after: retry_after / 1e6, remaining }, after)
    }
}

impl Leases {
    fn prolong(&mut self, holder: &[u8], end: u64) {
        let known = self.ends.get_key_value(holder).map(|(holder, end)| (*end, Arc::clone(holder)));
        let holder = match known {
            Some(before) => {
                self.in_order.remove(&before);
                before.1
            }
            None => {
                self.bytes += holder.len();
                holder.into()
            }
        };
        self.ends.insert(Arc::clone(&holder), end);
        self.in_order.insert((end, holder));
    }

    fn remove(&mut self, holder: &[u8]) {
        if let Some((holder, end)) = self.ends.remove_entry(holder) {
            self.bytes -= holder.len();
            self.in_order.remove(&(end, holder));
        }
    }

    /// Removes those that have ended.
    fn sweep(&mut self, now: u64) {
        while let Some((end, _)) = self.in_order.first()
            && *end <= now
            && let Some((_, holder)) = self.in_order.pop_first()
        {
            self.ends.remove(&holder);
            self.bytes -= holder.len();
        }
    }
}

impl Queues {
    pub(super) fn push(&self, name: &[u8], mut text: Vec<u8>) -> bool {
        text.shrink_to_fit(); // what is not text is not counted
        let weight = text.len() + QUEUE_OVERHEAD;
        let is_done = lock(&self.all).push(name, text, weight);
        if !is_done {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        is_done
    }

    pub(super) fn pop(&self, name: &[u8], n: usize) -> Vec<Vec<u8>> {
        let mut all = lock(&self.all);
        let all = &mut *all;
        let Some(queue) = all.queues.get_mut(name) else { return Vec::new() };
        let taken: Vec<Vec<u8>> = queue.entries.drain(..n.min(queue.entries.len())).collect();
        let weight: usize = taken.iter().map(|it| it.len() + QUEUE_OVERHEAD).sum();
        queue.bytes -= weight;
        all.bytes -= weight;
        if queue.entries.is_empty() {
            all.queues.remove(name);
        }
        taken
    }

    pub(super) fn size(&self, name: &[u8]) -> usize {
        lock(&self.all).queues.get(name).map_or(0, |it| it.entries.len())
    }

    #[cfg(test)]
    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

impl AllQueues {
    fn push(&mut self, name: &[u8], text: Vec<u8>, weight: usize) -> bool {
        let n_queues = self.queues.len();
        let has_room = match self.queues.get(name) {
            Some(queue) => queue.entries.len() < QUEUE_ENTRIES && queue.bytes + weight <= QUEUE_BYTES,
            None => n_queues < QUEUES && weight <= QUEUE_BYTES,
        };
        if !has_room || self.bytes + weight > QUEUES_BYTES {
            return false;
        }
        let queue = self.queues.entry(name.into()).or_default();
        queue.entries.push_back(text);
        queue.bytes += weight;
        self.bytes += weight;
        true
    }
}

impl Weight {
    fn add(&mut self, other: Weight) {
        self.entries += other.entries;
        self.bytes += other.bytes;
    }

    fn sub(&mut self, other: Weight) {
        self.entries -= other.entries;
        self.bytes -= other.bytes;
    }

    fn exceeds(self, bounds: Weight) -> bool {
        self.entries > bounds.entries || self.bytes > bounds.bytes
    }
}

impl Weigh for Bytes {
    fn weigh(&self) -> Weight {
        Weight { entries: 1, bytes: self.len() }
    }
}

impl Weigh for Level {
    fn weigh(&self) -> Weight {
        Weight { entries: 1, bytes: 0 }
    }
}

impl Weigh for Leases {
    fn weigh(&self) -> Weight {
        Weight { entries: self.ends.len(), bytes: self.bytes + self.ends.len() * OVERHEAD }
    }
}

/// Whole microseconds: what Redis counts in. The nearest, as a `f64` of today has a grain of a quarter of
/// one.
fn micros(now: f64) -> u64 {
    (now * 1e6).round() as u64 // what is no time is 0
}

fn end(now: u64, ttl: Option<Duration>) -> u64 {
    ttl.map_or(NEVER, |it| now.saturating_add(millis(it) * 1000))
}

/// An integer as Redis reads and writes it: no plus, no zero in front, no space.
fn integer(text: &[u8]) -> Option<i64> {
    let value: i64 = std::str::from_utf8(text).ok()?.parse().ok()?;
    (value.to_string().as_bytes() == text).then_some(value)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Random(u64);

    impl Random {
        /// A number below `n`.
        fn below(&mut self, n: u64) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0 % n
        }
    }

    const SECOND: Option<Duration> = Some(Duration::from_secs(1));

    #[test]
    fn a_value_is_there_until_its_end_and_not_at_it() {
        let memory = Memory::new(10);
        memory.set(100.0, b"n", b"v", SECOND);
        assert!(memory.get(100.999_999, b"n").is_some());
        assert!(memory.get(101.0, b"n").is_none());
        assert!(memory.get(100.0, b"n").is_none(), "what has ended was removed");
        memory.set(100.0, b"n", b"v", SECOND);
        memory.set(100.5, b"n", b"w", SECOND);
        assert!(memory.get(101.4, b"n").is_some(), "counts anew");
        memory.set(101.4, b"n", b"w", None);
        assert!(memory.get(1e12, b"n").is_some());
        memory.set(0.0, b"n", b"v", Some(Duration::ZERO));
        assert!(memory.get(0.000_999, b"n").is_some() && memory.get(0.001, b"n").is_none());
        memory.set(5.0, b"n", b"v", Some(Duration::MAX));
        assert!(memory.get(3e8, b"n").is_some());
        for no_time in [f64::NAN, f64::INFINITY, -1.0] {
            memory.set(no_time, b"n", b"v", SECOND);
            memory.get(no_time, b"n");
        }
    }

    #[test]
    fn add_succeeds_again_when_what_was_there_has_ended() {
        let memory = Memory::new(10);
        assert!(memory.add(100.0, b"n", b"1", SECOND));
        assert!(!memory.add(100.999, b"n", b"2", SECOND));
        assert!(memory.add(101.0, b"n", b"3", SECOND));
        assert_eq!(memory.get(101.0, b"n").as_deref(), Some(&b"3"[..]));
    }

    #[test]
    fn a_counter_ends_a_while_after_it_began() {
        let memory = Memory::new(10);
        assert_eq!(memory.incr(100.0, b"n", 1, SECOND), Count::At(1));
        assert_eq!(memory.incr(100.9, b"n", 1, SECOND), Count::At(2));
        assert_eq!(memory.incr(100.9, b"n", 1, None), Count::At(3));
        assert_eq!(memory.incr(101.0, b"n", 1, None), Count::At(1));
        assert_eq!(memory.incr(1e9, b"n", 1, SECOND), Count::At(2), "had no end, and gets none");
        assert_eq!(memory.incr(2e9, b"n", 1, SECOND), Count::At(3));
    }

    #[test]
    fn the_least_recently_used_makes_room_after_all_that_have_ended() {
        let memory = Memory::new(3);
        let is_there = |name: &[u8]| lock(&memory.values).slots.contains(name);
        memory.set(0.0, b"a", b"", None);
        memory.set(0.0, b"b", b"", None);
        memory.set(0.0, b"c", b"", SECOND);
        memory.get(0.0, b"a");
        memory.set(0.0, b"d", b"", None);
        assert!(is_there(b"a") && !is_there(b"b") && is_there(b"c") && is_there(b"d"));
        memory.get(0.9, b"c");
        memory.set(1.0, b"e", b"", None);
        assert!(is_there(b"a") && !is_there(b"c") && is_there(b"d") && is_there(b"e"));
    }

    #[test]
    fn a_table_is_bounded_by_bytes() {
        let mut table = Table::new(Weight { entries: 1000, bytes: 10 * (OVERHEAD + 1 + 1000) });
        for name in 0..100_u8 {
            table.put(0, &[name], Bytes::from(vec![0; 1000]), NEVER);
        }
        assert_eq!(table.slots.len(), 10);
        assert!(table.get(0, &[99]).is_some() && table.get(0, &[90]).is_some());
        table.put(0, &[0], Bytes::from(vec![0; 5000]), NEVER);
        assert!(table.slots.len() < 10);
        table.put(0, &[1], Bytes::from(vec![0; 50_000]), NEVER);
        assert!(table.slots.is_empty(), "it fits in no way");
        assert_eq!(table.weight, Weight::default());
    }

    #[test]
    fn a_table_knows_its_weight_and_its_ends_after_any_operations() {
        let seed = 0x5eed;
        let (mut random, memory) = (Random(seed), Memory::new(50));
        let mut now = 0.0;
        for _ in 0..50_000 {
            now += random.below(300) as f64 / 1e3;
            if random.below(1000) == 0 {
                now -= 50.0; // a clock that was set back
            }
            let name = [random.below(80) as u8];
            let ttl = (random.below(3) > 0).then(|| Duration::from_millis(random.below(9000)));
            match random.below(8) {
                0 => memory.set(now, &name, &[0; 100][..random.below(100) as usize], ttl),
                1 => drop(memory.add(now, &name, b"1", ttl)),
                2 => memory.delete(&name),
                3 => drop(memory.incr(now, &name, 1, ttl)),
                4 => drop(memory.get(now, &name)),
                5 => {
                    let rate = Rate::new(1.0 + random.below(9) as f64, 10.0, 3.0).expect("it is sound");
                    memory.take(now, &name, rate);
                }
                6 => memory.lease_release(now, &name, &[random.below(9) as u8]),
                _ => {
                    let holder = [random.below(9) as u8];
                    memory.lease_take(now, &name, &holder, 5, ttl.unwrap_or_default());
                    assert!(memory.lease_count(now, &name) <= 5);
                }
            }
        }
        fn check<V>(table: &Table<V>) {
            let mut weight = Weight::default();
            let mut ends = BTreeSet::new();
            for (name, slot) in &table.slots {
                weight.add(slot.weight);
                if slot.end != NEVER {
                    ends.insert((slot.end, Arc::clone(name)));
                }
            }
            assert_eq!(weight, table.weight);
            assert_eq!(ends, table.ends);
            assert!(!weight.exceeds(table.bounds) && weight.entries > 0);
        }
        check(&lock(&memory.values));
        check(&lock(&memory.rates));
        check(&lock(&memory.leases));
    }

    /// GCRA in its other form, the virtual scheduling of ITU-T I.371, in whole microseconds.
    struct Reference {
        interval: i64,
        tolerance: i64,
        arrival: i64,
    }

    impl Reference {
        fn take(&mut self, now: i64) -> (bool, i64, i64) {
            let early = self.arrival - now - self.tolerance;
            if early > 0 {
                return (false, early, 0);
            }
            self.arrival = self.arrival.max(now) + self.interval;
            (true, 0, (self.tolerance + self.interval - (self.arrival - now)) / self.interval)
        }
    }

    #[test]
    fn a_rate_decides_as_virtual_scheduling_does() {
        for (seed, rate, per, burst) in
            [(1, 10.0, 1.0, 10.0), (2, 1.0, 60.0, 5.0), (3, 1000.0, 1.0, 1.0), (4, 4.0, 3600.0, 100.0)]
        {
            let interval = (per / rate * 1e6) as i64;
            let mut reference = Reference { interval, tolerance: interval * (burst as i64 - 1), arrival: 0 };
            let (mut random, memory) = (Random(seed), Memory::new(10));
            let limit = Rate::new(rate, per, burst).expect("it is sound");
            let (mut now, mut n_allowed) = (1_800_000_000_000_000_i64, 0);
            for step in 0..20_000 {
                // Bursts, silences, and now and then exactly when it was said to be allowed.
                now += match random.below(10) {
                    0..5 => random.below(interval as u64 / 2) as i64,
                    5..9 => random.below(2 * interval as u64) as i64,
                    _ => (reference.arrival - reference.tolerance - now).max(0),
                };
                let (allowed, retry_after, remaining) = reference.take(now);
                let verdict = memory.take(now as f64 / 1e6, b"n", limit);
                assert_eq!(verdict.allowed, allowed, "seed {seed}, step {step}");
                assert_eq!(verdict.remaining as i64, remaining, "seed {seed}, step {step}");
                assert!(((verdict.retry_after * 1e6).round() as i64 - retry_after).abs() <= 1);
                n_allowed += i32::from(allowed);
            }
            assert!((2000..19_000).contains(&n_allowed), "both happen: {n_allowed}");
        }
    }

    #[test]
    fn who_comes_when_it_was_said_is_allowed_and_no_sooner() {
        for (rate, per, burst) in [(3.0, 1.0, 1.0), (7.0, 60.0, 2.0), (1e6, 1.0, 1.0), (0.3, 1.0, 1.0)] {
            let (memory, limit) = (Memory::new(10), Rate::new(rate, per, burst).expect("it is sound"));
            let mut now = 1_800_000_000.123_456;
            for _ in 0..1000 {
                let verdict = memory.take(now, b"n", limit);
                if !verdict.allowed {
                    if verdict.retry_after > 2e-6 {
                        assert!(!memory.take(now + verdict.retry_after - 2e-6, b"n", limit).allowed);
                    }
                    // To the microsecond, or a thousand sums would be off by more than one.
                    now = ((now + verdict.retry_after) * 1e6).round() / 1e6;
                    assert!(memory.take(now, b"n", limit).allowed);
                }
            }
        }
    }

    #[test]
    fn a_rate_goes_on_when_the_clock_was_set_back() {
        let (memory, limit) = (Memory::new(10), Rate::new(1.0, 1.0, 1.0).expect("it is sound"));
        assert!(memory.take(5000.0, b"n", limit).allowed);
        let verdict = memory.take(1000.0, b"n", limit);
        assert_eq!((verdict.allowed, verdict.retry_after), (false, 1.0));
        assert!(memory.take(1001.0, b"n", limit).allowed);
    }

    #[test]
    fn a_lease_ends_by_itself_unless_it_is_prolonged() {
        let (memory, ttl) = (Memory::new(10), Duration::from_secs(10));
        let take = |now, holder: &[u8]| memory.lease_take(now, b"n", holder, 2, ttl);
        assert!(take(0.0, b"a") && take(1.0, b"b") && !take(2.0, b"c"));
        assert!(take(9.0, b"a"), "it has it");
        assert!(!take(10.999, b"c"));
        assert!(take(11.0, b"c"), "the lease of b has ended");
        assert_eq!(memory.lease_count(18.999, b"n"), 2);
        assert_eq!(memory.lease_count(19.0, b"n"), 1);
        assert_eq!(memory.lease_count(21.0, b"n"), 0);
        assert_eq!(lock(&memory.leases).slots.len(), 0);
        assert_eq!(lock(&memory.leases).weight, Weight::default());
    }

    #[test]
    fn leases_are_bounded_and_not_pushed_out_by_values() {
        let (memory, ttl) = (Memory::new(10), Duration::from_secs(10));
        for holder in 0..20 {
            let has_it = memory.lease_take(0.0, b"n", &[holder], u32::MAX, ttl);
            assert_eq!(has_it, holder < 10);
        }
        for name in 0..100 {
            memory.set(0.0, &[name], b"", None);
            memory.take(0.0, &[name], Rate::new(1.0, 1.0, 1.0).expect("it is sound"));
        }
        assert_eq!(memory.lease_count(0.0, b"n"), 10);
        memory.lease_take(0.0, b"m", b"a", 1, ttl);
        assert_eq!(memory.lease_count(0.0, b"n"), 0, "the least recently used name makes room");
    }

    #[test]
    fn threads_lose_no_count_and_exceed_no_limit() {
        let (memory, ttl) = (Memory::new(100_000), Duration::from_secs(10));
        let limit = Rate::new(500.0, 1000.0, 500.0).expect("it is sound");
        let work = |thread: u8| {
            let (mut n_leases, mut n_taken) = (0, 0);
            for i in 0..5000_u16 {
                memory.incr(0.0, b"n", 1, None);
                let holder = [thread, i.to_be_bytes()[0], i.to_be_bytes()[1]];
                n_leases += usize::from(memory.lease_take(0.0, b"n", &holder, 1000, ttl));
                n_taken += usize::from(memory.take(0.0, b"n", limit).allowed);
            }
            (n_leases, n_taken)
        };
        let (leases, taken): (Vec<usize>, Vec<usize>) = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|it| scope.spawn(move || work(it))).collect();
            threads.into_iter().map(|it| it.join().expect("no thread panics")).unzip()
        });
        assert_eq!(memory.incr(0.0, b"n", 0, None), Count::At(20_000));
        assert_eq!((leases.iter().sum::<usize>(), taken.iter().sum::<usize>()), (1000, 500));
        assert_eq!(memory.lease_count(0.0, b"n"), 1000);
    }

    #[test]
    fn a_queue_is_bounded_by_entries_and_bytes_and_counts_what_it_drops() {
        let queues = Queues::default();
        for i in 0..QUEUE_ENTRIES {
            assert!(queues.push(b"n", i.to_string().into()));
        }
        assert!(!queues.push(b"n", b"one more".into()));
        assert!(queues.push(b"m", b"another queue".into()));
        assert_eq!((queues.size(b"n"), queues.dropped()), (QUEUE_ENTRIES, 1));
        assert_eq!(queues.pop(b"n", 2), [b"0", b"1"]);
        assert_eq!(queues.pop(b"n", usize::MAX).len(), QUEUE_ENTRIES - 2);
        assert!(queues.pop(b"n", 1).is_empty() && queues.pop(b"m", 0).is_empty());

        assert!(!queues.push(b"n", vec![0; QUEUE_BYTES]), "it does not fit with its overhead");
        assert!(queues.push(b"n", vec![0; QUEUE_BYTES / 2]));
        assert!(!queues.push(b"n", vec![0; QUEUE_BYTES / 2]));
        assert_eq!(queues.dropped(), 3);
        queues.pop(b"n", 1);
        queues.pop(b"m", 1);
        let all = lock(&queues.all);
        assert!(all.queues.is_empty() && all.bytes == 0);
    }

    #[test]
    fn all_queues_together_are_bounded() {
        let queues = Queues::default();
        let n_full = (0..20).filter(|it| queues.push(&[*it], vec![0; 4 << 20])).count();
        assert_eq!(n_full, 15);
        let queues = Queues::default();
        let n_queues = (0..2 * QUEUES).filter(|it| queues.push(&it.to_be_bytes(), vec![0])).count();
        assert_eq!((n_queues, queues.dropped()), (QUEUES, QUEUES as u64));
    }
}
