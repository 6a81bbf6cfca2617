//! JSON Web Tokens: their verification against a set of keys, without I/O and without a clock.
//!
//! [`verify`] decides by RFC 7515 (JWS), 7518 (JWA), 7519 (JWT), 8037 (EdDSA) and 8725 (best practices). A
//! token is hostile until its signature has been checked; its claims are read only then.
//!
//! Why not the crate `jsonwebtoken` (11.1.0 was read): without its own two providers of cryptography,
//! `decode` takes one from a process-wide `OnceLock` and panics when there is none; its inner function that
//! accepts a provider is private. Besides, it reads the machine's clock, wants all accepted algorithms to be
//! of one family, knows neither `crit` nor duplicate names nor a bound on sizes, and accepts a token without
//! `iss` or `aud` unless told not to. So the signatures are checked by `ring`, and the rules around them are
//! here.

mod json;
mod key;
mod signer;
#[cfg(test)]
mod tests;

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};

pub(crate) use json::object;
pub(crate) use key::KeySet;
pub(crate) use signer::Signer;

/// How a token is signed: the values of `alg` that are accepted. `none` is not among them.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) enum Algorithm {
    RS256,
    RS384,
    RS512,
    PS256,
    PS384,
    PS512,
    ES256,
    ES384,
    EdDSA,
    HS256,
    HS384,
    HS512,
}

/// What a token must fulfil besides its signature.
#[derive(Clone, Debug)]
pub(crate) struct Verification {
    /// Which values of `alg` are accepted. An empty list accepts no token.
    pub algorithms: Vec<Algorithm>,
    /// One of them must be `iss`, when given.
    pub issuers: Option<Vec<String>>,
    /// One of them must be in `aud`, when given.
    pub audiences: Option<Vec<String>>,
    /// By how much the clocks may differ, in seconds.
    pub leeway: f64,
    /// Names of claims that must be there and not null.
    pub required: Vec<String>,
    /// Whether `exp` must be there. An `exp` that is there is always checked.
    pub exp_required: bool,
    /// The time, in seconds since 1970.
    pub now: f64,
}

/// What a verified token says.
#[derive(Clone, Debug)]
pub(crate) struct Claims {
    pub claims: Map<String, Value>,
    pub header: Map<String, Value>,
}

/// What the header of a token says, before anything is verified.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Peek {
    pub kid: Option<String>,
    pub algorithm: Algorithm,
}

/// Why a token was refused; plugins get the word of [`Reason::as_str`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Reason {
    Malformed,
    /// Its `alg` is not accepted, or does not fit the key that it names.
    Algorithm,
    UnknownKey,
    Signature,
    Expired,
    NotYetValid,
    Issuer,
    Audience,
    /// A claim is missing, or a time is no number.
    Claim,
    /// The source of the keys does not answer (only [`crate::lua::keys`] says so).
    KeysUnavailable,
}

/// A token taken apart; nothing of it is verified.
struct Parts<'a> {
    /// What the signature is over.
    message: &'a [u8],
    payload: &'a str,
    signature: &'a str,
    header: Map<String, Value>,
    algorithm: Algorithm,
}

/// Verifies a token and returns what it says.
///
/// The payload is not looked at before the signature is found to be good.
pub(crate) fn verify(token: &str, keys: &KeySet, wanted: &Verification) -> Result<Claims, Reason> {
    let parts = Parts::parse(token)?;
    if !wanted.algorithms.contains(&parts.algorithm) {
        return Err(Reason::Algorithm);
    }
    let signature = URL_SAFE_NO_PAD.decode(parts.signature).map_err(|_| Reason::Malformed)?;
    keys.verify(parts.kid(), parts.algorithm, parts.message, &signature)?;

    let payload = URL_SAFE_NO_PAD.decode(parts.payload).map_err(|_| Reason::Malformed)?;
    let claims = object(&payload).ok_or(Reason::Malformed)?;
    check_claims(&claims, wanted)?;
    Ok(Claims { claims, header: parts.header })
}

/// What the header says about the key that is needed, to decide about fetching keys. Nothing is verified.
///
/// A token that [`verify`] would refuse for its form or an unknown `alg` is refused here already, so that it
/// causes no fetch.
pub(crate) fn peek(token: &str) -> Result<Peek, Reason> {
    let parts = Parts::parse(token)?;
    Ok(Peek { kid: parts.kid().map(str::to_owned), algorithm: parts.algorithm })
}

impl Algorithm {
    pub(crate) const ALL: [Algorithm; 12] = [
        Algorithm::RS256,
        Algorithm::RS384,
        Algorithm::RS512,
        Algorithm::PS256,
        Algorithm::PS384,
        Algorithm::PS512,
        Algorithm::ES256,
        Algorithm::ES384,
        Algorithm::EdDSA,
        Algorithm::HS256,
        Algorithm::HS384,
        Algorithm::HS512,
    ];

    /// The algorithm of that name, written exactly so.
    ///
    /// `Ed25519` is the newer name of what `EdDSA` means for the one curve that is known here (RFC 9864).
    pub(crate) fn parse(name: &str) -> Option<Self> {
        match name {
            "Ed25519" => Some(Algorithm::EdDSA),
            _ => Self::ALL.into_iter().find(|it| it.as_str() == name),
        }
    }

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Algorithm::RS256 => "RS256",
            Algorithm::RS384 => "RS384",
            Algorithm::RS512 => "RS512",
            Algorithm::PS256 => "PS256",
            Algorithm::PS384 => "PS384",
            Algorithm::PS512 => "PS512",
            Algorithm::ES256 => "ES256",
            Algorithm::ES384 => "ES384",
            Algorithm::EdDSA => "EdDSA",
            Algorithm::HS256 => "HS256",
            Algorithm::HS384 => "HS384",
            Algorithm::HS512 => "HS512",
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Reason {
    /// The word that plugins get; a promise.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Reason::Malformed => "malformed",
            Reason::Algorithm => "algorithm",
            Reason::UnknownKey => "unknown_key",
            Reason::Signature => "signature",
            Reason::Expired => "expired",
            Reason::NotYetValid => "not_yet_valid",
            Reason::Issuer => "issuer",
            Reason::Audience => "audience",
            Reason::Claim => "claim",
            Reason::KeysUnavailable => "keys_unavailable",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl<'a> Parts<'a> {
    fn parse(token: &'a str) -> Result<Self, Reason> {
        if token.len() > LONGEST_TOKEN {
            return Err(Reason::Malformed);
        }
        let (message, signature) = token.rsplit_once('.').ok_or(Reason::Malformed)?;
        let (header, payload) = message.split_once('.').ok_or(Reason::Malformed)?;
        // A point left in the payload would be an encrypted token, which has five parts.
        if payload.contains('.') {
            return Err(Reason::Malformed);
        }
        let header = URL_SAFE_NO_PAD.decode(header).map_err(|_| Reason::Malformed)?;
        let header = object(&header).ok_or(Reason::Malformed)?;

        // What `crit` lists must be understood (RFC 7515 §4.1.11). No extension is, and an empty list is
        // forbidden.
        if header.contains_key("crit") {
            return Err(Reason::Malformed);
        }
        match header.get("kid") {
            None => {}
            Some(Value::String(kid)) if kid.len() <= LONGEST_KID => {}
            Some(_) => return Err(Reason::Malformed),
        }
        let algorithm = header.get("alg").and_then(Value::as_str).ok_or(Reason::Malformed)?;
        let algorithm = Algorithm::parse(algorithm).ok_or(Reason::Algorithm)?;
        Ok(Parts { message: message.as_bytes(), payload, signature, header, algorithm })
    }

    fn kid(&self) -> Option<&str> {
        self.header.get("kid").and_then(Value::as_str)
    }
}

fn check_claims(claims: &Map<String, Value>, wanted: &Verification) -> Result<(), Reason> {
    let is_there = |name: &str| claims.get(name).is_some_and(|it| !it.is_null());
    if !wanted.required.iter().all(|name| is_there(name)) || (wanted.exp_required && !is_there("exp")) {
        return Err(Reason::Claim);
    }

    let exp = time(claims, "exp")?;
    let nbf = time(claims, "nbf")?;
    // When it was issued decides nothing, but it must be a time (RFC 7519 §4.1.6).
    time(claims, "iat")?;
    let leeway = if wanted.leeway.is_finite() { wanted.leeway.max(0.0) } else { 0.0 };
    // Both are written so that a time that is no number refuses.
    if exp.is_some_and(|exp| !is_before(wanted.now, exp + leeway)) {
        return Err(Reason::Expired);
    }
    if nbf.is_some_and(|nbf| !is_before(nbf, wanted.now + leeway) && nbf != wanted.now + leeway) {
        return Err(Reason::NotYetValid);
    }

    let among = |it: &Value, list: &[String]| it.as_str().is_some_and(|it| list.iter().any(|one| one == it));
    if let Some(issuers) = &wanted.issuers
        && !claims.get("iss").is_some_and(|it| among(it, issuers))
    {
        return Err(Reason::Issuer);
    }
    if let Some(audiences) = &wanted.audiences {
        let matches = match claims.get("aud") {
            Some(Value::Array(items)) => items.iter().any(|it| among(it, audiences)),
            Some(it) => among(it, audiences),
            None => false,
        };
        if !matches {
            return Err(Reason::Audience);
        }
    }
    Ok(())
}

/// A claim that is a time, in seconds since 1970. JSON has no infinite numbers, and the reader refuses too
/// large ones.
fn time(claims: &Map<String, Value>, name: &str) -> Result<Option<f64>, Reason> {
    match claims.get(name) {
        None => Ok(None),
        Some(it) => it.as_f64().filter(|it| it.is_finite()).map(Some).ok_or(Reason::Claim),
    }
}

/// False also when one of them is no number.
fn is_before(a: f64, b: f64) -> bool {
    a < b
}

/// Tokens of identity providers with many groups have a few KiB; the headers of a request may have 16 KiB or
/// so.
const LONGEST_TOKEN: usize = 16 * 1024;

/// Providers use thumbprints, UUIDs or dates.
const LONGEST_KID: usize = 512;
