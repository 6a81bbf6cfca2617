//! `jwt`: signed tokens.

use std::rc::Rc;
use std::sync::Arc;

use mlua::{LuaString, Table, Value};

use crate::lua::api::oidc::ProviderWeb;
use crate::lua::api::{Author, misuse, module};
use crate::lua::convert;
use crate::lua::jose::{self, Algorithm, KeySet, Reason, Verification};

/// By how much clocks may differ when a plugin says nothing, in seconds.
const LEEWAY: f64 = 30.0;

/// What a token says: its claims, or why it was refused, then its header.
type Verified = (Option<Table>, Value);

module! {
    "jwt" "Signed tokens (RFC 7519).";

    /// How many keys a JWK Set or PEM has that `verify` can use; nil and a reason when it is neither. For `configure`.
    #[example("assert(jwt.check_keys(conf.keys))")]
    now fn check_keys(lua, author, text: LuaString) -> ((Option<usize>, Option<String>), "integer?, string?") {
        match public_keys(&text.to_string_lossy()) {
            Ok(keys) => Ok((Some(keys.len()), None)),
            Err(reason) => Ok((None, Some(reason))),
        }
    }

    /// The claims of a token and its header; nil and a reason when it is refused: `malformed`, `algorithm`, `unknown_key`,
    /// `signature`, `expired`, `not_yet_valid`, `issuer`, `audience`, `claim` or `keys_unavailable`.
    ///
    /// `options` have `algorithms`, the names that are accepted, and one source of keys: `secret` for HS256 and its like,
    /// `keys` (a JWK Set or PEM), `jwks_url`, or `discover`, the URL of an issuer. Besides: `issuer` and `audience`, each a
    /// string or several; `leeway` in seconds (30); `required`, names of claims that must be there; `allow_no_exp`. Keys are
    /// fetched when they are needed and kept; strangers cannot make it happen often.
    #[example("local claims, reason = jwt.verify(token, { discover = conf.issuer, algorithms = { \"RS256\" }, audience = conf.audience })")]
    later fn verify(lua, author, token: LuaString, options: Table) -> (Verified, "table?, table|string") {
        let mut wanted = verification(&author, &options)?;
        let refused = |reason: Reason| -> mlua::Result<Verified> {
            Ok((None, Value::String(lua.create_string(reason.as_str())?)))
        };
        let Ok(token) = token.to_str() else { return refused(Reason::Malformed) };
        let peek = match jose::peek(&token) {
            Ok(peek) if wanted.algorithms.contains(&peek.algorithm) => peek,
            Ok(_) => return refused(Reason::Algorithm),
            Err(reason) => return refused(reason),
        };
        let kid = peek.kid.as_deref();
        let known = match keys(&author, &options, kid, None, &mut wanted).await? {
            Ok(keys) => keys,
            Err(reason) => return refused(reason),
        };
        let mut verified = jose::verify(&token, &known, &wanted);
        if matches!(verified, Err(Reason::Signature))
            && known.is_vague(kid)
            && let Ok(renewed) = keys(&author, &options, kid, Some(&known), &mut wanted).await?
        {
            verified = jose::verify(&token, &renewed, &wanted);
        }
        match verified {
            Ok(it) => Ok((
                Some(convert::object(&lua, &it.claims)?),
                Value::Table(convert::object(&lua, &it.header)?),
            )),
            Err(reason) => refused(reason),
        }
    }
}

fn verification(author: &Author, options: &Table) -> mlua::Result<Verification> {
    let names = texts(options, "algorithms")?.unwrap_or_default();
    let mut algorithms = Vec::new();
    for name in &names {
        let algorithm = Algorithm::parse(name);
        algorithms.push(algorithm.ok_or_else(|| {
            misuse(format!("jwt.verify: the algorithm {name:?} is not known, or no signature"))
        })?);
    }
    if algorithms.is_empty() {
        return Err(misuse("jwt.verify: `algorithms` lists those that are accepted"));
    }
    Ok(Verification {
        algorithms,
        issuers: texts(options, "issuer")?,
        audiences: texts(options, "audience")?,
        leeway: options.raw_get::<Option<f64>>("leeway")?.unwrap_or(LEEWAY),
        required: texts(options, "required")?.unwrap_or_default(),
        exp_required: !options.raw_get::<Option<bool>>("allow_no_exp")?.unwrap_or(false),
        now: author.kit.time.now(),
    })
}

/// The keys that the options name; others than `old`, where these are given.
async fn keys(
    author: &Rc<Author>,
    options: &Table,
    kid: Option<&str>,
    old: Option<&Arc<KeySet>>,
    wanted: &mut Verification,
) -> mlua::Result<Result<Arc<KeySet>, Reason>> {
    let text = |key: &str| options.raw_get::<Option<String>>(key);
    let secret = options.raw_get::<Option<LuaString>>("secret")?;
    let fetched = async |url: &str, web: &ProviderWeb<'_>| match old {
        None => author.kit.keys.get(url, kid, web).await,
        Some(old) => author.kit.keys.renewed(url, old, web).await,
    };
    match (secret, text("keys")?, text("jwks_url")?, text("discover")?) {
        (Some(_), None, None, None) | (None, Some(_), None, None) if old.is_some() => {
            Ok(Err(Reason::Signature))
        }
        (Some(secret), None, None, None) => {
            let keys = KeySet::secret(&secret.as_bytes());
            keys.map(|it| Ok(Arc::new(it))).map_err(|it| misuse(format!("jwt.verify: {it}")))
        }
        (None, Some(text), None, None) => {
            public_keys(&text).map(|it| Ok(Arc::new(it))).map_err(|it| misuse(format!("jwt.verify: {it}")))
        }
        (None, None, Some(url), None) => {
            let web = ProviderWeb::of(author, &url, "jwt.verify")?;
            Ok(fetched(&url, &web).await)
        }
        (None, None, None, Some(issuer)) => {
            let web = ProviderWeb::of(author, &issuer, "jwt.verify")?;
            let found = match author.kit.keys.discover(&issuer, &web).await {
                Ok(found) => found,
                Err(reason) => return Ok(Err(reason)),
            };
            wanted.issuers.get_or_insert_with(|| vec![found.issuer.clone()]);
            Ok(fetched(&found.jwks_uri, &web).await)
        }
        _ => Err(misuse("jwt.verify: the keys come from one of `secret`, `keys`, `jwks_url` and `discover`")),
    }
}

/// The keys of a JWK Set or of PEM.
fn public_keys(text: &str) -> Result<KeySet, String> {
    let is_pem = text.trim_start().starts_with("-----BEGIN");
    let keys = if is_pem { KeySet::from_pem(text) } else { KeySet::from_jwks(text.as_bytes()) };
    keys.map_err(|it| it.to_string())
}

/// One string or several.
fn texts(options: &Table, key: &str) -> mlua::Result<Option<Vec<String>>> {
    match options.raw_get::<Value>(key)? {
        Value::Nil => Ok(None),
        Value::String(it) => Ok(Some(vec![it.to_str()?.to_owned()])),
        Value::Table(it) => it.sequence_values::<String>().collect::<mlua::Result<Vec<_>>>().map(Some),
        other => {
            Err(misuse(format!("jwt.verify: `{key}` is a string or several, not a {}", other.type_name())))
        }
    }
}
