//! The control server of the container: is it ready, and here are the STUN credentials.
//!
//! It is unauthenticated by NVCF's contract, so it belongs on a private address.

use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde_json::{Value, json};
use std::sync::atomic::Ordering;
use tokio::net::TcpListener;

use crate::streaming::Shared;
use crate::streaming::creds::{self, Creds};

pub(super) async fn run(listener: TcpListener, shared: Arc<Shared>) {
    let router = Router::new()
        .route("/v1/streaming/ready", get(ready))
        .route("/v1/streaming/startup", get(|| async { StatusCode::OK }))
        .route("/v1/streaming/creds", post(creds))
        .route("/v1/streaming/endsession", post(end_session))
        .route("/metrics", get(metrics))
        .route("/healthz", get(|| async { "ok\n" }))
        .with_state(shared);
    if let Err(error) = axum::serve(listener, router).await {
        tracing::error!(%error, "The control server stopped.");
    }
}

/// 200 while the container serves sessions, the present one included; 500 from the moment no further one will be.
async fn ready(State(shared): State<Arc<Shared>>) -> (StatusCode, Json<Value>) {
    let n_sessions = shared.n_sessions.load(Ordering::Relaxed);
    let is_ready = shared.is_ready();
    shared.metrics.streaming.ready(is_ready);
    let message = match (is_ready, n_sessions) {
        (true, 0) => "Status: Ready for connection",
        (true, n) if n == shared.n_detached.load(Ordering::Relaxed) => {
            "Status: Awaiting session resume (keep alive)"
        }
        (true, _) => "Status: Streaming session active (keep alive)",
        (false, _) if shared.is_over.load(Ordering::Relaxed) => "Streaming session ended (recycle instance)",
        (false, _) => "STUN credentials not received",
    };
    let status = if is_ready { StatusCode::OK } else { StatusCode::INTERNAL_SERVER_ERROR };
    (status, Json(json!({ "statusMessage": message })))
}

/// Whether a session waits for its browser; asked when its connection is gone. A graceful end ends it.
async fn end_session(State(shared): State<Arc<Shared>>, body: Bytes) -> Response {
    let request: EndSession = match body.is_empty() {
        true => EndSession::default(),
        false => match serde_json::from_slice(&body) {
            Ok(request) => request,
            Err(error) => {
                let message = format!("expected an object with `gracefulShutdown`: {error}");
                return (StatusCode::BAD_REQUEST, Json(json!({ "errorMessage": message }))).into_response();
            }
        },
    };
    let named = request.session_id.as_deref().map(|it| shared.named.find(it));
    if request.graceful_shutdown {
        match &named {
            Some(Some(session)) => session.end(),
            Some(None) => {} // it is over already
            None => {
                tracing::info!("The front door ends all sessions.");
                shared.ending.send_modify(|it| *it += 1);
            }
        }
    }
    let is_awaited = match named {
        _ if request.graceful_shutdown => false,
        Some(Some(_)) => true,
        // A name that is not known here may be another one than the request's that opened the session.
        Some(None) => shared.n_detached.load(Ordering::Relaxed) > 0,
        None => shared.n_sessions.load(Ordering::Relaxed) > 0,
    };
    let status = if is_awaited { "AWAITING_RESUME" } else { "COMPLETE" };
    Json(json!({ "sessionStatus": status })).into_response()
}

/// What NVCF's worker says; unknown fields are its own.
#[derive(Default, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct EndSession {
    /// NVCF's name of one session; absent: all.
    session_id: Option<String>,
    graceful_shutdown: bool,
}

/// Takes new credentials. Whatever is wrong with them, the old ones stay.
async fn creds(State(shared): State<Arc<Shared>>, headers: HeaderMap, body: Body) -> Response {
    let refuse = |status: StatusCode, message: String| {
        shared.metrics.streaming.creds("refused");
        tracing::warn!(status = status.as_u16(), message, "STUN credentials were refused.");
        (status, Json(json!({ "success": false, "errorMessage": message }))).into_response()
    };
    let kind = headers.get(header::CONTENT_TYPE).and_then(|it| it.to_str().ok()).unwrap_or_default();
    if !kind.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("application/json") {
        return refuse(StatusCode::UNSUPPORTED_MEDIA_TYPE, "expected Content-Type: application/json".into());
    }
    let body = match Limited::new(body, creds::LARGEST).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) if error.is::<LengthLimitError>() => {
            return refuse(
                StatusCode::PAYLOAD_TOO_LARGE,
                format!("expected at most {} bytes", creds::LARGEST),
            );
        }
        Err(_) => return refuse(StatusCode::BAD_REQUEST, "the body did not arrive whole".into()),
    };
    match Creds::parse(&body) {
        Ok(creds) => {
            tracing::info!(host = %creds.host, port = creds.port, "STUN credentials arrived.");
            shared.metrics.streaming.creds("accepted");
            shared.creds.send_replace(Some(creds));
            shared.metrics.streaming.ready(shared.is_ready());
            Json(json!({ "success": true, "errorMessage": null })).into_response()
        }
        Err(message) => refuse(StatusCode::BAD_REQUEST, message),
    }
}

async fn metrics(State(shared): State<Arc<Shared>>) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], shared.metrics.render()).into_response()
}
