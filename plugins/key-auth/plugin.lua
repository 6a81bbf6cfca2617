--- plugin.lua: admits a request only when it carries a known API key.

local place = require "streamgate.place"
local time = require "streamgate.time"

local M = {}

function M.configure(conf, step)
  local realm = conf.realm:gsub('[\\"]', "\\%0")
  return {
    keys = conf.keys,
    places = place.parse_all(conf.from),
    challenge = ('ApiKey realm="%s"'):format(realm),
    slot = step.id,
  }
end

local function is_over(principal)
  return principal.expires and principal.expires <= time.now()
end

--- @param request streamgate.Request
function M.authenticate(request, conf)
  local presented = place.read(request, conf.places)
  if not presented then
    return request:reject("auth.missing_key", { ["www-authenticate"] = conf.challenge })
  end

  local principal = conf.keys:find(presented) -- compares in constant time
  if not principal or is_over(principal) then
    local code = principal and "auth.expired_key" or "auth.unknown_key"
    return request:reject(code, { ["www-authenticate"] = conf.challenge })
  end

  request:set("principal", principal)
  request:set(conf.slot, conf.keys:key(presented))
end

function M.upstream_request(_, upstream, conf)
  place.hide(upstream, conf.places)
end

--- Ends a session whose key was withdrawn or has expired.
--- @param request streamgate.Request
function M.session_tick(request, _, conf)
  local name = request:get(conf.slot)
  if not name then
    return -- it was another step that let the browser in
  end
  local principal = conf.keys:find_key(name)
  if not principal or principal.id ~= request:get("principal").id then
    return request:reject "auth.unknown_key"
  end
  if is_over(principal) then
    return request:reject "auth.expired_key"
  end
end

return M
