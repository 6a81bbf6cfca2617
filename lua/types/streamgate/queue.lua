---@meta streamgate.queue
-- Written by `make docs` from src/lua/api; do not edit.

---What is sent later: it outlives a reload, is shared by the workers of this process, and is bounded (1,000 entries and 8 MiB in each).
---@class streamgate.Queue
local queue = {}

---Appends a text; false when there is no room: then it is dropped, and counted in
---`streamgate_plugin_<plugin>_queue_dropped_total`.
---@param name string
---@param text string
---@return boolean
function queue.push(name, text) end

---Takes the first entries, one or at most `n`.
---@param name string
---@param n? integer
---@return string[]
function queue.pop(name, n) end

---How many entries it has.
---@param name string
---@return integer
function queue.size(name) end

return queue
