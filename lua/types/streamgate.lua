---@meta
-- Written by `make docs` from src/lua/api; do not edit.

---@class streamgate.Decision

---The table that `plugin.lua` returns.
---@class streamgate.Plugin
---@field configure? fun(conf: any, step: { id: string, timeout: number }): any
---@field self_test? fun(conf: any)
---@field init? fun(conf: any)
---@field on_request? fun(request: streamgate.Request, conf: any): streamgate.Decision?
---@field authenticate? fun(request: streamgate.Request, conf: any): streamgate.Decision?
---@field authorize? fun(request: streamgate.Request, conf: any): streamgate.Decision?
---@field select? fun(request: streamgate.Request, conf: any): streamgate.Decision?
---@field upstream_request? fun(request: streamgate.Request, upstream: streamgate.Upstream, conf: any): streamgate.Decision?
---@field response_headers? fun(request: streamgate.Request, response: streamgate.Response, conf: any)
---@field session_open? fun(request: streamgate.Request, session: streamgate.Session, conf: any)
---@field session_message? fun(request: streamgate.Request, message: streamgate.Message, conf: any): streamgate.Decision?
---@field session_tick? fun(request: streamgate.Request, session: streamgate.Session, conf: any): streamgate.Decision?
---@field session_park? fun(request: streamgate.Request, session: streamgate.Session, conf: any)
---@field session_resume? fun(request: streamgate.Request, session: streamgate.Session, conf: any)
---@field session_end? fun(request: streamgate.Request, session: streamgate.Session, conf: any)
---@field log? fun(request: streamgate.Request, response: streamgate.Response, conf: any)

---The browser's request. Every phase but `init` gets it as its first argument.
---@class streamgate.Request
local request = {}

---The id of the request: what the log and the body of an error show.
---@return string
function request:id() end

---The method, in capitals.
---@return string
function request:method() end

---The path as it was sent, without the query.
---@return string
function request:path() end

---The query as it was sent, without the question mark.
---@return string?
function request:query() end

---The first value of a parameter of the query, without its escapes.
---@param name string
---@return string?
function request:parameter(name) end

---A name of the session that the request opens or comes back to, which lets nobody in; nil when it is not about one. It
---is the same as `session:id()` in the phases of the session.
---@return string?
function request:session_id() end

---The first header of that name that the browser sent. Names are compared without case.
---@param name string
---@return string?
function request:header(name) end

---All headers of that name that the browser sent, in their order.
---@param name string
---@return table
function request:headers(name) end

---The value of a cookie that the browser sent, as it was sent.
---@param name string
---@return string?
function request:cookie(name) end

---The value of the first entry `key.value` that the browser offered in `Sec-WebSocket-Protocol`, the one header
---that a script in a browser can set on a WebSocket. Keys are compared without case.
---@param key string
---@return string?
function request:subprotocol(key) end

---The browser's IP address.
---@return string
function request:client_ip() end

---Whether the browser's connection is encrypted.
---@return boolean
function request:is_tls() end

---Whether the request opens a WebSocket.
---@return boolean
function request:is_websocket() end

---Whether this is a CORS preflight, which browsers send without credentials.
---@return boolean
function request:is_preflight() end

---The pattern of the route that the request took.
---@return string
function request:route() end

---What was set under that name: `principal`, `function_id`, or what another plugin set.
---@param name string
---@return any
function request:get(name) end

---Tells later plugins something about the request. `principal` takes a table with an `id`, its attributes, and
---`functions` when it may use only those; `function_id` and `function_version_id` take the function to reach. Other
---names take strings, numbers, booleans and tables of them; they are shared by all plugins of the chain, so begin them with
---the plugin's name: `app-version`, or `app-version.page` where there are several.
---@param name string
---@param value any
function request:set(name, value) end

---Refuses the request, or ends the session. `code` is one of the gateway's own codes (`auth.missing_token`) or one that the plugin's
---schema declares; `headers` go with the answer, each a string or a list of them. Those that frame a message, such as
---`content-length` and `transfer-encoding`, are the gateway's to say, and are left out. Return what it gives: `return request:reject(…)`.
---@param code string
---@param headers? table
---@return streamgate.Decision
function request:reject(code, headers) end

---Answers the request here, without an upstream. Headers that frame a message, such as `content-length` and
---`transfer-encoding`, are the gateway's to say, and are left out. Return what it gives: `return request:respond(…)`.
---@param status integer
---@param headers? table
---@param body? string
---@return streamgate.Decision
function request:respond(status, headers, body) end

---The request that goes upstream; `upstream_request` gets it as its second argument.
---@class streamgate.Upstream
local upstream = {}

---The first header of that name that will go upstream.
---@param name string
---@return string?
function upstream:header(name) end

---Sets a header, in place of all of that name, and of those whose name differs in `-` and `_` alone: some servers read
---them as one. The headers that NVCF reads (`authorization`, `function-id` and
---their like) and those of the connection are the gateway's own.
---@param name string
---@param value string
function upstream:set_header(name, value) end

---Adds a header beside those of that name.
---@param name string
---@param value string
function upstream:add_header(name, value) end

---Takes out all headers of that name, and those whose name differs in `-` and `_` alone.
---@param name string
function upstream:remove_header(name) end

---The response on its way to the browser; `response_headers` and `log` get it as their second argument.
---@class streamgate.Response
local response = {}

---The status.
---@return integer
function response:status() end

---The error code, when the gateway did not serve the request.
---@return string?
function response:code() end

---The first header of that name.
---@param name string
---@return string?
function response:header(name) end

---The names of all headers, in lower case and sorted.
---@return table
function response:names() end

---Sets a header, in place of all of that name.
---@param name string
---@param value string
function response:set_header(name, value) end

---Adds a header beside those of that name.
---@param name string
---@param value string
function response:add_header(name, value) end

---Takes out all headers of that name.
---@param name string
function response:remove_header(name) end

---An open session; the phases of a session get it as their second argument.
---@class streamgate.Session
local session = {}

---A name of the session that does not let anybody into it. It stays when the browser comes back.
---@return string
function session:id() end

---The function that it is a session of.
---@return string
function session:function_id() end

---How long it has been open, in seconds.
---@return number
function session:age() end

---Why it was parked or has ended, or how its browser came back (`reattach`, `reconnect`).
---@return string?
function session:cause() end

---Bytes that came from the browser.
---@return integer
function session:received() end

---Bytes that went to the browser.
---@return integer
function session:sent() end

---A message of a session; `session_message` gets it as its second argument.
---@class streamgate.Message
local message = {}

---Who sent it: `browser` or `function`.
---@return string
function message:from() end

---What it is: `text` or `binary`.
---@return string
function message:kind() end

---What it says.
---@return string
function message:payload() end

---How many bytes that are.
---@return integer
function message:size() end

---Puts something else in its place, at most 1 MiB.
---@param payload string
function message:replace(payload) end

---Does not pass it on. To end the session instead, return what `request:reject` gives.
function message:drop() end

---The principals of a token file: the value of a setting of the type `token-file`.
---@class streamgate.Tokens
local tokens = {}

---The principal that the token belongs to: a table with its `id`, its attributes, `expires` in seconds since the
---Unix epoch when its token has an end, and its `functions` when it has its own. The time it takes does not tell how
---much of the token is right.
---@param token string
---@return table?
function tokens:find(token) end

---A name of a token that does not give it away, to be kept for `session_tick`.
---@param token string
---@return string
function tokens:key(token) end

---The principal whose token has this key, in the file as it is now.
---@param key string
---@return table?
function tokens:find_key(key) end

---What `http.request` gives: a table with `status`, `headers` and `body`.
---@class streamgate.Answer
---@field status integer
---@field headers table<string, string> names in lower case
---@field body string
local answer = {}

---The body as a value; nil and a reason when it is not JSON.
---@return any
---@return string?
function answer:json() end

---What `ip.set` gives.
---@class streamgate.Set
local set = {}

---Whether an address is in it; false for what is no address.
---@param address string
---@return boolean
function set:has(address) end

---What `regex.new` gives.
---@class streamgate.Pattern
local pattern = {}

---Whether the text has a match.
---@param text string
---@return boolean
function pattern:is_match(text) end

---The first and the last byte of the first match, counted from one; nil when there is none.
---@param text string
---@return integer?
---@return integer?
function pattern:find(text) end

---What the groups of the first match have caught, by number (0 is the whole) and by name; nil when there is none.
---@param text string
---@return table?
function pattern:match(text) end

---The text with all matches replaced; `$1` and `$name` stand for groups.
---@param text string
---@param replacement string
---@return string
function pattern:replace(text, replacement) end

---What the functions of `metrics` give.
---@class streamgate.Meter
local meter = {}

---Adds to a counter; the values of its labels follow.
---@param n? number
---@param ... any
function meter:add(n, ...) end

---Sets a gauge; the values of its labels follow.
---@param value number
---@param ... any
function meter:set(value, ...) end

---Counts a value of a histogram; the values of its labels follow.
---@param value number
---@param ... any
function meter:observe(value, ...) end
