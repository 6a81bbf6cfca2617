--- envoy.lua: the policy of the comparison for Envoy, which finds `tokens` by LUA_PATH.

local tokens = require "tokens"

function envoy_on_request(handle)
  local headers = handle:headers()
  local authorization = headers:get "authorization"
  local principal = authorization and tokens[authorization:match "^Bearer (.+)$"]
  if not principal then
    return handle:respond({ [":status"] = "401" }, "")
  end
  headers:replace("authorization", "Bearer upstream-key")
  headers:replace("function-id", "bench-function")
  headers:replace("x-principal", principal)
end

function envoy_on_response(handle)
  local headers = handle:headers()
  headers:replace("access-control-allow-origin", "*")
  headers:replace("access-control-allow-headers", "*")
  headers:replace("access-control-expose-headers", "*")
end
