//! A gateway of one test: in this process, on ports of the system's choice.

use std::net::SocketAddr;
use std::time::Duration;

use streamgate::app::{Addresses, App, Reloader};
use streamgate::clock::Clock;
use streamgate::config::{Env, Problems, Role, Sources};
use tokio::sync::oneshot;

use super::{Answer, Client, FUNCTION, Folder, KEY, PATIENCE, TOKEN, Upstream, log};

/// How a gateway is made.
pub struct Builder {
    server: String,
    listen: String,
    upstream: String,
    rest: String,
    chain: String,
    env: Vec<(String, String)>,
    folder: Folder,
    clock: Clock,
}

/// A gateway at work; it ends with the test.
pub struct Gateway {
    pub addresses: Addresses,
    pub clock: Clock,
    pub folder: Folder,
    metrics: Box<dyn Fn() -> String + Send + Sync>,
    reloader: Option<Reloader>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Gateway {
    /// A gateway before an upstream, with CORS and no authentication, as the seed's variables give it.
    pub fn in_front_of(upstream: &Upstream) -> Builder {
        Gateway::before(format!("http://{}", upstream.address))
    }

    /// The same before any server.
    pub fn before(server: String) -> Builder {
        log::collect();
        let folder = Folder::new();
        folder.write(
            "tokens.toml",
            &format!("[ada]\ntoken = {TOKEN:?}\ntenant = \"acme\"\n[bob]\ntoken = \"token-of-bob\"\nfunctions = [\"only-of-bob\"]\n"),
        );
        Builder {
            server,
            listen: String::new(),
            upstream: String::new(),
            rest: String::new(),
            chain: "\"cors\"".into(),
            env: Vec::new(),
            folder,
            clock: Clock::system(),
        }
    }

    /// Where browsers connect.
    pub fn address(&self) -> SocketAddr {
        self.addresses.gateway.expect("it has a gateway")
    }

    /// A browser's connection.
    pub async fn connect(&self) -> Client {
        Client::connect(self.address()).await
    }

    /// One plain request.
    pub async fn get(&self, path: &str, headers: &[(&str, &str)]) -> Answer {
        let mut client = self.connect().await;
        client.request("GET", path, headers, b"").await;
        client.answer().await
    }

    /// The value of a metric; labels in the order in which they are written there. 0 when it is not there yet.
    pub fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let labels: Vec<String> = labels.iter().map(|(name, value)| format!("{name}=\"{value}\"")).collect();
        let series =
            if labels.is_empty() { name.to_owned() } else { format!("{name}{{{}}}", labels.join(",")) };
        let text = (self.metrics)();
        let line = text.lines().find_map(|it| it.strip_prefix(&series)?.strip_prefix(' '));
        line.map_or(0.0, |it| it.parse().expect("a metric is a number"))
    }

    /// Waits until a metric has a value: what is counted is counted a moment after the browser has seen it.
    #[track_caller]
    pub fn until_metric(&self, name: &str, labels: &[(&str, &str)], value: f64) {
        let began = std::time::Instant::now();
        while (self.metric(name, labels) - value).abs() > f64::EPSILON {
            assert!(
                began.elapsed() < PATIENCE,
                "{name} {labels:?} is {}, not {value}",
                self.metric(name, labels)
            );
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Serves by another configuration from now on; the text of the file is given.
    pub fn reload(&self, file: &str) -> Result<Vec<String>, Problems> {
        let env: Env = [("KEY", KEY)].into_iter().collect();
        let sources = Sources::new(env).with_file(self.folder.path().join("streamgate.toml"), file);
        let config = App::resolve(&sources, Role::Gateway, &self.clock)?;
        self.reloader.as_ref().expect("it has a gateway").reload(config)
    }

    /// Waits for its end, which must need no timer.
    pub fn ends_while_time_stands_still(&mut self) {
        let began = std::time::Instant::now();
        while !self.thread.as_ref().is_none_or(std::thread::JoinHandle::is_finished) {
            assert!(began.elapsed() < PATIENCE, "something is waited for");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Waits until it has ended by itself.
    pub fn wait(mut self) {
        assert!(!matches!(self.join(), Some(Err(_))), "it ends without a panic");
    }

    /// Waits for its thread; its time goes on meanwhile, also where it stood still.
    fn join(&mut self) -> Option<std::thread::Result<()>> {
        let thread = self.thread.take()?;
        while !thread.is_finished() {
            if self.clock.is_paused() {
                self.clock.advance(Duration::from_millis(100));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Some(thread.join())
    }

    /// Tells the gateway to end, without waiting.
    pub fn begin_to_stop(&mut self) {
        if let Some(stop) = self.stop.take() {
            stop.send(()).ok();
        }
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.begin_to_stop();
        let ended = self.join();
        if !std::thread::panicking() {
            assert!(!matches!(ended, Some(Err(_))), "the gateway ended with a panic");
            log::assert_silent_about_secrets();
        }
    }
}

impl Builder {
    /// Lines of `[listen]`.
    pub fn listen(mut self, lines: &str) -> Self {
        self.listen += &format!("{lines}\n");
        self
    }

    /// Lines of `[upstream]`.
    pub fn upstream(mut self, lines: &str) -> Self {
        self.upstream += &format!("{lines}\n");
        self
    }

    /// Tables of the file.
    pub fn with(mut self, tables: &str) -> Self {
        self.rest += &format!("{tables}\n");
        self
    }

    /// The chain of the one route.
    pub fn chain(mut self, chain: &str) -> Self {
        chain.clone_into(&mut self.chain);
        self
    }

    /// `cors` and `bearer-auth`.
    pub fn authenticated(self) -> Self {
        self.chain("\"cors\", { plugin = \"bearer-auth\", tokens = \"file:tokens.toml\" }")
    }

    /// A plugin of the test's own.
    pub fn plugin(self, name: &str, schema: &str, plugin: &str) -> Self {
        self.folder.write(&format!("plugins/{name}/schema.lua"), schema);
        self.folder.write(&format!("plugins/{name}/plugin.lua"), plugin);
        self
    }

    /// A file beside the configuration.
    pub fn file(self, name: &str, text: &str) -> Self {
        self.folder.write(name, text);
        self
    }

    /// An environment variable.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Another clock.
    pub fn on(mut self, clock: &Clock) -> Self {
        self.clock = clock.clone();
        self
    }

    /// The text of its file.
    pub fn text(&self) -> String {
        format!(
            "[listen]\naddress = \"127.0.0.1:0\"\n{}[admin]\naddress = \"127.0.0.1:0\"\n\
             [upstream]\nserver = {:?}\nfunction_id = {FUNCTION:?}\napi_key = \"env:KEY\"\n{}\
             [log]\naccess = false\n{}\n[[route]]\npath = \"/**\"\nchain = [{}]\n",
            self.listen, self.server, self.upstream, self.rest, self.chain,
        )
    }

    fn sources(&self) -> Sources {
        let file = self.text();
        let env: Env = self.env.iter().cloned().chain([("KEY".to_owned(), KEY.to_owned())]).collect();
        Sources::new(env).with_file(self.folder.path().join("streamgate.toml"), file)
    }

    /// The mistakes in it.
    pub fn problems(self) -> String {
        let config = match App::resolve(&self.sources(), Role::Gateway, &self.clock) {
            Ok(config) => config,
            Err(problems) => return problems.to_string(),
        };
        match App::check(config, &self.clock) {
            Ok(_) => String::new(),
            Err(problems) => problems.to_string(),
        }
    }

    /// Starts it on a thread of its own, so that neither hinders the other.
    pub async fn start(self) -> Gateway {
        let config = self.sources().resolve(Role::Gateway).unwrap_or_else(|it| panic!("{it}"));
        run(move || config, self.clock, self.folder).await.unwrap_or_else(|it| panic!("{it}"))
    }
}

/// Runs what a configuration asks for.
pub async fn run(
    config: impl FnOnce() -> streamgate::config::Config + Send + 'static,
    clock: Clock,
    folder: Folder,
) -> Result<Gateway, Problems> {
    log::collect();
    let (ready, built) = oneshot::channel();
    let (stop, stopped) = oneshot::channel::<()>();
    let of_app = clock.clone();
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        runtime.expect("an event loop").block_on(async move {
            match App::build(config(), of_app).await {
                Ok(app) => {
                    let metrics: Box<dyn Fn() -> String + Send + Sync> = Box::new(app.metrics());
                    ready.send(Ok((app.addresses(), metrics, app.reloader()))).ok();
                    app.run(async move { drop(stopped.await) }).await;
                }
                Err(problems) => drop(ready.send(Err(problems))),
            }
        });
    });
    let (addresses, metrics, reloader) = built.await.expect("the gateway says how it began")?;
    Ok(Gateway { addresses, clock, folder, metrics, reloader, stop: Some(stop), thread: Some(thread) })
}
