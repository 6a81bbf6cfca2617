//! What the cookie costs that brings a browser back into its session: `cargo bench --bench resume_token`.

use criterion::{Criterion, criterion_group, criterion_main};
use streamgate::internals::ResumeTokens;

fn tokens(c: &mut Criterion) {
    let tokens = ResumeTokens::new();
    let good = tokens.seal();
    assert!(tokens.opens(&good), "it is its own");
    let mut forged = good.clone();
    forged.replace_range(10..11, if &good[10..11] == "A" { "B" } else { "A" });
    assert!(!tokens.opens(&forged), "it is not");
    let mut group = c.benchmark_group("resume_token");
    group.bench_function("seal", |b| b.iter(|| tokens.seal()));
    group.bench_function("open", |b| b.iter(|| tokens.opens(&good)));
    group.bench_function("refuse_a_forged_one", |b| b.iter(|| tokens.opens(&forged)));
    group.finish();
}

criterion_group!(benches, tokens);
criterion_main!(benches);
