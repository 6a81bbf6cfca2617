//! `base64`, `base64url`, `hex`: bytes as text.

use ::base64::alphabet;
use ::base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use mlua::{Lua, LuaString};

pub(super) use self::base64::MODULE as BASE64;
pub(super) use self::base64url::MODULE as BASE64URL;
pub(super) use self::hex::MODULE as HEX;

/// The bytes, or why there are none.
type Decoded = (Option<LuaString>, Option<&'static str>);

const STANDARD: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

const URL_SAFE: GeneralPurpose = GeneralPurpose::new(
    &alphabet::URL_SAFE,
    GeneralPurposeConfig::new()
        .with_encode_padding(false)
        .with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

fn decoded(lua: &Lua, bytes: Option<Vec<u8>>, reason: &'static str) -> mlua::Result<Decoded> {
    match bytes {
        Some(bytes) => Ok((Some(lua.create_string(bytes)?), None)),
        None => Ok((None, Some(reason))),
    }
}

/// The bytes of pairs of hexadecimal digits.
fn from_hex(text: &[u8]) -> Option<Vec<u8>> {
    let digit = |it: u8| char::from(it).to_digit(16).map(|it| it as u8);
    let pairs = text.chunks_exact(2);
    if !pairs.remainder().is_empty() {
        return None;
    }
    pairs.map(|it| Some(digit(it[0])? << 4 | digit(it[1])?)).collect()
}

/// Bytes as pairs of hexadecimal digits.
pub(super) fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|it| format!("{it:02x}")).collect()
}

pub(super) mod base64 {
    use mlua::LuaString;

    use super::{Decoded, decoded};
    use crate::lua::api::module;

    module! {
        "base64" "Bytes as text (RFC 4648, section 4).";

        /// Encodes with padding.
        #[example("local text = base64.encode(user .. \":\" .. password)")]
        now fn encode(lua, author, bytes: LuaString) -> (String, "string") {
            Ok(::base64::Engine::encode(&super::STANDARD, bytes.as_bytes()))
        }

        /// Decodes, with padding or without; nil and a reason when it is not base64.
        #[example("local pair = base64.decode(text)")]
        now fn decode(lua, author, text: LuaString) -> (Decoded, "string?, string?") {
            decoded(lua, ::base64::Engine::decode(&super::STANDARD, text.as_bytes()).ok(), "not base64")
        }
    }
}

pub(super) mod base64url {
    use mlua::LuaString;

    use super::{Decoded, decoded};
    use crate::lua::api::module;

    module! {
        "base64url" "Bytes as text that may stand in a URL (RFC 4648, section 5).";

        /// Encodes without padding.
        #[example("local challenge = base64url.encode(crypto.sha256(verifier))")]
        now fn encode(lua, author, bytes: LuaString) -> (String, "string") {
            Ok(::base64::Engine::encode(&super::URL_SAFE, bytes.as_bytes()))
        }

        /// Decodes, with padding or without; nil and a reason when it is not base64url.
        #[example("local head = base64url.decode(part)")]
        now fn decode(lua, author, text: LuaString) -> (Decoded, "string?, string?") {
            decoded(lua, ::base64::Engine::decode(&super::URL_SAFE, text.as_bytes()).ok(), "not base64url")
        }
    }
}

pub(super) mod hex {
    use mlua::LuaString;

    use super::{Decoded, decoded};
    use crate::lua::api::module;

    module! {
        "hex" "Bytes as pairs of hexadecimal digits.";

        /// Encodes, in lower case.
        #[example("local name = hex.encode(crypto.sha256(token))")]
        now fn encode(lua, author, bytes: LuaString) -> (String, "string") {
            Ok(super::to_hex(&bytes.as_bytes()))
        }

        /// Decodes; nil and a reason when it is not hexadecimal.
        #[example("local bytes = hex.decode(text)")]
        now fn decode(lua, author, text: LuaString) -> (Decoded, "string?, string?") {
            decoded(lua, super::from_hex(&text.as_bytes()), "not hexadecimal")
        }
    }
}
