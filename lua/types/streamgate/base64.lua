---@meta streamgate.base64
-- Written by `make docs` from src/lua/api; do not edit.

---Bytes as text (RFC 4648, section 4).
---@class streamgate.Base64
local base64 = {}

---Encodes with padding.
---@param bytes string
---@return string
function base64.encode(bytes) end

---Decodes, with padding or without; nil and a reason when it is not base64.
---@param text string
---@return string?
---@return string?
function base64.decode(text) end

return base64
