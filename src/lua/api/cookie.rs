//! `cookie`: cookies for the browser.

use mlua::{LuaString, Table};

use crate::lua::api::{misuse, module};

/// Largest cookie that browsers keep, in bytes (RFC 6265, section 6.1).
const LARGEST: usize = 4096;

module! {
    "cookie" "Cookies for the browser (RFC 6265).";

    /// The value of a `Set-Cookie` header. Options are `path` (`/`), `domain`, `max_age` in seconds, `secure`, `http_only`
    /// (true) and `same_site` (`Lax`).
    #[example("response:add_header(\"set-cookie\", cookie.format(\"login\", value, { secure = request:is_tls() }))")]
    now fn format(lua, author, name: LuaString, value: LuaString, options: Option<Table>) -> (String, "string") {
        let (name, value) = (name.to_string_lossy(), value.to_string_lossy());
        let is_token = |it: u8| it.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&it);
        let is_octet = |it: u8| it.is_ascii_graphic() && !b"\",;\\".contains(&it);
        if name.is_empty() || !name.bytes().all(is_token) {
            return Err(misuse(format!("cookie.format: {name:?} is not a cookie's name")));
        }
        if !value.bytes().all(is_octet) {
            return Err(misuse(format!("cookie.format: the value of {name} has spaces, quotes, commas, semicolons or backslashes; encode it")));
        }
        let options = options.map_or_else(|| lua.create_table(), Ok)?;
        let text = |key: &str| -> mlua::Result<Option<String>> {
            let value = options.raw_get::<Option<String>>(key)?;
            match value.as_deref().is_some_and(|it| !it.bytes().all(|it| it.is_ascii_graphic() && it != b';')) {
                true => Err(misuse(format!("cookie.format: {key} has what cannot stand in a cookie"))),
                false => Ok(value),
            }
        };
        let mut cookie = format!("{name}={value}; Path={}", text("path")?.as_deref().unwrap_or("/"));
        if let Some(domain) = text("domain")? {
            cookie += &format!("; Domain={domain}");
        }
        if let Some(seconds) = options.raw_get::<Option<f64>>("max_age")? {
            cookie += &format!("; Max-Age={}", seconds as i64);
        }
        if options.raw_get::<Option<bool>>("secure")?.unwrap_or(false) {
            cookie += "; Secure";
        }
        if options.raw_get::<Option<bool>>("http_only")?.unwrap_or(true) {
            cookie += "; HttpOnly";
        }
        let same_site = text("same_site")?;
        let same_site = same_site.as_deref().unwrap_or("Lax");
        if !["Lax", "Strict", "None"].contains(&same_site) {
            return Err(misuse("cookie.format: same_site is \"Lax\", \"Strict\" or \"None\""));
        }
        cookie += &format!("; SameSite={same_site}");
        if cookie.len() > LARGEST {
            return Err(misuse(format!("cookie.format: {name} is larger than the {LARGEST} bytes that browsers keep")));
        }
        Ok(cookie)
    }
}
