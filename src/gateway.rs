//! The gateway: a browser comes in, an upstream connection goes out, and policies decide in between.
//!
//! Each worker is a thread with an event loop, a Lua VM and connections of its own; a connection stays with its worker,
//! so nothing here needs a lock. Plain HTTP goes through [`http`], a WebSocket through [`relay`].

mod admit;
mod body;
mod client;
mod conn;
mod cookie;
mod directory;
mod files;
mod head;
mod http;
mod page;
mod pool;
mod relay;
mod respond;
mod sealing;
mod sign_in;
mod tcp_info;
pub(crate) mod tls;
mod tunnel;
mod upstream;
mod websocket;
mod worker;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Arc, Mutex, PoisonError};

use ring::rand::{SecureRandom, SystemRandom};
use socket2::{Domain, Protocol, Socket, Type};
use time::format_description::well_known::Rfc3339;
use tokio::sync::{oneshot, watch};
use tokio_rustls::TlsAcceptor;

use crate::clock::{Clock, SystemTime};
use crate::config::{self, Place, Problem, Problems, Table};
use crate::lua::{Program, Tools};
use crate::policy::{Functions, References, Setting};
use crate::secret::Secret;
use crate::telemetry::{AccessLog, Metrics, Policies, Sessions};

pub(crate) use self::files::raise_limit;

/// What is measured apart from the rest.
pub(crate) mod benched {
    pub(crate) use super::cookie::{Sealer, Ticket};
    pub(crate) use super::directory::{About, Alone, Directory, Entry, Identity, Listed, SessionId};
    pub(crate) use super::upstream::accept;
}

/// A gateway that is ready to serve: its policies are loaded, its certificates read, its port bound.
pub(crate) struct Gateway {
    generations: watch::Sender<Arc<Shared>>,
    listener: std::net::TcpListener,
    address: SocketAddr,
    drain: watch::Sender<bool>,
    replicas: Option<Replicas>,
}

/// What a gateway with other replicas has besides.
struct Replicas {
    registry: Arc<directory::Redis>,
    host: directory::Host,
}

/// Puts a new configuration in the place of the old one, while the gateway serves.
#[derive(Clone)]
pub(crate) struct Reloader(watch::Sender<Arc<Shared>>);

/// What the workers have in common: one generation of the configuration, and what outlives it.
pub(crate) struct Shared {
    /// How many configurations came before.
    pub(crate) generation: i64,
    pub(crate) config: config::Gateway,
    pub(crate) functions: Functions,
    pub(crate) program: Program,
    pub(crate) tls: Option<TlsAcceptor>,
    pub(crate) dialer: upstream::Dialer,
    pub(crate) sealer: cookie::Sealer,
    pub(crate) credentials: admit::Credentials,
    pub(crate) metrics: Metrics,
    pub(crate) access: AccessLog,
    pub(crate) clock: Clock,
    tools: Tools,
    pub(crate) directory: Arc<directory::Directory>,
    pub(crate) totals: Arc<Totals>,
    /// Whether new sessions are taken; `/readyz` says so.
    pub(crate) ready: Arc<AtomicBool>,
    pub(crate) draining: watch::Receiver<bool>,
}

/// What is counted over all workers and generations.
pub(crate) struct Totals {
    pub(crate) n_connections: AtomicUsize,
    pub(crate) n_sessions: AtomicUsize,
    pub(crate) files: files::Files,
    pub(crate) metrics: Metrics,
    /// Seals cookies where no key is set.
    random_key: [u8; 32],
    /// How the last reload went.
    reloaded: Mutex<Option<Reloaded>>,
}

/// How a reload went.
struct Reloaded {
    at: SystemTime,
    /// Why the configuration stayed as it was.
    problems: Option<String>,
}

/// What outlives a generation.
struct Lasting {
    metrics: Metrics,
    access: AccessLog,
    clock: Clock,
    tools: Tools,
    directory: Arc<directory::Directory>,
    totals: Arc<Totals>,
    ready: Arc<AtomicBool>,
    draining: watch::Receiver<bool>,
}

/// A gateway's configuration with what it refers to, checked and not yet serving: what `streamgate check` looks at.
pub(crate) struct Checked {
    config: config::Gateway,
    pub(crate) loaded: Loaded,
}

/// Policies, certificates and trust of a gateway.
pub(crate) struct Loaded {
    pub(crate) program: Program,
    server_tls: Option<Arc<rustls::ServerConfig>>,
    client_tls: Option<Arc<rustls::ClientConfig>>,
    /// When the certificate of browsers' TLS ends, in seconds since the Unix epoch.
    certificate_expiry: Option<i64>,
    /// What an operator should know although it is no mistake.
    pub(crate) warnings: Vec<String>,
}

impl Checked {
    /// Loads and checks everything that a configuration refers to.
    pub(crate) fn new(config: config::Gateway, tools: &Tools) -> Result<Checked, Problems> {
        let loaded = Loaded::new(&config.parts, tools);
        if let Some(Err(problem)) = config.directory.as_ref().map(directory::Redis::client) {
            let mut problems = loaded.err().unwrap_or_default();
            problems.push(problem);
            return Err(problems);
        }
        Ok(Checked { config, loaded: loaded? })
    }

    /// Where browsers are to connect.
    pub(crate) fn address(&self) -> SocketAddr {
        self.config.listen.address
    }

    /// Where the port is passed from one process to the next.
    pub(crate) fn handover(&self) -> Option<std::path::PathBuf> {
        self.config.listen.handover.clone()
    }
}

impl Loaded {
    /// Loads and checks everything that these parts of a configuration refer to.
    pub(crate) fn new(parts: &config::Parts, tools: &Tools) -> Result<Loaded, Problems> {
        let mut problems = Problems::new();
        let mut note = |problem: Problem| problems.push(problem);
        let server_tls = parts.tls.as_ref().map(|it| tls::server(it, &tools.clock)).transpose();
        let server_tls = server_tls.map_err(&mut note).ok();
        let client_tls = parts
            .upstream_tls
            .then(|| tls::client(parts.upstream_ca.as_deref().map(|it| (it, "upstream.ca"))))
            .transpose();
        let client_tls = client_tls.map_err(&mut note).ok();
        let web_tls = match &parts.plugins.ca {
            Some(path) => tls::client(Some((path, "plugins.ca"))).map_err(&mut note).ok(),
            // The upstream trusts the same roots unless it has its own.
            None => Some(match &client_tls {
                Some(Some(same)) if parts.upstream_ca.is_none() => Arc::clone(same),
                _ => tools.system_tls(tls::system_client),
            }),
        };
        let program = web_tls.and_then(|web_tls| {
            let program = Program::load(&parts.plugins, &parts.routes, parts, tools, web_tls);
            program.map_err(|more| problems.extend(more)).ok()
        });
        let mut warnings: Vec<String> = program.iter().flat_map(|it| it.warnings().iter().cloned()).collect();
        for (path, place) in program.iter().flat_map(Program::open_routes) {
            if parts.require_auth {
                let message = "authenticates nobody, and `require_auth` is set: add a plugin that authenticates to its chain, for example `bearer-auth`";
                problems.push(Problem::new(place.clone(), format!("route {path:?}"), message));
            } else {
                warnings.push(format!(
                    "route {path:?} authenticates nobody: whoever reaches this gateway uses your key. Add a plugin that authenticates to its chain, such as `bearer-auth`; STREAMGATE_REQUIRE_AUTH=true (`require_auth`) refuses to start like this"
                ));
            }
        }
        match (program, server_tls, client_tls) {
            (Some(program), Some(server_tls), Some(client_tls)) if problems.is_empty() => {
                let (server_tls, expiry) = server_tls.unzip();
                let expiry = expiry.flatten();
                let certificate_expiry = expiry.as_ref().map(|it| it.at);
                warnings.extend(expiry.and_then(|it| it.warning));
                Ok(Loaded { program, server_tls, client_tls, certificate_expiry, warnings })
            }
            _ => Err(problems),
        }
    }
}

impl Totals {
    pub(crate) fn new(metrics: &Metrics) -> Self {
        let mut random_key = [0; 32];
        SystemRandom::new().fill(&mut random_key).expect("the system has randomness");
        Totals {
            n_connections: AtomicUsize::new(0),
            n_sessions: AtomicUsize::new(0),
            files: files::Files::of_process(),
            metrics: metrics.clone(),
            random_key,
            reloaded: Mutex::default(),
        }
    }

    /// Notes how a reload went.
    fn note_reload(&self, at: SystemTime, problems: Option<String>) {
        self.metrics.reload(if problems.is_none() { "ok" } else { "failed" });
        *self.reloaded.lock().unwrap_or_else(PoisonError::into_inner) = Some(Reloaded { at, problems });
    }
}

/// What the admin endpoint tells about plugins.
struct Described(watch::Sender<Arc<Shared>>);

impl Policies for Described {
    fn describe(&self) -> serde_json::Value {
        let shared = Arc::clone(&self.0.borrow());
        let mut described = shared.program.describe();
        described["generation"] = shared.generation.into();
        described["warnings"] = shared.program.warnings().into();
        let reloaded = shared.totals.reloaded.lock().unwrap_or_else(PoisonError::into_inner);
        described["last_reload"] = match &*reloaded {
            None => serde_json::Value::Null,
            Some(Reloaded { at, problems }) => serde_json::json!({
                "at": time::OffsetDateTime::from(*at).format(&Rfc3339).unwrap_or_default(),
                "result": if problems.is_none() { "ok" } else { "failed" },
                "problems": problems,
            }),
        };
        described
    }
}

impl Shared {
    /// A generation made of a configuration and of what outlives it. `tls` is kept from the generation before, if it is.
    fn new(
        generation: i64,
        checked: Checked,
        tls: Option<TlsAcceptor>,
        lasting: Lasting,
    ) -> Result<Shared, Problems> {
        let Checked { config, loaded } = checked;
        let Loaded { program, server_tls, client_tls, certificate_expiry, .. } = loaded;
        let Lasting { metrics, access, clock, tools, directory, totals, ready, draining } = lasting;
        let shared = Shared {
            generation,
            functions: Functions {
                default: config.upstream.function_id.clone(),
                version: config.upstream.function_version_id.clone(),
                others: config.upstream.functions.clone(),
            },
            tls: tls.or(server_tls.map(TlsAcceptor::from)),
            dialer: upstream::Dialer::new(&config.upstream, client_tls, &clock, &totals)?,
            credentials: admit::Credentials::new(&config)?,
            sealer: cookie::Sealer::new(&config.sessions.cookie, &totals.random_key),
            metrics,
            access,
            clock,
            tools,
            directory,
            totals,
            ready,
            draining,
            program,
            config,
        };
        shared.metrics.certificate_expiry(certificate_expiry);
        Ok(shared)
    }

    /// The generation after this one.
    fn next(&self, checked: Checked) -> Result<Shared, Problems> {
        let is_self_signed = |it: &config::Gateway| matches!(it.parts.tls, Some(config::Tls::SelfSigned));
        let stays = is_self_signed(&self.config) && is_self_signed(&checked.config);
        let tls = self.tls.clone().filter(|_| stays); // a browser was told to trust this one
        let lasting = Lasting {
            metrics: self.metrics.clone(),
            access: self.access.clone(),
            clock: self.clock.clone(),
            tools: self.tools.clone(),
            directory: Arc::clone(&self.directory),
            totals: Arc::clone(&self.totals),
            ready: Arc::clone(&self.ready),
            draining: self.draining.clone(),
        };
        Shared::new(self.generation + 1, checked, tls, lasting)
    }

    /// Whether browsers speak TLS, be it with the gateway or with what stands in front of it.
    pub(crate) fn is_tls(&self) -> bool {
        self.tls.is_some() || self.config.listen.behind_tls
    }
}

impl Gateway {
    /// Binds the port of a checked gateway, unless it was taken over from another process.
    pub(crate) fn bind(
        checked: Checked,
        taken: Option<std::net::TcpListener>,
        metrics: &Metrics,
        access: AccessLog,
        tools: &Tools,
    ) -> Result<Gateway, Problems> {
        let clock = &tools.clock;
        let config = &checked.config;
        let listener = taken.map_or_else(|| listen(config.listen.address), Ok).map_err(|error| {
            let hint = if error.kind() == std::io::ErrorKind::AddrInUse {
                "; is another gateway running?"
            } else {
                ""
            };
            let subject = format!("listen.address = \"{}\"", config.listen.address);
            Problem::new(Place::Nowhere, subject, format!("cannot listen: {error}{hint}"))
        })?;
        upstream::tune(&listener); // what it accepts has the same options, without a system call for each
        let address = listener.local_addr().expect("a bound socket has an address");
        let (drain, draining) = watch::channel(false);
        let replicas = Replicas::bind(config, metrics, clock)?;
        let registry: Arc<dyn directory::Registry> = match &replicas {
            Some(it) => Arc::clone(&it.registry) as Arc<dyn directory::Registry>,
            None => Arc::new(directory::Alone),
        };
        let lasting = Lasting {
            metrics: metrics.clone(),
            access,
            clock: clock.clone(),
            tools: tools.clone(),
            directory: Arc::new(directory::Directory::new(registry)),
            totals: Arc::new(Totals::new(metrics)),
            ready: Arc::new(AtomicBool::new(true)),
            draining,
        };
        let most = lasting.totals.files.most_sessions();
        if config.sessions.max > most {
            tracing::warn!(
                "`sessions.max` is {}, but the process may open files for about {most} sessions only; further browsers are answered 503. Raise the limit of open files (`ulimit -n`, `LimitNOFILE`, `--ulimit nofile`).",
                config.sessions.max
            );
        }
        let shared = Shared::new(1, checked, None, lasting)?;
        metrics.generation(shared.generation);
        Ok(Gateway { generations: watch::Sender::new(Arc::new(shared)), listener, address, drain, replicas })
    }

    /// What replaces the configuration of this gateway.
    pub(crate) fn reloader(&self) -> Reloader {
        Reloader(self.generations.clone())
    }

    /// Where browsers connect.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where other replicas connect.
    pub(crate) fn replicas(&self) -> Option<SocketAddr> {
        self.replicas.as_ref().map(|it| it.host.address())
    }

    /// The listening socket, once more.
    pub(crate) fn listener(&self) -> std::net::TcpListener {
        self.listener.try_clone().expect("a socket can be shared")
    }

    /// Its plugins, for the admin endpoints.
    pub(crate) fn policies(&self) -> Arc<dyn Policies> {
        Arc::new(Described(self.generations.clone()))
    }

    /// Its sessions, for the admin endpoints.
    pub(crate) fn sessions(&self) -> Arc<dyn Sessions> {
        Arc::new(sign_in::Operated(self.generations.subscribe()))
    }

    /// Whether new sessions are taken.
    pub(crate) fn ready(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.generations.borrow().ready)
    }

    /// Starts the workers. They serve until [`Running::stop`].
    pub(crate) fn start(self) -> Running {
        let shared = Arc::clone(&self.generations.borrow());
        let workers = (0..shared.config.workers)
            .map(|idx| {
                let listener = self.listener.try_clone().expect("a socket can be shared with a thread");
                let generations = self.generations.subscribe();
                std::thread::Builder::new()
                    .name(format!("worker-{idx}"))
                    .spawn(move || worker::run(idx, generations, listener))
                    .expect("a thread can be started")
            })
            .collect();
        let (directory, totals) = (&shared.directory, &shared.totals);
        let replicas = self.replicas.map(|it| it.start(Arc::clone(directory), Arc::clone(totals)));
        Running { generations: self.generations, drain: self.drain, workers, replicas }
    }
}

/// A gateway at work.
pub(crate) struct Running {
    generations: watch::Sender<Arc<Shared>>,
    drain: watch::Sender<bool>,
    workers: Vec<std::thread::JoinHandle<()>>,
    replicas: Option<WithReplicas>,
}

/// Other replicas are told and answered.
struct WithReplicas {
    told: tokio::task::JoinHandle<()>,
    stop: oneshot::Sender<()>,
    answered: tokio::task::JoinHandle<()>,
}

impl Running {
    /// Stops accepting, tells the sessions to come back, and waits for the workers, which end with their last
    /// session or when `sessions.drain.timeout` is over.
    pub(crate) fn stop(self) {
        let shared = Arc::clone(&self.generations.borrow());
        shared.ready.store(false, std::sync::atomic::Ordering::Relaxed);
        self.drain.send_replace(true);
        shared.directory.drain(shared.clock.now() + shared.config.sessions.drain_timeout);
        for worker in self.workers {
            if worker.join().is_err() {
                tracing::error!("A worker ended with a panic.");
            }
        }
        if let Some(WithReplicas { told, stop, answered }) = self.replicas {
            // The sessions are over: the others are told, and need not ask here any more.
            stop.send(()).ok(); // one that has ended needs no telling
            if tokio::runtime::Handle::current().block_on(told).is_err() {
                tracing::error!("Other replicas could not be told.");
            }
            answered.abort();
        }
        shared.access.flush();
    }
}

impl Replicas {
    fn bind(config: &config::Gateway, metrics: &Metrics, clock: &Clock) -> Result<Option<Replicas>, Problem> {
        let (Some(directory), Some(secret)) = (&config.directory, &config.sessions.cookie.key) else {
            return Ok(None);
        };
        let listener = listen(directory.listen).map_err(|error| {
            let subject = format!("directory.listen = \"{}\"", directory.listen);
            Problem::new(Place::Nowhere, subject, format!("cannot listen: {error}"))
        })?;
        let host = directory::Host::new(listener, secret.expose(), clock);
        let registry = directory::Redis::new(directory, secret.expose(), &host, clock, metrics)?;
        Ok(Some(Replicas { registry: Arc::new(registry), host }))
    }

    fn start(self, directory: Arc<directory::Directory>, totals: Arc<Totals>) -> WithReplicas {
        let Replicas { registry, host } = self;
        let (stop, stopped) = oneshot::channel();
        let told = tokio::spawn(async move { registry.run(async { drop(stopped.await) }).await });
        WithReplicas { told, stop, answered: tokio::spawn(host.serve(directory, totals)) }
    }
}

impl Reloader {
    /// Checks a configuration and serves by it from the next request on. Sessions go on as they are.
    ///
    /// # Errors
    /// With the mistakes in it; the old one stays then.
    pub(crate) fn reload(&self, config: config::Gateway) -> Result<Vec<String>, Problems> {
        let old = Arc::clone(&self.0.borrow());
        let mut warnings = Vec::new();
        if config.listen.address != old.config.listen.address || config.workers != old.config.workers {
            warnings.push("`listen.address` and `workers` change at the next start".to_owned());
        }
        if config.directory != old.config.directory {
            warnings.push("`[directory]` changes at the next start".to_owned());
        }
        if config.parts.plugins.store != old.config.parts.plugins.store
            || config.parts.plugins.store_size != old.config.parts.plugins.store_size
        {
            warnings.push("`plugins.store` and `plugins.store_size` change at the next start".to_owned());
        }
        let loaded = Checked::new(config, &old.tools).and_then(|checked| {
            warnings.extend(checked.loaded.warnings.iter().cloned());
            old.next(checked)
        });
        old.totals.note_reload(old.clock.wall(), loaded.as_ref().err().map(Problems::at_reload));
        let new = loaded?;
        old.metrics.generation(new.generation);
        self.0.send_replace(Arc::new(new));
        Ok(warnings)
    }

    /// Notes a configuration that could not even be read.
    pub(crate) fn failed(&self, problems: &str) {
        let shared = Arc::clone(&self.0.borrow());
        shared.totals.note_reload(shared.clock.wall(), Some(problems.to_owned()));
    }
}

fn listen(address: SocketAddr) -> std::io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?; // a restart need not wait for the last connections' TIME_WAIT
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(4096)?;
    Ok(socket.into())
}

/// What plugin settings may refer to.
impl References for config::Parts {
    fn secret(&self, reference: &config::Reference) -> Result<Secret, String> {
        self.origin.secret(reference)
    }

    fn table(&self, path: &std::path::Path, setting: &Place) -> Result<Table, Problems> {
        self.origin.table(path, setting)
    }

    fn inherited(&self, name: &str) -> Option<Setting> {
        match name {
            "listen.origins" => {
                let origins = self.origins.as_ref()?;
                Some(Setting::List(origins.iter().cloned().map(Setting::Text).collect()))
            }
            _ => None,
        }
    }
}
