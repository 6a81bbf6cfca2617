---@meta streamgate.url
-- Written by `make docs` from src/lua/api; do not edit.

---URLs, their parts and their queries.
---@class streamgate.Url
local url = {}

---The parts of an absolute URL: `scheme`, `host`, `port` (also when it is the usual one), `path`, `query`; nil and a
---reason when it is none.
---@param text string
---@return table?
---@return string?
function url.parse(text) end

---A text with everything escaped that means something in a URL.
---@param text string
---@return string
function url.encode(text) end

---The text behind escapes.
---@param text string
---@return string
function url.decode(text) end

---A query from a table, its names sorted. Values are strings, numbers and booleans.
---@param parameters table
---@return string
function url.query(parameters) end

---The parameters of a query as a table; of several with one name the first.
---@param text string
---@return table
function url.parse_query(text) end

return url
