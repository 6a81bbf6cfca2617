---@meta
-- Written by `make docs` from src/lua/api; do not edit.

---@class streamgate.Decision

---The browser's request. Every phase gets it as its first argument.
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

---The first header of that name that the browser sent. Names are compared without case.
---@param name string
---@return string?
function request:header(name) end

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
---`functions` when it may use only those; `function_id` takes the function to reach. Other names take strings,
---numbers, booleans and tables of them.
---@param name string
---@param value any
function request:set(name, value) end

---Refuses the request, or ends the session. `code` is one of the gateway's own codes (`auth.missing_token`) or one that the plugin's
---schema declares; `headers` go with the answer. Return what it gives: `return request:reject(…)`.
---@param code string
---@param headers? table
---@return streamgate.Decision
function request:reject(code, headers) end

---Answers the request here, without an upstream. Return what it gives: `return request:respond(…)`.
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

---Sets a header, in place of all of that name. The headers that NVCF reads (`authorization`, `function-id` and
---their like) and those of the connection are the gateway's own.
---@param name string
---@param value string
function upstream:set_header(name, value) end

---Adds a header beside those of that name.
---@param name string
---@param value string
function upstream:add_header(name, value) end

---Takes out all headers of that name.
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

---The gateway's log: `local log = require "streamgate.log"`. Each line carries the plugin's name.
---@class streamgate.Log
local log = {}

---Something is wrong and needs an operator. Never log a token.
---@param message any
function log.error(message) end

---Something is odd.
---@param message any
function log.warn(message) end

---Something happened.
---@param message any
function log.info(message) end

---Something for whoever looks for a fault; not shown by default.
---@param message any
function log.debug(message) end

---The gateway's clock: `local time = require "streamgate.time"`.
---@class streamgate.Time
local time = {}

---Seconds since the Unix epoch, with a fraction. A spec sets them with `at`; `os.time` it cannot set.
---@return number
function time.now() end
