//! What one phase call of a plugin in Lua costs: `cargo bench --bench lua_call`.
//!
//! The figures of `docs/performance.md` are medians of this, on a machine with nothing else to do.

use criterion::{Criterion, criterion_group, criterion_main};
use http::{HeaderMap, HeaderValue};
use streamgate::internals::{LuaChain, Unwatched};
use streamgate::policy::{Exchange, Phase};

/// A plugin with one phase function.
fn plugin(phase: &str, arguments: &str, body: &str, head: &str) -> LuaChain {
    let schema = format!("return {{ summary = \"Benched.\", phases = {{ {phase:?} }} }}");
    let plugin = format!("{head}\nreturn {{ {phase} = function({arguments}) {body} end }}");
    LuaChain::of_plugin(&schema, &plugin).expect("a plugin")
}

fn exchange() -> Exchange {
    let mut headers = HeaderMap::new();
    for (name, value) in [
        ("host", "gateway.example"),
        ("user-agent", "Mozilla/5.0 (X11; Linux x86_64)"),
        ("authorization", "Bearer canary-token-of-ada"),
        ("accept-language", "en"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    Exchange { upstream: headers.clone(), headers, path: "/sign_in".into(), ..Exchange::default() }
}

fn calls(c: &mut Criterion) {
    let mut group = c.benchmark_group("lua_call");
    let cases = [
        ("empty", plugin("upstream_request", "request, upstream, conf", "", "")),
        (
            "four_header_operations",
            plugin(
                "upstream_request",
                "request, upstream, conf",
                "local a = request:header \"authorization\" upstream:set_header(\"x-tenant\", \"acme\") upstream:set_header(\"x-user\", a) upstream:set_header(\"x-edge\", \"1\")",
                "",
            ),
        ),
        (
            "bearer_pattern",
            plugin(
                "upstream_request",
                "request, upstream, conf",
                "local a = request:header(\"authorization\"):match \"^Bearer (.+)$\"",
                "",
            ),
        ),
    ];
    for (name, chain) in &cases {
        let mut exchange = exchange();
        group.bench_function(*name, |b| {
            b.iter(|| chain.chain().run_now(Phase::UpstreamRequest, &mut exchange, &Unwatched).is_ok());
        });
    }
    // The same where the plugin could wait, and does not.
    let waiting = [
        ("empty_that_may_wait", ""),
        (
            "four_header_operations_that_may_wait",
            "local a = request:header \"authorization\" upstream:set_header(\"x-tenant\", \"acme\") upstream:set_header(\"x-user\", a) upstream:set_header(\"x-edge\", \"1\")",
        ),
        ("kv_incr", "kv.incr \"n\""),
    ];
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    for (name, body) in waiting {
        let chain = plugin(
            "upstream_request",
            "request, upstream, conf",
            body,
            "local kv = require \"streamgate.kv\"",
        );
        let mut exchange = exchange();
        group.bench_function(name, |b| {
            b.iter(|| {
                let run = chain.chain().run(Phase::UpstreamRequest, &mut exchange, &Unwatched);
                runtime.block_on(run).is_ok()
            });
        });
    }
    group.finish();
}

criterion_group!(benches, calls);
criterion_main!(benches);
