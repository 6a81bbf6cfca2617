//! The composition root: a configuration becomes running services.

mod handover;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use tokio::sync::{Notify, watch};

use crate::clock::Clock;
use crate::config::{self, Config, Place, Problem, Problems, Role, Sources};
use crate::frontdoor;
use crate::gateway::{self, Checked, Gateway, tls};
use crate::lua::{Explained, Tools, find_route};
use crate::policy::Natives;
use crate::store::Store;
use crate::streaming;
use crate::telemetry::{AccessLog, Admin, Metrics};

/// Everything that a configuration asks for, with its ports bound. Nothing is served until [`App::run`].
pub struct App {
    gateway: Option<Gateway>,
    streaming: Option<streaming::Server>,
    frontdoor: Option<frontdoor::Server>,
    admin: Option<Admin>,
    /// Where the process that comes after this one asks for the ports.
    handover: Option<PathBuf>,
    taken: Option<handover::Taken>,
    metrics: Metrics,
    addresses: Addresses,
}

/// Where the services of an [`App`] listen. `None`: the configuration does not ask for that service.
#[derive(Clone, Copy, Debug, Default)]
pub struct Addresses {
    /// The gateway's, for browsers.
    pub gateway: Option<SocketAddr>,
    /// The admin endpoints'.
    pub admin: Option<SocketAddr>,
    /// The control server's.
    pub control: Option<SocketAddr>,
    /// The signalling WebSocket's.
    pub signaling: Option<SocketAddr>,
    /// The UDP port for media.
    pub media: Option<SocketAddr>,
    /// The local front door's.
    pub frontdoor: Option<SocketAddr>,
    /// The gateway's, for other replicas.
    pub replicas: Option<SocketAddr>,
}

/// Puts a new configuration in the place of the gateway's, while it serves. Sessions go on as they are.
#[derive(Clone)]
pub struct Reloader {
    gateway: gateway::Reloader,
}

impl Reloader {
    /// Takes over routes, plugins, certificates and limits; the next request is served by them. Addresses, `workers`, the
    /// log and everything outside of the gateway change at the next start only. Gives what an operator should know.
    ///
    /// # Errors
    /// With all mistakes; the old configuration stays then.
    pub fn reload(&self, config: Config) -> Result<Vec<String>, Problems> {
        config.gateway.map_or(Ok(Vec::new()), |it| self.gateway.reload(it))
    }

    /// Notes a configuration that could not even be read, with what is wrong with it.
    pub fn failed(&self, problems: &str) {
        self.gateway.failed(problems);
    }
}

/// What [`App::check`] found: no mistakes, but perhaps something to know.
#[derive(Debug)]
pub struct Report {
    /// What an operator should know although it is no mistake.
    pub warnings: Vec<String>,
    routes: Vec<Explained>,
}

impl Report {
    /// For each route, the plugins of each phase as they will run.
    pub fn routes(&self) -> impl Iterator<Item = &str> {
        self.routes.iter().map(|it| it.text.as_str())
    }

    /// The same for one route: the one with this pattern, or the one that a request for this path takes.
    pub fn route(&self, path: &str) -> Option<&str> {
        let written = || self.routes.iter().position(|it| it.path == path);
        let taken = || find_route(self.routes.iter().map(|it| &it.pattern), path).ok().flatten();
        written().or_else(taken).map(|it| self.routes[it].text.as_str())
    }
}

impl App {
    /// The configuration, or all mistakes in it and in what it refers to, as far as that could be read.
    ///
    /// # Errors
    /// All mistakes.
    pub fn resolve(sources: &Sources, role: Role, clock: &Clock) -> Result<Config, Problems> {
        App::resolve_with(sources, role, clock, &Natives::new())
    }

    /// The same for a program that brings plugins along.
    ///
    /// # Errors
    /// All mistakes.
    pub fn resolve_with(
        sources: &Sources,
        role: Role,
        clock: &Clock,
        natives: &Natives,
    ) -> Result<Config, Problems> {
        sources.resolve(role).map_err(|mut problems| {
            if role == Role::Gateway
                && let Some(parts) = sources.parts()
                && let Err(more) = gateway::Loaded::new(&parts, &Tools::for_check(clock, natives))
            {
                problems.extend(more);
            }
            problems
        })
    }

    /// Checks everything that a configuration refers to, without opening a port.
    ///
    /// # Errors
    /// All mistakes that were found.
    pub fn check(config: Config, clock: &Clock) -> Result<Report, Problems> {
        App::check_with(config, clock, &Natives::new())
    }

    /// The same for a program that brings plugins along.
    ///
    /// # Errors
    /// All mistakes that were found.
    pub fn check_with(config: Config, clock: &Clock, natives: &Natives) -> Result<Report, Problems> {
        let Some(gateway) = config.gateway else {
            return Ok(Report { warnings: Vec::new(), routes: Vec::new() });
        };
        let checked = Checked::new(gateway, &Tools::for_check(clock, natives))?;
        Ok(Report { routes: checked.loaded.program.explain(), warnings: checked.loaded.warnings })
    }

    /// Loads policies and certificates, and binds all ports.
    ///
    /// # Errors
    /// All mistakes of the first part that has any: policies and certificates, then ports.
    pub async fn build(config: Config, clock: Clock) -> Result<App, Problems> {
        App::build_with(config, clock, Natives::new()).await
    }

    /// The same for a program that brings plugins along.
    ///
    /// # Errors
    /// All mistakes of the first part that has any.
    pub async fn build_with(config: Config, clock: Clock, natives: Natives) -> Result<App, Problems> {
        let metrics = Metrics::new();
        let mut addresses = Addresses::default();
        let mut ready = Arc::new(AtomicBool::new(true));

        // Policies load first: a gateway whose policy does not load must not open a port.
        let tools = config
            .gateway
            .as_ref()
            .map(|it| tools(&it.parts.plugins, natives, &metrics, &clock))
            .transpose()?;
        let checked = match (config.gateway, &tools) {
            (Some(it), Some(tools)) => Some(Checked::new(it, tools)?),
            _ => None,
        };

        let handover = checked.as_ref().and_then(Checked::handover);
        let taken = match &handover {
            Some(path) => handover::take(path).map_err(|error| {
                let subject = format!("listen.handover = \"{}\"", path.display());
                Problem::new(Place::Nowhere, subject, format!("the ports cannot be taken over: {error}"))
            })?,
            None => None,
        };
        if let (Some(taken), Some(checked)) = (&taken, &checked) {
            taken.compare("listen.address", checked.address(), &taken.gateway);
            taken.compare("admin.address", config.admin.address, &taken.admin);
        }
        let copy = |of: fn(&handover::Taken) -> &std::net::TcpListener| {
            taken.as_ref().map(|it| of(it).try_clone().expect("a socket can be shared"))
        };

        // The streaming server and the front door come before the gateway that leads to them.
        let streaming = match config.streaming {
            Some(it) => Some(streaming::Server::bind(it, &metrics, &clock).await?),
            None => None,
        };
        if let Some(it) = streaming.as_ref().map(streaming::Server::addresses) {
            (addresses.control, addresses.signaling, addresses.media) =
                (Some(it.control), Some(it.signaling), Some(it.media));
        }
        let frontdoor = match config.frontdoor {
            Some(it) => Some(frontdoor::Server::bind(it, &clock).await?),
            None => None,
        };
        addresses.frontdoor = frontdoor.as_ref().map(frontdoor::Server::address);

        let gateway = match (checked, &tools) {
            (Some(checked), Some(tools)) => {
                for warning in &checked.loaded.warnings {
                    tracing::warn!("{warning}.");
                }
                let access = AccessLog::new(config.log.access, config.log.json, &metrics);
                let gateway = Gateway::bind(checked, copy(|it| &it.gateway), &metrics, access, tools)?;
                addresses.gateway = Some(gateway.address());
                addresses.replicas = gateway.replicas();
                ready = gateway.ready();
                Some(gateway)
            }
            _ => None,
        };

        // Streaming servers and front doors have their own health paths; the admin port is the gateway's.
        let admin = match &gateway {
            Some(gateway) => {
                let taken = copy(|it| &it.admin);
                let bound = Admin::bind(
                    &config.admin,
                    taken,
                    gateway.sessions(),
                    gateway.policies(),
                    &metrics,
                    ready,
                )
                .await;
                Some(bound.map_err(|error| {
                    let subject = format!("admin.address = \"{}\"", config.admin.address);
                    Problem::new(Place::Nowhere, subject, format!("cannot listen: {error}"))
                })?)
            }
            None => None,
        };
        addresses.admin = admin.as_ref().map(Admin::address);
        Ok(App { gateway, streaming, frontdoor, admin, handover, taken, metrics, addresses })
    }

    /// Where the services listen.
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// What replaces the gateway's configuration while it serves; `None` when this configuration asks for no gateway.
    pub fn reloader(&self) -> Option<Reloader> {
        let gateway = self.gateway.as_ref()?;
        Some(Reloader { gateway: gateway.reloader() })
    }

    /// All metrics so far, in Prometheus' text format.
    pub fn metrics(&self) -> impl Fn() -> String + Send + Sync + 'static {
        let metrics = self.metrics.clone();
        move || metrics.render()
    }

    /// Serves until `stop`, until a streaming server has served the one session it was told to, or until another process
    /// has taken over; then drains.
    pub async fn run(self, stop: impl Future<Output = ()>) {
        let App { gateway, streaming, frontdoor, admin, handover, taken, .. } = self;
        let offer = match (&handover, &gateway, &admin) {
            (Some(path), Some(gateway), Some(admin)) => {
                Some(handover::Offer::new(path, gateway.listener(), admin.listener()))
            }
            _ => None,
        };
        let (stopping, stopped) = watch::channel(false);
        let until_stopped = || {
            let mut stopped = stopped.clone();
            async move { drop(stopped.wait_for(|it| *it).await) } // a sender that is gone stops as well
        };
        let admin = admin.map(|it| tokio::spawn(it.run()));
        let streaming = streaming.map(|it| tokio::spawn(it.run(until_stopped())));
        let frontdoor = frontdoor.map(|it| tokio::spawn(it.run(until_stopped())));
        let gateway = gateway.map(Gateway::start);
        if let Some(taken) = taken {
            match taken.serving() {
                Ok(()) => tracing::info!("The ports of another process were taken over."),
                Err(error) => {
                    tracing::warn!(%error, "The other process could not be told; it must be stopped.")
                }
            }
        }
        let succeeded = Arc::new(Notify::new());
        let offer = offer.map(|it| it.listen(Arc::clone(&succeeded))).transpose().unwrap_or_else(|error| {
            tracing::error!(%error, "`listen.handover` cannot be used; no process can take over from this one.");
            None
        });

        let mut streaming = streaming;
        let stream_ended = async {
            match &mut streaming {
                Some(task) => drop(task.await), // its own panic was printed
                None => std::future::pending().await,
            }
        };
        let was_stopped = tokio::select! {
            () = stop => true,
            () = succeeded.notified() => {
                if let Some(task) = &admin {
                    task.abort(); // who asks for metrics asks the other process
                }
                true
            }
            () = stream_ended => false,
        };

        if let Some(offer) = offer {
            offer.abort();
        }

        // The gateway first, so that its sessions are told before what is behind them goes away.
        if let Some(gateway) = gateway {
            drop(tokio::task::spawn_blocking(move || gateway.stop()).await);
        }
        stopping.send_replace(true);
        if was_stopped && let Some(task) = streaming {
            drop(task.await);
        }
        if let Some(task) = frontdoor {
            drop(task.await);
        }
        if let Some(task) = admin {
            task.abort();
        }
    }
}

/// What plugins work with, over all generations of the configuration.
fn tools(
    plugins: &config::Plugins,
    natives: Natives,
    metrics: &Metrics,
    clock: &Clock,
) -> Result<Tools, Problems> {
    let store = match &plugins.store {
        None => Store::in_memory(plugins.store_size),
        Some(url) => {
            let ca = plugins.ca.as_deref().map(|it| tls::authorities(it, "plugins.ca")).transpose()?;
            Store::at(url, ca, STORE_TIMEOUT, clock)
                .map_err(|it| Problem::new(Place::Nowhere, "plugins.store", it))?
        }
    };
    Ok(Tools::new(clock, natives, Arc::new(store), Arc::new(metrics.clone())))
}

/// Longest wait for the server of `plugins.store`.
const STORE_TIMEOUT: Duration = Duration::from_millis(500);
