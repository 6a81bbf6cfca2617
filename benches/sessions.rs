//! What the session core costs with 100,000 sessions: `cargo bench --bench sessions`.
//!
//! The state machine and the directory that finds a session again, without connections.

use criterion::{Criterion, criterion_group, criterion_main};
use streamgate::internals::SessionCore;

const SESSIONS: usize = 100_000;

fn sessions(c: &mut Criterion) {
    let mut core = SessionCore::with_sessions(SESSIONS);
    let mut group = c.benchmark_group("sessions");
    let mut idx = 0;
    let mut next = move || {
        idx = (idx + 7919) % SESSIONS; // a prime step, so that neighbours in memory are no neighbours in time
        idx
    };
    group.bench_function("attach", |b| b.iter(|| core.attach_and_end()));
    group.bench_function("park_and_resume", |b| {
        b.iter(|| {
            let idx = next();
            core.park(idx);
            core.resume(idx);
        });
    });
    group.bench_function("park_and_expire", |b| {
        b.iter(|| {
            let idx = next();
            core.park(idx);
            core.expire(idx);
        });
    });
    group.bench_function("ping_and_pong", |b| b.iter(|| core.ping(next())));
    group.finish();
}

criterion_group!(benches, sessions);
criterion_main!(benches);
