//! Loads the plugins of all routes and checks them, before anything is served.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

use http::StatusCode;
use mlua::{Table, Value};

use crate::clock::Clock;
use crate::config::{Entry, Place, Plugins, Problem, Problems, Resume, Route};
use crate::lua::api::Time;
use crate::lua::bundle::{Bundle, Finder};
use crate::lua::vm::{Instance, Vm, describe};
use crate::lua::{convert, sandbox};
use crate::policy::{
    Chain, Field, Kind, OnError, Pattern, Phase, Phases, References, Schema, Settings, readings,
};
use crate::rejection::Declared;

/// All routes with their plugins, checked. Shared by the workers.
#[derive(Debug)]
pub(crate) struct Program {
    routes: Vec<Planned>,
    memory: usize,
    clock: Clock,
}

#[derive(Debug)]
struct Planned {
    path: String,
    pattern: Pattern,
    resume: Resume,
    place: Place,
    steps: Vec<Step>,
}

#[derive(Debug)]
struct Step {
    plugin: Arc<Plugin>,
    id: String,
    on_error: OnError,
    settings: Settings,
    place: Place,
}

/// A plugin that was found, with its contract.
#[derive(Debug)]
pub(super) struct Plugin {
    pub(super) bundle: Arc<Bundle>,
    pub(super) schema: Schema,
}

/// The routes of one worker, with its VM.
pub(crate) struct Routes {
    routes: Vec<RouteChain>,
    vm: Rc<Vm>,
}

/// A route and its chain.
#[derive(Clone)]
pub(crate) struct RouteChain {
    pub(crate) path: Rc<str>,
    pub(crate) pattern: Rc<Pattern>,
    pub(crate) resume: Resume,
    pub(crate) chain: Rc<Chain>,
}

impl Program {
    /// Finds, reads and checks the plugins of all routes, and runs each once.
    pub(crate) fn load(
        plugins: &Plugins,
        routes: &[Route],
        from: &dyn References,
        clock: &Clock,
    ) -> Result<Program, Problems> {
        let finder = Finder { paths: plugins.paths.clone() };
        let mut problems = Problems::new();
        let mut found: BTreeMap<String, Option<Arc<Plugin>>> = BTreeMap::new();
        let mut planned = Vec::new();
        for route in routes {
            let pattern = Pattern::parse(&route.path).map_err(|message| {
                problems.push(Problem::new(
                    route.place.clone(),
                    format!("route.path = {:?}", route.path),
                    message,
                ));
            });
            let mut steps: Vec<Step> = Vec::new();
            for step in &route.chain {
                let plugin = found.entry(step.plugin.clone()).or_insert_with(|| {
                    let loaded =
                        finder.find(&step.plugin, &step.place).map_err(Problems::from).and_then(Plugin::load);
                    loaded.map(Arc::new).map_err(|more| problems.extend(more)).ok()
                });
                let Some(plugin) = plugin else { continue };
                let earlier: Vec<&str> = steps.iter().map(|it| it.plugin.bundle.name.as_str()).collect();
                for name in &plugin.schema.after {
                    let listed = route.chain.iter().any(|it| it.plugin == *name);
                    if listed && !earlier.contains(&name.as_str()) {
                        let message = format!("must come after `{name}` in this chain");
                        problems.push(Problem::new(step.place.clone(), step.plugin.clone(), message));
                    }
                }
                match plan(plugin, step, from) {
                    Ok(step) => steps.push(step),
                    Err(more) => problems.extend(more),
                }
            }
            if let Ok(pattern) = pattern {
                planned.push(Planned {
                    path: route.path.clone(),
                    pattern,
                    resume: route.resume,
                    place: route.place.clone(),
                    steps,
                });
            }
        }
        let program = Program { routes: planned, memory: plugins.memory, clock: clock.clone() };
        if problems.is_empty() {
            // Running everything once finds what only running finds.
            if let Err(more) = program.instantiate() {
                problems.extend(more);
            }
        }
        problems.into_result().map(|()| program)
    }

    /// The chains of all routes in a VM of their own, for one worker.
    pub(crate) fn instantiate(&self) -> Result<Routes, Problems> {
        let failed =
            |place: &Place, subject: &str, message: String| Problem::new(place.clone(), subject, message);
        let vm = Vm::new(self.memory, Time::Clock(self.clock.clone()))
            .map_err(|it| Problems::from(failed(&Place::Nowhere, "plugins.memory", describe(&it).detail)))?;
        let mut problems = Problems::new();
        let mut routes = Vec::new();
        for planned in &self.routes {
            let mut chain = Chain::new();
            for step in &planned.steps {
                match Instance::new(&vm, &step.plugin.bundle, &step.plugin.schema, &step.settings) {
                    Ok(instance) => {
                        chain.push(&step.plugin.bundle.name, &step.id, step.on_error, Box::new(instance))
                    }
                    Err(message) => problems.push(located(&step.place, &step.plugin.bundle.name, message)),
                }
            }
            routes.push(RouteChain {
                path: planned.path.as_str().into(),
                pattern: Rc::new(planned.pattern.clone()),
                resume: planned.resume,
                chain: Rc::new(chain),
            });
        }
        problems.into_result().map(|()| Routes { routes, vm })
    }

    /// The routes in which no plugin authenticates, with the place where each was written.
    pub(crate) fn open_routes(&self) -> impl Iterator<Item = (&str, &Place)> {
        let authenticates = |it: &Step| it.plugin.schema.phases.contains(Phase::Authenticate);
        self.routes
            .iter()
            .filter(move |it| !it.steps.iter().any(authenticates))
            .map(|it| (it.path.as_str(), &it.place))
    }

    /// The chains of all routes, as they will run.
    pub(crate) fn explain(&self) -> Vec<Explained> {
        self.routes.iter().map(Program::explain_route).collect()
    }

    fn explain_route(route: &Planned) -> Explained {
        let mut text = format!("route {}\n", route.path);
        for phase in Phase::ALL {
            let steps: Vec<&str> = route
                .steps
                .iter()
                .filter(|it| it.plugin.schema.phases.contains(phase))
                .map(|it| it.id.as_str())
                .collect();
            let steps = if steps.is_empty() { "-".to_owned() } else { steps.join(" -> ") };
            text += &format!("  {:<18}{steps}\n", phase.name());
        }
        Explained { path: route.path.clone(), pattern: route.pattern.clone(), text }
    }
}

/// The plugins of a route, as they run.
#[derive(Debug)]
pub(crate) struct Explained {
    pub(crate) path: String,
    pub(crate) pattern: Pattern,
    pub(crate) text: String,
}

/// The first route that is for a path.
pub(crate) fn find_route<'a>(
    patterns: impl Iterator<Item = &'a Pattern> + Clone,
    path: &str,
) -> Result<Option<usize>, Ambiguous> {
    let [kept, split] = readings(path).map(|it| patterns.clone().position(|at| at.matches(&it)));
    if kept == split { Ok(kept) } else { Err(Ambiguous) }
}

/// Two readings of a path lead to two routes.
#[derive(Debug)]
pub(crate) struct Ambiguous;

impl Routes {
    /// The route of a path: the first one of the file that matches. Policies are asked about what the upstream will
    /// serve, so a path that could mean two routes has none.
    pub(crate) fn find(&self, path: &str) -> Result<Option<&RouteChain>, Ambiguous> {
        let found = find_route(self.routes.iter().map(|it| &*it.pattern), path)?;
        Ok(found.map(|it| &self.routes[it]))
    }

    /// The route that was written with this pattern.
    pub(crate) fn by_pattern(&self, pattern: &str) -> Option<&RouteChain> {
        self.routes.iter().find(|it| &*it.path == pattern)
    }

    /// The route whose policies dress a response to a request too broken to have a path.
    pub(crate) fn fallback(&self) -> Option<&RouteChain> {
        self.routes.iter().find(|it| it.pattern.matches("/")).or_else(|| self.routes.last())
    }

    /// Whether the VM must be replaced before the next request.
    pub(crate) fn is_spent(&self) -> bool {
        self.vm.is_spent()
    }

    /// The memory that the VM uses, in bytes.
    pub(crate) fn memory(&self) -> usize {
        self.vm.memory()
    }
}

impl Plugin {
    /// Reads a plugin's contract.
    pub(super) fn load(bundle: Bundle) -> Result<Plugin, Problems> {
        let file = bundle.file("schema.lua");
        let path = Arc::new(file.path.clone());
        let failed = |error: &mlua::Error| {
            Problems::from(located(&Place::file(&*path), &bundle.name, describe(error).detail))
        };
        let lua = sandbox::vm(4 << 20).map_err(|it| failed(&it))?;
        let table = || -> mlua::Result<Value> {
            let env = lua.create_table()?;
            sandbox::chunk(&lua, &path.display().to_string(), &file.text, &env)?.call(())
        };
        let table = match table() {
            Ok(Value::Table(table)) => table,
            Ok(other) => {
                let message = format!("returned {}, expected a table", other.type_name());
                return Err(Problem::new(Place::file(&*path), bundle.name.clone(), message).into());
            }
            Err(error) => {
                return Err(located(&Place::file(&*path), &bundle.name, describe(&error).detail).into());
            }
        };
        let reader = SchemaReader { path: Arc::clone(&path), text: &file.text, problems: Problems::new() };
        let schema = reader.read(&table)?;
        Ok(Plugin { bundle: Arc::new(bundle), schema })
    }
}

/// Checks one step of a route's chain.
fn plan(plugin: &Arc<Plugin>, step: &crate::config::Step, from: &dyn References) -> Result<Step, Problems> {
    let mut problems = Problems::new();
    let mut on_error = plugin.schema.on_error;
    let mut written: Vec<Entry> = Vec::new();
    for entry in &step.settings {
        if entry.key != "on_error" {
            written.push(entry.clone());
            continue;
        }
        match &entry.node.value {
            crate::config::Value::Text(it) if it == "reject" => on_error = OnError::Reject,
            crate::config::Value::Text(it) if it == "skip" => on_error = OnError::Skip,
            other => {
                let subject = format!("on_error = {}", other.shown());
                problems.push(Problem::new(
                    entry.node.place.clone(),
                    subject,
                    "expected \"reject\" or \"skip\"",
                ));
            }
        }
    }
    let decides = |it| plugin.schema.phases.contains(it);
    if on_error == OnError::Skip && (decides(Phase::Authenticate) || decides(Phase::Authorize)) {
        let message =
            "this plugin decides who may pass, so it cannot be skipped: its failure would let everybody in";
        let subject = format!("{}: on_error = \"skip\"", step.id);
        problems.push(Problem::new(step.place.clone(), subject, message));
    }
    match plugin.schema.check(&step.place, &written, from) {
        Ok(settings) if problems.is_empty() => Ok(Step {
            plugin: Arc::clone(plugin),
            id: step.id.clone(),
            on_error,
            settings,
            place: step.place.clone(),
        }),
        Ok(_) => Err(problems),
        Err(more) => {
            problems.extend(more);
            Err(problems)
        }
    }
}

/// A message of Lua that begins with `path:line:` is placed there.
fn located(place: &Place, subject: &str, message: String) -> Problem {
    let mut parts = message.splitn(3, ':');
    if let (Some(path), Some(line), Some(rest)) = (parts.next(), parts.next(), parts.next())
        && let Ok(line) = line.parse()
        && path.ends_with(".lua")
    {
        let place = Place::File { path: Arc::new(PathBuf::from(path)), line, column: 0 };
        return Problem::new(place, subject, rest.trim_start());
    }
    Problem::new(place.clone(), subject, message)
}

struct SchemaReader<'a> {
    path: Arc<PathBuf>,
    text: &'a str,
    problems: Problems,
}

impl SchemaReader<'_> {
    fn read(mut self, table: &Table) -> Result<Schema, Problems> {
        self.known(
            table,
            "schema",
            &["summary", "phases", "on_error", "security", "fields", "rejections", "after", "api"],
        );
        let summary = self.text(table, "summary").unwrap_or_default();
        if summary.is_empty() {
            self.problem("summary", "missing: what does the plugin do, in a sentence?");
        }
        let phases = self.phases(table);
        let on_error = match self.text(table, "on_error").as_deref() {
            None | Some("reject") => OnError::Reject,
            Some("skip") => OnError::Skip,
            Some(other) => {
                self.problem("on_error", format!("{other:?} is neither \"reject\" nor \"skip\""));
                OnError::Reject
            }
        };
        let after = self.texts(table, "after");
        let fields = self.fields(table);
        let rejections = self.rejections(table);
        self.problems.into_result().map(|()| Schema { summary, phases, on_error, fields, rejections, after })
    }

    fn phases(&mut self, table: &Table) -> Phases {
        let mut phases = Vec::new();
        let names = self.texts(table, "phases");
        if names.is_empty() {
            self.problem("phases", "missing: in which phases does the plugin want to be asked?");
        }
        for name in names {
            match Phase::find(&name) {
                Some(phase) => phases.push(phase),
                None => {
                    let known: Vec<&str> = Phase::ALL.iter().map(|it| it.name()).collect();
                    self.problem("phases", format!("unknown phase {name:?}; there are {}", known.join(", ")));
                }
            }
        }
        phases.into_iter().collect()
    }

    fn fields(&mut self, table: &Table) -> Vec<Field> {
        let mut fields = Vec::new();
        for (name, value) in self.entries(table, "fields") {
            let Value::Table(field) = value else {
                self.problem(&name, format!("field `{name}`: expected a table, not {}", value.type_name()));
                continue;
            };
            if ["plugin", "id", "on_error", "when", "timeout", "dry_run"].contains(&name.as_str()) {
                self.problem(&name, format!("field `{name}`: this name belongs to the chain"));
            }
            self.known(&field, &name, &["type", "of", "choices", "required", "default", "inherit", "doc"]);
            let of = self.text(&field, "of").and_then(|it| Kind::find(&it, None, Vec::new()));
            let choices = self.texts(&field, "choices");
            let kind = self.text(&field, "type").and_then(|it| Kind::find(&it, of, choices));
            let Some(kind) = kind else {
                let known = "string, integer, number, boolean, duration, size, list, map, secret, token-file";
                self.problem(
                    &name,
                    format!("field `{name}`: `type` is missing or unknown; there are {known}"),
                );
                continue;
            };
            let doc = self.text(&field, "doc").unwrap_or_default();
            if doc.is_empty() {
                self.problem(&name, format!("field `{name}`: `doc` is missing"));
            }
            let default = match field.raw_get::<Value>("default") {
                Ok(Value::Nil) | Err(_) => None,
                Ok(value) => match convert::to_node(&value, &self.place(&name)) {
                    Ok(node) => Some(node),
                    Err(what) => {
                        self.problem(&name, format!("field `{name}`: default is {what}"));
                        None
                    }
                },
            };
            if let Some(node) = &default
                && let Err(more) = kind.check_default(node)
            {
                self.problem(
                    &name,
                    format!("field `{name}`: default is {}, the type is {}", node.value.kind(), more),
                );
            }
            let required = matches!(field.raw_get::<Value>("required"), Ok(Value::Boolean(true)));
            let inherit = self.text(&field, "inherit");
            fields.push(Field { name, kind, required, default, inherit, doc });
        }
        fields
    }

    fn rejections(&mut self, table: &Table) -> Vec<Arc<Declared>> {
        let mut declared = Vec::new();
        for (name, value) in self.entries(table, "rejections") {
            let Value::Table(it) = value else {
                self.problem(
                    &name,
                    format!("rejection `{name}`: expected a table with `status` and `message`"),
                );
                continue;
            };
            let status = it.raw_get::<u16>("status").ok().and_then(|it| StatusCode::from_u16(it).ok());
            let status = status.filter(|it| it.is_client_error() || it.is_server_error());
            let message = self.text(&it, "message");
            let well_named =
                name.split_once('.').is_some_and(|(area, what)| !area.is_empty() && !what.is_empty());
            match (status, message) {
                (Some(status), Some(message)) if well_named => {
                    declared.push(Arc::new(Declared { name, status, message }));
                }
                _ => self.problem(&name, format!("rejection `{name}`: expected a name `area.what`, a `status` from 400 to 599 and a `message`")),
            }
        }
        declared
    }

    /// The entries of a table inside the schema, sorted by name.
    fn entries(&mut self, table: &Table, key: &str) -> BTreeMap<String, Value> {
        match table.raw_get::<Value>(key) {
            Ok(Value::Nil) | Err(_) => BTreeMap::new(),
            Ok(Value::Table(it)) => it.pairs::<String, Value>().filter_map(Result::ok).collect(),
            Ok(other) => {
                self.problem(key, format!("expected a table, not {}", other.type_name()));
                BTreeMap::new()
            }
        }
    }

    fn text(&mut self, table: &Table, key: &str) -> Option<String> {
        match table.raw_get::<Value>(key) {
            Ok(Value::String(it)) => Some(it.to_string_lossy()),
            Ok(Value::Nil) | Err(_) => None,
            Ok(other) => {
                self.problem(key, format!("`{key}`: expected a string, not {}", other.type_name()));
                None
            }
        }
    }

    fn texts(&mut self, table: &Table, key: &str) -> Vec<String> {
        match table.raw_get::<Value>(key) {
            Ok(Value::Nil) | Err(_) => Vec::new(),
            Ok(Value::Table(it)) => it.sequence_values::<String>().filter_map(Result::ok).collect(),
            Ok(other) => {
                self.problem(key, format!("`{key}`: expected a list of strings, not {}", other.type_name()));
                Vec::new()
            }
        }
    }

    fn known(&mut self, table: &Table, what: &str, known: &[&str]) {
        for (key, _) in table.pairs::<Value, Value>().filter_map(Result::ok) {
            let key = key.as_string().map(mlua::LuaString::to_string_lossy).unwrap_or_default();
            if !known.contains(&key.as_str()) {
                self.problem(&key, format!("{what}: unknown key `{key}`; there are {}", known.join(", ")));
            }
        }
    }

    fn problem(&mut self, key: &str, message: impl Into<String>) {
        let place = self.place(key);
        self.problems.push(Problem::new(place, key, message));
    }

    /// The first line of the schema that sets `key`, or the file as a whole.
    fn place(&self, key: &str) -> Place {
        let sets = |line: &str| {
            line.match_indices(key).any(|(at, _)| {
                let is_part = |it: char| it.is_alphanumeric() || it == '_';
                let before = line[..at].chars().next_back();
                let after = line[at + key.len()..].trim_start_matches(['"', '\'', ']']).trim_start();
                !before.is_some_and(is_part) && after.starts_with('=')
            })
        };
        let line = self.text.lines().position(sets).map_or(0, |it| it + 1);
        Place::File { path: Arc::clone(&self.path), line, column: 0 }
    }
}
