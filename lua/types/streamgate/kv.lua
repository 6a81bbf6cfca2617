---@meta streamgate.kv
-- Written by `make docs` from src/lua/api; do not edit.

---Values that outlive a reload and are shared by all workers, or by all replicas when `plugins.store` is in Redis. Each plugin has its own keys, of at most 256 bytes; a value is a string of at most 64 KiB. Every call may give nil and `unavailable` when Redis is away.
---@class streamgate.Kv
local kv = {}

---The value of a key, nil when there is none.
---@param key string
---@return string?
---@return string?
function kv.get(key) end

---Keeps a value, for `ttl` seconds or until there is no room.
---@param key string
---@param value string
---@param ttl? number
---@return boolean?
---@return string?
function kv.set(key, value, ttl) end

---The same, only when the key has no value yet; whether it was so.
---@param key string
---@param value string
---@param ttl? number
---@return boolean?
---@return string?
function kv.add(key, value, ttl) end

---Forgets a value.
---@param key string
---@return boolean?
---@return string?
function kv.delete(key) end

---Adds to a counter, by one or by `by`, and gives what it has become. `ttl` counts from its first use.
---@param key string
---@param by? integer
---@param ttl? number
---@return integer?
---@return string?
function kv.incr(key, by, ttl) end

return kv
