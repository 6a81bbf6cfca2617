//! Signs tokens, for specs of plugins and for tests. The gateway itself issues none.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair};
use ring::{error::Unspecified, hmac};
use serde_json::{Map, Value, json};

use super::Algorithm;

/// A private key or a secret, and the algorithm it signs with.
pub(crate) struct Signer {
    private: Private,
    random: SystemRandom,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum SignError {
    #[error("keys are generated for ES256 and EdDSA only")]
    Algorithm,
    #[error("the system gives no random numbers")]
    Random,
}

enum Private {
    Es256(EcdsaKeyPair),
    EdDsa(Ed25519KeyPair),
    Hs256(hmac::Key),
}

impl Signer {
    /// A signer with a new key, for ES256 or EdDSA.
    pub(crate) fn generate(algorithm: Algorithm) -> Result<Self, SignError> {
        let random = SystemRandom::new();
        let private = match algorithm {
            Algorithm::ES256 => {
                let document = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random)?;
                EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, document.as_ref(), &random)
                    .map(Private::Es256)
            }
            Algorithm::EdDSA => {
                let document = Ed25519KeyPair::generate_pkcs8(&random)?;
                Ed25519KeyPair::from_pkcs8(document.as_ref()).map(Private::EdDsa)
            }
            _ => return Err(SignError::Algorithm),
        };
        // What `ring` wrote it reads back, unless it wants random numbers for that and gets none.
        Ok(Signer { private: private.map_err(|_| SignError::Random)?, random })
    }

    /// A signer for HS256. Any secret is taken: a spec may show that a weak one is refused.
    pub(crate) fn hs(secret: &[u8]) -> Self {
        Signer {
            private: Private::Hs256(hmac::Key::new(hmac::HMAC_SHA256, secret)),
            random: SystemRandom::new(),
        }
    }

    pub(crate) fn algorithm(&self) -> Algorithm {
        match self.private {
            Private::Es256(_) => Algorithm::ES256,
            Private::EdDsa(_) => Algorithm::EdDSA,
            Private::Hs256(_) => Algorithm::HS256,
        }
    }

    /// The token that says so.
    pub(crate) fn sign(&self, claims: &Map<String, Value>, kid: Option<&str>) -> Result<String, SignError> {
        let mut header = json!({ "alg": self.algorithm().as_str(), "typ": "JWT" });
        if let Some(kid) = kid {
            header["kid"] = kid.into();
        }
        let message = message(&header, &json!(claims));
        let signature = self.signature(message.as_bytes())?;
        Ok(format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }

    pub(super) fn signature(&self, message: &[u8]) -> Result<Vec<u8>, SignError> {
        Ok(match &self.private {
            Private::Es256(pair) => pair.sign(&self.random, message)?.as_ref().to_vec(),
            Private::EdDsa(pair) => pair.sign(message).as_ref().to_vec(),
            Private::Hs256(key) => hmac::sign(key, message).as_ref().to_vec(),
        })
    }

    /// The public key as a JWK; null for a secret, which nobody publishes.
    pub(crate) fn jwk(&self, kid: &str) -> Value {
        let encode = |it: &[u8]| URL_SAFE_NO_PAD.encode(it);
        match &self.private {
            Private::Es256(pair) => {
                // An uncompressed point: 4, x, y.
                let (x, y) = pair.public_key().as_ref()[1..].split_at(32);
                json!({
                    "kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": kid,
                    "x": encode(x), "y": encode(y),
                })
            }
            Private::EdDsa(pair) => json!({
                "kty": "OKP", "crv": "Ed25519", "use": "sig", "alg": "EdDSA", "kid": kid,
                "x": encode(pair.public_key().as_ref()),
            }),
            Private::Hs256(_) => Value::Null,
        }
    }
}

impl From<Unspecified> for SignError {
    /// The only cause that `ring` has for a failed signature or generation.
    fn from(_: Unspecified) -> Self {
        SignError::Random
    }
}

/// What a signature is over (RFC 7515 §5.1).
pub(super) fn message(header: &Value, claims: &Value) -> String {
    let encode = |it: &Value| URL_SAFE_NO_PAD.encode(it.to_string());
    format!("{}.{}", encode(header), encode(claims))
}
