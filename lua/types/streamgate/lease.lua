---@meta streamgate.lease
-- Written by `make docs` from src/lua/api; do not edit.

---How many of something there may be at a time, shared like `kv`. Each holder has a lease, which ends by itself when it is not prolonged, so a process that dies leaves nothing behind.
---@class streamgate.Lease
local lease = {}

---Gives `holder` one of `limit` leases for `ttl` seconds, or prolongs the one it has; whether it has one now.
---@param name string
---@param holder string
---@param limit integer
---@param ttl number
---@return boolean?
---@return string?
function lease.take(name, holder, limit, ttl) end

---Ends a lease; in every phase, for nothing waits for it.
---@param name string
---@param holder string
function lease.release(name, holder) end

---How many leases there are.
---@param name string
---@return integer?
---@return string?
function lease.count(name) end

return lease
