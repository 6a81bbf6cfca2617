---@meta streamgate.ratelimit
-- Written by `make docs` from src/lua/api; do not edit.

---How often something may happen, shared like `kv` (GCRA: a bucket that fills evenly).
---@class streamgate.Ratelimit
local ratelimit = {}

---Whether one more is allowed now, of `rate` in `per` seconds and `burst` at once (as many as `rate`, unless it is
---given); then in how many seconds it will be, and how many more are left. Nil and `unavailable` when Redis is away.
---@param key string
---@param limit table
---@return boolean?
---@return number|string
---@return integer?
function ratelimit.take(key, limit) end

return ratelimit
