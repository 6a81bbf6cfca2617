//! One VM of one worker, and the plugins in it.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use mlua::ffi::lua_State;
use mlua::{AnyUserData, FromLuaMulti, Function, IntoLuaMulti, Lua, Table, Value};

use crate::config::did_you_mean;
use crate::lua::api::{
    Author, CHOICE, Live, MessageHandle, RequestHandle, ResponseHandle, SessionHandle, Slot, UpstreamHandle,
};
use crate::lua::budget::{Budget, Entered, SPENT};
use crate::lua::bundle::{Bundle, File};
use crate::lua::fault::describe;
use crate::lua::kit::{Hosts, Kit};
use crate::lua::{convert, sandbox};
use crate::policy::{
    Answer, Decision, Exchange, Failure, FailureKind, Phase, Phases, Policy, Schema, Settings, Wanted,
};
use crate::rejection::Declared;

/// A VM. Its handles are made once and pointed at one request after the other.
pub(crate) struct Vm {
    pub(super) lua: Lua,
    pub(super) kit: Rc<Kit>,
    prelude: Table,
    /// The coroutine of calls that do not wait.
    main: *mut lua_State,
    limit: Duration,
    slot: Slot,
    request: AnyUserData,
    upstream: AnyUserData,
    response: AnyUserData,
    session: AnyUserData,
    message: AnyUserData,
    /// It ran out of memory or time: what its scripts left behind cannot be trusted.
    spent: Cell<bool>,
}

/// One instance of a plugin in a VM.
pub(crate) struct Instance {
    vm: Rc<Vm>,
    author: Rc<Author>,
    functions: [Option<Function>; Phase::ALL.len()],
    phases: Phases,
    messages: Wanted,
    conf: Value,
    codes: Rc<[Arc<Declared>]>,
}

/// What `plugin.lua` returns.
struct Code {
    functions: [Option<Function>; Phase::ALL.len()],
    configure: Option<Function>,
    self_test: Option<Function>,
}

/// A call that may wait. Its budget runs whenever it is polled.
pub(crate) struct Call<R> {
    /// None once it is done.
    call: Option<Pin<Box<dyn Future<Output = mlua::Result<R>>>>>,
    budget: Budget,
    limit: Duration,
    /// The coroutine in which it is; none before it has begun.
    state: *mut lua_State,
}

/// A phase that waits.
struct Waiting<'a> {
    instance: &'a Instance,
    phase: Phase,
    function: &'a Function,
    exchange: &'a mut Exchange,
    call: Call<Value>,
    decision: Option<Decision>,
}

/// What a plugin may take while it is loaded: its tables may be large, and nobody waits.
const LOADING: Duration = Duration::from_secs(2);

/// The functions of a plugin that run while it is loaded.
const CONFIGURE: &str = "configure";
const SELF_TEST: &str = "self_test";

impl Vm {
    /// A VM in which a call may take `limit` of CPU time.
    pub(super) fn new(memory: usize, limit: Duration, kit: Rc<Kit>) -> mlua::Result<Rc<Vm>> {
        let (lua, prelude) = sandbox::vm(memory, &kit.budget)?;
        let slot: Slot = Rc::new(RefCell::new(None));
        let driver: Function = prelude.raw_get("phase")?;
        kit.drive(&lua, driver, limit);
        Ok(Rc::new(Vm {
            prelude,
            main: lua.current_thread().state(),
            limit,
            request: lua.create_userdata(RequestHandle(Rc::clone(&slot)))?,
            upstream: lua.create_userdata(UpstreamHandle(Rc::clone(&slot)))?,
            response: lua.create_userdata(ResponseHandle(Rc::clone(&slot)))?,
            session: lua.create_userdata(SessionHandle(Rc::clone(&slot)))?,
            message: lua.create_userdata(MessageHandle(Rc::clone(&slot)))?,
            lua,
            kit,
            slot,
            spent: Cell::new(false),
        }))
    }

    /// Whether the VM must be replaced before the next request.
    pub(crate) fn is_spent(&self) -> bool {
        self.spent.get()
    }

    /// The memory it uses, in bytes.
    pub(crate) fn memory(&self) -> usize {
        self.lua.used_memory()
    }

    /// The globals of a plugin.
    pub(super) fn environment(
        &self,
        author: &Rc<Author>,
        modules: &Rc<sandbox::Modules>,
    ) -> mlua::Result<Table> {
        sandbox::environment(&self.lua, &self.prelude, author, modules)
    }

    /// One instance of a plugin, as its modules see it.
    pub(super) fn author(&self, plugin: &str, hosts: Hosts) -> Rc<Author> {
        Author::new(plugin, &self.slot, &self.kit, hosts)
    }

    /// Runs Lua code that does not wait, within a budget.
    pub(super) fn guarded<R>(
        &self,
        limit: Duration,
        run: impl FnOnce() -> mlua::Result<R>,
    ) -> Result<R, Failure> {
        let entered = self.kit.budget.enter(self.main, limit);
        let result = run();
        self.judged(&entered, result)
    }

    /// What a call gave, or why it gave nothing. A VM whose script was stopped is not used again.
    fn judged<R>(&self, entered: &Entered<'_>, result: mlua::Result<R>) -> Result<R, Failure> {
        if entered.is_spent() {
            self.spent.set(true);
            let detail = result.err().map_or_else(|| SPENT.to_owned(), |it| describe(&it).detail);
            return Err(Failure { kind: FailureKind::Time, detail });
        }
        result.map_err(|it| {
            let failure = describe(&it);
            if failure.kind == FailureKind::Memory {
                self.spent.set(true);
            }
            failure
        })
    }
}

impl<R: FromLuaMulti + 'static> Call<R> {
    /// `driver` is the function `phase` of the prelude.
    pub(super) fn new(
        driver: &Function,
        budget: Budget,
        limit: Duration,
        lua: &Lua,
        function: &Function,
        args: impl IntoLuaMulti,
    ) -> Call<R> {
        let call: Pin<Box<dyn Future<Output = mlua::Result<R>>>> = match args.into_lua_multi(lua) {
            Ok(mut args) => {
                args.push_front(Value::Function(function.clone()));
                Box::pin(driver.call_async::<R>(args))
            }
            Err(error) => Box::pin(std::future::ready(Err(error))),
        };
        Call { call: Some(call), budget, limit, state: std::ptr::null_mut() }
    }

    /// Lets it run until it waits; whether it was stopped because its time was up goes beside what it gave.
    fn advance(&mut self, cx: &mut Context<'_>, vm: Option<&Vm>) -> Poll<Result<R, Failure>> {
        let Some(call) = &mut self.call else { return Poll::Pending };
        let entered = self.budget.enter(self.state, self.limit);
        let polled = call.as_mut().poll(cx);
        self.state = entered.state();
        let result = match polled {
            Poll::Pending if !entered.is_spent() => return Poll::Pending,
            Poll::Pending => Err(mlua::Error::runtime(SPENT)),
            Poll::Ready(result) => result,
        };
        let result = match vm {
            Some(vm) => vm.judged(&entered, result),
            None => result.map_err(|it| describe(&it)),
        };
        self.call = None;
        Poll::Ready(result)
    }
}

impl<R: FromLuaMulti + 'static> Future for Call<R> {
    type Output = mlua::Result<R>;

    /// For a call within a call: the outer one judges.
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<mlua::Result<R>> {
        let polled = self.advance(cx, None);
        polled.map(|it| it.map_err(|it| mlua::Error::runtime(it.detail)))
    }
}

impl<R> Unpin for Call<R> {}

impl<R> Drop for Call<R> {
    fn drop(&mut self) {
        if let Some(call) = self.call.take() {
            // A coroutine that is given up has its `<close>` variables closed, by code of the script.
            let entered = self.budget.enter(self.state, self.limit);
            drop(call);
            drop(entered);
        }
    }
}

impl Code {
    /// Runs `plugin.lua` once and finds its functions. The error begins with file and line.
    fn read(vm: &Rc<Vm>, author: &Rc<Author>, bundle: &Arc<Bundle>, schema: &Schema) -> Result<Code, String> {
        let rocks = Arc::clone(&vm.kit.rocks);
        let modules = Rc::new(sandbox::Modules { bundle: Arc::clone(bundle), rocks, extra: Vec::new() });
        let file = bundle.file("plugin.lua");
        let path = file.path.display().to_string();
        let run = || -> mlua::Result<Value> {
            let env = vm.environment(author, &modules)?;
            sandbox::chunk(&vm.lua, &path, &file.text, &env)?.call(bundle.name.as_str())
        };
        let module = match vm.guarded(LOADING, run).map_err(|it| bundle.told(&it.detail))? {
            Value::Table(module) => module,
            other => return Err(no_table(file, &other)),
        };
        let mut code = Code { functions: Default::default(), configure: None, self_test: None };
        for pair in module.pairs::<Value, Value>() {
            let (key, value) = pair.map_err(|it| it.to_string())?;
            let name = key.as_string().map(mlua::LuaString::to_string_lossy).unwrap_or_default();
            let function = value.as_function().cloned();
            match (name.as_str(), Phase::find(&name), function) {
                (CONFIGURE, _, Some(function)) => code.configure = Some(function),
                (SELF_TEST, _, Some(function)) => code.self_test = Some(function),
                (_, Some(phase), Some(function)) => {
                    // Before a session had phases of its own, `session_tick` got `conf` where the session is now.
                    let info = function.info();
                    if phase.is_of_session() && info.num_params == 2 && !info.is_vararg {
                        let second = if phase == Phase::SessionMessage { "message" } else { "session" };
                        return Err(format!(
                            "{}: {phase} gets request, {second} and conf, and the function takes two arguments",
                            defined(file, &name, Some(&function))
                        ));
                    }
                    code.functions[phase as usize] = Some(function);
                }
                (_, _, function) => {
                    let mut known: Vec<&str> = Phase::ALL.iter().map(|it| it.name()).collect();
                    known.extend([CONFIGURE, SELF_TEST]);
                    return Err(format!(
                        "{}: the table has {name:?}, which is not a phase function;{}; what else a plugin needs is `local`",
                        defined(file, &name, function.as_ref()),
                        did_you_mean(
                            &name,
                            known.iter().copied(),
                            &format!("phases are {}", known.join(", "))
                        )
                    ));
                }
            }
        }
        for phase in Phase::ALL {
            let function = code.functions[phase as usize].as_ref();
            match (function, schema.phases.contains(phase)) {
                (Some(_), false) => {
                    let at = defined(file, phase.name(), function);
                    return Err(format!(
                        "{at}: has a function {phase}, which schema.lua does not list in `phases`"
                    ));
                }
                (None, true) => {
                    return Err(format!(
                        "{path}: has no function {phase}, which schema.lua lists in `phases`"
                    ));
                }
                _ => {}
            }
        }
        Ok(code)
    }
}

/// What is wrong with a `plugin.lua` that returns something else than a table.
fn no_table(file: &File, returned: &Value) -> String {
    let at = format!("{}:{}", file.path.display(), file.text.trim_end().lines().count().max(1));
    let expected = "expected the table of its phase functions";
    match returned {
        Value::Nil => format!("{at}: returned nothing, {expected}: the last line is `return M`"),
        other => format!("{at}: returned {}, {expected}", other.type_name()),
    }
}

/// Where the table of `plugin.lua` gets one of its entries: where its function begins, or the first line that sets it.
fn defined(file: &File, key: &str, function: Option<&Function>) -> String {
    let of_function = function.map(Function::info).and_then(|it| {
        let path = it.source?.strip_prefix('@')?.to_owned();
        Some((path, it.line_defined.filter(|it| *it > 0)?))
    });
    match of_function.or_else(|| Some((file.path.display().to_string(), file.line_that_sets(key)?))) {
        Some((path, line)) => format!("{path}:{line}"),
        None => file.path.display().to_string(),
    }
}

impl Instance {
    /// Runs `plugin.lua` once, finds its phase functions, and lets it configure and test itself. The error begins with file
    /// and line, unless the plugin itself says what is wrong with its settings. `id` is that of its step in the chain, and
    /// `timeout` how long it may wait in one phase.
    pub(super) fn new(
        vm: &Rc<Vm>,
        bundle: &Arc<Bundle>,
        schema: &Schema,
        settings: &Settings,
        id: &str,
        timeout: Duration,
    ) -> Result<Rc<Instance>, String> {
        let author = vm.author(&bundle.name, Hosts::of_settings(settings));
        let Code { functions, configure, self_test } = Code::read(vm, &author, bundle, schema)?;
        let conf = vm
            .guarded(LOADING, || {
                let mut conf = Value::Table(convert::settings(&vm.lua, settings)?);
                if let Some(configure) = configure {
                    let step = vm.lua.create_table_from([("id", id)])?;
                    step.raw_set("timeout", timeout.as_secs_f64())?;
                    match configure.call::<Value>((&conf, step))? {
                        Value::Nil => {}
                        other => conf = other,
                    }
                }
                if let Some(self_test) = self_test {
                    self_test.call::<()>(&conf)?;
                }
                Ok(conf)
            })
            .map_err(|it| bundle.told(&it.detail))?;
        let codes = schema.rejections.clone().into();
        Ok(Rc::new(Instance {
            vm: Rc::clone(vm),
            author,
            functions,
            phases: schema.phases,
            messages: schema.messages,
            conf,
            codes,
        }))
    }

    /// Whether a plugin can be loaded, whatever its settings are.
    pub(super) fn check(vm: &Rc<Vm>, bundle: &Arc<Bundle>, schema: &Schema) -> Result<(), String> {
        Code::read(vm, &vm.author(&bundle.name, Hosts::default()), bundle, schema).map(drop)
    }

    fn run(&self, phase: Phase, exchange: &mut Exchange) -> Result<Decision, Failure> {
        let Some(function) = &self.functions[phase as usize] else { return Ok(Decision::Continue) };
        let vm = &self.vm;
        *vm.slot.borrow_mut() = Some(self.live(phase, exchange, None));
        let result = vm.guarded(vm.limit, || match phase {
            Phase::Init => function.call::<Value>(&self.conf),
            phase => match self.second(phase) {
                Some(second) => function.call((&vm.request, second, &self.conf)),
                None => function.call((&vm.request, &self.conf)),
            },
        });
        let live = vm.slot.borrow_mut().take().expect("nobody but its phase takes it out");
        *exchange = live.exchange;
        verdict(phase, function, result, live.decision)
    }

    fn begin<'a>(&'a self, phase: Phase, exchange: &'a mut Exchange, function: &'a Function) -> Waiting<'a> {
        let vm = &self.vm;
        let call = match phase {
            Phase::Init => vm.kit.call(function, &self.conf),
            phase => match self.second(phase) {
                Some(second) => vm.kit.call(function, (&vm.request, second, &self.conf)),
                None => vm.kit.call(function, (&vm.request, &self.conf)),
            },
        };
        Waiting { instance: self, phase, function, exchange, call, decision: None }
    }

    /// The second argument of a phase, where it has one.
    fn second(&self, phase: Phase) -> Option<&AnyUserData> {
        match phase {
            Phase::UpstreamRequest => Some(&self.vm.upstream),
            Phase::ResponseHeaders | Phase::Log => Some(&self.vm.response),
            Phase::SessionMessage => Some(&self.vm.message),
            it if it.is_of_session() => Some(&self.vm.session),
            _ => None,
        }
    }

    fn live(&self, phase: Phase, exchange: &mut Exchange, decision: Option<Decision>) -> Live {
        Live { phase, exchange: std::mem::take(exchange), decision, codes: Rc::clone(&self.codes) }
    }

    /// Runs one of its timers, or its `init`, once.
    pub(super) async fn run_beside(&self, function: &Function) -> Result<(), Failure> {
        let mut nothing = Exchange::default();
        self.begin(Phase::Init, &mut nothing, function).await.map(|_| ())
    }

    /// The name of its plugin.
    pub(super) fn plugin(&self) -> &Rc<str> {
        &self.author.plugin
    }

    /// Runs `init`, if it has one.
    pub(super) async fn init(&self) -> Result<(), Failure> {
        match &self.functions[Phase::Init as usize] {
            Some(function) => self.run_beside(function).await,
            None => Ok(()),
        }
    }

    /// What `init` wants to be done again and again.
    pub(super) fn timers(&self) -> Vec<(Duration, bool, Function)> {
        self.author.timers.borrow().iter().map(|it| (it.every, it.once, it.run.clone())).collect()
    }
}

impl Future for Waiting<'_> {
    type Output = Result<Decision, Failure>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        let vm = &this.instance.vm;
        let live = this.instance.live(this.phase, this.exchange, this.decision.take());
        let outer = vm.slot.replace(Some(live));
        let polled = this.call.advance(cx, Some(vm));
        let live = vm.slot.replace(outer).expect("nobody but its phase takes it out");
        *this.exchange = live.exchange;
        match polled {
            Poll::Pending => {
                this.decision = live.decision;
                Poll::Pending
            }
            Poll::Ready(result) => Poll::Ready(verdict(this.phase, this.function, result, live.decision)),
        }
    }
}

/// What a phase function's return value means.
fn verdict(
    phase: Phase,
    function: &Function,
    result: Result<Value, Failure>,
    decision: Option<Decision>,
) -> Result<Decision, Failure> {
    let contract = |what: String| {
        let info = function.info();
        let (path, line) = (info.short_src.unwrap_or_default(), info.line_defined.unwrap_or_default());
        Failure { kind: FailureKind::Contract, detail: format!("{path}:{line}: {what}") }
    };
    match (result?, decision) {
        (value, Some(decision)) if value == CHOICE => Ok(decision),
        (_, Some(_)) => Err(contract(format!(
            "{phase} did not return what request:reject or request:respond gave: write `return request:…`"
        ))),
        (Value::Nil, None) => Ok(Decision::Continue),
        (value, None) => Err(contract(format!(
            "{phase} returned a {}; return nothing, or what request:reject or request:respond gives",
            value.type_name()
        ))),
    }
}

impl Policy for Rc<Instance> {
    fn phases(&self) -> Phases {
        self.phases
    }

    fn messages(&self) -> Wanted {
        self.messages
    }

    fn call<'a>(&'a self, phase: Phase, exchange: &'a mut Exchange) -> Answer<'a> {
        match &self.functions[phase as usize] {
            Some(function) if phase.may_wait() && self.author.may_have_to_wait() => {
                Answer::Later(Box::pin(self.begin(phase, exchange, function)))
            }
            _ => Answer::Now(self.run(phase, exchange)),
        }
    }
}
