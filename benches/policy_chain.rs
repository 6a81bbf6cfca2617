//! What a request costs in its policies, by how many there are: `cargo bench --bench policy_chain`.

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use http::{HeaderMap, HeaderValue};
use streamgate::internals::{LuaChain, Unwatched};
use streamgate::policy::{Exchange, Phase};

const PHASES: [Phase; 5] =
    [Phase::OnRequest, Phase::Authenticate, Phase::Authorize, Phase::Select, Phase::UpstreamRequest];

fn request() -> Exchange {
    let mut headers = HeaderMap::new();
    for (name, value) in [
        ("host", "gateway.example"),
        ("origin", "https://app.example"),
        ("authorization", "Bearer canary-token-of-ada"),
        ("user-agent", "Mozilla/5.0 (X11; Linux x86_64)"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    Exchange { headers, path: "/sign_in".into(), ..Exchange::default() }
}

fn chains(c: &mut Criterion) {
    let mut group = c.benchmark_group("policy_chain");
    let bearer = "{ plugin = \"bearer-auth\", tokens = \"file:tokens.toml\" }";
    let inject = "{ plugin = \"inject-headers\", set = { x-user = \"{principal.id}\", x-tenant = \"{principal.tenant}\", x-edge = \"1\" } }";
    for (n, chain) in [
        (0, String::new()),
        (1, "\"cors\"".to_owned()),
        (2, format!("\"cors\", {bearer}")),
        (3, format!("\"cors\", {bearer}, {inject}")),
        (
            6,
            format!(
                "\"request-id\", \"cors\", {{ plugin = \"ip-restriction\", deny = [\"192.0.2.0/24\"] }}, {bearer}, {{ plugin = \"acl\", everybody = [\"*\"] }}, {inject}"
            ),
        ),
    ] {
        let chain =
            match LuaChain::of_chain(&chain, "[ada]\ntoken = \"canary-token-of-ada\"\ntenant = \"acme\"\n") {
                Ok(chain) => chain,
                Err(problems) => panic!("{problems}"),
            };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        group.bench_with_input(BenchmarkId::from_parameter(n), &chain, |b, chain| {
            b.iter(|| {
                let mut exchange = request();
                exchange.upstream = exchange.headers.clone();
                runtime.block_on(async {
                    for phase in PHASES {
                        chain.chain().run(phase, &mut exchange, &Unwatched).await.expect("nobody refuses");
                    }
                });
                chain
                    .chain()
                    .run_now(Phase::ResponseHeaders, &mut exchange, &Unwatched)
                    .expect("nobody refuses");
                exchange
            });
        });
    }
    group.finish();
}

criterion_group!(benches, chains);
criterion_main!(benches);
