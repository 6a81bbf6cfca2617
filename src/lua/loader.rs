//! Loads the plugins of all routes and checks them, before anything is served.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use mlua::{Table, Value};

use crate::clock::Clock;
use crate::config::{
    self, Alternative, Entry, Node, Parse as _, Place, Plugins, Problem, Problems, Resume, Route,
    did_you_mean,
};
use crate::lua::broken::{self, Broken};
use crate::lua::budget::Watchdog;
use crate::lua::bundle::{Bundle, File, Finder};
use crate::lua::fault::{describe, place};
use crate::lua::kit::Tools;
use crate::lua::rocks::Rocks;
use crate::lua::vm::{Instance, Vm};
use crate::lua::{convert, sandbox};
use crate::policy::{
    self, Chain, Failure, Field, Kind, Native, OnError, Pattern, Phase, Phases, Policy, References, Schema,
    Settings, Wanted, When, readings,
};
use crate::rejection::Declared;

/// All routes with their plugins, checked. Shared by the workers.
#[derive(Debug)]
pub(crate) struct Program {
    routes: Vec<Planned>,
    memory: usize,
    budget: Duration,
    tools: Tools,
    /// A plugin that cannot be loaded costs its own requests alone.
    rejects_broken: bool,
    /// What an operator should know although it is no reason to stop.
    warnings: Vec<String>,
    /// Modules that others have written.
    rocks: Arc<Rocks>,
    /// What plugins trust in other services.
    web_tls: Arc<rustls::ClientConfig>,
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
pub(super) struct Step {
    plugin: Arc<Plugin>,
    id: String,
    on_error: OnError,
    when: When,
    timeout: Duration,
    dry_run: bool,
    pub(super) settings: Settings,
    alternative: Option<Alternative>,
    place: Place,
}

/// A plugin that was found, with its contract.
pub(super) struct Plugin {
    pub(super) bundle: Arc<Bundle>,
    pub(super) schema: Schema,
    made_of: Made,
}

/// What a plugin is made of.
enum Made {
    Lua,
    Native(Arc<dyn Native>),
    /// It could not be loaded.
    Broken,
}

/// The routes of one worker, with its VM.
pub(crate) struct Routes {
    routes: Vec<RouteChain>,
    vm: Rc<Vm>,
    /// The plugins that do something beside all requests.
    at_work: Vec<Rc<Instance>>,
    clock: Clock,
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
        tools: &Tools,
        web_tls: Arc<rustls::ClientConfig>,
    ) -> Result<Program, Problems> {
        let finder = Finder { paths: plugins.paths.clone() };
        let mut problems = Problems::new();
        let mut found: BTreeMap<String, Option<Arc<Plugin>>> = BTreeMap::new();
        let mut planned = Vec::new();
        let rocks = Rocks::read(&plugins.modules).map_err(|more| problems.extend(more)).unwrap_or_default();
        let mut warnings = Vec::new();
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
                    if let Some(native) = tools.natives.find(&step.plugin) {
                        return Some(Arc::new(Plugin::native(native)));
                    }
                    let loaded = finder.find(&step.plugin, &step.place).map_err(Problems::from);
                    let loaded = loaded.and_then(|it| Plugin::load(it, &tools.watchdog));
                    match loaded {
                        Ok(plugin) => Some(Arc::new(plugin)),
                        Err(more) if plugins.reject_broken => {
                            warnings.push(told(&step.plugin, &more));
                            Some(Arc::new(Plugin::broken(&step.plugin)))
                        }
                        Err(more) => {
                            problems.extend(more);
                            None
                        }
                    }
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
                let unread = config::Step { settings: Vec::new(), ..step.clone() };
                let written = if matches!(plugin.made_of, Made::Broken) { &unread } else { step };
                match plan(plugin, written, from, plugins.timeout) {
                    Ok(step) => steps.push(step),
                    Err(more) => problems.extend(more),
                }
            }
            for (step, alternative) in steps.iter().filter_map(|it| Some((it, it.alternative?))) {
                let mut members = steps.iter().filter(|it| it.alternative == Some(alternative));
                let is_first = members.clone().next().is_some_and(|it| std::ptr::eq(it, step));
                if is_first && !members.any(|it| it.plugin.schema.authenticates && !it.dry_run) {
                    let message = "no plugin of this alternative authenticates, so nobody can pass by it";
                    problems.push(Problem::new(step.place.clone(), format!("any_of: {}", step.id), message));
                }
            }
            if let Ok(pattern) = pattern {
                if let Some(first) = planned.iter().find(|it: &&Planned| it.pattern.covers(&pattern)) {
                    warnings.push(format!(
                        "route {:?} at {} can never be reached: {:?} at {} comes first",
                        route.path, route.place, first.path, first.place
                    ));
                }
                planned.push(Planned {
                    path: route.path.clone(),
                    pattern,
                    resume: route.resume,
                    place: route.place.clone(),
                    steps,
                });
            }
        }
        let mut program = Program {
            rejects_broken: plugins.reject_broken,
            warnings,
            routes: planned,
            memory: plugins.memory,
            budget: plugins.budget,
            tools: tools.clone(),
            rocks: Arc::new(rocks),
            web_tls,
        };
        if problems.is_empty() {
            // Running everything once finds what only running finds.
            match program.instantiate_and_tell() {
                Ok((_, more)) => program.warnings.extend(more),
                Err(more) => problems.extend(more),
            }
        }
        problems.into_result().map(|()| program)
    }

    /// The chains of all routes in a VM of their own, for one worker.
    ///
    /// # Errors
    /// When a plugin cannot be made, or memory is too short.
    pub(crate) fn instantiate(&self) -> Result<Routes, Problems> {
        self.instantiate_and_tell().map(|(routes, _)| routes)
    }

    /// The same, and what was wrong with the plugins whose requests are rejected.
    fn instantiate_and_tell(&self) -> Result<(Routes, Vec<String>), Problems> {
        let mut warnings = Vec::new();
        let failed =
            |place: &Place, subject: &str, message: String| Problem::new(place.clone(), subject, message);
        let kit = self.tools.kit(Arc::clone(&self.web_tls), Arc::clone(&self.rocks));
        let vm = Vm::new(self.memory, self.budget, kit)
            .map_err(|it| Problems::from(failed(&Place::Nowhere, "plugins.memory", describe(&it).detail)))?;
        let mut problems = Problems::new();
        let mut routes = Vec::new();
        let mut at_work = Vec::new();
        for planned in &self.routes {
            let mut steps = Vec::new();
            for step in &planned.steps {
                let name = &step.plugin.bundle.name;
                let made = match &step.plugin.made_of {
                    Made::Broken => Ok(Box::new(Broken(name.clone())) as Box<dyn Policy>),
                    Made::Native(native) => native.instantiate(&step.settings),
                    Made::Lua => step.instance(&vm).map(|instance| -> Box<dyn Policy> {
                        if step.plugin.schema.phases.contains(Phase::Init) {
                            at_work.push(Rc::clone(&instance));
                        }
                        Box::new(instance)
                    }),
                };
                match made {
                    Ok(policy) => steps.push((step.alternative, step.with(policy))),
                    Err(message) if self.rejects_broken => {
                        warnings.push(told(name, &located(&step.place, name, message).into()));
                        steps.push((step.alternative, step.with(Box::new(Broken(name.clone())))));
                    }
                    Err(message) => problems.push(located(&step.place, name, message)),
                }
            }
            routes.push(RouteChain {
                path: planned.path.as_str().into(),
                pattern: Rc::new(planned.pattern.clone()),
                resume: planned.resume,
                chain: Rc::new(assemble(steps)),
            });
        }
        let clock = self.tools.clock.clone();
        problems.into_result().map(|()| (Routes { routes, vm, at_work, clock }, warnings))
    }

    /// What an operator should know although it is no reason to stop.
    pub(crate) fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Routes, steps and plugins as JSON, for the admin endpoint.
    pub(crate) fn describe(&self) -> serde_json::Value {
        let mut plugins: BTreeMap<&str, serde_json::Value> = BTreeMap::new();
        let routes: Vec<serde_json::Value> = self
            .routes
            .iter()
            .map(|route| {
                for step in &route.steps {
                    plugins.entry(&step.plugin.bundle.name).or_insert_with(|| step.plugin.describe());
                }
                let steps: Vec<serde_json::Value> = route.steps.iter().map(Step::describe).collect();
                serde_json::json!({ "path": route.path, "chain": steps })
            })
            .collect();
        let plugins: Vec<serde_json::Value> = plugins.into_values().collect();
        serde_json::json!({ "routes": routes, "plugins": plugins })
    }

    /// The routes in which a request may pass that no plugin has authenticated, with the place where each was written.
    pub(crate) fn open_routes(&self) -> impl Iterator<Item = (&str, &Place)> {
        // A group lets nobody in whom none of its alternatives has authenticated.
        let authenticates = |it: &Step| {
            it.alternative.is_some() || (it.plugin.schema.authenticates && !it.dry_run && it.when.is_always())
        };
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
            let mut shown: Vec<String> = Vec::new();
            let mut group: Option<(Alternative, Vec<String>)> = None;
            let of_phase = route.steps.iter().filter(|it| it.plugin.schema.phases.contains(phase));
            for step in of_phase {
                let alternative = step.alternative.filter(|_| phase == Phase::Authenticate);
                match (&mut group, alternative) {
                    (Some((at, members)), Some(next)) if at.group == next.group => {
                        if at.idx == next.idx
                            && let Some(last) = members.last_mut()
                        {
                            *last += &format!(" + {}", step.shown());
                        } else {
                            members.push(step.shown());
                        }
                        *at = next;
                    }
                    (_, next) => {
                        shown.extend(group.take().map(|(_, it)| format!("any of ({})", it.join(" | "))));
                        match next {
                            Some(next) => group = Some((next, vec![step.shown()])),
                            None => shown.push(step.shown()),
                        }
                    }
                }
            }
            shown.extend(group.map(|(_, it)| format!("any of ({})", it.join(" | "))));
            let steps = if shown.is_empty() { "-".to_owned() } else { shown.join(" -> ") };
            text += &format!("  {:<18}{steps}\n", phase.name());
        }
        let remarks: Vec<String> = route.steps.iter().filter_map(Step::remarks).collect();
        if !remarks.is_empty() {
            text += &format!("  where\n{}", remarks.concat());
        }
        Explained { path: route.path.clone(), pattern: route.pattern.clone(), text }
    }
}

impl Step {
    /// Its plugin at work in a VM.
    pub(super) fn instance(&self, vm: &Rc<Vm>) -> Result<Rc<Instance>, String> {
        let plugin = &self.plugin;
        Instance::new(vm, &plugin.bundle, &plugin.schema, &self.settings, &self.id, self.timeout)
    }

    /// The step of a worker's chain.
    pub(super) fn with(&self, policy: Box<dyn Policy>) -> policy::Step {
        policy::Step {
            id: self.id.clone(),
            on_error: self.on_error,
            when: self.when.clone(),
            timeout: self.timeout,
            dry_run: self.dry_run,
            authenticates: self.plugin.schema.authenticates,
            ..policy::Step::new(&self.plugin.bundle.name, policy)
        }
    }

    fn describe(&self) -> serde_json::Value {
        let mut step = serde_json::json!({
            "id": self.id,
            "plugin": self.plugin.bundle.name,
            "on_error": self.on_error.name(),
            "timeout_seconds": self.timeout.as_secs_f64(),
            "dry_run": self.dry_run,
        });
        if !self.when.written.is_empty() {
            step["when"] = self.when.written.as_str().into();
        }
        if let Some(Alternative { group, idx }) = self.alternative {
            step["any_of"] = serde_json::json!({ "group": group, "alternative": idx });
        }
        step
    }

    fn shown(&self) -> String {
        let mark = if self.dry_run { "?" } else { "" };
        format!("{}{mark}", self.id)
    }

    /// What `check --explain` says of a step that is not asked and judged like any other.
    fn remarks(&self) -> Option<String> {
        let mut remarks = Vec::new();
        if self.id != self.plugin.bundle.name {
            remarks.push(format!("is {}", self.plugin.bundle.name));
        }
        if !self.when.written.is_empty() {
            remarks.push(format!("when {}", self.when.written));
        }
        if self.on_error != self.plugin.schema.on_error || self.on_error != OnError::Reject {
            remarks.push(format!("on_error {}", self.on_error.name()));
        }
        if self.dry_run {
            remarks.push("dry run: its decisions are logged alone".into());
        }
        (!remarks.is_empty()).then(|| format!("    {:<16}{}\n", self.id, remarks.join("; ")))
    }
}

/// A chain of steps, those of a group together.
pub(super) fn assemble(steps: Vec<(Option<Alternative>, policy::Step)>) -> Chain {
    let mut chain = Chain::new();
    let mut group: Option<(Alternative, Vec<Vec<policy::Step>>)> = None;
    for (alternative, step) in steps {
        match (&mut group, alternative) {
            (Some((at, members)), Some(next)) if at.group == next.group => {
                match members.last_mut() {
                    Some(last) if at.idx == next.idx => last.push(step),
                    _ => members.push(vec![step]),
                }
                *at = next;
            }
            (_, next) => {
                if let Some((_, members)) = group.take() {
                    chain.push_any_of(members);
                }
                match next {
                    Some(next) => group = Some((next, vec![vec![step]])),
                    None => chain.push(step),
                }
            }
        }
    }
    if let Some((_, members)) = group {
        chain.push_any_of(members);
    }
    chain
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

    /// What plugins do beside all requests: `init`, then their timers, for ever. Nothing, when no plugin has any.
    pub(crate) fn beside(&self, is_first_worker: bool) -> Option<impl Future<Output = ()> + use<>> {
        if self.at_work.is_empty() {
            return None;
        }
        let (at_work, clock) = (self.at_work.clone(), self.clock.clone());
        Some(async move {
            let each = at_work.iter().map(|it| run_beside(it, &clock, is_first_worker));
            futures_util::future::join_all(each).await;
        })
    }

    /// The memory that the VM uses, in bytes.
    pub(crate) fn memory(&self) -> usize {
        self.vm.memory()
    }
}

async fn run_beside(instance: &Instance, clock: &Clock, is_first_worker: bool) {
    let failed = |failure: Failure, what: &str| {
        tracing::error!(plugin = %instance.plugin(), kind = failure.kind.name(), detail = %failure.detail, "{what}");
    };
    match clock.timeout(LONGEST_TIMER, instance.init()).await {
        Some(Ok(())) => {}
        Some(Err(failure)) => return failed(failure, "A plugin's init failed; its timers do not run."),
        None => {
            tracing::error!(plugin = %instance.plugin(), "A plugin's init took too long and was stopped; its timers do not run.");
            return;
        }
    }
    let timers = instance.timers().into_iter().filter(|(_, once, _)| is_first_worker || !once);
    let each = timers.map(|(every, _, run)| async move {
        loop {
            clock.sleep(every).await;
            match clock.timeout(LONGEST_TIMER, instance.run_beside(&run)).await {
                Some(Ok(())) => {}
                Some(Err(failure)) => failed(failure, "A plugin's timer failed."),
                None => tracing::error!(plugin = %instance.plugin(), "A plugin's timer took too long and was stopped."),
            }
        }
    });
    futures_util::future::join_all(each).await;
}

/// A timer that runs for longer waits for something that does not come.
const LONGEST_TIMER: Duration = Duration::from_secs(300);

impl std::fmt::Debug for Plugin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.bundle.name)
    }
}

impl Plugin {
    /// Reads a plugin's contract.
    pub(super) fn load(bundle: Bundle, watchdog: &Watchdog) -> Result<Plugin, Problems> {
        let file = bundle.file("schema.lua");
        let path = Arc::new(file.path.clone());
        let failed = |error: &mlua::Error| {
            let told = bundle.told(&describe(error).detail);
            Problems::from(located(&Place::file(&*path), &bundle.name, told))
        };
        let budget = watchdog.budget();
        let (lua, _) = sandbox::vm(4 << 20, &budget).map_err(|it| failed(&it))?;
        let table = || -> mlua::Result<Value> {
            let env = lua.create_table()?;
            let chunk = sandbox::chunk(&lua, &path.display().to_string(), &file.text, &env)?;
            let entered = budget.enter(lua.current_thread().state(), READING);
            let table = chunk.call(());
            drop(entered);
            table
        };
        let table = match table() {
            Ok(Value::Table(table)) => table,
            Ok(other) => {
                let message = format!("returned {}, expected a table", other.type_name());
                return Err(Problem::new(Place::file(&*path), bundle.name.clone(), message).into());
            }
            Err(error) => return Err(failed(&error)),
        };
        let reader = SchemaReader { file, problems: Problems::new() };
        let schema = reader.read(&table)?;
        Ok(Plugin { bundle: Arc::new(bundle), schema, made_of: Made::Lua })
    }

    fn describe(&self) -> serde_json::Value {
        let source = match &self.made_of {
            Made::Broken => "broken".to_owned(),
            Made::Native(_) => "native".to_owned(),
            Made::Lua => {
                let path = self.bundle.file("plugin.lua").path.display();
                if self.bundle.is_built_in { format!("built in: {path}") } else { path.to_string() }
            }
        };
        let phases: Vec<&str> = self.schema.phases.iter().map(Phase::name).collect();
        serde_json::json!({
            "name": self.bundle.name,
            "summary": self.schema.summary,
            "source": source,
            "phases": phases,
        })
    }

    fn native(native: &Arc<dyn Native>) -> Plugin {
        Plugin::without_files(native.name(), native.schema(), Made::Native(Arc::clone(native)))
    }

    fn broken(name: &str) -> Plugin {
        Plugin::without_files(name, broken::schema(), Made::Broken)
    }

    fn without_files(name: &str, schema: Schema, made_of: Made) -> Plugin {
        let bundle = Bundle { name: name.to_owned(), files: BTreeMap::new(), is_built_in: false };
        Plugin { bundle: Arc::new(bundle), schema, made_of }
    }
}

/// Largest message that a plugin may ask for, in bytes.
const MOST_MESSAGE: u64 = 1 << 20;

/// What a schema may take to be read: it is a table.
const READING: Duration = Duration::from_millis(500);

/// The keys of a step that are the chain's.
const OF_CHAIN: [&str; 4] = ["on_error", "when", "timeout", "dry_run"];

/// Checks one step of a route's chain.
pub(super) fn plan(
    plugin: &Arc<Plugin>,
    step: &crate::config::Step,
    from: &dyn References,
    timeout: Duration,
) -> Result<Step, Problems> {
    let mut problems = Problems::new();
    let (mut on_error, mut when) = (plugin.schema.on_error, When::default());
    let (mut timeout, mut dry_run) = (timeout, false);
    let (of_chain, written): (Vec<&Entry>, Vec<&Entry>) =
        step.settings.iter().partition(|it| OF_CHAIN.contains(&it.key.as_str()));
    for entry in of_chain {
        let value = &entry.node.value;
        let result = match entry.key.as_str() {
            "on_error" => match value {
                config::Value::Text(it) => OnError::find(it).map(|it| on_error = it).ok_or(()),
                _ => Err(()),
            }
            .map_err(|()| "expected \"reject\", \"skip\" or \"close\"".to_owned()),
            "timeout" => Duration::parse(value).and_then(|it| match it.is_zero() {
                true => Err("expected a time above zero".into()),
                false => {
                    timeout = it;
                    Ok(())
                }
            }),
            "dry_run" => match value {
                config::Value::Boolean(it) => {
                    dry_run = *it;
                    Ok(())
                }
                _ => Err("expected true or false".into()),
            },
            _ => match conditions(&entry.node, true) {
                Ok(it) => {
                    when = it;
                    Ok(())
                }
                Err(more) => {
                    problems.extend(more);
                    Ok(())
                }
            },
        };
        if let Err(message) = result {
            let subject = format!("{} = {}", entry.key, value.shown());
            problems.push(Problem::new(entry.node.place.clone(), subject, message));
        }
    }
    let decides = |it| plugin.schema.phases.contains(it);
    if on_error == OnError::Skip && (decides(Phase::Authenticate) || decides(Phase::Authorize)) {
        let message =
            "this plugin decides who may pass, so it cannot be skipped: its failure would let everybody in";
        let subject = format!("{}: on_error = \"skip\"", step.id);
        problems.push(Problem::new(step.place.clone(), subject, message));
    }
    let written: Vec<Entry> = written.into_iter().cloned().collect();
    match plugin.schema.check(&step.place, &written, from) {
        Ok(settings) if problems.is_empty() => Ok(Step {
            plugin: Arc::clone(plugin),
            id: step.id.clone(),
            on_error,
            when,
            timeout,
            dry_run,
            settings,
            alternative: step.alternative,
            place: step.place.clone(),
        }),
        Ok(_) => Err(problems),
        Err(more) => {
            problems.extend(more);
            Err(problems)
        }
    }
}

/// Reads the conditions of a step.
fn conditions(node: &Node, may_exclude: bool) -> Result<When, Problems> {
    let mut problems = Problems::new();
    let mut when = When { written: node.value.written(), ..When::default() };
    let mut note = |place: &Place, what: &str, message: &str| {
        problems.push(Problem::new(place.clone(), format!("when.{what}"), message));
    };
    let Some(table) = node.as_table() else {
        note(&node.place, "", "expected a table with `method`, `path`, `header`, `claim` or `not`");
        return Err(problems);
    };
    for entry in table.iter() {
        let (key, node) = (entry.key.as_str(), &entry.node);
        match key {
            "method" => {
                let names = texts(node).unwrap_or_default();
                if names.is_empty() {
                    note(&node.place, key, "expected a method or a list of them");
                }
                for name in names {
                    match http::Method::from_bytes(name.as_bytes()) {
                        Ok(method) => when.methods.push(method),
                        Err(_) => note(&node.place, key, "expected methods, such as \"POST\""),
                    }
                }
            }
            "path" => {
                let paths = texts(node).unwrap_or_default();
                if paths.is_empty() {
                    note(&node.place, key, "expected a pattern of paths or a list of them");
                }
                for path in paths {
                    match Pattern::parse(&path) {
                        Ok(pattern) => when.paths.push(pattern),
                        Err(message) => note(&node.place, key, &message),
                    }
                }
            }
            "header" | "claim" => {
                let entries = node.as_table().map(|it| it.iter().collect::<Vec<_>>()).unwrap_or_default();
                if entries.is_empty() {
                    note(
                        &node.place,
                        key,
                        "expected a table from names to values; `true` stands for any value",
                    );
                }
                for entry in entries {
                    let values = match &entry.node.value {
                        config::Value::Boolean(true) => Some(Vec::new()),
                        _ => texts(&entry.node).filter(|it| !it.is_empty()),
                    };
                    let name = http::HeaderName::from_bytes(entry.key.as_bytes());
                    match (values, name) {
                        (Some(values), _) if key == "claim" => when.claims.push((entry.key.clone(), values)),
                        (Some(values), Ok(name)) => when.headers.push((name, values)),
                        (None, _) => note(
                            &entry.node.place,
                            key,
                            "expected a string, a list of them, or `true` for any value",
                        ),
                        (_, Err(_)) => note(&entry.node.place, key, "not a header's name"),
                    }
                }
            }
            "not" if may_exclude => match conditions(node, false) {
                Ok(not) => {
                    let of_request =
                        !(not.methods.is_empty() && not.paths.is_empty() && not.headers.is_empty());
                    if of_request && !not.claims.is_empty() {
                        note(
                            &node.place,
                            key,
                            "what must not hold is about the request or about claims, not both",
                        );
                    }
                    when.not = Some(Box::new(not));
                }
                Err(more) => return Err(more),
            },
            _ => {
                let known = ["method", "path", "header", "claim", "not"];
                let there_are = "there are `method`, `path`, `header`, `claim` and `not`";
                let instead = did_you_mean(key, known.into_iter(), there_are);
                note(&entry.place, key, &format!("unknown condition;{instead}"));
            }
        }
    }
    problems.into_result().map(|()| when)
}

/// A string or a list of them.
fn texts(node: &Node) -> Option<Vec<String>> {
    let text = |it: &Node| match &it.value {
        config::Value::Text(it) => Some(it.clone()),
        _ => None,
    };
    match &node.value {
        config::Value::List(items) => items.iter().map(text).collect(),
        _ => text(node).map(|it| vec![it]),
    }
}

/// What is said of a plugin whose requests are rejected.
fn told(name: &str, problems: &Problems) -> String {
    let mistakes = problems.told();
    let mistakes = mistakes.trim_end();
    format!("the plugin {name} could not be loaded, so requests that would ask it are rejected:\n{mistakes}")
}

/// A message of Lua that begins with a file is placed there.
pub(super) fn located(here: &Place, subject: &str, message: String) -> Problem {
    match place(&message) {
        Some((path, line, rest)) => {
            let place = Place::File { path: Arc::new(PathBuf::from(path)), line, column: 0 };
            Problem::new(place, subject, rest)
        }
        None => Problem::new(here.clone(), subject, message),
    }
}

struct SchemaReader<'a> {
    file: &'a File,
    problems: Problems,
}

impl SchemaReader<'_> {
    fn read(mut self, table: &Table) -> Result<Schema, Problems> {
        self.known(
            table,
            "schema",
            &[
                "summary",
                "phases",
                "on_error",
                "authenticates",
                "messages",
                "security",
                "fields",
                "rejections",
                "after",
                "api",
            ],
        );
        let summary = self.text(table, "summary").unwrap_or_default();
        if summary.is_empty() {
            self.problem("summary", "missing: what does the plugin do, in a sentence?");
        }
        let phases = self.phases(table);
        let on_error = match self.text(table, "on_error").as_deref() {
            None => OnError::Reject,
            Some(name) => OnError::find(name).unwrap_or_else(|| {
                self.problem("on_error", format!("{name:?} is none of \"reject\", \"skip\" and \"close\""));
                OnError::Reject
            }),
        };
        let after = self.texts(table, "after");
        let fields = self.fields(table);
        let rejections = self.rejections(table);
        let messages = self.messages(table, phases);
        let asks = phases.contains(Phase::Authenticate);
        let authenticates = match table.raw_get::<Value>("authenticates") {
            Ok(Value::Boolean(it)) if !it || asks => it,
            Ok(Value::Nil) => asks,
            _ => {
                self.problem(
                    "authenticates",
                    "expected true or false, and true in the phase authenticate alone",
                );
                asks
            }
        };
        self.problems.into_result().map(|()| Schema {
            summary,
            authenticates,
            messages,
            phases,
            on_error,
            fields,
            rejections,
            after,
        })
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
                    let instead = did_you_mean(
                        &name,
                        known.iter().copied(),
                        &format!("there are {}", known.join(", ")),
                    );
                    self.problem("phases", format!("unknown phase {name:?};{instead}"));
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
            self.known(
                &field,
                &name,
                &["type", "of", "choices", "required", "default", "inherit", "min", "max", "doc"],
            );
            let of = self.text(&field, "of").and_then(|it| Kind::find(&it, None, Vec::new()));
            let choices = self.texts(&field, "choices");
            let written = self.text(&field, "type").unwrap_or_default();
            let Some(kind) = Kind::find(&written, of, choices) else {
                let known = format!("there are {}", Kind::NAMES.join(", "));
                let instead = did_you_mean(&written, Kind::NAMES.iter().copied(), &known);
                self.problem(&name, format!("field `{name}`: `type` is missing or unknown;{instead}"));
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
            let [min, max] = ["min", "max"].map(|key| self.bound(&field, &name, key, &kind));
            let field = Field { name, kind, required, default, inherit, min, max, doc };
            if let Some(message) = field.out_of_its_range() {
                self.problem(&field.name, format!("field `{}`: {message}", field.name));
            }
            fields.push(field);
        }
        fields
    }

    /// Which messages it wants to see.
    fn messages(&mut self, table: &Table, phases: Phases) -> Wanted {
        let wants = phases.contains(Phase::SessionMessage);
        let said = match table.raw_get::<Value>("messages") {
            Ok(Value::Table(it)) if wants => it,
            Ok(Value::Nil) if !wants => return Wanted::default(),
            _ => {
                let example = "`messages = { from = \"browser\", max = \"64KiB\" }`";
                self.problem(
                    "messages",
                    format!("expected {example} with the phase session_message, and not without it"),
                );
                return Wanted::default();
            }
        };
        self.known(&said, "messages", &["from", "max"]);
        let from = self.text(&said, "from");
        let max = self.text(&said, "max").map(config::Value::Text);
        let max =
            max.and_then(|it| config::Size::parse(&it).ok()).filter(|it| (1..=MOST_MESSAGE).contains(&it.0));
        let Some(max) = max else {
            self.problem("max", "`max` is a size up to 1MiB, such as \"64KiB\"");
            return Wanted::default();
        };
        let max = Some(max.0 as usize);
        match from.as_deref() {
            Some("browser") => Wanted { browser: max, function: None },
            Some("function") => Wanted { browser: None, function: max },
            Some("both") => Wanted { browser: max, function: max },
            _ => {
                self.problem("from", "`from` is \"browser\", \"function\" or \"both\"");
                Wanted::default()
            }
        }
    }

    /// A bound of a setting: a number, or written like the setting itself.
    fn bound(&mut self, field: &Table, name: &str, key: &str, kind: &Kind) -> Option<f64> {
        let value = field.raw_get::<Value>(key).unwrap_or_default();
        let bound = match (&value, kind) {
            (Value::Nil, _) => return None,
            (Value::Integer(it), _) => Some(*it as f64),
            (Value::Number(it), _) => Some(*it),
            (Value::String(it), Kind::Duration) => {
                let text = config::Value::Text(it.to_string_lossy());
                Duration::parse(&text).ok().map(|it| it.as_secs_f64())
            }
            (Value::String(it), Kind::Size) => {
                let text = config::Value::Text(it.to_string_lossy());
                config::Size::parse(&text).ok().map(|it| it.0 as f64)
            }
            _ => None,
        };
        if bound.is_none() || !matches!(kind, Kind::Integer | Kind::Number | Kind::Duration | Kind::Size) {
            self.problem(
                name,
                format!("field `{name}`: `{key}` is a number, of a duration, a size or a number"),
            );
        }
        bound
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
                let instead =
                    did_you_mean(&key, known.iter().copied(), &format!("there are {}", known.join(", ")));
                self.problem(&key, format!("{what}: unknown key `{key}`;{instead}"));
            }
        }
    }

    fn problem(&mut self, key: &str, message: impl Into<String>) {
        let place = self.place(key);
        self.problems.push(Problem::new(place, key, message));
    }

    /// The first line of the schema that sets `key`, or the file as a whole.
    fn place(&self, key: &str) -> Place {
        let line = self.file.line_that_sets(key).unwrap_or(0);
        Place::File { path: Arc::new(self.file.path.clone()), line, column: 0 }
    }
}
