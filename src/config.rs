//! What an operator wrote, turned into a [`Config`] that is valid by construction.
//!
//! [`Sources`] are what stands in the file, in the environment and on the command line; [`Sources::resolve`] is the
//! only way from there to a `Config`, and it reports every mistake before it returns.

mod env;
mod node;
mod problem;
mod reference;
mod resolve;
mod setting;
mod value;

#[cfg(test)]
mod tests;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use http::HeaderName;
use ipnet::IpNet;

pub use env::Env;
pub(crate) use node::parse;
pub use node::{Entry, Node, Table, Value};
pub use problem::{Place, Problem, Problems};
pub(crate) use problem::{did_you_mean, nearest};
pub(crate) use reference::reference;
pub use resolve::{Role, Sources};
pub(crate) use value::{Parse, duration, network};
pub use value::{PortRange, Reference, Server, Size};

use crate::secret::Secret;

/// A whole configuration. No invalid one exists.
#[derive(Clone, Debug)]
pub struct Config {
    /// The gateway, unless this process is a streaming server or a front door alone.
    pub gateway: Option<Gateway>,
    /// The streaming server, when it runs in this process.
    pub streaming: Option<Streaming>,
    /// The local front door, when it runs in this process.
    pub frontdoor: Option<FrontDoor>,
    /// The admin endpoints.
    pub admin: Admin,
    /// The log.
    pub log: Log,
}

/// The gateway.
#[derive(Clone, Debug)]
pub struct Gateway {
    /// Whether changed files are read again while serving.
    pub reload: bool,
    /// Worker threads, at least one.
    pub workers: usize,
    /// Where browsers come in.
    pub listen: Listen,
    /// Where they are taken.
    pub upstream: Upstream,
    /// The life of sessions.
    pub sessions: Sessions,
    /// What replicas share; `None`: there is no other.
    pub directory: Option<Directory>,
    /// What refers to more than is written in the configuration itself.
    pub parts: Parts,
}

/// The parts of a gateway's configuration that refer to plugins and to further files. They can be checked even when
/// another part has a mistake.
#[derive(Clone, Debug)]
pub struct Parts {
    /// Refuse to start when a route authenticates nobody.
    pub require_auth: bool,
    /// Where plugins are found.
    pub plugins: Plugins,
    /// The routes, in the order of the file; never empty.
    pub routes: Vec<Route>,
    /// Sources of settings for the plugins: the environment and the folder that relative paths start from.
    pub origin: Origin,
    /// Who may open a WebSocket; `None`: anybody.
    pub origins: Option<Vec<String>>,
    /// TLS towards browsers, when it is on.
    pub tls: Option<Tls>,
    /// Whether the upstream is reached by TLS.
    pub upstream_tls: bool,
    /// PEM file of the upstream's authorities, instead of the system's roots.
    pub upstream_ca: Option<PathBuf>,
}

/// What references inside plugin settings are resolved against.
#[derive(Clone, Debug, Default)]
pub struct Origin {
    /// The environment.
    pub env: Env,
    /// Folder of the configuration file, or the working directory.
    pub base: PathBuf,
}

/// Where browsers come in.
#[derive(Clone, Debug)]
pub struct Listen {
    /// Address and port; port 0 lets the system choose.
    pub address: SocketAddr,
    /// Whether something in front of the gateway ends TLS.
    pub behind_tls: bool,
    /// The proxies in front of the gateway.
    pub proxies: Proxies,
    /// Where the port is passed from one process to the next.
    pub handover: Option<PathBuf>,
    /// Largest request head in bytes.
    pub max_head: usize,
    /// Most header lines of a request.
    pub max_headers: usize,
    /// Time for a whole request head, and for a TLS handshake.
    pub head_timeout: Duration,
    /// Time between two requests of a connection.
    pub idle_timeout: Duration,
    /// Most browser connections at once.
    pub max_connections: usize,
    /// Whether the browser page is served at `/`.
    pub page: bool,
}

/// The proxies in front of the gateway whose word about a browser's address is taken.
#[derive(Clone, Debug)]
pub struct Proxies {
    /// Their addresses.
    pub networks: Vec<IpNet>,
    /// The header in which each of them adds, at the right, the address that it was talking to.
    pub header: HeaderName,
    /// Whether their connections begin with a header of the PROXY protocol.
    pub protocol: bool,
}

/// Where the certificate comes from.
#[derive(Clone, Debug)]
pub enum Tls {
    /// Made at start.
    SelfSigned,
    /// PEM files.
    Files {
        /// The chain.
        certificate: PathBuf,
        /// The private key.
        key: PathBuf,
    },
}

/// NVCF or another front door.
#[derive(Clone, Debug)]
pub struct Upstream {
    /// The server.
    pub server: Server,
    /// What goes there as `Authorization: Bearer`.
    pub api_key: Secret,
    /// The function reached when the browser chooses none.
    pub function_id: String,
    /// Its version.
    pub function_version_id: Option<String>,
    /// Further functions that any browser may choose.
    pub functions: Vec<String>,
    /// Time for TCP and TLS.
    pub connect_timeout: Duration,
    /// Time for the answer head.
    pub handshake_timeout: Duration,
    /// Whether plain HTTP reuses connections.
    pub pool: Pool,
}

/// Whether plain HTTP requests reuse upstream connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pool {
    /// One upstream connection for each request.
    Never,
    /// Reuse within one browser connection.
    PerClient,
    /// Reuse between all browsers.
    Shared,
}

/// The life of sessions.
#[derive(Clone, Debug)]
pub struct Sessions {
    /// Most sessions at once.
    pub max: usize,
    /// How old one may become; `None`: as old as it likes.
    pub max_age: Option<Duration>,
    /// How long no message may go either way; `None`: for ever.
    pub max_idle: Option<Duration>,
    /// How often policies are asked about an open session.
    pub tick: Duration,
    /// What becomes of a second browser for a session.
    pub viewer: Viewer,
    /// How idle connections are kept.
    pub keepalive: Keepalive,
    /// How a well-formed WebSocket request is refused.
    pub refusal: Refusal,
    /// The cookie that brings a browser back.
    pub cookie: Cookie,
    /// Time between SIGTERM and the end.
    pub drain_timeout: Duration,
}

/// The directory of sessions that replicas share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directory {
    /// The Redis or Valkey server.
    pub url: Secret,
    /// The authorities that may sign its certificate; `None`: the system's.
    pub ca: Option<PathBuf>,
    /// Where other replicas reach this one; port 0 lets the system choose.
    pub listen: SocketAddr,
    /// What they are told instead of the address in `listen`; `None`: the one on the way to the server.
    pub advertise: Option<IpAddr>,
    /// Time for one request to the server, or to another replica.
    pub timeout: Duration,
}

/// What becomes of a second browser for a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Viewer {
    /// It takes the place of the first, which is closed with 3005.
    Replace,
    /// It is refused.
    Refuse,
}

/// How a browser comes back into its session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resume {
    /// Over which connection upstream.
    pub mode: ResumeMode,
    /// How long a lost browser may come back.
    pub window: Duration,
    /// Most bytes kept for a browser that is away.
    pub buffer: usize,
    /// What happens when more comes.
    pub overflow: Overflow,
}

/// Over which connection upstream a browser comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResumeMode {
    /// The one that was held for it.
    Reattach,
    /// A new one.
    Reconnect,
    /// It does not: each connection is a new session.
    Off,
}

/// What happens when more comes for an absent browser than is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overflow {
    /// The session ends.
    Close,
    /// The oldest messages are dropped.
    DropOldest,
}

/// How idle connections are kept, on both legs.
#[derive(Clone, Copy, Debug)]
pub struct Keepalive {
    /// Time between two pings.
    pub interval: Duration,
    /// A peer silent for this long is lost.
    pub timeout: Duration,
}

/// How a well-formed WebSocket request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// An HTTP status before the 101.
    Status,
    /// A 101, then a Close frame with a code.
    Close,
}

/// The cookie that brings a browser back into its session.
#[derive(Clone, Debug)]
pub struct Cookie {
    /// Its name.
    pub name: String,
    /// What it is sealed with; `None`: random at start.
    pub key: Option<Secret>,
    /// Its `SameSite`.
    pub same_site: SameSite,
    /// How long it is good.
    pub max_age: Duration,
}

/// A cookie's `SameSite`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SameSite {
    /// Also when the user follows a link here.
    Lax,
    /// Only from pages of this site.
    Strict,
    /// From pages of any site; needs TLS.
    None,
}

/// Where plugins are found.
#[derive(Clone, Debug)]
pub struct Plugins {
    /// Folders, searched in this order.
    pub paths: Vec<PathBuf>,
    /// Trees of LuaRocks.
    pub modules: Vec<PathBuf>,
    /// Most memory of one Lua VM in bytes.
    pub memory: usize,
    /// Most CPU time of one call of a plugin.
    pub budget: Duration,
    /// Longest time of one call that waits.
    pub timeout: Duration,
    /// The URL of a Redis server where plugins keep things; `None`: in this process.
    pub store: Option<Secret>,
    /// Most values that are kept in this process.
    pub store_size: usize,
    /// Whether a plugin that cannot be loaded costs its own requests alone, instead of the whole configuration.
    pub reject_broken: bool,
    /// PEM file of the authorities of other services, instead of the system's roots.
    pub ca: Option<PathBuf>,
}

/// One route: which requests, and what is asked of them.
#[derive(Clone, Debug)]
pub struct Route {
    /// Its pattern.
    pub path: String,
    /// The plugins, in order.
    pub chain: Vec<Step>,
    /// How its browsers come back into their sessions.
    pub resume: Resume,
    /// Where it was written.
    pub place: Place,
}

/// Where a plugin stands in a group of which one alternative is enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Alternative {
    /// Which group of the chain.
    pub group: usize,
    /// Which alternative of the group.
    pub idx: usize,
}

/// One plugin of a chain, with its settings as written.
#[derive(Clone, Debug)]
pub struct Step {
    /// Where it stands in a group, if it does.
    pub alternative: Option<Alternative>,
    /// The plugin's name.
    pub plugin: String,
    /// What distinguishes two instances of one plugin; the plugin's name when nothing was written.
    pub id: String,
    /// Its settings.
    pub settings: Vec<Entry>,
    /// Where it was written.
    pub place: Place,
}

/// The admin endpoints.
#[derive(Clone, Debug)]
pub struct Admin {
    /// Address and port; port 0 lets the system choose.
    pub address: SocketAddr,
    /// What `/metrics` asks for.
    pub token: Option<Secret>,
}

/// The log.
#[derive(Clone, Debug)]
pub struct Log {
    /// A level or a filter.
    pub level: String,
    /// Text or JSON.
    pub json: bool,
    /// Whether requests and sessions get a line each.
    pub access: bool,
}

/// The streaming server.
#[derive(Clone, Debug)]
pub struct Streaming {
    /// Where the control server listens.
    pub control: SocketAddr,
    /// Where signalling listens.
    pub signaling: SocketAddr,
    /// Path of the signalling WebSocket.
    pub start_endpoint: String,
    /// UDP ports for media.
    pub ports: PortRange,
    /// Local address of the media socket.
    pub media_address: IpAddr,
    /// Addresses that browsers are told; empty: those of this machine.
    pub advertise: Vec<IpAddr>,
    /// What is streamed.
    pub source: Source,
    /// Most sessions at once.
    pub max_sessions: usize,
    /// How long a session outlives its signalling connection.
    pub resume_timeout: Duration,
    /// End the process after one session.
    pub exit_after_session: bool,
    /// Be ready only once credentials have arrived.
    pub require_creds: bool,
}

/// What is streamed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The built-in loop.
    Pattern,
    /// An IVF file with VP8.
    File(PathBuf),
}

/// The local front door.
#[derive(Clone, Debug)]
pub struct FrontDoor {
    /// Where it listens.
    pub address: SocketAddr,
    /// The key it asks for; `None`: any.
    pub token: Option<Secret>,
    /// How long a session waits for a free instance.
    pub worker_timeout: Duration,
}
