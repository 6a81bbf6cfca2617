//! Why a request was not served: a code for machines, a sentence for the browser, a cause for the operator.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use http::{HeaderMap, StatusCode};

/// Why a request was not served.
#[derive(Debug)]
pub struct Rejection {
    /// What happened: stable and documented; the `code` label of `streamgate_rejections_total`.
    pub code: Code,
    /// For the log only. Never reaches the client.
    pub detail: Option<Box<dyn std::error::Error + Send + Sync>>,
    /// Headers that belong to the answer, such as `WWW-Authenticate`.
    pub headers: Box<HeaderMap>,
}

/// Whose doing it was. It decides how loud the log is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// The browser's.
    Client,
    /// A plugin's.
    Plugin,
    /// What lies behind the gateway.
    Upstream,
    /// Ours.
    Gateway,
}

/// A code that a plugin declares in its schema.
#[derive(Debug, PartialEq, Eq)]
pub struct Declared {
    /// `area.what`.
    pub name: String,
    /// The status it is answered with.
    pub status: StatusCode,
    /// The sentence for the client.
    pub message: String,
}

macro_rules! codes {
    ($( $variant:ident $name:literal $status:literal $blame:ident $message:literal; )*) => {
        /// What happened.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub enum Code {
            $( #[doc = $message] $variant, )*
            /// A code that a plugin declares.
            Declared(Arc<Declared>),
        }

        impl Code {
            /// All codes of the gateway itself.
            pub const ALL: &'static [Code] = &[$( Code::$variant, )*];

            /// The stable name, `area.what`.
            pub fn as_str(&self) -> &str {
                match self {
                    $( Code::$variant => $name, )*
                    Code::Declared(it) => &it.name,
                }
            }

            /// The HTTP status it is answered with.
            pub fn status(&self) -> StatusCode {
                match self {
                    $( Code::$variant => const { match StatusCode::from_u16($status) { Ok(it) => it, Err(_) => panic!("a status") } }, )*
                    Code::Declared(it) => it.status,
                }
            }

            /// The sentence for the client.
            pub fn message(&self) -> &str {
                match self {
                    $( Code::$variant => $message, )*
                    Code::Declared(it) => &it.message,
                }
            }

            /// Whose doing it was.
            pub fn blame(&self) -> Blame {
                match self {
                    $( Code::$variant => Blame::$blame, )*
                    Code::Declared(_) => Blame::Client,
                }
            }
        }
    };
}

codes! {
    Malformed "request.malformed" 400 Client "The request is not valid HTTP.";
    HostInvalid "request.host_invalid" 400 Client "The request needs exactly one valid Host header.";
    BodyFraming "request.body_framing" 400 Client "The length of the request body is contradictory or unclear.";
    MethodNotAllowed "request.method_not_allowed" 405 Client "This method is not served here.";
    HeadTimeout "request.head_timeout" 408 Client "The request did not arrive in time.";
    UriTooLong "request.uri_too_long" 414 Client "The request target is too long.";
    HeadTooLarge "request.head_too_large" 431 Client "The request head is too large.";
    TooManyHeaders "request.too_many_headers" 431 Client "The request has too many headers.";
    VersionUnsupported "request.version_unsupported" 505 Client "Only HTTP/1.1 and HTTP/1.0 are served here.";

    WebSocketMethod "websocket.method" 400 Client "A WebSocket is opened with GET.";
    WebSocketVersion "websocket.version" 400 Client "A WebSocket needs Sec-WebSocket-Version: 13.";
    WebSocketKey "websocket.key" 400 Client "A WebSocket needs one Sec-WebSocket-Key with 16 bytes in base64.";
    WebSocketConnection "websocket.connection" 400 Client "A WebSocket needs the headers Connection: Upgrade and Upgrade: websocket on HTTP/1.1.";
    WebSocketBody "websocket.body" 400 Client "A WebSocket handshake has no body.";
    SubprotocolMalformed "websocket.subprotocol_malformed" 400 Client "Sec-WebSocket-Protocol is not a list of distinct tokens.";
    SubprotocolMissing "websocket.subprotocol_missing" 400 Client "Every entry of Sec-WebSocket-Protocol carries a credential or an id, so none can be answered. Offer one more that does not, for example streamgate.v1.";
    OriginRefused "origin.refused" 403 Client "Pages of this origin may not open a WebSocket here.";

    AuthMissing "auth.missing_token" 401 Client "This endpoint needs a bearer token.";
    AuthUnknown "auth.unknown_token" 401 Client "The bearer token is not known here.";
    AuthExpired "auth.expired_token" 401 Client "The bearer token is not good any more.";
    AuthForbidden "auth.forbidden" 403 Client "You may not do this.";
    FunctionAmbiguous "function.ambiguous" 400 Client "The request names more than one function.";
    FunctionForbidden "function.forbidden" 403 Client "You may not use this function.";
    FunctionUnknown "function.unknown" 404 Client "There is no such function.";
    RouteNone "route.none" 404 Client "Nothing is served at this path.";

    SessionUnknown "session.unknown" 404 Client "You have no session here.";
    SessionTaken "session.taken" 409 Client "Another browser is attached to this session.";
    SessionsFull "sessions.full" 503 Gateway "The gateway is full. Try again in a moment.";
    Draining "gateway.draining" 503 Gateway "The gateway is restarting. Try again in a moment.";
    Internal "gateway.internal" 500 Gateway "The gateway could not handle this request.";
    PluginFailed "plugin.failed" 500 Plugin "The gateway could not handle this request.";

    UpstreamUnreachable "upstream.unreachable" 502 Upstream "The streaming service cannot be reached.";
    UpstreamConnectTimeout "upstream.connect_timeout" 504 Upstream "The streaming service cannot be reached in time.";
    UpstreamTls "upstream.tls" 502 Upstream "A secure connection to the streaming service cannot be made.";
    UpstreamTimeout "upstream.timeout" 504 Upstream "The streaming service did not answer in time.";
    UpstreamClosed "upstream.closed" 502 Upstream "The streaming service closed the connection before it answered.";
    UpstreamGarbage "upstream.garbage" 502 Upstream "The streaming service gave an answer that makes no sense.";
    UpstreamNoWorker "upstream.no_worker" 504 Upstream "The function has no free worker at the moment.";
    UpstreamKey "upstream.key_refused" 502 Upstream "The streaming service refused the gateway's key.";
    UpstreamLimit "upstream.limit" 502 Upstream "The streaming service is at its limit. Try again in a moment.";
    UpstreamRefused "upstream.refused" 502 Upstream "The streaming service refused the session.";
}

impl Code {
    /// The code a plugin names: one of the gateway's own, found by its stable name.
    pub fn find(name: &str) -> Option<&'static Code> {
        Code::ALL.iter().find(|it| it.as_str() == name)
    }
}

impl Rejection {
    /// A rejection whose code says all.
    pub fn new(code: Code) -> Self {
        Rejection { code, detail: None, headers: Box::default() }
    }

    /// A rejection with its cause, for the log.
    pub fn because(code: Code, detail: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Rejection { code, detail: Some(detail.into()), headers: Box::default() }
    }

    /// The cause as the log shows it.
    pub fn cause(&self) -> Cow<'_, str> {
        match &self.detail {
            Some(detail) => Cow::Owned(detail.to_string()),
            None => Cow::Borrowed(self.code.message()),
        }
    }
}

impl From<Code> for Rejection {
    fn from(code: Code) -> Self {
        Rejection::new(code)
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code.as_str(), self.cause())
    }
}

/// `docs/reference/errors.md`.
pub(crate) fn reference() -> String {
    let mut page = String::from(
        "# Error codes\n\n\
         <!-- Written by `make docs` from src/rejection.rs; do not edit. -->\n\n\
         A request that the gateway does not serve is answered with a status and a body of the type `application/problem+json` (RFC 9457):\n\n\
         ```json\n{\n  \"title\": \"Unauthorized\",\n  \"status\": 401,\n  \"code\": \"auth.missing_token\",\n  \"detail\": \"This endpoint needs a bearer token.\",\n  \"request_id\": \"5e2b1c7d9f0a4c36b8d2e4f60718293a\"\n}\n```\n\n\
         `code` is stable and is the `code` label of `streamgate_rejections_total`; the log has the cause under the same `request_id`.\n\
         A plugin may declare codes of its own in its schema.\n\n\
         | code | status | blame | what the client reads |\n|---|---|---|---|\n",
    );
    for code in Code::ALL {
        let blame = format!("{:?}", code.blame()).to_lowercase();
        page +=
            &format!("| `{}` | {} | {blame} | {} |\n", code.as_str(), code.status().as_u16(), code.message());
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_distinct_and_its_message_is_for_outsiders() {
        let mut names: Vec<&str> = Code::ALL.iter().map(Code::as_str).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Code::ALL.len());
        for code in Code::ALL {
            assert!(code.status().is_client_error() || code.status().is_server_error(), "{}", code.as_str());
            for inner in ["plugin", "lua", "nvcf", "worker thread", "panic", "config"] {
                assert!(!code.message().to_lowercase().contains(inner), "{}", code.message());
            }
        }
    }

    #[test]
    fn the_reference_page_is_fresh() {
        assert_eq!(include_str!("../docs/reference/errors.md"), reference(), "run `make docs`");
    }
}
