---@meta streamgate.cache
-- Written by `make docs` from src/lua/api; do not edit.

---What need not be asked again for a while: values of JSON's kind, kept like those of `kv`.
---@class streamgate.Cache
local cache = {}

---The value that is kept under a key, or what `loader` returns, which is then kept for `ttl` seconds. Of those who ask
---at the same time one calls its loader, the others wait for it and get the same. What a loader returns besides, as
---`nil, reason`, is passed on to them too, and not kept.
---@param key string
---@param ttl number
---@param loader function
---@return any
---@return any
function cache.get(key, ttl, loader) end

---Forgets what is kept under a key.
---@param key string
function cache.delete(key) end

return cache
