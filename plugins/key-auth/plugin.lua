--- plugin.lua: admits a request only when it carries a known API key.

local time = require "streamgate.time"

local M = {}

--- How a key is read from each place, and how it is kept from going further. `subprotocol` has no name: of the
--- entries of `Sec-WebSocket-Protocol` only these two are held back by the gateway, all others go upstream.
local readers = {
  header = function(request, name)
    return request:header(name)
  end,
  cookie = function(request, name)
    return request:cookie(name)
  end,
  query = function(request, name)
    return request:parameter(name)
  end,
  subprotocol = function(request)
    return request:subprotocol "authorization" or request:subprotocol "authorization-bearer"
  end,
}

--- A place as it is written: `header:NAME`, `cookie:NAME`, `query:NAME` or `subprotocol`.
local function parse_place(text)
  if text == "subprotocol" then
    return { kind = "subprotocol" }
  end
  local kind, name = text:match "^(%l+):([!#$%%&'*+%-.^_`|~%w]+)$"
  if not kind or not readers[kind] or kind == "subprotocol" then
    error(('from: "%s" is no place: write header:NAME, cookie:NAME, query:NAME or subprotocol'):format(text), 0)
  end
  return { kind = kind, name = name }
end

function M.configure(conf)
  if #conf.from == 0 then
    error("from: name at least one place", 0)
  end
  local places = {}
  for idx, text in ipairs(conf.from) do
    places[idx] = parse_place(text)
  end
  local realm = conf.realm:gsub('[\\"]', "\\%0")
  return { keys = conf.keys, places = places, challenge = ('ApiKey realm="%s"'):format(realm) }
end

local function is_over(principal)
  return principal.expires and principal.expires <= time.now()
end

--- The key in the first of the places that has one. An empty value is none, but no other place overrules it.
local function presented_key(request, places)
  for _, place in ipairs(places) do
    local key = readers[place.kind](request, place.name)
    if key then
      return key ~= "" and key or nil
    end
  end
end

--- @param request streamgate.Request
function M.authenticate(request, conf)
  local presented = presented_key(request, conf.places)
  if not presented then
    return request:reject("auth.missing_key", { ["www-authenticate"] = conf.challenge })
  end

  local principal = conf.keys:find(presented) -- compares in constant time
  if not principal or is_over(principal) then
    local code = principal and "auth.expired_key" or "auth.unknown_key"
    return request:reject(code, { ["www-authenticate"] = conf.challenge })
  end

  request:set("principal", principal)
  request:set("key-auth", conf.keys:key(presented))
end

--- The function has no use for the key, and must not learn it.
function M.upstream_request(_, upstream, conf)
  for _, place in ipairs(conf.places) do
    if place.kind == "header" then
      upstream:remove_header(place.name)
    end
  end
end

--- Ends a session whose key was withdrawn or has expired.
--- @param request streamgate.Request
function M.session_tick(request, _, conf)
  local name = request:get "key-auth"
  if not name then
    return -- it was another plugin that let the browser in
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
