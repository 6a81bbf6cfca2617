//! Runs the tests that plugins bring along, against the real thing: the same VM, the same chain.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use mlua::{Lua, Table, Value};

use crate::config::{self, Place, Problem, Problems, Reference};
use crate::lua::api::Time;
use crate::lua::bundle::{Bundle, SPEC_LIBRARY};
use crate::lua::loader::Plugin;
use crate::lua::vm::{Instance, Vm, describe};
use crate::lua::{convert, sandbox};
use crate::policy::{
    Chain, Exchange, Offer, OnError, Outcome, Phase, References, ResponseHead, Setting, Stop, Watch,
    passed_on,
};
use crate::secret::Secret;

/// What became of the tests of one plugin.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) plugin: String,
    /// Each test, with what went wrong.
    pub(crate) tests: Vec<(String, Option<String>)>,
}

/// Memory of a VM in which tests run.
const MEMORY: usize = 32 << 20;

/// Runs `spec.lua` of one plugin. The error is about the plugin or the file as a whole.
pub(crate) fn run(bundle: Bundle) -> Result<Report, Problems> {
    let plugin = Arc::new(Plugin::load(bundle)?);
    let name = plugin.bundle.name.clone();
    let Some(file) = plugin.bundle.files.get("spec.lua") else {
        return Err(Problem::new(Place::Nowhere, name, "has no spec.lua").into());
    };
    let path = file.path.display().to_string();
    let failed =
        |error: &mlua::Error| Problems::from(Problem::new(Place::file(&path), &name, describe(error).detail));
    let vm = Vm::new(MEMORY, Time::Set(Rc::default())).map_err(|it| failed(&it))?;
    let suite = load(&vm.lua, &plugin, &path, &file.text).map_err(|it| failed(&it))?;
    let mut report = Report { plugin: name.clone(), tests: Vec::new() };
    let tests: Table = suite.raw_get("tests").map_err(|it| failed(&it))?;
    for test in tests.sequence_values::<Table>() {
        let test = test.map_err(|it| failed(&it))?;
        let what: String = test.raw_get("what").map_err(|it| failed(&it))?;
        let body: mlua::Function = test.raw_get("run").map_err(|it| failed(&it))?;
        report.tests.push((what, body.call::<()>(()).err().map(|it| describe(&it).detail)));
    }
    Ok(report)
}

fn load(lua: &Lua, plugin: &Arc<Plugin>, path: &str, text: &str) -> mlua::Result<Table> {
    let modules = sandbox::Modules { bundle: Arc::clone(&plugin.bundle), extra: vec![SPEC_LIBRARY] };
    let env = sandbox::environment(lua, &Rc::new(modules), &Time::Set(Rc::default()))?;
    // `require "streamgate.harness"` finds what is preloaded here.
    let require: mlua::Function = env.raw_get("require")?;
    let harness = harness(lua, plugin)?;
    let with_harness = lua.create_function(move |_, name: mlua::LuaString| match &*name.to_str()? {
        "streamgate.harness" => Ok(Value::Table(harness.clone())),
        _ => require.call(&name),
    })?;
    env.raw_set("require", with_harness)?;
    sandbox::chunk(lua, path, text, &env)?.call(())
}

/// The functions behind `lua/streamgate/spec.lua`.
fn harness(lua: &Lua, plugin: &Arc<Plugin>) -> mlua::Result<Table> {
    let files: Rc<RefCell<BTreeMap<PathBuf, config::Table>>> = Rc::default();
    let table = lua.create_table()?;

    let token_files = Rc::clone(&files);
    table.raw_set(
        "tokens",
        lua.create_function(move |_, principals: Table| {
            let place = Place::file("spec.lua");
            let mut node =
                convert::to_node(&Value::Table(principals), &place).map_err(mlua::Error::runtime)?;
            if let config::Value::Table(table) = &mut node.value {
                *table = table.iter().cloned().map(|it| short_form(it, &place)).collect();
                let path = PathBuf::from(format!("tokens-{}.toml", token_files.borrow().len()));
                let reference = format!("file:{}", path.display());
                token_files.borrow_mut().insert(path, table.clone());
                return Ok(reference);
            }
            Err(mlua::Error::runtime("spec.tokens: expected a table from principals to tokens"))
        })?,
    )?;

    let (of, token_files) = (Arc::clone(plugin), Rc::clone(&files));
    table.raw_set(
        "request",
        lua.create_function(move |lua, (settings, request): (Table, Table)| {
            let bench = Bench::new(&of, settings, &request, &token_files)?;
            let mut exchange = exchange(&request)?;
            let phases = [Phase::OnRequest, Phase::Authenticate, Phase::Authorize, Phase::UpstreamRequest];
            let stop = phases.into_iter().find_map(|phase| {
                if phase == Phase::UpstreamRequest {
                    exchange.upstream = passed_on(&exchange.headers);
                }
                bench.chain.run_now(phase, &mut exchange, &bench.watch).err()
            });
            outcome(lua, &exchange, stop, &bench)
        })?,
    )?;

    let (of, token_files) = (Arc::clone(plugin), Rc::clone(&files));
    table.raw_set(
        "tick",
        lua.create_function(move |lua, (settings, session): (Table, Table)| {
            let bench = Bench::new(&of, settings, &session, &token_files)?;
            let mut exchange = exchange(&session)?;
            let stop = bench.chain.run_now(Phase::SessionTick, &mut exchange, &bench.watch).err();
            outcome(lua, &exchange, stop, &bench)
        })?,
    )?;

    let of = Arc::clone(plugin);
    table.raw_set(
        "response",
        lua.create_function(move |lua, (settings, response): (Table, Table)| {
            let bench = Bench::new(&of, settings, &response, &files)?;
            let request: Option<Table> = response.raw_get("request")?;
            let mut exchange = match request {
                Some(request) => exchange(&request)?,
                None => Exchange::default(),
            };
            let status: Option<u16> = response.raw_get("status")?;
            let status = StatusCode::from_u16(status.unwrap_or(200)).map_err(mlua::Error::external)?;
            exchange.response = ResponseHead { status, headers: headers(&response)? };
            let stop = bench.chain.run_now(Phase::ResponseHeaders, &mut exchange, &bench.watch).err();
            outcome(lua, &exchange, stop, &bench)
        })?,
    )?;
    Ok(table)
}

/// `ada = "token"` is short for `ada = { token = "token" }`.
fn short_form(entry: config::Entry, place: &Place) -> config::Entry {
    if !matches!(entry.node.value, config::Value::Text(_)) {
        return entry;
    }
    let token = config::Entry { key: "token".into(), place: place.clone(), node: entry.node };
    let node =
        config::Node { value: config::Value::Table([token].into_iter().collect()), place: place.clone() };
    config::Entry { node, ..entry }
}

/// A plugin alone in a chain, in a VM of its own.
struct Bench {
    chain: Chain,
    watch: Notes,
}

impl Bench {
    fn new(
        plugin: &Arc<Plugin>,
        settings: Table,
        request: &Table,
        files: &Rc<RefCell<BTreeMap<PathBuf, config::Table>>>,
    ) -> mlua::Result<Bench> {
        let place = Place::file("spec.lua");
        let written = convert::to_node(&Value::Table(settings), &place).map_err(mlua::Error::runtime)?;
        let written: Vec<config::Entry> =
            written.as_table().map(|it| it.iter().cloned().collect()).unwrap_or_default();
        let from = SpecReferences { files: Rc::clone(files) };
        let settings = plugin
            .schema
            .check(&place, &written, &from)
            .map_err(|it| mlua::Error::runtime(it.to_string()))?;
        let at: Option<f64> = request.raw_get("at")?;
        let vm = Vm::new(MEMORY, Time::Set(Rc::new(Cell::new(at.unwrap_or_default()))))?;
        let instance =
            Instance::new(&vm, &plugin.bundle, &plugin.schema, &settings).map_err(mlua::Error::runtime)?;
        let mut chain = Chain::new();
        chain.push(&plugin.bundle.name, &plugin.bundle.name, OnError::Reject, Box::new(instance));
        Ok(Bench { chain, watch: Notes::default() })
    }
}

#[derive(Default)]
struct Notes(RefCell<Option<String>>);

impl Watch for Notes {
    type Started = ();

    fn before(&self) {}

    fn after(&self, _: &str, _: Phase, (): (), outcome: Outcome<'_>) {
        if let Outcome::Failed(failure) = outcome {
            *self.0.borrow_mut() = Some(failure.detail.clone());
        }
    }
}

struct SpecReferences {
    files: Rc<RefCell<BTreeMap<PathBuf, config::Table>>>,
}

impl References for SpecReferences {
    fn secret(&self, reference: &Reference) -> Result<Secret, String> {
        match reference {
            Reference::Env(name) => Ok(Secret::new(format!("secret-{name}"))),
            Reference::File(path) => Err(format!("a spec has no file {}", path.display())),
        }
    }

    fn table(&self, path: &Path, setting: &Place) -> Result<config::Table, Problems> {
        self.files.borrow().get(path).cloned().ok_or_else(|| {
            let subject = format!("no file {}", path.display());
            Problem::new(setting.clone(), subject, "a spec makes its token files with spec.tokens").into()
        })
    }

    fn inherited(&self, _: &str) -> Option<Setting> {
        None
    }
}

/// A request as a spec describes it.
fn exchange(request: &Table) -> mlua::Result<Exchange> {
    let text = |key: &str| request.raw_get::<Option<String>>(key);
    let method = text("method")?.unwrap_or_else(|| "GET".into());
    let headers = headers(request)?;
    let ip: IpAddr =
        text("client_ip")?.as_deref().unwrap_or("127.0.0.1").parse().map_err(mlua::Error::external)?;
    let mut exchange = Exchange {
        id: text("id")?.unwrap_or_else(|| "spec".into()),
        client: SocketAddr::new(ip, 50000),
        tls: request.raw_get::<Option<bool>>("tls")?.unwrap_or(false),
        websocket: request.raw_get::<Option<bool>>("websocket")?.unwrap_or(false),
        method: Method::from_bytes(method.as_bytes()).map_err(mlua::Error::external)?,
        path: text("path")?.unwrap_or_else(|| "/".into()),
        query: text("query")?,
        offer: Offer::parse(&headers).map_err(|it| mlua::Error::runtime(it.as_str()))?,
        route: "/**".into(),
        headers,
        ..Exchange::default()
    };
    if let principal @ Value::Table(_) = request.raw_get("principal")? {
        exchange.principal = Some(convert::to_principal(&principal).map_err(mlua::Error::runtime)?);
    }
    if let Some(set) = request.raw_get::<Option<Table>>("set")? {
        for pair in set.pairs::<String, Value>() {
            let (name, value) = pair?;
            exchange.set_var(&name, convert::to_json(&value).map_err(mlua::Error::runtime)?);
        }
    }
    Ok(exchange)
}

fn headers(table: &Table) -> mlua::Result<HeaderMap> {
    let mut headers = HeaderMap::new();
    if let Some(written) = table.raw_get::<Option<Table>>("headers")? {
        for pair in written.pairs::<String, mlua::LuaString>() {
            let (name, value) = pair?;
            let name = HeaderName::from_bytes(name.as_bytes()).map_err(mlua::Error::external)?;
            headers.append(name, HeaderValue::from_bytes(&value.as_bytes()).map_err(mlua::Error::external)?);
        }
    }
    Ok(headers)
}

/// What became of it, as a spec reads it.
fn outcome(lua: &Lua, exchange: &Exchange, stop: Option<Stop>, bench: &Bench) -> mlua::Result<Table> {
    let out = lua.create_table()?;
    let mut answered = exchange.response.headers.clone();
    match stop {
        None => {}
        Some(Stop::Reject(rejection)) => {
            out.raw_set("code", rejection.code.as_str())?;
            out.raw_set("status", rejection.code.status().as_u16())?;
            answered = *rejection.headers;
        }
        Some(Stop::Respond(response)) => {
            out.raw_set("status", response.status.as_u16())?;
            out.raw_set("body", lua.create_string(&response.body)?)?;
            answered = response.headers;
        }
    }
    out.raw_set("failure", bench.watch.0.borrow().as_deref())?;
    out.raw_set("headers", header_table(lua, &answered)?)?;
    out.raw_set("upstream", header_table(lua, &exchange.upstream)?)?;
    let set = lua.create_table()?;
    for (name, value) in &exchange.vars {
        set.raw_set(name.as_str(), convert::from_json(lua, value)?)?;
    }
    if let Some(principal) = &exchange.principal {
        set.raw_set("principal", convert::principal(lua, principal)?)?;
    }
    set.raw_set("function_id", exchange.function.as_deref())?;
    out.raw_set("set", set)?;
    Ok(out)
}

fn header_table(lua: &Lua, headers: &HeaderMap) -> mlua::Result<Table> {
    let table = lua.create_table()?;
    for name in headers.keys() {
        let values: Vec<String> = headers
            .get_all(name)
            .iter()
            .map(|it| String::from_utf8_lossy(it.as_bytes()).into_owned())
            .collect();
        table.raw_set(name.as_str(), values.join(", "))?;
    }
    Ok(table)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lua::bundle::{BUILT_IN, Finder};

    #[test]
    fn the_shipped_plugins_keep_their_promises() {
        let finder = Finder { paths: Vec::new() };
        let mut n_tests = 0;
        for (name, _) in BUILT_IN {
            let bundle = finder.find(name, &Place::Nowhere).expect("it is built in");
            let report = run(bundle).unwrap_or_else(|it| panic!("{name}: {it}"));
            for (what, failure) in &report.tests {
                assert!(failure.is_none(), "{name} {what}: {}", failure.as_deref().unwrap_or_default());
                n_tests += 1;
            }
        }
        assert!(n_tests >= 20, "the specs have {n_tests} tests");
    }
}
