//! `time`: what the gateway's clock says, for plugins.

use std::cell::Cell;
use std::rc::Rc;
use std::time::SystemTime;

use mlua::{Lua, Table};

use crate::clock::Clock;
use crate::lua::api::Function;
use crate::policy::{Phase, Phases};

/// Where a VM has the time from.
#[derive(Clone)]
pub(crate) enum Time {
    /// The gateway's clock.
    Clock(Clock),
    /// A spec, which sets it: seconds since the Unix epoch.
    Set(Rc<Cell<f64>>),
}

pub(super) static FUNCTIONS: &[Function] = &[Function {
    handle: "time",
    name: "now",
    params: &[],
    result: "number",
    phases: Phases::of(&Phase::ALL),
    doc: " Seconds since the Unix epoch, with a fraction. A spec sets them with `at`; `os.time` it cannot set.\n",
    example: "if principal.expires <= time.now() then … end",
}];

impl Time {
    fn now(&self) -> f64 {
        match self {
            Time::Clock(clock) => {
                clock.wall().duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |it| it.as_secs_f64())
            }
            Time::Set(at) => at.get(),
        }
    }
}

/// The module for one plugin.
pub(crate) fn install(lua: &Lua, time: Time) -> mlua::Result<Table> {
    let module = lua.create_table()?;
    module.raw_set("now", lua.create_function(move |_, ()| Ok(time.now()))?)?;
    Ok(module)
}
