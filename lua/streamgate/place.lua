--- Places of a request where a client can put a credential.

local token = require "streamgate.token"

local M = {}

--- How a credential is read from each place. Of the entries of `Sec-WebSocket-Protocol` only those that `bearer` and
--- `subprotocol` read are held back by the gateway; all others go upstream.
local readers = {
  bearer = function(request)
    -- Another scheme was chosen on purpose, so no other place is asked then.
    return token.bearer(request) or request:header "authorization" and ""
  end,
  subprotocol = function(request)
    return request:subprotocol "authorization-bearer" or request:subprotocol "authorization"
  end,
  header = function(request, name)
    return request:header(name)
  end,
  cookie = function(request, name)
    return request:cookie(name)
  end,
  query = function(request, name)
    return request:parameter(name)
  end,
}

--- A place as it is written: `bearer`, `subprotocol`, `header:NAME`, `cookie:NAME` or `query:NAME`.
local function parse(text)
  if text == "bearer" or text == "subprotocol" then
    return { read = readers[text], kind = text }
  end
  local kind, name = text:match "^(%l+):([!#$%%&'*+%-.^_`|~%w]+)$"
  if kind ~= "header" and kind ~= "cookie" and kind ~= "query" then
    local known = "bearer, subprotocol, header:NAME, cookie:NAME or query:NAME"
    error(('from: "%s" is no place: write %s'):format(text, known), 0)
  end
  return { read = readers[kind], kind = kind, name = name }
end

--- The places of a setting `from`; an error says what is wrong with it. For `configure`.
--- @param from string[]
--- @return table
function M.parse_all(from)
  if #from == 0 then
    error("from: name at least one place", 0)
  end
  local places = {}
  for idx, text in ipairs(from) do
    places[idx] = parse(text)
  end
  return places
end

--- The credential in the first of the places that has one. An empty value is none, but no other place overrules it.
--- @param request streamgate.Request
--- @param places table
--- @return string?
function M.read(request, places)
  for _, place in ipairs(places) do
    local presented = place.read(request, place.name)
    if presented then
      return presented ~= "" and presented or nil
    end
  end
end

--- Takes the credential out of the request that goes upstream: the function has no use for it, and must not learn it.
--- @param upstream streamgate.Upstream
--- @param places table
function M.hide(upstream, places)
  for _, place in ipairs(places) do
    if place.kind == "header" then
      upstream:remove_header(place.name)
    end
  end
end

return M
