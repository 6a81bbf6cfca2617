//! From a written value to a typed one. An error says what was expected and what to write instead.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use http::HeaderName;
use ipnet::IpNet;
use rustls::pki_types::ServerName;

use crate::config::node::{Node, Value};

/// A type that a setting can have.
pub(crate) trait Parse: Sized {
    /// Reads the value; the error is a sentence for the operator.
    fn parse(value: &Value) -> Result<Self, String>;
}

/// A size in bytes, written `64KiB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

/// A reference to a secret: `env:NAME` or `file:PATH`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reference {
    /// An environment variable.
    Env(String),
    /// A file whose content is the secret, without the line end.
    File(PathBuf),
}

/// An upstream server: `host`, `host:port` (TLS) or `http://host:port`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// Name or address, without brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Whether the connection is encrypted and verified.
    pub tls: bool,
}

/// An inclusive range of ports, written `47998-48020`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRange {
    /// The lowest port.
    pub first: u16,
    /// The highest port.
    pub last: u16,
}

impl Server {
    /// The value of a `Host` header: the port only where it is not the scheme's own.
    pub fn authority(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        let default = if self.tls { 443 } else { 80 };
        if self.port == default { host } else { format!("{host}:{}", self.port) }
    }
}

impl Parse for bool {
    fn parse(value: &Value) -> Result<Self, String> {
        match value {
            Value::Boolean(it) => Ok(*it),
            Value::Text(it) if it == "true" => Ok(true),
            Value::Text(it) if it == "false" => Ok(false),
            other => Err(format!("expected true or false, not {}", named(other))),
        }
    }
}

impl Parse for u64 {
    fn parse(value: &Value) -> Result<Self, String> {
        match value {
            Value::Integer(it) => {
                u64::try_from(*it).map_err(|_| format!("expected a number that is not negative, not {it}"))
            }
            Value::Text(it) => it.parse().map_err(|_| format!("expected a whole number, not {it:?}")),
            other => Err(format!("expected a whole number, not {}", named(other))),
        }
    }
}

impl Parse for u16 {
    fn parse(value: &Value) -> Result<Self, String> {
        port(
            &u64::parse(value)
                .map_err(|_| format!("not a port: expected a number from 0 to 65535, not {}", value.shown()))?
                .to_string(),
        )
    }
}

impl Parse for String {
    fn parse(value: &Value) -> Result<Self, String> {
        match value {
            Value::Text(it) => Ok(it.clone()),
            other => Err(format!("expected a string, not {}", other.kind())),
        }
    }
}

impl Parse for PathBuf {
    fn parse(value: &Value) -> Result<Self, String> {
        let path = String::parse(value).map_err(|_| format!("expected a path, not {}", value.kind()))?;
        if path.is_empty() { Err("expected a path, not an empty string".into()) } else { Ok(path.into()) }
    }
}

impl<T: Parse> Parse for Vec<T> {
    /// A list; an environment variable writes it with commas.
    fn parse(value: &Value) -> Result<Self, String> {
        match value {
            Value::List(items) => items.iter().map(|Node { value, .. }| T::parse(value)).collect(),
            Value::Text(it) => it
                .split(',')
                .map(str::trim)
                .filter(|it| !it.is_empty())
                .map(|it| T::parse(&Value::Text(it.to_owned())))
                .collect(),
            other => Err(format!("expected a list, not {}", other.kind())),
        }
    }
}

impl Parse for SocketAddr {
    fn parse(value: &Value) -> Result<Self, String> {
        let text =
            String::parse(value).map_err(|_| format!("expected \"address:port\", not {}", named(value)))?;
        if let Ok(address) = text.parse() {
            return Ok(address);
        }
        let Some((host, digits)) = text.rsplit_once(':') else {
            return Err("expected \"address:port\", for example \"0.0.0.0:49100\"".into());
        };
        let port = port(digits)?;
        match host.trim_start_matches('[').trim_end_matches(']') {
            "" | "*" => Ok(SocketAddr::from(([0, 0, 0, 0], port))),
            "localhost" => Ok(SocketAddr::from(([127, 0, 0, 1], port))),
            host => host.parse::<IpAddr>().map(|ip| SocketAddr::from((ip, port))).map_err(|_| {
                format!("not an address: {host:?}; write an IP address, for example \"127.0.0.1:{port}\"")
            }),
        }
    }
}

impl Parse for IpAddr {
    fn parse(value: &Value) -> Result<Self, String> {
        let text = String::parse(value)?;
        text.parse().map_err(|_| format!("expected an IP address, not {text:?}"))
    }
}

impl Parse for Duration {
    fn parse(value: &Value) -> Result<Self, String> {
        match value {
            Value::Text(it) => duration(it),
            Value::Integer(it) => Err(format!("expected a duration with its unit, for example \"{it}s\"")),
            other => Err(format!("expected a duration such as \"30s\", not {}", named(other))),
        }
    }
}

impl Parse for Size {
    fn parse(value: &Value) -> Result<Self, String> {
        match value {
            Value::Text(it) => size(it),
            Value::Integer(it) => Err(format!("expected a size with its unit, for example \"{it}B\"")),
            other => Err(format!("expected a size such as \"64KiB\", not {}", named(other))),
        }
    }
}

impl Parse for Reference {
    fn parse(value: &Value) -> Result<Self, String> {
        let Value::Text(text) = value else {
            return Err(format!("expected a reference to a secret, not {}", value.kind()));
        };
        match text.split_once(':') {
            Some(("env", name)) if !name.is_empty() => Ok(Reference::Env(name.to_owned())),
            Some(("file", path)) if !path.is_empty() => Ok(Reference::File(path.into())),
            _ => Err("a secret does not stand in the file: write \"env:NAME\" or \"file:PATH\"".into()),
        }
    }
}

impl Parse for Server {
    fn parse(value: &Value) -> Result<Self, String> {
        const FORMS: &str = "expected \"host\" or \"host:port\" (TLS), or \"http://host:port\" (clear text)";
        let text = String::parse(value).map_err(|_| FORMS.to_owned())?;
        let (tls, rest) = match text.split_once("://") {
            None => (true, text.as_str()),
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("https") => (true, rest),
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => (false, rest),
            Some((scheme, _)) => return Err(format!("unknown scheme {scheme:?}; {FORMS}")),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        if rest.is_empty() || rest.contains(['/', '?', '#', '@', ' ']) {
            return Err(format!("not a server; {FORMS}, without path, query or user"));
        }
        let default = if tls { 443 } else { 80 };
        let (host, port_text) = match rest.strip_prefix('[').and_then(|it| it.split_once(']')) {
            Some((host, "")) => (host, None),
            Some((host, port)) => (host, port.strip_prefix(':').or(Some(port))),
            None => match rest.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (rest, None),
            },
        };
        if ServerName::try_from(host).is_err() {
            return Err(format!("not a host name: {host:?}; {FORMS}"));
        }
        Ok(Server { host: host.to_owned(), port: port_text.map_or(Ok(default), port)?, tls })
    }
}

impl Parse for PortRange {
    fn parse(value: &Value) -> Result<Self, String> {
        const FORM: &str = "expected a range of ports such as \"47998-48020\"";
        let text = match value {
            Value::Integer(it) => it.to_string(),
            other => String::parse(other).map_err(|_| FORM.to_owned())?,
        };
        let (first, last) = text.split_once('-').unwrap_or((&text, &text));
        let range = PortRange { first: port(first.trim())?, last: port(last.trim())? };
        if range.first > range.last {
            return Err(format!("{FORM}: the first port is larger than the last"));
        }
        Ok(range)
    }
}

impl Parse for IpNet {
    fn parse(value: &Value) -> Result<Self, String> {
        match value {
            Value::Text(it) => network(it),
            _ => None,
        }
        .ok_or_else(|| {
            format!("expected an address or a network such as \"10.0.0.0/8\", not {}", named(value))
        })
    }
}

impl Parse for HeaderName {
    fn parse(value: &Value) -> Result<Self, String> {
        let name = String::parse(value)?;
        HeaderName::from_bytes(name.as_bytes()).map_err(|_| format!("not a header's name: {name:?}"))
    }
}

fn named(value: &Value) -> String {
    match value {
        Value::List(_) | Value::Table(_) => value.kind().into(),
        other => other.shown(),
    }
}

fn port(digits: &str) -> Result<u16, String> {
    match digits.parse::<u64>() {
        Ok(number) => u16::try_from(number).map_err(|_| format!("not a port: {number} is larger than 65535")),
        Err(_) => Err(format!("not a port: {digits:?}")),
    }
}

/// An address or a network; IPv4 ones in their own form also when they are written as IPv6.
pub(crate) fn network(text: &str) -> Option<IpNet> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some(address.to_canonical().into());
    }
    let network = text.parse::<IpNet>().ok()?;
    match network {
        IpNet::V6(it) if it.prefix_len() >= 96 => match it.addr().to_canonical() {
            IpAddr::V4(address) => IpNet::new(address.into(), it.prefix_len() - 96).ok(),
            IpAddr::V6(_) => Some(network),
        },
        _ => Some(network),
    }
}

/// Reads `500ms`, `4s`, `1m30s`, `8h`, `7d`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("expected a duration such as \"30s\", \"500ms\" or \"8h\", not {text:?}");
    let mut rest = text.trim();
    let mut total = Duration::ZERO;
    if rest.is_empty() {
        return Err(wrong());
    }
    while !rest.is_empty() {
        let digits = rest.len() - rest.trim_start_matches(|it: char| it.is_ascii_digit()).len();
        let amount: u64 = rest[..digits].parse().map_err(|_| wrong())?;
        rest = &rest[digits..];
        let letters = rest.len() - rest.trim_start_matches(|it: char| it.is_ascii_alphabetic()).len();
        let unit = match &rest[..letters] {
            "ms" => Duration::from_millis(amount),
            "s" => Duration::from_secs(amount),
            "m" => Duration::from_secs(amount.saturating_mul(60)),
            "h" => Duration::from_secs(amount.saturating_mul(3600)),
            "d" => Duration::from_secs(amount.saturating_mul(86400)),
            _ => return Err(wrong()),
        };
        rest = &rest[letters..];
        total = total.saturating_add(unit);
    }
    const LONGEST: Duration = Duration::from_secs(366 * 86400); // keeps deadlines far from overflow
    if total > LONGEST { Err(format!("{text:?} is longer than a year")) } else { Ok(total) }
}

/// Reads `4096B`, `64KiB`, `1MiB`, `2GiB`.
fn size(text: &str) -> Result<Size, String> {
    let wrong = || format!("expected a size such as \"64KiB\" or \"1MiB\", not {text:?}");
    let text = text.trim();
    let digits = text.len() - text.trim_start_matches(|it: char| it.is_ascii_digit()).len();
    let amount: u64 = text[..digits].parse().map_err(|_| wrong())?;
    let factor = match text[digits..].trim() {
        "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return Err(wrong()),
    };
    amount.checked_mul(factor).map(Size).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(it: &str) -> Value {
        Value::Text(it.into())
    }

    #[test]
    fn a_server_is_tls_unless_it_says_http() {
        let check = |written: &str, host: &str, port, tls, authority: &str| {
            let server = Server::parse(&text(written)).expect(written);
            assert_eq!(server, Server { host: host.into(), port, tls }, "{written}");
            assert_eq!(server.authority(), authority, "{written}");
        };
        check("grpc.nvcf.nvidia.com", "grpc.nvcf.nvidia.com", 443, true, "grpc.nvcf.nvidia.com");
        check(
            "grpc.nvcf.nvidia.com:10081",
            "grpc.nvcf.nvidia.com",
            10081,
            true,
            "grpc.nvcf.nvidia.com:10081",
        );
        check("https://front.example/", "front.example", 443, true, "front.example");
        check("http://127.0.0.1:10081", "127.0.0.1", 10081, false, "127.0.0.1:10081");
        check("http://front.example", "front.example", 80, false, "front.example");
        check("[::1]:8443", "::1", 8443, true, "[::1]:8443");
        for wrong in [
            "",
            "ftp://x",
            "http://",
            "host/path",
            "user@host",
            "host:http",
            "host:70000",
            "a b",
            "a..b",
            "-a.example",
            "http://h\r\nx",
        ] {
            assert!(Server::parse(&text(wrong)).is_err(), "{wrong:?} should be refused");
        }
    }

    #[test]
    fn durations_and_sizes_need_a_unit() {
        assert_eq!(duration("1m30s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(size("64KiB"), Ok(Size(65536)));
        for wrong in ["", "30", "s", "3x", "-1s", "1.5s", "9999999d"] {
            assert!(duration(wrong).is_err(), "{wrong:?} should be refused");
        }
        for wrong in ["", "64", "KiB", "1KB", "99999999999GiB"] {
            assert!(size(wrong).is_err(), "{wrong:?} should be refused");
        }
    }

    #[test]
    fn an_error_about_a_secret_does_not_repeat_it() {
        let error = Reference::parse(&text("nvapi-0123456789")).expect_err("a literal is refused");
        assert!(!error.contains("nvapi"), "{error}");
    }
}
