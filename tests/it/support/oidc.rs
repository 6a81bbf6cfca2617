//! A real OpenID provider, npm's `oidc-provider`, and a browser that signs in there.
//!
//! What the provider can be told is at the top of `oidc/provider.mjs`.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use url::{Url, form_urlencoded};

use super::{Answer, Client, soon};

/// Where the gateway is, for the browser: behind a proxy with TLS, of which the tests need no more than the name.
pub const ORIGIN: &str = "https://gateway.example";

/// What the provider's access tokens are for.
pub const AUDIENCE: &str = "urn:streamgate:tests";

/// The secret of the clients that have one. No log may ever have it.
pub const CLIENT_SECRET: &str = "confidential-secret";

/// A provider; it is killed with the test.
pub struct Provider {
    pub issuer: String,
    child: Child,
}

/// How often the provider's documents were fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fetches {
    pub discovery: u64,
    pub jwks: u64,
}

/// What a person uses: it keeps cookies by the rules (RFC 6265bis) and follows redirects.
#[derive(Clone)]
pub struct Browser {
    gateway: SocketAddr,
    cookies: Vec<Cookie>,
}

/// A cookie in a browser.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cookie {
    pub host: String,
    pub path: String,
    pub name: String,
    pub value: String,
    pub is_secure: bool,
    pub is_http_only: bool,
    pub same_site: String,
}

/// Where a browser ended up.
#[derive(Debug)]
pub struct Page {
    pub answer: Answer,
    /// All addresses on the way, the page's own comes last.
    pub trail: Vec<Url>,
}

impl Provider {
    pub async fn start() -> Provider {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let (install, folder) = (root.join("tests/it/support/oidc/install"), root.join("target/it/oidc"));
        let installed = Command::new(install).arg(&folder).stdin(Stdio::null()).kill_on_drop(true).status();
        let installed = tokio::time::timeout(INSTALL_PATIENCE, installed).await.expect("npm has an end");
        assert!(installed.expect("the script can be started").success(), "the provider was not installed");

        let mut child = Command::new("node")
            .arg(folder.join("provider.mjs"))
            .args([
                "--redirect",
                &format!("{ORIGIN}/oidc/callback"),
                "--post-logout",
                &format!("{ORIGIN}/bye"),
            ])
            .arg("--exit-with-stdin")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("node is installed by `make test`");
        let mut lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
        let line = soon("the provider's first line", lines.next_line()).await.ok().flatten();
        let issuer = line.as_deref().and_then(|it| it.strip_prefix("issuer=")).map(str::to_owned);
        let issuer = issuer.unwrap_or_else(|| panic!("no issuer, but {line:?}"));
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Provider { issuer, child }
    }

    /// Stops it as a machine stops.
    pub async fn kill(&mut self) {
        self.child.kill().await.expect("it can be killed");
    }

    async fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Value {
        let url = Url::parse(&format!("{}{path}", self.issuer)).expect("a URL");
        let answer = exchange(method, &url, address_of(&url), headers, body).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        serde_json::from_slice(&answer.body).expect("the provider answers in JSON")
    }

    async fn control(&self, path: &str, body: Value) -> Value {
        self.ask("POST", &format!("/control/{path}"), &[], &body.to_string()).await
    }

    pub async fn fetches(&self) -> Fetches {
        let told = self.ask("GET", "/control/fetches", &[], "").await;
        let count = |what: &str| told[what].as_u64().expect("a number");
        Fetches { discovery: count("discovery"), jwks: count("jwks") }
    }

    /// Waits until somebody has begun to fetch the keys so many times.
    pub async fn until_fetched(&self, jwks: u64) {
        let path = format!("/control/fetches?jwks={jwks}");
        soon("a fetch of the keys", self.ask("GET", &path, &[], "")).await;
    }

    /// Signs by new keys from now on. The keys before them stay published, or are dropped; older ones are dropped.
    pub async fn rotate(&self, keep: bool) {
        self.control("rotate", json!({ "keep": keep })).await;
    }

    /// What the provider does when it is asked for `jwks` or `discovery`: `ok`, `down`, `slow`, `empty`, `huge`, `error`.
    pub async fn answers(&self, what: &str, mode: &str) {
        self.control(what, json!({ "mode": mode })).await;
    }

    /// Who signs in from now on, unless the browser has a session at the provider.
    pub async fn meets(&self, user: Value) {
        self.control("user", user).await;
    }

    /// An access token with these claims; the query says what is special about it.
    pub async fn token(&self, query: &str, claims: Value) -> String {
        let told = self.control(&format!("token?{query}"), claims).await;
        told["access_token"].as_str().expect("a token").to_owned()
    }

    /// An access token as the token endpoint issues it, for the client itself.
    pub async fn issued_token(&self) -> String {
        let basic = base64::Engine::encode(
            &base64::engine::general_purpose::STANDARD,
            format!("confidential:{CLIENT_SECRET}"),
        );
        let headers = [
            ("Authorization", format!("Basic {basic}")),
            ("Content-Type", "application/x-www-form-urlencoded".to_owned()),
        ];
        let headers = headers.each_ref().map(|(name, value)| (*name, value.as_str()));
        let told = self.ask("POST", "/token", &headers, "grant_type=client_credentials").await;
        told["access_token"].as_str().expect("a token").to_owned()
    }

    /// The keys that are published. It counts as a fetch.
    pub async fn jwks(&self) -> Value {
        self.ask("GET", "/jwks", &[], "").await
    }
}

impl Browser {
    /// A browser for which `gateway.example` is there.
    pub fn new(gateway: SocketAddr) -> Browser {
        Browser { gateway, cookies: Vec::new() }
    }

    /// Opens a page as by the address bar, and follows redirects to the end.
    pub async fn open(&mut self, url: &str) -> Page {
        self.open_until(url, |_| false).await
    }

    /// The same, but goes nowhere that the test wants to keep for itself: that address is the trail's last.
    pub async fn open_until(&mut self, url: &str, is_kept: impl Fn(&Url) -> bool) -> Page {
        self.go("GET", parse(url), "none", "", is_kept).await
    }

    /// Follows a link of a page of the gateway.
    pub async fn follow(&mut self, path: &str) -> Page {
        self.go("GET", parse(&format!("{ORIGIN}{path}")), "same-origin", "", |_| false).await
    }

    /// Sends the form of a page, as it is.
    pub async fn submit(&mut self, page: &Page) -> Page {
        let (text, url) = (page.answer.text(), page.url());
        let action = attribute(&text, "action").unwrap_or_else(|| panic!("no form in {text}"));
        let mut form = form_urlencoded::Serializer::new(String::new());
        for input in text.split("<input").skip(1) {
            let input = input.split('>').next().unwrap_or_default();
            let (name, value) = (attribute(input, "name"), attribute(input, "value"));
            form.append_pair(&name.expect("a name"), &value.unwrap_or_default());
        }
        let target = url.join(&action).expect("a URL");
        self.go("POST", target, "same-origin", &form.finish(), |_| false).await
    }

    /// A script of a page of the gateway asks for something.
    pub async fn fetch(&mut self, path: &str) -> Answer {
        let headers = [
            ("Accept", "*/*"),
            ("Sec-Fetch-Mode", "cors"),
            ("Sec-Fetch-Dest", "empty"),
            ("Sec-Fetch-Site", "same-origin"),
        ];
        self.send("GET", &parse(&format!("{ORIGIN}{path}")), &headers, "").await
    }

    /// A script of a page of the gateway opens a WebSocket.
    pub async fn websocket(&mut self, path: &str) -> (Client, Answer) {
        let cookies = self.cookie_header(&parse(&format!("{ORIGIN}{path}")));
        let mut client = Client::connect(self.gateway).await;
        client
            .upgrade(path, &[("Origin", ORIGIN), ("Sec-Fetch-Mode", "websocket"), ("Cookie", &cookies)])
            .await;
        let answer = client.answer().await;
        (client, answer)
    }

    /// Its cookies of the gateway whose names begin like this.
    pub fn cookies(&self, prefix: &str) -> Vec<&Cookie> {
        let host = parse(ORIGIN).host_str().expect("a host").to_owned();
        self.cookies.iter().filter(|it| it.host == host && it.name.starts_with(prefix)).collect()
    }

    async fn go(
        &mut self,
        method: &str,
        url: Url,
        site: &str,
        body: &str,
        is_kept: impl Fn(&Url) -> bool,
    ) -> Page {
        let (mut method, mut body, mut site) = (method, body, site);
        let mut trail = vec![url];
        loop {
            assert!(trail.len() <= MOST_REDIRECTS, "round and round: {trail:#?}");
            let url = trail[trail.len() - 1].clone();
            let mut headers = vec![
                ("Accept", "text/html,application/xhtml+xml,*/*;q=0.8"),
                ("Sec-Fetch-Mode", "navigate"),
                ("Sec-Fetch-Dest", "document"),
                ("Sec-Fetch-Site", site),
            ];
            if method == "POST" {
                headers.push(("Content-Type", "application/x-www-form-urlencoded"));
            }
            let answer = self.send(method, &url, &headers, body).await;
            let target = match answer.header("location") {
                Some(it) if (300..400).contains(&answer.status) => url.join(&it).expect("a URL"),
                _ => return Page { answer, trail },
            };
            if site != "none" && target.origin() != url.origin() {
                site = "cross-site";
            }
            (method, body) = ("GET", "");
            let is_last = is_kept(&target);
            trail.push(target);
            if is_last {
                return Page { answer, trail };
            }
        }
    }

    async fn send(&mut self, method: &str, url: &Url, headers: &[(&str, &str)], body: &str) -> Answer {
        let is_gateway = url.as_str().starts_with(ORIGIN);
        let address = if is_gateway { self.gateway } else { address_of(url) };
        let cookies = self.cookie_header(url);
        let mut headers = headers.to_vec();
        if !cookies.is_empty() {
            headers.push(("Cookie", &cookies));
        }
        let answer = exchange(method, url, address, &headers, body).await;
        for line in answer.all("set-cookie") {
            self.keep(url, &line);
        }
        answer
    }

    /// What it sends of its cookies.
    fn cookie_header(&self, url: &Url) -> String {
        let is_for = |it: &&Cookie| {
            let path = url.path();
            let is_below = path == it.path
                || path
                    .strip_prefix(&it.path)
                    .is_some_and(|rest| it.path.ends_with('/') || rest.starts_with('/'));
            Some(it.host.as_str()) == url.host_str() && is_below && (!it.is_secure || url.scheme() == "https")
        };
        let pairs = self.cookies.iter().filter(is_for).map(|it| format!("{}={}", it.name, it.value));
        pairs.collect::<Vec<_>>().join("; ")
    }

    /// Keeps a cookie, or forgets it, or fails where a browser would drop it.
    fn keep(&mut self, url: &Url, line: &str) {
        let (pair, rest) = line.split_once(';').unwrap_or((line, ""));
        let (name, value) = pair.split_once('=').expect("a cookie is a pair");
        let attribute = |wanted: &str| {
            rest.split(';')
                .map(|it| it.trim().split_once('=').unwrap_or((it.trim(), "")))
                .find_map(|(name, value)| name.eq_ignore_ascii_case(wanted).then(|| value.to_owned()))
        };
        let cookie = Cookie {
            host: url.host_str().expect("a host").to_owned(),
            path: attribute("path").unwrap_or_else(|| "/".to_owned()),
            name: name.to_owned(),
            value: value.to_owned(),
            is_secure: attribute("secure").is_some(),
            is_http_only: attribute("httponly").is_some(),
            same_site: attribute("samesite").unwrap_or_default(),
        };
        assert!(!cookie.is_secure || url.scheme() == "https", "a browser drops this: {line}");
        assert!(attribute("domain").is_none(), "it is for one host alone: {line}");
        if name.starts_with("__Host-") {
            assert!(cookie.is_secure && cookie.path == "/", "a browser drops this: {line}");
        }
        assert!(pair.len() <= 4096, "a browser drops this: {line}");
        self.cookies
            .retain(|it| (&it.host, &it.path, &it.name) != (&cookie.host, &cookie.path, &cookie.name));
        let is_over = attribute("max-age").is_some_and(|it| it == "0")
            || attribute("expires").is_some_and(|it| it.starts_with("Thu, 01 Jan 1970"));
        if !is_over {
            self.cookies.push(cookie);
        }
    }
}

impl Page {
    /// The page's own address.
    pub fn url(&self) -> &Url {
        self.trail.last().expect("it begins with one")
    }

    /// The way there in one line, for a test that fails; what is in queries is left out.
    pub fn way(&self) -> String {
        let hops = self.trail.iter().map(|it| &it[..url::Position::AfterPath]);
        hops.collect::<Vec<_>>().join(" > ")
    }
}

fn parse(url: &str) -> Url {
    Url::parse(url).expect("a URL")
}

fn address_of(url: &Url) -> SocketAddr {
    url.socket_addrs(|| None).expect("an address")[0]
}

/// The value of an attribute in HTML, without escapes.
fn attribute(html: &str, name: &str) -> Option<String> {
    let (_, rest) = html.split_once(&format!(" {name}=\""))?;
    rest.split('"').next().map(str::to_owned)
}

/// One request on a connection of its own.
async fn exchange(
    method: &str,
    url: &Url,
    address: SocketAddr,
    headers: &[(&str, &str)],
    body: &str,
) -> Answer {
    let target = &url[url::Position::BeforePath..url::Position::AfterQuery];
    let host = &url[url::Position::BeforeHost..url::Position::AfterPort];
    let mut head =
        format!("{method} {target} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {}\r\n", body.len());
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    let mut client = Client::connect(address).await;
    client.send(format!("{head}\r\n{body}").as_bytes()).await;
    client.answer_to(method).await
}

/// The way to a page and back through a sign-in has five.
const MOST_REDIRECTS: usize = 12;

/// Packages come from npm's registry, once for each checkout.
const INSTALL_PATIENCE: Duration = Duration::from_secs(120);
