//! What the benches of this repository measure and nobody else is promised.

use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::clock::Clock;
use crate::config::{self, Env, Parts, Problems, Sources};
use crate::gateway::Loaded;
use crate::gateway::benched::{
    About, Alone, Directory, Entry, Identity, Listed, Sealer, SessionId, Ticket, accept,
};
use crate::lua::{Routes, Tools};
use crate::policy::{Chain, Natives, Outcome, Phase, Watch};
use crate::session::{Action, Control, Event, Leg, Limits, Loss, Opcode, Session, Stop};

/// A chain of plugins in Lua, with the VM that it runs in.
pub struct LuaChain {
    chain: Rc<Chain>,
    routes: Routes,
}

impl LuaChain {
    /// One plugin, by the texts of its two files.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn of_plugin(schema: &str, plugin: &str) -> Result<LuaChain, Problems> {
        let folder = Folder::new();
        folder.write("plugins/benched/schema.lua", schema);
        folder.write("plugins/benched/plugin.lua", plugin);
        folder.load("\"benched\"")
    }

    /// A chain as a route has it; `file:tokens.toml` is this text.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn of_chain(chain: &str, tokens: &str) -> Result<LuaChain, Problems> {
        let folder = Folder::new();
        folder.write("tokens.toml", tokens);
        folder.load(chain)
    }

    /// The memory that its VM uses, in bytes.
    pub fn memory(&self) -> usize {
        self.routes.memory()
    }

    /// The chain.
    pub fn chain(&self) -> &Chain {
        &self.chain
    }
}

/// A folder that goes when its files were read.
struct Folder(std::path::PathBuf);

impl Folder {
    fn new() -> Folder {
        Folder(std::env::temp_dir().join(format!("streamgate-bench-{}", uuid::Uuid::new_v4())))
    }

    fn write(&self, path: impl AsRef<Path>, text: &str) {
        let path = self.0.join(path);
        let folder = path.parent().expect("it is in the folder");
        std::fs::create_dir_all(folder).expect("a temporary folder can be made");
        std::fs::write(path, text).expect("a temporary file can be written");
    }

    fn load(&self, chain: &str) -> Result<LuaChain, Problems> {
        let text = format!("[[route]]\npath = \"/**\"\nchain = [{chain}]\n");
        let sources = Sources::new(Env::default()).with_file(self.0.join("streamgate.toml"), text);
        let parts: Parts = sources.parts().expect("the parts need no other settings");
        let tools = Tools::for_check(&Clock::system(), &Natives::new());
        let routes = Loaded::new(&parts, &tools)?.program.instantiate()?;
        let chain = Rc::clone(&routes.fallback().expect("there is one route").chain);
        Ok(LuaChain { chain, routes })
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0)); // it is temporary
    }
}

impl std::fmt::Debug for LuaChain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.chain.fmt(f)
    }
}

/// `Sec-WebSocket-Accept` for a key.
pub fn websocket_accept(key: &str) -> String {
    accept(key)
}

/// The cookie that brings a browser back into its session.
pub struct ResumeTokens {
    sealer: Sealer,
    ticket: Ticket,
}

impl ResumeTokens {
    /// With a key of this process.
    #[allow(clippy::new_without_default)] // it is no value
    pub fn new() -> ResumeTokens {
        let config = config::Cookie {
            name: "streamgate-session".into(),
            key: None,
            same_site: config::SameSite::Lax,
            max_age: Duration::from_secs(8 * 3600),
        };
        let ticket = Ticket {
            session: SessionId::random(),
            generation: 1,
            began: 0,
            request: uuid::Uuid::new_v4().to_string(),
            principal: "ada@example.com".into(),
            function: uuid::Uuid::new_v4().to_string(),
            expires: u64::MAX,
        };
        ResumeTokens { sealer: Sealer::new(&config, &[7; 32]), ticket }
    }

    /// A cookie's value.
    pub fn seal(&self) -> String {
        let cookie = self.sealer.set(&self.ticket, "/sign_in", true);
        let value = cookie.split_once('=').and_then(|(_, it)| it.split_once(';'));
        value.map(|(it, _)| it.to_owned()).expect("a cookie has a value and attributes")
    }

    /// Whether a value is this gateway's own.
    pub fn opens(&self, value: &str) -> bool {
        self.sealer.open(value, 0).is_some()
    }
}

/// Sessions without connections: the state machine of each, and the directory that finds them again.
pub struct SessionCore {
    directory: Arc<Directory>,
    sessions: Vec<(Session, Listed)>,
    now: Instant,
}

impl SessionCore {
    /// With so many sessions attached.
    pub fn with_sessions(n: usize) -> SessionCore {
        let now = Clock::system().now();
        let mut core =
            SessionCore { directory: Arc::new(Directory::new(Arc::new(Alone))), sessions: Vec::new(), now };
        core.sessions = (0..n).map(|_| core.attach()).collect();
        core
    }

    fn attach(&self) -> (Session, Listed) {
        let keepalive =
            config::Keepalive { interval: Duration::from_secs(10), timeout: Duration::from_secs(30) };
        let limits = Limits {
            keepalive,
            window: Some(WINDOW),
            max_age: None, // years pass in a bench
            max_idle: None,
            tick: None,
        };
        let id = SessionId::random();
        let identity = Identity { principal: "ada".into(), function: "f".into(), target: "/sign_in".into() };
        let about = About { identity, subprotocol: None, request: "r".into(), began: 0 };
        let listed = self.directory.list(Entry::new(id, about, 0), config::Viewer::Replace);
        (Session::new(limits, 7, self.now), listed.expect("nobody else has its id"))
    }

    /// A session more, which ends at once.
    pub fn attach_and_end(&mut self) {
        let (mut session, listed) = self.attach();
        session.handle(self.now, Event::Stop(Stop::Asked));
        let end = drained(&mut session);
        assert!(end, "it was asked to");
        drop(listed);
    }

    /// The browser of a session is lost.
    pub fn park(&mut self, idx: usize) {
        let (session, listed) = &mut self.sessions[idx];
        session.handle(self.now, Event::Gone(Leg::Browser, Loss::Reset));
        assert!(!drained(session) && session.is_parked());
        self.directory.note_browser(&listed.entry, None);
    }

    /// It comes back.
    pub fn resume(&mut self, idx: usize) {
        let id = self.sessions[idx].1.entry.id();
        let entry = self.directory.find(id).expect("it is parked");
        let (session, _) = &mut self.sessions[idx];
        assert!(session.takes_browsers());
        self.directory.note_browser(&entry, Some(entry.generation() + 1));
        session.handle(self.now, Event::Attached);
        assert!(!drained(session) && !session.is_parked());
    }

    /// It does not come back in time; another session takes its place.
    pub fn expire(&mut self, idx: usize) {
        let (session, _) = &mut self.sessions[idx];
        session.handle(self.now + WINDOW, Event::Tick);
        assert!(drained(session), "nobody came back");
        self.sessions[idx] = self.attach();
    }

    /// Both legs of a session are pinged, and answer.
    pub fn ping(&mut self, idx: usize) {
        self.now += Duration::from_secs(10);
        let (session, _) = &mut self.sessions[idx];
        // Those who were not asked for long are heard now, so that none is taken for lost.
        for leg in Leg::BOTH {
            session.handle(self.now, Event::Heard(leg));
        }
        session.handle(self.now, Event::Tick);
        let mut pings = Vec::new();
        loop {
            match session.poll() {
                Action::Ping(leg, ping) => pings.push((leg, ping)),
                Action::Wait(_) => break,
                _ => unreachable!("pings are all that is due"),
            }
        }
        assert_eq!(pings.len(), 2);
        for (leg, ping) in pings {
            let pong = Control::new(Opcode::Pong, ping.payload());
            session.handle(self.now, Event::Control(leg, pong));
        }
        assert!(!drained(session));
    }
}

/// Does what a session wants; whether that is to end.
fn drained(session: &mut Session) -> bool {
    loop {
        match session.poll() {
            Action::Finish(_) => return true,
            Action::Wait(_) => return false,
            _ => {}
        }
    }
}

impl std::fmt::Debug for SessionCore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SessionCore({})", self.sessions.len())
    }
}

impl std::fmt::Debug for ResumeTokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ResumeTokens")
    }
}

/// How long a lost browser may come back.
const WINDOW: Duration = Duration::from_secs(60);

/// Looks at nothing.
#[derive(Clone, Copy, Debug)]
pub struct Unwatched;

impl Watch for Unwatched {
    type Started = ();

    fn before(&self) {}

    fn after(&self, _: &str, _: Phase, (): (), _: Outcome<'_>) {}

    fn elapsed(&self, _: Duration) -> Pin<Box<dyn Future<Output = ()> + '_>> {
        Box::pin(std::future::pending())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Exchange;

    #[test]
    fn a_crowd_lives_as_long_as_a_bench_takes() {
        let mut core = SessionCore::with_sessions(3);
        for n in 0..10_000 {
            core.ping(n % 3);
            core.park(n % 3);
            core.resume(n % 3);
            core.park(n % 3);
            core.expire(n % 3);
            core.attach_and_end();
        }
        let tokens = ResumeTokens::new();
        assert!(tokens.opens(&tokens.seal()) && !tokens.opens("forged"));
    }

    #[test]
    fn calls_that_wait_leave_nothing_behind() {
        let schema = "return { summary = \"Counts.\", phases = { \"authenticate\" } }";
        let plugin = "local kv = require \"streamgate.kv\"\nlocal time = require \"streamgate.time\"\nreturn { authenticate = function() kv.incr \"n\" end }";
        let chain = LuaChain::of_plugin(schema, plugin).expect("a plugin");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let mut exchange = Exchange::default();
        let mut most = [0; 2];
        for most in &mut most {
            for n in 0..40_000 {
                let run = chain.chain().run(Phase::Authenticate, &mut exchange, &Unwatched);
                runtime.block_on(run).expect("nobody refuses");
                if n % 100 == 0 {
                    *most = chain.memory().max(*most);
                }
            }
        }
        assert!(most[1] < most[0] * 3 / 2, "from {} to {} bytes", most[0], most[1]);
    }
}
