//! Configuration cases: what is written, and what an operator is told about it.

use std::path::Path;

use super::*;

/// The seed's variables, as NVIDIA's page gives them.
fn seed() -> Vec<(&'static str, &'static str)> {
    vec![
        ("NVCF_API_KEY", "nvapi-0123456789abcdef"),
        ("STREAMING_FUNCTION_ID", "f00d"),
        ("NVCF_SERVER", "grpc.example"),
    ]
}

fn gateway(env: &[(&str, &str)], file: &str) -> Result<Gateway, String> {
    let mut sources = Sources::new(env.iter().copied().collect());
    if !file.is_empty() {
        sources = sources.with_file("streamgate.toml", file);
    }
    sources
        .resolve(Role::Gateway)
        .map(|it| it.gateway.expect("the role asks for it"))
        .map_err(|it| it.to_string())
}

#[test]
fn the_seeds_variables_alone_are_enough() {
    let it = gateway(&seed(), "").expect("valid");
    assert_eq!(it.listen.address.to_string(), "0.0.0.0:49100");
    assert_eq!(it.upstream.server, Server { host: "grpc.example".into(), port: 443, tls: true });
    assert_eq!(it.upstream.pool, Pool::Never);
    assert!(it.parts.tls.is_none());
    assert!(!it.listen.page, "the page is not served unless the file says so");
    assert_eq!(it.parts.routes[0].chain[0].plugin, "cors");

    let more =
        [("PROXY_PORT", "48322"), ("PROXY_SSL_INSECURE", "true"), ("STREAMING_FUNCTION_VERSION_ID", "v1")];
    let it = gateway(&[seed(), more.to_vec()].concat(), "").expect("valid");
    assert_eq!(it.listen.address.to_string(), "0.0.0.0:48322");
    assert!(matches!(it.parts.tls, Some(Tls::SelfSigned)));
    assert_eq!(it.upstream.function_version_id.as_deref(), Some("v1"));
}

#[test]
fn the_server_falls_back_to_gateway_addr() {
    let mut env = seed();
    env.retain(|(name, _)| *name != "NVCF_SERVER");
    env.extend([("NVCF_SERVER", ""), ("GATEWAY_ADDR", "gateway.example")]);
    assert_eq!(gateway(&env, "").expect("valid").upstream.server.host, "gateway.example");
}

#[test]
fn a_variable_wins_over_the_file_and_a_port_keeps_the_files_host() {
    let file = "[listen]\naddress = \"127.0.0.1:80\"\n[upstream]\nserver = \"file.example\"\n";
    let env = [seed(), vec![("PROXY_PORT", "8080"), ("STREAMGATE_UPSTREAM_POOL", "shared")]].concat();
    let it = gateway(&env, file).expect("valid");
    assert_eq!(it.listen.address.to_string(), "127.0.0.1:8080");
    assert_eq!(it.upstream.server.host, "grpc.example");
    assert_eq!(it.upstream.pool, Pool::Shared);
}

#[test]
fn no_part_of_a_secret_is_in_a_problem() {
    for (env, file) in [
        (vec![], "[upstream]\napi_key = \"hunter2-literal\"\n"),
        (vec![("NVCF_API_KEY", "hunter2 with a space")], ""),
        (vec![("STREAMGATE_SESSIONS_COOKIE_KEY", "hunter2")], ""),
        (vec![], "[upstream]\napi_kee = \"hunter2\"\n"),
        (vec![], "[upstream]\napi_key = [\"hunter2\"]\n"),
        (vec![("STREAMGATE_UPSTREAM_API_KEE", "hunter2")], ""),
    ] {
        let text = gateway(&env, file).expect_err("a mistake");
        assert!(!text.contains("hunter2"), "{text}");
    }
}

#[test]
fn a_misspelt_level_does_not_silence_the_log() {
    let check = |level: &str, expected: &str| {
        let told = gateway(&seed(), &format!("[log]\nlevel = {level:?}\n")).map(drop);
        match (told, expected) {
            (Ok(()), "") => {}
            (Err(told), expected) if !expected.is_empty() => {
                assert!(told.contains(expected), "{level}: {told}")
            }
            (told, _) => panic!("{level}: {told:?}"),
        }
    };
    for fine in ["error", "warn", "info", "debug", "trace", "off", "INFO", "info,streamgate::gateway=debug"] {
        check(fine, "");
    }
    for fine in ["streamgate::gateway", "warn,[session]=debug,", "info,hyper=off"] {
        check(fine, "");
    }
    check("warning", "did you mean `warn`?");
    check("debg", "did you mean `debug`?");
    check("info,debg", "did you mean `debug`?");
    check("info, debug", "did you mean `debug`?"); // the space would be a part of a name
    check("loud", "there are error, warn, info, debug, trace, off");
    check("info,hyper=debg", "not a level or a filter: ");
}

#[test]
fn what_kubernetes_says_of_a_service_of_our_name_is_no_setting() {
    let of_services = [
        ("STREAMGATE_SERVICE_HOST", "10.0.0.7"),
        ("STREAMGATE_SERVICE_PORT", "443"),
        ("STREAMGATE_SERVICE_PORT_HTTPS", "443"),
        ("STREAMGATE_PORT", "tcp://10.0.0.7:443"),
        ("STREAMGATE_PORT_443_TCP", "tcp://10.0.0.7:443"),
        ("STREAMGATE_PORT_443_TCP_PROTO", "tcp"),
        ("STREAMGATE_PORT_443_TCP_PORT", "443"),
        ("STREAMGATE_PORT_443_TCP_ADDR", "10.0.0.7"),
        ("STREAMGATE_MEDIA_PORT_48000_UDP", "udp://10.0.0.8:48000"),
        ("STREAMGATE_ADMIN_SERVICE_HOST", "10.0.0.8"),
    ];
    gateway(&[&seed()[..], &of_services].concat(), "").expect("valid");
    for name in
        ["STREAMGATE_PORT", "STREAMGATE_LISTEN_PORT", "STREAMGATE_SERVICE_PORT_NAME", "STREAMGATE_PORT_HTTP"]
    {
        let told = gateway(&[&seed()[..], &[(name, "http")]].concat(), "").expect_err("no setting");
        assert!(told.contains(name) && told.contains("unknown key"), "{told}");
    }
}

#[test]
fn every_default_has_the_type_of_its_setting() {
    let everything = "[streaming]\n[frontdoor]\n";
    let it = Sources::new(seed().into_iter().collect()).with_file("streamgate.toml", everything);
    let it = it.resolve(Role::Gateway).expect("defaults are valid");
    assert_eq!(it.streaming.expect("it has a table").ports, PortRange { first: 47998, last: 48020 });
    assert!(it.frontdoor.is_some());
}

#[test]
fn a_container_listens_to_the_outside_on_the_ports_it_is_told() {
    let env = [
        ("CONTROL_SERVER_PORT", "8111"),
        ("STREAMING_START_ENDPOINT", "/go"),
        ("STREAMING_PORT_BINDING_RANGE", "48000-48001"),
    ];
    let it = Sources::new(env.into_iter().collect())
        .resolve(Role::Stream)
        .expect("valid")
        .streaming
        .expect("its role");
    assert_eq!(it.control.to_string(), "0.0.0.0:8111");
    assert_eq!(it.signaling.to_string(), "0.0.0.0:49100");
    assert_eq!(it.start_endpoint, "/go");
    assert_eq!(it.ports, PortRange { first: 48000, last: 48001 });
}

/// Each file of `tests/golden/config` holds a configuration, a line `----------`, and what the operator is told.
/// Lines `# env NAME=value` at the top set variables. `STREAMGATE_BLESS=1` writes the answers anew.
#[test]
fn mistakes_are_told_with_place_expectation_and_hint() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/config");
    let mut n_cases = 0;
    for entry in std::fs::read_dir(&folder).expect("the folder of cases") {
        let path = entry.expect("a case").path();
        let text = std::fs::read_to_string(&path).expect("a readable case");
        let (input, expected) = text.split_once("----------\n").expect("a case has two parts");
        let env: Vec<(&str, &str)> =
            input.lines().filter_map(|it| it.strip_prefix("# env ")?.split_once('=')).collect();
        let sources = Sources::new(env.into_iter().collect()).with_file("streamgate.toml", input);
        let got = match sources.resolve(Role::Gateway) {
            Ok(_) => "valid\n".to_owned(),
            Err(problems) => format!("{problems}\n"),
        };
        if Env::of_process().get("STREAMGATE_BLESS").is_some() {
            std::fs::write(&path, format!("{input}----------\n{got}")).expect("a writable case");
        } else {
            assert_eq!(got, expected, "{}", path.display());
        }
        n_cases += 1;
    }
    assert!(n_cases >= 5, "the cases are in {}", folder.display());
}

#[test]
fn the_reference_page_is_fresh() {
    let committed = include_str!("../../docs/reference/configuration.md");
    assert_eq!(committed, reference(), "run `make docs`");
}
