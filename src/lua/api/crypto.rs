//! `crypto`: digests, signatures with a shared secret, sealed texts.

use mlua::LuaString;
use ring::rand::{SecureRandom as _, SystemRandom};
use ring::{aead, digest, hkdf, hmac};
use subtle::ConstantTimeEq as _;

use crate::lua::api::{misuse, module};

/// Shortest secret that a text is sealed with, in bytes.
const SHORTEST_KEY: usize = 16;

/// Largest text that is sealed, in bytes.
const LONGEST: usize = 64 << 10;

module! {
    "crypto" "Digests, signatures with a shared secret, sealed texts. Digests are bytes: show them with `hex` or `base64`.";

    /// SHA-1, for old protocols alone.
    #[example("local digest = crypto.sha1(key .. MAGIC)")]
    now fn sha1(lua, author, bytes: LuaString) -> (LuaString, "string") {
        lua.create_string(digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, &bytes.as_bytes()))
    }

    /// SHA-256.
    #[example("local name = hex.encode(crypto.sha256(token))")]
    now fn sha256(lua, author, bytes: LuaString) -> (LuaString, "string") {
        lua.create_string(digest::digest(&digest::SHA256, &bytes.as_bytes()))
    }

    /// SHA-384.
    #[example("local digest = crypto.sha384(text)")]
    now fn sha384(lua, author, bytes: LuaString) -> (LuaString, "string") {
        lua.create_string(digest::digest(&digest::SHA384, &bytes.as_bytes()))
    }

    /// SHA-512.
    #[example("local digest = crypto.sha512(text)")]
    now fn sha512(lua, author, bytes: LuaString) -> (LuaString, "string") {
        lua.create_string(digest::digest(&digest::SHA512, &bytes.as_bytes()))
    }

    /// HMAC with SHA-1, for old protocols alone.
    #[example("local mac = crypto.hmac_sha1(conf.secret, text)")]
    now fn hmac_sha1(lua, author, key: LuaString, bytes: LuaString) -> (LuaString, "string") {
        lua.create_string(mac(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, &key, &bytes))
    }

    /// HMAC with SHA-256 (RFC 2104).
    #[example("local mac = crypto.hmac_sha256(conf.secret, text)")]
    now fn hmac_sha256(lua, author, key: LuaString, bytes: LuaString) -> (LuaString, "string") {
        lua.create_string(mac(hmac::HMAC_SHA256, &key, &bytes))
    }

    /// HMAC with SHA-384.
    #[example("local mac = crypto.hmac_sha384(conf.secret, text)")]
    now fn hmac_sha384(lua, author, key: LuaString, bytes: LuaString) -> (LuaString, "string") {
        lua.create_string(mac(hmac::HMAC_SHA384, &key, &bytes))
    }

    /// HMAC with SHA-512.
    #[example("local mac = crypto.hmac_sha512(conf.secret, text)")]
    now fn hmac_sha512(lua, author, key: LuaString, bytes: LuaString) -> (LuaString, "string") {
        lua.create_string(mac(hmac::HMAC_SHA512, &key, &bytes))
    }

    /// Whether two strings are equal. How long it takes tells nothing but their lengths: for secrets.
    #[example("if crypto.equal(presented, conf.key) then … end")]
    now fn equal(lua, author, a: LuaString, b: LuaString) -> (bool, "boolean") {
        Ok(a.as_bytes().ct_eq(&b.as_bytes()).into())
    }

    /// Bytes that nobody can guess, at most 1024.
    #[example("local state = base64url.encode(crypto.random(24))")]
    now fn random(lua, author, n: i64) -> (LuaString, "string") {
        let n = usize::try_from(n).ok().filter(|it| *it <= 1024);
        let Some(n) = n else { return Err(misuse("crypto.random: expected a number of bytes up to 1024")) };
        let mut bytes = vec![0; n];
        SystemRandom::new().fill(&mut bytes).map_err(|_| no_randomness())?;
        lua.create_string(bytes)
    }

    /// Seals a text so that only who has the key can read it, and nobody can change it (AES-256-GCM). What it gives may stand
    /// in a URL or a cookie. The key has 16 bytes or more, the text at most 64 KiB.
    #[example("local value = crypto.seal(conf.cookie_key, json.encode(login))")]
    now fn seal(lua, author, key: LuaString, text: LuaString) -> (String, "string") {
        if text.as_bytes().len() > LONGEST {
            return Err(misuse("crypto.seal: a text has at most 64 KiB"));
        }
        let mut nonce = [0; aead::NONCE_LEN];
        SystemRandom::new().fill(&mut nonce).map_err(|_| no_randomness())?;
        let mut sealed = text.as_bytes().to_vec();
        let tag = sealing_key(&key)?
            .seal_in_place_separate_tag(aead::Nonce::assume_unique_for_key(nonce), aead::Aad::empty(), &mut sealed)
            .map_err(|_| misuse("crypto.seal: the text is too long"))?;
        Ok(base64::Engine::encode(
            &base64::engine::general_purpose::URL_SAFE_NO_PAD,
            [&nonce, &sealed[..], tag.as_ref()].concat(),
        ))
    }

    /// The text that was sealed with this key; nil when it was not, or was changed.
    #[example("local text = crypto.open(conf.cookie_key, request:cookie \"login\" or \"\")")]
    now fn open(lua, author, key: LuaString, sealed: LuaString) -> (Option<LuaString>, "string?") {
        let key = sealing_key(&key)?;
        if sealed.as_bytes().len() > 2 * LONGEST {
            return Ok(None);
        }
        let bytes = base64::Engine::decode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, sealed.as_bytes());
        let Some((nonce, text)) = bytes.as_ref().ok().and_then(|it| it.split_first_chunk()) else { return Ok(None) };
        let mut text = text.to_vec();
        let nonce = aead::Nonce::assume_unique_for_key(*nonce);
        match key.open_in_place(nonce, aead::Aad::empty(), &mut text) {
            Ok(text) => lua.create_string(&*text).map(Some),
            Err(_) => Ok(None),
        }
    }
}

fn no_randomness() -> mlua::Error {
    mlua::Error::runtime("crypto: the system has no randomness")
}

fn mac(algorithm: hmac::Algorithm, key: &LuaString, bytes: &LuaString) -> hmac::Tag {
    hmac::sign(&hmac::Key::new(algorithm, &key.as_bytes()), &bytes.as_bytes())
}

/// A key of the right length from a secret of any (RFC 5869).
fn sealing_key(secret: &LuaString) -> mlua::Result<aead::LessSafeKey> {
    let secret = secret.as_bytes();
    if secret.len() < SHORTEST_KEY {
        return Err(misuse(format!("crypto.seal and crypto.open: a key has at least {SHORTEST_KEY} bytes")));
    }
    let salt = hkdf::Salt::new(hkdf::HKDF_SHA256, b"streamgate crypto.seal");
    let material = salt.extract(&secret);
    let material =
        material.expand(&[b"AES-256-GCM"], &aead::AES_256_GCM).expect("a key is short enough for it");
    Ok(aead::LessSafeKey::new(aead::UnboundKey::from(material)))
}
