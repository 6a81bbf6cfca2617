--- plugin.lua: admits requests whose token an authorization server calls active (RFC 7662).

local base64 = require "streamgate.base64"
local base64url = require "streamgate.base64url"
local cache = require "streamgate.cache"
local crypto = require "streamgate.crypto"
local http = require "streamgate.http"
local json = require "streamgate.json"
local log = require "streamgate.log"
local metrics = require "streamgate.metrics"
local time = require "streamgate.time"
local token = require "streamgate.token"
local url = require "streamgate.url"

local M = {}

local questions =
  metrics.counter("questions_total", "Questions to the authorization server by its answer.", { "answer" })

--- Longest token that the server is asked about, in bytes.
local LONGEST = 8192

--- The token of a request, from where a browser can put one.
local function presented_by(request, conf)
  local presented = token.bearer(request)
  if not presented and conf.cookie and not request:header "authorization" then
    presented = request:cookie(conf.cookie)
  end
  return presented ~= "" and presented or nil
end

local function is_number(value)
  return value == nil or (type(value) == "number" and math.abs(value) < math.huge)
end

local function is_text_or_list(value)
  if type(value) == "table" then
    for _, item in ipairs(value) do
      if type(item) ~= "string" then
        return false
      end
    end
    return true
  end
  return value == nil or type(value) == "string"
end

--- A claim as an attribute: a string, a number, a boolean, or a list of them. Anything else is left out.
local function attribute(value)
  if type(value) == "table" then
    local items = {}
    for _, item in ipairs(value) do
      if type(item) ~= "table" then
        items[#items + 1] = attribute(item)
      end
    end
    return #items > 0 and items or nil
  end
  local kind = type(value)
  if kind == "string" or kind == "number" or kind == "boolean" then
    return value
  end
end

--- The items of a claim that is a list, or a text with items between spaces.
local function items_of(claim)
  if type(claim) == "table" then
    return claim
  end
  local items = {}
  for item in (claim or ""):gmatch "%S+" do
    items[#items + 1] = item
  end
  return items
end

--- Asks the server. Gives what it says about the token, and nothing that is not needed.
local function ask(presented, conf)
  local form = { token = presented, token_type_hint = "access_token" }
  local headers = { accept = "application/json" }
  if conf.client_auth == "basic" then
    -- Both are encoded like a form first (RFC 6749 section 2.3.1).
    local pair = url.encode(conf.client_id) .. ":" .. url.encode(conf.client_secret)
    headers.authorization = "Basic " .. base64.encode(pair)
  else
    form.client_id, form.client_secret = conf.client_id, conf.client_secret
  end
  local response, reason = http.post(conf.url, { form = form, headers = headers, timeout = conf.request_timeout })
  if not response then
    return nil, reason
  end
  if response.status ~= 200 then
    return nil, ("status %d"):format(response.status)
  end
  local claims = response:json()
  if type(claims) ~= "table" or type(claims.active) ~= "boolean" then
    return nil, "broken"
  end
  if not claims.active then
    return { active = false } -- nothing else that it says counts (RFC 7662 section 2.2)
  end
  if claims.nbf == json.null then
    claims.nbf = nil
  end
  if claims.exp == json.null then
    claims.exp = nil
  end
  local complete = is_number(claims.exp) and is_number(claims.nbf)
  for _, name in ipairs { "aud", "scope", conf.functions_claim } do
    if claims[name] == json.null then
      claims[name] = nil
    end
    complete = complete and is_text_or_list(claims[name])
  end
  if not complete then
    return nil, "broken"
  end
  local known = { active = true, exp = claims.exp, nbf = claims.nbf, attributes = {} }
  known.aud = claims.aud and (type(claims.aud) == "table" and claims.aud or { claims.aud })
  known.scope = claims.scope and items_of(claims.scope)
  known.iss = type(claims.iss) == "string" and claims.iss or nil
  local id = claims[conf.principal]
  known.id = (type(id) == "string" and id) or (math.type(id) == "integer" and ("%d"):format(id)) or nil
  for _, name in ipairs(conf.attributes) do
    known.attributes[name] = attribute(claims[name])
  end
  if conf.functions_claim then
    known.functions = items_of(claims[conf.functions_claim])
  end
  return known
end

--- What is known about a token: from the cache, or from the server.
local function look_up(presented, conf)
  -- The key is a hash, so that the cache has no tokens.
  local key = base64url.encode(crypto.sha256(conf.scope .. "\0" .. presented))
  local is_fresh = false
  local function load()
    is_fresh = true
    local known, reason = ask(presented, conf)
    if not known then
      questions:add(1, "unavailable")
      log.warn("the authorization server gave no answer that can be used: " .. reason)
      return nil, reason
    end
    questions:add(1, known.active and "active" or "inactive")
    local now = time.now()
    known.good_until = now + (known.active and conf.cache or conf.cache_inactive)
    if known.exp then
      known.good_until = math.min(known.good_until, math.max(known.exp, now))
    end
    return json.encode(known)
  end
  local longest = math.max(conf.cache, conf.cache_inactive)
  local text, reason = cache.get(key, longest, load)
  local known = text and json.decode(text)
  if known and not is_fresh and known.good_until <= time.now() then
    cache.delete(key)
    text, reason = cache.get(key, longest, load)
    known = text and json.decode(text)
  end
  if not known then
    return nil, reason
  end
  return known
end

local function has_one_of(list, wanted)
  for _, item in ipairs(list or {}) do
    for _, other in ipairs(wanted) do
      if item == other then
        return true
      end
    end
  end
  return false
end

--- What is wrong with a token: a code, and the code of the challenge (RFC 6750 section 3.1); nil when all is well.
local function fault(known, conf)
  local now = time.now()
  if not known.active then
    return "auth.unknown_token", "invalid_token"
  elseif known.exp and known.exp + conf.leeway <= now then
    return "auth.expired_token", "invalid_token"
  elseif known.nbf and known.nbf - conf.leeway > now then
    return "auth.unknown_token", "invalid_token"
  elseif conf.issuer and known.iss ~= conf.issuer then
    return "auth.unknown_token", "invalid_token"
  elseif #conf.audience > 0 and not has_one_of(known.aud, conf.audience) then
    return "auth.unknown_token", "invalid_token"
  end
  for _, scope in ipairs(conf.scopes) do
    if not has_one_of(known.scope, { scope }) then
      return "auth.insufficient_scope", "insufficient_scope"
    end
  end
end

--- The principal, or nil where the token has no name for one.
local function principal_of(known, conf)
  local id = known.id
  if not id or id == "" or id == "-" or #id > 256 or not utf8.len(id) or id:find "%c" then
    return nil
  end
  -- A control character of Unicode beyond ASCII is two bytes, C2 80 to C2 9F.
  if id:find "\xc2[\x80-\x9f]" then
    return nil
  end
  local principal = {}
  for name, value in pairs(known.attributes) do
    principal[name] = value
  end
  principal.id = id
  principal.functions = conf.functions_claim and known.functions or nil
  return principal
end

function M.configure(conf, step)
  for _, scope in ipairs(conf.scopes) do
    if scope == "" or scope:find '[^!-~]' or scope:find '["\\]' then -- RFC 6749 section 3.3
      error("scopes: expected names without spaces and quotes", 0)
    end
  end
  for _, name in ipairs(conf.attributes) do
    if name == "id" or name == "functions" then
      error(("attributes: `%s` comes from `%s`"):format(name, name == "id" and "principal" or "functions_claim"), 0)
    end
  end
  if conf.request_timeout >= step.timeout then
    error(("request_timeout: the step itself may wait for %gs only: set its `timeout` to more"):format(step.timeout), 0)
  end
  conf.slot = step.id
  -- What is kept of an answer depends on these.
  local parts = { conf.url, conf.client_id, conf.principal, conf.functions_claim or "", table.unpack(conf.attributes) }
  conf.scope = table.concat(parts, "\n")
  -- The secret may be shorter than what a key needs to be.
  conf.key = crypto.sha256("introspection-auth\0" .. conf.client_secret)
  return conf
end

--- @param request streamgate.Request
function M.authenticate(request, conf)
  local presented = presented_by(request, conf)
  if not presented then
    return request:reject("auth.missing_token", { ["www-authenticate"] = token.challenge(conf.realm) })
  end
  local function refuse(code, challenge)
    local value = token.challenge(conf.realm, challenge)
    if challenge == "insufficient_scope" then
      value = value .. (', scope="%s"'):format(table.concat(conf.scopes, " "))
    end
    return request:reject(code, { ["www-authenticate"] = value })
  end
  -- The server is not asked about what cannot be a token (RFC 6749 appendix A.12).
  if #presented > LONGEST or presented:find "[^\x20-\x7e]" then
    return refuse("auth.unknown_token", "invalid_token")
  end
  local known = look_up(presented, conf)
  if not known then
    return request:reject "auth.unavailable"
  end
  local code, challenge = fault(known, conf)
  if code then
    return refuse(code, challenge)
  end
  local principal = principal_of(known, conf)
  if not principal then
    return refuse("auth.unknown_token", "invalid_token")
  end
  request:set("principal", principal)
  if request:is_websocket() then
    -- It has to be asked about again while the session is open, and is not kept in the open.
    request:set(conf.slot, { token = crypto.seal(conf.key, presented), exp = known.exp })
  end
end

--- Ends a session whose token has expired or was withdrawn.
function M.session_tick(request, _, conf)
  local kept = request:get(conf.slot)
  if not kept then
    return -- it was another step that let the browser in
  end
  local presented = crypto.open(conf.key, kept.token)
  local known = presented and look_up(presented, conf)
  if not known then
    -- The server is away, or the client's secret has changed: what was known holds as long as it was said to.
    local exp = kept.exp
    if exp and exp + conf.leeway <= time.now() then
      return request:reject "auth.expired_token"
    elseif not presented and not exp then
      return request:reject "auth.unknown_token"
    end
    return
  end
  local code = fault(known, conf)
  if code then
    return request:reject(code)
  end
  local principal = request:get "principal"
  if not principal or principal.id ~= known.id then
    return request:reject "auth.unknown_token"
  end
end

return M
