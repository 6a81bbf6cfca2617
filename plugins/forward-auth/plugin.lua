--- plugin.lua: asks an authorization service about each request.

local base64url = require "streamgate.base64url"
local cache = require "streamgate.cache"
local crypto = require "streamgate.crypto"
local header = require "streamgate.header"
local http = require "streamgate.http"
local json = require "streamgate.json"
local log = require "streamgate.log"
local metrics = require "streamgate.metrics"
local token = require "streamgate.token"

local M = {}

local questions = metrics.counter("questions_total", "Questions to the service by its answer.", { "answer" })

--- Longest header of an answer that is made use of, in bytes.
local LONGEST = 4096

--- What belongs to the connection to the service, or is said by this plugin.
local own = {}
for _, name in ipairs {
  "host",
  "connection",
  "upgrade",
  "content-length",
  "transfer-encoding",
  "te",
  "expect",
  "x-forwarded-for",
  "x-forwarded-proto",
  "x-forwarded-host",
  "x-forwarded-method",
  "x-forwarded-uri",
} do
  own[name] = true
end

--- Whether a plugin cannot set a header upstream.
local function is_reserved(name)
  return (own[name] and not name:find "^x%-forwarded%-")
    or name == "authorization"
    or name == "proxy-authorization"
    or name == "cookie"
    or name:find "^nvcf%-"
    or name:find "^x%-nvcf%-"
    or name:find "^function%-"
    or name:find "^sec%-websocket%-"
end

--- Whether a value can be kept and passed on: text without control characters, C1 (U+0080 to U+009F) included.
local function is_clean(value)
  return #value <= LONGEST and utf8.len(value) ~= nil and not value:find "%c" and not value:find "\xc2[\x80-\x9f]"
end

--- The headers of the question.
local function question(request, conf)
  local headers = {}
  for _, name in ipairs(conf.send_headers) do
    headers[name] = request:header(name)
    if name == "authorization" and not headers[name] then
      local presented = token.bearer(request) -- where a script in a browser puts it on a WebSocket
      headers[name] = presented and "Bearer " .. presented
    end
  end
  local uri = request:path()
  local query = conf.send_query and request:query()
  headers["x-forwarded-uri"] = query and uri .. "?" .. query or uri
  headers["x-forwarded-method"] = request:method()
  headers["x-forwarded-proto"] = request:is_tls() and "https" or "http"
  headers["x-forwarded-host"] = request:header "host"
  headers["x-forwarded-for"] = request:client_ip()
  return headers
end

--- What stands for a question in the cache.
local function key_of(headers, conf)
  local parts = {}
  for name, value in pairs(headers) do
    parts[#parts + 1] = name .. ":" .. value
  end
  table.sort(parts)
  table.insert(parts, 1, conf.scope)
  return base64url.encode(crypto.sha256(table.concat(parts, "\n")))
end

--- The headers of an answer that matter.
local function pick(response, names)
  local picked = {}
  for _, name in ipairs(names) do
    local value = response.headers[name]
    if value and not is_clean(value) then
      return nil
    end
    picked[name] = value
  end
  return picked
end

--- Asks the service. Gives its answer: `status`, 200 for all that let in, and the `headers` that matter.
local function ask(headers, conf)
  local response, reason = http.get(conf.url, { headers = headers, timeout = conf.request_timeout })
  if not response then
    return nil, reason
  end
  local status = response.status
  local names = { "www-authenticate", "location" }
  if status >= 200 and status <= 299 then
    status, names = 200, conf.kept
  elseif status == 302 or status == 303 or status == 307 then
    if not response.headers.location then
      return nil, "status"
    end
  elseif status ~= 401 and status ~= 403 then
    return nil, "status"
  end
  local picked = pick(response, names)
  if not picked then
    return nil, "header"
  end
  return { status = status, headers = picked }
end

local function look_up(request, conf)
  local headers = question(request, conf)
  if not conf.cache then
    return ask(headers, conf)
  end
  local text, reason = cache.get(key_of(headers, conf), conf.cache, function()
    local answer, why = ask(headers, conf)
    return answer and json.encode(answer), why
  end)
  if not text then
    return nil, reason
  end
  return json.decode(text)
end

--- What becomes of a request when the service does not say.
local function unavailable(request, conf, reason)
  questions:add(1, "unavailable")
  log.warn("the authorization service gave no answer that can be used: " .. tostring(reason))
  if conf.on_unavailable == "allow" then
    return
  end
  return request:reject "auth.unavailable"
end

local function refuse(request, answer)
  questions:add(1, "refused")
  local headers = nil
  if not request:is_websocket() then -- no script can read the headers of a refused WebSocket
    headers = answer.headers
    if answer.status < 400 then
      headers["cache-control"] = "no-store"
      return request:respond(answer.status, headers)
    end
  end
  return request:reject(answer.status == 403 and "auth.forbidden" or "auth.refused", headers)
end

--- The principal that an answer names, or nil and what is wrong with it.
local function principal_of(answer, conf)
  local id = answer.headers[conf.principal_header]
  if not id or id == "" then
    return nil
  end
  if #id > 256 or id == "-" then
    return nil, "principal"
  end
  local principal = { id = id }
  for attribute, name in pairs(conf.attributes) do
    local value = answer.headers[name]
    if attribute == "functions" then
      principal.functions = header.list(value) -- without the header it may use none
    else
      principal[attribute] = value
    end
  end
  return principal
end

function M.configure(conf, step)
  for _, name in ipairs(conf.send_headers) do
    if own[name] then
      error(("send_headers: %s is not the browser's to say"):format(name), 0)
    end
  end
  local kept, seen = {}, {}
  local function keep(name)
    if not seen[name] then
      seen[name] = true
      kept[#kept + 1] = name
    end
  end
  keep(conf.principal_header)
  for attribute, name in pairs(conf.attributes) do
    if attribute == "id" then
      error("attributes: the id comes from principal_header", 0)
    end
    keep(name)
  end
  for _, name in ipairs(conf.upstream_headers) do
    if is_reserved(name) then
      error(("upstream_headers: %s is the gateway's to say"):format(name), 0)
    end
    keep(name)
  end
  table.sort(kept)
  conf.kept = kept
  conf.scope = conf.url .. "\n" .. table.concat(kept, ",")
  conf.slot = step.id
  if conf.request_timeout >= step.timeout then
    error(("request_timeout: the step itself may wait for %gs only: set its `timeout` to more"):format(step.timeout), 0)
  end
  return conf
end

--- @param request streamgate.Request
function M.authenticate(request, conf)
  local answer, reason = look_up(request, conf)
  if not answer then
    return unavailable(request, conf, reason)
  end
  if answer.status ~= 200 then
    return refuse(request, answer)
  end
  local principal, wrong = principal_of(answer, conf)
  if wrong then
    return unavailable(request, conf, wrong)
  end
  if principal then
    request:set("principal", principal)
  elseif not conf.anonymous and not request:get "principal" then
    return unavailable(request, conf, "no " .. conf.principal_header)
  end
  questions:add(1, "allowed")
  if #conf.upstream_headers > 0 then
    local values = {}
    for _, name in ipairs(conf.upstream_headers) do
      values[name] = answer.headers[name]
    end
    request:set(conf.slot, values)
  end
end

function M.upstream_request(request, upstream, conf)
  local values = request:get(conf.slot) or {}
  for _, name in ipairs(conf.upstream_headers) do
    if values[name] then
      upstream:set_header(name, values[name])
    else
      upstream:remove_header(name) -- the browser's own copy must not stand in for a missing one
    end
  end
  if request:get(conf.slot) then
    request:set(conf.slot, nil) -- an open session needs it no more
  end
end

return M
