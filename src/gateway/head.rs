//! The head of an HTTP/1 message: read within bounds, checked, written.
//!
//! Every request head is read here, so that a broken, huge or slow one is answered like any other rejection, and so that
//! policies judge exactly what goes upstream.

use std::mem::MaybeUninit;

use bytes::{Buf, Bytes, BytesMut};
use http::header::{CONNECTION, CONTENT_LENGTH, HOST, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::policy::{has_dot_segments, tokens};
use crate::rejection::{Code, Rejection};

/// A request head.
#[derive(Debug)]
pub(crate) struct RequestHead {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) query: Option<String>,
    /// Minor version of HTTP/1.
    pub(crate) minor: u8,
    pub(crate) headers: HeaderMap,
}

/// How a request is framed: what its connection has to know, and policies need not.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Manner {
    /// Minor version of HTTP/1.
    pub(crate) minor: u8,
    /// Whether a body follows.
    pub(crate) has_body: bool,
    /// Whether the browser wants to send another request on this connection (RFC 9112 section 9.3).
    pub(crate) keeps_alive: bool,
}

/// A response head.
#[derive(Debug)]
pub(crate) struct ResponseHead {
    pub(crate) status: StatusCode,
    /// Minor version of HTTP/1.
    pub(crate) minor: u8,
    pub(crate) headers: HeaderMap,
}

/// What a head may be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Bytes of the whole head.
    pub(crate) head: usize,
    /// Header lines.
    pub(crate) headers: usize,
}

/// Why no head was read.
#[derive(Debug)]
pub(crate) enum HeadError {
    /// The connection ended between two messages.
    Closed,
    /// The connection ended, or broke, within a head.
    Broken(std::io::Error),
    /// What came is refused.
    Refused(Rejection),
}

/// Longest request target: room for a token or two in the query.
const LONGEST_TARGET: usize = 16 << 10;

/// A tunnel, and what is answered with the request itself, which has the key by then.
const REFUSED: [&str; 3] = ["CONNECT", "TRACE", "TRACK"];

/// Header lines for which there is room on the stack: as many as are allowed by default, and in an answer.
const USUAL_LINES: usize = 128;

/// Headers that are added to those of a message without another allocation.
const FURTHER_HEADERS: usize = 8;

/// Bytes read at a time. Most heads fit.
const CHUNK: usize = 4 << 10;

/// Reads a request head from `conn`, beginning with what `buf` holds. What follows the head stays in `buf`.
pub(crate) async fn read_request<R: AsyncRead + Unpin>(
    conn: &mut R,
    buf: &mut BytesMut,
    limits: Limits,
) -> Result<RequestHead, HeadError> {
    let mut pace = Pace::default();
    loop {
        // A blank line before a request is left over from a client's last body (RFC 9112 section 2.2).
        while buf.starts_with(b"\r\n") {
            drop(buf.split_to(2));
        }
        if pace.is_due(buf, limits)
            && let Some(head) = parse_request(buf, limits).map_err(HeadError::Refused)?
        {
            return Ok(head);
        }
        read_more(conn, buf).await?;
    }
}

/// Reads a response head, beginning with what `buf` holds. What follows the head stays in `buf`.
pub(crate) async fn read_response<R: AsyncRead + Unpin>(
    conn: &mut R,
    buf: &mut BytesMut,
    limits: Limits,
) -> Result<ResponseHead, HeadError> {
    let mut heads = Heads::default();
    loop {
        if let Some(head) = heads.next(buf, limits).map_err(HeadError::Refused)? {
            return Ok(head);
        }
        read_more(conn, buf).await?;
    }
}

/// Takes response heads out of what has come.
#[derive(Default)]
pub(crate) struct Heads(Pace);

impl Heads {
    /// The next head, once it is whole. What follows it stays in `buf`.
    pub(crate) fn next(
        &mut self,
        buf: &mut BytesMut,
        limits: Limits,
    ) -> Result<Option<ResponseHead>, Rejection> {
        let head = if self.0.is_due(buf, limits) { parse_response(buf, limits)? } else { None };
        if head.is_some() {
            self.0 = Pace::default();
        }
        Ok(head)
    }
}

/// When to parse: a head that drips in byte by byte must not be parsed from its beginning for each byte.
#[derive(Default)]
struct Pace {
    /// Bytes that were there at the last parse.
    parsed: usize,
    /// Bytes in which the end of a head was looked for.
    searched: usize,
}

impl Pace {
    fn is_due(&mut self, buf: &[u8], limits: Limits) -> bool {
        let tail = &buf[self.searched.min(buf.len()).saturating_sub(3)..];
        let has_end = tail.windows(2).any(|it| it == b"\n\n") || tail.windows(3).any(|it| it == b"\n\r\n");
        self.searched = buf.len();
        // Garbage is found out early: after the first bytes, and whenever there are twice as many.
        let is_due = !buf.is_empty() && (has_end || buf.len() >= self.parsed * 2 || buf.len() >= limits.head);
        if is_due {
            self.parsed = buf.len();
        }
        is_due
    }
}

async fn read_more<R: AsyncRead + Unpin>(conn: &mut R, buf: &mut BytesMut) -> Result<(), HeadError> {
    buf.reserve(CHUNK);
    match conn.read_buf(buf).await {
        Ok(0) if buf.is_empty() => Err(HeadError::Closed),
        Ok(0) => Err(HeadError::Broken(std::io::ErrorKind::UnexpectedEof.into())),
        Ok(_) => Ok(()),
        Err(_) if buf.is_empty() => Err(HeadError::Closed),
        Err(error) => Err(HeadError::Broken(error)),
    }
}

fn parse_request(buf: &mut BytesMut, limits: Limits) -> Result<Option<RequestHead>, Rejection> {
    let mut few = [MaybeUninit::uninit(); USUAL_LINES];
    let mut many = Vec::new();
    let lines = room(&mut few, &mut many, limits.headers);
    let mut request = httparse::Request::new(&mut []);
    let len = match request.parse_with_uninit_headers(buf, lines) {
        Ok(httparse::Status::Complete(len)) if len <= limits.head => len,
        Ok(httparse::Status::Complete(_)) => return Err(too_large(buf)),
        Ok(httparse::Status::Partial) if buf.len() >= limits.head => return Err(too_large(buf)),
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => return Err(Code::TooManyHeaders.into()),
        Err(httparse::Error::Version) => return Err(Code::VersionUnsupported.into()),
        Err(error) => return Err(Rejection::because(Code::Malformed, error)),
    };
    let method = Method::from_bytes(request.method.unwrap_or_default().as_bytes())
        .map_err(|it| Rejection::because(Code::Malformed, it))?;
    let target = request.path.unwrap_or_default();
    let minor = request.version.unwrap_or_default();
    let mut headers = header_map(&buf[..len], request.headers, 0)?;
    if REFUSED.iter().any(|it| method.as_str().eq_ignore_ascii_case(it)) {
        return Err(Code::MethodNotAllowed.into());
    }
    if target.len() > LONGEST_TARGET {
        return Err(Code::UriTooLong.into());
    }
    let (path, query) = split_target(target, &method, &mut headers)?;
    buf.advance(len);
    check_host(&headers, minor)?;
    check_framing(&headers, minor)?;
    Ok(Some(RequestHead { method, path, query, minor, headers }))
}

fn parse_response(buf: &mut BytesMut, limits: Limits) -> Result<Option<ResponseHead>, Rejection> {
    let mut few = [MaybeUninit::uninit(); USUAL_LINES];
    let mut many = Vec::new();
    let lines = room(&mut few, &mut many, limits.headers);
    let mut response = httparse::Response::new(&mut []);
    let garbage = |what: String| Rejection::because(Code::UpstreamGarbage, what);
    let parser = httparse::ParserConfig::default();
    let len = match parser.parse_response_with_uninit_headers(&mut response, buf, lines) {
        Ok(httparse::Status::Complete(len)) => len,
        Ok(httparse::Status::Partial) if buf.len() >= limits.head => {
            return Err(garbage(format!("a response head of more than {} bytes", limits.head)));
        }
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(error) => return Err(garbage(format!("not an HTTP response: {error}"))),
    };
    let status =
        StatusCode::from_u16(response.code.unwrap_or_default()).map_err(|it| garbage(it.to_string()))?;
    let minor = response.version.unwrap_or_default();
    let headers = header_map(&buf[..len], response.headers, FURTHER_HEADERS)
        .map_err(|it| garbage(it.cause().into_owned()))?;
    buf.advance(len);
    Ok(Some(ResponseHead { status, minor, headers }))
}

/// Room for so many header lines: on the stack, unless they are more than usual.
fn room<'a, 'h>(
    few: &'a mut [MaybeUninit<httparse::Header<'h>>],
    many: &'a mut Vec<MaybeUninit<httparse::Header<'h>>>,
    n_lines: usize,
) -> &'a mut [MaybeUninit<httparse::Header<'h>>] {
    match few.get_mut(..n_lines) {
        Some(few) => few,
        None => {
            many.resize(n_lines, MaybeUninit::uninit());
            many
        }
    }
}

fn too_large(buf: &[u8]) -> Rejection {
    // A request line that fills the buffer is a long target, not a large head.
    let code = if buf.contains(&b'\n') { Code::HeadTooLarge } else { Code::UriTooLong };
    Rejection::because(code, format!("{} bytes without an end", buf.len()))
}

/// The header lines of a head, with room for more. Their values share one copy of the head, so that the buffer that it came
/// in can be used again.
fn header_map(head: &[u8], lines: &[httparse::Header<'_>], n_more: usize) -> Result<HeaderMap, Rejection> {
    let copy = Bytes::copy_from_slice(head);
    let base = head.as_ptr() as usize;
    let mut headers = HeaderMap::with_capacity(lines.len() + n_more);
    for httparse::Header { name, value } in lines {
        let name =
            HeaderName::from_bytes(name.as_bytes()).map_err(|it| Rejection::because(Code::Malformed, it))?;
        let value = match value.len() {
            0 => Bytes::new(),
            n => {
                let at = value.as_ptr() as usize - base;
                copy.slice(at..at + n)
            }
        };
        let value =
            HeaderValue::from_maybe_shared(value).map_err(|it| Rejection::because(Code::Malformed, it))?;
        headers.append(name, value);
    }
    Ok(headers)
}

/// The path and the query of a request target (RFC 9112 section 3.2).
fn split_target(
    target: &str,
    method: &Method,
    headers: &mut HeaderMap,
) -> Result<(String, Option<String>), Rejection> {
    let malformed = |what: &str| Rejection::because(Code::Malformed, format!("{what} in the request target"));
    let origin_form = if target.starts_with('/') {
        target
    } else if target == "*" && method == Method::OPTIONS {
        return Ok(("*".into(), None));
    } else if let Some((_, rest)) = target
        .split_once("://")
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https"))
    {
        // The absolute form names the host, whatever the header says.
        let authority = &rest[..rest.find(['/', '?']).unwrap_or(rest.len())];
        let host = HeaderValue::from_str(authority).map_err(|_| malformed("no host"))?;
        headers.insert(HOST, host);
        match &rest[authority.len()..] {
            "" => "/",
            path if path.starts_with('/') => path,
            _ => return Err(malformed("a query without a path")),
        }
    } else {
        return Err(malformed("neither a path nor a URL"));
    };
    if origin_form.contains('#') {
        return Err(malformed("a fragment"));
    }
    let (path, query) = match origin_form.split_once('?') {
        Some((path, query)) => (path, Some(query.to_owned())),
        None => (origin_form, None),
    };
    // An upstream that resolves `..` would serve a path that no route was asked about.
    if has_dot_segments(path) {
        return Err(malformed("a dot segment"));
    }
    Ok((path.to_owned(), query))
}

fn check_host(headers: &HeaderMap, minor: u8) -> Result<(), Rejection> {
    let mut hosts = headers.get_all(HOST).iter();
    match (hosts.next(), hosts.next()) {
        (None, _) if minor == 0 => Ok(()),
        (Some(host), None)
            if !host.is_empty()
                && host.as_bytes().iter().all(|it| it.is_ascii_alphanumeric() || b"-._:[]%".contains(it)) =>
        {
            Ok(())
        }
        _ => Err(Code::HostInvalid.into()),
    }
}

/// Refuses every request whose body could end in two places (RFC 9112 section 6.3).
fn check_framing(headers: &HeaderMap, minor: u8) -> Result<(), Rejection> {
    let refuse = |what: &str| Err(Rejection::because(Code::BodyFraming, what.to_owned()));
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    let length = lengths.next();
    if lengths.next().is_some() {
        return refuse("more than one Content-Length");
    }
    if let Some(length) = length
        && (length.is_empty() || length.len() > 18 || !length.as_bytes().iter().all(u8::is_ascii_digit))
    {
        return refuse("a Content-Length that is no number");
    }
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    match (codings.next(), codings.next()) {
        (None, _) => Ok(()),
        (Some(_), _) if length.is_some() => refuse("both Content-Length and Transfer-Encoding"),
        (Some(_), _) if minor == 0 => refuse("Transfer-Encoding in HTTP/1.0"),
        (Some(coding), None) if coding.as_bytes().eq_ignore_ascii_case(b"chunked") => Ok(()),
        _ => refuse("a Transfer-Encoding other than chunked"),
    }
}

impl RequestHead {
    pub(crate) fn manner(&self) -> Manner {
        let headers = &self.headers;
        Manner {
            minor: self.minor,
            has_body: headers.contains_key(TRANSFER_ENCODING)
                || headers.get(CONTENT_LENGTH).is_some_and(|it| it != "0"),
            keeps_alive: keeps_alive(self.minor, headers),
        }
    }
}

impl ResponseHead {
    /// Whether the connection may serve another request after this answer (RFC 9112 section 9.3).
    pub(crate) fn keeps_alive(&self) -> bool {
        keeps_alive(self.minor, &self.headers)
    }
}

fn keeps_alive(minor: u8, headers: &HeaderMap) -> bool {
    let says = |token| has_token(headers, &CONNECTION, token);
    !says("close") && (minor > 0 || says("keep-alive"))
}

/// Whether a list header has a token. Tokens are compared without case.
pub(crate) fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    let mut tokens = headers.get_all(name).iter().flat_map(tokens);
    tokens.any(|it| it.eq_ignore_ascii_case(token.as_bytes()))
}

/// Writes a request head.
pub(crate) fn write_request(method: &Method, target: &str, minor: u8, headers: &HeaderMap) -> BytesMut {
    let size = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum::<usize>();
    let mut head = BytesMut::with_capacity(size + target.len() + 32);
    for part in [method.as_str(), " ", target, if minor == 0 { " HTTP/1.0\r\n" } else { " HTTP/1.1\r\n" }] {
        head.extend_from_slice(part.as_bytes());
    }
    write_headers(&mut head, headers);
    head
}

/// Writes a response head.
pub(crate) fn write_response(status: StatusCode, headers: &HeaderMap) -> BytesMut {
    let mut head = BytesMut::with_capacity(512);
    let reason = status.canonical_reason().unwrap_or("Unknown");
    for part in ["HTTP/1.1 ", status.as_str(), " ", reason, "\r\n"] {
        head.extend_from_slice(part.as_bytes());
    }
    write_headers(&mut head, headers);
    head
}

fn write_headers(head: &mut BytesMut, headers: &HeaderMap) {
    for (name, value) in headers {
        head.extend_from_slice(name.as_str().as_bytes());
        head.extend_from_slice(b": ");
        head.extend_from_slice(value.as_bytes());
        head.extend_from_slice(b"\r\n");
    }
    head.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { head: 64 << 10, headers: 100 };

    fn parse(text: &str) -> Result<RequestHead, Code> {
        let mut buf = BytesMut::from(text);
        parse_request(&mut buf, LIMITS).map_err(|it| it.code).map(|it| it.expect("a whole head"))
    }

    #[test]
    fn a_target_is_a_path_and_a_query() {
        let check = |target: &str, path: &str, query: Option<&str>| {
            let head = parse(&format!("GET {target} HTTP/1.1\r\nHost: a.example\r\n\r\n")).expect(target);
            assert_eq!((head.path.as_str(), head.query.as_deref()), (path, query), "{target}");
        };
        check("/sign_in?a=b&c=%20", "/sign_in", Some("a=b&c=%20"));
        check("/", "/", None);
        check("/a?", "/a", Some(""));
        check("http://b.example/x?y", "/x", Some("y"));
        check("HTTPS://b.example", "/", None);
        check("/..a/b..", "/..a/b..", None);
        let head = parse("GET http://b.example:8/x HTTP/1.1\r\nHost: a.example\r\n\r\n").expect("valid");
        assert_eq!(head.headers[HOST], "b.example:8", "the target names the host");
        for wrong in ["*", "a", "http://", "/a#b", "/a/../b", "/a/%2E%2e/b", "/.", "/a/..", "//x/..\\y"] {
            let code = parse(&format!("GET {wrong} HTTP/1.1\r\nHost: a.example\r\n\r\n")).expect_err(wrong);
            assert!(matches!(code, Code::Malformed | Code::HostInvalid), "{wrong}: {code:?}");
        }
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        let check = |headers: &str, code: Code| {
            assert_eq!(
                parse(&format!("POST / HTTP/1.1\r\nHost: a\r\n{headers}\r\n")).expect_err(headers),
                code,
                "{headers}"
            );
        };
        check("Content-Length: 1\r\nContent-Length: 1\r\n", Code::BodyFraming);
        check("Content-Length: 1, 1\r\n", Code::BodyFraming);
        check("Content-Length: +1\r\n", Code::BodyFraming);
        check("Content-Length: 99999999999999999999\r\n", Code::BodyFraming);
        check("Content-Length: 1\r\nTransfer-Encoding: chunked\r\n", Code::BodyFraming);
        check("Transfer-Encoding: gzip, chunked\r\n", Code::BodyFraming);
        check("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", Code::BodyFraming);
        check("Host: b\r\n", Code::HostInvalid);
        check("X : y\r\n", Code::Malformed);
        check("X: a\r\n b\r\n", Code::Malformed);
        check("X: a\0b\r\n", Code::Malformed);
        assert_eq!(parse("GET / HTTP/1.1\r\n\r\n").expect_err("no host"), Code::HostInvalid);
        assert_eq!(parse("GET / HTTP/1.1\r\nHost: a b\r\n\r\n").expect_err("a bad host"), Code::HostInvalid);
        assert_eq!(
            parse("GET / HTTP/2.0\r\nHost: a\r\n\r\n").expect_err("a version"),
            Code::VersionUnsupported
        );
        assert_eq!(
            parse("CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n").expect_err("a tunnel"),
            Code::MethodNotAllowed
        );
        for method in ["TRACE", "TRACK", "trace"] {
            let code = parse(&format!("{method} / HTTP/1.1\r\nHost: a\r\n\r\n")).expect_err(method);
            assert_eq!(code, Code::MethodNotAllowed, "its answer would have the key");
        }
        assert!(parse("GET / HTTP/1.0\r\n\r\n").is_ok(), "HTTP/1.0 knows no Host");
    }

    #[test]
    fn a_connection_goes_on_as_it_says() {
        let keeps_alive = |version: &str, line: &[u8]| {
            let mut head =
                BytesMut::from(format!("GET / HTTP/{version}\r\nHost: a\r\nConnection: ").as_str());
            head.extend_from_slice(line);
            head.extend_from_slice(b"\r\n\r\n");
            parse_request(&mut head, LIMITS).expect("valid").expect("whole").manner().keeps_alive
        };
        assert!(keeps_alive("1.1", b""));
        assert!(!keeps_alive("1.1", b"x, Close"));
        assert!(!keeps_alive("1.1", b"close, \xff"), "one byte does not hide the others");
        assert!(!keeps_alive("1.0", b""));
        assert!(keeps_alive("1.0", b"Keep-Alive"));
        assert!(!keeps_alive("1.0", b"keep-alive, close"), "whoever says both means the end");
    }

    #[test]
    fn a_head_has_bounds() {
        let many: String = (0..101).map(|it| format!("x-{it}: y\r\n")).collect();
        let code = parse(&format!("GET / HTTP/1.1\r\nHost: a\r\n{many}\r\n")).expect_err("too many");
        assert_eq!(code, Code::TooManyHeaders);
        let code = parse(&format!("GET / HTTP/1.1\r\nHost: a\r\nCookie: {}", "x".repeat(64 << 10)))
            .expect_err("too large");
        assert_eq!(code, Code::HeadTooLarge);
        let code = parse(&format!("GET /{}", "x".repeat(64 << 10))).expect_err("too long");
        assert_eq!(code, Code::UriTooLong);
        let code = parse(&format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(20 << 10)))
            .expect_err("too long");
        assert_eq!(code, Code::UriTooLong);
        let cookie = "x".repeat(17 << 10);
        assert!(parse(&format!("GET / HTTP/1.1\r\nHost: a\r\nCookie: {cookie}\r\n\r\n")).is_ok());
    }

    #[test]
    fn a_head_that_is_written_reads_the_same() {
        let head =
            parse("GET /a?b HTTP/1.1\r\nHost: a\r\nX-Y: 1\r\nX-Y: 2\r\nX-Empty:\r\n\r\n").expect("valid");
        let mut written = write_request(&head.method, "/a?b", 1, &head.headers);
        let again = parse_request(&mut written, LIMITS).expect("valid").expect("whole");
        assert_eq!(again.headers, head.headers);
        assert_eq!(again.query, head.query);
    }
}
