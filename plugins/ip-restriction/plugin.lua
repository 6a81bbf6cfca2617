--- plugin.lua: admits or refuses requests by the address that they come from.

local header = require "streamgate.header"
local ip = require "streamgate.ip"

local M = {}

local MOST_HOPS = 32 -- entries of the header that are looked at; more is no honest way here

function M.configure(conf)
  if conf.allow and #conf.allow == 0 then
    error("allow: an empty list would refuse everybody; leave it out", 0)
  end
  if not conf.allow and #conf.deny == 0 then
    error("give `allow`, `deny` or both", 0)
  end
  return {
    allow = conf.allow and ip.set(conf.allow),
    deny = ip.set(conf.deny),
    proxies = #conf.proxies > 0 and ip.set(conf.proxies) or nil,
    header = conf.header,
  }
end

--- The address in an entry of the header: `192.0.2.1`, `192.0.2.1:4711`, `2001:db8::1`, `[2001:db8::1]` or
--- `[2001:db8::1]:4711`; nil when it is something else.
local function address_of(entry)
  local address = entry:match "^%[([%x:.]+)%]:?%d*$" or entry:match "^([%d.]+):%d+$" or entry
  local is_address = #address <= 45 and not address:find("/", 1, true) and ip.is_valid(address)
  return is_address and address or nil
end

--- Where the request comes from. A proxy's word is taken as long as the proxy is trusted: each one adds, at the right,
--- whom it was talking to, so the first address from the right that is no proxy of ours is the last that is known for
--- sure. Whatever stands left of it the browser may have made up. nil when it cannot be said.
local function origin(request, conf)
  local address = request:client_ip()
  if not conf.proxies or not conf.proxies:has(address) then
    return address
  end
  local entries = {}
  for _, line in ipairs(request:headers(conf.header)) do
    for _, entry in ipairs(header.list(line)) do
      entries[#entries + 1] = entry
    end
  end
  for idx = #entries, math.max(1, #entries - MOST_HOPS + 1), -1 do
    address = address_of(entries[idx])
    if not address or not conf.proxies:has(address) then
      return address
    end
  end
  return #entries <= MOST_HOPS and address or nil
end

--- @param request streamgate.Request
function M.on_request(request, conf)
  local address = origin(request, conf)
  if not address or conf.deny:has(address) or conf.allow and not conf.allow:has(address) then
    return request:reject "ip.refused"
  end
end

return M
