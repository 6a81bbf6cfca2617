--- plugin.lua: refuses requests that come faster than a limit.

local base64url = require "streamgate.base64url"
local crypto = require "streamgate.crypto"
local ip = require "streamgate.ip"
local metrics = require "streamgate.metrics"
local ratelimit = require "streamgate.ratelimit"

local M = {}

local requests = metrics.counter("requests_total", "Requests by what became of them.", { "by", "result" })

--- The 16-bit groups of a part of an IPv6 address.
local function groups(text)
  local found = {}
  for digits in text:gmatch "%x+" do
    found[#found + 1] = tonumber(digits, 16)
  end
  return found
end

--- What addresses are counted by: an IPv4 address itself, an IPv6 address by its first bits, since whoever has one of
--- them has the whole network.
local function network(address, bits)
  local mapped = address:match "^::ffff:(%d+%.%d+%.%d+%.%d+)$"
  if mapped or not address:find(":", 1, true) then
    return mapped or address
  end
  local head, tail = address:match "^(.-)::(.*)$"
  head, tail = groups(head or address), groups(tail or "")
  local kept = {}
  for idx = 1, 8 do
    local value = head[idx] or tail[idx - 8 + #tail] or 0
    local n_kept = math.max(0, math.min(16, bits - 16 * (idx - 1)))
    kept[idx] = ("%x"):format(value & (0xffff << (16 - n_kept)) & 0xffff)
  end
  return table.concat(kept, ":")
end

--- Who is counted. Where there is no principal or no such header, it is the address.
local function counted(request, conf)
  if conf.by == "principal" then
    local principal = request:get "principal"
    if principal then
      return "principal", principal.id
    end
  elseif conf.by == "header" then
    local value = request:header(conf.header)
    if value then
      return "header", value
    end
  elseif conf.by == "route" then
    return "route", request:route()
  end
  return "ip", network(request:client_ip(), conf.ipv6_prefix)
end

--- The headers that say how much is left.
local function shown(conf, remaining)
  -- With GCRA all is there again when the whole burst has been refilled.
  local refill = conf.per / conf.rate
  local window = math.ceil(conf.burst * refill)
  local reset = math.ceil((conf.burst - remaining) * refill)
  if conf.headers == "draft" then -- draft-ietf-httpapi-ratelimit-headers-10
    return {
      ["ratelimit-policy"] = ('"%s";q=%d;w=%d'):format(conf.name, conf.burst, window),
      ratelimit = ('"%s";r=%d;t=%d'):format(conf.name, remaining, reset),
    }
  elseif conf.headers == "x" then
    return {
      ["x-ratelimit-limit"] = ("%d"):format(conf.burst),
      ["x-ratelimit-remaining"] = ("%d"):format(remaining),
      ["x-ratelimit-reset"] = ("%d"):format(reset),
    }
  end
  return {}
end

local function check(request, conf)
  if conf.exempt and conf.exempt:has(request:client_ip()) then
    return
  end
  local kind, value = counted(request, conf)
  -- A hash, for what a browser sends may be long, and may be a secret.
  local key = base64url.encode(crypto.sha256(table.concat({ conf.scope, kind, value }, "\0")))
  local allowed, wait, remaining =
    ratelimit.take(key, { rate = conf.rate, per = conf.per, burst = conf.burst })
  if allowed == nil then
    requests:add(1, conf.by, "unavailable")
    if conf.on_unavailable == "reject" then
      return request:reject "rate.unavailable"
    end
    return
  end
  if not allowed then
    requests:add(1, conf.by, "limited")
    local headers = shown(conf, 0)
    headers["retry-after"] = ("%d"):format(math.max(1, math.ceil(wait)))
    return request:reject("rate.exceeded", headers)
  end
  requests:add(1, conf.by, "allowed")
  if conf.headers ~= "none" and not request:is_websocket() then
    request:set(conf.slot, remaining // 1) -- no script can read the headers of a 101
  end
end

function M.configure(conf)
  if conf.by == "header" and not conf.header then
    error('header: missing, and `by` is "header"', 0)
  end
  if not conf.name:find "^[%w_.-]+$" then
    error("name: expected letters, digits, `_`, `.` and `-`", 0)
  end
  conf.burst = conf.burst or conf.rate
  conf.phase = conf.phase or (conf.by == "ip" and "authenticate" or "authorize")
  conf.scope = ("%s %s %d/%g+%d"):format(conf.name, conf.by, conf.rate, conf.per, conf.burst)
  conf.slot = "rate-limit " .. conf.scope
  conf.exempt = #conf.exempt > 0 and ip.set(conf.exempt) or nil
  return conf
end

--- @param request streamgate.Request
function M.authenticate(request, conf)
  if conf.phase == "authenticate" then
    return check(request, conf)
  end
end

--- @param request streamgate.Request
function M.authorize(request, conf)
  if conf.phase == "authorize" then
    return check(request, conf)
  end
end

function M.response_headers(request, response, conf)
  local remaining = request:get(conf.slot)
  if not remaining then
    return -- it was not counted, or refused with its headers
  end
  if conf.headers == "x" then
    local other = tonumber(response:header "x-ratelimit-remaining")
    if other and other <= remaining then
      return -- these headers have room for one limit: the one that is nearer
    end
    for name, value in pairs(shown(conf, remaining)) do
      response:set_header(name, value)
    end
    return
  end
  for name, value in pairs(shown(conf, remaining)) do
    response:add_header(name, value) -- a list, one item for each limit
  end
end

return M
