--- plugin.lua: admits a request only when it carries a known bearer token.

local token = require "streamgate.token"

local M = {}

--- @param request streamgate.Request
function M.authenticate(request, conf)
  local presented = token.bearer(request)
  if not presented then
    return request:reject("auth.missing_token", { ["www-authenticate"] = token.challenge(conf.realm) })
  end

  local principal = conf.tokens:find(presented) -- compares in constant time
  if not principal then
    local challenge = token.challenge(conf.realm, "invalid_token")
    return request:reject("auth.unknown_token", { ["www-authenticate"] = challenge })
  end

  request:set("principal", principal)
end

return M
