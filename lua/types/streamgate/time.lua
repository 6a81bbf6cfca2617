---@meta streamgate.time
-- Written by `make docs` from src/lua/api; do not edit.

---The gateway's clock.
---@class streamgate.Time
local time = {}

---Seconds since the Unix epoch, with a fraction. A spec sets them with `at`; `os.time` it cannot set.
---@return number
function time.now() end

---Seconds since some moment; they never go back, so they are right for what takes how long.
---@return number
function time.monotonic() end

---A moment as people write it, in UTC (RFC 3339).
---@param seconds number
---@return string
function time.rfc3339(seconds) end

---Waits, at most a minute.
---@param seconds number
function time.sleep(seconds) end

return time
