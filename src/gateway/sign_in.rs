//! What a browser asks about its session over plain HTTP: `HEAD …/sign_in`, can it be resumed; `DELETE …/sign_in`, end it.

use std::rc::Rc;

use bytes::Bytes;
use http::header::CACHE_CONTROL;
use http::{HeaderMap, HeaderValue, Method, StatusCode};

use crate::config::ResumeMode;
use crate::gateway::admit::{self, Seat};
use crate::gateway::upstream::DialError;
use crate::gateway::worker::Worker;
use crate::gateway::{Shared, respond};
use crate::lua::RouteChain;
use crate::policy::{Exchange, LocalResponse, Stop};
use crate::rejection::Code;
use crate::session;

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
    let seat = Seat::of(exchange, &function, ticket.as_ref(), shared.clock.unix());
    let found = if seat.is_new { None } else { shared.directory.seek(seat.session).await };
    let request = match (&ticket, &found) {
        (Some(ticket), _) => ticket.request.clone(),
        (None, Some(found)) => found.about().request.to_string(),
        (None, None) => return Err(Stop::Reject(Code::SessionUnknown.into())),
    };
    let mut headers = HeaderMap::new();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if exchange.method == Method::HEAD {
        if found.is_none() && request.is_empty() {
            return Err(Stop::Reject(Code::SessionUnknown.into()));
        }
        admit::give_cookie(shared, exchange, &function, &seat, &request, &mut headers);
        return Ok(LocalResponse { status: StatusCode::OK, headers, body: Bytes::new() });
    }
    if let Some(found) = found {
        found.make_way(session::Stop::Asked, &shared.clock).await;
    }
    if !request.is_empty() {
        let mut upstream = HeaderMap::new();
        admit::sign(shared, &route.resume, &mut upstream, &function, None).map_err(Stop::Reject)?;
        end(shared, upstream, &request).await.map_err(|it| Stop::Reject(respond::rescue_dial(&it)))?;
    }
    admit::take_cookie(shared, exchange, &mut headers);
    Ok(LocalResponse { status: StatusCode::NO_CONTENT, headers, body: Bytes::new() })
}

/// Tells NVCF that a session is over. One that it does not know is over already.
async fn end(shared: &Shared, mut headers: HeaderMap, request: &str) -> Result<(), DialError> {
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
            error => Err(error),
        },
        Err(error) => Err(error),
    }
}
