//! `Sec-WebSocket-Protocol`: the one header that a browser can set on a WebSocket, and what it is used for.
//!
//! NVCF reads entries of the form `key.value` as if they were headers, so what a browser may not send as a header it
//! may not send as an entry either. Entries that carry a credential or an id are for the gateway alone: they are never
//! passed on and never answered.

use http::HeaderMap;
use http::header::SEC_WEBSOCKET_PROTOCOL;

use crate::rejection::Code;

/// The subprotocol that the gateway's own page speaks.
pub const OWN: &str = "streamgate.v1";

/// An offer of this entry asks for refusals as Close frames, which scripts can read.
pub const CLOSE_ON_REFUSAL: &str = "streamgate.close-on-refusal";

/// The key of an entry whose value names the browser's session: a text that it made up, and that nobody can guess.
pub const RESUME_TOKEN: &str = "streamgate-resume";

/// Most entries of one request.
const MOST: usize = 32;

/// What a browser offered, in its order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Offer(Vec<String>);

impl Offer {
    /// Reads all header lines of that name. Entries are distinct tokens (RFC 6455 section 4.1, item 10).
    pub fn parse(headers: &HeaderMap) -> Result<Self, Code> {
        let mut entries: Vec<String> = Vec::new();
        for line in headers.get_all(SEC_WEBSOCKET_PROTOCOL) {
            let line = line.to_str().map_err(|_| Code::SubprotocolMalformed)?;
            for entry in line.split(',').map(|it| it.trim_matches([' ', '\t'])) {
                if !is_token(entry) || entries.len() == MOST || entries.iter().any(|it| it == entry) {
                    return Err(Code::SubprotocolMalformed);
                }
                entries.push(entry.to_owned());
            }
        }
        Ok(Offer(entries))
    }

    /// Whether nothing was offered.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether exactly this entry was offered.
    pub fn contains(&self, entry: &str) -> bool {
        self.0.iter().any(|it| it == entry)
    }

    /// The values offered under a key: `value` of each `key.value`. Keys are compared without case.
    pub fn values<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter_map(move |it| {
            it.split_once('.').filter(|(k, _)| k.eq_ignore_ascii_case(key)).map(|(_, v)| v)
        })
    }

    /// The entries that go upstream: those without a credential or an id.
    pub fn passed_on(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str).filter(|it| is_harmless(it))
    }

    /// The entry to answer when the upstream chose `chosen`.
    ///
    /// The upstream's choice stands; where it chose none, a browser that offered something must still be told one
    /// entry, or it fails the handshake: `x-nv-sessionid.…` first, as NVIDIA's client expects, else the first one
    /// that is harmless. `Err` when there is none to tell, or when the choice was never offered.
    pub fn answer(&self, chosen: Option<&str>) -> Result<Option<&str>, Code> {
        match chosen {
            Some(chosen) => match self.passed_on().find(|it| *it == chosen) {
                Some(entry) => Ok(Some(entry)),
                None => Err(Code::UpstreamGarbage),
            },
            None if self.is_empty() => Ok(None),
            None => self
                .passed_on()
                .find(|it| it.to_ascii_lowercase().starts_with("x-nv-sessionid."))
                .or_else(|| self.passed_on().next())
                .map(Some)
                .ok_or(Code::SubprotocolMissing),
        }
    }
}

/// Whether an entry may be seen by others: it carries neither a credential nor an id that NVCF would honour.
fn is_harmless(entry: &str) -> bool {
    if entry == CLOSE_ON_REFUSAL {
        return false;
    }
    match entry.split_once('.') {
        None => true,
        Some((key, _)) => {
            let ours = ["authorization-bearer", RESUME_TOKEN];
            !is_reserved(&key.to_ascii_lowercase()) && !ours.iter().any(|it| key.eq_ignore_ascii_case(it))
        }
    }
}

/// Whether a header (or the key of a subprotocol entry) is the gateway's to say. Takes lower case.
pub(crate) fn is_reserved(name: &str) -> bool {
    matches!(name, "authorization" | "proxy-authorization" | "cookie")
        || ["nvcf-", "x-nvcf-", "function-"].iter().any(|it| name.starts_with(it))
}

/// A token (RFC 9110 section 5.6.2).
fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|it| it.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&it))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn offer(lines: &[&str]) -> Result<Offer, Code> {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_str(line).expect("a header"));
        }
        Offer::parse(&headers)
    }

    #[test]
    fn an_offer_is_a_list_of_distinct_tokens() {
        assert_eq!(offer(&["a, b", "c"]), Ok(Offer(vec!["a".into(), "b".into(), "c".into()])));
        for wrong in ["", "a,", ",a", "a b", "a, a", "a;b", "ä", "a,\u{1}b"] {
            if let Ok(value) = HeaderValue::from_bytes(wrong.as_bytes()) {
                let mut headers = HeaderMap::new();
                headers.append(SEC_WEBSOCKET_PROTOCOL, value);
                assert_eq!(Offer::parse(&headers), Err(Code::SubprotocolMalformed), "{wrong:?}");
            }
        }
        let many: Vec<String> = (0..=MOST).map(|it| format!("p{it}")).collect();
        assert_eq!(offer(&[&many.join(", ")]), Err(Code::SubprotocolMalformed));
    }

    #[test]
    fn what_nvcf_would_read_as_a_header_is_not_passed_on() {
        let check = |entry: &str, passed: bool| {
            let offer = offer(&[entry]).expect("a token");
            assert_eq!(offer.passed_on().next().is_some(), passed, "{entry}");
        };
        for smuggled in [
            "authorization.sesame",
            "Authorization.sesame",
            "authorization-bearer.t",
            "Authorization-Bearer.t",
            "function-id.f",
            "FUNCTION-ID.f",
            "nvcf-function-id.f",
            "function-version-id.v",
            "nvcf-reqid.r",
            "nvcf-request-id.r",
            "x-nvcf-absorb.true",
            "X-NVCF-Reconnect-Window-Secs.9",
            "cookie.c",
            "streamgate-resume.0123456789abcdef",
            "streamgate.close-on-refusal",
        ] {
            check(smuggled, false);
        }
        for harmless in
            ["streamgate.v1", "x-nv-sessionid.1-2-3", "chat", "function", "authorization", "v1.function-id.f"]
        {
            check(harmless, true);
        }
    }

    #[test]
    fn one_harmless_entry_is_answered() {
        let answer = |entries: &str, chosen: Option<&str>| {
            offer(&[entries]).expect("tokens").answer(chosen).map(|it| it.map(str::to_owned))
        };
        let some = |it: &str| Ok(Some(it.to_owned()));
        assert_eq!(answer("authorization-bearer.t, streamgate.v1", None), some("streamgate.v1"));
        assert_eq!(answer("a, x-nv-sessionid.7, b", None), some("x-nv-sessionid.7"));
        assert_eq!(answer("a, b", Some("b")), some("b"));
        assert_eq!(answer("a, b", Some("c")), Err(Code::UpstreamGarbage));
        assert_eq!(answer("a, authorization.t", Some("authorization.t")), Err(Code::UpstreamGarbage));
        assert_eq!(answer("authorization-bearer.t, function-id.f", None), Err(Code::SubprotocolMissing));
        assert_eq!(Offer::default().answer(None), Ok(None));
        assert_eq!(Offer::default().answer(Some("a")), Err(Code::UpstreamGarbage));
    }
}
