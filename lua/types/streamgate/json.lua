---@meta streamgate.json
-- Written by `make docs` from src/lua/api; do not edit.

---JSON (RFC 8259), at most 1 MiB of it and nested at most 32 deep. `json.null` stands for a null.
---@class streamgate.Json
local json = {}

--- A null of JSON, which Lua has no value for.
json.null = {}

---The value of a text; nil and a reason when it is none.
---@param text string
---@return any
---@return string?
function json.decode(text) end

---A value as text. An empty table is an object, unless `json.array` made it.
---@param value any
---@return string
function json.encode(value) end

---Has a table written as an array, also when it is empty.
---@param items table
---@return table
function json.array(items) end

return json
