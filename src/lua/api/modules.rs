//! The modules of the library that are native: what `require "streamgate.…"` finds besides `lua/streamgate`.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use mlua::{Function, Lua, Table};

use crate::lua::api::{self, Slot, misuse};
use crate::lua::kit::{Hosts, Kit};
use crate::policy::{Phase, Phases};

/// One module.
pub(crate) struct Module {
    /// What `require` takes.
    pub(crate) name: &'static str,
    /// What it is called in its documentation.
    pub(crate) handle: &'static str,
    pub(crate) doc: &'static str,
    pub(crate) functions: &'static [api::Function],
    pub(super) install: fn(&Lua, &Rc<Author>) -> mlua::Result<Table>,
}

/// All modules, in the order of the reference page.
pub(crate) static MODULES: &[&Module] = &[
    &super::log::MODULE,
    &super::time::MODULE,
    &super::timer::MODULE,
    &super::json::MODULE,
    &super::codec::BASE64,
    &super::codec::BASE64URL,
    &super::codec::HEX,
    &super::crypto::MODULE,
    &super::password::MODULE,
    &super::jwt::MODULE,
    &super::oidc::MODULE,
    &super::http::MODULE,
    &super::url::MODULE,
    &super::cookie::MODULE,
    &super::ip::MODULE,
    &super::regex::MODULE,
    &super::uuid::MODULE,
    &super::kv::MODULE,
    &super::cache::MODULE,
    &super::ratelimit::MODULE,
    &super::lease::MODULE,
    &super::queue::MODULE,
    &super::metrics::MODULE,
];

/// One instance of a plugin, as its modules see it.
pub(crate) struct Author {
    /// The plugin's name: what its log lines, metrics and stored names begin with.
    pub(crate) plugin: Rc<str>,
    pub(crate) slot: Slot,
    pub(crate) kit: Rc<Kit>,
    /// Whom it may reach.
    pub(crate) hosts: RefCell<Hosts>,
    /// What `timer.every` was told in `init`.
    pub(crate) timers: RefCell<Vec<Timer>>,
    /// It has a module that may wait, so its phases run as coroutines.
    waits: Cell<bool>,
}

/// Something that is done again and again.
pub(crate) struct Timer {
    pub(crate) every: Duration,
    /// In one worker alone.
    pub(crate) once: bool,
    pub(crate) run: Function,
}

impl Author {
    pub(crate) fn new(plugin: &str, slot: &Slot, kit: &Rc<Kit>, hosts: Hosts) -> Rc<Author> {
        Rc::new(Author {
            plugin: plugin.into(),
            slot: Rc::clone(slot),
            kit: Rc::clone(kit),
            hosts: RefCell::new(hosts),
            timers: RefCell::default(),
            waits: Cell::new(false),
        })
    }

    /// Notes that the plugin has a function that may wait.
    pub(super) fn waits(&self) {
        self.waits.set(true);
    }

    /// Whether it has one.
    pub(crate) fn may_have_to_wait(&self) -> bool {
        self.waits.get()
    }

    /// The phase that runs; none while the plugin is loaded.
    pub(super) fn phase(&self) -> Option<Phase> {
        self.slot.try_borrow().ok().and_then(|it| it.as_ref().map(|it| it.phase))
    }

    /// Refuses a call where nothing may wait.
    pub(super) fn may_wait(&self, function: &str) -> mlua::Result<()> {
        let place = match self.phase() {
            Some(phase) if phase.may_wait() => return Ok(()),
            Some(phase) => format!("in {phase}"),
            None => "while the plugin is loaded".into(),
        };
        let allowed: Phases = Phase::ALL.into_iter().filter(|it| it.may_wait()).collect();
        Err(misuse(format!("{function} can be called in {}, not {place}", allowed.names())))
    }

    /// A name in what all plugins share, which no other plugin has.
    pub(super) fn own(&self, name: &[u8]) -> Vec<u8> {
        [self.plugin.as_bytes(), b":", name].concat()
    }
}

/// The module of that name, for one plugin.
pub(crate) fn install(lua: &Lua, author: &Rc<Author>, name: &str) -> mlua::Result<Option<Table>> {
    let module = MODULES.iter().find(|it| it.name == name);
    module.map(|it| (it.install)(lua, author)).transpose()
}

/// The names of all modules.
pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    MODULES.iter().map(|it| it.name)
}
