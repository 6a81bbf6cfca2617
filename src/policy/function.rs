//! Which function a request reaches, within what its principal may use.

use std::borrow::Cow;

use http::header::{CONNECTION, GetAll};
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::policy::Exchange;
use crate::rejection::Code;

/// The functions of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Functions {
    /// Reached when nobody chooses.
    pub default: String,
    /// The version of the default.
    pub version: Option<String>,
    /// What a browser may choose besides the default.
    pub others: Vec<String>,
}

/// A function that was chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    /// Its id.
    pub id: String,
    /// Its version; `None`: any active one.
    pub version: Option<String>,
}

impl Functions {
    /// Chooses: a plugin's word first, then the browser's entry `function-id.…` of `Sec-WebSocket-Protocol`, then
    /// the default. The principal's own list of functions, where it has one, replaces the configuration's.
    pub fn choose(&self, exchange: &Exchange) -> Result<Function, Code> {
        let asked = match &exchange.function {
            Some(id) => {
                let chosen = self.with_version(id); // a plugin is the operator's word
                return Ok(Function { version: exchange.version.clone().or(chosen.version), ..chosen });
            }
            None => asked(exchange)?,
        };
        let allowed = exchange.principal.as_ref().and_then(|it| it.functions.as_ref());
        let id = match (asked, allowed) {
            (Some(id), _) => id,
            (None, Some(allowed)) if !allowed.contains(&self.default) => match allowed.as_slice() {
                [only] => only,
                _ => return Err(Code::FunctionForbidden),
            },
            (None, _) => &self.default,
        };
        let may = match allowed {
            Some(allowed) => allowed.iter().any(|it| it == id),
            None => id == self.default || self.others.iter().any(|it| it == id),
        };
        if may { Ok(self.with_version(id)) } else { Err(Code::FunctionForbidden) }
    }

    /// A version belongs to one function; another function has none of the configuration's.
    pub(crate) fn with_version(&self, id: &str) -> Function {
        let version = if id == self.default { self.version.clone() } else { None };
        Function { id: id.to_owned(), version }
    }
}

/// Whether the browser named a function.
pub(crate) fn names_function(exchange: &Exchange) -> bool {
    named(exchange).any(|it| !it.is_empty())
}

fn named(exchange: &Exchange) -> impl Iterator<Item = &str> {
    exchange.offer.values("function-id").chain(exchange.offer.values("nvcf-function-id"))
}

/// The one function id that the browser named, if any.
fn asked(exchange: &Exchange) -> Result<Option<&str>, Code> {
    let mut ids = named(exchange);
    let first = ids.next().filter(|it| !it.is_empty());
    match (first, ids.next()) {
        (first, None) => Ok(first),
        _ => Err(Code::FunctionAmbiguous), // two ids: refuse, do not guess
    }
}

/// The headers of a request that stay when it goes upstream: neither hop-by-hop ones (RFC 9110 section 7.6.1), nor those
/// of a handshake, nor those that are the gateway's to say.
pub(crate) fn passed_on(headers: &HeaderMap) -> HeaderMap {
    let mut kept = HeaderMap::with_capacity(headers.len() + 8);
    let nominated = headers.get_all(CONNECTION);
    for (name, value) in headers {
        let text = dashed(name.as_str());
        let ours = text == "host" || text.starts_with("sec-websocket-") || super::is_reserved(&text);
        let is_alias = text == "content-length" && text != name.as_str();
        if !ours && !is_alias && !is_hop_by_hop(&text, &nominated) {
            kept.append(name.clone(), value.clone());
        }
    }
    kept
}

/// Whether servers that make variables of headers read both names as one, though they are two.
pub(crate) fn is_alias(name: &str, other: &str) -> bool {
    name != other && dashed(name) == dashed(other)
}

/// A name as servers read it that make variables of headers: an underscore is a dash to them.
fn dashed(name: &str) -> Cow<'_, str> {
    if name.contains('_') { name.replace('_', "-").into() } else { name.into() }
}

/// The headers of an answer that stay when it goes to the browser.
pub(crate) fn passed_back(mut headers: HeaderMap) -> HeaderMap {
    let nominated = headers.get_all(CONNECTION);
    let gone = headers.keys().filter(|it| is_hop_by_hop(it.as_str(), &nominated));
    for name in gone.cloned().collect::<Vec<HeaderName>>() {
        headers.remove(name);
    }
    headers
}

/// Whether a header is for this connection alone, by the standard or because `Connection` names it.
fn is_hop_by_hop(name: &str, nominated: &GetAll<'_, HeaderValue>) -> bool {
    let is_named = |line| tokens(line).any(|it| it.eq_ignore_ascii_case(name.as_bytes()));
    matches!(
        name,
        "connection"
            | "keep-alive"
            | "proxy-authenticate"
            | "proxy-connection"
            | "te"
            | "trailer"
            | "transfer-encoding"
            | "upgrade"
            | "http2-settings"
    ) || nominated.iter().any(is_named)
}

/// The tokens of a line of a list header. Bytes that belong into none hide none of the others.
pub(crate) fn tokens(line: &HeaderValue) -> impl Iterator<Item = &[u8]> {
    line.as_bytes().split(|it| *it == b',').map(<[u8]>::trim_ascii)
}

/// The headers of an upstream's 101 that stay when it is answered to the browser: the handshake is ours to answer.
pub(crate) fn passed_on_response(headers: &HeaderMap) -> HeaderMap {
    let mut kept = HeaderMap::with_capacity(headers.len() + 8);
    let nominated = headers.get_all(CONNECTION);
    for (name, value) in headers {
        let text = name.as_str();
        let ours = text == "content-length" || text.starts_with("sec-websocket-");
        if !ours && !is_hop_by_hop(text, &nominated) {
            kept.append(name.clone(), value.clone());
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use http::header::SEC_WEBSOCKET_PROTOCOL;

    use super::*;
    use crate::policy::{Offer, Principal};

    fn choose(entries: &str, principal: Option<&[&str]>, plugin: Option<&str>) -> Result<Function, Code> {
        let functions =
            Functions { default: "d".into(), version: Some("v".into()), others: vec!["o".into()] };
        let mut exchange = Exchange { function: plugin.map(str::to_owned), ..Exchange::default() };
        if !entries.is_empty() {
            let mut headers = HeaderMap::new();
            headers.append(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_str(entries).expect("a header"));
            exchange.offer = Offer::parse(&headers).expect("tokens");
        }
        exchange.principal = principal.map(|functions| Principal {
            id: "ada".into(),
            functions: Some(functions.iter().map(|it| (*it).to_owned()).collect()),
            ..Principal::default()
        });
        functions.choose(&exchange)
    }

    #[test]
    fn a_function_is_chosen_within_what_the_principal_may_use() {
        let some = |id: &str, version: Option<&str>| {
            Ok(Function { id: id.into(), version: version.map(str::to_owned) })
        };
        assert_eq!(choose("", None, None), some("d", Some("v")));
        assert_eq!(
            choose("function-id.o", None, None),
            some("o", None),
            "a version belongs to the default alone"
        );
        assert_eq!(choose("nvcf-function-id.o", None, None), some("o", None));
        assert_eq!(choose("chat, function-id.d", None, None), some("d", Some("v")));
        assert_eq!(choose("function-id.x", None, None), Err(Code::FunctionForbidden));
        assert_eq!(choose("function-id.x", Some(&["x"]), None), some("x", None));
        assert_eq!(choose("function-id.o", Some(&["x"]), None), Err(Code::FunctionForbidden));
        assert_eq!(choose("", Some(&["x"]), None), some("x", None), "its only function");
        assert_eq!(choose("", Some(&["x", "y"]), None), Err(Code::FunctionForbidden));
        assert_eq!(choose("", Some(&[]), None), Err(Code::FunctionForbidden));
        assert_eq!(choose("function-id.x", Some(&[]), Some("p")), some("p", None), "a plugin decides");
    }

    #[test]
    fn function_id_is_found_in_the_subprotocol_header() {
        let check = |entries: &str, expected: Result<Option<&str>, Code>| {
            let mut headers = HeaderMap::new();
            headers.append(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_str(entries).expect("a header"));
            let exchange = Exchange { offer: Offer::parse(&headers).expect("tokens"), ..Exchange::default() };
            assert_eq!(asked(&exchange), expected, "{entries}");
        };
        check("function-id.1f0c", Ok(Some("1f0c")));
        check("chat, Function-ID.1f0c", Ok(Some("1f0c")));
        check("function-id.", Ok(None));
        check("function-id.1f0c, function-id.2a", Err(Code::FunctionAmbiguous));
        check("function-id.1f0c, nvcf-function-id.1f0c", Err(Code::FunctionAmbiguous));
    }
}
