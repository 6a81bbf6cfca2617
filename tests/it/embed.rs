//! A program that embeds the gateway and brings a policy in Rust along: the one of `examples/embed.rs`.

use streamgate::app::App;
use streamgate::clock::Clock;
use streamgate::config::{Env, Role, Sources};
use streamgate::policy::Natives;

use crate::support::upstream::Act;
use crate::support::{Client, FUNCTION, Folder, KEY, Upstream};

#[allow(dead_code)] // its `main` is for people
#[path = "../../examples/embed.rs"]
mod example;

/// A gateway before an upstream, with the example's policy and `key-auth`.
fn sources(upstream: &Upstream, folder: &Folder, hours: &str) -> Sources {
    let server = format!("http://{}", upstream.address);
    let env: Env = [("NVCF_API_KEY", KEY), ("STREAMING_FUNCTION_ID", FUNCTION), ("NVCF_SERVER", &server)]
        .into_iter()
        .collect();
    folder.write("tokens.toml", "[ada]\ntoken = \"key-of-ada\"\n");
    let file = format!(
        "[listen]\naddress = \"127.0.0.1:0\"\n[admin]\naddress = \"127.0.0.1:0\"\n[[route]]\npath = \"/**\"\nchain = [{{ plugin = \"opening-hours\", {hours} }}, {{ plugin = \"key-auth\", keys = \"file:tokens.toml\" }}]\n"
    );
    Sources::new(env).with_file(folder.path().join("streamgate.toml"), file)
}

#[tokio::test]
async fn a_policy_in_rust_stands_in_a_chain_beside_one_in_lua() {
    let natives = Natives::new().with(example::OpeningHours);
    for (hours, key, status, code) in [
        ("opens = 0, closes = 24", Some("key-of-ada"), 200, ""),
        ("opens = 0, closes = 24", None, 401, "auth.missing_key"),
        ("opens = 24, closes = 25", Some("key-of-ada"), 0, "expected at most 24"),
        ("opens = 3, closes = 2", Some("key-of-ada"), 0, "it would never be open"),
        ("opens = \"dawn\", closes = 24", Some("key-of-ada"), 0, "expected a whole number, not a string"),
    ] {
        let (upstream, folder) = (Upstream::that(Act::Mirror).await, Folder::new());
        let sources = sources(&upstream, &folder, hours);
        let clock = Clock::system();
        let built = match App::resolve_with(&sources, Role::Gateway, &clock, &natives) {
            Ok(config) => App::build_with(config, clock, natives.clone()).await,
            Err(problems) => Err(problems),
        };
        let app = match built {
            Ok(app) => app,
            Err(problems) => {
                assert!(status == 0 && problems.to_string().contains(code), "{hours}: {problems}");
                continue;
            }
        };
        let address = app.addresses().gateway.expect("it is a gateway");
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let running = tokio::spawn(app.run(async { drop(stopped.await) }));
        let mut client = Client::connect(address).await;
        let key: Vec<(&str, &str)> = key.map(|it| ("X-API-Key", it)).into_iter().collect();
        client.request("GET", "/x", &key, b"").await;
        let answer = client.answer().await;
        assert_eq!(answer.status, status, "{hours}: {}", answer.text());
        if status != 200 {
            assert_eq!(answer.code(), code);
        }
        drop((stop, client));
        running.await.expect("it ends");
    }
}

#[tokio::test]
async fn a_policy_in_rust_is_shown_like_any_other() {
    let natives = Natives::new().with(example::OpeningHours);
    let (upstream, folder) = (Upstream::that(Act::Mirror).await, Folder::new());
    let sources = sources(&upstream, &folder, "opens = 0, closes = 24");
    let clock = Clock::system();
    let config = App::resolve_with(&sources, Role::Gateway, &clock, &natives).expect("a configuration");
    let report = App::check_with(config, &clock, &natives).expect("a chain");
    let shown: String = report.routes().collect();
    assert!(shown.contains("on_request        opening-hours"), "{shown}");
    assert!(shown.contains("authenticate      key-auth"), "{shown}");
}
