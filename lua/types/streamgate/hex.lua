---@meta streamgate.hex
-- Written by `make docs` from src/lua/api; do not edit.

---Bytes as pairs of hexadecimal digits.
---@class streamgate.Hex
local hex = {}

---Encodes, in lower case.
---@param bytes string
---@return string
function hex.encode(bytes) end

---Decodes; nil and a reason when it is not hexadecimal.
---@param text string
---@return string?
---@return string?
function hex.decode(text) end

return hex
