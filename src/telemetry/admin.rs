//! The admin endpoints: `/metrics`, `/healthz`, `/readyz`, `/admin/sessions`, `/admin/plugins`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get};
use axum::{Json, Router};
use tokio::net::TcpListener;

use crate::config;
use crate::secret::Secret;
use crate::telemetry::Metrics;

/// The admin server.
pub(crate) struct Admin {
    listener: std::net::TcpListener,
    address: SocketAddr,
    state: Arc<AdminState>,
}

/// What the admin endpoints know of the gateway's sessions.
#[async_trait]
pub(crate) trait Sessions: Send + Sync {
    /// One object for each session of this replica.
    fn list(&self) -> Vec<serde_json::Value>;

    /// Asks the session with this id to end, on whichever replica it is; false when there is none.
    async fn end(&self, id: &str) -> bool;
}

/// What the admin endpoints know of the gateway's plugins.
pub(crate) trait Policies: Send + Sync {
    /// Routes, chains, plugins, and how the last reload went.
    fn describe(&self) -> serde_json::Value;
}

struct AdminState {
    policies: Arc<dyn Policies>,
    sessions: Arc<dyn Sessions>,
    metrics: Metrics,
    token: Option<Secret>,
    ready: Arc<AtomicBool>,
}

impl Admin {
    /// Binds the address, unless it was taken over from another process. `ready` tells whether new sessions are taken.
    pub(crate) async fn bind(
        config: &config::Admin,
        taken: Option<std::net::TcpListener>,
        sessions: Arc<dyn Sessions>,
        policies: Arc<dyn Policies>,
        metrics: &Metrics,
        ready: Arc<AtomicBool>,
    ) -> std::io::Result<Self> {
        let listener = match taken {
            Some(listener) => listener,
            None => TcpListener::bind(config.address).await?.into_std()?,
        };
        let address = listener.local_addr()?;
        let token = config.token.clone();
        let state = AdminState { policies, sessions, metrics: metrics.clone(), token, ready };
        Ok(Admin { listener, address, state: Arc::new(state) })
    }

    /// The listening socket, once more.
    pub(crate) fn listener(&self) -> std::net::TcpListener {
        self.listener.try_clone().expect("a socket can be shared")
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until it is dropped.
    pub(crate) async fn run(self) {
        let router = Router::new()
            .route("/metrics", get(metrics))
            .route("/healthz", get(|| async { "ok\n" }))
            .route("/readyz", get(ready))
            .route("/admin/plugins", get(plugins))
            .route("/admin/sessions", get(list))
            .route("/admin/sessions/{id}", delete(end))
            .with_state(self.state);
        let served = match TcpListener::from_std(self.listener) {
            Ok(listener) => axum::serve(listener, router).await,
            Err(error) => Err(error),
        };
        if let Err(error) = served {
            tracing::error!(%error, "The admin server stopped.");
        }
    }
}

impl AdminState {
    /// Refuses whoever does not show the token, where one is set.
    fn refusal(&self, headers: &HeaderMap) -> Option<Response> {
        let token = self.token.as_ref()?;
        let presented = headers
            .get(header::AUTHORIZATION)
            .and_then(|it| it.to_str().ok())
            .and_then(|it| it.strip_prefix("Bearer "));
        if presented.is_some_and(|it| token.matches(it)) {
            return None;
        }
        let refusal =
            (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, "Bearer")], "a token is needed\n");
        Some(refusal.into_response())
    }
}

async fn list(State(state): State<Arc<AdminState>>, headers: HeaderMap) -> Response {
    let list = || Json(serde_json::json!({ "sessions": state.sessions.list() })).into_response();
    state.refusal(&headers).unwrap_or_else(list)
}

async fn plugins(State(state): State<Arc<AdminState>>, headers: HeaderMap) -> Response {
    let describe = || Json(state.policies.describe()).into_response();
    state.refusal(&headers).unwrap_or_else(describe)
}

async fn end(State(state): State<Arc<AdminState>>, Path(id): Path<String>, headers: HeaderMap) -> Response {
    if let Some(refusal) = state.refusal(&headers) {
        return refusal;
    }
    let status = if state.sessions.end(&id).await { StatusCode::ACCEPTED } else { StatusCode::NOT_FOUND };
    status.into_response()
}

async fn metrics(State(state): State<Arc<AdminState>>, headers: HeaderMap) -> Response {
    let render =
        || ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], state.metrics.render()).into_response();
    state.refusal(&headers).unwrap_or_else(render)
}

async fn ready(State(state): State<Arc<AdminState>>) -> (StatusCode, &'static str) {
    if state.ready.load(Ordering::Relaxed) {
        (StatusCode::OK, "ready\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "draining\n")
    }
}
