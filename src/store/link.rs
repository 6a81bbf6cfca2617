//! The way to a Redis or Valkey server: asked for a bounded time, left alone for a moment after a failure.

use std::error::Error;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::{Client, ConnectionAddr, ErrorKind, FromRedisValue, Pipeline, RedisError, TlsCertificates, cmd};
use tokio::runtime::Handle;

use crate::clock::{Clock, Instant};
use crate::secret::Secret;

/// One connection that all threads share; it is made when it is first needed, and again when it was lost.
pub(crate) struct Link {
    manager: ConnectionManager,
    /// Where the server is.
    server: String,
    runtime: Handle,
    timeout: Duration,
    clock: Clock,
    health: Mutex<Health>,
    says: Says,
}

/// What the log says of the server.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Says {
    /// It cannot be asked, and what follows from that.
    pub(crate) down: &'static str,
    pub(crate) up: &'static str,
    /// It did not answer in time.
    pub(crate) late: &'static str,
}

/// Why there is no answer. The log knows more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoAnswer {
    /// It was not asked: it did not answer a moment ago.
    Skipped,
    Failed,
}

/// How a server did lately.
#[derive(Default)]
pub(crate) struct Health {
    /// The log says that it is down.
    is_said_down: bool,
    /// It is not asked until then.
    retry: Option<Instant>,
    complained: Option<Instant>,
}

/// What a request is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    Ask,
    /// To ask after a failure.
    Try,
    Skip,
}

/// After a failure the server is left alone for so long.
pub(crate) const PAUSE: Duration = Duration::from_secs(1);

/// How often it is complained about a server that is not there.
const COMPLAIN: Duration = Duration::from_secs(60);

/// A client of the server of a URL. With `rediss://` its certificate is verified by these authorities, in PEM, or by the
/// system's.
pub(crate) fn client(url: &Secret, authorities: Option<Vec<u8>>) -> Result<Client, String> {
    let told = |it: RedisError| format!("not the URL of a Redis server: {it}");
    let client = Client::open(url.expose()).map_err(told)?;
    match (client.get_connection_info(), authorities) {
        (info, Some(pem)) if matches!(info.addr(), ConnectionAddr::TcpTls { .. }) => {
            let certificates = TlsCertificates { client_tls: None, root_cert: Some(pem) };
            Client::build_with_tls(info.clone(), certificates).map_err(told)
        }
        _ => Ok(client),
    }
}

impl Link {
    /// Nothing is asked of the server yet. Must be called within the runtime that is to speak with it.
    pub(crate) fn new(
        client: Client,
        timeout: Duration,
        clock: &Clock,
        says: Says,
    ) -> Result<Link, RedisError> {
        let settings = ConnectionManagerConfig::new()
            .set_connection_timeout(Some(timeout))
            .set_response_timeout(Some(timeout))
            .set_number_of_retries(0);
        let server = client.get_connection_info().addr().to_string();
        Ok(Link {
            server,
            manager: ConnectionManager::new_lazy_with_config(client, settings)?,
            runtime: Handle::current(),
            timeout,
            clock: clock.clone(),
            health: Mutex::default(),
            says,
        })
    }

    /// Asks the server, for a bounded time. A failure is noted; the next one to ask tries again after
    /// [`PAUSE`].
    pub(crate) async fn ask<T>(&self, pipeline: Pipeline) -> Result<T, NoAnswer>
    where
        T: FromRedisValue + Send + 'static,
    {
        let is_trial = match self.health().turn(self.clock.now(), PAUSE) {
            Turn::Skip => return Err(NoAnswer::Skipped),
            Turn::Try => true,
            Turn::Ask => false,
        };
        let mut manager = self.manager.clone();
        // Where the connection lives: a worker comes and goes.
        let asked = self.runtime.spawn(async move {
            if is_trial {
                // The manager answers once with the last failure before it connects again. This takes that
                // answer, as what is to be asked must not be asked twice.
                drop(cmd("PING").query_async::<()>(&mut manager).await);
            }
            pipeline.query_async::<T>(&mut manager).await
        });
        let problem = match self.clock.timeout(self.timeout, asked).await {
            Some(Ok(Ok(answer))) => {
                if self.health().recovered() {
                    tracing::info!("{}", self.says.up);
                }
                return Ok(answer);
            }
            Some(Ok(Err(error))) => describe(&error),
            Some(Err(error)) => error.to_string(),
            None => self.says.late.to_owned(),
        };
        if self.health().failed(self.clock.now()) {
            tracing::warn!(server = %self.server, error = problem, "{}", self.says.down);
        }
        Err(NoAnswer::Failed)
    }

    /// Where the connection lives.
    pub(crate) fn runtime(&self) -> &Handle {
        &self.runtime
    }

    fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Health {
    /// After a failure one request tries, and the others do not wait for what comes of it. One that is given
    /// up before it knows is followed by the next after `patience`.
    pub(crate) fn turn(&mut self, now: Instant, patience: Duration) -> Turn {
        match self.retry {
            Some(retry) if now < retry => Turn::Skip,
            Some(_) => {
                self.retry = Some(now + patience);
                Turn::Try
            }
            None => Turn::Ask,
        }
    }

    /// Takes note of a failure; true when it is time to complain.
    pub(crate) fn failed(&mut self, now: Instant) -> bool {
        self.retry = Some(now + PAUSE);
        let is_due = self.complained.is_none_or(|it| now - it >= COMPLAIN);
        if is_due {
            self.complained = Some(now);
            self.is_said_down = true;
        }
        is_due
    }

    /// Takes note of an answer; true when the log should say that all is well again.
    pub(crate) fn recovered(&mut self) -> bool {
        self.retry = None;
        std::mem::take(&mut self.is_said_down)
    }
}

/// What is wrong, without what was asked: a URL's password or a value may be in it.
pub(crate) fn describe(error: &RedisError) -> String {
    let category = error.category();
    match (error.kind(), error.source()) {
        (ErrorKind::Io, Some(cause)) => return format!("{category}: {cause}"),
        // Here the library keeps the server's own words to itself.
        (ErrorKind::AuthenticationFailed, _) => {
            return format!("{category}: the server does not take the user or the password of the URL");
        }
        _ => {}
    }
    let first = error.clone().into_server_errors().and_then(|it| it.first().map(|(_, it)| it.clone()));
    let (code, text) = match (&first, error.kind()) {
        (Some(first), _) => (Some(first.code()), first.details()),
        (None, ErrorKind::Server(_)) => (error.code(), error.detail()),
        (None, _) => (error.code(), None), // words of the library, which may quote an answer
    };
    let text = text.map(said).filter(|it| !it.is_empty());
    let parts: Vec<&str> = [code, text.as_deref()].into_iter().flatten().collect();
    format!("{category}: {}", if parts.is_empty() { "-".into() } else { parts.join(" ") })
}

/// What a server says, without the arguments that it repeats to whoever uses a command that it does not have.
fn said(text: &str) -> String {
    let own = text.split(", with args beginning with").next().unwrap_or_default();
    own.chars().take(LONGEST).collect()
}

/// The longest text of a server that is logged, in characters.
const LONGEST: usize = 200;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_repeats_what_it_was_sent_is_not_quoted() {
        assert_eq!(said("invalid DB index"), "invalid DB index");
        assert_eq!(
            said("unknown command `AUTH`, with args beginning with: `default` `hunter2`"),
            "unknown command `AUTH`"
        );
        assert_eq!(said(&"é".repeat(300)).chars().count(), LONGEST);
    }

    #[test]
    fn after_a_failure_one_request_a_second_tries() {
        let now = Clock::paused().now();
        let at = |millis| now + Duration::from_millis(millis);
        let mut health = Health::default();
        assert_eq!(health.turn(now, PAUSE), Turn::Ask);
        assert!(health.failed(now));
        assert_eq!(health.turn(at(999), PAUSE), Turn::Skip);
        assert_eq!(health.turn(at(1000), PAUSE), Turn::Try);
        assert_eq!(health.turn(at(1000), PAUSE), Turn::Skip, "one is on its way");
        assert_eq!(health.turn(at(2000), PAUSE), Turn::Try, "it was given up");
        assert!(!health.failed(at(2100)), "the log has said it");
        assert_eq!(health.turn(at(3099), PAUSE), Turn::Skip);
        assert!(health.recovered());
        assert_eq!(health.turn(at(3099), PAUSE), Turn::Ask);
        assert!(!health.recovered(), "once");
    }
}
