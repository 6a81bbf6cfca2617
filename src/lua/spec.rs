//! Runs the tests that plugins bring along, against the real thing: the same VM, the same chain.
//!
//! Only what is outside of a plugin is made up: the clock stands where the spec puts it, other services are functions of
//! the spec, and the store is empty at the beginning of each test.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use mlua::{Function, Lua, LuaString, Table, Value};

use crate::clock::Clock;
use crate::config::{self, Place, Problem, Problems, Reference};
use crate::lua::budget::Watchdog;
use crate::lua::bundle::{Bundle, Finder, SPEC_LIBRARY};
use crate::lua::counted::{Counted, Reading};
use crate::lua::fault::describe;
use crate::lua::fetch::{Reason, Request, Response, Stage};
use crate::lua::jose::{Algorithm, Signer};
use crate::lua::keys::Keys;
use crate::lua::kit::{Hosts, Kit, Logged, Web};
use crate::lua::lines::{FileLines, Lines};
use crate::lua::loader::{Plugin, assemble, located, plan};
use crate::lua::vm::{Instance, Vm};
use crate::lua::{convert, sandbox};
use crate::policy::{
    self, Chain, Exchange, Message, Meters, Offer, Outcome, Phase, References, ResponseHead, SessionFacts,
    Setting, Side, Stop, Watch,
};
use crate::secret::Secret;
use crate::store::Store;

/// What became of the tests of one plugin.
#[derive(Debug)]
pub(crate) struct Report {
    /// Each test, with what went wrong.
    pub(crate) tests: Vec<(String, Option<String>)>,
    /// The lines of the plugin's files, when they were asked for.
    pub(crate) lines: Vec<FileLines>,
}

/// Memory of a VM in which tests run.
const MEMORY: usize = 64 << 20;

/// What a call of a plugin may take in a spec: more than in a gateway, for the machine may be busy with other tests.
const CALL: Duration = Duration::from_secs(2);

/// What a test may take.
const TEST: Duration = Duration::from_secs(60);

/// Values that a test may keep in the store.
const STORE_SIZE: usize = 10_000;

/// What is made up around a plugin.
struct World {
    plugin: Arc<Plugin>,
    watchdog: Watchdog,
    runtime: tokio::runtime::Runtime,
    at: Rc<Cell<f64>>,
    clock: Clock,
    store: RefCell<Arc<Store>>,
    keys: RefCell<Arc<Keys>>,
    logged: Logged,
    counted: Arc<Counted>,
    files: Rc<RefCell<BTreeMap<PathBuf, config::Table>>>,
    texts: Rc<RefCell<BTreeMap<PathBuf, String>>>,
    /// Who answers HTTP requests, and what they were.
    web: RefCell<Option<Function>>,
    requests: RefCell<Option<Table>>,
    signers: RefCell<BTreeMap<String, Signer>>,
    /// What notes the lines that run.
    lines: Option<Rc<Lines>>,
}

/// Runs `spec.lua` of one plugin, and notes its lines when they are asked for. The error is about the plugin or the file
/// as a whole.
pub(crate) fn run(bundle: Bundle, with_lines: bool) -> Result<Report, Problems> {
    let watchdog = Watchdog::new();
    let plugin = Arc::new(Plugin::load(bundle, &watchdog)?);
    let name = plugin.bundle.name.clone();
    let Some(file) = plugin.bundle.files.get("spec.lua") else {
        return Err(Problem::new(Place::Nowhere, name, "has no spec.lua").into());
    };
    let path = file.path.display().to_string();
    let wrong = |message: String| Problems::from(Problem::new(Place::file(&path), &name, message));
    let failed = |error: &mlua::Error| wrong(describe(error).detail);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let clock = Clock::paused();
    let lines = with_lines.then(|| Lines::new(&plugin.bundle).map(Rc::new)).transpose().map_err(&wrong)?;
    let world = Rc::new(World {
        plugin: Arc::clone(&plugin),
        watchdog,
        runtime: runtime.map_err(|it| wrong(it.to_string()))?,
        at: Rc::default(),
        store: RefCell::new(Arc::new(Store::in_memory(STORE_SIZE))),
        keys: RefCell::new(Arc::new(Keys::new(clock.clone()))),
        clock,
        logged: Rc::default(),
        counted: Arc::default(),
        files: Rc::default(),
        texts: Rc::default(),
        web: RefCell::default(),
        requests: RefCell::default(),
        signers: RefCell::default(),
        lines,
    });
    let vm = Vm::new(MEMORY, CALL, world.kit()).map_err(|it| failed(&it))?;
    // What no test can pass with is told once.
    let own = &plugin.bundle;
    Instance::check(&vm, own, &plugin.schema).map_err(|it| located(&Place::file(&path), &name, it))?;
    let suite = vm
        .guarded(TEST, || load(&vm, &world, &path, &file.text))
        .map_err(|it| located(&Place::file(&path), &name, own.told(&it.detail)))?;
    let mut report = Report { tests: Vec::new(), lines: Vec::new() };
    let tests: Table = suite.raw_get("tests").map_err(|it| failed(&it))?;
    for test in tests.sequence_values::<Table>() {
        let test = test.map_err(|it| failed(&it))?;
        let what: String = test.raw_get("what").map_err(|it| failed(&it))?;
        let body: Function = test.raw_get("run").map_err(|it| failed(&it))?;
        world.reset();
        let failure = vm.guarded(TEST, || body.call::<()>(())).err();
        report.tests.push((what, failure.map(|it| own.told(&it.detail))));
    }
    // The functions of the spec end before their VM does.
    world.reset();
    report.lines = world.lines.as_ref().map(|it| it.take()).unwrap_or_default();
    Ok(report)
}

fn load(vm: &Rc<Vm>, world: &Rc<World>, path: &str, text: &str) -> mlua::Result<Table> {
    let lua = &vm.lua;
    let plugin = &world.plugin;
    let (bundle, rocks) = (Arc::clone(&plugin.bundle), Arc::clone(&vm.kit.rocks));
    let modules = sandbox::Modules { bundle, rocks, extra: vec![SPEC_LIBRARY] };
    let author = vm.author("spec", Hosts::default());
    let env = vm.environment(&author, &Rc::new(modules))?;
    // `require "streamgate.harness"` finds what is preloaded here.
    let require: Function = env.raw_get("require")?;
    let harness = harness(lua, world)?;
    let with_harness = lua.create_function(move |_, name: LuaString| match &*name.to_str()? {
        "streamgate.harness" => Ok(Value::Table(harness.clone())),
        _ => require.call(&name),
    })?;
    env.raw_set("require", with_harness)?;
    sandbox::chunk(lua, path, text, &env)?.call(())
}

/// The functions behind `lua/streamgate/spec.lua`. Those that run a plugin take `{ settings = … }` or `{ chain = … }` first.
fn harness(lua: &Lua, world: &Rc<World>) -> mlua::Result<Table> {
    let table = lua.create_table()?;
    let add = |name: &str, function: Function| table.raw_set(name, function);

    let of = Rc::clone(world);
    add(
        "tokens",
        lua.create_function(move |_, principals: Table| {
            let place = Place::file("spec.lua");
            let mut node =
                convert::to_node(&Value::Table(principals), &place).map_err(mlua::Error::runtime)?;
            if let config::Value::Table(table) = &mut node.value {
                *table = table.iter().cloned().map(|it| short_form(it, &place)).collect();
                let path = PathBuf::from(format!("tokens-{}.toml", of.files.borrow().len()));
                let reference = format!("file:{}", path.display());
                of.files.borrow_mut().insert(path, table.clone());
                return Ok(reference);
            }
            Err(mlua::Error::runtime("spec.tokens: expected a table from principals to tokens"))
        })?,
    )?;

    let of = Rc::clone(world);
    add(
        "file",
        lua.create_function(move |_, text: String| {
            let path = PathBuf::from(format!("file-{}", of.texts.borrow().len()));
            let reference = format!("file:{}", path.display());
            of.texts.borrow_mut().insert(path, text);
            Ok(reference)
        })?,
    )?;

    let of = Rc::clone(world);
    add(
        "request",
        lua.create_function(move |lua, (subject, request): (Table, Table)| {
            let bench = Bench::new(&of, &subject, &request)?;
            let mut exchange = exchange(&request)?;
            let phases = [
                Phase::OnRequest,
                Phase::Authenticate,
                Phase::Authorize,
                Phase::Select,
                Phase::UpstreamRequest,
            ];
            let stop = of.runtime.block_on(async {
                for phase in phases {
                    if phase == Phase::UpstreamRequest {
                        exchange.begin_upstream();
                    }
                    bench.chain.run(phase, &mut exchange, &bench.watch).await?;
                }
                Ok(())
            });
            outcome(lua, &of, &exchange, stop.err(), &bench)
        })?,
    )?;

    let of = Rc::clone(world);
    add(
        "session",
        lua.create_function(move |lua, (subject, phase, session): (Table, String, Table)| {
            let phase = Phase::find(&phase).filter(|it| it.is_of_session());
            let phase = phase.ok_or_else(|| mlua::Error::runtime("expected a phase of a session"))?;
            let bench = Bench::new(&of, &subject, &session)?;
            let mut exchange = exchange(&session)?;
            exchange.unmet = Some(bench.chain.unmet(&exchange));
            let stop = of.runtime.block_on(bench.chain.run(phase, &mut exchange, &bench.watch));
            outcome(lua, &of, &exchange, stop.err(), &bench)
        })?,
    )?;

    for (name, phase) in [("response", Phase::ResponseHeaders), ("log", Phase::Log)] {
        let of = Rc::clone(world);
        add(
            name,
            lua.create_function(move |lua, (subject, response): (Table, Table)| {
                let bench = Bench::new(&of, &subject, &response)?;
                let request: Option<Table> = response.raw_get("request")?;
                let mut exchange = match request {
                    Some(request) => exchange(&request)?,
                    None => Exchange::default(),
                };
                let status: Option<u16> = response.raw_get("status")?;
                let status = StatusCode::from_u16(status.unwrap_or(200)).map_err(mlua::Error::external)?;
                exchange.response = ResponseHead { status, headers: headers(&response)? };
                exchange.code = response.raw_get("code")?;
                let stop = bench.chain.run_now(phase, &mut exchange, &bench.watch).err();
                outcome(lua, &of, &exchange, stop, &bench)
            })?,
        )?;
    }

    let of = Rc::clone(world);
    add(
        "timers",
        lua.create_function(move |lua, (subject, options): (Table, Table)| {
            let bench = Bench::new(&of, &subject, &options)?;
            let result = of.runtime.block_on(async {
                for instance in &bench.instances {
                    instance.init().await?;
                    for (_, _, timer) in instance.timers() {
                        instance.run_beside(&timer).await?;
                    }
                }
                Ok::<(), policy::Failure>(())
            });
            if let Err(failure) = result {
                *bench.watch.0.borrow_mut() = Some(failure.detail);
            }
            outcome(lua, &of, &Exchange::default(), None, &bench)
        })?,
    )?;

    let of = Rc::clone(world);
    add(
        "check",
        lua.create_function(move |lua, subject: Table| {
            let refused = Bench::new(&of, &subject, &lua.create_table()?).err();
            Ok(refused.map(|it| of.plugin.bundle.told(&describe(&it).detail)))
        })?,
    )?;

    let of = Rc::clone(world);
    add(
        "http",
        lua.create_function(move |lua, answer: Option<Function>| {
            *of.web.borrow_mut() = answer;
            *of.requests.borrow_mut() = Some(lua.create_table()?);
            Ok(())
        })?,
    )?;

    let of = Rc::clone(world);
    add(
        "metric",
        lua.create_function(move |lua, (name, labels): (String, Option<Table>)| {
            of.metric(lua, &name, labels).map_err(mlua::Error::runtime)?
        })?,
    )?;

    let of = Rc::clone(world);
    add("requests", lua.create_function(move |_, ()| Ok(of.requests.borrow().clone()))?)?;

    let of = Rc::clone(world);
    add(
        "jwt",
        lua.create_function(move |_, (claims, options): (Value, Option<Table>)| {
            of.sign(&claims, options).map_err(mlua::Error::runtime)
        })?,
    )?;

    let of = Rc::clone(world);
    add(
        "jwks",
        lua.create_function(move |_, ()| {
            let mut signers = of.signers.borrow_mut();
            if signers.is_empty() {
                let signer = Signer::generate(Algorithm::ES256).map_err(mlua::Error::external)?;
                signers.insert(USUAL_KEY.into(), signer);
            }
            let keys: Vec<serde_json::Value> = signers.iter().map(|(kid, it)| it.jwk(kid)).collect();
            Ok(serde_json::json!({ "keys": keys }).to_string())
        })?,
    )?;
    Ok(table)
}

/// The key that tokens are signed with when a spec names none.
const USUAL_KEY: &str = "spec-1";

impl World {
    /// A test begins: nothing is left of the one before.
    fn reset(&self) {
        self.at.set(0.0);
        self.store.replace(Arc::new(Store::in_memory(STORE_SIZE)));
        self.keys.replace(Arc::new(Keys::new(self.clock.clone())));
        self.logged.borrow_mut().clear();
        self.counted.reset();
        self.web.take();
        self.requests.take();
    }

    /// Puts the clock somewhere else.
    fn set_time(&self, at: f64) {
        let ahead = Duration::try_from_secs_f64(at - self.at.get()).unwrap_or_default();
        self.clock.advance(ahead);
        self.at.set(at);
    }

    fn kit(self: &Rc<Self>) -> Rc<Kit> {
        let world = Rc::downgrade(self);
        let web = Web::Spec(Rc::new(move |request: &Request| {
            let world = world.upgrade().ok_or(Reason::Unreachable("the spec is over".into()))?;
            world.answer(request).map_err(|it| Reason::Broken(it.to_string()))?
        }));
        Kit::of_spec(
            self.watchdog.budget(),
            Rc::clone(&self.at),
            Arc::clone(&self.store.borrow()),
            Arc::clone(&self.keys.borrow()),
            web,
            Rc::clone(&self.logged),
            Arc::clone(&self.counted) as Arc<dyn Meters>,
        )
    }

    /// Has the spec answer a request.
    fn answer(&self, request: &Request) -> mlua::Result<Result<Response, Reason>> {
        let (web, requests) = (self.web.borrow().clone(), self.requests.borrow().clone());
        let (Some(web), Some(requests)) = (web, requests) else {
            return Ok(Err(Reason::Unreachable("the spec has no spec.http".into())));
        };
        let made: (Value, Value) = web.call(HttpTable { request, requests: &requests })?;
        let (Value::Table(answer), _) = made else {
            let word = made.1.as_string().map(LuaString::to_string_lossy).unwrap_or_default();
            let text = || "the spec says so".to_owned();
            return Ok(Err(match word.as_str() {
                "timeout" => Reason::Timeout(Stage::Head),
                "tls" => Reason::Tls(text()),
                "not_allowed" => Reason::NotAllowed("the spec says so"),
                "too_large" => Reason::TooLarge("the spec says so"),
                "broken" => Reason::Broken(text()),
                _ => Reason::Unreachable(text()),
            }));
        };
        let status = answer.raw_get::<Option<u16>>("status")?.unwrap_or(200);
        let body = answer.raw_get::<Option<LuaString>>("body")?;
        let body = body.map_or_else(Bytes::new, |it| Bytes::copy_from_slice(&it.as_bytes()));
        if body.len() > request.max_body {
            return Ok(Err(Reason::TooLarge("the body is larger than it may be")));
        }
        let status = StatusCode::from_u16(status).map_err(mlua::Error::external)?;
        Ok(Ok(Response { status, headers: headers(&answer)?, body }))
    }

    /// What the plugin under test has counted, or a plugin beside it whose metric has its full name.
    fn metric(&self, lua: &Lua, name: &str, labels: Option<Table>) -> Result<mlua::Result<Value>, String> {
        let mut given = Vec::new();
        for pair in labels.iter().flat_map(Table::pairs::<String, Value>) {
            let (name, value) = pair.map_err(|_| "spec.metric: labels are a table from names to values")?;
            given.push((name, value.to_string().map_err(|it| it.to_string())?));
        }
        let value = self.counted.value(&self.plugin.bundle.name, name, &given)?;
        let number = |it: f64| match it as i64 {
            whole if whole as f64 == it => Value::Integer(whole),
            _ => Value::Number(it),
        };
        Ok(match value {
            Reading::One(it) => Ok(number(it)),
            Reading::Spread { count, sum } => lua.create_table().and_then(|table| {
                table.raw_set("count", number(count))?;
                table.raw_set("sum", number(sum))?;
                Ok(Value::Table(table))
            }),
        })
    }

    fn sign(&self, claims: &Value, options: Option<Table>) -> Result<String, String> {
        let claims = match convert::to_json_of_any_size(claims)? {
            serde_json::Value::Object(it) => it,
            _ => return Err("spec.jwt: expected a table of claims".into()),
        };
        let text =
            |key: &str| options.as_ref().and_then(|it| it.raw_get::<Option<String>>(key).ok().flatten());
        if let Some(secret) = text("secret") {
            return Signer::hs(secret.as_bytes())
                .sign(&claims, text("kid").as_deref())
                .map_err(|it| it.to_string());
        }
        let kid = text("kid").unwrap_or_else(|| USUAL_KEY.into());
        let mut signers = self.signers.borrow_mut();
        if !signers.contains_key(&kid) {
            let name = text("algorithm").unwrap_or_else(|| "ES256".into());
            let algorithm = Algorithm::parse(&name).ok_or("spec.jwt: unknown algorithm")?;
            signers.insert(kid.clone(), Signer::generate(algorithm).map_err(|it| it.to_string())?);
        }
        signers[&kid].sign(&claims, Some(&kid)).map_err(|it| it.to_string())
    }
}

/// A request as the functions of a spec have it; it is noted as well.
struct HttpTable<'a> {
    request: &'a Request,
    requests: &'a Table,
}

impl mlua::IntoLuaMulti for HttpTable<'_> {
    fn into_lua_multi(self, lua: &Lua) -> mlua::Result<mlua::MultiValue> {
        let table = lua.create_table()?;
        table.raw_set("method", self.request.method.as_str())?;
        table.raw_set("url", self.request.url.as_str())?;
        table.raw_set("headers", header_table(lua, &self.request.headers)?)?;
        table.raw_set("body", lua.create_string(&self.request.body)?)?;
        self.requests.raw_push(&table)?;
        Value::Table(table).into_lua_multi(lua)
    }
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

/// A plugin alone in a chain, or the chain that a spec has written, in a VM of its own.
struct Bench {
    chain: Chain,
    instances: Vec<Rc<Instance>>,
    watch: Notes,
}

impl Bench {
    fn new(world: &Rc<World>, subject: &Table, run: &Table) -> mlua::Result<Bench> {
        if let Some(at) = run.raw_get::<Option<f64>>("at")? {
            world.set_time(at);
        }
        world.logged.borrow_mut().clear();
        let steps: Vec<config::Step> = match subject.raw_get::<Option<Table>>("chain")? {
            Some(chain) => {
                chain.sequence_values::<Value>().map(|it| step(&it?)).collect::<mlua::Result<_>>()?
            }
            None => {
                let settings: Table = subject.raw_get("settings")?;
                settings.raw_set("plugin", world.plugin.bundle.name.as_str())?;
                let step = step(&Value::Table(settings.clone()))?;
                settings.raw_set("plugin", Value::Nil)?;
                vec![step]
            }
        };
        let from = SpecReferences { files: Rc::clone(&world.files), texts: Rc::clone(&world.texts) };
        let vm = Vm::new(MEMORY, CALL, world.kit())?;
        if let Some(lines) = &world.lines {
            lines.watch(&vm.lua)?;
        }
        let (mut planned, mut instances) = (Vec::new(), Vec::new());
        let failed = |it: Problems| mlua::Error::runtime(it.told().trim_end().to_owned());
        for step in &steps {
            let plugin = world.find(&step.plugin).map_err(failed)?;
            let step = plan(&plugin, step, &from, TEST).map_err(failed)?;
            let instance = step.instance(&vm).map_err(mlua::Error::runtime)?;
            instances.push(Rc::clone(&instance));
            planned.push((None, step.with(Box::new(instance))));
        }
        Ok(Bench { chain: assemble(planned), instances, watch: Notes::default() })
    }
}

impl World {
    /// The plugin under test, one beside it, or one that ships.
    fn find(&self, name: &str) -> Result<Arc<Plugin>, Problems> {
        if name == self.plugin.bundle.name {
            return Ok(Arc::clone(&self.plugin));
        }
        let own = self.plugin.bundle.file("plugin.lua").path.parent().and_then(Path::parent);
        let finder = Finder { paths: own.map(Path::to_owned).into_iter().collect() };
        let bundle = finder.find(name, &Place::file("spec.lua"))?;
        Plugin::load(bundle, &self.watchdog).map(Arc::new)
    }
}

/// A step of a chain as a spec writes it.
fn step(value: &Value) -> mlua::Result<config::Step> {
    let place = Place::file("spec.lua");
    let node = match value {
        Value::String(name) => {
            let plugin = name.to_str()?.to_owned();
            return Ok(config::Step {
                id: plugin.clone(),
                plugin,
                settings: Vec::new(),
                alternative: None,
                place,
            });
        }
        other => convert::to_node(other, &place).map_err(mlua::Error::runtime)?,
    };
    let entries: Vec<config::Entry> =
        node.as_table().map(|it| it.iter().cloned().collect()).unwrap_or_default();
    let text = |key: &str| {
        entries.iter().find(|it| it.key == key).and_then(|it| match &it.node.value {
            config::Value::Text(it) => Some(it.clone()),
            _ => None,
        })
    };
    let plugin = text("plugin").ok_or_else(|| mlua::Error::runtime("a step of a chain has a `plugin`"))?;
    let id = text("id").unwrap_or_else(|| plugin.clone());
    let settings = entries.iter().filter(|it| it.key != "plugin" && it.key != "id").cloned().collect();
    Ok(config::Step { plugin, id, settings, alternative: None, place })
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

    fn elapsed(&self, _: Duration) -> Pin<Box<dyn Future<Output = ()> + '_>> {
        Box::pin(std::future::pending()) // a spec's clock stands still
    }
}

struct SpecReferences {
    files: Rc<RefCell<BTreeMap<PathBuf, config::Table>>>,
    texts: Rc<RefCell<BTreeMap<PathBuf, String>>>,
}

impl References for SpecReferences {
    fn secret(&self, reference: &Reference) -> Result<Secret, String> {
        match reference {
            Reference::Env(name) => Ok(Secret::new(format!("secret-{name}"))),
            Reference::File(path) => match self.texts.borrow().get(path) {
                Some(text) => Ok(Secret::new(text.clone())),
                None => Err(format!("a spec makes its files with spec.file, there is no {}", path.display())),
            },
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
    if let Some(session) = request.raw_get::<Option<Table>>("session")? {
        let number = |key: &str| session.raw_get::<Option<u64>>(key).map(Option::unwrap_or_default);
        exchange.session = SessionFacts {
            id: session.raw_get("id")?,
            age: Duration::from_secs_f64(session.raw_get::<Option<f64>>("age")?.unwrap_or_default()),
            cause: session.raw_get::<Option<String>>("cause")?.map_or("", |it| &*it.leak()), // a spec has few
            received: number("received")?,
            sent: number("sent")?,
        };
        exchange.function = session.raw_get("function_id")?;
    }
    if let Some(message) = request.raw_get::<Option<Table>>("message")? {
        let text = |key: &str| message.raw_get::<Option<String>>(key);
        let payload = message.raw_get::<Option<LuaString>>("payload")?;
        exchange.message = Some(Message {
            from: if text("from")?.as_deref() == Some("function") { Side::Function } else { Side::Browser },
            is_text: text("kind")?.as_deref() != Some("binary"),
            payload: payload.map_or_else(Bytes::new, |it| Bytes::copy_from_slice(&it.as_bytes())),
            is_dropped: false,
        });
    }
    if let Some(id) = request.raw_get::<Option<String>>("session_id")? {
        exchange.session.id = Some(id);
    }
    if let principal @ Value::Table(_) = request.raw_get("principal")? {
        exchange.principal = Some(convert::to_principal(&principal).map_err(mlua::Error::runtime)?);
    }
    if let Some(set) = request.raw_get::<Option<Table>>("set")? {
        for pair in set.pairs::<String, Value>() {
            let (name, value) = pair?;
            if name == "function_id" {
                exchange.function = value.as_string().map(LuaString::to_string_lossy);
                continue;
            }
            exchange.set_var(&name, convert::to_json(&value).map_err(mlua::Error::runtime)?);
        }
    }
    Ok(exchange)
}

fn headers(table: &Table) -> mlua::Result<HeaderMap> {
    let mut headers = HeaderMap::new();
    if let Some(written) = table.raw_get::<Option<Table>>("headers")? {
        for pair in written.pairs::<String, Value>() {
            let (name, value) = pair?;
            let name = HeaderName::from_bytes(name.as_bytes()).map_err(mlua::Error::external)?;
            let values = match value {
                Value::Table(values) => {
                    values.sequence_values::<LuaString>().collect::<mlua::Result<Vec<_>>>()?
                }
                value => lua_text(&value).into_iter().collect(),
            };
            for value in values {
                let value = HeaderValue::from_bytes(&value.as_bytes()).map_err(mlua::Error::external)?;
                headers.append(name.clone(), value);
            }
        }
    }
    Ok(headers)
}

fn lua_text(value: &Value) -> Option<LuaString> {
    value.as_string().cloned()
}

/// What became of it, as a spec reads it.
fn outcome(
    lua: &Lua,
    world: &World,
    exchange: &Exchange,
    stop: Option<Stop>,
    bench: &Bench,
) -> mlua::Result<Table> {
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
    let failure = bench.watch.0.borrow().as_deref().map(|it| world.plugin.bundle.told(it));
    out.raw_set("failure", failure)?;
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
    set.raw_set("function_version_id", exchange.version.as_deref())?;
    if let Some(message) = exchange.message.as_ref().filter(|it| !it.is_dropped) {
        let table = lua.create_table()?;
        table.raw_set("payload", lua.create_string(&message.payload)?)?;
        out.raw_set("message", table)?;
    }
    let logged = lua.create_table()?;
    for (level, message) in world.logged.borrow().iter() {
        let line = lua.create_table()?;
        line.raw_set("level", *level)?;
        line.raw_set("message", message.as_str())?;
        logged.raw_push(line)?;
    }
    out.raw_set("logged", logged)?;
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
            let report = run(bundle, false).unwrap_or_else(|it| panic!("{name}: {it}"));
            for (what, failure) in &report.tests {
                assert!(failure.is_none(), "{name} {what}: {}", failure.as_deref().unwrap_or_default());
                n_tests += 1;
            }
        }
        assert!(n_tests >= 20, "the specs have {n_tests} tests");
    }
}
