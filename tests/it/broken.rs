//! Plugins that cannot be loaded: told with file and line, and what becomes of the rest.

use crate::support::upstream::Act;
use crate::support::{Client, Gateway, Upstream};

const GOOD: &str = "return { summary = \"Odd.\", phases = { \"authenticate\" } }";
const WELL: &str = "return { authenticate = function() end }";

/// Ways to be broken: schema, code, and what is told.
const WAYS: &[(&str, Option<&str>, &str)] = &[
    (GOOD, None, "has no plugin.lua"),
    (GOOD, Some("return {\n  authenticate = function(\n}"), "plugins/odd/plugin.lua:3"),
    (GOOD, Some("local x = nil\nlocal y = x.z\nreturn {}"), "plugins/odd/plugin.lua:2"),
    (GOOD, Some("return 7"), "returned integer, expected the table of its phase functions"),
    (GOOD, Some("return { authentikate = function() end }"), "which is not a phase function"),
    (GOOD, Some("return {}"), "has no function authenticate"),
    (
        "return { summary = \"Odd.\", phases = { \"authentikate\" } }",
        Some(WELL),
        "unknown phase \"authentikate\"",
    ),
    ("return 7", Some(WELL), "returned integer, expected a table"),
    ("return {", Some(WELL), "plugins/odd/schema.lua:1"),
    (
        GOOD,
        Some("return { authenticate = function() end, configure = function() error \"no tenants\" end }"),
        "no tenants",
    ),
    (
        GOOD,
        Some("return { authenticate = function() end, self_test = function() error \"2 + 2 = 5\" end }"),
        "2 + 2 = 5",
    ),
];

const ROUTES: &str = "[[route]]\npath = \"/odd/**\"\nchain = [\"cors\", { plugin = \"odd\", any = \"setting\" }]\n[[route]]\npath = \"/**\"\nchain = [\"cors\"]";

async fn admin(gateway: &Gateway, path: &str) -> serde_json::Value {
    let mut client = Client::connect(gateway.addresses.admin.expect("it has admin endpoints")).await;
    client.request("GET", path, &[], b"").await;
    serde_json::from_str(&client.answer().await.text()).expect("JSON")
}

#[tokio::test]
async fn a_broken_plugin_costs_its_own_requests_alone_where_that_is_wanted() {
    for (schema, plugin, told) in WAYS {
        let upstream = Upstream::that(Act::Mirror).await;
        // Where there is a schema, settings are checked by it.
        let has_schema = *schema == GOOD && plugin.is_some();
        let routes = if has_schema { &ROUTES.replace(", any = \"setting\"", "") } else { ROUTES };
        let mut builder = Gateway::in_front_of(&upstream)
            .with(&format!("[plugins]\npaths = [\"plugins\"]\non_load_error = \"reject\"\n{routes}"))
            .file("plugins/odd/schema.lua", schema);
        if let Some(plugin) = plugin {
            builder = builder.file("plugins/odd/plugin.lua", plugin);
        }
        let gateway = builder.start().await;
        let odd = gateway.get("/odd/x", &[("Origin", "https://app.example")]).await;
        assert_eq!((odd.status, odd.code().as_str()), (500, "plugin.failed"), "{told}");
        assert!(odd.header("access-control-allow-origin").is_some(), "a page can read why: {told}");
        assert_eq!(gateway.get("/x", &[]).await.status, 200, "{told}");
        let plugins = admin(&gateway, "/admin/plugins").await;
        let warnings: Vec<&str> =
            plugins["warnings"].as_array().expect("a list").iter().filter_map(|it| it.as_str()).collect();
        assert!(warnings.concat().contains(told), "{told}: {warnings:?}");
    }
}

#[tokio::test]
async fn a_broken_plugin_stops_the_start_by_default() {
    for (schema, plugin, told) in WAYS {
        let upstream = Upstream::that(Act::Mirror).await;
        let mut builder = Gateway::in_front_of(&upstream)
            .with(&format!("[plugins]\npaths = [\"plugins\"]\n{}", ROUTES.replace(", any = \"setting\"", "")))
            .file("plugins/odd/schema.lua", schema);
        if let Some(plugin) = plugin {
            builder = builder.file("plugins/odd/plugin.lua", plugin);
        }
        let problems = builder.problems();
        assert!(problems.contains(told), "{told} is missing in:\n{problems}");
    }
}

#[tokio::test]
async fn the_admin_endpoint_tells_of_chains_and_of_the_last_reload() {
    let upstream = Upstream::that(Act::Mirror).await;
    let builder = Gateway::in_front_of(&upstream)
        .with("[plugins]\npaths = [\"plugins\"]\n[[route]]\npath = \"/**\"\nchain = [\"cors\", { plugin = \"odd\", id = \"trial\", dry_run = true, when = { method = \"GET\" } }]")
        .plugin("odd", GOOD, WELL);
    let file = builder.text();
    let gateway = builder.start().await;
    let plugins = admin(&gateway, "/admin/plugins").await;
    assert_eq!(plugins["generation"], 1);
    assert_eq!(plugins["last_reload"], serde_json::Value::Null);
    let step = &plugins["routes"][0]["chain"][1];
    assert_eq!(
        (&step["id"], &step["plugin"], &step["dry_run"]),
        (&"trial".into(), &"odd".into(), &true.into())
    );
    assert_eq!(step["when"], "{ method = \"GET\" }");
    let known: Vec<&str> =
        plugins["plugins"].as_array().expect("a list").iter().filter_map(|it| it["name"].as_str()).collect();
    assert_eq!(known, ["cors", "odd"]);

    gateway.folder.write("plugins/odd/plugin.lua", "return {");
    gateway.reload(&file).expect_err("a mistake");
    let plugins = admin(&gateway, "/admin/plugins").await;
    assert_eq!((&plugins["generation"], &plugins["last_reload"]["result"]), (&1.into(), &"failed".into()));
    let problems = plugins["last_reload"]["problems"].as_str().expect("what was wrong");
    assert!(problems.ends_with("1 problem, the configuration stays as it was"), "{problems}");
    assert!(problems.contains("plugins/odd/plugin.lua:1"), "{problems}");

    gateway.folder.write("plugins/odd/plugin.lua", WELL);
    gateway.reload(&file).expect("it is well again");
    let plugins = admin(&gateway, "/admin/plugins").await;
    assert_eq!((&plugins["generation"], &plugins["last_reload"]["result"]), (&2.into(), &"ok".into()));
    assert_eq!(plugins["last_reload"]["problems"], serde_json::Value::Null);
}
