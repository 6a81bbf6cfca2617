//! The body of a message, piece by piece (RFC 9112 sections 6 and 7.1).

use bytes::{Buf, Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderValue, Method, StatusCode};

/// What of a body is still to come.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Body {
    /// Nothing.
    Done,
    /// So many bytes.
    Length(u64),
    /// Chunks.
    Chunks(Chunk),
    /// All that comes until the connection ends; only an answer's.
    Rest,
}

/// What comes next of a body in chunks.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Chunk {
    /// The line with its size.
    Size,
    /// So many bytes of it.
    Data(u64),
    /// The end of its line.
    End,
    /// The lines after the last one; so many bytes of them may still come.
    Trailers(usize),
}

/// A body that is no body.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Malformed(&'static str);

/// Longest line with a chunk's size, and most bytes of trailers. Neither is passed on.
const LONGEST_LINE: usize = 4 << 10;

impl Body {
    /// The body that a request's headers announce. That it can be read in one way only was checked with the head.
    pub(crate) fn of(headers: &HeaderMap) -> Body {
        if headers.contains_key(TRANSFER_ENCODING) {
            return Body::Chunks(Chunk::Size);
        }
        match headers.get(CONTENT_LENGTH).and_then(number) {
            None | Some(0) => Body::Done,
            Some(n) => Body::Length(n),
        }
    }

    /// The body of the answer to a request with this method (RFC 9112 section 6.3). An answer whose body could end in two
    /// places is none.
    pub(crate) fn of_answer(
        method: &Method,
        minor: u8,
        status: StatusCode,
        headers: &HeaderMap,
    ) -> Result<Body, Malformed> {
        if method == Method::HEAD || !may_have_body(status) {
            return Ok(Body::Done);
        }
        let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
        match (codings.next(), headers.get(CONTENT_LENGTH)) {
            (None, None) => Ok(Body::Rest),
            (None, Some(_)) => match clear_length(headers).and_then(number) {
                None => Err(Malformed("an answer without a clear length")),
                Some(0) => Ok(Body::Done),
                Some(n) => Ok(Body::Length(n)),
            },
            (Some(_), _) if minor == 0 => Err(Malformed("Transfer-Encoding in HTTP/1.0")),
            (Some(coding), None)
                if codings.next().is_none() && coding.as_bytes().eq_ignore_ascii_case(b"chunked") =>
            {
                Ok(Body::Chunks(Chunk::Size))
            }
            (Some(_), None) => Err(Malformed("a Transfer-Encoding other than chunked")),
            (Some(_), Some(_)) => Err(Malformed("both Content-Length and Transfer-Encoding")),
        }
    }

    /// Whether the end of the connection is the end of this body.
    pub(crate) fn ends_with_connection(&self) -> bool {
        *self == Body::Rest
    }

    /// Whether all of it has come.
    pub(crate) fn is_done(&self) -> bool {
        *self == Body::Done
    }

    /// Takes the next piece off the front of `buf`; `None` when more has to come first, or when all of it has.
    pub(crate) fn next(&mut self, buf: &mut BytesMut) -> Result<Option<Bytes>, Malformed> {
        loop {
            match self {
                Body::Done => return Ok(None),
                Body::Rest => return Ok((!buf.is_empty()).then(|| buf.split().freeze())),
                Body::Length(left) => {
                    let piece = take(left, buf);
                    if *left == 0 {
                        *self = Body::Done;
                    }
                    return Ok(piece);
                }
                Body::Chunks(Chunk::Size) => {
                    let Some(size) = chunk_size(buf)? else { return Ok(None) };
                    *self = Body::Chunks(match size {
                        0 => Chunk::Trailers(LONGEST_LINE),
                        size => Chunk::Data(size),
                    });
                }
                Body::Chunks(Chunk::Data(left)) => {
                    let piece = take(left, buf);
                    if *left == 0 {
                        *self = Body::Chunks(Chunk::End);
                    }
                    return Ok(piece);
                }
                Body::Chunks(Chunk::End) => {
                    if buf.len() < 2 {
                        return if b"\r\n".starts_with(buf) { Ok(None) } else { Err(UNENDED) };
                    }
                    if !buf.starts_with(b"\r\n") {
                        return Err(UNENDED);
                    }
                    buf.advance(2);
                    *self = Body::Chunks(Chunk::Size);
                }
                Body::Chunks(Chunk::Trailers(left)) => {
                    let Some(end) = buf.iter().position(|it| *it == b'\n') else {
                        return if buf.len() > *left {
                            Err(Malformed("trailers without an end"))
                        } else {
                            Ok(None)
                        };
                    };
                    let line = buf.split_to(end + 1);
                    if *line == *b"\r\n" {
                        *self = Body::Done;
                        return Ok(None);
                    }
                    if !is_line(&line, |it| it.contains(&b':')) {
                        return Err(Malformed("a trailer that is no header"));
                    }
                    *left = left.checked_sub(line.len()).ok_or(Malformed("too many trailers"))?;
                }
            }
        }
    }
}

/// The length that all lines name, where nothing else says where the body ends. Also an answer without a body can have one:
/// that of the body that it stands for.
pub(crate) fn clear_length(headers: &HeaderMap) -> Option<&HeaderValue> {
    let length = headers.get(CONTENT_LENGTH).filter(|it| number(it).is_some())?;
    let is_clear = !headers.contains_key(TRANSFER_ENCODING)
        && headers.get_all(CONTENT_LENGTH).iter().all(|it| it == length);
    is_clear.then_some(length)
}

/// A number of digits alone.
fn number(value: &HeaderValue) -> Option<u64> {
    let text = value.to_str().ok().filter(|it| it.bytes().all(|it| it.is_ascii_digit()))?;
    text.parse().ok()
}

/// Whether an answer with this status has a body (RFC 9110 section 6.4.1).
pub(crate) fn may_have_body(status: StatusCode) -> bool {
    !status.is_informational() && status != StatusCode::NO_CONTENT && status != StatusCode::NOT_MODIFIED
}

const UNENDED: Malformed = Malformed("a chunk that is longer than it says");

/// As much of `left` bytes as there is.
fn take(left: &mut u64, buf: &mut BytesMut) -> Option<Bytes> {
    let n = usize::try_from(*left).unwrap_or(usize::MAX).min(buf.len());
    *left -= n as u64;
    (n > 0).then(|| buf.split_to(n).freeze())
}

/// Takes the line with a chunk's size off the front of `buf`.
fn chunk_size(buf: &mut BytesMut) -> Result<Option<u64>, Malformed> {
    const MALFORMED: Malformed = Malformed("a chunk without a size");
    // The parser takes a line without any digit for a zero.
    if buf.first().is_some_and(|it| !it.is_ascii_hexdigit()) {
        return Err(MALFORMED);
    }
    match httparse::parse_chunk_size(buf) {
        Ok(httparse::Status::Complete((end, size))) if is_line(&buf[..end], |_| true) => {
            buf.advance(end);
            Ok(Some(size))
        }
        Ok(httparse::Status::Partial) if buf.len() <= LONGEST_LINE => Ok(None),
        Ok(_) | Err(_) => Err(MALFORMED),
    }
}

/// Whether this is one line however it is read: it ends with CRLF, and has no control character before that which others
/// could take for its end.
fn is_line(line: &[u8], is_right: impl Fn(&[u8]) -> bool) -> bool {
    line.strip_suffix(b"\r\n")
        .is_some_and(|it| it.iter().all(|it| *it == b'\t' || !it.is_ascii_control()) && is_right(it))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a body is when its bytes come in these portions, and what follows it.
    fn read(mut body: Body, portions: &[&[u8]]) -> Result<(Vec<u8>, Vec<u8>, bool), Malformed> {
        let (mut buf, mut got) = (BytesMut::new(), Vec::new());
        for portion in portions {
            buf.extend_from_slice(portion);
            while let Some(piece) = body.next(&mut buf)? {
                got.extend_from_slice(&piece);
            }
        }
        Ok((got, buf.to_vec(), body.is_done()))
    }

    #[test]
    fn a_body_is_the_same_however_its_bytes_come() {
        let chunked = b"3;why=not\r\nabc\r\n0a \r\n0123456789\r\n000\r\nX-Sum: 1\r\n\r\nGET /";
        let plain = b"abc0123456789GET /";
        for (body, bytes) in [(|| Body::Chunks(Chunk::Size), &chunked[..]), (|| Body::Length(13), &plain[..])]
            as [(fn() -> Body, &[u8]); 2]
        {
            for cut in 0..bytes.len() - 5 {
                let (a, b) = bytes.split_at(cut);
                let (got, rest, is_done) = read(body(), &[a, b]).expect("a body");
                assert_eq!(
                    (got.as_slice(), rest.as_slice(), is_done),
                    (&b"abc0123456789"[..], &b"GET /"[..], true)
                );
            }
            let each: Vec<&[u8]> = bytes[..bytes.len() - 5].chunks(1).collect();
            assert_eq!(read(body(), &each).expect("a body").0, b"abc0123456789");
        }
    }

    #[test]
    fn what_is_no_body_is_refused_wherever_it_breaks() {
        let long = [b"1;".as_slice(), &[b'x'; LONGEST_LINE]].concat();
        let trailers = [b"0\r\n".as_slice(), &b"X-Y: z\r\n".repeat(LONGEST_LINE / 8 + 1)].concat();
        for broken in [
            &b"\r\n"[..],
            b"x\r\n",
            b"-1\r\n",
            b"+1\r\n",
            b"0x1\r\n",
            b"1\nab",
            b"1 1\r\n",
            b"11111111111111111\r\n",
            b"1\r\nab\r\n",
            b"1\r\na\n",
            b"1\r\na\rb",
            b"1\r\na0\r\n\r\n",
            b"1;a\nb\r\na\r\n",
            b"1;a\0b\r\na\r\n",
            b"0\r\n\nGET / HTTP/1.1\r\n\r\n",
            b"0\r\nX-Y: z\n\r\n",
            b"0\r\nX-Y: a\rb\r\n\r\n",
            b"0\r\nno header\r\n\r\n",
            &long,
            &trailers,
        ] {
            let shown = String::from_utf8_lossy(&broken[..broken.len().min(20)]);
            assert!(read(Body::Chunks(Chunk::Size), &[broken]).is_err(), "{shown:?}");
            let each: Vec<&[u8]> = broken.chunks(1).collect();
            assert!(read(Body::Chunks(Chunk::Size), &each).is_err(), "{shown:?} byte by byte");
        }
    }

    #[test]
    fn the_body_of_an_answer_ends_in_one_place() {
        let of = |method: Method, status: u16, lines: &[(&'static str, &'static str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in lines {
                headers.append(*name, http::HeaderValue::from_static(value));
            }
            Body::of_answer(&method, 1, StatusCode::from_u16(status).expect("a status"), &headers)
        };
        let (length, chunked) = (("content-length", "7"), ("transfer-encoding", "Chunked"));
        assert_eq!(of(Method::GET, 200, &[length]), Ok(Body::Length(7)));
        assert_eq!(of(Method::GET, 200, &[length, length]), Ok(Body::Length(7)), "the same, said twice");
        assert_eq!(of(Method::GET, 200, &[("content-length", "0")]), Ok(Body::Done));
        assert_eq!(of(Method::GET, 200, &[chunked]), Ok(Body::Chunks(Chunk::Size)));
        assert_eq!(of(Method::GET, 200, &[]), Ok(Body::Rest));
        for (method, status) in
            [(Method::HEAD, 200), (Method::GET, 204), (Method::GET, 304), (Method::GET, 103)]
        {
            assert_eq!(of(method.clone(), status, &[length]), Ok(Body::Done), "{method} {status}");
        }
        for broken in [
            &[length, ("content-length", "8")][..],
            &[("content-length", "+7")],
            &[("content-length", "7, 7")],
            &[("content-length", "")],
            &[("content-length", "99999999999999999999")],
            &[length, chunked],
            &[chunked, chunked],
            &[("transfer-encoding", "gzip, chunked")],
            &[("transfer-encoding", "identity")],
        ] {
            assert!(of(Method::GET, 200, broken).is_err(), "{broken:?}");
        }
        let mut headers = HeaderMap::new();
        headers.insert("transfer-encoding", http::HeaderValue::from_static("chunked"));
        assert!(
            Body::of_answer(&Method::GET, 0, StatusCode::OK, &headers).is_err(),
            "HTTP/1.0 has no chunks"
        );
    }

    #[test]
    fn a_body_that_stops_is_not_done() {
        for part in [&b""[..], b"3", b"3\r\n", b"3\r\nab", b"3\r\nabc", b"3\r\nabc\r\n", b"0\r\n", b"0\r\n\r"]
        {
            let (_, _, is_done) = read(Body::Chunks(Chunk::Size), &[part]).expect("no mistake yet");
            assert!(!is_done, "{part:?}");
        }
    }
}
