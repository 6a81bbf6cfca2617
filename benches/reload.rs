//! What a reload of the configuration costs, by the number of routes: `cargo bench --bench reload`.
//!
//! `read` is the file with its plugins' settings, `take_over` all of it: plugins compiled, policies checked, the new
//! generation handed to the workers. Requests are served meanwhile; what a worker does for it is not in the figure.

#[path = "support/gateway.rs"]
mod gateway;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};

fn reload(c: &mut Criterion) {
    let mut group = c.benchmark_group("reload");
    group.sample_size(20);
    for n in [1, 10, 100] {
        let routes: String = (0..n)
            .map(|it| {
                format!(
                    "[[route]]\npath = \"/tenant-{it}/**\"\nchain = [\"request-id\", \"cors\", {{ plugin = \"inject-headers\", set = {{ x-tenant = \"{it}\" }} }}]\n"
                )
            })
            .collect();
        let gateway = gateway::Gateway::start(gateway::upstream(|_| ()), &routes);
        group.bench_function(BenchmarkId::new("read", n), |b| b.iter(|| gateway.config()));
        group.bench_function(BenchmarkId::new("take_over", n), |b| {
            b.iter(|| match gateway.reloader.reload(gateway.config()) {
                Ok(_) => {}
                Err(problems) => panic!("{problems}"),
            });
        });
    }
    group.finish();
}

criterion_group!(benches, reload);
criterion_main!(benches);
