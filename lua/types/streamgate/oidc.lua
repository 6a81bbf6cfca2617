---@meta streamgate.oidc
-- Written by `make docs` from src/lua/api; do not edit.

---What identity providers say about themselves.
---@class streamgate.Oidc
local oidc = {}

---The discovery document of an issuer (OpenID Connect Discovery 1.0); nil and `keys_unavailable` when there is none. It
---is kept for a while, and the hosts in it may then be reached by `http`.
---@param issuer string
---@return table?
---@return string?
function oidc.discover(issuer) end

return oidc
