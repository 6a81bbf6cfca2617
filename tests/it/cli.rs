//! The commands: what they print, how they end, what they never say.

use serde_json::Value;

use crate::support::process::{Process, run};
use crate::support::raw::frame;
use crate::support::upstream::Act;
use crate::support::{Client, FUNCTION, Folder, KEY, TOKEN, Upstream};

const OWN_PORTS: [(&str, &str); 2] =
    [("STREAMGATE_LISTEN_ADDRESS", "127.0.0.1:0"), ("STREAMGATE_ADMIN_ADDRESS", "127.0.0.1:0")];

/// The variables of NVIDIA's sample, and ports of the system's choice.
fn sample(server: &str) -> Vec<(&str, &str)> {
    let own = [("NVCF_API_KEY", KEY), ("STREAMING_FUNCTION_ID", FUNCTION), ("NVCF_SERVER", server)];
    own.into_iter().chain(OWN_PORTS).collect()
}

fn with<'a>(env: &[(&'a str, &'a str)], more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    env.iter().chain(more).copied().collect()
}

fn assert_no_secret(text: &str) {
    for secret in [KEY, TOKEN, &KEY[..6], &KEY[KEY.len() - 6..]] {
        assert!(!text.contains(secret), "a secret, or a part of it, is printed:\n{text}");
    }
}

#[tokio::test]
async fn every_mistake_is_told_at_once_and_nothing_is_started() {
    let folder = Folder::new();
    let file = folder.write(
        "streamgate.toml",
        "[listen]\naddress = \"nowhere\"\nmax_haed = 7\n\n[sessions]\nmax = \"many\"\n",
    );
    let path = file.display().to_string();
    let env = [("NVCF_API_KEY", KEY), ("PROXY_SSL_INSECURE", "perhaps"), ("STREAMGATE_LOGLEVEL", "x")];
    for command in ["check", "run"] {
        let ended = run(&[command, "--config", &path], &env).await;
        assert_eq!((ended.code, ended.stdout.as_str()), (Some(2), ""), "{}", ended.stderr);
        for part in [
            &format!("{path}:2"),
            "listen.address = \"nowhere\"",
            &format!("{path}:3"),
            "did you mean `listen.max_head`?",
            &format!("{path}:6"),
            "PROXY_SSL_INSECURE",
            "did you mean `STREAMGATE_LOG_LEVEL`?",
            "STREAMING_FUNCTION_ID",
            "NVCF_SERVER",
            "7 problems, nothing was started",
        ] {
            assert!(ended.stderr.contains(part), "{part} is missing in:\n{}", ended.stderr);
        }
        assert_no_secret(&ended.stderr);
    }
    let ended = run(&["check", "--config", "nowhere.toml"], &[]).await;
    assert!(ended.code == Some(2) && ended.stderr.contains("nowhere.toml"), "{ended:?}");
    let ended = run(&["flourish"], &[]).await;
    assert!(ended.code == Some(2) && ended.stderr.contains("Usage"), "{ended:?}");
}

#[tokio::test]
async fn check_says_what_run_would_and_starts_nothing() {
    let env = sample("grpc.example:443");
    let ended = run(&["check"], &env).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.stdout.contains("valid; nothing was started"), "{}", ended.stdout);
    assert!(
        ended.stdout.contains("require_auth") && ended.stdout.contains("bearer-auth"),
        "{}",
        ended.stdout
    );
    assert_no_secret(&format!("{}{}", ended.stdout, ended.stderr));

    let folder = Folder::new();
    let file = folder.write(
        "streamgate.toml",
        "[[route]]\npath = \"/api/**\"\nchain = [\"cors\", \"inject-headers\"]\n[[route]]\npath = \"/open/**\"\nchain = [\"cors\"]\n",
    );
    let path = file.display().to_string();
    let one = run(&["check", "--config", &path, "--explain", "/api/**"], &env).await;
    assert!(one.stdout.contains("inject-headers") && !one.stdout.contains("route /open/**\n"), "{one:?}");
    let all = run(&["check", "--config", &path, "--explain"], &env).await;
    assert!(all.stdout.contains("route /api/**\n") && all.stdout.contains("route /open/**\n"), "{all:?}");
    let none = run(&["check", "--config", &path, "--explain", "/none"], &env).await;
    assert!(none.code == Some(2) && none.stderr.contains("there is no route for \"/none\""), "{none:?}");
}

#[tokio::test]
async fn the_chain_of_a_path_is_explained_as_it_will_run() {
    let folder = Folder::new();
    folder.write("tokens.toml", "[ada]\ntoken = \"token-of-ada\"\n");
    let file = folder.write(
        "streamgate.toml",
        "[[route]]\npath = \"/*\"\nchain = []\n[[route]]\npath = \"/**\"\nchain = [{ plugin = \"bearer-auth\", tokens = \"file:tokens.toml\" }]\n",
    );
    let (path, env) = (file.display().to_string(), sample("grpc.example:443"));
    for (asked, route) in [("/*", "/*"), ("/**", "/**"), ("/one", "/*"), ("/one/two", "/**"), ("/a%2fb", "")]
    {
        let told = run(&["check", "--config", &path, "--explain", asked], &env).await;
        if route.is_empty() {
            assert_eq!(told.code, Some(2), "{asked} could mean two routes: {told:?}");
        } else {
            assert!(told.stdout.contains(&format!("route {route}\n")), "{asked}: {told:?}");
            assert_eq!(told.stdout.contains("bearer-auth\n"), route == "/**", "{asked}: {told:?}");
        }
    }
}

#[tokio::test]
async fn mistakes_of_every_kind_are_told_together() {
    let folder = Folder::new();
    let file = folder.write(
        "streamgate.toml",
        "[listen]\ntls = { certificate = \"no.pem\", key = \"no.key\" }\n[log]\nlevel = \"loud=very\"\n[[route]]\npath = \"/**\"\nchain = [\"no-such\", { plugin = \"bearer-auth\", tokens = \"file:no.toml\" }]\n",
    );
    let path = file.display().to_string();
    for command in ["check", "run"] {
        let ended = run(&[command, "--config", &path], &[("NVCF_SERVER", "a..b"), OWN_PORTS[1]]).await;
        assert_eq!(ended.code, Some(2), "{ended:?}");
        for part in [
            "NVCF_API_KEY",
            "STREAMING_FUNCTION_ID",
            "not a host name: \"a..b\"",
            &format!("{path}:4:9 "),
            "not a level or a filter",
            "no.pem",
            &format!("{path}:7:10 "),
            "no such plugin",
            &format!("{path}:7:56 "),
            "no.toml",
        ] {
            assert!(ended.stderr.contains(part), "{part} is missing in:\n{}", ended.stderr);
        }
    }
}

#[tokio::test]
async fn a_gateway_must_not_start_open_when_it_is_told_so() {
    let env = with(&sample("grpc.example"), &[("STREAMGATE_REQUIRE_AUTH", "true")]);
    for command in ["check", "run"] {
        let ended = run(&[command], &env).await;
        assert!(ended.code == Some(2) && ended.stderr.contains("authenticates nobody"), "{ended:?}");
    }
}

#[tokio::test]
async fn the_samples_variables_are_enough_and_both_signals_stop_it() {
    let upstream = Upstream::that(Act::Mirror).await;
    let server = format!("http://{}", upstream.address);
    for (signal, other) in
        [("TERM", ("STREAMGATE_LOG_FORMAT", "text")), ("INT", ("STREAMGATE_LOG_FORMAT", "json"))]
    {
        let env = with(&sample(&server), &[("STREAMING_FUNCTION_VERSION_ID", "v-7"), other]);
        let mut process = Process::start(&["run"], &env);
        let (address, warning) = if other.1 == "text" {
            let warning = process.stderr.line_with("authenticates nobody").await;
            (process.address("gateway").await, warning)
        } else {
            let line: Value =
                serde_json::from_str(&process.stderr.line_with("\"service\":\"gateway\"").await)
                    .expect("JSON");
            let address = line["address"].as_str().expect("an address").parse().expect("an address");
            (address, process.stderr.line_with("authenticates nobody").await)
        };
        assert!(warning.contains("WARN") && warning.contains("require_auth"), "{warning}");
        let mut client = Client::connect(address).await;
        client
            .request("GET", "/v1/models?token=canary", &[("Authorization", "Bearer of-the-browser")], b"")
            .await;
        let answer = client.answer().await;
        assert_eq!(answer.status, 200);
        let head = answer.text().to_ascii_lowercase();
        assert!(head.contains(&format!("authorization: bearer {KEY}\r\n")), "{head}");
        assert!(head.contains("function-version-id: v-7\r\n"), "{head}");

        let line = process.stdout.line_with("/v1/models").await;
        if other.1 == "text" {
            for part in
                [" request ", "GET /v1/models route=/**", "principal=-", FUNCTION, "status=200 reason=ok"]
            {
                assert!(line.contains(part), "{part} is missing in {line}");
            }
        } else {
            let line: Value = serde_json::from_str(&line).expect("JSON");
            assert_eq!((&line["kind"], &line["status"]), (&Value::from("request"), &Value::from(200)));
            assert!(line["request"].as_str().is_some_and(|it| it.len() == 32) && line["seconds"].is_f64());
        }

        process.signal(signal).await;
        assert!(process.ended().await.success(), "{}", process.stderr.text());
        let all = format!("{}{}", process.stdout.text(), process.stderr.text());
        assert!(all.contains(&format!("SIG{signal}")), "{all}");
        assert!(!all.contains("token=canary"), "queries carry tokens: {all}");
        assert!(!all.contains("of-the-browser"), "{all}");
        assert_no_secret(&all);
    }
}

#[tokio::test]
async fn sessions_are_told_of_the_end_and_a_second_signal_does_not_wait() {
    let mut upstream = Upstream::start().await;
    let server = format!("http://{}", upstream.address);
    for (timeout, n_signals) in [("0s", 1), ("1h", 2)] {
        let env = with(&sample(&server), &[("STREAMGATE_SESSIONS_DRAIN_TIMEOUT", timeout)]);
        let mut process = Process::start(&["run"], &env);
        let mut client = Client::connect(process.address("gateway").await).await;
        client.upgrade("/sign_in", &[]).await;
        assert_eq!(client.answer().await.status, 101);
        let leg = upstream.leg().await;
        process.signal("TERM").await;
        process.stderr.line_with("SIGTERM").await;
        if n_signals == 1 {
            let close = client.frame().await.expect("a Close");
            assert_eq!((close.opcode, &close.payload[..2]), (8, &1012_u16.to_be_bytes()[..]));
            drop((client, leg));
            assert!(process.ended().await.success());
        } else {
            // A session that goes on may do so for an hour.
            process.signal("TERM").await;
            assert_eq!(process.ended().await.code(), Some(130), "{}", process.stderr.text());
        }
    }
}

#[tokio::test]
async fn a_session_leaves_one_line_when_it_is_over() {
    let mut upstream = Upstream::start().await;
    let server = format!("http://{}", upstream.address);
    let process = Process::start(&["run"], &sample(&server));
    let mut client = Client::connect(process.address("gateway").await).await;
    client.upgrade("/app/sign_in?access_token=canary", &[]).await;
    assert_eq!(client.answer().await.status, 101);
    let mut leg = upstream.leg().await;
    client.send(&frame(1, b"hello", Some([1, 2, 3, 4]))).await;
    assert_eq!(leg.frame().await.expect("a frame").payload, b"hello");
    client.send(&frame(8, &1000_u16.to_be_bytes(), Some([1, 2, 3, 4]))).await;
    assert_eq!(leg.frame().await.expect("a frame").opcode, 8);
    leg.send(8, &1000_u16.to_be_bytes()).await;
    let line = process.stdout.line_with(" session ").await;
    for part in [
        "GET /app/sign_in route=/**",
        &format!("function={FUNCTION}"),
        "status=101 reason=closed_by_browser close=1000 received=19 sent=4 seconds=0.",
    ] {
        assert!(line.contains(part), "{part} is missing in {line}");
    }
    assert!(!process.stderr.text().contains("canary"), "queries carry tokens");
}

#[tokio::test]
async fn a_port_that_is_taken_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address").to_string();
    for variable in ["STREAMGATE_LISTEN_ADDRESS", "STREAMGATE_ADMIN_ADDRESS"] {
        let env = with(&sample("grpc.example"), &[(variable, &address)]);
        let ended = run(&["run"], &env).await;
        assert_eq!(ended.code, Some(2));
        let setting = if variable.contains("LISTEN") { "listen.address" } else { "admin.address" };
        assert!(
            ended.stderr.contains(&format!("{setting} = \"{address}\""))
                && ended.stderr.contains("cannot listen"),
            "{}",
            ended.stderr
        );
    }
}

#[tokio::test]
async fn a_health_check_needs_no_other_program() {
    let upstream = Upstream::that(Act::Mirror).await;
    let server = format!("http://{}", upstream.address);
    let process = Process::start(&["run"], &sample(&server));
    let admin = process.address("admin").await.to_string();
    // The variables of the container say where to ask.
    let well = run(&["healthcheck"], &with(&sample(&server), &[("STREAMGATE_ADMIN_ADDRESS", &admin)])).await;
    assert_eq!(well.code, Some(0), "{well:?}");
    assert_eq!(run(&["healthcheck", &format!("{admin}/readyz")], &[]).await.code, Some(0));
    let ill = run(&["healthcheck", &format!("{admin}/none")], &[]).await;
    assert!(ill.code == Some(1) && ill.stderr.contains("answered 404"), "{ill:?}");
    drop(process);
    let closed = std::net::TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr()).expect("a port");
    let gone = run(&["healthcheck", &closed.to_string()], &[]).await;
    assert!(gone.code == Some(1) && gone.stderr.contains("refused"), "{gone:?}");
    let odd = run(&["healthcheck", "here"], &[]).await;
    assert!(odd.code == Some(1) && odd.stderr.contains("not an address: \"here\""), "{odd:?}");
}

#[tokio::test]
async fn a_streaming_server_starts_with_the_containers_variables_and_stops_on_both_signals() {
    let env = [
        ("STREAMGATE_STREAMING_CONTROL", "127.0.0.1:0"),
        ("STREAMGATE_STREAMING_SIGNALING", "127.0.0.1:0"),
        ("STREAMING_START_ENDPOINT", "/start"),
        ("STREAMING_PORT_BINDING_RANGE", "47998-48020"),
    ];
    for signal in ["TERM", "INT"] {
        let mut process = Process::start(&["stream"], &env);
        let control = process.address("control server").await;
        assert!((47998..=48020).contains(&process.address("media").await.port()));
        let mut client = Client::connect(control).await;
        client.request("GET", "/v1/streaming/ready", &[], b"").await;
        assert_eq!(client.answer().await.status, 200);
        let mut browser = Client::connect(process.address("signalling").await).await;
        browser.upgrade("/start", &[("Sec-WebSocket-Protocol", "streamgate.v1")]).await;
        assert_eq!(browser.answer().await.status, 101);
        let address = control.to_string();
        let well =
            run(&["healthcheck"], &with(&env[2..], &[("STREAMGATE_STREAMING_CONTROL", &address)])).await;
        assert_eq!(well.code, Some(0), "{well:?}");
        process.signal(signal).await;
        assert!(process.ended().await.success());
    }
    let ended =
        run(&["stream"], &[("STREAMING_PORT_BINDING_RANGE", "48020-47998"), ("CONTROL_SERVER_PORT", "x")])
            .await;
    assert!(ended.code == Some(2) && ended.stderr.contains("2 problems"), "{ended:?}");
}

#[tokio::test]
async fn a_front_door_has_a_health_check_too() {
    let process = Process::start(&["frontdoor"], &[("STREAMGATE_FRONTDOOR_ADDRESS", "127.0.0.1:0")]);
    let address = process.address("front door").await.to_string();
    let closed = std::net::TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr()).expect("a port");
    let closed = closed.to_string();
    let env = [
        ("STREAMGATE_FRONTDOOR_ADDRESS", address.as_str()),
        ("STREAMGATE_ADMIN_ADDRESS", &closed),
        ("STREAMGATE_STREAMING_CONTROL", &closed),
    ];
    let well = run(&["healthcheck"], &env).await;
    assert_eq!(well.code, Some(0), "{well:?}");
}

#[tokio::test]
async fn plugins_bring_their_tests_along() {
    let folder = Folder::new();
    folder.write("good/schema.lua", "return { summary = \"Does nothing.\", phases = { \"on_request\" } }");
    folder.write("good/plugin.lua", "return { on_request = function(request) end }");
    folder.write(
        "good/spec.lua",
        "local spec = require \"streamgate.spec\"\n\
         return spec.plugin(\"good\", {}, function(it)\n\
           it(\"lets all pass\", function(plugin) spec.passed(plugin:request { path = \"/\" }) end)\n\
           it(\"is seven\", function() assert(6 == 7, \"six is not seven\") end)\n\
         end)\n",
    );
    let ended = run(&["plugin", "test", &folder.path().display().to_string()], &[]).await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stdout.contains("FAIL") && ended.stdout.contains("six is not seven"), "{}", ended.stdout);
    assert!(ended.stdout.contains("1 passed, 1 failed"), "{}", ended.stdout);
    let ended = run(&["plugin", "test", "plugins"], &[]).await;
    assert!(ended.code == Some(0) && ended.stdout.contains(" 0 failed"), "{}{}", ended.stdout, ended.stderr);
    let ended = run(&["plugin", "test", "nowhere"], &[]).await;
    assert!(ended.code == Some(1) && ended.stderr.contains("nowhere"), "{ended:?}");
}
