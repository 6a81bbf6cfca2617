//! One request and its response, as plugins see them.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use http::{HeaderMap, Method, StatusCode};

use crate::policy::{Message, Offer, Principal, passed_on};

/// One request and its response: what the browser said, what was found out, what goes upstream, what comes back.
#[derive(Clone, Debug)]
pub struct Exchange {
    /// Identifies the request in logs and error bodies.
    pub id: String,
    /// The browser's address.
    pub client: SocketAddr,
    /// Whether the browser's connection is encrypted.
    pub tls: bool,
    /// Whether the request opens a WebSocket.
    pub websocket: bool,
    /// The method.
    pub method: Method,
    /// The path as it was sent, without the query.
    pub path: String,
    /// The query as it was sent, without the question mark.
    pub query: Option<String>,
    /// The browser's headers. Plugins read them and never change them.
    pub headers: HeaderMap,
    /// What the browser offered in `Sec-WebSocket-Protocol`.
    pub offer: Offer,
    /// The pattern of the route.
    pub route: String,
    /// Who is asking, once a plugin has found out.
    pub principal: Option<Principal>,
    /// The function that a plugin chose, before the browser's own choice.
    pub function: Option<String>,
    /// The version of that function.
    pub version: Option<String>,
    /// What plugins tell each other.
    pub vars: Vec<(String, serde_json::Value)>,
    /// The headers that go upstream, from `upstream_request` on.
    pub upstream: HeaderMap,
    /// Whether a name among them has an underscore, which some servers read as a dash.
    pub has_aliases: bool,
    /// The response, from `response_headers` on.
    pub response: ResponseHead,
    /// The code of the rejection, when the request was not served.
    pub code: Option<String>,
    /// The session, in the phases of one; only its id from `upstream_request` on.
    pub session: SessionFacts,
    /// The message, in `session_message`.
    pub message: Option<Message>,
    /// In the phases of a session: the conditions of the chain that its request did not meet, as they were written.
    pub unmet: Option<Vec<String>>,
}

/// What plugins are told about a session.
#[derive(Clone, Debug, Default)]
pub struct SessionFacts {
    /// A name of it that lets nobody in, and that stays when its browser comes back.
    pub id: Option<String>,
    /// How long it has been open.
    pub age: Duration,
    /// Why it was parked or has ended, or how its browser came back; empty otherwise.
    pub cause: &'static str,
    /// Bytes from the browser.
    pub received: u64,
    /// Bytes to the browser.
    pub sent: u64,
}

/// A response head on its way to the browser.
#[derive(Clone, Debug, Default)]
pub struct ResponseHead {
    /// The status; zero before there is a response.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
}

impl Default for Exchange {
    /// An empty request from nowhere: for a request too broken to be read, and for the moment in which a script holds
    /// the real one.
    fn default() -> Self {
        Exchange {
            id: String::new(),
            client: SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0),
            tls: false,
            websocket: false,
            method: Method::GET,
            path: String::new(),
            query: None,
            headers: HeaderMap::new(),
            offer: Offer::default(),
            route: String::new(),
            principal: None,
            function: None,
            version: None,
            vars: Vec::new(),
            upstream: HeaderMap::new(),
            has_aliases: false,
            response: ResponseHead::default(),
            code: None,
            session: SessionFacts::default(),
            message: None,
            unmet: None,
        }
    }
}

impl Exchange {
    /// Begins the request that goes upstream: with what the browser may say there.
    pub(crate) fn begin_upstream(&mut self) {
        self.upstream = passed_on(&self.headers);
        self.has_aliases = self.upstream.keys().any(|it| it.as_str().contains('_'));
    }

    /// The principal's id; `-` when nobody was authenticated.
    pub fn principal_id(&self) -> &str {
        self.principal.as_ref().map_or("-", |it| it.id.as_str())
    }

    /// A variable that a plugin set.
    pub fn var(&self, name: &str) -> Option<&serde_json::Value> {
        self.vars.iter().find(|(key, _)| key == name).map(|(_, value)| value)
    }

    /// Sets a variable for the plugins that come later.
    pub fn set_var(&mut self, name: &str, value: serde_json::Value) {
        match self.vars.iter_mut().find(|(key, _)| key == name) {
            Some((_, old)) => *old = value,
            None => self.vars.push((name.to_owned(), value)),
        }
    }

    /// The value of one cookie of the browser; one that is not UTF-8 is none.
    pub fn cookie(&self, name: &str) -> Option<&str> {
        let lines = self.headers.get_all(http::header::COOKIE).iter();
        // One of another application may have bytes of any kind, and hides none of the others.
        lines
            .flat_map(|it| it.as_bytes().split(|it| *it == b';'))
            .filter_map(|it| str::from_utf8(it.trim_ascii()).ok()?.split_once('='))
            .find(|(key, _)| *key == name)
            .map(|(_, value)| value)
    }

    /// The first value of a parameter of the query, without its escapes.
    pub fn parameter(&self, name: &str) -> Option<String> {
        let pairs = url::form_urlencoded::parse(self.query.as_deref().unwrap_or_default().as_bytes());
        pairs.into_iter().find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
    }

    /// Whether this is a CORS preflight, which a browser sends without credentials (Fetch, 3.2.2).
    pub fn is_preflight(&self) -> bool {
        self.method == Method::OPTIONS
            && self.headers.contains_key(http::header::ORIGIN)
            && self.headers.contains_key(http::header::ACCESS_CONTROL_REQUEST_METHOD)
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use http::header::COOKIE;

    use super::*;

    #[test]
    fn a_cookie_of_another_application_hides_none() {
        let mut exchange = Exchange::default();
        let lines: [&[u8]; 3] =
            [b"name=Zo\xc3\xab; own=1;  next = 2 ;empty=", b"broken=\xff; own=3; last=4", b"="];
        for line in lines {
            exchange.headers.append(COOKIE, HeaderValue::from_bytes(line).expect("a value"));
        }
        assert_eq!(exchange.cookie("own"), Some("1"));
        assert_eq!(exchange.cookie("name"), Some("Zo\u{eb}"));
        assert_eq!(exchange.cookie("empty"), Some(""));
        assert_eq!(exchange.cookie("last"), Some("4"));
        assert_eq!(exchange.cookie("broken"), None);
        assert_eq!(exchange.cookie("absent"), None);
    }
}
