//! Keys that verify: from a JWK Set (RFC 7517), from PEM text, or a secret.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::hmac;
use ring::signature::{self as ring_signature, RsaPublicKeyComponents, UnparsedPublicKey};
use serde_json::{Map, Value};
use zeroize::Zeroizing;

use super::{Algorithm, Reason, object};

/// Keys of one source. A secret is never in a set with public keys.
pub(crate) struct KeySet {
    keys: Vec<Key>,
    n_skipped: usize,
}

/// Why no keys could be made of what was given. The messages are for the operator and hold nothing of the
/// keys.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum KeyError {
    #[error("keys may have at most 256 KiB")]
    TooLarge,
    #[error("no JWK Set: expected a JSON object with a list \"keys\"")]
    NotASet,
    #[error("no PEM text: expected -----BEGIN PUBLIC KEY-----")]
    NotPem,
    #[error(
        "expected only PEM blocks PUBLIC KEY or RSA PUBLIC KEY (from a certificate: openssl x509 -pubkey)"
    )]
    NotPublic,
    #[error("expected public keys RSA of 2048 to 8192 bits, EC on P-256 or P-384, or Ed25519")]
    Unsupported,
    #[error("a secret for HS256, HS384 or HS512 must have at least 32 bytes")]
    ShortSecret,
}

struct Key {
    /// Its name in a JWK Set; keys of PEM text and secrets have none.
    kid: Option<String>,
    /// The one algorithm that the JWK is meant for, if it says so.
    algorithm: Option<Algorithm>,
    material: Material,
}

enum Material {
    /// Modulus and exponent, big-endian, without leading zeros.
    Rsa {
        n: Vec<u8>,
        e: Vec<u8>,
    },
    /// Uncompressed points: 4, x, y. Whether one is on the curve is checked by `ring` at each verification.
    P256(Vec<u8>),
    P384(Vec<u8>),
    Ed25519(Vec<u8>),
    Secret(Zeroizing<Vec<u8>>),
}

impl KeySet {
    /// The public keys of a JWK Set.
    ///
    /// A set may have keys for other purposes and of kinds that are not known yet (RFC 7517 §5), and one bad
    /// key must not take away the others: what cannot be used is skipped and counted. So a set may be empty.
    /// Symmetric and private keys are skipped too: what is published is no secret.
    pub(crate) fn from_jwks(json: &[u8]) -> Result<Self, KeyError> {
        if json.len() > LARGEST {
            return Err(KeyError::TooLarge);
        }
        let set = object(json).ok_or(KeyError::NotASet)?;
        let list = set.get("keys").and_then(Value::as_array).ok_or(KeyError::NotASet)?;
        let keys: Vec<_> = list.iter().filter_map(Key::from_jwk).take(MOST_KEYS).collect();
        let n_skipped = list.len() - keys.len();
        Ok(KeySet { keys, n_skipped })
    }

    /// The public keys of PEM text: blocks `PUBLIC KEY` (RFC 5280) and `RSA PUBLIC KEY` (PKCS #1).
    ///
    /// An operator wrote it, so nothing is skipped: each block must be a key that can be used.
    pub(crate) fn from_pem(text: &str) -> Result<Self, KeyError> {
        if text.len() > LARGEST {
            return Err(KeyError::TooLarge);
        }
        let blocks = pem::parse_many(text).map_err(|_| KeyError::NotPem)?;
        if blocks.is_empty() {
            return Err(KeyError::NotPem);
        }
        if blocks.len() > MOST_KEYS {
            return Err(KeyError::TooLarge);
        }
        let key = |block: &pem::Pem| {
            let material = match block.tag() {
                "PUBLIC KEY" => Material::from_spki(block.contents()),
                "RSA PUBLIC KEY" => Material::from_pkcs1(block.contents()),
                _ => return Err(KeyError::NotPublic),
            };
            let material = material.ok_or(KeyError::Unsupported)?;
            Ok(Key { kid: None, algorithm: None, material })
        };
        Ok(KeySet { keys: blocks.iter().map(key).collect::<Result<_, _>>()?, n_skipped: 0 })
    }

    /// A secret for HS256, HS384 and HS512.
    ///
    /// RFC 7518 §3.2 wants as many bytes as the hash has, thus more for HS384 and HS512. 32 random bytes
    /// cannot be guessed with any of them, and providers use one secret for all three, so 32 are enough here.
    pub(crate) fn secret(bytes: &[u8]) -> Result<Self, KeyError> {
        if bytes.len() < SHORTEST_SECRET {
            return Err(KeyError::ShortSecret);
        }
        let material = Material::Secret(Zeroizing::new(bytes.to_vec()));
        Ok(KeySet { keys: vec![Key { kid: None, algorithm: None, material }], n_skipped: 0 })
    }

    /// How many keys can be used.
    pub(crate) fn len(&self) -> usize {
        self.keys.len()
    }

    /// How many entries of a JWK Set could not be used.
    #[cfg(test)]
    pub(crate) fn n_skipped(&self) -> usize {
        self.n_skipped
    }

    /// Whether a key has this name, or could have it because it has none.
    pub(crate) fn knows(&self, kid: &str) -> bool {
        self.keys.iter().any(|it| it.kid.as_deref().is_none_or(|it| it == kid))
    }

    /// Whether it may have had the key of this name, or of none, without saying so: a key without a name may be any.
    pub(crate) fn is_vague(&self, kid: Option<&str>) -> bool {
        kid.is_none_or(|kid| self.keys.iter().all(|it| it.kid.as_deref() != Some(kid)))
    }

    /// Finds the key and checks the signature.
    ///
    /// With a `kid`, the keys of that name are asked, and if there are none, those without a name; without a
    /// `kid`, all. Of these only keys whose type fits the algorithm are asked, so an HMAC is never computed
    /// with a public key.
    pub(super) fn verify(
        &self,
        kid: Option<&str>,
        algorithm: Algorithm,
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), Reason> {
        let is_named = kid.is_some_and(|kid| self.keys.iter().any(|it| it.kid.as_deref() == Some(kid)));
        let wanted = if is_named { kid } else { None };
        let candidates = || self.keys.iter().filter(move |it| kid.is_none() || it.kid.as_deref() == wanted);
        if candidates().next().is_none() {
            return Err(Reason::UnknownKey);
        }
        let mut fitting = candidates().filter(|it| it.fits(algorithm)).take(MOST_TRIED).peekable();
        if fitting.peek().is_none() {
            return Err(Reason::Algorithm);
        }
        if fitting.any(|it| it.material.verifies(algorithm, message, signature)) {
            Ok(())
        } else {
            Err(Reason::Signature)
        }
    }
}

impl fmt::Debug for KeySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeySet({} keys, {} skipped)", self.keys.len(), self.n_skipped)
    }
}

impl Key {
    fn from_jwk(jwk: &Value) -> Option<Self> {
        let jwk = jwk.as_object()?;
        let is_for_signatures = match jwk.get("use") {
            None => true,
            Some(it) => it == "sig",
        } && match jwk.get("key_ops") {
            None => true,
            Some(it) => it.as_array()?.iter().any(|it| it == "verify"),
        };
        // Whoever can read the set could sign with a private key in it.
        if !is_for_signatures || jwk.contains_key("d") {
            return None;
        }
        let kid = match jwk.get("kid") {
            None => None,
            Some(it) => Some(it.as_str()?.to_owned()),
        };
        let algorithm = match jwk.get("alg") {
            None => None,
            Some(it) => Some(Algorithm::parse(it.as_str()?)?),
        };
        let key = Key { kid, algorithm, material: Material::from_jwk(jwk)? };
        // A key whose `alg` contradicts its type fits nothing.
        key.algorithm.is_none_or(|it| key.fits(it)).then_some(key)
    }

    fn fits(&self, algorithm: Algorithm) -> bool {
        use Algorithm::*;
        let fits = match self.material {
            Material::Rsa { .. } => matches!(algorithm, RS256 | RS384 | RS512 | PS256 | PS384 | PS512),
            Material::P256(_) => algorithm == ES256,
            Material::P384(_) => algorithm == ES384,
            Material::Ed25519(_) => algorithm == EdDSA,
            Material::Secret(_) => matches!(algorithm, HS256 | HS384 | HS512),
        };
        fits && self.algorithm.is_none_or(|it| it == algorithm)
    }
}

impl Material {
    fn from_jwk(jwk: &Map<String, Value>) -> Option<Self> {
        let text = |name: &str| jwk.get(name).and_then(Value::as_str);
        let bytes = |name: &str| text(name).and_then(|it| URL_SAFE_NO_PAD.decode(it).ok());
        // Coordinates have their full length, zeros included (RFC 7518 §6.2.1.2).
        let point = |length: usize| {
            let (x, y) = (bytes("x")?, bytes("y")?);
            (x.len() == length && y.len() == length).then(|| [&[UNCOMPRESSED], &x[..], &y[..]].concat())
        };
        match (text("kty")?, text("crv")) {
            ("RSA", _) => Self::rsa(&bytes("n")?, &bytes("e")?),
            ("EC", Some("P-256")) => Some(Material::P256(point(32)?)),
            ("EC", Some("P-384")) => Some(Material::P384(point(48)?)),
            ("OKP", Some("Ed25519")) => bytes("x").filter(|it| it.len() == 32).map(Material::Ed25519),
            _ => None,
        }
    }

    /// From SubjectPublicKeyInfo: the algorithm, then the key in a bit string (RFC 5280 §4.1.2.7).
    fn from_spki(der: &[u8]) -> Option<Self> {
        let (body, b"") = der_element(der, DER_SEQUENCE)? else { return None };
        let kind =
            [SPKI_RSA, SPKI_P256, SPKI_P384, SPKI_ED25519].into_iter().find(|it| body.starts_with(it))?;
        let (bits, b"") = der_element(&body[kind.len()..], DER_BIT_STRING)? else { return None };
        // The first byte counts the bits that are unused at the end.
        let key = bits.strip_prefix(&[0])?;
        let is_point = |length: usize| key.len() == 1 + 2 * length && key[0] == UNCOMPRESSED;
        match kind {
            SPKI_RSA => Self::from_pkcs1(key),
            SPKI_P256 => is_point(32).then(|| Material::P256(key.to_vec())),
            SPKI_P384 => is_point(48).then(|| Material::P384(key.to_vec())),
            _ => (key.len() == 32).then(|| Material::Ed25519(key.to_vec())),
        }
    }

    /// From RSAPublicKey: modulus and exponent (RFC 8017 §A.1.1).
    fn from_pkcs1(der: &[u8]) -> Option<Self> {
        let (body, b"") = der_element(der, DER_SEQUENCE)? else { return None };
        let (n, rest) = der_element(body, DER_INTEGER)?;
        let (e, b"") = der_element(rest, DER_INTEGER)? else { return None };
        let is_negative = |it: &[u8]| it.first().is_none_or(|it| it & 0x80 != 0);
        if is_negative(n) || is_negative(e) { None } else { Self::rsa(n, e) }
    }

    fn rsa(n: &[u8], e: &[u8]) -> Option<Self> {
        // Some providers send the sign byte of DER in a JWK too; `ring` wants none.
        let (n, e) = (without_zeros(n), without_zeros(e));
        let n_bits = (n.len() * 8).checked_sub(n.first()?.leading_zeros() as usize)?;
        let is_odd = |it: &[u8]| it.last().is_some_and(|it| it & 1 == 1);
        // `ring` takes exponents from 3 to 33 bits.
        let is_good_exponent = is_odd(e) && e != [1] && e.len() <= 5 && (e.len() < 5 || e[0] <= 1);
        ((2048..=8192).contains(&n_bits) && is_odd(n) && is_good_exponent)
            .then(|| Material::Rsa { n: n.to_vec(), e: e.to_vec() })
    }

    /// Whether the signature is good. An algorithm that is not for this type of key never is.
    fn verifies(&self, algorithm: Algorithm, message: &[u8], signature: &[u8]) -> bool {
        match self {
            Material::Rsa { n, e } => {
                let parameters = match algorithm {
                    Algorithm::RS256 => &ring_signature::RSA_PKCS1_2048_8192_SHA256,
                    Algorithm::RS384 => &ring_signature::RSA_PKCS1_2048_8192_SHA384,
                    Algorithm::RS512 => &ring_signature::RSA_PKCS1_2048_8192_SHA512,
                    Algorithm::PS256 => &ring_signature::RSA_PSS_2048_8192_SHA256,
                    Algorithm::PS384 => &ring_signature::RSA_PSS_2048_8192_SHA384,
                    Algorithm::PS512 => &ring_signature::RSA_PSS_2048_8192_SHA512,
                    _ => return false,
                };
                RsaPublicKeyComponents { n, e }.verify(parameters, message, signature).is_ok()
            }
            Material::P256(point) if algorithm == Algorithm::ES256 => {
                UnparsedPublicKey::new(&ring_signature::ECDSA_P256_SHA256_FIXED, point)
                    .verify(message, signature)
                    .is_ok()
            }
            Material::P384(point) if algorithm == Algorithm::ES384 => {
                UnparsedPublicKey::new(&ring_signature::ECDSA_P384_SHA384_FIXED, point)
                    .verify(message, signature)
                    .is_ok()
            }
            Material::Ed25519(key) if algorithm == Algorithm::EdDSA => {
                UnparsedPublicKey::new(&ring_signature::ED25519, key).verify(message, signature).is_ok()
            }
            Material::Secret(secret) => {
                let digest = match algorithm {
                    Algorithm::HS256 => hmac::HMAC_SHA256,
                    Algorithm::HS384 => hmac::HMAC_SHA384,
                    Algorithm::HS512 => hmac::HMAC_SHA512,
                    _ => return false,
                };
                // Compares in constant time.
                hmac::verify(&hmac::Key::new(digest, secret), message, signature).is_ok()
            }
            _ => false,
        }
    }
}

/// The content of the DER element at the beginning, which must have this tag, and what follows it (X.690
/// §8.1).
fn der_element(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let rest = der.strip_prefix(&[tag])?;
    let (length, rest) = match *rest {
        [it, ref rest @ ..] if it < 0x80 => (usize::from(it), rest),
        [0x81, it, ref rest @ ..] if it >= 0x80 => (usize::from(it), rest),
        [0x82, high, low, ref rest @ ..] if high != 0 => (usize::from(u16::from_be_bytes([high, low])), rest),
        // The largest key that is accepted has less than 64 KiB.
        _ => return None,
    };
    rest.split_at_checked(length)
}

fn without_zeros(number: &[u8]) -> &[u8] {
    let n_zeros = number.iter().take_while(|it| **it == 0).count();
    &number[n_zeros..]
}

/// Identity providers publish a few KiB.
const LARGEST: usize = 256 * 1024;

const MOST_KEYS: usize = 100;

/// How many keys are tried for a token that names none: bounds the work that a stranger can cause.
const MOST_TRIED: usize = 8;

/// As long as the shortest of the three hashes.
const SHORTEST_SECRET: usize = 32;

const DER_INTEGER: u8 = 0x02;
const DER_BIT_STRING: u8 = 0x03;
const DER_SEQUENCE: u8 = 0x30;

/// The first byte of a point that is written with both coordinates (SEC 1 §2.3.3).
const UNCOMPRESSED: u8 = 4;

/// `rsaEncryption` with its NULL (RFC 3279 §2.3.1), as a whole AlgorithmIdentifier; the next ones likewise.
const SPKI_RSA: &[u8] = b"\x30\x0d\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x01\x05\x00";

/// `id-ecPublicKey` on `secp256r1` (RFC 5480 §2.1.1).
const SPKI_P256: &[u8] =
    b"\x30\x13\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07";

/// `id-ecPublicKey` on `secp384r1` (RFC 5480 §2.1.1).
const SPKI_P384: &[u8] = b"\x30\x10\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x05\x2b\x81\x04\x00\x22";

/// `id-Ed25519` (RFC 8410 §3).
const SPKI_ED25519: &[u8] = b"\x30\x05\x06\x03\x2b\x65\x70";
