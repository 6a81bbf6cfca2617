//! From sources to a [`Config`]: every mistake is collected before anything is returned.

use std::cell::RefCell;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use crate::config::node::{Node, Table, Value, parse, parse_some};
use crate::config::setting::{SETTINGS, find};
use crate::config::{
    Admin, Alternative, Config, Cookie, Directory, Env, FrontDoor, Gateway, Keepalive, Listen, Log, Origin,
    Overflow, Parse, Parts, Place, Plugins, Pool, PortRange, Problem, Problems, Proxies, Reference, Refusal,
    Resume, ResumeMode, Route, SameSite, Server, Sessions, Size, Source, Step, Streaming, Tls, Upstream,
    Viewer, did_you_mean, nearest,
};
use crate::secret::Secret;

/// What this process is for; it decides which settings must be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The gateway; the streaming server and the front door too when the file has their tables.
    Gateway,
    /// The streaming server alone: a function's container.
    Stream,
    /// The local front door alone.
    FrontDoor,
}

/// Everything an operator wrote: a file, the environment, flags.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    file: Option<(Arc<PathBuf>, String)>,
    env: Env,
    flags: Vec<(&'static str, Node)>,
}

impl Sources {
    /// The environment alone.
    pub fn new(env: Env) -> Self {
        Sources { file: None, env, flags: Vec::new() }
    }

    /// Adds a configuration file by its text.
    #[must_use]
    pub fn with_file(mut self, path: impl Into<PathBuf>, text: impl Into<String>) -> Self {
        self.file = Some((Arc::new(path.into()), text.into()));
        self
    }

    /// Adds a setting from the command line; it wins over environment and file. `flag` is named in a problem.
    #[must_use]
    pub fn with_flag(mut self, key: &'static str, flag: &str, value: impl Into<String>) -> Self {
        self.flags.push((key, Node::text(value, Place::Flag(flag.into()))));
        self
    }

    /// The configuration, or all mistakes in it.
    pub fn resolve(&self, role: Role) -> Result<Config, Problems> {
        let reader = Reader::new(self)?;
        reader.report_unknown_keys(&reader.table, "");
        reader.report_unknown_variables();
        let config = reader.config(role);
        let problems = reader.problems.into_inner();
        match config {
            Some(config) if problems.is_empty() => Ok(config),
            _ => Err(problems),
        }
    }

    /// Where the health paths are, as far as it can be found: of the admin server, of the control server of a container and
    /// of the front door. A mistake, in these settings too, leaves the others as they are.
    pub(crate) fn health(&self) -> [SocketAddr; 3] {
        let reader = Reader::lenient(self);
        let found = |key, of_role| reader.address(key, of_role).or(of_role).unwrap_or_else(|| default(key));
        let control = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), CONTROL_PORT);
        [
            found("admin.address", None),
            found("streaming.control", Some(control)),
            found("frontdoor.address", None),
        ]
    }

    /// The parts of a gateway's configuration that refer to further files; none when they cannot be read themselves.
    pub(crate) fn parts(&self) -> Option<Parts> {
        let reader = Reader::new(self).ok()?;
        reader.parts(reader.optional::<Server>("upstream.server").flatten().as_ref())
    }
}

struct Reader<'a> {
    table: Table,
    sources: &'a Sources,
    base: PathBuf,
    problems: RefCell<Problems>,
}

impl<'a> Reader<'a> {
    fn new(sources: &'a Sources) -> Result<Self, Problems> {
        let (table, base) = match &sources.file {
            Some((path, text)) => (parse(path, text)?, path.parent().unwrap_or(Path::new("")).to_path_buf()),
            None => (Table::default(), PathBuf::new()),
        };
        Ok(Reader { table, sources, base, problems: RefCell::default() })
    }

    /// The same with what there is of a file that is no TOML.
    fn lenient(sources: &'a Sources) -> Self {
        let table = sources.file.as_ref().map_or_else(Table::default, |(path, text)| parse_some(path, text));
        Reader { table, sources, base: PathBuf::new(), problems: RefCell::default() }
    }

    fn config(&self, role: Role) -> Option<Config> {
        let gateway = (role == Role::Gateway).then(|| self.gateway());
        let streaming =
            (role == Role::Stream || self.table.get("streaming").is_some()).then(|| self.streaming(role));
        let frontdoor =
            (role == Role::FrontDoor || self.table.get("frontdoor").is_some()).then(|| self.frontdoor());
        let admin = self.admin();
        let log = self.log();
        // All parts are read before the first missing one ends this, so that all mistakes are found.
        let (gateway, streaming, frontdoor) = (whole(gateway)?, whole(streaming)?, whole(frontdoor)?);
        Some(Config { gateway, streaming, frontdoor, admin: admin?, log: log? })
    }

    fn log(&self) -> Option<Log> {
        let level: Option<String> = self.get("log.level");
        if let Some(level) = &level
            && let Err(message) = check_filter(level)
        {
            self.note_about("log.level", format!("not a level or a filter:{message}"));
        }
        let json = self.choice("log.format", &[("text", false), ("json", true)]);
        let access = self.get("log.access");
        Some(Log { level: level?, json: json?, access: access? })
    }

    fn gateway(&self) -> Option<Gateway> {
        let workers: Option<u64> = self.get("workers");
        let reload = self.get("reload");
        let listen = self.listen();
        let upstream = self.upstream();
        let parts = self.parts(upstream.as_ref().map(|it| &it.server));
        let sessions = self.sessions(listen.as_ref(), parts.as_ref());
        let directory = self.directory();
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Some(Gateway {
            reload: reload?,
            workers: match workers? {
                0 => cores,
                n => n.min(1024) as usize,
            },
            listen: listen?,
            upstream: upstream?,
            sessions: sessions?,
            directory: directory?,
            parts: parts?,
        })
    }

    fn parts(&self, server: Option<&Server>) -> Option<Parts> {
        let require_auth = self.get("require_auth");
        let plugins = self.plugins();
        let routes = self.routes();
        let origins = self.origins();
        let tls = self.tls();
        let upstream_ca: Option<Option<PathBuf>> = self.optional("upstream.ca");
        Some(Parts {
            require_auth: require_auth?,
            plugins: plugins?,
            routes,
            origin: self.origin(),
            origins: origins?,
            tls: tls?,
            upstream_tls: server.is_none_or(|it| it.tls),
            upstream_ca: upstream_ca?.map(|it| self.base.join(it)),
        })
    }

    fn origin(&self) -> Origin {
        Origin { env: self.sources.env.clone(), base: self.base.clone() }
    }

    fn origins(&self) -> Option<Option<Vec<String>>> {
        let origins: Option<Option<Vec<String>>> = self.optional("listen.origins");
        if let Some(Some(origins)) = &origins {
            for origin in origins {
                if !is_origin(origin) {
                    let message = "expected `scheme://host` or `scheme://host:port` without a path, for example \"https://app.example\"";
                    self.note_about("listen.origins", format!("{origin:?} is not an origin: {message}"));
                }
            }
        }
        origins.map(|it| it.map(|list| list.iter().map(|it| it.to_ascii_lowercase()).collect()))
    }

    fn listen(&self) -> Option<Listen> {
        let address = self.address("listen.address", None);
        let behind_tls = self.get("listen.behind_tls");
        let proxies = self.proxies();
        let handover: Option<Option<PathBuf>> = self.optional("listen.handover");
        let max_head: Option<Size> = self.get("listen.max_head");
        let max_headers: Option<u64> = self.get("listen.max_headers");
        let head_timeout = self.get("listen.head_timeout");
        let idle_timeout = self.get("listen.idle_timeout");
        let max_connections: Option<u64> = self.get("listen.max_connections");
        let page = self.get("listen.page");
        self.within("listen.max_head", max_head.map(|it| it.0), 1 << 10, 1 << 20);
        self.within("listen.max_headers", max_headers, 8, 200);
        Some(Listen {
            address: address?,
            behind_tls: behind_tls?,
            proxies: proxies?,
            handover: handover?.map(|it| self.base.join(it)),
            max_head: max_head?.0 as usize,
            max_headers: max_headers? as usize,
            head_timeout: head_timeout?,
            idle_timeout: idle_timeout?,
            max_connections: max_connections?.clamp(1, 1 << 30) as usize,
            page: page?,
        })
    }

    fn proxies(&self) -> Option<Proxies> {
        let networks: Option<Vec<IpNet>> = self.get("listen.proxies");
        let header = self.get("listen.proxy_header");
        let protocol = self.get("listen.proxy_protocol");
        if networks.as_ref().is_some_and(Vec::is_empty) {
            for key in ["listen.proxy_header", "listen.proxy_protocol"] {
                if self.written(key).is_some_and(|it| !matches!(it.value, Value::Boolean(false))) {
                    self.note_about(key, "no proxy would be believed: name them in `listen.proxies`");
                }
            }
        }
        Some(Proxies { networks: networks?, header: header?, protocol: protocol? })
    }

    fn tls(&self) -> Option<Option<Tls>> {
        let self_signed: Option<bool> = self.get("listen.tls.self_signed");
        let certificate: Option<Option<PathBuf>> = self.optional("listen.tls.certificate");
        let key: Option<Option<PathBuf>> = self.optional("listen.tls.key");
        match (self_signed?, certificate?, key?) {
            (false, None, None) => Some(None),
            (true, None, None) => Some(Some(Tls::SelfSigned)),
            (false, Some(certificate), Some(key)) => {
                Some(Some(Tls::Files { certificate: self.base.join(certificate), key: self.base.join(key) }))
            }
            (true, _, _) => self.fail_about(
                "listen.tls.self_signed",
                "a self-signed certificate and a certificate file exclude each other; remove one",
            ),
            (false, Some(_), None) => {
                self.fail_about("listen.tls.certificate", "a certificate needs its key: set `listen.tls.key`")
            }
            (false, None, Some(_)) => {
                self.fail_about("listen.tls.key", "a key needs its certificate: set `listen.tls.certificate`")
            }
        }
    }

    fn upstream(&self) -> Option<Upstream> {
        let server: Option<Server> = self.required(
            "upstream.server",
            "set NVCF_SERVER (or GATEWAY_ADDR) to the front door, for example grpc.nvcf.nvidia.com",
        );
        let api_key = self.required_secret("upstream.api_key", "set NVCF_API_KEY");
        if let Some(key) = &api_key
            && (key.expose().is_empty() || !key.expose().bytes().all(|it| it.is_ascii_graphic()))
        {
            self.note_about(
                "upstream.api_key",
                "not a key: it has spaces, line ends or other characters that a header cannot carry",
            );
        }
        let function_id: Option<String> =
            self.required_text("upstream.function_id", "set STREAMING_FUNCTION_ID");
        let function_version_id = self.optional_text("upstream.function_version_id");
        let functions: Option<Vec<String>> = self.get("upstream.functions");
        for (key, id) in [
            ("upstream.function_id", function_id.as_ref()),
            ("upstream.function_version_id", function_version_id.as_ref().and_then(Option::as_ref)),
        ] {
            if let Some(id) = id
                && !is_id(id)
            {
                self.note_about(
                    key,
                    "not an id: expected letters, digits, `-`, `_` or `.`, at most 128 of them",
                );
            }
        }
        if let Some(id) = functions.iter().flatten().find(|it| !is_id(it)) {
            self.note_about(
                "upstream.functions",
                format!(
                    "{id:?} is not an id: expected letters, digits, `-`, `_` or `.`, at most 128 of them"
                ),
            );
        }
        let connect_timeout = self.positive("upstream.connect_timeout");
        let handshake_timeout = self.positive("upstream.handshake_timeout");
        let pool = self.choice(
            "upstream.pool",
            &[("never", Pool::Never), ("per-client", Pool::PerClient), ("shared", Pool::Shared)],
        );
        Some(Upstream {
            server: server?,
            api_key: api_key?,
            function_id: function_id?,
            function_version_id: function_version_id?,
            functions: functions?,
            connect_timeout: connect_timeout?,
            handshake_timeout: handshake_timeout?,
            pool: pool?,
        })
    }

    fn directory(&self) -> Option<Option<Directory>> {
        let key = "directory.url";
        let ca = self.optional::<PathBuf>("directory.ca").map(|it| it.map(|it| self.base.join(it)));
        let listen = self.address("directory.listen", None);
        let advertise = self.optional("directory.advertise");
        let timeout = self.positive("directory.timeout");
        let Some(url) = self.redis_url(key)? else { return Some(None) };
        let place = || self.written(key).map_or(Place::Nowhere, |it| it.place);
        if self.written("sessions.cookie.key").is_none() {
            self.note(
                place(),
                key,
                "replicas need a key in common: set `sessions.cookie.key`, the same on all of them",
            );
        }
        if ca.as_ref().is_some_and(Option::is_some) && !is_encrypted(&url) {
            self.note_about(
                "directory.ca",
                "the server is reached in clear text: write `rediss://` into `directory.url`",
            );
        }
        Some(Some(Directory { url, ca: ca?, listen: listen?, advertise: advertise?, timeout: timeout? }))
    }

    fn sessions(&self, listen: Option<&Listen>, parts: Option<&Parts>) -> Option<Sessions> {
        let max: Option<u64> = self.get("sessions.max");
        let interval = self.positive("sessions.keepalive.interval");
        let timeout = self.positive("sessions.keepalive.timeout");
        if let (Some(interval), Some(timeout)) = (interval, timeout)
            && timeout <= interval
        {
            self.note_about("sessions.keepalive.timeout", "must be longer than `sessions.keepalive.interval`, or a healthy peer is given up before its first pong");
        }
        let age: Option<std::time::Duration> = self.get("sessions.max_age");
        let idle: Option<std::time::Duration> = self.get("sessions.max_idle");
        let tick = self.positive("sessions.tick");
        let viewer =
            self.choice("sessions.viewer", &[("replace", Viewer::Replace), ("refuse", Viewer::Refuse)]);
        let refusal =
            self.choice("sessions.refusal", &[("status", Refusal::Status), ("close", Refusal::Close)]);
        let name: Option<String> = self.get("sessions.cookie.name");
        if let Some(name) = &name
            && (name.is_empty() || !name.bytes().all(|it| it.is_ascii_alphanumeric() || b"-_.".contains(&it)))
        {
            self.note_about(
                "sessions.cookie.name",
                "not a cookie name: expected letters, digits, `-`, `_` or `.`",
            );
        }
        let key = self.secret("sessions.cookie.key");
        if let Some(Some(key)) = &key
            && key.expose().len() < 32
        {
            self.note_about("sessions.cookie.key", "too short to seal with: expected at least 32 characters, for example from `openssl rand -base64 32`");
        }
        let same_site = self.choice(
            "sessions.cookie.same_site",
            &[("lax", SameSite::Lax), ("strict", SameSite::Strict), ("none", SameSite::None)],
        );
        let is_clear = parts.is_some_and(|it| it.tls.is_none()) && listen.is_some_and(|it| !it.behind_tls);
        if same_site == Some(SameSite::None) && is_clear {
            self.note_about(
                "sessions.cookie.same_site",
                "browsers take `none` only with TLS: set `listen.tls` (or `listen.behind_tls`), or use \"lax\"",
            );
        }
        let max_age = self.positive("sessions.cookie.max_age");
        let drain_timeout = self.get("sessions.drain.timeout");
        Some(Sessions {
            max: max?.clamp(1, 1 << 30) as usize,
            max_age: Some(age?).filter(|it| !it.is_zero()),
            max_idle: Some(idle?).filter(|it| !it.is_zero()),
            tick: tick?,
            viewer: viewer?,
            keepalive: Keepalive { interval: interval?, timeout: timeout? },
            refusal: refusal?,
            cookie: Cookie { name: name?, key: key?, same_site: same_site?, max_age: max_age? },
            drain_timeout: drain_timeout?,
        })
    }

    fn plugins(&self) -> Option<Plugins> {
        let paths: Option<Vec<PathBuf>> = self.get("plugins.paths");
        let modules: Option<Vec<PathBuf>> = self.get("plugins.modules");
        let memory: Option<Size> = self.get("plugins.memory");
        self.within("plugins.memory", memory.map(|it| it.0), 1 << 20, 4 << 30);
        let written = self.written("plugins.paths").is_some();
        let paths: Vec<PathBuf> = paths?.iter().map(|it| self.base.join(it)).collect();
        for path in paths.iter().filter(|it| written && !it.is_dir()) {
            self.note_about("plugins.paths", format!("no such folder: {}", path.display()));
        }
        let budget = self.positive("plugins.budget");
        if budget.is_some_and(|it| it < Duration::from_millis(5) || it > Duration::from_secs(10)) {
            self.note_about("plugins.budget", "expected a time from 5ms to 10s");
        }
        let timeout = self.positive("plugins.timeout");
        let store_size = self.get::<u64>("plugins.store_size");
        self.within("plugins.store_size", store_size, 100, 100_000_000);
        Some(Plugins {
            paths,
            modules: modules?.iter().map(|it| self.base.join(it)).collect(),
            memory: memory?.0 as usize,
            budget: budget?,
            timeout: timeout?,
            store: self.redis_url("plugins.store")?,
            store_size: store_size? as usize,
            reject_broken: self.choice("plugins.on_load_error", &[("refuse", false), ("reject", true)])?,
            ca: self.optional::<PathBuf>("plugins.ca")?.map(|it| self.base.join(it)),
        })
    }

    /// The URL of a Redis server, none for `memory:`. A password in a file that is not its own is a mistake.
    fn redis_url(&self, key: &str) -> Option<Option<Secret>> {
        let is_literal =
            |it: &Node| matches!(&it.value, Value::Text(it) if it == "memory:" || it.contains("://"));
        let url = match self.written(key) {
            None => return Some(None),
            Some(node) if is_literal(&node) => Secret::new(self.parse::<String>(key, &node)?),
            Some(_) => self.secret(key)??,
        };
        let node = self.written(key)?;
        let (scheme, rest) = url.expose().split_once(':').unwrap_or((url.expose(), ""));
        match scheme {
            "memory" => return Some(None),
            "redis" | "rediss" | "valkey" | "valkeys" => {}
            _ => {
                let message = "expected `memory:`, `redis://host:port` or `rediss://host:port`";
                return self.fail(node.place.clone(), key, message);
            }
        }
        let has_password =
            rest.rsplit_once('@').is_some_and(|(user, _)| user.contains(':') && !user.ends_with(':'));
        if has_password && matches!(node.place, Place::File { .. }) && is_literal(&node) {
            self.note(node.place.clone(), key, "has a password in it; write the URL into a variable or a file of its own: `env:NAME` or `file:PATH`");
        }
        Some(Some(url))
    }

    /// What `[sessions.resume]` says; the table of a route may say otherwise.
    fn resume(&self, own: Option<&Table>) -> Option<Resume> {
        for entry in own.iter().flat_map(|it| it.iter()) {
            let names = ["mode", "window", "buffer", "overflow"];
            if !names.contains(&entry.key.as_str()) {
                let known = names.map(|it| format!("route.resume.{it}"));
                let known: Vec<&str> = known.iter().map(String::as_str).collect();
                self.unknown(entry.place.clone(), &format!("route.resume.{}", entry.key), &known);
            }
        }
        let own = |name: &str| own.and_then(|it| it.get(name));
        let modes = [
            ("reattach", ResumeMode::Reattach),
            ("reconnect", ResumeMode::Reconnect),
            ("off", ResumeMode::Off),
        ];
        let mode = self.choice_or(own("mode"), "sessions.resume.mode", &modes);
        let window: Option<std::time::Duration> = self.get_or(own("window"), "sessions.resume.window");
        let buffer: Option<Size> = self.get_or(own("buffer"), "sessions.resume.buffer");
        let overflows = [("close", Overflow::Close), ("drop-oldest", Overflow::DropOldest)];
        let overflow = self.choice_or(own("overflow"), "sessions.resume.overflow", &overflows);
        Some(Resume {
            mode: mode?,
            window: window?,
            buffer: usize::try_from(buffer?.0).unwrap_or(usize::MAX),
            overflow: overflow?,
        })
    }

    fn routes(&self) -> Vec<Route> {
        let cors = |place: Place| Step {
            plugin: "cors".into(),
            id: "cors".into(),
            settings: Vec::new(),
            alternative: None,
            place,
        };
        let Some(node) = self.table.get("route") else {
            let Some(resume) = self.resume(None) else { return Vec::new() };
            return vec![Route {
                path: "/**".into(),
                chain: vec![cors(Place::Nowhere)],
                resume,
                place: Place::Nowhere,
            }];
        };
        let Value::List(items) = &node.value else {
            self.note(node.place.clone(), "route", "routes are a list of tables: write `[[route]]`");
            return Vec::new();
        };
        items.iter().filter_map(|it| self.route(it)).collect()
    }

    fn route(&self, node: &Node) -> Option<Route> {
        let Some(table) = node.as_table() else {
            return self.fail(node.place.clone(), "route", "expected a table: write `[[route]]`");
        };
        for entry in table.iter().filter(|it| !["path", "chain", "resume"].contains(&it.key.as_str())) {
            self.unknown(
                entry.place.clone(),
                &format!("route.{}", entry.key),
                &["route.path", "route.chain", "route.resume"],
            );
        }
        let own = table.get("resume").map(|it| (it, it.as_table()));
        if let Some((node, None)) = own {
            self.note(node.place.clone(), "route.resume", "expected a table, for example { mode = \"off\" }");
        }
        let resume = self.resume(own.and_then(|(_, table)| table));
        let path =
            match table.get("path") {
                None => {
                    return self.fail(
                        node.place.clone(),
                        "route.path",
                        "missing: which requests is this route for? For example \"/**\"",
                    );
                }
                Some(it) => match String::parse(&it.value) {
                    Ok(path) if path.starts_with('/') => path,
                    Ok(_) | Err(_) => return self.fail(
                        it.place.clone(),
                        format!("route.path = {}", it.value.shown()),
                        "expected a path that starts with `/`; `*` stands for one segment, `**` for the rest",
                    ),
                },
            };
        let chain = match table.get("chain") {
            None => {
                return self.fail(
                    node.place.clone(),
                    "route.chain",
                    "missing: which plugins, in order? For example [\"cors\"]",
                );
            }
            Some(Node { value: Value::List(items), .. }) => self.chain(items),
            Some(it) => {
                return self.fail(
                    it.place.clone(),
                    "route.chain",
                    format!("expected a list of plugins, not {}", it.value.kind()),
                );
            }
        };
        let mut chain: Vec<Step> = chain;
        for idx in 0..chain.len() {
            let n_before = chain[..idx].iter().filter(|it| it.plugin == chain[idx].plugin).count();
            if chain[idx].id.is_empty() {
                let plugin = chain[idx].plugin.clone();
                chain[idx].id = if n_before == 0 { plugin } else { format!("{plugin}-{}", n_before + 1) };
            }
            if chain[..idx].iter().any(|it| it.id == chain[idx].id) {
                let (place, id) = (chain[idx].place.clone(), chain[idx].id.clone());
                self.note(place, format!("id = {id:?}"), "another plugin of this chain has this id already");
            }
        }
        Some(Route { path, chain, resume: resume?, place: node.place.clone() })
    }

    /// The steps of a chain, those of groups among them.
    fn chain(&self, items: &[Node]) -> Vec<Step> {
        let mut steps = Vec::new();
        let mut n_groups = 0;
        for item in items {
            if let Some(members) = self.group(item, "any_of") {
                for (idx, member) in members.iter().enumerate() {
                    let of_group = match self.group(member, "all_of") {
                        Some(members) => members.iter().filter_map(|it| self.step(it)).collect(),
                        None => self.step(member).into_iter().collect::<Vec<_>>(),
                    };
                    let alternative = Some(Alternative { group: n_groups, idx });
                    steps.extend(of_group.into_iter().map(|it| Step { alternative, ..it }));
                }
                n_groups += 1;
            } else if let Some(members) = self.group(item, "all_of") {
                steps.extend(members.iter().filter_map(|it| self.step(it)));
            } else {
                steps.extend(self.step(item));
            }
        }
        steps
    }

    /// The members of a group, when this is one of that kind.
    fn group<'n>(&self, node: &'n Node, kind: &str) -> Option<&'n [Node]> {
        let table = node.as_table()?;
        let members = table.get(kind)?;
        for entry in table.iter().filter(|it| it.key != kind) {
            let message = format!(
                "unknown key; a group has `{kind}` alone, and its plugins have what else there is to say"
            );
            self.note(entry.place.clone(), format!("route.chain: {}", entry.key), message);
        }
        match &members.value {
            Value::List(items) if !items.is_empty() => Some(items),
            other => {
                let message = format!(
                    "expected a list of plugins, not {}",
                    if matches!(other, Value::List(_)) { "an empty one" } else { other.kind() }
                );
                self.note(members.place.clone(), format!("route.chain: {kind}"), message);
                Some(&[])
            }
        }
    }

    fn step(&self, node: &Node) -> Option<Step> {
        let place = node.place.clone();
        match &node.value {
            Value::Text(plugin) => Some(Step {
                plugin: plugin.clone(),
                id: String::new(),
                settings: Vec::new(),
                alternative: None,
                place,
            }),
            Value::Table(table) if table.get("any_of").is_some() || table.get("all_of").is_some() => self
                .fail(
                    place,
                    "route.chain",
                    "groups are not nested further: a chain has `any_of`, and that may have `all_of`",
                ),
            Value::Table(table) => {
                let text = |key: &str| match table.get(key).map(|it| &it.value) {
                    None => Some(None),
                    Some(Value::Text(it)) if !it.is_empty() => Some(Some(it.clone())),
                    Some(other) => {
                        self.fail(place.clone(), format!("{key} = {}", other.shown()), "expected a name")
                    }
                };
                let Some(plugin) = text("plugin")? else {
                    return self.fail(
                        place.clone(),
                        "route.chain",
                        "which plugin? Write `{ plugin = \"name\", … }`",
                    );
                };
                let id = text("id")?.unwrap_or_default();
                let settings =
                    table.iter().filter(|it| it.key != "plugin" && it.key != "id").cloned().collect();
                Some(Step { plugin, id, settings, alternative: None, place })
            }
            other => self.fail(
                place,
                "route.chain",
                format!("expected a plugin's name or a table with `plugin`, not {}", other.kind()),
            ),
        }
    }

    fn admin(&self) -> Option<Admin> {
        let address = self.address("admin.address", None);
        let token = self.secret("admin.token");
        let admin = Admin { address: address?, token: token? };
        if !admin.address.ip().is_loopback() && admin.token.is_none() {
            return self.fail_about("admin.address", "not loopback, so everybody could read the metrics: set `admin.token`, or listen on 127.0.0.1");
        }
        Some(admin)
    }

    fn streaming(&self, role: Role) -> Option<Streaming> {
        // A container is reached from outside and has its ports for itself.
        let container = role == Role::Stream;
        let any = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        let control =
            self.address("streaming.control", container.then_some(SocketAddr::new(any, CONTROL_PORT)));
        let signaling = self.address("streaming.signaling", container.then_some(SocketAddr::new(any, 49100)));
        let start_endpoint: Option<String> = self.get("streaming.start_endpoint");
        if let Some(path) = &start_endpoint
            && (!path.starts_with('/') || path.contains(['?', '#', ' ']))
        {
            self.note_about(
                "streaming.start_endpoint",
                "expected a path that starts with `/`, without a query",
            );
        }
        let ports: Option<PortRange> = self.get("streaming.ports");
        let media_address: Option<Option<IpAddr>> = self.optional("streaming.media_address");
        let advertise = self.get("streaming.advertise");
        let source: Option<String> = self.get("streaming.source");
        let max_sessions: Option<u64> = self.get("streaming.max_sessions");
        let resume_timeout = self.get("streaming.resume_timeout");
        let exit_after_session = self.get("streaming.exit_after_session");
        let require_creds = self.get("streaming.require_creds");
        let signaling = signaling?;
        Some(Streaming {
            control: control?,
            signaling,
            start_endpoint: start_endpoint?,
            ports: ports?,
            media_address: media_address?.unwrap_or(signaling.ip()),
            advertise: advertise?,
            source: match source?.as_str() {
                "pattern" => Source::Pattern,
                path => Source::File(self.base.join(path)),
            },
            max_sessions: max_sessions?.clamp(1, 100_000) as usize,
            resume_timeout: resume_timeout?,
            exit_after_session: exit_after_session?,
            require_creds: require_creds?,
        })
    }

    fn frontdoor(&self) -> Option<FrontDoor> {
        let address = self.address("frontdoor.address", None);
        let token = self.secret("frontdoor.token");
        let worker_timeout = self.positive("frontdoor.worker_timeout");
        Some(FrontDoor { address: address?, token: token?, worker_timeout: worker_timeout? })
    }
}

/// What the methods above are made of.
impl Reader<'_> {
    /// The value that was written for a setting, strongest source first.
    fn written(&self, key: &str) -> Option<Node> {
        let setting = find(key);
        let flag =
            self.sources.flags.iter().rev().find(|(name, _)| *name == key).map(|(_, node)| node.clone());
        let variable =
            |name: &str| self.sources.env.get(name).map(|it| Node::text(it, Place::Env(name.into())));
        flag.or_else(|| variable(&setting.variable()))
            .or_else(|| setting.also.iter().find_map(|it| variable(it)))
            .or_else(|| self.table.path(key).cloned())
    }

    fn get<T: Parse>(&self, key: &str) -> Option<T> {
        match self.written(key) {
            Some(node) => self.parse(key, &node),
            None => Some(default(key)),
        }
    }

    fn optional<T: Parse>(&self, key: &str) -> Option<Option<T>> {
        match self.written(key) {
            Some(node) => self.parse(key, &node).map(Some),
            None => Some(None),
        }
    }

    fn required<T: Parse>(&self, key: &str, hint: &str) -> Option<T> {
        match self.written(key) {
            Some(node) => self.parse(key, &node),
            None => self.fail(Place::Missing, key, hint),
        }
    }

    fn parse<T: Parse>(&self, key: &str, node: &Node) -> Option<T> {
        match T::parse(&node.value) {
            Ok(value) => Some(value),
            Err(message) => self.fail(node.place.clone(), format!("{key} = {}", node.value.shown()), message),
        }
    }

    /// An address, of which the seed's variables give the port alone.
    fn address(&self, key: &str, role_default: Option<SocketAddr>) -> Option<SocketAddr> {
        let Some(node) = self.written(key) else { return Some(role_default.unwrap_or_else(|| default(key))) };
        let by_port = matches!(&node.place, Place::Env(name) if find(key).also.contains(&&**name));
        if !by_port {
            return self.parse(key, &node);
        }
        let port: u16 = self.parse(key, &node)?;
        let mut address = match self.table.path(key) {
            Some(node) => self.parse(key, node)?,
            None => role_default.unwrap_or_else(|| default(key)),
        };
        address.set_port(port);
        Some(address)
    }

    fn positive(&self, key: &str) -> Option<std::time::Duration> {
        match self.get::<std::time::Duration>(key)? {
            it if it.is_zero() => self.fail_about(key, "expected a duration longer than zero"),
            it => Some(it),
        }
    }

    fn within(&self, key: &str, value: Option<u64>, least: u64, most: u64) {
        if value.is_some_and(|it| it < least || it > most) {
            self.note_about(key, format!("expected a value from {least} to {most}"));
        }
    }

    /// The value at a node, or that of a setting.
    fn get_or<T: Parse>(&self, node: Option<&Node>, key: &str) -> Option<T> {
        node.map_or_else(|| self.get(key), |it| self.parse(key, it))
    }

    fn choice_or<T: Copy>(&self, node: Option<&Node>, key: &str, choices: &[(&str, T)]) -> Option<T> {
        let Some(node) = node else { return self.choice(key, choices) };
        let written: String = self.parse(key, node)?;
        pick(&written, choices).map_err(|message| self.note(node.place.clone(), written, message)).ok()
    }

    fn choice<T: Copy>(&self, key: &str, choices: &[(&str, T)]) -> Option<T> {
        let written: String = self.get(key)?;
        pick(&written, choices).map_err(|message| self.note_about(key, message)).ok()
    }

    fn required_text(&self, key: &str, hint: &str) -> Option<String> {
        match self.optional_text(key)? {
            Some(text) => Some(text),
            None => self.fail(Place::Missing, key, hint),
        }
    }

    /// A text, which the file may take from a variable: `env:NAME`.
    fn optional_text(&self, key: &str) -> Option<Option<String>> {
        let Some(node) = self.written(key) else { return Some(None) };
        let text: String = self.parse(key, &node)?;
        match text.strip_prefix("env:").filter(|_| matches!(node.place, Place::File { .. })) {
            None => Some(Some(text)),
            Some(name) => match self.sources.env.get(name) {
                Some(value) => Some(Some(value.to_owned())),
                None => self.fail(
                    node.place.clone(),
                    format!("{key} = {text:?}"),
                    format!("the variable {name} is not set"),
                ),
            },
        }
    }

    fn required_secret(&self, key: &str, hint: &str) -> Option<Secret> {
        match self.secret(key)? {
            Some(secret) => Some(secret),
            None => self.fail(Place::Missing, key, hint),
        }
    }

    /// A secret: a reference in the file, the value itself (or `file:PATH`) in a variable.
    fn secret(&self, key: &str) -> Option<Option<Secret>> {
        let Some(node) = self.written(key) else { return Some(None) };
        let reference = match (&node.place, &node.value) {
            (Place::File { .. }, value) => Reference::parse(value),
            (_, Value::Text(text)) if text.starts_with("file:") => Reference::parse(&node.value),
            (_, Value::Text(text)) => return Some(Some(Secret::new(text.trim_end_matches(['\r', '\n'])))),
            (_, value) => Err(format!("expected a string, not {}", value.kind())),
        };
        match reference.and_then(|it| self.origin().secret(&it)) {
            Ok(secret) => Some(Some(secret)),
            Err(message) => self.fail(node.place.clone(), key, message), // the value might be the secret itself
        }
    }

    fn note(&self, place: Place, subject: impl Into<String>, message: impl Into<String>) {
        self.problems.borrow_mut().push(Problem::new(place, subject, message));
    }

    fn fail<T>(&self, place: Place, subject: impl Into<String>, message: impl Into<String>) -> Option<T> {
        self.note(place, subject, message);
        None
    }

    /// Reports a setting whose value is well formed but cannot be.
    fn note_about(&self, key: &str, message: impl Into<String>) {
        let node = self.written(key);
        let place = node.as_ref().map_or(Place::Nowhere, |it| it.place.clone());
        let secret = find(key).kind == "secret";
        let subject = match node {
            Some(node) if !secret => format!("{key} = {}", node.value.shown()),
            _ => key.to_owned(),
        };
        self.note(place, subject, message);
    }

    fn fail_about<T>(&self, key: &str, message: impl Into<String>) -> Option<T> {
        self.note_about(key, message);
        None
    }

    fn report_unknown_keys(&self, table: &Table, prefix: &str) {
        for entry in table.iter() {
            let key = if prefix.is_empty() { entry.key.clone() } else { format!("{prefix}.{}", entry.key) };
            if key == "route" || SETTINGS.iter().any(|it| it.key == key) {
                continue;
            }
            let inside = format!("{key}.");
            if SETTINGS.iter().any(|it| it.key.starts_with(&inside)) {
                match entry.node.as_table() {
                    Some(table) => self.report_unknown_keys(table, &key),
                    None => {
                        self.note(
                            entry.node.place.clone(),
                            key,
                            format!("expected a table, not {}", entry.node.value.kind()),
                        );
                    }
                }
                continue;
            }
            let tables = SETTINGS.iter().filter_map(|it| it.key.rsplit_once('.')).map(|(table, _)| table);
            let known: Vec<&str> = SETTINGS.iter().map(|it| it.key).chain(tables).chain(["route"]).collect();
            self.unknown(entry.place.clone(), &key, &known);
        }
    }

    fn report_unknown_variables(&self) {
        let known: Vec<String> = SETTINGS
            .iter()
            .map(super::setting::Setting::variable)
            .chain(["STREAMGATE_CONFIG".into()])
            .collect();
        let known: Vec<&str> = known.iter().map(String::as_str).collect();
        for name in self.sources.env.names().filter(|it| it.starts_with("STREAMGATE_")) {
            if !known.contains(&name)
                && !is_of_a_service(name, self.sources.env.get(name).unwrap_or_default())
            {
                let place = Place::Env(name.into());
                self.unknown_in(place, name, &known, "STREAMGATE_");
            }
        }
    }

    fn unknown(&self, place: Place, key: &str, known: &[&str]) {
        self.unknown_in(place, key, known, "");
    }

    /// Reports a name that is not known; all names begin with `prefix`, which says nothing about how near two are.
    fn unknown_in(&self, place: Place, key: &str, known: &[&str], prefix: &str) {
        let own = &key[prefix.len()..];
        let message = match nearest(own, known.iter().map(|it| &it[prefix.len()..])) {
            Some(it) => format!("unknown key; did you mean `{prefix}{it}`?"),
            None => "unknown key; docs/reference/configuration.md lists those there are".to_owned(),
        };
        self.note(place, key, message);
    }
}

/// Whether Kubernetes has set a variable, for a Service whose name begins like ours: `streamgate` gives
/// `STREAMGATE_SERVICE_HOST`, `STREAMGATE_PORT=tcp://…` and more to every container of its namespace.
fn is_of_a_service(name: &str, value: &str) -> bool {
    let is_number = |it: &str| !it.is_empty() && it.bytes().all(|it| it.is_ascii_digit());
    let of_port = |(_, rest): (&str, &str)| {
        let (port, rest) = rest.split_once('_').unwrap_or((rest, ""));
        is_number(port) && ["TCP", "UDP", "SCTP"].contains(&rest.split('_').next().unwrap_or_default())
    };
    name.ends_with("_SERVICE_HOST")
        || (name.contains("_SERVICE_PORT") && is_number(value))
        || (name.ends_with("_PORT") && value.contains("://"))
        || name.rsplit_once("_PORT_").is_some_and(of_port)
}

impl Origin {
    /// Resolves a reference to a secret. The error names the reference, never the value.
    pub(crate) fn secret(&self, reference: &Reference) -> Result<Secret, String> {
        match reference {
            Reference::Env(name) => match self.env.get(name) {
                Some(value) => Ok(Secret::new(value)),
                None => Err(format!("the variable {name} is not set")),
            },
            Reference::File(path) => {
                let path = self.base.join(path);
                match std::fs::read_to_string(&path) {
                    Ok(text) => Ok(Secret::new(text.trim_end_matches(['\r', '\n']))),
                    Err(error) => Err(format!("cannot read {}: {error}", path.display())),
                }
            }
        }
    }

    /// Reads a TOML file that the setting at a place refers to.
    pub(crate) fn table(&self, path: &Path, setting: &Place) -> Result<Table, Problems> {
        let path = Arc::new(self.base.join(path));
        match std::fs::read_to_string(&*path) {
            Ok(text) => parse(&path, &text),
            Err(error) => {
                let subject = format!("cannot read {}", path.display());
                Err(Problem::new(setting.clone(), subject, error.to_string()).into())
            }
        }
    }
}

/// Whether all parts of an optional section could be read.
fn whole<T>(section: Option<Option<T>>) -> Option<Option<T>> {
    match section {
        None => Some(None),
        Some(Some(section)) => Some(Some(section)),
        Some(None) => None,
    }
}

/// Of the control server in a container, as NVIDIA's samples have it.
const CONTROL_PORT: u16 = 8011;

fn pick<T: Copy>(written: &str, choices: &[(&str, T)]) -> Result<T, String> {
    let found = choices.iter().find(|(name, _)| *name == written);
    found.map(|(_, choice)| *choice).ok_or_else(|| {
        let names: Vec<String> = choices.iter().map(|(name, _)| format!("{name:?}")).collect();
        format!("expected one of {}", names.join(", "))
    })
}

fn default<T: Parse>(key: &str) -> T {
    let written = format!("default = {}", find(key).default);
    let table = parse(&Arc::new(PathBuf::new()), &written).expect("a default is TOML");
    T::parse(&table.get("default").expect("it was just written").value)
        .expect("a default has its setting's type")
}

/// Refuses a filter that would silence everything by a misspelt level: a word alone is also the name of a crate to
/// [`EnvFilter`], of which there is none. The error begins with a space.
fn check_filter(filter: &str) -> Result<(), String> {
    EnvFilter::builder().parse(filter).map_err(|error| format!(" {error}"))?;
    for word in filter.split(',').filter(|it| !it.is_empty() && !it.contains(['=', '[', ':'])) {
        if word.parse::<LevelFilter>().is_err() {
            let then = format!("there are {}", LEVELS.join(", "));
            return Err(did_you_mean(word, LEVELS.into_iter(), &then));
        }
    }
    Ok(())
}

const LEVELS: [&str; 6] = ["error", "warn", "info", "debug", "trace", "off"];

fn is_encrypted(url: &Secret) -> bool {
    matches!(url.expose().split_once(':'), Some(("rediss" | "valkeys", _)))
}

fn is_id(text: &str) -> bool {
    (1..=128).contains(&text.len())
        && text.bytes().all(|it| it.is_ascii_alphanumeric() || b"-_.".contains(&it))
}

fn is_origin(text: &str) -> bool {
    let Some((scheme, rest)) = text.split_once("://") else { return false };
    let host = |it: u8| it.is_ascii_alphanumeric() || b"-._:[]".contains(&it);
    !scheme.is_empty()
        && scheme.bytes().all(|it| it.is_ascii_alphanumeric())
        && !rest.is_empty()
        && rest.bytes().all(host)
}
