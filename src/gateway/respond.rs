//! The one place that writes an error to a browser.

use bytes::{Bytes, BytesMut};
use http::header::{
    ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, DATE, RETRY_AFTER, TRANSFER_ENCODING,
    UPGRADE,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use serde_json::json;
use time::OffsetDateTime;
use time::macros::format_description;

use crate::clock::Clock;
use crate::gateway::body::may_have_body;
use crate::gateway::head;
use crate::gateway::upstream::DialError;
use crate::policy::{self, Chain, Exchange, LocalResponse, Phase, ResponseHead, Stop, Watch};
use crate::rejection::{Blame, Code, Rejection};
use crate::session::Control;

/// The header that names a request in the gateway's own answers, as the log does.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Turns a rejection into an answer, and tells the operator what the browser is not told.
pub(crate) fn reject(rejection: Rejection, exchange: &mut Exchange) -> LocalResponse {
    let code = &rejection.code;
    let (request, cause) = (exchange.id.as_str(), rejection.cause());
    match code.blame() {
        Blame::Client
            if code.as_str() == Code::FunctionUnknown.as_str() && !policy::names_function(exchange) =>
        {
            let function = exchange.function.as_deref().unwrap_or_default();
            tracing::warn!(request, function, %cause, "The upstream knows no such function, and no browser has chosen it: is it deployed, and is `upstream.function_id` right?");
        }
        Blame::Client => tracing::debug!(request, code = code.as_str(), %cause, "A request was refused."),
        Blame::Plugin | Blame::Upstream => {
            tracing::warn!(request, code = code.as_str(), %cause, "A request failed.")
        }
        Blame::Gateway => tracing::error!(request, code = code.as_str(), %cause, "A request failed."),
    }
    exchange.code = Some(code.as_str().to_owned());
    let status = code.status();
    let body = json!({
        "title": status.canonical_reason().unwrap_or("Error"),
        "status": status.as_u16(),
        "code": code.as_str(),
        "detail": code.message(),
        "request_id": request,
    });
    let mut headers = *rejection.headers;
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Ok(id) = HeaderValue::from_str(request) {
        headers.insert(REQUEST_ID, id);
    }
    if status == StatusCode::SERVICE_UNAVAILABLE && !headers.contains_key(RETRY_AFTER) {
        headers.insert(RETRY_AFTER, HeaderValue::from_static("2"));
    }
    if status == StatusCode::METHOD_NOT_ALLOWED {
        headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"));
    }
    LocalResponse { status, headers, body: Bytes::from(format!("{body:#}\n")) }
}

/// Lets the plugins of a route add to a response that is made here, CORS above all.
///
/// A plugin that fails on the way does not get to hide the answer behind its own failure: an error is sent as it is,
/// anything else becomes an error.
pub(crate) fn dress<W: Watch>(
    mut response: LocalResponse,
    chain: Option<&Chain>,
    exchange: &mut Exchange,
    watch: &W,
) -> LocalResponse {
    exchange.response =
        ResponseHead { status: response.status, headers: std::mem::take(&mut response.headers) };
    let stop = chain.map_or(Ok(()), |it| it.run_now(Phase::ResponseHeaders, exchange, watch));
    response.headers = match chain {
        Some(chain) if chain.has(Phase::Log) => exchange.response.headers.clone(),
        _ => std::mem::take(&mut exchange.response.headers),
    };
    match stop {
        Err(Stop::Reject(rejection))
            if !response.status.is_client_error() && !response.status.is_server_error() =>
        {
            let response = reject(rejection, exchange);
            exchange.response.status = response.status;
            response
        }
        _ => response,
    }
}

/// A response as it goes over an HTTP/1 connection. How it is framed is said here, whatever its headers say.
pub(crate) fn encode(response: &LocalResponse, method: &Method, keep_alive: bool, clock: &Clock) -> BytesMut {
    let LocalResponse { status, headers, body } = response;
    let mut headers = headers.clone();
    for name in [TRANSFER_ENCODING, CONTENT_LENGTH, UPGRADE] {
        headers.remove(name);
    }
    let body = if *status == StatusCode::RESET_CONTENT { &[] } else { &body[..] }; // RFC 9110 section 15.3.6
    let has_body = may_have_body(*status);
    if has_body {
        headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
    }
    headers.insert(CONNECTION, HeaderValue::from_static(if keep_alive { "keep-alive" } else { "close" }));
    stamp(&mut headers, clock);
    let mut bytes = head::write_response(*status, &headers);
    if has_body && method != Method::HEAD {
        bytes.extend_from_slice(body);
    }
    bytes
}

/// Sets `Date` (RFC 9110 section 6.6.1).
pub(crate) fn stamp(headers: &mut HeaderMap, clock: &Clock) {
    let format = format_description!(
        "[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT"
    );
    if let Ok(date) = OffsetDateTime::from(clock.wall()).format(format)
        && let Ok(date) = HeaderValue::from_str(&date)
    {
        headers.insert(DATE, date);
    }
}

/// A Close frame that says what a status and a body would have said.
pub(crate) fn close(rejection: &Rejection) -> Control {
    let reason = format!("{}: {}", rejection.code.as_str(), rejection.code.message());
    Control::close(close_code(rejection), &reason)
}

/// The code of such a frame (NVIDIA's client shows a text for each).
fn close_code(rejection: &Rejection) -> u16 {
    match &rejection.code {
        Code::UpstreamNoWorker | Code::UpstreamTimeout | Code::UpstreamConnectTimeout => 3008,
        Code::FunctionUnknown => 3004,
        Code::SessionTaken => 3005,
        code if code.blame() == Blame::Upstream => 3001,
        code => match code.status() {
            StatusCode::UNAUTHORIZED => 3000,
            StatusCode::FORBIDDEN => 3003,
            StatusCode::NOT_FOUND => 3004,
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => 1013,
            status if status.is_client_error() => 1008,
            _ => 1011,
        },
    }
}

/// What an upstream connection that came to nothing means for the browser.
pub(crate) fn rescue_dial(error: &DialError) -> Rejection {
    let code = match error {
        DialError::Resolve(_) | DialError::Connect(_) => Code::UpstreamUnreachable,
        DialError::Full => Code::SessionsFull,
        DialError::ConnectTimeout => Code::UpstreamConnectTimeout,
        DialError::Tls(_) => Code::UpstreamTls,
        DialError::Timeout => Code::UpstreamTimeout,
        DialError::Closed(_) => Code::UpstreamClosed,
        DialError::Garbage(_) => Code::UpstreamGarbage,
        DialError::Refused { status, .. } => match status.as_u16() {
            404 => Code::FunctionUnknown,
            504 => Code::UpstreamNoWorker,
            401 | 403 => Code::UpstreamKey, // ours, not the browser's
            429 | 503 => Code::UpstreamLimit,
            _ => Code::UpstreamRefused,
        },
    };
    Rejection::because(code, error.to_string())
}
