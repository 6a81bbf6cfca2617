--- Bearer tokens: where a browser can put them, and how to ask for one.

local M = {}

--- The bearer token of a request, from the first of the places where a browser can put one: the header
--- `Authorization: Bearer TOKEN`, or an entry `authorization-bearer.TOKEN` (NVIDIA's client) or `authorization.TOKEN`
--- of `Sec-WebSocket-Protocol`.
--- @param request streamgate.Request
--- @return string?
function M.bearer(request)
  local header = request:header "authorization"
  if header then
    local scheme, token = header:match "^(%a+) +(%S+)$"
    if scheme and scheme:lower() == "bearer" then
      return token
    end
    return nil -- another scheme was chosen on purpose; an entry must not overrule it
  end
  return request:subprotocol "authorization-bearer" or request:subprotocol "authorization"
end

--- The value of `WWW-Authenticate` (RFC 6750 section 3).
--- @param realm string
--- @param code string? for example `invalid_token`
--- @return string
function M.challenge(realm, code)
  local value = ('Bearer realm="%s"'):format((realm:gsub('[\\"]', "\\%0")))
  if code then
    value = value .. (', error="%s"'):format(code)
  end
  return value
end

return M
