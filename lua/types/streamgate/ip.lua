---@meta streamgate.ip
-- Written by `make docs` from src/lua/api; do not edit.

---Addresses and networks (CIDR, RFC 4632). An IPv4 address that comes as IPv6 counts as IPv4.
---@class streamgate.Ip
local ip = {}

---A set of addresses and networks; an error names what is neither. Do it once, while the plugin is loaded.
---@param networks table
---@return streamgate.Set
function ip.set(networks) end

---Whether a text is an address or a network.
---@param text string
---@return boolean
function ip.is_valid(text) end

return ip
