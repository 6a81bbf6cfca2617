//! What the library for authors works with.

use std::cell::{Cell, OnceCell, RefCell};
use std::fmt;
use std::rc::Rc;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use mlua::{FromLuaMulti, Function, IntoLuaMulti, Lua, WeakLua};

use crate::clock::Clock;
use crate::lua::api::{Flights, Time};
use crate::lua::budget::{Budget, Watchdog};
use crate::lua::fetch::{Fetcher, Reason, Request, Response};
use crate::lua::keys::Keys;
use crate::lua::rocks::Rocks;
use crate::lua::vm::Call;
use crate::policy::{Meters, Natives, Setting, Settings};
use crate::store::Store;

pub(crate) use crate::lua::fetch::Hosts;

/// What all VMs share, over all generations of the configuration.
#[derive(Clone)]
pub(crate) struct Tools {
    pub(crate) clock: Clock,
    pub(crate) store: Arc<Store>,
    pub(crate) meters: Arc<dyn Meters>,
    pub(crate) keys: Arc<Keys>,
    pub(crate) watchdog: Arc<Watchdog>,
    flights: Arc<Flights>,
    /// Plugins that are not in Lua.
    pub(crate) natives: Natives,
    /// The system's roots, read once.
    system_tls: Arc<OnceLock<Arc<rustls::ClientConfig>>>,
    began: Instant,
}

/// What the modules of one VM work with.
pub(crate) struct Kit {
    pub(crate) time: Time,
    pub(crate) budget: Budget,
    pub(crate) store: Arc<Store>,
    pub(crate) meters: Arc<dyn Meters>,
    pub(crate) keys: Arc<Keys>,
    pub(crate) flights: Arc<Flights>,
    /// Modules that others have written.
    pub(super) rocks: Arc<Rocks>,
    /// What plugins logged, for a spec.
    pub(crate) logged: Option<Logged>,
    web: Web,
    /// What `time.monotonic` counts from.
    began: Option<(Clock, Instant)>,
    /// How a function is called that may wait. What a VM's functions hold may not hold the VM.
    driver: OnceCell<(WeakLua, Function, Duration)>,
}

/// Levels and messages.
pub(crate) type Logged = Rc<RefCell<Vec<(&'static str, String)>>>;

/// How a spec answers requests.
type SpecWeb = dyn Fn(&Request) -> Result<Response, Reason>;

/// Who answers HTTP requests.
pub(crate) enum Web {
    /// The network.
    Real(Fetcher),
    /// A spec.
    Spec(Rc<SpecWeb>),
}

impl Tools {
    pub(crate) fn new(clock: &Clock, natives: Natives, store: Arc<Store>, meters: Arc<dyn Meters>) -> Tools {
        Tools {
            clock: clock.clone(),
            store,
            meters,
            keys: Arc::new(Keys::new(clock.clone())),
            watchdog: Arc::new(Watchdog::new()),
            flights: Arc::default(),
            natives,
            system_tls: Arc::default(),
            began: clock.now(),
        }
    }

    /// Tools for a look at a configuration: nothing is kept and nothing is counted.
    pub(crate) fn for_check(clock: &Clock, natives: &Natives) -> Tools {
        Tools::new(clock, natives.clone(), Arc::new(Store::in_memory(16)), Arc::new(crate::policy::Uncounted))
    }

    /// What plugins trust without a setting; read from the system when it is first needed.
    pub(crate) fn system_tls(
        &self,
        read: impl FnOnce() -> Arc<rustls::ClientConfig>,
    ) -> Arc<rustls::ClientConfig> {
        Arc::clone(self.system_tls.get_or_init(read))
    }

    /// The tools of a worker's VM.
    pub(super) fn kit(&self, tls: Arc<rustls::ClientConfig>, rocks: Arc<Rocks>) -> Rc<Kit> {
        Rc::new(Kit {
            time: Time::Clock(self.clock.clone()),
            budget: self.watchdog.budget(),
            store: Arc::clone(&self.store),
            meters: Arc::clone(&self.meters),
            keys: Arc::clone(&self.keys),
            flights: Arc::clone(&self.flights),
            rocks,
            logged: None,
            web: Web::Real(Fetcher::new(tls, &self.clock)),
            began: Some((self.clock.clone(), self.began)),
            driver: OnceCell::new(),
        })
    }
}

impl fmt::Debug for Tools {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tools")
    }
}

impl Kit {
    /// The tools of a spec's VM: its time is set, its web is made up, and what is logged and counted is
    /// noted.
    pub(crate) fn of_spec(
        budget: Budget,
        at: Rc<Cell<f64>>,
        store: Arc<Store>,
        keys: Arc<Keys>,
        web: Web,
        logged: Logged,
        meters: Arc<dyn Meters>,
    ) -> Rc<Kit> {
        Rc::new(Kit {
            time: Time::Set(at),
            budget,
            store,
            meters,
            keys,
            flights: Arc::default(),
            rocks: Arc::default(),
            logged: Some(logged),
            web,
            began: None,
            driver: OnceCell::new(),
        })
    }

    /// Tells how functions are called in the VM that has these tools.
    pub(super) fn drive(&self, lua: &Lua, driver: Function, limit: Duration) {
        drop(self.driver.set((lua.weak(), driver, limit))); // a kit has one VM
    }

    /// Calls a function of a script that may wait.
    pub(super) fn call<R: FromLuaMulti + 'static>(
        &self,
        function: &Function,
        args: impl IntoLuaMulti,
    ) -> Call<R> {
        let (lua, driver, limit) = self.driver.get().expect("a VM tells its kit before it runs anything");
        let lua = lua.try_upgrade().expect("a function that runs has its VM");
        Call::new(driver, self.budget.clone(), *limit, &lua, function, args)
    }

    /// Seconds since some moment, which never go back.
    pub(crate) fn monotonic(&self) -> f64 {
        match &self.began {
            Some((clock, began)) => (clock.now() - *began).as_secs_f64(),
            None => self.time.now(),
        }
    }

    /// Sends a request.
    pub(super) async fn send(&self, request: Request, hosts: &Hosts) -> Result<Response, Reason> {
        match &self.web {
            Web::Real(fetcher) => fetcher.send(request, hosts).await,
            Web::Spec(answer) if hosts.has(&request.url) => answer(&request),
            Web::Spec(_) => {
                Err(Reason::NotAllowed("this host is neither in a setting nor in a discovery document"))
            }
        }
    }
}

impl Hosts {
    /// The hosts of all settings that are URLs.
    pub(super) fn of_settings(settings: &Settings) -> Hosts {
        fn add(hosts: &mut Hosts, setting: &Setting) {
            match setting {
                Setting::Url(url) => {
                    if let Ok(url) = url::Url::parse(url) {
                        hosts.add(&url); // it was checked when it was read
                    }
                }
                Setting::List(items) => items.iter().for_each(|it| add(hosts, it)),
                Setting::Map(entries) => entries.iter().for_each(|(_, it)| add(hosts, it)),
                _ => {}
            }
        }
        let mut hosts = Hosts::default();
        settings.iter().for_each(|(_, it)| add(&mut hosts, it));
        hosts
    }
}
