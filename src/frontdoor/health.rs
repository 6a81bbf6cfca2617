//! The containers behind a function: whether they are ready, and how many sessions they take.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;

use crate::clock::Clock;
use crate::frontdoor::Shared;
use crate::frontdoor::functions::port;
use crate::frontdoor::stun;

/// How a container is asked whether it is ready.
#[derive(Clone, Debug)]
pub(crate) struct Health {
    pub(crate) port: u16,
    uri: String,
    timeout: Duration,
    expected: u16,
}

/// One running container.
pub(crate) struct Instance {
    pub(crate) host: String,
    pub(crate) port: u16,
    health: Health,
    is_healthy: AtomicBool,
    was_healthy: AtomicBool,
    /// One place for each session at a time (F26), and how many of them are taken.
    n_places: AtomicUsize,
    n_taken: AtomicUsize,
    /// Whether its function has it no more.
    is_dismissed: AtomicBool,
}

/// A session's place at an instance, until it is dropped.
pub(crate) struct Place(Arc<Instance>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.n_taken.fetch_sub(1, Ordering::AcqRel);
    }
}

/// How often a container is asked; during a session too (F21).
const EVERY: Duration = Duration::from_secs(1);

impl Default for Health {
    fn default() -> Self {
        Health { port: 8000, uri: "/v2/health/ready".into(), timeout: Duration::from_secs(10), expected: 200 }
    }
}

impl Health {
    /// The same question on another port.
    pub(crate) fn on_port(&self, port: u16) -> Health {
        Health { port, ..self.clone() }
    }

    /// Reads `health`, of which all five fields are required.
    pub(crate) fn parse(value: &Value) -> Result<Health, Vec<String>> {
        let mut wrong = Vec::new();
        let text = |field: &str| value.get(field).and_then(Value::as_str);
        if !matches!(text("protocol"), Some("HTTP" | "GRPC")) {
            wrong.push("health.protocol: expected HTTP or GRPC".to_owned());
        }
        let uri = text("uri").filter(|it| it.starts_with('/'));
        if uri.is_none() {
            wrong.push("health.uri: expected a path".to_owned());
        }
        let port = value.get("port").and_then(port);
        if port.is_none() {
            wrong.push("health.port: expected a port".to_owned());
        }
        let timeout = text("timeout").and_then(iso_duration);
        if timeout.is_none() {
            wrong.push("health.timeout: expected an ISO 8601 duration such as PT10S".to_owned());
        }
        let expected =
            value.get("expectedStatusCode").and_then(Value::as_u64).and_then(|it| u16::try_from(it).ok());
        if expected.is_none() {
            wrong.push("health.expectedStatusCode: expected a status".to_owned());
        }
        match (uri, port, timeout, expected) {
            (Some(uri), Some(port), Some(timeout), Some(expected)) if wrong.is_empty() => {
                Ok(Health { port, uri: uri.to_owned(), timeout, expected })
            }
            _ => Err(wrong),
        }
    }
}

impl Instance {
    pub(crate) fn new(host: &str, port: u16, health: Health, n_places: usize) -> Self {
        Instance {
            host: host.to_owned(),
            port,
            health,
            is_healthy: AtomicBool::new(false),
            was_healthy: AtomicBool::new(false),
            n_places: AtomicUsize::new(n_places),
            n_taken: AtomicUsize::new(0),
            is_dismissed: AtomicBool::new(false),
        }
    }

    /// Whether both are the same container.
    pub(crate) fn is_at(&self, other: &Instance) -> bool {
        (&self.host, self.port, self.health.port) == (&other.host, other.port, other.health.port)
    }

    /// Has as many places as `other` from now on; sessions that have one keep it.
    pub(crate) fn resize(&self, other: &Instance) {
        self.n_places.store(other.n_places.load(Ordering::Acquire), Ordering::Release);
    }

    /// A place, if there is one.
    pub(crate) fn take_place(self: &Arc<Self>) -> Option<Place> {
        let n_places = self.n_places.load(Ordering::Acquire);
        let more = |n: usize| (n < n_places).then_some(n + 1);
        let taken = self.n_taken.fetch_update(Ordering::AcqRel, Ordering::Acquire, more);
        taken.is_ok().then(|| Place(Arc::clone(self)))
    }

    /// Its function has it no more.
    pub(crate) fn dismiss(&self) {
        self.is_dismissed.store(true, Ordering::Release);
    }

    pub(crate) fn is_dismissed(&self) -> bool {
        self.is_dismissed.load(Ordering::Acquire)
    }

    pub(crate) fn is_healthy(&self) -> bool {
        self.is_healthy.load(Ordering::Relaxed)
    }

    pub(crate) fn was_healthy(&self) -> bool {
        self.was_healthy.load(Ordering::Relaxed)
    }

    pub(crate) fn to_json(&self) -> Value {
        let status = match (self.is_healthy(), self.was_healthy()) {
            (true, _) => "ACTIVE",
            (false, true) => "ERRORED",
            (false, false) => "STARTING",
        };
        json!({ "instanceStatus": status, "host": self.host, "inferencePort": self.port, "healthPort": self.health.port })
    }

    /// Posts the STUN credentials (F22). The app may have them already: whether it has restarted since is not seen.
    pub(crate) async fn prepare(&self, stun: &stun::Server, clock: &Clock) -> Result<(), String> {
        let body = |local: IpAddr| {
            let body = json!({
                "stunIp": stun.ip_at(local).to_string(),
                "stunPort": stun.address.port(),
                "username": stun.username,
                "password": stun.password.expose(),
                "privateSharedPort": 5004,
                "zone": "local", // a field that no app knows: it must be ignored
            });
            body.to_string()
        };
        let posted = self.ask(Method::POST, "/v1/streaming/creds", body);
        match clock.timeout(self.health.timeout, posted).await {
            Some(Ok((StatusCode::OK, _))) => Ok(()),
            Some(Ok((status, _))) => Err(format!("the app answered {status} to its credentials")),
            Some(Err(error)) => Err(format!("the app could not be given its credentials: {error}")),
            None => Err("the app did not take its credentials in time".into()),
        }
    }
}

/// What an app says of a session whose last connection is gone (F23).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Awaited {
    /// It waits for the browser.
    Resume,
    /// The session is over.
    Complete,
    /// It has no such question, or did not answer.
    Unknown,
    /// Nobody is there any more.
    Gone,
}

impl Instance {
    /// Asks whether a session is still waited for, or ends it.
    pub(crate) async fn end_session(&self, session: &str, graceful: bool, clock: &Clock) -> Awaited {
        let body = json!({ "sessionId": session, "gracefulShutdown": graceful });
        let asked = self.ask(Method::POST, "/v1/streaming/endsession", |_| body.to_string());
        match clock.timeout(self.health.timeout, asked).await {
            Some(Ok((StatusCode::OK, body))) => {
                match serde_json::from_slice::<Value>(&body)
                    .ok()
                    .as_ref()
                    .and_then(|it| it["sessionStatus"].as_str())
                {
                    Some("AWAITING_RESUME") => Awaited::Resume,
                    Some("COMPLETE") => Awaited::Complete,
                    _ => Awaited::Unknown,
                }
            }
            Some(Ok(_)) | None => Awaited::Unknown,
            Some(Err(_)) => Awaited::Gone,
        }
    }

    /// One request to the container's control server. The body may depend on the address by which it is reached.
    async fn ask(
        &self,
        method: Method,
        path: &str,
        body: impl FnOnce(IpAddr) -> String,
    ) -> Result<(StatusCode, Bytes), String> {
        let (host, port) = (self.host.as_str(), self.health.port);
        let tcp = TcpStream::connect((host, port)).await.map_err(|it| it.to_string())?;
        let body = body(tcp.local_addr().map_err(|it| it.to_string())?.ip());
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(tcp)).await.map_err(|it| it.to_string())?;
        let connection = tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", format!("{host}:{port}"))
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|it| it.to_string())?;
        let answered = sender.send_request(request).await.map_err(|it| it.to_string());
        let answer = match answered {
            Ok(response) => {
                let status = response.status();
                let body = Limited::new(response.into_body(), 64 << 10).collect().await;
                Ok((status, body.map(http_body_util::Collected::to_bytes).unwrap_or_default()))
            }
            Err(error) => Err(error),
        };
        connection.abort();
        answer
    }
}

/// Asks a container for ever whether it is ready. One that answers and is not may wait for its credentials, or have
/// restarted since it got them: it gets them each time.
pub(crate) async fn watch(instance: Arc<Instance>, shared: Arc<Shared>) {
    let clock = &shared.clock;
    loop {
        let health = &instance.health;
        let asked = instance.ask(Method::GET, &health.uri, |_| String::new());
        let status = match clock.timeout(health.timeout, asked).await {
            Some(Ok((status, _))) => Some(status.as_u16()),
            _ => None,
        };
        let is_healthy = status == Some(health.expected);
        if instance.is_healthy.swap(is_healthy, Ordering::Relaxed) != is_healthy {
            tracing::info!(
                host = instance.host,
                port = health.port,
                ready = is_healthy,
                "A container changed its readiness."
            );
        }
        if is_healthy {
            instance.was_healthy.store(true, Ordering::Relaxed);
        } else if status.is_some()
            && let Err(error) = instance.prepare(&shared.stun, clock).await
        {
            tracing::debug!(error, "A container that is not ready did not take its credentials.");
        }
        clock.sleep(EVERY).await;
    }
}

/// Reads `PT10S`, `PT1M`, `PT1M30S`.
fn iso_duration(text: &str) -> Option<Duration> {
    let rest = text.strip_prefix("PT")?;
    let written = rest.to_ascii_lowercase();
    crate::config::duration(&written).ok().filter(|it| !it.is_zero() && !written.ends_with("ms"))
}
