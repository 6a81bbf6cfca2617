---@meta streamgate.regex
-- Written by `make docs` from src/lua/api; do not edit.

---Regular expressions whose time grows with the text alone, whatever the pattern (the syntax of Rust's `regex`).
---@class streamgate.Regex
local regex = {}

---Compiles a pattern; an error says what is wrong with it. Do it once, while the plugin is loaded.
---@param pattern string
---@return streamgate.Pattern
function regex.new(pattern) end

return regex
