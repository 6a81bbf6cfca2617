---@meta streamgate.http
-- Written by `make docs` from src/lua/api; do not edit.

---Other services. A plugin reaches the hosts of its settings of the type `url` and of the documents that `oidc.discover` found, and no others. Redirects are not followed.
---@class streamgate.Http
local http = {}

---Sends a request: `url`, and perhaps `method`, `headers`, `query` (a table), one of `body`, `form` (a table) and `json`
---(a value), `timeout` in seconds (5) and `max_body` in bytes (256 KiB). Gives a table with `status`, `headers` (names
---in lower case) and `body`, or nil and a reason: `timeout`, `unreachable`, `tls`, `not_allowed`, `too_large`, `broken`.
---@param options table
---@return streamgate.Answer?
---@return string?
function http.request(options) end

---Sends a GET request; `options` are those of `http.request`.
---@param url string
---@param options? table
---@return streamgate.Answer?
---@return string?
function http.get(url, options) end

---Sends a POST request; `options` are those of `http.request`.
---@param url string
---@param options? table
---@return streamgate.Answer?
---@return string?
function http.post(url, options) end

return http
