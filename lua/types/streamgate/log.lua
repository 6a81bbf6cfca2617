---@meta streamgate.log
-- Written by `make docs` from src/lua/api; do not edit.

---The gateway's log. Each line carries the plugin's name.
---@class streamgate.Log
local log = {}

---Writes an error: somebody must look at it.
---@param message any
function log.error(message) end

---Writes a warning.
---@param message any
function log.warn(message) end

---Writes what an operator may want to know. `print` does the same.
---@param message any
function log.info(message) end

---Writes what helps to find a mistake.
---@param message any
function log.debug(message) end

return log
