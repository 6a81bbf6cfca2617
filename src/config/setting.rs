//! Every setting, defined once: the parser, the environment names and the reference page come from this table.

/// One setting of the configuration file.
#[derive(Debug)]
pub(crate) struct Setting {
    /// Its dotted key.
    pub(crate) key: &'static str,
    /// What may be written, in the reader's words.
    pub(crate) kind: &'static str,
    /// What holds when nothing is written, as TOML; empty when there is no such value.
    pub(crate) default: &'static str,
    /// Variables of NVIDIA's samples that say the same.
    pub(crate) also: &'static [&'static str],
    /// What it does.
    pub(crate) doc: &'static str,
}

const fn setting(key: &'static str, kind: &'static str, default: &'static str, doc: &'static str) -> Setting {
    Setting { key, kind, default, also: &[], doc }
}

impl Setting {
    const fn also(mut self, names: &'static [&'static str]) -> Self {
        self.also = names;
        self
    }

    /// The environment variable that overrides it.
    pub(crate) fn variable(&self) -> String {
        format!("STREAMGATE_{}", self.key.replace('.', "_").to_ascii_uppercase())
    }
}

/// The definition of `key`.
///
/// # Panics
/// When the table has no such key; the resolver asks only for keys of the table, and a test asks for all.
pub(crate) fn find(key: &str) -> &'static Setting {
    SETTINGS
        .iter()
        .find(|it| it.key == key)
        .unwrap_or_else(|| panic!("`{key}` is not in the table of settings"))
}

#[rustfmt::skip]
pub(crate) static SETTINGS: &[Setting] = &[
    setting("require_auth", "boolean", "false",
        "Refuse to start when a route authenticates nobody."),
    setting("workers", "whole number", "0",
        "Worker threads; each has its own event loop and its own Lua VM. 0: one for each core."),

    setting("reload", "boolean", "true",
        "Read configuration, plugins, token files and certificates again when one of them has changed. SIGHUP does so in any case. A mistake leaves everything as it was."),

    setting("listen.address", "address:port", "\"0.0.0.0:49100\"",
        "Where browsers connect. Port 0 lets the system choose; the log says which. `PROXY_PORT` sets the port alone.").also(&["PROXY_PORT"]),
    setting("listen.origins", "list of origins", "",
        "Who may open a WebSocket, for example `[\"https://app.example\"]`. Absent: any origin, and CORS without credentials."),
    setting("listen.tls.self_signed", "boolean", "false",
        "Serve TLS with a certificate made at start. For development: browsers warn about it.").also(&["PROXY_SSL_INSECURE"]),
    setting("listen.tls.certificate", "path", "",
        "PEM file with the certificate chain; with `listen.tls.key` it turns TLS on."),
    setting("listen.tls.key", "path", "",
        "PEM file with the private key of `listen.tls.certificate`."),
    setting("listen.behind_tls", "boolean", "false",
        "TLS is ended in front of the gateway, by a load balancer: cookies are `Secure`, and policies see a TLS request."),
    setting("listen.proxies", "list of addresses and networks", "[]",
        "Proxies in front of the gateway, such as `[\"10.0.0.0/8\"]`, whose word about a browser's address is taken. Nobody else may reach the port from these addresses."),
    setting("listen.proxy_header", "header name", "\"x-forwarded-for\"",
        "Header in which each of `listen.proxies` adds, at the right, the address that it was talking to."),
    setting("listen.proxy_protocol", "boolean", "false",
        "Connections from `listen.proxies` begin with a header of the PROXY protocol, version 1 or 2, before TLS. Others are taken as they are."),
    setting("listen.handover", "path", "",
        "Unix socket over which a process that starts takes the ports of the one that serves, which then drains: no connection is refused in between. Both need the same `listen.address` and `sessions.cookie.key`."),
    setting("listen.max_head", "size", "\"64KiB\"",
        "Largest request head (request line and headers). A larger one is answered 431."),
    setting("listen.max_headers", "whole number", "100",
        "Most header lines of one request. More are answered 431."),
    setting("listen.head_timeout", "duration", "\"10s\"",
        "Time for a whole request head and for a TLS handshake. A slower browser is answered 408."),
    setting("listen.idle_timeout", "duration", "\"60s\"",
        "How long an HTTP connection may wait for its next request."),
    setting("listen.max_connections", "whole number", "18000",
        "Most browser connections at once; further ones are closed at once."),
    setting("listen.page", "boolean", "false",
        "Serve the browser page at `/`. `streamgate demo` does."),

    setting("admin.address", "address:port", "\"127.0.0.1:9090\"",
        "Where `/metrics`, `/healthz` and `/readyz` are served. Port 0 lets the system choose; the log says which."),
    setting("admin.token", "secret", "",
        "Bearer token that `/metrics` asks for. Required when `admin.address` is not loopback."),

    setting("upstream.server", "server", "",
        "NVCF or another front door: `host` or `host:port` (TLS, verified), or `http://host:port` (clear text).").also(&["NVCF_SERVER", "GATEWAY_ADDR"]),
    setting("upstream.api_key", "secret", "",
        "The key that goes upstream as `Authorization: Bearer`. No part of it is ever printed.").also(&["NVCF_API_KEY"]),
    setting("upstream.function_id", "text", "",
        "The function that is reached when the browser does not choose one.").also(&["STREAMING_FUNCTION_ID"]),
    setting("upstream.function_version_id", "text", "",
        "The version of `upstream.function_id`. Absent: any active version.").also(&["STREAMING_FUNCTION_VERSION_ID"]),
    setting("upstream.functions", "list of text", "[]",
        "Further functions that any browser may choose. A principal with a list of `functions` is held to its own list instead."),
    setting("upstream.ca", "path", "",
        "PEM file with the authorities that may sign the upstream's certificate, instead of the system's."),
    setting("upstream.connect_timeout", "duration", "\"4s\"",
        "Time for the TCP connection and its TLS handshake. The addresses of the server share it."),
    setting("upstream.handshake_timeout", "duration", "\"35s\"",
        "Time for the upstream's answer head, once it has the request. NVCF answers 504 after 30 s, so less would hide its reason. It is not for bodies: 60 s may pass between two pieces of one, either way."),
    setting("upstream.pool", "`never`, `per-client` or `shared`", "\"never\"",
        "Whether plain HTTP requests reuse upstream connections. NVCF binds a worker to a TCP connection, so `never` is right there; `per-client` reuses within one browser connection; `shared` is for upstreams that are not NVCF."),

    setting("sessions.max", "whole number", "9000",
        "Most sessions at once. A further one is answered 503 with `Retry-After`."),
    setting("sessions.max_age", "duration", "\"8h\"",
        "How old a session may become; then both sides are closed (3010 to the browser). `0s`: no limit."),
    setting("sessions.max_idle", "duration", "\"0s\"",
        "How long no message may go either way; pings do not count. `0s`: no limit."),
    setting("sessions.tick", "duration", "\"30s\"",
        "How often plugins with the phase `session_tick` are asked whether a session may go on: `bearer-auth` ends one whose token was withdrawn or has expired."),
    setting("sessions.viewer", "`replace` or `refuse`", "\"replace\"",
        "What becomes of a second browser that reaches a session while another is attached: it takes its place (the first gets Close 3005), or it is refused."),
    setting("sessions.resume.mode", "`reattach`, `reconnect` or `off`", "\"reattach\"",
        "How a browser comes back into its session. `reattach`: its upstream connection is held meanwhile, and the function notices nothing. `reconnect`: by a new connection that names the session to NVCF. `off`: not at all. A browser that asks for another path or query than before always reconnects."),
    setting("sessions.resume.window", "duration", "\"60s\"",
        "How long a lost browser may come back. NVCF is told the same, in whole seconds and at most 1800."),
    setting("sessions.resume.buffer", "size", "\"256KiB\"",
        "Most bytes of messages kept for one browser: those it may not have received, and those that come while it is away."),
    setting("sessions.resume.overflow", "`close` or `drop-oldest`", "\"close\"",
        "What happens when more comes for a browser that is away: the session ends, or the oldest messages are dropped."),
    setting("sessions.keepalive.interval", "duration", "\"10s\"",
        "How often each leg of a session is pinged."),
    setting("sessions.keepalive.timeout", "duration", "\"30s\"",
        "A leg that has sent no byte for this long is lost."),
    setting("sessions.refusal", "`status` or `close`", "\"status\"",
        "How a WebSocket is refused after its handshake was found to be well formed. `status`: an HTTP status before the 101. `close`: a 101, then a Close frame with a code, which scripts can read."),
    setting("sessions.cookie.name", "text", "\"streamgate-session\"",
        "Name of the cookie that brings a browser back into its session."),
    setting("sessions.cookie.key", "secret", "",
        "Seals the cookie: at least 32 characters, the same on all replicas. Absent: random at start, so that cookies end with the process."),
    setting("sessions.cookie.same_site", "`lax`, `strict` or `none`", "\"lax\"",
        "The cookie's `SameSite`. `none` (TLS only) is for pages of another site."),
    setting("sessions.cookie.max_age", "duration", "\"8h\"",
        "How long the cookie is good."),
    setting("sessions.drain.timeout", "duration", "\"8s\"",
        "Time between SIGTERM and the end of the process, in which sessions are told to come back (Close 1012). Under Docker's 10 s, so that the Close is really sent."),

    setting("directory.url", "`memory:`, or the URL of a Redis or Valkey server", "\"memory:\"",
        "Where replicas find each other's sessions: `redis://host:6379/0`, or `rediss://` for TLS. `memory:`: there is no other replica. A URL with a password is a secret: `env:NAME` or `file:PATH`. Needs `sessions.cookie.key`."),
    setting("directory.ca", "path", "",
        "PEM file of the authorities that may sign the server's certificate (`rediss://`), instead of the system's."),
    setting("directory.listen", "address:port", "\"0.0.0.0:0\"",
        "Where other replicas reach this one to hand over a browser whose session is here; encrypted, and only for replicas with the same `sessions.cookie.key`. Port 0: the system chooses, and the directory tells the others."),
    setting("directory.advertise", "IP address", "",
        "The address that other replicas are told, such as that of the pod. Absent: that of `directory.listen`, or the one on the way to the server."),
    setting("directory.timeout", "duration", "\"500ms\"",
        "Longest wait for the server, and as long again for another replica. A browser then reconnects, or gets a new session."),

    setting("plugins.paths", "list of paths", "[\"plugins\"]",
        "Folders with plugins, searched in this order; the plugins built into the binary come last."),
    setting("plugins.modules", "list of paths", "[\"lua_modules\"]",
        "Trees of LuaRocks with modules in Lua that plugins may `require`, as `luarocks install --tree lua_modules NAME` makes them. Modules in C are not loaded."),
    setting("plugins.memory", "size", "\"32MiB\"",
        "Most memory of one Lua VM."),
    setting("plugins.budget", "duration", "\"20ms\"",
        "Most CPU time of one call of a plugin. A script that takes longer is stopped, its request is rejected, and its VM is replaced."),
    setting("plugins.timeout", "duration", "\"10s\"",
        "Longest time of one call of a plugin that waits, unless its chain says otherwise."),
    setting("plugins.store", "`memory:`, or the URL of a Redis or Valkey server", "\"memory:\"",
        "Where plugins keep values, rates and leases: in this process, or for all replicas together in `redis://host:6379/0` (`rediss://` for TLS). A URL with a password is a secret: `env:NAME` or `file:PATH`."),
    setting("plugins.store_size", "integer", "100000",
        "Most values, most rates and most leases that are kept in memory; the least recently used go first."),
    setting("plugins.on_load_error", "`refuse` or `reject`", "\"refuse\"",
        "What becomes of a plugin that cannot be loaded. `refuse`: the gateway does not start, or keeps the configuration it has. `reject`: requests that would ask the plugin are rejected with `plugin.failed`, the rest is served."),
    setting("plugins.ca", "path", "",
        "PEM file of the authorities of the services that plugins reach by `https`, and of the server of `plugins.store` (`rediss://`), instead of the system's roots."),

    setting("log.level", "`error`, `warn`, `info`, `debug`, `trace` or `off`", "\"info\"",
        "What is logged on standard error; also a filter such as `info,streamgate::gateway=debug`."),
    setting("log.format", "`text` or `json`", "\"text\"",
        "Form of the log and of the access log."),
    setting("log.access", "boolean", "true",
        "Write a line on standard output for each request and each session."),

    setting("streaming.control", "address:port", "\"127.0.0.1:8011\"",
        "Where the control server listens. It is unauthenticated: keep it private.").also(&["CONTROL_SERVER_PORT"]),
    setting("streaming.signaling", "address:port", "\"127.0.0.1:49101\"",
        "Where the streaming server listens for its signalling WebSocket.").also(&["STREAMING_SERVER_PORT"]),
    setting("streaming.start_endpoint", "path", "\"/sign_in\"",
        "Path of the signalling WebSocket.").also(&["STREAMING_START_ENDPOINT"]),
    setting("streaming.ports", "range of ports", "\"47998-48020\"",
        "UDP ports for media; the first free one is bound.").also(&["STREAMING_PORT_BINDING_RANGE"]),
    setting("streaming.media_address", "IP address", "",
        "Local address of the media socket. Absent: that of `streaming.signaling`."),
    setting("streaming.advertise", "list of IP addresses", "[]",
        "Addresses that browsers are told to send media to. Empty: the addresses of this machine."),
    setting("streaming.source", "`pattern` or the path of an IVF file with VP8", "\"pattern\"",
        "What is streamed, in a loop."),
    setting("streaming.max_sessions", "whole number", "64",
        "Most sessions at once."),
    setting("streaming.resume_timeout", "duration", "\"60s\"",
        "How long a session outlives the connection of its browser, or its silence; 10 s at least for silence. Behind NVCF at most the gateway's `sessions.resume.window`."),
    setting("streaming.exit_after_session", "boolean", "false",
        "End the process after one session, so that the container starts afresh for the next."),
    setting("streaming.require_creds", "boolean", "false",
        "Be ready only once the STUN credentials have arrived. As far as is known, NVCF gives them only to a container that is ready."),

    setting("frontdoor.address", "address:port", "\"127.0.0.1:10081\"",
        "Where the local front door listens."),
    setting("frontdoor.token", "secret", "",
        "Key that the front door asks for. Absent: any key is good."),
    setting("frontdoor.worker_timeout", "duration", "\"30s\"",
        "How long a session waits for a free instance before it is answered 504."),
];
