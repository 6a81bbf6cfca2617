---@meta streamgate.timer
-- Written by `make docs` from src/lua/api; do not edit.

---What is done again and again, beside all requests.
---@class streamgate.Timer
local timer = {}

---Runs a function every so many seconds, from a tenth to a day; to be called in `init`. With `{ once = true }` it runs
---in one worker alone. It may wait, and the next run begins that long after its end. An error is logged.
---@param seconds number
---@param run function
---@param options? table
function timer.every(seconds, run, options) end

return timer
