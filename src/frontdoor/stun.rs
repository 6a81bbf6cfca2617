//! The STUN server that workers are pointed at: it checks who asks and tells them their address (RFC 8489; F27).
//!
//! NVCF's streaming proxy opens a port for a session when the app's media socket sends it an authenticated Binding.
//! Locally there is nothing to open: the address it answers is the one that browsers can reach anyway.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ring::hmac;
use tokio::net::UdpSocket;

use crate::frontdoor::Shared;
use crate::secret::Secret;

/// Where the server is, and what it wants to hear.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) username: String,
    pub(crate) password: Secret,
}

impl Server {
    /// The server's address for a container that reaches this machine at `local`. All addresses are none.
    pub(crate) fn ip_at(&self, local: IpAddr) -> IpAddr {
        let bound = self.address.ip();
        if bound.is_unspecified() { local.to_canonical() } else { bound }
    }
}

const MAGIC: u32 = 0x2112_a442;
const BINDING_REQUEST: u16 = 0x0001;
const BINDING_SUCCESS: u16 = 0x0101;
const BINDING_ERROR: u16 = 0x0111;
const USERNAME: u16 = 0x0006;
const MESSAGE_INTEGRITY: u16 = 0x0008;
const ERROR_CODE: u16 = 0x0009;
const XOR_MAPPED_ADDRESS: u16 = 0x0020;

/// Answers until it is dropped.
pub(crate) async fn run(socket: UdpSocket, shared: Arc<Shared>) {
    let mut buf = [0; 1024];
    loop {
        match socket.recv_from(&mut buf).await {
            Ok((len, from)) => {
                if let Some(answer) = answer(&buf[..len], from, &shared.stun) {
                    drop(socket.send_to(&answer, from).await); // a client asks again
                }
            }
            Err(error) => {
                tracing::debug!(%error, "The STUN port could not be read.");
                shared.clock.sleep(std::time::Duration::from_millis(50)).await;
            }
        }
    }
}

/// The answer to a datagram; none to what is no Binding request.
fn answer(datagram: &[u8], from: SocketAddr, server: &Server) -> Option<Vec<u8>> {
    let (header, body) = datagram.split_at_checked(20)?;
    let is_binding = header[..2] == BINDING_REQUEST.to_be_bytes()
        && header[4..8] == MAGIC.to_be_bytes()
        && usize::from(u16::from_be_bytes([header[2], header[3]])) == body.len();
    if !is_binding {
        return None;
    }
    let id: &[u8; 12] = header[8..20].try_into().ok()?;
    match is_proved(datagram, server) {
        Some(true) => {
            let ip = from.ip().to_canonical(); // a socket for both families sees IPv4 as IPv6
            let mut value = vec![0, if ip.is_ipv4() { 1 } else { 2 }];
            value.extend((from.port() ^ (MAGIC >> 16) as u16).to_be_bytes());
            let mask = [&MAGIC.to_be_bytes()[..], id].concat();
            let address = match ip {
                IpAddr::V4(it) => it.octets().to_vec(),
                IpAddr::V6(it) => it.octets().to_vec(),
            };
            value.extend(address.iter().zip(mask).map(|(a, b)| a ^ b));
            Some(message(BINDING_SUCCESS, id, XOR_MAPPED_ADDRESS, &value, Some(server.password.expose())))
        }
        Some(false) => Some(message(BINDING_ERROR, id, ERROR_CODE, b"\0\0\x04\x01Unauthorized", None)),
        None => Some(message(BINDING_ERROR, id, ERROR_CODE, b"\0\0\x04\0Bad Request", None)),
    }
}

/// Whether a request carries the right user name and a MESSAGE-INTEGRITY made with the password (short-term
/// credentials, RFC 8489 section 9.1.3). The user name may have the port behind it. `None`: there is no proof at all.
fn is_proved(datagram: &[u8], server: &Server) -> Option<bool> {
    let mut name = None;
    let mut at = 20;
    while let Some(head) = datagram.get(at..at + 4) {
        let kind = u16::from_be_bytes([head[0], head[1]]);
        let len = usize::from(u16::from_be_bytes([head[2], head[3]]));
        let value = datagram.get(at + 4..at + 4 + len)?;
        match kind {
            USERNAME => name = std::str::from_utf8(value).ok(),
            MESSAGE_INTEGRITY => {
                let name = name?;
                let suffix = name.strip_prefix(&server.username)?;
                let mut signed = datagram[..at].to_vec();
                let length = u16::try_from(at - 20 + 24).ok()?;
                signed[2..4].copy_from_slice(&length.to_be_bytes());
                let is_right = hmac::verify(&key(server.password.expose()), &signed, value).is_ok();
                return Some(
                    is_right && suffix.trim_start_matches(':').bytes().all(|it| it.is_ascii_digit()),
                );
            }
            _ => {}
        }
        at += 4 + len.next_multiple_of(4);
    }
    None
}

fn key(password: &str) -> hmac::Key {
    hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, password.as_bytes())
}

/// A message with one attribute, and with a MESSAGE-INTEGRITY where there is a password.
fn message(kind: u16, id: &[u8; 12], attribute: u16, value: &[u8], password: Option<&str>) -> Vec<u8> {
    let padded = value.len().next_multiple_of(4);
    let length = 4 + padded + if password.is_some() { 24 } else { 0 };
    let mut bytes = Vec::with_capacity(20 + length);
    bytes.extend(kind.to_be_bytes());
    bytes.extend((length as u16).to_be_bytes());
    bytes.extend(MAGIC.to_be_bytes());
    bytes.extend(id);
    bytes.extend(attribute.to_be_bytes());
    bytes.extend((value.len() as u16).to_be_bytes());
    bytes.extend(value);
    bytes.resize(20 + 4 + padded, 0);
    if let Some(password) = password {
        let tag = hmac::sign(&key(password), &bytes);
        bytes.extend(MESSAGE_INTEGRITY.to_be_bytes());
        bytes.extend(20u16.to_be_bytes());
        bytes.extend(tag.as_ref());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server() -> Server {
        Server {
            address: ([127, 0, 0, 1], 3478).into(),
            username: "user".into(),
            password: Secret::new("pass"),
        }
    }

    /// A request as `message` writes it: the user name, then the proof.
    fn request(username: &str, password: Option<&str>) -> Vec<u8> {
        message(BINDING_REQUEST, &[7; 12], USERNAME, username.as_bytes(), password)
    }

    #[test]
    fn whoever_proves_itself_learns_its_address() {
        let from: SocketAddr = ([192, 0, 2, 7], 40000).into();
        let mapped: SocketAddr = "[::ffff:192.0.2.7]:40000".parse().expect("an address");
        for (name, from) in [("user", from), ("user:40000", from), ("user40000", from), ("user", mapped)] {
            let answer = answer(&request(name, Some("pass")), from, &server()).expect("an answer");
            assert_eq!(answer[25], 1, "IPv4");
            assert_eq!(answer[..2], BINDING_SUCCESS.to_be_bytes(), "{name}");
            let port = u16::from_be_bytes([answer[26], answer[27]]) ^ (MAGIC >> 16) as u16;
            let ip: Vec<u8> = answer[28..32].iter().zip(MAGIC.to_be_bytes()).map(|(a, b)| a ^ b).collect();
            assert_eq!((port, &ip[..]), (40000, &[192, 0, 2, 7][..]));
        }
    }

    #[test]
    fn whoever_does_not_is_refused_and_garbage_is_not_answered() {
        let from: SocketAddr = ([192, 0, 2, 7], 40000).into();
        let code = |datagram: &[u8]| {
            answer(datagram, from, &server()).map(|it| u16::from(it[26]) * 100 + u16::from(it[27]))
        };
        assert_eq!(code(&request("user", Some("guess"))), Some(401));
        assert_eq!(code(&request("userx", Some("pass"))), Some(401));
        assert_eq!(code(&request("user", None)), Some(400));
        assert_eq!(code(&request("other", Some("pass"))), Some(400));
        let whole = request("user", Some("pass"));
        for end in 0..whole.len() {
            assert_eq!(code(&whole[..end]), None, "cut at {end}");
        }
        assert_eq!(code(&[0xff; 40]), None);
    }
}
