--- plugin.lua: admits a request only when it carries a known bearer token.

local time = require "streamgate.time"
local token = require "streamgate.token"

local M = {}

function M.configure(conf, step)
  return { tokens = conf.tokens, realm = conf.realm, slot = step.id }
end

local function is_over(principal)
  return principal.expires and principal.expires <= time.now()
end

--- @param request streamgate.Request
function M.authenticate(request, conf)
  local presented = token.bearer(request)
  if not presented then
    return request:reject("auth.missing_token", { ["www-authenticate"] = token.challenge(conf.realm) })
  end

  local principal = conf.tokens:find(presented) -- compares in constant time
  if not principal or is_over(principal) then
    local challenge = token.challenge(conf.realm, "invalid_token")
    local code = principal and "auth.expired_token" or "auth.unknown_token"
    return request:reject(code, { ["www-authenticate"] = challenge })
  end

  request:set("principal", principal)
  request:set(conf.slot, conf.tokens:key(presented))
end

--- Ends a session whose token was withdrawn or has expired.
--- @param request streamgate.Request
function M.session_tick(request, _session, conf)
  local key = request:get(conf.slot)
  if not key then
    return -- it was another step that let the browser in
  end
  local principal = conf.tokens:find_key(key)
  if not principal or principal.id ~= request:get("principal").id then
    return request:reject "auth.unknown_token"
  end
  if is_over(principal) then
    return request:reject "auth.expired_token"
  end
end

return M
