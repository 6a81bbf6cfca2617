--- nginx.lua: the policy of the comparison for nginx.

local tokens = require "tokens"

local M = {}

function M.policy()
  local authorization = ngx.var.http_authorization
  local principal = authorization and tokens[authorization:match "^Bearer (.+)$"]
  if not principal then
    return ngx.exit(401)
  end
  ngx.req.set_header("authorization", "Bearer upstream-key")
  ngx.req.set_header("function-id", "bench-function")
  ngx.req.set_header("x-principal", principal)
end

function M.cors()
  local headers = ngx.header
  headers["access-control-allow-origin"] = "*"
  headers["access-control-allow-headers"] = "*"
  headers["access-control-expose-headers"] = "*"
end

return M
