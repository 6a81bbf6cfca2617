//! Modules in Lua that others have written, from a tree of LuaRocks.

use crate::support::upstream::Act;
use crate::support::{Gateway, Upstream};

const SCHEMA: &str = "return { summary = \"Greets.\", phases = { \"on_request\" } }";
const GREET: &str = "local greet = require \"greet\"\nreturn { on_request = function(request) return request:respond(200, {}, greet(request:path())) end }";
const MODULE: &str = "local words = require \"greet.words\"\nreturn function(name) return words.hello .. \" \" .. name .. tostring(io) end";

fn builder(upstream: &Upstream, plugin: &str) -> crate::support::gateway::Builder {
    Gateway::in_front_of(upstream)
        .with("[plugins]\npaths = [\"plugins\"]")
        .plugin("greeter", SCHEMA, plugin)
        .file("lua_modules/share/lua/5.4/greet/init.lua", MODULE)
        .file("lua_modules/share/lua/5.4/greet/words.lua", "return { hello = \"Hello\" }")
        .file("lua_modules/lib/lua/5.4/cjson.so", "not a library")
        .chain("\"greeter\"")
}

#[tokio::test]
async fn a_plugin_requires_modules_of_the_tree_and_they_have_no_more_than_it_has() {
    let upstream = Upstream::that(Act::Mirror).await;
    let builder = builder(&upstream, GREET);
    let file = builder.text();
    let gateway = builder.start().await;
    assert_eq!(gateway.get("/ada", &[]).await.text(), "Hello /adanil");
    gateway.folder.write("lua_modules/share/lua/5.4/greet/words.lua", "return { hello = \"Good day\" }");
    gateway.reload(&file).expect("it is valid");
    assert_eq!(gateway.get("/ada", &[]).await.text(), "Good day /adanil", "a reload reads the tree again");
}

#[tokio::test]
async fn a_module_that_cannot_be_had_is_told_with_the_reason() {
    let upstream = Upstream::that(Act::Mirror).await;
    for (name, told) in [
        ("cjson", "cjson is a module in C, which plugins cannot load"),
        ("greet.nothing", "no module \"greet.nothing\""),
        ("../../plugins/greeter/plugin", "no module"),
    ] {
        let plugin = format!("require {name:?}\nreturn {{ on_request = function() end }}");
        let problems = builder(&upstream, &plugin).problems();
        assert!(problems.contains(told), "{name}: {problems}");
    }
    let problems = builder(&upstream, GREET)
        .file("lua_modules/share/lua/5.4/greet/init.lua", "return function( end")
        .problems();
    assert!(problems.contains("greet/init.lua:1"), "{problems}");
}
