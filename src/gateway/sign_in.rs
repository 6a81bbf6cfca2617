//! What a browser asks about its session over plain HTTP: `HEAD …/sign_in`, can it be resumed; `DELETE …/sign_in`, end it.
//! And what an operator does with sessions.

use std::rc::Rc;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use http::header::CACHE_CONTROL;
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use tokio::sync::watch;

use crate::config::ResumeMode;
use crate::gateway::admit::{self, Earlier, Seat};
use crate::gateway::cookie::Ticket;
use crate::gateway::directory::{Found, SessionId};
use crate::gateway::upstream::DialError;
use crate::gateway::worker::Worker;
use crate::gateway::{Shared, respond};
use crate::lua::RouteChain;
use crate::policy::{Exchange, Function, LocalResponse, Stop};
use crate::rejection::{Code, Rejection};
use crate::session;
use crate::telemetry::Sessions;

/// Whether a request is about a session.
pub(crate) fn is_meant(exchange: &Exchange, route: &RouteChain) -> bool {
    matches!(exchange.method, Method::HEAD | Method::DELETE)
        && exchange.path.ends_with(admit::SIGN_IN)
        && route.resume.mode != ResumeMode::Off
}

/// Answers it, once the policies have let it through. Somebody else's session is none.
pub(crate) async fn answer(
    worker: &Rc<Worker>,
    exchange: &mut Exchange,
    route: &RouteChain,
) -> LocalResponse {
    match about(worker, exchange, route).await {
        Ok(response) => response,
        Err(Stop::Respond(response)) => *response,
        Err(Stop::Reject(rejection)) => respond::reject(worker.rejected(rejection), exchange),
    }
}

async fn about(
    worker: &Rc<Worker>,
    exchange: &mut Exchange,
    route: &RouteChain,
) -> Result<LocalResponse, Stop> {
    let shared = &worker.shared;
    let function = admit::admit(worker, &route.chain, exchange).await?;
    exchange.function = Some(function.id.clone());
    let ticket = admit::ticket(shared, &route.resume, exchange, &function);
    let mut seat = Seat::of(exchange, &route.resume, &function, ticket.as_ref(), shared.clock.unix());
    let Earlier { found, ticket, other, is_replayed } = Earlier::seek(&shared.directory, &seat, ticket).await;
    let request = match (&found, &ticket) {
        (Some(found), _) if !is_replayed => {
            (seat.generation, seat.began) = (found.generation(), found.about().began);
            found.about().request.to_string()
        }
        (None, Some(ticket)) => {
            let Ticket { session, generation, began, .. } = *ticket;
            seat = Seat { session, generation, began, is_new: false };
            ticket.request.clone()
        }
        _ => {
            if let (true, Some(found)) = (is_replayed, &found) {
                shared.metrics.resume(found.kind(), "replayed");
            }
            return Err(Stop::Reject(Code::SessionUnknown.into()));
        }
    };
    let mut headers = HeaderMap::new();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if exchange.method == Method::HEAD {
        if found.is_none() && other.is_none() && request.is_empty() {
            return Err(Stop::Reject(Code::SessionUnknown.into()));
        }
        admit::give_cookie(shared, exchange, &function, &seat, &request, &mut headers);
        return Ok(LocalResponse { status: StatusCode::OK, headers, body: Bytes::new() });
    }
    for found in found.into_iter().chain(other) {
        found.make_way(session::Stop::Asked, &shared.clock).await;
    }
    end(shared, &function, &request).await.map_err(Stop::Reject)?;
    admit::take_cookie(shared, exchange, &mut headers);
    Ok(LocalResponse { status: StatusCode::NO_CONTENT, headers, body: Bytes::new() })
}

/// The sessions of a gateway, for its operator.
pub(crate) struct Operated(pub(crate) watch::Receiver<Arc<Shared>>);

#[async_trait]
impl Sessions for Operated {
    fn list(&self) -> Vec<serde_json::Value> {
        self.0.borrow().directory.describe()
    }

    async fn end(&self, id: &str) -> bool {
        let shared = Arc::clone(&self.0.borrow());
        let Some(id) = SessionId::parse(id) else { return false };
        let Some(found) = shared.directory.seek(id).await else { return false };
        let has_ended = match &found {
            Found::Here(entry) => {
                drop(entry.stop(session::Stop::Asked));
                true
            }
            Found::There(there) => there.make_way(session::Stop::Asked).await,
        };
        let function = shared.functions.with_version(&found.about().identity.function);
        let request = found.about().request.to_string();
        // Nobody waits for NVCF: the session is over here, whatever it says.
        tokio::spawn(async move {
            if let Err(rejection) = end(&shared, &function, &request).await {
                tracing::warn!(cause = %rejection.cause(), "NVCF could not be told that a session was ended.");
            }
        });
        has_ended
    }
}

/// Tells NVCF that the session to which it gave this name is over. One that it does not know is over already.
async fn end(shared: &Shared, function: &Function, request: &str) -> Result<(), Rejection> {
    if request.is_empty() {
        return Ok(());
    }
    let mut headers = HeaderMap::new();
    admit::sign(shared, None, &mut headers, function, None)?;
    headers.insert("x-nvcf-absorb", HeaderValue::from_static("true"));
    headers.insert("content-length", HeaderValue::from_static("0"));
    headers.insert("connection", HeaderValue::from_static("close"));
    if let Ok(cookie) = HeaderValue::from_str(&format!("{}={request}", admit::NVCF_COOKIE)) {
        headers.insert(http::header::COOKIE, cookie);
    }
    match shared.dialer.ask(&Method::DELETE, admit::SIGN_IN, &headers).await {
        Ok(answer) if answer.status.is_success() => Ok(()),
        Ok(answer) => match answer.refused(&shared.clock).await {
            DialError::Refused { status, .. } if status == StatusCode::NOT_FOUND => Ok(()),
            error => Err(respond::rescue_dial(&error)),
        },
        Err(error) => Err(respond::rescue_dial(&error)),
    }
}
