---@meta streamgate.uuid
-- Written by `make docs` from src/lua/api; do not edit.

---Names that nobody else has (RFC 9562).
---@class streamgate.Uuid
local uuid = {}

---A random one.
---@return string
function uuid.v4() end

---A random one that begins with the time, so that later ones sort behind earlier ones.
---@return string
function uuid.v7() end

return uuid
