--- plugin.lua: the policy of the comparison for streamgate; run.py puts `tokens.lua` beside it.

local tokens = require "tokens"

local M = {}

--- @param request streamgate.Request
function M.authenticate(request)
  local authorization = request:header "authorization"
  local principal = authorization and tokens[authorization:match "^Bearer (.+)$"]
  if not principal then
    return request:reject "auth.unknown_token"
  end
  request:set("principal", { id = principal })
end

--- The gateway itself sets `authorization` and `function-id`, after the plugins. So that its Lua does as much as that of
--- the other proxies, two more headers are set here.
--- @param request streamgate.Request
function M.upstream_request(request, upstream)
  upstream:set_header("x-principal", request:get("principal").id)
  upstream:set_header("x-bench", "1")
  upstream:set_header("x-bench-chain", "lua")
end

function M.response_headers(_, response)
  response:set_header("access-control-allow-origin", "*")
  response:set_header("access-control-allow-headers", "*")
  response:set_header("access-control-expose-headers", "*")
end

return M
