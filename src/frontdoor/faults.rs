//! Faults on demand: what NVCF and the network before it do wrong at times, to see what a gateway makes of it (F16, F17,
//! F30). An extension of the stand-in.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Map, Value, json};
use tokio::sync::{broadcast, watch};

use crate::config::duration;
use crate::frontdoor::Shared;
use crate::frontdoor::functions::object;
use crate::frontdoor::problem::{ApiError, Named, Whole};

/// What goes wrong at present, and who is told when something goes wrong once.
pub(crate) struct Faults {
    state: watch::Sender<Present>,
    cuts: broadcast::Sender<Cut>,
}

/// What goes wrong until it is switched off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Present {
    /// A session of less than this age is not known when its browser comes back (F16).
    pub(crate) registration_delay: Duration,
    /// Workers are dead and still registered: whoever comes back waits for one in vain (F17).
    pub(crate) dead_workers: bool,
    /// What passes in a WebSocket is late by this.
    pub(crate) delay: Duration,
    /// Nothing passes in a WebSocket, and nobody is told.
    pub(crate) half_open: bool,
}

/// What happens to all WebSockets at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// FIN, without a Close frame.
    Drop,
    /// RST.
    Reset,
}

impl Faults {
    pub(crate) fn none() -> Self {
        Faults { state: watch::Sender::default(), cuts: broadcast::Sender::new(1) }
    }

    /// What goes wrong now.
    pub(crate) fn now(&self) -> Present {
        *self.state.borrow()
    }

    /// The same as it changes.
    pub(crate) fn watch(&self) -> watch::Receiver<Present> {
        self.state.subscribe()
    }

    /// Hears of cuts from now on.
    pub(crate) fn cuts(&self) -> broadcast::Receiver<Cut> {
        self.cuts.subscribe()
    }
}

pub(crate) fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/v2/nvcf/faults", get(show).put(set))
        .route("/v2/nvcf/faults/{cut}", post(cut))
        .with_state(shared)
}

async fn show(State(shared): State<Arc<Shared>>) -> Json<Value> {
    Json(to_json(shared.faults.now()))
}

/// Replaces what goes wrong; what is not named is well.
async fn set(State(shared): State<Arc<Shared>>, Whole(body): Whole) -> Result<Json<Value>, ApiError> {
    let state = parse(&object(&body)?)?;
    shared.faults.state.send_replace(state);
    tracing::info!(?state, "Faults were set.");
    Ok(Json(to_json(state)))
}

async fn cut(State(shared): State<Arc<Shared>>, Named(cut): Named<String>) -> Result<StatusCode, ApiError> {
    let (kind, forgets) = match cut.as_str() {
        "drop" => (Cut::Drop, false),
        "reset" => (Cut::Reset, false),
        "restart" => (Cut::Reset, true),
        _ => return Err(ApiError::new(StatusCode::NOT_FOUND, "expected drop, reset or restart")),
    };
    drop(shared.faults.cuts.send(kind)); // nobody listens when there is no WebSocket
    if forgets {
        shared.sessions.forget();
    }
    Ok(StatusCode::NO_CONTENT)
}

fn parse(body: &Map<String, Value>) -> Result<Present, ApiError> {
    let mut state = Present::default();
    let mut wrong = Vec::new();
    for (key, value) in body {
        let time = || value.as_str().and_then(|it| duration(it).ok());
        let switch = || value.as_bool();
        let is_right = match key.as_str() {
            "registrationDelay" => time().map(|it| state.registration_delay = it).is_some(),
            "deadWorkers" => switch().map(|it| state.dead_workers = it).is_some(),
            "delay" => time().map(|it| state.delay = it).is_some(),
            "halfOpen" => switch().map(|it| state.half_open = it).is_some(),
            _ => {
                wrong.push(format!("{key}: there are registrationDelay, deadWorkers, delay and halfOpen"));
                continue;
            }
        };
        if !is_right {
            let expected = if key.ends_with("elay") { "a duration such as \"2s\"" } else { "true or false" };
            wrong.push(format!("{key}: expected {expected}"));
        }
    }
    if wrong.is_empty() { Ok(state) } else { Err(ApiError::bad(wrong.join("; "))) }
}

fn to_json(state: Present) -> Value {
    let Present { registration_delay, dead_workers, delay, half_open } = state;
    let time = |it: Duration| format!("{}ms", it.as_millis());
    json!({
        "registrationDelay": time(registration_delay),
        "deadWorkers": dead_workers,
        "delay": time(delay),
        "halfOpen": half_open,
    })
}
