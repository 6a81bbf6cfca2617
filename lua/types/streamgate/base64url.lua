---@meta streamgate.base64url
-- Written by `make docs` from src/lua/api; do not edit.

---Bytes as text that may stand in a URL (RFC 4648, section 5).
---@class streamgate.Base64url
local base64url = {}

---Encodes without padding.
---@param bytes string
---@return string
function base64url.encode(bytes) end

---Decodes, with padding or without; nil and a reason when it is not base64url.
---@param text string
---@return string?
---@return string?
function base64url.decode(text) end

return base64url
