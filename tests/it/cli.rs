//! The commands: what they print, how they end, what they never say.

use serde_json::Value;

use crate::support::process::{Process, run, run_in, run_unread};
use crate::support::raw::frame;
use crate::support::upstream::Act;
use crate::support::{Client, FUNCTION, Folder, KEY, TOKEN, Upstream, soon};

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

/// Its ports are those of a process that can say where they are.
#[tokio::test]
async fn a_gateway_lives_on_when_neither_log_can_be_written() {
    let mut upstream = Upstream::start().await;
    let (server, folder) = (format!("http://{}", upstream.address), Folder::new());
    let file = folder.write("streamgate.toml", "[listen]\nhandover = \"next.sock\"\n").display().to_string();
    let env = with(&sample(&server), &[("STREAMGATE_LOG_LEVEL", "debug")]);
    let args = ["run", "--config", &file];
    let mut first = Process::start(&args, &env);
    let (gateway, admin) = (first.address("gateway").await, first.address("admin").await);
    let mut process = Process::start_without_room(&args, &env);
    assert!(first.ended().await.success(), "{}", first.stderr.text());

    let mut client = Client::connect(gateway).await;
    client.request("CONNECT", "/", &[], b"").await;
    assert!(client.answer().await.status >= 400, "what is refused has a line in both logs");
    let mut client = Client::connect(gateway).await;
    client.upgrade("/sign_in", &[]).await;
    assert_eq!(client.answer().await.status, 101);
    let mut leg = upstream.leg().await;
    client.send(&frame(1, b"hello", Some([1, 2, 3, 4]))).await;
    assert_eq!(leg.frame().await.expect("a frame").payload, b"hello");

    let all_counted = async {
        loop {
            let mut client = Client::connect(admin).await;
            client.request("GET", "/metrics", &[], b"").await;
            let text = client.answer().await.text();
            let lost = |name: &str| {
                let line = text.lines().find_map(|it| it.strip_prefix(name)).expect("a metric");
                line.trim().parse::<u32>().expect("a number")
            };
            if lost("streamgate_log_lines_dropped_total ") > 0
                && lost("streamgate_access_lines_dropped_total ") == 1
            {
                return;
            }
        }
    };
    soon("the count of lost lines", all_counted).await;

    process.signal("TERM").await;
    drop((client, leg));
    assert_eq!(process.ended().await.code(), Some(0));
}

#[tokio::test]
async fn a_reader_that_has_enough_is_no_fault() {
    let env = sample("grpc.example");
    for args in [&["plugin", "list"][..], &["check", "--explain"], &["check"], &["plugin", "schema", "cors"]]
    {
        let ended = run_unread(args, &env).await;
        assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "{args:?}");
    }
    let failed = run_unread(&["plugin", "test", "tests"], &env).await;
    assert_eq!(failed.code, Some(1), "a fault is told all the same: {failed:?}");
    let mut full = Process::start_without_room(&["check"], &env);
    assert_eq!(full.ended().await.code(), Some(1), "an answer that is lost");
    let mut full = Process::start_without_room(&["check", "--config", "nowhere.toml"], &env);
    assert_eq!(full.ended().await.code(), Some(2));
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

/// A gateway goes on with what it has when its file gets a mistake; so must whoever looks after it.
#[tokio::test]
async fn a_mistake_in_the_file_makes_no_process_ill() {
    let upstream = Upstream::that(Act::Mirror).await;
    let server = format!("http://{}", upstream.address);
    let process = Process::start(&["run"], &sample(&server));
    let admin = process.address("admin").await.to_string();
    let folder = Folder::new();
    let address = format!("[admin]\naddress = \"{admin}\"\n");
    for (mistake, said) in [
        ("[admni]\nx = 1\n", "did you mean `admin`?"),
        ("[log]\nlevel = \"debg\"\n", "log.level = \"debg\""),
        ("[[route]]\npath = \n", "not TOML"),
        ("[streaming]\ncontrol = \"nowhere\"\n", "streaming.control"),
        ("", ""),
    ] {
        for text in [format!("{address}{mistake}"), format!("{mistake}{address}")] {
            let file = folder.write("streamgate.toml", &text).display().to_string();
            let told =
                run(&["healthcheck"], &with(&sample(&server)[..3], &[("STREAMGATE_CONFIG", &file)])).await;
            assert_eq!(told.code, Some(0), "{text}: {told:?}");
            assert!(told.stderr.contains(said), "{said} is missing in {}", told.stderr);
            assert_eq!(told.stderr.contains("warning"), !mistake.is_empty(), "{}", told.stderr);
        }
    }
    let named = [("STREAMGATE_CONFIG", "nowhere.toml"), ("STREAMGATE_ADMIN_ADDRESS", &admin)];
    let told = run(&["healthcheck"], &named).await;
    assert!(told.code == Some(0) && told.stderr.contains("nowhere.toml"), "{told:?}");
}

#[tokio::test]
async fn a_route_that_no_request_reaches_is_told() {
    let folder = Folder::new();
    let route = |path: &str| format!("[[route]]\npath = {path:?}\nchain = []\n");
    let text = ["/status", "/api/*", "/**", "/admin/**", "/status"].map(route).concat();
    let file = folder.write("streamgate.toml", &text).display().to_string();
    let told = run(&["check", "--config", &file], &sample("grpc.example")).await;
    assert_eq!(told.code, Some(0), "{told:?}");
    let said: Vec<&str> = told.stdout.lines().filter(|it| it.contains("never be reached")).collect();
    let expected = [
        format!(
            "warning: route \"/admin/**\" at {file}:10:1 can never be reached: \"/**\" at {file}:7:1 comes first."
        ),
        format!(
            "warning: route \"/status\" at {file}:13:1 can never be reached: \"/status\" at {file}:1:1 comes first."
        ),
    ];
    assert_eq!(said, expected);
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
    // By its name: one in `plugins`, or a built-in one.
    let ended = run(&["plugin", "test", "cors"], &[]).await;
    assert!(ended.code == Some(0) && ended.stdout.starts_with("cors\n"), "{ended:?}");
    for (path, told) in [
        ("no/where", "there is no folder no/where here: name a plugin's folder or a folder of plugins"),
        ("cor", "cor: no such plugin: did you mean `cors`? Searched plugins and the built-in ones"),
        ("docs", "no plugins in docs"),
    ] {
        let ended = run(&["plugin", "test", path], &[]).await;
        assert!(ended.code == Some(1) && ended.stderr.contains(told), "{ended:?}");
    }
}

#[tokio::test]
async fn a_test_that_fails_says_why_in_few_lines() {
    let folder = Folder::new();
    folder.write("odd/schema.lua", "return { summary = \"Odd.\", phases = { \"on_request\" } }");
    folder.write(
        "odd/spec.lua",
        "local spec = require \"streamgate.spec\"\n\
         local function asked(plugin)\n  spec.passed(plugin:request {})\nend\n\
         return spec.plugin(\"odd\", {}, function(it)\n\
           it(\"lets all pass\", function(plugin) spec.passed(plugin:request {}) end)\n\
           it(\"asks\", function(plugin) asked(plugin) end)\n\
         end)\n",
    );
    let path = folder.path().join("odd").display().to_string();
    let test = async |plugin: &str| {
        folder.write("odd/plugin.lua", plugin);
        let ended = run(&["plugin", "test", &path], &[]).await;
        assert_eq!(ended.code, Some(1), "{ended:?}");
        let parent = folder.path().canonicalize().expect("it is there").display().to_string();
        ended.stdout.replace(&format!("{parent}/"), "")
    };
    let told = test("local M = {}\nlocal function inner()\n  local missing\n  return missing.field\nend\nfunction M.on_request()\n  inner()\nend\nreturn M\n").await;
    let why = "got the rejection plugin.failed (500)\n          \
        odd/plugin.lua:4: attempt to index a nil value (local 'missing')\n            \
        odd/plugin.lua:4: in upvalue 'inner'\n            \
        odd/plugin.lua:7: in function <odd/plugin.lua:6>\n";
    assert_eq!(
        told,
        format!(
            "odd\n  FAIL  lets all pass\n        odd/spec.lua:6: expected the request to pass, {why}  \
             FAIL  asks\n        odd/spec.lua:3: expected the request to pass, {why}          \
             odd/spec.lua:3: in upvalue 'asked'\n          odd/spec.lua:7: in upvalue 'test'\n\
             0 passed, 2 failed\n"
        )
    );
    let told =
        test("return { on_request = function(request)\n  request:reject \"auth.forbidden\"\nend }").await;
    assert!(told.contains("odd/plugin.lua:1: on_request did not return what request:reject or"), "{told}");

    folder.write(
        "odd/spec.lua",
        "local spec = require \"streamgate.spec\"\n\
         return spec.plugin(\"odd\", {}, function(it)\n\
           it(\"a\", function() spec.equal(\"a\\n\\tb\", \"c\") end)\n\
           it(\"b\", function(plugin) spec.failed(plugin:request {}, \"dust\") end)\n\
           it(\"c\", function() spec.refused({}, \"dust\") end)\n\
           it(\"d\", function() spec.refused({ opens = 1 }, \"dust\") end)\n\
         end)\n",
    );
    let told = test("return { on_request = function(request)\n  local x = nil + 1\nend }").await;
    for part in [
        "odd/spec.lua:3: expected \"c\", got \"a\\n\\tb\"\n  FAIL",
        "odd/spec.lua:4: expected a failure with \"dust\", got\n          odd/plugin.lua:2: attempt to perform arithmetic",
        "odd/spec.lua:5: expected the settings to be refused with \"dust\", got no refusal\n",
        "got\n          spec.lua   opens\n                     unknown setting; this plugin has none\n",
    ] {
        assert!(told.contains(part), "{part} is missing in:\n{told}");
    }

    // What no test can pass with is told once.
    for (plugin, why) in [
        ("return {\n  on_request = function(\n}", "odd/plugin.lua:3   odd"),
        ("require \"streamgate.metrics\".counter(\"n\", \"x\")", "odd/plugin.lua:1   odd"),
        ("local M = {}\nfunction M.on_request() end\n", "the last line is `return M`"),
    ] {
        let told = test(plugin).await;
        assert!(told.starts_with("odd\n  FAIL  cannot be tested\n"), "{told}");
        assert!(told.matches(why).count() == 1 && told.ends_with("\n0 passed, 1 failed\n"), "{told}");
    }
}

#[tokio::test]
async fn a_spec_reads_what_a_plugin_has_counted() {
    let folder = Folder::new();
    folder.write("meter/schema.lua", "return { summary = \"Counts.\", phases = { \"on_request\" } }");
    folder.write(
        "meter/plugin.lua",
        "local metrics = require \"streamgate.metrics\"\n\
         local n = metrics.counter(\"seen_total\", \"Seen.\")\n\
         local by = metrics.counter(\"by_total\", \"By whom.\", { \"who\", \"how\" })\n\
         local level = metrics.gauge(\"level\", \"How high.\")\n\
         local took = metrics.histogram(\"seconds\", \"How long.\")\n\
         return { on_request = function(request)\n\
           n:add() by:add(2, \"ada\", \"by foot\") level:set(0.5) took:observe(0.25)\n\
         end }\n",
    );
    folder.write(
        "meter/spec.lua",
        "local spec = require \"streamgate.spec\"\n\
         local function refused(text, ...)\n\
           local ok, why = pcall(spec.metric, ...)\n\
           assert(not ok and tostring(why):find(text, 1, true), tostring(why))\n\
         end\n\
         return spec.plugin(\"meter\", {}, function(it)\n\
           it(\"counts\", function(plugin)\n\
             spec.equal(spec.metric \"seen_total\", 0)\n\
             plugin:request {}\n\
             plugin:request {}\n\
             spec.equal(spec.metric \"seen_total\", 2)\n\
             spec.equal(spec.metric \"streamgate_plugin_meter_seen_total\", 2)\n\
             spec.equal(spec.metric(\"by_total\", { who = \"ada\", how = \"by foot\" }), 4)\n\
             spec.equal(spec.metric(\"by_total\", { who = \"bob\", how = \"by foot\" }), 0)\n\
             spec.equal(spec.metric \"level\", 0.5)\n\
             spec.equal(spec.metric \"seconds\", { count = 2, sum = 0.5 })\n\
           end)\n\
           it(\"begins anew\", function() spec.equal(spec.metric \"seen_total\", 0) end)\n\
           it(\"knows its metrics\", function()\n\
             refused(\"did you mean `seen_total`? Meter has by_total, level, seconds, seen_total\", \"seen_totl\")\n\
             refused(\"the labels of by_total are: who, how\", \"by_total\", { who = \"ada\" })\n\
             refused(\"the labels of seen_total are: none\", \"seen_total\", { who = \"ada\" })\n\
           end)\n\
         end)\n",
    );
    let ended = run(&["plugin", "test", &folder.path().join("meter").display().to_string()], &[]).await;
    assert!(ended.stdout.ends_with("3 passed, 0 failed\n"), "{}", ended.stdout);
}

/// A file in the folder where a command is run is not read unless it is named, and that is said.
#[tokio::test]
async fn a_file_that_was_not_named_is_mentioned() {
    let folder = Folder::new();
    folder.write("streamgate.toml", "[[route]]\npath = \"/**\"\nchain = []\n");
    let hint =
        "streamgate.toml is here and was not read, for no file was named: add `--config streamgate.toml`";
    for command in ["check", "run"] {
        let ended = run_in(folder.path(), &[command], &[]).await;
        assert!(ended.code == Some(2) && ended.stderr.contains(hint), "{ended:?}");
    }
    let env = sample("grpc.example:443");
    let ended = run_in(folder.path(), &["check", "--explain"], &env).await;
    assert!(ended.code == Some(0) && ended.stdout.contains(hint), "{ended:?}");
    let ended = run_in(folder.path(), &["check", "--config", "streamgate.toml"], &env).await;
    assert!(ended.code == Some(0) && !ended.stdout.contains(hint), "{ended:?}");
    // A folder without plugins.
    let ended = run_in(folder.path(), &["plugin", "test"], &[]).await;
    assert!(ended.code == Some(1) && ended.stderr.contains("there is no folder plugins here"), "{ended:?}");
}

#[tokio::test]
async fn a_new_plugin_works_and_can_stand_in_a_chain() {
    let folder = Folder::new();
    let plugins = folder.path().join("plugins").display().to_string();
    let made =
        run(&["plugin", "new", "my-tenants", "--phase", "authorize,session_tick", "--in", &plugins], &[])
            .await;
    assert!(made.code == Some(0) && made.stdout.contains("authorize, session_tick"), "{made:?}");
    let tested = run(&["plugin", "test", &format!("{plugins}/my-tenants")], &[]).await;
    assert!(tested.code == Some(0) && tested.stdout.contains("2 passed, 0 failed"), "{tested:?}");
    let file = folder.write("streamgate.toml", "[[route]]\npath = \"/**\"\nchain = [\"my-tenants\"]\n");
    let env = sample("grpc.example");
    let checked = run(&["check", "--explain", "--config", &file.display().to_string()], &env).await;
    assert!(checked.code == Some(0), "{checked:?}");
    assert!(checked.stdout.contains("authorize         my-tenants\n"), "{}", checked.stdout);

    let again = run(&["plugin", "new", "my-tenants", "--in", &plugins], &[]).await;
    let exists = "my-tenants exists, and nothing in it was changed; take another name, or remove it first";
    assert!(again.code == Some(1) && again.stderr.contains(exists), "{again:?}");
    for name in ["", "My-Plugin", "../away", "a_b", "7up", "-x", "cors", &"a".repeat(65)] {
        let refused = run(&["plugin", "new", "--in", &plugins, "--", name], &[]).await;
        assert!(refused.code == Some(2) && refused.stdout.is_empty(), "{name:?}: {refused:?}");
    }
    let refused = run(&["plugin", "new", "other", "--phase", "sometimes", "--in", &plugins], &[]).await;
    assert!(refused.code == Some(2) && refused.stderr.contains("session_tick"), "{refused:?}");
    assert_eq!(std::fs::read_dir(&plugins).expect("it was made").count(), 1);
}

#[tokio::test]
async fn plugins_are_listed_with_what_is_wrong_with_them() {
    let folder = Folder::new();
    folder.write(
        "mine/good/schema.lua",
        "return { summary = \"Does nothing.\", phases = { \"on_request\", \"log\" } }",
    );
    folder.write("mine/good/plugin.lua", "return { on_request = function(request) end }");
    folder.write("mine/cors/schema.lua", "return { summary = \"Another one.\", phases = { \"log\" } }");
    folder.write("mine/cors/plugin.lua", "return { log = function() end }");
    folder.write("mine/_draft/plugin.lua", "nothing yet");
    folder.write("mine/notes.md", "Notes.");
    let config = folder.write("streamgate.toml", "[plugins]\npaths = [\"mine\"]\n");
    let mine = folder.path().join("mine").display().to_string();
    for args in [vec![mine.as_str()], vec!["--config", config.to_str().expect("a path")]] {
        let told = run(&[&["plugin", "list"], args.as_slice()].concat(), &[]).await;
        assert_eq!((told.code, told.stderr.as_str()), (Some(0), ""), "{told:?}");
        let line = |name: &str, from: &str| {
            let found = told.stdout.lines().find(|it| it.starts_with(name) && it.contains(from));
            found.unwrap_or_else(|| panic!("no {name} from {from} in {}", told.stdout)).to_owned()
        };
        assert!(line("good ", "mine/good").ends_with("on_request, log; Does nothing."));
        assert!(line("cors ", "mine/cors").ends_with("Another one."));
        assert!(line("cors ", "built in").contains("not used"));
        assert!(line("bearer-auth ", "built in").contains("authenticate"));
        assert!(!told.stdout.contains("_draft"));
    }

    folder.write("mine/good/plugin.lua", "--- It is broken.\nreturn {{ }\n");
    folder.write("mine/Bad_Name/plugin.lua", "return {}");
    folder.write("mine/half/plugin.lua", "return {}");
    folder.write("mine/odd/plugin.lua", "return {}");
    folder.write("mine/odd/schema.lua", "return { phases = { \"never\" } }");
    let told = run(&["plugin", "list", &mine], &[]).await;
    assert!(told.code == Some(1) && told.stderr.contains("4 plugins are broken"), "{told:?}");
    for part in [
        "good/plugin.lua:3",
        "not a plugin's name",
        "has no schema.lua",
        "unknown phase \"never\"",
        "summary",
    ] {
        assert!(told.stdout.contains(part), "{part} is missing in:\n{}", told.stdout);
    }
    let told = run(&["plugin", "list", "--config", "nowhere.toml"], &[]).await;
    assert!(told.code == Some(2) && told.stderr.contains("nowhere.toml"), "{told:?}");
}

#[tokio::test]
async fn the_settings_of_a_plugin_are_there_as_json_schema() {
    let folder = Folder::new();
    folder.write(
        "limits/schema.lua",
        "return { summary = \"Bounds.\", phases = { \"on_request\" }, fields = {\n\
           most = { type = \"integer\", required = true, min = 1, max = 9, doc = \"How many.\" },\n\
           key = { type = \"secret\", doc = \"What it is sealed with.\" },\n\
           hosts = { type = \"list\", of = \"url\", default = {}, doc = \"Whom to ask.\" },\n\
           mode = { type = \"string\", choices = { \"a\", \"b\" }, default = \"a\", doc = \"Which.\" } } }",
    );
    folder.write("limits/plugin.lua", "return { on_request = function(request) end }");
    let path = folder.path().display().to_string();
    let told = run(&["plugin", "schema", &path], &[]).await;
    assert_eq!((told.code, told.stderr.as_str()), (Some(0), ""), "{told:?}");
    let schema: serde_json::Value = serde_json::from_str(&told.stdout).expect("JSON");
    let limits = &schema["$defs"]["limits"];
    let properties = &limits["properties"];
    assert_eq!(limits["required"], serde_json::json!(["plugin", "most"]));
    assert_eq!(limits["additionalProperties"], false);
    let most =
        serde_json::json!({ "type": "integer", "minimum": 1.0, "maximum": 9.0, "description": "How many." });
    assert_eq!(properties["most"], most);
    assert_eq!(properties["key"]["pattern"], "^(env|file):");
    assert_eq!(properties["hosts"]["items"]["format"], "uri");
    assert_eq!(properties["hosts"]["default"], serde_json::json!([]));
    assert_eq!(properties["mode"]["enum"], serde_json::json!(["a", "b"]));
    assert!(properties["when"]["properties"]["claim"].is_object(), "what every step may say is there too");

    folder.write("limits/schema.lua", "return { summary = \"Bounds.\" }");
    let told = run(&["plugin", "schema", &path], &[]).await;
    assert!(told.code == Some(2) && told.stderr.contains("limits/schema.lua"), "{told:?}");
}

#[tokio::test]
async fn tests_tell_which_lines_they_have_not_run() {
    let folder = Folder::new();
    folder.write(
        "half/schema.lua",
        "return { summary = \"Half.\", phases = { \"on_request\", \"authenticate\" } }",
    );
    folder.write(
        "half/plugin.lua",
        "--- A plugin.\n\
         local kv = require \"streamgate.kv\"\n\
         local more = require \"more\"\n\
         local M = {}\n\
         function M.on_request(request)\n\
           if request:path() == \"/no\" then\n\
             return request:reject \"auth.forbidden\"\n\
           end\n\
         end\n\
         function M.authenticate(request)\n\
           kv.get \"a\"\n\
           more.waits()\n\
         end\n\
         return M\n",
    );
    folder.write(
        "half/more.lua",
        "--- A module.\nlocal M = {}\nfunction M.waits()\n  return 1\nend\nfunction M.never()\n  local x = 1\n  return x\nend\nreturn M\n",
    );
    folder.write(
        "half/spec.lua",
        "local spec = require \"streamgate.spec\"\n\
         return spec.plugin(\"half\", {}, function(it)\n\
           it(\"lets all pass\", function(plugin) spec.passed(plugin:request { path = \"/\" }) end)\n\
         end)\n",
    );
    let half = folder.path().join("half").display().to_string();
    let plain = run(&["plugin", "test", &half], &[]).await;
    assert!(plain.code == Some(0) && !plain.stdout.contains("lines"), "{plain:?}");
    let told = run(&["plugin", "test", &half, "--coverage"], &[]).await;
    assert_eq!(told.code, Some(0), "{told:?}");
    // `authenticate` may wait, so it runs in a coroutine.
    for part in [
        "lines 5/7 of more.lua, 71.4 %; missed 7-8\n",
        "lines 9/10 of plugin.lua, 90.0 %; missed 7\n",
        "14 of 17 lines were run",
    ] {
        assert!(told.stdout.contains(part), "{part} is missing in:\n{}", told.stdout);
    }
    let enough = run(&["plugin", "test", &half, "--coverage", "--at-least", "71"], &[]).await;
    assert_eq!(enough.code, Some(0), "{enough:?}");
    let few = run(&["plugin", "test", &half, "--coverage", "--at-least", "80"], &[]).await;
    assert!(few.code == Some(1) && few.stderr.contains("more.lua: 71.4 % is less than 80 %"), "{few:?}");
    assert!(!few.stderr.contains("plugin.lua"), "{few:?}");
    let alone = run(&["plugin", "test", &half, "--at-least", "80"], &[]).await;
    assert_eq!(alone.code, Some(2), "{alone:?}");
}

#[tokio::test]
async fn what_a_plugin_costs_is_measured_for_each_phase() {
    let folder = Folder::new();
    let tokens = folder.write("tokens.toml", &format!("[ada]\ntoken = {TOKEN:?}\n"));
    let settings = format!("tokens = \"file:{}\"", tokens.display());
    let bench = ["plugin", "bench", "bearer-auth", "--seconds", "1", "--settings", &settings];
    for (token, ending) in [(TOKEN, "continue"), ("another", "reject auth.unknown_token")] {
        let told = run(&[&bench[..], &["--token", token]].concat(), &[]).await;
        assert_eq!(told.code, Some(0), "{told:?}");
        let figures = |phase: &str| {
            let line = told.stdout.lines().find(|it| it.starts_with(&format!("{phase} ")));
            let line = line.unwrap_or_else(|| panic!("no {phase} in {}", told.stdout));
            let fields: Vec<&str> = line.split_whitespace().collect();
            let [call, empty, bytes, allocations] =
                [1, 2, 3, 4].map(|it| fields[it].parse::<u64>().expect("a number"));
            (call, empty, bytes, allocations, fields[5..].join(" "))
        };
        let (call, empty, bytes, allocations, ends) = figures("authenticate");
        assert!(call > empty && empty > 0 && bytes > 0 && allocations > 0, "{}", told.stdout);
        assert_eq!(ends, ending);
        assert!(figures("session_tick").0 > 0);
        assert!(!told.stdout.contains(TOKEN), "a token is printed");
    }

    // The request is what the user says it is.
    folder.write("mine/asks/schema.lua", "return { summary = \"Asks.\", phases = { \"on_request\" } }");
    folder.write(
        "mine/asks/plugin.lua",
        "return { on_request = function(request)\n\
           local is_it = request:header \"x-a\" == \"b=c\" and request:path() == \"/p\" and request:query() == \"q=1\"\n\
           return request:respond(is_it and 200 or 404)\n\
         end }",
    );
    let asks = folder.path().join("mine/asks").display().to_string();
    let request = ["--seconds", "1", "--path", "/p?q=1", "--header", "x-a=b=c"];
    let told = run(&[&["plugin", "bench", &asks], &request[..]].concat(), &[]).await;
    assert!(told.code == Some(0) && told.stdout.contains("respond 200"), "{told:?}");

    folder.write("mine/asks/plugin.lua", "return { on_request = function(request) error \"is over\" end }");
    let failed = run(&["plugin", "bench", &asks, "--seconds", "1"], &[]).await;
    assert!(failed.code == Some(2) && failed.stderr.contains("plugin.lua:1: is over"), "{failed:?}");
    let unset = run(&["plugin", "bench", "bearer-auth"], &[]).await;
    assert!(unset.code == Some(2) && unset.stderr.contains("tokens"), "{unset:?}");
    let wrong = run(&["plugin", "bench", "cors", "--settings", "a = "], &[]).await;
    assert!(wrong.code == Some(2) && wrong.stderr.contains("--settings:1"), "{wrong:?}");
    for settings in
        ["allow_methods = [\"GET\"], max_age = \"1h\"", "allow_methods = [\"GET\"]\nmax_age = \"1h\""]
    {
        let told = run(&["plugin", "bench", "cors", "--seconds", "1", "--settings", settings], &[]).await;
        assert_eq!(told.code, Some(0), "{told:?}");
    }
    let none = run(&["plugin", "bench", "no-such"], &[]).await;
    assert!(none.code == Some(2) && none.stderr.contains("no such plugin"), "{none:?}");
}

#[tokio::test]
async fn the_name_of_a_header_is_not_allocated() {
    let folder = Folder::new();
    folder.write(
        "mine/asks/schema.lua",
        "return { summary = \"Asks.\", phases = { \"upstream_request\", \"response_headers\" } }",
    );
    let asks = folder.path().join("mine/asks").display().to_string();
    let mut allocations = Vec::new();
    for lines in [
        ["", ""],
        [
            "request:header \"x-not-there\" upstream:header \"X-Nor-This\" upstream:remove_header \"x-third\"",
            "",
        ],
        ["", "response:header \"x-not-there\" response:remove_header \"x-nor-this\""],
        ["upstream:set_header(\"x-a\", \"1\")", ""],
        [
            "upstream:set_header(\"x-a\", \"1\") upstream:set_header(\"X-A\", \"2\") upstream:set_header(\"x-a\", \"3\")",
            "",
        ],
    ] {
        let [upstream, response] = lines;
        folder.write(
            "mine/asks/plugin.lua",
            &format!(
                "return {{\n\
                   upstream_request = function(request, upstream) {upstream} end,\n\
                   response_headers = function(request, response) {response} end,\n\
                 }}"
            ),
        );
        let told = run(&["plugin", "bench", &asks, "--seconds", "1"], &[]).await;
        assert_eq!(told.code, Some(0), "{told:?}");
        let of = |phase: &str| {
            let line = told.stdout.lines().find(|it| it.starts_with(phase)).expect("it is measured");
            line.split_whitespace().nth(4).expect("a figure").parse::<u64>().expect("a number")
        };
        allocations.push([of("upstream_request"), of("response_headers")]);
    }
    let [nothing, upstream, response, once, thrice] = allocations[..] else {
        unreachable!("there were five")
    };
    assert_eq!(upstream, nothing, "names of the request's headers");
    assert_eq!(response, nothing, "names of the response's headers");
    assert_eq!(thrice, [once[0] + 2, once[1]], "two more values");
}

#[tokio::test]
async fn editors_get_the_types_of_the_api() {
    let folder = Folder::new();
    let (types, workspace) = (folder.path().join("lua/types"), folder.path().display().to_string());
    let args = ["plugin", "types", types.to_str().expect("a path"), "--workspace", &workspace];
    let told = run(&args, &[]).await;
    assert_eq!(told.code, Some(0), "{told:?}");
    for file in ["streamgate.lua", "streamgate/kv.lua", "streamgate/token.lua", "streamgate/spec.lua"] {
        let text = std::fs::read_to_string(types.join(file)).unwrap_or_else(|it| panic!("{file}: {it}"));
        assert!(text.starts_with("---"), "{file}");
    }
    let settings = folder.path().join(".luarc.json");
    let written = std::fs::read_to_string(&settings).expect("it is written");
    let json: Value = serde_json::from_str(&written).expect("JSON");
    assert_eq!(
        (&json["runtime.version"], &json["workspace.library"][0]),
        (&"Lua 5.4".into(), &"lua/types".into())
    );
    let again = run(&args, &[]).await;
    let fresh = format!("{} is up to date\n{} is set up already\n", types.display(), settings.display());
    assert_eq!((again.code, again.stdout), (Some(0), fresh));
    std::fs::write(&settings, "{}").expect("it can be written");
    let told = run(&args, &[]).await;
    let needs = "is there already and was not changed; it needs `\"workspace.library\": [\"lua/types\"]`";
    assert!(told.code == Some(0) && told.stdout.contains(needs), "{told:?}");
    assert_eq!(std::fs::read_to_string(&settings).expect("it is there"), "{}", "what the user wrote stays");
}
