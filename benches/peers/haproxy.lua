--- haproxy.lua: the policy of the comparison for HAProxy.

local tokens = require "tokens"

local function policy(txn)
  local authorization = txn.sf:req_fhdr "authorization"
  local principal = tokens[authorization:match "^Bearer (.+)$"]
  if not principal then
    txn:done(txn:reply { status = 401 })
  end
  local http = txn.http
  http:req_set_header("authorization", "Bearer upstream-key")
  http:req_set_header("function-id", "bench-function")
  http:req_set_header("x-principal", principal)
end

local function cors(txn)
  local http = txn.http
  http:res_set_header("access-control-allow-origin", "*")
  http:res_set_header("access-control-allow-headers", "*")
  http:res_set_header("access-control-expose-headers", "*")
end

core.register_action("policy", { "http-req" }, policy)
core.register_action("cors", { "http-res" }, cors)
