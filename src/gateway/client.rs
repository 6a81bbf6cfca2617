//! Where a browser is: at the other end of its connection, or where the proxies in front of the gateway say.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr};

use http::HeaderMap;
use proxy_header::{Error, ParseConfig, ProxyHeader};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use crate::config::Proxies;

/// Longest header of the PROXY protocol, with what a proxy adds to it.
const LONGEST: usize = 4 << 10;

const VERSIONS: ParseConfig = ParseConfig { include_tlvs: false, allow_v1: true, allow_v2: true };

/// An IPv4 address as such, where a socket for both families sees it as IPv6.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Whether the connection begins with a header of the PROXY protocol.
pub(crate) fn is_introduced(proxies: &Proxies, peer: SocketAddr) -> bool {
    proxies.protocol && is_proxy(proxies, peer)
}

/// Reads a header of the PROXY protocol, and nothing that stands behind it; gives whom the proxy was talking to, or none
/// when the connection is the proxy's own.
///
/// # Errors
/// `UnexpectedEof` when the proxy leaves instead, `InvalidData` when it says something else.
pub(crate) async fn introduction(tcp: &mut TcpStream) -> io::Result<Option<SocketAddr>> {
    let mut buf = vec![0; LONGEST];
    let mut n = 0;
    loop {
        let seen = n + tcp.peek(&mut buf[n..]).await?;
        if seen == n {
            let is_full = n == LONGEST;
            return Err(if is_full { ErrorKind::InvalidData } else { ErrorKind::UnexpectedEof }.into());
        }
        match ProxyHeader::parse(&buf[..seen], VERSIONS) {
            Ok((header, end)) => {
                let source = header.proxied_address().map(|it| it.source);
                tcp.read_exact(&mut buf[n..end]).await?;
                return Ok(source.map(canonical));
            }
            // All of it belongs to the header, so it is taken out, and the next look waits for more.
            Err(Error::BufferTooShort) => {
                tcp.read_exact(&mut buf[n..seen]).await?;
                n = seen;
            }
            Err(error) => return Err(io::Error::new(ErrorKind::InvalidData, error)),
        }
    }
}

/// Where the browser is that sent a request with these headers over a connection from `peer`. A proxy's word is taken as
/// long as it is one of ours: the first address from the right that is none is the last that is known for sure, and what
/// stands left of it the browser may have made up. A proxy that does not name an address is taken for the browser. The
/// port is 0 when nobody has said it.
pub(crate) fn of(proxies: &Proxies, peer: SocketAddr, headers: &HeaderMap) -> SocketAddr {
    let mut client = peer;
    if !is_proxy(proxies, client) {
        return client;
    }
    let lines = headers.get_all(&proxies.header).into_iter().rev();
    for entry in lines.flat_map(|line| line.as_bytes().rsplit(|it| *it == b',')) {
        let entry = entry.trim_ascii();
        if entry.is_empty() {
            continue;
        }
        match address(entry) {
            Some(address) => client = address,
            None => return client,
        }
        if !is_proxy(proxies, client) {
            return client;
        }
    }
    client
}

fn is_proxy(Proxies { networks, .. }: &Proxies, address: SocketAddr) -> bool {
    networks.iter().any(|it| it.contains(&address.ip()))
}

/// `192.0.2.1`, `192.0.2.1:4711`, `2001:db8::1`, `[2001:db8::1]` or `[2001:db8::1]:4711`.
fn address(text: &[u8]) -> Option<SocketAddr> {
    let text = str::from_utf8(text).ok()?;
    let bare = text.strip_prefix('[').and_then(|it| it.strip_suffix(']')).unwrap_or(text);
    let (ip, port) = match bare.parse::<IpAddr>() {
        Ok(ip) => (ip, 0),
        Err(_) => text.parse::<SocketAddr>().map(|it| (it.ip(), it.port())).ok()?,
    };
    Some(canonical(SocketAddr::new(ip, port)))
}

#[cfg(test)]
mod tests {
    use http::HeaderName;

    use super::*;

    fn client(header: &[&str]) -> String {
        let proxies = Proxies {
            networks: vec!["10.0.0.0/8".parse().expect("a network"), "2001:db8:1::/48".parse().expect("one")],
            header: HeaderName::from_static("x-forwarded-for"),
            protocol: false,
        };
        let mut headers = HeaderMap::new();
        for line in header {
            headers.append("x-forwarded-for", line.parse().expect("a value"));
        }
        of(&proxies, "10.0.0.1:5000".parse().expect("an address"), &headers).to_string()
    }

    #[test]
    fn the_last_address_that_is_no_proxy_of_ours_is_the_browsers() {
        assert_eq!(client(&[]), "10.0.0.1:5000");
        assert_eq!(client(&["192.0.2.7"]), "192.0.2.7:0");
        assert_eq!(client(&["198.51.100.1, 192.0.2.7"]), "192.0.2.7:0", "the left one anybody can write");
        assert_eq!(client(&["198.51.100.1", "192.0.2.7:4711 ,, 10.2.3.4,"]), "192.0.2.7:4711");
        assert_eq!(client(&["192.0.2.7, 2001:db8:1::5"]), "192.0.2.7:0");
        assert_eq!(client(&["[2001:db8::7]:4711"]), "[2001:db8::7]:4711");
        assert_eq!(client(&["[2001:db8::7]"]), "[2001:db8::7]:0");
        assert_eq!(client(&["::ffff:192.0.2.7, ::ffff:10.0.0.9"]), "192.0.2.7:0");
        assert_eq!(client(&["10.0.0.8, 10.0.0.9"]), "10.0.0.8:0", "a request of a proxy itself");
    }

    #[test]
    fn what_is_no_address_ends_the_search() {
        for wrong in
            ["unknown", "_hidden", "192.0.2", "192.0.2.7:99999", "192.0.2.7/8", "fe80::1%eth0", "a b"]
        {
            assert_eq!(client(&[&format!("192.0.2.7, {wrong}, 10.0.0.9")]), "10.0.0.9:0", "{wrong}");
        }
    }
}
