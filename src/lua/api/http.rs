//! `http`: other services.

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, Method};
use mlua::{Lua, LuaString, Table, Value};
use url::Url;

use crate::lua::api::{Author, Function, Place, misuse, module};
use crate::lua::convert;
use crate::lua::fetch::{Request, Response};

/// What a request may take when its plugin says nothing.
const TIMEOUT: Duration = Duration::from_secs(5);

/// How large a response may be when its plugin says nothing, and at most.
const MAX_BODY: usize = 256 << 10;
const MOST_BODY: usize = 8 << 20;

/// What was answered, and why nothing was.
type Answered = (Option<Table>, Option<&'static str>);

module! {
    "http" "Other services. A plugin reaches the hosts of its settings of the type `url` and of the documents that `oidc.discover` found, and no others. Redirects are not followed.";

    /// Sends a request: `url`, and perhaps `method`, `headers`, `query` (a table), one of `body`, `form` (a table) and `json`
    /// (a value), `timeout` in seconds (5) and `max_body` in bytes (256 KiB). Gives a table with `status`, `headers` (names
    /// in lower case) and `body`, or nil and a reason: `timeout`, `unreachable`, `tls`, `not_allowed`, `too_large`, `broken`.
    #[example("local answer, reason = http.request { url = conf.url, method = \"POST\", json = { id = id } }")]
    later fn request(lua, author, options: Table) -> (Answered, "streamgate.Answer?, string?") {
        send(&lua, &author, "http.request", &options, None).await
    }

    /// Sends a GET request; `options` are those of `http.request`.
    #[example("local answer = http.get(conf.url .. \"/health\")")]
    later fn get(lua, author, url: LuaString, options: Option<Table>) -> (Answered, "streamgate.Answer?, string?") {
        let options = options.map_or_else(|| lua.create_table(), Ok)?;
        send(&lua, &author, "http.get", &options, Some((Method::GET, url))).await
    }

    /// Sends a POST request; `options` are those of `http.request`.
    #[example("local answer = http.post(conf.url, { form = { token = token } })")]
    later fn post(lua, author, url: LuaString, options: Option<Table>) -> (Answered, "streamgate.Answer?, string?") {
        let options = options.map_or_else(|| lua.create_table(), Ok)?;
        send(&lua, &author, "http.post", &options, Some((Method::POST, url))).await
    }
}

/// The functions of what `http.request` gives.
pub(super) static FUNCTIONS: &[Function] = &[Function {
    name: "json",
    params: &[],
    result: "any, string?",
    place: Place::Anywhere,
    doc: " The body as a value; nil and a reason when it is not JSON.\n",
    example: "local claims = answer:json()",
}];

async fn send(
    lua: &Lua,
    author: &Rc<Author>,
    function: &str,
    options: &Table,
    line: Option<(Method, LuaString)>,
) -> mlua::Result<Answered> {
    let request = match request(function, options, line)? {
        Ok(request) => request,
        Err(reason) => return Ok((None, Some(reason))),
    };
    let hosts = author.hosts.borrow().clone();
    let to = request.url.host_str().unwrap_or_default().to_owned();
    match author.kit.send(request, &hosts).await {
        Ok(response) => answer(lua, &response).map(|it| (Some(it), None)),
        Err(reason) => {
            tracing::debug!(plugin = &*author.plugin, host = to, %reason, "A plugin's request was not answered.");
            Ok((None, Some(reason.word())))
        }
    }
}

/// A request as a script describes it. What comes from a setting may be wrong without the script's fault.
fn request(
    function: &str,
    options: &Table,
    line: Option<(Method, LuaString)>,
) -> mlua::Result<Result<Request, &'static str>> {
    let wrong = |what: String| misuse(format!("{function}: {what}"));
    let (method, url) = match line {
        Some((method, url)) => (method, url),
        None => {
            let method: Option<String> = options.raw_get("method")?;
            let method = Method::from_bytes(method.as_deref().unwrap_or("GET").as_bytes());
            let url: Option<LuaString> = options.raw_get("url")?;
            (
                method.map_err(|_| wrong("not a method".into()))?,
                url.ok_or_else(|| wrong("a request has a `url`".into()))?,
            )
        }
    };
    let Ok(mut url) = Url::parse(&url.to_string_lossy()) else { return Ok(Err("not_allowed")) };
    if let Some(query) = options.raw_get::<Option<Table>>("query")? {
        let more = super::url::query(function, &query)?;
        let query = match url.query() {
            Some(before) if !before.is_empty() => format!("{before}&{more}"),
            _ => more,
        };
        url.set_query(Some(&query));
    }
    let mut headers = HeaderMap::new();
    if let Some(table) = options.raw_get::<Option<Table>>("headers")? {
        for pair in table.pairs::<super::Name, mlua::BString>() {
            let (name, value) =
                pair.map_err(|_| wrong("headers are a table from names to strings".into()))?;
            let (name, value) = super::upstream::header(function, name, value)?;
            super::upstream::add(&mut headers, name, value)?;
        }
    }
    let mut kind = |it: &'static str| {
        headers.entry(HeaderName::from_static("content-type")).or_insert(http::HeaderValue::from_static(it));
    };
    let body = options.raw_get::<Option<LuaString>>("body")?;
    let form = options.raw_get::<Option<Table>>("form")?;
    let json = options.raw_get::<Value>("json")?;
    let body = match (body, form, json) {
        (Some(body), None, Value::Nil) => Bytes::copy_from_slice(&body.as_bytes()),
        (None, Some(form), Value::Nil) => {
            kind("application/x-www-form-urlencoded");
            super::url::query(function, &form)?.into()
        }
        (None, None, Value::Nil) => Bytes::new(),
        (None, None, json) => {
            kind("application/json");
            let json = convert::to_json_of_any_size(&json);
            json.map_err(|it| wrong(format!("there is no JSON for {it}")))?.to_string().into()
        }
        _ => return Err(wrong("a request has one of `body`, `form` and `json`".into())),
    };
    let timeout = match options.raw_get::<Option<f64>>("timeout")? {
        None => TIMEOUT,
        Some(seconds) => match Duration::try_from_secs_f64(seconds) {
            Ok(it) if !it.is_zero() && it.as_secs() <= 60 => it,
            _ => return Err(wrong("a timeout is above zero and at most 60 seconds".into())),
        },
    };
    let max_body = options.raw_get::<Option<i64>>("max_body")?;
    let max_body = max_body.map_or(MAX_BODY, |it| usize::try_from(it).unwrap_or(0).min(MOST_BODY));
    Ok(Ok(Request { method, url, headers, body, timeout, max_body }))
}

/// A response as a script has it.
fn answer(lua: &Lua, response: &Response) -> mlua::Result<Table> {
    let table = lua.create_table()?;
    table.raw_set("status", response.status.as_u16())?;
    let headers = lua.create_table()?;
    for name in response.headers.keys() {
        let values: Vec<&[u8]> = response.headers.get_all(name).iter().map(|it| it.as_bytes()).collect();
        headers.raw_set(name.as_str(), lua.create_string(values.join(&b", "[..]))?)?;
    }
    table.raw_set("headers", headers)?;
    table.raw_set("body", lua.create_string(&response.body)?)?;
    table.raw_set(
        "json",
        lua.create_function(|lua, this: Table| {
            let body: LuaString = this.raw_get("body")?;
            super::json::read(lua, &body.as_bytes())
        })?,
    )?;
    Ok(table)
}
