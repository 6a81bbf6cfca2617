//! The one cookie of the gateway: sealed, so that nobody but a replica with the same key can read or make one.

use std::fmt::Write;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::config;
use crate::config::SameSite;
use crate::gateway::directory::SessionId;
use crate::gateway::sealing::{Sealing, put};

/// Seals and opens the cookie.
pub(crate) struct Sealer {
    sealing: Sealing,
    name: String,
    same_site: SameSite,
    max_age: Duration,
}

/// What brings a browser back into its session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ticket {
    /// The gateway's id of the session.
    pub(crate) session: SessionId,
    /// Counts the browsers that have come back into it.
    pub(crate) generation: u32,
    /// When the session began, in seconds since the Unix epoch.
    pub(crate) began: u64,
    /// NVCF's id of the session; upstream it goes as `nvcf-reqid`. Empty when the upstream gave none.
    pub(crate) request: String,
    /// Whose session it is.
    pub(crate) principal: String,
    /// The function it is with.
    pub(crate) function: String,
    /// Until when it is good, in seconds since the Unix epoch.
    pub(crate) expires: u64,
}

/// Distinguishes this form of a cookie from later ones, and its key from the same secret's other uses.
const FORM: &[u8] = b"streamgate session cookie 3";

/// Longest cookie that is looked at.
const LONGEST: usize = 2048;

impl Sealer {
    /// A sealer for the configured key, or for this process's own.
    pub(crate) fn new(config: &config::Cookie, own_key: &[u8; 32]) -> Self {
        let sealing = match &config.key {
            Some(secret) => Sealing::derived(FORM, secret.expose()),
            None => Sealing::new(own_key),
        };
        Sealer { sealing, name: config.name.clone(), same_site: config.same_site, max_age: config.max_age }
    }

    /// The cookie's name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// When a cookie sealed at `now` ends.
    pub(crate) fn expiry(&self, now: u64) -> u64 {
        now + self.max_age.as_secs()
    }

    /// The value of `Set-Cookie` for a ticket.
    pub(crate) fn set(&self, ticket: &Ticket, path: &str, tls: bool) -> String {
        let mut bytes = Vec::with_capacity(192);
        bytes.extend_from_slice(&ticket.session.0);
        bytes.extend_from_slice(&ticket.generation.to_be_bytes());
        bytes.extend_from_slice(&ticket.began.to_be_bytes());
        bytes.extend_from_slice(&ticket.expires.to_be_bytes());
        for part in [&ticket.request, &ticket.principal, &ticket.function] {
            put(&mut bytes, part.as_bytes());
        }
        let sealed = URL_SAFE_NO_PAD.encode(self.sealing.seal(FORM, bytes));
        self.attributes(&sealed, self.max_age.as_secs(), path, tls)
    }

    /// The value of `Set-Cookie` that takes the cookie away.
    pub(crate) fn clear(&self, path: &str, tls: bool) -> String {
        self.attributes("", 0, path, tls)
    }

    /// The ticket in a cookie. A forged, broken or expired one is none.
    pub(crate) fn open(&self, value: &str, now: u64) -> Option<Ticket> {
        if value.len() > LONGEST {
            return None;
        }
        let mut bytes = URL_SAFE_NO_PAD.decode(value).ok()?;
        let mut fields = self.sealing.open(FORM, &mut bytes)?;
        let ticket = Ticket {
            session: SessionId(fields.exactly()?),
            generation: u32::from_be_bytes(fields.exactly()?),
            began: u64::from_be_bytes(fields.exactly()?),
            expires: u64::from_be_bytes(fields.exactly()?),
            request: fields.text()?,
            principal: fields.text()?,
            function: fields.text()?,
        };
        (ticket.expires > now).then_some(ticket)
    }

    fn attributes(&self, value: &str, max_age: u64, path: &str, tls: bool) -> String {
        // A path with a separator would end the attribute; the root fits every request.
        let plain = path.bytes().all(|it| it.is_ascii_graphic() && !b";,\"\\".contains(&it));
        let path = if plain && path.starts_with('/') { path } else { "/" };
        let same_site = match self.same_site {
            SameSite::Lax => "Lax",
            SameSite::Strict => "Strict",
            SameSite::None => "None",
        };
        let mut cookie = String::with_capacity(value.len() + 128);
        let secure = if tls { "; Secure" } else { "" };
        write!(
            cookie,
            "{}={value}; Path={path}; Max-Age={max_age}; HttpOnly; SameSite={same_site}{secure}",
            self.name
        )
        .expect("a string takes every write");
        cookie
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::Secret;

    fn sealer(key: &str) -> Sealer {
        let config = config::Cookie {
            name: "streamgate-session".into(),
            key: Some(Secret::new(key)),
            same_site: SameSite::Lax,
            max_age: Duration::from_secs(3600),
        };
        Sealer::new(&config, &[0; 32])
    }

    fn ticket() -> Ticket {
        Ticket {
            session: SessionId([7; 16]),
            generation: 3,
            began: 500,
            request: "5e2b1c7d".into(),
            principal: "ada".into(),
            function: "f00d".into(),
            expires: 1000,
        }
    }

    fn value(cookie: &str) -> &str {
        let (_, rest) = cookie.split_once('=').expect("a name");
        rest.split_once(';').expect("attributes").0
    }

    #[test]
    fn a_cookie_is_opened_by_whoever_has_the_key() {
        let cookie = sealer("a key of at least 32 characters …").set(&ticket(), "/tenant/sign_in", true);
        assert!(
            cookie.ends_with("; Path=/tenant/sign_in; Max-Age=3600; HttpOnly; SameSite=Lax; Secure"),
            "{cookie}"
        );
        assert_eq!(sealer("a key of at least 32 characters …").open(value(&cookie), 999), Some(ticket()));
        assert_eq!(sealer("another key of 32 characters ……").open(value(&cookie), 999), None);
    }

    #[test]
    fn a_forged_broken_or_expired_cookie_is_none() {
        let sealer = sealer("a key of at least 32 characters …");
        let cookie = sealer.set(&ticket(), "/sign_in", false);
        let good = value(&cookie);
        assert_eq!(sealer.open(good, 1000), None, "expired");
        for idx in 0..good.len() {
            let mut forged = good.as_bytes().to_vec();
            forged[idx] = if forged[idx] == b'A' { b'B' } else { b'A' };
            let forged = String::from_utf8(forged).expect("ASCII");
            assert_eq!(sealer.open(&forged, 0), None, "byte {idx} changed");
            assert_eq!(sealer.open(&good[..idx], 0), None, "cut at {idx}");
        }
        for broken in ["", "=", "ä", "AAAA", &"A".repeat(5000)] {
            assert_eq!(sealer.open(broken, 0), None, "{broken}");
        }
    }

    #[test]
    fn a_path_cannot_add_attributes() {
        let cookie = sealer("a key of at least 32 characters …").clear("/a; Domain=evil.example", false);
        assert_eq!(cookie, "streamgate-session=; Path=/; Max-Age=0; HttpOnly; SameSite=Lax");
    }
}
