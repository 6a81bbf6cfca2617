//! `request`: what the browser said, and what is decided about it.

use bytes::Bytes;
use http::StatusCode;
use mlua::{BString, LuaString, Table, Value};

use crate::lua::api::{Choice, Live, Name, Slot, handle, misuse};
use crate::lua::convert;
use crate::policy::{Decision, LocalResponse};
use crate::rejection::{Code, Rejection};

/// The browser's request.
pub(crate) struct RequestHandle(pub(crate) Slot);

/// Largest body that a plugin may answer with, in bytes.
const LARGEST_BODY: usize = 1 << 20;

handle! {
    RequestHandle "request";

    /// The id of the request: what the log and the body of an error show.
    #[phases(OnRequest | Authenticate | Authorize | Select | UpstreamRequest | ResponseHeaders | SessionOpen | SessionMessage | SessionTick | SessionPark | SessionResume | SessionEnd | Log)]
    #[example("log.info(\"seen \" .. request:id())")]
    fn id(lua, live) -> LuaString {
        lua.create_string(&live.exchange.id)
    }

    /// The method, in capitals.
    #[phases(OnRequest | Authenticate | Authorize | Select | UpstreamRequest | ResponseHeaders | SessionOpen | SessionMessage | SessionTick | SessionPark | SessionResume | SessionEnd | Log)]
    #[example("if request:method() == \"GET\" then … end")]
    fn method(lua, live) -> LuaString {
        lua.create_string(live.exchange.method.as_str())
    }

    /// The path as it was sent, without the query.
    #[phases(OnRequest | Authenticate | Authorize | Select | UpstreamRequest | ResponseHeaders | SessionOpen | SessionMessage | SessionTick | SessionPark | SessionResume | SessionEnd | Log)]
    #[example("local tenant = request:path():match \"^/([^/]+)/\"")]
    fn path(lua, live) -> LuaString {
        lua.create_string(&live.exchange.path)
    }

    /// The query as it was sent, without the question mark.
    #[phases(OnRequest | Authenticate | Authorize | Select | UpstreamRequest | ResponseHeaders | Log)]
    #[example("local query = request:query() or \"\"")]
    fn query(lua, live) -> Option<LuaString> {
        live.exchange.query.as_ref().map(|it| lua.create_string(it)).transpose()
    }

    /// The first value of a parameter of the query, without its escapes.
    #[phases(OnRequest | Authenticate | Authorize | Select | UpstreamRequest | ResponseHeaders | Log)]
    #[example("local key = request:parameter \"key\"")]
    fn parameter(lua, live, name: LuaString) -> Option<LuaString> {
        live.exchange.parameter(&name.to_str()?).map(|it| lua.create_string(it)).transpose()
    }

    /// A name of the session that the request opens or comes back to, which lets nobody in; nil when it is not about one. It
    /// is the same as `session:id()` in the phases of the session.
    #[phases(UpstreamRequest | ResponseHeaders | Log)]
    #[example("lease.take(\"user:\" .. id, request:session_id(), 3, 90)")]
    fn session_id(lua, live) -> Option<LuaString> {
        live.exchange.session.id.as_ref().map(|it| lua.create_string(it)).transpose()
    }

    /// The first header of that name that the browser sent. Names are compared without case.
    #[phases(OnRequest | Authenticate | Authorize | Select | UpstreamRequest | ResponseHeaders | Log)]
    #[example("local agent = request:header \"user-agent\"")]
    fn header(lua, live, name: Name) -> Option<LuaString> {
        let value = name.get().and_then(|it| live.exchange.headers.get(it));
        value.map(|it| lua.create_string(it.as_bytes())).transpose()
    }

    /// All headers of that name that the browser sent, in their order.
    #[phases(OnRequest | Authenticate | Authorize | Select | UpstreamRequest | ResponseHeaders | Log)]
    #[example("local lines = request:headers \"x-forwarded-for\"")]
    fn headers(lua, live, name: Name) -> Table {
        let values = name.get().into_iter().flat_map(|it| live.exchange.headers.get_all(it));
        let values = values.map(|it| lua.create_string(it.as_bytes()));
        lua.create_sequence_from(values.collect::<mlua::Result<Vec<_>>>()?)
    }

    /// The value of a cookie that the browser sent, as it was sent.
    #[phases(OnRequest | Authenticate | Authorize | Select | UpstreamRequest | ResponseHeaders | Log)]
    #[example("local token = request:cookie \"token\"")]
    fn cookie(lua, live, name: LuaString) -> Option<LuaString> {
        live.exchange.cookie(&name.to_str()?).map(|it| lua.create_string(it)).transpose()
    }

    /// The value of the first entry `key.value` that the browser offered in `Sec-WebSocket-Protocol`, the one header
    /// that a script in a browser can set on a WebSocket. Keys are compared without case.
    #[phases(OnRequest | Authenticate | Authorize | Select | UpstreamRequest | ResponseHeaders | Log)]
    #[example("local token = request:subprotocol \"authorization-bearer\"")]
    fn subprotocol(lua, live, key: LuaString) -> Option<LuaString> {
        let key = key.to_str()?;
        let value = live.exchange.offer.values(&key).next();
        value.map(|it| lua.create_string(it)).transpose()
    }

    /// The browser's IP address.
    #[phases(OnRequest | Authenticate | Authorize | Select | UpstreamRequest | ResponseHeaders | SessionOpen | SessionMessage | SessionTick | SessionPark | SessionResume | SessionEnd | Log)]
    #[example("local ip = request:client_ip()")]
    fn client_ip(lua, live) -> LuaString {
        lua.create_string(live.exchange.client.ip().to_string())
    }

    /// Whether the browser's connection is encrypted.
    #[phases(OnRequest | Authenticate | Authorize | Select | UpstreamRequest | ResponseHeaders | SessionOpen | SessionMessage | SessionTick | SessionPark | SessionResume | SessionEnd | Log)]
    #[example("local scheme = request:is_tls() and \"https\" or \"http\"")]
    fn is_tls(_lua, live) -> bool {
        Ok(live.exchange.tls)
    }

    /// Whether the request opens a WebSocket.
    #[phases(OnRequest | Authenticate | Authorize | Select | UpstreamRequest | ResponseHeaders | SessionOpen | SessionMessage | SessionTick | SessionPark | SessionResume | SessionEnd | Log)]
    #[example("if request:is_websocket() then … end")]
    fn is_websocket(_lua, live) -> bool {
        Ok(live.exchange.websocket)
    }

    /// Whether this is a CORS preflight, which browsers send without credentials.
    #[phases(OnRequest | Authenticate | Authorize | Select | UpstreamRequest | ResponseHeaders | Log)]
    #[example("if request:is_preflight() then return request:respond(204) end")]
    fn is_preflight(_lua, live) -> bool {
        Ok(live.exchange.is_preflight())
    }

    /// The pattern of the route that the request took.
    #[phases(OnRequest | Authenticate | Authorize | Select | UpstreamRequest | ResponseHeaders | SessionOpen | SessionMessage | SessionTick | SessionPark | SessionResume | SessionEnd | Log)]
    #[example("local route = request:route()")]
    fn route(lua, live) -> LuaString {
        lua.create_string(&live.exchange.route)
    }

    /// What was set under that name: `principal`, `function_id`, or what another plugin set.
    #[phases(OnRequest | Authenticate | Authorize | Select | UpstreamRequest | ResponseHeaders | SessionOpen | SessionMessage | SessionTick | SessionPark | SessionResume | SessionEnd | Log)]
    #[example("local principal = request:get \"principal\"")]
    fn get(lua, live, name: LuaString) -> Value {
        let exchange = &live.exchange;
        match &*name.to_str()? {
            "principal" => match &exchange.principal {
                Some(it) => convert::principal(lua, it).map(Value::Table),
                None => Ok(Value::Nil),
            },
            "function_id" => text(lua, exchange.function.as_deref()),
            "function_version_id" => text(lua, exchange.version.as_deref()),
            name => exchange.var(name).map_or(Ok(Value::Nil), |it| convert::from_json(lua, it)),
        }
    }

    /// Tells later plugins something about the request. `principal` takes a table with an `id`, its attributes, and
    /// `functions` when it may use only those; `function_id` and `function_version_id` take the function to reach. Other
    /// names take strings, numbers, booleans and tables of them; they are shared by all plugins of the chain, so begin them with
    /// the plugin's name: `app-version`, or `app-version.page` where there are several.
    #[phases(OnRequest | Authenticate | Authorize | Select | UpstreamRequest)]
    #[example("request:set(\"principal\", { id = \"ada\" })")]
    fn set(_lua, live, name: LuaString, value: Value) -> () {
        let name = name.to_str()?;
        let wrong = |it: String| misuse(format!("request:set(\"{}\", …): {it}", &*name));
        match &*name {
            "principal" => live.exchange.principal = Some(convert::to_principal(&value).map_err(wrong)?),
            "function_id" => live.exchange.function = Some(id(&value).ok_or_else(|| wrong("expected an id".into()))?),
            "function_version_id" => {
                live.exchange.version = Some(id(&value).ok_or_else(|| wrong("expected an id".into()))?);
            }
            name => {
                let value = convert::to_json(&value).map_err(|it| wrong(format!("cannot keep {it}")))?;
                live.exchange.set_var(name, value);
            }
        }
        Ok(())
    }

    /// Refuses the request, or ends the session. `code` is one of the gateway's own codes (`auth.missing_token`) or one that the plugin's
    /// schema declares; `headers` go with the answer, each a string or a list of them. Those that frame a message, such as
    /// `content-length` and `transfer-encoding`, are the gateway's to say, and are left out. Return what it gives: `return request:reject(…)`.
    #[phases(OnRequest | Authenticate | Authorize | Select | UpstreamRequest | SessionMessage | SessionTick)]
    #[example("return request:reject \"auth.missing_token\"")]
    fn reject(_lua, live, code: LuaString, headers: Option<Table>) -> Choice {
        let name = code.to_str()?;
        let code = live.codes.iter().find(|it| it.name == *name).map(|it| Code::Declared(it.clone()));
        let Some(code) = code.or_else(|| Code::find(&name).cloned()) else {
            return Err(misuse(format!("request:reject: the code {:?} is neither the gateway's nor in schema.lua", &*name)));
        };
        let mut rejection = Rejection::new(code);
        *rejection.headers = header_map("request:reject", headers)?;
        decide(live, Decision::Reject(rejection))
    }

    /// Answers the request here, without an upstream. Headers that frame a message, such as `content-length` and
    /// `transfer-encoding`, are the gateway's to say, and are left out. Return what it gives: `return request:respond(…)`.
    #[phases(OnRequest | Authenticate | Authorize | Select | UpstreamRequest)]
    #[example("return request:respond(204)")]
    fn respond(_lua, live, status: i64, headers: Option<Table>, body: Option<LuaString>) -> Choice {
        let status = u16::try_from(status).ok().and_then(|it| StatusCode::from_u16(it).ok()).filter(|it| it.as_u16() >= 200);
        let Some(status) = status else { return Err(misuse("request:respond: expected a status from 200 to 999")) };
        let body = body.map_or_else(Bytes::new, |it| Bytes::copy_from_slice(&it.as_bytes()));
        if body.len() > LARGEST_BODY {
            return Err(misuse(format!("request:respond: a body has at most {LARGEST_BODY} bytes")));
        }
        let headers = header_map("request:respond", headers)?;
        decide(live, Decision::Respond(Box::new(LocalResponse { status, headers, body })))
    }
}

fn text(lua: &mlua::Lua, text: Option<&str>) -> mlua::Result<Value> {
    text.map_or(Ok(Value::Nil), |it| lua.create_string(it).map(Value::String))
}

/// An id of NVCF: short and of characters that can stand in a header.
fn id(value: &Value) -> Option<String> {
    let id = value.as_string().and_then(|it| it.to_str().ok()).map(|it| it.to_owned());
    id.filter(|it| !it.is_empty() && it.len() <= 128 && it.bytes().all(|it| it.is_ascii_graphic()))
}

fn decide(live: &mut Live, decision: Decision) -> mlua::Result<Choice> {
    if live.decision.is_some() {
        return Err(misuse("a request is rejected or answered once; return what the first call gave"));
    }
    live.decision = Some(decision);
    Ok(Choice)
}

/// A script's table of headers.
fn header_map(function: &str, table: Option<Table>) -> mlua::Result<http::HeaderMap> {
    let mut headers = http::HeaderMap::new();
    let Some(table) = table else { return Ok(headers) };
    let wrong = || misuse(format!("{function}: headers are a table from names to strings, or lists of them"));
    for pair in table.pairs::<Name, Value>() {
        let (name, value) = pair.map_err(|_| wrong())?;
        let values = match value {
            Value::Table(values) => values.sequence_values::<BString>().collect::<mlua::Result<Vec<_>>>(),
            Value::String(value) => Ok(vec![BString::from(&*value.as_bytes())]),
            _ => return Err(wrong()),
        };
        for value in values.map_err(|_| wrong())? {
            let (name, value) = super::upstream::header(function, name.clone(), value)?;
            super::upstream::add(&mut headers, name, value)?;
        }
    }
    Ok(headers)
}
