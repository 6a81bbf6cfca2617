//! The admin endpoints: `/metrics`, `/healthz`, `/readyz`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;

use crate::config;
use crate::secret::Secret;
use crate::telemetry::Metrics;

/// The admin server.
pub(crate) struct Admin {
    listener: TcpListener,
    address: SocketAddr,
    state: Arc<AdminState>,
}

struct AdminState {
    metrics: Metrics,
    token: Option<Secret>,
    ready: Arc<AtomicBool>,
}

impl Admin {
    /// Binds the address. `ready` tells whether new sessions are taken.
    pub(crate) async fn bind(
        config: &config::Admin,
        metrics: &Metrics,
        ready: Arc<AtomicBool>,
    ) -> std::io::Result<Self> {
        let listener = TcpListener::bind(config.address).await?;
        let address = listener.local_addr()?;
        let state = AdminState { metrics: metrics.clone(), token: config.token.clone(), ready };
        Ok(Admin { listener, address, state: Arc::new(state) })
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
            .with_state(self.state);
        if let Err(error) = axum::serve(self.listener, router).await {
            tracing::error!(%error, "The admin server stopped.");
        }
    }
}

async fn metrics(State(state): State<Arc<AdminState>>, headers: HeaderMap) -> Response {
    if let Some(token) = &state.token {
        let presented = headers
            .get(header::AUTHORIZATION)
            .and_then(|it| it.to_str().ok())
            .and_then(|it| it.strip_prefix("Bearer "));
        if !presented.is_some_and(|it| token.matches(it)) {
            return (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, "Bearer")], "a token is needed\n")
                .into_response();
        }
    }
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], state.metrics.render()).into_response()
}

async fn ready(State(state): State<Arc<AdminState>>) -> (StatusCode, &'static str) {
    if state.ready.load(Ordering::Relaxed) {
        (StatusCode::OK, "ready\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "draining\n")
    }
}
