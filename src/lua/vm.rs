//! One VM of one worker, and the plugins in it.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use mlua::{AnyUserData, Function, Lua, Table, Value};

use crate::lua::api::{CHOICE, Live, Misuse, RequestHandle, ResponseHandle, Slot, Time, UpstreamHandle};
use crate::lua::bundle::Bundle;
use crate::lua::{convert, sandbox};
use crate::policy::{
    Answer, Decision, Exchange, Failure, FailureKind, Phase, Phases, Policy, Schema, Settings,
};
use crate::rejection::Declared;

/// A VM. Its handles are made once and pointed at one request after the other.
pub(crate) struct Vm {
    pub(super) lua: Lua,
    pub(super) time: Time,
    slot: Slot,
    request: AnyUserData,
    upstream: AnyUserData,
    response: AnyUserData,
    /// It ran out of memory: what its scripts left behind cannot be trusted.
    spent: Cell<bool>,
}

/// One instance of a plugin in a VM.
pub(crate) struct Instance {
    vm: Rc<Vm>,
    functions: [Option<Function>; Phase::ALL.len()],
    phases: Phases,
    conf: Table,
    codes: Rc<[Arc<Declared>]>,
}

impl Vm {
    pub(super) fn new(memory: usize, time: Time) -> mlua::Result<Rc<Vm>> {
        let lua = sandbox::vm(memory)?;
        let slot: Slot = Rc::new(RefCell::new(None));
        Ok(Rc::new(Vm {
            request: lua.create_userdata(RequestHandle(Rc::clone(&slot)))?,
            upstream: lua.create_userdata(UpstreamHandle(Rc::clone(&slot)))?,
            response: lua.create_userdata(ResponseHandle(Rc::clone(&slot)))?,
            lua,
            time,
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
}

impl Instance {
    /// Runs `plugin.lua` once and finds its phase functions.
    pub(super) fn new(
        vm: &Rc<Vm>,
        bundle: &Arc<Bundle>,
        schema: &Schema,
        settings: &Settings,
    ) -> Result<Instance, String> {
        let modules = Rc::new(sandbox::Modules { bundle: Arc::clone(bundle), extra: Vec::new() });
        let file = bundle.file("plugin.lua");
        let path = file.path.display().to_string();
        let make = || -> mlua::Result<(Value, Table)> {
            let env = sandbox::environment(&vm.lua, &modules, &vm.time)?;
            let module =
                sandbox::chunk(&vm.lua, &path, &file.text, &env)?.call::<Value>(bundle.name.as_str())?;
            Ok((module, convert::settings(&vm.lua, settings)?))
        };
        let (module, conf) = make().map_err(|it| describe(&it).detail)?;
        let Value::Table(module) = module else {
            return Err(format!(
                "{path}: returned {}, expected the table of its phase functions",
                module.type_name()
            ));
        };
        let mut functions: [Option<Function>; Phase::ALL.len()] = Default::default();
        for pair in module.pairs::<Value, Value>() {
            let (key, value) = pair.map_err(|it| it.to_string())?;
            let name = key.as_string().map(mlua::LuaString::to_string_lossy).unwrap_or_default();
            let (Some(phase), Value::Function(function)) = (Phase::find(&name), &value) else {
                let phases: Vec<&str> = Phase::ALL.iter().map(|it| it.name()).collect();
                return Err(format!(
                    "{path}: the table has {name:?}, which is not a phase function; phases are {}",
                    phases.join(", ")
                ));
            };
            functions[phase as usize] = Some(function.clone());
        }
        for phase in Phase::ALL {
            match (functions[phase as usize].is_some(), schema.phases.contains(phase)) {
                (true, false) => {
                    return Err(format!(
                        "{path}: has a function {phase}, which schema.lua does not list in `phases`"
                    ));
                }
                (false, true) => {
                    return Err(format!(
                        "{path}: has no function {phase}, which schema.lua lists in `phases`"
                    ));
                }
                _ => {}
            }
        }
        let codes = schema.rejections.clone().into();
        Ok(Instance { vm: Rc::clone(vm), functions, phases: schema.phases, conf, codes })
    }

    fn run(&self, phase: Phase, exchange: &mut Exchange) -> Result<Decision, Failure> {
        let Some(function) = &self.functions[phase as usize] else { return Ok(Decision::Continue) };
        let vm = &self.vm;
        let live =
            Live { phase, exchange: std::mem::take(exchange), decision: None, codes: Rc::clone(&self.codes) };
        *vm.slot.borrow_mut() = Some(live);
        let result: mlua::Result<Value> = match phase {
            Phase::UpstreamRequest => function.call((&vm.request, &vm.upstream, &self.conf)),
            Phase::ResponseHeaders | Phase::Log => function.call((&vm.request, &vm.response, &self.conf)),
            _ => function.call((&vm.request, &self.conf)),
        };
        let live =
            vm.slot.borrow_mut().take().expect("the phase that was begun has not been ended by anyone else");
        *exchange = live.exchange;
        let contract = |detail: String| Failure { kind: FailureKind::Contract, detail };
        match (result, live.decision) {
            (Ok(Value::Nil), None) => Ok(Decision::Continue),
            (Ok(value), Some(decision)) if value == CHOICE => Ok(decision),
            (Ok(_), Some(_)) => Err(contract(format!(
                "{phase} did not return what request:reject or request:respond gave: write `return request:…`"
            ))),
            (Ok(value), None) => Err(contract(format!(
                "{phase} returned a {}; return nothing, or what request:reject or request:respond gives",
                value.type_name()
            ))),
            (Err(error), _) => {
                let failure = describe(&error);
                if failure.kind == FailureKind::Memory {
                    vm.spent.set(true);
                }
                Err(failure)
            }
        }
    }
}

impl Policy for Instance {
    fn phases(&self) -> Phases {
        self.phases
    }

    fn call<'a>(&'a self, phase: Phase, exchange: &'a mut Exchange) -> Answer<'a> {
        Answer::Now(self.run(phase, exchange))
    }
}

/// An error of a script for the operator: message, file and line, traceback.
pub(super) fn describe(error: &mlua::Error) -> Failure {
    match error {
        mlua::Error::CallbackError { traceback, cause } => {
            let inner = describe(cause);
            Failure { kind: inner.kind, detail: format!("{}\n{traceback}", inner.detail) }
        }
        mlua::Error::MemoryError(message) => Failure { kind: FailureKind::Memory, detail: message.clone() },
        mlua::Error::ExternalError(cause) if cause.is::<Misuse>() => {
            Failure { kind: FailureKind::Contract, detail: cause.to_string() }
        }
        mlua::Error::RuntimeError(message) | mlua::Error::SyntaxError { message, .. } => {
            Failure { kind: FailureKind::Runtime, detail: message.clone() }
        }
        other => Failure { kind: FailureKind::Runtime, detail: other.to_string() },
    }
}
