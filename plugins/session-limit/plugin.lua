--- plugin.lua: bounds how many sessions are open at the same time.

local base64url = require "streamgate.base64url"
local crypto = require "streamgate.crypto"
local lease = require "streamgate.lease"
local metrics = require "streamgate.metrics"

local M = {}

local requests = metrics.counter("requests_total", "WebSocket requests by what became of them.", { "result" })

--- A limit that is none: a session that is open counts, whatever the limit has become meanwhile.
local ENDLESS = 1 << 30

--- How many sessions a principal may have; nil: as many as it likes.
local function own_limit(principal, conf)
  local own = principal and conf.attribute and math.tointeger(tonumber(principal[conf.attribute]))
  if own and own >= 0 then
    return own
  end
  return conf.per_principal
end

--- The leases that a session needs.
local function leases(request, function_id, conf)
  local found = {}
  local function add(what, value, limit)
    if limit then
      -- A hash, since ids may be longer than a name.
      local hash = base64url.encode(crypto.sha256(table.concat({ conf.name, what, value }, "\0")))
      found[#found + 1] = { name = hash, limit = limit, what = what }
    end
  end
  local principal = request:get "principal"
  if principal then
    add("principal", principal.id, own_limit(principal, conf))
  else
    add("address", request:client_ip(), conf.per_principal)
  end
  if function_id ~= "" then
    add("function", function_id, conf.per_function)
  end
  add("total", "", conf.total)
  return found
end

local codes = {
  principal = "sessions.too_many",
  address = "sessions.too_many",
  ["function"] = "sessions.function_full",
  total = "sessions.all_taken",
}

local function release(list, holder, n)
  for idx = 1, n or #list do
    lease.release(list[idx].name, holder)
  end
end

--- The function of a session: what was counted when it began, or what the session says.
local function function_of(request, session)
  return request:get "session-limit" or session:function_id() or ""
end

--- Prolongs the leases of a session.
local function prolong(request, session, conf)
  for _, it in ipairs(leases(request, function_of(request, session), conf)) do
    lease.take(it.name, session:id(), ENDLESS, conf.lease)
  end
end

function M.configure(conf)
  if not (conf.per_principal or conf.per_function or conf.total or conf.attribute) then
    error("set at least one of per_principal, attribute, per_function, total", 0)
  end
end

--- @param request streamgate.Request
function M.upstream_request(request, _, conf)
  if not request:is_websocket() then
    return
  end
  local function_id = request:get "function_id" or ""
  local holder = request:session_id()
  local list = leases(request, function_id, conf)
  for idx, it in ipairs(list) do
    local taken, reason = false, nil
    if it.limit > 0 then
      taken, reason = lease.take(it.name, holder, it.limit, conf.lease)
    end
    if reason then
      requests:add(1, "unavailable")
      if conf.on_unavailable == "reject" then
        release(list, holder, idx - 1)
        return request:reject "sessions.limit_unavailable"
      end
    elseif not taken then
      requests:add(1, it.what)
      release(list, holder, idx - 1)
      return request:reject(codes[it.what])
    end
  end
  requests:add(1, "taken")
  request:set("session-limit", function_id)
end

--- A connection takes its leases before an earlier one of the same session makes way for it, and the end of that one
--- releases them. So they are taken again when it is over.
function M.session_open(request, session, conf)
  prolong(request, session, conf)
end

function M.session_resume(request, session, conf)
  prolong(request, session, conf)
end

--- A session that was open before this plugin, or whose leases ran out, is counted from here on.
function M.session_tick(request, session, conf)
  prolong(request, session, conf)
end

function M.session_end(request, session, conf)
  release(leases(request, function_of(request, session), conf), session:id())
end

--- A request that took leases and became no session gives them back.
function M.log(request, response, conf)
  local function_id = request:get "session-limit"
  local holder = function_id and request:session_id()
  local code = response:code() -- a refusal by a Close frame has the status 101 too
  if holder and (response:status() ~= 101 or (code and code ~= "resumed")) then
    release(leases(request, function_id, conf), holder)
  end
end

return M
